"""Degradation: scores of tasks under plans, by hand, against loops over resamples and against
closed forms.
"""

import zlib
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from repsim.analyses import degradation
from repsim.analyses.degradation import chance_of, kind_of, variants
from repsim.errors import RepsimError
from repsim.plans import FAMILIES, resolve
from repsim.stats import results
from repsim.stats.bootstrap import bootstrap_shares

T = 6
NAN = np.nan
ESTIMATES = ("raw", "value", "difference", "normalised", "perplexity", "median", "mean")


def task(scores, *, metric="acc", choices=4, gold=None, block=0, **more):
    """A task of `[plan, example]` scores; `more`: further metrics, as (aggregation, higher is
    better, scores).
    """
    scores = np.array(scores, float)
    examples = scores.shape[1]
    if gold is None:
        gold = np.arange(examples) % 4 if np.all(np.array(choices) > 0) else np.full(examples, -1)
    return {
        "metrics": {
            metric: ("mean", 1, scores),
            **{name: (a, h, np.array(x, float)) for name, (a, h, x) in more.items()},
        },
        "choices": np.broadcast_to(choices, examples),
        "gold": np.array(gold),
        "block": np.broadcast_to(block, examples),
    }


def scored(plans, tasks, *, layers=T, done=None):
    """What `repsim.evaluation.run.Scores` gives of plans `resolve` takes, and tasks as `task` makes
    them.
    """
    named = resolve(plans, layers)
    metrics = list(dict.fromkeys(name for one in tasks.values() for name in one["metrics"]))
    sizes = [len(one["gold"]) for one in tasks.values()]
    score = np.full((len(named), sum(sizes), len(metrics)), NAN)
    aggregation, higher = (
        np.full((len(tasks), len(metrics)), "", object),
        np.full((len(tasks), len(metrics)), -1),
    )
    ends = np.cumsum(sizes)
    for row, (end, one) in enumerate(zip(ends, tasks.values(), strict=True)):
        for name, (how, better, values) in one["metrics"].items():
            column = metrics.index(name)
            score[:, end - values.shape[1] : end, column] = values
            aggregation[row, column], higher[row, column] = how, better
    block = np.concatenate([one["block"] for one in tasks.values()])
    done = np.ones((len(named), block.max() + 1), bool) if done is None else np.array(done)
    dataset = xr.Dataset(
        {"score": (("plan", "example", "metric"), score), "done": (("plan", "block"), done)},
        coords={
            "plan": np.array([one.plan.text for one in named], object),
            "plan_name": ("plan", np.array([one.name for one in named], object)),
            "task": np.array(list(tasks), object),
            "metric": np.array(metrics, object),
            "aggregation": (("task", "metric"), aggregation),
            "higher_is_better": (("task", "metric"), higher.astype(np.int8)),
            "example_task": ("example", np.repeat(np.array(list(tasks), object), sizes)),
            "example_choices": (
                "example",
                np.concatenate([one["choices"] for one in tasks.values()]),
            ),
            "example_gold": ("example", np.concatenate([one["gold"] for one in tasks.values()])),
            "block": ("example", block),
        },
    )
    return SimpleNamespace(dataset=dataset, layers=layers, identity={"model": "Größe/モデル"})


def right(*counts, examples=20):
    """`[plan, example]`: so many of each plan's answers are right, the first ones."""
    return (np.arange(examples) < np.array(counts)[:, None]).astype(float)


def answers(plans, examples=60, seed=0, worst=0.45):
    """Random answers of ever worse plans, the baseline's being the best."""
    generator = np.random.default_rng(seed)
    level = np.linspace(0.9, worst, plans)[:, None]
    shared = generator.uniform(size=examples)
    return (0.8 * shared + 0.2 * generator.uniform(size=(plans, examples)) < level).astype(float)


def replicates_of(name, score, plans, resamples=1000, seed=0):
    """Shares of right answers of each resample of a task, `[resample, plan]`."""
    coins, seeds = (
        [zlib.crc32(one.plan.text.encode()) for one in resolve(plans, T)],
        (seed, zlib.crc32(name.encode())),
    )
    return bootstrap_shares(score.T, resamples=resamples, seed=seeds, coins=coins).replicates


def summary(replicates, samples):
    """Standard error, and percentiles as far out as Student's t reaches, by scipy.stats."""
    beyond = stats.norm.cdf(-np.sqrt(samples / (samples - 1)) * stats.t.ppf(0.975, samples - 1))
    return replicates.std(0, ddof=1), *np.quantile(replicates, [beyond, 1 - beyond], axis=0)


def assert_estimate(found, name, value, replicates, samples, bounds=(-np.inf, np.inf)):
    """samples: of all, or of each entry along the last dimension."""
    assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    columns = np.moveaxis(replicates, -1, 0) if np.ndim(samples) else [replicates]
    each = [
        summary(column, many) for column, many in zip(columns, np.atleast_1d(samples), strict=True)
    ]
    for part, expected in zip(
        ("standard_error", "low", "high"), zip(*each, strict=True), strict=True
    ):
        expected = np.stack(expected, -1) if np.ndim(samples) else expected[0]
        expected = expected if part == "standard_error" else np.clip(expected, *bounds)
        assert_allclose(
            found[f"{name}_{part}"], expected, rtol=1e-8, atol=1e-12, err_msg=f"{name}_{part}"
        )


# By hand


