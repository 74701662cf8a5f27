"""Procrustes and canonical correlations: by hand, what leaves them alone, other libraries, and what
each item does.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes, subspace_angles
from sklearn.cross_decomposition import CCA

from repsim.measures import mean_cca, procrustes_distance, procrustes_similarity, pwcca, svcca
from repsim.measures.subspace import basis, canonical, rotation, unit_norm
from support.views import random_rotation

Array = NDArray[Any]


def svcca_of_all(x: Array, y: Array) -> float:
    return svcca(x, y, variance=1)


CCA_MEASURES = (mean_cca, svcca_of_all, pwcca)
MEASURES = (*CCA_MEASURES, svcca, procrustes_similarity)


def views(items: int = 80, units: int = 5, other: int = 7, seed: int = 0) -> tuple[Array, Array]:
    """Two views that share something, off centre."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(items, units)) * np.linspace(0.5, 3, units) + 2
    return x, x @ generator.normal(size=(units, other)) / 2 + generator.normal(
        size=(items, other)
    ) - 1


def invertible(units: int, seed: int = 0) -> Array:
    """A map whose singular values are 1 to 20."""
    return (
        random_rotation(units, seed) * np.linspace(1, 20, units) @ random_rotation(units, seed + 1)
    )


def centred(x: Array) -> Array:
    return x - x.mean(0)


def weighted(x: Array, weight: Array) -> Array:
    """The view whose plain moments are the weighted moments of `x`, each item counted `weight`
    times.
    """
    return np.sqrt(weight)[:, None] * (x - weight @ x / weight.sum())


def procrustes_of(x: Array, y: Array) -> float:
    """Similarity of views whose mean is zero already, by scipy."""
    return orthogonal_procrustes(x, y)[1] / (np.linalg.norm(x) * np.linalg.norm(y))


def cca_of(x: Array, y: Array) -> float:
    """Mean canonical correlation of views whose mean is zero already, by scipy."""
    return np.cos(subspace_angles(x, y)).mean()


def slopes(statistic: Any, x: Array, y: Array, step: float = 1e-4) -> Array:
    """What counting each item a little more adds, by central differences."""
    found = []
    for nudge in step * np.eye(len(x)):
        up, down = (statistic(weighted(x, w), weighted(y, w)) for w in (1 + nudge, 1 - nudge))
        found.append((up - down) / (2 * step))
    return np.array(found)


def test_procrustes_by_hand() -> None:
    """x: a square's corners; y: a line through two of them. xᵀy keeps one axis: 1 / √2, an eighth
    of a turn.
    """
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    y = np.array([[0.0], [0], [3], [-3]])
    assert procrustes_similarity(x, y) == pytest.approx(0.5**0.5, rel=1e-14)
    assert procrustes_distance(x, y) == pytest.approx(np.pi / 4, rel=1e-14)


def test_canonical_correlations_by_hand() -> None:
    """x spans units 0 and 1 of an orthonormal basis; y: unit 0, and unit 2 with as much of unit 1:
    1 and 1 / √2.
    """
    units = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 2
    x, y = units[:, :2] * [4, 1], np.stack([units[:, 0], units[:, 1] + units[:, 2]], axis=1)
    assert mean_cca(x, y) == pytest.approx((1 + 0.5**0.5) / 2, rel=1e-14)
    # X is four times as long along the first.
    assert pwcca(x, y) == pytest.approx((4 + 0.5**0.5) / 5, rel=1e-14)
    assert svcca(x, y, variance=0.9) == pytest.approx(mean_cca(x[:, :1], y), rel=1e-14)


def test_a_line_has_the_correlation_as_canonical_correlation() -> None:
    x, y = views(units=1, other=1)
    expected = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    for measure in MEASURES:
        assert measure(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("items", "units"), [(80, 5), (20, 50)])
def test_no_procrustes_distance_between_a_view_and_its_rotation_scale_and_shift(
    items: int, units: int
) -> None:
    x, _ = views(items, units)
    turned = 0.03 * x @ random_rotation(units) + np.arange(units)
    assert procrustes_distance(x, turned) == pytest.approx(0, abs=1e-6)
    assert procrustes_distance(x, -x) == pytest.approx(0, abs=1e-6)
    assert procrustes_distance(x, np.pad(turned, ((0, 0), (0, 9)))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("items", "units", "other"), [(80, 5, 7), (20, 50, 30), (20, 50, 6)])
