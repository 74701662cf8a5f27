"""Options of commands, made from records of options (`repsim.options`) and from signatures.

An option is spelled once, where it is used; nothing here knows one by name except those that only
a command has.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any

import typer

from repsim.cli.printing import literal
from repsim.errors import RepsimError
from repsim.options import ALIASES, Option, options_of, with_new_names

POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
PREFIXES = " kmgtp"

ModelArgument = Annotated[str, typer.Argument(help="Embedded name, hub id, folder or GGUF file.")]
StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="A capture or scores: a folder or a URL.")
]
StoresArgument = Annotated[
    list[str], typer.Argument(metavar="STORE...", help="Captures, or scores: folders or URLs.")
]
LabelOption = Annotated[
    list[str],
    typer.Option(
        "--label",
        metavar="LABEL",
        help="What to call a store in figures and files; once per store.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="Where sums over stored states are made: cpu, cuda, cuda:1 ...; auto: on a graphics "
        "card where there is one."
    ),
]
FiguresOption = Annotated[Path, typer.Option(help="Folder for the figure and the data behind it.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def byte_count(text: str) -> int:
    """`500MB`, `1.5 GiB` or plain bytes as a number.

    Raises:
        RepsimError: it is none of these.

    Example:
        >>> byte_count("1.5 GiB")
        1610612736
    """
    match = re.fullmatch(r"([0-9]{1,15}[.]?[0-9]*) *(?:([kmgtp])(i?)b?|b?)", text.strip().lower())
    if not match:
        raise RepsimError(f"size {text!r}: write e.g. 500MB, 2TB or 10GiB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (PREFIXES.index(prefix or " ")))


# What a command makes of a value, by the option's metavar, where that is more than its type.
PARSED: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "SIZE": (int, {"parser": byte_count}),
    "DIR": (Path, {"exists": True, "file_okay": False}),
}


def parameters_of(
    *records: type, without: Sequence[str] = (), **helps: str
) -> list[inspect.Parameter]:
    """Every option of these records as a command's parameter; spellings of earlier releases are
    taken, not shown.

    Args:
        records: classes of options, see `repsim.options`.
        without: names of options that the command does not have.
        **helps: what a command says of an option in place of the record's help.
    """
    options = {
        name: described for name, described in options_of(*records).items() if name not in without
    }
    shown = [
        _parameter(name, item, about, helps.get(name, help_of(about)))
        for name, (item, about) in options.items()
    ]
    hidden = [
        inspect.Parameter(
            alias,
            POSITIONAL,
            default=None,
            annotation=Annotated[str | None, typer.Option(hidden=True)],
        )
        for alias, (name, values) in ALIASES.items()
        if name in options and values
    ]
    return [*shown, *hidden]


def dashed(name: str) -> str:
    """An option's name as it is looked up: `--batch_tokens` is `--batch-tokens`.

    Example:
        >>> dashed("num_fewshot")
        'num-fewshot'
    """
    return name.replace("_", "-")


def keywords_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a command was given, as keywords of the function it calls: today's names, no aliases
    that were left out.
    """
    return with_new_names(
        {name: value for name, value in values.items() if name not in ALIASES or value is not None}
    )


def help_of(about: Option) -> str:
    """An option's help, with its choices where the text does not name them all.

    Example:
        >>> help_of(Option("Dtype of the stored states.", choices=("float16", "float32")))
        'Dtype of the stored states: float16 or float32.'
    """
    if not about.choices or set(about.choices) <= set(re.findall(r"[\w-]+", about.help)):
        return about.help
    *others, last = about.choices
    return f"{about.help.rstrip('.')}: {', '.join(others)} or {last}."


def _parameter(name: str, item: Field[Any], about: Option, help_text: str) -> inspect.Parameter:
    """One field of a record as a command's parameter.

    Its type is read from the annotation's text: `bool` is a flag, `int` and `float` are numbers,
    everything else is a word; the function that is called makes more of it.
    """
    words = set(re.findall(r"\w+", str(item.type)))
    more: dict[str, Any] = {"help": literal(help_text), "min": about.least}
    # Help that says "the first LIMIT texts" needs LIMIT to stand for the value.
    named_in_help = name.upper() if name.upper() in re.findall(r"\w+", help_text) else None
    more["metavar"] = about.metavar or named_in_help
    taken: Any = next((kind for kind in (bool, int, float) if kind.__name__ in words), str)
    if about.metavar is not None and about.metavar in PARSED:
        taken, settings = PARSED[about.metavar]
        more |= settings
    default = None if item.default is MISSING else item.default
    if about.repeatable:
        taken, default = list[taken], [default]
    elif default == ():  # words with commas, none by default
        default = ""
    elif default is None:
        taken = taken | None
    synonyms = [alias for alias, meant in ALIASES.items() if meant == (name, {})]
    spellings = [f"--{text.replace('_', '-')}" for text in (name, *synonyms)]
    if "bool" in words and item.default is None:  # neither asked for nor asked against
        spellings = [f"{text}/--no-{text.removeprefix('--')}" for text in spellings]
    spellings += filter(None, [about.short])
    return inspect.Parameter(
        name,
        POSITIONAL,
        default=default,
        annotation=Annotated[taken, typer.Option(*spellings, **more)],
    )


def parameter(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    """A parameter that no record and no signature has."""
    return inspect.Parameter(name, POSITIONAL, default=default, annotation=annotation)


def set_parameters(command: Callable[..., None], *parameters: inspect.Parameter) -> None:
    """Gives a command these parameters, for Typer to read, as if its signature had them."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
