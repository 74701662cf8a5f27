"""What a run was asked for, as a store keeps it: compared, and written as a command.

An object that was in memory is kept as `IN_MEMORY` and nothing else. No command can name it, so
such a request is written as a call in Python, in which the option's name stands for the object.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repsim.options import BUILTIN, IN_MEMORY, STDIN, with_new_names


def storable(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as a store keeps it: texts and numbers, nothing that was not asked for, no paths.

    Example:
        >>> storable({"corpus": "/home/me/own.txt", "statistics": ("cosine", "norms"), "shots": 0})
        {'corpus': 'own.txt', 'statistics': 'cosine,norms', 'shots': 0}
    """
    stored: dict[str, Any] = {}
    for name, value in request.items():
        if name in ("statistics", "tasks"):
            value = ",".join(names_in(value))
        # Zero is a number of solved examples, and equal to False.
        if value is None or value is False or value == "":
            continue
        if name == "corpus" and not str(value).startswith("hf:"):
            value = Path(value).name or Path(value).resolve().name
        elif name == "data_dir":
            value = "DIR"
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


def unnamed_files(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Files and folders that stored requests name without saying where they are."""
    names = {request.get(option) for request in requests for option in ("corpus", "data_dir")}
    return sorted(
        str(name)
        for name in names - {None, "", BUILTIN, STDIN, IN_MEMORY}
        if not str(name).startswith("hf:")
    )


def reads_stdin(requests: Sequence[Mapping[str, Any]]) -> bool:
    """Whether texts came from standard input."""
    return any(request.get("corpus") == STDIN for request in requests)


def is_in_memory(requests: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a model, or the value of an option, was an object in memory."""
    return any(IN_MEMORY in map(str, request.values()) for request in requests)


def is_same_request(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two requests ask for the same numbers, however they are computed.

    The dtype of a store's states is the store's, whether a request names it or leaves it open.

    Example:
        >>> is_same_request({"plan": ["fig2"], "batch_tokens": 64}, {"plan": ["fig2"]})
        True
    """
    first, second = (
        {**with_new_names(request), "batch_tokens": None, "dtype": None} for request in (one, other)
    )
    return first == second


def commands(
    maker: str, requests: Sequence[Mapping[str, Any]], path: Path | str, *, repair: bool = False
) -> list[str]:
    """Requests that a store keeps, as commands for the shell; as calls in Python where something
    was in memory.

    Args:
        maker: the command that makes such a store, e.g. `repsim capture`.
        requests: the first one made it, the others added to it.
        path: of the store.
        repair: whether the commands are to repair it.

    Example:
        >>> request = {"model": "m", "plan": ["fig2"], "corpus": "<memory>"}
        >>> commands("repsim capture", [request], "c.zarr")
        ["repsim.capture('m', plan=['fig2'], corpus=CORPUS, out='c.zarr')"]
    """
    write = _call if is_in_memory(requests) else _command
    return [
        write(maker, request, path, [*["append"] * bool(row), *["repair"] * repair])
        for row, request in enumerate(requests)
    ]


def _call(maker: str, request: Mapping[str, Any], path: Path | str, flags: Sequence[str]) -> str:
    values = {**request, "out": str(path), **dict.fromkeys(flags, True)}
    texts = {
        name: name.upper() if value == IN_MEMORY else repr(value) for name, value in values.items()
    }
    model = texts.pop("model")
    options = [f"{name}={text}" for name, text in texts.items()]
    return f"{maker.replace(' ', '.')}({', '.join([model, *options])})"


def _command(maker: str, request: Mapping[str, Any], path: Path | str, flags: Sequence[str]) -> str:
    words = [*maker.split(), str(request["model"])]
    for name, value in request.items():
        if name == "model":
            continue
        option = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            words += [option] if one is True else [option, str(one)]
    return shlex.join([*words, "--out", str(path), *(f"--{flag}" for flag in flags)])
