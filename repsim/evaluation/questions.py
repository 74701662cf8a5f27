"""What is asked of a model: one request, and an example with its requests."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from repsim.data.packing import Window

Answer: TypeAlias = tuple[float, bool] | float | str
"""A model's answer to a request: (log-likelihood, is greedy), the log-likelihood of a whole text,
or a text.
"""


@dataclass(frozen=True)
class Request:
    """One question to the model; lm-eval calls it an instance.

    task, doc, choice: the task's name, the example's number in it and the request's number in the
    example.
    digest: sha256 of what is asked, as tokens, of what is right, and of the task's name and
    version; 16 hex digits.
    windows: what has to be scored; the sum is the log-likelihood. Empty where text is to be
    generated.
    prompt: the text to continue; None where there is nothing to generate.
    is_whole_text: whether the whole text is scored and not a continuation only; lm-eval's "rolling"
    log-likelihood, of which it takes the number alone.
    """

    task: str
    doc: int
    choice: int
    digest: str
    windows: tuple[Window, ...]
    prompt: str | None = None
    is_whole_text: bool = False


@dataclass(frozen=True)
class Example:
    """One item of a benchmark, lm-eval's document.

    task, doc: the task's name and the example's number in it.
    choices: how many answers it gives to choose from; 0 where it is no multiple choice.
    gold: number of the right choice, from 0; -1 where there is none, or more than one.
    requests: at least one; of a multiple choice, one per choice.
    """

    task: str
    doc: int
    choices: int
    gold: int
    requests: tuple[Request, ...]


def digest(values: Any) -> str:
    """sha256 of anything that JSON and text can say, 16 hex digits; the same in every process.

    Example:
        >>> digest({"b": 1, "a": len}) == digest({"a": len, "b": 1})
        True
    """
    text = json.dumps(values, sort_keys=True, default=_to_text)
    # Functions count by their names; their addresses differ in every process.
    stable = re.sub(r" at 0x[0-9a-f]+", "", text)
    return hashlib.sha256(stable.encode()).hexdigest()[:16]


def _to_text(value: Any) -> str:
    """A setting's value as text, without the folder of a module that lm-eval loads by its path."""
    text = str(value)
    module = getattr(value, "__module__", None) or ""
    return text.replace(module, Path(module).name) if Path(module).is_absolute() else text
