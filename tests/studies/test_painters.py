"""The paper's kinds of tasks, figures and variants; variants are found under any name."""

import pytest

from repsim.errors import PlanError
from repsim.plans import FAMILIES, SETS, resolve
from repsim.studies.painters import (
    CURVE_FAMILIES,
    FIGURE_NUMBERS,
    LOOPS,
    MIDDLE_CURVES,
    MIDDLE_FAMILIES,
    SINGLE_LAYER_CURVES,
    TREATMENTS,
    count_affected,
    count_places,
    describe_middle,
    find_variants,
    guess_kind,
    parse_family_text,
)

T = 6


def plans_by_variant(plans: str | list[str], layers: int = T) -> dict[str, list[str]]:
    """Variant → names of its plans."""
    named = resolve(plans, layers)
    texts = [each.plan.text for each in named]
    variants = find_variants([each.name for each in named], texts, layers)
    return {variant.name: [named[index].name for index in variant.plans] for variant in variants}


# Kinds of tasks


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gsm8k", "mathematics"),
        ("arithmetic", "mathematics"),
        ("arithmetic_2da", "mathematics"),
        ("arc_challenge", "reasoning"),
        ("lambada_openai", "semantics"),
        ("recall", "semantics"),
        ("blimp_adjunct_island", "semantics"),
        ("mmlu_anatomy", "knowledge"),
        ("knowledge", "knowledge"),
        ("boolq", "other"),
    ],
)
def test_kinds_by_hand(name: str, kind: str) -> None:
    assert guess_kind(name) == kind


# Figures


@pytest.mark.parametrize("layers", [5, 6, 30])
@pytest.mark.parametrize("number", MIDDLE_CURVES)
def test_a_figure_s_set_of_plans_gives_its_curve_at_every_start(number: int, layers: int) -> None:
    """What `--plan fig4` evaluates is what figure 4 draws; with figure 9, the number of loops."""
    curve = MIDDLE_CURVES[number]
    named = resolve(f"fig{number}", layers)
    texts = [each.plan.text for each in named]
    starts = [
        variant.values["start"]
        for variant in find_variants([each.name for each in named], texts, layers)
        if variant.family == curve.family and variant.values.get("loops", -1) == curve.loops
    ]
    assert starts == list(range(count_places(curve.family, layers)))


def test_the_sets_of_figures_2_and_11_give_their_curves() -> None:
    families = {sweep.partition(":")[0] for sweep in SETS["fig11"].sweeps}
    assert families == set(MIDDLE_FAMILIES) == {curve.family for curve in MIDDLE_CURVES.values()}
    drops = {sweep.partition(":")[0] for sweep in SETS["fig2"].sweeps}
    assert drops == {curve.family for curve in SINGLE_LAYER_CURVES}
    assert families | drops == set(CURVE_FAMILIES)


def test_every_figure_of_scores_has_its_set_and_its_words() -> None:
    assert {f"fig{number}" for number in FIGURE_NUMBERS} == {
        name for name in SETS if name.startswith("fig")
    } - {"fig3"}
    assert set(TREATMENTS) == set(FIGURE_NUMBERS) - {2}
    assert describe_middle(9, layers=6) == (
        "layers N+1 to 5-N run in parallel 3 times, the average of their outputs fed back"
    )
    assert MIDDLE_CURVES[9].name == f"looped_parallel with loops={LOOPS}"


# Variants


@pytest.mark.parametrize("text", [text for each in FAMILIES.values() for text in each.examples])
def test_family_texts_are_read(text: str) -> None:
    family, values = parse_family_text(text)
    assert FAMILIES[family].text(**values) == text


@pytest.mark.parametrize("text", ["0-3, 5", "5-0", "", "(0|1)*2", "unknown:start=1"])
def test_other_texts_are_of_no_family(text: str) -> None:
    assert parse_family_text(text) == ("", {})


@pytest.mark.parametrize(
    ("text", "affected"),
    [
        ("baseline", 0),
        *((f"{family}:start=1", 3) for family in MIDDLE_FAMILIES),
        ("looped_parallel:start=2,loops=3", 1),
        ("random:start=0,seed=4", 5),
        ("drop:layer=2", 1),
        ("drop:layer=2,part=attn", 1),
        ("switch:layer=3", 2),
        ("drop_block:first=1,last=3", 3),
        ("repeat:layer=2,times=4", 1),
        ("5-0", -1),
    ],
)
def test_affected_layers_by_hand(text: str, affected: int) -> None:
    """Of six layers; variants have no seed."""
    assert count_affected(*parse_family_text(text), layers=T) == affected


