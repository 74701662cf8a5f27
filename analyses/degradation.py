"""How much does each plan harm the model? Scores of tasks against the baseline's and chance, and
which differences are certain.

It reads the scores of examples as `repsim evaluate` stores them, and knows neither model nor task.
`compute` calls one function per stage, and each can be called by itself: `split_by_task`,
`estimate_means`, `normalise` and `summarise_tasks` of `repsim.evaluation`, and here `pool_seeds`,
`measure_order_sensitivity` and `compare_families`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from repsim import stats
from repsim.errors import DataError, RepsimError
from repsim.evaluation.normalised_scores import (
    above_chance,
    estimate_means,
    is_share,
    normalise,
    summarise_tasks,
)
from repsim.evaluation.task_scores import split_by_task
from repsim.registry import AnalysisKind, ScoreSource
from repsim.schema import PLAN, TASK
from repsim.stats import results, summaries
from repsim.stats.bootstrap import LEVEL, Estimate
from repsim.studies.painters import (
    FIGURE_NUMBERS,
    LOOPS,
    MIDDLE_FAMILIES,
    ORDER_FAMILIES,
    OTHER_KIND,
    TASK_KINDS,
    Values,
    Variant,
    count_affected,
    find_variants,
    guess_kind,
    parse_family_text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = AnalysisKind.SCORES
HEAT_MAPS = True  # figure 10, for --vmin and --vmax
FigureName = Literal["all", "plans", "2", "4", "5", "6", "7", "8", "9", "10", "11"]
VARIANT, TASK_KIND, COMPARISON = "variant", "kind", "comparison"
MOST_SUMMARISED = 12  # families
GUESSED, GIVEN = "guessed from the name", "given"  # where a task's kind is from
Array = NDArray[np.float64]


def compute(
    scores: ScoreSource,
    *,
    metric: str = "acc",
    kinds: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Scores of every plan, and how they compare with the baseline's, over tasks and between
    families.

    A normalised score is (score - chance) / (baseline - chance): 1 is the baseline, 0 is guessing,
    below it worse than guessing. Chance is the mean of 1 / choices, or the share of the most
    frequent right choice where that is more frequent than by chance (see
    `repsim.evaluation.task_scores.chance_level`), and counts as known. Medians and means are of the
    normalised scores over the valid tasks: those whose baseline is more than two standard errors
    above chance. Order sensitivity of a kind of task is 1 - the mean normalised score of `reverse`
    and `random` where at least two layers change places. Families are compared by the means over
    tasks, at the starts both have, where at least two layers are affected.

    Nothing unmeasured is passed over: a task that is not finished under a plan, or whose states
    became non-finite, is NaN there, and so is what is made of it. A variant is there if its plans
    are in the store under whatever name, and its family has given a name to any plan; `random`
    takes the seeds that any name has.

    Standard errors and intervals come from a bootstrap over the examples of each task, the same
    draws for all plans, so that differences are paired. Shares of right answers, and what is made
    of them, are resampled so that no interval has zero width because all of a few answers are right
    or wrong (`repsim.stats.bootstrap_shares`). Which tasks are valid, and chance, stay as they are.
    A draw in which a valid task's baseline is not above chance has no normalised scores and is left
    out of them; `undefined` counts these. Where that happens to other tasks, normalised scores have
    no interval.

    Args:
        scores: what `repsim evaluate` stored, the baseline among it.
        metric: the metric of tasks that have it; the others are measured by acc, exact_match, or
            their first mean.
        kinds: what tasks ask for, where their names do not say it: `TASK=KIND`, several with
            commas; KIND is mathematics, reasoning, semantics, knowledge or other.
        resamples: draws of the bootstrap.
        seed: of the draws.
    Returns:
        Each with `_standard_error`, `_low` and `_high`: `raw` over (plan, task); `value`,
        `difference` (from the baseline), `normalised` and `perplexity` (of seeds: the geometric
        mean) over (variant, task); `median` and `mean` over variant; `order_sensitivity` over kind
        and `order_difference` (mathematics and reasoning together less semantics);
        `harm_difference` over comparison (family_a less family_b: above 0, family_a harms less).
        Further `value_spread` and `normalised_spread` (standard deviation over seeds), `p_value`
        (two-sided) and `p_holm` (adjusted for all comparisons); over task `metric_of`, `chance`,
        `baseline`, `baseline_standard_error`, `valid` (1 or 0), `examples` and the coordinates
        `task_kind` and `task_kind_from` ("given" or "guessed from the name"); over (plan, task)
        `nonfinite`, the number of examples without a score. `plan` is the plans' names, and
        `plan_text` their canonical texts.
    Raises:
        RepsimError: the baseline is not in the store, no task has the metric, a task has no
            examples, or `kinds` names a task or a kind that there is not.
    """
    results.check_counts(resamples=resamples, seed=seed)

    # What is in the store: plans as variants of families, and each task's scores and kind.
    dataset, layers = scores.dataset, scores.layers
    names, texts = dataset["plan_name"].values.astype(object).tolist(), results.plan_texts(dataset)
    variants = find_variants(names, texts, layers)
    tasks = split_by_task(dataset, metric)
    task_names = [task.name for task in tasks]
    given = parse_kinds(kinds, task_names)
    kind = np.array([given.get(name, guess_kind(name)) for name in task_names], object)

    # Means over examples, of plans and of variants.
    draws: dict[str, Any] = {"resamples": resamples, "seed": seed}
    raw = estimate_means({task.name: task.score for task in tasks}, texts, **draws)
    log_likelihood = estimate_means(
        {task.name: task.log_likelihood for task in tasks}, texts, **draws
    )
    value, pooled_log_likelihood = (
        estimate.map(lambda array: pool_seeds(array, variants))
        for estimate in (raw, log_likelihood)
    )
    spread = _spread_over_seeds(raw.value, variants)

    # Against the baseline, which is the first variant, and chance.
    chance = np.array([task.chance for task in tasks])
    baseline = value.map(lambda array: array[..., 0, :])
    normalised, valid, undefined = normalise(value, chance)

    # Over the valid tasks, and between families.
    mean = summarise_tasks(normalised, valid, np.mean)
    median = summarise_tasks(normalised, valid, np.median)
    order = measure_order_sensitivity(normalised, variants, np.where(valid, kind, ""), layers)
    comparisons = compare_families(mean, variants, layers)

    # A share is 0 to 1, and a difference of shares -1 to 1; other scores have no bounds.
    most = np.array([1 if is_share(task.score) else np.inf for task in tasks])
    bounds = np.where(np.isinf(most), -np.inf, 0), most
    dims = (VARIANT, TASK)
    result = xr.Dataset(
        {
            **_label("raw", (PLAN, TASK), raw, bounds),
            **_label("value", dims, value, bounds),
            "value_spread": (dims, spread),
            **_label(
                "difference",
                dims,
                value.map(lambda array: array - array[..., :1, :]),
                (-most, most),
            ),
            **_label("normalised", dims, normalised),
            "normalised_spread": (dims, spread / above_chance(baseline.value, chance)),
            **_label("perplexity", dims, pooled_log_likelihood.map(_perplexity)),
            **_label("median", (VARIANT,), median),
            **_label("mean", (VARIANT,), mean),
            "metric_of": (TASK, np.array([task.metric for task in tasks], object)),
            "chance": (TASK, chance),
            "baseline": (TASK, baseline.value),
            "baseline_standard_error": (TASK, baseline.standard_error),
            "valid": (TASK, valid.astype(np.int8)),
            "examples": (TASK, np.array([task.score.shape[1] for task in tasks])),
            "nonfinite": ((PLAN, TASK), np.stack([task.nonfinite for task in tasks], -1)),
            **order.variables,
            **comparisons.variables,
        },
        coords={
            PLAN: np.array(texts, object),
            "plan_name": (PLAN, np.array(names, object)),
            **family_coordinates(PLAN, [parse_family_text(name) for name in names], layers),
            **_variant_coordinates(variants, layers),
            TASK: np.array(task_names, object),
            "task_kind": (TASK, kind),
            "task_kind_from": (
                TASK,
                np.array([GIVEN if name in given else GUESSED for name in task_names], object),
            ),
        },
        attrs={
            "analysis": "degradation",
            "description": "Scores under layer plans, against the baseline's and chance.",
            "model": scores.identity["model"],
            "layers": layers,
            "metric": metric,
            "interval": f"{LEVEL:.0%} of a bootstrap over examples",
            "resamples": resamples,
            "seed": seed,
            "undefined": undefined,
            "incomplete": sum(task.incomplete for task in tasks),
        },
    )
    return results.name_plans(result.set_coords(["family_a", "family_b"]))


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """Per family of plans the mean normalised score: on average, of its best and of its worst plan;
    below, the order sensitivity of each kind of task.
    """
    # Plans of one family with the same part and number of loops; a plan of no family by itself.
    names, families = (result[name].values.tolist() for name in (VARIANT, "variant_family"))
    parts, loops = (result[f"variant_{name}"].values.tolist() for name in ("part", "loops"))
    groups: dict[str, list[int]] = {}
    for row, family in enumerate(families):
        label = family + f" {parts[row]}" * bool(parts[row]) + f" x{loops[row]}" * (loops[row] > 0)
        if family != "baseline":
            groups.setdefault(label if family else names[row], []).append(row)

    rows = []
    for label, members in groups.items():
        scores = result["mean"].values[members]
        line: dict[str, Any] = {"family": label, "plans": len(members), "average": scores.mean()}
        if not np.isnan(scores).all():
            ends = ("best", np.nanargmax(scores)), ("worst", np.nanargmin(scores))
            for title, place in ends[: len(members)]:
                row = members[int(place)]
                numbers = summaries.pick(result, "mean", variant=row)
                line |= {key.replace("mean", title): number for key, number in numbers.items()}
                line[f"{title}_at"] = names[row].partition(":")[2]
        rows.append(line)
    table = pd.DataFrame(rows[:MOST_SUMMARISED])
    more = len(rows) - len(table)
    table.attrs["note"] = ". ".join(
        filter(None, [_describe_order(result), f"{more} more families or plans" * (more > 0)])
    )
    return table


