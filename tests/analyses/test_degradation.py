"""Degradation: scores of tasks under plans, by hand, against loops over resamples and against
closed forms.
"""

import zlib
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from repsim.analyses import degradation
from repsim.errors import RepsimError
from repsim.plans import resolve
from repsim.stats import results
from repsim.stats.bootstrap import bootstrap_shares
from repsim.studies.painters import find_variants
from support.scores import Array, MadeUpScores, answers, make_scores, right, task, task_of

T = 6
NAN = np.nan
ESTIMATES = ("raw", "value", "difference", "normalised", "perplexity", "median", "mean")


def replicates_of(
    name: str, score: Array, plans: list[str], resamples: int = 1000, seed: int = 0
) -> Array:
    """Shares of right answers in each resample of a task, `[resample, plan]`."""
    coins = [zlib.crc32(named.plan.text.encode()) for named in resolve(plans, T)]
    seeds = (seed, zlib.crc32(name.encode()))
    return bootstrap_shares(score.T, resamples=resamples, seed=seeds, coins=coins).replicates


def summarise(replicates: Array, samples: int) -> tuple[Array, Array, Array]:
    """Standard error, and percentiles as far out as Student's t reaches, by scipy.stats."""
    beyond = stats.norm.cdf(-np.sqrt(samples / (samples - 1)) * stats.t.ppf(0.975, samples - 1))
    low, high = np.quantile(replicates, [beyond, 1 - beyond], axis=0)
    return replicates.std(0, ddof=1), low, high


