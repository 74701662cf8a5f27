"""Small captures written without a model: layouts, states, and what lies in the store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repsim.data.samples import Sample
from repsim.plans import PlanTrie, resolve
from repsim.schema import Identity
from repsim.stats.per_sample import SampleStatistic
from repsim.storage import state_store, state_writer
from repsim.storage.group import StoreGroup
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import Location
from repsim.storage.lock import WriterLock
from repsim.storage.place_names import location_of

IDENTITY = Identity(
    "m", None, "77", "66", "88", "float32", "own", "99", "all", "cpu", {"torch": "2.13.0"}
)
PLANS = ("baseline", "drop:layer=1", "(0|1)*2", "0.mlp")
MORE_PLANS = (*PLANS, "0, 1, 2, 0")
LENGTHS = (90, 50, 7)
MORE_LENGTHS = (*LENGTHS, 30, 100)
TOKENS = sum(LENGTHS)
SUMS = SampleStatistic("own.sum", lambda states: states.sum((1, 2), dtype=float))
ALL_STATES = np.random.default_rng(0).normal(size=(12, 400, 16)).astype("float32")


def layout_of(
    lengths: Sequence[int] = LENGTHS,
    plans: str | Sequence[str] = PLANS,
    units: int = 4,
    dtype: str = "float32",
    blocks: tuple[int, ...] | None = None,
    tokens: str = "all",
    **options: Any,
) -> state_store.Layout:
    """Every sample a block, unless said otherwise; token ids count on from sample to sample."""
    named = resolve(plans, 3)
    ids = np.split(np.arange(sum(lengths), dtype=np.int32), np.cumsum(lengths)[:-1])
    samples = tuple(Sample(f"key{row}", token_ids) for row, token_ids in enumerate(ids))
    trie = PlanTrie.build(item.plan for item in named)
    identity = replace(IDENTITY, tokens=tokens)
    return state_store.Layout(
        identity,
        3,
        named,
        trie,
        samples,
        blocks or (1,) * len(lengths),
        units=units,
        dtype=dtype,
        **options,
    )


def states_of(layout: state_store.Layout) -> np.ndarray:
    """The same for the same node and token of any layout."""
    return ALL_STATES[: len(layout.trie), : layout.tokens, : layout.units].astype(layout.dtype)


def write(
    place: Location, layout: state_store.Layout, blocks: Sequence[int] | None = None
) -> np.ndarray:
    """Writes what these blocks lack, as a capture does; all blocks if none are named."""
    states = states_of(layout)
    with WriterLock(place) as lock:
        writer = state_writer.prepare(place, layout, lock)
        for block in range(len(layout.blocks)) if blocks is None else blocks:
            pending = writer.pending(block)
            writer.begin(block)
            first, last = layout.token_starts[block : block + 2]
            for node in layout.trie.depth_first():
                if node in pending:
                    scored = layout.logprobs and node in layout.trie.ends
                    scores = states[node, first:last, 0].astype("float32") if scored else None
                    if layout.keep:
                        writer.write(node, states[node, first:last], scores)
                    else:
                        plan = layout.trie.ends.index(node)
                        writer.write_statistics(
                            plan, {SUMS.name: sums_of(layout, plan, block)}, scores
                        )
            writer.finish()
    return states


def sums_of(layout: state_store.Layout, plan: int, block: int) -> np.ndarray:
    """`[sample, state]`"""
    ends = np.cumsum((0, *map(len, layout.positions)))
    states = states_of(layout)[list(layout.trie.paths[plan])]
    samples = range(*layout.sample_starts[block : block + 2])
    return np.stack([SUMS.kernel(states[:, ends[sample] : ends[sample + 1]]) for sample in samples])


def begin(place: Location, layout: state_store.Layout) -> None:
    write(place, layout, blocks=())


def folder_of(path: Path) -> LocalFolder:
    """The place of a path, which is a folder."""
    place = location_of(path)
    assert isinstance(place, LocalFolder)
    return place


def read_bytes(place: Location, key: str) -> bytes:
    """The bytes at a key where there are some."""
    data = place.read(key)
    assert data is not None
    return data


def bytes_in(place: Location) -> dict[str, bytes]:
    return {key: read_bytes(place, key) for key in place.sizes()}


def dataset_of(place: Location) -> xr.Dataset:
    """What is on disk, as xarray reads it."""
    return StoreGroup.open(place).dataset()
