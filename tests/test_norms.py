"""Mean norms of states: by hand, and against a plain loop."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from test_cosine import Stored, random_capture

from repsim.analyses import norms
from repsim.schema import RepsimError


def test_by_hand():
    capture = Stored([[[3, 4], [0, 0], [0, 1]], [[6, 8], [0, 2], [2, 0]]], lengths=(2, 1))
    result = norms.compute(capture)
    assert_allclose(result["norm"], [2, 14 / 3])
    # sums 5 and 1, 12 and 2; residuals from the mean times tokens: 1 and -1, 8 / 3 and -8 / 3
    assert_allclose(result["standard_error"], [2 / 3, (2 * 2 * (8 / 3) ** 2) ** 0.5 / 3])
    assert (result.attrs["tokens"], result.attrs["samples"]) == (3, 2)


def test_equals_numpy_on_float16_states():
    capture = random_capture()
    expected = np.linalg.norm(capture.array.astype(float), axis=-1).mean(1)
    assert_allclose(norms.compute(capture)["norm"], expected, rtol=1e-12)


def test_squares_do_not_overflow_float16():
    capture = Stored(np.full((2, 3, 8), 6e4, np.float16), lengths=(3,))
    assert_allclose(norms.compute(capture)["norm"], 6e4 * 8**0.5, rtol=1e-3)
    assert np.isnan(norms.compute(capture)["standard_error"]).all()  # one sample


def test_no_tokens():
    with pytest.raises(RepsimError, match="holds no finished tokens"):
        norms.compute(Stored(np.zeros((3, 0, 4)), lengths=()))


def test_plot_draws_a_line_of_every_state():
    result = norms.compute(random_capture(), plan="baseline")
    figure = norms.plot(result)
    (axes,) = figure.axes
    (line,) = axes.lines
    assert_allclose(line.get_ydata(), result["norm"])
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["embed", "0", "1", "2"]
    assert "name of baseline" in figure.get_suptitle()
