"""Sweeps, named sets, what `resolve` makes of any text, and the family a plan belongs to."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

from repsim.errors import PlanError
from repsim.plans import (
    FAMILIES,
    SETS,
    NamedPlan,
    Plan,
    PlanTrie,
    family_of,
    parse_plan,
    recognise,
    resolve,
    sweeps,
)
from support.plans import EXAMPLES, LAYERS, plans

SIZES = (1, 2, 3, 4, 5, 6, 7, 30, 32)


def plan_of(text: str, layers: int) -> Plan:
    (named,) = resolve(text, layers)
    return named.plan


def plans_of(texts: Any, layers: int) -> list[Plan]:
    return [named.plan for named in resolve(texts, layers)]


def ratio(plans: list[Plan]) -> float:
    """Layer applications plan by plan over those of the trie."""
    return sum(plan.applications for plan in plans) / PlanTrie.build(plans).applications


# Values worked out by hand


def test_work_saved_for_32_layers() -> None:
    """Plan by plan over trie, in layer applications; the baseline belongs to every set."""
    assert ratio(plans_of("fig2", 32)) == pytest.approx(1.97, abs=0.01)
    assert ratio(plans_of(["fig2", "fig11"], 32)) == pytest.approx(1.48, abs=0.01)
    assert ratio(plans_of("fig10", 32)) == pytest.approx(10.86, abs=0.01)
    grid = plans_of("looped_parallel:start=..,loops=1..28", 32)
    assert ratio(grid) == pytest.approx(10.54, abs=0.01)
    assert ratio(plans_of("painters", 32)) == pytest.approx(7.68, abs=0.01)


# Sets, sweeps, resolution


@pytest.mark.parametrize("layers", SIZES[1:])
@pytest.mark.parametrize("name", SETS)
def test_every_set_begins_with_the_baseline_and_fits(name: str, layers: int) -> None:
    resolved = resolve(name, layers)
    assert resolved[0].name == "baseline"
    assert max(named.plan.max_layer for named in resolved) == layers - 1
    assert len({named.plan for named in resolved}) == len(resolved)
    for named in resolved:
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
def test_what_the_sets_hold(name: str, texts: Any) -> None:
    assert resolve(name, 30) == resolve(["baseline", *texts], 30)


def test_the_grid_of_the_paper_and_of_the_smallest_models() -> None:
    assert len(resolve("fig10", 32)) == 1 + 15 * 28
    assert SETS["fig10"].texts(2) == ("baseline", "looped_parallel:start=0..0,loops=1..1")
    assert SETS["fig10"].texts(6)[1] == "looped_parallel:start=0..1,loops=1..2"


def test_sweeps_are_cross_products_in_the_order_of_the_text() -> None:
    names = [named.name for named in resolve("random: seed = 1|0, start = 0 .. 1", 12)]
    assert names == [f"random:start={n},seed={s}" for s in (1, 0) for n in (0, 1)]
    names = [named.name for named in resolve("drop:layer=4..,part=attn|mlp", 6)]
    assert names == [f"drop:layer={n},part={part}" for n in (4, 5) for part in ("attn", "mlp")]
    assert len(resolve("skip:start=..", 30)) == len(resolve("skip:start=..14", 30)) == 15
    assert len(resolve("repeat:layer=0,times=..3", 30)) == 3


def test_resolve_keeps_order_and_first_names() -> None:
    plan = parse_plan("0-4", 6)
    resolved = resolve(["0-3,5", "drop:layer=4..5", plan, "baseline", "0-5", "fig3"], 6)
    assert [named.name for named in resolved] == ["0-3, 5", "drop:layer=5", "baseline"]
    assert resolve(plan, 6) == (NamedPlan("0-4", plan),)
    assert resolve(" 0 - 2 ", 6)[0].name == "0-2"
    assert resolve([], 6) == ()


# Values that do not go together


def test_a_sweep_over_both_ends_of_a_block_takes_every_block() -> None:
    resolved = resolve("drop_block:first=..,last=..", 6)
    assert [named.name for named in resolved] == [
        f"drop_block:first={first},last={last}"
        for first in range(6)
        for last in range(first, 6)
        if (first, last) != (0, 5)
    ]


def test_a_sweep_leaves_out_what_is_impossible_wherever_it_stands() -> None:
    names = [named.name for named in resolve("drop_block:last=1..2,first=2|0|4", 6)]
    assert names == [
        "drop_block:first=0,last=1",
        "drop_block:first=2,last=2",
        "drop_block:first=0,last=2",
    ]


def test_a_sweep_of_which_nothing_is_possible_is_refused() -> None:
    with pytest.raises(PlanError, match="first=4,last=1: no block; last is 4 to 5"):
        resolve("drop_block:first=4..5,last=1..3", 6)


def test_only_what_is_possible_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "MOST_PLANS", 20)
    assert len(resolve("drop_block:first=..,last=..", 6)) == 20
    with pytest.raises(PlanError, match="stands for 27 plans; ask for at most 20"):
        resolve("drop_block:first=..,last=..", 7)
    # Of very many combinations those that are possible are not counted one by one.
    with pytest.raises(PlanError, match="stands for 4,000,000 plans"):
        resolve("drop_block:first=..,last=..", 2000)


# The family of a plan


@pytest.mark.parametrize(
    ("text", "family", "values"),
    [
        ("0-29", "baseline", {}),
        ("0-3, 5-29", "drop", {"layer": 4}),
        ("0-6, 7.mlp, 8-29", "drop", {"layer": 7, "part": "attn"}),
        ("0-9, 20-10, 21-29", "reverse", {"start": 9}),
        ("0-12, (13|14|15|16|17)*3, 18-29", "looped_parallel", {"start": 12, "loops": 3}),
        ("0-12, (13|14|15|16|17)*40, 18-29", "looped_parallel", {"start": 12, "loops": 40}),
        ("0-2, 6-29", "drop_block", {"first": 3, "last": 5}),
        ("0-13, 14*25, 15-29", "repeat", {"layer": 14, "times": 25}),
    ],
)
def test_family_of_a_plan_under_another_text(
    text: str, family: str, values: dict[str, Any]
) -> None:
    assert family_of(parse_plan(text, 30), 30) == (family, values)
    (named,) = resolve(text, 30)
    assert (named.name, named.family, named.values) == (text, family, values)


@pytest.mark.parametrize("text", EXAMPLES)
@pytest.mark.parametrize("layers", [6, 30])
def test_every_example_is_found_to_be_of_its_family(text: str, layers: int) -> None:
    """Or of an earlier one that builds the same plan."""
    (named,) = resolve(text, layers)
    family, values = family_of(named.plan, layers) or ("", {})
    assert FAMILIES[family].build(layers, **values) == named.plan
    assert list(FAMILIES).index(family) <= list(FAMILIES).index(named.family)


def test_plans_of_no_family() -> None:
    assert family_of(parse_plan("0-3, 7, 5-29", 30), 30) is None
    (named,) = resolve("0-3, 7, 5-29", 30)
    assert (named.family, named.values) == ("", {})


def test_families_of_very_many_plans_are_passed_over() -> None:
    plan = Plan.from_steps([*range(500), *range(510, 2000)])
    assert family_of(plan, 2000) is None


def test_stored_plans_keep_their_names() -> None:
    plan = parse_plan("0-3, 5", 6)
    for name in ("0-3, 5", "drop:layer=4", "a_family_of_another_repsim:start=1", "skip:start=1"):
        named = recognise(name, plan, 6)
        assert (named.name, named.plan) == (name, plan)
        assert (named.family, named.values) == ("drop", {"layer": 4})
    block = recognise("drop_block:first=4,last=4", plan, 6)
    assert (block.family, block.values) == ("drop_block", {"first": 4, "last": 4})


# Round trips


@given(plans)
def test_a_canonical_text_resolves_to_its_plan(plan: Plan) -> None:
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
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve(text, 30)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(PlanError, match=r"baseline, skip, .*; sets: fig2, .*, painters, dropouts$"):
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
def test_what_one_layer_does_not_allow(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve(text, 1)
    assert str(caught.value).startswith(message)


def test_plans_that_are_refused() -> None:
    wrong: Any = [3]
    with pytest.raises(PlanError, match=r"3: not a plan; give a text, or Plan\.from_steps"):
        resolve(wrong, 30)
    with pytest.raises(PlanError, match="layer 30: a 30-layer model allows 0 to 29"):
        resolve(Plan.from_steps([0, 30]), 30)
    with pytest.raises(PlanError, match=r"'0-3\.mlp': not a step; write"):
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
def test_what_no_memory_holds_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, texts: Any, message: str
) -> None:
    built: list[sweeps._Sweep] = []
    original = sweeps._Sweep.__iter__

    def iterate(sweep: sweeps._Sweep) -> Iterator[NamedPlan]:
        built.append(sweep)
        return original(sweep)

    monkeypatch.setattr(sweeps._Sweep, "__iter__", iterate)
    monkeypatch.setattr(sweeps, "MOST_STEPS_TOGETHER", 20_000)
    with pytest.raises(PlanError) as caught:
        resolve(texts, 30)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert not (built and "stands for" in message)


def test_the_most_plans_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "MOST_PLANS", 15)
    assert len(resolve("skip:start=..", 30)) == 15
    with pytest.raises(
        PlanError,
        match=r"^skip:start=\.\. baseline: stands for 16 plans; ask for at most 15 at once$",
    ):
        resolve(["skip:start=..", "baseline"], 30)
    with pytest.raises(PlanError, match=r"^fig10: stands for 365 plans"):
        resolve("fig10", 30)


def test_a_model_of_absurdly_many_layers() -> None:
    with pytest.raises(PlanError, match="a plan of 1,000,000,000 steps"):
        resolve("baseline", 10**9)
