"""Names of tasks against lm-eval's own index of the same files."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._index import TaskIndex

from repsim.evaluation import offline_suite, task_index
from repsim.evaluation.task_index import LM_EVAL_TASKS, all_names, expand_patterns, lm_eval_index
from support.cli import main

# With quoted names, names on several lines, tags of included files, groups in groups, classes.
FOLDERS = ("arc", "glue", "mmlu", "csatqa", "darija_bench", "bbh", "squadv2", "unitxt", "wmdp")


@pytest.mark.parametrize("folder", FOLDERS)
def test_entries_are_lm_eval_s(folder: str) -> None:
    index = lm_eval_index()
    expected = TaskIndex.build([LM_EVAL_TASKS / folder])
    assert expected
    for name, entry in expected.items():
        same = index[name]
        assert (same.kind, same.yaml_path) == (entry.kind, entry.yaml_path), name
        assert entry.tags <= same.tags  # other folders may have tasks of the same tag


def test_names_are_each_there_once() -> None:
    names = all_names()
    assert names[:5] == [offline_suite.GROUP, *offline_suite.NAMES]
    assert len(names) == len(set(names)) > 14_000
    assert {"arc_easy", "ai2_arc", "mmlu"} <= set(names)


def test_patterns() -> None:
    expanded = expand_patterns(["arc_e*", "grammar", "?rammar", "zz*"], None)
    assert expanded == ["arc_easy", "arc_es", "arc_eu", *expanded[3:-2], "grammar", "zz*"]
    assert all(name.startswith("arc_eu_") for name in expanded[3:-2])


def test_patterns_of_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "base"):
        (tmp_path / name).touch()
    expanded = expand_patterns([f"{tmp_path}/*.yaml", f"{tmp_path}/c*.yaml"], None)
    assert expanded == [f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml", f"{tmp_path}/c*.yaml"]


def test_a_folder_comes_before_lm_eval_s_own(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "own.yaml"
    path.parent.mkdir()
    path.write_text("task: arc_easy\ntag: ai2_arc\n")
    index = task_index.task_manager(tmp_path).task_index
    assert index["arc_easy"].yaml_path == path
    assert index["arc_challenge"].yaml_path.is_relative_to(LM_EVAL_TASKS)
    assert task_index.task_manager().task_index["arc_easy"].yaml_path != path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("rows.jsonl", "{folder}/rows.jsonl"),
        ({"test": ["rows.jsonl", "no.jsonl"]}, {"test": ["{folder}/rows.jsonl", "no.jsonl"]}),
        ("https://host/rows.jsonl", "https://host/rows.jsonl"),
    ],
)
def test_where_data_files_are_looked_for(files: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    found = task_index._find_files(files, tmp_path)
    assert str(found).replace(str(tmp_path), "{folder}") == str(expected)


def test_a_file_where_the_command_is_run_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lm-eval has it."""
    for folder in (tmp_path, tmp_path / "tasks"):
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert task_index._find_files("rows.jsonl", tmp_path / "tasks") == "rows.jsonl"


def test_tasks_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One name per line, so that grep finds it; no model is loaded."""
    (tmp_path / "own.yaml").write_text("task: own_colours\n")
    assert main("evaluate", "no such model", "--tasks", "list", "--include-path", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == all_names(tmp_path)
    assert "own_colours" in lines
