"""CKA and HSIC: by hand, invariances, other formulas for the same number, and values known from
theory.
"""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from repsim.measures import (
    debiased_linear_cka,
    hsic,
    linear_cka,
    minibatch_cka,
    minibatch_hsic,
    rbf_cka,
)
from repsim.measures.cka import centre, gram, rbf_gram, u_centre
from support.views import random_rotation, related_views, shear

Array = NDArray[Any]


def debiased_rbf_cka(x: Array, y: Array) -> float:
    return rbf_cka(x, y, debiased=True)


def minibatch_16(x: Array, y: Array) -> float:
    return minibatch_cka(x, y, batch=16)


LINEAR = (linear_cka, debiased_linear_cka, minibatch_16)
MEASURES = (*LINEAR, rbf_cka, debiased_rbf_cka)
SHAPES = [(50, 6, 9), (20, 30, 25)]  # items above and below the units


def without_diagonal(kernel: Array) -> Array:
    return kernel - np.diag(np.diagonal(kernel))


def song_hsic(kernel: Array, other: Array) -> float:
    """Song et al. 2012, eq. 5, literally."""
    n, ones = len(kernel), np.ones(len(kernel))
    first, second = without_diagonal(kernel), without_diagonal(other)
    sums = (
        np.trace(first @ second)
        + (ones @ first @ ones) * (ones @ second @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ first @ second @ ones)
    )
    return float(sums / (n * (n - 3)))


def quadruple_hsic(kernel: Array, other: Array) -> float:
    """The U-statistic, over every four different items in every order."""
    terms = [
        kernel[i, j] * other[i, j] + kernel[i, j] * other[q, r] - 2 * kernel[i, j] * other[i, q]
        for i, j, q, r in permutations(range(len(kernel)), 4)
    ]
    return np.mean(terms)


def cka_of(estimate: Any, kernel: Array, other: Array) -> float:
    return estimate(kernel, other) / np.sqrt(estimate(kernel, kernel) * estimate(other, other))


def test_linear_cka_by_hand() -> None:
    """Centred x: (-1, 0, 1); centred y: (-1, 2, -1), (-1, 0, 1). |xᵀy|² = 4, |xᵀx| = 2, yᵀy =
    diag(6, 2).
    """
    x, y = np.array([[1.0], [2], [3]]), np.array([[0.0, 1], [3, 2], [0, 3]])
    assert linear_cka(x, y) == pytest.approx(4 / (2 * 40**0.5), rel=1e-14)


def test_debiased_cka_by_hand() -> None:
    """x puts items 0 and 1 together, y items 0 and 2.

    U-centred, with n = 4, each pair has minus its complement's share: (01|23) gives x (2, -1, -1)
    over the three ways to pair, y (-1, 2, -1); their cosine is -3 / 6.
    """
    x, y = np.array([[1.0], [1], [0], [0]]), np.array([[1.0], [0], [1], [0]])
    assert debiased_linear_cka(x, y) == pytest.approx(-1 / 2, rel=1e-14)
    assert debiased_linear_cka(np.pad(x, ((0, 0), (0, 9))), y) == pytest.approx(-1 / 2, rel=1e-14)


def test_rbf_gram_by_hand() -> None:
    """Distances 1, 2 and 3, of which the median is 2."""
    expected = np.exp(-np.array([[0, 1, 9], [1, 0, 4], [9, 4, 0]]) / 8)
    assert_allclose(rbf_gram(np.array([[0.0], [1], [3]])), expected, rtol=1e-14)
    assert_allclose(rbf_gram(np.array([[0.0], [1], [3]]), bandwidth=2), expected**0.25, rtol=1e-14)


@pytest.mark.parametrize("estimate", [song_hsic, quadruple_hsic])
def test_hsic_is_the_estimate_of_song_and_others(estimate: Any) -> None:
    x, y = related_views(items=7)
    for kernel, other in [(gram(x), gram(y)), (gram(x), gram(x)), (rbf_gram(x), gram(y))]:
        assert hsic(kernel, other) == pytest.approx(estimate(kernel, other), rel=1e-12)


