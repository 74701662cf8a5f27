"""The shape of one view: how long are its vectors, how many directions do they fill, do they share
one?

Each `..._parts` gives the number and each item's influence: to first order, counting an item twice
adds so much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from repsim.measures.cka import centred

Parts = tuple[float, NDArray[np.float64]]


def norms(x: NDArray[Any]) -> NDArray[np.float64]:
    """Euclidean norm of each item; at least 0.

    Args:
        x: `[..., unit]`, any float dtype; squares are summed as float64.
    Returns:
        `[...]`.
    """
    return np.sqrt(np.einsum("...u,...u->...", x, x, dtype=np.float64))


def participation_ratio(x: NDArray[Any]) -> float:
    """How many directions hold the variance; 1 (a line) to the number of units (a ball).

    (Σλ)² / Σλ² over the covariance's eigenvalues. Biased: at most the number of items less one.

    Args:
        x: `[item, unit]`.
    Source: Gao et al. 2017, A theory of multineuronal dimensionality.
    """
    return participation_ratio_parts(*spectrum(x))[0]


def effective_rank(x: NDArray[Any]) -> float:
    """Exponential of the entropy of the centred view's singular values; 1 to the smaller of items -
    1 and units.

    Biased: grows with the number of items until it is well above the number of units.

    Args:
        x: `[item, unit]`.
    Source: Roy & Vetterli 2007, The effective rank, of the singular values (not of their squares).
    """
    return effective_rank_parts(*spectrum(x))[0]


def two_nn(x: NDArray[Any]) -> float:
    """Intrinsic dimension by the two nearest neighbours of each item; above 0.

    NaN with fewer than 3 items, infinite where the two nearest of every item are equally far.

    (items - 1) / Σ log(second distance / first distance), the unbiased form of the
    maximum-likelihood estimate. Of items that are equal one is kept. The influence takes each item
    as one that has neighbours, not as a neighbour: standard errors come out up to a fifth too
    small.

    Args:
        x: `[item, unit]`.
    Source: Facco et al. 2017, Estimating the intrinsic dimension of datasets by a minimal
        neighborhood information; Denti et al. 2022, eq. 5.
    """
    return two_nn_parts(x)[0]


def anisotropy(x: NDArray[Any]) -> float:
    """Mean cosine of two different items; about 0 (all directions alike) to 1 (one direction).

    Unbiased: an item is not compared with itself. A zero vector has no direction and is left out.

    Args:
        x: `[item, unit]`; NaN if fewer than two items have a direction.
    Source: Ethayarajh 2019, How contextual are contextualized word representations?, sec. 3.3.
    """
    return anisotropy_parts(x)[0]


def spectrum(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances along the principal directions, `[direction]`, and the squared coordinates, `[item,
    direction]`.
    """
    x = centred(x)
    n, units = x.shape
    if n > units:  # of two matrices with the same spectrum the smaller one
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
    """The participation ratio and each item's influence, from `spectrum`; NaN without variance."""
    if not len(variances):
        return np.nan, np.full(len(squares), np.nan)
    total, second = variances.sum(), (variances**2).sum()
    slope = 2 * total / second - 2 * total**2 / second**2 * variances
    return float(total**2 / second), (squares - variances) @ slope / len(squares)


def effective_rank_parts(variances: NDArray[np.float64], squares: NDArray[np.float64]) -> Parts:
    """The effective rank and each item's influence, from `spectrum`; NaN without variance."""
    if not len(variances):
        return np.nan, np.full(len(squares), np.nan)
    singular = np.sqrt(variances)
    share = singular / singular.sum()
    entropy = -(share * np.log(share)).sum()
    rank = float(np.exp(entropy))
    slope = -rank * (np.log(share) + entropy) / (2 * singular * singular.sum())
    return rank, (squares - variances) @ slope / len(squares)


def two_nn_parts(x: NDArray[Any]) -> Parts:
    """`two_nn` and each item's influence as a point that has neighbours; 0 for one left out as
    equal to another.
    """
    kept = np.unique(x, axis=0, return_index=True)[1]
    influence = np.zeros(len(x))
    if len(kept) < 3:
        return np.nan, influence
    points = centred(x[kept])
    near = (
        NearestNeighbors(n_neighbors=min(4, len(kept) - 1))
        .fit(points)
        .kneighbors(return_distance=False)
    )
    # again from the differences: the search expands the square, which loses close neighbours to
    # rounding
    distance = np.sort(np.linalg.norm(points[near] - points[:, None], axis=2), axis=1)
    logs = np.log(distance[:, 1] / distance[:, 0])
    if not logs.any():
        return np.inf, np.full(len(x), np.nan)
    dimension = float((len(kept) - 1) / logs.sum())
    influence[kept] = dimension * (1 - logs / logs.mean()) / len(kept)
    return dimension, influence


def anisotropy_parts(x: NDArray[Any]) -> Parts:
    """`anisotropy` and each item's influence; 0 for one left out as a zero vector."""
    lengths = norms(x)
    vectors = lengths != 0
    influence = np.zeros(len(lengths))
    with np.errstate(invalid="ignore"):  # of infinities
        unit = np.asarray(x, np.float64)[vectors] / lengths[vectors, None]
    n, total = len(unit), unit.sum(0)
    if n < 2:
        return np.nan, influence
    mean = float((total @ total - n) / (n * (n - 1)))
    with_others = (unit @ total - 1) / (n - 1)
    influence[vectors] = 2 * (with_others - mean) / n
    return mean, influence
