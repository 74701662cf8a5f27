"""What is on disk: one zarr v3 group a capture, written batch by batch, opened by xarray. The only zarr import.

`hidden[node, token, unit]` is chunked one node by a run of tokens, so a state, or a run of tokens at every node, reads
in few pieces. `complete[node]` says how many tokens of a node are there; it is written after them, and what lies
beyond it is not believed. A chunk that a batch's end falls into is rewritten whole by the next batch; both versions
hold the finished tokens. This module takes arrays; it knows neither models nor plans' meaning.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from repsim.corpus import Sample
from repsim.families import NamedPlan
from repsim.plans import PlanTrie, step_text
from repsim.schema import (
    NODE,
    PLAN,
    SAMPLE,
    SCHEMA_VERSION,
    STATE,
    STORE_DTYPES,
    TOKEN,
    UNIT,
    Identity,
    RepsimError,
)

CHUNK_BYTES = 2 << 20  # of float16 states
WRITE_BYTES = 16 << 20  # of states that are written together
SCHEMA_ATTRIBUTE = "repsim_schema"
RESULTS = "analyses"


@dataclass(frozen=True)
class Layout:
    """What a new store is to hold.

    identity: what the numbers depend on.
    layers: the model's T.
    plans: with their names; `trie` is built from them in this order.
    samples: in the store's order.
    units: width of a state.
    dtype: of the stored states, `float16` or `float32`.
    logprobs: whether next-token log-probabilities are stored.
    """

    identity: Identity
    layers: int
    plans: tuple[NamedPlan, ...]
    trie: PlanTrie
    samples: tuple[Sample, ...]
    units: int
    dtype: str
    logprobs: bool

    @property
    def tokens(self) -> int:
        return sum(len(sample) for sample in self.samples)

    @property
    def chunk_tokens(self) -> int:
        """Tokens a chunk: a power of two, 64 to 4096, about 2 MiB of float16 states, no more than there are."""
        fits = max(64, min(4096, CHUNK_BYTES // (2 * self.units)))
        return min(1 << (fits.bit_length() - 1), self.tokens)

    @property
    def bytes(self) -> int:
        """Size of the states on disk."""
        return len(self.trie) * self.tokens * self.units * np.dtype(self.dtype).itemsize


class Writer:
    """Appends whole batches of tokens to a store, in order."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self._path = path
        # Otherwise zarr compares every chunk with NaN before it writes it, which takes longer than writing.
        hidden: Any = group["hidden"]
        self._hidden = hidden.with_config({"write_empty_chunks": True})
        self._logprob: Any = group.get("logprob")
        self._complete: Any = group["complete"]
        self._tokens = 0
        self._waiting: list[tuple[int, NDArray[Any]]] = []

    def write(self, node: int, hidden: NDArray[Any], logprob: NDArray[np.float32] | None) -> None:
        """One node's states for the batch under way; they reach the disk with their neighbours', at `finish` at last.

        Args:
            node: index in the trie.
            hidden: `[token, unit]`, of the store's dtype.
            logprob: `[token]`, or None where the node ends no plan.
        Raises:
            RepsimError: shape or dtype are not the store's, or the disk is full.
        """
        last = self._tokens + len(hidden)
        fits = hidden.shape[1:] == self._hidden.shape[2:] and last <= self._hidden.shape[1]
        if not fits or hidden.dtype != self._hidden.dtype:
            raise RepsimError(
                f"block {hidden.dtype}{list(hidden.shape)} at token {self._tokens} does not fit "
                f"{self._hidden.dtype}{list(self._hidden.shape)} in {self._path}"
            )
        if logprob is not None and (logprob.shape != hidden.shape[:1] or logprob.dtype != np.float32):
            found = f"{logprob.dtype}{list(logprob.shape)}"
            raise RepsimError(f"log-probabilities {found} do not fit float32[{len(hidden)}] in {self._path}")
        if logprob is not None:
            with _one_line(self._path):
                self._logprob[node, self._tokens : last] = logprob
        if self._waiting and node != self._waiting[-1][0] + 1:
            self._flush()
        self._waiting.append((node, hidden))
        if sum(states.nbytes for _, states in self._waiting) >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Writes the waiting nodes, which are neighbours, in one call: zarr writes their chunks side by side."""
        if not self._waiting:
            return
        first, states = self._waiting[0][0], np.stack([hidden for _, hidden in self._waiting])
        self._waiting.clear()
        with _one_line(self._path):
            self._hidden[first : first + len(states), self._tokens : self._tokens + states.shape[1]] = states

    def finish(self, tokens: int) -> None:
        """Declares the batch under way, of so many tokens, complete at every node."""
        self._flush()
        self._tokens += tokens
        with _one_line(self._path):
            self._complete[:] = self._tokens

    def remove(self) -> None:
        """Deletes the store: the capture it was begun for cannot be made."""
        shutil.rmtree(self._path, ignore_errors=True)


def create(path: Path, layout: Layout) -> Writer:
    """A new store, empty but for its plans and tokens.

    Raises:
        RepsimError: the dtype is not one of the store's, something else is at `path`, or it cannot be written.
    """
    if layout.dtype not in STORE_DTYPES:
        raise RepsimError(f"dtype {layout.dtype!r}: a store holds {' or '.join(STORE_DTYPES)}")
    with _one_line(path):
        try:
            path.mkdir(parents=True)  # of two captures at once, one makes it and the other one is refused
        except FileExistsError:
            raise RepsimError(f"{path}: exists already; choose another --out or remove it") from None
        try:
            _frame(layout).to_zarr(path, zarr_format=3, consolidated=False)
            group = zarr.open_group(path, mode="r+", zarr_format=3)
            group.create_group(RESULTS)
            _add_arrays(group, layout)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    return Writer(path, group)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What the operating system refuses, in one line."""
    try:
        yield
    except OSError as problem:
        raise RepsimError(f"{path}: cannot be written: {problem.strerror or problem}; choose another --out") from None


