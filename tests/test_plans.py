"""Plans, families, sets, resolution, the trie and the drawing, all without a model."""

import hashlib
import json
import math
import random
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repsim.families import FAMILIES, SETS, NamedPlan, resolve
from repsim.plans import Application, Plan, PlanTrie, describe, draw, parse_plan, step_text
from repsim.schema import RepsimError

LAYERS = 12
SIZES = (1, 2, 3, 4, 5, 6, 7, 30, 32)


def plan_of(text: str, layers: int) -> Plan:
    (named,) = resolve(text, layers)
    return named.plan


def plans_of(texts, layers: int) -> list[Plan]:
    return [named.plan for named in resolve(texts, layers)]


def text_of(text: str, layers: int) -> str:
    return plan_of(text, layers).text


def ratio(plans: list[Plan]) -> float:
    """Layer applications plan by plan over those of the trie."""
    return sum(plan.applications for plan in plans) / PlanTrie.build(plans).applications


# Any plan: lone steps, ranges either way, repeats, parallel steps, halves.
layer_numbers = st.integers(0, LAYERS - 1)
members = st.builds(Application, layer_numbers, st.sampled_from(["", "", "attn", "mlp"]))
steps = st.one_of(st.tuples(members), st.sets(members, min_size=1, max_size=5).map(lambda s: tuple(sorted(s))))


def counted(first: int, last: int) -> list[tuple[Application, ...]]:
    way = 1 if last >= first else -1
    return [(Application(layer),) for layer in range(first, last + way, way)]


pieces = st.one_of(
    steps.map(lambda step: [step]),
    st.builds(lambda step, times: [step] * times, steps, st.integers(2, 4)),
    st.builds(counted, layer_numbers, layer_numbers),
)
plans = st.lists(pieces, min_size=1, max_size=6).map(lambda parts: Plan(tuple(chain(*parts))))
few_plans = st.lists(plans, max_size=6)


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
    assert step_text((Application(7),)) == "7"
    assert step_text((Application(7), Application(8, "attn"))) == "(7|8.attn)"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("baseline", "0-5"),
        ("skip:start=0", "0"),
        ("skip:start=1", "0, 1, 5"),
        ("middle_repeat:start=1", "0, 1, 3*3, 5"),
        ("reverse:start=1", "0, 1, 4-2, 5"),
        ("parallel:start=1", "0, 1, (2|3|4), 5"),
        ("looped_parallel:start=1,loops=2", "0, 1, (2|3|4)*2, 5"),
        ("drop:layer=3", "0-2, 4, 5"),
        ("drop:layer=3,part=attn", "0-2, 3.mlp, 4, 5"),
        ("drop:layer=3,part=mlp", "0-2, 3.attn, 4, 5"),
        ("switch:layer=3", "0-2, 4, 3, 5"),
        ("drop_block:first=1,last=3", "0, 4, 5"),
        ("repeat:layer=3,times=3", "0-2, 3*3, 4, 5"),
    ],
)
def test_families_of_six_layers(family, text):
    assert text_of(family, 6) == text


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("skip:start=12", "0-12, 18-29"),
        ("middle_repeat:start=12", "0-12, 15*5, 18-29"),
        ("reverse:start=9", "0-9, 20-10, 21-29"),
        ("looped_parallel:start=12,loops=3", "0-12, (13|14|15|16|17)*3, 18-29"),
        ("drop:layer=14", "0-13, 15-29"),
        ("drop:layer=7,part=attn", "0-6, 7.mlp, 8-29"),
        ("repeat:layer=14,times=3", "0-13, 14*3, 15-29"),
    ],
)
def test_families_of_thirty_layers(family, text):
    assert text_of(family, 30) == text


@pytest.mark.parametrize("layers", SIZES)
def test_random_has_the_order_of_the_paper_s_code(layers):
    for start in range(math.ceil(layers / 2)):
        for seed in range(5):
            order = list(range(start + 1, layers - start))
            random.Random(seed).shuffle(order)
            expected = [*range(start + 1), *order, *range(layers - start, layers)]
            plan = FAMILIES["random"].build(layers, start=start, seed=seed)
            assert plan == Plan.from_steps(expected)


