"""What a run was asked for, as a store keeps it: compared, and written as a command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repsim.options import ALL_RECORDS, BUILTIN, options_of, with_new_names

FOLDERS = ("data_dir", "include_path")  # options that name one
# Options for which False is a choice and not the same as leaving them out.
SWITCHES = tuple(
    name
    for name, (item, _) in options_of(*ALL_RECORDS).items()
    if item.default is None and "bool" in str(item.type)
)


def storable(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as a store keeps it: texts and numbers, nothing that was not asked for, no paths.

    Example:
        >>> storable({"corpus": "/home/me/own.txt", "statistics": ("cosine", "norms"), "shots": 0})
        {'corpus': 'own.txt', 'statistics': 'cosine,norms', 'shots': 0}
        >>> storable({"tasks": "arc_easy,/home/me/own.yaml", "gen_kwargs": {"max_gen_toks": 32}})
        {'tasks': 'arc_easy,own.yaml', 'gen_kwargs': '{"max_gen_toks": 32}'}
    """
    stored: dict[str, Any] = {}
    for name, value in request.items():
        if name in ("statistics", "tasks"):
            words = names_in(value)
            value = ",".join(Path(word).name if is_task_file(word) else word for word in words)
        # Zero is a number of solved examples, and equal to False.
        if value is None or value == "" or (value is False and name not in SWITCHES):
            continue
        if name == "corpus" and not str(value).startswith("hf:"):
            value = Path(value).name
        elif name in FOLDERS:
            value = "DIR"
        elif isinstance(value, Mapping):
            value = json.dumps(value, sort_keys=True)
        elif name == "model_dtype":
            value = str(value).removeprefix("torch.")
        stored[name] = value
    return stored


def names_in(text: str | Sequence[str]) -> list[str]:
    """Names of a list, or with commas.

    Example:
        >>> names_in("cosine, norms,")
        ['cosine', 'norms']
    """
    names = text.split(",") if isinstance(text, str) else text
    return [name.strip() for name in names if name.strip()]


def is_task_file(name: str) -> bool:
    """Whether a task's name is that of a file with its settings.

    Example:
        >>> is_task_file("tasks/own.yaml"), is_task_file("arc_easy")
        (True, False)
    """
    return name.endswith((".yaml", ".yml"))


def unnamed_files(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Files and folders that stored requests name without saying where they are."""
    names = {request.get(option) for request in requests for option in ("corpus", *FOLDERS)}
    for request in requests:
        names |= {name for name in names_in(request.get("tasks", "")) if is_task_file(name)}
    return sorted(
        str(name) for name in names - {None, "", BUILTIN} if not str(name).startswith("hf:")
    )


def is_same_request(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two requests ask for the same numbers, however they are computed.

    Example:
        >>> is_same_request({"plan": ["fig2"], "batch_tokens": 64}, {"plan": ["fig2"]})
        True
    """
    first, second = ({**with_new_names(request), "batch_tokens": None} for request in (one, other))
    return first == second


def commands(maker: str, requests: Sequence[Mapping[str, Any]], path: Path | str) -> list[str]:
    """Requests that a store keeps, as commands for the shell."""
    return [
        _command(maker, request, path, ["--append"] * bool(row))
        for row, request in enumerate(requests)
    ]


def _command(maker: str, request: Mapping[str, Any], path: Path | str, more: Sequence[str]) -> str:
    words = [*maker.split(), str(request["model"])]
    for name, value in request.items():
        if name == "model":
            continue
        option = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool):
                words.append(option if one else f"--no-{option.removeprefix('--')}")
            else:
                words += [option, str(one)]
    return shlex.join([*words, "--out", str(path), *more])
