"""Texts and their keys; the data-set library's loading is replaced."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest

from repsim.data.corpus import Corpus, read_corpus
from repsim.errors import RepsimError

Write = Callable[[str, bytes | str], str]


def texts_of(corpus: Corpus) -> list[str]:
    return [text.text for text in corpus.texts]


def write_jsonl(path: Path, records: list[dict[str, Any]], **options: Any) -> str:
    path.write_text("".join(json.dumps(record, **options) + "\n" for record in records), "utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Write:
    """Writes bytes or text to a file of this name and gives its path."""

    def write(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """A hub with `glue/sst2`, `org/name` and `org/name/config`; records what was asked for."""
    rows = datasets.Dataset.from_dict(
        {"sentence": ["one", "", "two"], "label": [0, 1, 0], "gap": ["one", None, "two"]}
    )
    available = {("glue", "sst2"), ("org/name", None), ("org/name", "config")}
    calls: list[tuple[str, str | None, str]] = []

    def load_dataset(
        repository: str, configuration: str | None = None, *, split: str
    ) -> datasets.Dataset:
        calls.append((repository, configuration, split))
        if (repository, configuration) not in available:
            raise datasets.exceptions.DatasetNotFoundError(
                f"Dataset '{repository}'\ndoesn't exist on the Hub"
            )
        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


# Values worked out by hand


def test_the_built_in_passages() -> None:
    corpus = read_corpus()
    assert corpus.name == "builtin"
    assert corpus.notes == ()
    assert len(corpus.texts) >= 64
    assert all(40 <= len(text.split()) <= 200 for text in texts_of(corpus))
    assert (
        len({text.key for text in corpus.texts}) == len(set(texts_of(corpus))) == len(corpus.texts)
    )
    assert read_corpus() == corpus
    assert read_corpus(limit=3).texts == corpus.texts[:3]


def test_a_text_file_has_one_text_per_line(file: Write) -> None:
    path = file("my.texts.txt", "one\n\n  two \none\n \nthree\none\n")
    corpus = read_corpus(path)
    assert corpus.name == "my.texts"
    assert texts_of(corpus) == ["one", "two", "three"]
    assert corpus.notes == ("2 empty texts left out", "2 repeated texts left out")
    assert corpus.texts[0].key == "7692c3ad3540bb80"  # sha256 of `one`
    assert read_corpus(path, limit=2).texts == corpus.texts[:2]
    assert read_corpus(path, limit=2).notes == ("1 empty texts left out",)


def test_a_jsonl_file_has_one_text_per_field(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "c.jsonl", [{"text": "one", "body": "eins"}, {"text": " ", "body": "zwei\ndrei"}]
    )
    assert texts_of(read_corpus(path)) == ["one"]
    assert read_corpus(path).notes == ("1 empty texts left out",)
    assert texts_of(read_corpus(path, field="body")) == ["eins", "zwei\ndrei"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", b"\xef\xbb\xbfone\ntwo"),
        ("c.txt", b"one\r\ntwo\r\n"),
        ("c.txt", b"one\rtwo\r"),
        ("c.jsonl", b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}'),
        ("c.jsonl", b'{"text": "one"}\r\n\r\n{"text": "two"}\r\n'),
    ],
)
def test_byte_order_marks_and_line_ends_are_no_text(
    file: Write, name: str, content: bytes | str
) -> None:
    assert texts_of(read_corpus(file(name, content))) == ["one", "two"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_ends_end_a_line(tmp_path: Path, file: Write, separator: str) -> None:
    text = f"one{separator}two"
    assert texts_of(read_corpus(file("c.txt", text + "\n"))) == [text]
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": text}], ensure_ascii=False)
    assert texts_of(read_corpus(path)) == [text]


@pytest.mark.parametrize(
    ("source", "name", "asked"),
    [
        (
            "hf:glue/sst2:train:sentence",
            "glue-sst2-train",
            [("glue/sst2", None, "train"), ("glue", "sst2", "train")],
        ),
        ("hf:org/name:train:sentence", "org-name-train", [("org/name", None, "train")]),
        (
            "hf:org/name/config:train:sentence",
            "org-name-config-train",
            [("org/name", "config", "train")],
        ),
    ],
)
def test_a_data_set_of_the_hub(hub: list[Any], source: str, name: str, asked: list[Any]) -> None:
    corpus = read_corpus(source)
    assert (corpus.name, texts_of(corpus)) == (name, ["one", "two"])
    assert corpus.notes == ("1 empty texts left out",)
    assert hub == asked
    assert texts_of(read_corpus(source, limit=1)) == ["one"]


def test_a_missing_value_of_the_hub_is_no_text(hub: list[Any]) -> None:
    corpus = read_corpus("hf:org/name:train:gap")
    assert (texts_of(corpus), corpus.notes) == (["one", "two"], ("1 empty texts left out",))


# Identities


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_keys_stay_when_a_file_is_reordered_or_grows(tmp_path: Path, suffix: str) -> None:
    def keys(*texts: str) -> dict[str, str]:
        path = tmp_path / f"c{suffix}"
        path.write_text(
            "".join((json.dumps({"text": t}) if suffix == ".jsonl" else t) + "\n" for t in texts)
        )
        return {text.text: text.key for text in read_corpus(str(path)).texts}

    before = keys("one", "two", "three")
    assert keys("three", "one", "two") == before
    assert keys("zero", "one", "two", "three", "four").items() >= before.items()
    assert len(set(before.values())) == 3


# Bad input

NOT_TEXT = {
    "3": "a number",
    "0.5": "a number",
    "true": "a boolean",
    "null": "null",
    "[1]": "a list",
    "{}": "an object",
}
REFUSED_FIELDS = [
    (
        "c.jsonl",
        f'{{"id": "a", "text": "one"}}\n{{"id": "b", "text": {value}}}\n'.encode(),
        f"line 2: field 'text' holds {kind}, not text; name a text field with --field "
        "(found: id, text)",
    )
    for value, kind in NOT_TEXT.items()
]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.md", b"one\n", "there is builtin, a .txt, .jsonl, .json, .csv or .parquet file"),
        ("c", b"one\n", "there is builtin, a .txt, .jsonl, .json, .csv or .parquet file"),
        ("c.txt", b"PK\x03\x04\0\0one\n", "a binary file; expected text in UTF-8"),
        ("c.txt", "one\n".encode("utf-16"), "a binary file; expected text in UTF-8"),
        ("c.txt", b"one\ntwo\ncaf\xe9\n", "line 3 is not UTF-8; convert the file first"),
        ("c.txt", b"\xef\xbb\xbfone\n\xe9\n", "line 2 is not UTF-8; convert the file first"),
        ("c.txt", b"", "no text in it (0 empty ones)"),
        ("c.txt", b"\n \n", "no text in it (2 empty ones)"),
        ("c.jsonl", b'{"text": "one"}\n\n{"text": \n', "line 3 is not JSON"),
        ("c.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("c.jsonl", b"1" * 5000, "line 1 is not JSON"),
        (
            "c.jsonl",
            b'{"body": "one", "id": 3}\n',
            "line 1: no field 'text'; name a text field with --field (found: body, id)",
        ),
        *REFUSED_FIELDS,
        (
            "c.jsonl",
            b'["one"]\n',
            'line 1: holds a list, not an object with fields; write {"text": ...}',
        ),
        (
            "c.jsonl",
            b'{"text": "one"}\n{"text": "\\ud800"}\n',
            "text 2 is not valid Unicode; mend or remove it",
        ),
    ],
)
def test_files_that_are_refused(file: Write, name: str, content: bytes | str, message: str) -> None:
    path = file(name, content)
    with pytest.raises(RepsimError) as caught:
        read_corpus(path)
    assert str(caught.value).startswith(f"corpus {path!r}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.txt", "corpus 'absent.txt': no such file"),
        ("absent", "corpus 'absent': there is builtin, a .txt"),
        (
            "hf:glue",
            "corpus 'hf:glue': write hf:name/config:split:field, e.g. "
            "hf:glue/sst2:validation:sentence",
        ),
        ("hf:glue/sst2:train", "corpus 'hf:glue/sst2:train': write hf:name/config:split:field"),
        ("hf:glue/sst2::text", "corpus 'hf:glue/sst2::text': write hf:name/config:split:field"),
        ("hf:a:b:c:d", "corpus 'hf:a:b:c:d': write hf:name/config:split:field"),
        (
            "hf:org/name:train:text",
            "corpus 'hf:org/name:train:text': no field 'text'; found: sentence, label, gap",
        ),
        (
            "hf:org/name:train:label",
            "corpus 'hf:org/name:train:label': row 1: field 'label' holds a number, not text",
        ),
        (
            "hf:absent:train:text",
            "corpus 'hf:absent:train:text': cannot be read from the Hub or its cache: "
            "Dataset 'absent' doesn't exist",
        ),
        (
            "hf:glue/sst2:test:text",
            "corpus 'hf:glue/sst2:test:text': cannot be read from the Hub or its cache: Unknown",
        ),
        (
            "hf:org/name:test:text",
            "corpus 'hf:org/name:test:text': cannot be read from the Hub or its cache: Unknown",
        ),
    ],
)
def test_sources_that_are_refused(hub: list[Any], source: str, message: str) -> None:
    with pytest.raises(RepsimError) as caught:
        read_corpus(source)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "problem", [RuntimeError, ConnectionError, datasets.exceptions.DatasetGenerationError]
)
def test_whatever_the_data_set_library_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, problem: type[Exception]
) -> None:
    def fail(*_args: Any, **_options: Any) -> NoReturn:
        raise problem("no\nluck " * 200)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        RepsimError, match=r"^corpus 'hf:a/b:c:d': cannot be read .*: no luck no luck"
    ) as caught:
        read_corpus("hf:a/b:c:d")
    assert len(str(caught.value)) < 300


def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, file: Write) -> None:
    path = file("c.txt", "one")

    def refuse(_path: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(RepsimError, match="cannot be read: Permission denied"):
        read_corpus(path)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(RepsimError, match=f"^limit={limit}: at least 1$"):
        read_corpus(limit=limit)