def _describe_order(result: xr.Dataset) -> str:
    """What is below a summary: the tasks it is over, and order sensitivities."""
    tasks = result[TASK].values[result["valid"].values == 1].tolist()
    over = f"mean normalised score over {', '.join(tasks) or 'no task'} (baseline 1, chance 0)"
    kinds = result[TASK_KIND].values.tolist()
    sensitivities = [
        f"{kind} {summaries.with_interval('order_sensitivity', numbers)}"
        for row, kind in enumerate(kinds)
        if not np.isnan(
            (numbers := summaries.pick(result, "order_sensitivity", kind=row))["order_sensitivity"]
        )
    ]
    return over + "; order sensitivity: " * bool(sensitivities) + ", ".join(sensitivities)


def plot(result: xr.Dataset, *, figure: FigureName = "all") -> dict[str, Figure]:
    """Figures of the paper, and one of any plans; see `repsim.plotting.degradation` and
    `repsim.plotting.plan_scores`.

    Args:
        result: what `compute` gave.
        figure: 2 or 4 to 11, of the paper (3 is of states, see cosine); plans: a dot with its
            interval for each plan; all: the paper's that the plans give, and plans where there are
            others, or none of the paper's.
    Returns:
        `figN` or `plans` → the figure.
    Raises:
        RepsimError: there is no such figure, or the plans do not give it.
    """
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    check_figure(figure)
    drawn: dict[str, Figure] = {}
    left_out: dict[str, list[str]] = {}  # reason -> figures
    for number in FIGURE_NUMBERS if figure == "all" else filter(str.isdigit, [figure]):
        try:
            drawn[f"fig{number}"] = plotting.degradation(result, int(number))
        except plotting.NotDrawn as problem:
            if figure != "all":
                raise
            left_out.setdefault(problem.reason, []).append(f"fig{number}")
    if figure == "plans" or (
        figure == "all" and (not drawn or plotting.find_own_plans(result).any())
    ):
        drawn["plans"] = plotting.plan_scores(result)

    # What is not there, and why.
    if left_out:
        reasons = [f"{', '.join(names)} ({reason})" for reason, names in left_out.items()]
        hint = "; evaluate with e.g. --plan fig4 --append" * (plotting.MISSING_PLANS in left_out)
        plotting.remark(f"not drawn: {', '.join(reasons)}{hint}")
    return drawn


