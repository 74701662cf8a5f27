"""Opens whatever repsim has put at a place: a capture, or scores."""

from __future__ import annotations

from pathlib import Path

from repsim.captures.reader import Capture
from repsim.evaluation.reader import Scores
from repsim.schema import UNCHECKED_SCHEMAS, Kind
from repsim.storage import integrity, score_store
from repsim.storage.group import StoreGroup
from repsim.storage.location import location_of
from repsim.storage.metadata import SCHEMA_ATTRIBUTE, kind_in, read_attributes
from repsim.storage.requests import commands, is_in_memory, reads_stdin, unnamed_files

AGAIN = "Compute it again to another --out."


def open(path: str | Path) -> Capture | Scores:
    """Opens a store; reads nothing but its coordinates until more is asked for.

    A store that is being written shows what was finished when it was opened.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    group = StoreGroup.open(location_of(path))
    return (Scores if group.holds_scores else Capture)(group, group.dataset())


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
    attributes = read_attributes(location_of(path))
    requests = attributes.get("requests")
    kind = kind_in(attributes)
    store, is_metadata = {
        Kind.CAPTURE: (Capture, integrity.is_metadata),
        Kind.SCORES: (Scores, score_store.is_metadata),
    }[kind]
    # What describes a capture can be written again by the one command that made it, and only by it.
    is_lost = any(map(is_metadata, damages)) and (kind is Kind.SCORES or len(requests or ()) > 1)
    if attributes[SCHEMA_ATTRIBUTE] in UNCHECKED_SCHEMAS:
        return [*lines, f"Cannot be repaired: stores of its schema are only read. {AGAIN}"]
    if not requests or is_lost:
        return [*lines, f"Cannot be repaired: what describes the store is lost. {AGAIN}"]
    made_by = commands(store.maker, requests, str(path), repair=True)
    if kind is Kind.CAPTURE:
        made_by = made_by[-1:]  # the last one covers what those before it asked for
    if is_in_memory(requests):
        calls = "; ".join(made_by)
        lines.append(f"Repair in Python, with what was in memory in capital letters: {calls}")
    else:
        lines.append("Repair: " + " && ".join(made_by))
    if reads_stdin(requests):
        lines.append("In it - stands for standard input: pipe the same texts to it.")
    if files := unnamed_files(requests):
        lines.append(
            f"In it {', '.join(files)} stands for a file or folder whose place no store keeps."
        )
    return lines
