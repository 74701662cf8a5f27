"""The command that comes next is whole: it runs as it is printed."""

import shlex
from pathlib import Path

import pytest

from support.cli import SHORT, Call


def next_of(said: str) -> list[list[str]]:
    """The arguments of each command after `Next:`."""
    (line,) = [line for line in said.splitlines() if line.startswith("Next: ")]
    commands = line.removeprefix("Next: ").split(" && ")
    assert all(command.startswith("repsim ") for command in commands)
    return [shlex.split(command)[1:] for command in commands]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--plan", "skip:start=1"), ["cosine", "--plan", "skip:start=1"]),
        (("--plan", "late=0-2, 5", "--plan", "baseline"), ["cosine"]),
        (
            ("--plan", "late=0-2, 5", "--keep", "none", "--statistics", "norms,cosine"),
            ["norms", "--plan", "late"],
        ),
        (
            ("--plan", "0, 5", "--keep", "none", "--statistics", "similarity"),
            ["similarity", "--plan", "0, 5", "--measure", "minibatch-cka"],
        ),
    ],
)
def test_after_a_capture(
    options: tuple[str, ...],
    words: list[str],
    call: Call,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a folder" / "c.zarr"
    done = call("capture", tiny_folder, *SHORT, *options, "--out", out)
    assert done.returncode == 0, done.stderr
    (following,) = next_of(done.stdout)
    assert following == ["analyze", words[0], str(out), *words[1:]]
    assert call(*following, "--resamples", 20).returncode == 0


def test_after_an_evaluation_without_the_baseline(
    call: Call, tiny_folder: Path, tmp_path: Path
) -> None:
    """It is added to every task, and then compared with."""
    out = tmp_path / "a folder" / "s.zarr"
    asked = ("evaluate", tiny_folder, "--plan", "late=0-2, 5", "--out", out, "--limit", 2)
    assert call(*asked, "--tasks", "grammar").returncode == 0
    done = call(*asked, "--tasks", "knowledge", "--append")
    adding = next_of(done.stdout)
    assert len(adding) == 2
    assert adding[0][:4] == ["evaluate", str(tiny_folder), "--plan", "baseline"]
    for arguments in adding:
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
    assert next_of(done.stdout) == [["analyze", "degradation", str(out)]]
