"""Centred kernel alignment: do two views of the same items have the same inner products?

With kernels K of view x and L of view y, `[item, item]` each,

    HSIC(K, L) ∝ ⟨centre(K), centre(L)⟩        CKA(K, L) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))

HSIC is an inner product of two centred kernels and CKA the cosine of the angle between them, so a
matrix of CKAs is a matrix of cosines once every kernel is centred: `centre` gives the biased
estimator, `u_centre` the debiased one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances

from repsim.measures._arrays import zero_totals
from repsim.measures.cosine import cosine_from_gram


def gram(x: Any) -> Any:
    """Inner products of the items, the linear kernel: K = x xᵀ.

    Args:
        x: `[..., item, unit]`, any float dtype; computed as float64.
    Returns:
        `[..., item, item]`, float64, symmetric.
    Example:
        >>> import numpy as np
        >>> gram(np.array([[1, 2], [3, 4]])).tolist()
        [[5.0, 11.0], [11.0, 25.0]]
    """
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64, copy=False)
    return x @ x.swapaxes(-1, -2)


def rbf_gram(x: NDArray[Any], bandwidth: float = 1.0) -> NDArray[np.float64]:
    """Gaussian kernel of the items, as wide as `bandwidth` medians of their distances; 0 to 1.

        K[i, j] = exp(-|x_i - x_j|² / (2 w²)),   w = bandwidth · median of |x_i - x_j| over i < j

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
        bandwidth: standard deviation of the kernel in medians of the distances, above 0.
    Returns:
        `[item, item]`, float64, symmetric with a diagonal of 1; NaN where all items are equal.
    Raises:
        ValueError: a bandwidth that is not positive, or fewer than two items.
    Source: Kornblith et al. 2019, Similarity of neural network representations revisited, sec. 3.
    Example:
        >>> import numpy as np
        >>> kernel = rbf_gram(np.array([[0.0], [1], [3]]))  # distances 1, 2 and 3
        >>> bool(np.isclose(kernel[0, 1], np.exp(-1 / 8)))
        True
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
    """The doubly centred kernel H K H with H = I - 1/n: its rows and columns sum to zero.

    Args:
        kernel: `[..., item, item]`, float64, symmetric.
    Returns:
        `[..., item, item]`, float64, symmetric.
    Example:
        >>> import numpy as np
        >>> centre(np.array([[4.0, 0], [0, 4]])).tolist()
        [[2.0, -2.0], [-2.0, 2.0]]
    """
    rows = kernel.mean(-1, keepdims=True)
    return kernel - rows - rows.swapaxes(-1, -2) + rows.mean(-2, keepdims=True)


def u_centre(kernel: Any) -> Any:
    """The U-centred kernel: its diagonal is zero, and its rows and columns sum to zero.

        K~[i, j] = K[i, j] - r_i / (n - 2) - r_j / (n - 2) + s / ((n - 1) (n - 2))   for i ≠ j

    with r_i the sum of row i and s the sum of all rows, both without the diagonal. Inner products
    of two such matrices, divided by n (n - 3), are unbiased estimates of HSIC.

    Args:
        kernel: `[..., item, item]`, float64, symmetric; at least four items.
    Returns:
        `[..., item, item]`, float64, symmetric.
    Raises:
        ValueError: fewer than four items.
    Source: Székely & Rizzo 2014, Partial distance correlation, eq. 3.2; equal to Song et al. 2012,
        eq. 5.
    Example:
        >>> import numpy as np
        >>> centred = u_centre(gram(np.arange(10.0).reshape(5, 2)))
        >>> np.allclose(centred.sum(0), 0), np.diagonal(centred).tolist()
        (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    n = kernel.shape[-1]
    if n < 4:
        raise ValueError(f"{n} items: the unbiased HSIC needs at least 4")
    xp = array_namespace(kernel)
    kernel = xp.asarray(kernel, copy=True)
    diagonal = range(n)
    kernel[..., diagonal, diagonal] = 0
    rows = xp.sum(kernel, axis=-1, keepdims=True) / (n - 2)
    kernel -= rows
    kernel -= rows.swapaxes(-1, -2)
    kernel += xp.sum(rows, axis=-2, keepdims=True) / (n - 1)
    kernel[..., diagonal, diagonal] = 0
    return kernel


def hsic(kernel: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Hilbert-Schmidt independence criterion of two kernels; 0 on average for independent items.

        HSIC(K, L) = ⟨K~, L~⟩ / (n (n - 3)),   K~ and L~ U-centred

    This estimator is unbiased, so it may be negative.

    Args:
        kernel: `[item, item]`, float64, symmetric; at least four items.
        other: `[item, item]`, float64, the kernel of another view of the same items.
    Returns:
        The estimate, in units of the product of both kernels.
    Raises:
        ValueError: fewer than four items.
    Source: Song et al. 2012, Feature selection via dependence maximization, eq. 5.
    Example:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 3))
        >>> bool(abs(hsic(gram(x), gram(y))) < 0.2 < hsic(gram(x), gram(x)))
        True
    """
    n = len(kernel)
    return float(np.vdot(u_centre(kernel), u_centre(other)) / (n * (n - 3)))