def test_trie_of_the_design_page():
    trie = PlanTrie.build(plans_of(["baseline", "drop:layer=3", "looped_parallel:start=1,loops=2"], 6))
    assert trie.parents == (-1, 0, 1, 2, 3, 4, 5, 3, 7, 2, 9, 10)
    assert trie.paths == ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 7, 8), (0, 1, 2, 9, 10, 11))
    assert trie.steps[0] is None
    assert [step_text(step) for step in trie.steps[1:]] == (
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
    assert describe(plan_of("drop:layer=0,part=mlp", 2))[0] == "step 1: layer 0 without its MLP"


def test_drawing_of_deep_models_shares_columns():
    lines = draw(plan_of("skip:start=30", 80), 80).splitlines()
    assert lines[0] == " step  0         20        40        60  (1 column: 2 layers)"
    assert lines[1].split() == ["1-31", "○" + "─" * 14 + "▸" + "·" * 24, "0-30"]
    assert lines[-1] == "steps: 61; layer applications: 61; never run: 31-49"


# Identities


@pytest.mark.parametrize("layers", SIZES)
def test_a_middle_of_at_most_one_layer_stays_the_baseline(layers):
    start = math.ceil(layers / 2) - 1
    texts = [f"{name}:start={start}" for name in ("reverse", "middle_repeat", "parallel")]
    texts += [f"random:start={start},seed=3", f"looped_parallel:start={start},loops=1"]
    assert resolve(["baseline", *texts], layers) == (NamedPlan("baseline", Plan.from_steps(range(layers))),)


@pytest.mark.parametrize("layers", [size for size in SIZES if size > 2])
def test_families_that_say_the_same_are_equal(layers):
    for start in range((layers - 1) // 2):
        block = f"drop_block:first={start + 1},last={layers - start - 1}"
        assert plan_of(f"skip:start={start}", layers) == plan_of(block, layers)
        looped = plan_of(f"looped_parallel:start={start},loops=1", layers)
        assert looped == plan_of(f"parallel:start={start}", layers)
    for layer in range(layers):
        block = plan_of(f"drop_block:first={layer},last={layer}", layers)
        assert plan_of(f"drop:layer={layer}", layers) == block
        assert plan_of(f"repeat:layer={layer},times=1", layers) == plan_of("baseline", layers)


def test_skip_of_the_centre_layer_is_its_drop():
    assert plan_of("skip:start=14", 30) == plan_of("drop:layer=15", 30)


def test_the_two_halves_of_a_model_with_one_layer():
    assert [plan.text for plan in plans_of("drop:layer=0,part=..", 1)] == ["0.mlp", "0.attn"]


def test_order_within_a_step_makes_no_difference():
    assert Plan.from_steps([(3, 1, "2.mlp")]) == Plan.from_steps([("2.mlp", 3, 1)])
    assert hash(Plan.from_steps([(3, 1)])) == hash(Plan.from_steps([(1, 3)]))


# Sets, sweeps, resolution


@pytest.mark.parametrize("layers", SIZES[1:])
@pytest.mark.parametrize("name", SETS)
def test_every_set_begins_with_the_baseline_and_fits(name, layers):
    found = resolve(name, layers)
    assert found[0].name == "baseline"
    assert max(named.plan.max_layer for named in found) == layers - 1
    assert len({named.plan for named in found}) == len(found)
    for named in found:
        assert resolve(named.name, layers) == (named,)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("fig2", ["drop:layer=0..29", "switch:layer=0..28"]),
        ("fig3", []),
        ("fig4", ["skip:start=0..14"]),
        ("fig5", ["middle_repeat:start=0..14"]),
        ("fig6", ["reverse:start=0..14"]),
        ("fig7", ["random:start=0..14,seed=0..9"]),
        ("fig8", ["parallel:start=0..14"]),
        ("fig9", ["looped_parallel:start=0..14,loops=3"]),
        ("fig10", ["looped_parallel:start=0..13,loops=1..26"]),
        ("fig11", ["fig4", "fig5", "fig6", "fig7", "fig8", "fig9"]),
        ("painters", [f"fig{number}" for number in (2, 4, 5, 6, 7, 8, 9, 10)]),
        ("dropouts", ["drop:layer=0..29", "drop:layer=0..29,part=attn", "drop:layer=..,part=mlp"]),
    ],
)
def test_what_the_sets_hold(name, texts):
    assert resolve(name, 30) == resolve(["baseline", *texts], 30)


