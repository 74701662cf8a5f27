"""Scores on disk: one zarr v3 group an evaluation, opened by xarray.

`log_likelihood[plan, request]`, `is_greedy[plan, request]` and, where text was generated,
`response[plan, request]` are what the model answered; `score[plan, example, metric]` and
`aggregate[plan, task, metric]` what lm-eval makes of it. `done[plan, block]` says which answers are
there: a block is a run of examples, and is written after them. The arrays are small: a writer holds
them whole, and puts whole chunks, each with its checksum, to disk. The root's attribute `extent`
says how much of them counts, so that an evaluation grows in one step. Knows neither models nor
tasks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray

from repsim.errors import StoreDamaged
from repsim.plans import NamedPlan
from repsim.schema import (
    BLOCK,
    CHOICE,
    EXAMPLE,
    METRIC,
    PLAN,
    REQUEST,
    SCHEMA_VERSION,
    SCORES,
    TASK,
    Identity,
    ReplayVerdict,
)
from repsim.storage import integrity, state_store
from repsim.storage.group import (
    CHECK_ADDRESS,
    RESULTS,
    SCHEMA_ATTRIBUTE,
    StoreGroup,
    array_digests,
    grow,
    is_growing,
    put_attributes,
)
from repsim.storage.location import Location, one_line_errors
from repsim.storage.lock import WriterLock

STRING = np.dtypes.StringDType()
# What blocks fill: dimensions, dtype, what stands where nothing was measured, chunks.
FILLED: dict[str, tuple[tuple[str, ...], Any, Any, tuple[int, ...]]] = {
    "log_likelihood": ((PLAN, REQUEST), np.dtype("float64"), np.nan, (64, 1024)),
    "is_greedy": ((PLAN, REQUEST), np.dtype("int8"), -1, (64, 4096)),
    "response": ((PLAN, REQUEST), STRING, "", (64, 256)),
    "score": ((PLAN, EXAMPLE, METRIC), np.dtype("float64"), np.nan, (64, 512, 8)),
    "aggregate": ((PLAN, TASK, METRIC), np.dtype("float64"), np.nan, (64, 64, 8)),
    "done": ((PLAN, BLOCK), np.dtype(bool), False, (64, 256)),
}
ABOUT = {
    "log_likelihood": {
        "units": "nat",
        "long_name": "log-likelihood of the continuation, or of the whole text",
    },
    "is_greedy": {
        "long_name": "whether greedy decoding gives the continuation; -1 where it was not measured"
    },
    "response": {"long_name": "what the model wrote"},
    "score": {"long_name": "lm-eval's metric of one example"},
    "aggregate": {"long_name": "lm-eval's metric of the whole task"},
}
# What `paper_cache` is in a store's attributes where it is not False. True in older stores is
# another procedure: each layer's own mean over the rounds of a loop, which is not the paper's.
PAPER_CACHE = "one past per parallel step"
WRITE_SECONDS = 2.0  # of work that a kill may cost, beside the plan under way


@dataclass(frozen=True)
class Layout:
    """What a store of scores is to hold.

    identity: what the numbers depend on.
    layers: the model's T.
    plans: with their names.
    tasks: columns task, version, digest, shots, gold_count (a tuple, see
    `repsim.evaluation.tasks.Benchmark`).
    metrics: columns task, metric, aggregation, better (whether higher is better).
    examples: columns task, doc, choices, gold, block; a block's examples are neighbours.
    requests: columns task, doc, choice, digest, example (its number); in the order of the examples.
    commands: the options of every evaluation that made it.
    paper_cache: whether texts were written with the paper's cache, `repsim.models.kv_cache`.
    """

    identity: Identity
    layers: int
    plans: tuple[NamedPlan, ...]
    tasks: pd.DataFrame
    metrics: pd.DataFrame
    examples: pd.DataFrame
    requests: pd.DataFrame
    commands: tuple[Mapping[str, Any], ...]
    paper_cache: bool
    generates: bool

    @cached_property
    def metric_names(self) -> list[str]:
        return list(dict.fromkeys(self.metrics["metric"]))

    @property
    def blocks(self) -> int:
        return int(self.examples["block"].max()) + 1

    @property
    def extent(self) -> dict[str, int]:
        """Sizes of the store's dimensions."""
        sizes = {PLAN: len(self.plans), TASK: len(self.tasks), METRIC: len(self.metric_names)}
        sizes[CHOICE] = max(1, *map(len, self.tasks["gold_count"]))
        return {
            **sizes,
            EXAMPLE: len(self.examples),
            REQUEST: len(self.requests),
            BLOCK: self.blocks,
        }

    def examples_of(self, block: int) -> slice:
        """Where a block's examples stand."""
        first, last = np.searchsorted(self.examples["block"].to_numpy(), (block, block + 1))
        return slice(int(first), int(last))

    def requests_of(self, examples: slice) -> slice:
        """Where the requests of neighbouring examples stand."""
        first, last = np.searchsorted(
            self.requests["example"].to_numpy(), (examples.start, examples.stop)
        )
        return slice(int(first), int(last))

    @property
    def filled(self) -> list[str]:
        """Names of the arrays that blocks fill."""
        return [name for name in FILLED if name != "response" or self.generates]


