"""Chat templates: what the tokenizer's own `apply_chat_template` gives, token for token."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from repsim.data import chat
from repsim.data.corpus import Corpus, read_corpus
from repsim.data.samples import tokenize
from repsim.errors import DataError

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }} "
    "{{ eos_token }}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "the time of the day"},
    {"role": "assistant", "content": "a word"},
]
SYSTEM = {"role": "system", "content": "in the house"}


@pytest.fixture
def words(tiny_encoder_folder: Path) -> Any:
    """Adds [CLS] and [SEP] to every text by itself; so does its template."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder_folder)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def corpus_of(*contents: Any) -> Corpus:
    return read_corpus(contents, conversations=True)


@pytest.mark.parametrize("system", [None, SYSTEM["content"]])
def test_tokens_are_those_of_the_tokenizers_own_template(words: Any, system: str | None) -> None:
    """Special tokens stand where the template puts them, once."""
    corpus = corpus_of("the sea", TALK)
    samples, _ = tokenize(
        chat.format_corpus(corpus, words, system), words, 99, special_tokens=False
    )
    by_key = {sample.key: sample.token_ids.tolist() for sample in samples}
    before = [] if system is None else [SYSTEM]
    for text, messages in zip(
        corpus.texts, ([{"role": "user", "content": "the sea"}], TALK), strict=True
    ):
        expected = words.apply_chat_template([*before, *messages], return_dict=False)
        assert by_key[text.key] == expected
        assert expected.count(words.bos_token_id) == 1


def test_formatted_texts_are_cut_as_others_are(words: Any) -> None:
    formatted = chat.format_corpus(corpus_of("the sea and the time", TALK), words)
    whole, _ = tokenize(formatted, words, 99, special_tokens=False)
    cut, notes = tokenize(formatted, words, 5, special_tokens=False)
    beginnings = {sample.key: sample.token_ids[:5].tolist() for sample in whole}
    assert {sample.key: sample.token_ids.tolist() for sample in cut} == beginnings
    assert notes == ("2 samples cut to 5 tokens",)


def test_a_template_that_asks_for_the_day_is_told_the_same_one(words: Any) -> None:
    words.chat_template = "{{ strftime_now('%d %b %Y') }}, {{ strftime_now('%Y-%m-%d') }}"
    formatted = chat.format_corpus(corpus_of("the"), words)
    assert formatted.texts[0].text == f"{chat.DATE}, 2024-07-26"
    assert formatted.notes == ("its template's date is 26 Jul 2024, whatever the day",)


@pytest.mark.parametrize(
    ("template", "contents", "system", "message"),
    [
        (None, ["the"], None, "--apply-chat-template: the model's tokenizer has no chat template"),
        (
            "{{ raise_exception('no system here') }}",
            ["the"],
            None,
            "--apply-chat-template: the template does not take text 1 of corpus 'memory' "
            "(TemplateError: no system here)",
        ),
        (
            {"tool_use": "x", "rag": "y"},
            ["the"],
            None,
            "--apply-chat-template: ValueError: This model has multiple chat templates",
        ),
        (
            TEMPLATE,
            ["the", [SYSTEM, *TALK]],
            "of",
            "--system-instruction: text 2 of corpus 'memory' begins with a system message",
        ),
    ],
)
def test_what_is_refused(
    words: Any, template: Any, contents: list[Any], system: str | None, message: str
) -> None:
    words.chat_template = template
    with pytest.raises(DataError) as caught:
        chat.format_corpus(corpus_of(*contents), words, system)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
