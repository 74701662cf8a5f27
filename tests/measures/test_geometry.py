"""The shape of one view: known spectra and dimensions by hand, invariances, plain loops, and what
each item does.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from repsim.measures import anisotropy, effective_rank, norms, participation_ratio, two_nn
from repsim.measures.geometry import (
    anisotropy_parts,
    effective_rank_parts,
    participation_ratio_parts,
    spectrum,
    two_nn_parts,
)
from support.views import random_rotation

Array = NDArray[Any]

PARTS = {
    "participation ratio": lambda x: participation_ratio_parts(*spectrum(x)),
    "effective rank": lambda x: effective_rank_parts(*spectrum(x)),
    "two_nn": two_nn_parts,
    "anisotropy": anisotropy_parts,
}


def some_view(items: int = 60, units: int = 5, seed: int = 0) -> Array:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(items, units)) * np.linspace(0.5, 3, units) + 1


def of_singular_values(values: Any, items: int = 30, units: int = 12) -> Array:
    """A view that has these singular values once centred, and a mean of its own."""
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(items, len(values)))
    left = np.linalg.qr(normal - normal.mean(0)).Q
    return left * np.asarray(values, float) @ random_rotation(units)[
        : len(values)
    ] + generator.normal(size=units)


def ratios(x: Array) -> Array:
    """Second over first neighbour's distance of each item, by plain distances."""
    distance = np.sort(squareform(pdist(x)), axis=1)
    return distance[:, 2] / distance[:, 1]


def singular_values(x: Array, weight: Array) -> Array:
    return np.linalg.svd(
        np.sqrt(weight)[:, None] * (x - weight @ x / weight.sum()), compute_uv=False
    )


def weighted_participation_ratio(x: Array, weight: Array) -> float:
    variances = singular_values(x, weight) ** 2
    return variances.sum() ** 2 / (variances**2).sum()


def weighted_effective_rank(x: Array, weight: Array) -> float:
    share = singular_values(x, weight)
    share = share[share > 1e-9 * share.max()]
    share = share / share.sum()
    return np.exp(-(share * np.log(share)).sum())


def weighted_two_nn(x: Array, weight: Array) -> float:
    """Each item counts `weight` times as a point that has neighbours."""
    return (len(x) - 1) / len(x) * weight.sum() / (weight @ np.log(ratios(x)))


def weighted_anisotropy(x: Array, weight: Array) -> float:
    """Each pair counts as often as both of its items together."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = np.outer(weight, weight)
    np.fill_diagonal(pairs, 0)
    return (pairs * (unit @ unit.T)).sum() / pairs.sum()


WEIGHTED = {
    "participation ratio": weighted_participation_ratio,
    "effective rank": weighted_effective_rank,
    "two_nn": weighted_two_nn,
    "anisotropy": weighted_anisotropy,
}


def test_norms_by_hand() -> None:
    assert_array_equal(norms(np.array([[3, 4], [0, 0], [-5, 12]])), [5, 0, 13])


@pytest.mark.parametrize("directions", [1, 2, 7])
def test_a_ball_of_k_directions_has_dimension_k(directions: Any) -> None:
    """Both ends of k axes: k equal variances."""
    ends = np.concatenate([np.eye(8)[:directions], -np.eye(8)[:directions]])
    assert participation_ratio(ends + 5) == pytest.approx(directions, rel=1e-12)
    assert effective_rank(ends + 5) == pytest.approx(directions, rel=1e-12)


def test_participation_ratio_by_hand() -> None:
    """Singular values 3 and 1, variances 9 and 1."""
    assert participation_ratio(of_singular_values([3, 1])) == pytest.approx(10**2 / 82, rel=1e-12)


def test_effective_rank_by_hand() -> None:
    """Singular values 3 and 1, shares 3 / 4 and 1 / 4: exp(H) = 4 / 3^(3/4)."""
    assert effective_rank(of_singular_values([3, 1])) == pytest.approx(4 / 3**0.75, rel=1e-12)


def test_two_nn_by_hand() -> None:
    """Items at 0, 1 and 3: ratios 3, 2 and 3 / 2, whose logarithms sum to log 9."""
    assert two_nn(np.array([[0.0], [1], [3]])) == pytest.approx(2 / np.log(9), rel=1e-12)


def test_anisotropy_by_hand() -> None:
    """Angles 60°, 90° and 150°: (1/2 + 0 - √3/2) / 3."""
    x = np.array([[1, 0], [0.5, 0.75**0.5], [0, -2]])
    assert anisotropy(x) == pytest.approx((0.5 - 0.75**0.5) / 3, rel=1e-12)


@pytest.mark.parametrize(("items", "units"), [(60, 5), (8, 30)])
def test_spectrum_is_that_of_the_covariance(items: int, units: int) -> None:
    x = some_view(items, units)
    variances, squares = spectrum(x)
    expected = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[-min(items - 1, units) :]
    assert_allclose(np.sort(variances), expected, atol=1e-12)
    assert_allclose(squares.mean(0), variances, atol=1e-12)
    assert_allclose(squares.sum(1), ((x - x.mean(0)) ** 2).sum(1), rtol=1e-12)


@given(values=st.lists(st.floats(0.1, 100), min_size=1, max_size=8))
def test_dimensions_of_any_singular_values(values: Any) -> None:
    x = of_singular_values(values)
    variances, share = np.square(values), np.array(values) / sum(values)
    assert participation_ratio(x) == pytest.approx(
        variances.sum() ** 2 / (variances**2).sum(), rel=1e-9
    )
    assert effective_rank(x) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)
    assert participation_ratio(x) <= effective_rank(x) * (1 + 1e-9)


def test_dimensions_of_a_view_with_one_huge_direction() -> None:
    """Singular values a million times the others'; directions without variance add nothing."""
    values = [1e6, 1, 1, 1]
    share = np.array(values) / sum(values)
    x = of_singular_values(values, items=100, units=60)
    assert effective_rank(x) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert participation_ratio(x) == pytest.approx(1, rel=1e-11)


