"""Opens whatever repsim has put at a place: a capture, or scores."""

from __future__ import annotations

from pathlib import Path

from repsim.captures.reader import Capture, open_capture
from repsim.data.corpus import BUILTIN
from repsim.evaluation.reader import Scores, open_scores
from repsim.schema import SCORES, UNCHECKED_SCHEMAS
from repsim.storage import integrity, score_store
from repsim.storage.group import SCHEMA_ATTRIBUTE, read_attributes
from repsim.storage.location import location_of
from repsim.storage.reader import commands


def open(path: str | Path) -> Capture | Scores:
    """Opens a store; reads nothing but its coordinates until more is asked for.

    A store that is being written shows what was finished when it was opened.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    return open_scores(path) if _holds_scores(path) else open_capture(path)


def verify(path: str | Path) -> integrity.VerificationReport:
    """Reads every chunk of a store and compares it with its checksum; nothing is changed.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    return integrity.check(location_of(path))


def repair_advice(path: str | Path, found: integrity.VerificationReport) -> list[str]:
    """What to do about what `verify` has found, a line each: a command for the shell, or that it
    cannot be repaired.

    Raises:
        RepsimError: nothing is there, or it is not a store of repsim's.
    """
    lines = []
    if any(damage.is_result for damage in found.damages):
        lines.append("Results of analyses: run repsim analyze again.")
    damages = [damage for damage in found.damages if not damage.is_result]
    if not damages:
        return lines
    place, kind = location_of(path), Scores if _holds_scores(path) else Capture
    attributes = read_attributes(place)
    describing = (
        any(map(integrity.is_metadata, damages))
        if kind is Capture
        else any(map(score_store.is_metadata, damages))
    )
    requests = attributes.get("requests")
    if attributes[SCHEMA_ATTRIBUTE] in UNCHECKED_SCHEMAS:
        return [
            *lines,
            "Cannot be repaired: stores of its schema are only read. Compute it again to another --out.",
        ]
    if not requests or (describing and (kind is Scores or len(requests) > 1)):
        return [
            *lines,
            "Cannot be repaired: what describes the store is lost. Compute it again to another --out.",
        ]
    made_by = commands(kind.maker, requests, str(path))
    if kind is Capture:
        made_by = made_by[-1:]  # the last one covers what those before it asked for
    lines.append("Repair: " + " && ".join(f"{command} --repair" for command in made_by))
    unnamed = [
        name
        for request in requests
        for name in (request.get("corpus", ""), request.get("data_dir", ""))
    ]
    files = sorted(
        {name for name in unnamed if name and name != BUILTIN and not name.startswith("hf:")}
    )
    if files:
        lines.append(
            f"In it {', '.join(files)} stands for a file or folder whose place no store keeps."
        )
    return lines


def _holds_scores(path: str | Path) -> bool:
    return read_attributes(location_of(path)).get("kind") == SCORES
