"""Drawings and descriptions of plans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repsim.errors import PlanError
from repsim.plans import Plan, describe, draw, parse_plan, resolve
from support.plans import EXAMPLES, plans


def test_drawing_and_description() -> None:
    plan = parse_plan("0-6, 10-8, (7|11), (2|4)*3, 11*2, 5.mlp, 11", 12)
    assert draw(plan, 12).splitlines() == [
        " step  0         10",
        "  1-7  ○─────▸·····  0-6",
        " 8-10  ········◂─○·  10-8",
        "   11  ·······┃···┃  mean of 2",
        "12-14  ··┃·┃·······  mean of 2, 3 times",
        "15-16  ···········●  11, 2 times",
        "   17  ·····m······  5.mlp",
        "   18  ···········●  11",
        "steps: 18; layer applications: 22; every layer runs",
    ]
    assert describe(plan) == [
        "steps 1-7: layers 0 to 6",
        "steps 8-10: layers 10 to 8, backwards",
        "step 11: layers 7, 11 in parallel, outputs averaged",
        "steps 12-14: layers 2, 4 in parallel, outputs averaged, 3 times",
        "steps 15-16: layer 11, 2 times",
        "step 17: layer 5 without its attention",
        "step 18: layer 11",
    ]
    assert describe(parse_plan("0.attn, 1", 2))[0] == "step 1: layer 0 without its MLP"


def test_drawing_of_deep_models_shares_columns() -> None:
    lines = draw(parse_plan("0-30, 50-79", 80), 80).splitlines()
    assert lines[0] == " step  0         20        40        60  (1 column: 2 layers)"
    assert lines[1].split() == ["1-31", "○" + "─" * 14 + "▸" + "·" * 24, "0-30"]
    assert lines[-1] == "steps: 61; layer applications: 61; never run: 31-49"


@given(plans, st.sampled_from([12, 30, 48, 49, 80, 126]))
def test_drawing_fits_the_terminal(plan: Plan, layers: int) -> None:
    lines = draw(plan, layers).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(describe(plan)) < len(lines)


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_of_every_family_is_drawn_and_described(text: str) -> None:
    plan = resolve(text, 6)[0].plan
    head, *rows, summary = draw(plan, 6, wrap=None).splitlines()
    assert head.split() == ["step", "0"]
    assert len(rows) == len(describe(plan)) == len(plan.pieces)
    assert summary.startswith(f"steps: {len(plan)}; layer applications: {plan.applications}; ")


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(PlanError, match="layer 30: a 30-layer model allows 0 to 29"):
        draw(Plan.from_steps([0, 30]), 30)
