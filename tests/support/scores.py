"""Scores of made-up tasks, as `repsim evaluate` stores them; no model, no disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from repsim.plans import resolve

LAYERS = 6
Array: TypeAlias = NDArray[np.float64]
Metric: TypeAlias = tuple[str, int, ArrayLike]
"""Name of its aggregation, whether higher is better (1, 0; -1 for no such metric), and
`[plan, example]`.
"""


@dataclass(frozen=True)
class MadeUpTask:
    """metrics: name → aggregation, whether higher is better, `[plan, example]`.
    choices, gold, block: `[example]`.
    docs: number of the first example.
    version, shots: of the task.
    """

    metrics: Mapping[str, tuple[str, int, Array]]
    choices: NDArray[Any]
    gold: NDArray[Any]
    block: NDArray[Any]
    docs: int = 0
    version: str = "1"
    shots: int = 0


@dataclass
class MadeUpScores:
    """What an analysis asks of scores."""

    dataset: xr.Dataset
    layers: int
    identity: Mapping[str, Any]


def task(
    scores: ArrayLike,
    *,
    metric: str = "acc",
    choices: ArrayLike = 4,
    gold: ArrayLike | None = None,
    block: ArrayLike = 0,
    **more: Metric,
) -> MadeUpTask:
    """A task of `[plan, example]` scores.

    more: further metrics.
    """
    values = np.array(scores, float)
    examples = values.shape[1]
    if gold is None:
        has_choices = np.all(np.array(choices) > 0)
        gold = np.arange(examples) % 4 if has_choices else np.full(examples, -1)
    metrics: dict[str, Metric] = {metric: ("mean", 1, values), **more}
    return task_of(metrics, choices=choices, gold=gold, block=block)


def task_of(
    metrics: Mapping[str, Metric],
    *,
    choices: ArrayLike = 4,
    gold: ArrayLike = 0,
    block: ArrayLike = 0,
) -> MadeUpTask:
    """A task of these metrics and no others."""
    arrays = {
        name: (aggregation, higher, np.array(values, float))
        for name, (aggregation, higher, values) in metrics.items()
    }
    examples = next(values.shape[1] for _, _, values in arrays.values())
    per_example = [np.array(np.broadcast_to(each, examples)) for each in (choices, gold, block)]
    return MadeUpTask(arrays, per_example[0], per_example[1], per_example[2])


def make_scores(
    plans: str | Sequence[str],
    tasks: Mapping[str, MadeUpTask],
    *,
    layers: int = LAYERS,
    done: ArrayLike | None = None,
    model: str = "Größe/モデル",
    weights: str = "",
) -> MadeUpScores:
    """Scores under plans that `resolve` takes.

    `aggregate` is the mean of a metric's examples, whatever the name of its aggregation.

    Args:
        plans: in the order of the tasks' scores, each plan once.
        tasks: name → task.
        layers: the model's T.
        done: `[plan, block]`; everything by default.
        model: its name.
        weights: their digest.
    """
    named = resolve(plans, layers)
    metrics = list(dict.fromkeys(name for each in tasks.values() for name in each.metrics))
    sizes = [len(each.gold) for each in tasks.values()]
    score = np.full((len(named), sum(sizes), len(metrics)), np.nan)
    aggregate = np.full((len(named), len(tasks), len(metrics)), np.nan)
    aggregation = np.full((len(tasks), len(metrics)), "", object)
    higher = np.full((len(tasks), len(metrics)), -1, np.int8)
    block = np.concatenate([each.block for each in tasks.values()])
    done = np.ones((len(named), block.max() + 1), bool) if done is None else np.array(done, bool)
    for row, (end, each) in enumerate(zip(np.cumsum(sizes), tasks.values(), strict=True)):
        for name, (how, better, values) in each.metrics.items():
            column = metrics.index(name)
            score[:, end - values.shape[1] : end, column] = values
            finished = done[:, each.block].all(1)
            aggregate[:, row, column] = np.where(finished, values.mean(1), np.nan)
            aggregation[row, column], higher[row, column] = how, better
    dataset = xr.Dataset(
        {
            "score": (("plan", "example", "metric"), score),
            "aggregate": (("plan", "task", "metric"), aggregate),
            "done": (("plan", "block"), done),
        },
        coords={
            "plan": np.array([each.plan.text for each in named], object),
            "plan_name": ("plan", np.array([each.name for each in named], object)),
            "task": np.array(list(tasks), object),
            "metric": np.array(metrics, object),
            "aggregation": (("task", "metric"), aggregation),
            "higher_is_better": (("task", "metric"), higher),
            "example_task": ("example", np.repeat(np.array(list(tasks), object), sizes)),
            "example_choices": ("example", np.concatenate([t.choices for t in tasks.values()])),
            "example_gold": ("example", np.concatenate([t.gold for t in tasks.values()])),
            "example_doc": (
                "example",
                np.concatenate([each.docs + np.arange(len(each.gold)) for each in tasks.values()]),
            ),
            "block": ("example", block),
            "task_version": ("task", np.array([t.version for t in tasks.values()], object)),
            "task_digest": ("task", np.array(["e3b0c44298fc1c14"] * len(tasks), object)),
            "num_fewshot": ("task", np.array([each.shots for each in tasks.values()])),
        },
    )
    return MadeUpScores(dataset, layers, {"model": model, "weights": weights})


def right(*counts: int, examples: int = 20) -> Array:
    """`[plan, example]`: of each plan's answers the first so many are right."""
    return (np.arange(examples) < np.array(counts)[:, None]).astype(float)


def answers(plans: int, examples: int = 60, seed: int = 0, worst: float = 0.45) -> Array:
    """Random answers of ever worse plans, the baseline's being the best."""
    generator = np.random.default_rng(seed)
    level = np.linspace(0.9, worst, plans)[:, None]
    shared = generator.uniform(size=examples)
    return (0.8 * shared + 0.2 * generator.uniform(size=(plans, examples)) < level).astype(float)
