"""Where lm-eval's tasks come from: its own registry with data of the Hub, local files, or the
offline suite.

"Task" means here what lm-eval calls so, a `ConfigurableTask`; `repsim.evaluation.tasks.Task` wraps
one. A task's own code meets the user's files, so what goes wrong with them is traced to a line.
"""

from __future__ import annotations

import glob
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._index import Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from repsim.errors import DataError, RepsimError, brief
from repsim.evaluation import offline_suite, task_files
from repsim.evaluation.prompting import PLAIN, Prompting
from repsim.evaluation.task_index import own_task_manager, task_manager
from repsim.hub import cache_if_unreachable
from repsim.storage.requests import is_task_file

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
GROUP_SETTINGS = ("tag", "group", "task_list")  # in a task's file, but not of the task itself
FEWSHOT_SEED = 1234  # lm-eval's default

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class FoundTasks:
    """What lm-eval has under a name.

    tasks: `ConfigurableTask` objects, with their data.
    groups: name → lm-eval's `Group` of some of these tasks, or of other groups.
    """

    tasks: Sequence[Any]
    groups: Mapping[str, Any] = field(default_factory=dict)


def find_tasks(
    name: str, data_dir: Path | None = None, include_path: Path | None = None
) -> FoundTasks:
    """lm-eval's tasks of a name, with their data.

    A name that repsim and lm-eval both have is repsim's.

    Args:
        name: a task, group or tag of lm-eval or of `include_path`, a YAML file with the settings of
            a task or group, a task of the offline suite, or `offline` for all of the latter.
        data_dir: folder of `<task>.<split>.jsonl` files, read in place of the Hub. A task of one's
            own that has none there has its own data.
        include_path: folder with further tasks.

    Raises:
        RepsimError: there is no such task, or its data cannot be read.
    """
    if name == offline_suite.GROUP:
        return FoundTasks([_offline_task(member) for member in offline_suite.NAMES])
    if name in offline_suite.NAMES:
        return FoundTasks([_offline_task(name)])
    entry, manager = _find_entry(name, include_path)
    members = [entry]
    if entry.kind is Kind.TAG:
        index = manager.task_index
        members = [index[member] for member in sorted(entry.tags) if member in index]
    is_own = is_task_file(name) or all(_lies_in(member, include_path) for member in members)
    try:
        has_files = data_dir is not None and any(_has_files(each, data_dir) for each in members)
        if data_dir is not None and (has_files or not is_own):
            return FoundTasks([_task_from_files(member, data_dir) for member in members])
        with nullcontext() if is_own else cache_if_unreachable():
            loaded = manager.load([name])
    except RepsimError:
        raise
    except Exception as problem:
        # Data fail to come in many ways; without a network in most of them.
        advice = "see the task's file"
        if is_own:
            advice = f"see {name if entry.yaml_path is None else entry.yaml_path}"
        elif data_dir is None:
            advice = "--data-dir DIR reads DIR/TASK.SPLIT.jsonl instead"
        raise DataError(
            f"task {name}: its data cannot be read ({brief(problem)}); {advice}"
        ) from problem
    return FoundTasks(list(loaded["tasks"].values()), loaded["groups"])


def _find_entry(name: str, include_path: Path | None) -> tuple[Any, Any]:
    """What lm-eval's index says of a name or a file, and the registry that loads it.

    Raises:
        DataError: there is no such task, or the file is not one's settings.
    """
    if not is_task_file(name):
        manager = task_manager(include_path)
        if name not in manager.task_index:
            raise DataError(_unknown_task(name, manager.task_index))
        return manager.task_index[name], manager
    path = Path(name).expanduser()
    try:
        entry = TaskIndex.entry_from_path(path)
    except Exception as problem:  # whatever may stand in a file
        raise DataError(
            f"task {name}: not a task's settings as lm-eval has them ({brief(problem)}); they "
            "begin with task: NAME"
        ) from None
    if entry is None:
        there = "names neither a task nor a group" if path.is_file() else "no such file"
        raise DataError(f"task {name}: {there}")
    # Only groups name other tasks, for which everything has to be known.
    needs_index = entry.kind is Kind.GROUP
    manager = task_manager(include_path) if needs_index else own_task_manager(include_path)
    return entry, manager


def _unknown_task(name: str, index: Mapping[str, Any]) -> str:
    close = get_close_matches(name, [*offline_suite.NAMES, offline_suite.GROUP, *index], n=3)
    hint = f"the offline suite is {offline_suite.GROUP}"
    if close:
        hint = f"did you mean {', '.join(close)}?"
    return f"task {name!r}: neither lm-eval's nor repsim's; {hint}"


def _lies_in(entry: Any, folder: Path | None) -> bool:
    """Whether a task's settings are in a folder of one's own."""
    path = entry.yaml_path
    if folder is None or path is None:
        return False
    return Path(path).resolve().is_relative_to(folder.resolve())


def _has_files(entry: Any, data_dir: Path) -> bool:
    return any(data_dir.glob(f"{glob.escape(str(entry.name))}.*.jsonl"))


