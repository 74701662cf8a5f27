"""Permutation nulls and several tests: by hand, against statsmodels, and error rates."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.stats import kstest
from statsmodels.stats.multitest import multipletests

from repsim.measures import debiased_linear_cka
from repsim.measures.cka import gram, u_centre
from repsim.stats import chance_corrected, holm, max_statistic_p_values, permute_samples

Array = NDArray[Any]


def test_p_values_by_hand() -> None:
    """The largest of each permutation are 3, 5 and 4; the value itself counts as one more."""
    null = np.array([[3.0, 1], [2, 5], [4, 0]])
    assert_allclose(max_statistic_p_values(np.array([3.0, 4.5, 6]), null), [4 / 4, 2 / 4, 1 / 4])


def test_chance_corrected_by_hand() -> None:
    """Chance gives 0.2 and 0.5: then 0.6 is half way from chance to 1, and 0.2 beyond chance on the
    other side.
    """
    null = np.array([[0.1, 0.4], [0.3, 0.6]])
    assert_allclose(chance_corrected(np.array([0.6, 0.2]), null), [0.5, -0.6], rtol=1e-12)
    assert_allclose(chance_corrected(null.mean(0), null), [0, 0], atol=1e-15)
    assert_allclose(chance_corrected(np.ones(2), null), [1, 1], rtol=1e-15)


def test_permutations_by_hand() -> None:
    """Two samples of two items stay or change places, the items of each in their order."""
    found = {tuple(order.tolist()) for order in permute_samples(np.array([0, 0, 1, 1]), 50)}
    assert found == {(0, 1, 2, 3), (2, 3, 0, 1)}
    interleaved = {tuple(order.tolist()) for order in permute_samples(np.array([7, 3, 7, 3]), 50)}
    assert interleaved == {(0, 1, 2, 3), (1, 0, 3, 2)}


def test_holm_by_hand() -> None:
    """In order: 4 times 0.005, 3 times 0.01, 2 times 0.03, and 0.04, which may not be less than
    what came before.
    """
    assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert_allclose(holm(np.array([0.5, 0.6, 0.01])), [1, 1, 0.03])
    assert_allclose(holm(np.array([0.2])), [0.2])


@pytest.mark.parametrize("samples", [np.arange(30) // 3, np.arange(30) % 10, np.arange(30)])
def test_permutations_exchange_whole_samples(samples: Array) -> None:
    """Every item once; the items of one sample take the places of another's, in their order."""
    orders = list(permute_samples(samples, 20))
    assert len(orders) == 20
    for order in orders:
        assert_array_equal(np.sort(order), np.arange(30))
        for sample in np.unique(samples):
            (source,) = np.unique(samples[order[samples == sample]])
            assert_array_equal(order[samples == sample], np.flatnonzero(samples == source))


def test_every_order_of_samples_is_equally_likely() -> None:
    """Six orders of three samples, 3000 draws: 500 each, of which the deviation is 20."""
    orders = [
        tuple(order[::2].tolist()) for order in permute_samples(np.repeat(np.arange(3), 2), 3000)
    ]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 420
    assert max(counts) < 580


def whole_and_single(generator: np.random.Generator) -> list[Array]:
    """p-values of two unrelated views, by shuffles of samples and of items; a sample's four items
    are alike.
    """
    samples = np.repeat(np.arange(12), 4)
    x, y = (
        np.repeat(generator.normal(size=(12, 3)), 4, axis=0) + generator.normal(size=(48, 3)) / 2
        for _ in range(2)
    )
    value, found = debiased_linear_cka(x, y), []
    kernel, other = u_centre(gram(x)), u_centre(gram(y))
    other /= np.linalg.norm(kernel) * np.linalg.norm(other)
    for each in (samples, np.arange(48)):
        null = [
            np.vdot(kernel, other[np.ix_(o, o)])
            for o in permute_samples(each, 99, seed=int(generator.integers(2**31)))
        ]
        found.append(max_statistic_p_values(np.array(value), np.array(null)))
    return found


def test_p_values_of_unrelated_views_are_uniform_where_samples_are_permuted() -> None:
    """They are multiples of 1 / 100, each as likely: less a uniform hundredth, uniform from 0 to 1.

    Shuffles of items take what ties a sample's items together for a relation of the views.
    """
    generator = np.random.default_rng(0)
    whole, single = np.transpose([whole_and_single(generator) for _ in range(200)])
    assert_allclose(whole * 100, np.round(whole * 100), atol=1e-9)
    assert kstest(whole - generator.uniform(0, 0.01, size=200), "uniform").pvalue > 0.05
    assert (whole <= 0.05).mean() < 0.09
    assert (single <= 0.05).mean() > 0.2


def test_related_views_have_the_smallest_p_value() -> None:
    x, noise = np.random.default_rng(0).normal(size=(2, 40, 3))
    null = np.array(
        [debiased_linear_cka(x, (x + noise)[order]) for order in permute_samples(np.arange(40), 99)]
    )
    assert max_statistic_p_values(np.array(debiased_linear_cka(x, x + noise)), null) == 1 / 100