def test_the_grid_of_the_paper_and_of_the_smallest_models():
    assert len(resolve("fig10", 32)) == 1 + 15 * 28
    assert SETS["fig10"].texts(2) == ("baseline", "looped_parallel:start=0..0,loops=1..1")
    assert SETS["fig10"].texts(6)[1] == "looped_parallel:start=0..1,loops=1..2"


def test_sweeps_are_cross_products_in_the_order_of_the_text():
    names = [named.name for named in resolve("random: seed = 1|0, start = 0 .. 1", 12)]
    assert names == [f"random:start={n},seed={s}" for s in (1, 0) for n in (0, 1)]
    names = [named.name for named in resolve("drop:layer=4..,part=attn|mlp", 6)]
    assert names == [f"drop:layer={n},part={half}" for n in (4, 5) for half in ("attn", "mlp")]
    assert len(resolve("skip:start=..", 30)) == len(resolve("skip:start=..14", 30)) == 15
    assert len(resolve("repeat:layer=0,times=..3", 30)) == 3


def test_resolve_keeps_order_and_first_names():
    plan = parse_plan("0-4", 6)
    found = resolve(["0-3,5", "drop:layer=4..5", plan, "baseline", "0-5", "fig3"], 6)
    assert [named.name for named in found] == ["0-3, 5", "drop:layer=5", "baseline"]
    assert resolve(plan, 6) == (NamedPlan("0-4", plan),)
    assert resolve(" 0 - 2 ", 6)[0].name == "0-2"
    assert resolve([], 6) == ()


def test_families_say_what_they_do_and_take():
    assert list(FAMILIES) == [
        *("baseline", "skip", "middle_repeat", "reverse", "random", "parallel"),
        *("looped_parallel", "drop", "switch", "drop_block", "repeat"),
    ]
    assert all(family.summary.endswith(".") for family in FAMILIES.values())
    assert FAMILIES["skip"].summary == "The middle left out."
    assert FAMILIES["baseline"].usage == "baseline"
    assert FAMILIES["random"].usage == "random:start=..,seed=.."
    assert FAMILIES["drop"].usage == "drop:layer=..[,part=..]"
    assert FAMILIES["drop"].text(part=None, layer=3) == "drop:layer=3"
    assert FAMILIES["drop"].build(6, layer=3, part=None) == plan_of("drop:layer=3", 6)


