"""Analyses on a device, where torch makes the sums, against the same by numpy."""

from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from numpy.testing import assert_allclose

import repsim
from repsim.captures import arithmetic
from repsim.registry import AnalysisKind
from support.analyses import StoreOf
from support.cli import main

CASES: list[tuple[str, dict[str, Any]]] = [
    ("cosine", {"average": "token"}),
    ("cosine", {"average": "sequence"}),
    ("cosine", {"average": "centred"}),
    ("cosine", {"average": "without-sinks"}),
    ("norms", {}),
    ("blocks", {}),
    ("similarity", {"measure": "minibatch-cka"}),
]


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device is asked for, torch computes, on the CPU."""
    monkeypatch.setattr(arithmetic, "_find_device", lambda device: "cpu")


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_same_numbers(
    name: str, options: dict[str, Any], store: Path, request: pytest.FixtureRequest
) -> None:
    (expected,) = repsim.analyze(name, store, resamples=20, device="cpu", **options).results
    applied = []
    apply = arithmetic.Arithmetic.apply

    def note(self: Any, statistic: Any, runs: Any) -> Any:
        applied.append(statistic.name)
        return apply(self, statistic, runs)

    request.getfixturevalue("by_torch")
    request.getfixturevalue("monkeypatch").setattr(arithmetic.Arithmetic, "apply", note)
    (given,) = repsim.analyze(name, store, resamples=20, device="auto", **options).results
    assert applied
    assert given.attrs == expected.attrs
    for variable in expected.data_vars:
        if expected[variable].dtype.kind == "f":
            # Angles near 0 are as exact as the root of a cosine's rounding.
            tolerance = 5e-4 if name == "blocks" else 2e-6
            assert_allclose(given[variable], expected[variable], rtol=2e-6, atol=tolerance)


def test_results_say_where_they_were_made(store: Path) -> None:
    cases: dict[str, dict[str, Any]] = {"cosine": {}, "similarity": {"items": 8, "permutations": 3}}
    for name, options in cases.items():
        (result,) = repsim.analyze(name, store, resamples=20, **options).results
        assert result.attrs["device"] == "cpu"


def test_a_capture_by_itself_is_read_by_numpy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic.Arithmetic, "apply", None)
    from repsim.analyses import norms

    assert isinstance(norms.compute(repsim.open(store), resamples=20), xr.Dataset)


def test_a_device_that_is_not_there(store: Path, store_of: StoreOf) -> None:
    with pytest.raises(repsim.RepsimError, match="device 'cuda:99': not to be had here"):
        repsim.analyze("norms", store, device="cuda:99")
    scores = store_of(AnalysisKind.SCORES)
    with pytest.raises(repsim.RepsimError, match="degradation: no option 'device'; it reads"):
        repsim.analyze("degradation", scores, device="cuda")


def test_the_option(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("--resamples", 20, "--figures", tmp_path, "--quiet")
    assert main("analyze", "norms", store, "--device", "cpu", *ask) == 0
    assert main("analyze", "norms", store, "--device", "tpu", *ask) != 0
    assert "device 'tpu': not to be had here" in capsys.readouterr().err
