"""Reads a store of scores: a model's answers to tasks, and lm-eval's metrics of them, under plans.

How scores are made is in `repsim.evaluation.run`, what they mean in `repsim.evaluation.task_scores`
and how they lie on disk in `repsim.storage.score_store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from repsim.errors import DataError, StoreError, printable
from repsim.evaluation.comparison import compare_with_baseline
from repsim.evaluation.task_scores import tabulate
from repsim.plans import Plan, names_of
from repsim.schema import EXAMPLE, PLAN, REQUEST, TASK, Kind
from repsim.storage.group import StoreGroup
from repsim.storage.place_names import location_of
from repsim.storage.reader import StoreReader
from repsim.storage.requests import is_task_file
from repsim.storage.score_store import PAPER_CACHE

# What `repsim info` says of a store's attribute `paper_cache`.
CACHES = {
    False: "exact",
    PAPER_CACHE: "keys and values averaged over the layers of each parallel step, as in the paper",
    True: (
        "keys and values averaged over the rounds of loops, "
        "as --paper-cache once did and the paper did not"
    ),
}
LABEL = 40  # most characters that names of tasks take in the name of a file


class Scores(StoreReader):
    """Scores of one model on some tasks under some plans."""

    kind = Kind.SCORES
    maker = "repsim evaluate"

    def __repr__(self) -> str:
        sizes = self.dataset.sizes
        counts = f"{sizes[PLAN]:,} plans x {sizes[EXAMPLE]:,} examples of {', '.join(self.tasks)}"
        remark = self.remark and f"; {self.remark}"
        return printable(f"Scores of {self.identity['model']}: {counts}; {self.path}{remark}")

    def _facts(self) -> dict[str, str]:
        identity, sizes = self.identity, self.dataset.sizes
        return {
            "model": f"{identity['model']} ({self.layers} layers, {identity['compute_dtype']})",
            "tasks": f"{', '.join(self.tasks)} ({sizes[EXAMPLE]:,} examples)",
            "plans": f"{sizes[PLAN]:,}: {names_of(self.plans)}",
            "complete": self.remark or "yes",
        }

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return [str(name) for name in self.dataset[TASK].values]

    @property
    def over(self) -> str:
        """The tasks as the commands named them, or their number where that is too long."""
        requests = self.dataset.attrs["requests"]
        names = ",".join(request["tasks"] for request in requests).split(",")
        names = [Path(name).stem if is_task_file(name) else name for name in names]
        tasks = "+".join(dict.fromkeys(names))
        return tasks if len(tasks) <= LABEL else f"{len(self.tasks)} tasks"

    @cached_property
    def nonfinite(self) -> xr.DataArray:
        """`[plan]`: how many examples have no score because a plan's states became infinite or not
        a number.
        """
        blocks = self.dataset["block"].values
        unscored = (
            np.isnan(self.dataset["score"].values).all(-1) & self.dataset["done"].values[:, blocks]
        )
        return xr.DataArray(unscored.sum(1), {PLAN: self.dataset["plan_name"].values}, (PLAN,))

    @property
    def remark(self) -> str:
        """What a reader of the numbers has to know: how much is finished; empty where all is."""
        done = self.dataset["done"].values
        return (
            ""
            if done.all()
            else f"{int(done.sum()):,} of {done.size:,} blocks of examples by plan are finished"
        )

    def table(self, metric: str | None = None) -> pd.DataFrame:
        """Scores as a table, one row per plan, task and metric.

        Columns: `plan_name` (the plan's family text, `skip:start=3`, or what else it was called),
        `task`, `metric`, `value` (lm-eval's metric of the whole task; NaN where examples are not
        finished or have no score), `standard_error` (lm-eval's own, of metrics that are means over
        examples: standard deviation / √n; NaN for other metrics, and where `value` is NaN),
        `examples` (n), `higher_is_better`, `aggregation` (lm-eval's name of how the metric is made
        of examples) and `plan` (the plan's canonical text).

        Args:
            metric: for one row per plan and task, the metric of tasks that have it; the others are
                measured by `acc`, an `exact_match`, or their first metric. By default there is a
                row for every metric of every task.
        Raises:
            RepsimError: no task has the metric.
        Example::

            table = repsim.open("scores.zarr").table("acc")
            table.pivot(index="plan_name", columns="task", values="value")
        """
        return tabulate(self.dataset, metric)

    def to_lm_eval(self, plan: str | Plan = "baseline") -> dict[str, Any]:
        """Scores under one plan as the dictionary that lm-eval gives for a model.

        It can be written as JSON and read by what reads lm-eval's results. Settings of tasks and
        groups of them are not in a store; `repsim evaluate --output-path` gives these as well.

        Args:
            plan: one that the store holds.
        Raises:
            RepsimError: the store does not hold the plan, or the plan has finished no task.
        Example::

            from lm_eval.utils import make_table

            print(make_table(repsim.open("scores.zarr").to_lm_eval("skip:start=3")))
        """
        from repsim.evaluation.lm_eval_results import to_lm_eval

        return to_lm_eval(self, plan)

    def to_frame(
        self,
        *,
        plan: str | Plan | Sequence[str | Plan] = (),
        task: str | Sequence[str] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Scores as a table with their differences to the baseline's, one row per plan, task and
        metric.

        The columns of `table`, and `difference` (value less the baseline's, of the same examples),
        `difference_standard_error`, `difference_low` and `difference_high` (95 % interval),
        `p_value` (two-sided) and `p_holm` (adjusted for all comparisons in the store, whichever
        rows are asked for). Differences and intervals are those of the analysis degradation. A
        perplexity has a bootstrap's `standard_error`, and its p-value is that of the mean
        log-likelihood. Other metrics that are no means have a value without a difference. Without
        the baseline there are no differences, and the logger `repsim` says so.

        Args:
            plan: of these plans, families, sweeps, sets or names alone; by default of all.
            task: of these tasks alone; by default of all.
            resamples: draws of the bootstrap.
            seed: of the draws.
        Raises:
            PlanError: the store holds no such plan.
            DataError: the store holds no such task.
        Example::

            table = repsim.table("scores.zarr", task="grammar")
            table[table["p_holm"] < 0.05]
        """
        rows, tasks = self.find_rows(plan), self._find_tasks(task)
        table = compare_with_baseline(self.dataset, self.layers, resamples=resamples, seed=seed)
        texts = [self.plans[row].plan.text for row in rows]
        is_wanted = table[PLAN].isin(texts) & table["task"].isin(tasks)
        return table[is_wanted].reset_index(drop=True)

    def _find_tasks(self, task: str | Sequence[str]) -> list[str]:
        """The tasks that are wanted; all where none is named."""
        wanted = [task] if isinstance(task, str) else list(task)
        for name in wanted:
            if name not in self.tasks:
                raise DataError(
                    f"task {name!r} is not in {self.path}; it holds: {', '.join(self.tasks)}"
                )
        return wanted or self.tasks

    @property
    def info(self) -> dict[str, str]:
        """What the store is, line by line."""
        identity, sizes, data = self.identity, self.dataset.sizes, self.dataset
        counts = {name: int((data["example_task"] == name).sum()) for name in self.tasks}
        versions, shots = data["task_version"].values, data["num_fewshot"].values
        unscored = {
            str(name): int(count)
            for name, count in zip(data["plan_name"].values, self.nonfinite.values, strict=True)
        }
        return {
            "store": f"{self.path} (scores)",
            "model": (
                f"{identity['model']}, {self.layers} layers, "
                f"{identity['compute_dtype']} on {identity['device']}"
            ),
            "stack": self.stack,
            **self.loading,
            "weights": identity["weights"],
            "tasks": ", ".join(
                f"{name} version {version}, {number}-shot, {count:,} examples"
                for (name, count), version, number in zip(
                    counts.items(), versions, shots, strict=True
                )
            ),
            "plans": f"{sizes[PLAN]:,}: {names_of(self.plans)}",
            "requests": f"{sizes[REQUEST]:,}",
            "complete": self.remark or "yes",
            "not finite": ", ".join(
                f"{name} ({count:,} examples)" for name, count in unscored.items() if count
            )
            or "no plan",
            "cache": CACHES[data.attrs["paper_cache"]],
            "replay": self.replay,
            **({"caution": "; ".join(self.cautions)} if self.cautions else {}),
            "versions": ", ".join(
                f"{name} {version}" for name, version in identity["versions"].items()
            ),
            "made by": "; ".join(self.commands),
        }


def open_scores(path: str | Path) -> Scores:
    """Opens a store of scores; one that is being written shows what was finished when it was
    opened.

    Args:
        path: folder or URL of the store.
    Raises:
        StoreError: nothing is there, or it holds no scores.
    """
    place = location_of(path)
    group = StoreGroup.open(place)
    if not group.holds_scores:
        raise StoreError(f"{place}: a capture, not scores; make scores with repsim evaluate")
    return Scores(group, group.dataset())
