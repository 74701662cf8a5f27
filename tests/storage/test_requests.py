"""Requests that a store keeps: compared across releases, and as commands that ask for the same."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import repsim
from repsim.captures.reader import Capture
from repsim.evaluation.reader import Scores
from repsim.options import (
    CAPTURE_RECORDS,
    EVALUATE_RECORDS,
    IN_MEMORY,
    Option,
    from_keywords,
    options_of,
    request_of,
)
from repsim.storage.requests import commands, files_of, is_same_request, storable
from support.cli import main

RECORDS = {Capture.maker: CAPTURE_RECORDS, Scores.maker: EVALUATE_RECORDS}
OUT = "s3://bucket/it's a b.zarr"


# Requests of anything, and what becomes of them


# Whatever a shell may stumble over, but no leading dash: to a parser that is another option.
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and not text.startswith("-")
)


def values_of(kind: str, about: Option) -> st.SearchStrategy[Any]:
    """Values of an option as a store keeps them, by the option's type as its record spells it."""
    if about.metavar == "DIR":
        return st.just(".")  # the parser wants it to be there
    if about.repeatable:
        return st.lists(words, min_size=1, max_size=3)
    if about.choices:
        return st.sampled_from(about.choices)
    if re.search(r"\bbool\b", kind):
        return st.just(True)
    if re.search(r"\bint\b", kind):
        return st.integers(about.least or 0, 10**9)
    # No text file is called what stands for texts in memory.
    return words.filter(lambda word: word != IN_MEMORY) if about.objects else words


@st.composite
def requests_of(draw: st.DrawFn, maker: str) -> dict[str, Any]:
    """A model, plans, and some or all of the options that a store keeps, none at its default."""
    request: dict[str, Any] = {"model": draw(words), "plan": ["baseline"]}
    is_whole = draw(st.booleans())
    for name, (item, about) in options_of(*RECORDS[maker]).items():
        if about.kept and (is_whole or draw(st.booleans())):
            value = draw(values_of(str(item.type), about))
            if value != item.default:
                request[name] = value
    return request


def arguments_from(command: str) -> dict[str, Any]:
    """What the command line hands to the function of a command; nothing is computed."""
    program, function, *arguments = shlex.split(command)
    assert program == "repsim"
    calls: list[dict[str, Any]] = []

    def note(model: str, **options: Any) -> None:
        calls.append({"model": model, **options})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repsim, function, note)
        assert main(function, *arguments, "--quiet") == 0
    (given_arguments,) = calls
    return given_arguments


