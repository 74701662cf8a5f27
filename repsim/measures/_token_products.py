"""Inner products of states at each token, `np.einsum("itu,jtu->tij", states, states)`, made fast.

`token_products` equals that line in float32 and takes less time, because it

- multiplies as many tokens at once as stay in the processor's cache together with their states,
- leaves out products that symmetry already gives,
- widens float16 to float32 by shifting bits.

The formulas built on these products stand in `repsim.measures.cosine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array
from numpy.typing import NDArray

from repsim.measures._arrays import PIECE_BYTES as DEVICE_PIECE_BYTES
from repsim.measures._arrays import products_on_device

CACHE_BYTES = 5 << 18  # of the second-level cache, for the states of one window of tokens
PIECE_BYTES = 8 << 20  # of the products of one piece
# A piece holds several windows, so that its products are summed and divided at once: numpy releases
# Python's lock in every call on more than a few numbers.
PIECE_TOKENS = 512
# OpenBLAS multiplies matrices with fewer products than this without copying them first, which is
# twice as fast.
SMALL_PRODUCTS = 10**6

Convert = Callable[[NDArray[np.float32], NDArray[Any]], None]


def token_products(states: Any, *, directions: bool = False) -> Iterator[Any]:
    """Inner product of each two states at each token, for one piece of the tokens after another.

        P[t, i, j] = Σ_u h_i[t, u] h_j[t, u]

    Args:
        states: `[state, token, unit]`, any float dtype; computed as float32. Of another library
            than numpy, with any axes before these.
        directions: that only directions matter: each state is divided by its Euclidean norm first,
            or, on a device, by a power of two near it.
    Yields:
        `[..., token, state, state]`, float32, for the next tokens.
    Example:
        >>> import numpy as np
        >>> states = np.random.default_rng(0).normal(size=(3, 700, 16))
        >>> products = np.concatenate(list(token_products(states)))
        >>> np.allclose(products, np.einsum("itu,jtu->tij", states, states), atol=1e-4)
        True
    """
    if not is_numpy_array(states):
        yield from _token_products_on_device(states, directions=directions)
        return
    count, tokens, units = states.shape
    half = states.dtype == np.float16
    piece_tokens = max(1, min(PIECE_TOKENS, PIECE_BYTES // ((count + 1) ** 2 * 4)))
    window_tokens = max(1, min(piece_tokens, CACHE_BYTES // ((count + 1) * units * 4)))
    # Invariant: the row past the last state stays zero; `_multiply` says what for.
    window = np.zeros((window_tokens, count + 1, units), np.float32)

    for first in range(0, tokens, piece_tokens):
        piece = states[:, first : first + piece_tokens].swapaxes(0, 1)
        convert = widen_finite if half else np.copyto
        products = _multiply(piece, window, convert, directions=directions)
        # Shifting bits turns infinity into 2^16 and NaN into more, so the square of such a state is
        # at least 2^32: only then are the states converted again, by numpy.
        if half and np.einsum("tss->ts", products).max(initial=0) >= 2.0**32:
            products = _multiply(piece, window, np.copyto, directions=directions)
        yield products


def _token_products_on_device(states: Any, *, directions: bool) -> Iterator[Any]:
    """`token_products` by batched calls, many tokens at once."""
    xp = array_namespace(states)
    vectors = xp.moveaxis(states, -3, -2)  # [..., token, state, unit]
    *samples, tokens, count, units = vectors.shape
    # A scaled piece is a copy, which the products follow; without samples there is one piece.
    bytes_per_token = math.prod(samples) * count * 4 * (count + units)
    step = max(1, DEVICE_PIECE_BYTES // max(1, bytes_per_token))
    for first in range(0, tokens, step):
        yield products_on_device(vectors[..., first : first + step, :, :], scaled=directions)


def _multiply(
    states: NDArray[Any], window: NDArray[np.float32], convert: Convert, *, directions: bool
) -> NDArray[np.float32]:
    """Inner products over the units of one piece, `[token, state, unit]` → `[token, state, state]`.

    At most three quarters of the products are computed; symmetry gives the others. States of many
    units are multiplied in parts of the units, whose products are then summed. The extra row of
    zeros makes both factors different matrices in numpy's eyes: numpy hands the product of a matrix
    with its own transpose to a routine that copies first.

    Args:
        states: `[token, state, unit]`, any float dtype.
        window: `[token of a window, state + 1, unit]`, room for float32 states; its last row is
            zero.
        convert: copies states (its second argument) into float32 room (its first).
        directions: divide each state by its norm first.
    """
    count, units = states.shape[1:]
    rows = count + 1

    # Cut the states into strips of about a quarter, each multiplied with itself and what follows.
    step = max(16, -(-count // 32) * 8)
    strips = [slice(first, min(first + step, count)) for first in range(0, count, step)]
    # Cut the units into the fewest equal parts whose products are small.
    parts = next(
        (n for n in range(1, 65) if units % n == 0 and step * rows * units // n <= SMALL_PRODUCTS),
        1,
    )
    products = np.empty((len(states), count, rows), np.float32)
    of_parts = np.zeros((len(window), parts, count, rows), np.float32) if parts > 1 else None

    # Multiply window by window, each strip with the rows from its own first one on.
    with np.errstate(invalid="ignore"):  # inf * 0: a state that overflowed stays NaN
        for first in range(0, len(states), len(window)):
            tokens = slice(first, first + len(window))
            filled, target = window[: len(states[tokens])], products[tokens]
            convert(filled[:, :-1], states[tokens])
            if directions:
                scale_to_unit_norm(filled[:, :-1])
            left = filled.reshape(len(filled), rows, parts, -1).swapaxes(1, 2)
            right = left.swapaxes(2, 3)
            out = target[:, np.newaxis] if of_parts is None else of_parts[: len(filled)]
            for strip in strips:
                np.matmul(
                    left[:, :, strip],
                    right[:, :, :, strip.start :],
                    out=out[:, :, strip, strip.start :],
                )
            if parts > 1:
                out.sum(1, out=target)

    # Mirror what lies left of each strip.
    for strip in strips[1:]:
        products[:, strip, : strip.start] = products[:, : strip.start, strip].swapaxes(1, 2)
    return products[:, :, :-1]


def widen_finite(out: NDArray[np.float32], values: NDArray[Any]) -> None:
    """Copies float16 to float32 by shifting bits, three times as fast as numpy does.

    A float16's exponent and fraction, moved to float32's places, are the number times 2^-112. Exact
    for every finite number, subnormal ones too; infinity becomes 2^16, NaN a larger number.

    Args:
        out: float32, written to.
        values: float16, the same shape.
    Example:
        >>> import numpy as np
        >>> out = np.empty(3, np.float32)
        >>> widen_finite(out, np.array([1.5, -65504, 2**-24], np.float16))
        >>> out.tolist() == [1.5, -65504, 2**-24]
        True
    """
    wide = out.view(np.int32)
    np.left_shift(values.view(np.int16), 13, out=wide, dtype=np.int32)
    np.bitwise_and(wide, -0x70000001, out=wide)  # widening repeated the sign: keep one
    np.multiply(out, np.float32(2.0**112), out=out)


def scale_to_unit_norm(states: NDArray[np.float32]) -> None:
    """Divides vectors by their Euclidean norms, in place; a zero vector stays zero.

    Squares are summed in float64, where the norm of a very long or very short vector becomes
    neither infinite nor 0.

    Args:
        states: `[..., unit]`, float32, written to.
    Example:
        >>> import numpy as np
        >>> states = np.array([[3, 4], [0, 0]], np.float32)
        >>> scale_to_unit_norm(states)
        >>> states.round(6).tolist() == np.array([[0.6, 0.8], [0, 0]], np.float32).tolist()
        True
    """
    squares = np.einsum("...u,...u->...", states, states, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = (1 / np.sqrt(squares)).astype(np.float32)
        scale[squares == 0] = 0
        states *= scale[..., np.newaxis]