def test_procrustes_of_rotated_views_is_the_same(items: int, units: int, other: int) -> None:
    x, y = views(items, units, other)
    turned = 40 * x @ random_rotation(units) - 5, -y @ random_rotation(other, seed=1) + 100
    assert procrustes_similarity(*turned) == pytest.approx(procrustes_similarity(x, y), rel=1e-11)


@pytest.mark.parametrize(
    "change", [np.diag([1.0, 1, 1, 1, 5]), np.eye(5) + 2 * np.eye(5, k=1)], ids=["scale", "shear"]
)
def test_a_map_that_is_no_rotation_changes_procrustes(change: Any) -> None:
    x, y = views()
    assert procrustes_distance(x @ change, x) > 0.1
    assert abs(procrustes_distance(x @ change, y) - procrustes_distance(x, y)) > 0.01


@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(2, 12),
    units=st.tuples(*[st.integers(1, 8)] * 3),
    shared=st.floats(0, 10),
)
def test_procrustes_distance_satisfies_the_triangle_inequality(
    seed: int, items: int, units: tuple[int, int, int], shared: float
) -> None:
    generator = np.random.default_rng(seed)
    common = shared * generator.normal(size=(items, 8))
    x, y, z = (common[:, :width] + generator.normal(size=(items, width)) for width in units)
    assert procrustes_distance(x, z) <= procrustes_distance(x, y) + procrustes_distance(y, z) + 1e-6


@pytest.mark.parametrize(
    "measure", [mean_cca, svcca, svcca_of_all, procrustes_similarity, procrustes_distance]
)
def test_symmetric(measure: Any) -> None:
    x, y = views()
    assert measure(x, y) == pytest.approx(measure(y, x), rel=1e-12)


def test_pwcca_is_not_symmetric() -> None:
    x, y = views()
    assert abs(pwcca(x, y) - pwcca(y, x)) > 0.01


@pytest.mark.parametrize("measure", MEASURES)
def test_a_view_is_like_itself(measure: Any) -> None:
    for view in views():
        assert measure(view, view) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_order_of_the_items_does_not_matter(measure: Any) -> None:
    x, y = views()
    order = np.random.default_rng(1).permutation(len(x))
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y), rel=1e-12)


@pytest.mark.parametrize("measure", [mean_cca, svcca_of_all])
def test_an_invertible_map_of_both_views_changes_no_canonical_correlation(measure: Any) -> None:
    x, y = views()
    mapped = x @ invertible(5) + 9, y @ invertible(7, seed=3) - 4
    assert measure(*mapped) == pytest.approx(measure(x, y), rel=1e-10)


def test_an_invertible_map_of_the_second_view_does_not_change_pwcca_one_of_the_first_does() -> None:
    x, y = views()
    assert pwcca(3 * x - 2, y @ invertible(7) + 1) == pytest.approx(pwcca(x, y), rel=1e-10)
    assert abs(pwcca(x @ invertible(5), y) - pwcca(x, y)) > 0.001


def test_svcca_ignores_rotations_but_not_scales_of_units() -> None:
    x, y = views()
    turned = 4 * x @ random_rotation(5) + 1, -y @ random_rotation(7) - 2
    assert svcca(*turned, variance=0.9) == pytest.approx(svcca(x, y, variance=0.9), rel=1e-10)
    assert abs(svcca(x * [1, 1, 1, 1, 100], y, variance=0.9) - svcca(x, y, variance=0.9)) > 0.01


def test_the_second_of_two_views_may_be_a_map_of_the_first() -> None:
    x, _ = views()
    for measure in CCA_MEASURES:
        assert measure(x, x @ invertible(5) + 1) == pytest.approx(1, abs=1e-12)
        assert measure(x, x @ invertible(5)[:, :2]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("items", "units", "other"), [(80, 5, 7), (80, 7, 5), (20, 50, 30), (20, 6, 50)]
)
def test_procrustes_is_scipys(items: int, units: int, other: int) -> None:
    """The scale of scipy's solution is the nuclear norm; more units than items need no other form
    of the formula.
    """
    x, y = views(items, units, other)
    wide = max(units, other)
    padded = [np.pad(centred(view), ((0, 0), (0, wide - view.shape[1]))) for view in (x, y)]
    assert procrustes_similarity(x, y) == pytest.approx(procrustes_of(*padded), rel=1e-12)
    assert np.cos(procrustes_distance(x, y)) == pytest.approx(procrustes_of(*padded), rel=1e-12)


