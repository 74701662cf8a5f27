"""Texts → samples with stable keys → blocks → padded batches. Knows tokenizers by their call only;
no model, no store.

A sample's key says which text it is (a built-in passage's name, otherwise a digest of the text), so
it stays the same when a file is reordered or grows. Samples are stored and computed longest first:
neighbours have similar lengths, so little is padding, and a block that does not fit into memory
fails at once and not at night's end. A block is what is computed and finished together; its samples
run in several batches where that saves padding.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
# A text of more characters than these is given to the tokenizer in part; see `_beginning`.
WHOLE_CHARACTERS = 1 << 17
CHARACTERS_PER_TOKEN = 16
MOST_CHARACTERS = 1 << 24
GROUP_CHARACTERS = 1 << 22  # that are tokenized together


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


@dataclass(frozen=True)
class Sample:
    """A tokenized text.

    key: stable name of the text.
    token_ids: `[token]`, int32, special tokens included.
    """

    key: str
    token_ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Batch:
    """Samples that run together, padded on the right.

    A row may also hold trees of tokens: texts that begin alike and share what they begin with. Each
    token then says which others it sees and how deep in its tree it stands.

    token_ids: `[sample, position]`, int64.
    mask: `[sample, position]`, True at real tokens.
    sees: `[sample, position, position]`, whether a token (second) attends to another (third); None
        where rows are plain texts.
    depth: `[sample, position]`, int64, a token's place in its own text, from 0; None likewise.
    """

    token_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    sees: NDArray[np.bool_] | None = None
    depth: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        return int(self.mask.sum())


class BatchRule(StrEnum):
    """Which texts may run together in a batch, by what a model takes without changing their states."""

    ANY = "texts of any length, padded"
    EQUAL = "texts of one length, unpadded"
    NONE = "each text by itself"


@dataclass(frozen=True)
class TokenRule:
    """Which tokens of a sample are kept: `all`, the `last`, `every:N` from the first on, or their
    `mean` in one.

    text: as it was asked for.
    """

    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch("all|last|mean|every:[1-9][0-9]*", self.text):
            raise DataError(f"tokens {self.text!r}: choose all, last, mean or every:N")

    @property
    def is_mean(self) -> bool:
        return self.text == "mean"

    def positions(self, length: int) -> NDArray[np.int32]:
        """Positions that are kept of a sample of so many tokens, `[kept]`; -1 where it is their
        mean.
        """
        if self.is_mean:
            return np.array([-1], np.int32)
        if self.text == "last":
            return np.array([length - 1], np.int32)
        step = 1 if self.text == "all" else int(self.text.removeprefix("every:"))
        return np.arange(0, length, step, dtype=np.int32)


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


def tokenize(
    corpus: Corpus, tokenizer: Callable[..., Any], max_tokens: int
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Samples in the store's order, longest first (ties in the corpus's order), and counted
    warnings.

    Args:
        corpus: the texts.
        tokenizer: a Hugging Face tokenizer; its special tokens are added as it does by default.
        max_tokens: longer samples keep their first so many tokens and are counted.
    Raises:
        RepsimError: `max_tokens` leaves no room, or no text gives a token.
    """
    if max_tokens < 1:
        raise DataError(f"max_tokens={max_tokens}: at least 1")
    token_ids: list[NDArray[np.int32]] = []
    cut = 0
    for texts in _groups(
        _beginning(tokenizer, text.text, max_tokens, corpus.name) for text in corpus.texts
    ):
        encoded = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        if longer := sum(len(ids) > max_tokens for ids in encoded):
            cut += longer
            with _first_kept(tokenizer):  # again, so that special tokens stay at the end
                encoded = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
            if any(len(ids) > max_tokens for ids in encoded):
                raise DataError(
                    f"max_tokens={max_tokens}: the tokenizer's special tokens alone are more; allow more"
                )
        token_ids += [np.asarray(ids, np.int32) for ids in encoded]
    samples = [
        Sample(text.key, ids) for text, ids in zip(corpus.texts, token_ids, strict=True) if len(ids)
    ]
    if not samples:
        raise DataError(f"corpus {corpus.name!r}: no text gives a token")
    none = len(token_ids) - len(samples)
    counted = (
        (cut, f"samples cut to {max_tokens} tokens"),
        (none, "texts without a token left out"),
    )
    notes = tuple(f"{number} {what}" for number, what in counted if number)
    return tuple(sorted(samples, key=len, reverse=True)), notes


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, in order, so many together that a tokenizer's own records of them stay small."""
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and characters + len(text) > GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    if group:
        yield group


