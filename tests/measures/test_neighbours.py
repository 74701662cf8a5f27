"""Nearest neighbours: by hand, literal loops, scikit-learn, and what leaves them alone."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from repsim.measures import cknna, mutual_knn
from repsim.measures.neighbours import local_gram, nearest
from support.views import random_rotation, shear

Array = NDArray[Any]


def directions(*degrees: float) -> Array:
    """Vectors in the plane at these angles, of several lengths."""
    angle = np.radians(degrees)
    return (
        np.stack([np.cos(angle), np.sin(angle)], axis=1)
        * np.linspace(0.5, 3, len(degrees))[:, None]
    )


def views(items: int = 40, units: int = 5, other: int = 7, seed: int = 0) -> tuple[Array, Array]:
    """Two views that share something, off centre."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(items, units)) * np.linspace(0.5, 3, units) + 0.5
    return x, x @ generator.normal(size=(units, other)) / 2 + generator.normal(
        size=(items, other)
    ) - 0.2


def neighbour_sets(x: Array, k: int) -> list[set[int]]:
    """The k nearest others by scikit-learn."""
    found = (
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(x).kneighbors(return_distance=False)
    )
    return [set(row.tolist()) for row in found]


def aligned(x: Array, y: Array, k: int) -> float:
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


def test_nearest_by_hand() -> None:
    assert_array_equal(np.argwhere(nearest(X, 1)), [[0, 1], [1, 0], [2, 3], [3, 2]])
    assert_array_equal(np.argwhere(nearest(Y, 1)), [[0, 3], [1, 2], [2, 1], [3, 0]])
    assert_array_equal(np.argwhere(nearest(X, 2))[:, 1], [1, 2, 0, 2, 1, 3, 1, 2])


def test_mutual_knn_by_hand() -> None:
    """With two neighbours, items share 1, 1, 2 and 1 of them."""
    assert mutual_knn(X, Y, k=1) == 0
    assert mutual_knn(X, Y, k=2) == 5 / 8
    assert mutual_knn(X, Y, k=3) == 1


def test_cknna_by_hand() -> None:
    """Only 0 and 1 are neighbours in both; x's rows have mean 0, y's (1.5 - √3/2) / 4 and (0.5 -
    √3/2) / 4.
    """
    x, y = directions(0, 60, 180, 240), directions(0, 60, 150, 270)
    near, far = 0.5 - (1.5 - 0.75**0.5) / 4, 0 - (0.5 - 0.75**0.5) / 4
    assert cknna(x, y, k=1) == pytest.approx(
        2 * 0.5 * near / (2 * near**2 + 2 * far**2) ** 0.5, rel=1e-12
    )
    assert cknna(x, x[[0, 2, 1, 3]], k=1) == 0


def test_an_item_is_not_its_own_neighbour_and_each_has_k() -> None:
    found = nearest(views()[0], 6)
    assert not np.diagonal(found).any()
    assert_array_equal(found.sum(1), 6)


@pytest.mark.parametrize("k", [1, 5, 39])
def test_nearest_equals_a_search_by_scikit_learn(k: int) -> None:
    for view in views():
        assert [set(np.flatnonzero(row).tolist()) for row in nearest(view, k)] == neighbour_sets(
            view, k
        )


@pytest.mark.parametrize("k", [1, 5, 39])
def test_mutual_knn_equals_a_loop(k: int) -> None:
    x, y = views()
    shares = [
        len(a & b) / k for a, b in zip(neighbour_sets(x, k), neighbour_sets(y, k), strict=True)
    ]
    assert mutual_knn(x, y, k) == pytest.approx(np.mean(shares), rel=1e-14)


@pytest.mark.parametrize("k", [1, 5, 39])
def test_cknna_equals_a_loop_over_pairs(k: int) -> None:
    x, y = views()
    expected = aligned(x, y, k) / np.sqrt(aligned(x, x, k) * aligned(y, y, k))
    assert cknna(x, y, k) == pytest.approx(expected, rel=1e-12)


def test_local_gram_is_zero_but_for_neighbours() -> None:
    x = views()[0]
    assert_array_equal(local_gram(x, 5) != 0, nearest(x, 5))


def test_unrelated_views_share_neighbours_by_chance() -> None:
    """k / (n - 1) = 0.0501 of them; the share's standard error is about 0.003."""
    x, y = np.random.default_rng(0).normal(size=(2, 400, 8))
    assert mutual_knn(x, y, k=20) == pytest.approx(20 / 399, abs=0.009)


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_neighbours_of_a_view_and_itself(measure: Any) -> None:
    x, _ = views()
    assert measure(x, x) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_neighbours_ignore_rotations_and_lengths_but_no_shift(measure: Any) -> None:
    x, y = views()
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(len(x), 1))
    assert measure(scale * x @ random_rotation(5), y) == pytest.approx(measure(x, y), rel=1e-10)
    assert abs(measure(x + 3, y) - measure(x, y)) > 0.001
    assert measure(shear(x), x) < 0.95


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_symmetric(measure: Any) -> None:
    x, y = views()
    assert measure(x, y) == pytest.approx(measure(y, x), rel=1e-12)


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_the_order_of_the_items_does_not_matter(measure: Any) -> None:
    x, y = views()
    order = np.random.default_rng(1).permutation(len(x))
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y), rel=1e-12)


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_float16_views_are_compared_in_float64(measure: Any) -> None:
    """Values near float16's largest, whose squares it cannot hold."""
    x, y = (np.asarray(3000 * view, np.float16) for view in views())
    assert np.isfinite(y).all()
    assert measure(x, y) == pytest.approx(
        measure(x.astype(np.float64), y.astype(np.float64)), rel=1e-14
    )


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_views_of_different_items(measure: Any) -> None:
    x, y = views()
    with pytest.raises(ValueError, match=r"views of shapes \[\(40, 5\), \(39, 7\)\]"):
        measure(x, y[1:])


@pytest.mark.parametrize("k", [0, -1, 40])
@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_more_neighbours_than_others(measure: Any, k: int) -> None:
    with pytest.raises(ValueError, match=f"{k} neighbours of 40 items: choose 1 to 39"):
        measure(*views(), k=k)