class Writer:
    """Puts answers and scores into a store, block by block; `prepare` makes one.

    values: every array that blocks fill, whole.
    """

    def __init__(
        self,
        place: Location,
        group: zarr.Group,
        layout: Layout,
        lock: WriterLock,
        values: dict[str, Any],
    ) -> None:
        self._place, self._layout, self._lock, self.values = place, layout, lock, values
        self._group = group
        self._arrays = {name: state_store.writable(group, name) for name in layout.filled}
        self._unwritten: dict[str, set[tuple[int, ...]]] = {name: set() for name in layout.filled}
        self._written = time.monotonic()

    @property
    def done(self) -> NDArray[np.bool_]:
        """`[plan, block]`, what is finished."""
        found: NDArray[np.bool_] = self.values["done"]
        return found

    def put(self, plan: int, block: int, **answers: Any) -> None:
        """One plan's answers of one block, by the names of the arrays; on disk within seconds of
        work.

        Raises:
            RepsimError: the disk is full, or another writer has taken the store over.
        """
        examples = self._layout.examples_of(block)
        places = {EXAMPLE: examples, REQUEST: self._layout.requests_of(examples)}
        for name, values in answers.items():
            self._set(name, (plan, places[FILLED[name][0][1]]), values)
        self._set("done", (plan, slice(block, block + 1)), True)
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.flush()

    def note_replay(self, verdict: ReplayVerdict) -> None:
        """Keeps how far the replay was proven to be the model."""
        state_store.note_replay(self._place, self._group, verdict)

    def put_aggregates(self, values: NDArray[np.float64]) -> None:
        """`[plan, task, metric]`, all at once."""
        for plan in range(len(values)):
            self._set("aggregate", (plan, slice(0, values.shape[1])), values[plan])

    def _set(self, name: str, place: tuple[int, slice], values: Any) -> None:
        self.values[name][place] = values
        along = FILLED[name][3]
        for column in range(place[1].start // along[1], -(-place[1].stop // along[1])):
            self._unwritten[name].add((place[0] // along[0], column))

    def flush(self) -> None:
        """What was put is on disk when this returns, and only then declared finished."""
        with one_line_errors(self._place, advice=state_store.GO_ON):
            self._lock.check()
            for name in self._layout.filled:  # `done` is the last of them
                rows, columns = FILLED[name][3][:2]
                for row, column in sorted(self._unwritten[name]):
                    piece = (
                        slice(row * rows, (row + 1) * rows),
                        slice(column * columns, (column + 1) * columns),
                    )
                    self._arrays[name][piece] = self.values[name][piece]
                self._unwritten[name].clear()
        self._written = time.monotonic()


def prepare(place: Location, layout: Layout, lock: WriterLock, *, repair: bool = False) -> Writer:
    """A writer for a store that is new, or that holds a part of the layout already and grows.

    Args:
        place: the store's.
        layout: what it is to hold; what it holds already comes first in every dimension.
        lock: held.
        repair: take what is damaged for not finished.
    Raises:
        RepsimError: it cannot be read or written, or is damaged.
    """
    before = _read_existing(place, repair) if state_store.exists(place) else {}
    values: dict[str, Any] = {}
    for name in layout.filled:
        dims, dtype, empty, _ = FILLED[name]
        values[name] = np.full([layout.extent[dim] for dim in dims], empty, dtype)
        if name in before:
            values[name][tuple(slice(size) for size in before[name].shape)] = before[name]
    # What was aggregated of a part of the examples is no more.
    for column, task in enumerate(layout.tasks["task"]):
        blocks = layout.examples["block"][layout.examples["task"] == task]
        values["aggregate"][~values["done"][:, blocks].all(1), column] = np.nan
    with one_line_errors(place):
        group = state_store.open_or_create(place)
        attributes = group.attrs.asdict()
        same = all(attributes.get(key) == value for key, value in _attributes(layout).items())
        if repair or not same or is_growing(attributes):
            described = coordinates(layout)
            names = [*map(str, described.variables), *values]
            grow(place, group, {name: layout.extent for name in names if name in group})
            for key, variable in described.variables.items():
                dims = tuple(map(str, variable.dims))
                state_store.create_or_resize(group, str(key), dims, variable.shape, variable.dtype)[
                    ...
                ] = variable.values
            # `done` comes first: what is lost must not pass for finished if this is cut short
            for name, array in sorted(values.items(), key=lambda item: item[0] != "done"):
                dims, dtype, empty, chunks = FILLED[name]
                about = ABOUT.get(name)
                sized = state_store.create_or_resize(
                    group, name, dims, array.shape, dtype, chunks, attributes=about, empty=empty
                )
                sized[...] = array
            group.require_group(RESULTS)
            names_of_coordinates = [
                str(key) for key in described.coords if key not in (PLAN, TASK, METRIC)
            ]
            described_by = {
                "coordinates": " ".join([*names_of_coordinates, "done"]),
                "arrays": array_digests(place, names),
            }
            put_attributes(group, {**_attributes(layout), **described_by})
    return Writer(place, group, layout, lock, values)


def _attributes(layout: Layout) -> dict[str, Any]:
    return {
        SCHEMA_ATTRIBUTE: SCHEMA_VERSION,
        "kind": SCORES,
        "layers": layout.layers,
        "identity": layout.identity.to_dict(),
        "requests": [dict(command) for command in layout.commands],
        "paper_cache": layout.paper_cache and PAPER_CACHE,
        "extent": layout.extent,
    }


def coordinates(layout: Layout) -> xr.Dataset:
    """Plans, tasks, examples and requests."""
    plans, examples, requests = layout.plans, layout.examples, layout.requests
    table = layout.metrics.set_index(["task", "metric"])
    grid = pd.MultiIndex.from_product([layout.tasks["task"], layout.metric_names])
    shape = len(layout.tasks), len(layout.metric_names)
    aggregation = table["aggregation"].reindex(grid, fill_value="").to_numpy(object).reshape(shape)
    better = (
        table["better"].astype(int).reindex(grid, fill_value=-1).to_numpy("int8").reshape(shape)
    )

    # -1: not known, or no such choice.
    gold_count = np.full((len(layout.tasks), layout.extent[CHOICE]), -1, np.int64)
    for row, counts in enumerate(layout.tasks["gold_count"]):
        gold_count[row, : len(counts)] = counts

    def text(values: Any) -> Any:
        return np.array(list(values), STRING)

    coords: Mapping[str, Any] = {
        PLAN: (PLAN, text(named.plan.text for named in plans)),
        "plan_name": (PLAN, text(named.name for named in plans)),
        "plan_digest": (PLAN, text(named.plan.digest for named in plans)),
        TASK: (TASK, text(layout.tasks["task"])),
        "task_version": (TASK, text(layout.tasks["version"])),
        "task_digest": (TASK, text(layout.tasks["digest"])),
        "num_fewshot": (TASK, layout.tasks["shots"].to_numpy(np.int64)),
        "gold_count": ((TASK, CHOICE), gold_count),
        METRIC: (METRIC, text(layout.metric_names)),
        "aggregation": ((TASK, METRIC), aggregation.astype(STRING)),
        "higher_is_better": ((TASK, METRIC), better),
        "example_task": (EXAMPLE, text(examples["task"])),
        **{
            name: (EXAMPLE, examples[column].to_numpy(np.int64))
            for name, column in (
                ("example_doc", "doc"),
                ("example_choices", "choices"),
                ("example_gold", "gold"),
                ("block", "block"),
            )
        },
        "request_task": (REQUEST, text(requests["task"])),
        "request_doc": (REQUEST, requests["doc"].to_numpy(np.int64)),
        "request_choice": (REQUEST, requests["choice"].to_numpy(np.int64)),
        "request_digest": (REQUEST, text(requests["digest"])),
        "request_example": (REQUEST, requests["example"].to_numpy(np.int64)),
    }
    return xr.Dataset(coords=coords)


def tables(dataset: xr.Dataset) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Tasks, metrics, examples and requests of a store, as `Layout` has them."""
    data = dataset[[*dataset.coords]].load()

    def table(**columns: str) -> pd.DataFrame:
        return pd.DataFrame(
            {name: np.asarray(data[of].values.tolist()) for name, of in columns.items()}
        ).astype({name: object for name, of in columns.items() if data[of].dtype.kind not in "iub"})

    tasks = table(task=TASK, version="task_version", digest="task_digest", shots="num_fewshot")
    tasks["gold_count"] = [()] * len(tasks)  # as stores from before it was kept
    if "gold_count" in data:
        tasks["gold_count"] = [tuple(row[row >= 0].tolist()) for row in data["gold_count"].values]
    examples = table(
        task="example_task",
        doc="example_doc",
        choices="example_choices",
        gold="example_gold",
        block="block",
    )
    requests = table(
        task="request_task",
        doc="request_doc",
        choice="request_choice",
        digest="request_digest",
        example="request_example",
    )
    rows = [
        {"task": str(task), "metric": str(metric), "aggregation": str(name), "better": bool(better)}
        for task, names, betters in zip(
            data[TASK].values,
            data["aggregation"].values,
            data["higher_is_better"].values,
            strict=True,
        )
        for metric, name, better in zip(data[METRIC].values, names, betters, strict=True)
        if better >= 0
    ]
    return tasks, pd.DataFrame(rows), examples, requests


def check(place: Location, *, repair: bool) -> None:
    """Refuses a damaged store; it is small enough to be read whole. Nothing is finished where
    `done` is repaired.

    Raises:
        RepsimError: what describes the store is damaged, or anything is and `repair` was not asked
            for.
    """
    for damage in integrity.check(place).damages:
        if damage.is_result:
            continue
        if is_metadata(damage):
            raise StoreDamaged(
                f"{place}: {damage}: it describes the store; evaluate again, to another --out"
            )
        if not repair:
            raise StoreDamaged(f"{place}: {damage}; add --repair")
        if damage.array == "done":
            integrity.clear_flags(state_store.open_or_create(place), damage)


def is_metadata(damage: integrity.Damage) -> bool:
    """Whether it is in what describes the store: plans, tasks, examples, requests, sizes."""
    return not damage.is_result and (not damage.chunk or damage.array not in FILLED)


def _read_existing(place: Location, repair: bool) -> dict[str, Any]:
    """What blocks have filled so far; with `repair` without what is damaged, which then counts as
    not finished.
    """
    opened = StoreGroup.open(place)
    group: Any = opened.zarr
    damages: Sequence[integrity.Damage] = integrity.check(place).damages if repair else ()
    found: dict[str, Any] = {}
    with one_line_errors(place, "cannot be read", CHECK_ADDRESS):
        for name, (dims, dtype, empty, chunks) in FILLED.items():
            if name not in opened.arrays:
                continue
            array: Any = group[name]
            shape = [opened.extent[dim] for dim in dims]
            lost = {damage.chunk for damage in damages if damage.array == name}
            found[name] = np.full(shape, empty, dtype)
            for chunk in np.ndindex(
                *(-(-size // along) for size, along in zip(shape, chunks, strict=True))
            ):
                if chunk in lost:
                    continue
                corner = zip(chunk, chunks, shape, strict=True)
                region = tuple(
                    slice(i * along, min((i + 1) * along, size)) for i, along, size in corner
                )
                found[name][region] = array[region]
    _forget(group, found, damages)
    return found


def _forget(group: zarr.Group, found: dict[str, Any], damages: Sequence[integrity.Damage]) -> None:
    """Blocks that lost an answer or a score count as not finished."""
    coordinates: Any = group
    block = coordinates["block"][: found["score"].shape[1]]
    blocks = {
        EXAMPLE: block,
        REQUEST: block[coordinates["request_example"][: found["log_likelihood"].shape[1]]],
    }
    for damage in damages:
        dims, _, _, chunks = FILLED.get(damage.array, ((), None, None, ()))
        if len(dims) > 1 and dims[1] in blocks:
            (row, column), (tall, wide) = damage.chunk[:2], chunks[:2]
            lost = np.unique(blocks[dims[1]][column * wide : (column + 1) * wide])
            found["done"][row * tall : (row + 1) * tall, lost] = False