@pytest.mark.parametrize(("items", "units", "most"), [(200, 5, 5), (8, 30, 7)])
def test_dimensions_are_at_most_what_items_and_units_allow(
    items: int, units: int, most: int
) -> None:
    x = np.random.default_rng(0).normal(size=(items, units))
    for measure in (participation_ratio, effective_rank):
        assert 0.5 * most < measure(x) < most


@pytest.mark.parametrize("measure", [participation_ratio, effective_rank, two_nn])
def test_rotation_scale_and_shift_change_no_dimension(measure: Any) -> None:
    x = some_view()
    assert measure(7 * x @ random_rotation(5) - 20) == pytest.approx(measure(x), rel=1e-10)
    assert measure(np.pad(x, ((0, 0), (0, 100)))) == pytest.approx(measure(x), rel=1e-10)


@pytest.mark.parametrize("measure", [participation_ratio, effective_rank])
def test_stretching_one_direction_lowers_the_dimension(measure: Any) -> None:
    x = np.random.default_rng(0).normal(size=(100, 5))
    assert measure(x * [10, 1, 1, 1, 1]) < measure(x) - 1


def test_anisotropy_ignores_rotations_and_lengths() -> None:
    x = some_view()
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(len(x), 1))
    assert anisotropy(scale * x @ random_rotation(5)) == pytest.approx(anisotropy(x), rel=1e-10)


def test_anisotropy_is_the_mean_cosine_over_pairs() -> None:
    x = some_view()
    assert anisotropy(x) == pytest.approx(1 - pdist(x, "cosine").mean(), rel=1e-12)


