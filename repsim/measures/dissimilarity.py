"""Representational similarity analysis: do two views hold the same items apart?"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics.pairwise import pairwise_distances

from repsim.measures.cka import cosine_of, same_items

Dissimilarity = Literal["euclidean", "cosine", "correlation"]
Correlation = Literal["spearman", "pearson"]


def dissimilarities(
    x: NDArray[Any], metric: Dissimilarity, correlation: Correlation
) -> NDArray[np.float64]:
    """Dissimilarities of the items, or their ranks, less their mean: `[item, item]`, symmetric,
    zero diagonal.

    The correlation of two dissimilarity matrices is the cosine of two such matrices.
    """
    if metric not in get_args(Dissimilarity):
        raise ValueError(f"metric {metric!r}: choose {', '.join(get_args(Dissimilarity))}")
    if correlation not in get_args(Correlation):
        raise ValueError(
            f"correlation {correlation!r}: choose {' or '.join(get_args(Correlation))}"
        )
    x = np.asarray(x, np.float64)
    # The cosine's, once each item's mean over units is gone; and by a matrix product.
    if metric == "correlation":
        x, metric = x - x.mean(1, keepdims=True), "cosine"
    upper = np.triu_indices(len(x), 1)
    values = pairwise_distances(x, metric=metric)[upper]
    if correlation == "spearman":
        values = rankdata(values)
    matrix = np.zeros((len(x), len(x)))
    matrix[upper] = values - values.mean()
    return matrix + matrix.T


def rsa(
    x: NDArray[Any],
    y: NDArray[Any],
    metric: Dissimilarity = "euclidean",
    correlation: Correlation = "spearman",
) -> float:
    """Correlation of two views' dissimilarities between items; -1 to 1 (the same order, or linearly
    related).

    Rotations and scale change nothing with `euclidean` and `cosine`; with `correlation`, scale
    alone does not.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
        metric: how unlike two items are: Euclidean distance, 1 - cosine, or 1 - correlation over
            units.
        correlation: `spearman` compares ranks, `pearson` values.
    Raises:
        ValueError: the numbers of items differ, or an unknown metric or correlation.
    Source: Kriegeskorte, Mur & Bandettini 2008, Representational similarity analysis.
    """
    x, y = same_items(x, y)
    a, b = (dissimilarities(view, metric, correlation) for view in (x, y))
    return cosine_of(a, b)
