"""`repsim info` and `repsim verify`."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from repsim.storage.requests import files_of, located
from support.cli import USER, Call, tree


def repairs(said: str) -> list[list[str]]:
    """The arguments of each command after `Repair:`, which is the last line."""
    line = said.splitlines()[-1]
    assert line.startswith("Repair: ")
    commands = line.removeprefix("Repair: ").split(" && ")
    return [shlex.split(command)[1:] for command in commands]


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
    repair, advice = damaged.stdout.splitlines()[-2:]
    assert repair.startswith("Repair: repsim evaluate tiny-llama --plan fig2 --plan fig4")
    assert repair.endswith("--repair")
    assert advice == (
        "In it tiny-llama stands for a file or folder whose place no store keeps; repsim verify "
        "with --model PATH gives the whole command."
    )


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
    assert re.search(r"copy.zarr: sound; [\d,]+ chunks, [\d.,]+ [kM]B read", sound.stdout)
    chunk = next((copy / "hidden" / "c" / "2").rglob("0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    damaged = call("verify", copy)
    assert (damaged.returncode, damaged.stderr) == (1, "")
    first, count, repair, advice = damaged.stdout.splitlines()
    assert first.startswith("damaged: hidden node 2")
    assert "1 part damaged or missing" in count
    assert repair.startswith("Repair: repsim capture tiny-llama --plan fig4")
    assert repair.endswith(f"--out {copy} --repair")
    assert advice.startswith("In it tiny-llama stands for")


def test_the_advised_command_repairs(
    call: Call, store: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    next((copy / "hidden" / "c" / "2").rglob("0/0")).unlink()
    for arguments in repairs(call("verify", copy, "--model", tiny_folder).stdout):
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
    assert call("verify", copy).returncode == 0
    assert tree(copy) == {
        copy / path.relative_to(store) for path in tree(store) if "analyses/" not in str(path)
    } | {path for path in tree(copy) if "analyses/" in str(path)}


def test_the_advised_command_repairs_with_files_and_folders(
    call: Call, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own texts, own plans with names, a store in a folder with a space."""
    texts, out = tmp_path / "my texts" / "own.txt", tmp_path / "my texts" / "own.zarr"
    texts.parent.mkdir()
    texts.write_text("the of and\nto in the a\n")
    (tmp_path / "plans.txt").write_text("late=0-2, 5\nbaseline\n")
    plans = ("--plan", f"@{tmp_path / 'plans.txt'}", "--allow-nonfinite")
    assert call("capture", tiny_folder, "--corpus", texts, *plans, "--out", out).returncode == 0
    next((out / "hidden" / "c" / "2").rglob("0/0")).unlink()

    # Without their places, the command names them; with another's place, none is given.
    told = call("verify", out).stdout.splitlines()
    assert told[-1].startswith("In it tiny-llama, own.txt stands for a file or folder")
    assert "with --model PATH --corpus PATH gives the whole command" in told[-1]
    for places, says in (
        (("--corpus", tmp_path / "plans.txt"), "the store is of own.txt; name that one"),
        (("--model", tmp_path), "the store is of tiny-llama; name that one"),
        (("--data-dir", tmp_path), "no command of the store names such a file or folder"),
    ):
        refused = call("verify", out, *places)
        assert refused.returncode == 2
        assert says in refused.stderr

    # With them, it repairs from anywhere.
    said = call("verify", out, "--model", tiny_folder, "--corpus", texts).stdout
    monkeypatch.chdir("/")
    (arguments,) = repairs(said)
    assert {"late=0-2, 5", "--allow-nonfinite", str(texts)} <= set(arguments)
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert call("verify", out).returncode == 0


def test_the_advised_commands_repair_scores(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    asked = ("evaluate", tiny_folder, "--limit", 2, "--out", tmp_path / "s.zarr")
    assert call(*asked, "--tasks", "grammar").returncode == 0
    assert call(*asked, "--tasks", "knowledge", "--append").returncode == 0
    (tmp_path / "s.zarr" / "log_likelihood" / "c" / "0" / "0").unlink()
    said = call("verify", tmp_path / "s.zarr", "--model", tiny_folder).stdout
    assert len(repairs(said)) == 2
    for arguments in repairs(said):
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
    assert call("verify", tmp_path / "s.zarr").returncode == 0


def test_what_a_data_folder_stands_for() -> None:
    requests = [{"tasks": "arc_easy", "data_dir": "DIR"}, {"corpus": "builtin"}]
    assert files_of(requests) == {"data_dir": "DIR"}
    placed = located(requests, {"data_dir": Path("/my rows"), "model": None})
    assert placed == [{"tasks": "arc_easy", "data_dir": "/my rows"}, {"corpus": "builtin"}]