def linear_cka(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Linear CKA of two views; 0 (unrelated) to 1 (equal up to rotation, scale and shift).

        CKA = ‖xᵀy‖² / (‖xᵀx‖ ‖yᵀy‖),   x and y centred, ‖·‖ the Frobenius norm

    Biased estimator: with fewer items than units it is close to 1 for noise. See
    `debiased_linear_cka`.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
    Returns:
        The similarity; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ.
    Source: Kornblith et al. 2019, Similarity of neural network representations revisited, eq. 5.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> turned = x @ np.array([[0, -1], [1, 0]])
        >>> round(linear_cka(x, 3 * turned + 1), 6)
        1.0
        >>> bool(linear_cka(x, x[::-1]) < 0.1)
        True
    """
    x, y = map(subtract_mean, validate_views(x, y))
    # Of two equal forms, take the one with the smaller matrices.
    if len(x) > max(x.shape[1], y.shape[1]):
        within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        return float(np.linalg.norm(x.T @ y) ** 2 / within) if within else np.nan
    return cosine_of(gram(x), gram(y))


def debiased_linear_cka(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Linear CKA from unbiased HSICs; about 0 (unrelated, however few the items) to 1.

        CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),   K = x xᵀ and L = y yᵀ, HSIC as in `hsic`

    Each HSIC is unbiased, their ratio nearly so; of unrelated views it may fall below 0.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64; at least four items.
        y: `[item, unit_b]`, the same items in the same order.
    Returns:
        The similarity; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ, or there are fewer than four.
    Source: Kornblith et al. 2019 with the HSIC of Song et al. 2012, eq. 5; as in Nguyen et al.
        2021.
    Example:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 100))  # unrelated
        >>> bool(abs(debiased_linear_cka(x, y)) < 0.1), bool(linear_cka(x, y) > 0.6)
        (True, True)
    """
    # Centring first changes no distance and keeps digits.
    x, y = map(subtract_mean, validate_views(x, y))
    if len(x) > max(x.shape[1], y.shape[1], 3):
        within = _feature_hsic(x, x) * _feature_hsic(y, y)
        return float(_feature_hsic(x, y) / np.sqrt(within)) if within > 0 else np.nan
    return cosine_of(u_centre(gram(x)), u_centre(gram(y)))


def _feature_hsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """`n (n - 3)` times the unbiased HSIC of two centred views, without a matrix over items.

        ‖xᵀy‖² - Σ_i d_i e_i + Σ_i d_i Σ_i e_i / ((n - 1) (n - 2)) - 2 Σ_i d_i e_i / (n - 2)

    with d_i = |x_i|² and e_i = |y_i|². Without its diagonal d, the Gram matrix of centred x has row
    sums -d, and likewise for y and e: with these, Song et al. 2012, eq. 5 becomes the above.
    """
    n = len(x)
    d, e = np.einsum("iu,iu->i", x, x), np.einsum("iu,iu->i", y, y)
    trace = np.linalg.norm(x.T @ y) ** 2 - d @ e
    return float(trace + d.sum() * e.sum() / ((n - 1) * (n - 2)) - 2 * (d @ e) / (n - 2))


def rbf_cka(
    x: NDArray[Any], y: NDArray[Any], bandwidth: float = 1.0, *, debiased: bool = False
) -> float:
    """CKA with Gaussian kernels; 0 (unrelated) to 1 (equal up to rotation, scale and shift).

        CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),   K and L by `rbf_gram`

    Biased by default, as `linear_cka` is.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
        bandwidth: standard deviation of the kernel in medians of the distances between items.
        debiased: use the unbiased HSIC of Song et al. 2012; of unrelated views the result may then
            fall below 0.
    Returns:
        The similarity; NaN where all items of a view are equal.
    Raises:
        ValueError: the numbers of items differ, there are too few of them, or a bandwidth that is
            not positive.
    Source: Kornblith et al. 2019, Similarity of neural network representations revisited, sec. 3.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> round(rbf_cka(x, -2 * x + 5), 6)
        1.0
    """
    x, y = validate_views(x, y)
    centre_kernel = u_centre if debiased else centre
    return cosine_of(centre_kernel(rbf_gram(x, bandwidth)), centre_kernel(rbf_gram(y, bandwidth)))


def minibatch_hsic(states: Any, batch: int = 256) -> Any:
    """Unbiased linear HSIC of each two states, summed over minibatches weighted by their tokens.

        M[i, j] = Σ_b n_b HSIC(K_i^b, K_j^b),   n_b tokens in minibatch b

    Sums of pieces that are whole minibatches add up to the whole's. A remainder of fewer than four
    tokens has no unbiased HSIC and is left out.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float64.
        batch: tokens per minibatch.
    Returns:
        `[state, state]`, float64, symmetric.
    Source: Nguyen et al. 2021, Do wide and deep networks learn the same things?, eq. 4.
    Example:
        >>> import numpy as np
        >>> states = np.random.default_rng(0).normal(size=(3, 64, 5))
        >>> pieces = minibatch_hsic(states[:, :32], 16) + minibatch_hsic(states[:, 32:], 16)
        >>> np.allclose(pieces, minibatch_hsic(states, 16))
        True
    """
    xp = array_namespace(states)
    total = zero_totals(states)
    for first in range(0, states.shape[1], batch):
        minibatch = xp.astype(states[:, first : first + batch], xp.float64)
        n = minibatch.shape[1]
        if n >= 4:
            # Centring first changes no distance and keeps digits.
            minibatch = xp.stack([subtract_mean(state) for state in minibatch])
            flat = u_centre(gram(minibatch)).reshape(len(minibatch), -1)
            total += flat @ flat.T / (n - 3)  # n times the HSIC
    return total


def minibatch_cka(x: NDArray[Any], y: NDArray[Any], batch: int = 64) -> float:
    """Linear CKA from minibatches; about 0 (unrelated) to 1 (equal up to rotation and scale).

        CKA = M[x, y] / √(M[x, x] M[y, y]),   M by `minibatch_hsic`

    A ratio of mean unbiased HSICs, not a mean of ratios. The minibatches are runs of items in the
    order given: shuffle the items if neighbours depend on each other.

    Args:
        x: `[item, unit_a]`, any float dtype; computed as float64.
        y: `[item, unit_b]`, the same items in the same order.
        batch: items per minibatch, at least four.
    Returns:
        The similarity; NaN where a view does not vary.
    Raises:
        ValueError: the numbers of items differ, or the minibatches hold fewer than four.
    Source: Nguyen et al. 2021, Do wide and deep networks learn the same things?, eq. 4.
    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(200, 4))
        >>> round(minibatch_cka(x, 2 * x - 1, batch=50), 6)
        1.0
    """
    x, y = validate_views(x, y)
    if min(batch, len(x)) < 4:
        raise ValueError(
            f"minibatches of {min(batch, len(x))} items: the unbiased HSIC needs at least 4"
        )
    # Units of zeros change no inner product, so the narrower view can be padded.
    widest = max(x.shape[1], y.shape[1])
    states = np.stack([np.pad(view, ((0, 0), (0, widest - view.shape[1]))) for view in (x, y)])
    return float(cosine_from_gram(minibatch_hsic(states, batch))[0, 1])


def validate_views(*views: NDArray[Any]) -> list[NDArray[np.float64]]:
    """The views in float64, if they are views of the same items.

    Args:
        *views: `[item, unit]` each, any float dtype; units may differ in number.
    Returns:
        `[item, unit]` each, float64.
    Raises:
        ValueError: one is not `[item, unit]`, or the numbers of items differ.
    Example:
        >>> import numpy as np
        >>> validate_views(np.ones((5, 3)), np.ones((4, 3)))
        Traceback (most recent call last):
        ValueError: views of shapes [(5, 3), (4, 3)]: each is [item, unit], of the same items
    """
    if any(view.ndim != 2 for view in views) or len({len(view) for view in views}) != 1:
        shapes = [view.shape for view in views]
        raise ValueError(f"views of shapes {shapes}: each is [item, unit], of the same items")
    return [np.asarray(view, np.float64) for view in views]


def subtract_mean(x: Any) -> Any:
    """The view minus its mean over items; exactly zero where items differ by rounding alone.

    Args:
        x: `[item, unit]`, any float dtype; computed as float64.
    Returns:
        `[item, unit]`, float64.
    Example:
        >>> import numpy as np
        >>> subtract_mean(np.array([[1.0, 5], [3, 5]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    if not is_numpy_array(x):
        xp = array_namespace(x)
        x = xp.astype(x, xp.float64)
        rest = x - xp.mean(x, axis=0)
        differ = xp.linalg.vector_norm(rest) > 1e-13 * xp.linalg.vector_norm(x)
        return xp.where(differ, rest, 0.0)
    x = np.asarray(x, np.float64)
    rest = x - x.mean(0)
    return rest if np.linalg.norm(rest) > 1e-13 * np.linalg.norm(x) else np.zeros_like(rest)


def cosine_of(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Cosine of two arrays taken as vectors, ⟨a, b⟩ / (‖a‖ ‖b‖); -1 to 1, NaN where one is zero.

    Args:
        a: `[...]`, float64.
        b: `[...]`, float64, the same shape.
    Returns:
        The cosine.
    Example:
        >>> import numpy as np
        >>> cosine_of(np.array([[3.0, 0], [0, 4]]), np.array([[0.0, 0], [0, 2]]))
        0.8
    """
    within = np.vdot(a, a) * np.vdot(b, b)
    return float(np.vdot(a, b) / np.sqrt(within)) if within else np.nan
