"""What several stores of scores have in common: plans by name, tasks by version, examples by their
number.

It reads the arrays that `repsim evaluate` stores, and computes nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repsim.errors import DataError, PlanError
from repsim.evaluation.task_scores import TaskScores, split_by_task
from repsim.plans import Plan, resolve
from repsim.registry import ScoreSource
from repsim.schema import BLOCK, PLAN, TASK
from repsim.stats import results

# What tasks of one name have to agree in, in this order, and what to call it.
SETTINGS = {"task_version": "version", "num_fewshot": "shots", "task_digest": "settings"}
DIGEST_DIGITS = 6
Array = NDArray[np.float64]


@dataclass(frozen=True)
class MatchedPlans:
    """Plans that every store has.

    names: `[plan]`.
    texts: the canonical text in each store, `[store][plan]`; models of other depths have others.
    rows: where each store has it, `[store][plan]`.
    left_out: names that not every store has.
    """

    names: list[str]
    texts: list[list[str]]
    rows: list[list[int]]
    left_out: list[str]


@dataclass(frozen=True)
class MatchedTask:
    """A task that every store has in the same version, on the examples that every store holds.

    metric: its own, see `repsim.evaluation.task_scores.choose_metric`; more of it is better.
    chance: what guessing scores, 0 to 1, by the first store's examples.
    score: of that metric, `[store, plan, example]`, in the order of the first store; NaN where
        there is none.
    finished: whether it is done in every store, `[plan, example]`.
    unpaired: examples that not every store holds.
    """

    name: str
    metric: str
    chance: float
    score: Array
    finished: NDArray[np.bool_]
    unpaired: int


def match_plans(scores: Sequence[ScoreSource], asked: Sequence[str | Plan] = ()) -> MatchedPlans:
    """The plans that every store has, of those asked for or of all, in the first store's order.

    Plans are the same by name; in models of one depth, by the layers that they run.

    Raises:
        PlanError: there is none, or one asked for does not fit a model.
    """
    stored = [results.plan_texts(each.dataset) for each in scores]
    wanted = [_texts_by_name(each, asked) for each in scores]
    if len({each.layers for each in scores}) == 1:
        first_names = {text: name for name, text in reversed(wanted[0].items())}
        wanted = [
            {first_names.get(text, name): text for name, text in each.items()} for each in wanted
        ]
    every_name = list(dict.fromkeys(name for each in wanted for name in each))
    names = [
        name
        for name in every_name
        if all(each.get(name) in texts for each, texts in zip(wanted, stored, strict=True))
    ]
    if not names:
        asked_for = f"--plan {' '.join(map(str, asked))}: " if asked else ""
        raise PlanError(f"{asked_for}no plan that every store has; evaluate it with --append")
    texts = [[each[name] for name in names] for each in wanted]
    rows = [
        [present.index(text) for text in chosen]
        for present, chosen in zip(stored, texts, strict=True)
    ]
    return MatchedPlans(names, texts, rows, [name for name in every_name if name not in names])


def match_tasks(
    scores: Sequence[ScoreSource], plans: MatchedPlans, metric: str = "acc"
) -> tuple[list[MatchedTask], dict[str, str]]:
    """The tasks that every store has in the same version, and why others are left out.

    Args:
        scores: the stores.
        plans: whose scores are wanted.
        metric: the metric of tasks that have it; see `choose_metric` for the others.
    Returns:
        The tasks in the first store's order; name → reason of the others.
    Raises:
        DataError: there is no such task.
        RepsimError: no task of a store has the metric.
    """
    tables = [{task.name: task for task in split_by_task(each.dataset, metric)} for each in scores]
    tasks: list[MatchedTask] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(name for table in tables for name in table):
        if not all(name in table for table in tables):
            left_out[name] = "not in every store"
            continue
        of_stores = [table[name] for table in tables]
        places, unpaired = _pair_examples(scores, name)
        if reason := _difference(scores, of_stores, places):
            left_out[name] = reason
        else:
            tasks.append(_match_task(scores, plans, of_stores, places, unpaired))
    if not tasks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise DataError(f"no task that every store has alike ({reasons}); evaluate the same tasks")
    return tasks, left_out


def _texts_by_name(scores: ScoreSource, asked: Sequence[str | Plan]) -> dict[str, str]:
    """Name → canonical text of the plans asked for, or of all that a store has."""
    if asked:
        return {named.name: named.plan.text for named in resolve(asked, scores.layers)}
    names, texts = scores.dataset["plan_name"].values, results.plan_texts(scores.dataset)
    return {str(name): str(text) for name, text in zip(names, texts, strict=True)}


def _pair_examples(scores: Sequence[ScoreSource], task: str) -> tuple[list[NDArray[np.int64]], int]:
    """Where each store has the examples of a task that every store holds, and how many others there
    are.

    Returns:
        `[example]` for each store, indices into its dimension `example`.
    """
    places = []
    for each in scores:
        examples = np.flatnonzero(each.dataset["example_task"].values.astype(object) == task)
        docs = each.dataset["example_doc"].values[examples].tolist()
        places.append(dict(zip(docs, examples.tolist(), strict=True)))
    common = [doc for doc in places[0] if all(doc in place for place in places)]
    every_doc = {doc for place in places for doc in place}
    rows = [np.array([place[doc] for doc in common], np.int64) for place in places]
    return rows, len(every_doc) - len(common)


def _difference(
    scores: Sequence[ScoreSource],
    tasks: Sequence[TaskScores],
    places: Sequence[NDArray[np.int64]],
) -> str:
    """In what the stores' tasks of one name differ; empty where in nothing."""
    row_of = [
        each.dataset[TASK].values.astype(object).tolist().index(tasks[0].name) for each in scores
    ]
    for name, word in SETTINGS.items():
        values = [
            str(each.dataset[name].values[row]) for each, row in zip(scores, row_of, strict=True)
        ]
        if len(set(values)) > 1:
            shown = (value[:DIGEST_DIGITS] if name == "task_digest" else value for value in values)
            return f"other {word} ({', '.join(shown)})"
    metrics = [task.metric for task in tasks]
    if len(set(metrics)) > 1:
        return f"other metrics ({', '.join(metric or 'none' for metric in metrics)})"
    if not metrics[0]:
        return "no metric that is a mean over examples"
    if not len(places[0]):
        return "no example in common"
    for name in ("example_choices", "example_gold"):
        values_of = [
            each.dataset[name].values[place] for each, place in zip(scores, places, strict=True)
        ]
        if any((values != values_of[0]).any() for values in values_of):
            return "other questions under the same numbers"
    return ""


def _match_task(
    scores: Sequence[ScoreSource],
    plans: MatchedPlans,
    tasks: Sequence[TaskScores],
    places: Sequence[NDArray[np.int64]],
    unpaired: int,
) -> MatchedTask:
    """A task whose settings agree, on the examples at these places."""
    name = tasks[0].name
    score, finished = [], []
    for each, rows, place, task in zip(scores, plans.rows, places, tasks, strict=True):
        data = each.dataset
        # The task's scores are those of its own examples, in the store's order.
        own = np.flatnonzero(data["example_task"].values.astype(object) == name)
        score.append(task.score[rows][:, np.searchsorted(own, place)])
        done = data["done"].transpose(PLAN, BLOCK).values.astype(bool)[rows]
        finished.append(done[:, data["block"].values[place]])
    return MatchedTask(
        name,
        tasks[0].metric,
        tasks[0].chance,
        np.stack(score),
        np.logical_and.reduce(finished),
        unpaired,
    )