def test_anisotropy_of_one_direction_and_of_all() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 30))
    assert anisotropy(x) == pytest.approx(0, abs=5e-4)
    assert anisotropy(np.arange(1, 20)[:, None] * x[0]) == pytest.approx(1, rel=1e-12)
    # A sum of zero, less 4000 selves.
    assert anisotropy(np.concatenate([x, -x])) == pytest.approx(-1 / 3999, rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_uniform_items(dimension: int) -> None:
    """Embedded in 20 units by a rotation."""
    x = np.random.default_rng(0).uniform(size=(3000, dimension)) @ random_rotation(20)[:dimension]
    assert two_nn(x) == pytest.approx(dimension, rel=0.1)


def test_two_nn_equals_plain_distances() -> None:
    for x in (some_view(), some_view(units=40)):
        assert two_nn(x) == pytest.approx((len(x) - 1) / np.log(ratios(x)).sum(), rel=1e-9)


def test_two_nn_keeps_one_of_equal_items() -> None:
    x = some_view()
    repeated = np.concatenate([x, x[:10], x[:4]])
    assert two_nn(repeated) == pytest.approx(two_nn(x), rel=1e-12)
    influence = two_nn_parts(repeated)[1]
    assert_allclose(influence[:60], two_nn_parts(x)[1], rtol=1e-10)
    assert_array_equal(influence[60:], 0)


@pytest.mark.parametrize("apart", [1e-3, 1e-7, 1e-10])
@pytest.mark.parametrize("units", [3, 40])
def test_two_nn_tells_items_apart_that_are_nearly_equal(units: int, apart: float) -> None:
    x = some_view(units=units)
    x[1] = x[0]
    x[1, 0] += apart
    assert two_nn(x) == pytest.approx((len(x) - 1) / np.log(ratios(x)).sum(), rel=1e-3)


def test_two_nn_of_float16_with_one_huge_unit() -> None:
    """As massive activations have; two items differ by a small unit alone."""
    x = some_view(units=40).astype(np.float16)
    x[:, 7] = 60000
    x[1] = x[0]
    x[1, 0] += np.float16(2**-9)
    exact = ratios(np.delete(x, 7, axis=1).astype(np.float64))  # the huge unit is equal in all
    assert two_nn(x) == pytest.approx((len(x) - 1) / np.log(exact).sum(), rel=1e-3)


@pytest.mark.parametrize("items", [np.ones((5, 3)), np.eye(2), np.eye(3)[[0, 1, 1, 0]]])
def test_two_nn_of_fewer_than_three_different_items(items: Array) -> None:
    dimension, influence = two_nn_parts(items)
    assert np.isnan(dimension)
    assert_array_equal(influence, np.zeros(len(items)))


@pytest.mark.parametrize("name", PARTS)
def test_the_value_of_the_parts_is_the_measure(name: str) -> None:
    measure = {
        "participation ratio": participation_ratio,
        "effective rank": effective_rank,
        "two_nn": two_nn,
        "anisotropy": anisotropy,
    }[name]
    x = some_view()
    assert (
        PARTS[name](x)[0] == measure(x) == pytest.approx(WEIGHTED[name](x, np.ones(60)), rel=1e-10)
    )


@pytest.mark.parametrize(("items", "units"), [(60, 5), (8, 30)])
@pytest.mark.parametrize("name", PARTS)
def test_influences_sum_to_zero(name: str, items: int, units: int) -> None:
    influence = PARTS[name](some_view(items, units))[1]
    assert influence.shape == (items,)
    assert influence.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("items", "units"), [(60, 5), (8, 30)])
@pytest.mark.parametrize("name", PARTS)
def test_influence_is_the_slope(name: str, items: int, units: int) -> None:
    """What counting each item a little more adds, by central differences."""
    x, step = some_view(items, units), 1e-4
    value, influence = PARTS[name](x)
    nudges = step * np.eye(items)
    slopes = [
        (WEIGHTED[name](x, 1 + nudge) - WEIGHTED[name](x, 1 - nudge)) / (2 * step)
        for nudge in nudges
    ]
    assert_allclose(influence, slopes, atol=1e-7 * value)


@pytest.mark.parametrize("name", PARTS)
def test_float16_states_are_measured_in_float64(name: str) -> None:
    """Values near float16's largest, whose squares it cannot hold."""
    x = (5000 * some_view()).astype(np.float16)
    assert np.isfinite(x).all()
    assert PARTS[name](x)[0] == pytest.approx(PARTS[name](x.astype(np.float64))[0], rel=1e-14)


def test_norms_that_float16_cannot_hold() -> None:
    x = np.full((2, 3, 64), 60000, np.float16)
    assert_array_equal(norms(x), np.full((2, 3), 480000.0))
    assert norms(x).dtype == np.float64
    assert_array_equal(norms(np.full((1, 4), 2.0**-24, np.float16)), [2.0**-23])


def test_norms_are_numpys() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    assert_allclose(norms(x), np.linalg.norm(x.astype(np.float64), axis=-1), rtol=1e-14)


@pytest.mark.parametrize("measure", [participation_ratio, effective_rank])
def test_a_view_that_does_not_vary_has_no_dimension(measure: Any) -> None:
    """NaN, not a line."""
    assert np.isnan(measure(np.ones((6, 3))))


def test_a_zero_vector_has_no_direction() -> None:
    """The mean cosine of the others: 1 of two alike, -1/3 of two alike and one opposite."""
    assert anisotropy(np.array([[1.0, 0], [1, 0], [0, 0]])) == pytest.approx(1)
    assert anisotropy(np.array([[1.0, 0], [0, 0], [3, 0], [-2, 0]])) == pytest.approx(-1 / 3)
    _, influence = anisotropy_parts(np.array([[1.0, 0], [0, 0], [3, 0], [-2, 0]]))
    assert influence[1] == 0
    assert influence.sum() == pytest.approx(0, abs=1e-12)
    assert np.isnan(anisotropy(np.array([[1.0, 0], [0, 0]])))
