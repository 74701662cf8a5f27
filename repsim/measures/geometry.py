"""The shape of one view: how long are its vectors, how many directions do they fill, which do they
share?

Each `..._parts` gives a number and each item's influence on it: to first order, counting an item
twice adds this much to the number. Influences sum to 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from repsim.measures._arrays import vector_norms
from repsim.measures.cka import subtract_mean

Parts = tuple[float, NDArray[np.float64]]
"""A number, and each item's influence on it, `[item]`, float64."""


def norms(x: Any) -> Any:
    """Euclidean norm of each item, √(Σ_u x_u²); at least 0, in the units of x.

    Args:
        x: `[..., unit]`, any float dtype; squares are summed as float64.
    Returns:
        `[...]`, float64.
    Example:
        >>> import numpy as np
        >>> norms(np.array([[3, 4], [-5, 12]], np.float16)).tolist()
        [5.0, 13.0]
    """
    return vector_norms(x)


def participation_ratio(x: NDArray[Any]) -> float:
    """How many directions hold the variance; 1 (a line) to the number of units (a ball).

        PR = (Σ_c λ_c)² / Σ_c λ_c²,   λ the eigenvalues of the items' covariance

    Biased: at most the number of items minus one.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        The number of directions; NaN where the view does not vary.
    Source: Gao et al. 2017, A theory of multineuronal dimensionality.
    Example:
        >>> import numpy as np
        >>> x = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])  # variances 9 : 1
        >>> round(participation_ratio(x), 6) == round(10**2 / 82, 6)
        True
    """
    return participation_ratio_parts(*spectrum(x))[0]


def effective_rank(x: NDArray[Any]) -> float:
    """How many directions the singular values fill; 1 to the smaller of items - 1 and units.

        r = exp(-Σ_c p_c log p_c),   p_c = s_c / Σ_d s_d,   s the centred view's singular values

    Biased: grows with the number of items until that is well above the number of units.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        The number of directions; NaN where the view does not vary.
    Source: Roy & Vetterli 2007, The effective rank, of the singular values (not of their squares).
    Example:
        >>> import numpy as np
        >>> round(effective_rank(np.concatenate([np.eye(3), -np.eye(3)])), 6)
        3.0
    """
    return effective_rank_parts(*spectrum(x))[0]


def two_nn(x: NDArray[Any]) -> float:
    """Intrinsic dimension from the two nearest neighbours of each item; above 0.

        d = (n - 1) / Σ_i log(r2_i / r1_i),   r1 and r2 distances to the nearest and second nearest

    The unbiased form of the maximum-likelihood estimate. Equal items are counted once. The
    influence treats an item as one that has neighbours, not as a neighbour itself, so standard
    errors come out up to a fifth too small.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        The dimension; NaN with fewer than three different items, infinite where the two nearest
        neighbours of every item are equally far.
    Source: Facco et al. 2017, Estimating the intrinsic dimension of datasets by a minimal
        neighborhood information; Denti et al. 2022, eq. 5.
    Example:
        >>> import numpy as np
        >>> plane = np.pad(np.random.default_rng(0).uniform(size=(2000, 2)), ((0, 0), (0, 7)))
        >>> bool(1.8 < two_nn(plane) < 2.2)
        True
    """
    return two_nn_parts(x)[0]


def anisotropy(x: NDArray[Any]) -> float:
    """Mean cosine of two different items; about 0 (all directions alike) to 1 (one direction).

        A = (1 / (n (n - 1))) Σ_{i ≠ j} cos(x_i, x_j)

    Unbiased: an item is not compared with itself. A zero vector has no direction and is left out.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        The mean cosine; NaN if fewer than two items have a direction.
    Source: Ethayarajh 2019, How contextual are contextualized word representations?, sec. 3.3.
    Example:
        >>> import numpy as np
        >>> round(anisotropy(np.array([[1.0, 0], [5, 0], [0, 2]])), 6)  # cosines 1, 0 and 0
        0.333333
    """
    return anisotropy_parts(x)[0]


