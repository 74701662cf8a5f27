"""Similarity kernels against values by hand, invariances and slow exact sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics.pairwise import cosine_similarity

from repsim import measures
from repsim.measures import BLOCK_TOKENS, cosine_from_gram, grams, token_cosine_sums

KERNELS = (token_cosine_sums, grams)


def random_states(states=4, tokens=2 * BLOCK_TOKENS + 5, units=16, seed=0):
    return np.random.default_rng(seed).normal(size=(states, tokens, units)).astype(np.float32)


def test_token_cosine_sums_by_hand():
    states = np.array([[[1, 0], [0, 2]], [[3, 3], [0, -5]]])
    diagonal = np.sqrt(0.5)
    assert_allclose(token_cosine_sums(states), [[2, diagonal - 1], [diagonal - 1, 2]], rtol=1e-6)


def test_grams_and_their_cosine_by_hand():
    states = np.array([[[1, 0], [0, 2]], [[3, 3], [0, -5]]])
    gram = grams(states)
    assert_array_equal(gram, [[5, -7], [-7, 43]])
    assert_allclose(cosine_from_gram(gram), [[1, -7 / 215**0.5], [-7 / 215**0.5, 1]])


def test_token_cosine_sums_is_the_sum_of_each_tokens_cosines():
    states = random_states()
    each = [cosine_similarity(states[:, token]) for token in range(states.shape[1])]
    assert_allclose(token_cosine_sums(states), np.sum(each, axis=0), atol=1e-6 * len(each))


def test_gram_cosine_is_the_cosine_of_flattened_states():
    states = random_states()
    expected = cosine_similarity(states.reshape(len(states), -1))
    assert_allclose(cosine_from_gram(grams(states)), expected, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), power=st.floats(-15, 15))
def test_token_cosine_ignores_lengths(seed, power):
    states = random_states(states=3, tokens=7, units=4, seed=seed)
    scale = 10.0 ** (power * np.random.default_rng(seed).uniform(size=(3, 7, 1)))
    assert_allclose(token_cosine_sums(states * scale), token_cosine_sums(states), atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_rotation_of_all_states_changes_nothing(kernel):
    states = random_states()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16))).Q
    assert_allclose(kernel(states @ rotation), kernel(states), atol=1e-4 * states.shape[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_symmetric(kernel):
    sums = kernel(random_states())
    assert_array_equal(sums, sums.T)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cut", [1, BLOCK_TOKENS, BLOCK_TOKENS + 1])
def test_pieces_add_up_to_the_whole(kernel, cut):
    states = random_states()
    pieces = kernel(states[:, :cut]) + kernel(states[:, cut:])
    assert_allclose(pieces, kernel(states), atol=1e-5 * states.shape[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_tokens_sum_to_zero(kernel):
    assert_array_equal(kernel(np.zeros((3, 0, 4))), np.zeros((3, 3)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_states_given_are_left_as_they_are(kernel):
    states = random_states(tokens=3)
    before = states.copy()
    kernel(states)
    assert_array_equal(states, before)


def test_float16_sums_are_exact_to_a_millionth():
    """Largest float16 values beside ordinary ones, many tokens: as float64 gives it."""
    states = random_states(tokens=5000, units=64).astype(np.float16)
    states[:, 0] = 65504
    flat = states.astype(np.float64).reshape(len(states), -1)
    norm = np.linalg.norm(flat, axis=1)
    assert_allclose(grams(states) / np.outer(norm, norm), flat @ flat.T / np.outer(norm, norm), atol=1e-6)
    unit = states.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    exact = np.einsum("itu,jtu->ij", unit, unit)
    assert_allclose(token_cosine_sums(states) / 5000, exact / 5000, atol=1e-6)


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_token_cosine_of_very_short_and_very_long_vectors(length):
    states = np.array([[[1, 0]], [[1, 1]]]) * length
    assert_allclose(token_cosine_sums(states), [[1, 0.5**0.5], [0.5**0.5, 1]], rtol=1e-6)


def test_a_zero_vector_has_no_token_cosine():
    states = random_states(states=3)
    states[1, 70] = 0
    sums = token_cosine_sums(states)
    undefined = np.zeros((3, 3), bool)
    undefined[1] = undefined[:, 1] = True
    assert_array_equal(np.isnan(sums), undefined)


def test_a_zero_token_is_nothing_but_a_zero_state_has_no_flattened_cosine():
    states = random_states(states=3)
    states[1] = 0
    states[2, 0] = 0
    cosine = cosine_from_gram(grams(states))
    assert_array_equal(np.isnan(cosine), [[False, True, False], [True] * 3, [False, True, False]])


def test_a_state_that_overflowed_is_undefined():
    states = random_states(states=2).astype(np.float16)
    states[0, 0, 0] = np.inf
    assert_array_equal(np.isnan(token_cosine_sums(states)), [[True, True], [True, False]])
    assert_array_equal(np.isnan(cosine_from_gram(grams(states))), [[True, True], [True, False]])


def test_blocks_are_float32_and_bounded():
    blocks = list(measures._blocks(random_states().astype(np.float16)))
    assert [block.shape[1] for block in blocks] == [BLOCK_TOKENS, BLOCK_TOKENS, 5]
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
