"""Opens whatever repsim has put at a place: a capture, or scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from repsim.captures.reader import Capture
from repsim.errors import DataError, RepsimError
from repsim.evaluation.reader import Scores
from repsim.plans import Plan
from repsim.schema import UNCHECKED_SCHEMAS, Kind
from repsim.storage import integrity, score_store
from repsim.storage.group import StoreGroup
from repsim.storage.metadata import SCHEMA_ATTRIBUTE, kind_in, read_attributes
from repsim.storage.place_names import location_of
from repsim.storage.requests import commands, files_of, located, objects_in, reads_stdin

AGAIN = "Compute it again to another --out."


def open(path: str | Path) -> Capture | Scores:
    """Opens a store; reads nothing but its coordinates until more is asked for.

    A store that is being written shows what was finished when it was opened.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    group = StoreGroup.open(location_of(path))
    return (Scores if group.holds_scores else Capture)(group, group.dataset())


def table(
    store: str | Path | Capture | Scores,
    *,
    plan: str | Plan | Sequence[str | Plan] = (),
    task: str | Sequence[str] = (),
) -> pd.DataFrame:
    """A store's numbers as a table, as `repsim table` prints them.

    Args:
        store: scores, of which it is `Scores.to_frame`, or a capture, of which it is
            `Capture.table`: one row per plan.
        plan: of these plans, families, sweeps, sets or names alone; by default of all.
        task: of scores, of these tasks alone; by default of all.
    Raises:
        RepsimError: nothing is there, the store holds no such plan or task, or it is a capture,
            which has no tasks.
    Example::

        repsim.table("scores.zarr", plan="skip:start=1..10", task="grammar").to_latex()
    """
    opened = store if isinstance(store, Capture | Scores) else open(store)
    if isinstance(opened, Scores):
        return opened.to_frame(plan=plan, task=task)
    if task:
        raise DataError(f"{opened.path}: a capture, which has no tasks; leave out --task")
    return opened.table(plan=plan)


def verify(path: str | Path) -> integrity.VerificationReport:
    """Reads every chunk of a store and compares it with its checksum; nothing is changed.

    Raises:
        RepsimError: nothing is there, or it is not a store of this schema.
    """
    return integrity.check(location_of(path))


def repair_advice(
    path: str | Path,
    report: integrity.VerificationReport,
    *,
    model: str | Path | None = None,
    corpus: str | Path | None = None,
    data_dir: str | Path | None = None,
    include_path: str | Path | None = None,
) -> list[str]:
    """What to do about what `verify` has found, a line each: a command for the shell, or that it
    cannot be repaired.

    No store keeps where a file or folder lies; the command is whole once that is said here.

    Args:
        path: of the store.
        report: of the same store.
        model: the folder or file of its model.
        corpus: the file of its texts.
        data_dir: the folder of its tasks' data.
        include_path: the folder of tasks of one's own.
    Raises:
        RepsimError: nothing is there, it is not a store of repsim's, or it is not of this model or
            corpus.
    """
    lines = []
    if any(damage.is_result for damage in report.damages):
        lines.append("Results of analyses: run repsim analyze again.")
    damages = [damage for damage in report.damages if not damage.is_result]
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
    # Files and folders by their places, as far as these are known.
    places = {
        "model": model,
        "corpus": corpus,
        "data_dir": data_dir,
        "include_path": include_path,
    }
    objects = objects_in(requests)
    unplaced = _unplaced(attributes, places, objects)
    whole = located(requests, places)
    if attributes.get("nonfinite"):
        whole = [{**request, "allow_nonfinite": True} for request in whole]
    made_by = commands(store.maker, whole, str(path), repair=True)
    if kind is Kind.CAPTURE:
        made_by = made_by[-1:]  # the last one covers what those before it asked for
    if objects:
        lines.append(
            f"Repair in Python, handing over the same {' and '.join(objects)}: {'; '.join(made_by)}"
        )
    else:
        lines.append("Repair: " + " && ".join(made_by))
    if reads_stdin(requests):
        lines.append("In it - stands for standard input: pipe the same texts to it.")
    if unplaced:
        names = ", ".join(unplaced.values())
        options = [f"--{name.replace('_', '-')} PATH" for name in unplaced if name in places]
        advice = (
            f"; repsim verify with {' '.join(options)} gives the whole command" if options else ""
        )
        lines.append(
            f"In it {names} stands for a file or folder whose place no store keeps{advice}."
        )
    return lines


def _unplaced(
    attributes: Mapping[str, Any],
    places: Mapping[str, str | Path | None],
    objects: Sequence[str],
) -> dict[str, str]:
    """Option -> name of each file and folder that requests name and `places` does not.

    objects: options whose value was an object in memory.

    Raises:
        RepsimError: a place is that of another file or folder.
    """
    from repsim.models.model_files import EMBEDDED  # here, since most stores are sound

    named, model = files_of(attributes["requests"]), attributes["requests"][0]["model"]
    revision = attributes.get("identity", {}).get("revision")  # of models from the hub
    if revision is None and model not in EMBEDDED and "model" not in objects:
        named = {"model": model, **named}
    for option, place in places.items():
        if place is None:
            continue
        parts = [part.name for part in (Path(place).resolve(), Path(place).resolve().parent)]
        spelled = f"--{option.replace('_', '-')} {place}"
        if option not in named:
            raise RepsimError(f"{spelled}: no command of the store names such a file or folder")
        if option in ("model", "corpus") and named[option] not in parts:
            raise RepsimError(f"{spelled}: the store is of {named[option]}; name that one")
    return {option: name for option, name in named.items() if places.get(option) is None}
