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
from repsim.schema import (
    BLOCK,
    CHOICE,
    EXAMPLE,
    METRIC,
    PLAN,
    REQUEST,
    SCHEMA_VERSION,
    TASK,
    Kind,
)
from repsim.storage import integrity
from repsim.storage.frame import (
    GO_ON,
    ArraySpec,
    StoreLayout,
    StoreWriter,
    open_for_writing,
    region_of,
    writable,
)
from repsim.storage.group import StoreGroup
from repsim.storage.location import Location, one_line_errors
from repsim.storage.lock import WriterLock
from repsim.storage.metadata import CHECK_ADDRESS, RESULTS, SCHEMA_ATTRIBUTE
from repsim.storage.starting import open_or_create

STRING = np.dtypes.StringDType()
# What `paper_cache` is in a store's attributes where it is not False. True in older stores is
# another procedure: each layer's own mean over the rounds of a loop, which is not the paper's.
PAPER_CACHE = "one past per parallel step"
WRITE_SECONDS = 2.0  # of work that a kill may cost, beside the plan under way


def array_specs(extent: Mapping[str, int]) -> dict[str, ArraySpec]:
    """The arrays that blocks fill, in sizes of an extent; `done` is the last, and written last."""

    def of(dims: tuple[str, ...], dtype: Any, fill: Any, chunks: Sequence[int], **more: Any) -> Any:
        shape = tuple(extent[dim] for dim in dims)
        return ArraySpec(dims, shape, np.dtype(dtype), tuple(chunks), fill, **more)

    def named(text: str, **units: str) -> dict[str, Any]:
        return {"attributes": {**units, "long_name": text}}

    likelihood = named("log-likelihood of the continuation, or of the whole text", units="nat")
    greedy = named("whether greedy decoding gives the continuation; -1 where it was not measured")
    score, aggregate = (
        named(f"lm-eval's metric of {of_what}") for of_what in ("one example", "the whole task")
    )
    return {
        "log_likelihood": of((PLAN, REQUEST), "float64", np.nan, (64, 1024), **likelihood),
        "is_greedy": of((PLAN, REQUEST), "int8", -1, (64, 4096), **greedy),
        "response": of((PLAN, REQUEST), STRING, "", (64, 256), **named("what the model wrote")),
        "score": of((PLAN, EXAMPLE, METRIC), "float64", np.nan, (64, 512, 8), **score),
        "aggregate": of((PLAN, TASK, METRIC), "float64", np.nan, (64, 64, 8), **aggregate),
        "done": of((PLAN, BLOCK), bool, False, (64, 256), is_flag=True),
    }


FILLED = array_specs(dict.fromkeys((PLAN, REQUEST, EXAMPLE, METRIC, TASK, BLOCK), 0))


