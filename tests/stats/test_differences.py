"""Differences from one entry: by hand, and p-values against scipy's and statsmodels'."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import ttest_rel
from statsmodels.stats.contingency_tables import mcnemar

from repsim.stats import bootstrap, bootstrap_p_value, ratio_of_sums
from repsim.stats.bootstrap import Estimate, bootstrap_shares
from repsim.stats.differences import subtract_row


def test_by_hand() -> None:
    replicates = np.array([[0.8, 0.5, 0.8], [1.0, 0.5, 0.6]])
    columns = subtract_row(Estimate(np.array([0.9, 0.5, 0.7]), replicates), 0, most=0.35)
    assert_allclose(columns["difference"], [np.nan, -0.4, -0.2])
    assert_allclose(columns["difference_standard_error"], [np.nan, 0.1 * 2**0.5, 0.2 * 2**0.5])
    assert columns["difference_low"][1] == -0.35  # what it cannot pass
    assert columns["difference_high"][2] <= 0
    assert all(np.isnan(values[0]) for values in columns.values())


def test_p_values_of_means_are_about_those_of_a_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=300)
    values = np.stack([base, base + generator.normal(0.1, 0.5, size=300)], -1)
    mean = bootstrap(ratio_of_sums(values, np.ones(300)), 300, resamples=10_000)
    p_value = subtract_row(mean, 0)["p_value"][1]
    assert p_value == pytest.approx(ttest_rel(values[:, 1], values[:, 0]).pvalue, rel=0.3)


@pytest.mark.parametrize(("lost", "won"), [(12, 2), (30, 5), (8, 6)])
def test_p_values_of_shares_are_about_mcnemar_s(lost: int, won: int) -> None:
    base = np.array([1] * lost + [0] * won + [1] * 80 + [0] * 40)
    other = np.array([0] * lost + [1] * won + [1] * 80 + [0] * 40)
    shares = bootstrap_shares(np.stack([base, other], -1), resamples=4000)
    p_value = subtract_row(shares, 0)["p_value"][1]
    exact = mcnemar([[80, lost], [won, 40]], exact=True).pvalue
    assert 0.4 * exact < p_value < 3 * exact


def test_a_p_value_can_stand_among_hundreds() -> None:
    """A share of 1000 resamples cannot, as it is never below 2 / 1001."""
    base = np.repeat([1, 0], [90, 10])
    other = np.repeat([0, 1, 0], [60, 30, 10])
    shares = bootstrap_shares(np.stack([base, other], -1))
    assert subtract_row(shares, 0)["p_value"][1] < 1e-4
    by_share = bootstrap_p_value(shares.map(lambda array: array[..., 1] - array[..., 0]))
    assert 300 * by_share > 0.05


def test_a_p_value_of_a_mean_stands_for_what_is_made_of_it() -> None:
    values = np.random.default_rng(0).normal(size=(40, 2))
    mean = bootstrap(ratio_of_sums(values, np.ones(40)), 40)
    made = mean.map(np.exp)
    columns = subtract_row(made, 0, tested=mean)
    assert_allclose(columns["p_value"], subtract_row(mean, 0)["p_value"])
    assert_allclose(columns["difference"][1], np.exp(mean.value[1]) - np.exp(mean.value[0]))
