"""Drift: a plan's states among the baseline's, by hand and against slow loops."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import repsim
from repsim.analyses import drift
from repsim.errors import RepsimError
from support.captures import ArrayCapture, hall_interval, random_capture, resample, sample_states

BASE = ["embed", "0", "1", "2", "3"]


def two_plans(
    steps: Sequence[str] = ("embed", "0", "3"),
    lengths: Sequence[int] = (5, 2, 12, 3),
    seed: int = 0,
) -> ArrayCapture:
    capture = random_capture(lengths, states=5, seed=seed)
    other = random_capture(lengths, states=len(steps), seed=seed + 50).array
    return ArrayCapture(capture.array, lengths, other=(list(steps), other))


@pytest.mark.parametrize(
    ("steps", "pairs"),
    [
        (BASE, [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        (["embed", "0", "3"], [(0, 0), (1, 1), (2, 4)]),  # skip
        (["embed", "0", "(1|2)", "3"], [(0, 0), (1, 1), (3, 4)]),  # parallel
        (["embed", "0", "1.mlp", "2", "3"], [(0, 0), (1, 1), (3, 3), (4, 4)]),  # half a layer
        (["embed", "0", "1", "1", "3"], [(0, 0), (1, 1), (2, 2), (3, 2), (4, 4)]),  # a layer twice
        # Backwards: the last is the last.
        (["embed", "3", "2", "1", "0"], [(0, 0), (1, 4), (2, 3), (3, 2), (4, 4)]),
        (["embed", "(0|1|2|3)"], [(0, 0), (1, 4)]),
        (["embed"], [(0, 4)]),
    ],
)
def test_counterparts_by_hand(steps: Any, pairs: Any) -> None:
    own, other = drift.counterparts(steps, BASE)
    assert list(zip(own.tolist(), other.tolist(), strict=True)) == pairs


def test_by_hand() -> None:
    """Two tokens: one is where it was, the other as far from there as it was long, at right angles
    to the rest.
    """
    base = [[[1, 0], [0, 2]], [[3, 0], [0, 4]]]
    other = [[[1, 0], [0, 2]], [[3, 0], [0, 8]]]
    found = drift.compute(ArrayCapture(base, (2,), other=(["embed", "0"], other)), plan="other")
    assert_allclose(found["distance"], [0, 0.5])
    assert_allclose(found["cosine"], [[1, 1], [1, 1]])
    other = [[[1, 0], [0, 2]], [[0, 3], [4, 0]]]
    found = drift.compute(ArrayCapture(base, (1, 1), other=(["embed", "0"], other)), plan="other")
    assert_allclose(found["distance"], [0, 2**0.5], rtol=1e-6)
    assert_allclose(found["cosine"], [[1, 1], [0, 0]])
    assert_allclose(found["distance_standard_error"], 0, atol=1e-7)


def test_the_baseline_does_not_drift_from_itself() -> None:
    found = drift.compute(random_capture())
    assert_array_equal(found["distance"], 0)
    assert_allclose(np.diagonal(found["cosine"]), 1, atol=1e-6)
    assert_array_equal(found["distance_standard_error"], 0)


def test_equals_a_loop_over_states_and_tokens() -> None:
    capture = two_plans()
    cosines, distances = [], []
    for own, base in zip(sample_states(capture, "other"), sample_states(capture), strict=True):
        tokens = range(own.shape[1])
        norm = np.linalg.norm
        cosines.append(
            np.array(
                [
                    [sum(a[t] @ b[t] / norm(a[t]) / norm(b[t]) for t in tokens) for b in base]
                    for a in own
                ]
            )
        )
        pairs = [(0, 0), (1, 1), (2, 4)]
        distances.append(
            np.array(
                [
                    sum(norm(own[i, t] - base[j, t]) / norm(base[j, t]) for t in tokens)
                    for i, j in pairs
                ]
            )
        )
    found = drift.compute(capture, plan="other")
    for name, sums in (("cosine", cosines), ("distance", distances)):
        assert_allclose(found[name], np.sum(sums, 0) / 22, atol=1e-6)
        replicates = resample(sums, capture.sizes)
        assert_allclose(found[f"{name}_standard_error"], replicates.std(0, ddof=1), atol=1e-6)
        bounds = (-1, 1) if name == "cosine" else (0, np.inf)
        ends = hall_interval(found[name], replicates, 4, bounds)
        for end, expected in zip(("low", "high"), ends, strict=True):
            assert_allclose(found[f"{name}_{end}"], expected, atol=1e-6)


def test_what_has_no_counterpart_has_no_distance() -> None:
    found = drift.compute(two_plans(["embed", "0", "(1|2)", "2.mlp", "3"]), plan="other")
    for name in ("distance", "distance_standard_error", "distance_low", "distance_high"):
        assert np.isnan(found[name]).values.tolist() == [False, False, True, True, False]
    assert np.isfinite(found["cosine"]).all()


def test_one_sample_has_no_standard_error() -> None:
    found = drift.compute(two_plans(lengths=(9,)), plan="other")
    assert np.isnan(found["cosine_standard_error"]).all()
    assert np.isnan(found["distance_high"]).all()
    assert np.isfinite(found["distance"]).all()


def test_float16_states_do_not_overflow() -> None:
    base = np.full((2, 3, 8), 6e4, np.float16)
    found = drift.compute(ArrayCapture(base, (3,), other=(["embed", "0"], -base)), plan="other")
    assert_allclose(found["distance"], 2, rtol=1e-6)
    assert_allclose(found["cosine"], -1, rtol=1e-6)


def test_a_real_capture(tiny_folder: Path, tmp_path: Path) -> None:
    """States before the plan departs from the baseline are the baseline's own nodes."""
    plans = ["baseline", "skip:start=1", "parallel:start=1", "drop:layer=2,part=attn"]
    capture = repsim.capture(
        str(tiny_folder), plan=plans, limit=4, max_tokens=20, out=tmp_path / "c.zarr"
    )
    for plan in plans:
        found = drift.compute(capture, plan=plan)
        own, base = capture.hidden(plan).values.astype(float), capture.hidden().values.astype(float)
        apart = (
            np.linalg.norm(own[-1] - base[-1], axis=1) / np.linalg.norm(base[-1], axis=1)
        ).mean()
        assert found["distance"].values[-1] == pytest.approx(apart, abs=1e-6)
        assert_array_equal(found["distance"][:3], 0)  # embed, 0 and 1
        assert (apart > 0.01) == (plan != "baseline")
        assert found["layer_baseline"].values.tolist() == ["embed", *"012345"]


