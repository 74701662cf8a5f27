"""Plans, the trie and the drawing, all without a model."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repsim.errors import RepsimError
from repsim.plans import Application, Plan, PlanTrie, Step, describe, draw, parse_plan
from support.plans import LAYERS, few_plans, plans

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
def test_examples_of_the_design_page(text, expected):
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
def test_canonical_text(text, canonical):
    assert parse_plan(text, LAYERS).text == canonical


def test_plan_counts_and_forms():
    plan = Plan.from_steps([0, "1.mlp", (3, 2), [2, 3], "4"])
    assert plan.text == "0, 1.mlp, (2|3)*2, 4"
    assert plan.to_json() == '[[0],["1.mlp"],[2,3],[2,3],[4]]'
    assert (len(plan), plan.applications, plan.max_layer) == (5, 7, 4)
    assert plan.digest == hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]
    assert Plan.from_steps([0]).digest == "db407f11d7ede59a"
    assert Plan.from_steps([range(2, 4)]).text == "(2|3)"


def test_text_of_applications_and_steps():
    assert Application(7).text == "7"
    assert Application(7, "mlp").text == "7.mlp"
    assert Step((Application(7),)).text == "7"
    assert Step((Application(7), Application(8, "attn"))).text == "(7|8.attn)"


def test_trie_of_the_design_page():
    trie = PlanTrie.build(
        parse_plan(text, 6) for text in ("0-5", "0-2, 4, 5", "0, 1, (2|3|4)*2, 5")
    )
    assert trie.parents == (-1, 0, 1, 2, 3, 4, 5, 3, 7, 2, 9, 10)
    assert trie.paths == ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 7, 8), (0, 1, 2, 9, 10, 11))
    assert trie.steps[0] is None
    assert [step.text for step in trie.steps[1:]] == (
        ["0", "1", "2", "3", "4", "5", "4", "5", "(2|3|4)", "(2|3|4)", "5"]
    )
    assert trie.children[:4] == ((1,), (2,), (3, 9), (4, 7))
    assert (trie.ends, trie.depth, len(trie)) == ((6, 8, 11), 6, 12)
    assert trie.applications == 6 + 2 + 3 + 3 + 1
    assert list(trie.depth_first()) == list(range(12))


def test_depth_first_leaves_a_branch_only_when_it_is_done():
    trie = PlanTrie.build(Plan.from_steps(order) for order in ([0, 1], [2], [0, 3]))
    assert list(trie.depth_first()) == [0, 1, 2, 4, 3]


def test_drawing_and_description():
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


def test_drawing_of_deep_models_shares_columns():
    lines = draw(parse_plan("0-30, 50-79", 80), 80).splitlines()
    assert lines[0] == " step  0         20        40        60  (1 column: 2 layers)"
    assert lines[1].split() == ["1-31", "○" + "─" * 14 + "▸" + "·" * 24, "0-30"]
    assert lines[-1] == "steps: 61; layer applications: 61; never run: 31-49"


# Identities


def test_order_within_a_step_makes_no_difference():
    assert Plan.from_steps([(3, 1, "2.mlp")]) == Plan.from_steps([("2.mlp", 3, 1)])
    assert hash(Plan.from_steps([(3, 1)])) == hash(Plan.from_steps([(1, 3)]))


# The trie


@given(few_plans)
def test_trie_has_one_node_for_each_prefix(found):
    trie = PlanTrie.build(found)
    prefixes = {plan.steps[:end] for plan in found for end in range(1, len(plan) + 1)}
    assert len(trie) - 1 == len(prefixes)
    assert trie.applications == sum(len(prefix[-1]) for prefix in prefixes)
    assert trie.depth == max(map(len, found), default=0)


@given(few_plans)
def test_paths_spell_the_plans(found):
    trie = PlanTrie.build(found)
    assert len(trie.paths) == len(found)
    for path, plan, end in zip(trie.paths, found, trie.ends, strict=True):
        assert path[0] == 0
        assert path[-1] == end
        assert [trie.parents[node] for node in path[1:]] == list(path[:-1])
        assert tuple(trie.steps[node] for node in path[1:]) == plan.steps


@given(few_plans, few_plans)
def test_extending_keeps_every_number(first, more):
    trie = PlanTrie.build(first)
    longer = trie.extend(more)
    assert longer == PlanTrie.build([*first, *more])
    assert longer.parents[: len(trie)] == trie.parents
    assert longer.steps[: len(trie)] == trie.steps
    assert longer.paths[: len(first)] == trie.paths
    assert all(parent < node for node, parent in enumerate(longer.parents))


@given(few_plans)
def test_depth_first_visits_each_node_once_after_its_parent(found):
    trie = PlanTrie.build(found)
    order = list(trie.depth_first())
    assert order[0] == 0
    assert sorted(order) == list(range(len(trie)))
    place = {node: index for index, node in enumerate(order)}
    assert all(place[trie.parents[node]] < place[node] for node in order[1:])
    assert [child for node in trie.children for child in node] == sorted(
        range(1, len(trie)), key=lambda node: (trie.parents[node], node)
    )


def test_an_empty_trie_and_a_deep_one():
    empty = PlanTrie.build([])
    assert (len(empty), empty.depth, empty.ends, empty.applications) == (1, 0, (), 0)
    deep = PlanTrie.build([Plan.from_steps([0] * 5000)])
    assert list(deep.depth_first()) == list(range(5001))


# Round trips


@given(plans)
def test_text_json_and_python_are_inverses(plan):
    assert parse_plan(plan.text, LAYERS) == plan
    assert parse_plan(plan.text, LAYERS).text == plan.text
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    assert Plan.from_steps(json.loads(plan.to_json())) == plan
    assert Plan.from_steps(plan.steps) == plan


@given(plans, plans)
def test_text_and_digest_tell_plans_apart(one, other):
    assert (one == other) == (one.text == other.text) == (one.digest == other.digest)


@given(plans, st.sampled_from([12, 30, 48, 49, 80, 126]))
def test_drawing_fits_the_terminal(plan, layers):
    lines = draw(plan, layers).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(describe(plan)) < len(lines)


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("31", "layer 31: a 30-layer model allows 0 to 29"),
        ("0-30", "layer 30: a 30-layer model allows 0 to 29"),
        ("30-0", "layer 30: a 30-layer model allows 0 to 29"),
        ("0, (1|30.attn)", "layer 30: a 30-layer model allows 0 to 29"),
        ("0-999999999", "layer 999999999: a 30-layer model allows 0 to 29"),
        ("", "an empty step; write a step as 7, 7.attn, 7.mlp, 0-13, (3|4|5) or 14*3"),
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
            "0-3*2: a range takes no count; write (0-3)*2 for these layers in parallel or list the steps",
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
def test_texts_that_are_refused(text, message):
    with pytest.raises(RepsimError) as caught:
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
def test_steps_that_are_refused(steps, message):
    with pytest.raises(RepsimError, match=message):
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
def test_json_that_is_refused(text, message):
    with pytest.raises(RepsimError, match=message):
        Plan.from_json(text)


def test_other_things_that_are_refused():
    with pytest.raises(RepsimError, match="layer 3, sublayer 'head': a layer is a whole number"):
        Application(3, "head")
    with pytest.raises(RepsimError, match="layer 30: a 30-layer model allows 0 to 29"):
        draw(Plan.from_steps([0, 30]), 30)


def test_nodes_with_their_ancestors():
    trie = PlanTrie.build([parse_plan("0-3", 4), parse_plan("0, 3", 4)])
    assert trie.with_ancestors([]) == {0}
    assert trie.with_ancestors([3]) == {0, 1, 2, 3}
    assert trie.with_ancestors([2, 5]) == {0, 1, 2, 5}
