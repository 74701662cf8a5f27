"""Which of several models scores higher, or has one become better? Differences of stores' scores,
paired over the examples that all have answered.

It knows neither model nor task. `compute` calls one function per stage, and each can be called by
itself: `match_plans` and `match_tasks` of `repsim.evaluation.matched_scores`, and here
`estimate_task` and `average_tasks`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from repsim import stats
from repsim.errors import RepsimError
from repsim.evaluation.matched_scores import MatchedTask, match_plans, match_tasks
from repsim.evaluation.normalised_scores import estimate_mean, is_share
from repsim.plans import Plan
from repsim.registry import AnalysisKind, ScoreSource
from repsim.schema import PLAN, STORE, TASK
from repsim.stats import results
from repsim.stats.bootstrap import LEVEL, Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = AnalysisKind.SCORES_TOGETHER
MEAN = "mean over tasks"
MOST_ROWS = 12  # of a summary with rows for each task
MOST_NAMED = 8  # plans in a message
# Of a summary: an estimate with its ends, and the p-value.
COLUMNS = (
    *("score", "score_low", "score_high"),
    *("difference", "difference_low", "difference_high", "p_holm"),
)
Array = NDArray[np.float64]

log = logging.getLogger("repsim")


def compute(
    *scores: ScoreSource,
    metric: str = "acc",
    plan: Sequence[str | Plan] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Scores of two or more stores on the examples that all have answered, and their paired
    differences to the first.

    A difference is a store's mean score less the first store's, over the same examples. Both are
    resampled by the same draws of examples, so that what makes an example hard for both cancels:
    where answers agree, the interval is narrower than that of two samples. Shares of right answers
    are resampled as in the analysis degradation, and a store's own score and interval are the ones
    that it gives where all of the store's examples are paired.

    Plans are the same by name (`skip:start=3` runs other layers in a model of another depth), and
    in models of one depth by the layers that they run. Tasks are the same if version, number of
    shots, settings and metric agree, and examples by their number in the task. Tasks that differ,
    and plans that only some stores have, are left out and named. Where a plan's states became
    non-finite, its scores and what is made of them are NaN.

    Of a single task there is no mean over tasks. `p_holm` is adjusted for all comparisons together:
    every plan, task, mean and store. P-values are Student's t of a difference over its standard
    error (`repsim.stats.student_p_value`).

    Args:
        scores: what `repsim evaluate` stored; the first is what the others are compared with.
        metric: the metric of tasks that have it; the others are measured by acc, exact_match, or
            their first mean.
        plan: plans to compare; by default all that every store has.
        resamples: draws of the bootstrap.
        seed: of the draws.
    Returns:
        Over (plan, task, store) `score` and `difference`, and over (plan, store) `mean` and
        `mean_difference`, each with `_standard_error`, `_low` and `_high`, and `p_value`
        (two-sided), `p_holm`, `mean_p_value` and `mean_p_holm`; of the first store, differences and
        p-values are NaN. Over (plan, task) `examples`, the number of pairs; over task `metric_of`
        and `chance`; the coordinate `plan_text` over (plan, store).
    Raises:
        RepsimError: fewer than two stores, no plan or task in common, or no task has the metric.
    """
    results.check_counts(resamples=resamples, seed=seed)
    if len(scores) < 2:
        raise RepsimError("compare: one store; name two or more, first the one to compare with")

    # What the stores have in common.
    plans = match_plans(scores, plan)
    tasks, left_out = match_tasks(scores, plans, metric)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    _warn_of_left_out(plans.left_out, reasons)

    # Per task and over tasks: every store's score, and its difference to the first store's.
    keys = name_columns(scores, plans.texts)
    estimates = [
        estimate_task(task, plans.texts, keys, resamples=resamples, seed=seed) for task in tasks
    ]
    score, difference = (stats.strata(of_tasks) for of_tasks in zip(*estimates, strict=True))
    mean, mean_difference = map(average_tasks, (score, difference))

    # Which differences are certain, all comparisons together.
    p_value, mean_p_value = map(stats.student_p_value, (difference, mean_difference))
    adjusted = stats.holm(np.concatenate([p_value.ravel(), mean_p_value.ravel()]))
    p_holm, mean_p_holm = np.split(adjusted, [p_value.size])

    # A share is 0 to 1, and a difference of shares -1 to 1; other scores have no bounds.
    most = np.array([1 if is_share(task.score) else np.inf for task in tasks])
    least = np.where(np.isinf(most), -np.inf, 0)
    least_mean, most_mean = least.min(), most.max()
    dims, of_mean = (PLAN, STORE, TASK), (PLAN, STORE)
    return xr.Dataset(
        {
            **_label("score", dims, score, least, most),
            **_label("difference", dims, difference, -most, most),
            "p_value": (dims, p_value),
            "p_holm": (dims, p_holm.reshape(p_value.shape)),
            **_label("mean", of_mean, mean, least_mean, most_mean),
            **_label("mean_difference", of_mean, mean_difference, -most_mean, most_mean),
            "mean_p_value": (of_mean, mean_p_value),
            "mean_p_holm": (of_mean, mean_p_holm.reshape(mean_p_value.shape)),
            "examples": ((TASK, PLAN), np.stack([task.finished.sum(1) for task in tasks])),
            "metric_of": (TASK, np.array([task.metric for task in tasks], object)),
            "chance": (TASK, np.array([task.chance for task in tasks])),
        },
        coords={
            PLAN: np.array(plans.names, object),
            "plan_text": ((STORE, PLAN), np.array(plans.texts, object)),
            TASK: np.array([task.name for task in tasks], object),
            STORE: np.array(name_stores(scores), object),
        },
        attrs={
            "analysis": "compare",
            "description": "Scores on common examples, and paired differences to the first store.",
            "model": ", ".join(dict.fromkeys(str(each.identity["model"]) for each in scores)),
            "metric": metric,
            "interval": f"{LEVEL:.0%} of a bootstrap over examples",
            "resamples": resamples,
            "seed": seed,
            "tasks_left_out": reasons,
            "plans_left_out": ", ".join(plans.left_out),
            "unpaired": sum(task.unpaired for task in tasks),
        },
    ).transpose(PLAN, TASK, STORE)


