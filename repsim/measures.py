"""Similarity kernels: which numbers say how alike two states are?

Each function takes arrays and returns arrays. Nothing here knows of plans, stores, samples or
dimension names; whoever calls a kernel adds its results up and gives them names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 products of so many tokens are summed in float32, their totals in float64. 64 keeps a
# block of states in the cache, and the rounding of a sum below 1e-6 of it whatever its length.
BLOCK_TOKENS = 64


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
    return _sum_of_products(map(_unit_length, _blocks(states)), len(states))


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
    return _sum_of_products(_blocks(states), len(states))


def cosine_from_gram(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each two vectors; -1 (opposite) to 1 (same direction), to within rounding.

    Args:
        gram: `[state, state]`, inner products.
    Returns:
        `[state, state]`; NaN in the row and column of a vector of norm zero.
    """
    norm = np.sqrt(np.diagonal(gram))
    with np.errstate(invalid="ignore"):
        cosine: NDArray[np.float64] = gram / np.outer(norm, norm)
    return cosine


def _blocks(states: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Runs of at most `BLOCK_TOKENS` tokens, `[state, token, unit]`, as float32 copies."""
    for first in range(0, states.shape[1], BLOCK_TOKENS):
        yield states[:, first : first + BLOCK_TOKENS].astype(np.float32, order="C")


def _unit_length(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divides the block's vectors by their norms, in place; a zero vector becomes NaN."""
    # Squares in float64, lest the norm of a very long or short vector become inf or 0.
    squares = np.einsum("stu,stu->st", block, block, dtype=np.float64)
    norm = np.sqrt(squares).astype(np.float32)
    with np.errstate(invalid="ignore"):
        block /= norm[:, :, np.newaxis]
    return block


def _sum_of_products(blocks: Iterator[NDArray[np.float32]], states: int) -> NDArray[np.float64]:
    """`[state, state]` inner products over (token, unit): one matrix product a block."""
    total = np.zeros((states, states))
    for block in blocks:
        flat = block.reshape(states, -1)
        with np.errstate(invalid="ignore"):  # inf * 0: a state that overflowed stays NaN
            total += flat @ flat.T
    return total