def assert_estimate(
    result: xr.Dataset,
    name: str,
    value: Any,
    replicates: Array,
    samples: int | list[int],
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """samples: of all, or of each entry along the last dimension."""
    assert_allclose(result[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    columns = np.moveaxis(replicates, -1, 0) if np.ndim(samples) else [replicates]
    summaries = [
        summarise(column, count)
        for column, count in zip(columns, np.atleast_1d(samples), strict=True)
    ]
    for part, arrays in zip(
        ("standard_error", "low", "high"), zip(*summaries, strict=True), strict=True
    ):
        expected = np.stack(arrays, -1) if np.ndim(samples) else arrays[0]
        expected = expected if part == "standard_error" else np.clip(expected, *bounds)
        assert_allclose(
            result[f"{name}_{part}"], expected, rtol=1e-8, atol=1e-12, err_msg=f"{name}_{part}"
        )


# By hand


def test_by_hand() -> None:
    """Four choices each equally often right: chance is 1/4. 16 and 11 of 20 right: (0.55 - 0.25) /
    (0.8 - 0.25).
    """
    plans = ["baseline", "skip:start=1", "reverse:start=1"]
    tasks = {
        "arc_easy": task(right(16, 11, 6)),
        "recall": task(right(10, 8, 1), choices=0),
        "arithmetic": task(right(20, 15, 20)),
    }
    result = degradation.compute(make_scores(plans, tasks)).sel(variant=plans)
    assert_allclose(result["raw"], [[0.8, 0.5, 1.0], [0.55, 0.4, 0.75], [0.3, 0.05, 1.0]])
    assert_array_equal(result["value"], result["raw"])
    assert_allclose(result["chance"], [0.25, 0, 0.25])
    assert_allclose(result["baseline"], [0.8, 0.5, 1])
    normalised = [[1.0, 1, 1], [0.3 / 0.55, 0.8, 0.5 / 0.75], [0.05 / 0.55, 0.1, 1]]
    assert_allclose(result["normalised"], normalised)
    assert_allclose(
        result["difference"], [[0.0, 0, 0], [-0.25, -0.1, -0.25], [-0.5, -0.45, 0.0]], atol=1e-15
    )
    assert_allclose(result["median"], [1, 0.5 / 0.75, 0.1])
    assert_allclose(result["mean"], np.mean(normalised, 1))
    assert result["valid"].values.tolist() == [1, 1, 1]
    assert result["examples"].values.tolist() == [20, 20, 20]
    assert result["metric_of"].values.tolist() == ["acc"] * 3


def test_the_baseline_is_one_without_any_error() -> None:
    plans = ["baseline", "skip:start=0..2"]
    result = degradation.compute(
        make_scores(plans, {name: task(answers(4, seed=i)) for i, name in enumerate("abc")})
    )
    at = result.sel(variant="baseline")
    for name, value in {"normalised": 1, "median": 1, "mean": 1, "difference": 0}.items():
        for part in ("", "_low", "_high"):
            assert_array_equal(at[name + part], value)
        assert_array_equal(at[f"{name}_standard_error"], 0)


def test_the_whole_data_set_decides_where_it_is_known() -> None:
    """Whatever the part that was evaluated looks like; see the tests of `chance_level`."""
    tasks = {"arc_easy": task(right(16, 11)), "piqa": task(right(16, 11), choices=2, gold=[0] * 20)}
    source = make_scores(["baseline", "skip:start=1"], tasks)
    assert degradation.compute(source, resamples=2)["chance"].values.tolist() == [0.25, 1]
    source.dataset["gold_count"] = (("task", "choice"), [[700, 100, 100, 100], [50, 50, -1, -1]])
    assert degradation.compute(source, resamples=2)["chance"].values.tolist() == [0.7, 0.5]
    source.dataset["gold_count"] = (("task", "choice"), np.full((2, 4), -1))
    assert degradation.compute(source, resamples=2)["chance"].values.tolist() == [0.25, 1]


def test_kinds_can_be_given() -> None:
    """Of a task whose name says another, or none."""
    names = ("arithmetic", "foo", "recall")
    plans = ["baseline", "reverse:start=0..1"]
    source = make_scores(
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
def test_kinds_that_cannot_be(kinds: str, message: str) -> None:
    source = make_scores("baseline", {"recall": task(right(16)), "piqa": task(right(16))})
    with pytest.raises(RepsimError, match=f"^kinds='{kinds}': {message}$"):
        degradation.compute(source, kinds=kinds)


@pytest.mark.parametrize("right_ones", [0, 20])
def test_an_interval_of_answers_that_are_all_right_or_all_wrong_has_a_width(
    right_ones: int,
) -> None:
    result = degradation.compute(
        make_scores(
            ["baseline", "skip:start=1"], {"recall": task(right(20, right_ones), choices=0)}
        )
    )
    at = result.sel(variant="skip:start=1").isel(task=0)
    assert 0.05 < at["value_high"] - at["value_low"] < 0.3
    assert 0 <= at["value_low"] <= at["value"] <= at["value_high"] <= 1
    assert at["difference_low"] < at["difference"] < at["difference_high"] or right_ones == 0


def test_perplexity_by_hand() -> None:
    """Log-likelihoods of mean -1 and -3; two seeds of means -2 and -4: the geometric mean of e^2
    and e^4.
    """
    plans = ["baseline", "skip:start=1", "random:start=1,seed=0..1"]
    logs = [[-0.5, -1.5], [-3, -3], [-1, -3], [-4, -4]]
    more: dict[str, Any] = {"perplexity": ("perplexity", 0, logs)}
    tasks = {
        "lambada_openai": task(right(2, 1, 1, 0, examples=2), choices=0, **more),
        "other": task(right(9, 5, 5, 5)),
    }
    result = degradation.compute(make_scores(plans, tasks)).sel(
        variant=["baseline", "skip:start=1", "random:start=1"]
    )
    assert_allclose(result["perplexity"][:, 0], np.exp([1, 3, 3]))
    for part in ("", "_standard_error", "_low", "_high"):
        assert np.isnan(result["perplexity" + part][:, 1]).all()
    # both, the first twice or the second twice
    assert_allclose(
        [result["perplexity_low"][0, 0], result["perplexity_high"][0, 0]], np.exp([0.5, 1.5])
    )
    assert result["perplexity_standard_error"][1, 0] == pytest.approx(0, abs=1e-12)


def test_order_sensitivity_by_hand() -> None:
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
    source = make_scores(plans, tasks)
    assert source.dataset.sizes["plan"] == 6
    result = degradation.compute(source)
    assert result["kind"].values.tolist() == ["mathematics", "reasoning", "semantics"]
    mathematics = 1 - np.mean([4 / 16, 8 / 16, 3 / 16])
    reasoning = 1 - np.mean([0.5, 1, 0.75])
    semantics = 1 - np.mean([0.9, 0.8, 0.7])
    assert_allclose(result["order_sensitivity"], [mathematics, reasoning, semantics])
    assert result["order_difference"] == pytest.approx((mathematics + reasoning) / 2 - semantics)
    assert result["task_kind"].values.tolist()[3:] == ["semantics", "knowledge", "other"]


@pytest.mark.parametrize(
    "names", [("arithmetic", "arc_easy", "mmlu"), ("recall", "grammar", "mmlu")]
)
def test_no_order_difference_without_its_two_sides(names: tuple[str, ...]) -> None:
    plans = ["baseline", "reverse:start=0..1"]
    result = degradation.compute(
        make_scores(plans, {name: task(right(16, 8, 4)) for name in names})
    )
    for part in ("", "_standard_error", "_low", "_high"):
        assert np.isnan(result["order_difference" + part])
    assert np.isfinite(result["order_sensitivity"]).all()


def test_no_order_sensitivity_without_orders() -> None:
    result = degradation.compute(
        make_scores(["baseline", "skip:start=0..2"], {"arithmetic": task(right(16, 8, 4, 9))})
    )
    assert np.isnan(result["order_sensitivity"]).all()


def test_comparison_by_hand() -> None:
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
    result = degradation.compute(make_scores(plans, {"recall": task(score, choices=0)}))
    pairs = list(zip(result["family_a"].values, result["family_b"].values, strict=True))
    assert pairs == [
        ("skip", "reverse"),
        ("skip", "looped_parallel"),
        ("reverse", "looped_parallel"),
    ]
    by_name = dict(zip(result["plan_name"].values, result["raw"][:, 0].values, strict=True))
    loops = [by_name[f"looped_parallel:start={start},loops=3"] for start in (0, 1)]
    assert_allclose(
        result["harm_difference"], [0.6 - 0.95, (0.5 + 0.6) / 2 - np.mean(loops), 0.95 - loops[1]]
    )
    assert result["harm_difference"].dims == ("comparison",)
    assert {"family_a", "family_b"} <= set(result.coords)


def test_seeds_are_averaged_and_their_spread_is_theirs() -> None:
    """10, 14 and 12 of 20 right: 12 on average, standard deviation 2."""
    plans = ["baseline", "random:start=0,seed=0..2"]
    result = degradation.compute(make_scores(plans, {"arc_easy": task(right(20, 10, 14, 12))}))
    at = result.sel(variant="random:start=0").isel(task=0)
    assert (int(at["variant_seeds"]), str(at["variant_family"].values)) == (3, "random")
    assert float(at["value"]) == pytest.approx(0.6)
    assert float(at["value_spread"]) == pytest.approx(0.1)
    assert float(at["normalised"]) == pytest.approx((0.6 - 0.25) / 0.75)
    assert float(at["normalised_spread"]) == pytest.approx(0.1 / 0.75)
    assert np.isnan(result["value_spread"].sel(variant="baseline")).all()


# Against loops and closed forms


def test_equals_a_loop_over_resamples() -> None:
    """Everything made of several tasks is made again of each resample."""
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
    source = make_scores(plans, tasks)
    result = degradation.compute(source, resamples=200, seed=3)
    draws = {
        name: replicates_of(name, each.metrics["acc"][2], plans, 200, 3)
        for name, each in tasks.items()
    }
    chance = result["chance"].values
    named = resolve(plans, T)
    pools = find_variants([each.name for each in named], [each.plan.text for each in named], T)
    members = [list(pool.plans) for pool in pools]
    starts = {pool.name: int(pool.values.get("start", T)) for pool in pools}
    orders = [
        i
        for i, v in enumerate(pools)
        if v.name.startswith(("reverse", "random")) and starts[v.name] < 2
    ]
    families = ["skip", "reverse", "random", "parallel"]

    def statistics(raw: Array) -> dict[str, Any]:
        value = np.array([raw[m].mean(0) for m in members])
        normalised = (value - chance) / (value[0] - chance)
        mean = normalised.mean(1)
        harm = [
            [mean[i] for i, v in enumerate(pools) if v.family == f and starts[v.name] < 2]
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

    whole = statistics(np.array([each.metrics["acc"][2].mean(1) for each in tasks.values()]).T)
    resampled = [statistics(np.array([draws[name][i] for name in sizes]).T) for i in range(200)]
    assert result.attrs["undefined"] == 0
    every, each = sum(sizes.values()), list(sizes.values())
    samples = {
        "order_sensitivity": [50, 61, 70 + 40],
        **dict.fromkeys(("raw", "value", "difference", "normalised"), each),
    }
    bounds = {"raw": (0, 1), "value": (0, 1), "difference": (-1, 1)}
    for name, value in whole.items():
        of, within = samples.get(name, every), bounds.get(name, (-np.inf, np.inf))
        assert_estimate(
            result, name, value, np.array([each[name] for each in resampled]), of, within
        )


def test_standard_errors_of_differences_are_the_paired_ones() -> None:
    """Standard deviation of the examples' differences over the root of their number."""
    score = answers(3, 400, seed=1, worst=0.8)
    result = degradation.compute(
        make_scores(["baseline", "skip:start=0..1"], {"arc_easy": task(score)}), resamples=4000
    )
    paired = (score - score[0]).std(1) / 20
    assert_allclose(result["difference_standard_error"][1:, 0], paired[1:], rtol=0.05)
    apart = np.sqrt(score.var(1) + score[0].var()) / 20
    assert (result["difference_standard_error"][1:, 0] < 0.9 * apart[1:]).all()
    assert_allclose(result["raw_standard_error"][:, 0], score.std(1) / 20, rtol=0.05)
    linearised = (
        (score - result["normalised"].values * (score[0] - 0.25)).std(1)
        / 20
        / (score[0].mean() - 0.25)
    )
    assert_allclose(result["normalised_standard_error"][1:, 0], linearised[1:], rtol=0.06)


def test_intervals_cover_the_truth() -> None:
    """Right with chances 0.9 and 0.6 in two tasks of 80 examples; 95 % nominal, 200 studies."""
    truth, generator = (0.6 - 0.25) / (0.9 - 0.25), np.random.default_rng(0)
    hits = []
    for _ in range(200):
        tasks = {
            n: task(generator.uniform(size=(2, 80)) < np.array([[0.9], [0.6]]))
            for n in ("arc_easy", "piqa")
        }
        result = degradation.compute(
            make_scores(["baseline", "skip:start=1"], tasks), resamples=300
        )
        hits.append(bool(result["mean_low"][1] <= truth <= result["mean_high"][1]))
    assert 0.9 <= np.mean(hits) <= 0.99


def test_p_values_follow_the_difference() -> None:
    plans = ["baseline", "skip:start=0..1", "reverse:start=0..1", "parallel:start=0..1"]
    score = answers(7, 300, worst=0.9)
    # Reverse is far worse than the others.
    score[[3, 4]] = answers(7, 300, seed=1, worst=0.4)[[5, 6]]
    result = degradation.compute(make_scores(plans, {"recall": task(score, choices=0)}))
    clear, none, clear_too = result["p_value"].values
    least = 2 * stats.t.cdf(stats.norm.ppf(1 / 1001) * np.sqrt(299 / 300), 299)  # about 2 / 1001
    assert_allclose([clear, clear_too], least)
    assert none > 0.01
    assert_allclose(result["p_holm"], [3 * least, none, 3 * least])
    assert float(result["harm_difference_low"][0]) > 0


# Identities


def test_draws_of_a_task_depend_on_no_other_task() -> None:
    plans = ["baseline", "skip:start=0..1"]
    tasks = {name: task(answers(3, seed=i)) for i, name in enumerate(("piqa", "sciq", "recall"))}
    every, one = (
        degradation.compute(make_scores(plans, chosen))
        for chosen in (tasks, {"sciq": tasks["sciq"]})
    )
    for name in ("raw_low", "difference_standard_error", "normalised_high"):
        assert_allclose(every[name].sel(task="sciq"), one[name].sel(task="sciq"), rtol=1e-12)
    same = degradation.compute(make_scores(plans, {"piqa": tasks["piqa"], "sciq": tasks["piqa"]}))
    assert (same["raw_standard_error"][:, 0] != same["raw_standard_error"][:, 1]).all()


def test_seeds_reproduce_draws_and_others_do_not() -> None:
    source = make_scores(["baseline", "skip:start=1"], {"piqa": task(answers(2))})
    first, again, other = (
        degradation.compute(source, resamples=50, seed=seed) for seed in (5, 5, 6)
    )
    xr.testing.assert_identical(first, again)
    assert (first["raw_standard_error"] != other["raw_standard_error"]).all()


def test_the_order_of_plans_changes_nothing() -> None:
    """Nor do blocks."""
    plans = ["skip:start=1", "reverse:start=0", "baseline"]
    score = answers(3)
    order = [2, 0, 1]
    blocks = np.arange(60) // 25
    one = degradation.compute(make_scores(plans, {"piqa": task(score[[1, 2, 0]], block=blocks)}))
    other = degradation.compute(make_scores([plans[i] for i in order], {"piqa": task(score)}))
    assert set(one["variant"].values) == set(other["variant"].values)
    for name in ("value", "normalised_low", "median_standard_error", "p_value"):
        assert_allclose(
            one.sortby("variant")[name], other.sortby("variant")[name], rtol=1e-12, err_msg=name
        )


# Variants, tasks and metrics


def test_parameters_are_coordinates() -> None:
    plans = ["baseline", "skip:start=1", "random:start=0,seed=4", "looped_parallel:start=0,loops=3"]
    plans += [
        "drop:layer=2,part=mlp",
        "switch:layer=3",
        "drop_block:first=1,last=3",
        "repeat:layer=2,times=4",
        "5-0",
    ]
    result = degradation.compute(make_scores(plans, {"piqa": task(answers(9))}))
    result = result.sel(
        variant=["random:start=0" if name.startswith("random") else name for name in plans]
    )
    assert result["plan_name"].values.tolist() == plans
    assert result["plan"].values.tolist() == plans
    assert result["plan_text"].values.tolist()[1] == "0, 1, 5"
    assert result["family"].values.tolist()[-2:] == ["repeat", ""]
    assert result["start"].values.tolist() == [-1, 1, 0, 0, -1, -1, -1, -1, -1]
    assert result["layer"].values.tolist() == [-1, -1, -1, -1, 2, 3, -1, 2, -1]
    assert result["seed"].values.tolist() == [-1, -1, 4, -1, -1, -1, -1, -1, -1]
    assert result["loops"].values.tolist() == [-1, -1, -1, 3, -1, -1, -1, -1, -1]
    assert result["part"].values.tolist() == ["", "", "", "", "mlp", "", "", "", ""]
    assert result["affected"].values.tolist() == [0, 3, 5, 5, 1, 2, 3, 1, -1]
    for name in ("family", "start", "layer", "loops", "part", "affected"):
        assert_array_equal(result[f"variant_{name}"].values, result[name].values)
    assert "variant_seed" not in result.coords


def test_the_metric_asked_for_where_a_task_has_it() -> None:
    """Else acc, an exact_match, or the first mean; not one in which lower is better."""
    plans, score = ["baseline", "skip:start=1"], right(16, 8)
    better, worse = ("mean", 1, right(18, 9)), ("mean", 0, right(1, 1))
    tasks = {
        "a": task(score, acc_norm=better),
        "b": task(score),
        "c": task_of(
            {"f": ("mean", 1, score), "brier": worse, "exact_match,strict": better},
            gold=np.arange(20) % 4,
        ),
        "d": task(score, metric="em", choices=0),
        "e": task_of(
            {"bytes": worse, "perplexity": ("perplexity", 0, -score), "g": ("f1", 1, score)}
        ),
    }
    result = degradation.compute(make_scores(plans, tasks), metric="acc_norm")
    assert result["metric_of"].values.tolist() == [
        "acc_norm",
        "acc",
        "exact_match,strict",
        "em",
        "",
    ]
    assert_allclose(result["raw"][0], [0.9, 0.8, 0.9, 0.8, NAN])
    assert result.attrs["metric"] == "acc_norm"
    assert result["valid"].values.tolist() == [1, 1, 1, 1, 0]
    assert_allclose(result["perplexity"][:, 4], np.exp([0.8, 0.4]))
    for name in ("chance", "baseline"):
        assert np.isnan(result[name][4])
    assert degradation.compute(make_scores(plans, tasks))["metric_of"].values.tolist()[0] == "acc"


def test_tasks_that_the_baseline_guesses_are_left_out() -> None:
    """6 of 20 right where chance is 5, and 4, of which the standard errors are 2 and 1.8."""
    tasks = {"piqa": task(right(16, 8)), "sciq": task(right(6, 20)), "mmlu": task(right(4, 20))}
    result = degradation.compute(make_scores(["baseline", "skip:start=1"], tasks))
    assert result["valid"].values.tolist() == [1, 0, 0]
    for name in ("median", "mean"):
        assert_allclose(result[name], [1, 0.15 / 0.55])
        assert np.isfinite(result[f"{name}_high"]).all()
    assert_allclose(result["normalised"].sel(task="sciq"), [1, 0.75 / 0.05])
    assert np.isnan(result["normalised_low"].sel(task="sciq")).all()
    assert np.isnan(result["normalised"].sel(task="mmlu")).all()
    assert np.isfinite(result["value_low"]).all()


def test_no_valid_task() -> None:
    plans = ["baseline", "skip:start=0..1", "reverse:start=0..1"]
    result = degradation.compute(make_scores(plans, {"piqa": task(right(5, 5, 6, 7, 8))}))
    for name in ("median", "mean", "order_difference", "harm_difference", "p_value", "p_holm"):
        assert np.isnan(result[name]).all()
    assert result.sizes["kind"] == 0
    assert result.sizes["comparison"] == 1


def test_resamples_without_a_baseline_above_chance_are_left_out() -> None:
    """9 of 20 right where chance is 1/4: more than two standard errors above, but not in every
    draw.
    """
    source = make_scores(
        ["baseline", "skip:start=1"], {"piqa": task(right(10, 8)), "sciq": task(right(20, 8))}
    )
    result = degradation.compute(source)
    base, other = replicates_of("piqa", right(10, 8), ["baseline", "skip:start=1"]).T
    kept = base > 0.25
    assert result.attrs["undefined"] == (~kept).sum() > 0
    error, low, high = summarise((other - 0.25)[kept] / (base - 0.25)[kept], 20)
    assert_allclose(result["normalised_standard_error"][1, 0], error)
    assert_allclose([result["normalised_low"][1, 0], result["normalised_high"][1, 0]], [low, high])
    assert np.isfinite(result["median_high"]).all()


def test_what_is_not_finished_is_not_scored() -> None:
    """The second block is missing under skip, the first under the baseline."""
    plans = ["baseline", "skip:start=1", "reverse:start=1"]
    tasks = {
        "piqa": task(answers(3), block=0),
        "sciq": task(answers(3, seed=1), block=np.arange(60) // 30 + 1),
    }
    result = degradation.compute(
        make_scores(plans, tasks, done=[[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    ).sel(variant=plans)
    assert np.isnan(result["raw"]).values.tolist() == [
        [False, False],
        [False, True],
        [False, False],
    ]
    assert np.isnan(result["raw_low"]).values.tolist() == np.isnan(result["raw"]).values.tolist()
    assert (
        np.isnan(result["mean"]).values.tolist()
        == np.isnan(result["median_low"]).values.tolist()
        == [False, True, False]
    )
    assert np.isnan(result["harm_difference"]).all()
    assert np.isnan(result["p_value"]).all()
    assert result.attrs["incomplete"] == 1
    assert not result["nonfinite"].any()
    result = degradation.compute(make_scores(plans, tasks, done=[[0, 1, 1], [1, 1, 1], [1, 1, 1]]))
    assert result["valid"].values.tolist() == [0, 1]
    assert np.isfinite(result["mean"]).all()
    assert np.isnan(result["normalised"].sel(task="piqa")).all()


@pytest.mark.parametrize("lost", [NAN, np.inf, -np.inf])
def test_states_that_became_non_finite_have_no_score(lost: float) -> None:
    plans = ["baseline", "skip:start=1", "random:start=0,seed=0..1"]
    score = answers(4)
    score[3, [4, 9, 11]] = lost
    logs = -1 - answers(4)
    logs[3, [4, 9, 11]] = lost
    tasks = {
        "lambada": task(score, choices=0, perplexity=("perplexity", 0, logs)),
        "sciq": task(answers(4, seed=1)),
    }
    result = degradation.compute(make_scores(plans, tasks)).sel(
        variant=["baseline", "skip:start=1", "random:start=0"]
    )
    assert result["nonfinite"].values.tolist() == [[0, 0], [0, 0], [0, 0], [3, 0]]
    assert result.attrs["incomplete"] == 0
    for name in ("value", "normalised", "difference", "perplexity"):
        assert np.isnan(result[name].sel(task="lambada")).values.tolist() == [False, False, True], (
            name
        )
    assert np.isnan(result["median"]).values.tolist() == [False, False, True]
    assert np.isfinite(result["value"].sel(task="sciq")).all()


def test_perplexities_beyond_all_numbers() -> None:
    logs = np.array([[-1.0, -2, -3], [-1e4, -2e4, -1e3]])
    tasks = {
        "lambada": task(right(3, 0, examples=3), choices=0, perplexity=("perplexity", 0, logs))
    }
    result = degradation.compute(make_scores(["baseline", "skip:start=1"], tasks))
    assert_allclose(result["perplexity"][:, 0], [np.exp(2), np.inf])
    assert np.isnan(result["perplexity_high"][1, 0])


def test_one_example_has_no_standard_error() -> None:
    result = degradation.compute(
        make_scores(["baseline", "skip:start=1"], {"recall": task([[1], [0]], choices=0)})
    )
    assert result["raw"].values.tolist() == [[1], [0]]
    assert np.isnan(result["raw_standard_error"]).all()
    assert not result["valid"].any()
    assert np.isnan(result["mean"]).all()


# Round trips and bad input


def suite() -> MadeUpScores:
    plans = ["painters", "dropouts", "5-0"]
    count = len(resolve(plans, T))
    more: dict[str, Any] = {"perplexity": ("perplexity", 0, -1 - answers(count, 30))}
    return make_scores(
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
        make_scores("baseline", {"boolq": task(right(16))}),  # neither kinds nor comparisons
        make_scores(["baseline", "skip:start=1"], {"piqa": task(right(5, 5))}),
    ],
    ids=["suite", "baseline", "invalid"],
)
def test_a_saved_result_holds_the_same(tmp_path: Path, source: MadeUpScores) -> None:
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


def test_names() -> None:
    result = degradation.compute(suite(), resamples=20, seed=2)
    assert result.attrs == {
        "analysis": "degradation",
        "description": "Scores under layer plans, against the baseline's and chance.",
        "model": "Größe/モデル",
        "layers": T,
        "metric": "acc",
        "interval": "95% of a bootstrap over examples",
        "resamples": 20,
        "seed": 2,
        "undefined": result.attrs["undefined"],
        "incomplete": 0,
    }
    for name in (*ESTIMATES, "order_sensitivity", "order_difference", "harm_difference"):
        assert {f"{name}_{part}" for part in ("standard_error", "low", "high")} < set(
            result.data_vars
        )
    assert result["raw"].dims == result["nonfinite"].dims == ("plan", "task")
    assert result["normalised"].dims == ("variant", "task")
    assert result["median"].dims == ("variant",)
    assert result["order_sensitivity"].dims == ("kind",)
    assert result["order_difference"].dims == ()
    assert result["valid"].dtype == np.int8


def test_a_store_as_zarr_gives_it(tmp_path: Path) -> None:
    """Variable-length strings and lazy arrays."""
    source = suite()
    source.dataset.to_zarr(tmp_path / "scores.zarr", zarr_format=3, consolidated=False)
    with xr.open_zarr(tmp_path / "scores.zarr", consolidated=False, chunks=None) as opened:
        stored = MadeUpScores(opened, T, source.identity)
        result = degradation.compute(stored, resamples=20)
    xr.testing.assert_identical(result, degradation.compute(source, resamples=20))


def test_a_store_without_the_baseline() -> None:
    source = make_scores(["skip:start=0..1"], {"piqa": task(answers(2))})
    with pytest.raises(
        RepsimError,
        match=r"^the baseline is not among the 2 plans evaluated; add --plan baseline --app",
    ):
        degradation.compute(source)


def test_a_metric_that_no_task_has() -> None:
    more: dict[str, Any] = {
        "perplexity": ("perplexity", 0, [[-1.0] * 60] * 2),
        "brier": ("mean", 0, answers(2)),
    }
    source = make_scores(
        ["baseline", "skip:start=0"], {"piqa": task(answers(2), metric="exact_match", **more)}
    )
    for metric in ("acc_norm", "perplexity", "brier"):
        with pytest.raises(
            RepsimError, match=f"^metric='{metric}': no task here has it; choose exact_match, acc$"
        ):
            degradation.compute(source, metric=metric)
    assert degradation.compute(source, metric="acc")["metric_of"].values.tolist() == ["exact_match"]


def test_a_task_without_examples() -> None:
    source = make_scores("baseline", {"piqa": task(answers(1))})
    source.dataset = source.dataset.reindex(
        task=["piqa", "sciq"], fill_value={"aggregation": "", "higher_is_better": -1}
    )
    with pytest.raises(RepsimError, match=r"^task 'sciq' has no examples"):
        degradation.compute(source)


@pytest.mark.parametrize(("name", "value", "least"), [("resamples", 1, 2), ("seed", -1, 0)])
def test_too_small_a_number(name: str, value: int, least: int) -> None:
    source, options = make_scores("baseline", {"piqa": task(answers(1))}), {name: value}
    with pytest.raises(RepsimError, match=f"^{name}={value}: at least {least}$"):
        degradation.compute(source, **options)
