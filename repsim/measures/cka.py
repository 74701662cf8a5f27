"""Centred kernel alignment: do two views of the same items have the same inner products?

HSIC is an inner product of two centred Gram matrices, CKA the cosine of the angle between them. So
a matrix of CKAs is a matrix of cosines once every Gram matrix is centred: doubly (biased) or to a
U-statistic (debiased).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances

from repsim.measures.cosine import cosine_from_gram


def gram(x: NDArray[Any]) -> NDArray[np.float64]:
    """Inner products of the items, `[item, item]`, in float64; of a stack of views, `[..., item,
    item]`.
    """
    x = np.asarray(x, np.float64)
    return x @ x.swapaxes(-1, -2)


def rbf_gram(x: NDArray[Any], bandwidth: float = 1.0) -> NDArray[np.float64]:
    """Gaussian kernel of the items, `[item, item]`, as wide as `bandwidth` median distances.

    Raises:
        ValueError: a bandwidth that is not positive, or fewer than two items.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth={bandwidth}: a positive number of median distances")
    if len(x) < 2:
        raise ValueError(f"{len(x)} items: a kernel as wide as their distances takes at least 2")
    distances = euclidean_distances(np.asarray(x, np.float64))
    width = bandwidth * np.median(distances[np.triu_indices(len(x), 1)])
    with np.errstate(invalid="ignore"):  # all items equal: undefined
        return np.exp(-((distances / width) ** 2) / 2)


