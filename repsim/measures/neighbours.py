"""Nearest neighbours: does each item have the same neighbours in two views?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from repsim.measures.cka import cosine_of, gram, same_items


def nearest(x: NDArray[Any], k: int) -> NDArray[np.bool_]:
    """Which k others have the most similar direction, `[item, item]`: k true in a row.

    Raises:
        ValueError: not more items than k.
    """
    if not 0 < k < len(x):
        raise ValueError(f"{k} neighbours of {len(x)} items: choose 1 to {len(x) - 1}")
    cosine = gram(normalize(x))
    np.fill_diagonal(cosine, -np.inf)
    found = np.zeros(cosine.shape, bool)
    np.put_along_axis(found, np.argpartition(-cosine, k - 1, axis=1)[:, :k], True, axis=1)
    return found


def local_gram(x: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Inner products of unit vectors with their k nearest neighbours less each row's mean,
    elsewhere 0.
    """
    cosine = gram(normalize(np.asarray(x, np.float64)))
    return np.where(nearest(x, k), cosine - cosine.mean(1, keepdims=True), 0)


def mutual_knn(x: NDArray[Any], y: NDArray[Any], k: int = 10) -> float:
    """Mean share of an item's k nearest neighbours that are the same in both views; 0 to 1.

    By direction (cosine). Unrelated views share k / (items - 1) on average.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
        k: neighbours.
    Raises:
        ValueError: the numbers of items differ, or not more items than k.
    Source: Huh et al. 2024, The Platonic Representation Hypothesis, appendix A.
    """
    x, y = same_items(x, y)
    return float((nearest(x, k) & nearest(y, k)).sum() / (len(x) * k))


def cknna(x: NDArray[Any], y: NDArray[Any], k: int = 10) -> float:
    """Kernel alignment that counts mutual nearest neighbours only; about 0 (unrelated) to 1.

    Args:
        x: `[item, unit_a]`; lengths of the vectors do not matter.
        y: `[item, unit_b]`, the same items in the same order.
        k: neighbours.
    Raises:
        ValueError: the numbers of items differ, or not more items than k.
    Source: Huh et al. 2024, The Platonic Representation Hypothesis, appendix A, eqs. 13 to 15.
    """
    x, y = same_items(x, y)
    return cosine_of(local_gram(x, k), local_gram(y, k))
