"""Cosines and sinks against values by hand, invariances and slow exact sums."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.metrics.pairwise import cosine_similarity

from repsim.measures import (
    angular_distances,
    cosine_from_gram,
    grams,
    sink_tokens,
    token_cosine_sums,
    token_cosine_totals,
    token_cosines,
)
from repsim.measures._token_products import PIECE_TOKENS

KERNELS = (token_cosine_sums, grams)


def random_states(
    states: int = 4, tokens: int = 2 * PIECE_TOKENS + 5, units: int = 16, seed: int = 0
) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(states, tokens, units)).astype(np.float32)


def test_token_cosine_sums_by_hand() -> None:
    states = np.array([[[1, 0], [0, 2]], [[3, 3], [0, -5]]])
    diagonal = np.sqrt(0.5)
    assert_allclose(token_cosine_sums(states), [[2, diagonal - 1], [diagonal - 1, 2]], rtol=1e-6)


def test_grams_and_their_cosine_by_hand() -> None:
    states = np.array([[[1, 0], [0, 2]], [[3, 3], [0, -5]]])
    gram = grams(states)
    assert_array_equal(gram, [[5, -7], [-7, 43]])
    assert_allclose(cosine_from_gram(gram), [[1, -7 / 215**0.5], [-7 / 215**0.5, 1]])


def test_token_cosine_sums_is_the_sum_of_each_tokens_cosines() -> None:
    states = random_states()
    each = [cosine_similarity(states[:, token]) for token in range(states.shape[1])]
    assert_allclose(token_cosine_sums(states), np.sum(each, axis=0), atol=1e-6 * len(each))


def test_gram_cosine_is_the_cosine_of_flattened_states() -> None:
    states = random_states()
    expected = cosine_similarity(states.reshape(len(states), -1))
    assert_allclose(cosine_from_gram(grams(states)), expected, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), power=st.floats(-15, 15))
def test_token_cosine_ignores_lengths(seed: int, power: float) -> None:
    states = random_states(states=3, tokens=7, units=4, seed=seed)
    scale = 10.0 ** (power * np.random.default_rng(seed).uniform(size=(3, 7, 1)))
    assert_allclose(token_cosine_sums(states * scale), token_cosine_sums(states), atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_rotation_of_all_states_changes_nothing(kernel: Any) -> None:
    states = random_states()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16))).Q
    assert_allclose(kernel(states @ rotation), kernel(states), atol=1e-4 * states.shape[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_symmetric(kernel: Any) -> None:
    sums = kernel(random_states())
    assert_array_equal(sums, sums.T)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cut", [1, PIECE_TOKENS, PIECE_TOKENS + 1])
def test_pieces_add_up_to_the_whole(kernel: Any, cut: int) -> None:
    states = random_states()
    pieces = kernel(states[:, :cut]) + kernel(states[:, cut:])
    assert_allclose(pieces, kernel(states), atol=1e-5 * states.shape[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_tokens_sum_to_zero(kernel: Any) -> None:
    assert_array_equal(kernel(np.zeros((3, 0, 4))), np.zeros((3, 3)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_states_given_are_left_as_they_are(kernel: Any) -> None:
    states = random_states(tokens=3)
    before = states.copy()
    kernel(states)
    assert_array_equal(states, before)


def test_float16_sums_are_exact_to_a_millionth() -> None:
    """Largest float16 values beside ordinary ones, many tokens: as float64 gives it."""
    states = random_states(tokens=5000, units=64).astype(np.float16)
    states[:, 0] = 65504
    flat = states.astype(np.float64).reshape(len(states), -1)
    norm = np.linalg.norm(flat, axis=1)
    assert_allclose(
        grams(states) / np.outer(norm, norm), flat @ flat.T / np.outer(norm, norm), atol=1e-6
    )
    unit = states.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    exact = np.einsum("itu,jtu->ij", unit, unit)
    assert_allclose(token_cosine_sums(states) / 5000, exact / 5000, atol=1e-6)


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_token_cosine_of_very_short_and_very_long_vectors(length: float) -> None:
    states = np.array([[[1, 0]], [[1, 1]]]) * length
    assert_allclose(token_cosine_sums(states), [[1, 0.5**0.5], [0.5**0.5, 1]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_zero_vector_is_left_out_of_its_state_s_sums_and_not_counted(dtype: Any) -> None:
    states = random_states(states=3).astype(dtype)
    states[1, 20] = states[2, 4] = states[2, 20] = 0
    sums, counts = token_cosine_totals(states)
    tokens = states.shape[1]
    assert_array_equal(counts, tokens - np.array([[0, 1, 2], [1, 1, 2], [2, 2, 2]]))
    assert_allclose(np.diagonal(sums), np.diagonal(counts), rtol=1e-6)
    for i, j in np.ndindex(3, 3):
        there = states[i].any(-1) & states[j].any(-1)
        assert counts[i, j] == there.sum()
        assert sums[i, j] == pytest.approx(
            token_cosine_sums(states[[i, j]][:, there])[0, 1], abs=1e-4
        )
    assert_array_equal(token_cosine_sums(states), sums)


def test_counts_of_pieces_add_up() -> None:
    states = random_states(states=3)
    states[1, [2, 7]] = 0
    pieces = [token_cosine_totals(states[:, some]) for some in (slice(5), slice(5, None))]
    whole = token_cosine_totals(states)
    assert_array_equal(pieces[0][1] + pieces[1][1], whole[1])
    assert_allclose(pieces[0][0] + pieces[1][0], whole[0], atol=1e-5)


def test_a_zero_token_is_nothing_but_a_zero_state_has_no_flattened_cosine() -> None:
    states = random_states(states=3)
    states[1] = 0
    states[2, 0] = 0
    cosine = cosine_from_gram(grams(states))
    assert_array_equal(np.isnan(cosine), [[False, True, False], [True] * 3, [False, True, False]])


def test_a_state_that_overflowed_is_undefined() -> None:
    states = random_states(states=2).astype(np.float16)
    states[0, 0, 0] = np.inf
    assert_array_equal(np.isnan(token_cosine_sums(states)), [[True, True], [True, False]])
    assert_array_equal(np.isnan(cosine_from_gram(grams(states))), [[True, True], [True, False]])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_finite_in_float16_makes_its_own_state_undefined(
    kernel: Any, value: float
) -> None:
    states = random_states(states=3).astype(np.float16)
    states[1, 20, 3] = value
    undefined = np.zeros((3, 3), bool)
    undefined[1] = undefined[:, 1] = True
    found = cosine_from_gram(kernel(states)) if kernel is grams else kernel(states)
    assert_array_equal(np.isnan(found), undefined)


def test_token_cosines_by_hand() -> None:
    states = np.array([[[1, 0], [0, 2]], [[3, 3], [0, -5]]])
    diagonal = np.sqrt(0.5)
    assert_allclose(
        token_cosines(states), [[[1, diagonal], [diagonal, 1]], [[1, -1], [-1, 1]]], rtol=1e-6
    )


def test_angular_distances_by_hand() -> None:
    """The same direction, a right angle, an eighth of a turn, the opposite."""
    states = np.array([[[2, 0], [1, 0], [1, 0], [1, 0]], [[5, 0], [0, 3], [1, 1], [-4, 0]]])
    assert_allclose(angular_distances(states)[:, 0, 1], [0, 1 / 2, 1 / 4, 1], atol=1e-6)


def test_token_cosines_are_each_tokens_cosines() -> None:
    states = random_states()
    each = [cosine_similarity(states[:, token]) for token in range(states.shape[1])]
    assert_allclose(token_cosines(states), each, atol=1e-6)


def test_token_cosines_add_up_to_their_sums() -> None:
    states = random_states()
    assert_allclose(
        token_cosines(states).sum(0), token_cosine_sums(states), atol=1e-6 * states.shape[1]
    )


def test_pieces_of_token_cosines_follow_each_other() -> None:
    states = random_states()
    pieces = np.concatenate([token_cosines(states[:, :5]), token_cosines(states[:, 5:])])
    assert_allclose(pieces, token_cosines(states), atol=1e-6)


def test_token_cosines_are_float64_and_never_beyond_one() -> None:
    states = random_states(states=2, tokens=2000).astype(np.float16)
    states[1] = -2 * states[0]
    cosines = token_cosines(states)
    assert cosines.dtype == np.float64
    assert cosines.max() <= 1
    assert cosines.min() >= -1


@given(seed=st.integers(0, 2**32 - 1))
def test_angular_distances_satisfy_the_triangle_inequality(seed: int) -> None:
    distance = angular_distances(random_states(states=3, tokens=20, units=5, seed=seed))
    assert (distance[:, 0, 2] <= distance[:, 0, 1] + distance[:, 1, 2] + 1e-6).all()


def test_angular_distances_ignore_lengths() -> None:
    states = random_states()
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(*states.shape[:2], 1))
    apart = ~np.eye(len(states), dtype=bool)
    expected = angular_distances(states)[:, apart]
    assert_allclose(angular_distances(states * scale)[:, apart], expected, atol=1e-6)


@pytest.mark.parametrize("units", [64, 4096])
def test_equal_directions_are_no_further_apart_than_promised(units: int) -> None:
    """An angle takes the square root of its cosine's rounding."""
    states = random_states(states=1, tokens=20000 * 64 // units, units=units)
    distance = angular_distances(np.concatenate([states, 3 * states]))[:, 0, 1]
    assert distance.max() <= 5e-4


@pytest.mark.parametrize("kernel", [token_cosines, angular_distances])
def test_a_zero_vector_has_no_direction_at_its_token_alone(kernel: Any) -> None:
    states = random_states(states=3, tokens=4)
    states[1, 2] = 0
    undefined = np.zeros((4, 3, 3), bool)
    undefined[2, 1] = undefined[2, :, 1] = True
    assert_array_equal(np.isnan(kernel(states)), undefined)


@pytest.mark.parametrize("kernel", [token_cosines, angular_distances, sink_tokens])
def test_kernels_of_tokens_leave_the_states_as_they_are(kernel: Any) -> None:
    states = random_states(tokens=3)
    before = states.copy()
    kernel(states)
    assert_array_equal(states, before)


def test_sink_tokens_by_hand() -> None:
    """Norms 5, 1, 30, 1, 2: the median is 2, so that 30 exceeds ten of them, and the first is a
    sink anyway.
    """
    states = np.array([[[3, 4], [0, 1], [0, 30], [1, 0], [2, 0]]])
    assert_array_equal(sink_tokens(states, multiple=10), [True, False, True, False, False])
    assert_array_equal(sink_tokens(states, multiple=15), [True, False, False, False, False])


def test_a_sink_of_one_state_is_a_sink_of_all() -> None:
    states = np.ones((3, 6, 2))
    states[1, 4] *= 100
    assert_array_equal(np.flatnonzero(sink_tokens(states, multiple=10)), [0, 4])


def test_each_states_norms_are_compared_with_its_own_median() -> None:
    states = np.ones((3, 6, 2))
    states[1:] *= 1000
    assert_array_equal(np.flatnonzero(sink_tokens(states, multiple=10)), [0])


def test_the_median_is_that_of_norms_not_of_their_squares() -> None:
    """Norms 1, 1, 3, 21: their median is 2; the root of their squares' median would be √5."""
    states = np.array([[[1], [1], [3], [21]]])
    assert_array_equal(np.flatnonzero(sink_tokens(states, multiple=10)), [0, 3])


def test_scale_makes_no_sink() -> None:
    states = random_states()
    states[:, [7, 30]] *= 20
    found = np.flatnonzero(sink_tokens(states, multiple=10))
    assert_array_equal(found, [0, 7, 30])
    assert_array_equal(np.flatnonzero(sink_tokens(states * 1e-3, multiple=10)), found)


def test_sinks_whose_squares_float16_cannot_hold() -> None:
    states = np.ones((2, 5, 64), np.float16)
    states[1, 3] = 60000
    assert_array_equal(np.flatnonzero(sink_tokens(states)), [0, 3])


def test_a_sample_of_one_token_is_a_sink() -> None:
    assert_array_equal(sink_tokens(np.ones((2, 1, 4))), [True])
