"""What the scores of a store mean: a task's own metric, the standard error of a mean, and what
guessing scores.

It reads the arrays that `repsim evaluate` stores, and knows neither where they lie nor what a plan
does to a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binomtest

from repsim.errors import DataError, RepsimError
from repsim.schema import BLOCK, EXAMPLE, METRIC, PLAN, TASK
from repsim.stats import results

SIGNIFICANT = 0.01  # of the test whether a right choice is more frequent than chance
MEAN, PERPLEXITY = "mean", "perplexity"  # names of lm-eval's aggregations
COLUMNS = (
    *("plan_name", "task", "metric", "value", "standard_error", "examples"),
    *("higher_is_better", "aggregation", "plan"),
)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class TaskScores:
    """One task's scores under every plan.

    metric: the task's own metric, see `choose_metric`; empty where it has none.
    chance: what guessing scores, 0 to 1; NaN without a metric.
    score: of that metric, `[plan, example]`; NaN where there is none yet.
    log_likelihood: what perplexity is made of, likewise.
    incomplete: plans under which some examples are not done.
    nonfinite: examples that are done and have no score, `[plan]`.
    """

    name: str
    metric: str
    chance: float
    score: Array
    log_likelihood: Array
    incomplete: int
    nonfinite: NDArray[np.int64]


def choose_metric(names: Sequence[str], wanted: str | None = None) -> str:
    """A task's own metric: the wanted one, `acc`, an `exact_match`, or the first, whichever of
    these it has first; empty where there is none.

    Args:
        names: the metrics to choose from, in the store's order.
        wanted: the metric that is preferred to all others.
    Example:
        >>> choose_metric(["acc", "acc_norm"], "acc_norm"), choose_metric(["f1", "exact_match,all"])
        ('acc_norm', 'exact_match,all')
    """
    exact = [name for name in names if name.startswith("exact_match")]
    preferred = [wanted, "acc", *exact, *names]
    return next((name for name in preferred if name is not None and name in names), "")


def mean_standard_error(scores: Array) -> Array:
    """Standard error of the mean over examples: √(Σ (x - x̄)² / (n - 1)) / √n.

    lm-eval's own, and NaN where it would divide by 0 or a score is missing.

    Args:
        scores: `[..., example]`.
    Returns:
        `[...]`.
    Source: lm-eval, `lm_eval.api.metrics.mean_stderr`.
    Example:
        >>> import numpy as np
        >>> round(float(mean_standard_error(np.array([1.0, 0, 1, 1]))), 4)
        0.25
    """
    examples = scores.shape[-1]
    if examples < 2:
        return np.full(scores.shape[:-1], np.nan)
    error: Array = scores.std(-1, ddof=1) / np.sqrt(examples)
    return error


def chance_level(
    choices: NDArray[Any], gold: NDArray[Any], counts: NDArray[Any] | Sequence[int] = ()
) -> float:
    """What guessing scores, 0 to 1: the mean of 1 / choices, or more where the data favour a
    choice.

    Always the same choice is a better guess than any where that choice *is* right more often. Among
    a few examples the most frequent right choice always looks as if it were: of 50 examples of 4
    balanced choices it has 0.32 on average. So its share is chance only where an exact binomial
    test at one per cent, corrected for the number of choices, says that it is more frequent than
    1 / choices. The test is of the task's whole data set where that is known, whatever part of it
    was evaluated; else of the examples.

    Args:
        choices: `[example]`, 0 where there are none and guessing is hopeless.
        gold: the right one, `[example]`; -1 where it is not known.
        counts: how often each choice is right in the task's whole data set, `[choice]`; empty where
            that is not known.
    Source: Clopper & Pearson 1934 (the exact test); Bonferroni's correction.
    Example:
        >>> import numpy as np
        >>> few = np.array([0, 1, 1, 1, 2, 3])
        >>> chance_level(np.full(6, 4), few), chance_level(np.full(6, 4), few, [40, 110, 25, 25])
        (0.25, 0.55)
    """
    random = np.where(choices > 0, 1 / np.maximum(choices, 1), 0)

    # How often each choice is right, of how many, and how often it would be by chance.
    if len(counts):
        counts = np.asarray(counts)
        total = examples = counts.sum()
        expected = np.full(len(counts), 1 / len(counts))
    else:
        known = (choices > 0) & (gold >= 0)
        classes = np.arange(choices.max(initial=0))
        counts = np.bincount(gold[known], minlength=len(classes))
        total, examples = known.sum(), len(gold)
        expected = ((classes < choices[known, None]) * random[known, None]).sum(0) / max(total, 1)
    chance = float(random.mean())
    if not total:
        return chance

    # Is the most frequent one more frequent than by chance?
    largest = int(np.argmax(counts))
    test = binomtest(
        int(counts[largest]), int(total), float(expected[largest]), alternative="greater"
    )
    is_favoured = test.pvalue * len(counts) <= SIGNIFICANT
    return max(chance, float(counts[largest] / examples)) if is_favoured else chance


def split_by_task(dataset: xr.Dataset, metric: str) -> list[TaskScores]:
    """Each task's scores by its own metric, which is a mean over examples.

    Args:
        dataset: a store of scores as xarray opens it.
        metric: the metric of tasks that have it; see `choose_metric` for the others.
    Raises:
        RepsimError: no task has the metric.
        DataError: a task has no examples.
    """
    metrics = dataset[METRIC].values.astype(object)
    aggregation = dataset["aggregation"].transpose(TASK, METRIC).values.astype(object)
    # A mean in which nothing is better than anything else is no score.
    higher = dataset["higher_is_better"].transpose(TASK, METRIC).values
    means = (aggregation == MEAN) & (higher != 0)
    _check_metric(metric, [*metrics[means.any(0)].tolist(), "acc"])

    score = dataset["score"].transpose(METRIC, PLAN, EXAMPLE).values
    done = _is_done(dataset)
    choices, gold = dataset["example_choices"].values, dataset["example_gold"].values
    counts = _gold_counts(dataset)
    tasks = []
    for row, (name, examples) in enumerate(_examples_by_task(dataset)):
        own_metric = choose_metric(metrics[means[row]].tolist(), metric)
        finished = done[:, examples]
        columns = metrics == own_metric, aggregation[row] == PERPLEXITY
        values, log_likelihood = (
            _scores_of(score[:, :, examples], column, finished) for column in columns
        )

        # An example that is done has no score where states became non-finite.
        lost = np.zeros(finished.shape, bool)
        for column, array in zip(columns, (values, log_likelihood), strict=True):
            lost |= finished & np.isnan(array) & column.any()
        chance = (
            chance_level(choices[examples], gold[examples], counts[row]) if own_metric else np.nan
        )
        incomplete = int((~finished).any(1).sum())
        tasks.append(
            TaskScores(name, own_metric, chance, values, log_likelihood, incomplete, lost.sum(1))
        )
    return tasks


def _scores_of(score: Array, is_metric: NDArray[np.bool_], finished: NDArray[np.bool_]) -> Array:
    """The first metric that is meant, `[plan, example]`; NaN where it is not finished or finite.

    score: `[metric, plan, example]`.
    is_metric: `[metric]`; none is meant where a task has no such metric.
    """
    if not is_metric.any():
        return np.full(finished.shape, np.nan)
    values = score[is_metric.argmax()]
    return np.where(finished & np.isfinite(values), values, np.nan)


def tabulate(dataset: xr.Dataset, metric: str | None = None) -> pd.DataFrame:
    """Every score of a store, one row per plan, task and metric; see `repsim.Scores.table`.

    Args:
        dataset: a store of scores as xarray opens it.
        metric: for one row per plan and task, the metric of tasks that have it; see
            `choose_metric` for the others. By default every metric of every task.
    Raises:
        RepsimError: no task has the metric.
        DataError: a task has no examples.
    Example:
        >>> import numpy as np, xarray as xr
        >>> right = np.array([[1.0, 1, 1, 0], [1, 0, 0, 0]])
        >>> scores = xr.Dataset(
        ...     {
        ...         "score": (("plan", "example", "metric"), right[..., None]),
        ...         "aggregate": (("plan", "task", "metric"), right.mean(1)[:, None, None]),
        ...         "done": (("plan", "block"), np.ones((2, 1), bool)),
        ...     },
        ...     coords={
        ...         "plan": ["0-5", "0, 1, 5"],
        ...         "plan_name": ("plan", ["baseline", "skip:start=1"]),
        ...         "task": ["piqa"],
        ...         "metric": ["acc"],
        ...         "aggregation": (("task", "metric"), [["mean"]]),
        ...         "higher_is_better": (("task", "metric"), [[1]]),
        ...         "example_task": ("example", ["piqa"] * 4),
        ...         "block": ("example", [0] * 4),
        ...     },
        ... )
        >>> tabulate(scores)[["plan_name", "task", "metric", "value", "standard_error", "examples"]]
              plan_name  task metric  value  standard_error  examples
        0      baseline  piqa    acc   0.75            0.25         4
        1  skip:start=1  piqa    acc   0.25            0.25         4
    """
    metrics = dataset[METRIC].values.astype(object)
    aggregation = dataset["aggregation"].transpose(TASK, METRIC).values.astype(object)
    higher = dataset["higher_is_better"].transpose(TASK, METRIC).values
    has_metric = higher >= 0  # -1 where a task has no such metric
    if metric is not None:
        _check_metric(metric, metrics[has_metric.any(0)].tolist())
    score = dataset["score"].transpose(METRIC, PLAN, EXAMPLE).values
    score = np.where(_is_done(dataset) & np.isfinite(score), score, np.nan)
    aggregate = dataset["aggregate"].transpose(TASK, METRIC, PLAN).values

    # One block of rows per task and metric, each over all plans.
    rows: list[dict[str, Any]] = []
    values, errors = [], []
    for task, (name, examples) in enumerate(_examples_by_task(dataset)):
        columns = np.flatnonzero(has_metric[task]).tolist()
        if metric is not None:
            chosen = choose_metric(metrics[columns].tolist(), metric)
            columns = [column for column in columns if metrics[column] == chosen]
        for column in columns:
            is_mean = aggregation[task, column] == MEAN
            error = mean_standard_error(score[column][:, examples])
            values.append(aggregate[task, column])
            errors.append(error if is_mean else np.full_like(error, np.nan))
            rows.append(
                {
                    "task": name,
                    "metric": str(metrics[column]),
                    "examples": len(examples),
                    "higher_is_better": bool(higher[task, column]),
                    "aggregation": str(aggregation[task, column]),
                }
            )

    # Plan by plan: all rows of the first, then all of the second.
    plans = dataset.sizes[PLAN]
    table = pd.DataFrame(rows * plans, columns=list(COLUMNS))
    for key, arrays in (("value", values), ("standard_error", errors)):
        table[key] = np.stack(arrays, -1).ravel() if arrays else []
    names = [str(name) for name in dataset["plan_name"].values]
    for key, texts in (("plan_name", names), (PLAN, results.plan_texts(dataset))):
        table[key] = np.repeat(texts, len(rows))
    return table


def iter_scores(dataset: xr.Dataset) -> Iterator[tuple[tuple[str, str, str], Array]]:
    """Every metric of every task, in the order of `tabulate`.

    Args:
        dataset: a store of scores as xarray opens it.
    Yields:
        Task, metric and aggregation, and what examples score, `[plan, example]`: what lm-eval
        aggregates, so log-likelihoods where the metric is a perplexity. NaN where an example is not
        finished or has no score.
    Raises:
        DataError: a task has no examples.
    """
    metrics = dataset[METRIC].values.astype(object)
    aggregation = dataset["aggregation"].transpose(TASK, METRIC).values.astype(object)
    has_metric = dataset["higher_is_better"].transpose(TASK, METRIC).values >= 0
    score = dataset["score"].transpose(METRIC, PLAN, EXAMPLE).values
    score = np.where(_is_done(dataset) & np.isfinite(score), score, np.nan)
    for row, (task, examples) in enumerate(_examples_by_task(dataset)):
        for column in np.flatnonzero(has_metric[row]).tolist():
            names = task, str(metrics[column]), str(aggregation[row, column])
            yield names, score[column][:, examples]


def perplexity_of(log_likelihood: Array) -> Array:
    """e to the mean negative log-likelihood; infinite where that is beyond all numbers."""
    with np.errstate(over="ignore"):
        return np.exp(-log_likelihood)


def _check_metric(metric: str, names: Sequence[str]) -> None:
    usable = dict.fromkeys(names)
    if metric not in usable:
        raise RepsimError(f"metric={metric!r}: no task here has it; choose {', '.join(usable)}")


def _is_done(dataset: xr.Dataset) -> NDArray[np.bool_]:
    """Which examples are finished, `[plan, example]`."""
    done = dataset["done"].transpose(PLAN, BLOCK).values.astype(bool)
    return done[:, dataset["block"].values]


def _examples_by_task(dataset: xr.Dataset) -> list[tuple[str, NDArray[np.int64]]]:
    """Each task with the indices of its examples."""
    task_of = dataset["example_task"].values.astype(object)
    groups = []
    for name in dataset[TASK].values.astype(object).tolist():
        examples = np.flatnonzero(task_of == name)
        if not len(examples):
            raise DataError(f"task {name!r} has no examples, so there is nothing to compare")
        groups.append((name, examples))
    return groups


def _gold_counts(dataset: xr.Dataset) -> list[NDArray[np.int64]]:
    """How often each choice is right in each task's whole data set; empty where not known, as in
    older stores.
    """
    if "gold_count" not in dataset:
        return [np.empty(0, np.int64)] * dataset.sizes[TASK]
    return [row[row >= 0] for row in dataset["gold_count"].transpose(TASK, ...).values]
