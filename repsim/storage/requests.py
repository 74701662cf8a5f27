"""What a run was asked for, as a store keeps it: compared, and written as a command.

Of objects in memory a request keeps that there were any: a model or tokenizer is named under
`OBJECTS`, and the value of another option is `IN_MEMORY`. No command can name them, so such a
request is written as a call of Python, in which the option's name stands for the object.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repsim.options import (
    ALL_RECORDS,
    BUILTIN,
    IN_MEMORY,
    STDIN,
    options_of,
    with_new_names,
)

FOLDERS = ("data_dir", "include_path")  # options that name one
# Options for which False is a choice and not the same as leaving them out.
SWITCHES = tuple(
    name
    for name, (item, _) in options_of(*ALL_RECORDS).items()
    if item.default is None and "bool" in str(item.type)
)

# Options for which Python takes an object.
MAY_BE_OBJECTS = tuple(
    name for name, (_, about) in options_of(*ALL_RECORDS).items() if about.objects
)
OBJECTS = "in_memory"  # in a request: `model` or `tokenizer`, handed over as an object
# What changes no number, or is a part of what a store's numbers depend on and checked there.
NOT_COMPARED = ("batch_tokens", "dtype", "tokenizer", "attn_implementation", OBJECTS)


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
            value = Path(value).name or Path(value).resolve().name
        elif name in FOLDERS:
            value = "DIR"
        elif name == "tokenizer":
            if not isinstance(value, str | Path):  # an object, of which `in_memory` tells
                continue
            value = Path(value).resolve().name if Path(value).exists() else str(value)
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


def is_path(corpus: object) -> bool:
    """Whether the name of a corpus is that of a file or folder.

    Example:
        >>> is_path("own.txt"), is_path("builtin"), is_path("hf:glue/sst2:test:sentence")
        (True, False, False)
    """
    return corpus not in (BUILTIN, STDIN, IN_MEMORY) and not str(corpus).startswith("hf:")


def files_of(requests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Option -> the file or folder that stored requests name without saying where it is.

    Example:
        >>> files_of([{"corpus": "own.txt"}, {"corpus": "hf:glue/sst2:validation:sentence"}])
        {'corpus': 'own.txt'}
        >>> files_of([{"tasks": "arc_easy,own.yaml"}])
        {'tasks': 'own.yaml'}
    """
    files = {
        option: str(request[option])
        for option in ("corpus", *FOLDERS)
        for request in requests
        if request.get(option) not in (None, "") and is_path(request[option])
    }
    tasks = [name for request in requests for name in names_in(request.get("tasks", ""))]
    if own := list(dict.fromkeys(filter(is_task_file, tasks))):
        files["tasks"] = ", ".join(own)
    return files


def located(
    requests: Sequence[Mapping[str, Any]], places: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Requests with the places of files and folders, which no store keeps.

    Args:
        requests: as a store keeps them.
        places: option -> where its file or folder is; None where that is not known.
    Example:
        >>> located([{"corpus": "own.txt", "limit": 5}], {"corpus": "/home/me/own.txt"})
        [{'corpus': '/home/me/own.txt', 'limit': 5}]
    """
    known = {option: str(place) for option, place in places.items() if place is not None}
    return [
        {name: known.get(name, value) for name, value in request.items()} for request in requests
    ]


def reads_stdin(requests: Sequence[Mapping[str, Any]]) -> bool:
    """Whether texts came from standard input."""
    return any(request.get("corpus") == STDIN for request in requests)


def is_same_request(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two requests ask for the same numbers, however they are computed.

    The dtype of a store's states is the store's, whether a request names it or leaves it open.

    Example:
        >>> is_same_request({"plan": ["fig2"], "batch_tokens": 64}, {"plan": ["fig2"]})
        True
    """
    first, second = (
        {**with_new_names(request), **dict.fromkeys(NOT_COMPARED)} for request in (one, other)
    )
    return first == second


def objects_in(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stored requests were given as objects in memory, by its option.

    Example:
        >>> objects_in([{"model": "my-run", "in_memory": "model,tokenizer"}, {"model": "my-run"}])
        ['model', 'tokenizer']
    """
    return list(dict.fromkeys(o for request in requests for o in _objects_of(request)))


def commands(
    maker: str, requests: Sequence[Mapping[str, Any]], path: Path | str, *, repair: bool = False
) -> list[str]:
    """Requests that a store keeps, as commands for the shell, or as calls of Python.

    A request of objects in memory is a call, since no shell has them; with `repair`, all are calls
    where one is.
    """
    is_python = repair and bool(objects_in(requests))
    written = []
    for row, request in enumerate(requests):
        write = _call if is_python or _objects_of(request) else _command
        written.append(write(maker, request, path, append=row > 0, repair=repair))
    return written


def _objects_of(request: Mapping[str, Any]) -> list[str]:
    """Names of options whose value was an object, `model` among them."""
    handed_over = names_in(request.get(OBJECTS, ""))
    return handed_over + [name for name in MAY_BE_OBJECTS if request.get(name) == IN_MEMORY]


def _command(
    maker: str, request: Mapping[str, Any], path: Path | str, *, append: bool, repair: bool
) -> str:
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
    more = ["--append"] * append + ["--repair"] * repair
    return shlex.join([*words, "--out", str(path), *more])


def _call(
    maker: str, request: Mapping[str, Any], path: Path | str, *, append: bool, repair: bool
) -> str:
    """A request as a call of Python; objects go by the names of their options."""
    objects = _objects_of(request)
    options = {name: repr(value) for name, value in request.items() if name != OBJECTS}
    model = options.pop("model")
    options |= {name: name for name in objects if name != "model"}
    if "model" in objects:
        options.setdefault("tokenizer", "tokenizer")
        loading: dict[str, str] = {
            name: options.pop(name) for name in ("tokenizer", "stack") if name in options
        }
        model = f"repsim.models.load(model, {_keywords(loading)}, name={model})"
    options["out"] = repr(str(path))
    options |= dict.fromkeys(["append"] * append + ["repair"] * repair, "True")
    return f"{maker.replace(' ', '.')}({model}, {_keywords(options)})"


def _keywords(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
