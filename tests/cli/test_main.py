"""Errors become one line and an exit status; nothing unsafe reaches a terminal."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import repsim as repsim_library
from repsim.cli import main as cli
from support.cli import NASTY, REPSIM, Call, repsim, tree

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
        "other texts, --max-tokens or chat template (",
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
        "B are needed, --max-bytes allows 1.0 kB",
    ),
    "bad rule": (["capture", "{model}", "--tokens", "first"], "all, last, mean or every:N"),
    "bad compression": (["capture", "{model}", "--compression", "best"], "none, fast or small"),
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
    "bad contexts": (["evaluate", "{model}", "--contexts", "some"], "choose auto, on or off"),
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
        "with the command, this line and what the same command prints with REPSIM_DEBUG=1 "
        "before it (repsim" in line
    )
    for name in ("repsim-layers", "torch", "transformers", "nnsight", "lm-eval"):
        assert f"{name} {version(name)}" in line


def test_help_needs_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'nnsight', 'zarr', 'xarray', 'numpy', 'matplotlib'}"
    for code in (
        f"import sys, repsim; assert not {heavy} & set(sys.modules)",
        "import sys; from repsim.cli.main import main; main(['--help']); "
        f"assert not {heavy} & set(sys.modules)",
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [("--version",), ("-h",), ("capture", "-h"), ("analyze", "-h")])
def test_version_and_help_of_every_command(call: Call, words: tuple[str, ...]) -> None:
    done = call(*words)
    assert (done.returncode, done.stderr) == (0, "")
    expected = f"repsim {repsim_library.__version__}\n" if words == ("--version",) else "Usage: "
    assert done.stdout.startswith(expected)


def test_no_command_is_answered_by_the_help(call: Call) -> None:
    for words, names in (((), ("capture", "verify")), (("analyze",), ("cosine", "norms"))):
        done = call(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert all(f"\n  {name} " in done.stderr for name in names)


def test_the_module_is_the_command() -> None:
    for words in ([sys.executable, "-m", "repsim", "--version"], [*REPSIM, "--version"]):
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout == f"repsim {repsim_library.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("repsim ca", {"capture"}),
        ("repsim analyze c", {"clusters", "compare", "cosine"}),
        ("repsim capture --mo", {"--model-dtype"}),
    ],
)
def test_a_shell_completes_without_the_heavy_modules(typed: str, offered: set[str]) -> None:
    """In bash, as the line that `--show-completion` prints asks for it."""
    code = (
        "import sys; sys.argv = ['repsim']; from repsim.cli.main import main; main(); "
        "assert not {'torch', 'numpy', 'xarray', 'zarr'} & set(sys.modules)"
    )
    environment = {
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
        "_REPSIM_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == offered


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
