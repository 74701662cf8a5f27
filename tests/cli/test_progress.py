"""Progress and remarks on standard error, which is no terminal here."""

import re
from pathlib import Path

from support.cli import Call


def test_progress_is_plain_lines_without_a_terminal(
    call: Call, tmp_path: Path, tiny_folder: Path
) -> None:
    done = call("capture", tiny_folder, "--limit", 4, "--out", tmp_path / "a.zarr")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"[\d,]+ of [\d,]+ tokens, [\d,]+ tokens/s, 0 s left", last)
    assert "\x1b" not in done.stderr + done.stdout
    assert "complete:  yes" in done.stdout


def test_quiet_says_nothing(call: Call, tmp_path: Path, tiny_folder: Path) -> None:
    done = call("capture", tiny_folder, "--limit", 4, "--out", tmp_path / "a.zarr", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = call("analyze", "cosine", tmp_path / "a.zarr", "--figures", tmp_path, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
