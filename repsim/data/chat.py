"""Texts as a chat: what a tokenizer's own template makes of messages.

A text becomes a user message; a conversation is formatted whole. No prompt for an answer is
added. Knows tokenizers by their template only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from repsim.data.corpus import Corpus
from repsim.data.records import Message
from repsim.errors import DataError, brief

CLOCK = "strftime_now"  # what templates call for today's date
DATE = "26 Jul 2024"  # stands for it; the day that Llama's templates name where they know no clock
DATE_PARTS = {
    "%Y": "2024",
    "%m": "07",
    "%d": "26",
    "%B": "July",
    "%b": "Jul",
    "%A": "Friday",
    "%a": "Fri",
    "%H": "12",
    "%M": "00",
    "%S": "00",
}
STOPPED_CLOCK = (
    f"{{%- macro {CLOCK}(format) -%}}{{{{ format"
    + "".join(f" | replace({code!r}, {part!r})" for code, part in DATE_PARTS.items())
    + " }}{%- endmacro -%}"
)


def chat_template(tokenizer: Any, option: str) -> str:
    """The tokenizer's own template, in which the date never changes.

    With today's date in every text, a capture could not go on tomorrow.

    Args:
        tokenizer: a Hugging Face tokenizer.
        option: what needs the template, e.g. `--apply-chat-template`; the message begins with it.

    Raises:
        DataError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{option}: the model's tokenizer has no chat template; leave it out, or take a model "
            "that was tuned for chat"
        )
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as problem:  # several, and none of them is the default
        raise DataError(f"{option}: {brief(problem)}") from None
    return STOPPED_CLOCK + template if CLOCK in template else template


def format_messages(tokenizer: Any, template: str, messages: Sequence[Message]) -> str:
    """The text that a template makes of messages, special tokens in it.

    Raises:
        Exception: the template refuses the messages, in whatever way it does.
    """
    formatted: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages], chat_template=template, tokenize=False
    )
    return formatted


def format_corpus(corpus: Corpus, tokenizer: Any, system_instruction: str | None = None) -> Corpus:
    """A corpus whose texts are formatted by the tokenizer's own template; their keys stay.

    Args:
        corpus: texts and conversations.
        tokenizer: a Hugging Face tokenizer.
        system_instruction: a system message before each.

    Raises:
        DataError: there is no template or it refuses a text, or a conversation has a system
            message already.
    """
    template = chat_template(tokenizer, "--apply-chat-template")
    texts = []
    for number, text in enumerate(corpus.texts, 1):
        messages = text.messages or ({"role": "user", "content": text.text},)
        if system_instruction is not None:
            if messages[0]["role"] == "system":
                raise DataError(
                    f"--system-instruction: text {number} of corpus {corpus.name!r} begins with a "
                    "system message already; leave out one of them"
                )
            messages = ({"role": "system", "content": system_instruction}, *messages)
        try:
            formatted = format_messages(tokenizer, template, messages)
        except Exception as problem:  # templates are programs, and refuse as they like
            raise DataError(
                f"--apply-chat-template: the template does not take text {number} of corpus "
                f"{corpus.name!r} ({brief(problem)})"
            ) from None
        texts.append(replace(text, text=formatted, messages=()))
    notes = (f"its template's date is {DATE}, whatever the day",) if CLOCK in template else ()
    return replace(corpus, texts=tuple(texts), notes=corpus.notes + notes)
