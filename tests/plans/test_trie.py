"""The trie of plans that begin alike."""

from hypothesis import given

from repsim.plans import Plan, PlanTrie, parse_plan, resolve
from support.plans import EXAMPLES, few_plans

# Values worked out by hand


def test_trie_of_the_design_page() -> None:
    trie = PlanTrie.build(
        parse_plan(text, 6) for text in ("0-5", "0-2, 4, 5", "0, 1, (2|3|4)*2, 5")
    )
    assert trie.parents == (-1, 0, 1, 2, 3, 4, 5, 3, 7, 2, 9, 10)
    assert trie.paths == ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 7, 8), (0, 1, 2, 9, 10, 11))
    assert trie.steps[0] is None
    assert [step.text for step in trie.steps[1:] if step is not None] == (
        ["0", "1", "2", "3", "4", "5", "4", "5", "(2|3|4)", "(2|3|4)", "5"]
    )
    assert trie.children[:4] == ((1,), (2,), (3, 9), (4, 7))
    assert (trie.ends, trie.depth, len(trie)) == ((6, 8, 11), 6, 12)
    assert trie.applications == 6 + 2 + 3 + 3 + 1
    assert list(trie.depth_first()) == list(range(12))


def test_depth_first_leaves_a_branch_only_when_it_is_done() -> None:
    trie = PlanTrie.build(Plan.from_steps(order) for order in ([0, 1], [2], [0, 3]))
    assert list(trie.depth_first()) == [0, 1, 2, 4, 3]


def test_nodes_with_their_ancestors() -> None:
    trie = PlanTrie.build([parse_plan("0-3", 4), parse_plan("0, 3", 4)])
    assert trie.with_ancestors([]) == {0}
    assert trie.with_ancestors([3]) == {0, 1, 2, 3}
    assert trie.with_ancestors([2, 5]) == {0, 1, 2, 5}


def test_an_empty_trie_and_a_deep_one() -> None:
    empty = PlanTrie.build([])
    assert (len(empty), empty.depth, empty.ends, empty.applications) == (1, 0, (), 0)
    deep = PlanTrie.build([Plan.from_steps([0] * 5000)])
    assert list(deep.depth_first()) == list(range(5001))


def test_examples_of_all_families_share_what_they_begin_with() -> None:
    plans = [named.plan for named in resolve(EXAMPLES, 6)]
    trie = PlanTrie.build(plans)
    assert len(trie) < 1 + sum(map(len, plans))
    for plan, path in zip(plans, trie.paths, strict=True):
        assert tuple(trie.steps[node] for node in path[1:]) == plan.steps


# Identities


@given(few_plans)
def test_trie_has_one_node_for_each_prefix(drawn_plans: list[Plan]) -> None:
    trie = PlanTrie.build(drawn_plans)
    prefixes = {plan.steps[:end] for plan in drawn_plans for end in range(1, len(plan) + 1)}
    assert len(trie) - 1 == len(prefixes)
    assert trie.applications == sum(len(prefix[-1]) for prefix in prefixes)
    assert trie.depth == max(map(len, drawn_plans), default=0)


@given(few_plans)
def test_paths_spell_the_plans(drawn_plans: list[Plan]) -> None:
    trie = PlanTrie.build(drawn_plans)
    assert len(trie.paths) == len(drawn_plans)
    for path, plan, end in zip(trie.paths, drawn_plans, trie.ends, strict=True):
        assert path[0] == 0
        assert path[-1] == end
        assert [trie.parents[node] for node in path[1:]] == list(path[:-1])
        assert tuple(trie.steps[node] for node in path[1:]) == plan.steps


@given(few_plans, few_plans)
def test_extending_keeps_every_number(first: list[Plan], more: list[Plan]) -> None:
    trie = PlanTrie.build(first)
    longer = trie.extend(more)
    assert longer == PlanTrie.build([*first, *more])
    assert longer.parents[: len(trie)] == trie.parents
    assert longer.steps[: len(trie)] == trie.steps
    assert longer.paths[: len(first)] == trie.paths
    assert all(parent < node for node, parent in enumerate(longer.parents))


@given(few_plans)
def test_depth_first_visits_each_node_once_after_its_parent(drawn_plans: list[Plan]) -> None:
    trie = PlanTrie.build(drawn_plans)
    order = list(trie.depth_first())
    assert order[0] == 0
    assert sorted(order) == list(range(len(trie)))
    place = {node: index for index, node in enumerate(order)}
    assert all(place[trie.parents[node]] < place[node] for node in order[1:])
    assert [child for node in trie.children for child in node] == sorted(
        range(1, len(trie)), key=lambda node: (trie.parents[node], node)
    )
