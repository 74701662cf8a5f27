"""What a source of texts holds, value by value: a text, a conversation, or neither.

A source says where a value stands; this module says what it is, in the words of a message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np

from repsim.errors import DataError

Message = Mapping[str, Any]
Content = str | tuple[Message, ...]
"""A text, or a conversation: messages, each with `role` and `content`."""

MOST_FIELDS_SHOWN = 10  # of a record, in a message
JSON_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "a boolean",
    type(None): "null",
}


def json_kind(value: Any) -> str:
    """What kind of value JSON or a table gave, in words.

    Args:
        value: from `json.loads`, or of a column.

    Example:
        >>> json_kind([1, 2])
        'a list'
    """
    if isinstance(value, Number) and not isinstance(value, bool):
        return "a number"
    return JSON_KINDS.get(type(value), type(value).__name__)


@dataclass(frozen=True)
class Source:
    """A source of texts, and what is looked for in it.

    label: how messages begin that are about it, e.g. `corpus 'own.csv'`.
    field: the field or column that holds the texts.
    conversations: whether lists of messages are taken too.
    """

    label: str
    field: str
    conversations: bool = False

    def error(self, message: str) -> DataError:
        """What is wrong with the source, to be raised."""
        return DataError(f"{self.label}: {message}")

    def content(self, value: Any) -> Content | None:
        """A value as a text or a conversation; None where it is neither."""
        if isinstance(value, str):
            return value
        if self.conversations and is_conversation(value):
            # Tables have every key in every message, so what is not there is None in them.
            return tuple(
                {key: part for key, part in message.items() if part is not None}
                for message in value
            )
        return None

    def explain(self, value: Any) -> str:
        """Why a value is neither, as the end of a sentence that begins with its place."""
        if is_conversation(value) and len(value):
            return "holds a conversation, not text; add --apply-chat-template"
        return f"holds {json_kind(value)}, not text"

    def in_record(self, record: Any, place: str) -> Content:
        """The content of a record's field.

        Raises:
            DataError: it is no record, or has no such field or no text there.
        """
        if not isinstance(record, Mapping):
            raise self.error(
                f"{place}: holds {json_kind(record)}, not an object with fields; "
                f"write {{{json.dumps(self.field)}: ...}}"
            )
        advice = f"name a text field with --field (found: {listed(record)})"
        if self.field not in record:
            raise self.error(f"{place}: no field {self.field!r}; {advice}")
        content = self.content(record[self.field])
        if content is None:
            reason = self.explain(record[self.field])
            ending = "" if ";" in reason else f"; {advice}"
            raise self.error(f"{place}: field {self.field!r} {reason}{ending}")
        return content

    def in_row(self, value: Any, place: str) -> Content:
        """A value of a column or list; a missing one counts as an empty text.

        Raises:
            DataError: it is neither text nor missing.
        """
        content = self.content(value)
        if content is None and not is_missing(value):
            raise self.error(f"{place} {self.explain(value)}")
        return content or ""


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role and a content.

    Example:
        >>> is_conversation([{"role": "user", "content": "Good morning"}])
        True
    """
    is_list = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    return is_list and all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and "content" in message
        for message in value
    )


def is_missing(value: Any) -> bool:
    """Whether a table has no value there: None, NaN, or pandas' NA.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), "", 0)]
        [True, True, False, False]
    """
    import pandas as pd  # only sources that are tables need it

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def listed(names: Iterable[Any]) -> str:
    """Names of fields or columns for a message, the first ten of them.

    Example:
        >>> listed(["id", "text"])
        'id, text'
    """
    texts = list(map(str, names))
    more = ["..."] if len(texts) > MOST_FIELDS_SHOWN else []
    return ", ".join([*texts[:MOST_FIELDS_SHOWN], *more]) or "none"
