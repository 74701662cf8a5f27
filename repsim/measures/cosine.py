"""Cosines between states at the same tokens: sums that add up over tokens, and angles.

Every sum over the tokens of a piece adds up to the whole's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Products are made of as many tokens as stay in the second-level cache beside the states they are
# made of, and summed and divided many runs at once: every call of numpy's on more than a few
# numbers hands Python's lock over.
RUN_BYTES, BLOCK_BYTES, BLOCK_TOKENS = 5 << 18, 8 << 20, 512
# OpenBLAS multiplies matrices of so few products without copying them first: twice as fast here.
SMALL = 10**6
# Of the median norm; in SmolLM2-135M 2 % of tokens lie above, most of them far above.
SINK_MULTIPLE = 3.0


def token_cosine_sums(states: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over tokens of the cosine between each two states at the same token.

    A zero vector has no direction: its cosines are 0/0, and its token is left out of the sums of
    its state. `token_cosine_totals` says how many tokens each sum is of. What is not finite is NaN.

    Each entry lies in -tokens (opposite) to tokens (same direction at every token), to within
    rounding of 1e-6 of the number of tokens. Lengths do not matter, only directions.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[state, state]`, symmetric; the diagonal is the number of tokens that are no zero vector.
    """
    return token_cosine_totals(states)[0]


