"""Tokenizing: order, special tokens, cutting, and beginnings of very long texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from repsim.data import samples as samples_module
from repsim.data.corpus import Corpus, Text, read_corpus
from repsim.data.samples import TokenRule, corpus_digest, tokenize
from repsim.errors import RepsimError
from support.samples import sample_of


@pytest.fixture(scope="module")
def words(tiny_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def marked_words(tiny_encoder_folder: Path) -> Any:
    """Adds [CLS], id 1, and [SEP], id 2."""
    return transformers.AutoTokenizer.from_pretrained(tiny_encoder_folder)


def corpus_of(*texts: str) -> Corpus:
    return Corpus("own", tuple(Text(f"key{row}", text) for row, text in enumerate(texts)))


# Values worked out by hand


def test_samples_are_longest_first(words: Any) -> None:
    samples, notes = tokenize(corpus_of("the of", "the", "", "of and the", "and"), words, 9)
    assert [sample.key for sample in samples] == ["key3", "key0", "key1", "key4"]
    assert [words.decode(sample.token_ids) for sample in samples] == [
        "of and the",
        "the of",
        "the",
        "and",
    ]
    assert notes == ("1 texts without a token left out",)
    assert all(sample.token_ids.dtype == np.int32 for sample in samples)


def test_special_tokens_stay_when_a_sample_is_cut(marked_words: Any) -> None:
    samples, notes = tokenize(
        corpus_of("the of", "the of and the of and", "the the the the"), marked_words, 5
    )
    the, of, end = marked_words.convert_tokens_to_ids(["the", "of", "and"])
    assert [sample.token_ids.tolist() for sample in samples] == [
        [1, the, of, end, 2],
        [1, the, the, the, 2],
        [1, the, of, 2],
    ]
    assert notes == ("2 samples cut to 5 tokens",)
    assert tokenize(corpus_of("the of"), marked_words, 4)[1] == ()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_tokens_are_kept_whatever_side_the_tokenizer_cuts(
    tiny_encoder_folder: Path, side: str
) -> None:
    words = transformers.AutoTokenizer.from_pretrained(
        tiny_encoder_folder, truncation_side=side, padding_side=side
    )
    (sample,), _ = tokenize(corpus_of("the of and in"), words, 4)
    assert words.decode(sample.token_ids) == "[CLS] the of [SEP]"
    assert words.truncation_side == side


def test_a_tokenizer_that_cuts_and_pads_by_itself_does_not_here(tiny_encoder_folder: Path) -> None:
    words = transformers.AutoTokenizer.from_pretrained(tiny_encoder_folder)
    words.backend_tokenizer.enable_truncation(3, direction="left")
    words.backend_tokenizer.enable_padding(length=12)
    samples, notes = tokenize(corpus_of("the of and in", "the"), words, 9)
    assert [words.decode(sample.token_ids) for sample in samples] == [
        "[CLS] the of and in [SEP]",
        "[CLS] the [SEP]",
    ]
    assert notes == ()


@pytest.mark.parametrize(
    ("rule", "length", "positions"),
    [
        ("all", 3, [0, 1, 2]),
        ("last", 3, [2]),
        ("mean", 3, [-1]),
        ("every:2", 5, [0, 2, 4]),
        ("every:7", 5, [0]),
    ],
)
def test_positions_that_a_rule_keeps(rule: str, length: int, positions: list[int]) -> None:
    assert TokenRule(rule).positions(length).tolist() == positions


# Long texts


class Counting:
    """A tokenizer that notes how many characters it is given at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.given: list[int] = []

    def __call__(self, texts: str | Sequence[str], **options: Any) -> Any:
        self.given.append(sum(map(len, [texts] if isinstance(texts, str) else texts)))
        return self.tokenizer(texts, **options)


