"""Texts with stable keys, from the built-in passages, a file or the Hugging Face hub.

A text's key says which text it is (a built-in passage's name, otherwise a digest of the text), so it
stays the same when a file is reordered or grows. Knows no tokenizer, no model and no store.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from repsim.errors import DataError

BUILTIN = "builtin"
LINE = re.compile(r"(?s:(?=.))([^\r\n]*)(?:\r\n?|\n|\Z)")  # the last one may lack its end
SHOWN_FIELDS = 10  # of a record's, in a message
JSON_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True)
class Text:
    """A text with its stable key."""

    key: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Texts from one source.

    name: short name without folders, for identities and figures.
    texts: in the source's order, each once.
    notes: counted warnings, e.g. how many lines were empty.
    """

    name: str
    texts: tuple[Text, ...]
    notes: tuple[str, ...] = ()


def read_corpus(source: str = BUILTIN, *, field: str = "text", limit: int | None = None) -> Corpus:
    """Reads texts.

    Args:
        source: `builtin`, a .txt file (one text a line), a .jsonl file, or
            `hf:name/config:split:field`.
        field: the field of a .jsonl file that holds the text.
        limit: keep the first so many texts.
    Raises:
        RepsimError: no such source, not text, a field is missing, or nothing is left.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}: at least 1")
    if source == BUILTIN:
        raw = resources.files("repsim.data").joinpath("passages.jsonl").read_text("utf-8")
        texts = tuple(Text(**json.loads(line)) for line in raw.splitlines())
        return Corpus(BUILTIN, texts[:limit])
    if source.startswith("hf:"):
        name, lines = _read_hub(source)
    else:
        name, lines = Path(source).stem, _read_file(Path(source), field)
    return _keyed(name, lines, limit, source)


def _read_file(path: Path, field: str) -> Iterator[str]:
    if path.suffix not in {".txt", ".jsonl"}:
        raise DataError(
            f"corpus {str(path)!r}: there is {BUILTIN}, a .txt or .jsonl file, or hf:name/config:split:field"
        )
    if not path.is_file():
        raise DataError(f"corpus {str(path)!r}: no such file")
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise DataError(
            f"corpus {str(path)!r}: cannot be read: {problem.strerror or problem}"
        ) from None
    if b"\0" in data[: 1 << 16]:
        raise DataError(f"corpus {str(path)!r}: a binary file; expected text in UTF-8")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as problem:
        line = problem.object[: problem.start].count(b"\n") + 1
        raise DataError(
            f"corpus {str(path)!r}: line {line} is not UTF-8; convert the file first"
        ) from None
    lines = _lines(text)
    return lines if path.suffix == ".txt" else _fields(lines, path, field)


def _lines(text: str) -> Iterator[str]:
    """A text's lines without their ends; str.splitlines would also end one at U+2028, which JSON
    may hold.
    """
    return (match[1] for match in LINE.finditer(text))


def _fields(lines: Iterable[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield ""
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # endless digits or brackets, too
            raise DataError(f"corpus {str(path)!r}: line {number} is not JSON") from None
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(f"corpus {str(path)!r}: line {number}: {_no_text(record, field)}")
        yield text


def _no_text(record: Any, field: str) -> str:
    """Why a line of JSON gives no text, and what to do."""
    if not isinstance(record, dict):
        return f"holds {json_kind(record)}, not an object with fields; write {{{json.dumps(field)}: ...}}"
    found = (
        ", ".join([*list(record)[:SHOWN_FIELDS], *["..."] * (len(record) > SHOWN_FIELDS)]) or "none"
    )
    if field not in record:
        return f"no field {field!r}; name a text field with --field (found: {found})"
    return f"field {field!r} holds {json_kind(record[field])}, not text; name a text field with --field (found: {found})"


def json_kind(value: Any) -> str:
    """What a value that JSON gave is, for the eye."""
    return JSON_KINDS.get(type(value), type(value).__name__)


def _read_hub(source: str) -> tuple[str, Iterator[str]]:
    parts = source.removeprefix("hf:").split(":")
    if len(parts) != 3 or not all(parts):
        raise DataError(
            f"corpus {source!r}: write hf:name/config:split:field, e.g. hf:glue/sst2:validation:sentence"
        )
    path, split, field = parts
    rows = _load_rows(path, split, source)
    if field not in rows.column_names:
        raise DataError(
            f"corpus {source!r}: no field {field!r}; found: {', '.join(rows.column_names)}"
        )
    return f"{path.replace('/', '-')}-{split}", _column(rows, field, source)


def _column(rows: Any, field: str, source: str) -> Iterator[str]:
    """A data set's texts; a missing value counts as an empty one."""
    for number, value in enumerate(rows[field], 1):
        if not isinstance(value, str | None):
            raise DataError(
                f"corpus {source!r}: row {number}: field {field!r} holds {json_kind(value)}, not text"
            )
        yield value or ""


def _load_rows(path: str, split: str, source: str) -> Any:
    """`a/b` may be a repository `a/b` or a configuration b of a data set a; the first that exists
    is taken.
    """
    import datasets  # takes a second to import and only a Hub corpus needs it

    name, _, config = path.rpartition("/")
    candidates: list[tuple[str, str | None]] = [(path, None)] if path.count("/") < 2 else []
    candidates += [(name, config)] if name else []
    problems: list[Exception] = []
    for repository, configuration in candidates:
        try:
            return datasets.load_dataset(repository, configuration, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            problems.append(error)
    # Where one reading of the name exists, what is wrong with it says more than that the other does
    # not exist.
    problem = min(problems, key=lambda error: isinstance(error, OSError))
    reason = " ".join(str(problem).split())[:200]
    raise DataError(f"corpus {source!r}: not to be had from the hub or its cache: {reason}")


def _keyed(name: str, lines: Iterator[str], limit: int | None, source: str) -> Corpus:
    """Texts with keys; empty ones and second copies are left out and counted."""
    found: dict[str, Text] = {}
    empty = copies = 0
    for number, line in enumerate(lines, 1):
        if limit is not None and len(found) == limit:
            break
        text = line.strip()
        try:
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
        except UnicodeEncodeError:  # JSON can escape half a surrogate pair
            raise DataError(
                f"corpus {source!r}: text {number} is not valid Unicode; mend or remove it"
            ) from None
        empty += not text
        copies += bool(text) and key in found
        if text:
            found.setdefault(key, Text(key, text))
    if not found:
        raise DataError(f"corpus {source!r}: no text in it ({empty} empty lines)")
    counted = ((empty, "empty texts left out"), (copies, "repeated texts left out"))
    return Corpus(
        name, tuple(found.values()), tuple(f"{number} {what}" for number, what in counted if number)
    )
