import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from repsim import cli

REPSIM = [sys.executable, "-c", "from repsim.cli import run; run()"]


def repsim(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it."""
    return subprocess.run(
        [*REPSIM, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **environment},
        check=False,
    )


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished capture of a tiny model."""
    path = tmp_path_factory.mktemp("store") / "tiny.zarr"
    done = repsim("capture", tiny_folder, "--plan", "fig4", "--limit", 8, "--max-tokens", 20, "--out", path)
    assert done.returncode == 0, done.stderr
    return path


def test_capture_and_analyze(store: Path, tmp_path: Path) -> None:
    done = repsim("analyze", "cosine", store, "--plan", "skip:start=0..1", "--figures", tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert [Path(name).suffix for name in drawn] == [".pdf", ".png"] * 2
    assert all(name in done.stdout for name in drawn)
    for plan in ("skip-start=0", "skip-start=1"):
        result = xr.open_zarr(store / "analyses" / f"cosine-{plan}-token", consolidated=False)
        assert result["cosine"].dims == ("state", "state_other")


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
    "layer out of range": (["capture", "{model}", "--plan", "0-9"], "a 6-layer model allows 0 to 5"),
    "missing corpus": (["capture", "{model}", "--corpus", "{here}/none.txt"], "no such file"),
    "empty corpus": (["capture", "{model}", "--corpus", "{here}/empty.txt"], "no text in it"),
    "binary corpus": (["capture", "{model}", "--corpus", "{here}/binary.txt"], "binary"),
    "unwritable output": (["capture", "{model}", "--out", "/proc/nowhere/a.zarr"], "choose another --out"),
    "output below a file": (["capture", "{model}", "--out", "{here}/empty.txt/a.zarr"], "choose another --out"),
    "output is a file": (["capture", "{model}", "--out", "{here}/empty.txt"], "not a repsim capture"),
    "output is a folder": (["capture", "{model}", "--out", "{here}"], "not a repsim capture"),
    "store of another model": (["capture", "{other}", "--plan", "fig4", "--out", "{store}"], "model ("),
    "store of another corpus": (
        ["capture", "{model}", "--plan", "fig4", "--out", "{store}"],
        "other texts or --max-tokens (",
    ),
    "bad dtype": (["capture", "{model}", "--dtype", "int8"], "float16 or float32"),
    "bad model dtype": (["capture", "{model}", "--model-dtype", "int8"], "bfloat16"),
    "bad device": (["capture", "{model}", "--device", "gpu"], "gpu"),
    "bad size": (["capture", "{model}", "--max-bytes", "much"], "write e.g. 500MB"),
    "does not fit": (["capture", "{model}", "--max-bytes", "1kB"], "GB are needed, --max-bytes allows"),
    "bad rule": (["capture", "{model}", "--tokens", "first"], "all, last, mean or every:N"),
    "bad compression": (["capture", "{model}", "--compression", "best"], "none, fast, small"),
    "nothing kept": (["capture", "{model}", "--keep", "none"], "add --statistics"),
    "statistics of states": (["capture", "{model}", "--statistics", "cosine"], "add --keep none"),
    "no such statistics": (
        ["capture", "{model}", "--keep", "none", "--statistics", "cosines"],
        "no such analysis; there are cosine, norms",
    ),
    "a URL of no kind": (["capture", "{model}", "--out", "ftp://here/a.zarr"], "s3://, gs:// or az:// URL"),
    "nothing to verify": (["verify", "{here}/none.zarr"], "no such store"),
    "nothing to tell": (["info", "{here}"], "not a repsim capture"),
    "limit of nothing": (["capture", "{model}", "--limit", "0"], "--limit"),
    "not a number": (["capture", "{model}", "--limit", "many"], "--limit"),
    "unknown command": (["capturing"], "capturing"),
    "unknown option": (["capture", "--plans", "fig4"], "--plans"),
    "unknown analysis": (["analyze", "cosines", "{store}"], "cosines"),
    "no store": (["analyze", "cosine", "{here}/none.zarr"], "no such store"),
    "not a store": (["analyze", "cosine", "{here}"], "not a repsim capture"),
    "plan not captured": (["analyze", "cosine", "{store}", "--plan", "reverse:start=0"], "is not in"),
    "unknown average": (["analyze", "cosine", "{store}", "--average", "tokens"], "--average"),
    "plans show": (["plans", "show", "skip:start=99"], "start=99: a 30-layer model allows 0 to 14"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_status_2_and_leaves_nothing(
    arguments: list[str], says: str, store: Path, tiny_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0")
    places = {"model": tiny_folder, "other": tiny_encoder_folder, "store": store, "here": tmp_path}
    cache = tmp_path / "cache"
    before = tree(tmp_path) | tree(store)
    done = repsim(*(argument.format(**places) for argument in arguments), REPSIM_CACHE=str(cache))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("repsim: ")
    assert says in line
    assert done.stdout == ""
    assert tree(tmp_path) | tree(store) == before


def test_info_and_verify(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    told = repsim("info", copy)
    assert told.returncode == 0, told.stderr
    for fact in (
        "model:",
        "tiny-llama",
        "weights:",
        "complete:       yes",
        "schema:         2",
        "made by:        repsim",
    ):
        assert fact in told.stdout
    assert getpass.getuser() not in (copy / "zarr.json").read_text()
    sound = repsim("verify", copy)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert re.search(r"copy.zarr: sound; [\d,]+ chunks, [\d.,]+ MB read", sound.stdout)
    chunk = next((copy / "hidden" / "c" / "2").rglob("0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    damaged = repsim("verify", copy)
    assert (damaged.returncode, damaged.stderr) == (1, "")
    first, count, advice = damaged.stdout.splitlines()
    assert first.startswith("damaged: hidden node 2")
    assert "1 chunks damaged or missing" in count
    assert advice.startswith("The capture: repsim capture tiny-llama --plan fig4")
    assert advice.endswith(f"--out {copy} --repair")


def test_the_advised_command_repairs(store: Path, tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    next((copy / "hidden" / "c" / "2").rglob("0/0")).unlink()
    command = shlex.split(repsim("verify", copy).stdout.splitlines()[-1].removeprefix("The capture: "))
    done = repsim(*(str(tiny_folder) if word == "tiny-llama" else word for word in command[1:]))
    assert done.returncode == 0, done.stderr
    assert repsim("verify", copy).returncode == 0
    assert tree(copy) == {copy / path.relative_to(store) for path in tree(store) if "analyses/" not in str(path)} | {
        path for path in tree(copy) if "analyses/" in str(path)
    }


@pytest.mark.parametrize(
    ("text", "count"), [("12", 12), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("2tb", 2 * 10**12), ("3k", 3000)]
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
    assert "unforeseen KeyError" in capsys.readouterr().err


def test_plans_lists_and_draws() -> None:
    listed = repsim("plans").stdout
    for name in ("skip:start=", "looped_parallel:start=", "painters", "dropouts"):
        assert name in listed
    drawn = repsim("plans", "show", "looped_parallel:start=10,loops=3").stdout
    assert "0-10, (11|12|13|14|15|16|17|18|19)*3, 20-29" in drawn
    assert "steps 1-11: layers 0 to 10" in drawn
    counted = repsim("plans", "show", "skip:start=0..1", "--layers", 6).stdout
    assert "2 plans" in counted
    assert "4 steps; 4 trie nodes, the root included" in counted  # 0 and 0 1 5 share layer 0


def test_help_needs_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'nnsight', 'zarr', 'xarray', 'numpy', 'matplotlib'}"
    for code in (
        f"import sys, repsim; assert not {heavy} & set(sys.modules)",
        f"import sys; from repsim import cli; cli.main(['--help']); assert not {heavy} & set(sys.modules)",
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_an_options_help_comes_from_the_docstring() -> None:
    arguments = "Args:\n    capture: a capture.\n    plan: First line\n        and second.\n"
    text = f"Claim.\n\n{arguments}\nReturns:\n    other: no.\n"
    assert cli.argument_help(text) == {"capture": "a capture.", "plan": "First line and second."}
