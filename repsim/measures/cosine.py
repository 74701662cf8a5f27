"""Cosines between states at the same tokens: sums that add up over tokens, and angles.

Every sum over the tokens of a piece adds up to the whole's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 products of so many tokens are summed in float32, their totals in float64. 64 keeps a
# block of states in the cache, and the rounding of a sum below 1e-6 of it whatever its length.
BLOCK_TOKENS = 64
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
    for block in _blocks(states):
        if states.dtype != np.float16:  # whose squares float32 always holds
            _unit_length(block[:-1])
        total += cosine_from_gram(_products(block)).sum(0)
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
    for block in _blocks(states):
        total += _products(block).sum(0)
    return total


def _products(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products over units of all rows but the last, `[token, state, state]`.

    Of pieces of the units, where there are many. The row more makes it a product of two matrices in numpy's eyes: that
    of a matrix and its own transpose goes to a routine that copies first.
    """
    units = block.shape[2]
    piece = next((units // parts for parts in range(1, 65) if units % parts == 0 and _is_small(block, parts)), units)
    pieces = block.reshape(len(block), -1, piece).swapaxes(0, 1)
    with np.errstate(invalid="ignore"):  # inf * 0: a state that overflowed stays NaN
        products = (pieces[:, :-1] @ pieces.swapaxes(1, 2))[:, :, :-1]
    return products if piece == units else products.reshape(-1, units // piece, *products.shape[1:]).sum(1)


def _is_small(block: NDArray[np.float32], parts: int) -> bool:
    return len(block) ** 2 * block.shape[2] // parts <= SMALL


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


def _blocks(states: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Runs of at most `BLOCK_TOKENS` tokens as float32, `[state + 1, token, unit]`, each valid until the next.

    The last row is zero: see `_products`.
    """
    rows, units = len(states) + 1, states.shape[2]
    room = np.zeros(rows * BLOCK_TOKENS * units, np.float32)
    for first in range(0, states.shape[1], BLOCK_TOKENS):
        piece = states[:, first : first + BLOCK_TOKENS]
        block = room[: rows * piece.shape[1] * units].reshape(rows, -1, units)
        block[-1] = 0
        to_float32(piece, block[:-1])
        yield block


def to_float32(values: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Converts into memory that is there: float16 by shifting bits, three times as fast as numpy's own way.

    A float16's exponent and fraction, moved to float32's places, are the number times 2^-112; infinities and NaNs,
    the exponent of all ones, go numpy's way.
    """
    bits = values.view(np.int16) if values.dtype == np.float16 else None
    if bits is None or (bits & 0x7C00).max(initial=0) == 0x7C00:
        np.copyto(out, values)
        return
    wide = out.view(np.int32)
    np.copyto(wide, bits)
    np.left_shift(wide, 13, out=wide)
    np.bitwise_and(wide, -0x70000001, out=wide)  # the sign that widening repeated stays once
    np.multiply(out, np.float32(2.0**112), out=out)


def _unit_length(states: NDArray[np.float32]) -> None:
    """Divides vectors by their norms, in place; a zero vector becomes NaN.

    Squares in float64, lest the norm of a very long or short vector become inf or 0.
    """
    squares = np.einsum("...u,...u->...", states, states, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        states *= (1 / np.sqrt(squares)).astype(np.float32)[..., np.newaxis]