def test_by_hand():
    """Four choices each equally often right: chance is 1/4. 16 and 11 of 20 right: (0.55 - 0.25) /
    (0.8 - 0.25).
    """
    plans = ["baseline", "skip:start=1", "reverse:start=1"]
    tasks = {
        "arc_easy": task(right(16, 11, 6)),
        "recall": task(right(10, 8, 1), choices=0),
        "arithmetic": task(right(20, 15, 20)),
    }
    found = degradation.compute(scored(plans, tasks)).sel(variant=plans)
    assert_allclose(found["raw"], [[0.8, 0.5, 1], [0.55, 0.4, 0.75], [0.3, 0.05, 1]])
    assert_array_equal(found["value"], found["raw"])
    assert_allclose(found["chance"], [0.25, 0, 0.25])
    assert_allclose(found["baseline"], [0.8, 0.5, 1])
    normalised = [[1, 1, 1], [0.3 / 0.55, 0.8, 0.5 / 0.75], [0.05 / 0.55, 0.1, 1]]
    assert_allclose(found["normalised"], normalised)
    assert_allclose(
        found["difference"], [[0, 0, 0], [-0.25, -0.1, -0.25], [-0.5, -0.45, 0]], atol=1e-15
    )
    assert_allclose(found["median"], [1, 0.5 / 0.75, 0.1])
    assert_allclose(found["mean"], np.mean(normalised, 1))
    assert found["valid"].values.tolist() == [1, 1, 1]
    assert found["examples"].values.tolist() == [20, 20, 20]
    assert found["metric_of"].values.tolist() == ["acc"] * 3


def test_the_baseline_is_one_without_any_error():
    plans = ["baseline", "skip:start=0..2"]
    found = degradation.compute(
        scored(plans, {name: task(answers(4, seed=i)) for i, name in enumerate("abc")})
    )
    at = found.sel(variant="baseline")
    for name, value in {"normalised": 1, "median": 1, "mean": 1, "difference": 0}.items():
        for part in ("", "_low", "_high"):
            assert_array_equal(at[name + part], value)
        assert_array_equal(at[f"{name}_standard_error"], 0)


@pytest.mark.parametrize(
    ("choices", "gold", "chance"),
    [
        ([4, 4, 4, 4], [0, 1, 2, 3], 1 / 4),
        ([2, 4, 4, 5], [0, 1, 2, 3], (1 / 2 + 1 / 4 + 1 / 4 + 1 / 5) / 4),
        ([2, 2, 2, 2], [1, 1, 0, 1], 1 / 2),  # as chance has it
        ([2] * 40, [1] * 36 + [0] * 4, 36 / 40),  # always the second
        ([2] * 40, [1] * 30 + [-1] * 6 + [0] * 4, 30 / 40),
        ([4] * 8, [1] * 8, 1),
        ([4] * 3, [1] * 3, 1 / 4),
        ([4, 4, 4, 4], [-1, -1, -1, -1], 1 / 4),
        ([0, 0, 0], [-1, -1, -1], 0),
        ([0, 0, 0], [0, 0, 0], 0),
        ([0, 2, 2, 0], [-1, 0, 1, -1], 1 / 4),
    ],
)
def test_chance_by_hand(choices, gold, chance):
    assert chance_of(np.array(choices), np.array(gold)) == pytest.approx(chance)


@pytest.mark.parametrize("choices", [2, 4])
def test_the_largest_class_counts_from_the_number_on_that_an_exact_test_says(choices):
    """Of 60 examples: the first number whose binomial tail, summed by hand, is at most a hundredth
    of a class's.
    """
    chances = stats.binom(60, 1 / choices).pmf(np.arange(61))
    first = next(count for count in range(61) if chances[count:].sum() <= 0.01 / choices)
    for count, chance in ((first, first / 60), (first - 1, 1 / choices)):
        rest = np.arange(60 - count) % (choices - 1) + 1
        gold = np.concatenate([np.zeros(count, int), rest])
        assert chance_of(np.full(60, choices), gold) == pytest.approx(chance)


def test_chance_of_balanced_answers_is_rarely_anything_else():
    """50 examples of 4 balanced choices, 2,000 times; the largest class itself would be 0.32 on
    average.
    """
    generator = np.random.default_rng(0)
    golds = generator.integers(0, 4, size=(2000, 50))
    found = np.array([chance_of(np.full(50, 4), gold) for gold in golds])
    assert (found != 0.25).mean() <= 0.01
    assert np.mean([np.bincount(gold).max() / 50 for gold in golds]) == pytest.approx(
        0.32, abs=0.01
    )


def test_the_whole_data_set_decides_where_it_is_known():
    """Whatever the part that was evaluated looks like."""
    choices, balanced, lopsided = np.full(40, 4), np.arange(40) % 4, np.zeros(40, int)
    assert chance_of(choices, balanced, [700, 100, 100, 100]) == pytest.approx(0.7)
    assert chance_of(choices, lopsided, [250, 250, 250, 250]) == 0.25
    assert chance_of(choices, lopsided, [262, 246, 246, 246]) == 0.25  # as chance has it
    assert chance_of(choices, balanced, [300, 240, 230, 230]) == pytest.approx(0.3)
    tasks = {"arc_easy": task(right(16, 11)), "piqa": task(right(16, 11), choices=2, gold=[0] * 20)}
    source = scored(["baseline", "skip:start=1"], tasks)
    assert degradation.compute(source, resamples=2)["chance"].values.tolist() == [0.25, 1]
    source.dataset["gold_count"] = (("task", "choice"), [[700, 100, 100, 100], [50, 50, -1, -1]])
    assert degradation.compute(source, resamples=2)["chance"].values.tolist() == [0.7, 0.5]
    source.dataset["gold_count"] = (("task", "choice"), np.full((2, 4), -1))
    assert degradation.compute(source, resamples=2)["chance"].values.tolist() == [0.25, 1]


