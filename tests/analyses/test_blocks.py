"""Blocks of layers: distances around every run of steps, against slow loops over tokens."""

from collections.abc import Sequence
from math import acos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import repsim
from repsim.analyses import blocks
from repsim.errors import RepsimError
from support.captures import ArrayCapture, hall_interval, random_capture, resample, sample_states

Array = NDArray[Any]


def cosine(a: Array, b: Array) -> float:
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def angle(a: Array, b: Array) -> float:
    return acos(min(1, max(-1, cosine(a, b)))) / pi


def distances(states: Array, tokens: Sequence[int]) -> Array:
    """Sums over these tokens, `[size, state]`, NaN past the end."""
    steps = len(states) - 1
    found = np.full((steps, steps), np.nan)
    for size in range(1, steps + 1):
        for first in range(steps - size + 1):
            found[size - 1, first] = sum(
                angle(states[first, t], states[first + size, t]) for t in tokens
            )
    return found


def test_by_hand() -> None:
    """Quarter turns of the last token; the token before it turns about in the second step."""
    states = [[[1, 0], [1, 0]], [[2, 0], [0, 3]], [[-2, 0], [-1, 0]]]
    last = blocks.compute(ArrayCapture(states, (2,)), tokens="last")
    assert_allclose(last["distance"], [[0.5, 0.5], [1, np.nan]], atol=1e-7)
    every = blocks.compute(ArrayCapture(states, (2,)), tokens="all")
    assert_allclose(every["distance"], [[0.25, 0.75], [1, np.nan]], atol=1e-7)
    for found in (last, every):
        assert_allclose(found["influence"], [(0 + 1) / 2, (2 + 1) / 2], atol=1e-7)
        assert np.isnan(found["influence_standard_error"]).all()
        assert np.isnan(found["least"]).all()


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_equals_a_loop_over_runs_and_tokens(tokens: Any) -> None:
    capture = random_capture(lengths=(5, 2, 12, 3, 7))
    pieces = sample_states(capture)
    ends = [range(one.shape[1]) if tokens == "all" else [one.shape[1] - 1] for one in pieces]
    sums = [distances(one, chosen) for one, chosen in zip(pieces, ends, strict=True)]
    weights = [len(chosen) for chosen in ends]
    found = blocks.compute(capture, tokens=tokens)
    assert_allclose(found["distance"], np.sum(sums, 0) / np.sum(weights), atol=1e-6)
    replicates = resample(sums, weights)
    assert_allclose(found["standard_error"], replicates.std(0, ddof=1), atol=1e-6)
    for name, expected in zip(
        ("low", "high"), hall_interval(found["distance"], replicates, 5, (0, 1)), strict=True
    ):
        assert_allclose(found[name], expected, atol=1e-6)
    for size in range(3):
        least = np.nanargmin(replicates[:, size], axis=1)
        share = [np.mean(least == first) if first + size < 3 else np.nan for first in range(3)]
        # Draws of which two are nearly equal.
        assert_allclose(found["least"][size], share, atol=2e-3)


def test_block_influence_equals_a_loop_over_steps_and_tokens() -> None:
    capture = random_capture(lengths=(5, 2, 12, 3, 7))
    sums = [
        np.array(
            [
                sum(1 - cosine(one[i, t], one[i + 1, t]) for t in range(one.shape[1]))
                for i in range(3)
            ]
        )
        for one in sample_states(capture)
    ]
    found = blocks.compute(capture)
    assert_allclose(found["influence"], np.sum(sums, 0) / 29, atol=1e-6)
    replicates = resample(sums, capture.sizes)
    assert_allclose(found["influence_standard_error"], replicates.std(0, ddof=1), atol=1e-6)
    assert_allclose(
        found["influence_low"],
        hall_interval(found["influence"], replicates, 5, (0, 2))[0],
        atol=1e-6,
    )


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_undefined_past_the_end_and_nowhere_else(tokens: Any) -> None:
    found = blocks.compute(random_capture(lengths=(4,) * 6, states=6), tokens=tokens)
    past = np.add.outer(np.arange(1, 6), np.arange(5)) > 5
    for name in ("distance", "standard_error", "low", "high", "least"):
        assert_array_equal(np.isnan(found[name]), past)
    assert_allclose(found["least"].sum("state"), 1)
    assert_allclose(found["least"].values[-1, 0], 1)


def test_steps_that_change_nothing_are_the_least() -> None:
    capture = random_capture(lengths=(4,) * 6, states=6)
    capture.array[3] = capture.array[2]
    capture.array[4] = 2 * capture.array[2]
    found = blocks.compute(capture)
    assert found["least"].sel(size=2).values.tolist()[:4] == [0, 0, 1, 0]
    assert_allclose(found["distance"].sel(size=2)[2], 0, atol=2e-4)
    assert_allclose(found["influence"][2:4], 0, atol=1e-6)


