"""Files of a task's data: rows, and the line at fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from repsim.errors import DataError
from repsim.evaluation.task_files import check_file, find_line, read_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "task.test.jsonl"


def write_rows(path: Path, *rows: Any) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_rows_have_the_numbers_of_their_lines(path: Path) -> None:
    path.write_text('{"a": 1}\n\n  \n{"a": 2}')
    assert list(read_rows(path)) == [(1, {"a": 1}), (4, {"a": 2})]
    assert [find_line(path, row) for row in range(2)] == [1, 4]
    with pytest.raises(IndexError):
        find_line(path, 2)


def test_a_byte_order_mark_is_no_text(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_rows(path)) == [(1, {"a": 1})]


def test_null_goes_with_every_kind(path: Path) -> None:
    write_rows(path, {"a": None, "b": 1}, {"a": "one", "b": None}, {"a": None, "b": 2.5})
    check_file(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}, {"b": 1}], "line 2: no field 'a', which line 1 has; write null where there"),
        ([{"a": 1}, {"a": 1, "b": 1}], "line 1: no field 'b', which line 2 has; write null where"),
        ([{"a": None}, {"a": 1}, {"a": "1"}], "line 3: field 'a' holds text, and a number in line"),
        ([{"a": 1}, {"a": True}], "line 2: field 'a' holds a boolean, and a number in line 1"),
        ([{"a": 1}, [1]], "line 2: holds a list, not an object with the task's fields"),
    ],
)
def test_lines_that_differ_in_form_are_refused(path: Path, rows: list[Any], message: str) -> None:
    write_rows(path, *rows)
    with pytest.raises(DataError) as caught:
        check_file(path)
    assert str(caught.value).startswith(f"{path} {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": holds no example"),
        (b"\n \n", ": holds no example"),
        (b'{"a": 1}\n{"a": \n', " line 2: not JSON; write one object per line"),
        (b"[" * 100_000, " line 1: not JSON; write one object per line"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', ": not UTF-8 after line "),
    ],
)
def test_files_that_are_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        check_file(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        check_file(path)