def test_kinds_can_be_given():
    """Of a task whose name says another, or none."""
    names = ("arithmetic", "foo", "recall")
    plans = ["baseline", "reverse:start=0..1"]
    source = scored(
        plans, {name: task(right(16, 8 - row, 4 + row)) for row, name in enumerate(names)}
    )
    guessed = degradation.compute(source)
    assert guessed["task_kind"].values.tolist() == ["mathematics", "other", "semantics"]
    assert guessed["task_kind_from"].values.tolist() == ["guessed from the name"] * 3
    given = degradation.compute(source, kinds="foo=reasoning, recall=other")
    assert given["task_kind"].values.tolist() == ["mathematics", "reasoning", "other"]
    assert given["task_kind_from"].values.tolist() == ["guessed from the name", "given", "given"]
    assert given["kind"].values.tolist() == ["mathematics", "reasoning"]
    assert given["order_sensitivity"][1] == pytest.approx(1 - given["normalised"][1:3, 1].mean())


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("foo", "'foo' is not TASK=KIND; write e.g. recall=reasoning"),
        (
            "recall=maths",
            "'maths' is no kind; choose mathematics, reasoning, semantics, knowledge or other",
        ),
        ("foo=reasoning", "no task 'foo' in the store; it holds recall, piqa"),
        ("piqa=reasoning,piqa=semantics", "piqa is both reasoning and semantics; name it once"),
    ],
)
def test_kinds_that_cannot_be(kinds, message):
    source = scored("baseline", {"recall": task(right(16)), "piqa": task(right(16))})
    with pytest.raises(RepsimError, match=f"^kinds='{kinds}': {message}$"):
        degradation.compute(source, kinds=kinds)


@pytest.mark.parametrize("right_ones", [0, 20])
def test_an_interval_of_answers_that_are_all_right_or_all_wrong_has_a_width(right_ones):
    found = degradation.compute(
        scored(["baseline", "skip:start=1"], {"recall": task(right(20, right_ones), choices=0)})
    )
    at = found.sel(variant="skip:start=1").isel(task=0)
    assert 0.05 < at["value_high"] - at["value_low"] < 0.3
    assert 0 <= at["value_low"] <= at["value"] <= at["value_high"] <= 1
    assert at["difference_low"] < at["difference"] < at["difference_high"] or right_ones == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gsm8k", "mathematics"),
        ("arithmetic", "mathematics"),
        ("arithmetic_2da", "mathematics"),
        ("arc_challenge", "reasoning"),
        ("lambada_openai", "semantics"),
        ("recall", "semantics"),
        ("blimp_adjunct_island", "semantics"),
        ("mmlu_anatomy", "knowledge"),
        ("knowledge", "knowledge"),
        ("boolq", "other"),
    ],
)
def test_kinds_by_hand(name, kind):
    assert kind_of(name) == kind


def test_perplexity_by_hand():
    """Log-likelihoods of mean -1 and -3; two seeds of means -2 and -4: the geometric mean of e^2
    and e^4.
    """
    plans = ["baseline", "skip:start=1", "random:start=1,seed=0..1"]
    logs = [[-0.5, -1.5], [-3, -3], [-1, -3], [-4, -4]]
    more = {"perplexity": ("perplexity", 0, logs)}
    tasks = {
        "lambada_openai": task(right(2, 1, 1, 0, examples=2), choices=0, **more),
        "other": task(right(9, 5, 5, 5)),
    }
    found = degradation.compute(scored(plans, tasks)).sel(
        variant=["baseline", "skip:start=1", "random:start=1"]
    )
    assert_allclose(found["perplexity"][:, 0], np.exp([1, 3, 3]))
    for part in ("", "_standard_error", "_low", "_high"):
        assert np.isnan(found["perplexity" + part][:, 1]).all()
    # both, the first twice or the second twice
    assert_allclose(
        [found["perplexity_low"][0, 0], found["perplexity_high"][0, 0]], np.exp([0.5, 1.5])
    )
    assert found["perplexity_standard_error"][1, 0] == pytest.approx(0, abs=1e-12)


def test_order_sensitivity_by_hand():
    """Reverse and the mean over two seeds, at the starts where at least two layers change places;
    valid tasks only.
    """
    plans = ["baseline", "reverse:start=0..2", "random:start=0,seed=0|1", "skip:start=1"]
    tasks = {
        "arithmetic": task(right(16, 4, 8, 2, 4, 0), choices=0),  # reverse:start=2 is the baseline
        "arc_easy": task(right(20, 10, 20, 10, 20, 0), choices=0),
        "grammar": task(right(10, 9, 8, 6, 8, 0), choices=0),
        "hellaswag": task(right(1, 9, 8, 6, 8, 0), choices=2),  # the baseline guesses
        "mmlu_law": task(right(2, 20, 20, 20, 20, 0), choices=2),
        "boolq": task(right(20, 1, 1, 1, 1, 0), choices=0),
    }
    source = scored(plans, tasks)
    assert source.dataset.sizes["plan"] == 6
    found = degradation.compute(source)
    assert found["kind"].values.tolist() == ["mathematics", "reasoning", "semantics"]
    mathematics = 1 - np.mean([4 / 16, 8 / 16, 3 / 16])
    reasoning = 1 - np.mean([0.5, 1, 0.75])
    semantics = 1 - np.mean([0.9, 0.8, 0.7])
    assert_allclose(found["order_sensitivity"], [mathematics, reasoning, semantics])
    assert found["order_difference"] == pytest.approx((mathematics + reasoning) / 2 - semantics)
    assert found["task_kind"].values.tolist()[3:] == ["semantics", "knowledge", "other"]


