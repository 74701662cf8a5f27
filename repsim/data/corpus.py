"""Texts with stable keys, from the built-in passages, a file or the Hugging Face Hub.

A text's key says which text it is (a built-in passage's name, otherwise a digest of the text), so
it stays the same when a file is reordered or grows. Knows no tokenizer, no model and no store.
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
from repsim.hub import cache_if_unreachable

BUILTIN = "builtin"
# A line with its end, which the last one may lack. The lookahead keeps the pattern from matching
# the empty string at the end of a text.
LINE = re.compile(r"(?s:(?=.))([^\r\n]*)(?:\r\n?|\n|\Z)")
MOST_FIELDS_SHOWN = 10  # of a record, in a message
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
        source: `builtin`, a .txt file (one text per line), a .jsonl file, or
            `hf:name/config:split:field`.
        field: the field of a .jsonl file that holds the text.
        limit: keep the first `limit` texts.

    Raises:
        RepsimError: there is no such source, it is not text, a field is missing, or nothing is
            left.

    Example:
        >>> corpus = read_corpus(limit=2)
        >>> corpus.name, len(corpus.texts)
        ('builtin', 2)
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}: at least 1")
    if source == BUILTIN:
        raw = resources.files("repsim.data").joinpath("passages.jsonl").read_text("utf-8")
        passages = tuple(Text(**json.loads(line)) for line in raw.splitlines())
        return Corpus(BUILTIN, passages[:limit])
    if source.startswith("hf:"):
        name, texts = _read_hub(source)
    else:
        name, texts = Path(source).stem, _read_file(Path(source), field)
    return _build_corpus(name, texts, limit, source)


def _read_file(path: Path, field: str) -> Iterator[str]:
    if path.suffix not in {".txt", ".jsonl"}:
        raise DataError(
            f"corpus {str(path)!r}: there is {BUILTIN}, a .txt or .jsonl file, or "
            "hf:name/config:split:field"
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
    lines = _split_lines(text)
    return lines if path.suffix == ".txt" else _read_fields(lines, path, field)


def _split_lines(text: str) -> Iterator[str]:
    """A text's lines without their ends.

    `str.splitlines` would also end a line at U+2028 and others, which JSON may hold.
    """
    return (match[1] for match in LINE.finditer(text))


def _read_fields(lines: Iterable[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield ""
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # of too many digits or brackets, too
            raise DataError(f"corpus {str(path)!r}: line {number} is not JSON") from None
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f"corpus {str(path)!r}: line {number}: {_explain_missing_text(record, field)}"
            )
        yield text


def _explain_missing_text(record: Any, field: str) -> str:
    """Why a line of JSON gives no text, and what to do."""
    kind = json_kind(record)
    if not isinstance(record, dict):
        return f"holds {kind}, not an object with fields; write {{{json.dumps(field)}: ...}}"
    names = list(record)[:MOST_FIELDS_SHOWN]
    if len(record) > MOST_FIELDS_SHOWN:
        names.append("...")
    advice = f"name a text field with --field (found: {', '.join(names) or 'none'})"
    if field not in record:
        return f"no field {field!r}; {advice}"
    return f"field {field!r} holds {json_kind(record[field])}, not text; {advice}"


def json_kind(value: Any) -> str:
    """What kind of value JSON gave, in words.

    Args:
        value: from `json.loads`.

    Example:
        >>> json_kind([1, 2])
        'a list'
    """
    return JSON_KINDS.get(type(value), type(value).__name__)


def _read_hub(source: str) -> tuple[str, Iterator[str]]:
    parts = source.removeprefix("hf:").split(":")
    if len(parts) != 3 or not all(parts):
        raise DataError(
            f"corpus {source!r}: write hf:name/config:split:field, e.g. "
            "hf:glue/sst2:validation:sentence"
        )
    path, split, field = parts
    rows = _load_rows(path, split, source)
    if field not in rows.column_names:
        raise DataError(
            f"corpus {source!r}: no field {field!r}; found: {', '.join(rows.column_names)}"
        )
    return f"{path.replace('/', '-')}-{split}", _read_column(rows, field, source)


def _read_column(rows: Any, field: str, source: str) -> Iterator[str]:
    """A data set's texts; a missing value counts as an empty one."""
    for number, value in enumerate(rows[field], 1):
        if not isinstance(value, str | None):
            raise DataError(
                f"corpus {source!r}: row {number}: field {field!r} holds {json_kind(value)}, not "
                "text"
            )
        yield value or ""


def _load_rows(path: str, split: str, source: str) -> Any:
    """The rows of a data set's split.

    `a/b` may be a repository `a/b` or a configuration b of a data set a; the first that exists is
    taken.
    """
    import datasets  # takes a second to import and only a Hub corpus needs it

    name, _, config = path.rpartition("/")
    candidates: list[tuple[str, str | None]] = [(path, None)] if path.count("/") < 2 else []
    candidates += [(name, config)] if name else []
    problems: list[Exception] = []
    for repository, configuration in candidates:
        try:
            with cache_if_unreachable():
                return datasets.load_dataset(repository, configuration, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            problems.append(error)
    # If one reading of the name exists, what is wrong with it is worth more than the remark that
    # the other does not exist.
    problem = min(problems, key=lambda error: isinstance(error, OSError))
    reason = " ".join(str(problem).split())[:200]
    raise DataError(f"corpus {source!r}: cannot be read from the Hub or its cache: {reason}")


def _build_corpus(name: str, texts: Iterator[str], limit: int | None, source: str) -> Corpus:
    """Texts with keys; empty texts and repetitions are left out and counted."""
    by_key: dict[str, Text] = {}
    empty = repeated = 0
    for number, padded_text in enumerate(texts, 1):
        if limit is not None and len(by_key) == limit:
            break
        text = padded_text.strip()
        try:
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
        except UnicodeEncodeError:  # JSON can escape half a surrogate pair
            raise DataError(
                f"corpus {source!r}: text {number} is not valid Unicode; mend or remove it"
            ) from None
        if not text:
            empty += 1
        elif key in by_key:
            repeated += 1
        else:
            by_key[key] = Text(key, text)
    if not by_key:
        raise DataError(f"corpus {source!r}: no text in it ({empty} empty lines)")
    counts = ((empty, "empty texts left out"), (repeated, "repeated texts left out"))
    notes = tuple(f"{count} {what}" for count, what in counts if count)
    return Corpus(name, tuple(by_key.values()), notes)
