"""Names of plans: where one ends, what is none, and how plans are found again by theirs."""

import pytest

from repsim.errors import PlanError
from repsim.plans import FAMILIES, SETS, Plan, check_distinct, recognise, resolve
from repsim.plans.names import split_name
from support.plans import EXAMPLES

T = 30


def named(*texts: str) -> dict[str, str]:
    """Name -> what it runs."""
    return {each.name: each.plan.text for each in resolve(texts, T)}


@pytest.mark.parametrize(
    ("text", "name", "plan"),
    [
        ("late=0-3, 8-29", "late", "0-3, 8-29"),
        (" a.b-c_1 =  skip:start=3 ", "a.b-c_1", "skip:start=3"),
        ("später=0-3", "später", "0-3"),
        ("0-3, (4|5)*2", "", "0-3, (4|5)*2"),
        ("random:start=0..14,seed=0..9", "", "random:start=0..14,seed=0..9"),
        ("late=drop:layer=3", "late", "drop:layer=3"),
    ],
)
def test_where_a_name_ends(text: str, name: str, plan: str) -> None:
    assert split_name(text) == (name, plan)


@pytest.mark.parametrize("text", EXAMPLES)
def test_no_family_has_a_name(text: str) -> None:
    assert split_name(text) == ("", text)


def test_a_plan_is_called_what_it_was_named() -> None:
    assert named("late=0-3, 8-29", "x=skip:start=1", "0-2") == {
        "late": "0-3, 8-29",
        "x": "0, 1, 29",
        "0-2": "0-2",
    }
    (late,) = resolve("late=skip:start=1", T)
    assert (late.family, late.values) == ("skip", {"start": 1})


def test_a_given_name_goes_before_any_other() -> None:
    assert named("0-2", "short=0-2") == named("short=0-2", "0-2") == {"short": "0-2"}
    assert list(named("baseline", "fig4", "x=skip:start=0"))[:2] == ["baseline", "x"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["drop=0-3"], "drop=0-3: drop is a family; give the plan another name"),
        (["fig4=0-3"], "fig4=0-3: fig4 is a set; give"),
        (["all=0-3"], "all=0-3: all is all of a store; give"),
        (["x=fig4"], "x=fig4: stands for several plans; a name is for one"),
        (["x=skip:start=0..1"], "stands for several plans"),
        (["0-3=4"], "'0-3' is no name for a plan; begin with a letter"),
        (["my plan=4"], "'my plan' is no name for a plan"),
        (["=4"], "'' is no name for a plan"),
        (["late="], "an empty step"),
        (["late=0-99"], "layer 99: a 30-layer model allows 0 to 29"),
        (["a=0-3", "a=0-4"], "a: names two plans, 0-3 and 0-4; give each its own name"),
        (["a=0-3", "b=0-3"], "a and b: the same plan (0-3); name it once"),
        (["all"], "all: the plans of a store, and there is none; name plans or sets"),
    ],
)
def test_what_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve(texts, T)
    assert message in str(caught.value)


# In a store


def test_plans_of_a_store_are_found_by_their_names() -> None:
    stored = resolve(["late=0-3, 8-29", "baseline", "skip:start=1"], T)
    assert resolve("late", T, stored) == (stored[0],)
    assert resolve("all", T, stored) == stored
    assert resolve(["skip:start=1", "late"], T, stored) == (stored[2], stored[0])
    # By its text, a plan is called as it was asked for.
    assert resolve("0-3, 8-29", T, stored)[0].plan == stored[0].plan
    with pytest.raises(
        PlanError, match=r"'lat': unknown; did you mean late\? .*; of the store: la"
    ):
        resolve("lat", T, stored)


def test_a_name_in_a_store_is_read_as_it_is() -> None:
    plan = Plan.from_steps([0, 1])
    for name in ("late", "all", "x=0-3", "@/etc/hostname", "skip:start=1", "0-3"):
        assert recognise(name, plan, T).name == name
        assert recognise(name, plan, T).plan == plan


def test_only_names_of_users_have_to_differ() -> None:
    check_distinct([recognise("0-3", Plan.from_steps([layer]), T) for layer in (1, 2)])
    with pytest.raises(PlanError, match="late: names two plans"):
        check_distinct([recognise("late", Plan.from_steps([layer]), T) for layer in (1, 2)])
    for name in (*FAMILIES, *SETS, "all", "0-3", "skip:start=1"):
        assert not recognise(name, Plan.from_steps([1]), T).has_given_name