@pytest.mark.parametrize(
    "names", [("arithmetic", "arc_easy", "mmlu"), ("recall", "grammar", "mmlu")]
)
def test_no_order_difference_without_its_two_sides(names):
    plans = ["baseline", "reverse:start=0..1"]
    found = degradation.compute(scored(plans, {name: task(right(16, 8, 4)) for name in names}))
    for part in ("", "_standard_error", "_low", "_high"):
        assert np.isnan(found["order_difference" + part])
    assert np.isfinite(found["order_sensitivity"]).all()


def test_no_order_sensitivity_without_orders():
    found = degradation.compute(
        scored(["baseline", "skip:start=0..2"], {"arithmetic": task(right(16, 8, 4, 9))})
    )
    assert np.isnan(found["order_sensitivity"]).all()


def test_comparison_by_hand():
    """Chance 0 and a baseline that is always right: normalised scores are scores. Starts 0 and 1
    move two layers.
    """
    plans = [
        "baseline",
        "skip:start=0..2",
        "reverse:start=1",
        "looped_parallel:start=0..1,loops=2|3",
    ]
    score = right(20, 10, 12, 14, 19, 4, 8, 6, 2)
    found = degradation.compute(scored(plans, {"recall": task(score, choices=0)}))
    pairs = list(zip(found["family_a"].values, found["family_b"].values, strict=True))
    assert pairs == [
        ("skip", "reverse"),
        ("skip", "looped_parallel"),
        ("reverse", "looped_parallel"),
    ]
    by_name = dict(zip(found["plan_name"].values, found["raw"][:, 0].values, strict=True))
    loops = [by_name[f"looped_parallel:start={start},loops=3"] for start in (0, 1)]
    assert_allclose(
        found["harm_difference"], [0.6 - 0.95, (0.5 + 0.6) / 2 - np.mean(loops), 0.95 - loops[1]]
    )
    assert found["harm_difference"].dims == ("comparison",)
    assert {"family_a", "family_b"} <= set(found.coords)


def test_seeds_are_averaged_and_their_spread_is_theirs():
    """10, 14 and 12 of 20 right: 12 on average, standard deviation 2."""
    plans = ["baseline", "random:start=0,seed=0..2"]
    found = degradation.compute(scored(plans, {"arc_easy": task(right(20, 10, 14, 12))}))
    at = found.sel(variant="random:start=0").isel(task=0)
    assert (int(at["variant_seeds"]), str(at["variant_family"].values)) == (3, "random")
    assert float(at["value"]) == pytest.approx(0.6)
    assert float(at["value_spread"]) == pytest.approx(0.1)
    assert float(at["normalised"]) == pytest.approx((0.6 - 0.25) / 0.75)
    assert float(at["normalised_spread"]) == pytest.approx(0.1 / 0.75)
    assert np.isnan(found["value_spread"].sel(variant="baseline")).all()


# Against loops and closed forms


def test_equals_a_loop_over_resamples():
    """Everything made of several tasks is made anew of each resample."""
    plans = [
        "baseline",
        "skip:start=0..1",
        "reverse:start=0..1",
        "random:start=0..1,seed=0..2",
        "parallel:start=0..1",
    ]
    count = len(resolve(plans, T))
    sizes = {"arithmetic": 50, "arc_easy": 61, "recall": 70, "grammar": 40}
    tasks = {
        name: task(answers(count, n, seed=n), choices=0 if name == "recall" else 4)
        for name, n in sizes.items()
    }
    source = scored(plans, tasks)
    found = degradation.compute(source, resamples=200, seed=3)
    draws = {
        name: replicates_of(name, one["metrics"]["acc"][2], plans, 200, 3)
        for name, one in tasks.items()
    }
    chance = found["chance"].values
    named = resolve(plans, T)
    pools = variants([one.name for one in named], [one.plan.text for one in named], T)
    members = [list(pool.plans) for pool in pools]
    orders = [
        i
        for i, v in enumerate(pools)
        if v.name.startswith(("reverse", "random")) and v.values["start"] < 2
    ]
    families = ["skip", "reverse", "random", "parallel"]

    def statistics(raw):
        value = np.array([raw[m].mean(0) for m in members])
        normalised = (value - chance) / (value[0] - chance)
        mean = normalised.mean(1)
        harm = [
            [mean[i] for i, v in enumerate(pools) if v.family == f and v.values["start"] < 2]
            for f in families
        ]
        return {
            "raw": raw,
            "value": value,
            "difference": value - value[0],
            "normalised": normalised,
            "median": np.median(normalised, 1),
            "mean": mean,
            "order_sensitivity": 1
            - np.array([normalised[orders][:, t].mean() for t in ([0], [1], [2, 3])]),
            "order_difference": normalised[orders][:, 2:].mean() - normalised[orders][:, :2].mean(),
            "harm_difference": np.array(
                [np.mean(a) - np.mean(b) for a, b in combinations(harm, 2)]
            ),
        }

    whole = statistics(np.array([one["metrics"]["acc"][2].mean(1) for one in tasks.values()]).T)
    resampled = [statistics(np.array([draws[name][i] for name in sizes]).T) for i in range(200)]
    assert found.attrs["undefined"] == 0
    every, each = sum(sizes.values()), list(sizes.values())
    samples = {
        "order_sensitivity": [50, 61, 70 + 40],
        **dict.fromkeys(("raw", "value", "difference", "normalised"), each),
    }
    bounds = {"raw": (0, 1), "value": (0, 1), "difference": (-1, 1)}
    for name, value in whole.items():
        of, within = samples.get(name, every), bounds.get(name, (-np.inf, np.inf))
        assert_estimate(found, name, value, np.array([one[name] for one in resampled]), of, within)


