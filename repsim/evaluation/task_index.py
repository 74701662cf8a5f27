"""Names of lm-eval's tasks, groups and tags, and the files where their settings are.

lm-eval finds them by reading some fourteen thousand YAML files whole, which takes twenty seconds.
Here only the five settings that name a task are read of each, which takes one or two; the entries
made of them are lm-eval's own, and so is everything that is done with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import TaskIndex
from lm_eval.utils import pattern_match

from repsim.evaluation import offline_suite
from repsim.storage.requests import is_task_file

LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
# A setting at the beginning of a line, with what follows up to the next one.
NAMING = re.compile(
    r"""^["']?(?:include|task|group|tag|class)["']?[ ]*:.*(?:\n(?:[ \t#-].*|[ \t]*$))*""",
    re.MULTILINE,
)
ONE_WORD = re.compile(r"""["']?(\w+)["']?[ ]*:[ ]*(["']?)([A-Za-z_][\w./-]*)\2\s*""")
WILDCARDS = "*?["

Settings = dict[str, Any]


SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is the faster one


class Loader(SafeLoader):  # type: ignore[misc]
    """Takes tags such as `!function` for the text after them."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


class OwnTaskFactory(TaskFactory):  # type: ignore[misc]
    """lm-eval's, for which data files may also lie beside the file with the task's settings."""

    def _load_full_config(self, entry: Any, overrides: Settings | None = None) -> Settings:
        config: Settings = super()._load_full_config(entry, overrides)
        if entry.yaml_path is not None and config.get("dataset_kwargs"):
            data = dict(config["dataset_kwargs"])
            if "data_files" in data:
                data["data_files"] = _find_files(data["data_files"], Path(entry.yaml_path).parent)
            config["dataset_kwargs"] = data
        return config


def _find_files(files: Any, folder: Path) -> Any:
    """The same files, with the folder before those that are there and not where lm-eval looks."""
    if isinstance(files, dict):
        return {split: _find_files(each, folder) for split, each in files.items()}
    if isinstance(files, list | tuple):
        return [_find_files(each, folder) for each in files]
    beside = folder / str(files)
    return str(beside) if not Path(files).exists() and beside.is_file() else files


def task_manager(include_path: Path | None = None) -> Any:
    """lm-eval's registry of its own tasks, and of those in a folder; the latter win.

    Args:
        include_path: a folder with YAML files, at any depth.
    """
    manager = own_task_manager(include_path)
    for name, entry in lm_eval_index().items():
        manager.task_index.setdefault(name, entry)
    return manager


def own_task_manager(include_path: Path | None = None) -> Any:
    """lm-eval's registry of the tasks in a folder alone."""
    manager = TaskManager(include_path=include_path, include_defaults=False)
    manager._factory = OwnTaskFactory()
    return manager


@cache
def lm_eval_index() -> dict[str, Any]:
    """lm-eval's own index of its own tasks, `lm_eval.tasks._index.TaskIndex.build`; read once."""
    index: dict[str, Any] = {}
    seen: dict[Path, Settings] = {}
    for path in TaskIndex._iter_yaml_files(LM_EVAL_TASKS):
        try:
            TaskIndex.process_cfg(_read_naming(path, seen), path, index)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # as lm-eval does: a file that others include, and no task
    return index


def all_names(include_path: Path | None = None) -> list[str]:
    """Every name that `--tasks` takes: repsim's own first, then lm-eval's and those of a folder."""
    index = task_manager(include_path).task_index
    own = [offline_suite.GROUP, *offline_suite.NAMES]
    return [*own, *sorted(set(index) - set(own))]


def expand_patterns(names: Iterable[str], include_path: Path | None) -> list[str]:
    """Names, with each pattern replaced by the names or files that it matches; each once.

    Args:
        names: of tasks, files, or patterns of a shell such as `arc_*` and `own/*.yaml`.
        include_path: a folder of further tasks.

    Returns:
        The names; a pattern that matches nothing stays as it is.
    """
    expanded: list[str] = []
    for name in names:
        if not any(wildcard in name for wildcard in WILDCARDS) or Path(name).is_file():
            matching: Sequence[str] = [name]
        elif is_task_file(name):
            matching = sorted(glob(name))
        else:
            matching = pattern_match(name, all_names(include_path))
        expanded += matching or [name]
    return list(dict.fromkeys(expanded))


def _read_naming(path: Path, seen: dict[Path, Settings]) -> Settings:
    """The settings of a file that name a task, those of the files it includes among them."""
    if path in seen:
        return seen[path]
    settings: Settings = {}
    for block in NAMING.findall(path.read_text("utf-8")):
        if word := ONE_WORD.fullmatch(block):
            settings[word[1]] = word[3]
        else:
            settings |= yaml.load(block, Loader=Loader)
    included = settings.pop("include", [])
    merged: Settings = {}
    for file in included if isinstance(included, list) else [included]:
        merged |= _read_naming(path.parent / file, seen)
    seen[path] = merged | settings
    return seen[path]
