"""Neighbours and dissimilarities: by hand, literal loops, other libraries, and what leaves them
alone.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, spearmanr
from sklearn.neighbors import NearestNeighbors

from repsim.measures import cknna, mutual_knn, rsa
from repsim.measures.dissimilarity import dissimilarities
from repsim.measures.neighbours import local_gram, nearest

METRICS = ("euclidean", "cosine", "correlation")
CORRELATIONS = {"spearman": spearmanr, "pearson": pearsonr}


def directions(*degrees):
    """Vectors in the plane at these angles, of several lengths."""
    angle = np.radians(degrees)
    return (
        np.stack([np.cos(angle), np.sin(angle)], axis=1)
        * np.linspace(0.5, 3, len(degrees))[:, None]
    )


def views(items=40, units=5, other=7, seed=0):
    """Two views that share something, off centre."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(items, units)) * np.linspace(0.5, 3, units) + 0.5
    return x, x @ generator.normal(size=(units, other)) / 2 + generator.normal(
        size=(items, other)
    ) - 0.2


def rotation_of(units, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(units, units))).Q


def shear(x):
    """An invertible map that is no rotation: the first unit grows fivefold and leaks into the
    second.
    """
    sheared = x.copy()
    sheared[:, 0] *= 5
    sheared[:, 1] += sheared[:, 0]
    return sheared


def neighbour_sets(x, k):
    """The k nearest others by scikit-learn."""
    found = (
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(x).kneighbors(return_distance=False)
    )
    return [set(row.tolist()) for row in found]


def aligned(x, y, k):
    """Huh et al. 2024, eq. 13, literally; with neighbours of both."""
    kernel, other = (view / np.linalg.norm(view, axis=1, keepdims=True) for view in (x, y))
    kernel, other = kernel @ kernel.T, other @ other.T
    near, near_other = neighbour_sets(x, k), neighbour_sets(y, k)
    total = 0.0
    for i, j in product(range(len(x)), repeat=2):
        if i != j and j in near[i] and j in near_other[i]:
            total += (kernel[i, j] - kernel[i].mean()) * (other[i, j] - other[i].mean())
    return total


X, Y = directions(0, 10, 90, 100), directions(0, 95, 90, 5)


def test_nearest_by_hand():
    assert_array_equal(np.argwhere(nearest(X, 1)), [[0, 1], [1, 0], [2, 3], [3, 2]])
    assert_array_equal(np.argwhere(nearest(Y, 1)), [[0, 3], [1, 2], [2, 1], [3, 0]])
    assert_array_equal(np.argwhere(nearest(X, 2))[:, 1], [1, 2, 0, 2, 1, 3, 1, 2])


def test_mutual_knn_by_hand():
    """With two neighbours, items share 1, 1, 2 and 1 of them."""
    assert mutual_knn(X, Y, k=1) == 0
    assert mutual_knn(X, Y, k=2) == 5 / 8
    assert mutual_knn(X, Y, k=3) == 1


def test_cknna_by_hand():
    """Only 0 and 1 are neighbours in both; x's rows have mean 0, y's (1.5 - √3/2) / 4 and (0.5 -
    √3/2) / 4.
    """
    x, y = directions(0, 60, 180, 240), directions(0, 60, 150, 270)
    near, far = 0.5 - (1.5 - 0.75**0.5) / 4, 0 - (0.5 - 0.75**0.5) / 4
    assert cknna(x, y, k=1) == pytest.approx(
        2 * 0.5 * near / (2 * near**2 + 2 * far**2) ** 0.5, rel=1e-12
    )
    assert cknna(x, x[[0, 2, 1, 3]], k=1) == 0


def test_rsa_by_hand():
    """Distances 1, 10, 9 and 2, 3, 1; ranks 1, 3, 2 and 2, 3, 1."""
    x, y = np.array([[0.0], [1], [10]]), np.array([[0.0], [2], [3]])
    assert rsa(x, y) == pytest.approx(1 / 2, rel=1e-14)
    assert rsa(x, y, correlation="pearson") == pytest.approx(3 / 876**0.5, rel=1e-14)