def test_standard_errors_of_differences_are_the_paired_ones():
    """Standard deviation of the examples' differences over the root of their number."""
    score = answers(3, 400, seed=1, worst=0.8)
    found = degradation.compute(
        scored(["baseline", "skip:start=0..1"], {"arc_easy": task(score)}), resamples=4000
    )
    paired = (score - score[0]).std(1) / 20
    assert_allclose(found["difference_standard_error"][1:, 0], paired[1:], rtol=0.05)
    apart = np.sqrt(score.var(1) + score[0].var()) / 20
    assert (found["difference_standard_error"][1:, 0] < 0.9 * apart[1:]).all()
    assert_allclose(found["raw_standard_error"][:, 0], score.std(1) / 20, rtol=0.05)
    linearised = (
        (score - found["normalised"].values * (score[0] - 0.25)).std(1)
        / 20
        / (score[0].mean() - 0.25)
    )
    assert_allclose(found["normalised_standard_error"][1:, 0], linearised[1:], rtol=0.06)


def test_intervals_cover_the_truth():
    """Right with chances 0.9 and 0.6 in two tasks of 80 examples; 95 % nominal, 200 studies."""
    truth, generator = (0.6 - 0.25) / (0.9 - 0.25), np.random.default_rng(0)
    hits = []
    for _ in range(200):
        tasks = {
            n: task(generator.uniform(size=(2, 80)) < np.array([[0.9], [0.6]]))
            for n in ("arc_easy", "piqa")
        }
        found = degradation.compute(scored(["baseline", "skip:start=1"], tasks), resamples=300)
        hits.append(bool(found["mean_low"][1] <= truth <= found["mean_high"][1]))
    assert 0.9 <= np.mean(hits) <= 0.99


def test_p_values_follow_the_difference():
    plans = ["baseline", "skip:start=0..1", "reverse:start=0..1", "parallel:start=0..1"]
    score = answers(7, 300, worst=0.9)
    # Reverse is far worse than the others.
    score[[3, 4]] = answers(7, 300, seed=1, worst=0.4)[[5, 6]]
    found = degradation.compute(scored(plans, {"recall": task(score, choices=0)}))
    clear, none, clear_too = found["p_value"].values
    least = 2 * stats.t.cdf(stats.norm.ppf(1 / 1001) * np.sqrt(299 / 300), 299)  # about 2 / 1001
    assert_allclose([clear, clear_too], least)
    assert none > 0.01
    assert_allclose(found["p_holm"], [3 * least, none, 3 * least])
    assert float(found["harm_difference_low"][0]) > 0


# Identities


def test_draws_of_a_task_depend_on_no_other_task():
    plans = ["baseline", "skip:start=0..1"]
    tasks = {name: task(answers(3, seed=i)) for i, name in enumerate(("piqa", "sciq", "recall"))}
    every, one = (
        degradation.compute(scored(plans, chosen)) for chosen in (tasks, {"sciq": tasks["sciq"]})
    )
    for name in ("raw_low", "difference_standard_error", "normalised_high"):
        assert_allclose(every[name].sel(task="sciq"), one[name].sel(task="sciq"), rtol=1e-12)
    same = degradation.compute(scored(plans, {"piqa": tasks["piqa"], "sciq": tasks["piqa"]}))
    assert (same["raw_standard_error"][:, 0] != same["raw_standard_error"][:, 1]).all()


def test_seeds_reproduce_draws_and_others_do_not():
    source = scored(["baseline", "skip:start=1"], {"piqa": task(answers(2))})
    first, again, other = (
        degradation.compute(source, resamples=50, seed=seed) for seed in (5, 5, 6)
    )
    xr.testing.assert_identical(first, again)
    assert (first["raw_standard_error"] != other["raw_standard_error"]).all()


def test_the_order_of_plans_changes_nothing():
    """Nor do blocks."""
    plans = ["skip:start=1", "reverse:start=0", "baseline"]
    score = answers(3)
    order = [2, 0, 1]
    blocks = np.arange(60) // 25
    one = degradation.compute(scored(plans, {"piqa": task(score[[1, 2, 0]], block=blocks)}))
    other = degradation.compute(scored([plans[i] for i in order], {"piqa": task(score)}))
    assert set(one["variant"].values) == set(other["variant"].values)
    for name in ("value", "normalised_low", "median_standard_error", "p_value"):
        assert_allclose(
            one.sortby("variant")[name], other.sortby("variant")[name], rtol=1e-12, err_msg=name
        )


# Variants


def names_of(plans, layers=T):
    named = resolve(plans, layers)
    found = variants([one.name for one in named], [one.plan.text for one in named], layers)
    return {v.name: [named[i].name for i in v.plans] for v in found}


def test_a_plan_of_several_families_is_in_each_of_their_curves():
    """Of six layers, start 2 affects one: backwards, at random and in parallel it is the baseline."""
    found = names_of("fig11")
    for family in ("reverse", "parallel", "middle_repeat"):
        assert [name for name in found if name.startswith(f"{family}:")] == [
            f"{family}:start={i}" for i in range(3)
        ]
        assert found[f"{family}:start=2"] == ["baseline"]
    assert found["random:start=2"] == ["baseline"] * 10
    assert found["looped_parallel:start=1,loops=3"] == ["looped_parallel:start=1,loops=3"]
    assert found["skip:start=2"] == ["skip:start=2"]


