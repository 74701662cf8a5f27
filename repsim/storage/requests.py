"""What a run was asked for, as a store keeps it: compared, and written as a command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repsim.options import with_new_names


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
