"""Texts become samples: token ids under the text's key, longest first.

Neighbours in that order have similar lengths, so little of a batch is padding, and a sample that
does not fit into memory fails at the start of a run and not hours later. Knows tokenizers by their
call only; no model and no store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.data.corpus import Corpus
from repsim.errors import DataError

# A text with more characters than this is given to the tokenizer in part; see `_beginning`.
WHOLE_CHARACTERS = 1 << 17
CHARACTERS_PER_TOKEN = 16
MOST_CHARACTERS = 1 << 24
GROUP_CHARACTERS = 1 << 22  # of texts that are tokenized together


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
class TokenRule:
    """Which tokens of a sample are kept.

    text: `all`; `last`; `every:N`, each Nth from the first on; or `mean`, all tokens in one state.

    Raises:
        RepsimError: the text is none of these.
    """

    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch("all|last|mean|every:[1-9][0-9]*", self.text):
            raise DataError(f"tokens {self.text!r}: choose all, last, mean or every:N")

    @property
    def is_mean(self) -> bool:
        return self.text == "mean"

    def positions(self, length: int) -> NDArray[np.int32]:
        """Which positions of a sample are kept.

        Args:
            length: tokens of the sample.

        Returns:
            `[kept]`, positions from 0; -1 stands for the mean.

        Example:
            >>> TokenRule("every:2").positions(5).tolist()
            [0, 2, 4]
        """
        if self.is_mean:
            return np.array([-1], np.int32)
        if self.text == "last":
            return np.array([length - 1], np.int32)
        step = 1 if self.text == "all" else int(self.text.removeprefix("every:"))
        return np.arange(0, length, step, dtype=np.int32)


def tokenize(
    corpus: Corpus, tokenizer: Callable[..., Any], max_tokens: int, *, special_tokens: bool = True
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Tokenizes texts.

    Args:
        corpus: the texts.
        tokenizer: a Hugging Face tokenizer.
        max_tokens: longer samples keep their first `max_tokens` tokens and are counted.
        special_tokens: whether it adds its special tokens as by default; False where the texts hold
            them, as those that a chat template has formatted do.

    Returns:
        Samples in the store's order, longest first and ties in the corpus's order, and counted
        warnings.

    Raises:
        RepsimError: `max_tokens` leaves no room for a token, or no text gives one.
    """
    if max_tokens < 1:
        raise DataError(f"max_tokens={max_tokens}: at least 1")
    encode = tokenizer if special_tokens else partial(tokenizer, add_special_tokens=False)
    token_ids: list[NDArray[np.int32]] = []
    cut_samples = 0
    beginnings = (_beginning(encode, text.text, max_tokens, corpus.name) for text in corpus.texts)
    for texts in _group(beginnings):
        encoded = encode(texts, truncation=False, verbose=False)["input_ids"]
        too_long = sum(len(ids) > max_tokens for ids in encoded)
        if too_long:
            cut_samples += too_long
            # The tokenizer cuts, not we, so that special tokens stay at the end.
            with _truncating_at_the_end(tokenizer):
                encoded = encode(texts, truncation=True, max_length=max_tokens)["input_ids"]
            if any(len(ids) > max_tokens for ids in encoded):
                raise DataError(
                    f"max_tokens={max_tokens}: the tokenizer's special tokens alone are more; "
                    "allow more"
                )
        token_ids += [np.asarray(ids, np.int32) for ids in encoded]

    samples = [
        Sample(text.key, ids) for text, ids in zip(corpus.texts, token_ids, strict=True) if len(ids)
    ]
    if not samples:
        raise DataError(f"corpus {corpus.name!r}: no text gives a token")
    counts = (
        (cut_samples, f"samples cut to {max_tokens} tokens"),
        (len(token_ids) - len(samples), "texts without a token left out"),
    )
    notes = tuple(f"{count} {what}" for count, what in counts if count)
    return tuple(sorted(samples, key=len, reverse=True)), notes


def corpus_digest(samples: Sequence[Sample]) -> str:
    """sha256 over keys and token ids, in order.

    Args:
        samples: of the whole corpus.

    Example:
        >>> corpus_digest([Sample("a", np.array([1, 2], np.int32))])[:16]
        '8f36b9c55662f343'
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(
            sample.key.encode() + b"\0" + sample.token_ids.astype("<i4").tobytes() + b"\0"
        )
    return digest.hexdigest()


def _group(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, in order, in groups so small that a tokenizer's own records of them stay small."""
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
    """A text, or of a very long one a beginning with the same first `max_tokens` tokens.

    A tokenizer takes some 25 bytes of memory per character, and what lies far behind the tokens
    that are kept does not change them: a tokenizer looks a word ahead, not a page. That is checked
    and not only assumed. A beginning counts if one half as long, cut at another place, has more
    than twice as many tokens as are kept and begins with the same ones.

    Raises:
        RepsimError: there is no such beginning of a size that fits in memory.
    """
    size = max(WHOLE_CHARACTERS, CHARACTERS_PER_TOKEN * max_tokens)
    largest_size = max(MOST_CHARACTERS, 4 * size)
    ids_of_half: list[int] = []
    while size < len(text):
        if size > largest_size:
            raise DataError(
                f"corpus {corpus!r}: the text that begins {text[:20]!r} is {len(text):,} "
                f"characters long, and {size // 2:,} of them give {len(ids_of_half):,} tokens: too "
                f"few to be sure of the first {max_tokens:,}; cut it into texts of words"
            )
        beginning = _cut_at_space(text, size)
        ids = tokenizer(beginning, truncation=False, verbose=False)["input_ids"]
        if len(ids_of_half) > 2 * max_tokens and ids[:max_tokens] == ids_of_half[:max_tokens]:
            return beginning
        ids_of_half, size = ids, 2 * size
    return text


def _cut_at_space(text: str, size: int) -> str:
    """The first `size` characters, or up to the last space of their last tenth."""
    space = text.rfind(" ", size - size // 10, size)
    return text[: size if space < 0 else space]


@contextmanager
def _truncating_at_the_end(tokenizer: Any) -> Iterator[None]:
    """Texts are cut at their end, whatever side the tokenizer's own settings name."""
    side = getattr(tokenizer, "truncation_side", "right")
    tokenizer.truncation_side = "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = side
