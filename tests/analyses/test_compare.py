"""Paired differences of scores: by hand, against a loop, against matched pairs' own formula, and in
studies whose truth is known.
"""

import zlib
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar

from repsim.analyses import compare, degradation
from repsim.errors import RepsimError
from repsim.evaluation.matched_scores import MatchedTask
from repsim.stats import student_p_value
from support.scores import MadeUpScores, answers, make_scores, right, task

PLANS = ["baseline", "skip:start=1"]
Array = NDArray[np.float64]


def two(
    first: Array, second: Array, name: str = "piqa", plans: Any = "baseline"
) -> tuple[MadeUpScores, MadeUpScores]:
    """Two models' answers to one task, `[plan, example]` each."""
    return (
        make_scores(plans, {name: task(first)}, model="before", weights="b"),
        make_scores(plans, {name: task(second)}, model="after", weights="a"),
    )


def correlated(examples: int, levels: Any, seed: int, rho: float = 0.8) -> Array:
    """Answers of several models, `[model, example]`, each right as often as its level says; of two,
    an example is as hard in a share `rho`.
    """
    generator = np.random.default_rng(seed)
    shared = generator.uniform(size=examples)
    own = generator.uniform(size=(len(levels), examples))
    is_shared = generator.uniform(size=(len(levels), examples)) < rho
    return (np.where(is_shared, shared, own) < np.array(levels)[:, None]).astype(float)


def test_by_hand() -> None:
    """Three of four, and one of four; under the plan one of four, and two."""
    before = [[1, 1, 0, 1], [0, 0, 1, 0]]
    after = [[1, 0, 0, 0], [1, 0, 1, 0]]
    result = compare.compute(*two(np.array(before), np.array(after), plans=PLANS))
    assert_array_equal(result["score"][:, 0], [[0.75, 0.25], [0.25, 0.5]])
    assert_array_equal(result["difference"][:, 0], [[np.nan, -0.5], [np.nan, 0.25]])
    assert result["examples"].values.tolist() == [[4], [4]]
    assert result["store"].values.tolist() == ["before", "after"]
    assert result["plan_text"].values.tolist() == [["0-5"] * 2, ["0, 1, 5"] * 2]
    assert np.isnan(result["mean"]).all()  # of a single task there is none


def test_equals_a_loop_over_draws() -> None:
    """Both stores' answers are drawn together, and each has coins of its own."""
    before, after = answers(1, 30, seed=1)[0], answers(1, 30, seed=2)[0]
    result = compare.compute(*two(before[None], after[None]), resamples=50, seed=3)
    seeds = [3, zlib.crc32(b"piqa")]
    draws = np.random.default_rng(seeds).multinomial(34, [1 / 34] * 30 + [4 / 34], 50)

    def replicates(right_answers: Array, name: bytes) -> Array:
        coin = np.random.default_rng((*seeds, zlib.crc32(name))).binomial(draws[:, -1], 0.5)
        shares = []
        for counts, heads in zip(draws, coin, strict=True):
            total = sum(count * each for count, each in zip(counts, right_answers, strict=False))
            shares.append((total + heads) / 34)
        expected = (30 * right_answers.mean() + 2) / 34
        return right_answers.mean() + np.array(shares) - expected

    difference = replicates(after, b"0-5 of a") - replicates(before, b"0-5 of b")
    assert_allclose(
        result["difference_standard_error"].values.ravel()[1], difference.std(ddof=1), atol=1e-12
    )
    assert_allclose(
        result["score_standard_error"].values.ravel()[1],
        replicates(after, b"0-5").std(ddof=1),
        atol=1e-12,
    )


def test_scores_are_those_of_degradation() -> None:
    first, second = two(answers(2, seed=4), answers(2, seed=5), plans=PLANS)
    result = compare.compute(first, second, resamples=100)
    for column, store in enumerate((first, second)):
        alone = degradation.compute(store, resamples=100)
        for end in ("", "_standard_error", "_low", "_high"):
            assert_array_equal(result[f"score{end}"][:, :, column], alone[f"raw{end}"])