@dataclass(frozen=True)
class Layout(StoreLayout):
    """What a store of scores is to hold.

    tasks: columns task, version, digest, shots, gold_count (a tuple, see
        `repsim.evaluation.tasks.Task`).
    metrics: columns task, metric, aggregation, better (whether higher is better).
    examples: columns task, doc, choices, gold, block; a block's examples are neighbours.
    requests: columns task, doc, choice, digest, example (its number); in the order of the examples.
    commands: the options of every evaluation that made it.
    paper_cache: whether texts were written with the paper's cache, `repsim.models.kv_cache`.
    generates: whether texts are written at all.
    """

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
    def groups(self) -> tuple[str, ...]:
        return (RESULTS,)

    def arrays(self) -> dict[str, ArraySpec]:
        """Answers, scores and the flag `done`, which is the last."""
        specs = array_specs(self.extent)
        return {name: spec for name, spec in specs.items() if name != "response" or self.generates}

    def coordinates(self) -> xr.Dataset:
        """Plans, tasks, examples and requests."""
        plans, examples, requests = self.plans, self.examples, self.requests
        table = self.metrics.set_index(["task", "metric"])
        grid = pd.MultiIndex.from_product([self.tasks["task"], self.metric_names])
        shape = len(self.tasks), len(self.metric_names)
        aggregation = (
            table["aggregation"].reindex(grid, fill_value="").to_numpy(object).reshape(shape)
        )
        better = (
            table["better"].astype(int).reindex(grid, fill_value=-1).to_numpy("int8").reshape(shape)
        )

        # -1: not known, or no such choice.
        gold_count = np.full((len(self.tasks), self.extent[CHOICE]), -1, np.int64)
        for row, counts in enumerate(self.tasks["gold_count"]):
            gold_count[row, : len(counts)] = counts

        def text(values: Any) -> Any:
            return np.array(list(values), STRING)

        coords: Mapping[str, Any] = {
            PLAN: (PLAN, text(named.plan.text for named in plans)),
            "plan_name": (PLAN, text(named.name for named in plans)),
            "plan_digest": (PLAN, text(named.plan.digest for named in plans)),
            TASK: (TASK, text(self.tasks["task"])),
            "task_version": (TASK, text(self.tasks["version"])),
            "task_digest": (TASK, text(self.tasks["digest"])),
            "num_fewshot": (TASK, self.tasks["shots"].to_numpy(np.int64)),
            "gold_count": ((TASK, CHOICE), gold_count),
            METRIC: (METRIC, text(self.metric_names)),
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

    def attributes(self) -> dict[str, Any]:
        return {
            SCHEMA_ATTRIBUTE: SCHEMA_VERSION,
            "kind": Kind.SCORES,
            "layers": self.layers,
            "identity": self.identity.to_dict(),
            "requests": [dict(command) for command in self.commands],
            "paper_cache": self.paper_cache and PAPER_CACHE,
            "extent": self.extent,
        }


class Writer(StoreWriter):
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
        super().__init__(place, group, lock)
        self._layout, self.values = layout, values
        self._specs = layout.arrays()
        self._arrays = {name: writable(group, name) for name in self._specs}
        self._unwritten: dict[str, set[tuple[int, ...]]] = {name: set() for name in self._specs}
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
            self._set(name, (plan, places[self._specs[name].dims[1]]), values)
        self._set("done", (plan, slice(block, block + 1)), True)
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.flush()

    def put_aggregates(self, values: NDArray[np.float64]) -> None:
        """`[plan, task, metric]`, all at once."""
        for plan in range(len(values)):
            self._set("aggregate", (plan, slice(0, values.shape[1])), values[plan])

    def _set(self, name: str, place: tuple[int, slice], values: Any) -> None:
        self.values[name][place] = values
        along = self._specs[name].chunks
        for column in range(place[1].start // along[1], -(-place[1].stop // along[1])):
            self._unwritten[name].add((place[0] // along[0], column))

    def flush(self) -> None:
        """What was put is on disk when this returns, and only then declared finished."""
        with one_line_errors(self._place, advice=GO_ON):
            self._lock.check()
            for name, spec in self._specs.items():  # `done` is the last of them
                rows, columns = spec.chunks[:2]
                for row, column in sorted(self._unwritten[name]):
                    piece = (
                        slice(row * rows, (row + 1) * rows),
                        slice(column * columns, (column + 1) * columns),
                    )
                    self._arrays[name][piece] = self.values[name][piece]
                self._unwritten[name].clear()
        self._written = time.monotonic()


def prepare(
    place: Location,
    layout: Layout,
    lock: WriterLock,
    *,
    existing: StoreGroup | None = None,
    damages: Sequence[integrity.Damage] | None = None,
) -> Writer:
    """A writer for a store that is new, or that holds a part of the layout already and grows.

    Args:
        place: the store's.
        layout: what it is to hold; what it holds already comes first in every dimension.
        lock: held.
        existing: the store as it is, None where there is none.
        damages: what of it is damaged and counts as not finished; None unless it is being repaired.
    Raises:
        RepsimError: it cannot be read or written, or is damaged.
    """
    before = {} if existing is None else read_values(existing, damages or ())
    # Every array in its new size, with what the store holds in front.
    values: dict[str, Any] = {}
    for name, spec in layout.arrays().items():
        values[name] = np.full(spec.shape, spec.fill, spec.dtype)
        if name in before:
            values[name][tuple(slice(size) for size in before[name].shape)] = before[name]
    # What was aggregated over a part of the examples no longer holds.
    for column, task in enumerate(layout.tasks["task"]):
        blocks = layout.examples["block"][layout.examples["task"] == task]
        values["aggregate"][~values["done"][:, blocks].all(1), column] = np.nan
    group = open_for_writing(place, layout, values, rewrite=damages is not None)
    return Writer(place, group, layout, lock, values)


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


def find_damages(place: Location) -> tuple[integrity.Damage, ...]:
    """Reads a store of scores whole, which is small, and names what is damaged; results of analyses
    aside.

    Raises:
        StoreDamaged: what describes the store is damaged, so that it cannot be repaired.
    """
    damages = tuple(one for one in integrity.check(place).damages if not one.is_result)
    for damage in damages:
        if is_metadata(damage):
            raise StoreDamaged(
                f"{place}: {damage}: it describes the store; evaluate again, to another --out"
            )
    return damages


def is_metadata(damage: integrity.Damage) -> bool:
    """Whether it is in what describes the store: plans, tasks, examples, requests, sizes."""
    if damage.is_result:
        return False
    return not damage.chunk or damage.array not in FILLED


def read_values(
    group: StoreGroup, damages: Sequence[integrity.Damage] = ()
) -> dict[str, NDArray[Any]]:
    """What blocks have filled so far, by the names of the arrays.

    Args:
        group: the store.
        damages: chunks that are not read; the blocks they are about count as not finished.
    Raises:
        StoreDamaged: another chunk is damaged or missing.
    """
    root: Any = group.zarr
    values: dict[str, NDArray[Any]] = {}
    with one_line_errors(group.place, "cannot be read", CHECK_ADDRESS):
        for name, spec in array_specs(group.extent).items():
            if name not in group.arrays:
                continue
            lost = {damage.chunk for damage in damages if damage.array == name}
            values[name] = np.full(spec.shape, spec.fill, spec.dtype)
            sizes = zip(spec.shape, spec.chunks, strict=True)
            for chunk in np.ndindex(*(-(-size // along) for size, along in sizes)):
                if chunk not in lost:
                    region = region_of(chunk, spec.chunks, spec.shape)
                    values[name][region] = root[name][region]
    _mark_unfinished(root, values, damages)
    return values


def _mark_unfinished(
    root: Any, values: dict[str, NDArray[Any]], damages: Sequence[integrity.Damage]
) -> None:
    """Takes blocks that lost an answer or a score for not finished, in `values["done"]`."""
    block = root["block"][: values["score"].shape[1]]
    example = root["request_example"][: values["log_likelihood"].shape[1]]
    blocks = {EXAMPLE: block, REQUEST: block[example]}
    for damage in damages:
        if damage.array not in FILLED or FILLED[damage.array].dims[1] not in blocks:
            continue
        spec = FILLED[damage.array]
        (row, column), (tall, wide) = damage.chunk[:2], spec.chunks[:2]
        lost = np.unique(blocks[spec.dims[1]][column * wide : (column + 1) * wide])
        values["done"][row * tall : (row + 1) * tall, lost] = False


def clear_damaged_flags(place: Location, damages: Sequence[integrity.Damage]) -> None:
    """Declares what damaged flags are about not finished, so that the store can be opened."""
    for damage in damages:
        if damage.array == "done":
            integrity.clear_flags(open_or_create(place), damage)
