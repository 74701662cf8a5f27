"""Normalised scores: by hand, and draws that depend on nothing but a task's own examples."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from repsim.evaluation.normalised_scores import (
    estimate_mean,
    estimate_means,
    is_share,
    normalise,
    normalise_array,
    summarise_tasks,
)
from repsim.stats.bootstrap import Estimate
from support.scores import answers, right

TEXTS = ("0-5", "0, 1, 5", "0, 1, 3-5")


def test_normalised_scores_by_hand() -> None:
    """(0.55 - 0.25) / (0.8 - 0.25); in the second task the baseline only guesses."""
    scores = np.array([[0.8, 0.5], [0.55, 0.6], [0.25, 0.4]])
    normalised = normalise_array(scores, np.array([0.25, 0.5]))
    assert_allclose(normalised[:, 0], [1, 0.3 / 0.55, 0])
    assert np.isnan(normalised[:, 1]).all()


def test_resamples_without_a_baseline_above_chance_are_left_out() -> None:
    """Of five, two; only those of valid tasks count."""
    replicates = np.array([0.8, 0.2, 0.7, 0.25, 0.9])
    value = Estimate(
        np.array([[0.8, 0.3], [0.5, 0.3]]),
        np.stack([np.stack([replicates, replicates], 1), np.full((5, 2), 0.4)], 1) - [[[0, 0.5]]],
        20,
    )
    normalised, valid, undefined = normalise(value, np.array([0.25, 0.5]))
    assert valid.tolist() == [False, False]  # 0.8 is not two standard errors above
    assert (undefined, len(normalised.replicates)) == (0, 5)
    value = Estimate(np.array([[0.98], [0.5]]), value.replicates[:, :, :1], 20)
    normalised, valid, undefined = normalise(value, np.array([0.25]))
    assert valid.tolist() == [True]
    assert (undefined, len(normalised.replicates)) == (2, 3)
    assert_allclose(normalised.replicates[:, 1, 0], 0.15 / (replicates[[0, 2, 4]] - 0.25))


def test_summaries_are_over_the_valid_tasks_only() -> None:
    normalised = Estimate(
        np.array([[1.0, 1, 1], [0.2, 0.8, 9]]), np.ones((4, 2, 3)), np.arange(3.0)
    )
    mean = summarise_tasks(normalised, np.array([True, True, False]), np.mean)
    assert_allclose(mean.value, [1, 0.5])
    assert mean.samples == 1
    nothing = summarise_tasks(normalised, np.array([False] * 3), np.median)
    assert np.isnan(nothing.value).all()
    assert np.isnan(nothing.replicates).all()


def test_means_of_a_task_are_the_same_in_any_company() -> None:
    tasks = {name: answers(3, seed=row) for row, name in enumerate(("piqa", "sciq"))}
    together = estimate_means(tasks, TEXTS, resamples=50)
    assert together.value.shape == (3, 2)
    for column, (name, scores) in enumerate(tasks.items()):
        alone = estimate_mean(name, scores, TEXTS, resamples=50)
        assert_array_equal(together.value[:, column], alone.value)
        assert_array_equal(together.replicates[:, :, column], alone.replicates)
    fewer = estimate_mean("piqa", tasks["piqa"][[0, 2]], [TEXTS[0], TEXTS[2]], resamples=50)
    assert_allclose(fewer.replicates, together.replicates[:, [0, 2], 0], rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (right(3, 0), True),
        (np.array([[np.nan, 1.0]]), True),
        (np.array([[0.5, 1.0]]), False),
        (np.full((2, 2), np.nan), False),
    ],
)
def test_shares_are_means_of_zeros_and_ones(scores: np.ndarray, expected: bool) -> None:
    assert is_share(scores) == expected


def test_means_of_other_numbers_have_their_standard_error() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 400))
    means = estimate_mean("lambada", scores, TEXTS, resamples=4000)
    assert_allclose(means.value, scores.mean(1))
    assert_allclose(means.standard_error, scores.std(1) / 20, rtol=0.05)
    assert not means.skewed  # percentiles, as exponentials are made of it