def test_hsic_is_unbiased() -> None:
    """Mean over 4000 draws of 6 items of unrelated views: 0, where the biased one is well above."""
    generator = np.random.default_rng(0)
    views = generator.normal(size=(2, 4000, 6, 3))
    kernels = u_centre(gram(views))
    unbiased = (kernels[0] * kernels[1]).sum((-2, -1)) / (6 * 3)
    assert abs(unbiased.mean()) < 3 * unbiased.std() / 4000**0.5
    biased = (centre(gram(views[0])) * centre(gram(views[1]))).sum((-2, -1)) / 5**2
    assert biased.mean() > 30 * biased.std() / 4000**0.5


def test_centred_kernels_have_rows_that_sum_to_zero() -> None:
    kernel = gram(related_views()[1])
    for centred in (centre(kernel), u_centre(kernel)):
        assert_allclose(centred.sum(0), 0, atol=1e-10)
        assert_allclose(centred, centred.T, atol=1e-12)
    assert_array_equal(np.diagonal(u_centre(kernel)), 0)


def test_centring_a_kernel_is_centring_the_view() -> None:
    x = related_views()[0]
    assert_allclose(centre(gram(x + 3)), gram(x - x.mean(0)), atol=1e-10)


@pytest.mark.parametrize("centred", [centre, u_centre])
def test_kernels_of_a_stack_are_each_its_own_views(centred: Any) -> None:
    views = np.random.default_rng(0).normal(size=(3, 8, 5))
    assert_allclose(
        centred(gram(views)), [centred(gram(view)) for view in views], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", MEASURES)
def test_a_view_is_like_itself(measure: Any, shape: Any) -> None:
    for view in related_views(*shape):
        assert measure(view, view) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", MEASURES)
def test_symmetric(measure: Any, shape: Any) -> None:
    x, y = related_views(*shape)
    assert measure(x, y) == pytest.approx(measure(y, x), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_scale_and_shift_change_nothing(measure: Any, shape: Any) -> None:
    x, y = related_views(*shape)
    turned = 7 * x @ random_rotation(x.shape[1]) + np.linspace(-20, 20, x.shape[1])
    mirrored = -0.01 * y + 3
    assert measure(turned, mirrored) == pytest.approx(measure(x, y), abs=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", MEASURES)
def test_a_shear_changes_it(measure: Any, shape: Any) -> None:
    x, y = related_views(*shape)
    assert abs(measure(shear(x), y) - measure(x, y)) > 0.02
    assert measure(shear(x), x) < 0.98


@pytest.mark.parametrize("measure", [linear_cka, debiased_linear_cka, rbf_cka, debiased_rbf_cka])
def test_the_order_of_the_items_does_not_matter(measure: Any) -> None:
    x, y = related_views()
    order = np.random.default_rng(1).permutation(len(x))
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y), rel=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_units_that_are_zero_change_nothing(measure: Any) -> None:
    """Enough of them to make the other form of the computation the cheaper one."""
    x, y = related_views()
    assert measure(np.pad(x, ((0, 0), (0, 60))), y) == pytest.approx(measure(x, y), rel=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(4, 12),
    units=st.integers(1, 12),
    other=st.integers(1, 12),
)
def test_feature_form_equals_gram_form(seed: int, items: int, units: int, other: int) -> None:
    x, y = related_views(items, units, other, seed)
    kernels = gram(x), gram(y)
    assert linear_cka(x, y) == pytest.approx(
        cka_of(lambda k, o: (centre(k) * centre(o)).sum(), *kernels), rel=1e-10
    )
    assert debiased_linear_cka(x, y) == pytest.approx(cka_of(song_hsic, *kernels), abs=1e-8)


def test_feature_form_equals_gram_form_far_from_the_origin() -> None:
    """A shift of a thousand deviations costs digits, not the result."""
    x, y = related_views(items=300)
    kernels = gram(x), gram(y)
    assert debiased_linear_cka(x + 1000, y) == pytest.approx(cka_of(song_hsic, *kernels), abs=1e-9)
    assert linear_cka(x + 1000, y) == pytest.approx(
        cka_of(lambda k, o: (centre(k) * centre(o)).sum(), *kernels)
    )


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 2.0])
def test_rbf_cka_equals_a_plain_computation(bandwidth: float) -> None:
    """With 435 distances, so that the median is one of them."""
    kernels = []
    for view in (views := related_views(items=30)):
        distances = pdist(view)
        kernels.append(
            np.exp(-(squareform(distances) ** 2) / (2 * (bandwidth * np.median(distances)) ** 2))
        )
    centring = np.eye(30) - 1 / 30
    biased = cka_of(lambda k, o: np.trace(k @ centring @ o @ centring), *kernels)
    assert rbf_cka(*views, bandwidth=bandwidth) == pytest.approx(biased, rel=1e-10)
    debiased = cka_of(song_hsic, *kernels)
    assert rbf_cka(*views, bandwidth=bandwidth, debiased=True) == pytest.approx(debiased, rel=1e-10)


