"""How much does each plan harm the model? Scores of tasks against the baseline's and chance, and
what differs for sure.

It reads the scores of examples as `repsim evaluate` stores them, and knows neither model nor task.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binomtest

from repsim import stats
from repsim.errors import DataError, PlanError, RepsimError
from repsim.plans import FAMILIES
from repsim.schema import PLAN, SCORES, TASK
from repsim.stats import results
from repsim.stats.bootstrap import LEVEL, Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READS = SCORES
VARIANT, KIND, COMPARISON = "variant", "kind", "comparison"
FIGURES = (2, *range(4, 12))  # of the paper
COMPARED = ("skip", "middle_repeat", "reverse", "random", "parallel", "looped_parallel")
SWEPT = (*COMPARED, "drop", "switch")  # families that make a curve over starts or layers
ORDERS = ("reverse", "random")
LOOPS = 3  # of the looped_parallel that is compared
KINDS = {  # of tasks, by how their names begin
    "mathematics": ("gsm8k", "arithmetic", "asdiv", "mathqa"),
    "reasoning": ("arc_easy", "arc_challenge", "winogrande", "piqa", "logiqa"),
    "semantics": ("hellaswag", "lambada", "recall", "grammar", "blimp"),
    "knowledge": ("knowledge", "mmlu", "openbookqa", "sciq", "triviaqa"),
}
OTHER = "other"  # kind of a task
GUESSED, GIVEN = "guessed from the name", "given"
SIGNIFICANT = 0.01  # of the test whether a right choice is more frequent than chance
Array = NDArray[np.float64]
Values = Mapping[str, int | str]


class ScoreSource(Protocol):
    """What this analysis asks of scores; see `repsim.Scores`.

    dataset: the store as xarray opens it.
    layers: the model's T.
    identity: with `model`.
    """

    @property
    def dataset(self) -> xr.Dataset: ...

    @property
    def layers(self) -> int: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Variant:
    """A plan as a member of a family, or the `random` plans of one start together.

    name: family text, without a seed, or what the plan was called.
    family: empty where the plan is of none.
    values: the family's parameters, without a seed.
    plans: indices of its plans; one for each seed, so an order that two seeds draw counts twice.
    """

    name: str
    family: str
    values: Values
    plans: tuple[int, ...]


@dataclass(frozen=True)
class _Task:
    """One task's scores.

    metric: the primary metric, empty where it has none.
    chance: what guessing scores; NaN without a primary metric.
    score: of the primary metric, `[plan, example]`; NaN where there is none yet.
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
    frequent right choice where that is more frequent than by chance (see `chance_of`), and counts
    as known. Medians and means are of the normalised scores over the valid tasks: those whose
    baseline is more than two standard errors above chance. Order sensitivity of a kind of task is 1
    - the mean normalised score of `reverse` and `random` where at least two layers change places.
    Families are compared by the means over tasks, at the starts both have, where at least two
    layers are affected.

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
        `nonfinite`, the number of examples without a score.
    Raises:
        RepsimError: the baseline is not in the store, no task has the metric, a task has no
            examples, or `kinds` names a task or a kind that there is not.
    """
    results.check_counts(resamples=resamples, seed=seed)
    dataset = scores.dataset
    names, texts = (dataset[name].values.astype(object).tolist() for name in ("plan_name", PLAN))
    found = variants(names, texts, scores.layers)
    tasks = _tasks(dataset, metric)
    given = _given_kinds(kinds, [task.name for task in tasks])
    kind = np.array([given.get(task.name, kind_of(task.name)) for task in tasks], object)
    raw, log_likelihood = (
        stats.strata([_mean(name, values, texts, resamples, seed) for name, values in each])
        for each in (
            [(task.name, task.score) for task in tasks],
            [(task.name, task.log_likelihood) for task in tasks],
        )
    )
    # What a difference is at most.
    most = np.array([1 if _is_share(task.score) else np.inf for task in tasks])
    bounds = np.where(np.isinf(most), -np.inf, 0), most
    value = raw.map(lambda array: _pooled(array, found))
    base = raw.map(lambda array: array[..., found[0].plans[0], :])
    chance = np.array([task.chance for task in tasks])
    valid = base.value > chance + 2 * base.standard_error
    normalised, undefined = _defined(value.map(lambda array: _normalised(array, chance)), valid)
    mean = _over_tasks(normalised, valid, np.mean)
    median = _over_tasks(normalised, valid, np.median)
    spread = _spread(raw.value, found)
    dims = (VARIANT, TASK)
    return xr.Dataset(
        {
            **_named("raw", (PLAN, TASK), raw, bounds),
            **_named("value", dims, value, bounds),
            "value_spread": (dims, spread),
            **_named(
                "difference",
                dims,
                value.map(lambda array: array - array[..., :1, :]),
                (-most, most),
            ),
            **_named("normalised", dims, normalised),
            "normalised_spread": (dims, spread / _above(base.value, chance)),
            **_named(
                "perplexity",
                dims,
                log_likelihood.map(lambda array: _perplexity(_pooled(array, found))),
            ),
            **_named("median", (VARIANT,), median),
            **_named("mean", (VARIANT,), mean),
            "metric_of": (TASK, np.array([task.metric for task in tasks], object)),
            "chance": (TASK, chance),
            "baseline": (TASK, base.value),
            "baseline_standard_error": (TASK, base.standard_error),
            "valid": (TASK, valid.astype(np.int8)),
            "examples": (TASK, np.array([task.score.shape[1] for task in tasks])),
            "nonfinite": ((PLAN, TASK), np.stack([task.nonfinite for task in tasks], -1)),
            **_order(normalised, found, np.where(valid, kind, ""), scores.layers),
            **_comparisons(mean, found, scores.layers),
        },
        coords={
            PLAN: np.array(texts, object),
            "plan_name": (PLAN, np.array(names, object)),
            **_parameters(PLAN, [_parsed(name) for name in names], scores.layers),
            VARIANT: np.array([variant.name for variant in found], object),
            **_parameters(
                VARIANT,
                [(variant.family, variant.values) for variant in found],
                scores.layers,
                "variant_",
            ),
            "variant_seeds": (VARIANT, np.array([len(variant.plans) for variant in found])),
            TASK: np.array([task.name for task in tasks], object),
            "task_kind": (TASK, kind),
            "task_kind_from": (
                TASK,
                np.array([GIVEN if task.name in given else GUESSED for task in tasks], object),
            ),
        },
        attrs={
            "analysis": "degradation",
            "description": "Scores under layer plans, against the baseline's and chance.",
            "model": scores.identity["model"],
            "layers": scores.layers,
            "metric": metric,
            "interval": f"{LEVEL:.0%} of a bootstrap over examples",
            "resamples": resamples,
            "seed": seed,
            "undefined": undefined,
            "incomplete": sum(task.incomplete for task in tasks),
        },
    ).set_coords(["family_a", "family_b"])


def plot(found: xr.Dataset, *, figure: str = "all") -> dict[str, Figure]:
    """Figures of the paper; see `repsim.plotting.degradation`.

    Args:
        found: what `compute` gave.
        figure: 2 or 4 to 11, or all of them that the plans give.
    Returns:
        `figN` → the figure.
    Raises:
        RepsimError: there is no such figure, or the plans do not give it.
    """
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    if figure == "3":
        raise RepsimError("figure=3: similarity of states, not scores; see repsim analyze cosine")
    if figure != "all" and figure not in map(str, FIGURES):
        raise RepsimError(f"figure={figure!r}: choose all, {', '.join(map(str, FIGURES))}")
    drawn: dict[str, Figure] = {}
    for number in FIGURES if figure == "all" else [int(figure)]:
        try:
            drawn[f"fig{number}"] = plotting.degradation(found, number)
        except RepsimError:
            if figure != "all":
                raise
    if not drawn:
        raise RepsimError(
            "none of figures 2 to 11: its plans are not in the store; add --plan fig2 --append"
        )
    return drawn


# Variants


def variants(names: Sequence[str], texts: Sequence[str], layers: int) -> list[Variant]:
    """What a store's plans are, the baseline first, then family by family, then the plans of no
    sweep.

    A plan that several families share is a member of each, so that no curve has a hole: backwards
    or not, one layer is one layer.

    Args:
        names: what the plans are called, `[plan]`.
        texts: their canonical texts, `[plan]`.
        layers: the model's T.
    Raises:
        RepsimError: the baseline is not among them.
    """
    place = {text: index for index, text in enumerate(texts)}
    baseline = FAMILIES["baseline"].build(layers).text
    if baseline not in place:
        raise PlanError(
            f"the baseline is not among the {len(texts)} plans evaluated; add --plan baseline --append"
        )
    parsed = [_parsed(name) for name in names]
    found = [Variant("baseline", "baseline", {}, (place[baseline],))]
    for family in SWEPT:
        found += _sweep(family, [values for of, values in parsed if of == family], place, layers)
    return found + [
        Variant(name, family, values, (index,))
        for index, (name, (family, values)) in enumerate(zip(names, parsed, strict=True))
        if family not in (*SWEPT, "baseline")
    ]


def _sweep(
    name: str, named: Sequence[Values], place: Mapping[str, int], layers: int
) -> Iterator[Variant]:
    """A family's variants, for each part or number of loops that any name has, over all starts or
    layers.
    """
    family = FAMILIES[name]
    index = family.parameters[0]
    others = {
        tuple((key, value) for key, value in values.items() if key != index.name)
        for values in named
    }
    # A grid, whose first column is called `parallel`.
    if name == "looped_parallel" and others - {(("loops", LOOPS),)}:
        others.add((("loops", 1),))
    for pool in [sorted(others)] if name == "random" else [[other] for other in sorted(others)]:
        for value in index.allowed(layers):
            texts = [
                family.build(layers, **{index.name: value}, **dict(other)).text for other in pool
            ]
            plans = tuple(place[text] for text in texts if text in place)
            asked = any(values.get(index.name) == value for values in named)
            # One lucky order is not what random orders do.
            if plans and (asked or len(plans) == len(texts)):
                values = {index.name: value, **({} if name == "random" else dict(pool[0]))}
                yield Variant(family.text(**values), name, values, plans)


def _parsed(name: str) -> tuple[str, Values]:
    """The family of a name, empty where it has none, and the parameters."""
    family, _, rest = name.partition(":")
    if family not in FAMILIES:
        return "", {}
    pairs = (pair.split("=") for pair in rest.split(",") if pair)
    return family, {key: int(value) if value.isdigit() else value for key, value in pairs}


def _parameters(
    dim: str, parsed: Sequence[tuple[str, Values]], layers: int, prefix: str = ""
) -> dict[str, Any]:
    """Families and parameters as coordinates along a dimension; -1 is none."""
    numbers = ("start", "layer", "loops") if prefix else ("start", "layer", "seed", "loops")
    found: dict[str, Any] = {
        "family": np.array([family for family, _ in parsed], object),
        **{name: np.array([values.get(name, -1) for _, values in parsed]) for name in numbers},
        "part": np.array([values.get("part", "") for _, values in parsed], object),
        "affected": np.array([_affected(family, values, layers) for family, values in parsed]),
    }
    return {f"{prefix}{name}": (dim, values) for name, values in found.items()}


def _affected(family: str, values: Values, layers: int) -> int:
    """How many layers are not run as in the baseline; -1 for plans of no family."""
    if "start" in values:
        return layers - 2 * int(values["start"]) - 1
    if family == "drop_block":
        return int(values["last"]) - int(values["first"]) + 1
    return {"baseline": 0, "drop": 1, "switch": 2, "repeat": 1}.get(family, -1)


# Tasks


def kind_of(task: str) -> str:
    """What a task asks for, guessed from its name: mathematics, reasoning, semantics, knowledge or
    other.
    """
    return next((kind for kind, names in KINDS.items() if task.startswith(names)), OTHER)


def _given_kinds(text: str | None, tasks: Sequence[str]) -> dict[str, str]:
    """Task → kind, of `gsm8k=mathematics,foo=reasoning`.

    Raises:
        RepsimError: it is written otherwise, or names a task or a kind that there is not.
    """
    given: dict[str, str] = {}
    for entry in filter(None, map(str.strip, (text or "").split(","))):
        task, equals, kind = entry.rpartition("=")
        if not equals:
            raise RepsimError(
                f"kinds={text!r}: {entry!r} is not TASK=KIND; write e.g. {tasks[0]}=reasoning"
            )
        if kind not in (*KINDS, OTHER):
            raise DataError(
                f"kinds={text!r}: {kind!r} is no kind; choose {', '.join(KINDS)} or {OTHER}"
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


def chance_of(
    choices: NDArray[Any], gold: NDArray[Any], counts: NDArray[Any] | Sequence[int] = ()
) -> float:
    """What guessing scores, 0 to 1: one in as many as there are choices, or more where the data
    favour a choice.

    Always the same choice is a better guess than any where that choice *is* right more often. Among
    a few examples the most frequent right choice always looks it: of 50 examples of 4 balanced
    choices it has 0.32 on average. So its share is chance only where an exact binomial test at one
    per cent, corrected for the number of choices, says that it is more frequent than one in as many
    as there are choices. The test is of the task's whole data set where that is known, whatever
    part of it was evaluated; else of the examples.

    Args:
        choices: `[example]`, 0 where there are none and guessing is hopeless.
        gold: the right one, `[example]`; -1 where it is not known.
        counts: how often each choice is right in the task's whole data set, `[choice]`; empty where
            that is not known.
    Source: Clopper & Pearson 1934 (the exact test); Bonferroni's correction.
    Example:
        >>> import numpy as np
        >>> few = np.array([0, 1, 1, 1, 2, 3])
        >>> chance_of(np.full(6, 4), few), chance_of(np.full(6, 4), few, [40, 110, 25, 25])
        (0.25, 0.55)
    """
    random = np.where(choices > 0, 1 / np.maximum(choices, 1), 0)
    if len(counts):
        counts = np.asarray(counts)
        total, examples, expected = (
            counts.sum(),
            counts.sum(),
            np.full(len(counts), 1 / len(counts)),
        )
    else:
        known = (choices > 0) & (gold >= 0)
        classes = np.arange(choices.max(initial=0))
        counts = np.bincount(gold[known], minlength=len(classes))
        total, examples = known.sum(), len(gold)
        expected = ((classes < choices[known, None]) * random[known, None]).sum(0) / max(total, 1)
    chance = float(random.mean())
    if not total:
        return chance
    largest = int(np.argmax(counts))
    test = binomtest(
        int(counts[largest]), int(total), float(expected[largest]), alternative="greater"
    )
    favoured = test.pvalue * len(counts) <= SIGNIFICANT
    return max(chance, float(counts[largest] / examples)) if favoured else chance


def _tasks(dataset: xr.Dataset, metric: str) -> list[_Task]:
    metrics = dataset["metric"].values.astype(object)
    aggregation = dataset["aggregation"].transpose(TASK, "metric").values.astype(object)
    means = (aggregation == "mean") & (
        dataset["higher_is_better"].transpose(TASK, "metric").values != 0
    )
    usable = dict.fromkeys((*metrics[means.any(0)].tolist(), "acc"))
    if metric not in usable:
        raise RepsimError(f"metric={metric!r}: no task here has it; choose {', '.join(usable)}")
    score = dataset["score"].transpose("metric", PLAN, "example").values
    done = dataset["done"].transpose(PLAN, "block").values.astype(bool)[:, dataset["block"].values]
    examples = dataset["example_task"].values.astype(object)
    choices, gold = dataset["example_choices"].values, dataset["example_gold"].values
    counts = _gold_counts(dataset)
    found = []
    for row, name in enumerate(dataset[TASK].values.astype(object).tolist()):
        own = np.flatnonzero(examples == name)
        if not len(own):
            raise DataError(f"task {name!r} has no examples, so there is nothing to compare")
        primary = _primary(metrics[means[row]].tolist(), metric)
        finished = done[:, own]
        each, lost = [], np.zeros(finished.shape, bool)
        for one in (metrics == primary, aggregation[row] == "perplexity"):
            values = score[one.argmax()][:, own] if one.any() else np.full(finished.shape, np.nan)
            each.append(np.where(finished & np.isfinite(values), values, np.nan))
            lost[finished & np.isnan(each[-1]) & one.any()] = True
        chance = chance_of(choices[own], gold[own], counts[row]) if primary else np.nan
        incomplete = int((~finished).any(1).sum())
        found.append(_Task(name, primary, chance, each[0], each[1], incomplete, lost.sum(1)))
    return found


def _gold_counts(dataset: xr.Dataset) -> list[NDArray[np.int64]]:
    """How often each choice is right in each task's whole data set; empty where not known, as in
    older stores.
    """
    if "gold_count" not in dataset:
        return [np.empty(0, np.int64)] * dataset.sizes[TASK]
    return [row[row >= 0] for row in dataset["gold_count"].transpose(TASK, ...).values]


def _primary(names: Sequence[str], metric: str) -> str:
    """The first of what was asked for, acc, an exact_match and any; empty where there is none."""
    preferred = [metric, "acc", *(name for name in names if name.startswith("exact_match")), *names]
    return next((name for name in preferred if name in names), "")


# Numbers


def _named(
    name: str,
    dims: tuple[str, ...],
    estimate: Estimate,
    bounds: tuple[Any, Any] = (-np.inf, np.inf),
) -> dict[str, Any]:
    with np.errstate(invalid="ignore"):  # of infinite perplexities
        return results.variables(name, dims, estimate, f"{name}_", bounds)


def _mean(name: str, values: Array, plans: Sequence[str], resamples: int, seed: int) -> Estimate:
    """Mean over a task's examples, `[plan, example]` → `[plan]`; nothing depends on what else is in
    the store.
    """
    seeds = (seed, zlib.crc32(name.encode()))
    if _is_share(values):
        coins = [zlib.crc32(plan.encode()) for plan in plans]
        return stats.bootstrap_shares(values.T, resamples=resamples, seed=seeds, coins=coins)
    mean = stats.ratio_of_sums(values.T, np.ones(values.shape[1]))
    found = stats.bootstrap(mean, values.shape[1], resamples=resamples, seed=seeds)
    # Percentiles, as ratios and exponentials of it may be far out.
    return replace(found, skewed=False)


def _is_share(values: Array) -> bool:
    """Whether the mean is a share: every value that there is is 0 or 1."""
    known = values[np.isfinite(values)]
    return bool(len(known)) and bool(np.isin(known, (0, 1)).all())


def _over_tasks(
    normalised: Estimate, valid: NDArray[np.bool_], summary: Callable[..., Array]
) -> Estimate:
    """A summary over the valid tasks, `[..., variant, task]` → `[..., variant]`; NaN if there are
    none.
    """
    if not valid.any():
        return normalised.map(lambda array: array[..., 0] * np.nan, samples=np.inf)
    examples = np.broadcast_to(normalised.samples, valid.shape)[valid].sum()
    return normalised.map(
        lambda array: summary(array[..., valid], axis=-1), samples=float(examples)
    )


def _pooled(array: Array, found: Sequence[Variant]) -> Array:
    """`[..., plan, task]` → `[..., variant, task]`, the mean over seeds."""
    pooled: Array = array[..., [variant.plans[0] for variant in found], :]
    for place, variant in enumerate(found):
        if len(variant.plans) > 1:
            pooled[..., place, :] = array[..., list(variant.plans), :].mean(-2)
    return pooled


def _spread(array: Array, found: Sequence[Variant]) -> Array:
    """`[plan, task]` → `[variant, task]`, the standard deviation over seeds; NaN for one."""
    nothing = np.full(array.shape[-1], np.nan)
    return np.stack(
        [array[list(v.plans)].std(0, ddof=1) if len(v.plans) > 1 else nothing for v in found]
    )


def _above(base: Array, chance: Array) -> Array:
    """How far the baseline is above chance; NaN where it is not."""
    return np.where(base > chance, base - chance, np.nan)


def _normalised(array: Array, chance: Array) -> Array:
    """Scores `[..., variant, task]` with the baseline first → 1 for the baseline's, 0 for chance."""
    return (array - chance) / _above(array[..., :1, :], chance)