def check_figure(figure: str) -> None:
    """Refuses a figure that there is not.

    Raises:
        RepsimError: there is no such figure of scores.
    """
    if figure == "3":
        raise RepsimError("figure=3: similarity of states, not scores; see repsim analyze cosine")
    if figure not in get_args(FigureName):
        raise RepsimError(f"figure={figure!r}: choose {', '.join(get_args(FigureName))}")


# Kinds of tasks


def parse_kinds(text: str | None, tasks: Sequence[str]) -> dict[str, str]:
    """Task → kind, of `gsm8k=mathematics,foo=reasoning`.

    Args:
        text: None or empty for none.
        tasks: the tasks that there are.
    Raises:
        RepsimError: it is written otherwise, or gives a task two kinds.
        DataError: it names a task or a kind that there is not.
    Example:
        >>> parse_kinds("foo=reasoning, bar=other", ["foo", "bar", "piqa"])
        {'foo': 'reasoning', 'bar': 'other'}
    """
    given: dict[str, str] = {}
    for entry in filter(None, map(str.strip, (text or "").split(","))):
        task, equals, kind = entry.rpartition("=")
        if not equals:
            raise RepsimError(
                f"kinds={text!r}: {entry!r} is not TASK=KIND; write e.g. {tasks[0]}=reasoning"
            )
        if kind not in (*TASK_KINDS, OTHER_KIND):
            raise DataError(
                f"kinds={text!r}: {kind!r} is no kind; "
                f"choose {', '.join(TASK_KINDS)} or {OTHER_KIND}"
            )
        if task not in tasks:
            raise DataError(
                f"kinds={text!r}: no task {task!r} in the store; it holds {', '.join(tasks)}"
            )
        if given.setdefault(task, kind) != kind:
            raise RepsimError(
                f"kinds={text!r}: {task} is both {given[task]} and {kind}; name it once"
            )
    return given


