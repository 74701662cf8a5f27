"""Inner products at each token, however they are cut: against the einsum in float64."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from repsim.measures._token_products import (
    CACHE_BYTES,
    PIECE_TOKENS,
    scale_to_unit_norm,
    token_products,
    widen_finite,
)


def random_states(states: int, tokens: int, units: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(states, tokens, units)).astype(np.float32)


def concatenated_products(states: NDArray[Any], *, directions: bool = False) -> NDArray[Any]:
    return np.concatenate(list(token_products(states, directions=directions)))


def test_products_by_hand() -> None:
    states = np.array([[[1, 0], [0, 2]], [[3, 3], [0, -5]]])
    expected = [[[1, 3], [3, 18]], [[4, -10], [-10, 25]]]
    assert_array_equal(concatenated_products(states), expected)


def test_products_come_in_pieces_of_the_tokens() -> None:
    pieces = list(token_products(random_states(2, 2 * PIECE_TOKENS + 5, 3)))
    assert [len(piece) for piece in pieces] == [PIECE_TOKENS, PIECE_TOKENS, 5]


def test_products_of_directions_are_cosines() -> None:
    """The states themselves are left as they are."""
    states = random_states(5, 40, 7)
    before = states.copy()
    unit = states / np.linalg.norm(states, axis=2, keepdims=True)
    products = concatenated_products(states, directions=True)
    assert_allclose(products, np.einsum("itu,jtu->tij", unit, unit), atol=1e-6)
    assert_array_equal(states, before)


@pytest.mark.parametrize(
    ("states", "units"),
    [(1, 16), (2, 16), (5, 3), (6, 700), (40, 4096), (40, 4099)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_products_equal_the_einsum_whatever_the_windows(
    states: int, units: int, dtype: Any
) -> None:
    """Also where the units are multiplied in parts (4096), and where no number of parts divides
    them (4099).

    The last piece is one window and a token more.
    """
    window = max(1, CACHE_BYTES // ((states + 1) * units * 4))
    tokens = min(window, PIECE_TOKENS) + 1
    values = random_states(states, tokens + (PIECE_TOKENS if states < 40 else 0), units).astype(
        dtype
    )
    products = concatenated_products(values)
    assert products.dtype == np.float32
    for first in range(0, len(products), 64):  # float64 of all at once is too much
        wide = values[:, first : first + 64].astype(np.float64)
        assert_allclose(
            products[first : first + 64], np.einsum("itu,jtu->tij", wide, wide), atol=1e-5 * units
        )


def test_products_of_every_finite_float16() -> None:
    """Squares, each against itself in float64: shifting the bits gives each number as it is, the
    subnormal ones too.
    """
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(1, -1, 1)
    squares = concatenated_products(finite).ravel()
    assert_allclose(squares, finite.astype(np.float64).ravel() ** 2, rtol=1e-6)
    signs = np.concatenate([finite, np.ones_like(finite)])
    assert_array_equal(concatenated_products(signs)[:, 0, 1], finite.ravel())


def test_widening_keeps_every_finite_float16() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    out = np.empty(finite.shape, np.float32)
    widen_finite(out, finite)
    assert_array_equal(out, finite.astype(np.float32))
    assert_array_equal(np.signbit(out), np.signbit(finite))


@pytest.mark.parametrize("length", [1e-30, 1.0, 1e30])
def test_vectors_are_scaled_to_norm_one_whatever_their_length(length: float) -> None:
    states = (np.array([[3, 4], [0, 0]]) * length).astype(np.float32)
    scale_to_unit_norm(states)
    assert_allclose(states, np.array([[0.6, 0.8], [0, 0]]), rtol=1e-6)
