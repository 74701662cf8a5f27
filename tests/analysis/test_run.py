"""`repsim.analyze`: what the command does, in a notebook."""

import functools
import inspect
import logging
import shutil
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import xarray as xr

import repsim
from repsim.analyses import degradation
from repsim.registry import AnalysisKind
from support.analyses import KINDS, StoreOf
from support.cli import files, main, plug_in

COUNT = """
import xarray as xr
from repsim.plotting import Figure
from repsim.registry import AnalysisKind

KIND = AnalysisKind.PLANS


def compute(capture, *, plan=(), least: int = 0):
    '''Counts steps.

    Args:
        plan: which.
        least: number.
    '''
    names = list(plan) or [named.name for named in capture.plans]
    steps = [len(capture.steps(name)) for name in names]
    return xr.Dataset({"steps": ("plan", steps)}, attrs={"model": capture.identity["model"]})


def plot(found):
    return {"one": Figure(), "two": Figure()}
"""


@pytest.mark.parametrize("analysis", ["norms", "clusters", "degradation"])
def test_a_notebook_gets_what_the_command_writes(
    analysis: str, store_of: StoreOf, tmp_path: Path
) -> None:
    path, folder = store_of(KINDS[analysis]), tmp_path / "figures"
    command = ("analyze", analysis, path, "--resamples", 20, "--figures", folder)
    assert main(*command, "--quiet") == 0
    (group,) = filter(Path.is_dir, (path / "analyses").iterdir())
    kept = xr.load_dataset(group, engine="zarr", consolidated=False)
    shutil.rmtree(group)

    analysis_in_notebook = repsim.analyze(analysis, path, resamples=20)
    (result,) = analysis_in_notebook.results
    again = xr.load_dataset(group, engine="zarr", consolidated=False)
    del kept.attrs["repsim_digests"], again.attrs["repsim_digests"]
    xr.testing.assert_identical(kept, again)
    xr.testing.assert_equal(kept, result)
    pictures = {Path(name).stem for name in files(folder) if name.endswith(".png")}
    assert set(analysis_in_notebook.figures) == pictures
    assert all(
        isinstance(figure, matplotlib.figure.Figure)
        for figure in analysis_in_notebook.figures.values()
    )
    assert analysis_in_notebook.files == []


def test_results_are_in_the_order_of_plans_and_then_of_stores(store: Path, deeper: Path) -> None:
    plans = ["baseline", "0, 1"]
    stores = [repsim.open(store), str(store)]
    with pytest.raises(repsim.PlanError, match="is not in"):
        repsim.analyze("norms", [store, deeper], plan=plans, resamples=20)
    found = repsim.analyze(
        "norms", stores, plan=["baseline", "skip:start=1"], labels=["a", "b"], resamples=20
    )
    attributes = [(result.attrs["plan"], result.attrs["label"]) for result in found.results]
    assert attributes == [
        ("baseline", "a"),
        ("baseline", "b"),
        ("skip:start=1", "a"),
        ("skip:start=1", "b"),
    ]
    assert list(found.figures) == [
        "norms-a-baseline-resamples=20+b-baseline-resamples=20",
        "norms-a-skip-start=1-resamples=20+b-skip-start=1-resamples=20",
    ]


def test_files_are_written_where_a_folder_is_named(store: Path, tmp_path: Path) -> None:
    found = repsim.analyze("norms", store, figures=tmp_path, resamples=20)
    assert sorted(path.name for path in found.files) == files(tmp_path)
    assert [path.suffix for path in found.files] == [".nc", ".png", ".pdf", ".txt"]
    xr.testing.assert_equal(found.results[0], xr.load_dataset(found.files[0], engine="scipy"))


def test_parts_arrive_as_they_are_finished_and_add_up(store: Path) -> None:
    parts: list[repsim.Analysis] = []
    found = repsim.analyze("norms", [store], plan="fig4", resamples=20, progress=parts.append)
    assert [bool(part.results) for part in parts[:4]] == [True, False, True, False]
    assert [line for part in parts for line in part.lines] == found.lines
    assert [result for part in parts for result in part.results] == found.results
    assert len(found.results) == len(repsim.open(store).plans)


def test_it_says_what_it_is(store: Path) -> None:
    found = repsim.analyze("norms", store, resamples=20)
    first, *lines = repr(found).splitlines()
    assert first == "<repsim.Analysis norms: 1 result, 1 figure>"
    assert lines[0] == f"  norms of {store} (plan baseline, resamples 20)"
    assert lines[1].startswith("    result: ")
    assert lines[2].split() == ["layer", "norm", "[95", "%]"]
    (table,) = found.tables
    assert len(lines) == 2 + 1 + len(table)
    picture = found._repr_png_()
    assert picture is not None
    assert picture.startswith(b"\x89PNG")


