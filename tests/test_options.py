"""Options are spelled once: records, keywords of the functions, requests."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

import repsim
from repsim import options
from repsim.errors import RepsimError


@pytest.mark.parametrize(
    ("keywords", "records", "without"),
    [
        (options.CaptureKeywords, options.CAPTURE_RECORDS, ()),
        (options.EvaluateKeywords, options.EVALUATE_RECORDS, options.NOT_OF_EVALUATE),
        (options.ModelKeywords, (options.ModelOptions,), ()),
    ],
)
def test_keywords_of_a_function_are_the_fields_of_its_records(
    keywords: Any, records: tuple[type, ...], without: tuple[str, ...]
) -> None:
    typed = {
        name: str(item.type)
        for record in records
        for item in fields(record)
        for name in [item.name]
        if name not in without
    }
    inherited = inspect.get_annotations(options.ModelKeywords)
    own = {**inspect.get_annotations(keywords), **inherited}
    synonyms = {
        name: typed[meant]
        for name, (meant, values) in options.ALIASES.items()
        if not values and meant in typed
    }
    names = {name: getattr(kind, "__forward_arg__", str(kind)) for name, kind in own.items()}
    assert names == {**typed, **synonyms}


@pytest.mark.parametrize("function", [repsim.capture, repsim.evaluate])
def test_the_signature_shows_every_option_with_its_default(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert parameters["batch_tokens"].default == options.AUTO
    assert ("max_bytes" in parameters) == (function is repsim.capture)
    for name in list(parameters)[2:]:
        assert f"    {name}: " in function.__doc__


def test_what_is_kept_of_a_request() -> None:
    states = options.StatesOptions(tokens="last", allow_nonfinite=True)
    store = options.StoreOptions(out="a.zarr", append=True, batch_tokens=64)
    assert options.request_of(states, store) == {"tokens": "last", "batch_tokens": 64}


@pytest.mark.parametrize(
    ("record", "keywords", "message"),
    [
        (options.StoreOptions, {"batch_tokens": 0}, r"^batch_tokens=0: at least 1$"),
        (options.StatesOptions, {"keep": "some"}, r"^keep 'some': choose all or none$"),
        (
            options.StatesOptions,
            {"dtype": "bfloat16"},
            r"^dtype 'bfloat16': choose auto, float16 or float32$",
        ),
        (
            options.StatesOptions,
            {"compression": "zip"},
            r"^compression 'zip': choose none, fast or small$",
        ),
        (options.FigureOptions, {"format": ","}, r"^format ',': choose png, pdf or svg, several"),
    ],
)
def test_values_that_no_run_takes(record: type, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(RepsimError, match=message):
        options.from_keywords(record, keywords)


def test_an_unknown_option_is_refused_with_the_closest_one() -> None:
    with pytest.raises(RepsimError, match=r"^capture: no option 'limits'; did you mean limit\? "):
        repsim.capture(limits=3)  # type: ignore[call-arg]
    with pytest.raises(RepsimError, match=r"^evaluate: no option 'max_bytes'; "):
        repsim.evaluate(max_bytes=3)  # type: ignore[call-arg]


def test_spellings_of_earlier_releases() -> None:
    request = {"model": "m", "contexts": "rows", "tasks": "offline"}
    renamed = {"model": "m", "prefix_sharing": "off", "tasks": "offline"}
    assert options.with_new_names(request) == renamed
    assert options.with_new_names({"contexts": "auto"}) == {"prefix_sharing": "auto"}


def test_lm_eval_s_name_of_an_option() -> None:
    assert options.with_new_names({"num_fewshot": 2, "limit": 5}) == {"shots": 2, "limit": 5}
    assert options.with_new_names({"shots": 2, "num_fewshot": 2}) == {"shots": 2}
    with pytest.raises(RepsimError, match=r"^shots=1, num_fewshot=2: one option; give it once$"):
        options.with_new_names({"shots": 1, "num_fewshot": 2})
