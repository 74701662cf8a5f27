"""Nearest neighbours: does each item have the same neighbours in two views?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from repsim.measures.cka import cosine_of, gram, validate_views


def nearest(x: NDArray[Any], k: int) -> NDArray[np.bool_]:
    """Which k other items have the most similar direction (the largest cosine).

    Args:
        x: `[item, unit]`, any float dtype.
        k: neighbours of each item, 1 to items - 1.
    Returns:
        `[item, item]`, bool: k true in each row, none on the diagonal.
    Raises:
        ValueError: a number of neighbours that the items do not allow.
    Example:
        >>> import numpy as np
        >>> nearest(np.array([[1.0, 0], [2, 0.1], [0, 1]]), k=1).tolist()
        [[False, True, False], [True, False, False], [False, True, False]]
    """
    if not 0 < k < len(x):
        raise ValueError(f"{k} neighbours of {len(x)} items: choose 1 to {len(x) - 1}")
    cosine = gram(normalize(x))
    np.fill_diagonal(cosine, -np.inf)
    is_neighbour = np.zeros(cosine.shape, bool)
    np.put_along_axis(is_neighbour, np.argpartition(-cosine, k - 1, axis=1)[:, :k], True, axis=1)
    return is_neighbour


def local_gram(x: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Cosines of each item with its k nearest neighbours, minus the row's mean; elsewhere 0.

        K[i, j] = cos(x_i, x_j) - mean_l cos(x_i, x_l)   where j is among the k nearest of i

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
        k: neighbours of each item, 1 to items - 1.
    Returns:
        `[item, item]`, float64, not symmetric.
    Raises:
        ValueError: a number of neighbours that the items do not allow.
    Source: Huh et al. 2024, The Platonic Representation Hypothesis, appendix A.
    Example:
        >>> import numpy as np
        >>> local_gram(np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]), k=1)[0].tolist()
        [0.0, 0.5, 0.0, 0.0]
    """
    cosine = gram(normalize(np.asarray(x, np.float64)))
    return np.where(nearest(x, k), cosine - cosine.mean(1, keepdims=True), 0)


def mutual_knn(x: NDArray[Any], y: NDArray[Any], k: int = 10) -> float:
    """Mean share of an item's k nearest neighbours that both views have in common; 0 to 1.

        m = (1 / n) Σ_i |N_x(i) ∩ N_y(i)| / k,   N(i) the k nearest of item i by cosine

    Unrelated views have k / (n - 1) in common on average. Rotations and the lengths of the vectors
    change nothing.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
        k: neighbours of each item, 1 to items - 1.
    Returns:
        The share.
    Raises:
        ValueError: the numbers of items differ, or a number of neighbours that they do not allow.
    Source: Huh et al. 2024, The Platonic Representation Hypothesis, appendix A.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 4))
        >>> mutual_knn(x, 3 * x, k=5)
        1.0
    """
    x, y = validate_views(x, y)
    return float((nearest(x, k) & nearest(y, k)).sum() / (len(x) * k))


def cknna(x: NDArray[Any], y: NDArray[Any], k: int = 10) -> float:
    """Kernel alignment of mutual nearest neighbours alone; about 0 (unrelated) to 1.

        CKNNA = ⟨K, L⟩ / (‖K‖ ‖L‖),   K and L by `local_gram`, so only mutual neighbours meet

    Rotations and the lengths of the vectors change nothing.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
        k: neighbours of each item, 1 to items - 1.
    Returns:
        The similarity.
    Raises:
        ValueError: the numbers of items differ, or a number of neighbours that they do not allow.
    Source: Huh et al. 2024, The Platonic Representation Hypothesis, appendix A, eqs. 13 to 15.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 4))
        >>> round(cknna(x, 3 * x, k=5), 6)
        1.0
    """
    x, y = validate_views(x, y)
    return cosine_of(local_gram(x, k), local_gram(y, k))
