"""The errors a caller can tell apart, and how text that others have made is shown safely.

Every message is one line: what was asked, what was found, what to do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

# Control characters, those that reorder text, half characters.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: object) -> str:
    """A text as one line that is safe to show: what would move a cursor or reorder text becomes an
    escape.

    Names come out of files that others have made, and a terminal obeys what it is sent.

    Example:
        >>> printable("two\\nlines")
        'two\\\\nlines'
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in UNPRINTABLE
        else character
        for character in shown
    )


def brief(problem: BaseException) -> str:
    """Another library's exception on one line of a message, its type first.

    Example:
        >>> brief(KeyError("weights"))
        "KeyError: 'weights'"
    """
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:200] or 'no message'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word that was most likely meant, as a part of a message; empty where none is close.

    Example:
        >>> did_you_mean("skipp", ["skip", "drop"]), did_you_mean("x", ["skip"])
        ('did you mean skip? ', '')
    """
    close = get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


class RepsimError(Exception):
    """A request that cannot be met, in one line: what was asked, what was found, what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class PlanError(RepsimError, ValueError):
    """A plan that cannot be understood, that the model is too shallow for, or that a store does not
    hold.
    """


class DataError(RepsimError, ValueError):
    """Texts, benchmark data or a task that cannot be read or used."""


class ModelError(RepsimError):
    """A model that cannot be loaded, or that cannot do what was asked of it."""


class StoreError(RepsimError):
    """A store that cannot be read or written, or that holds something else."""


class StoreDamaged(StoreError):
    """Something in a store is not what was written, or is missing."""


class StoreLocked(StoreError):
    """Another process is writing to the store, or has taken it over."""


class Interrupted(RepsimError):
    """A signal ended a run between two pieces of work; everything finished is on disk.

    signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