def prepare(task: Any, shots: int | None, prompting: Prompting = PLAIN) -> Any:
    """Sets a task up as lm-eval's own evaluation does.

    Args:
        task: from `find_tasks`.
        shots: solved examples before each; the task's own number by default. A task that is
            explicitly 0-shot stays so.
        prompting: its settings for writing replace those of a task that has text written.

    Returns:
        The same task.

    Raises:
        RepsimError: the task runs code that the model wrote, or shows it pictures.
    """
    own_shots = task.get_config("num_fewshot")
    if shots and own_shots == 0:
        log.warning(
            "task %s: 0-shot by its own settings; --shots does not change it", task.config.task
        )
    if shots is not None and own_shots != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif own_shots is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if prompting.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(prompting.gen_kwargs), update=True)
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise DataError(
            f"task {task.config.task}: it runs code that the model wrote, or shows it pictures; "
            "repsim does neither"
        )
    return task


def explain_data_error(config: Mapping[str, Any], problem: Exception) -> DataError:
    """What to tell of an error that a task's own code raised on the user's files.

    Args:
        config: the task's configuration, whose data are files with a JSON object per line.
        problem: the error.

    Returns:
        An error that names the first line at which the task fails, if one line is at fault, or
        else the files.
    """
    name, files = config["task"], task_files.line_files(config)
    for path in files.values():
        if number := _first_failing_line(config, list(task_files.read_rows(Path(path)))):
            return DataError(
                f"task {name}: {path} line {number}: {brief(problem)}; does the line have the "
                "task's fields?"
            )
    return DataError(
        f"task {name}: {', '.join(files.values())}: {brief(problem)}; do they have the task's "
        "fields?"
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps progress bars and remarks of lm-eval and datasets off the screen."""
    loggers = [logging.getLogger(library) for library in ("lm_eval", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _offline_task(name: str) -> Any:
    return ConfigurableTask(config=offline_suite.make_config(name))


def _task_from_files(entry: Any, folder: Path) -> Any:
    """A task whose data are files, each of which is checked first.

    Raises:
        RepsimError: a file is missing or wrong; the line at fault is named.
    """
    config = _config_for_files(entry, folder)
    for path in config["dataset_kwargs"]["data_files"].values():
        try:
            task_files.check_file(Path(path))
        except RepsimError as problem:
            raise DataError(f"task {entry.name}: {problem}") from None
    try:
        return ConfigurableTask(config=config)
    except Exception as problem:  # a task's own code meets its data
        raise explain_data_error(_config_for_files(entry, folder), problem) from problem


def _config_for_files(entry: Any, folder: Path) -> dict[str, Any]:
    """A task's configuration with files in place of the Hub's splits.

    Raises:
        RepsimError: the task cannot be read from files, or none of its files is there.
    """
    name, path = entry.name, entry.yaml_path
    config = {} if path is None else load_yaml(path)
    if "task" not in config or "class" in config or not isinstance(config["task"], str):
        raise DataError(
            f"task {name}: a group, or data made by code of its own; name tasks with --data-dir"
        )

    # Of the splits that the task names, those whose files exist; one of them has to be asked about.
    splits = sorted({str(config[key]) for key in SPLITS if config.get(key)})
    files = {split: folder / f"{name}.{split}.jsonl" for split in splits}
    existing = {split: str(file) for split, file in files.items() if file.is_file()}
    if not existing.keys() & {config.get("validation_split"), config.get("test_split")}:
        raise DataError(
            f"task {name}: none of its files is there: {', '.join(map(str, files.values()))}"
        )
    config |= {key: config.get(key) if config.get(key) in existing else None for key in SPLITS}

    # Where solved examples can only come from the split asked about, lm-eval leaves the example
    # itself out of them if that split is named for both.
    brings_solved_examples = (config.get("fewshot_config") or {}).get("samples")
    has_other_split = any(config[key] for key in SPLITS if key != "test_split")
    if not brings_solved_examples and not has_other_split:
        config["fewshot_split"] = config["test_split"]

    config = {key: value for key, value in config.items() if key not in GROUP_SETTINGS}
    return config | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": existing},
    }


def _first_failing_line(
    config: Mapping[str, Any], rows: Sequence[tuple[int, dict[str, Any]]]
) -> int | None:
    """The number of the first line at which the task fails; None where it takes them all.

    A binary search: of a file's beginnings, exactly those that hold the line fail.
    """
    if not _fails_on(config, rows):
        return None
    # Invariant: the task takes the first `good` rows and fails on the first `bad`.
    good, bad = 0, len(rows)
    while bad - good > 1:
        middle = (good + bad) // 2
        if _fails_on(config, rows[:middle]):
            bad = middle
        else:
            good = middle
    return rows[bad - 1][0]


def _fails_on(config: Mapping[str, Any], rows: Sequence[tuple[int, dict[str, Any]]]) -> bool:
    """Whether a task fails to make requests of these rows, whatever split they are of."""
    try:
        data = Dataset.from_list([row for _, row in rows])
        splits = DatasetDict(dict.fromkeys(task_files.line_files(config), data))
        settings = {**deepcopy(dict(config)), "custom_dataset": lambda **_: splits}
        task = prepare(ConfigurableTask(config=settings), 0)
        task.build_all_requests()
        if task.OUTPUT_TYPE == "multiple_choice":
            for instance in task.instances:
                task.doc_to_choice(instance.doc)
                task.doc_to_target(instance.doc)
    except Exception:
        return True
    return False