def test_rsa_of_opposite_orders_is_minus_one():
    x, y = np.array([[0.0], [1], [3]]), np.array([[0.0], [3], [1]])  # distances 1, 3, 2 and 3, 1, 2
    assert rsa(x, y) == pytest.approx(-1, abs=1e-14)
    assert rsa(x, y, correlation="pearson") == pytest.approx(-1, abs=1e-14)


def test_equal_distances_share_a_rank():
    """A square's corners and a line: ranks 2.5 (four sides) and 5.5 (diagonals)."""
    x, y = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), np.array([[0], [1], [3], [7]])
    ranks = [2.5, 5.5, 2.5, 2.5, 5.5, 2.5], [1, 3, 6, 2, 5, 4]
    assert rsa(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-14)


def test_an_item_is_not_its_own_neighbour_and_each_has_k():
    found = nearest(views()[0], 6)
    assert not np.diagonal(found).any()
    assert_array_equal(found.sum(1), 6)


@pytest.mark.parametrize("k", [1, 5, 39])
def test_nearest_equals_a_search_by_scikit_learn(k):
    for view in views():
        assert [set(np.flatnonzero(row).tolist()) for row in nearest(view, k)] == neighbour_sets(
            view, k
        )


@pytest.mark.parametrize("k", [1, 5, 39])
def test_mutual_knn_equals_a_loop(k):
    x, y = views()
    shares = [
        len(a & b) / k for a, b in zip(neighbour_sets(x, k), neighbour_sets(y, k), strict=True)
    ]
    assert mutual_knn(x, y, k) == pytest.approx(np.mean(shares), rel=1e-14)


@pytest.mark.parametrize("k", [1, 5, 39])
def test_cknna_equals_a_loop_over_pairs(k):
    x, y = views()
    expected = aligned(x, y, k) / np.sqrt(aligned(x, x, k) * aligned(y, y, k))
    assert cknna(x, y, k) == pytest.approx(expected, rel=1e-12)


def test_local_gram_is_zero_but_for_neighbours():
    x = views()[0]
    assert_array_equal(local_gram(x, 5) != 0, nearest(x, 5))


def test_unrelated_views_share_neighbours_by_chance():
    """k / (n - 1) = 0.0501 of them; the share's standard error is about 0.003."""
    x, y = np.random.default_rng(0).normal(size=(2, 400, 8))
    assert mutual_knn(x, y, k=20) == pytest.approx(20 / 399, abs=0.009)


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_neighbours_of_a_view_and_itself(measure):
    x, _ = views()
    assert measure(x, x) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_neighbours_ignore_rotations_and_lengths_but_no_shift(measure):
    x, y = views()
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(len(x), 1))
    assert measure(scale * x @ rotation_of(5), y) == pytest.approx(measure(x, y), rel=1e-10)
    assert abs(measure(x + 3, y) - measure(x, y)) > 0.001
    assert measure(shear(x), x) < 0.95


@pytest.mark.parametrize("measure", [mutual_knn, cknna, rsa])
def test_symmetric(measure):
    x, y = views()
    assert measure(x, y) == pytest.approx(measure(y, x), rel=1e-12)


