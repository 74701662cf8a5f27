"""Files that hold a task's data, one JSON object per line: their rows, and what is wrong with them, by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repsim.corpus import json_kind
from repsim.schema import RepsimError


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, each with the number of its line; blank lines hold none.

    Raises:
        RepsimError: the file cannot be read, or a line holds no object.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _row(path, number, line)
    except OSError as problem:
        raise RepsimError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise RepsimError(f"{path}: not UTF-8 after line {number}; convert the file first") from None


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise RepsimError(f"{path} line {number}: not JSON; write one object per line") from None
    if not isinstance(row, dict):
        raise RepsimError(f"{path} line {number}: holds {json_kind(row)}, not an object with the task's fields")
    return row


def check(path: Path) -> None:
    """Refuses a file that a reader would fill up where it has gaps, so that prompts would say `None`.

    Raises:
        RepsimError: there is no row, a line is no object, or two lines differ in their fields.
    """
    rows = numbered_rows(path)
    first, fields = next(((number, row.keys()) for number, row in rows), (0, None))
    if fields is None:
        raise RepsimError(f"{path}: holds no example")
    for number, row in rows:
        for field in sorted(fields ^ row.keys()):
            with_it, without = (first, number) if field in fields else (number, first)
            raise RepsimError(
                f"{path} line {without}: no field {field!r}, which line {with_it} has; write null where there is none"
            )


def line_of(path: Path, index: int) -> int:
    """The number of the line that holds a row, counted from 0."""
    for row, (number, _) in enumerate(numbered_rows(path)):
        if row == index:
            return number
    raise IndexError(index)