def _beginning(tokenizer: Callable[..., Any], text: str, max_tokens: int, corpus: str) -> str:
    """The text, or of a very long one a beginning that has the same first `max_tokens` tokens, and
    more than these.

    A tokenizer takes some 25 bytes for each character, and what lies far behind the tokens that are
    kept does not change them: a tokenizer looks a word ahead, not a page. Nor is that taken on
    trust. A beginning counts if one half as long, cut at another place, has more than twice as many
    tokens as are kept and begins with the same ones.

    Raises:
        RepsimError: no beginning of a size that fits in memory does.
    """
    size = max(WHOLE_CHARACTERS, CHARACTERS_PER_TOKEN * max_tokens)
    most = max(MOST_CHARACTERS, 4 * size)
    before: list[int] = []
    while size < len(text):
        if size > most:
            raise DataError(
                f"corpus {corpus!r}: the text that begins {text[:20]!r} is {len(text):,} characters long, and "
                f"{size // 2:,} of them give {len(before):,} tokens: too few to be sure of the first {max_tokens:,}; "
                "cut it into texts of words"
            )
        beginning = _cut_at_space(text, size)
        ids = tokenizer(beginning, truncation=False, verbose=False)["input_ids"]
        if len(before) > 2 * max_tokens and ids[:max_tokens] == before[:max_tokens]:
            return beginning
        before, size = ids, 2 * size
    return text


def _cut_at_space(text: str, size: int) -> str:
    """At most so many characters from the text's beginning, up to a space if there is one in the
    last tenth.
    """
    space = text.rfind(" ", size - size // 10, size)
    return text[: size if space < 0 else space]


@contextmanager
def _first_kept(tokenizer: Any) -> Iterator[None]:
    """Texts are cut at their end, whatever side the tokenizer's own settings name."""
    side = getattr(tokenizer, "truncation_side", "right")
    tokenizer.truncation_side = "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = side


def corpus_digest(samples: Sequence[Sample]) -> str:
    """sha256 over keys and token ids, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(
            sample.key.encode() + b"\0" + sample.token_ids.astype("<i4").tobytes() + b"\0"
        )
    return digest.hexdigest()


def cut_blocks(samples: Sequence[Sample], tokens: int) -> tuple[int, ...]:
    """How many samples each block takes: neighbours, at most so many tokens together, at least one
    sample.

    Cut from the front, so what is left of a corpus after some blocks is cut as it would have been
    with them.
    """
    blocks: list[int] = []
    room = 0
    for sample in samples:
        if blocks and len(sample) <= room:
            blocks[-1] += 1
        else:
            blocks.append(1)
            room = tokens
        room -= len(sample)
    return tuple(blocks)


def batches(
    samples: Sequence[Sample],
    pad_id: int,
    *,
    overhead: float,
    waste: float,
    batch_rule: BatchRule = BatchRule.ANY,
) -> tuple[Batch, ...]:
    """A block's samples, in order, in the batches that cost least.

    Args:
        samples: of one block; the closer their lengths, the fewer batches they take.
        pad_id: token id at padded positions.
        overhead: what one more forward costs, counted in positions.
        waste: the most of all positions that may be padding, 0 to 1; more batches are made where it
            takes them.
        batch_rule: which samples may share a batch.
    """
    lengths = np.array([len(sample) for sample in samples])
    ends = batch_ends(lengths, overhead=overhead, waste=waste, batch_rule=batch_rule)
    return tuple(_pad(samples[first:last], pad_id) for first, last in pairwise((0, *ends)))


def batch_ends(
    lengths: NDArray[np.int64], *, overhead: float, waste: float, batch_rule: BatchRule = BatchRule.ANY
) -> list[int]:
    """Where the batches end that cost least, for rows of these lengths in this order; see
    `batches`.
    """
    if batch_rule is BatchRule.NONE:
        return list(range(1, len(lengths) + 1))
    if batch_rule is BatchRule.EQUAL:
        return [*(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    ends = _cheapest(lengths, overhead)
    while _positions(lengths, ends) * (1 - waste) > lengths.sum():
        overhead /= 2  # below 1 no position is worth wasting
        ends = _cheapest(lengths, overhead)
    return ends


def _cheapest(lengths: NDArray[np.int64], overhead: float) -> list[int]:
    """Where the batches end that cost least: positions, and `overhead` for each of them."""
    total = len(lengths)
    cost, end = np.zeros(total + 1), np.zeros(total, np.int64)
    for first in range(total - 1, -1, -1):  # the cheapest way to run the samples from `first` on
        width = np.maximum.accumulate(lengths[first:])
        costs = width * np.arange(1, total - first + 1) + overhead + cost[first + 1 :]
        end[first] = first + 1 + costs.argmin()
        cost[first] = costs.min()
    ends = [0]
    while ends[-1] < total:
        ends.append(int(end[ends[-1]]))
    return ends[1:]


def _positions(lengths: NDArray[np.int64], ends: Sequence[int]) -> int:
    return sum(
        int(lengths[first:last].max()) * (last - first) for first, last in pairwise((0, *ends))
    )


def _pad(samples: Sequence[Sample], pad_id: int) -> Batch:
    lengths = np.array([len(sample) for sample in samples])
    mask = np.arange(lengths.max()) < lengths[:, None]
    token_ids = np.full(mask.shape, pad_id, np.int64)
    token_ids[mask] = np.concatenate([sample.token_ids for sample in samples])
    return Batch(token_ids, mask)