def test_a_wide_rbf_kernel_gives_linear_cka() -> None:
    """To second order exp(-d²) is 1 - d², whose centred Gram matrix is the linear one."""
    x, y = related_views()
    assert rbf_cka(x, y, bandwidth=1000) == pytest.approx(linear_cka(x, y), abs=1e-5)
    assert rbf_cka(x, y, bandwidth=1000, debiased=True) == pytest.approx(
        debiased_linear_cka(x, y), abs=1e-5
    )


@pytest.mark.parametrize(("items", "units"), [(1000, 768), (100, 4096)])
def test_cka_of_independent_gaussians(items: int, units: int) -> None:
    """Biased: √(pq / ((n + p)(n + q))), 0.434 and 0.976. Debiased: 0."""
    x, y = np.random.default_rng(0).normal(size=(2, items, units)).astype(np.float32)
    assert linear_cka(x, y) == pytest.approx(units / (items + units), abs=0.01)
    assert debiased_linear_cka(x, y) == pytest.approx(0, abs=0.01 if items > units else 0.02)


def test_cka_of_a_view_and_itself_with_as_much_noise() -> None:
    """y = x + noise: the covariance of x and y is 1, the variances 1 and 2, so CKA is 1 / 2."""
    x, noise = np.random.default_rng(0).normal(size=(2, 4096, 256))
    assert debiased_linear_cka(x, x + noise) == pytest.approx(0.5, abs=0.02)
    assert minibatch_cka(x, x + noise, batch=64) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("rest", [0, 1, 2, 3, 4, 15])
def test_minibatch_hsic_is_each_minibatches_hsic_times_its_tokens(rest: int) -> None:
    states = np.random.default_rng(0).normal(size=(3, 32 + rest, 5))
    cuts = [states[:, :16], states[:, 16:32]] + [states[:, 32:]] * (rest >= 4)
    expected = [
        [
            sum(part.shape[1] * song_hsic(gram(part[i]), gram(part[j])) for part in cuts)
            for j in range(3)
        ]
        for i in range(3)
    ]
    assert_allclose(minibatch_hsic(states, batch=16), expected, rtol=1e-10, atol=1e-10)


