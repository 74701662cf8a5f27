"""Mean cosine similarity: by hand, against slow loops, and whatever way the tokens are cut."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cosine as cosine_distance

from repsim.analyses import cosine
from repsim.schema import RepsimError

AVERAGES = get_args(cosine.Average)
LENGTHS = (5, 1, 12, 3)


class Stored:
    """A capture of one plan, made of an array `[state, token, unit]`."""

    identity = {"model": "painter", "corpus": "easel"}  # noqa: RUF012

    def __init__(self, states, lengths):
        self.array, self.lengths = np.asarray(states), lengths

    def steps(self, plan):
        return ["embed", *map(str, range(len(self.array) - 1))]

    def plan_name(self, plan):
        return f"name of {plan}"

    def plan_text(self, plan):
        return "0, 1, 2"

    def per_sample(self, plan, statistic):
        for first, last in pairwise(np.cumsum([0, *self.lengths])):
            yield int(last - first), statistic.kernel(self.array[:, first:last])


def random_capture(lengths=LENGTHS, states=4, units=8, seed=0):
    """States that share a direction, its strength varying from sample to sample."""
    generator = np.random.default_rng(seed)
    shared = np.repeat(generator.normal(size=(len(lengths), 1)), lengths, axis=0) + 1
    states = generator.normal(size=(states, sum(lengths), units)) + shared
    return Stored(states.astype(np.float16), lengths)


def sample_states(capture):
    ends = np.cumsum([0, *capture.lengths])
    return [capture.array[:, a:b].astype(float) for a, b in pairwise(ends)]


def naive(states):
    """Token cosines of every two states, `[state, state, token]`."""
    return np.array([[[1 - cosine_distance(*pair) for pair in zip(a, b, strict=True)] for b in states] for a in states])


def flattened(states):
    return naive(states.reshape(len(states), 1, -1))[:, :, 0]


def each_sample(capture, average):
    """Per-sample cosine sums and weights, the slow way."""
    if average == "sequence":
        return [flattened(states) for states in sample_states(capture)], [1] * len(capture.lengths)
    return [naive(states).sum(2) for states in sample_states(capture)], capture.lengths


def test_by_hand():
    states = [[[1, 0], [0, 1], [1, 0]], [[2, 0], [0, -3], [1, 1]]]
    capture = Stored(states, lengths=(2, 1))
    token = cosine.compute(capture)
    # cosines 1, -1 | sqrt(1/2); residuals from the mean m times tokens: -2m, sqrt(1/2) - m
    mean = 0.5**0.5 / 3
    error = (2 * ((2 * mean) ** 2 + (0.5**0.5 - mean) ** 2)) ** 0.5 / 3
    assert_allclose(token["cosine"], [[1, mean], [mean, 1]], rtol=1e-6)
    assert_allclose(token["standard_error"], [[0, error], [error, 0]], atol=1e-6)
    sequence = cosine.compute(capture, average="sequence")
    # flattened: (2 - 3) / sqrt(2 * 13) | sqrt(1/2)
    both = [-1 / 26**0.5, 0.5**0.5]
    assert_allclose(sequence["cosine"][0, 1], np.mean(both), rtol=1e-6)
    assert_allclose(sequence["standard_error"][0, 1], (both[1] - both[0]) / 2, rtol=1e-6)


def test_a_long_first_token_rules_the_flattened_cosine_alone():
    states = [[[100, 0], [0, 1], [0, 1]], [[100, 0], [0, -1], [0, -1]]]
    capture = Stored(states, lengths=(3,))
    assert cosine.compute(capture)["cosine"][0, 1] == pytest.approx(-1 / 3)
    assert cosine.compute(capture, average="sequence")["cosine"][0, 1] > 0.999


@pytest.mark.parametrize("average", AVERAGES)
def test_equals_a_loop_over_states_and_tokens(average):
    capture = random_capture()
    sums, weights = each_sample(capture, average)
    result = cosine.compute(capture, average=average)
    assert_allclose(result["cosine"], np.sum(sums, 0) / np.sum(weights), atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_symmetric_with_a_diagonal_of_one(average):
    matrix = cosine.compute(random_capture(), average=average)["cosine"].values
    assert_array_equal(matrix, matrix.T)
    assert_allclose(np.diagonal(matrix), 1, atol=1e-6)


def test_token_average_ignores_lengths():
    capture = random_capture()
    array = capture.array.astype(np.float32)
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(*array.shape[:2], 1))
    scaled = Stored((array * scale).astype(np.float32), LENGTHS)
    xr.testing.assert_allclose(cosine.compute(scaled), cosine.compute(capture), atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_rotation_of_all_states_changes_nothing(average):
    capture = random_capture()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8))).Q
    turned = Stored(capture.array @ rotation, LENGTHS)
    expected = cosine.compute(capture, average=average)
    xr.testing.assert_allclose(cosine.compute(turned, average=average), expected, atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_the_order_of_samples_does_not_matter(average):
    capture = random_capture()
    states = np.concatenate([s.astype(np.float16) for s in sample_states(capture)[::-1]], axis=1)
    turned = Stored(states, LENGTHS[::-1])
    expected = cosine.compute(capture, average=average)
    xr.testing.assert_allclose(cosine.compute(turned, average=average), expected, atol=1e-7)


@pytest.mark.parametrize("average", AVERAGES)
def test_standard_error_of_samples_of_equal_length(average):
    """Then the ratio is a plain mean over samples, its error the deviation / sqrt(samples)."""
    capture = random_capture(lengths=(6,) * 5)
    sums, weights = each_sample(capture, average)
    expected = np.std(np.array(sums) / weights[0], axis=0, ddof=1) / np.sqrt(5)
    result = cosine.compute(capture, average=average)
    assert_allclose(result["standard_error"], expected, atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_standard_error_is_that_of_a_bootstrap_over_samples(average):
    """80 samples of 2 to 30 tokens, 4000 resamples: within a tenth of it."""
    generator = np.random.default_rng(5)
    capture = random_capture(lengths=tuple(generator.integers(2, 31, size=80)), states=3)
    sums, weights = map(np.array, each_sample(capture, average))
    drawn = generator.integers(80, size=(4000, 80))
    ratios = sums[drawn].sum(1) / weights[drawn].sum(1)[:, None, None]
    error = cosine.compute(capture, average=average)["standard_error"]
    apart = ~np.eye(3, dtype=bool)
    assert_allclose(error.values[apart], ratios.std(0, ddof=1)[apart], rtol=0.1)


@pytest.mark.parametrize("average", AVERAGES)
def test_one_sample_has_no_standard_error(average):
    result = cosine.compute(random_capture(lengths=(9,)), average=average)
    assert np.isnan(result["standard_error"]).all()
    assert np.isfinite(result["cosine"]).all()


@pytest.mark.parametrize("average", AVERAGES)
def test_a_state_without_direction_is_undefined_against_all(average):
    capture = random_capture()
    capture.array[1, 6:18] = 0  # all of the third sample
    result = cosine.compute(capture, average=average)
    undefined = np.zeros((4, 4), bool)
    undefined[1] = undefined[:, 1] = True
    assert_array_equal(np.isnan(result["cosine"]), undefined)
    assert_array_equal(np.isnan(result["standard_error"]), undefined)


def test_names():
    result = cosine.compute(random_capture(), plan="baseline", average="sequence")
    assert result["cosine"].dims == ("state", "state_other")
    assert result["layer"].values.tolist() == ["embed", "0", "1", "2"]
    assert result["layer_other"].values.tolist() == ["embed", "0", "1", "2"]
    description = result.attrs.pop("description")
    assert result.attrs == {
        "analysis": "cosine",
        "average": "sequence",
        "plan": "name of baseline",
        "plan_text": "0, 1, 2",
        "model": "painter",
        "corpus": "easel",
        "tokens": 21,
        "samples": 4,
    }
    assert "without padding" in description


def test_survives_a_round_trip_through_zarr(tmp_path):
    result = cosine.compute(random_capture())
    result.to_zarr(tmp_path / "result", zarr_format=3, consolidated=False)
    with xr.open_zarr(tmp_path / "result", consolidated=False, chunks=None) as read:
        xr.testing.assert_identical(read.load(), result)


def test_plot_draws_the_matrix():
    figure = cosine.plot(cosine.compute(random_capture()))
    assert "name of baseline" in figure.get_suptitle()


def test_an_unknown_average():
    with pytest.raises(RepsimError, match="average='word': choose token or sequence"):
        cosine.compute(random_capture(), average="word")


def test_a_plan_without_layers():
    with pytest.raises(RepsimError, match="'name of empty' runs no layer"):
        cosine.compute(random_capture(states=1), plan="empty")


def test_no_tokens():
    with pytest.raises(RepsimError, match="holds no finished tokens"):
        cosine.compute(Stored(np.zeros((3, 0, 4)), lengths=()))