def test_work_saved_for_32_layers():
    """Plan by plan over trie, in layer applications; the baseline belongs to every set."""
    assert ratio(plans_of("fig2", 32)) == pytest.approx(1.97, abs=0.01)
    assert ratio(plans_of(["fig2", "fig11"], 32)) == pytest.approx(1.48, abs=0.01)
    assert ratio(plans_of("fig10", 32)) == pytest.approx(10.86, abs=0.01)
    grid = plans_of("looped_parallel:start=..,loops=1..28", 32)
    assert ratio(grid) == pytest.approx(10.54, abs=0.01)
    assert ratio(plans_of("painters", 32)) == pytest.approx(7.68, abs=0.01)


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
    assert plan_of(plan.text, LAYERS) == plan


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
        ("(3|4|3)", "(3|3|4): 3 is there twice; name it once"),
        ("(1-4|3)", "(1|2|3|3|4): 3 is there twice; name it once"),
        ("skip:start=20", "start=20: a 30-layer model allows 0 to 14"),
        ("skip:start=0..20", "start=20: a 30-layer model allows 0 to 14"),
        ("skip:start=-1", "start=-1: a 30-layer model allows 0 to 14"),
        ("skip:start=x", "start=x: a 30-layer model allows 0 to 14"),
        ("skip:start=", "start=: a 30-layer model allows 0 to 14"),
        ("skip:start=1 2", "start=1 2: a 30-layer model allows 0 to 14"),
        ("skip:start=5..3", "start=5..3: runs backwards; write 3..5"),
        ("drop:layer=30", "layer=30: a 30-layer model allows 0 to 29"),
        ("drop:layer=3,part=head", "part=head: a 30-layer model allows attn or mlp"),
        ("switch:layer=29", "layer=29: a 30-layer model allows 0 to 28"),
        ("repeat:layer=3,times=0", "times=0: a 30-layer model allows 1 to 999999999"),
        ("random:start=0,seed=..", "seed=..: there is no largest one; write both ends"),
        ("looped_parallel:start=0,loops=2..", "loops=2..: there is no largest one; write both"),
        ("drop_block:first=5,last=3", "first=5,last=3: no block; last is 5 to 29"),
        ("drop_block:first=0,last=29", "dropping 0 to 29: a 30-layer model must keep a layer"),
        ("skip", "skip: start is missing; write skip:start=.."),
        ("random:start=0", "random: seed is missing; write random:start=..,seed=.."),
        ("skip:begin=3", "'begin=3': skip does not take it; write skip:start=.."),
        ("drop:layer", "'layer': drop does not take it; write drop:layer=..[,part=..]"),
        ("baseline:", "'': baseline does not take it; write baseline"),
        ("skip:start=1,start=2", "start=1,start=2: start is there twice; write start=A|B"),
        ("fig4:start=3", "fig4:start=3: fig4 is a set and takes no parameters; write fig4"),
        ("skp:start=3", "'skp': unknown; did you mean skip? families: baseline, skip, "),
        ("fig12", "'fig12': unknown; did you mean fig"),
        ("zzzzzz", "'zzzzzz': unknown; families: baseline, "),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(RepsimError) as caught:
        resolve(text, 30)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_unknown_names_list_what_there_is():
    with pytest.raises(RepsimError, match=r"repeat; sets: fig2, .*, painters, dropouts$"):
        resolve("painter", 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("switch:layer=0", "layer=0: a 1-layer model is too shallow for it"),
        ("switch:layer=..", "layer=..: a 1-layer model is too shallow for it"),
        ("drop:layer=0", "dropping 0 to 0: a 1-layer model must keep a layer"),
        ("fig2", "dropping 0 to 0: a 1-layer model must keep a layer"),
        ("skip:start=1", "start=1: a 1-layer model allows 0 to 0"),
        ("1", "layer 1: a 1-layer model allows 0 to 0"),
    ],
)
def test_what_one_layer_does_not_allow(text, message):
    with pytest.raises(RepsimError) as caught:
        resolve(text, 1)
    assert str(caught.value).startswith(message)


def test_builders_refuse_what_texts_may_not_say():
    with pytest.raises(RepsimError, match="start=20: a 30-layer model allows 0 to 14"):
        FAMILIES["skip"].build(30, start=20)
    with pytest.raises(RepsimError, match=r"start=3\.0: a 30-layer model allows 0 to 14"):
        FAMILIES["reverse"].build(30, start=3.0)
    with pytest.raises(RepsimError, match="part=head: a 30-layer model allows attn or mlp"):
        FAMILIES["drop"].build(30, layer=3, part="head")


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
        ([-1], "layer -1, half '': a layer is a whole number from 0 on"),
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
    with pytest.raises(RepsimError, match="layer 3, half 'head': a layer is a whole number"):
        Application(3, "head")
    with pytest.raises(RepsimError, match=r"3: not a plan; give a text, or Plan\.from_steps"):
        resolve([3], 30)
    plan = Plan.from_steps([0, 30])
    with pytest.raises(RepsimError, match="layer 30: a 30-layer model allows 0 to 29"):
        resolve(plan, 30)
    with pytest.raises(RepsimError, match="layer 30: a 30-layer model allows 0 to 29"):
        draw(plan, 30)
