"""Maps between views: how well does the best linear map, or the best rotation, take one to another?

Once every view is prepared, each pair is a sum over the singular values s of one small matrix:

    canonical correlations    Σ_c w_c s_c(pᵀq)    p and q orthonormal bases of the centred views
    Procrustes                Σ_c s_c(xᵀy)        x and y centred, of Frobenius norm one

`Pair` keeps what each item adds to that sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from repsim.measures.cka import subtract_mean, validate_views


@dataclass(frozen=True)
class Pair:
    """A similarity of two views, and how much each item contributes to it.

    value: the similarity.
    influence: `[item]`, float64, summing to 0; to first order, counting an item twice adds this
        much to the value.
    """

    value: float
    influence: NDArray[np.float64]


def basis(x: NDArray[Any], variance: float = 1.0) -> NDArray[np.float64]:
    """Orthonormal basis of the centred view's leading principal components.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
        variance: share of the variance that the components hold, above 0 to 1; 1 leaves out nothing
            but rounding.
    Returns:
        `[item, component]`, float64, orthonormal columns that sum to zero; no column where the view
        does not vary.
    Raises:
        ValueError: a share outside 0 to 1.
    Example:
        >>> import numpy as np
        >>> x = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])  # variances 9 : 1
        >>> basis(x).shape, basis(x, variance=0.9).shape
        ((4, 2), (4, 1))
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance={variance}: a share above 0, at most 1")
    x = np.asarray(x, np.float64)
    left, singular, _ = np.linalg.svd(subtract_mean(x), full_matrices=False)
    if not singular.any():
        return left[:, :0]
    rank = int((singular > singular[0] * max(x.shape) * np.finfo(np.float64).eps).sum())
    share = np.cumsum(singular**2) / (singular**2).sum()
    return left[:, : min(rank, int(np.searchsorted(share, variance - 1e-12)) + 1)]


def unit_norm(x: NDArray[Any]) -> NDArray[np.float64]:
    """The centred view divided by its Frobenius norm.

    A view with more units than items is rotated into as many units as there are items, which
    changes no inner product.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        `[item, unit]`, float64, at most as many units as items; NaN where the view does not vary.
    Example:
        >>> import numpy as np
        >>> unit_norm(np.array([[3.0], [5], [4], [4]])).ravel().round(4).tolist()
        [-0.7071, 0.7071, 0.0, 0.0]
    """
    x = subtract_mean(x)
    if x.shape[1] > len(x):
        x = scipy.linalg.qr(x.T, mode="r")[0][: len(x)].T
    with np.errstate(invalid="ignore"):  # a view that does not vary has no direction
        return x / np.linalg.norm(x)


def canonical(
    p: NDArray[np.float64], q: NDArray[np.float64], weigh: NDArray[np.float64] | None = None
) -> Pair:
    """Mean canonical correlation of two bases, and each item's influence; 0 to 1.

        r = Σ_c w_c s_c,   s the singular values of pᵀq,   Σ_c w_c = 1

    The weights are equal, or with `weigh` w_c ∝ Σ_u |u_c · weigh_u|, u_c the canonical variables of
    the first view. The influence takes directions and weights as fixed. A correlation near 0 cannot
    spread below it, so the influence overstates the spread there.

    Args:
        p: `[item, component_a]`, float64, from `basis`.
        q: `[item, component_b]`, float64, of the same items.
        weigh: `[item, unit_a]`, float64, the first view's centred units; None weighs alike.
    Returns:
        The pair; NaN where a view does not vary.
    Source: Hotelling 1936, Relations between two sets of variates; Morcos, Raghu & Bengio 2018 (the
        weights).
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> pair = canonical(basis(x), basis(x @ np.diag([1, 2, 3])))
        >>> round(pair.value, 6), pair.influence.shape
        (1.0, (50,))
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
    """Procrustes similarity of two prepared views, and each item's influence; 0 to 1.

        s = ‖xᵀy‖_* = max over rotations R of ⟨x R, y⟩

    Args:
        x: `[item, unit_a]`, float64, from `unit_norm`.
        y: `[item, unit_b]`, float64, of the same items.
    Returns:
        The pair; NaN where a view does not vary.
    Source: Williams et al. 2021, Generalized shape metrics on neural representations, eq. 9.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> pair = rotation(unit_norm(x), unit_norm(x @ np.array([[0, -1], [1, 0]])))
        >>> round(pair.value, 6), bool(abs(pair.influence.sum()) < 1e-12)
        (1.0, True)
    """
    if np.isnan(x).any() or np.isnan(y).any():
        return Pair(np.nan, np.full(len(x), np.nan))
    left, singular, right = np.linalg.svd(x.T @ y, full_matrices=False)
    value = float(singular.sum())
    parts = np.einsum("iu,iu->i", x @ (left @ right), y)
    squares = np.einsum("iu,iu->i", x, x) + np.einsum("iu,iu->i", y, y)
    return Pair(value, parts - value * squares / 2)


def mean_cca(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean canonical correlation; 0 (unrelated) to 1 (equal up to an invertible map and a shift).

        r = (1 / C) Σ_c s_c(pᵀq),   p and q bases of the centred views, C the smaller rank

    Have many more items than units of both views together: with fewer, some correlations are 1
    whatever the views hold.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
    Returns:
        The correlation; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ.
    Source: Hotelling 1936, Relations between two sets of variates; Raghu et al. 2017, SVCCA.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> round(mean_cca(x, x @ np.array([[1, 5], [0, 1]]) + 3), 6)
        1.0
    """
    x, y = validate_views(x, y)
    return canonical(basis(x), basis(y)).value


