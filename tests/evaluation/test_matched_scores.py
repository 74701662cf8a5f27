"""What several stores of scores have in common, on made-up stores."""

from dataclasses import replace

import pytest
from numpy.testing import assert_array_equal

from repsim.errors import DataError, PlanError, RepsimError
from repsim.evaluation.matched_scores import match_plans, match_tasks
from support.scores import make_scores, right, task

PLANS = ["baseline", "skip:start=1", "reverse:start=0"]


def test_plans_of_one_depth_are_the_same_by_their_layers() -> None:
    first = make_scores(["baseline", "skip:start=1"], {"piqa": task(right(9, 8))})
    second = make_scores(["0, 5", "0-5", "reverse:start=0"], {"piqa": task(right(7, 6, 5))})
    second.dataset["plan_name"].values[1] = "all of it"
    plans = match_plans([first, second])
    assert (plans.names, plans.texts) == (["baseline"], [["0-5"], ["0-5"]])
    assert plans.rows == [[0], [1]]
    assert plans.left_out == ["skip:start=1", "0, 5", "reverse:start=0"]


def test_plans_of_other_depths_are_the_same_by_name() -> None:
    first = make_scores(PLANS, {"piqa": task(right(9, 8, 7))})
    second = make_scores(PLANS[1:], {"piqa": task(right(6, 5))}, layers=8)
    plans = match_plans([first, second])
    assert plans.names == PLANS[1:]
    assert plans.texts == [["0, 1, 5", "0, 5-1"], ["0, 1, 7", "0, 7-1"]]
    assert plans.rows == [[1, 2], [0, 1]]
    some = match_plans([first, second], ["fig4"])
    assert some.names == ["skip:start=1"]
    assert "skip:start=3" in some.left_out


@pytest.mark.parametrize("asked", [["0, 5"], ["skip:start=1"], []])
def test_no_plan_in_common(asked: list[str]) -> None:
    first = make_scores("baseline", {"piqa": task(right(9))})
    second = make_scores("skip:start=1", {"piqa": task(right(9))})
    with pytest.raises(PlanError, match="no plan that every store has; evaluate it with --append"):
        match_plans([first, second], asked)


def test_examples_are_paired_by_number_and_the_rest_counted() -> None:
    """Documents 0 to 19 here, 15 to 24 there: five pairs."""
    here, there = right(18), right(3, examples=10)
    first = make_scores("baseline", {"a": task(right(1)), "piqa": task(here)})
    piqa = task(there)
    piqa = replace(piqa, docs=15, gold=(piqa.gold + 3) % 4)
    second = make_scores("baseline", {"piqa": piqa, "b": task(right(1))})
    (matched,), left_out = match_tasks([first, second], match_plans([first, second]))
    assert (matched.name, matched.metric, matched.unpaired) == ("piqa", "acc", 20)
    assert_array_equal(matched.score, [here[:, 15:], there[:, :5]])
    assert matched.finished.all()
    assert left_out == {"a": "not in every store", "b": "not in every store"}


def test_unfinished_examples_are_no_pairs() -> None:
    block = [0, 0, 1, 1]
    first = make_scores(
        PLANS[:2], {"piqa": task(right(2, 1, examples=4), block=block)}, done=[[1, 1], [1, 0]]
    )
    second = make_scores(
        PLANS[:2], {"piqa": task(right(2, 1, examples=4), block=block)}, done=[[0, 1], [1, 1]]
    )
    (matched,), _ = match_tasks([first, second], match_plans([first, second]))
    assert matched.finished.astype(int).tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("task_version", "2.0", "other version (1, 2.0)"),
        ("num_fewshot", 5, "other shots (0, 5)"),
        ("task_digest", "abcdef0123456789", "other settings (e3b0c4, abcdef)"),
        ("example_gold", 3, "other questions under the same numbers"),
        ("example_choices", 2, "other questions under the same numbers"),
        ("example_doc", 99, "no example in common"),
    ],
)
def test_tasks_that_differ_are_left_out_and_named(name: str, value: object, reason: str) -> None:
    tasks = {"piqa": task(right(9)), "arc": task(right(8))}
    first, second = (make_scores("baseline", tasks) for _ in range(2))
    values = second.dataset[name].values
    of_piqa = second.dataset["example_task"].values == "piqa" if name.startswith("example") else [0]
    values[of_piqa] = value
    matched, left_out = match_tasks([first, second], match_plans([first, second]))
    assert [each.name for each in matched] == ["arc"]
    assert left_out == {"piqa": reason}


def test_metrics_that_differ_and_tasks_without_one() -> None:
    first = make_scores("baseline", {"a": task(right(9)), "b": task(right(9), metric="f1")})
    second = make_scores("baseline", {"a": task(right(9)), "b": task(right(9), metric="bleu")})
    matched, left_out = match_tasks([first, second], match_plans([first, second]))
    assert [each.name for each in matched] == ["a"]
    assert left_out == {"b": "other metrics (f1, bleu)"}
    with pytest.raises(RepsimError, match="metric='bleu': no task here has it; choose acc, f1"):
        match_tasks([first, second], match_plans([first, second]), "bleu")


def test_no_task_in_common() -> None:
    first = make_scores("baseline", {"a": task(right(9))})
    second = make_scores("baseline", {"b": task(right(9))})
    with pytest.raises(DataError, match=r"no task that every store has alike \(a: not in every"):
        match_tasks([first, second], match_plans([first, second]))