def test_an_order_that_two_seeds_draw_counts_twice():
    """Three layers have six orders, so ten seeds repeat some; one of them is backwards."""
    found = names_of("fig11")["random:start=1"]
    assert len(found) == 10
    assert len(set(found)) <= 6
    named = {one.plan: one.name for one in resolve("fig11", T)}
    assert found == [named[FAMILIES["random"].build(T, start=1, seed=seed)] for seed in range(10)]


def test_a_family_without_a_name_in_the_store_has_no_curve():
    found = names_of("fig2")
    assert list(found) == [
        "baseline",
        *(f"drop:layer={i}" for i in range(6)),
        *(f"switch:layer={i}" for i in range(5)),
    ]
    # a whole layer dropped is in the store, but as a part of no sweep
    assert "drop:layer=2" not in names_of(["baseline", "0-1, 3-5", "drop:layer=2,part=mlp"])


def test_one_loop_is_parallel_and_the_first_column_of_a_grid():
    found = names_of(["baseline", "fig8", "fig10"])  # of six layers, 1 and 2 loops
    assert found["looped_parallel:start=0,loops=1"] == ["parallel:start=0"]
    assert found["looped_parallel:start=0,loops=2"] == ["looped_parallel:start=0,loops=2"]
    assert not [name for name in names_of(["baseline", "fig8", "fig9"]) if name.endswith("loops=1")]


def test_only_seeds_that_are_there():
    found = names_of(["baseline", "random:start=0,seed=0..2", "random:start=1,seed=7"])
    assert found["random:start=0"] == [f"random:start=0,seed={seed}" for seed in range(3)]
    assert found["random:start=1"] == ["random:start=1,seed=7"]


def test_parts_are_curves_of_their_own():
    found = names_of(["baseline", "dropouts"])
    assert len(found) == 1 + 3 * T
    assert list(found)[1 : 2 * T + 1 : T] == ["drop:layer=0", "drop:layer=0,part=attn"]


def test_plans_of_no_sweep_stand_for_themselves():
    plans = ["baseline", "5-0", "drop_block:first=1,last=3", "repeat:layer=2,times=4"]
    assert names_of(plans) == {name: [name] for name in plans}


def test_every_plan_is_in_a_variant():
    for layers in (3, 5, 6, 9, 12):
        plans = [
            "painters",
            "dropouts",
            "drop_block:first=0,last=1",
            "repeat:layer=1,times=2",
            "1-0",
        ]
        named = resolve(plans, layers)
        found = variants([one.name for one in named], [one.plan.text for one in named], layers)
        assert {i for v in found for i in v.plans} == set(range(len(named)))
        assert len({v.name for v in found}) == len(found)


def test_a_baseline_by_another_name():
    """The first name counts: six layers' start 2 backwards is the baseline."""
    found = names_of(["reverse:start=2", "baseline"])
    assert found == {"baseline": ["reverse:start=2"], "reverse:start=2": ["reverse:start=2"]}


def test_parameters_are_coordinates():
    plans = ["baseline", "skip:start=1", "random:start=0,seed=4", "looped_parallel:start=0,loops=3"]
    plans += [
        "drop:layer=2,part=mlp",
        "switch:layer=3",
        "drop_block:first=1,last=3",
        "repeat:layer=2,times=4",
        "5-0",
    ]
    found = degradation.compute(scored(plans, {"piqa": task(answers(9))}))
    found = found.sel(
        variant=["random:start=0" if name.startswith("random") else name for name in plans]
    )
    assert found["plan_name"].values.tolist() == plans
    assert found["plan"].values.tolist()[1] == "0, 1, 5"
    assert found["family"].values.tolist()[-2:] == ["repeat", ""]
    assert found["start"].values.tolist() == [-1, 1, 0, 0, -1, -1, -1, -1, -1]
    assert found["layer"].values.tolist() == [-1, -1, -1, -1, 2, 3, -1, 2, -1]
    assert found["seed"].values.tolist() == [-1, -1, 4, -1, -1, -1, -1, -1, -1]
    assert found["loops"].values.tolist() == [-1, -1, -1, 3, -1, -1, -1, -1, -1]
    assert found["part"].values.tolist() == ["", "", "", "", "mlp", "", "", "", ""]
    assert found["affected"].values.tolist() == [0, 3, 5, 5, 1, 2, 3, 1, -1]
    for name in ("family", "start", "layer", "loops", "part", "affected"):
        assert_array_equal(found[f"variant_{name}"].values, found[name].values)
    assert "variant_seed" not in found.coords


# Tasks and metrics


def test_the_metric_asked_for_where_a_task_has_it():
    """Else acc, an exact_match, or the first mean; not one in which lower is better."""
    plans, score = ["baseline", "skip:start=1"], right(16, 8)
    better, worse = ("mean", 1, right(18, 9)), ("mean", 0, right(1, 1))
    tasks = {
        "a": task(score, acc_norm=better),
        "b": task(score),
        "c": task(score, metric="f", **{"brier": worse, "exact_match,strict": better}),
        "d": task(score, metric="em", choices=0),
        "e": {
            **task(score),
            "metrics": {
                "bytes": worse,
                "perplexity": ("perplexity", 0, -score),
                "g": ("f1", 1, score),
            },
        },
    }
    found = degradation.compute(scored(plans, tasks), metric="acc_norm")
    assert found["metric_of"].values.tolist() == ["acc_norm", "acc", "exact_match,strict", "em", ""]
    assert_allclose(found["raw"][0], [0.9, 0.8, 0.9, 0.8, NAN])
    assert found.attrs["metric"] == "acc_norm"
    assert found["valid"].values.tolist() == [1, 1, 1, 1, 0]
    assert_allclose(found["perplexity"][:, 4], np.exp([0.8, 0.4]))
    for name in ("chance", "baseline"):
        assert np.isnan(found[name][4])
    assert degradation.compute(scored(plans, tasks))["metric_of"].values.tolist()[0] == "acc"