def spectrum(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances along the principal directions, and each item's squared coordinates there.

    Directions without variance beyond rounding are left out.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        Variances, `[direction]`, and squares, `[item, direction]`, float64; the mean of the squares
        over items is the variance.
    Example:
        >>> import numpy as np
        >>> variances, squares = spectrum(np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]]))
        >>> variances.round(6).tolist(), squares.shape
        ([0.5, 4.5], (4, 2))
    """
    x = subtract_mean(x)
    n, units = x.shape
    # Of two matrices with the same spectrum, decompose the smaller one.
    if n > units:
        variances, directions = np.linalg.eigh(x.T @ x / n)
        squares = (x @ directions) ** 2
    else:
        variances, coordinates = np.linalg.eigh(x @ x.T / n)
        squares = n * variances * coordinates**2
    kept = variances > variances.max() * max(n, units) * np.finfo(np.float64).eps
    return variances[kept], squares[:, kept]


def participation_ratio_parts(
    variances: NDArray[np.float64], squares: NDArray[np.float64]
) -> Parts:
    """The participation ratio and each item's influence, from the results of `spectrum`.

    Args:
        variances: `[direction]`, float64.
        squares: `[item, direction]`, float64.
    Returns:
        The number and `[item]`, float64; NaN without variance.
    """
    if not len(variances):
        return np.nan, np.full(len(squares), np.nan)
    total, second = variances.sum(), (variances**2).sum()
    slope = 2 * total / second - 2 * total**2 / second**2 * variances
    return float(total**2 / second), (squares - variances) @ slope / len(squares)


def effective_rank_parts(variances: NDArray[np.float64], squares: NDArray[np.float64]) -> Parts:
    """The effective rank and each item's influence, from the results of `spectrum`.

    Args:
        variances: `[direction]`, float64.
        squares: `[item, direction]`, float64.
    Returns:
        The number and `[item]`, float64; NaN without variance.
    """
    if not len(variances):
        return np.nan, np.full(len(squares), np.nan)
    singular = np.sqrt(variances)
    share = singular / singular.sum()
    entropy = -(share * np.log(share)).sum()
    rank = float(np.exp(entropy))
    slope = -rank * (np.log(share) + entropy) / (2 * singular * singular.sum())
    return rank, (squares - variances) @ slope / len(squares)


def two_nn_parts(x: NDArray[Any]) -> Parts:
    """`two_nn` and each item's influence as a point that has neighbours.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        The dimension and `[item]`, float64; an item left out as equal to another has influence 0.
    """
    # Of equal items keep one.
    kept = np.unique(x, axis=0, return_index=True)[1]
    influence = np.zeros(len(x))
    if len(kept) < 3:
        return np.nan, influence
    points = subtract_mean(x[kept])

    # Find a few near neighbours, then compute their distances from the differences: the search
    # expands the square, which loses close neighbours to rounding.
    search = NearestNeighbors(n_neighbors=min(4, len(kept) - 1)).fit(points)
    near = search.kneighbors(return_distance=False)
    distance = np.sort(np.linalg.norm(points[near] - points[:, None], axis=2), axis=1)

    logs = np.log(distance[:, 1] / distance[:, 0])
    if not logs.any():
        return np.inf, np.full(len(x), np.nan)
    dimension = float((len(kept) - 1) / logs.sum())
    influence[kept] = dimension * (1 - logs / logs.mean()) / len(kept)
    return dimension, influence


def anisotropy_parts(x: NDArray[Any]) -> Parts:
    """`anisotropy` and each item's influence.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        The mean cosine and `[item]`, float64; a zero vector has influence 0.
    """
    lengths = norms(x)
    vectors = lengths != 0
    influence = np.zeros(len(lengths))
    with np.errstate(invalid="ignore"):  # of infinities
        unit = np.asarray(x, np.float64)[vectors] / lengths[vectors, None]
    n, total = len(unit), unit.sum(0)
    if n < 2:
        return np.nan, influence
    # The sum over pairs is the square of the sum, minus each item's cosine with itself.
    mean = float((total @ total - n) / (n * (n - 1)))
    with_others = (unit @ total - 1) / (n - 1)
    influence[vectors] = 2 * (with_others - mean) / n
    return mean, influence
