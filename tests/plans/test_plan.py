"""Applications, steps and plans: their text, their JSON form and what is refused."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given

from repsim.errors import PlanError
from repsim.plans import JOIN_KINDS, Application, Plan, Step, describe, draw, parse_plan, parse_step
from support.plans import LAYERS, plans, steps

# Values worked out by hand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-13, 15-29", [*range(14), *range(15, 30)]),
        ("0-9, 19-10, 20-29", [*range(10), *range(19, 9, -1), *range(20, 30)]),
        ("0-12, (13|14|15|16)*3, 17-29", [*range(13), *[(13, 14, 15, 16)] * 3, *range(17, 30)]),
        ("0-6, 7.mlp, 8-29", [*range(7), "7.mlp", *range(8, 30)]),
        ("0-13, 14*3, 15-29", [*range(14), 14, 14, 14, *range(15, 30)]),
    ],
)
def test_examples_of_the_design_page(text: str, expected: Any) -> None:
    plan = parse_plan(text, 30)
    assert plan == Plan.from_steps(expected)
    assert plan.text == str(plan) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" 0 - 2 ,\n3 ", "0-3"),
        ("3, 2, 1, 0", "3-0"),
        ("0, 1", "0, 1"),
        ("0, 1, 0, 1, 2", "0, 1, 0-2"),
        ("5, 4, 5, 6, 5", "5, 4-6, 5"),
        ("0, 1, 2, 2, 3", "0, 1, 2*2, 3"),
        ("0-2, 3.attn, 4", "0-2, 3.attn, 4"),
        ("7-7, (7), 07", "7*3"),
        ("(5-3)", "(3|4|5)"),
        ("( 1 | 3-5 | 7.mlp ) * 2", "(1|3|4|5|7.mlp)*2"),
        ("(2|1), (1|2)", "(1|2)*2"),
        ("(7|7.mlp|7.attn)", "(7|7.attn|7.mlp)"),
        ("4.mlp*1, 4.mlp", "4.mlp*2"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert parse_plan(text, LAYERS).text == canonical


def test_plan_counts_and_forms() -> None:
    plan = Plan.from_steps([0, "1.mlp", (3, 2), [2, 3], "4"])
    assert plan.text == "0, 1.mlp, (2|3)*2, 4"
    assert plan.to_json() == '[[0],["1.mlp"],[2,3],[2,3],[4]]'
    assert (len(plan), plan.applications, plan.max_layer) == (5, 7, 4)
    assert plan.digest == hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]
    assert Plan.from_steps([0]).digest == "db407f11d7ede59a"
    assert Plan.from_steps([range(2, 4)]).text == "(2|3)"


def test_text_of_applications_and_steps() -> None:
    assert Application(7).text == "7"
    assert Application(7, "mlp").text == "7.mlp"
    assert Step((Application(7),)).text == "7"
    assert Step((Application(7), Application(8, "attn"))).text == "(7|8.attn)"


@pytest.mark.parametrize(
    ("text", "layer", "short", "words", "note"),
    [
        ("7", 7, "7", "layer 7", "7"),
        ("7.mlp", None, "7.mlp", "layer 7 without its attention", "7.mlp"),
        ("(7|9)", None, "(7|9)", "layers 7, 9 in parallel, outputs averaged", "mean of 2"),
        (
            "(7|8|9)",
            None,
            "(7|…|9)",
            "layers 7, 8, 9 in parallel, outputs averaged",
            "mean of 3",
        ),
        (
            "(7.attn|8)",
            None,
            "(7.at…",
            "layers 7.attn, 8 in parallel, outputs averaged",
            "mean of 2",
        ),
    ],
)
def test_what_a_step_says_of_itself(
    text: str, layer: int | None, short: str, words: str, note: str
) -> None:
    step = parse_step(text)
    assert step.text == text
    assert (step.layer, step.short_text(6), step.words, step.note) == (layer, short, words, note)


def test_glyphs() -> None:
    lone, several = parse_step("7"), parse_step("(7|8.mlp|9.attn)")
    assert lone.glyph(lone.members[0]) == "●"
    assert "".join(several.glyph(member) for member in several) == "┃ma"


def test_pieces_of_a_plan() -> None:
    pieces = parse_plan("0-2, (3|4)*2, 5", 6).pieces
    assert [(piece.text, len(piece), piece.is_range) for piece in pieces] == [
        ("0-2", 3, True),
        ("(3|4)*2", 2, False),
        ("5", 1, False),
    ]


# The kinds of join


def test_every_kind_of_join_has_a_sign_of_its_own() -> None:
    signs = [kind.sign for kind in JOIN_KINDS.values()]
    assert len(set(signs)) == len(signs)
    for name, kind in JOIN_KINDS.items():
        assert kind.name == name
        assert len(kind.sign) == 1
        assert kind.sign not in "-,()*. " + "0123456789" + "attnmlp"


@pytest.mark.parametrize("name", JOIN_KINDS)
def test_a_join_in_text_words_drawing_and_json(name: str) -> None:
    kind = JOIN_KINDS[name]
    step = Step((Application(3), Application(1)), name)
    text = f"(1{kind.sign}3)"
    assert (step.text, step.note) == (text, kind.note.format(count=2))
    assert step.words == f"layers 1, 3 {kind.words}"
    assert parse_step(text) == parse_step(f"( 1 {kind.sign} 3 )") == step
    plan = Plan((step, step))
    assert plan.text == f"{text}*2"
    assert Plan.from_steps([{name: [1, 3]}] * 2) == Plan.from_json(plan.to_json()) == plan
    assert describe(plan) == [f"steps 1-2: layers 1, 3 {kind.words}, 2 times"]
    row = f"·{kind.glyph}·{kind.glyph}  {kind.note.format(count=2)}, 2 times"
    assert draw(plan, 4).splitlines()[1].endswith(row)


@pytest.mark.parametrize("name", JOIN_KINDS)
def test_a_step_of_one_member_is_the_same_however_it_is_joined(name: str) -> None:
    assert Step((Application(3),), name) == Step((Application(3),))


def test_kinds_of_join_that_are_refused() -> None:
    with pytest.raises(PlanError, match="join 'median': unknown; choose mean"):
        Step((Application(1), Application(2)), "median")
    with pytest.raises(PlanError, match="join 'median': unknown; choose mean"):
        Plan.from_steps([{"median": [1, 2]}])
    with pytest.raises(PlanError, match="not a step; write one join and its members"):
        Plan.from_steps([{}])


# Identities


def test_order_within_a_step_makes_no_difference() -> None:
    assert Plan.from_steps([(3, 1, "2.mlp")]) == Plan.from_steps([("2.mlp", 3, 1)])
    assert hash(Plan.from_steps([(3, 1)])) == hash(Plan.from_steps([(1, 3)]))


# Round trips


@given(plans)
def test_text_json_and_python_are_inverses(plan: Plan) -> None:
    assert parse_plan(plan.text, LAYERS) == plan
    assert parse_plan(plan.text, LAYERS).text == plan.text
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    assert Plan.from_steps(json.loads(plan.to_json())) == plan
    assert Plan.from_steps(plan.steps) == plan


@given(steps)
def test_the_text_of_a_step_is_parsed_back(step: Step) -> None:
    assert parse_step(step.text) == step


@given(plans, plans)
def test_text_and_digest_tell_plans_apart(one: Plan, other: Plan) -> None:
    assert (one == other) == (one.text == other.text) == (one.digest == other.digest)


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("31", "layer 31: a 30-layer model allows 0 to 29"),
        ("0-30", "layer 30: a 30-layer model allows 0 to 29"),
        ("30-0", "layer 30: a 30-layer model allows 0 to 29"),
        ("0, (1|30.attn)", "layer 30: a 30-layer model allows 0 to 29"),
        ("0-999999999", "layer 999999999: a 30-layer model allows 0 to 29"),
        ("", "an empty step; write a step as 7, 7.attn, 7.mlp, 0-13, (3|4|5)"),
        ("0,,1", "an empty step; write"),
        ("0, 1,", "an empty step; write"),
        ("0, 1 4", "'1 4': not a step; write"),
        ("0, 3.head", "'3.head': not a step; write"),
        ("0-3.mlp", "'0-3.mlp': not a step; write"),
        ("0-2-4", "'0-2-4': not a step; write"),
        ("-3", "'-3': not a step; write"),
        ("(1|2", "'(1|2': not a step; write"),
        ("(1,2)", "'(1': not a step; write"),
        ("(1||2)", "'(1||2)': not a step; write"),
        ("()", "'()': not a step; write"),
        ("1|2", "'1|2': not a step; write"),
        ("((1|2))", "'((1|2))': not a step; write"),
        ("14*", "'14*': not a step; write"),
        ("14*2*2", "'14*2*2': not a step; write"),
        ("1234567890", "'1234567890': not a step; write"),
        ("14*0", "14*0: a count is at least 1; leave the step out instead"),
        (
            "0-3*2",
            "0-3*2: a range takes no count; write (0-3)*2 for these layers in parallel or list the "
            "steps",
        ),
        (
            "0*1000000000",
            "a plan of 1,000,000,000 steps: one has at most 100,000; repeat fewer times",
        ),
        ("(0-29)*999999999", "a plan of 999,999,999 steps: one has at most 100,000"),
        ("0*60000, 1*60000", "a plan of 120,000 steps: one has at most 100,000"),
        ("(3|4|3)", "(3|3|4): 3 is there twice; name it once"),
        ("(1-4|3)", "(1|2|3|3|4): 3 is there twice; name it once"),
    ],
)
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, 30)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "a plan without steps: a plan has at least one"),
        ([0, []], "a step without layers: a step has at least one"),
        ("0-3", "'0-3': a text, not a list of steps; use parse_plan"),
        (["0-3"], "'0-3': not a layer; write 7, '7.attn' or '7.mlp'"),
        ([1.5], "1.5: not a layer"),
        ([True], "True: not a layer"),
        ([[[1]]], r"\[1\]: not a layer"),
        ([None], "None: not a layer"),
        ([-1], "layer -1, sublayer '': a layer is a whole number from 0 on"),
        ([(2, "2.mlp", "2.mlp")], r"\(2\|2.mlp\|2.mlp\): 2.mlp is there twice"),
    ],
)
def test_steps_that_are_refused(steps: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_steps(steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[0]", r"'\[\[0\]': not JSON \(.*\); write \[\[0\], \[1, 2\]\]"),
        ('{"a": 1}', "not a JSON list of steps; write"),
        ("3", "'3': not a JSON list of steps; write"),
        ("[[0], [null]]", "None: not a layer"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


def test_other_things_that_are_refused() -> None:
    with pytest.raises(PlanError, match="layer 3, sublayer 'head': a layer is a whole number"):
        Application(3, "head")
    with pytest.raises(PlanError, match="'0-2': 3 steps, not one"):
        parse_step("0-2")
    with pytest.raises(PlanError, match="'embed': not a step"):
        parse_step("embed")