def request_from(maker: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a store would keep of these arguments."""
    options = request_of(*(from_keywords(record, arguments) for record in RECORDS[maker]))
    kept = {name: value for name, value in options.items() if value != ""}
    for name in {"data_dir", "include_path"} & kept.keys():
        kept[name] = str(kept[name])
    return {"model": arguments["model"], **kept}


# Compared


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ({"limit": 5, "shots": 1}, {"shots": 1, "limit": 5}, True),
        ({"limit": 5}, {"limit": 6}, False),
        ({"limit": 5}, {}, False),
        ({"plan": ["baseline", "fig2"]}, {"plan": ["fig2", "baseline"]}, False),
        # How many tokens are computed together changes no number.
        ({"batch_tokens": 64}, {"batch_tokens": 128}, True),
        ({"batch_tokens": 64}, {}, True),
        ({"limit": 5, "batch_tokens": 64}, {"limit": 6, "batch_tokens": 64}, False),
        # The dtype is the store's, also where a request leaves it open.
        ({"dtype": "float16"}, {}, True),
        ({"limit": 5, "dtype": "float16"}, {"limit": 6}, False),
        # Spellings of an earlier release.
        ({"contexts": "trees"}, {"prefix_sharing": "on"}, True),
        ({"contexts": "rows"}, {"prefix_sharing": "off"}, True),
        ({"contexts": "rows"}, {"contexts": "rows"}, True),
        ({"contexts": "rows", "batch_tokens": 64}, {"prefix_sharing": "off"}, True),
        ({"contexts": "trees"}, {"prefix_sharing": "off"}, False),
        ({"contexts": "rows"}, {"contexts": "trees"}, False),
        ({"contexts": "rows"}, {}, False),
        # Where the model came from, what its identity tells better.
        ({"in_memory": "model,tokenizer"}, {}, True),
        ({"tokenizer": "other", "attn_implementation": "eager"}, {}, True),
    ],
)
def test_which_requests_are_the_same(
    first: dict[str, Any], second: dict[str, Any], is_same: bool
) -> None:
    before = dict(first), dict(second)
    assert is_same_request(first, second) is is_same
    assert is_same_request(second, first) is is_same
    assert (first, second) == before  # they belong to a store


# Written for the shell


def test_commands_by_hand() -> None:
    """The first makes the store, the others add to it."""
    first = {"model": "m", "plan": ["baseline", "0, 1"], "max_tokens": 7, "logprobs": True}
    second = {"model": "m", "plan": ["fig2"]}
    assert commands(Capture.maker, [first, second, second], Path("my c.zarr")) == [
        "repsim capture m --plan baseline --plan '0, 1' --max-tokens 7 --logprobs "
        "--out 'my c.zarr'",
        "repsim capture m --plan fig2 --out 'my c.zarr' --append",
        "repsim capture m --plan fig2 --out 'my c.zarr' --append",
    ]
    assert commands(Scores.maker, [second], "s.zarr") == [
        "repsim evaluate m --plan fig2 --out s.zarr"
    ]
    assert commands(Capture.maker, [], "c.zarr") == []
    assert commands(Capture.maker, [second], "c.zarr", repair=True) == [
        "repsim capture m --plan fig2 --out c.zarr --repair"
    ]


def test_requests_of_what_was_in_memory_are_calls_by_hand() -> None:
    """No command can name it, so none is written, also not for what was added from a file."""
    first = {"model": "m", "plan": ["baseline"], "corpus": IN_MEMORY, "logprobs": True}
    second = {"model": "m", "plan": ["baseline"], "corpus": "own texts.txt", "limit": 3}
    assert commands(Capture.maker, [first, second], Path("my c.zarr"), repair=True) == [
        "repsim.capture('m', plan=['baseline'], corpus=corpus, logprobs=True, "
        "out='my c.zarr', repair=True)",
        "repsim.capture('m', plan=['baseline'], corpus='own texts.txt', limit=3, "
        "out='my c.zarr', append=True, repair=True)",
    ]
    assert files_of([first, second, {"corpus": "-"}]) == {"corpus": "own texts.txt"}


def test_what_was_in_memory_is_a_call_of_python() -> None:
    named = {"model": "m", "plan": ["baseline"]}
    given = {**named, "stack": "h", "in_memory": "model,tokenizer"}
    tokenized = {**named, "in_memory": "tokenizer"}
    loading = "repsim.models.load(model, tokenizer=tokenizer, stack='h', name='m')"
    assert commands(Scores.maker, [given, tokenized, named], "s.zarr") == [
        f"repsim.evaluate({loading}, plan=['baseline'], out='s.zarr')",
        "repsim.evaluate('m', plan=['baseline'], tokenizer=tokenizer, out='s.zarr', append=True)",
        "repsim evaluate m --plan baseline --out s.zarr --append",
    ]
    # To be repaired by one after the other, all are calls.
    *_, last = commands(Scores.maker, [given, named], "s.zarr", repair=True)
    assert last == (
        "repsim.evaluate('m', plan=['baseline'], out='s.zarr', append=True, repair=True)"
    )


def test_a_switch_that_is_off_and_settings_are_part_of_a_command() -> None:
    asked = {
        "tasks": ["arc_easy", "/home/me/own.yaml"],
        "include_path": Path("/home/me"),
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "gen_kwargs": {"until": ["."], "max_gen_toks": 3},
        "trust_remote_code": False,
    }
    stored = storable({"model": "m", **asked})
    assert "/home" not in str(stored)
    assert commands(Scores.maker, [stored], "s.zarr") == [
        "repsim evaluate m --tasks arc_easy,own.yaml --include-path DIR --apply-chat-template "
        """--no-fewshot-as-multiturn --gen-kwargs '{"max_gen_toks": 3, "until": ["."]}' """
        "--out s.zarr"
    ]
    assert files_of([stored]) == {"include_path": "DIR", "tasks": "own.yaml"}


# Read back by the command line's own parser


@pytest.mark.parametrize("maker", [Capture.maker, Scores.maker])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_command_asks_for_what_the_store_keeps(maker: str, data: st.DataObject) -> None:
    """Options are drawn from the records, so a new one takes part without a word here."""
    request = data.draw(requests_of(maker))
    for row, command in enumerate(commands(maker, [request, request], OUT)):
        arguments = arguments_from(command)
        assert request_from(maker, arguments) == request
        assert (arguments["out"], arguments["append"]) == (OUT, row > 0)


@pytest.mark.parametrize(("old", "new"), [("trees", "on"), ("rows", "off")])
def test_a_request_of_an_earlier_release_is_a_command_still(old: str, new: str) -> None:
    request = {"model": "m", "plan": ["baseline"], "tasks": "recall", "contexts": old}
    (command,) = commands(Scores.maker, [request], OUT)
    assert f"--contexts {old}" in command
    again = request_from(Scores.maker, arguments_from(command))
    assert again["prefix_sharing"] == new
    assert "contexts" not in again
    assert is_same_request(request, again)