def test_procrustes_is_the_angle_that_the_best_rotation_leaves() -> None:
    x, y = (centred(view) / np.linalg.norm(centred(view)) for view in views(units=5, other=5))
    best = orthogonal_procrustes(x, y)[0]
    assert procrustes_similarity(x, y) == pytest.approx(np.vdot(x @ best, y), rel=1e-12)
    for seed in range(20):
        assert np.vdot(x @ random_rotation(5, seed), y) < procrustes_similarity(x, y)


def test_views_wider_than_their_items_keep_their_inner_products() -> None:
    x, _ = views(items=20, units=50)
    scaled = centred(x) / np.linalg.norm(centred(x))
    assert unit_norm(x).shape == (20, 20)
    assert_allclose(unit_norm(x) @ unit_norm(x).T, scaled @ scaled.T, atol=1e-14)


@pytest.mark.parametrize(("units", "other"), [(5, 7), (7, 5), (3, 3)])
def test_mean_cca_is_scipys(units: int, other: int) -> None:
    x, y = views(units=units, other=other)
    assert mean_cca(x, y) == pytest.approx(cca_of(centred(x), centred(y)), rel=1e-10)
    assert svcca_of_all(x, y) == pytest.approx(cca_of(centred(x), centred(y)), rel=1e-10)


def test_mean_cca_is_sklearns() -> None:
    x, y = views(items=300, units=2, other=3)
    scores = CCA(n_components=2, tol=1e-12, max_iter=5000).fit_transform(x, y)
    expected = [
        np.corrcoef(*columns)[0, 1] for columns in zip(*(score.T for score in scores), strict=True)
    ]
    assert mean_cca(x, y) == pytest.approx(np.mean(expected), abs=1e-6)


def test_pwcca_equals_its_definition() -> None:
    """Morcos et al.: weights Σ_j |<h_i, x_j>| of the canonical variables h of x, by whitening both
    covariances.
    """
    x, y = (centred(view) for view in views())
    root_x, root_y = (np.linalg.inv(np.linalg.cholesky(view.T @ view)).T for view in (x, y))
    left, rho, _ = np.linalg.svd((x @ root_x).T @ (y @ root_y), full_matrices=False)
    weight = np.abs((x @ root_x @ left).T @ x).sum(1)
    assert pwcca(x, y) == pytest.approx(rho @ weight / weight.sum(), rel=1e-10)


def test_unrelated_views_of_as_many_units_as_items_have_correlations_of_one() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20, 19))
    assert mean_cca(x, y) == pytest.approx(1, abs=1e-10)


def test_dependent_units_count_once() -> None:
    x, y = views()
    again = np.concatenate([x, x @ random_rotation(5)[:, :3]], axis=1)
    assert basis(again).shape[1] == 5
    assert mean_cca(again, y) == pytest.approx(mean_cca(x, y), rel=1e-10)


def test_svcca_takes_the_components_that_hold_the_share_of_variance() -> None:
    """Variances 50, 30, 15 and 5 %."""
    left = np.linalg.qr(centred(np.random.default_rng(0).normal(size=(40, 4)))).Q
    x = left * np.sqrt([50, 30, 15, 5]) @ random_rotation(4)
    shares = {0.01: 1, 0.49: 1, 0.5: 1, 0.51: 2, 0.8: 2, 0.81: 3, 0.95: 3, 0.96: 4, 1: 4}
    assert {share: basis(x, share).shape[1] for share in shares} == shares
    y = views(items=40)[1]
    assert svcca(x, y, variance=0.8) == pytest.approx(
        canonical(left[:, :2], basis(y, 0.8)).value, rel=1e-10
    )


def test_a_basis_is_orthonormal_and_centred() -> None:
    x, _ = views()
    assert_allclose(basis(x).T @ basis(x), np.eye(5), atol=1e-13)
    assert_allclose(basis(x).sum(0), 0, atol=1e-13)
    assert_allclose(basis(x) @ basis(x).T @ centred(x), centred(x), atol=1e-12)