def token_cosine_totals(states: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of `token_cosine_sums`, and of how many tokens each of them is.

    Totals of pieces add up to the whole's, so that the mean is the sum of sums over the sum of
    counts.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        Sums and counts, `[state, state]` each, symmetric. A count is the number of tokens at which
        neither state is a zero vector.
    Example:
        >>> import numpy as np
        >>> states = np.array([[[1.0, 0], [0, 2]], [[3, 0], [0, 0]]])  # the second state's second token is zero
        >>> sums, counts = token_cosine_totals(states)
        >>> sums.tolist(), counts.tolist()
        ([[2.0, 1.0], [1.0, 1.0]], [[2.0, 1.0], [1.0, 1.0]])
    """
    total = np.zeros((len(states), len(states)))
    counts = np.full(total.shape, float(states.shape[1]))
    # Whose squares float32 always holds.
    for products in _products(states, directions=states.dtype != np.float16):
        zero = np.einsum("tss->ts", products) == 0
        cosines = cosine_from_gram(products)
        if zero.any():
            undefined = zero[:, :, np.newaxis] | zero[:, np.newaxis, :]
            cosines[undefined] = 0
            counts -= undefined.sum(0)
        total += cosines.sum(0, dtype=np.float64)
    return total, counts


def grams(states: NDArray[Any]) -> NDArray[np.float64]:
    """Inner product of each two states, flattened over tokens and units.

    Gram matrices of the pieces of a sample add up to the sample's own. Products are float32 at
    each token, which float16 states cannot overflow, and the tokens are added in float64:
    the sum's error stays below 1e-6 of the product of the two states' norms.

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[state, state]`, symmetric; the diagonal holds squared norms.
    """
    total = np.zeros((len(states), len(states)))
    for products in _products(states):
        total += products.sum(0, dtype=np.float64)
    return total


def _products(states: NDArray[Any], *, directions: bool = False) -> Iterator[NDArray[np.float32]]:
    """Inner products over units at blocks of tokens, `[token, state, state]`.

    Args:
        states: `[state, token, unit]`, any float dtype.
        directions: of the states divided by their norms.
    """
    count, tokens, units = states.shape
    shift = states.dtype == np.float16
    size = max(1, min(BLOCK_TOKENS, BLOCK_BYTES // ((count + 1) ** 2 * 4)))
    run = max(1, min(size, RUN_BYTES // ((count + 1) * units * 4)))
    # The last row stays zero: see `_symmetric`.
    room = np.zeros((run, count + 1, units), np.float32)
    for first in range(0, tokens, size):
        block = states[:, first : first + size].swapaxes(0, 1)
        products = _symmetric(block, room, _shift if shift else np.copyto, directions=directions)
        # shifted infinities and NaNs are 2^16 and more; squares of sums beyond 2^32 hold every one
        # of them
        if shift and np.einsum("tss->ts", products).max(initial=0) >= 2.0**32:
            products = _symmetric(block, room, np.copyto, directions=directions)
        yield products


def _symmetric(
    states: NDArray[Any],
    room: NDArray[np.float32],
    convert: Callable[[NDArray[np.float32], NDArray[Any]], None],
    *,
    directions: bool,
) -> NDArray[np.float32]:
    """Inner products over units of a block, `[token, state, unit]` → `[token, state, state]`, in
    runs of tokens.

    Three quarters of the products or fewer, the rest being the same by symmetry; of pieces of the
    units, where there are many. A row more, of zeros, makes each a product of two matrices in
    numpy's eyes: that of a matrix and its own transpose goes to a routine that copies first.

    Args:
        room: `[token of a run, state + 1, unit]`, for float32 states; its last row is zero.
        convert: copies states (its second argument) to float32.
    """
    count, units = states.shape[1:]
    rows = count + 1
    # A quarter of the states a strip: multiplied with itself and what follows.
    step = max(16, -(-count // 32) * 8)
    strips = [slice(first, min(first + step, count)) for first in range(0, count, step)]
    parts = next(
        (n for n in range(1, 65) if units % n == 0 and step * rows * units // n <= SMALL), 1
    )
    products = np.empty((len(states), count, rows), np.float32)
    of_parts = np.zeros((len(room), parts, count, rows), np.float32) if parts > 1 else None
    with np.errstate(invalid="ignore"):  # inf * 0: a state that overflowed stays NaN
        for first in range(0, len(states), len(room)):
            piece = states[first : first + len(room)]
            run, found = room[: len(piece)], products[first : first + len(room)]
            convert(run[:, :-1], piece)
            if directions:
                _unit_length(run[:, :-1])
            left = run.reshape(len(run), rows, parts, -1).swapaxes(1, 2)
            right = left.swapaxes(2, 3)
            out = found[:, np.newaxis] if of_parts is None else of_parts[: len(run)]
            for some in strips:
                np.matmul(
                    left[:, :, some],
                    right[:, :, :, some.start :],
                    out=out[:, :, some, some.start :],
                )
            if parts > 1:
                out.sum(1, out=found)
    for some in strips[1:]:
        products[:, some, : some.start] = products[:, : some.start, some].swapaxes(1, 2)
    return products[:, :, :-1]


def cosine_from_gram(gram: NDArray[Any]) -> NDArray[Any]:
    """Cosine of each two vectors; -1 (opposite) to 1 (same direction), to within rounding.

    Args:
        gram: `[..., state, state]`, inner products.
    Returns:
        `[..., state, state]`; NaN in the row and column of a vector of norm zero.
    """
    with np.errstate(invalid="ignore"):
        norm = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
        products = norm[..., :, None] * norm[..., None, :]
        return np.divide(gram, products, out=products)


def token_cosines(states: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine between each two states at each token; -1 (opposite) to 1 (same direction).

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32.
    Returns:
        `[token, state, state]`; NaN in the row and column of a zero vector, and of what is not
        finite.
    """
    unit = states.astype(np.float32, order="C")
    _unit_length(unit)
    unit = unit.swapaxes(0, 1)
    with np.errstate(invalid="ignore"):
        cosines = np.clip(unit @ unit.swapaxes(1, 2), -1, 1, dtype=np.float64)
    zero = np.einsum("tss->ts", cosines) == 0
    if zero.any():
        cosines[zero[:, :, np.newaxis] | zero[:, np.newaxis, :]] = np.nan
    return cosines


def angular_distances(states: NDArray[Any]) -> NDArray[np.float64]:
    """Angle between each two states at each token, as a share of half a turn; 0 (same direction) to
    1 (opposite).

    Rounding of the cosine lets equal directions be up to 5e-4 apart.

    Args:
        states: `[state, token, unit]`, any float dtype.
    Returns:
        `[token, state, state]`; NaN in the row and column of a zero vector.
    Source: Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, eq. 7 (at the
        last token).
    """
    return half_turns(token_cosines(states))


def half_turns(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """The angle of each cosine as a share of half a turn, 0 to 1."""
    return np.arccos(cosines) / np.pi


def sink_tokens(states: NDArray[Any], multiple: float = SINK_MULTIPLE) -> NDArray[np.bool_]:
    """Which tokens of a sample are attention sinks: the first, and any whose norm is a multiple of
    the median.

    Args:
        states: `[state, token, unit]`, one whole sample.
        multiple: a token is a sink where its norm in some state exceeds so many medians of that
            state's norms over the sample.
    Returns:
        `[token]`.
    Source: Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks; Sun et al.
        2024, Massive Activations in Large Language Models.
    """
    norms = np.sqrt(np.einsum("stu,stu->st", states, states, dtype=np.float64))
    sinks = (norms > multiple * np.median(norms, axis=1, keepdims=True)).any(0)
    sinks[:1] = True
    return sinks


def _shift(out: NDArray[np.float32], values: NDArray[Any]) -> None:
    """float16 to float32 by shifting bits, three times as fast as numpy's own way; right where all
    values are finite.

    A float16's exponent and fraction, moved to float32's places, are the number times 2^-112; an
    infinity becomes 2^16, a NaN more.
    """
    wide = out.view(np.int32)
    np.left_shift(values.view(np.int16), 13, out=wide, dtype=np.int32)
    np.bitwise_and(wide, -0x70000001, out=wide)  # the sign that widening repeated stays once
    np.multiply(out, np.float32(2.0**112), out=out)


def _unit_length(states: NDArray[np.float32]) -> None:
    """Divides vectors by their norms, in place; a zero vector stays zero.

    Squares in float64, lest the norm of a very long or short vector become inf or 0.
    """
    squares = np.einsum("...u,...u->...", states, states, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = (1 / np.sqrt(squares)).astype(np.float32)
        scale[squares == 0] = 0
        states *= scale[..., np.newaxis]