def test_changing_places_changes_signs_alone() -> None:
    first, second = two(answers(2, seed=4), answers(2, seed=5), plans=PLANS)
    third = make_scores(PLANS, {"piqa": task(answers(2, seed=6))}, model="third", weights="c")
    there = compare.compute(first, second, resamples=100)
    back = compare.compute(second, first, resamples=100)
    assert_array_equal(there["difference"][..., 1], -back["difference"][..., 1])
    assert_allclose(there["difference_low"][..., 1], -back["difference_high"][..., 1], atol=1e-12)
    assert_allclose(there["p_value"][..., 1], back["p_value"][..., 1], atol=1e-12)
    more = compare.compute(first, third, second, resamples=100)
    for name in ("difference", "difference_low", "difference_high", "p_value"):
        assert_array_equal(there[name][..., 1], more[name][..., 2])


def test_pairs_that_agree_are_narrower_than_two_samples() -> None:
    before, after = correlated(200, (0.6, 0.6), seed=0, rho=0.95)
    result = compare.compute(*two(before[None], after[None]))
    apart = np.hypot(*result["score_standard_error"].values.ravel())
    assert result["difference_standard_error"].values.ravel()[1] < 0.5 * apart


@pytest.mark.parametrize("seed", range(3))
def test_the_standard_error_is_that_of_matched_pairs(seed: int) -> None:
    """Agresti & Min 2005: one more answer of each of the four kinds of pairs."""
    before, after = correlated(150, (0.55, 0.65), seed)
    result = compare.compute(*two(before[None], after[None]), resamples=4000)
    n = len(before) + 4
    gained, lost = ((after > before).sum() + 1, (after < before).sum() + 1)
    variance = (gained + lost - (gained - lost) ** 2 / n) / n**2
    assert result["difference_standard_error"].values.ravel()[1] == pytest.approx(
        variance**0.5, rel=0.05
    )


@pytest.mark.parametrize("level", [0.6, 0.65, 0.7])
def test_p_values_are_near_mcnemar_s(level: float) -> None:
    before, after = correlated(150, (0.55, level), seed=1)
    result = compare.compute(*two(before[None], after[None]), resamples=4000)
    table = [[np.sum((before == a) & (after == b)) for b in (0, 1)] for a in (0, 1)]
    p_value = mcnemar(table, exact=False, correction=False).pvalue
    assert result["p_value"].values.ravel()[1] == pytest.approx(p_value, abs=0.06)


def test_intervals_hold_the_truth_and_p_values_are_rarely_small() -> None:
    """250 studies of two models, 0.05 apart; and as many of models that are alike."""
    covered = small = 0
    for seed in range(250):
        answered = correlated(80, (0.55, 0.6, 0.55), seed, rho=0.7)
        apart, alike = (
            compare.estimate_task(
                MatchedTask("t", "acc", 0, answered[pair, None], np.ones((1, 80), bool), 0),
                [["p"]] * 2,
                [["a"], ["b"]],
                resamples=200,
                seed=seed,
            )[1]
            for pair in ([0, 1], [0, 2])
        )
        low, high = (end[0, 1] for end in apart.interval())
        covered += low <= 0.05 <= high
        small += student_p_value(alike)[0, 1] <= 0.05
    assert covered / 250 >= 0.95 - 2 * (0.05 * 0.95 / 250) ** 0.5
    assert small / 250 <= 0.05 + 2 * (0.05 * 0.95 / 250) ** 0.5


def test_the_mean_is_over_tasks() -> None:
    first, second = (
        make_scores(
            PLANS,
            {f"task {size}": task(answers(2, size, seed + size)) for size in (40, 60, 80)},
            weights=str(seed),
        )
        for seed in (10, 20)
    )
    result = compare.compute(first, second, resamples=100)
    assert_allclose(result["mean"], result["score"].mean("task"))
    assert_allclose(result["mean_difference"], result["difference"].mean("task", skipna=False))
    errors = result["difference_standard_error"].values
    # Tasks are independent, so their variances add up.
    together = np.sqrt((errors**2).sum(1)) / 3
    assert_allclose(result["mean_difference_standard_error"][:, 1], together[:, 1], rtol=0.25)


