"""`repsim analyze`: a command per analysis, its files, labels and errors."""

import functools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import repsim as repsim_library
from repsim.analyses import degradation
from repsim.cli.analyze import analysis_command, argument_help
from repsim.registry import AnalysisKind, draws_together, find_analysis
from support.analyses import KINDS, OF_STATES, StoreOf, stores_for
from support.cli import Call, files, main, plug_in, repsim

RESAMPLES = ("--resamples", 20)


def test_capture_and_analyze(store: Path, tmp_path: Path) -> None:
    done = repsim("analyze", "cosine", store, "--plan", "skip:start=0..1", "--figures", tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert [Path(name).suffix for name in drawn] == [".nc", ".pdf", ".png", ".txt"] * 2
    assert all(name in done.stdout for name in drawn)
    for plan in ("skip-start=0", "skip-start=1"):
        result = xr.open_zarr(store / "analyses" / f"cosine-{plan}-token", consolidated=False)
        assert result["cosine"].dims == ("state", "state_other")


def test_a_store_that_cannot_be_written_is_analysed_all_the_same(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one on a read-only file system; here a file lies where results go."""
    copied, figures = tmp_path / "somebodys.zarr", tmp_path / "figures"
    shutil.copytree(store, copied, ignore=shutil.ignore_patterns("analyses"))
    (copied / "analyses").touch()
    with pytest.warns(UserWarning, match="not recognized"):
        assert main("analyze", "norms", copied, "--plan", "skip:start=0", "--figures", figures) == 0
    told = capsys.readouterr()
    assert "  result:" not in told.out
    assert (
        f"result not kept with the store: {copied}: cannot be written: Not a directory" in told.err
    )
    assert [Path(name).suffix for name in files(figures)] == [".nc", ".pdf", ".png", ".txt"]


def test_every_analysis_is_installed() -> None:
    folder = Path(__file__).parents[2] / "analyses"
    assert sorted(path.stem for path in folder.glob("[!_]*.py")) == sorted(KINDS)


@pytest.mark.parametrize("analysis", KINDS)
def test_every_analysis_draws_a_figure_and_writes_the_data_next_to_it(
    analysis: str, store_of: StoreOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each on the store of its kind, see `support.analyses`."""
    folder = tmp_path / "new"
    stores = stores_for(analysis, store_of)
    assert main("analyze", analysis, *stores, *RESAMPLES, "--figures", folder) == 0
    names = files(folder)
    (data,) = (name for name in names if name.endswith(".nc"))
    pictures = [Path(name) for name in names if name != data]
    assert {path.suffix for path in pictures} == {".pdf", ".png", ".txt"}
    assert all(path.stem.startswith(Path(data).stem) for path in pictures)
    assert data.startswith(f"{analysis}-tiny-llama-")
    with xr.open_dataset(folder / data, engine="scipy") as result:
        assert result.attrs["analysis"] == analysis
        assert result.attrs["model"] == "tiny-llama"
    printed = capsys.readouterr().out
    assert all(str(folder / name) in printed for name in names)
    group = re.search(r"result: (\S+)", printed)
    assert group is not None
    assert Path(group[1]).is_dir()


@pytest.mark.parametrize("analysis", OF_STATES)
def test_two_stores_have_data_each_and_share_a_figure_where_the_analysis_can(
    analysis: str, store: Path, deeper: Path, tmp_path: Path
) -> None:
    options = (*RESAMPLES, "--figures", tmp_path, "--quiet")
    assert main("analyze", analysis, store, deeper, *options) == 0
    data = [name for name in files(tmp_path) if name.endswith(".nc")]
    pictures = [name for name in files(tmp_path) if not name.endswith(".nc")]
    models = {xr.open_dataset(tmp_path / name, engine="scipy").attrs["model"] for name in data}
    assert len(data) == 2
    assert models == {"tiny-llama", "tiny-bert"}
    if draws_together(find_analysis(analysis)):
        assert [Path(name).suffix for name in pictures] == [".pdf", ".png", ".txt"]
        assert all("tiny-llama" in name and "tiny-bert" in name for name in pictures)
    else:
        assert [Path(name).suffix for name in pictures] == [".pdf", ".png", ".txt"] * 2
        assert sum("tiny-bert" in name for name in pictures) == 3


@pytest.mark.parametrize("names", [("a", "b"), ("x/same", "y/same", "z/same")])
@pytest.mark.parametrize("analysis", ["norms", "blocks"])
def test_stores_of_the_same_model_and_corpus_do_not_overwrite_each_other(
    analysis: str, names: tuple[str, ...], store: Path, tmp_path: Path
) -> None:
    copies = [tmp_path / f"{name}.zarr" for name in names]
    for copy in copies:
        shutil.copytree(store, copy)
    figures = tmp_path / "figures"
    assert (
        main("analyze", analysis, *copies, "--resamples", 20, "--figures", figures, "--quiet") == 0
    )

    assert sum(name.endswith(".nc") for name in files(figures)) == len(names)
    drawn = 1 if analysis == "norms" else len(names)
    assert sum(name.endswith(".png") for name in files(figures)) == drawn


def test_several_plans_of_two_stores_are_drawn_plan_by_plan(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "b.zarr")
    ask = ["--plan", "baseline", "--plan", "skip:start=1", "--figures", tmp_path / "f", "--quiet"]
    assert main("analyze", "norms", store, tmp_path / "b.zarr", *ask) == 0
    assert [Path(name).suffix for name in files(tmp_path / "f")].count(".nc") == 4
    assert [Path(name).suffix for name in files(tmp_path / "f")].count(".png") == 2


def test_a_style_changes_the_figure_and_not_the_data(store: Path, tmp_path: Path) -> None:
    assert main("analyze", "norms", store, "--figures", tmp_path / "plain", "--quiet") == 0
    assert (
        main(
            "analyze",
            "norms",
            store,
            "--figures",
            tmp_path / "styled",
            "--style",
            "ggplot",
            "--quiet",
        )
        == 0
    )
    assert files(tmp_path / "plain") == files(tmp_path / "styled")
    for name in files(tmp_path / "plain"):
        plain, styled = ((tmp_path / folder / name).read_bytes() for folder in ("plain", "styled"))
        assert (plain == styled) == name.endswith((".nc", ".txt"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["norms", "{store}", "--style", "nonesuch"],
            "style 'nonesuch': no such file, and matplotlib knows",
        ),
        (["norms", "{store}", "--vmin", "0"], "--vmin"),
        (["cosine", "{store}", "--format", "png,gif"], "format 'png,gif': choose png, pdf or svg"),
        (["degradation", "{store}", "--figure", "12"], "--figure"),
        (["similarity", "{store}", "--measure", "ckaa"], "--measure"),
        (
            ["similarity", "{store}", "--measure", "minibatch-cka", "--items", "50"],
            "holds no items",
        ),
        (
            ["similarity", "{store}", "--measure", "mutual-knn", "--neighbours", "5000"],
            "5000 neighbours of",
        ),
        (["clusters", "{store}", "--of", "cosine"], "--of"),
        (["clusters", "{store}", "--groups", "1"], "groups=1: 7 states allow 2 to 6"),
        (["blocks", "{store}", "--tokens", "first"], "--tokens"),
        (["cosine", "{store}", "--resamples", "1"], "resamples=1: at least 2"),
        (["geometry", "{store}", "--items", "5"], "comparing takes at least 8"),
        (["similarity", "{store}", "--seed", "-1"], "seed"),
        (["geometry", "{store}", "--items", "-1"], "items"),
        (["norms", "{store}", "{none}"], "no such store"),
        (["norms", "{store}", "{deeper}", "--plan", "drop:layer=0..9"], ""),
        (["norms"], "STORE"),
        (["norms", "{store}", "--figures", "{file}"], "choose another --figures"),
    ],
)
def test_wrong_input_to_an_analysis_is_one_line_and_status_2(
    arguments: list[str],
    says: str,
    store: Path,
    deeper: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    places = {
        "store": store,
        "deeper": deeper,
        "none": tmp_path / "none.zarr",
        "file": tmp_path / "file",
    }
    options = [] if "--figures" in arguments else ["--figures", tmp_path / "figures"]
    assert main("analyze", *(argument.format(**places) for argument in arguments), *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("repsim: ")
    assert says in line
    assert files(tmp_path) == ["file"]


def test_models_in_which_a_plan_stands_for_different_numbers_of_plans(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "b.zarr")
    layers = repsim_library.open(store).layers

    def deeper_if_called_b(capture: repsim_library.Capture) -> int:
        return layers + 4 * (Path(str(capture.path)).stem == "b")

    monkeypatch.setattr(repsim_library.Capture, "layers", property(deeper_if_called_b))
    assert (
        main(
            "analyze",
            "norms",
            store,
            tmp_path / "b.zarr",
            "--plan",
            "fig4",
            "--figures",
            tmp_path / "f",
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"repsim: --plan fig4: \d+ for .*, \d+ for .* plans; name plans that every model has", line
    )
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("analysis", KINDS)
def test_help_says_something_of_every_option(analysis: str) -> None:
    command = analysis_command(analysis, find_analysis(analysis))
    options = {
        parameter.name: parameter
        for parameter in command.params
        if parameter.name not in ("help", "stores")
    }
    assert options.keys() >= {"figures", "style", "quiet"}
    assert ("plan" in options) == (KINDS[analysis] is not AnalysisKind.SCORES)
    for name, option in options.items():
        assert option.help, name
        assert option.help.endswith(".") or option.help[-1].isalnum(), option.help
    assert command.help


def test_degradation_draws_what_the_plans_give(
    scores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tiny random model is not above chance on anything; here it is taken to be."""

    @functools.wraps(degradation.compute)
    def lenient(*args: Any, **options: Any) -> xr.Dataset:
        found = compute(*args, **options)
        numbers = {
            name: values.fillna(0) for name, values in found.items() if values.dtype.kind == "f"
        }
        valid: xr.Dataset = found.assign({**numbers, "valid": ("task", [1, 1])})
        return valid

    compute = degradation.compute
    monkeypatch.setattr(degradation, "compute", lenient)
    assert main("analyze", "degradation", scores, "--resamples", 20, "--figures", tmp_path) == 0
    ends = {name.split("-")[-1] for name in files(tmp_path)}
    assert {"fig2.pdf", "fig2.png", "fig4.pdf", "fig4.png"} <= ends
    assert "fig10.png" not in ends
    capsys.readouterr()
    assert main("analyze", "degradation", scores, "--figure", 10, "--figures", tmp_path / "f") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fig10" in line


def test_latency_times_the_model(
    scores: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--resamples", 20, "--repeats", 1, "--tokens", 8, "--figures", tmp_path)
    assert main("analyze", "latency", scores, "--model", tiny_folder, *options) == 2
    assert (
        capsys.readouterr().err == "repsim: latency: none of 15 variants has a normalised score\n"
    )
    (name,) = files(tmp_path)  # the numbers are there, though there is nothing to draw
    with xr.open_dataset(tmp_path / name, engine="scipy") as data:
        assert (data["milliseconds"] > 0).all()
        assert data["critical_path"].values[0] == 6


def test_kinds_of_tasks_can_be_given(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = "grammar"
    asked = (
        "analyze",
        "degradation",
        scores,
        "--resamples",
        20,
        "--figure",
        2,
        "--figures",
        tmp_path,
    )
    main(*asked, "--kinds", f"{task}=knowledge")
    (data,) = tmp_path.glob("*.nc")
    with xr.open_dataset(data, engine="scipy") as found:
        assert found["task_kind"].values[0] == "knowledge"
        assert found["task_kind_from"].values[0] == "given"
    assert main(*asked, "--kinds", f"{task}=maths") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(f"repsim: kinds='{task}=maths': 'maths' is no kind; choose mathematics")


def test_an_options_help_comes_from_the_docstring() -> None:
    def compute() -> None:
        """Claim.

        Args:
            capture: a capture.
            plan: First line
                and second.

        Returns:
            other: no.
        """

    assert argument_help(compute) == {"capture": "a capture.", "plan": "First line and second."}


BROKEN = {
    "absent": ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named"),
    "unfinished": ("def compute(", "SyntaxError: "),
    "raising": ("raise RuntimeError('[/red] \\x1b[31m')", r"RuntimeError: [/red] \\x1b[31m"),
    "leaving": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "hollow": ("compute = None", "it has no function compute"),
    "untyped": (
        "def compute(capture, *, plan: 'Nonesuch' = 1):\n    pass\ndef plot(found):\n    pass\n",
        "NameError: name 'Nonesuch' is not defined",
    ),
    "numbers": (
        "STATISTICS = 3\ndef compute(capture):\n    pass\ndef plot(found):\n    pass\n",
        "its STATISTICS are no mapping",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plug_in_is_named_and_breaks_nothing_else(
    name: str, call: Call, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, reason = BROKEN[name]
    plug_in(tmp_path, name, code)
    monkeypatch.syspath_prepend(tmp_path)
    reason = reason.replace(r"\\", "\\")

    asked = call("analyze", name, store, "--resamples", 20)
    assert asked.returncode == 2
    (line,) = asked.stderr.splitlines()
    assert line.startswith(f"repsim: analysis '{name}' of {name}-package is broken: {reason}")
    assert line.endswith(f"mend, update or remove {name}-package")

    listed = call("analyze", "--help")
    assert listed.returncode == 0
    assert all(analysis in listed.stdout for analysis in (*KINDS, name))
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith(f"  {name} ")]
    assert "is broken" in line
    assert call("analyze", name, "--help").returncode == 0
    assert call("analyze", "norms", store, "--figures", tmp_path / "f", "--quiet").returncode == 0
    taken = call("capture", "no-such-model", "--keep", "none", "--statistics", "nonesuch")
    with_statistics = [each for each in KINDS if hasattr(find_analysis(each), "STATISTICS")]
    names = sorted((*with_statistics, f"{name} (broken)"))
    assert taken.stderr.endswith(f"there are {', '.join(names)}\n")


def labels_in(folder: Path) -> list[str]:
    """What the results in a folder call themselves, by file name."""
    return [
        xr.open_dataset(folder / name, engine="scipy").attrs.get("label", "")
        for name in files(folder)
        if name.endswith(".nc")
    ]


def test_two_runs_of_one_name_are_told_apart_by_their_folders(store: Path, tmp_path: Path) -> None:
    copies = [tmp_path / run / "checkpoint-500.zarr" for run in ("run1", "run2")]
    for copy in copies:
        shutil.copytree(store, copy)
    assert (
        main("analyze", "norms", *copies, "--resamples", 20, "--figures", tmp_path / "f", "--quiet")
        == 0
    )
    assert labels_in(tmp_path / "f") == ["tiny-llama (run1)", "tiny-llama (run2)"]
    data = [name for name in files(tmp_path / "f") if name.endswith(".nc")]
    assert [name.removesuffix(".nc").split("-")[-1] for name in data] == ["run1", "run2"]
    (result,) = (xr.open_zarr(copies[0] / "analyses" / "norms-baseline", consolidated=False),)
    # What a store holds does not depend on what it was drawn with.
    assert "label" not in result.attrs


def test_a_model_on_two_corpora_is_told_apart_by_them(
    store: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "wiki.txt").write_text("the of and\nto in the\n")
    other = tmp_path / "other.zarr"
    assert (
        main("capture", tiny_folder, "--corpus", tmp_path / "wiki.txt", "--out", other, "--quiet")
        == 0
    )
    assert (
        main(
            "analyze",
            "norms",
            store,
            other,
            "--resamples",
            20,
            "--figures",
            tmp_path / "f",
            "--quiet",
        )
        == 0
    )
    assert labels_in(tmp_path / "f") == ["tiny-llama (builtin)", "tiny-llama (wiki)"]


def test_labels_of_the_user_s_own(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "b.zarr")
    ask = ("--label", "before tuning", "--label", "after", "--figures", tmp_path / "f", "--quiet")
    assert main("analyze", "norms", store, tmp_path / "b.zarr", *ask) == 0
    assert labels_in(tmp_path / "f") == ["after", "before tuning"]
    assert files(tmp_path / "f") == [
        "norms-after-baseline.nc",
        "norms-before-tuning-baseline+after-baseline.pdf",
        "norms-before-tuning-baseline+after-baseline.png",
        "norms-before-tuning-baseline+after-baseline.txt",
        "norms-before-tuning-baseline.nc",
    ]
