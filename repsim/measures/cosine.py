"""Cosines and angles between states at the same tokens, and which tokens are attention sinks.

With h_i[t] the vector of state i at token t,

    cos(i, j, t) = h_i[t] · h_j[t] / (|h_i[t]| |h_j[t]|)

Functions named `..._sums`, `..._totals` and `grams` add up over tokens: the results of the pieces
of a text sum to the result of the whole text. `repsim.measures._token_products` makes the products
fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array
from numpy.typing import NDArray

from repsim.measures._arrays import may_be_any, vector_norms, zero_totals
from repsim.measures._token_products import scale_to_unit_norm, token_products

# In medians of the norm; in SmolLM2-135M 2 % of tokens lie above, most of them far above.
SINK_MULTIPLE = 3.0


def token_cosine_sums(states: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over tokens of the cosine between each two states at the same token.

        S[i, j] = Σ_t cos(i, j, t)

    A zero vector has no direction: its cosines are 0/0, and its token is left out of the sums of
    its state. `token_cosine_totals` says how many tokens each sum is over. Anything not finite is
    NaN.

    Each entry lies between -tokens (opposite) and tokens (same direction at every token), to within
    rounding of 1e-6 of the number of tokens. Lengths do not matter, only directions.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[state, state]`, float64, symmetric; the diagonal is the number of tokens that are not zero
        vectors.
    Example:
        >>> import numpy as np
        >>> states = np.array([[[1.0, 0], [0, 2]], [[3, 0], [0, -5]]])  # same, then opposite
        >>> token_cosine_sums(states).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return token_cosine_totals(states)[0]


def token_cosine_totals(states: Any, counted: Any = None) -> tuple[Any, Any]:
    """The sums of `token_cosine_sums`, and the number of tokens that each of them is over.

        S[i, j] = Σ_t cos(i, j, t),   N[i, j] = Σ_t 1,   over tokens t where h_i[t], h_j[t] ≠ 0

    Totals of pieces add up to the whole's, so the mean cosine is the sum of sums divided by the sum
    of counts.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32. Of another library
            than numpy, with any axes before these, as one for samples.
        counted: `[..., token]`, bool: tokens to sum over; by default all.
    Returns:
        Sums and counts, `[..., state, state]` each, float64, symmetric.
    Example:
        >>> import numpy as np
        >>> states = np.array([[[1.0, 0], [0, 2]], [[3, 0], [0, 0]]])  # one zero vector
        >>> sums, counts = token_cosine_totals(states)
        >>> sums.tolist(), counts.tolist()
        ([[2.0, 1.0], [1.0, 1.0]], [[2.0, 1.0], [1.0, 1.0]])
    """
    xp = array_namespace(states)
    if counted is not None and is_numpy_array(states):  # fewer products
        states, counted = states[:, counted], None
    sums = zero_totals(states)
    counts = zero_totals(states)
    first = 0
    # float32 holds the squares of float16 states; those of wider states it need not hold, so only
    # their directions are asked for.
    for products in token_products(states, directions=states.dtype != xp.float16):
        last = first + products.shape[-3]
        left_out = xp.linalg.diagonal(products) == 0
        if counted is not None:
            left_out = left_out | ~counted[..., first:last, None]
        first = last
        cosines = cosine_from_gram(products)
        counts += products.shape[-3]
        if may_be_any(left_out):
            undefined = left_out[..., :, None] | left_out[..., None, :]
            cosines = xp.where(undefined, 0, cosines)
            counts -= xp.sum(undefined, axis=-3)
        sums += xp.sum(cosines, axis=-3, dtype=xp.float64)
    return sums, counts


def grams(states: Any) -> Any:
    """Inner product of each two states, flattened over tokens and units.

        G[i, j] = Σ_t h_i[t] · h_j[t]

    Gram matrices of the pieces of a sample add up to the sample's own. Products are float32 at each
    token, which float16 states cannot overflow, and the tokens are added in float64: the sum's
    error stays below 1e-6 of the product of the two states' norms.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32. Of another library
            than numpy, with any axes before these, as one for samples.
    Returns:
        `[..., state, state]`, float64, symmetric; the diagonal holds squared norms.
    Example:
        >>> import numpy as np
        >>> grams(np.array([[[1.0, 0], [0, 2]], [[3, 3], [0, -5]]])).tolist()
        [[5.0, -7.0], [-7.0, 43.0]]
    """
    xp = array_namespace(states)
    total = zero_totals(states)
    for products in token_products(states):
        total += xp.sum(products, axis=-3, dtype=xp.float64)
    return total


def cosine_from_gram(gram: Any) -> Any:
    """Cosine of each two vectors from their inner products; -1 (opposite) to 1 (same direction).

        C[i, j] = G[i, j] / √(G[i, i] G[j, j])

    Rounding can take a value slightly beyond ±1.

    Args:
        gram: `[..., state, state]`, inner products, any float dtype.
    Returns:
        `[..., state, state]`, the dtype of `gram`; NaN in the row and column of a zero vector.
    Example:
        >>> import numpy as np
        >>> cosine_from_gram(np.array([[4.0, -6], [-6, 9]])).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    xp = array_namespace(gram)
    with np.errstate(invalid="ignore"):
        norm = xp.sqrt(xp.linalg.diagonal(gram))
        products = norm[..., :, None] * norm[..., None, :]
        return xp.divide(gram, products, out=products)