def test_without_the_baseline_there_are_no_variants() -> None:
    with pytest.raises(PlanError, match=r"^the baseline is not among the 1 plans evaluated; add"):
        find_variants(["skip:start=1"], ["0, 1, 4, 5"], T)


def test_a_plan_of_several_families_is_in_each_of_their_curves() -> None:
    """Of six layers, start 2 affects one: in any order and in parallel it is the baseline."""
    plans_of = plans_by_variant("fig11")
    for family in ("reverse", "parallel", "middle_repeat"):
        assert [name for name in plans_of if name.startswith(f"{family}:")] == [
            f"{family}:start={i}" for i in range(3)
        ]
        assert plans_of[f"{family}:start=2"] == ["baseline"]
    assert plans_of["random:start=2"] == ["baseline"] * 10
    assert plans_of["looped_parallel:start=1,loops=3"] == ["looped_parallel:start=1,loops=3"]
    assert plans_of["skip:start=2"] == ["skip:start=2"]


def test_an_order_that_two_seeds_draw_counts_twice() -> None:
    """Three layers have six orders, so ten seeds repeat some; one of them is backwards."""
    names = plans_by_variant("fig11")["random:start=1"]
    assert len(names) == 10
    assert len(set(names)) <= 6
    named = {each.plan: each.name for each in resolve("fig11", T)}
    assert names == [named[FAMILIES["random"].build(T, start=1, seed=seed)] for seed in range(10)]


def test_a_family_without_a_name_in_the_store_has_no_curve() -> None:
    plans_of = plans_by_variant("fig2")
    assert list(plans_of) == [
        "baseline",
        *(f"drop:layer={i}" for i in range(6)),
        *(f"switch:layer={i}" for i in range(5)),
    ]
    # a whole layer dropped is in the store, but as a part of no sweep
    assert "drop:layer=2" not in plans_by_variant(["baseline", "0-1, 3-5", "drop:layer=2,part=mlp"])


def test_one_loop_is_parallel_and_the_first_column_of_a_grid() -> None:
    plans_of = plans_by_variant(["baseline", "fig8", "fig10"])  # of six layers, 1 and 2 loops
    assert plans_of["looped_parallel:start=0,loops=1"] == ["parallel:start=0"]
    assert plans_of["looped_parallel:start=0,loops=2"] == ["looped_parallel:start=0,loops=2"]
    without_grid = plans_by_variant(["baseline", "fig8", "fig9"])
    assert not [name for name in without_grid if name.endswith("loops=1")]


def test_only_seeds_that_are_there() -> None:
    plans_of = plans_by_variant(["baseline", "random:start=0,seed=0..2", "random:start=1,seed=7"])
    assert plans_of["random:start=0"] == [f"random:start=0,seed={seed}" for seed in range(3)]
    assert plans_of["random:start=1"] == ["random:start=1,seed=7"]


def test_parts_are_curves_of_their_own() -> None:
    plans_of = plans_by_variant(["baseline", "dropouts"])
    assert len(plans_of) == 1 + 3 * T
    assert list(plans_of)[1 : 2 * T + 1 : T] == ["drop:layer=0", "drop:layer=0,part=attn"]


def test_plans_of_no_sweep_stand_for_themselves() -> None:
    plans = ["baseline", "5-0", "drop_block:first=1,last=3", "repeat:layer=2,times=4"]
    assert plans_by_variant(plans) == {name: [name] for name in plans}


def test_every_plan_is_in_a_variant() -> None:
    for layers in (3, 5, 6, 9, 12):
        plans = [
            "painters",
            "dropouts",
            "drop_block:first=0,last=1",
            "repeat:layer=1,times=2",
            "1-0",
        ]
        named = resolve(plans, layers)
        texts = [each.plan.text for each in named]
        variants = find_variants([each.name for each in named], texts, layers)
        assert {index for variant in variants for index in variant.plans} == set(range(len(named)))
        assert len({variant.name for variant in variants}) == len(variants)


def test_a_baseline_by_another_name() -> None:
    """The first name counts: six layers' start 2 backwards is the baseline."""
    plans_of = plans_by_variant(["reverse:start=2", "baseline"])
    assert plans_of == {"baseline": ["reverse:start=2"], "reverse:start=2": ["reverse:start=2"]}
