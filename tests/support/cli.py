"""The command as a user runs it, and stores of tiny models that it has made."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from repsim.cli import main as cli_main

USER = "somebody-of-note"
REPSIM = [sys.executable, "-c", "from repsim.cli.main import run; run()"]
SHORT = ("--limit", 8, "--max-tokens", 20)
# What a terminal or a browser would obey.
NASTY = "a\x1b[31m\x07[red]<img src=x>\u202e\nb"

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


def main(*arguments: object) -> int:
    """The command in this process, which is faster."""
    return cli_main.main([str(argument) for argument in arguments])


def tree(folder: Path) -> set[Path]:
    """Everything below a folder."""
    return set(folder.rglob("*"))


def files(folder: Path) -> list[str]:
    """Names in a folder, in alphabetical order."""
    return sorted(path.name for path in folder.iterdir())


def plug_in(folder: Path, name: str, code: str) -> None:
    """An installed package with an analysis of this name."""
    (folder / f"{name}_package.py").write_text(code)
    about = folder / f"{name}_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[repsim.analyses]\n{name} = {name}_package\n")


# Fixtures, which the conftest.py of a folder of tests imports


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """The command in this process, with what it says."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        status = main(*arguments)
        return subprocess.CompletedProcess([*map(str, arguments)], status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished capture of a tiny model."""
    path = tmp_path_factory.mktemp("store") / "tiny.zarr"
    options = ("--plan", "fig4", *SHORT, "--out", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGNAME", USER)
        assert main("capture", tiny_folder, *options, "--quiet") == 0
    return path


@pytest.fixture(scope="session")
def deeper(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    """A finished capture of another model."""
    path = tmp_path_factory.mktemp("store") / "deeper.zarr"
    assert main("capture", tiny_encoder_folder, *SHORT, "--out", path, "--quiet") == 0
    return path


@pytest.fixture(scope="session")
def scores(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished scores of a tiny model, which is not above chance on anything."""
    path = tmp_path_factory.mktemp("scores") / "some.zarr"
    plans = ("--plan", "fig2", "--plan", "fig4")
    options = ("--tasks", "grammar,knowledge", "--limit", 12, "--out", path)
    with redirect_stdout(StringIO()) as shown, redirect_stderr(StringIO()) as said:
        assert main("evaluate", tiny_folder, *plans, *options) == 0
    assert "prefix sharing: on" in said.getvalue()
    assert f"Next: repsim analyze degradation {path}" in shown.getvalue()
    return path


@pytest.fixture(scope="session")
def stranger(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose names hold what a terminal or a browser would obey."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(tiny_folder, folder / NASTY)
    (folder / f"{NASTY}.txt").write_text("the of and\nto in the\n")
    names = (folder / NASTY, "--corpus", folder / f"{NASTY}.txt", "--out", folder / "stranger.zarr")
    assert main("capture", *names, "--quiet") == 0
    return folder / "stranger.zarr"