def test_every_comparison_counts_for_holm() -> None:
    first, second = two(answers(2, seed=4), answers(2, seed=5), plans=PLANS)
    for store in (first, second):
        assert store.layers == 6
    result = compare.compute(first, second, resamples=400)
    p = result["p_value"].values[..., 1].ravel()
    smaller, larger = sorted(p)
    assert sorted(result["p_holm"].values[..., 1].ravel()) == pytest.approx(
        [min(1, 2 * smaller), min(1, max(2 * smaller, larger))]
    )
    assert np.isnan(result["p_holm"].values[..., 0]).all()


def test_unfinished_examples_are_no_pairs_and_lost_ones_make_nan() -> None:
    block = [0, 0, 0, 1, 1]
    before, after = np.array([[1, 1, 0, 1, 1]]), np.array([[1.0, 0, 0, 0, 0]])
    first = make_scores("baseline", {"piqa": task(before, block=block)})
    second = make_scores("baseline", {"piqa": task(after, block=block)}, done=[[1, 0]])
    result = compare.compute(first, second, resamples=20)
    assert result["examples"].values.tolist() == [[3]]
    assert_allclose(result["score"].values.ravel(), [2 / 3, 1 / 3])
    after[0, 1] = np.nan
    second = make_scores("baseline", {"piqa": task(after, block=block)})
    result = compare.compute(first, second, resamples=20)
    assert result["examples"].values.tolist() == [[5]]
    assert_array_equal(np.isnan(result["score"].values.ravel()), [False, True])
    assert np.isnan(result["p_value"]).all()


def test_what_is_left_out_is_named(caplog: pytest.LogCaptureFixture) -> None:
    first = make_scores(PLANS, {"arc": task(right(9, 8)), "piqa": task(right(9, 8))})
    second = make_scores("baseline", {"piqa": task(right(7))})
    result = compare.compute(first, second, resamples=20)
    assert result.attrs["tasks_left_out"] == "arc: not in every store"
    assert result.attrs["plans_left_out"] == "skip:start=1"
    assert "compare: tasks left out: arc: not in every store" in caplog.text
    assert "compare: plans left out, not in every store: skip:start=1" in caplog.text


def test_the_same_answers_twice_leave_some_doubt() -> None:
    """Of the same weights, say under another prompt: coins differ."""
    first, second = (make_scores("baseline", {"piqa": task(right(20))}) for _ in range(2))
    result = compare.compute(first, second)
    assert result["store"].values.tolist() == ["Größe/モデル", "Größe/モデル (2)"]
    assert result["difference"].values.ravel()[1] == 0
    assert result["difference_low"].values.ravel()[1] < -0.02
    assert result["p_value"].values.ravel()[1] > 0.5


def test_the_summary_is_sorted_by_score() -> None:
    tasks = {"arc": task(right(9, 8)), "piqa": task(right(13, 11))}
    better = {"arc": task(right(10, 7)), "piqa": task(right(11, 11))}
    result = compare.compute(
        make_scores(PLANS, tasks, model="a"), make_scores(PLANS, better, model="b"), resamples=20
    )
    table = compare.summarise(result)
    assert table["plan"].tolist() == ["baseline"] * 6 + ["skip:start=1"] * 6
    assert table["task"].tolist() == ["arc", "arc", "piqa", "piqa", *["mean over tasks"] * 2] * 2
    assert table["store"].tolist()[:6] == ["b", "a", "a", "b", "a", "b"]
    assert table["score"].tolist()[:2] == [0.5, 0.45]
    assert_allclose(table["difference"][:2], [0.05, np.nan])
    many = result.isel(plan=[0, 1] * 4).assign_coords(plan=[f"plan {row}" for row in range(8)])
    many = compare.summarise(many)
    assert set(many["task"]) == {"mean over tasks"}


def test_less_than_two_stores() -> None:
    with pytest.raises(RepsimError, match="compare: one store; name two or more"):
        compare.compute(make_scores("baseline", {"piqa": task(right(3))}))


def test_plot_draws_both_panels() -> None:
    figure = compare.plot(compare.compute(*two(answers(1), answers(1, seed=1)), resamples=20))
    scores, differences = figure.axes
    assert scores.get_xlabel() == "score (acc)"
    assert differences.get_xlabel() == "difference from before"