def _defined(normalised: Estimate, valid: NDArray[np.bool_]) -> tuple[Estimate, int]:
    """Without the resamples in which a valid task's baseline is not above chance, and how many
    these are.
    """
    kept = ~np.isnan(normalised.replicates[:, 0, valid]).any(1)
    if kept.all():
        return normalised, 0
    replicates = (
        normalised.replicates[kept]
        if kept.sum() > 1
        else np.full_like(normalised.replicates, np.nan)
    )
    return Estimate(normalised.value, replicates, normalised.samples), int((~kept).sum())


def _perplexity(mean: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.exp(-mean)


def _order(
    normalised: Estimate, found: Sequence[Variant], kinds: NDArray[Any], layers: int
) -> dict[str, Any]:
    """Order sensitivity of each kind that has valid tasks, and of mathematics and reasoning less
    semantics.

    kinds: of the tasks, `[task]`; empty where a task is not valid.
    """
    members = [
        i
        for i, v in enumerate(found)
        if v.family in ORDERS and _affected(v.family, v.values, layers) >= 2
    ]
    examples = np.broadcast_to(normalised.samples, kinds.shape)

    def sensitivity(array: Array, *of: str) -> Array:
        chosen = array[..., members, :][..., np.isin(kinds, of)]
        if not chosen.shape[-1] or not members:
            return np.full(array.shape[:-2], np.nan)
        return 1 - chosen.mean((-2, -1))

    def of_each(array: Array) -> Array:
        shares = np.empty((*array.shape[:-2], len(present)))
        for column, kind in enumerate(present):
            shares[..., column] = sensitivity(array, kind)
        return shares

    def difference(array: Array) -> Array:
        return sensitivity(array, "mathematics", "reasoning") - sensitivity(array, "semantics")

    present = [kind for kind in KINDS if kind in kinds]
    of_kind = np.array([examples[kinds == kind].sum() for kind in present])
    compared = float(examples[np.isin(kinds, ("mathematics", "reasoning", "semantics"))].sum())
    return {
        **_named("order_sensitivity", (KIND,), normalised.map(of_each, of_kind)),
        **_named("order_difference", (), normalised.map(difference, compared)),
        KIND: (KIND, np.array(present, object)),
    }


def _comparisons(mean: Estimate, found: Sequence[Variant], layers: int) -> dict[str, Any]:
    """Every two families by the mean over tasks, `[variant]`, at the starts they share."""
    starts: dict[str, dict[int, int]] = {family: {} for family in COMPARED}
    for place, variant in enumerate(found):
        many = _affected(variant.family, variant.values, layers) >= 2
        if variant.family in COMPARED and many and variant.values.get("loops", LOOPS) == LOOPS:
            starts[variant.family][int(variant.values["start"])] = place
    pairs = list(combinations([family for family in COMPARED if starts[family]], 2))

    def differences(array: Array) -> Array:
        apart = np.full((*array.shape[:-1], len(pairs)), np.nan)
        for column, (a, b) in enumerate(pairs):
            if common := sorted(starts[a].keys() & starts[b].keys()):
                own, other = (
                    array[..., [starts[family][start] for start in common]] for family in (a, b)
                )
                apart[..., column] = own.mean(-1) - other.mean(-1)
        return apart

    apart = mean.map(differences)
    p_value = stats.bootstrap_p_value(apart)
    return {
        **_named("harm_difference", (COMPARISON,), apart),
        "p_value": (COMPARISON, p_value),
        "p_holm": (COMPARISON, stats.holm(p_value)),
        "family_a": (COMPARISON, np.array([a for a, _ in pairs], object)),
        "family_b": (COMPARISON, np.array([b for _, b in pairs], object)),
    }
