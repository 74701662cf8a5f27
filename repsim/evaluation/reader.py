"""Scores that are on disk: gives answers of a model to benchmarks, under plans, their names.

How they are made is `repsim.evaluation.run`; how they lie on disk, `repsim.storage.score_store`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr

from repsim.errors import StoreError, printable
from repsim.plans import names_of
from repsim.schema import EXAMPLE, PLAN, REQUEST, TASK, Kind
from repsim.storage.group import StoreGroup
from repsim.storage.location import location_of
from repsim.storage.reader import StoreReader
from repsim.storage.score_store import PAPER_CACHE

# By what a store's `paper_cache` is
CACHES = {
    False: "exact",
    PAPER_CACHE: "keys and values averaged over the layers of each parallel step, as in the paper",
    True: "keys and values averaged over the rounds of loops, as --paper-cache once did and the paper did not",
}
LABEL = 40  # characters that names of tasks take in the name of a file


class Scores(StoreReader):
    """Scores of one model on some tasks under some plans."""

    kind = Kind.SCORES
    maker = "repsim evaluate"

    def __repr__(self) -> str:
        sizes = self.dataset.sizes
        counts = f"{sizes[PLAN]:,} plans x {sizes[EXAMPLE]:,} examples of {', '.join(self.tasks)}"
        return printable(
            f"Scores of {self.identity['model']}: {counts}; {self.path}{self.remark and '; ' + self.remark}"
        )

    def _facts(self) -> dict[str, str]:
        sizes = self.dataset.sizes
        return {
            "model": f"{self.identity['model']} ({self.layers} layers, {self.identity['compute_dtype']})",
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
        """The tasks as they were asked for, or how many if that is too long."""
        asked = ",".join(request["tasks"] for request in self.dataset.attrs["requests"]).split(",")
        tasks = "+".join(dict.fromkeys(asked))
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
        """What a reader of the numbers has to know: what is not finished; empty where all is."""
        done = self.dataset["done"].values
        return (
            ""
            if done.all()
            else f"{int(done.sum()):,} of {done.size:,} blocks of examples by plan are finished"
        )

    @property
    def info(self) -> dict[str, str]:
        """What the store is, line by line."""
        identity, sizes, data = self.identity, self.dataset.sizes, self.dataset
        counts = {name: int((data["example_task"] == name).sum()) for name in self.tasks}
        about = zip(
            counts.items(), data["task_version"].values, data["num_fewshot"].values, strict=True
        )
        lost = {
            str(name): int(count)
            for name, count in zip(data["plan_name"].values, self.nonfinite.values, strict=True)
        }
        return {
            "store": f"{self.path} (scores)",
            "model": f"{identity['model']}, {self.layers} layers, {identity['compute_dtype']} on {identity['device']}",
            "stack": self.stack,
            "weights": identity["weights"],
            "tasks": ", ".join(
                f"{name} version {version}, {shots}-shot, {count:,} examples"
                for (name, count), version, shots in about
            ),
            "plans": f"{sizes[PLAN]:,}: {names_of(self.plans)}",
            "requests": f"{sizes[REQUEST]:,}",
            "complete": self.remark or "yes",
            "not finite": ", ".join(
                f"{name} ({count:,} examples)" for name, count in lost.items() if count
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

    Raises:
        RepsimError: nothing is there, or it holds no scores.
    """
    place = location_of(path)
    group = StoreGroup.open(place)
    if not group.holds_scores:
        raise StoreError(f"{place}: a capture, not scores; make scores with repsim evaluate")
    return Scores(group, group.dataset())
