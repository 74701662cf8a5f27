"""What a capture that is there holds of what is asked for, and what remains to be computed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.captures.reader import Capture, open_capture
from repsim.data.batching import cut_blocks
from repsim.data.samples import Sample, corpus_digest
from repsim.errors import StoreError
from repsim.jobs.resumable import RemainingWork, check_plan_names
from repsim.options import STORE_DTYPES
from repsim.plans import NamedPlan, PlanTrie, names_of
from repsim.schema import Identity
from repsim.storage import integrity
from repsim.storage.group import StoreGroup
from repsim.storage.location import Location
from repsim.storage.metadata import check_current, read_attributes
from repsim.storage.requests import is_same_request
from repsim.storage.state_store import Layout

OTHER = "choose another --out or remove it"

log = logging.getLogger("repsim")


def read_existing(location: Location) -> Capture | None:
    """The capture as it is; None where there is none.

    Raises:
        StoreError: something else is there, or it is damaged.
    """
    return None if StoreGroup.find(location) is None else open_capture(location.text)


def plan_remaining_work(
    requested: Layout,
    existing: Capture | None,
    *,
    append: bool,
    batch_tokens: int,
    any_dtype: bool = False,
) -> RemainingWork[Layout]:
    """What a capture lacks of what is requested.

    Plans, samples and begun blocks that are there stay where they are; the rest follows.

    Args:
        requested: as if nothing were there.
        existing: what is there.
        append: whether it may be extended.
        batch_tokens: about so many tokens make a block.
        any_dtype: whether the dtype of what is there is the one that is requested.
    Raises:
        StoreError: another capture is there, or one that would have to be extended unasked.
    """
    if existing is None:
        missing = np.repeat(requested.wanted[:, None], len(requested.blocks), 1)
        return RemainingWork(requested, missing, True)
    place = existing.place
    if any_dtype:
        requested = replace(requested, dtype=existing.dataset.attrs["dtype"])
    if difference := _difference(existing, requested):
        raise StoreError(f"{place}: holds another capture: {difference}; {OTHER}")
    # What is there comes first, in its order; what is requested beyond that is new.
    kept, new_samples = _divide_samples(existing, requested.samples)
    check_plan_names(place, existing.plans, requested.plans)
    present = {named.plan for named in existing.plans}
    new_plans = tuple(named for named in requested.plans if named.plan not in present)
    if (new_plans or new_samples) and not append:
        raise _extension_error(existing, new_plans, new_samples)
    layout = _extended_layout(requested, existing, new_plans, kept + new_samples, batch_tokens)

    def enlarge(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        larger = np.zeros((len(layout.trie), len(layout.blocks)), bool)
        shared = min(flags.shape[1], len(layout.blocks))
        larger[: len(flags), :shared] = flags[:, :shared]
        return larger

    flags = {
        name: enlarge(existing.dataset[name].values)
        for name in ("done", "predicted")
        if name in existing.dataset
    }
    missing = layout.missing(flags["done"], flags.get("predicted"))
    work = RemainingWork(layout, missing, bool(new_plans or new_samples))
    if not work.is_none:
        existing.group.check_current()
    return work


def _divide_samples(
    existing: Capture, requested: Sequence[Sample]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The requested samples that are there, in the store's order, and those that are not.

    Raises:
        StoreError: the store has samples that are not requested, or other texts under their keys.
    """
    keys = existing.samples.values.tolist()
    by_key = {sample.key: sample for sample in requested}
    if unknown := [key for key in keys if key not in by_key]:
        raise StoreError(
            f"{existing.place}: holds another capture: {len(unknown):,} of its {len(keys):,} "
            f"samples are not in the corpus asked for (--limit, --corpus); {OTHER}"
        )
    kept = tuple(by_key.pop(key) for key in keys)
    there, here = existing.identity["corpus_digest"], corpus_digest(kept)
    if there != here:
        raise StoreError(
            f"{existing.place}: holds another capture: other texts, --max-tokens or chat "
            f"template ({there[:8]} there, {here[:8]} here); {OTHER}"
        )
    return kept, tuple(by_key.values())


def _extension_error(
    existing: Capture, plans: Sequence[NamedPlan], samples: Sequence[Sample]
) -> StoreError:
    lacks = [f"plans {names_of(plans)}"] if plans else []
    lacks += [f"{len(samples):,} samples"] if samples else []
    return StoreError(
        f"{existing.place}: holds {names_of(existing.plans)} over {existing.samples.size:,} "
        f"samples, not {' nor '.join(lacks)}; add --append, or choose another --out"
    )


def _extended_layout(
    requested: Layout,
    existing: Capture,
    new_plans: Sequence[NamedPlan],
    samples: tuple[Sample, ...],
    batch_tokens: int,
) -> Layout:
    """The layout of the store once it holds what is requested as well."""
    # Blocks that were begun keep their samples; what follows them is cut anew.
    begun = np.flatnonzero(existing.dataset["done"].values.any(0))
    number = int(begun[-1]) + 1 if len(begun) else 0
    blocks = np.bincount(existing.dataset["block"].values)[:number].tolist()
    blocks += cut_blocks(samples[sum(blocks) :], batch_tokens)
    # A command that asks for nothing new leaves no trace.
    (command,) = requested.commands
    attributes = existing.dataset.attrs
    commands = tuple(attributes["requests"])
    if not is_same_request(commands[-1], command):
        commands = (*commands, command)
    plans = existing.plans + tuple(new_plans)
    return replace(
        requested,
        identity=replace(Identity(**existing.identity), corpus_digest=corpus_digest(samples)),
        plans=plans,
        trie=PlanTrie.build(named.plan for named in plans),
        samples=samples,
        blocks=tuple(blocks),
        commands=commands,
        nonfinite=requested.nonfinite or bool(attributes.get("nonfinite")),
    )


def _difference(existing: Capture, requested: Layout) -> str | None:
    """In what a capture is not what is requested, texts and plans aside."""
    attributes = existing.dataset.attrs
    stored = Identity(**existing.identity)
    wanted = replace(requested.identity, corpus_digest=stored.corpus_digest)
    if difference := wanted.difference(stored):
        return difference
    statistics = [statistic.name for statistic in requested.statistics]
    pairs: dict[str, tuple[Any, Any]] = {
        "dtype": (attributes["dtype"], requested.dtype),
        "--keep": (attributes["keep"], "all" if requested.keep else "none"),
        "--statistics": (attributes["statistics"], statistics),
        "--compression": (attributes["compression"], requested.compression),
        "--logprobs": ("logprob" in existing.dataset, requested.logprobs),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            return f"{name} ({there} there, {here} here)"
    return None


def mend(location: Location, requested: Layout, *, any_dtype: bool = False) -> None:
    """Reads the whole store; what is damaged or missing counts as not computed.

    Args:
        location: of the store.
        requested: as if nothing were there.
        any_dtype: whether the dtype of what is there is the one that is requested.
    Raises:
        StoreError: it is of a schema that is only read, or what describes it is lost.
    """
    attributes = read_attributes(location)
    check_current(location, attributes)
    if any_dtype and attributes.get("dtype") in STORE_DTYPES:
        requested = replace(requested, dtype=attributes["dtype"])
    report = integrity.check(location)
    for damage in report.damages:
        log.warning("%s: %s", location, damage)
    if any(map(integrity.is_metadata, report.damages)):
        integrity.restore(location, requested, report.damages)
        report = integrity.check(location)  # only a described store can miss states
    if report.damages:
        integrity.invalidate(location, report.damages)