def test_a_store_that_cannot_be_written_gets_a_remark(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "somebodys.zarr"
    shutil.copytree(store, copy, ignore=shutil.ignore_patterns("analyses"))
    (copy / "analyses").touch()
    with pytest.warns(UserWarning, match="not recognized"), caplog.at_level(logging.WARNING):
        found = repsim.analyze("norms", copy, resamples=20)
    (remark,) = found.remarks
    assert remark.startswith(f"result not kept with the store: {copy}: cannot be written")
    assert caplog.messages == [remark]
    assert len(found.results) == 1
    assert f"remark: {remark}" in repr(found)


def test_an_analysis_of_several_plans_is_computed_once(
    store: Path, deeper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, "count", COUNT)
    monkeypatch.syspath_prepend(tmp_path)
    every = repsim.analyze("count", store)
    assert every.results[0].sizes["plan"] == len(repsim.open(store).plans)
    assert every.tables == []  # it has no `summarise`
    some = repsim.analyze("count", [store, deeper], plan=["baseline"], figures=tmp_path / "f")
    assert [result["steps"].values.tolist() for result in some.results] == [[7], [7]]
    assert len(some.figures) == 4
    assert {name.rpartition("-")[2] for name in some.figures} == {"one", "two"}
    options = ("--plan", "baseline", "--plan", "skip:start=1", "--least", 3, "--quiet")
    assert main("analyze", "count", store, *options, "--figures", tmp_path / "g") == 0
    (data,) = (name for name in files(tmp_path / "g") if name.endswith(".nc"))
    assert xr.load_dataset(tmp_path / "g" / data, engine="scipy").sizes["plan"] == 2
    assert "baseline-skip-start=1-least=3" in data


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("cosines", {}, "did you mean cosine?"),
        ("cosine", {"averge": "token"}, "cosine: no option 'averge'; did you mean average?"),
        ("cosine", {"figure": 2}, "cosine: no option 'figure'"),
        ("cosine", {"plan": "skipp:start=1"}, "did you mean skip"),
        ("cosine", {"labels": ["a", "b"]}, "--label: 2 for 1 stores"),
        ("cosine", {"style": "nonesuch"}, "style 'nonesuch': no such file"),
        ("cosine", {"format": "gif"}, "format 'gif': choose png, pdf or svg, several with commas"),
        ("cosine", {"width": "poster"}, "width 'poster': choose auto, column, page or slide"),
        ("cosine", {"dpi": 3}, "dpi=3: at least 10"),
        ("cosine", {"vmin": 1, "vmax": 0}, "vmin=1, vmax=0: vmin is the smaller one"),
        ("norms", {"vmin": 0}, "norms: no option 'vmin'; it draws no heat map"),
        ("degradation", {}, "made by repsim evaluate"),
    ],
)
def test_wrong_input_says_what_to_do(
    name: str, options: dict[str, object], says: str, store: Path
) -> None:
    with pytest.raises(repsim.RepsimError) as problem:
        repsim.analyze(name, store, **options)  # type: ignore[arg-type]
    assert says in str(problem.value)


def test_a_figure_that_there_is_not_is_refused_before_anything_is_computed(
    store_of: StoreOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(degradation.compute)
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(degradation, "compute", refuse)
    with pytest.raises(repsim.RepsimError, match=r"^figure='12': choose all, plans, 2, 4"):
        repsim.analyze("degradation", store_of(AnalysisKind.SCORES), figure="12")


def test_options_of_figures(store: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"title": "Mine", "format": "svg", "width": "page", "vmin": -1}
    found = repsim.analyze("cosine", store, figures=tmp_path, resamples=20, **options)
    (figure,) = found.figures.values()
    assert figure.get_suptitle() == "Mine"
    assert figure.get_figwidth() == 6.9
    assert [path.suffix for path in found.files] == [".nc", ".svg", ".txt"]
    assert f"  caption: {found.files[-1]}" in found.lines
    assert "20 resamples" in found.files[-1].read_text()
    assert found.results[0].attrs["resamples"] == 20
    assert "style" in inspect.signature(repsim.analyze).parameters


def test_figures_that_are_left_out_are_remarked_on(
    store_of: StoreOf, caplog: pytest.LogCaptureFixture
) -> None:
    found = repsim.analyze("degradation", store_of(AnalysisKind.SCORES), resamples=20)
    (remark,) = found.remarks
    assert remark.startswith("not drawn: fig5, fig6, ")
    assert "(missing plans); evaluate with" in remark
    assert remark in caplog.messages


def test_no_store_is_refused() -> None:
    with pytest.raises(repsim.RepsimError, match="norms: no store; name at least one"):
        repsim.analyze("norms", [])


def test_a_kind_that_reads_a_capture_says_so() -> None:
    assert AnalysisKind.PLANS.reads == "a capture"