@pytest.mark.parametrize("weigh", [False, True])
def test_influences_sum_to_zero(weigh: bool) -> None:
    x, y = views()
    assert canonical(
        basis(x), basis(y), centred(x) if weigh else None
    ).influence.sum() == pytest.approx(0, abs=1e-13)
    assert rotation(unit_norm(x), unit_norm(y)).influence.sum() == pytest.approx(0, abs=1e-13)
    assert rotation(unit_norm(x), unit_norm(y)).value == pytest.approx(
        procrustes_similarity(x, y), rel=1e-13
    )


@pytest.mark.parametrize(("units", "other"), [(5, 7), (7, 5)])
def test_influence_on_procrustes_is_the_slope(units: int, other: int) -> None:
    x, y = views(units=units, other=other)
    padded = [np.pad(view, ((0, 0), (0, 7 - view.shape[1]))) for view in (x, y)]
    expected = slopes(procrustes_of, padded[0], padded[1])
    assert_allclose(rotation(unit_norm(x), unit_norm(y)).influence, expected, atol=1e-8)


def test_influence_on_procrustes_is_the_slope_with_fewer_items_than_units() -> None:
    x, y = views(items=12, units=30, other=30)
    expected = slopes(procrustes_of, x, y)
    assert_allclose(rotation(unit_norm(x), unit_norm(y)).influence, expected, atol=1e-8)


@pytest.mark.parametrize(("units", "other"), [(5, 7), (7, 5), (1, 1)])
def test_influence_on_mean_cca_is_the_slope(units: int, other: int) -> None:
    x, y = views(units=units, other=other)
    assert_allclose(canonical(basis(x), basis(y)).influence, slopes(cca_of, x, y), atol=1e-8)


def test_influence_on_pwcca_is_the_slope_at_fixed_weights() -> None:
    """Of each correlation by itself: each is weighted as it was."""
    x, y = views()
    p, q = basis(x), basis(y)
    weight = np.abs(np.linalg.svd(p.T @ q, full_matrices=False).U.T @ p.T @ centred(x)).sum(1)
    expected = slopes(
        lambda a, b: np.sort(np.cos(subspace_angles(a, b)))[::-1] @ weight / weight.sum(), x, y
    )
    assert_allclose(canonical(p, q, centred(x)).influence, expected, atol=1e-8)


@pytest.mark.parametrize("measure", [procrustes_similarity, mean_cca])
def test_an_item_twice_in_a_large_sample_adds_its_influence(measure: Any) -> None:
    """What is left is of second order: the influence's own share of the sample."""
    x, y = views(items=2000)
    pair = (
        rotation(unit_norm(x), unit_norm(y))
        if measure is procrustes_similarity
        else canonical(basis(x), basis(y))
    )
    chosen = np.argsort(np.abs(pair.influence))[[-1, -20, 1000]]
    added = [
        measure(np.append(x, x[[i]], axis=0), np.append(y, y[[i]], axis=0)) - measure(x, y)
        for i in chosen
    ]
    assert_allclose(added, pair.influence[chosen], atol=0.02 * np.abs(pair.influence).max())


@pytest.mark.parametrize(("items", "units"), [(80, 5), (20, 50)])
@pytest.mark.parametrize("measure", MEASURES)
def test_float16_views_are_compared_in_float64(measure: Any, items: int, units: int) -> None:
    """Values near float16's largest, whose squares it cannot hold."""
    x, y = (np.asarray(2000 * view, np.float16) for view in views(items, units))
    assert np.isfinite(y).all()
    assert measure(x, y) == pytest.approx(
        measure(x.astype(np.float64), y.astype(np.float64)), rel=1e-14
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_a_view_that_does_not_vary_has_no_similarity(measure: Any) -> None:
    """NaN, as for a state without direction."""
    x, y = views()
    assert np.isnan(measure(np.ones_like(x), y))


@pytest.mark.parametrize("measure", [*MEASURES, procrustes_distance])
def test_views_of_different_items(measure: Any) -> None:
    x, y = views()
    with pytest.raises(ValueError, match=r"views of shapes \[\(80, 5\), \(79, 7\)\]"):
        measure(x, y[1:])


@pytest.mark.parametrize("variance", [0, -0.5, 1.01, np.nan])
def test_a_share_of_variance_outside_0_to_1(variance: float) -> None:
    with pytest.raises(ValueError, match=f"variance={variance}: a share above 0, at most 1"):
        svcca(*views(), variance=variance)
