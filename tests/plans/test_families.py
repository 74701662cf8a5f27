"""What each family runs, and what it says of itself."""

import math
import random

import pytest

from repsim.errors import PlanError
from repsim.plans import FAMILIES, Family, NamedPlan, Plan, resolve
from support.plans import EXAMPLES

SIZES = (1, 2, 3, 4, 5, 6, 7, 30, 32)


def plan_of(text: str, layers: int) -> Plan:
    (named,) = resolve(text, layers)
    return named.plan


def plans_of(texts: str, layers: int) -> list[Plan]:
    return [named.plan for named in resolve(texts, layers)]


def text_of(text: str, layers: int) -> str:
    return plan_of(text, layers).text


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
def test_families_of_six_layers(family: str, text: str) -> None:
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
def test_families_of_thirty_layers(family: str, text: str) -> None:
    assert text_of(family, 30) == text


@pytest.mark.parametrize("layers", SIZES)
def test_random_has_the_order_of_the_paper_s_code(layers: int) -> None:
    for start in range(math.ceil(layers / 2)):
        for seed in range(5):
            order = list(range(start + 1, layers - start))
            random.Random(seed).shuffle(order)
            expected = [*range(start + 1), *order, *range(layers - start, layers)]
            plan = FAMILIES["random"].build(layers, start=start, seed=seed)
            assert plan == Plan.from_steps(expected)


def test_families_say_what_they_do_and_take() -> None:
    assert FAMILIES["skip"].summary == "The middle left out."
    assert FAMILIES["baseline"].usage == "baseline"
    assert FAMILIES["random"].usage == "random:start=..,seed=.."
    assert FAMILIES["drop"].usage == "drop:layer=..[,part=..]"
    assert FAMILIES["drop"].text(part=None, layer=3) == "drop:layer=3"
    assert FAMILIES["drop"].build(6, layer=3, part=None) == plan_of("drop:layer=3", 6)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_says_all_that_is_needed_of_it(family: Family) -> None:
    """Examples are of the family, without repetition, and take each optional parameter once."""
    assert family.label
    assert family.summary.endswith(".")
    assert family.examples
    examples = [resolve(text, 6)[0] for text in family.examples]
    assert [named.family for named in examples] == [family.name] * len(examples)
    assert tuple(family.text(**named.values) for named in examples) == family.examples
    assert len({named.plan for named in examples}) == len(examples)
    assert {name for named in examples for name in named.values} == (
        {parameter.name for parameter in family.parameters}
    )


def test_labels_tell_families_apart() -> None:
    assert len({family.label for family in FAMILIES.values()}) == len(FAMILIES)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("baseline", 0),
        ("skip:start=1", 3),
        ("middle_repeat:start=0", 5),
        ("random:start=1,seed=0", 3),
        ("looped_parallel:start=1,loops=4", 3),
        ("drop:layer=2", 1),
        ("drop:layer=2,part=attn", 1),
        ("switch:layer=2", 2),
        ("drop_block:first=1,last=4", 4),
        ("repeat:layer=2,times=9", 1),
    ],
)
def test_affected_layers_of_a_six_layer_model(text: str, count: int) -> None:
    (named,) = resolve(text, 6)
    assert FAMILIES[named.family].affected(6, **named.values) == count


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_but_the_baseline_affects_layers(text: str) -> None:
    (named,) = resolve(text, 6)
    affected = FAMILIES[named.family].affected(6, **named.values)
    assert affected == 0 if text == "baseline" else 1 <= affected <= 6


# Identities


@pytest.mark.parametrize("layers", SIZES)
def test_a_middle_of_at_most_one_layer_stays_the_baseline(layers: int) -> None:
    start = math.ceil(layers / 2) - 1
    texts = [f"{name}:start={start}" for name in ("reverse", "middle_repeat", "parallel")]
    texts += [f"random:start={start},seed=3", f"looped_parallel:start={start},loops=1"]
    assert resolve(["baseline", *texts], layers) == (
        NamedPlan("baseline", Plan.from_steps(range(layers))),
    )


@pytest.mark.parametrize("layers", [size for size in SIZES if size > 2])
def test_families_that_say_the_same_are_equal(layers: int) -> None:
    for start in range((layers - 1) // 2):
        block = f"drop_block:first={start + 1},last={layers - start - 1}"
        assert plan_of(f"skip:start={start}", layers) == plan_of(block, layers)
        looped = plan_of(f"looped_parallel:start={start},loops=1", layers)
        assert looped == plan_of(f"parallel:start={start}", layers)
    for layer in range(layers):
        dropped = plan_of(f"drop_block:first={layer},last={layer}", layers)
        assert plan_of(f"drop:layer={layer}", layers) == dropped
        assert plan_of(f"repeat:layer={layer},times=1", layers) == plan_of("baseline", layers)


def test_skip_of_the_centre_layer_is_its_drop() -> None:
    assert plan_of("skip:start=14", 30) == plan_of("drop:layer=15", 30)


def test_the_two_sublayers_of_a_model_with_one_layer() -> None:
    assert [plan.text for plan in plans_of("drop:layer=0,part=..", 1)] == ["0.mlp", "0.attn"]


# Bad input


def test_builders_refuse_what_texts_may_not_say() -> None:
    with pytest.raises(PlanError, match="start=20: a 30-layer model allows 0 to 14"):
        FAMILIES["skip"].build(30, start=20)
    with pytest.raises(PlanError, match=r"start=3\.0: a 30-layer model allows 0 to 14"):
        FAMILIES["reverse"].build(30, start=3.0)
    with pytest.raises(PlanError, match="part=head: a 30-layer model allows attn or mlp"):
        FAMILIES["drop"].build(30, layer=3, part="head")