# Seeds of a random order


def pool_seeds(array: Array, variants: Sequence[Variant]) -> Array:
    """The mean over each variant's seeds: `[..., plan, task]` → `[..., variant, task]`."""
    pooled: Array = array[..., [variant.plans[0] for variant in variants], :]
    for row, variant in enumerate(variants):
        if len(variant.plans) > 1:
            pooled[..., row, :] = array[..., list(variant.plans), :].mean(-2)
    return pooled


def _spread_over_seeds(array: Array, variants: Sequence[Variant]) -> Array:
    """`[plan, task]` → `[variant, task]`, the standard deviation over seeds; NaN for one."""
    one_seed = np.full(array.shape[-1], np.nan)
    return np.stack(
        [
            array[list(variant.plans)].std(0, ddof=1) if len(variant.plans) > 1 else one_seed
            for variant in variants
        ]
    )


# Between kinds of tasks, and between families


def measure_order_sensitivity(
    normalised: Estimate, variants: Sequence[Variant], kinds: NDArray[Any], layers: int
) -> xr.Dataset:
    """How much a change of nothing but the order of layers harms each kind of task.

    1 - the mean normalised score over the kind's tasks and over the variants of `reverse` and
    `random` in which at least two layers change places: 0 if order does not matter, 1 if without it
    the model guesses.

    Args:
        normalised: scores, `[variant, task]`.
        variants: `[variant]`.
        kinds: of the tasks, `[task]`; empty where a task is not valid.
        layers: the model's T.
    Returns:
        `order_sensitivity` over the kinds that have valid tasks, and `order_difference`:
        mathematics and reasoning together less semantics.
    """
    rows = [
        row
        for row, variant in enumerate(variants)
        if variant.family in ORDER_FAMILIES
        and count_affected(variant.family, variant.values, layers) >= 2
    ]
    examples = np.broadcast_to(normalised.samples, kinds.shape)
    present = [kind for kind in TASK_KINDS if kind in kinds]

    def sensitivity(array: Array, *of: str) -> Array:
        chosen = array[..., rows, :][..., np.isin(kinds, of)]
        if not chosen.shape[-1] or not rows:
            return np.full(array.shape[:-2], np.nan)
        return 1 - chosen.mean((-2, -1))

    def by_kind(array: Array) -> Array:
        shares = np.empty((*array.shape[:-2], len(present)))
        for column, kind in enumerate(present):
            shares[..., column] = sensitivity(array, kind)
        return shares

    def difference(array: Array) -> Array:
        return sensitivity(array, "mathematics", "reasoning") - sensitivity(array, "semantics")

    examples_of_kind = np.array([examples[kinds == kind].sum() for kind in present])
    compared = float(examples[np.isin(kinds, ("mathematics", "reasoning", "semantics"))].sum())
    return xr.Dataset(
        {
            **_label("order_sensitivity", (TASK_KIND,), normalised.map(by_kind, examples_of_kind)),
            **_label("order_difference", (), normalised.map(difference, compared)),
            TASK_KIND: (TASK_KIND, np.array(present, object)),
        }
    )