def test_names() -> None:
    found = drift.compute(two_plans(), plan="other")
    assert found["cosine"].dims == ("state", "state_baseline")
    assert found["layer"].values.tolist() == ["embed", "0", "3"]
    assert found["layer_baseline"].values.tolist() == BASE
    assert (found.attrs["analysis"], found.attrs["plan"]) == ("drift", "name of other")
    assert (found.attrs["tokens"], found.attrs["samples"]) == (22, 4)


def test_plot_draws_both() -> None:
    figure = drift.plot(drift.compute(two_plans(), plan="other"))
    assert figure.axes[0].images[0].get_array().shape == (3, 5)


def test_a_capture_without_the_baseline(tiny_folder: Path, tmp_path: Path) -> None:
    capture = repsim.capture(
        str(tiny_folder), plan="skip:start=1", limit=2, max_tokens=9, out=tmp_path / "c.zarr"
    )
    with pytest.raises(RepsimError, match="plan 'baseline' is not in"):
        drift.compute(capture, plan="skip:start=1")


def test_a_capture_without_states(tiny_folder: Path, tmp_path: Path) -> None:
    kept: dict[str, Any] = {"keep": "none", "statistics": "norms", "limit": 2, "max_tokens": 9}
    with pytest.raises(RepsimError, match="capture with --keep all"):
        drift.compute(repsim.capture(str(tiny_folder), out=tmp_path / "c.zarr", **kept))


def test_too_few_resamples() -> None:
    with pytest.raises(RepsimError, match="resamples=1: at least 2"):
        drift.compute(random_capture(), resamples=1)


def test_a_zero_vector_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The baseline's last state is zero at two tokens, the plan's second at one: nothing is a share
    of no length.
    """
    capture = two_plans()
    capture.array[4, [3, 9]] = 0
    capture.others["other"][1][1, 5] = 0
    found = drift.compute(capture, plan="other")
    own, base = (capture.states(plan).astype(float) for plan in ("other", "baseline"))
    norm = np.linalg.norm
    for i, j in np.ndindex(3, 5):
        pairs = [(a, b) for a, b in zip(own[i], base[j], strict=True) if a.any() and b.any()]
        assert found["cosine"][i, j] == pytest.approx(
            np.mean([a @ b / norm(a) / norm(b) for a, b in pairs]), abs=1e-6
        )
    for i, j in ((0, 0), (1, 1), (2, 4)):
        pairs = [(a, b) for a, b in zip(own[i], base[j], strict=True) if b.any()]
        assert found["distance"][i] == pytest.approx(
            np.mean([norm(a - b) / norm(b) for a, b in pairs]), abs=1e-6
        )
    assert found.attrs["left_out_tokens"] == 3  # of the cosine of the two states
    assert "drift of plan name of other: 3 tokens left out" in caplog.text
