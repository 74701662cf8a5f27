"""Statistics made where the states are, as on a graphics card, against those made by numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import repsim
from repsim.captures import path_statistics, write_queue
from repsim.captures.path_statistics import PathStatistics
from repsim.stats.per_sample import SampleStatistic, runs_anywhere

PLANS = ["baseline", "skip:start=1", "looped_parallel:start=1,loops=2"]
TEXTS = ["one", "two texts of one length", "too texts of one length", "a text that is longer than"]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if states lay on a graphics card."""
    for module in (path_statistics, write_queue):
        monkeypatch.setattr(module, "are_made_on", lambda device: True)


def stored(capture: repsim.Capture) -> dict[tuple[str, str], NDArray[Any]]:
    """Every statistic of every plan, as the store has it: `[sample, value]`."""
    found = {}
    for name in capture.dataset.attrs["statistics"]:
        statistic = next(
            item
            for item in repsim.registry.statistics_of([name.split(".")[0]])
            if item.name == name
        )
        for plan in PLANS:
            rows = [values for _, values in capture.per_sample(plan, statistic)]
            found[name, plan] = np.stack(rows)
    return found


@pytest.mark.parametrize("rule", ["all", "every:2", "mean"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_capture_without_states(
    tiny_folder: Path, tmp_path: Path, dtype: str, rule: str, request: pytest.FixtureRequest
) -> None:
    def capture(name: str) -> dict[tuple[str, str], NDArray[Any]]:
        return stored(
            repsim.capture(
                str(tiny_folder),
                plan=PLANS,
                corpus=TEXTS,
                tokens=rule,
                dtype=dtype,
                keep="none",
                statistics="blocks,cosine,norms,similarity",
                out=tmp_path / name,
            )
        )

    expected = capture("numpy.zarr")
    request.getfixturevalue("on_device")
    given = capture("device.zarr")
    assert given.keys() == expected.keys()
    for key, values in expected.items():
        tolerance = 2e-3 if key[0] == "blocks.distances" else 1e-5  # arccos near 1
        assert_allclose(given[key], values, rtol=1e-5, atol=tolerance, err_msg=str(key))


def test_samples_keep_their_order_and_lengths_go_together(on_device: None) -> None:
    calls = []

    @runs_anywhere
    def first_values(states: Any) -> Any:
        calls.append(tuple(states.shape))
        return states[..., :, 0, 0].double()

    statistics = [
        SampleStatistic("here.first", first_values),
        SampleStatistic("elsewhere.first", lambda states: states[:, 0, 0].astype(np.float64)),
    ]
    lengths = [3, 1, 3, 2]
    path = PathStatistics([-1, 0, 0], statistics, lengths)
    states = torch.arange(3 * 9 * 2.0).reshape(3, 9, 2)
    for node in range(2):
        path.add(node, states[node])
    taken = path.take()
    assert calls == [(2, 2, 3, 2), (1, 2, 1, 2), (1, 2, 2, 2)]
    starts = [0, 3, 4, 7]
    for values in taken.values():
        assert_array_equal(values, states[:2, starts, 0].T)

    # A second child of the root takes the first one's place.
    path.add(2, states[2])
    assert_array_equal(path.take()["here.first"], states[[0, 2]][:, starts, 0].T)


def test_products_are_of_full_precision_whatever_was_chosen(on_device: None) -> None:
    seen = []

    @runs_anywhere
    def look(states: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return states.sum((-1, -2, -3))[:, None]

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        path = PathStatistics([-1], [SampleStatistic("a.look", look)], [2])
        path.add(0, torch.ones(2, 3))
        path.take()
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_narrow_states_are_handed_over_as_they_were_computed(
    tiny_folder: Path, tmp_path: Path, on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 states, which float32 holds exactly, are multiplied as bfloat16."""
    dtypes = []
    add = PathStatistics.add

    def note(self: PathStatistics, node: int, hidden: torch.Tensor) -> None:
        dtypes.append(hidden.dtype)
        add(self, node, hidden)

    monkeypatch.setattr(PathStatistics, "add", note)
    for dtype, seen in (("float32", torch.bfloat16), ("float16", torch.float16)):
        dtypes.clear()
        repsim.capture(
            str(tiny_folder),
            corpus=TEXTS,
            model_dtype="bfloat16",
            dtype=dtype,
            keep="none",
            statistics="norms",
            out=tmp_path / f"{dtype}.zarr",
        )
        assert set(dtypes) == {seen}


def test_what_does_not_fit_is_refused(
    tiny_folder: Path, tmp_path: Path, on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = write_queue.StateSink._kept
    monkeypatch.setattr(
        write_queue.StateSink, "_kept", lambda self, values, mean: 1e6 + kept(self, values, mean)
    )
    with pytest.raises(repsim.RepsimError, match="does not fit float16; use --dtype float32"):
        repsim.capture(
            str(tiny_folder),
            corpus=TEXTS,
            dtype="float16",
            keep="none",
            statistics="norms",
            out=tmp_path / "c.zarr",
        )
