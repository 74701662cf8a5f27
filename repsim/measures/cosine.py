"""Cosines between states at the same tokens: sums that add up over tokens, and angles.

Every sum over the tokens of a piece adds up to the whole's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 products of at most so many tokens are summed in float32, their totals in float64, which keeps the rounding of
# a sum below 1e-6 of it whatever its length; and of no more than stays in the cache.
BLOCK_TOKENS, BLOCK_BYTES = 64, 3 << 20
SMALL = 10**6  # OpenBLAS multiplies matrices of so few products without copying them first: twice as fast here
SINK_MULTIPLE = 3.0  # of the median norm; in SmolLM2-135M 2 % of tokens lie above, most of them far above


def token_cosine_sums(states: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over tokens of the cosine between each two states at the same token.

    Each entry lies in -tokens (opposite) to tokens (same direction at every token), to within
    rounding of 1e-6 of the number of tokens. A zero vector has no direction: one zero vector
    makes its state's row and column NaN. Lengths do not matter, only directions.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[state, state]`, symmetric; the diagonal is the number of tokens.
    """
    total = np.zeros((len(states), len(states)))
    for products in _products(states, directions=states.dtype != np.float16):  # whose squares float32 always holds
        total += cosine_from_gram(products).sum(0)
    return total


def grams(states: NDArray[Any]) -> NDArray[np.float64]:
    """Inner product of each two states, flattened over tokens and units.

    Gram matrices of the pieces of a sample add up to the sample's own. Products are float32 over
    blocks of tokens, which float16 states cannot overflow, and the blocks are added in float64:
    the sum's error stays below 1e-6 of the product of the two states' norms.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[state, state]`, symmetric; the diagonal holds squared norms.
    """
    total = np.zeros((len(states), len(states)))
    for products in _products(states):
        total += products.sum(0)
    return total


def _products(states: NDArray[Any], *, directions: bool = False) -> Iterator[NDArray[np.float32]]:
    """Inner products over units at runs of tokens, `[token, state, state]`.

    Args:
        states: `[state, token, unit]`, any float dtype.
        directions: of the states divided by their norms.
    """
    count, tokens, units = states.shape
    size = max(1, min(BLOCK_TOKENS, BLOCK_BYTES // ((count + 1) * units * 4)))
    room = np.zeros((size, count + 1, units), np.float32)  # the last row stays zero: see `_symmetric`
    for first in range(0, tokens, size):
        piece = states[:, first : first + size].swapaxes(0, 1)
        block = room[: len(piece)]
        vectors = block[:, :-1]
        if states.dtype == np.float16:
            _shift(piece, vectors)
        else:
            np.copyto(vectors, piece)
        if directions:
            _unit_length(vectors)
        products = _symmetric(block)
        # shifted infinities and NaNs are 2^16 and more; squares of sums beyond 2^32 hold every one of them
        if states.dtype == np.float16 and np.einsum("tss->ts", products).max(initial=0) >= 2.0**32:
            np.copyto(vectors, piece)
            products = _symmetric(block)
        yield products


def _symmetric(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products over units of all rows but the last: `[token, state + 1, unit]` → `[token, state, state]`.

    Three quarters of the products, the rest being the same by symmetry; of pieces of the units, where there are many.
    The row more makes each a product of two matrices in numpy's eyes: that of a matrix and its own transpose goes to a
    routine that copies first.
    """
    tokens, rows, units = block.shape
    half = rows // 2
    parts = next((n for n in range(1, 65) if units % n == 0 and half * rows * units // n <= SMALL), 1)
    pieces = block.reshape(tokens, rows, parts, -1).swapaxes(1, 2)
    products = np.empty((tokens, parts, rows - 1, rows), np.float32)
    with np.errstate(invalid="ignore"):  # inf * 0: a state that overflowed stays NaN
        np.matmul(pieces[:, :, :half], pieces.swapaxes(2, 3), out=products[:, :, :half])
        np.matmul(pieces[:, :, half:-1], pieces[:, :, half:].swapaxes(2, 3), out=products[:, :, half:, half:])
        found = products[:, 0] if parts == 1 else products.sum(1)
    found[:, half:, :half] = found[:, :half, half:-1].swapaxes(1, 2)
    return found[:, :, :-1]


def cosine_from_gram(gram: NDArray[Any]) -> NDArray[Any]:
    """Cosine of each two vectors; -1 (opposite) to 1 (same direction), to within rounding.

    Args:
        gram: `[..., state, state]`, inner products.
    Returns:
        `[..., state, state]`; NaN in the row and column of a vector of norm zero.
    """
    with np.errstate(invalid="ignore"):
        norm = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
        return gram / (norm[..., :, None] * norm[..., None, :])


def token_cosines(states: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine between each two states at each token; -1 (opposite) to 1 (same direction).

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[token, state, state]`; NaN in the row and column of a zero vector.
    """
    unit = states.astype(np.float32, order="C")
    _unit_length(unit)
    unit = unit.swapaxes(0, 1)
    with np.errstate(invalid="ignore"):
        return np.clip(unit @ unit.swapaxes(1, 2), -1, 1, dtype=np.float64)


def angular_distances(states: NDArray[Any]) -> NDArray[np.float64]:
    """Angle between each two states at each token, as a share of half a turn; 0 (same direction) to 1 (opposite).

    Rounding of the cosine lets equal directions be up to 5e-4 apart.

    Args:
        states: `[state, token, unit]`, any float dtype.
    Returns:
        `[token, state, state]`; NaN in the row and column of a zero vector.
    Source: Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, eq. 7 (at the last token).
    """
    return half_turns(token_cosines(states))


def half_turns(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """The angle of each cosine as a share of half a turn, 0 to 1."""
    return np.arccos(cosines) / np.pi


def sink_tokens(states: NDArray[Any], multiple: float = SINK_MULTIPLE) -> NDArray[np.bool_]:
    """Which tokens of a sample are attention sinks: the first, and any whose norm is a multiple of the median.

    Args:
        states: `[state, token, unit]`, one whole sample.
        multiple: a token is a sink where its norm in some state exceeds so many medians of that state's norms over
            the sample.
    Returns:
        `[token]`.
    Source: Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks; Sun et al. 2024, Massive
        Activations in Large Language Models.
    """
    norms = np.sqrt(np.einsum("stu,stu->st", states, states, dtype=np.float64))
    sinks = (norms > multiple * np.median(norms, axis=1, keepdims=True)).any(0)
    sinks[:1] = True
    return sinks


def _shift(values: NDArray[Any], out: NDArray[np.float32]) -> None:
    """float16 to float32 by shifting bits, three times as fast as numpy's own way; right where all values are finite.

    A float16's exponent and fraction, moved to float32's places, are the number times 2^-112; an infinity becomes 2^16,
    a NaN more.
    """
    wide = out.view(np.int32)
    np.left_shift(values.view(np.int16), 13, out=wide, dtype=np.int32)
    np.bitwise_and(wide, -0x70000001, out=wide)  # the sign that widening repeated stays once
    np.multiply(out, np.float32(2.0**112), out=out)


def _unit_length(states: NDArray[np.float32]) -> None:
    """Divides vectors by their norms, in place; a zero vector becomes NaN.

    Squares in float64, lest the norm of a very long or short vector become inf or 0.
    """
    squares = np.einsum("...u,...u->...", states, states, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        states *= (1 / np.sqrt(squares)).astype(np.float32)[..., np.newaxis]