def test_tasks_that_the_baseline_guesses_are_left_out():
    """6 of 20 right where chance is 5, and 4, of which the standard errors are 2 and 1.8."""
    tasks = {"piqa": task(right(16, 8)), "sciq": task(right(6, 20)), "mmlu": task(right(4, 20))}
    found = degradation.compute(scored(["baseline", "skip:start=1"], tasks))
    assert found["valid"].values.tolist() == [1, 0, 0]
    for name in ("median", "mean"):
        assert_allclose(found[name], [1, 0.15 / 0.55])
        assert np.isfinite(found[f"{name}_high"]).all()
    assert_allclose(found["normalised"].sel(task="sciq"), [1, 0.75 / 0.05])
    assert np.isnan(found["normalised_low"].sel(task="sciq")).all()
    assert np.isnan(found["normalised"].sel(task="mmlu")).all()
    assert np.isfinite(found["value_low"]).all()


def test_no_valid_task():
    plans = ["baseline", "skip:start=0..1", "reverse:start=0..1"]
    found = degradation.compute(scored(plans, {"piqa": task(right(5, 5, 6, 7, 8))}))
    for name in ("median", "mean", "order_difference", "harm_difference", "p_value", "p_holm"):
        assert np.isnan(found[name]).all()
    assert found.sizes["kind"] == 0
    assert found.sizes["comparison"] == 1


def test_resamples_without_a_baseline_above_chance_are_left_out():
    """9 of 20 right where chance is 1/4: more than two standard errors above, but not in every
    draw.
    """
    source = scored(
        ["baseline", "skip:start=1"], {"piqa": task(right(10, 8)), "sciq": task(right(20, 8))}
    )
    found = degradation.compute(source)
    base, other = replicates_of("piqa", right(10, 8), ["baseline", "skip:start=1"]).T
    kept = base > 0.25
    assert found.attrs["undefined"] == (~kept).sum() > 0
    error, low, high = summary((other - 0.25)[kept] / (base - 0.25)[kept], 20)
    assert_allclose(found["normalised_standard_error"][1, 0], error)
    assert_allclose([found["normalised_low"][1, 0], found["normalised_high"][1, 0]], [low, high])
    assert np.isfinite(found["median_high"]).all()


