"""What a run was asked for, as a store keeps it: compared, and written as a command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repsim.options import BUILTIN, with_new_names


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
            value = Path(value).name
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


def files_of(requests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Option -> the file or folder that stored requests name without saying where it is.

    Example:
        >>> files_of([{"corpus": "own.txt"}, {"corpus": "hf:glue/sst2:validation:sentence"}])
        {'corpus': 'own.txt'}
    """
    return {
        option: str(request[option])
        for option in ("corpus", "data_dir")
        for request in requests
        if request.get(option) not in (None, "", BUILTIN)
        and not str(request[option]).startswith("hf:")
    }


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
            words += [option] if one is True else [option, str(one)]
    return shlex.join([*words, "--out", str(path), *more])
