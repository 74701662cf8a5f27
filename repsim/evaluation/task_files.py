"""Files with a task's data, one JSON object per line: reading them, and naming the line at fault.

Knows no task: a file is well-formed if all of its lines hold the same fields with the same kinds of
values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from repsim.data.records import json_kind
from repsim.errors import DataError

NULL = json_kind(None)
MOST_CHARACTERS = 1 << 24  # of a line; tokenizing takes some 25 times its size in memory


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, each with the number of its line; blank lines hold none.

    Args:
        path: the file, in UTF-8.

    Yields:
        Line number, from 1, and object.

    Raises:
        RepsimError: the file cannot be read, or a line is too long or holds no object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "rows.jsonl"
        ...     _ = path.write_text('{"page": "one"}\\n\\n{"page": "two"}\\n')
        ...     list(read_rows(path))
        [(1, {'page': 'one'}), (3, {'page': 'two'})]
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse_row(path, number, line)
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 after line {number}; convert the file first") from None


def _parse_row(path: Path, number: int, line: str) -> dict[str, Any]:
    if len(line) > MOST_CHARACTERS:
        raise DataError(
            f"{path} line {number}: {len(line):,} characters, at most {MOST_CHARACTERS:,} are "
            "read; shorten it"
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


def check_file(path: Path) -> None:
    """Refuses a file whose lines differ in form.

    The library that reads it would fill up missing fields and convert values to one type, and
    prompts would then say what is not in the file.

    Args:
        path: the file.

    Raises:
        RepsimError: there is no row, a line is no object, or two lines differ in their fields or in
            the kinds of values these hold; null goes with every kind.
    """
    first_line = 0
    # By field: the kind of value it holds, and the first line where it does.
    fields: dict[str, tuple[str, int]] = {}
    for number, row in read_rows(path):
        kinds = {field: (json_kind(value), number) for field, value in row.items()}
        if not first_line:
            first_line, fields = number, kinds
        for field in sorted(fields.keys() ^ kinds.keys()):
            with_field, without = number, first_line
            if field in fields:
                with_field, without = first_line, number
            raise DataError(
                f"{path} line {without}: no field {field!r}, which line {with_field} has; write "
                "null where there is none"
            )
        for field, (kind, _) in kinds.items():
            earlier_kind, earlier_line = fields[field]
            if earlier_kind == NULL:
                fields[field] = kinds[field]
            elif kind not in (earlier_kind, NULL):
                raise DataError(
                    f"{path} line {number}: field {field!r} holds {kind}, and {earlier_kind} in "
                    f"line {earlier_line}"
                )
    if not first_line:
        raise DataError(f"{path}: holds no example")


def find_line(path: Path, index: int) -> int:
    """The number of the line, from 1, that holds a row.

    Args:
        path: the file.
        index: of the row, from 0.

    Raises:
        IndexError: the file has no such row.
        RepsimError: as `read_rows`.
    """
    for row, (number, _) in enumerate(read_rows(path)):
        if row == index:
            return number
    raise IndexError(index)


def line_files(config: Mapping[str, Any]) -> dict[str, str]:
    """Split → file of a task's data, where each split is one file with an object per line.

    Args:
        config: the task's settings, as lm-eval has them.

    Returns:
        Empty where the data lie elsewhere, or in another form.

    Example:
        >>> line_files({"dataset_path": "allenai/ai2_arc"})
        {}
    """
    files = (config.get("dataset_kwargs") or {}).get("data_files", {})
    if config.get("dataset_path") != "json":
        return {}
    if not isinstance(files, Mapping):
        files = {"train": files}  # as the library that reads it calls the only split
    by_split: dict[str, str] = {}
    for split, file in files.items():
        first, *others = file if isinstance(file, list) else [file]
        if others or not str(first).endswith(".jsonl") or not Path(first).is_file():
            return {}
        by_split[split] = str(first)
    return by_split
