"""`repsim info` and `repsim verify`."""

import re
import shlex
import shutil
from pathlib import Path

from support.cli import USER, Call, tree


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
    assert re.search(r"copy.zarr: sound; [\d,]+ chunks, [\d.,]+ [kM]B read", sound.stdout)
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
