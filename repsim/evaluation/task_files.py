"""Files that hold a task's data, one JSON object per line: their rows, and what is wrong with them,
by line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repsim.data.corpus import json_kind
from repsim.errors import DataError

NOTHING = json_kind(None)
LONGEST = 1 << 24  # characters of a line: tokenizing takes some 25 times its size


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, each with the number of its line; blank lines hold none.

    Raises:
        RepsimError: the file cannot be read, or a line is too long or holds no object.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _row(path, number, line)
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 after line {number}; convert the file first") from None


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    if len(line) > LONGEST:
        raise DataError(
            f"{path} line {number}: {len(line):,} characters, at most {LONGEST:,} are read; shorten it"
        )
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{path} line {number}: not JSON; write one object per line") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{path} line {number}: holds {json_kind(row)}, not an object with the task's fields"
        )
    return row


def check(path: Path) -> None:
    """Refuses a file that a reader would fill up or bring into one form, so that prompts would say
    what is not there.

    Raises:
        RepsimError: there is no row, a line is no object, or two lines differ in their fields or
            what these hold.
    """
    first, held = 0, dict[str, tuple[str, int]]()  # field -> what it holds, and in which line first
    for number, row in numbered_rows(path):
        kinds = {field: (json_kind(value), number) for field, value in row.items()}
        if not first:
            first, held = number, kinds
        for field in sorted(held.keys() ^ kinds.keys()):
            with_it, without = (first, number) if field in held else (number, first)
            raise DataError(
                f"{path} line {without}: no field {field!r}, which line {with_it} has; write null where there is none"
            )
        for field, (kind, _) in kinds.items():
            before, where = held[field]
            if before == NOTHING:
                held[field] = kinds[field]
            elif kind not in (before, NOTHING):
                raise DataError(
                    f"{path} line {number}: field {field!r} holds {kind}, and {before} in line {where}"
                )
    if not first:
        raise DataError(f"{path}: holds no example")


def line_of(path: Path, index: int) -> int:
    """The number of the line that holds a row, counted from 0."""
    for row, (number, _) in enumerate(numbered_rows(path)):
        if row == index:
            return number
    raise IndexError(index)