def test_what_is_not_finished_is_not_scored():
    """The second block is missing under skip, the first under the baseline."""
    plans = ["baseline", "skip:start=1", "reverse:start=1"]
    tasks = {
        "piqa": task(answers(3), block=0),
        "sciq": task(answers(3, seed=1), block=np.arange(60) // 30 + 1),
    }
    found = degradation.compute(scored(plans, tasks, done=[[1, 1, 1], [1, 1, 0], [1, 1, 1]])).sel(
        variant=plans
    )
    assert np.isnan(found["raw"]).values.tolist() == [[False, False], [False, True], [False, False]]
    assert np.isnan(found["raw_low"]).values.tolist() == np.isnan(found["raw"]).values.tolist()
    assert (
        np.isnan(found["mean"]).values.tolist()
        == np.isnan(found["median_low"]).values.tolist()
        == [False, True, False]
    )
    assert np.isnan(found["harm_difference"]).all()
    assert np.isnan(found["p_value"]).all()
    assert found.attrs["incomplete"] == 1
    assert not found["nonfinite"].any()
    found = degradation.compute(scored(plans, tasks, done=[[0, 1, 1], [1, 1, 1], [1, 1, 1]]))
    assert found["valid"].values.tolist() == [0, 1]
    assert np.isfinite(found["mean"]).all()
    assert np.isnan(found["normalised"].sel(task="piqa")).all()


@pytest.mark.parametrize("lost", [NAN, np.inf, -np.inf])
def test_states_that_became_non_finite_have_no_score(lost):
    plans = ["baseline", "skip:start=1", "random:start=0,seed=0..1"]
    score = answers(4)
    score[3, [4, 9, 11]] = lost
    logs = -1 - answers(4)
    logs[3, [4, 9, 11]] = lost
    tasks = {
        "lambada": task(score, choices=0, perplexity=("perplexity", 0, logs)),
        "sciq": task(answers(4, seed=1)),
    }
    found = degradation.compute(scored(plans, tasks)).sel(
        variant=["baseline", "skip:start=1", "random:start=0"]
    )
    assert found["nonfinite"].values.tolist() == [[0, 0], [0, 0], [0, 0], [3, 0]]
    assert found.attrs["incomplete"] == 0
    for name in ("value", "normalised", "difference", "perplexity"):
        assert np.isnan(found[name].sel(task="lambada")).values.tolist() == [False, False, True], (
            name
        )
    assert np.isnan(found["median"]).values.tolist() == [False, False, True]
    assert np.isfinite(found["value"].sel(task="sciq")).all()


def test_perplexities_beyond_all_numbers():
    logs = np.array([[-1.0, -2, -3], [-1e4, -2e4, -1e3]])
    tasks = {
        "lambada": task(right(3, 0, examples=3), choices=0, perplexity=("perplexity", 0, logs))
    }
    found = degradation.compute(scored(["baseline", "skip:start=1"], tasks))
    assert_allclose(found["perplexity"][:, 0], [np.exp(2), np.inf])
    assert np.isnan(found["perplexity_high"][1, 0])


def test_one_example_has_no_standard_error():
    found = degradation.compute(
        scored(["baseline", "skip:start=1"], {"recall": task([[1], [0]], choices=0)})
    )
    assert found["raw"].values.tolist() == [[1], [0]]
    assert np.isnan(found["raw_standard_error"]).all()
    assert not found["valid"].any()
    assert np.isnan(found["mean"]).all()


# Round trips and bad input


def suite():
    plans = ["painters", "dropouts", "5-0"]
    count = len(resolve(plans, T))
    more = {"perplexity": ("perplexity", 0, -1 - answers(count, 30))}
    return scored(
        plans,
        {
            "arithmetic": task(answers(count, 30)),
            "recall": task(answers(count, 30, seed=1), choices=0, **more),
        },
    )


@pytest.mark.parametrize(
    "source",
    [
        suite(),
        scored("baseline", {"boolq": task(right(16))}),  # neither kinds nor comparisons
        scored(["baseline", "skip:start=1"], {"piqa": task(right(5, 5))}),
    ],
    ids=["suite", "baseline", "invalid"],
)
def test_a_saved_result_holds_the_same(tmp_path, source):
    result = degradation.compute(source, resamples=20)
    results.save(result, tmp_path / "result.nc")
    with xr.open_dataset(tmp_path / "result.nc", engine="scipy") as read:
        read = read.load()
    assert set(read.variables) == set(result.variables)
    assert set(read.coords) == set(result.coords)
    for key, values in result.variables.items():
        assert read[key].dims == values.dims, key
        if values.dtype == object:
            assert read[key].values.tolist() == values.values.tolist(), key
        else:
            assert_array_equal(read[key], values, err_msg=key)
    assert read.attrs == result.attrs
    results.save(degradation.compute(source, resamples=20), tmp_path / "again.nc")
    assert (tmp_path / "again.nc").read_bytes() == (tmp_path / "result.nc").read_bytes()


def test_names():
    found = degradation.compute(suite(), resamples=20, seed=2)
    assert found.attrs == {
        "analysis": "degradation",
        "description": "Scores under layer plans, against the baseline's and chance.",
        "model": "Größe/モデル",
        "layers": T,
        "metric": "acc",
        "interval": "95% of a bootstrap over examples",
        "resamples": 20,
        "seed": 2,
        "undefined": found.attrs["undefined"],
        "incomplete": 0,
    }
    for name in (*ESTIMATES, "order_sensitivity", "order_difference", "harm_difference"):
        assert {f"{name}_{part}" for part in ("standard_error", "low", "high")} < set(
            found.data_vars
        )
    assert found["raw"].dims == found["nonfinite"].dims == ("plan", "task")
    assert found["normalised"].dims == ("variant", "task")
    assert found["median"].dims == ("variant",)
    assert found["order_sensitivity"].dims == ("kind",)
    assert found["order_difference"].dims == ()
    assert found["valid"].dtype == np.int8


def test_a_store_as_zarr_gives_it(tmp_path):
    """Variable-length strings and lazy arrays."""
    source = suite()
    source.dataset.to_zarr(tmp_path / "scores.zarr", zarr_format=3, consolidated=False)
    with xr.open_zarr(tmp_path / "scores.zarr", consolidated=False, chunks=None) as opened:
        stored = SimpleNamespace(dataset=opened, layers=T, identity=source.identity)
        found = degradation.compute(stored, resamples=20)
    xr.testing.assert_identical(found, degradation.compute(source, resamples=20))


def test_a_store_without_the_baseline():
    source = scored(["skip:start=0..1"], {"piqa": task(answers(2))})
    with pytest.raises(
        RepsimError,
        match=r"^the baseline is not among the 2 plans evaluated; add --plan baseline --app",
    ):
        degradation.compute(source)


def test_a_metric_that_no_task_has():
    more = {"perplexity": ("perplexity", 0, [[-1.0] * 60] * 2), "brier": ("mean", 0, answers(2))}
    source = scored(
        ["baseline", "skip:start=0"], {"piqa": task(answers(2), metric="exact_match", **more)}
    )
    for metric in ("acc_norm", "perplexity", "brier"):
        with pytest.raises(
            RepsimError, match=f"^metric='{metric}': no task here has it; choose exact_match, acc$"
        ):
            degradation.compute(source, metric=metric)
    assert degradation.compute(source, metric="acc")["metric_of"].values.tolist() == ["exact_match"]


def test_a_task_without_examples():
    source = scored("baseline", {"piqa": task(answers(1))})
    source.dataset = source.dataset.reindex(
        task=["piqa", "sciq"], fill_value={"aggregation": "", "higher_is_better": -1}
    )
    with pytest.raises(RepsimError, match=r"^task 'sciq' has no examples"):
        degradation.compute(source)


@pytest.mark.parametrize(("name", "value", "least"), [("resamples", 1, 2), ("seed", -1, 0)])
def test_too_small_a_number(name, value, least):
    with pytest.raises(RepsimError, match=f"^{name}={value}: at least {least}$"):
        degradation.compute(scored("baseline", {"piqa": task(answers(1))}), **{name: value})
