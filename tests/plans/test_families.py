"""Families, sweeps, named sets and what `resolve` makes of any text."""

import math
import random

import pytest
from hypothesis import given

from repsim.errors import RepsimError
from repsim.plans import FAMILIES, SETS, NamedPlan, Plan, PlanTrie, parse_plan, resolve, sweeps
from support.plans import LAYERS, plans

SIZES = (1, 2, 3, 4, 5, 6, 7, 30, 32)


def plan_of(text: str, layers: int) -> Plan:
    (named,) = resolve(text, layers)
    return named.plan


def plans_of(texts, layers: int) -> list[Plan]:
    return [named.plan for named in resolve(texts, layers)]


def text_of(text: str, layers: int) -> str:
    return plan_of(text, layers).text


def ratio(found: list[Plan]) -> float:
    """Layer applications plan by plan over those of the trie."""
    return sum(plan.applications for plan in found) / PlanTrie.build(found).applications


# Values worked out by hand


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


def test_work_saved_for_32_layers():
    """Plan by plan over trie, in layer applications; the baseline belongs to every set."""
    assert ratio(plans_of("fig2", 32)) == pytest.approx(1.97, abs=0.01)
    assert ratio(plans_of(["fig2", "fig11"], 32)) == pytest.approx(1.48, abs=0.01)
    assert ratio(plans_of("fig10", 32)) == pytest.approx(10.86, abs=0.01)
    grid = plans_of("looped_parallel:start=..,loops=1..28", 32)
    assert ratio(grid) == pytest.approx(10.54, abs=0.01)
    assert ratio(plans_of("painters", 32)) == pytest.approx(7.68, abs=0.01)


# Identities


@pytest.mark.parametrize("layers", SIZES)
def test_a_middle_of_at_most_one_layer_stays_the_baseline(layers):
    start = math.ceil(layers / 2) - 1
    texts = [f"{name}:start={start}" for name in ("reverse", "middle_repeat", "parallel")]
    texts += [f"random:start={start},seed=3", f"looped_parallel:start={start},loops=1"]
    assert resolve(["baseline", *texts], layers) == (
        NamedPlan("baseline", Plan.from_steps(range(layers))),
    )


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


# Round trips


@given(plans)
def test_a_canonical_text_resolves_to_its_plan(plan):
    assert plan_of(plan.text, LAYERS) == plan


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
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
        ("fig2", "layer=..: a 1-layer model is too shallow for it"),
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


def test_plans_that_are_refused():
    with pytest.raises(RepsimError, match=r"3: not a plan; give a text, or Plan\.from_steps"):
        resolve([3], 30)
    with pytest.raises(RepsimError, match="layer 30: a 30-layer model allows 0 to 29"):
        resolve(Plan.from_steps([0, 30]), 30)
    with pytest.raises(RepsimError, match=r"'0-3\.mlp': not a step; write"):
        resolve("0-3.mlp", 30)


# Too many


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            "random:start=0,seed=0..100000",
            "random:start=0,seed=0..100000: stands for 100,001 plans; ask for at most",
        ),
        (
            "random:start=..,seed=0..999999999",
            "random:start=..,seed=0..999999999: stands for 15,000,000,000 plans",
        ),
        (
            "looped_parallel:start=..,loops=1..9999",
            "looped_parallel:start=..,loops=1..9999: stands for 149,985 plans",
        ),
        (
            ["random:start=0,seed=0..59999", "random:start=1,seed=0..59999"],
            "random:start=0,seed=0..59999 random:start",
        ),
        # Few plans, many steps.
        ("looped_parallel:start=0..2,loops=9000..9999", "looped_parallel:start=0,loops="),
        (
            "repeat:layer=3,times=1000000",
            "a plan of 1,000,029 steps: one has at most 100,000; repeat fewer times",
        ),
        (
            "looped_parallel:start=14,loops=999999999",
            "a plan of 1,000,000,029 steps: one has at most 100,000",
        ),
        ("random:start=0,seed=abc", "seed=abc: a 30-layer model allows 0 to 999999999"),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_made(monkeypatch, texts, message):
    made = []
    original = sweeps._Sweep.__iter__
    monkeypatch.setattr(
        sweeps._Sweep, "__iter__", lambda self: made.append(self) or original(self)
    )
    monkeypatch.setattr(sweeps, "MOST_STEPS_TOGETHER", 20_000)
    with pytest.raises(RepsimError) as caught:
        resolve(texts, 30)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert not (made and "stands for" in message)


def test_the_most_plans_at_once(monkeypatch):
    monkeypatch.setattr(sweeps, "MOST_PLANS", 15)
    assert len(resolve("skip:start=..", 30)) == 15
    with pytest.raises(
        RepsimError,
        match=r"^skip:start=\.\. baseline: stands for 16 plans; ask for at most 15 at once$",
    ):
        resolve(["skip:start=..", "baseline"], 30)
    with pytest.raises(RepsimError, match=r"^fig10: stands for 365 plans"):
        resolve("fig10", 30)


def test_a_model_of_absurdly_many_layers():
    with pytest.raises(RepsimError, match="a plan of 1,000,000,000 steps"):
        resolve("baseline", 10**9)
