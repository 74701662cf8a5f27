"""Opens whatever repsim has put at a place: a capture, or scores."""

from __future__ import annotations

from pathlib import Path

from repsim import captures, scores
from repsim.captures import Capture
from repsim.schema import SCORES
from repsim.scores import Scores
from repsim.storage import integrity, state_store
from repsim.storage.location import place_of


def open(path: str | Path) -> Capture | Scores:
    """Opens a store; reads nothing but its coordinates until more is asked for.

    A store that is being written shows what was finished when it was opened.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    return scores.open(path) if _holds_scores(path) else captures.open(path)


def verify(path: str | Path) -> integrity.Check:
    """Reads every chunk of a store and compares it with its checksum; nothing is changed.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    return integrity.check(place_of(path))


def repair_command(path: str | Path) -> str:
    """What computes again what `verify` finds damaged, which any of the commands that made the store may have made.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    if _holds_scores(path):
        return " && ".join(f"{command} --repair" for command in scores.open(path).commands)
    return captures.repair_command(path)


def _holds_scores(path: str | Path) -> bool:
    return state_store.root_group(place_of(path)).attrs.get("kind") == SCORES
