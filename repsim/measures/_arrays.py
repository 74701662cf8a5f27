"""What the kernels need beyond the array API, so that one formula serves numpy and a device.

A kernel takes the namespace of its states, `array_namespace(states)`, and calls that. numpy arrays
go to kernels tuned for a processor's cache; arrays of any other library, as torch's on a graphics
card, to plain batched calls, which never look at a value: looking would stop the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

PIECE_BYTES = 256 << 20  # of a device's memory, for what a kernel makes of one piece of the states


def may_be_any(mask: Any) -> bool:
    """Whether some value of a mask is true; of a device's mask, that it may be.

    Example:
        >>> may_be_any(np.zeros(3, bool))
        False
    """
    return not is_numpy_array(mask) or bool(mask.any())


def vector_norms(vectors: Any) -> Any:
    """Euclidean norms, `[..., unit]` → `[...]`, float64; squares are summed as float64.

    Example:
        >>> vector_norms(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [5.0, 0.0]
    """
    if is_numpy_array(vectors):
        return np.sqrt(np.einsum("...u,...u->...", vectors, vectors, dtype=np.float64))
    xp = array_namespace(vectors)
    rows = xp.reshape(vectors, (-1, vectors.shape[-1]))
    step = max(1, PIECE_BYTES // (8 * max(1, vectors.shape[-1])))
    pieces = [rows[first : first + step] for first in range(0, max(1, rows.shape[0]), step)]
    lengths = [xp.linalg.vector_norm(xp.astype(piece, xp.float64), axis=-1) for piece in pieces]
    return xp.reshape(xp.concat(lengths), vectors.shape[:-1])


def zero_totals(states: Any) -> Any:
    """Room for a sum for each two states, `[..., state, state]`, float64, where the states are."""
    xp, count = array_namespace(states), states.shape[-3]
    where = {} if is_numpy_array(states) else {"device": device(states)}
    return xp.zeros((*states.shape[:-3], count, count), dtype=xp.float64, **where)


def products_on_device(vectors: Any, *, scaled: bool) -> Any:
    """Inner products of vectors with each other, float32, of an array of any library but numpy.

    Narrow dtypes are multiplied as they are and added up in float32. A vector may be scaled by a
    power of two first, which rounds nothing: no product leaves float32's range then.

    Args:
        vectors: `[..., state, unit]`, any float dtype.
        scaled: bring the largest value of each vector to between 1/2 and 1.
    Returns:
        `[..., state, state]`, float32.
    Example:
        >>> import torch
        >>> products_on_device(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), scaled=False).tolist()
        [[25.0, 8.0], [8.0, 4.0]]
    """
    xp = array_namespace(vectors)
    if scaled:
        vectors = vectors * _power_of_two_scale(vectors)
    narrow = vectors.dtype not in (xp.float32, xp.float64)
    if narrow and is_torch_array(vectors) and vectors.device.type == "cuda":
        flat = xp.reshape(vectors, (-1, *vectors.shape[-2:]))
        products = xp.bmm(flat, flat.mT, out_dtype=xp.float32)
        return xp.reshape(products, (*vectors.shape[:-1], vectors.shape[-2]))
    wide = xp.astype(vectors, xp.float32)
    return xp.matmul(wide, wide.mT)


def _power_of_two_scale(vectors: Any) -> Any:
    """The power of two for each vector, `[..., 1]`, in its dtype; 1 for a zero vector."""
    xp = array_namespace(vectors)
    largest = xp.astype(xp.max(xp.abs(vectors), axis=-1, keepdims=True), xp.float32)
    exponent = xp.clip(xp.astype(xp.frexp(largest)[1], xp.int32), -126, 126)
    # Written into the bits of a float32, as no library promises exact powers.
    scale = xp.bitwise_left_shift(127 - exponent, xp.full_like(exponent, 23)).view(xp.float32)
    return xp.astype(scale, vectors.dtype)
