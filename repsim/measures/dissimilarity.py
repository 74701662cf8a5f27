"""Representational similarity analysis: are the same items far apart in two views?"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics.pairwise import pairwise_distances

from repsim.measures.cka import cosine_of, validate_views

Dissimilarity = Literal["euclidean", "cosine", "correlation"]
Correlation = Literal["spearman", "pearson"]


def dissimilarities(
    x: NDArray[Any], metric: Dissimilarity, correlation: Correlation
) -> NDArray[np.float64]:
    """Dissimilarities of the items, or their ranks, minus their mean over pairs.

    The correlation of two dissimilarity matrices is the cosine of two such matrices.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
        metric: how unlike two items are: Euclidean distance, 1 - cosine, or 1 - correlation over
            units.
        correlation: `spearman` takes ranks (equal values share one), `pearson` the values.
    Returns:
        `[item, item]`, float64, symmetric with a zero diagonal.
    Raises:
        ValueError: an unknown metric or correlation.
    Example:
        >>> import numpy as np
        >>> dissimilarities(np.array([[0.0], [1], [10]]), "euclidean", "spearman")[0].tolist()
        [0.0, -1.0, 1.0]
    """
    if metric not in get_args(Dissimilarity):
        raise ValueError(f"metric {metric!r}: choose {', '.join(get_args(Dissimilarity))}")
    if correlation not in get_args(Correlation):
        raise ValueError(
            f"correlation {correlation!r}: choose {' or '.join(get_args(Correlation))}"
        )
    x = np.asarray(x, np.float64)
    # 1 - correlation is 1 - cosine once each item's mean over units is subtracted.
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
    """Correlation of two views' dissimilarities between items; -1 to 1 (same order, or linear).

        RSA = corr(d(x_i, x_j), d(y_i, y_j))   over pairs i < j

    Rotations and scale change nothing with `euclidean` and `cosine`; with `correlation`, scale
    alone changes nothing.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
        metric: d, how unlike two items are: Euclidean distance, 1 - cosine, or 1 - correlation over
            units.
        correlation: `spearman` compares ranks, `pearson` values.
    Returns:
        The correlation; NaN where all dissimilarities of a view are equal.
    Raises:
        ValueError: the numbers of items differ, or an unknown metric or correlation.
    Source: Kriegeskorte, Mur & Bandettini 2008, Representational similarity analysis.
    Example:
        >>> import numpy as np
        >>> x, y = np.array([[0.0], [1], [10]]), np.array([[0.0], [2], [3]])
        >>> round(rsa(x, y), 6)  # distances 1, 10, 9 and 2, 3, 1
        0.5
    """
    x, y = validate_views(x, y)
    a, b = (dissimilarities(view, metric, correlation) for view in (x, y))
    return cosine_of(a, b)