def test_the_largest_statistic_controls_the_error_of_all_measures_together() -> None:
    """Ten views unrelated to one: any p <= 0.05 in about 5 % of draws; of each by itself, in far
    more.
    """
    generator = np.random.default_rng(1)
    together, alone = [], []
    for _ in range(200):
        kernels = u_centre(gram(generator.normal(size=(11, 16, 3))))
        kernels /= np.linalg.norm(kernels, axis=(1, 2), keepdims=True)
        one, others = kernels[0], kernels[1:].reshape(10, -1)
        null = np.array(
            [others @ one[np.ix_(o, o)].ravel() for o in permute_samples(np.arange(16), 99)]
        )
        value = others @ one.ravel()
        together.append((max_statistic_p_values(value, null) <= 0.05).any())
        alone.append(
            any(max_statistic_p_values(v, n) <= 0.05 for v, n in zip(value, null.T, strict=True))
        )
    assert np.mean(together) <= 0.09
    assert np.mean(alone) > 0.3


def test_a_permutation_that_changes_nothing_is_as_large_as_the_value_whatever_the_rounding() -> (
    None
):
    """Two samples stay where they are in every second shuffle; another order of sums tells them
    from themselves.
    """
    generator, samples = np.random.default_rng(0), np.repeat([0, 1], 8)
    found = []
    for _ in range(20):
        kernels = u_centre(gram(generator.normal(size=(3, 16, 4))))
        kernels /= np.linalg.norm(kernels, axis=(1, 2), keepdims=True)
        flat, apart = kernels.reshape(3, -1), ~np.eye(3, dtype=bool)
        null = [
            flat @ kernels[:, o][:, :, o].reshape(3, -1).T for o in permute_samples(samples, 99)
        ]
        found.append(
            np.nanmin(
                max_statistic_p_values(
                    np.where(apart, flat @ flat.T, np.nan), np.where(apart, null, np.nan)
                )
            )
        )
    assert min(found) > 0.3


def test_holm_equals_stepping_down() -> None:
    """Of the tests still there, the smallest is rejected where it is at most level / how many; the
    first that is not ends it."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = np.round(generator.uniform(size=7) ** 4, 3)
        adjusted = holm(p)
        for level in (0.01, 0.0501, 0.2, 0.7):
            left, rejected = list(range(7)), np.zeros(7, bool)
            while left and p[first := min(left, key=lambda i: p[i])] <= level / len(left):
                rejected[first] = True
                left.remove(first)
            assert_array_equal(adjusted <= level, rejected)


def test_holm_finds_anything_where_nothing_is_in_5_percent() -> None:
    generator = np.random.default_rng(0)
    p = generator.uniform(size=(2000, 8))
    assert 0.03 <= np.mean([(holm(row) <= 0.05).any() for row in p]) <= 0.065
    assert ((p <= 0.05).any(1)).mean() > 0.3


def test_p_values_have_the_shape_of_the_values() -> None:
    null = np.random.default_rng(0).normal(size=(19, 4, 4))
    found = max_statistic_p_values(null[3], null)
    assert found.shape == (4, 4)
    assert found.min() >= 2 / 20  # it is among its own null, and no smaller than 1 / 20
    assert max_statistic_p_values(np.full((4, 4), 100.0), null).max() == 1 / 20
    assert max_statistic_p_values(np.full((4, 4), -100.0), null).min() == 1


def test_what_is_no_comparison_has_no_p_value_and_takes_part_in_none() -> None:
    value, null = np.array([np.nan, 2.0]), np.array([[np.nan, 1.0], [np.nan, 3], [np.nan, 0]])
    assert_array_equal(max_statistic_p_values(value, null), [np.nan, 2 / 4])
    assert_array_equal(max_statistic_p_values(value[1:], null[:, 1:]), [2 / 4])


def test_a_null_without_any_comparison() -> None:
    found = max_statistic_p_values(np.full(2, np.nan), np.full((9, 2), np.nan))
    assert_array_equal(found, np.full(2, np.nan))


def test_chance_corrected_keeps_what_was_not_measured() -> None:
    null = np.array([[np.nan, 0.2], [np.nan, 0.2]])
    assert_allclose(chance_corrected(np.array([np.nan, 0.6]), null), [np.nan, 0.5])


def test_samples_of_different_sizes_cannot_change_places() -> None:
    with pytest.raises(ValueError, match="samples of 1 to 3 items cannot change places"):
        list(permute_samples(np.array([0, 0, 0, 1, 2, 2]), 5))


def test_a_seed_decides_the_orders() -> None:
    samples = np.repeat(np.arange(8), 2)
    first, again, other = (
        np.array(list(permute_samples(samples, 20, seed=seed))) for seed in (5, 5, 6)
    )
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("tests", [1, 2, 7, 60])
def test_holm_equals_statsmodels(tests: int) -> None:
    """Also with equal p-values, and with those of 0 and 1."""
    generator = np.random.default_rng(tests)
    for digits in (1, 2, 15):
        p_values = np.round(generator.uniform(size=tests) ** 4, digits)
        expected = multipletests(p_values, method="holm")[1]
        assert_allclose(holm(p_values), expected, rtol=1e-12)


def test_holm_of_tests_with_gaps_equals_statsmodels_without_them() -> None:
    p_values = np.array([np.nan, 0.02, np.nan, 0.03, 0.9])
    known = ~np.isnan(p_values)
    adjusted = holm(p_values)
    expected = multipletests(p_values[known], method="holm")[1]
    assert_allclose(adjusted[known], expected, rtol=1e-12)
    assert np.isnan(adjusted[~known]).all()
    assert_array_equal(holm(np.full(2, np.nan)), np.full(2, np.nan))
    assert holm(np.empty(0)).shape == (0,)


def test_nothing_is_above_a_chance_of_one() -> None:
    corrected = chance_corrected(np.array([1.0, 0.5]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert_array_equal(corrected, [np.nan, 0.5])
