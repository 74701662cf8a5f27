"""A complete store on a disk that cannot be written to is complete."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from repsim.storage.local_folder import LocalFolder
from support.cli import SHORT, Call


@pytest.fixture
def copy(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A capture; nothing can be written any more, whoever asks, the superuser included."""
    path = tmp_path / "copy.zarr"
    shutil.copytree(store, path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def access(path: Any, mode: int, **_: Any) -> bool:
        return not mode & os.W_OK

    monkeypatch.setattr(os, "access", access)
    for name in ("enter", "create", "exchange", "put", "delete"):
        monkeypatch.setattr(LocalFolder, name, refuse)
    return path


def test_the_same_command_finds_it_complete(call: Call, copy: Path, tiny_folder: Path) -> None:
    done = call("capture", tiny_folder, "--plan", "fig4", *SHORT, "--out", copy)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"{copy}: complete already"


def test_more_is_refused_in_one_line(call: Call, copy: Path, tiny_folder: Path) -> None:
    asked = ("capture", tiny_folder, "--plan", "0-2", *SHORT)
    done = call(*asked, "--append", "--out", copy)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"repsim: {copy}: cannot be written: Read-only file system; choose another --out"
    )
    done = call(*asked, "--out", copy.parent / "new.zarr")
    assert done.returncode == 2
    assert "is no folder that can be written to; choose another --out" in done.stderr
