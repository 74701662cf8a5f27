"""Geometry of states: against plain loops over the drawn items."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from repsim.analyses import geometry
from repsim.errors import RepsimError
from repsim.stats import subsample
from support.captures import ArrayCapture, hall_interval, random_capture

Array = NDArray[Any]

LENGTHS = (9, 12, 11, 8, 15, 9)


def capture_of(seed: int = 0, samples: int = 40, tokens: int = 8) -> ArrayCapture:
    """Two states, the second of less dimensions; samples differ in their means."""
    generator = np.random.default_rng(seed)
    shared = np.repeat(generator.normal(size=(samples, 1, 6)), tokens, axis=1).reshape(-1, 6)
    first = shared + generator.normal(size=(samples * tokens, 6)) + 1
    return ArrayCapture([first, first * [3, 2, 1, 0.3, 0.2, 0.1]], (tokens,) * samples)


def naive(x: Array) -> dict[str, float]:
    """Each number of items `[item, unit]`, the slow way."""
    x = x.astype(float)
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = singular / singular.sum()
    eigenvalues = singular**2
    ratios = []
    for one in range(len(x)):
        nearest, second = sorted(
            np.linalg.norm(x[one] - x[other]) for other in range(len(x)) if other != one
        )[:2]
        ratios.append(np.log(second / nearest))
    cosines = [
        x[a] @ x[b] / np.linalg.norm(x[a]) / np.linalg.norm(x[b])
        for a in range(len(x))
        for b in range(a)
    ]
    return {
        "norm": np.mean([np.linalg.norm(one) for one in x]),
        "effective_rank": np.exp(-sum(p * np.log(p) for p in share)),
        "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
        "intrinsic_dimension": (len(x) - 1) / np.sum(ratios),
        "anisotropy": np.mean(cosines),
    }


def test_by_hand() -> None:
    """Items at both ends of two axes at right angles, one 2 or 3 times as long as the other, in two
    samples.
    """
    ends = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]] * 2, float)
    found = geometry.compute(ArrayCapture([ends * [2, 1], ends * [3, 1]], (4, 4)), sinks=True)
    assert_allclose(found["norm"], [1.5, 2])
    assert_allclose(
        found["participation_ratio"], [(4 + 1) ** 2 / (16 + 1), (9 + 1) ** 2 / (81 + 1)]
    )
    assert_allclose(found["effective_rank"], [3 / 2 ** (2 / 3), 4 / 3 ** (3 / 4)])
    # of 28 pairs 4 are equal, 8 opposite, and the others at right angles
    assert_allclose(found["anisotropy"], [-4 / 28] * 2)
    # of 4 different items two have both neighbours at one distance, two have them at sqrt(5) or
    # sqrt(10) and at 2
    assert_allclose(found["intrinsic_dimension"], [3 / np.log(5 / 4), 3 / np.log(10 / 4)])


@pytest.mark.parametrize("sinks", [False, True])
def test_equals_loops_over_the_drawn_items(sinks: bool) -> None:
    capture = random_capture(lengths=LENGTHS)
    found = geometry.compute(capture, items=48, sinks=sinks, seed=3)
    drawn = subsample.draw_tokens(capture, "baseline", 48, sinks=sinks, seed=3)
    for row, state in enumerate(drawn.states):
        for name, expected in naive(state).items():
            assert found[name].values[row] == pytest.approx(expected, rel=1e-6), name
    assert set(geometry.LABELS) == set(naive(drawn.states[0]))
    assert found.attrs["tokens"] == drawn.states.shape[1]


def test_the_norm_s_standard_error_is_that_of_sample_means() -> None:
    """Equally many items of each sample, so the bootstrap's is the deviation of means, which
    divides by n.
    """
    capture = capture_of()
    drawn = subsample.draw_tokens(capture, "baseline", 2048)
    means = np.linalg.norm(drawn.states, axis=2).reshape(2, drawn.samples, -1).mean(2)
    draws = np.random.default_rng(0).multinomial(
        drawn.samples, [1 / drawn.samples] * drawn.samples, 1000
    )
    replicates = draws @ means.T / drawn.samples
    found = geometry.compute(capture)
    assert_allclose(found["norm_standard_error"], replicates.std(0, ddof=1), rtol=1e-9)
    for end, expected in zip(
        ("low", "high"),
        hall_interval(found["norm"], replicates, drawn.samples, (0, np.inf)),
        strict=True,
    ):
        assert_allclose(found[f"norm_{end}"], expected, rtol=1e-9)


def test_standard_errors_are_the_deviation_over_fresh_captures() -> None:
    """150 of them, so that the deviation itself is sure to 6 %; of the state that is far from a
    ball.
    """
    found = [
        geometry.compute(capture_of(seed), resamples=200).isel(state=1)
        for seed in range(1000, 1150)
    ]
    for name in ("norm", "effective_rank", "participation_ratio", "anisotropy"):
        values = [one[name].item() for one in found]
        errors = [one[f"{name}_standard_error"].item() for one in found]
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(
            np.std(values, ddof=1), rel=0.2
        ), name


def test_fewer_dimensions_are_seen() -> None:
    found = geometry.compute(capture_of())
    for name in ("effective_rank", "participation_ratio", "intrinsic_dimension"):
        assert found[name][1] < found[name][0] < 6.5
    assert found["anisotropy"][0] > 0.1
    for name in geometry.LABELS:
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[f"{name}_high"] >= found[name]).all()


def test_lengths_do_not_change_what_depends_on_directions_alone() -> None:
    capture = capture_of()
    scaled = ArrayCapture(capture.array * 50, capture.sizes)
    one, other = geometry.compute(capture), geometry.compute(scaled)
    assert_allclose(other["norm"], 50 * one["norm"])
    xr.testing.assert_allclose(other.drop_vars("norm")["anisotropy"], one["anisotropy"])
    for name in ("effective_rank", "participation_ratio", "intrinsic_dimension", "anisotropy"):
        assert_allclose(other[name], one[name])
        assert_allclose(other[f"{name}_standard_error"], one[f"{name}_standard_error"], rtol=1e-6)


def test_names() -> None:
    found = geometry.compute(random_capture(lengths=LENGTHS), plan="baseline", resamples=10)
    assert found["layer"].values.tolist() == ["embed", "0", "1", "2"]
    assert set(found.data_vars) == {
        name + end for name in geometry.LABELS for end in ("", "_standard_error", "_low", "_high")
    }
    assert all(values.dims == ("state",) for values in found.data_vars.values())
    assert found.attrs["sinks"] == "left out"
    assert found.attrs["analysis"] == "geometry"


def test_plot_draws_a_panel_for_each_number() -> None:
    found = geometry.compute(random_capture(lengths=LENGTHS), resamples=10)
    figure = geometry.plot(
        found, geometry.compute(random_capture(lengths=LENGTHS, states=6), resamples=10)
    )
    assert [axes.get_ylabel() for axes in figure.axes[:5]] == list(geometry.LABELS.values())
    assert [len(axes.lines) for axes in figure.axes[:5]] == [2] * 5


def test_a_state_that_never_changes_has_no_dimensions() -> None:
    capture = random_capture(lengths=LENGTHS)
    capture.array[0] = 1
    found = geometry.compute(capture, resamples=10)
    assert found["norm"][0] == pytest.approx(8**0.5)
    assert np.isnan(found["participation_ratio"][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1}, "resamples=1: at least 2"),
        ({"items": 6}, "6 tokens of 6 samples without attention sinks; comparing takes at least 8"),
        ({"items": -1}, "items=-1"),
    ],
)
def test_options_that_do_not_fit(options: Any, message: str) -> None:
    with pytest.raises(RepsimError, match=message):
        geometry.compute(random_capture(lengths=LENGTHS), **options)


def test_a_zero_vector_is_left_out_of_its_state_s_anisotropy_alone_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    capture = random_capture(lengths=(9, 9, 9))
    capture.array[1, 3] = 0
    found = geometry.compute(capture, sinks=True)
    drawn = subsample.draw_tokens(capture, "baseline", 2048, sinks=True)
    zero = ~drawn.states[1].any(-1)
    assert zero.sum() == found.attrs["left_out_tokens"] == 1
    rest = drawn.states[1][~zero].astype(float)
    assert found["anisotropy"].values[1] == pytest.approx(naive(rest)["anisotropy"], rel=1e-6)
    assert found["norm"].values[1] == pytest.approx(
        np.linalg.norm(drawn.states[1].astype(float), axis=1).mean(), rel=1e-6
    )
    assert np.isfinite(found["anisotropy_low"]).all()
    assert "geometry of plan name of baseline: 1 tokens left out" in caplog.text
