"""Texts in files of every format: the same texts whatever holds them, and what is refused."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from repsim.data.corpus import Corpus, read_corpus
from repsim.errors import RepsimError

TEXTS = ["one, or two", 'a "quoted" text', "three"]
RECORDS = [{"id": row, "text": text} for row, text in enumerate(TEXTS)]
CHAT = [{"role": "user", "content": "the time"}, {"role": "assistant", "content": "of the day"}]


def parquet(records: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(records).to_parquet(buffer)
    return buffer.getvalue()


PACKED = gzip.compress(b"one\n", mtime=0)
CONTENTS: dict[str, bytes] = {
    "txt": "\n".join(TEXTS).encode(),
    "jsonl": "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
    "json": json.dumps(RECORDS).encode(),
    "csv": pd.DataFrame(RECORDS).to_csv(index=False).encode(),
    "parquet": parquet(RECORDS),
}


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def texts_of(corpus: Corpus) -> list[str]:
    return [text.text for text in corpus.texts]


# The same texts


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_format_gives_the_texts_and_keys_of_a_list(
    tmp_path: Path, kind: str, packed: bool
) -> None:
    content = gzip.compress(CONTENTS[kind], mtime=0) if packed else CONTENTS[kind]
    path = write(tmp_path / f"own.texts.{kind}{'.gz' * packed}", content)
    corpus = read_corpus(path)
    assert corpus.name == corpus.distinct_name == "own.texts"
    assert texts_of(corpus) == TEXTS
    assert corpus.texts == read_corpus(TEXTS).texts


def test_a_json_file_may_hold_texts_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", json.dumps(["one", " ", "two\nlines"]).encode())
    assert texts_of(read_corpus(path)) == ["one", "two\nlines"]


def test_a_folder_gives_a_text_per_file_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "poems"
    (folder / "inner").mkdir(parents=True)
    write(folder / "b.txt", b"\xef\xbb\xbfsecond\n\nwith a gap\n")
    write(folder / "a.txt.gz", gzip.compress(b"first", mtime=0))
    for left_out in ("notes.md", ".hidden.txt", "inner/c.txt"):
        write(folder / left_out, b"no text of it")
    corpus = read_corpus(folder)
    assert (corpus.name, texts_of(corpus)) == ("poems", ["first", "second\n\nwith a gap"])
    assert corpus.notes == ("1 files other than .txt left out",)


def test_a_csv_column_keeps_what_looks_missing_and_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", b'\xef\xbb\xbfid,text\r\n1,NA\r\n2,\r\n3,"two\nlines"\r\n')
    corpus = read_corpus(path)
    assert texts_of(corpus) == ["NA", "two\nlines"]
    assert corpus.notes == ("1 empty texts left out",)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_conversations_have_the_same_keys_in_every_format(tmp_path: Path, kind: str) -> None:
    records = [{"messages": CHAT}, {"messages": CHAT[:1]}]
    content = {
        "jsonl": "".join(json.dumps(record) + "\n" for record in records).encode(),
        "json": json.dumps(records).encode(),
        # A table gives every message all keys.
        "parquet": parquet([{"messages": [{**CHAT[0], "name": None}, CHAT[1]]}, *records[1:]]),
    }[kind]
    path = write(tmp_path / f"c.{kind}", content)
    corpus = read_corpus(path, field="messages", conversations=True)
    assert [list(text.messages) for text in corpus.texts] == [CHAT, CHAT[:1]]
    in_memory = read_corpus([CHAT, CHAT[:1]], conversations=True)
    assert corpus.texts == in_memory.texts
    with pytest.raises(RepsimError, match=r"conversation, not text; add --apply-chat-template$"):
        read_corpus(path, field="messages")


# Standard input


class Pipe(io.TextIOWrapper):
    """Standard input with these bytes."""

    def __init__(self, data: bytes, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_standard_input_has_a_text_per_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(b"\xef\xbb\xbfone\r\n\ntwo\nthree"))
    corpus = read_corpus("-", limit=2)
    assert (corpus.name, texts_of(corpus)) == ("stdin", ["one", "two"])
    assert corpus.texts == read_corpus(["one", "two"]).texts
    assert corpus.distinct_name.startswith("stdin-")


def test_no_more_of_standard_input_is_read_than_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Pipe):
        lines = 0

        @property
        def buffer(self) -> Any:
            for self.lines in range(1, 9):
                yield b"text %d\n" % self.lines
            raise AssertionError("read on")

    endless = Endless(b"")
    monkeypatch.setattr("sys.stdin", endless)
    assert texts_of(read_corpus("-", limit=3)) == ["text 1", "text 2", "text 3"]
    assert endless.lines == 3


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (Pipe(b"", terminal=True), "nothing is piped to standard input; pipe texts to it"),
        (None, "nothing is piped to standard input; pipe texts to it"),
        (Pipe(b"\n"), "no text in it (1 empty ones)"),
        (Pipe(b"one\n\xe9\n"), "line 2 is not UTF-8; convert the texts first"),
    ],
)
def test_standard_input_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, stdin: Any, message: str
) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(RepsimError) as caught:
        read_corpus("-")
    assert str(caught.value).startswith(f"corpus '-': {message}")


# Bad input

Content = bytes | Callable[[], bytes]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"id,body\n1,one\n", "no column 'text'; name a text column with --field "
         "(found: id, body)"),
        ("c.csv", b"text\n1\n2\n", "row 1: column 'text' holds a number, not text"),
        ("c.csv", b"id,text\n1,one\n2,two, too\n", "cannot be read as a table with commas: CSV "
         "parse error: Expected 2 columns, got 3: 2,two, too"),
        ("c.csv", b"", "cannot be read as a table with commas: Empty CSV file"),
        ("c.csv", b"text\n", "no text in it (0 empty ones)"),
        ("c.csv", b"text\none\ncaf\xe9\n", "line 3 is not UTF-8; convert the file first"),
        ("c.parquet", b"PAR1 is not enough", "cannot be read as parquet: "),
        ("c.parquet", parquet([{"body": "one"}]), "no column 'text'; name a text column with "
         "--field (found: body)"),
        ("c.parquet", parquet([{"text": 0.5}]), "row 1: column 'text' holds a number, not text"),
        ("c.json", b'{"text": "one"}', "holds an object, not a list of texts"),
        ("c.json", b'{"text": "one"}\n{"text": "two"}', "is not JSON; a file with one JSON value "
         "per line is a .jsonl file"),
        ("c.json", b'["one", 3]', "item 2: holds a number, not an object with fields"),
        ("c.json", b'[{"body": "one"}]', "item 1: no field 'text'; name a text field with --field "
         "(found: body)"),
        ("c.json", b"[]", "no text in it (0 empty ones)"),
        ("c.txt.gz", b"one\n", "cannot be unpacked, a damaged gzip file (Not a gzipped file"),
        ("c.txt.gz", PACKED[:-9], "cannot be unpacked, a damaged gzip file ("),
        ("c.gz", PACKED, "there is builtin, a .txt, .jsonl, "),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(RepsimError) as caught:
        read_corpus(path)
    assert str(caught.value).startswith(f"corpus {path!r}: {message}")
    assert "\n" not in str(caught.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.md", b"one")
    with pytest.raises(RepsimError, match=r"without .txt files right in it \(found: a.md\)$"):
        read_corpus(tmp_path)
    path = write(tmp_path / "b.txt", b"caf\xe9")
    with pytest.raises(RepsimError) as caught:
        read_corpus(tmp_path)
    assert str(caught.value).startswith(f"corpus {path!r}: line 1 is not UTF-8")
