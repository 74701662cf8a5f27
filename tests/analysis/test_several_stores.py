"""Results that are of several stores: how they are named, kept, labelled and refused."""

import re
import shutil
from pathlib import Path

import pytest
import xarray as xr

import repsim
from repsim.registry import AnalysisKind
from support.analyses import StoreOf
from support.cli import files, main

RESAMPLES = ("--resamples", 20)


@pytest.fixture
def pair(store_of: StoreOf) -> tuple[Path, Path]:
    """A store of scores and its copy."""
    first = store_of(AnalysisKind.SCORES_TOGETHER)
    second = first.with_name("tuned.zarr")
    shutil.copytree(first, second)
    return first, second


def kept_results(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "analyses").iterdir() if path.is_dir())


def test_one_result_of_all_kept_with_the_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    analysis = repsim.analyze(
        "compare", pair, plan=["baseline", "skip:start=1"], resamples=20, figures=tmp_path / "f"
    )
    (result,) = analysis.results
    assert result["store"].values.tolist() == [
        "tiny-llama (scores_together)",
        "tiny-llama (tuned)",
    ]
    assert result["plan"].values.tolist() == ["baseline", "skip:start=1"]
    assert len(files(tmp_path / "f")) == 4
    (name,) = kept_results(pair[0])
    assert name.startswith("compare-acc-baseline-skip-start=1-resamples=20-with-tiny-llama-")
    kept = xr.load_dataset(pair[0] / "analyses" / name, engine="zarr", consolidated=False)
    # What a store holds does not depend on what it was drawn with.
    assert kept["store"].values.tolist() == ["tiny-llama", "tiny-llama (2)"]
    xr.testing.assert_equal(kept["score"].drop_vars("store"), result["score"].drop_vars("store"))
    assert not any(path.is_dir() for path in (pair[1] / "analyses").iterdir())
    assert str(pair[1]) in analysis.lines[0]


def test_two_pairs_of_stores_do_not_share_a_result(pair: tuple[Path, Path]) -> None:
    first, second = pair
    tuned = repsim.open(second)
    tuned.dataset.attrs["identity"] = {**tuned.identity, "weights": "other"}
    for others in ([tuned], [first], [tuned, first]):
        repsim.analyze("compare", [first, *others], resamples=20, plan="baseline")
    assert len(kept_results(first)) == 3
    repsim.analyze("compare", [first, second], resamples=20, plan="baseline")
    assert len(kept_results(first)) == 3  # a copy of the first, wherever it lies


def test_labels(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("--label", "before", "--label", "after", "--plan", "baseline")
    assert main("analyze", "compare", *pair, *RESAMPLES, *ask, "--figures", tmp_path / "f") == 0
    shown = capsys.readouterr().out
    assert set(re.findall(r"^baseline .*  (before|after|tiny.*)  ", shown, re.M)) == {
        "before",
        "after",
    }
    assert files(tmp_path / "f") == [
        f"compare-before+after-acc-baseline-resamples=20.{suffix}"
        for suffix in ("nc", "pdf", "png", "txt")
    ]
    with xr.open_dataset(next((tmp_path / "f").glob("*.nc")), engine="scipy") as result:
        assert result["store"].values.tolist() == ["before", "after"]


def test_states_of_a_second_capture(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "later.zarr"
    shutil.copytree(store, copy)
    for name in kept_results(copy):  # of other tests
        shutil.rmtree(copy / "analyses" / name)
    ask = ("--plan", "skip:start=1", "--permutations", 3, *RESAMPLES, "--figures", tmp_path / "f")
    assert main("analyze", "similarity", copy, "--with", store, *ask, "--quiet") == 0
    (name,) = kept_results(copy)
    assert name.startswith("similarity-skip-start=1-with-tiny-llama-builtin-")
    with xr.open_dataset(next((tmp_path / "f").glob("*.nc")), engine="scipy") as result:
        labels = [result.attrs[name] for name in ("label", "label_other")]
    assert labels == ["tiny-llama (later)", "tiny-llama (tiny)"]
    again = repsim.analyze(
        "similarity",
        repsim.open(copy),
        with_=repsim.open(store),
        plan="skip:start=1",
        permutations=3,
        resamples=20,
    )
    assert kept_results(copy) == [name]
    assert again.lines[0].startswith(f"similarity of {copy} (plan skip:start=1, with {store}, ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "{scores}"], "compare: one store; name two or more"),
        (["compare", "{scores}", "{store}"], "holds a capture; compare reads scores"),
        (["compare", "{scores}", "{scores}", "--metric", "f2"], "metric='f2': no task here has it"),
        (["compare", "{scores}", "{scores}", "--plan", "0, 1"], "--plan 0, 1: no plan that every"),
        (["compare", "{scores}", "{scores}", "--label", "a"], "--label: 1 for 2 stores"),
        (["similarity", "{store}", "--with", "{scores}"], "holds scores; similarity reads a"),
        (["similarity", "{store}", "--with", "{deeper}"], "have different tokenizers"),
        (["similarity", "{store}", "--with", "{none}"], "no such store"),
        (["similarity", "{store}", "--with-store", "{store}"], "No such option"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str],
    says: str,
    store: Path,
    deeper: Path,
    scores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"store": store, "deeper": deeper, "scores": scores, "none": tmp_path / "none.zarr"}
    ask = [argument.format(**places) for argument in arguments]
    assert main("analyze", *ask, "--figures", tmp_path / "f") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("repsim: ")
    assert says in line
    assert not (tmp_path / "f").exists()