@pytest.fixture(scope="module")
def pieces() -> Any:
    """Byte pairs without words: a merge may reach across spaces, as in Llama 2."""
    backend = Tokenizer(BPE())
    trainer = BpeTrainer(vocab_size=400, show_progress=False)
    backend.train_from_iterator((text.text for text in read_corpus().texts), trainer)
    load: Any = transformers.PreTrainedTokenizerFast  # untyped
    return load(tokenizer_object=backend)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are long from 64 characters on."""
    monkeypatch.setattr(samples_module, "WHOLE_CHARACTERS", 64)
    monkeypatch.setattr(samples_module, "CHARACTERS_PER_TOKEN", 1)
    monkeypatch.setattr(samples_module, "MOST_CHARACTERS", 1024)
    monkeypatch.setattr(samples_module, "GROUP_CHARACTERS", 512)


PASSAGES = " ".join(text.text for text in read_corpus().texts)
LONG_TEXTS = {
    "words": PASSAGES[:20_000],
    "no spaces": PASSAGES[:20_000].replace(" ", ""),
    "one letter": "e" * 20_000,
    "letters by turns": "th" * 10_000,
    "spaces": "the" + " " * 20_000 + "of",
    "spaces now and then": ("the" + " " * 70) * 200,
}


@pytest.mark.parametrize("max_tokens", [1, 5, 40])
@pytest.mark.parametrize("name", LONG_TEXTS)
def test_the_beginning_of_a_long_text_gives_the_same_first_tokens(
    pieces: Any, short: None, name: str, max_tokens: int
) -> None:
    whole = pieces(LONG_TEXTS[name])["input_ids"][:max_tokens]
    counting = Counting(pieces)
    (sample,), notes = tokenize(corpus_of(LONG_TEXTS[name]), counting, max_tokens)
    assert sample.token_ids.tolist() == whole
    assert notes == (f"1 samples cut to {max_tokens} tokens",)
    assert max(counting.given) <= 512 * max(1, max_tokens // 5)


@given(
    st.lists(
        st.sampled_from(["the ", "of", " and", "in\n", "e", "  ", "."]), min_size=30, max_size=600
    )
)
def test_no_long_text_gives_other_tokens(pieces: Any, items: list[str]) -> None:
    text = "".join(items).strip() or "the"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_module, "WHOLE_CHARACTERS", 32)
        patch.setattr(samples_module, "CHARACTERS_PER_TOKEN", 1)
        (sample,), _ = tokenize(corpus_of(text), pieces, 6)
    assert sample.token_ids.tolist() == pieces(text)["input_ids"][:6]


def test_special_tokens_of_a_long_text_stay_at_its_ends(marked_words: Any, short: None) -> None:
    (sample,), _ = tokenize(corpus_of("the of " * 4000), marked_words, 4)
    assert marked_words.decode(sample.token_ids) == "[CLS] the of [SEP]"


def test_a_long_text_that_is_one_word_is_refused(words: Any, short: None) -> None:
    """How many tokens it has is known only once all of it is read, which takes too much memory."""
    counting = Counting(words)
    with pytest.raises(
        RepsimError, match=r"'e{20}' is 20,000 characters long, and 1,024 of them give 1 tokens"
    ) as caught:
        tokenize(corpus_of("e" * 20_000), counting, 2)
    assert "\n" not in str(caught.value)
    assert max(counting.given) <= 1024


def test_many_texts_are_tokenized_a_few_at_a_time(words: Any, short: None) -> None:
    texts = [f"the of and in {'the ' * (row % 7)}" for row in range(200)]
    counting = Counting(words)
    samples, _ = tokenize(corpus_of(*texts), counting, 50)
    assert max(counting.given) <= 512
    together = {f"key{row}": ids for row, ids in enumerate(words(texts)["input_ids"])}
    assert {sample.key: sample.token_ids.tolist() for sample in samples} == together


# Identities


def test_the_digest_of_a_corpus() -> None:
    samples = [sample_of("a", 5, 6), sample_of("b", 7)]
    others = [
        [sample_of("c", 5, 6), sample_of("b", 7)],
        [sample_of("a", 5, 8), sample_of("b", 7)],
        [sample_of("a", 5, 6, 6), sample_of("b", 7)],
        [sample_of("a", 5), sample_of("b", 6, 7)],
        samples[::-1],
        samples[:1],
    ]
    assert corpus_digest([sample_of("a", 5, 6), sample_of("b", 7)]) == corpus_digest(samples)
    assert len({corpus_digest(corpus) for corpus in [samples, *others]}) == 1 + len(others)


# Bad input


@pytest.mark.parametrize("rule", ["first", "every", "every:0", "every:-1", "last "])
def test_rules_that_there_are_not(rule: str) -> None:
    with pytest.raises(RepsimError, match=r"choose all, last, mean or every:N$"):
        TokenRule(rule)


@pytest.mark.parametrize(
    ("text", "max_tokens", "message"),
    [
        ("the of", 0, "max_tokens=0: at least 1"),
        ("the of", 1, "max_tokens=1: the tokenizer's special tokens alone are more"),
    ],
)
def test_token_limits_that_are_refused(
    marked_words: Any, text: str, max_tokens: int, message: str
) -> None:
    with pytest.raises(RepsimError, match=message):
        tokenize(corpus_of(text), marked_words, max_tokens)


def test_texts_without_tokens_are_refused(words: Any) -> None:
    with pytest.raises(RepsimError, match=r"^corpus 'own': no text gives a token$"):
        tokenize(corpus_of("", " "), words, 5)