def svcca(x: NDArray[Any], y: NDArray[Any], variance: float = 0.99) -> float:
    """Mean canonical correlation of the components that hold most variance; 0 to 1.

        r = mean_c s_c(pᵀq),   p and q the leading components of each view, `basis(·, variance)`

    Invariant to rotations, scale and shifts. To any invertible map only at `variance=1`, since the
    components depend on scale.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
        variance: share of each view's variance that its components hold, above 0 to 1.
    Returns:
        The correlation; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ, or a share outside 0 to 1.
    Source: Raghu et al. 2017, SVCCA.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> round(svcca(x, 3 * x[:, ::-1]), 6)
        1.0
    """
    x, y = validate_views(x, y)
    return canonical(basis(x, variance), basis(y, variance)).value


def pwcca(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Canonical correlations weighted by how much of `x` their directions account for; 0 to 1.

        r = Σ_c w_c s_c / Σ_c w_c,   w_c = Σ_u |u_c · x_u|,   u_c the canonical variables of x

    Not symmetric. Invariant to any invertible map of `y`; of `x` only to scale and shifts, since
    the weights depend on its units.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
    Returns:
        The correlation; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ.
    Source: Morcos, Raghu & Bengio 2018, Insights on representational similarity, sec. 3.
    Example:
        >>> import numpy as np
        >>> x, noise = np.random.default_rng(0).normal(size=(2, 500, 2)) * [4, 1]
        >>> y = np.stack([x[:, 0], noise[:, 1]], axis=1)  # keeps the longer unit of x
        >>> bool(pwcca(x, y) > mean_cca(x, y) + 0.2)
        True
    """
    x, y = validate_views(x, y)
    return canonical(basis(x), basis(y), weigh=subtract_mean(x)).value


def procrustes_similarity(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Cosine of the angle that the best rotation leaves between two views; 0 to 1.

        s = ‖xᵀy‖_* / (‖x‖ ‖y‖),   x and y centred, ‖·‖_* the nuclear norm

    Invariant to rotations, reflections, scale and shifts.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
    Returns:
        The similarity; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ.
    Source: Williams et al. 2021, Generalized shape metrics on neural representations, eq. 9.
    Example:
        >>> import numpy as np
        >>> square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
        >>> line = np.array([[0.0], [0], [3], [-3]])
        >>> round(procrustes_similarity(square, line), 6) == round(0.5**0.5, 6)
        True
    """
    x, y = validate_views(x, y)
    product = unit_norm(x).T @ unit_norm(y)
    return np.nan if np.isnan(product).any() else float(np.linalg.norm(product, "nuc"))


def procrustes_distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Angle between two views after the best rotation, shift and scale; 0 (equal) to π/2 radians.

        d = arccos(s),   s the `procrustes_similarity`

    A metric. Rounding can put equal views about 1e-7 apart.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
    Returns:
        The angle in radians; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ.
    Source: Williams et al. 2021, Generalized shape metrics on neural representations, eq. 9.
    Example:
        >>> import numpy as np
        >>> square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
        >>> line = np.array([[0.0], [0], [3], [-3]])
        >>> round(procrustes_distance(square, line) / np.pi, 6)
        0.25
    """
    return float(np.arccos(np.minimum(procrustes_similarity(x, y), 1.0)))