def token_cosines(states: Any) -> Any:
    """Cosine between each two states at each token; -1 (opposite) to 1 (same direction).

        C[t, i, j] = cos(i, j, t)

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32. Of another library
            than numpy, with any axes before these, as one for samples.
    Returns:
        `[..., token, state, state]`, float64; NaN in the row and column of a zero vector, and of
        anything not finite.
    Example:
        >>> import numpy as np
        >>> token_cosines(np.array([[[1.0, 0], [0, 2]], [[3, 0], [0, -5]]]))[:, 0, 1].tolist()
        [1.0, -1.0]
    """
    if not is_numpy_array(states):
        xp = array_namespace(states)
        pieces = list(map(cosine_from_gram, token_products(states, directions=True)))
        return xp.clip(xp.astype(xp.concat(pieces, axis=-3), xp.float64), -1, 1)
    unit = states.astype(np.float32, order="C")
    scale_to_unit_norm(unit)
    unit = unit.swapaxes(0, 1)
    with np.errstate(invalid="ignore"):
        cosines = np.clip(unit @ unit.swapaxes(1, 2), -1, 1, dtype=np.float64)
    zero = np.einsum("tss->ts", cosines) == 0
    if zero.any():
        cosines[zero[:, :, np.newaxis] | zero[:, np.newaxis, :]] = np.nan
    return cosines


def angular_distances(states: NDArray[Any]) -> NDArray[np.float64]:
    """Angle of each two states at each token, in half turns; 0 (same direction) to 1 (opposite).

        D[t, i, j] = arccos(cos(i, j, t)) / π

    A metric on directions. Rounding of the cosine can put equal directions up to 5e-4 apart.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[token, state, state]`, float64; NaN in the row and column of a zero vector.
    Source: Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, eq. 7 (at the
        last token).
    Example:
        >>> import numpy as np
        >>> states = np.array([[[1.0, 0], [1, 0]], [[0, 3], [-4, 0]]])  # right angle, opposite
        >>> angular_distances(states)[:, 0, 1].tolist()
        [0.5, 1.0]
    """
    return half_turns(token_cosines(states))


def half_turns(cosines: Any) -> Any:
    """The angle of each cosine in half turns, arccos(c) / π; 0 to 1.

    Args:
        cosines: `[...]`, float64, -1 to 1.
    Returns:
        `[...]`, float64.
    Example:
        >>> import numpy as np
        >>> half_turns(np.array([1.0, 0.0, -1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    return array_namespace(cosines).acos(cosines) / np.pi


def sink_tokens(states: Any, multiple: float = SINK_MULTIPLE) -> Any:
    """Which tokens of a sample are attention sinks: the first, and those with an outlying norm.

        t = 0,  or  |h_i[t]| > multiple · median_s |h_i[s]|  for some state i

    Args:
        states: `[state, token, unit]`, any float dtype; one whole sample. Of another library than
            numpy, with any axes before these, as one for samples.
        multiple: how many medians of a state's norms over the sample a token's norm must exceed.
    Returns:
        `[..., token]`, bool.
    Source: Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks; Sun et al.
        2024, Massive Activations in Large Language Models.
    Example:
        >>> import numpy as np
        >>> sink_tokens(np.array([[[1.0], [1], [9], [1], [2]]])).tolist()
        [True, False, True, False, False]
    """
    xp = array_namespace(states)
    lengths = vector_norms(states)
    # The median is the mean of the two in the middle; where a norm is NaN, so is the median.
    ordered, tokens = xp.sort(lengths, axis=-1), lengths.shape[-1]
    middle = ordered[..., (tokens - 1) // 2 : tokens // 2 + 1]
    median = xp.mean(middle, axis=-1, keepdims=True)
    median = xp.where(xp.isnan(ordered[..., -1:]), xp.nan, median)
    sinks = xp.any(lengths > multiple * median, axis=-2)
    sinks[..., :1] = True
    return sinks
