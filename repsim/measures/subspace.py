"""Maps between views: how well does the best linear map, or the best rotation, take one view to the
other?

Each pair is a sum over the singular values of one small matrix, once every view is prepared: an
orthonormal basis (canonical correlations) or centred and of norm one (Procrustes). `Pair` keeps
what each item adds to that sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from repsim.measures.cka import centred, same_items


@dataclass(frozen=True)
class Pair:
    """A similarity of two views, and what each item does to it.

    value: the similarity.
    influence: `[item]`, summing to 0: to first order, counting an item twice adds so much to the
    value.
    """

    value: float
    influence: NDArray[np.float64]


def basis(x: NDArray[Any], variance: float = 1.0) -> NDArray[np.float64]:
    """Orthonormal basis of the centred view's leading components, `[item, component]`.

    Args:
        x: `[item, unit]`.
        variance: share of the variance that the components hold; 1 leaves out nothing but rounding.
    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance={variance}: a share above 0, at most 1")
    x = np.asarray(x, np.float64)
    left, singular, _ = np.linalg.svd(centred(x), full_matrices=False)
    if not singular.any():
        return left[:, :0]
    rank = int((singular > singular[0] * max(x.shape) * np.finfo(np.float64).eps).sum())
    share = np.cumsum(singular**2) / (singular**2).sum()
    return left[:, : min(rank, int(np.searchsorted(share, variance - 1e-12)) + 1)]


def unit_norm(x: NDArray[Any]) -> NDArray[np.float64]:
    """The centred view scaled to a Frobenius norm of one; never wider than there are items, by a
    rotation.
    """
    x = centred(x)
    if x.shape[1] > len(x):
        x = scipy.linalg.qr(x.T, mode="r")[0][: len(x)].T
    with np.errstate(invalid="ignore"):  # a view that does not vary has no direction
        return x / np.linalg.norm(x)


def canonical(
    p: NDArray[np.float64], q: NDArray[np.float64], weigh: NDArray[np.float64] | None = None
) -> Pair:
    """Mean canonical correlation of two bases, 0 to 1; weighted where `weigh` is the first view's
    centred units.

    The influence holds the directions and weights as they are. A correlation near 0 cannot spread
    below it, so that the influence overstates the spread there. NaN where a view does not vary.
    """
    if not p.size or not q.size:
        return Pair(np.nan, np.full(len(p), np.nan))
    left, rho, right = np.linalg.svd(p.T @ q, full_matrices=False)
    u, v = p @ left, q @ right.T
    weight = np.ones(len(rho)) if weigh is None else np.abs(u.T @ weigh).sum(1)
    weight = weight / weight.sum()
    influence = (u * v - rho * (u**2 + v**2) / 2) @ weight
    return Pair(float(rho @ weight), influence)


def rotation(x: NDArray[np.float64], y: NDArray[np.float64]) -> Pair:
    """Normalised nuclear-norm similarity of two views of `unit_norm`, and each item's part; NaN
    without a direction.
    """
    if np.isnan(x).any() or np.isnan(y).any():
        return Pair(np.nan, np.full(len(x), np.nan))
    left, singular, right = np.linalg.svd(x.T @ y, full_matrices=False)
    value = float(singular.sum())
    parts = np.einsum("iu,iu->i", x @ (left @ right), y)
    squares = np.einsum("iu,iu->i", x, x) + np.einsum("iu,iu->i", y, y)
    return Pair(value, parts - value * squares / 2)


def mean_cca(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean canonical correlation; 0 (unrelated) to 1 (equal up to an invertible linear map and a
    shift).

    With fewer items than units of both views together some correlations are 1 whatever the views
    hold; have many more.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
    Raises:
        ValueError: the numbers of items differ.
    Source: Hotelling 1936; Raghu et al. 2017.
    """
    x, y = same_items(x, y)
    return canonical(basis(x), basis(y)).value


def svcca(x: NDArray[Any], y: NDArray[Any], variance: float = 0.99) -> float:
    """Mean canonical correlation of the components that hold most variance; 0 to 1.

    Invariant to rotations, scale and shifts; to any invertible map at `variance=1` only, as the
    components depend on scale.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
        variance: share of each view's variance that its components hold.
    Raises:
        ValueError: the numbers of items differ, or a share outside 0 to 1.
    Source: Raghu et al. 2017, SVCCA.
    """
    x, y = same_items(x, y)
    return canonical(basis(x, variance), basis(y, variance)).value


def pwcca(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Canonical correlations weighted by how much of `x` their directions account for; 0 to 1; not
    symmetric.

    Invariant to any invertible map of `y`; of `x` to scale and shifts, as the weights follow its
    units.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
    Raises:
        ValueError: the numbers of items differ.
    Source: Morcos, Raghu & Bengio 2018, Insights on representational similarity, sec. 3.
    """
    x, y = same_items(x, y)
    return canonical(basis(x), basis(y), weigh=centred(x)).value


def procrustes_similarity(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Normalised nuclear-norm similarity: the cosine of the angle that the best rotation leaves; 0
    to 1.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
    Raises:
        ValueError: the numbers of items differ.
    Source: Williams et al. 2021, Generalized shape metrics on neural representations, eq. 9.
    """
    x, y = same_items(x, y)
    product = unit_norm(x).T @ unit_norm(y)
    return np.nan if np.isnan(product).any() else float(np.linalg.norm(product, "nuc"))


def procrustes_distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Angle between two views after the best rotation, shift and scale, in radians; 0 (equal) to
    π/2. A metric.

    Rounding lets equal views be about 1e-7 apart.

    Args:
        x: `[item, unit_a]`.
        y: `[item, unit_b]`, the same items in the same order.
    Raises:
        ValueError: the numbers of items differ.
    Source: Williams et al. 2021, Generalized shape metrics on neural representations, eq. 9.
    """
    return float(np.arccos(np.minimum(procrustes_similarity(x, y), 1.0)))