def compare_families(mean: Estimate, variants: Sequence[Variant], layers: int) -> xr.Dataset:
    """Which of two families of the middle harms less, for every two: the difference of their mean
    scores at the starts that both have.

    Starts at which fewer than two layers are affected do not count: there families are alike.

    Args:
        mean: over tasks, `[variant]`.
        variants: `[variant]`.
        layers: the model's T.
    Returns:
        Over comparison: `harm_difference` (family_a less family_b: above 0, family_a harms less),
        `p_value` (two-sided), `p_holm` (adjusted for all comparisons), `family_a`, `family_b`.
    """
    # Each family's variants by their starts.
    rows: dict[str, dict[int, int]] = {family: {} for family in MIDDLE_FAMILIES}
    for row, variant in enumerate(variants):
        affects_several = count_affected(variant.family, variant.values, layers) >= 2
        is_compared = variant.values.get("loops", LOOPS) == LOOPS
        if variant.family in MIDDLE_FAMILIES and affects_several and is_compared:
            rows[variant.family][int(variant.values["start"])] = row
    pairs = list(combinations([family for family in MIDDLE_FAMILIES if rows[family]], 2))

    def differences(array: Array) -> Array:
        columns = np.full((*array.shape[:-1], len(pairs)), np.nan)
        for column, (a, b) in enumerate(pairs):
            if shared := sorted(rows[a].keys() & rows[b].keys()):
                of_a, of_b = (
                    array[..., [rows[family][start] for start in shared]] for family in (a, b)
                )
                columns[..., column] = of_a.mean(-1) - of_b.mean(-1)
        return columns

    difference = mean.map(differences)
    p_value = stats.bootstrap_p_value(difference)
    return xr.Dataset(
        {
            **_label("harm_difference", (COMPARISON,), difference),
            "p_value": (COMPARISON, p_value),
            "p_holm": (COMPARISON, stats.holm(p_value)),
            "family_a": (COMPARISON, np.array([a for a, _ in pairs], object)),
            "family_b": (COMPARISON, np.array([b for _, b in pairs], object)),
        }
    )


# Names of numbers


def family_coordinates(
    dim: str, parsed: Sequence[tuple[str, Values]], layers: int, prefix: str = ""
) -> dict[str, Any]:
    """Families and parameters as coordinates along a dimension; -1 or empty is none.

    Args:
        dim: the dimension.
        parsed: family and parameters, `[dim]`; see `parse_family_text`.
        layers: the model's T.
        prefix: before the names; with one, there is no seed, as variants have none.
    """
    numbers = ("start", "layer", "loops") if prefix else ("start", "layer", "seed", "loops")
    affected = [count_affected(family, values, layers) for family, values in parsed]
    coordinates: dict[str, Any] = {
        "family": np.array([family for family, _ in parsed], object),
        **{name: np.array([values.get(name, -1) for _, values in parsed]) for name in numbers},
        "part": np.array([values.get("part", "") for _, values in parsed], object),
        "affected": np.array(affected),
    }
    return {f"{prefix}{name}": (dim, values) for name, values in coordinates.items()}


def _variant_coordinates(variants: Sequence[Variant], layers: int) -> dict[str, Any]:
    parsed = [(variant.family, variant.values) for variant in variants]
    return {
        VARIANT: np.array([variant.name for variant in variants], object),
        **family_coordinates(VARIANT, parsed, layers, "variant_"),
        "variant_seeds": (VARIANT, np.array([len(variant.plans) for variant in variants])),
    }


def _perplexity(mean: Array) -> Array:
    """e to the mean negative log-likelihood; infinite where that is beyond all numbers."""
    with np.errstate(over="ignore"):
        return np.exp(-mean)


def _label(
    name: str,
    dims: tuple[str, ...],
    estimate: Estimate,
    bounds: tuple[Any, Any] = (-np.inf, np.inf),
) -> dict[str, Any]:
    """An estimate as `name`, `name_standard_error`, `name_low` and `name_high`."""
    with np.errstate(invalid="ignore"):  # of infinite perplexities
        return results.variables(name, dims, estimate, f"{name}_", bounds)
