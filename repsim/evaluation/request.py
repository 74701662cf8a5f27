"""What one evaluation asks for: plans, tasks and their examples, of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from repsim.data.packing import cut_prefix_trees
from repsim.errors import StoreError
from repsim.evaluation.generation import MOST_TEXTS_AT_ONCE
from repsim.evaluation.prefix_sharing import windows_of
from repsim.plans import NamedPlan, Plan

if TYPE_CHECKING:
    from repsim.evaluation.questions import Example
    from repsim.evaluation.tasks import Task
    from repsim.models import Model
    from repsim.storage.score_store import Layout

ExampleKey = tuple[str, int]
"""A task's name, and the number of an example in it."""


class EvaluationRequest:
    """What one call of `evaluate` asks for.

    model, plans, tasks: as loaded and resolved; tasks by name.
    command: the options, as a store keeps them.
    paper_cache: whether texts are written with the paper's cache.
    batch_tokens: about so many tokens make a block.
    examples: by task and number, in order.
    proven: plans whose planned model has been proven right in this run.
    """

    def __init__(
        self,
        model: Model,
        plans: Sequence[NamedPlan],
        tasks: Sequence[Task],
        command: Mapping[str, Any],
        *,
        paper_cache: bool,
        batch_tokens: int,
    ) -> None:
        self.model, self.plans, self.command = model, tuple(plans), dict(command)
        self.paper_cache, self.batch_tokens = paper_cache, batch_tokens
        self.tasks = {task.name: task for task in tasks}
        self.examples: dict[ExampleKey, Example] = {
            (example.task, example.doc): example for task in tasks for example in task.examples
        }
        self.proven: set[Plan] = set()

    @property
    def generates(self) -> bool:
        """Whether any task has texts written."""
        return any(task.generates for task in self.tasks.values())

    @property
    def task_table(self) -> pd.DataFrame:
        """The tasks as `score_store.Layout` has them."""
        rows = [
            (task.name, task.version, task.digest, task.shots, task.gold_count)
            for task in self.tasks.values()
        ]
        return pd.DataFrame(rows, columns=["task", "version", "digest", "shots", "gold_count"])

    @property
    def metric_table(self) -> pd.DataFrame:
        """The tasks' metrics, likewise."""
        rows = [
            (task.name, metric, aggregation, better)
            for task in self.tasks.values()
            for metric, (aggregation, better) in task.metrics.items()
        ]
        return pd.DataFrame(rows, columns=["task", "metric", "aggregation", "better"])

    def example_table(self, keys: Sequence[ExampleKey], first_block: int) -> pd.DataFrame:
        """These examples, likewise, with blocks counted from `first_block` on."""
        blocks = [first_block + block for block in self._blocks(keys)]
        rows = [
            (*key, self.examples[key].choices, self.examples[key].gold, block)
            for key, block in zip(keys, blocks, strict=True)
        ]
        return pd.DataFrame(rows, columns=["task", "doc", "choices", "gold", "block"])

    def request_table(self, examples: pd.DataFrame) -> pd.DataFrame:
        """The requests of these examples, which are numbered by their index."""
        rows = [
            (task, doc, request.choice, request.digest, number)
            for number, task, doc in examples[["task", "doc"]].itertuples()
            for request in self.examples[task, doc].requests
        ]
        return pd.DataFrame(rows, columns=["task", "doc", "choice", "digest", "example"])

    def _blocks(self, keys: Sequence[ExampleKey]) -> list[int]:
        """The block of each example, from 0 on: neighbours of one task that run together."""
        sizes: list[int] = []
        for name, group in groupby(keys, key=itemgetter(0)):
            task_keys = list(group)
            if self.tasks[name].generates:
                firsts = range(0, len(task_keys), MOST_TEXTS_AT_ONCE)
                sizes += [min(MOST_TEXTS_AT_ONCE, len(task_keys) - first) for first in firsts]
            else:
                windows = [windows_of([self.examples[key]]) for key in task_keys]
                sizes += cut_prefix_trees(windows, self.batch_tokens)
        blocks: list[int] = np.repeat(np.arange(len(sizes)), sizes).tolist()
        return blocks

    def missing_in(self, layout: Layout, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What is asked for and not done, `[plan, block]`.

        Raises:
            StoreError: a part of a block is asked for, whose examples are computed together.
        """
        plans = {named.plan for named in self.plans}
        is_wanted = np.array([named.plan in plans for named in layout.plans])
        # A block is wanted if any of its examples is.
        keys = layout.examples[["task", "doc"]].itertuples(index=False, name=None)
        block = layout.examples["block"].to_numpy()
        total, wanted = (
            np.bincount(block),
            np.bincount(block, [key in self.examples for key in keys]),
        )
        missing: NDArray[np.bool_] = is_wanted[:, None] & (wanted > 0) & ~done
        if missing[:, wanted < total].any():
            raise StoreError(
                "the store holds more examples of a task than are asked for, and new plans need "
                "them all; ask for at least as many (--limit)"
            )
        return missing
