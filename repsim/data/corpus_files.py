"""Texts in files: lines, JSON, tables, folders of text files, and standard input.

Every format may be packed with gzip. What is wrong with a file is one line that names the place.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from repsim.data.records import Content, Source, json_kind, listed
from repsim.errors import DataError
from repsim.options import BUILTIN, STDIN

PACKED = ".gz"
TEXT = ".txt"
# A line with its end, which the last one may lack. The lookahead keeps the pattern from matching
# the empty string at the end of a text.
LINE = re.compile(r"(?s:(?=.))([^\r\n]*)(?:\r\n?|\n|\Z)")
LARGEST_CSV_BLOCK = (1 << 31) - 1


def read_path(path: Path, source: Source) -> tuple[str, Iterator[Content], tuple[str, ...]]:
    """The texts of a file or folder.

    Args:
        path: where it is.
        source: what is looked for.

    Returns:
        Its name without folders and suffixes, its texts, and remarks.

    Raises:
        DataError: there is no such file, or it is of no known kind or cannot be read; the iterator
            raises it where a value is not text.
    """
    if path.is_dir():
        return _read_folder(path, source)
    suffix, name = split_name(path)
    if suffix not in READERS:
        *others, last = READERS
        raise source.error(
            f"there is {BUILTIN}, a {', '.join(others)} or {last} file (also {PACKED}), a folder "
            f"of {TEXT} files, {STDIN} (standard input) or hf:name/config:split:field"
        )
    return name, READERS[suffix](read_bytes(path, source), source), ()


def split_name(path: Path) -> tuple[str, str]:
    """A file's format, and its name without what says it.

    Example:
        >>> split_name(Path("own.texts.jsonl.gz"))
        ('.jsonl', 'own.texts')
    """
    plain = Path(path.name.removesuffix(PACKED))
    return plain.suffix, plain.stem


def read_bytes(path: Path, source: Source) -> bytes:
    """A file's bytes, unpacked where its name ends in .gz.

    Raises:
        DataError: it is not there, cannot be read, or is no gzip file.
    """
    if not path.is_file():
        raise source.error("no such file")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == PACKED else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise source.error(f"cannot be unpacked, a damaged gzip file ({problem})") from None
    except OSError as problem:
        raise source.error(f"cannot be read: {problem.strerror or problem}") from None


def read_stdin(source: Source) -> Iterator[Content]:
    """The lines of standard input, read as they are asked for.

    Raises:
        DataError: nothing is piped to it, or a line is not text.
    """
    stream = sys.stdin
    if stream is None or stream.closed or stream.isatty():
        raise source.error(
            "nothing is piped to standard input; pipe texts to it, one per line, or name a file"
        )
    return _read_stream(stream, source)


def _read_stream(stream: Any, source: Source) -> Iterator[Content]:
    number = 0
    try:
        for number, line in enumerate(getattr(stream, "buffer", stream), 1):
            data = line if isinstance(line, bytes) else line.encode()
            beginning = codecs.BOM_UTF8 if number == 1 else b""
            yield from _split_lines(data.removeprefix(beginning).decode())
    except UnicodeDecodeError:
        raise source.error(f"line {number} is not UTF-8; convert the texts first") from None
    except OSError as problem:
        raise source.error(f"cannot be read: {problem.strerror or problem}") from None


def _read_folder(path: Path, source: Source) -> tuple[str, Iterator[Content], tuple[str, ...]]:
    """The text files right in a folder, each a text, in the order of their names."""
    try:
        files = sorted(file for file in path.iterdir() if file.name[0] != "." and file.is_file())
    except OSError as problem:
        raise source.error(f"cannot be read: {problem.strerror or problem}") from None
    texts = [file for file in files if split_name(file)[0] == TEXT]
    if not texts:
        raise source.error(
            f"a folder without {TEXT} files right in it (found: {listed(f.name for f in files)})"
        )

    def contents() -> Iterator[Content]:
        for file in texts:
            of_file = replace(source, label=f"corpus {str(file)!r}")
            yield _decode(read_bytes(file, of_file), of_file)

    others = len(files) - len(texts)
    notes = (f"{others} files other than {TEXT} left out",) if others else ()
    return path.resolve().name, contents(), notes


# One reader per format: a file's bytes and what is looked for give texts.


def _decode(data: bytes, source: Source) -> str:
    if b"\0" in data[: 1 << 16]:
        raise source.error("a binary file; expected text in UTF-8")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as problem:
        line = problem.object[: problem.start].count(b"\n") + 1
        raise source.error(f"line {line} is not UTF-8; convert the file first") from None


def _split_lines(text: str) -> Iterator[str]:
    """A text's lines without their ends.

    `str.splitlines` would also end a line at U+2028 and others, which JSON may hold.
    """
    return (match[1] for match in LINE.finditer(text))


def _read_lines(data: bytes, source: Source) -> Iterator[Content]:
    return _split_lines(_decode(data, source))


def _read_json_lines(data: bytes, source: Source) -> Iterator[Content]:
    for number, line in enumerate(_split_lines(_decode(data, source)), 1):
        if not line.strip():
            yield ""
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # of too many digits or brackets, too
            raise source.error(f"line {number} is not JSON") from None
        yield source.in_record(record, f"line {number}")


def _read_json(data: bytes, source: Source) -> Iterator[Content]:
    """One list, of texts or of objects with the field."""
    try:
        values = json.loads(_decode(data, source))
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, DataError):
            raise
        raise source.error(
            "is not JSON; a file with one JSON value per line is a .jsonl file"
        ) from None
    if not isinstance(values, list):
        raise source.error(f"holds {json_kind(values)}, not a list of texts")
    for number, value in enumerate(values, 1):
        content = source.content(value)
        yield source.in_record(value, f"item {number}") if content is None else content


def _read_csv(data: bytes, source: Source) -> Iterator[Content]:
    """A table with a header; a column of numbers is one of numbers, not of texts."""
    from pyarrow import ArrowInvalid, BufferReader, csv

    text = _decode(data, source).encode()
    # One block: types are told from all of a column, and a text may hold line ends.
    size = min(len(text) + 1, LARGEST_CSV_BLOCK)
    try:
        table = csv.read_csv(
            BufferReader(text),
            read_options=csv.ReadOptions(block_size=size),
            parse_options=csv.ParseOptions(newlines_in_values=True),
        )
    except ArrowInvalid as problem:
        reason = " ".join(str(problem).split())[:200]
        raise source.error(f"cannot be read as a table with commas: {reason}") from None
    return read_table(table, table.column_names, source)


def _read_parquet(data: bytes, source: Source) -> Iterator[Content]:
    from pyarrow import ArrowException, BufferReader, parquet

    try:
        file = parquet.ParquetFile(BufferReader(data))
        names = file.schema_arrow.names
        table = file.read(columns=[source.field] if source.field in names else [])
    except (ArrowException, OSError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise source.error(f"cannot be read as parquet: {reason}") from None
    return read_table(table, names, source)


def read_table(table: Any, names: Iterable[str], source: Source) -> Iterator[Content]:
    """The texts of a table's column.

    Args:
        table: gives a column by its name.
        names: of all columns.
        source: whose field is the column.

    Raises:
        DataError: there is no such column; the iterator raises it where a value is not text.
    """
    columns = list(names)
    if source.field not in columns:
        raise source.error(
            f"no column {source.field!r}; name a text column with --field "
            f"(found: {listed(columns)})"
        )
    return (
        source.in_row(value, f"row {number}: column {source.field!r}")
        for number, value in enumerate(values_of(table[source.field]), 1)
    )


def values_of(column: Any) -> Iterable[Any]:
    """A column's values as Python's own; Arrow's texts are no strings."""
    if hasattr(type(column), "to_pylist"):
        column = column.to_pylist()
    values: Iterable[Any] = column
    return values


READERS: Mapping[str, Callable[[bytes, Source], Iterator[Content]]] = {
    TEXT: _read_lines,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