def plot(result: xr.Dataset) -> Figure:
    """Every store's scores side by side, and their differences; see `repsim.plotting.compare`.

    Args:
        result: what `compute` gave.
    """
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.compare(result)


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """The scores as a table, the best store of each plan and task first.

    Args:
        result: what `compute` gave.
    Returns:
        Columns plan, task (the last one is the mean over tasks), store, score, score_low,
        score_high, difference, difference_low, difference_high and p_holm. Of several tasks with
        more than `MOST_ROWS` rows in all, only the mean.
    """
    has_mean = result.sizes[TASK] > 1
    of_tasks = result[list(COLUMNS)].to_dataframe().reset_index()
    tables = [] if has_mean and len(of_tasks) > MOST_ROWS else [of_tasks]
    if has_mean:
        means = {_name_of_mean(name): name for name in COLUMNS}
        of_mean = result[list(means)].to_dataframe().reset_index()
        tables.append(of_mean.rename(columns=means).assign(task=MEAN))
    table = pd.concat(tables, ignore_index=True)

    # Plans and tasks keep their order.
    for name, order in ((PLAN, [*result[PLAN].values]), (TASK, [*result[TASK].values, MEAN])):
        table[name] = pd.Categorical(table[name], order)
    table = table.sort_values(
        [PLAN, TASK, "score"], ascending=[True, True, False], kind="stable", ignore_index=True
    )
    return table[[PLAN, TASK, STORE, *COLUMNS]].astype({PLAN: str, TASK: str})


# Stages


