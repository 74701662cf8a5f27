"""Mean norms of states: by hand, and against a plain loop."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from repsim.analyses import norms
from repsim.errors import RepsimError
from support.captures import ArrayCapture, hall_interval, random_capture, resample, sample_states


def test_by_hand() -> None:
    capture = ArrayCapture([[[3, 4], [0, 0], [0, 1]], [[6, 8], [0, 2], [2, 0]]], lengths=(2, 1))
    result = norms.compute(capture)
    assert_allclose(result["norm"], [2, 14 / 3])
    assert_allclose(result["low"], 0)  # two samples say next to nothing
    assert (result["high"] > 2 * result["norm"]).all()
    # drawn are both samples, the first twice or the second twice
    assert_allclose(
        result["standard_error"],
        [np.std([2.5, 2, 2, 1]), np.std([6, 14 / 3, 14 / 3, 2])],
        rtol=0.05,
    )
    assert (result.attrs["tokens"], result.attrs["samples"]) == (3, 2)


def test_equals_numpy_on_float16_states() -> None:
    capture = random_capture()
    expected = np.linalg.norm(capture.array.astype(float), axis=-1).mean(1)
    assert_allclose(norms.compute(capture)["norm"], expected, rtol=1e-12)


def test_standard_error_and_interval_are_those_of_an_explicit_loop_over_resamples() -> None:
    capture = random_capture()
    sums = [
        np.array([sum(map(np.linalg.norm, state)) for state in states])
        for states in sample_states(capture)
    ]
    replicates = resample(sums, capture.sizes)
    result = norms.compute(capture)
    assert_allclose(result["standard_error"], replicates.std(0, ddof=1), rtol=1e-10)
    for name, expected in zip(
        ("low", "high"), hall_interval(result["norm"], replicates, 4, (0, np.inf)), strict=True
    ):
        assert_allclose(result[name], expected, rtol=1e-10)


def test_standard_error_is_the_linearised_ratio_s_where_there_are_many_samples() -> None:
    lengths = np.random.default_rng(5).integers(2, 31, size=80)
    capture = random_capture(lengths=tuple(lengths))
    sums = np.array([np.linalg.norm(states, axis=2).sum(1) for states in sample_states(capture)])
    residuals = sums - lengths[:, None] * sums.sum(0) / lengths.sum()
    expected = np.sqrt(80 / 79 * (residuals**2).sum(0)) / lengths.sum()
    assert_allclose(norms.compute(capture)["standard_error"], expected, rtol=0.15)


def test_squares_do_not_overflow_float16() -> None:
    capture = ArrayCapture(np.full((2, 3, 8), 6e4, np.float16), lengths=(3,))
    assert_allclose(norms.compute(capture)["norm"], 6e4 * 8**0.5, rtol=1e-3)
    assert np.isnan(norms.compute(capture)["standard_error"]).all()  # one sample


def test_no_tokens() -> None:
    with pytest.raises(RepsimError, match="holds no finished tokens"):
        norms.compute(ArrayCapture(np.zeros((3, 0, 4)), lengths=()))


def test_plot_draws_a_line_of_every_state() -> None:
    result = norms.compute(random_capture(), plan="baseline")
    figure = norms.plot(result)
    (axes,) = figure.axes
    (line,) = axes.lines
    (band,) = axes.collections
    ends = band.get_paths()[0].vertices[:, 1]
    assert_allclose([ends.min(), ends.max()], [result["low"].min(), result["high"].max()])
    assert_allclose(line.get_ydata(), result["norm"])
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["embed", "0", "1", "2"]
    assert "name of baseline" in figure.get_suptitle()


def test_plot_draws_a_line_for_each_of_several_against_depth() -> None:
    figure = norms.plot(*(norms.compute(random_capture(states=states)) for states in (4, 7)))
    (axes,) = figure.axes
    assert [line.get_xdata()[[0, -1]].tolist() for line in axes.lines] == [[0, 1], [0, 1]]
    assert [len(line.get_xdata()) for line in axes.lines] == [4, 7]


def test_too_few_resamples() -> None:
    with pytest.raises(RepsimError, match="resamples=0: at least 2"):
        norms.compute(random_capture(), resamples=0)
