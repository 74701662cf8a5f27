"""RSA: by hand, against scipy, and what leaves it alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, spearmanr

from repsim.measures import rsa
from repsim.measures.dissimilarity import dissimilarities
from support.views import random_rotation, related_views, shear

Array = NDArray[Any]

METRICS = ("euclidean", "cosine", "correlation")
CORRELATIONS = {"spearman": spearmanr, "pearson": pearsonr}


def views(items: int = 40, units: int = 5, other: int = 7, seed: int = 0) -> tuple[Array, Array]:
    """Two views that share something, off centre."""
    x, y = related_views(items, units, other, seed)
    return x + 0.5, y - 0.2


def test_rsa_by_hand() -> None:
    """Distances 1, 10, 9 and 2, 3, 1; ranks 1, 3, 2 and 2, 3, 1."""
    x, y = np.array([[0.0], [1], [10]]), np.array([[0.0], [2], [3]])
    assert rsa(x, y) == pytest.approx(1 / 2, rel=1e-14)
    assert rsa(x, y, correlation="pearson") == pytest.approx(3 / 876**0.5, rel=1e-14)


def test_rsa_of_opposite_orders_is_minus_one() -> None:
    x, y = np.array([[0.0], [1], [3]]), np.array([[0.0], [3], [1]])  # distances 1, 3, 2 and 3, 1, 2
    assert rsa(x, y) == pytest.approx(-1, abs=1e-14)
    assert rsa(x, y, correlation="pearson") == pytest.approx(-1, abs=1e-14)


def test_equal_distances_share_a_rank() -> None:
    """A square's corners and a line: ranks 2.5 (four sides) and 5.5 (diagonals)."""
    x, y = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), np.array([[0], [1], [3], [7]])
    ranks = [2.5, 5.5, 2.5, 2.5, 5.5, 2.5], [1, 3, 6, 2, 5, 4]
    assert rsa(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-14)


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_rsa_is_scipys(metric: Any, correlation: Any) -> None:
    x, y = views()
    expected = CORRELATIONS[correlation](pdist(x, metric), pdist(y, metric)).statistic
    assert rsa(x, y, metric, correlation) == pytest.approx(expected, rel=1e-11)


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(3, 10))
def test_rsa_with_ties_is_scipys(seed: int, items: int) -> None:
    """Items on a small grid, so that many distances are equal, some zero."""
    x, y = np.random.default_rng(seed).integers(0, 3, size=(2, items, 3)).astype(np.float16)
    x[0], y[0] = 5, 6  # never all alike
    x[1], y[1] = 1, 2
    x[2], y[2] = 3, 0
    expected = spearmanr(pdist(x.astype(float)), pdist(y.astype(float))).statistic
    assert rsa(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_a_view_holds_its_items_apart_as_itself(metric: Any, correlation: Any) -> None:
    x, _ = views()
    assert rsa(x, x, metric, correlation) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_euclidean_rsa_ignores_rotation_scale_and_shift_but_no_shear(correlation: Any) -> None:
    x, y = views()
    turned = 7 * x @ random_rotation(5) + 3
    assert rsa(turned, y, correlation=correlation) == pytest.approx(
        rsa(x, y, correlation=correlation), rel=1e-10
    )
    assert rsa(shear(x), x, correlation=correlation) < 0.98
    assert (
        abs(rsa(shear(x), y, correlation=correlation) - rsa(x, y, correlation=correlation)) > 0.01
    )


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_cosine_rsa_ignores_rotations_and_lengths_but_no_shift(correlation: Any) -> None:
    x, y = views()
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(len(x), 1))
    expected = rsa(x, y, "cosine", correlation)
    assert rsa(scale * x @ random_rotation(5), y, "cosine", correlation) == pytest.approx(
        expected, rel=1e-10
    )
    assert abs(rsa(x + 3, y, "cosine", correlation) - expected) > 0.001


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_correlation_rsa_ignores_each_items_mean_and_scale_but_no_rotation(
    correlation: Any,
) -> None:
    x, y = views()
    generator = np.random.default_rng(1)
    changed = x * generator.uniform(0.1, 10, size=(len(x), 1)) + generator.normal(size=(len(x), 1))
    expected = rsa(x, y, "correlation", correlation)
    assert rsa(changed, y, "correlation", correlation) == pytest.approx(expected, rel=1e-10)
    assert abs(rsa(x @ random_rotation(5), y, "correlation", correlation) - expected) > 0.001


def test_spearman_asks_for_the_order_of_distances_alone() -> None:
    """Vertices of a simplex moved out by more and more: the order of the distances stays, their
    values do not.
    """
    x, y = np.diag(np.arange(1.0, 5)), np.diag(10 ** np.arange(1.0, 5))
    x, y = np.append(x, np.zeros((1, 4)), axis=0), np.append(y, np.zeros((1, 4)), axis=0)
    assert np.array_equal(np.argsort(pdist(x)), np.argsort(pdist(y)))
    assert rsa(x, y) == pytest.approx(1, abs=1e-14)
    assert rsa(x, y, correlation="pearson") < 0.95


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_dissimilarities_are_symmetric_with_a_zero_diagonal_and_mean(
    metric: Any, correlation: Any
) -> None:
    matrix = dissimilarities(views()[0], metric, correlation)
    assert_array_equal(matrix, matrix.T)
    assert_array_equal(np.diagonal(matrix), 0)
    assert matrix.mean() == pytest.approx(0, abs=1e-12)


def test_a_view_whose_items_are_equally_far_apart_has_no_rsa() -> None:
    """NaN: no distance is larger than another."""
    x, y = np.zeros((4, 2)), views(items=4)[1]
    assert np.isnan(rsa(x, y))


def test_an_unknown_metric_or_correlation() -> None:
    with pytest.raises(
        ValueError, match="metric 'cityblock': choose euclidean, cosine, correlation"
    ):
        rsa(*views(), metric="cityblock")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="correlation 'kendall': choose spearman or pearson"):
        rsa(*views(), correlation="kendall")  # type: ignore[arg-type]


def test_symmetric() -> None:
    x, y = views()
    assert rsa(x, y) == pytest.approx(rsa(y, x), rel=1e-12)


def test_the_order_of_the_items_does_not_matter() -> None:
    x, y = views()
    order = np.random.default_rng(1).permutation(len(x))
    assert rsa(x[order], y[order]) == pytest.approx(rsa(x, y), rel=1e-12)


def test_float16_views_are_compared_in_float64() -> None:
    """Values near float16's largest, whose squares it cannot hold."""
    x, y = (np.asarray(3000 * view, np.float16) for view in views())
    assert np.isfinite(y).all()
    expected = rsa(x.astype(np.float64), y.astype(np.float64))
    assert rsa(x, y) == pytest.approx(expected, rel=1e-14)


def test_views_of_different_items() -> None:
    x, y = views()
    with pytest.raises(ValueError, match=r"views of shapes \[\(40, 5\), \(39, 7\)\]"):
        rsa(x, y[1:])