def test_sums_of_whole_minibatches_add_up_to_the_whole() -> None:
    states = np.random.default_rng(0).normal(size=(4, 100, 6))
    pieces = [minibatch_hsic(states[:, first : first + 48], batch=16) for first in (0, 48, 96)]
    assert_allclose(
        np.sum(pieces, axis=0), minibatch_hsic(states, batch=16), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("tokens", [0, 3])
def test_too_few_tokens_for_a_minibatch_add_nothing(tokens: int) -> None:
    assert_array_equal(minibatch_hsic(np.ones((2, tokens, 5))), np.zeros((2, 2)))


def test_minibatch_hsic_is_symmetric_and_leaves_the_states_as_they_are() -> None:
    states = np.random.default_rng(0).normal(size=(3, 40, 6))
    before = states.copy()
    sums = minibatch_hsic(states, batch=16)
    assert_array_equal(sums, sums.T)
    assert_array_equal(states, before)


def test_one_minibatch_of_all_items_is_debiased_cka() -> None:
    x, y = related_views()
    assert minibatch_cka(x, y, batch=len(x)) == pytest.approx(debiased_linear_cka(x, y), rel=1e-10)
    assert minibatch_cka(x, y, batch=10 * len(x)) == pytest.approx(
        debiased_linear_cka(x, y), rel=1e-10
    )


def test_minibatch_cka_is_a_ratio_of_means_and_no_mean_of_ratios() -> None:
    x, y = related_views(items=48)
    kernels = [
        (gram(x[first : first + 8]), gram(y[first : first + 8])) for first in range(0, 48, 8)
    ]
    both, within_x, within_y = np.mean(
        [[song_hsic(k, o), song_hsic(k, k), song_hsic(o, o)] for k, o in kernels], axis=0
    )
    value = minibatch_cka(x, y, batch=8)
    assert value == pytest.approx(both / np.sqrt(within_x * within_y), rel=1e-10)
    mean_of_ratios = np.mean([cka_of(song_hsic, *pair) for pair in kernels])
    assert abs(value - mean_of_ratios) > 0.005


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", MEASURES)
def test_float16_views_are_compared_in_float64(measure: Any, shape: Any) -> None:
    """Values near float16's largest, whose squares it cannot hold."""
    x, y = (np.asarray(3000 * view, np.float16) for view in related_views(*shape))
    assert np.isfinite(x).all()
    assert measure(x, y) == pytest.approx(
        measure(x.astype(np.float64), y.astype(np.float64)), rel=1e-14
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", LINEAR)
def test_a_view_that_does_not_vary_has_no_cka(measure: Any, shape: Any) -> None:
    x, y = related_views(*shape)
    assert np.isnan(measure(np.ones_like(x), y))


@pytest.mark.parametrize("measure", MEASURES)
def test_views_of_different_items(measure: Any) -> None:
    x, y = related_views()
    with pytest.raises(ValueError, match=r"views of shapes \[\(50, 6\), \(49, 9\)\]"):
        measure(x, y[1:])
    with pytest.raises(ValueError, match="each is"):
        measure(x, y[:, 0])


@pytest.mark.parametrize("units", [1, 2, 9])
@pytest.mark.parametrize("items", [2, 3])
@pytest.mark.parametrize("measure", [debiased_linear_cka, minibatch_16, debiased_rbf_cka])
def test_unbiased_measures_need_four_items(measure: Any, items: int, units: int) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, items, units))
    with pytest.raises(ValueError, match=f"{items} items"):
        measure(x, y)


def test_unbiased_hsic_needs_four_items() -> None:
    with pytest.raises(ValueError, match="3 items: the unbiased HSIC needs at least 4"):
        hsic(np.eye(3), np.eye(3))


def test_minibatches_need_four_items() -> None:
    x, y = related_views()
    with pytest.raises(ValueError, match="minibatches of 3 items"):
        minibatch_cka(x, y, batch=3)


def test_rbf_cka_of_one_item() -> None:
    with pytest.raises(ValueError, match="item"):
        rbf_cka(np.ones((1, 3)), np.ones((1, 3)))


@pytest.mark.parametrize("bandwidth", [0, -1, np.nan])
def test_a_bandwidth_that_is_not_positive(bandwidth: float) -> None:
    with pytest.raises(ValueError, match="a positive number of median distances"):
        rbf_cka(*related_views(), bandwidth=bandwidth)