def test_long_samples_are_taken_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = random_capture(lengths=(30, 7, 13))
    whole = blocks.compute(capture, tokens="all")
    monkeypatch.setattr(blocks, "PIECE", 4)
    xr.testing.assert_allclose(blocks.compute(capture, tokens="all"), whole, rtol=1e-9)


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_a_capture_that_keeps_no_states_gives_the_same(
    tiny_folder: Path, tmp_path: Path, tokens: Any
) -> None:
    capture_options: dict[str, Any] = {
        "plan": ["baseline", "skip:start=1"],
        "limit": 8,
        "max_tokens": 20,
    }
    kept = repsim.capture(str(tiny_folder), out=tmp_path / "all.zarr", **capture_options)
    streamed = repsim.capture(
        str(tiny_folder),
        out=tmp_path / "no.zarr",
        keep="none",
        statistics="blocks",
        **capture_options,
    )
    for plan in capture_options["plan"]:
        first, second = (blocks.compute(one, plan=plan, tokens=tokens) for one in (kept, streamed))
        xr.testing.assert_identical(first, second)


def test_names() -> None:
    found = blocks.compute(random_capture(), plan="baseline")
    assert found["distance"].dims == ("size", "state")
    assert found["size"].values.tolist() == [1, 2, 3]
    assert found["layer"].values.tolist() == ["embed", "0", "1"]
    assert found["step_layer"].values.tolist() == ["0", "1", "2"]
    assert (found.attrs["distance_tokens"], found.attrs["tokens"], found.attrs["samples"]) == (
        "last",
        21,
        4,
    )


def test_a_state_of_zero_vectors_leaves_its_distances_undefined() -> None:
    capture = random_capture(lengths=(4,) * 6)
    capture.array[1] = 0
    found = blocks.compute(capture)
    assert_array_equal(
        np.isnan(found["distance"]), [[True, True, False], [False, True, True], [False, True, True]]
    )
    assert found["least"].sel(size=1).values[2] == 1


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_a_zero_vector_is_left_out_of_its_state_s_distances_alone_and_counted(
    tokens: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """State 1 is zero at the last token of the second sample and at another; state 2 at that last
    token.
    """
    capture = random_capture(lengths=(5, 2, 12, 3, 7), states=5)
    capture.array[1, [6, 9]] = capture.array[2, 6] = 0
    found = blocks.compute(capture, tokens=tokens)
    pieces = sample_states(capture)
    pairs = [(one[:, t], t == one.shape[1] - 1) for one in pieces for t in range(one.shape[1])]
    for size in range(1, 5):
        for first in range(5 - size):
            a, b = first, first + size
            both = [
                (s[a], s[b])
                for s, last in pairs
                if s[a].any() and s[b].any() and (last or tokens == "all")
            ]
            assert found["distance"].values[size - 1, first] == pytest.approx(
                np.mean([angle(*p) for p in both]), abs=1e-6
            )
    for step in range(4):
        both = [(s[step], s[step + 1]) for s, _ in pairs if s[step].any() and s[step + 1].any()]
        assert found["influence"].values[step] == pytest.approx(
            np.mean([1 - cosine(*p) for p in both]), abs=1e-6
        )
    assert np.isfinite(found["influence_low"]).all()
    assert found.attrs["left_out_tokens"] == 2
    assert "blocks of plan name of baseline: 2 tokens left out" in caplog.text
    assert "2 zero vectors left out" in blocks.plot(found).caption


def test_what_is_not_finite_stays_undefined() -> None:
    capture = random_capture(lengths=(4,) * 6)
    capture.array[1, 2, 0] = np.inf
    found = blocks.compute(capture, tokens="all")
    assert np.isnan(found["influence"]).values.tolist() == [True, True, False]
    assert found.attrs["left_out_tokens"] == 0


def test_plot_marks_the_least_of_each_size() -> None:
    found = blocks.compute(random_capture())
    (marks,) = blocks.plot(found).axes[0].lines
    assert_array_equal(marks.get_xdata(), np.nanargmin(found["distance"], axis=1))


def test_an_unknown_choice_of_tokens() -> None:
    with pytest.raises(RepsimError, match="tokens='first': choose last or all"):
        blocks.compute(random_capture(), tokens="first")


def test_a_plan_without_layers() -> None:
    with pytest.raises(RepsimError, match="'name of empty' runs no layer"):
        blocks.compute(random_capture(states=1), plan="empty")


def test_too_few_resamples() -> None:
    with pytest.raises(RepsimError, match="resamples=1: at least 2"):
        blocks.compute(random_capture(), resamples=1)
