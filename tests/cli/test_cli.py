import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import repsim as repsim_library
from repsim.analyses import degradation
from repsim.cli import main as cli
from repsim.plans import FAMILIES

USER = "somebody-of-note"
REPSIM = [sys.executable, "-c", "from repsim.cli.main import run; run()"]
Call = Callable[..., subprocess.CompletedProcess[str]]


def repsim(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it; seconds for the imports."""
    return subprocess.run(
        [*REPSIM, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished capture of a tiny model."""
    path = tmp_path_factory.mktemp("store") / "tiny.zarr"
    done = repsim(
        "capture",
        tiny_folder,
        "--plan",
        "fig4",
        "--limit",
        8,
        "--max-tokens",
        20,
        "--out",
        path,
        LOGNAME=USER,
    )
    assert done.returncode == 0, done.stderr
    return path


def test_capture_and_analyze(store: Path, tmp_path: Path) -> None:
    done = repsim("analyze", "cosine", store, "--plan", "skip:start=0..1", "--figures", tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert [Path(name).suffix for name in drawn] == [".nc", ".pdf", ".png"] * 2
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
    assert [Path(name).suffix for name in files(figures)] == [".nc", ".pdf", ".png"]


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    """A finished capture of another model."""
    path = tmp_path_factory.mktemp("store") / "deeper.zarr"
    assert (
        main(
            "capture",
            tiny_encoder_folder,
            "--limit",
            8,
            "--max-tokens",
            20,
            "--out",
            path,
            "--quiet",
        )
        == 0
    )
    return path


def main(*arguments: object) -> int:
    """The command in this process, which is faster."""
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """The command in this process, with what it says."""

    def called(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        status = main(*arguments)
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    return called


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ANALYSES = sorted(entry_points(group="repsim.analyses").names)
OF_SCORES = ["degradation", "latency"]
OF_CAPTURES = [name for name in ANALYSES if name not in OF_SCORES]


def test_every_analysis_is_installed() -> None:
    assert OF_CAPTURES == [
        "blocks",
        "clusters",
        "cosine",
        "drift",
        "geometry",
        "norms",
        "similarity",
    ]
    assert sorted(OF_CAPTURES + OF_SCORES) == ANALYSES


@pytest.mark.parametrize("analysis", OF_CAPTURES)
def test_every_analysis_draws_a_figure_and_writes_the_data_next_to_it(
    analysis: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("analyze", analysis, store, "--resamples", 20, "--figures", tmp_path / "new") == 0
    names = files(tmp_path / "new")
    assert [Path(name).suffix for name in names] == [".nc", ".pdf", ".png"]
    assert len({Path(name).stem for name in names}) == 1
    assert names[0].startswith(f"{analysis}-tiny-llama-builtin-baseline")
    with xr.open_dataset(tmp_path / "new" / names[0], engine="scipy") as data:
        assert data.attrs["analysis"] == analysis
        assert data.attrs["model"] == "tiny-llama"
    said = capsys.readouterr().out
    assert all(str(tmp_path / "new" / name) in said for name in names)
    folder = re.search(r"result: (\S+)", said)
    assert folder is not None
    assert Path(folder[1]).is_dir()


@pytest.mark.parametrize("analysis", ["cosine", "geometry", "norms", "similarity"])
def test_two_stores_share_a_figure_and_have_a_data_file_each(
    analysis: str, store: Path, deeper: Path, tmp_path: Path
) -> None:
    assert (
        main(
            "analyze", analysis, store, deeper, "--resamples", 20, "--figures", tmp_path, "--quiet"
        )
        == 0
    )
    data = [name for name in files(tmp_path) if name.endswith(".nc")]
    figures = [name for name in files(tmp_path) if not name.endswith(".nc")]
    assert len(data) == 2
    assert [Path(name).suffix for name in figures] == [".pdf", ".png"]
    assert all("tiny-llama" in name and "tiny-bert" in name for name in figures)
    models = {xr.open_dataset(tmp_path / name, engine="scipy").attrs["model"] for name in data}
    assert models == {"tiny-llama", "tiny-bert"}


@pytest.mark.parametrize("analysis", ["blocks", "clusters", "drift"])
def test_two_stores_have_a_figure_each_where_an_analysis_draws_one(
    analysis: str, store: Path, deeper: Path, tmp_path: Path
) -> None:
    assert (
        main(
            "analyze", analysis, store, deeper, "--resamples", 20, "--figures", tmp_path, "--quiet"
        )
        == 0
    )
    assert [Path(name).suffix for name in files(tmp_path)] == [".nc", ".pdf", ".png"] * 2
    assert sum("tiny-bert" in name for name in files(tmp_path)) == 3


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
        assert (plain == styled) == name.endswith(".nc")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["norms", "{store}", "--style", "nonesuch"],
            "style 'nonesuch': no such file, and matplotlib knows",
        ),
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
    layers = repsim_library.Capture.layers.fget
    monkeypatch.setattr(
        repsim_library.Capture,
        "layers",
        property(lambda self: layers(self) + 4 * (self.path.stem == "b")),
    )
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


@pytest.mark.parametrize("analysis", ANALYSES)
def test_help_says_something_of_every_option(analysis: str) -> None:
    (entry,) = entry_points(group="repsim.analyses", name=analysis)
    command = cli.analysis_command(analysis, entry.load())
    options = [
        parameter for parameter in command.params if parameter.name not in ("help", "stores")
    ]
    own = {"metric"} if analysis in OF_SCORES else {"plan"}
    assert {option.name for option in options} >= {"resamples", "figures", "style", "quiet"} | own
    for option in options:
        assert option.help, option.name
        assert option.help.endswith(".") or option.help[-1].isalnum(), option.help
    assert command.help


def test_progress_is_plain_lines_without_a_terminal(tmp_path: Path, tiny_folder: Path) -> None:
    done = repsim("capture", tiny_folder, "--limit", 4, "--out", tmp_path / "a.zarr")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"[\d,]+ of [\d,]+ tokens, [\d,]+ tokens/s, 0 s left", last)
    assert "\x1b" not in done.stderr + done.stdout
    assert "complete:  yes" in done.stdout


def test_quiet_says_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    done = repsim("capture", tiny_folder, "--limit", 4, "--out", tmp_path / "a.zarr", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = repsim("analyze", "cosine", tmp_path / "a.zarr", "--figures", tmp_path, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


WRONG = {
    "unknown model": (["capture", "no-such/model-anywhere"], "no-such/model-anywhere"),
    "unknown family": (["capture", "{model}", "--plan", "skipp:start=1"], "did you mean skip"),
    "start out of range": (
        ["capture", "{model}", "--plan", "skip:start=20"],
        "start=20: a 6-layer model allows 0 to 2",
    ),
    "malformed plan": (["capture", "{model}", "--plan", "0-3, (4|"], "(4|"),
    "layer out of range": (
        ["capture", "{model}", "--plan", "0-9"],
        "a 6-layer model allows 0 to 5",
    ),
    "missing corpus": (["capture", "{model}", "--corpus", "{here}/none.txt"], "no such file"),
    "empty corpus": (["capture", "{model}", "--corpus", "{here}/empty.txt"], "no text in it"),
    "binary corpus": (["capture", "{model}", "--corpus", "{here}/binary.txt"], "binary"),
    "unwritable output": (
        ["capture", "{model}", "--out", "/proc/nowhere/a.zarr"],
        "choose another --out",
    ),
    "output below a file": (
        ["capture", "{model}", "--out", "{here}/empty.txt/a.zarr"],
        "choose another --out",
    ),
    "output is a file": (
        ["capture", "{model}", "--out", "{here}/empty.txt"],
        "not a repsim capture",
    ),
    "output is a folder": (["capture", "{model}", "--out", "{here}"], "not a repsim capture"),
    "store of another model": (
        ["capture", "{other}", "--plan", "fig4", "--out", "{store}"],
        "model (",
    ),
    "store of another corpus": (
        ["capture", "{model}", "--plan", "fig4", "--out", "{store}"],
        "other texts or --max-tokens (",
    ),
    "a list that is no stack": (
        ["capture", "{model}", "--stack", "model"],
        "has no such module list; seen: model.layers",
    ),
    "bad dtype": (["capture", "{model}", "--dtype", "int8"], "float16 or float32"),
    "bad model dtype": (["capture", "{model}", "--model-dtype", "int8"], "bfloat16"),
    "bad device": (["capture", "{model}", "--device", "gpu"], "gpu"),
    "bad size": (["capture", "{model}", "--max-bytes", "much"], "write e.g. 500MB"),
    "does not fit": (
        ["capture", "{model}", "--max-bytes", "1kB"],
        "GB are needed, --max-bytes allows",
    ),
    "bad rule": (["capture", "{model}", "--tokens", "first"], "all, last, mean or every:N"),
    "bad compression": (["capture", "{model}", "--compression", "best"], "none, fast, small"),
    "nothing kept": (["capture", "{model}", "--keep", "none"], "add --statistics"),
    "statistics of states": (["capture", "{model}", "--statistics", "cosine"], "add --keep none"),
    "no such statistics": (
        ["capture", "{model}", "--keep", "none", "--statistics", "cosines"],
        "no such analysis; there are blocks, cosine, norms, similarity",
    ),
    "a URL of no kind": (
        ["capture", "{model}", "--out", "ftp://here/a.zarr"],
        "s3://, gs:// or az:// URL",
    ),
    "nothing to verify": (["verify", "{here}/none.zarr"], "no such store"),
    "nothing to tell": (["info", "{here}"], "not a repsim capture"),
    "limit of nothing": (["capture", "{model}", "--limit", "0"], "--limit"),
    "not a number": (["capture", "{model}", "--limit", "many"], "--limit"),
    "unknown command": (["capturing"], "capturing"),
    "unknown option": (["capture", "--plans", "fig4"], "--plans"),
    "unknown analysis": (["analyze", "cosines", "{store}"], "cosines"),
    "unknown task": (["evaluate", "{model}", "--tasks", "gramar"], "did you mean grammar"),
    "no decoder": (["evaluate", "{other}"], "benchmarks need a decoder"),
    "no data": (["evaluate", "{model}", "--data-dir", "{here}/none"], "--data-dir"),
    "bad contexts": (["evaluate", "{model}", "--contexts", "some"], "choose auto, trees or rows"),
    "scores in a capture": (
        ["evaluate", "{model}", "--tasks", "grammar", "--out", "{store}"],
        "a capture, not scores",
    ),
    "scores wanted": (["analyze", "degradation", "{store}"], "made by repsim evaluate"),
    "no store": (["analyze", "cosine", "{here}/none.zarr"], "no such store"),
    "not a store": (["analyze", "cosine", "{here}"], "not a repsim capture"),
    "plan not captured": (
        ["analyze", "cosine", "{store}", "--plan", "reverse:start=0"],
        "is not in",
    ),
    "unknown average": (["analyze", "cosine", "{store}", "--average", "tokens"], "--average"),
    "plans show": (["plans", "show", "skip:start=99"], "start=99: a 30-layer model allows 0 to 14"),
    "empty out": (
        ["capture", "{model}", "--out", ""],
        "--out: an empty value; give one, or leave it out",
    ),
    "empty out of scores": (["evaluate", "{model}", "--out="], "--out: an empty value"),
    "empty corpus name": (["capture", "{model}", "--corpus", " "], "--corpus: an empty value"),
    "empty data folder": (["evaluate", "{model}", "--data-dir", ""], "--data-dir: an empty value"),
    "empty figures": (
        ["analyze", "cosine", "{store}", "--figures", ""],
        "--figures: an empty value",
    ),
    "empty style": (["analyze", "cosine", "{store}", "--style", ""], "--style: an empty value"),
    "empty model": (["capture", ""], "an argument: an empty value"),
    "empty store": (["info", ""], "an argument: an empty value"),
    "a label too few": (
        ["analyze", "norms", "{store}", "{store}", "--label", "a"],
        "--label: 1 for 2 stores",
    ),
    "a label twice": (
        ["analyze", "norms", "{store}", "{store}", "--label", "a", "--label", "a"],
        "--label 'a': it names two stores",
    ),
    "too many plans": (
        ["plans", "show", "random:start=0,seed=0..100000"],
        "stands for 100,001 plans",
    ),
    "too long a plan": (["plans", "show", "0*1000000000"], "a plan of 1,000,000,000 steps"),
    "too many layers": (["plans", "show", "baseline", "--layers", "1000000000"], "--layers"),
    "escapes in an argument": (
        ["info", "{here}/\x1b[31mred.zarr"],
        "/\\x1b[31mred.zarr: no such store",
    ),
}
IN_A_PROCESS_OF_ITS_OWN = ("layer out of range", "unknown option", "no store")


@pytest.mark.parametrize(
    ("name", "own_process"),
    [*((name, False) for name in WRONG), *((name, True) for name in IN_A_PROCESS_OF_ITS_OWN)],
)
def test_wrong_input_is_one_line_and_status_2_and_leaves_nothing(
    name: str,
    own_process: bool,
    call: Call,
    store: Path,
    tiny_folder: Path,
    tiny_encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, says = WRONG[name]
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0")
    places = {"model": tiny_folder, "other": tiny_encoder_folder, "store": store, "here": tmp_path}
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path / "cache"))
    before = tree(tmp_path) | tree(store)
    done = (repsim if own_process else call)(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("repsim: ")
    assert says in line
    assert done.stdout == ""
    assert tree(tmp_path) | tree(store) == before


@pytest.fixture(scope="module")
def scores(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "some.zarr"
    plans = ("--plan", "fig2", "--plan", "fig4")
    done = repsim(
        "evaluate",
        tiny_folder,
        *plans,
        "--tasks",
        "grammar,knowledge",
        "--limit",
        12,
        "--out",
        path,
    )
    assert done.returncode == 0, done.stderr
    assert "prefix sharing: on" in done.stderr
    assert f"Next: repsim analyze degradation {path}" in done.stdout
    return path


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
        return found.assign({**numbers, "valid": ("task", [1, 1])})

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


def test_info_and_verify_of_scores(call: Call, scores: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(scores, copy)
    told = call("info", copy)
    assert told.returncode == 0, told.stderr
    for fact in (
        "tiny-llama",
        "grammar version 1.0, 0-shot, 12 examples",
        "complete:       yes",
        "--tasks grammar,kn",
    ):
        assert fact in told.stdout
    chunk = copy / "log_likelihood" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    damaged = call("verify", copy)
    assert damaged.returncode == 1
    assert damaged.stdout.splitlines()[0].startswith("damaged: log_likelihood")
    assert damaged.stdout.splitlines()[-1].startswith(
        "Repair: repsim evaluate tiny-llama --plan fig2 --plan fig4"
    )
    assert damaged.stdout.splitlines()[-1].endswith("--repair")


def test_info_and_verify(call: Call, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    told = call("info", copy)
    assert told.returncode == 0, told.stderr
    for fact in (
        "model:",
        "tiny-llama",
        "weights:",
        "complete:       yes",
        "schema:         3",
        "made by:        repsim",
    ):
        assert fact in told.stdout
    described = (copy / "zarr.json").read_text()
    assert USER not in described
    assert "pytest-of-" not in described  # nor where it lies
    sound = call("verify", copy)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert re.search(r"copy.zarr: sound; [\d,]+ chunks, [\d.,]+ MB read", sound.stdout)
    chunk = next((copy / "hidden" / "c" / "2").rglob("0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    damaged = call("verify", copy)
    assert (damaged.returncode, damaged.stderr) == (1, "")
    first, count, advice = damaged.stdout.splitlines()
    assert first.startswith("damaged: hidden node 2")
    assert "1 part damaged or missing" in count
    assert advice.startswith("Repair: repsim capture tiny-llama --plan fig4")
    assert advice.endswith(f"--out {copy} --repair")


def test_the_advised_command_repairs(
    call: Call, store: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    next((copy / "hidden" / "c" / "2").rglob("0/0")).unlink()
    command = shlex.split(call("verify", copy).stdout.splitlines()[-1].removeprefix("Repair: "))
    done = call(*(str(tiny_folder) if word == "tiny-llama" else word for word in command[1:]))
    assert done.returncode == 0, done.stderr
    assert call("verify", copy).returncode == 0
    assert tree(copy) == {
        copy / path.relative_to(store) for path in tree(store) if "analyses/" not in str(path)
    } | {path for path in tree(copy) if "analyses/" in str(path)}


@pytest.mark.parametrize(
    ("text", "count"),
    [("12", 12), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("2tb", 2 * 10**12), ("3k", 3000)],
)
def test_sizes(text: str, count: int) -> None:
    assert cli.byte_count(text) == count


def test_an_unforeseen_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("something\nodd")

    monkeypatch.delenv("REPSIM_DEBUG", raising=False)
    monkeypatch.setattr("repsim.plans.draw", broken)
    assert cli.main(["plans", "show", "baseline"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "repsim: unforeseen KeyError: 'something\\nodd' - a fault of repsim's: please report it "
    )
    assert (
        "with the command, this line and what the same command prints with REPSIM_DEBUG=1 before it (repsim"
        in line
    )
    for name in ("repsim-layers", "torch", "transformers", "nnsight", "lm-eval"):
        assert f"{name} {version(name)}" in line


def test_plans_lists_and_draws(call: Call) -> None:
    listed = call("plans").stdout
    for name in ("skip:start=", "looped_parallel:start=", "painters", "dropouts"):
        assert name in listed
    drawn = call("plans", "show", "looped_parallel:start=10,loops=3").stdout
    assert "0-10, (11|12|13|14|15|16|17|18|19)*3, 20-29" in drawn
    assert "steps 1-11: layers 0 to 10" in drawn
    counted = call("plans", "show", "skip:start=0..1", "--layers", 6).stdout
    assert "2 plans" in counted
    assert "4 steps; 4 trie nodes, the root included" in counted  # 0 and 0 1 5 share layer 0


def test_help_needs_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'nnsight', 'zarr', 'xarray', 'numpy', 'matplotlib'}"
    for code in (
        f"import sys, repsim; assert not {heavy} & set(sys.modules)",
        f"import sys; from repsim.cli.main import main; main(['--help']); assert not {heavy} & set(sys.modules)",
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_an_options_help_comes_from_the_docstring() -> None:
    arguments = "Args:\n    capture: a capture.\n    plan: First line\n        and second.\n"
    text = f"Claim.\n\n{arguments}\nReturns:\n    other: no.\n"
    assert cli.argument_help(text) == {"capture": "a capture.", "plan": "First line and second."}


def test_plans_that_look_alike_have_names_of_their_own():
    names = {cli._slug(cli._file_name(plan)) for plan in ("0-5", "0, 5", "(0|5)", "0-1, 5")}
    assert len(names) == 4
    assert cli._slug(cli._file_name("skip:start=3")) == "skip-start=3"
    assert len(cli._short("x" * 1000)) < 200 < len("x" * 1000)


def test_lines_that_go_into_a_pipe_are_not_wrapped(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    listed = call("plans").stdout.splitlines()
    for family in FAMILIES.values():
        (line,) = [line for line in listed if line.startswith(f"{family.usage} ")]
        assert line.rstrip().split("  ")[-1].strip() == family.summary
    drawn = call(
        "plans", "show", ", ".join(map(str, range(0, 100, 2))), "--layers", 100
    ).stdout.splitlines()
    (summary,) = [line for line in drawn if "never run" in line]
    assert summary.endswith("95, 97, 99")


# Plug-ins


def plug_in(folder: Path, name: str, code: str) -> None:
    """An installed package with an analysis of this name."""
    (folder / f"{name}_package.py").write_text(code)
    about = folder / f"{name}_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[repsim.analyses]\n{name} = {name}_package\n")


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
    assert all(analysis in listed.stdout for analysis in (*ANALYSES, name))
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith(f"  {name} ")]
    assert "is broken" in line
    assert call("analyze", name, "--help").returncode == 0
    assert call("analyze", "norms", store, "--figures", tmp_path / "f", "--quiet").returncode == 0
    taken = call("capture", "no-such-model", "--keep", "none", "--statistics", "nonesuch")
    assert "blocks, cosine, norms, similarity" in taken.stderr.replace(f", {name} (broken)", "")
    assert (f"{name} (broken)" in taken.stderr) == (name != "untyped")


# Names that others have made


NASTY = "a\x1b[31m\x07[red]<img src=x>\u202e\nb"


@pytest.fixture(scope="module")
def stranger(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose names hold what a terminal or a browser would obey."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(tiny_folder, folder / NASTY)
    (folder / f"{NASTY}.txt").write_text("the of and\nto in the\n")
    names = (folder / NASTY, "--corpus", folder / f"{NASTY}.txt", "--out", folder / "stranger.zarr")
    assert main("capture", *names, "--quiet") == 0
    return folder / "stranger.zarr"


def test_names_of_strangers_reach_no_terminal_as_they_are(
    call: Call, stranger: Path, tmp_path: Path
) -> None:
    for arguments in (
        ("info", stranger),
        ("verify", stranger),
        ("analyze", "norms", stranger, "--figures", tmp_path / "f"),
        ("analyze", "norms", stranger, "--plan", "0"),
    ):
        done = call(*arguments)
        for text in (done.stdout, done.stderr):
            assert all(character.isprintable() or character == "\n" for character in text), (
                arguments
            )
    told = call("info", stranger).stdout
    assert r"model:          a\x1b[31m\x07[red]<img src=x>\u202e\nb (6 layers" in told
    assert len(told.splitlines()) == len(repsim_library.open(stranger).info)


def test_names_of_strangers_reach_no_browser_as_they_are(stranger: Path, scores: Path) -> None:
    capture = repsim_library.open(stranger)
    assert "<img" not in capture._repr_html_()
    assert "&lt;img" in capture._repr_html_()
    assert all(character.isprintable() or character == "\n" for character in repr(capture))
    found = repsim_library.open(scores)
    found.dataset.attrs["identity"] = {**found.identity, "model": NASTY}
    assert "<img" not in found._repr_html_()
    assert "&lt;img" in found._repr_html_()
    assert "grammar" in found._repr_html_()
    assert repr(found).isprintable()


# Labels


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
        "norms-before-tuning-baseline.nc",
    ]