def centre(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows and columns that sum to zero, `[..., item, item]`."""
    rows = kernel.mean(-1, keepdims=True)
    return kernel - rows - rows.swapaxes(-1, -2) + rows.mean(-2, keepdims=True)


def u_centre(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The U-centred kernel, `[..., item, item]`: a zero diagonal, and rows and columns that sum to
    zero.

    Inner products of two such matrices, divided by n (n - 3), are unbiased estimates of HSIC.

    Raises:
        ValueError: fewer than four items.
    Source: Székely & Rizzo 2014, Partial distance correlation, eq. 3.2; equal to Song et al. 2012,
        eq. 5.
    """
    n = kernel.shape[-1]
    if n < 4:
        raise ValueError(f"{n} items: the unbiased HSIC needs at least 4")
    kernel = kernel.copy()
    kernel[..., np.arange(n), np.arange(n)] = 0
    rows = kernel.sum(-1, keepdims=True) / (n - 2)
    kernel -= rows
    kernel -= rows.swapaxes(-1, -2)
    kernel += (rows.sum(-2, keepdims=True)) / (n - 1)
    kernel[..., np.arange(n), np.arange(n)] = 0
    return kernel


def hsic(kernel: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion; 0 on average where items are
    independent.

    Args:
        kernel: `[item, item]`, symmetric.
        other: the same of another view of the items.
    Raises:
        ValueError: fewer than four items.
    Source: Song et al. 2012, Feature selection via dependence maximization, eq. 5.
    """
    n = len(kernel)
    return float(np.vdot(u_centre(kernel), u_centre(other)) / (n * (n - 3)))


def linear_cka(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Linear CKA of two views of the same items; 0 (unrelated) to 1 (equal up to rotation and
    scale).

    Biased estimator: with fewer items than units it is close to 1 for noise. See
    `debiased_linear_cka`.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
    Raises:
        ValueError: the numbers of items differ.
    Source: Kornblith et al. 2019, Similarity of neural network representations revisited, eq. 5.
    """
    x, y = map(centred, same_items(x, y))
    if len(x) > max(x.shape[1], y.shape[1]):  # the smaller of two equal forms
        within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        return float(np.linalg.norm(x.T @ y) ** 2 / within) if within else np.nan
    return cosine_of(gram(x), gram(y))


def debiased_linear_cka(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Linear CKA from unbiased HSICs; about 0 (unrelated, however few the items) to 1; noise may
    fall below 0.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order; at least 4.
    Raises:
        ValueError: the numbers of items differ, or there are fewer than 4.
    Source: Kornblith et al. 2019 with the HSIC of Song et al. 2012, eq. 5; as in Nguyen et al.
        2021.
    """
    x, y = map(centred, same_items(x, y))  # moves no distance, spares digits
    if len(x) > max(x.shape[1], y.shape[1], 3):
        within = _feature_hsic(x, x) * _feature_hsic(y, y)
        return float(_feature_hsic(x, y) / np.sqrt(within)) if within > 0 else np.nan
    return cosine_of(u_centre(gram(x)), u_centre(gram(y)))


def _feature_hsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """`n (n - 3)` times the unbiased HSIC of two centred views, without a matrix over items.

    With K the Gram matrix of centred x and no diagonal d, row sums are -d, and so on for L and e;
    what is left of Song et al. 2012, eq. 5 needs nothing but these.
    """
    n = len(x)
    d, e = np.einsum("iu,iu->i", x, x), np.einsum("iu,iu->i", y, y)
    trace = np.linalg.norm(x.T @ y) ** 2 - d @ e
    return float(trace + d.sum() * e.sum() / ((n - 1) * (n - 2)) - 2 * (d @ e) / (n - 2))


def rbf_cka(
    x: NDArray[Any], y: NDArray[Any], bandwidth: float = 1.0, *, debiased: bool = False
) -> float:
    """CKA with Gaussian kernels; 0 (unrelated) to 1 (equal up to rotation and scale).

    Biased unless asked otherwise, as `linear_cka` is.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
        bandwidth: standard deviation of the kernel, in medians of the distances between items.
        debiased: with the HSIC of Song et al. 2012.
    Raises:
        ValueError: the numbers of items differ, or too few of them.
    Source: Kornblith et al. 2019, sec. 3.
    """
    x, y = same_items(x, y)
    by = u_centre if debiased else centre
    return cosine_of(by(rbf_gram(x, bandwidth)), by(rbf_gram(y, bandwidth)))


def minibatch_hsic(states: NDArray[Any], batch: int = 256) -> NDArray[np.float64]:
    """Unbiased linear HSIC of each two states, summed over minibatches of tokens and weighted by
    their tokens.

    Sums of pieces that are whole minibatches add up to the whole's. A rest of fewer than four
    tokens has no unbiased HSIC and is left out.

    Args:
        states: `[state, token, unit]`, any float dtype.
        batch: tokens in a minibatch.
    Returns:
        `[state, state]`, symmetric.
    """
    total = np.zeros((len(states), len(states)))
    for first in range(0, states.shape[1], batch):
        part = states[:, first : first + batch].astype(np.float64)
        n = part.shape[1]
        if n >= 4:
            part = np.stack([centred(state) for state in part])  # moves no distance, spares digits
            flat = u_centre(gram(part)).reshape(len(part), -1)
            total += flat @ flat.T / (n - 3)  # n times the HSIC
    return total


def minibatch_cka(x: NDArray[Any], y: NDArray[Any], batch: int = 64) -> float:
    """Linear CKA from minibatches: a ratio of mean unbiased HSICs, never a mean of ratios; about 0
    to 1.

    The minibatches are runs of items in the order given: shuffle the items if neighbours depend on
    each other.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
        batch: items in a minibatch.
    Raises:
        ValueError: the numbers of items differ, or the minibatches hold fewer than 4.
    Source: Nguyen et al. 2021, Do wide and deep networks learn the same things?, eq. 4.
    """
    x, y = same_items(x, y)
    if min(batch, len(x)) < 4:
        raise ValueError(
            f"minibatches of {min(batch, len(x))} items: the unbiased HSIC needs at least 4"
        )
    wide = max(x.shape[1], y.shape[1])  # more units that are zero change no inner product
    states = np.stack([np.pad(view, ((0, 0), (0, wide - view.shape[1]))) for view in (x, y)])
    return float(cosine_from_gram(minibatch_hsic(states, batch))[0, 1])


def same_items(*views: NDArray[Any]) -> list[NDArray[np.float64]]:
    """The views in float64.

    Raises:
        ValueError: one is not `[item, unit]`, or the numbers of items differ.
    """
    if any(view.ndim != 2 for view in views) or len({len(view) for view in views}) != 1:
        raise ValueError(
            f"views of shapes {[view.shape for view in views]}: each is [item, unit], of the same items"
        )
    return [np.asarray(view, np.float64) for view in views]


def centred(x: NDArray[Any]) -> NDArray[np.float64]:
    """The view less its mean, `[item, unit]`; exactly zero where items differ by rounding alone."""
    x = np.asarray(x, np.float64)
    rest = x - x.mean(0)
    return rest if np.linalg.norm(rest) > 1e-13 * np.linalg.norm(x) else np.zeros_like(rest)


def cosine_of(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Cosine of two arrays as vectors; NaN where one is zero."""
    within = np.vdot(a, a) * np.vdot(b, b)
    return float(np.vdot(a, b) / np.sqrt(within)) if within else np.nan
