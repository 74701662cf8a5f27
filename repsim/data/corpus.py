"""Texts with stable keys, from wherever they are: `read_corpus`.

A text's key says which text it is (a built-in passage's name, otherwise a digest of the text), so
it stays the same when a file is reordered or grows, and is the same whatever the text comes from.
Knows no tokenizer, no model and no store. Files are read by `corpus_files`, objects in memory by
`corpus_objects`, the Hub by `corpus_hub`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from repsim.data.corpus_files import read_path, read_stdin
from repsim.data.corpus_hub import HUB, read_hub
from repsim.data.corpus_objects import read_object
from repsim.data.records import Content, Message, Source
from repsim.errors import DataError
from repsim.options import BUILTIN, IN_MEMORY, STDIN

STDIN_NAME = "stdin"
DIGEST_DIGITS = 6  # of the texts, where their name is not enough


@dataclass(frozen=True)
class Text:
    """A text with its stable key.

    messages: what a conversation holds in place of `text`, each with `role` and `content`.
    """

    key: str
    text: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """Texts from one source.

    name: short name without folders, for identities and figures.
    texts: in the source's order, each once.
    notes: counted warnings, e.g. how many lines were empty.
    is_named: whether the name tells these texts from others; that of texts in memory does not.
    """

    name: str
    texts: tuple[Text, ...]
    notes: tuple[str, ...] = ()
    is_named: bool = True

    @property
    def distinct_name(self) -> str:
        """The name, with a digest of the texts where it would not tell them from others."""
        if self.is_named:
            return self.name
        keys = "\0".join(text.key for text in self.texts)
        return f"{self.name}-{hashlib.sha256(keys.encode()).hexdigest()[:DIGEST_DIGITS]}"


def read_corpus(
    source: Any = BUILTIN,
    *,
    field: str = "text",
    limit: int | None = None,
    conversations: bool = False,
) -> Corpus:
    """Reads texts.

    Args:
        source: `builtin`; a .txt file (one text per line); a .jsonl, .json, .csv or .parquet file;
            any of these packed as .gz; a folder, whose .txt files are a text each, in the order of
            their names; `-`, standard input (one text per line); `hf:name/config:split:field`; or
            an object in memory: a list of texts, a column, or a table (pandas, pyarrow, datasets).
        field: the field or column that holds the text, where the source has several.
        limit: keep the first `limit` texts.
        conversations: whether a list of messages, each with `role` and `content`, is a text too.

    Raises:
        RepsimError: there is no such source, it is not text, a field is missing, or nothing is
            left.

    Example:
        >>> corpus = read_corpus(limit=2)
        >>> corpus.name, len(corpus.texts)
        ('builtin', 2)
        >>> [text.text for text in read_corpus(["one", "two", "one"]).texts]
        ['one', 'two']
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}: at least 1")
    if isinstance(source, Path):
        source = str(source)
    is_text = isinstance(source, str)
    wanted = Source(f"corpus {source!r}" if is_text else "corpus in memory", field, conversations)
    notes: tuple[str, ...] = ()
    if is_text and source == IN_MEMORY:
        raise wanted.error("stands for texts that were in memory; hand them over in Python")
    if not is_text:
        name, contents = read_object(source, wanted)
    elif source == BUILTIN:
        raw = resources.files("repsim.data").joinpath("passages.jsonl").read_text("utf-8")
        passages = tuple(Text(**json.loads(line)) for line in raw.splitlines())
        return Corpus(BUILTIN, passages[:limit])
    elif source == STDIN:
        name, contents = STDIN_NAME, read_stdin(wanted)
    elif source.startswith(HUB):
        name, contents = read_hub(source, wanted)
    else:
        name, contents, notes = read_path(Path(source), wanted)
    texts, counts = _collect(contents, limit, wanted)
    return Corpus(name, texts, notes + counts, is_named=is_text and source != STDIN)


def _collect(
    contents: Iterator[Content], limit: int | None, source: Source
) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """Texts with keys, and counted remarks: empty texts and repetitions are left out.

    Raises:
        DataError: a text is not valid Unicode, or none is left.
    """
    by_key: dict[str, Text] = {}
    empty = repeated = 0
    for number, content in enumerate(contents, 1):
        try:
            text = _with_key(content)
        except UnicodeEncodeError:  # JSON can escape half a surrogate pair
            raise source.error(f"text {number} is not valid Unicode; mend or remove it") from None
        if not (text.text or text.messages):
            empty += 1
        elif text.key in by_key:
            repeated += 1
        else:
            by_key[text.key] = text
        if len(by_key) == limit:
            break
    if not by_key:
        raise source.error(f"no text in it ({empty} empty ones)")
    counts = ((empty, "empty texts left out"), (repeated, "repeated texts left out"))
    notes = tuple(f"{count} {what}" for count, what in counts if count)
    return tuple(by_key.values()), notes


def _with_key(content: Content) -> Text:
    """A text under the digest of itself; a conversation's is that of its messages as JSON."""
    if isinstance(content, str):
        text = content.strip()
        return Text(_key(text), text)
    as_json = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
    return Text(_key(as_json), "", content)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