def _frame(layout: Layout) -> xr.Dataset:
    """Everything but the states: plans, trie, tokens and samples, with the identity as attributes."""
    trie, samples, plans = layout.trie, layout.samples, layout.plans
    path = np.full((len(plans), max(len(nodes) for nodes in trie.paths)), -1, np.int64)
    for row, nodes in zip(path, trie.paths, strict=True):
        row[: len(nodes)] = nodes
    lengths = [len(sample) for sample in samples]
    strings = np.dtypes.StringDType()
    coords: Mapping[str, Any] = {
        PLAN: (PLAN, np.array([named.plan.text for named in plans], strings)),
        "plan_name": (PLAN, np.array([named.name for named in plans], strings)),
        "parent": (NODE, np.array(trie.parents, np.int64)),
        "step_text": (NODE, np.array(["embed" if step is None else step_text(step) for step in trie.steps], strings)),
        "complete": (NODE, np.zeros(len(trie), np.int64)),
        "token_id": (TOKEN, np.concatenate([sample.token_ids for sample in samples])),
        "position": (TOKEN, np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])),
        "sample": (TOKEN, np.repeat(np.arange(len(samples), dtype=np.int64), lengths)),
        "sample_key": (SAMPLE, np.array([sample.key for sample in samples], strings)),
    }
    attributes = {
        SCHEMA_ATTRIBUTE: SCHEMA_VERSION,
        "layers": layout.layers,
        "identity": layout.identity.to_dict(),
    }
    return xr.Dataset({"path": ((PLAN, STATE), path)}, coords, attributes)


def _add_arrays(group: zarr.Group, layout: Layout) -> None:
    """The arrays that batches fill; NaN where nothing was measured."""
    tokens, chunk = layout.tokens, layout.chunk_tokens
    if layout.logprobs:
        group.create_array(
            "logprob",
            shape=(len(layout.trie), tokens),
            chunks=(1, chunk),
            dtype="float32",
            fill_value=np.nan,
            dimension_names=(NODE, TOKEN),
            attributes={"units": "nat", "long_name": "log-probability of the next token"},
        )
    group.create_array(  # last: where it is, the store is whole
        "hidden",
        shape=(len(layout.trie), tokens, layout.units),
        chunks=(1, chunk, layout.units),
        dtype=layout.dtype,
        fill_value=np.nan,
        compressors=None,
        dimension_names=(NODE, TOKEN, UNIT),
    )


def open_dataset(path: Path) -> xr.Dataset:
    """A store as xarray reads it, lazily.

    Raises:
        RepsimError: nothing is there, it is not a capture, or it is of another schema.
    """
    if not path.exists():
        raise RepsimError(f"{path}: no such store; make one with repsim capture --out {path}")
    if not (path / "zarr.json").is_file():
        raise RepsimError(f"{path}: not a repsim capture (no zarr.json in it)")
    try:
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=False, chunks=None)
    except (OSError, ValueError, KeyError) as problem:
        raise RepsimError(f"{path}: not a repsim capture: {' '.join(str(problem).split())[:200]}") from None
    schema = dataset.attrs.get(SCHEMA_ATTRIBUTE)
    if schema is None:
        raise RepsimError(f"{path}: a zarr group, but not a repsim capture (no attribute {SCHEMA_ATTRIBUTE!r})")
    if schema != SCHEMA_VERSION:
        raise RepsimError(
            f"{path}: schema {schema}, this repsim reads {SCHEMA_VERSION}; "
            "capture again, or read it with the repsim that wrote it"
        )
    if "hidden" not in dataset:
        raise RepsimError(f"{path}: stopped before its arrays were made; remove it and capture again")
    return dataset


def write_result(path: Path, name: str, result: xr.Dataset) -> None:
    """Keeps an analysis's result with the store; a result of the same name is replaced.

    Raises:
        RepsimError: the store cannot be written to.
    """
    with _one_line(path):
        result.to_zarr(path / RESULTS / name, mode="w", zarr_format=3, consolidated=False)
