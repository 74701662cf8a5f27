"""`repsim table`, and the tables that other commands end with."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import repsim as repsim_library
from repsim.analysis import tables
from support.cli import Call

FORMS = ("rich", "md", "csv", "latex", "json")


@pytest.mark.parametrize("form", FORMS)
def test_scores_in_every_format(call: Call, scores: Path, form: str) -> None:
    wanted = ("--plan", "drop:layer=1..2", "--plan", "baseline", "--task", "grammar")
    done = call("table", scores, *wanted, "--format", form)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for name in ("baseline", "drop:layer=1", "drop:layer=2", "grammar"):
        assert name in done.stdout
    assert "drop:layer=3" not in done.stdout
    assert "knowledge" not in done.stdout


def test_the_command_prints_the_frame(call: Call, scores: Path) -> None:
    frame = repsim_library.table(scores)
    csv = call("table", scores, "--format", "csv").stdout
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(csv)), frame, check_exact=True)
    assert json.loads(call("table", scores, "-f", "json").stdout)[3]["value"] == frame["value"][3]
    plain = call("table", scores).stdout.splitlines()
    assert len(plain) == len(frame) + 2  # a head, and what the mark means
    assert "Holm" in plain[-1]
    opened = repsim_library.open(scores)
    assert isinstance(opened, repsim_library.Scores)
    pd.testing.assert_frame_equal(opened.to_frame(), frame)


@pytest.mark.parametrize("form", FORMS)
def test_a_capture_in_every_format(call: Call, store: Path, form: str) -> None:
    done = call("table", store, "--plan", "skip:start=0..1", "-f", form)
    assert (done.returncode, done.stderr) == (0, "")
    assert "skip:start=1" in done.stdout
    assert "baseline" not in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--plan", "nonesuch"), "plan 'nonesuch' is not in {scores}; it holds: baseline, drop:"),
        (("--plan", "repeat:layer=1,times=2"), "is not in {scores}; it holds: baseline, drop:"),
        (("--task", "gramar"), "task 'gramar' is not in {scores}; it holds: grammar, knowledge"),
        (("--format", "html"), "format 'html': choose rich, md, csv, latex or json"),
    ],
)
def test_what_is_not_there_is_one_line(
    call: Call, scores: Path, words: tuple[str, ...], says: str
) -> None:
    done = call("table", scores, *words)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert says.format(scores=scores) in line


def test_a_capture_has_no_tasks(call: Call, store: Path) -> None:
    done = call("table", store, "--task", "grammar")
    assert done.returncode == 2
    assert done.stderr == f"repsim: {store}: a capture, which has no tasks; leave out --task\n"


def test_evaluate_ends_with_the_table(
    call: Call, scores: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Of a store that is complete already, as of a new one."""
    copy = tmp_path / "copy of.zarr"
    shutil.copytree(scores, copy)
    plans = ("--plan", "fig2", "--plan", "fig4")
    command = ("evaluate", tiny_folder, *plans, "--tasks", "grammar,knowledge", "--limit", 12)
    done = call(*command, "--out", copy)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    frame = repsim_library.table(copy)
    extract = tables.take_extract(frame)
    assert tables.render(tables.shown_scores(extract)) in done.stdout
    assert f"24 of {len(frame)} rows; all of them: repsim table '{copy}'" in lines
    assert lines[-1].startswith("Next: ")
    assert call(*command, "--out", copy, "--quiet").stdout == ""


def test_info_of_scores_ends_with_the_table(call: Call, scores: Path) -> None:
    extract = tables.take_extract(repsim_library.table(scores))
    told = call("info", scores).stdout
    assert tables.render(tables.shown_scores(extract)) in told


def test_a_table_of_all_is_shown_without_a_remark(call: Call, scores: Path) -> None:
    frame = repsim_library.table(scores, task="grammar")
    assert len(tables.take_extract(frame, rows=len(frame))) == len(frame)
    assert "rows; all of them" not in call("table", scores).stdout