def name_columns(scores: Sequence[ScoreSource], texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """A name for each column of a paired bootstrap, `[store][plan]`: weights and the plan's text.

    Draws are seeded by names, so that the difference of two stores is the same whatever other
    stores are there, and its negative where they change places. Stores of the same weights get a
    number as well: with the same coins, their interval would have no width where answers agree.
    """
    seen = Counter[str]()
    names = []
    for each, of_plans in zip(scores, texts, strict=True):
        weights = str(each.identity.get("weights", ""))
        number = f" ({seen[weights]})" if seen[weights] else ""
        seen[weights] += 1
        names.append([f"{text} of {weights}{number}" for text in of_plans])
    return names


def estimate_task(
    task: MatchedTask,
    texts: Sequence[Sequence[str]],
    keys: Sequence[Sequence[str]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """Every store's score in a task, and its difference to the first store's, paired.

    Under each plan, of the examples that are finished in every store; NaN where there are none.

    Args:
        task: on the examples that every store holds.
        texts: of the plans, `[store][plan]`, which seed the scores' draws, as in the analysis
            degradation.
        keys: what seeds those of the differences, `[store][plan]`; see `name_columns`.
        resamples: draws of the bootstrap.
        seed: of the draws.
    Returns:
        `[plan, store]` each; of the first store, the difference is NaN.
    Example:
        >>> import numpy as np
        >>> right = np.array([[[1.0, 1, 0, 1]], [[1, 0, 0, 0]]])
        >>> task = MatchedTask("piqa", "acc", 0.5, right, np.ones((1, 4), bool), 0)
        >>> names = [["0-5"], ["0-7"]]
        >>> score, difference = estimate_task(task, names, names, resamples=20)
        >>> score.value.tolist(), difference.value.tolist()
        ([[0.75, 0.25]], [[nan, -0.5]])
    """
    stores, plans = task.score.shape[:2]
    score, difference = (
        Estimate(
            np.full((plans, stores), np.nan),
            np.full((resamples, plans, stores), np.nan),
            np.broadcast_to(task.finished.sum(1)[:, None].astype(np.float64), (plans, stores)),
        )
        for _ in range(2)
    )

    # Plans with the same examples share their draws.
    for examples, rows in _group_alike(task.finished):
        if not examples.any():
            continue
        columns = task.score[:, rows][..., examples].reshape(stores * len(rows), -1)
        names = [of_store[row] for named in (texts, keys) for of_store in named for row in rows]
        estimate = estimate_mean(
            task.name, np.concatenate([columns, columns]), names, resamples=resamples, seed=seed
        )
        for array, of_score, of_difference in (
            (estimate.value, score.value, difference.value),
            (estimate.replicates, score.replicates, difference.replicates),
        ):
            apart, paired = np.split(array.reshape(*array.shape[:-1], 2, stores, -1), 2, axis=-3)
            of_score[..., rows, :] = apart[..., 0, :, :].swapaxes(-1, -2)
            others = paired[..., 0, 1:, :] - paired[..., 0, :1, :]
            of_difference[..., rows, 1:] = others.swapaxes(-1, -2)
    return score, difference


def average_tasks(estimate: Estimate) -> Estimate:
    """The mean over tasks, which are independent strata: `[..., task]` → `[...]`; NaN of a single
    task, which has no need of it.

    Args:
        estimate: scores, or differences.
    Example:
        >>> import numpy as np
        >>> scores = Estimate(np.array([0.5, 0.25]), np.array([[0.4, 0.2], [0.6, 0.3]]))
        >>> average_tasks(scores).value.tolist()
        0.375
    """
    if estimate.value.shape[-1] == 1:
        return estimate.map(lambda array: array[..., 0] * np.nan, samples=np.inf)
    samples = np.broadcast_to(estimate.samples, estimate.value.shape).sum(-1)
    return estimate.map(lambda array: array.mean(-1), samples=samples)


def name_stores(scores: Sequence[ScoreSource]) -> list[str]:
    """What to call each store where it has no label: its model, and of those alike a number.

    Example:
        >>> from types import SimpleNamespace
        >>> before, after = (SimpleNamespace(identity={"model": "gpt2"}) for _ in range(2))
        >>> name_stores([before, after])
        ['gpt2', 'gpt2 (2)']
    """
    seen = Counter[str]()
    names = []
    for each in scores:
        model = str(each.identity["model"])
        seen[model] += 1
        names.append(f"{model} ({seen[model]})" if seen[model] > 1 else model)
    return names


def _name_of_mean(name: str) -> str:
    """The variable over plans and stores that is the mean of one over tasks: `mean_low` of
    `score_low`.
    """
    return name.replace("score", "mean") if name.startswith("score") else f"mean_{name}"


def _group_alike(finished: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], list[int]]]:
    """Examples that are finished, `[example]`, and the plans of which it is these."""
    groups: dict[bytes, list[int]] = {}
    for row, examples in enumerate(finished):
        groups.setdefault(examples.tobytes(), []).append(row)
    return [(finished[rows[0]], rows) for rows in groups.values()]


# Words


def _label(
    name: str, dims: Sequence[str], estimate: Estimate, least: Any, most: Any
) -> Mapping[str, Any]:
    """An estimate as `name`, `name_standard_error`, `name_low` and `name_high`, in its bounds."""
    # The bounds are of tasks, which are the last axis.
    return results.variables(name, dims, estimate, f"{name}_", (least, most))


def _warn_of_left_out(plans: Sequence[str], tasks: str) -> None:
    if tasks:
        log.warning("compare: tasks left out: %s", tasks)
    if plans:
        more = f" and {len(plans) - MOST_NAMED} more" * (len(plans) > MOST_NAMED)
        names = ", ".join(plans[:MOST_NAMED])
        log.warning("compare: plans left out, not in every store: %s%s", names, more)
