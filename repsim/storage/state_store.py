"""What is on disk: one zarr v3 group per capture, written block by block, opened by xarray.

`hidden[node, token, unit]` is chunked one node by a run of tokens, so a state, or a run of tokens
at every node, reads in few pieces. `done[node, block]` says which nodes' states of which samples
are there; it is written after them, and anything not marked there is computed again. A chunk that a
block's end falls into may be rewritten whole by the next block; both versions hold the finished
tokens. The root's attribute `extent` says how much of the arrays counts, so that a store grows in
one step, whenever the process dies. Every chunk carries a checksum. `state_writer` writes it;
neither knows models or plans' meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from repsim.data.batching import BatchRule
from repsim.data.samples import Sample, TokenRule
from repsim.plans import PlanTrie
from repsim.schema import (
    BLOCK,
    NODE,
    PLAN,
    SAMPLE,
    SCHEMA_VERSION,
    STATE,
    TOKEN,
    UNIT,
    Kind,
)
from repsim.stats.per_sample import SampleStatistic
from repsim.storage.finished_blocks import STATISTICS
from repsim.storage.frame import ArraySpec, StoreLayout
from repsim.storage.metadata import RESULTS, SCHEMA_ATTRIBUTE

CHUNK_BYTES = 2 << 20  # of float16 states
STATISTIC_BYTES = 256 << 10  # of a statistic's chunk
DONE_CHUNKS = (1024, 64)  # nodes, blocks: rewritten after every few states, so small


@dataclass(frozen=True)
class Layout(StoreLayout):
    """What a capture is to hold.

    trie: built from the plans in their order.
    samples: in the store's order.
    blocks: how many samples each block takes, in order.
    units: width of a state.
    dtype: of the stored states, `float16` or `float32`.
    logprobs: whether next-token log-probabilities are stored.
    keep: whether states are stored; otherwise only `statistics` are.
    statistics: numbers of each sample and plan.
    compression: of the states, `none`, `fast` or `small`.
    commands: the options of every capture that made it.
    batch_rule: which samples shared a batch when it was computed last, and were padded.
    nonfinite: whether states that are not finite were allowed.
    """

    trie: PlanTrie
    samples: tuple[Sample, ...]
    blocks: tuple[int, ...]
    units: int
    dtype: str
    logprobs: bool = False
    keep: bool = True
    statistics: tuple[SampleStatistic, ...] = ()
    compression: str = "none"
    commands: tuple[Mapping[str, Any], ...] = ()
    batch_rule: BatchRule = BatchRule.ANY
    nonfinite: bool = False

    @cached_property
    def positions(self) -> tuple[NDArray[np.int32], ...]:
        """`[sample]`, positions that are kept of each."""
        rule = TokenRule(self.identity.tokens)
        return tuple(rule.positions(len(sample)) for sample in self.samples)

    @cached_property
    def sample_starts(self) -> NDArray[np.int64]:
        """Index of the first sample of each block, then the number of samples, `[block + 1]`."""
        return np.cumsum((0, *self.blocks))

    @cached_property
    def token_starts(self) -> NDArray[np.int64]:
        """Index of the first kept token of each block, and how many there are, `[block + 1]`."""
        return np.cumsum((0, *map(len, self.positions)))[self.sample_starts]

    @property
    def tokens(self) -> int:
        """Kept tokens."""
        return int(self.token_starts[-1])

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """`[node]`, whether a node counts: all where states are kept, the plans' ends otherwise."""
        wanted = np.full(len(self.trie), self.keep)
        wanted[list(self.trie.ends)] = True
        return wanted

    @property
    def chunk_tokens(self) -> int:
        """Tokens a chunk: a power of two, 64 to 4096, about 2 MiB of float16 states, no more than
        there are.
        """
        fits = max(64, min(4096, CHUNK_BYTES // (2 * self.units)))
        return min(1 << (fits.bit_length() - 1), self.tokens)

    @property
    def extent(self) -> dict[str, int]:
        """Sizes of the store's dimensions."""
        sizes = {NODE: len(self.trie), PLAN: len(self.plans), STATE: self.trie.depth + 1}
        sizes |= {TOKEN: self.tokens, SAMPLE: len(self.samples), BLOCK: len(self.blocks)}
        return sizes | self.widths(self.trie.depth + 1)

    def bytes_of(self, blocks: NDArray[np.bool_]) -> int:
        """Size on disk of these states and statistics, `[node, block]`, before compression."""
        tokens, samples = np.diff(self.token_starts), np.array(self.blocks)
        # `[node]`; a chunk is whole on disk.
        chunks = -(-(blocks.astype(np.int64) @ tokens) // self.chunk_tokens)
        states = chunks.sum() * self.chunk_tokens * self.units * np.dtype(self.dtype).itemsize
        ends = list(self.trie.ends)
        widths = np.array(
            [sum(self.widths(len(path)).values()) for path in self.trie.paths], np.int64
        )
        total = 8 * widths @ (blocks[ends] @ samples) + states * self.keep
        return int(total + 4 * chunks[ends].sum() * self.chunk_tokens * self.logprobs)

    def widths(self, states: int) -> dict[str, int]:
        """How many values each statistic has for a plan of so many states."""
        return {
            statistic.name: statistic.width(states, self.units) for statistic in self.statistics
        }

    @property
    def groups(self) -> tuple[str, ...]:
        return (RESULTS, *([STATISTICS] if self.statistics else []))

    def coordinates(self) -> xr.Dataset:
        """Plans, trie, tokens and samples."""
        trie, samples, plans = self.trie, self.samples, self.plans
        path = np.full((len(plans), trie.depth + 1), -1, np.int64)
        for row, nodes in zip(path, trie.paths, strict=True):
            row[: len(nodes)] = nodes
        kept = list(map(len, self.positions))
        # Position -1 is a sample's mean and no token's; token_ids[-1] would be the last one's.
        ids = [
            np.where(positions < 0, -1, sample.token_ids[positions])
            for sample, positions in zip(samples, self.positions, strict=True)
        ]
        steps = ["embed" if step is None else step.text for step in trie.steps]
        block = np.repeat(np.arange(len(self.blocks), dtype=np.int64), self.blocks)
        coords: Mapping[str, Any] = {
            PLAN: (PLAN, _texts(named.plan.text for named in plans)),
            "plan_name": (PLAN, _texts(named.name for named in plans)),
            "plan_digest": (PLAN, _texts(named.plan.digest for named in plans)),
            "parent": (NODE, np.array(trie.parents, np.int64)),
            "step_text": (NODE, _texts(steps)),
            "token_id": (TOKEN, np.concatenate(ids).astype(np.int32)),
            "position": (TOKEN, np.concatenate(self.positions)),
            "sample": (TOKEN, np.repeat(np.arange(len(samples), dtype=np.int64), kept)),
            "sample_key": (SAMPLE, _texts(sample.key for sample in samples)),
            "length": (SAMPLE, np.array([len(sample) for sample in samples], np.int64)),
            "block": (SAMPLE, block),
        }
        return xr.Dataset({"path": ((PLAN, STATE), path)}, coords)

    def arrays(self) -> dict[str, ArraySpec]:
        """Flags, states, log-probabilities and statistics."""
        extent, chunk = self.extent, self.chunk_tokens
        nodes, tokens, blocks = extent[NODE], extent[TOKEN], extent[BLOCK]
        flag = ArraySpec((NODE, BLOCK), (nodes, blocks), bool, DONE_CHUNKS, is_flag=True)
        specs = {"done": flag}
        if self.logprobs and self.keep:
            specs["predicted"] = flag
        if self.keep:
            specs["hidden"] = ArraySpec(
                (NODE, TOKEN, UNIT),
                (nodes, tokens, self.units),
                self.dtype,
                (1, chunk, self.units),
                codecs=_codecs(self.compression, np.dtype(self.dtype).itemsize),
            )
        if self.logprobs:
            name = "log-probability of the next token; NaN where a sample has none"
            specs["logprob"] = ArraySpec(
                (NODE, TOKEN),
                (nodes, tokens),
                "float32",
                (1, chunk),
                codecs=(Crc32cCodec(),),
                attributes={"units": "nat", "long_name": name},
            )
        for statistic, width in self.widths(extent[STATE]).items():
            specs[f"{STATISTICS}/{statistic}"] = ArraySpec(
                (PLAN, SAMPLE, statistic),
                (extent[PLAN], extent[SAMPLE], width),
                "float64",
                (1, max(1, STATISTIC_BYTES // (8 * width)), width),
            )
        return specs

    def attributes(self) -> dict[str, Any]:
        return {
            SCHEMA_ATTRIBUTE: SCHEMA_VERSION,
            "kind": Kind.CAPTURE,
            "layers": self.layers,
            "units": self.units,
            "identity": self.identity.to_dict(),
            "dtype": self.dtype,
            "keep": "all" if self.keep else "none",
            "statistics": [statistic.name for statistic in self.statistics],
            "compression": self.compression,
            "requests": [dict(command) for command in self.commands],
            "batches": str(self.batch_rule),
            "nonfinite": self.nonfinite,
            "extent": self.extent,
        }

    def missing(
        self, done: NDArray[np.bool_], predicted: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """What is yet to be computed, `[node, block]`.

        Args:
            done: whose states, or statistics, are finished, `[node, block]`.
            predicted: whose log-probabilities are, likewise; None where there are none, or where
                `done` says it of both.
        """
        missing = self.wanted[:, None] & ~done
        if predicted is not None:
            ends = list(self.trie.ends)
            missing[ends] |= ~predicted[ends]
        return missing


def _texts(values: Iterable[str]) -> NDArray[Any]:
    return np.array(list(values), np.dtypes.StringDType())


def _codecs(compression: str, itemsize: int) -> tuple[Any, ...]:
    """How states are packed; benchmarks/RESULTS.md has what was tried."""
    if compression == "none":
        return (Crc32cCodec(),)
    if compression == "fast":
        return ZstdCodec(level=1), Crc32cCodec()
    return BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=itemsize), Crc32cCodec()
