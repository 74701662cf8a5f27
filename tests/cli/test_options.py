"""Options of commands are made from records: a field becomes an option, spelled once."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

import repsim
from repsim.cli.app import app
from repsim.cli.capture import capture
from repsim.cli.evaluate import evaluate
from repsim.cli.options import (
    byte_count,
    help_of,
    keywords_from,
    parameters_of,
    set_parameters,
)
from repsim.options import (
    CAPTURE_RECORDS,
    EVALUATE_RECORDS,
    NOT_OF_EVALUATE,
    Option,
    option,
    options_of,
)
from support.cli import main


@dataclass(frozen=True)
class Painting:
    """Options that no command of repsim's has."""

    brush: str = option("flat", "Shape.", choices=("flat", "round"), short="-b")
    layers: int | None = option(None, "At most LAYERS of them.", least=1)
    colour: str = option("ochre", "Repeatable.", repeatable=True)
    varnish: bool = option(False, "Shines.")
    canvas: str | Path | None = option(None, "Size.", metavar="SIZE")  # noqa: RUF009


def invoke(*arguments: str) -> dict[str, Any]:
    """What a command with the options of `Painting` is given."""
    given: dict[str, Any] = {}

    def paint(**options: Any) -> None:
        given.update(options)

    set_parameters(paint, *parameters_of(Painting))
    app = typer.Typer()
    app.command()(paint)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return given


def test_a_field_becomes_an_option_with_its_default() -> None:
    assert invoke() == {
        "brush": "flat",
        "layers": None,
        "colour": ["ochre"],
        "varnish": False,
        "canvas": None,
    }


def test_a_field_says_type_short_form_and_whether_it_is_repeated() -> None:
    words = "-b round --layers 3 --colour red --colour blue --varnish --canvas 2kB"
    assert invoke(*words.split()) == {
        "brush": "round",
        "layers": 3,
        "colour": ["red", "blue"],
        "varnish": True,
        "canvas": 2000,
    }


def test_help_names_the_choices_once() -> None:
    assert help_of(Option("Shape.", choices=("flat", "round"))) == "Shape: flat or round."
    text = "none or all of it, or some."
    assert help_of(Option(text, choices=("none", "all", "some"))) == text


@pytest.mark.parametrize(
    ("command", "records", "without"),
    [(capture, CAPTURE_RECORDS, ()), (evaluate, EVALUATE_RECORDS, NOT_OF_EVALUATE)],
)
def test_a_command_has_every_option_of_its_records(
    command: Any, records: tuple[type, ...], without: tuple[str, ...]
) -> None:
    parameters = inspect.signature(command).parameters
    options = {name: about for name, (_, about) in options_of(*records).items()}
    assert set(options) - set(without) == set(parameters) - {"model", "quiet", "contexts"}
    for name, about in options.items():
        if name in without:
            continue
        (_, declared) = get_args(parameters[name].annotation)
        # As Typer reads them; a switch has a second one, after a bar.
        spellings = [
            spelling
            for text in (declared.default, *declared.param_decls)
            for spelling in text.split("/")
        ]
        assert f"--{name.replace('_', '-')}" in spellings
        assert about.short is None or about.short in spellings
        assert declared.help
        assert declared.min == about.least
        assert about.repeatable == (get_origin(parameters[name].annotation.__origin__) is list)


@pytest.mark.parametrize(
    ("words", "sharing"),
    [
        ((), "auto"),
        (("--contexts", "trees"), "on"),
        (("--contexts", "rows"), "off"),
        (("--contexts", "auto"), "auto"),
        (("--prefix-sharing", "off"), "off"),
    ],
)
def test_the_old_spelling_of_an_option_is_taken(
    words: tuple[str, ...], sharing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def keywords(values: Any) -> dict[str, Any]:
        given.update(keywords_from(values))
        return dict(given)

    def refuse(*_: Any, **__: Any) -> None:
        raise repsim.RepsimError("not computed")

    monkeypatch.setattr("repsim.cli.evaluate.keywords_from", keywords)
    monkeypatch.setattr(repsim, "evaluate", refuse)
    assert main("evaluate", *words) == 2
    assert given["prefix_sharing"] == sharing
    assert "contexts" not in given


def test_the_old_spelling_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("evaluate", "--help") == 0
    shown = capsys.readouterr().out
    assert "--prefix-sharing" in shown
    assert "--contexts" not in shown


def parsers(command: Any, parent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Every command with the words that lead to it, and its own parser."""
    name = "repsim" if parent is None else command.name
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    if not hasattr(command, "list_commands"):
        yield context.command_path, command, command.make_parser(context)
        return
    for name in command.list_commands(context):
        yield from parsers(command.get_command(context, name), context)


def test_options_of_all_commands_are_taken_with_dashes_and_with_underscores() -> None:
    seen = set()
    for path, command, parser in parsers(typer.main.get_command(app)):
        seen.add(path)
        for item in command.params:
            if item.param_type_name != "option":
                continue
            words = [] if item.is_flag else ["some_value-here"]
            for spelling in (*item.opts, *item.secondary_opts):
                assert "_" not in spelling, path  # as help shows it
                underscored = "--" + spelling.removeprefix("--").replace("-", "_")
                texts = (spelling, underscored if spelling.startswith("--") else spelling)
                given, other = (parser.parse_args(args=[text, *words])[0] for text in texts)
                assert given == other, path
                assert item.name in given, path
    names = {"repsim capture", "repsim evaluate", "repsim analyze cosine", "repsim plans show"}
    assert names <= seen


def test_an_unknown_option_is_shown_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("evaluate", "--num_fewshots", "3") == 2
    message = capsys.readouterr().err
    assert "No such option: --num-fewshots (Possible options: " in message
    assert "--num-fewshot, " in message


def test_both_spellings_of_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def note(_model: str, progress: object, **options: Any) -> None:
        given.append(options)

    monkeypatch.setattr(repsim, "evaluate", note)
    for words in (
        "--num_fewshot 3 --batch_tokens=64 --tasks=arc_easy",
        "--num-fewshot 3 --batch-tokens=64 --tasks=arc_easy",
        "--shots 3 --batch_tokens=64 --tasks=arc_easy",
    ):
        assert main("evaluate", "--quiet", *words.split()) == 0
    assert given[0] == given[1] == given[2]
    assert (given[0]["shots"], given[0]["batch_tokens"]) == (3, 64)
    assert given[0]["tasks"] == "arc_easy"


@pytest.mark.parametrize(
    ("words", "value"),
    [((), None), (("--fewshot_as_multiturn",), True), (("--no-fewshot-as-multiturn",), False)],
)
def test_a_switch_may_be_left_as_it_is(
    words: tuple[str, ...], value: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(repsim, "evaluate", lambda _model, **options: given.update(options))
    assert main("evaluate", "--quiet", *words) == 0
    assert given["fewshot_as_multiturn"] is value


@pytest.mark.parametrize(
    ("text", "count"),
    [("12", 12), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("2tb", 2 * 10**12), ("3k", 3000)],
)
def test_sizes(text: str, count: int) -> None:
    assert byte_count(text) == count