@pytest.mark.parametrize("measure", [mutual_knn, cknna, rsa])
def test_the_order_of_the_items_does_not_matter(measure):
    x, y = views()
    order = np.random.default_rng(1).permutation(len(x))
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y), rel=1e-12)


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_rsa_is_scipys(metric, correlation):
    x, y = views()
    expected = CORRELATIONS[correlation](pdist(x, metric), pdist(y, metric)).statistic
    assert rsa(x, y, metric, correlation) == pytest.approx(expected, rel=1e-11)


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(3, 10))
def test_rsa_with_ties_is_scipys(seed, items):
    """Items on a small grid, so that many distances are equal, some zero."""
    x, y = np.random.default_rng(seed).integers(0, 3, size=(2, items, 3)).astype(np.float16)
    x[0], y[0] = 5, 6  # never all alike
    x[1], y[1] = 1, 2
    x[2], y[2] = 3, 0
    expected = spearmanr(pdist(x.astype(float)), pdist(y.astype(float))).statistic
    assert rsa(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_a_view_holds_its_items_apart_as_itself(metric, correlation):
    x, _ = views()
    assert rsa(x, x, metric, correlation) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_euclidean_rsa_ignores_rotation_scale_and_shift_but_no_shear(correlation):
    x, y = views()
    turned = 7 * x @ rotation_of(5) + 3
    assert rsa(turned, y, correlation=correlation) == pytest.approx(
        rsa(x, y, correlation=correlation), rel=1e-10
    )
    assert rsa(shear(x), x, correlation=correlation) < 0.98
    assert (
        abs(rsa(shear(x), y, correlation=correlation) - rsa(x, y, correlation=correlation)) > 0.01
    )


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_cosine_rsa_ignores_rotations_and_lengths_but_no_shift(correlation):
    x, y = views()
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(len(x), 1))
    expected = rsa(x, y, "cosine", correlation)
    assert rsa(scale * x @ rotation_of(5), y, "cosine", correlation) == pytest.approx(
        expected, rel=1e-10
    )
    assert abs(rsa(x + 3, y, "cosine", correlation) - expected) > 0.001


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_correlation_rsa_ignores_each_items_mean_and_scale_but_no_rotation(correlation):
    x, y = views()
    generator = np.random.default_rng(1)
    changed = x * generator.uniform(0.1, 10, size=(len(x), 1)) + generator.normal(size=(len(x), 1))
    expected = rsa(x, y, "correlation", correlation)
    assert rsa(changed, y, "correlation", correlation) == pytest.approx(expected, rel=1e-10)
    assert abs(rsa(x @ rotation_of(5), y, "correlation", correlation) - expected) > 0.001


def test_spearman_asks_for_the_order_of_distances_alone():
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
def test_dissimilarities_are_symmetric_with_a_zero_diagonal_and_mean(metric, correlation):
    matrix = dissimilarities(views()[0], metric, correlation)
    assert_array_equal(matrix, matrix.T)
    assert_array_equal(np.diagonal(matrix), 0)
    assert matrix.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("measure", [mutual_knn, cknna, rsa])
def test_float16_views_are_compared_in_float64(measure):
    """Values near float16's largest, whose squares it cannot hold."""
    x, y = (np.asarray(3000 * view, np.float16) for view in views())
    assert np.isfinite(y).all()
    assert measure(x, y) == pytest.approx(
        measure(x.astype(np.float64), y.astype(np.float64)), rel=1e-14
    )


def test_a_view_whose_items_are_equally_far_apart_has_no_rsa():
    """NaN: no distance is larger than another."""
    x, y = np.zeros((4, 2)), views(items=4)[1]
    assert np.isnan(rsa(x, y))


@pytest.mark.parametrize("measure", [mutual_knn, cknna, rsa])
def test_views_of_different_items(measure):
    x, y = views()
    with pytest.raises(ValueError, match=r"views of shapes \[\(40, 5\), \(39, 7\)\]"):
        measure(x, y[1:])


@pytest.mark.parametrize("k", [0, -1, 40])
@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_more_neighbours_than_others(measure, k):
    with pytest.raises(ValueError, match=f"{k} neighbours of 40 items: choose 1 to 39"):
        measure(*views(), k=k)


def test_an_unknown_metric_or_correlation():
    with pytest.raises(
        ValueError, match="metric 'cityblock': choose euclidean, cosine, correlation"
    ):
        rsa(*views(), metric="cityblock")
    with pytest.raises(ValueError, match="correlation 'kendall': choose spearman or pearson"):
        rsa(*views(), correlation="kendall")
