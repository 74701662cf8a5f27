"""Plans of one's own from capture to analysis: kept, found again and computed under their names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim
from repsim.captures.reader import Capture
from repsim.errors import PlanError, RepsimError, StoreError
from repsim.models import Model, load
from repsim.plans import Plan

LATE = "0-2, 5"
TEXTS = "the of and\nto in the a\nthat is was he\n"


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(tiny_folder)


@pytest.fixture
def asked(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text(TEXTS)
    return {"model": model, "corpus": "own.txt", "out": "c.zarr", "dtype": "float32"}


def test_a_name_is_kept_and_finds_the_plan(asked: dict[str, Any]) -> None:
    plans: dict[str, str | Plan] = {"late": LATE, "pair": Plan.from_steps([0, (1, 2), 5])}
    capture = repsim.capture(**asked, plan=plans)
    assert [named.name for named in capture.plans] == ["late", "pair"]
    for text in (LATE, "0,1,2,5", f"x={LATE}", Plan.from_steps([0, 1, 2, 5])):
        np.testing.assert_array_equal(capture.hidden("late"), capture.hidden(text))
    assert capture.plan_name(LATE) == "late"
    assert capture.plan_text("pair") == "0, (1|2), 5"
    assert capture.steps("pair") == ["embed", "0", "(1|2)", "5"]
    with pytest.raises(PlanError, match=r"^'lat': unknown; did you mean late\? "):
        capture.hidden("lat")
    with pytest.raises(PlanError, match=r"^all: stands for 2 plans; name one"):
        capture.hidden("all")


def test_a_store_keeps_what_was_in_the_file(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "own.yml").write_text(f"late: {LATE}\nshort: skip:start=1\n")
    capture = repsim.capture(**asked, plan=["baseline", f"@{folder / 'own.yml'}"])
    (request,) = capture.dataset.attrs["requests"]
    assert request["plan"] == ["baseline", f"late={LATE}", "short=skip:start=1"]
    assert "secret" not in json.dumps(capture.dataset.attrs)
    assert f"--plan 'late={LATE}'" in capture.commands[0]
    # The same again, and what the command says, find it complete.
    before = capture.dataset.attrs["requests"]
    for plan in (["baseline", f"@{folder / 'own.yml'}"], request["plan"], LATE, "skip:start=1"):
        assert repsim.capture(**asked, plan=plan).dataset.attrs["requests"] == before


def test_names_that_a_store_has_for_others(asked: dict[str, Any]) -> None:
    repsim.capture(**asked, plan=[f"late={LATE}", "skip:start=1"])
    for plan, message in (
        ("late=0-3", f"c.zarr: its late is {LATE}, not 0-3; give the plan another name"),
        (f"x={LATE}", "c.zarr: holds x as 'late'; ask for it by that, or choose another --out"),
        ("x=skip:start=1", "c.zarr: holds x as 'skip:start=1'; ask for it by that, or"),
    ):
        with pytest.raises(StoreError) as caught:
            repsim.capture(**asked, plan=plan, append=True)
        assert str(caught.value).startswith(message)
    capture = repsim.capture(**asked, plan=["later=0-3", "late=0-2, 5"], append=True)
    assert [named.name for named in capture.plans] == ["late", "skip:start=1", "later"]


def test_analyses_take_names_and_all(asked: dict[str, Any]) -> None:
    capture = repsim.capture(**asked, plan=[f"late={LATE}", "baseline"])
    Path("plans.txt").write_text(f"late={LATE}  # by name\nbaseline\n")
    for plan in ("all", "@plans.txt", {"late": LATE, "full": "0-5"}):
        results = repsim.analyze("norms", capture, plan=plan, resamples=20).results
        assert [result.attrs["plan"] for result in results] == ["late", "baseline"]
    (late,) = repsim.analyze("norms", capture, plan="late", resamples=20).results
    (text,) = repsim.analyze("norms", capture, plan=LATE, resamples=20).results
    np.testing.assert_array_equal(late["norm"], text["norm"])


def test_all_of_several_stores(asked: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Plans are paired by their names, in whatever order the stores have them."""
    pair: list[Capture] = []
    for out, plans in (("a.zarr", ["baseline", LATE]), ("b.zarr", [LATE, "baseline"])):
        pair.append(repsim.capture(**{**asked, "out": out}, plan=plans))
    results = repsim.analyze("norms", pair, plan="all", resamples=20).results
    assert [result.attrs["plan"] for result in results] == ["baseline"] * 2 + [LATE] * 2
    other = repsim.capture(**{**asked, "out": "o.zarr"}, plan=["baseline", "skip:start=1"])
    with pytest.raises(RepsimError, match=r"^--plan all: the stores hold other plans; name those"):
        repsim.analyze("norms", [pair[0], other], plan="all")


def test_drift_says_that_it_shows_the_baseline_itself(
    asked: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    capture = repsim.capture(**asked, plan=[f"late={LATE}", "baseline"])
    repsim.analyze("drift", capture, plan="late", resamples=20)
    assert "against itself" not in caplog.text
    repsim.analyze("drift", capture, resamples=20)
    assert "drift: shows the baseline against itself; --plan PLAN shows another" in caplog.text


def test_a_planned_model_follows_a_plan_of_a_file(asked: dict[str, Any]) -> None:
    slices = [{"sources": [{"model": "m", "layer_range": span}]} for span in ([0, 3], [5, 6])]
    Path("merge.json").write_text(json.dumps({"slices": slices}))
    assert repsim.planned(asked["model"], "@merge.json").plan.text == LATE
