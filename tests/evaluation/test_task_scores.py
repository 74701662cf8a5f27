"""What scores mean: a task's own metric, standard errors against lm-eval's, and chance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean_stderr
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from repsim.errors import DataError, RepsimError
from repsim.evaluation.task_scores import (
    COLUMNS,
    chance_level,
    choose_metric,
    mean_standard_error,
    split_by_task,
    tabulate,
)
from support.scores import answers, make_scores, right, task, task_of

PLANS = ["baseline", "skip:start=1", "drop:layer=2"]


# A task's own metric


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["acc", "acc_norm"], "acc_norm", "acc_norm"),
        (["acc_norm", "acc"], None, "acc"),
        (["f1", "exact_match,strict", "acc"], "bleu", "acc"),
        (["f1", "exact_match,strict", "exact_match,flexible"], "acc", "exact_match,strict"),
        (["f1", "rouge"], "acc", "f1"),
        ([], "acc", ""),
    ],
)
def test_own_metric_by_hand(names: Sequence[str], wanted: str | None, chosen: str) -> None:
    assert choose_metric(names, wanted) == chosen


def test_a_metric_without_better_or_worse_is_no_task_s_own() -> None:
    values = right(16, 8, 4)
    metrics = {"lower": ("mean", 0, values), "f": ("f1", 1, values), "em": ("mean", 1, values)}
    (scores,) = split_by_task(make_scores(PLANS, {"piqa": task_of(metrics)}).dataset, "acc")
    assert scores.metric == "em"
    assert_array_equal(scores.score, values)
    assert np.isnan(scores.log_likelihood).all()


# Standard errors


@pytest.mark.parametrize("examples", [2, 7, 100])
def test_standard_errors_are_lm_eval_s(examples: int) -> None:
    shares = answers(3, examples)
    numbers = np.random.default_rng(0).normal(size=(3, examples))
    for scores in (shares, numbers):
        expected = [mean_stderr(row.tolist()) for row in scores]
        assert_allclose(mean_standard_error(scores), expected, rtol=1e-12)


def test_standard_error_by_hand() -> None:
    """Deviations -1, 0 and 1: a variance of 2 / 2, over 3 examples."""
    assert mean_standard_error(np.array([4.0, 5, 6])) == pytest.approx(np.sqrt(1 / 3))


def test_no_standard_error_of_one_example_or_of_a_missing_score() -> None:
    assert np.isnan(mean_standard_error(np.array([[1.0], [0]]))).all()
    errors = mean_standard_error(np.array([[1.0, 0, np.nan], [1, 0, 1]]))
    assert np.isnan(errors).tolist() == [True, False]


# Chance


@pytest.mark.parametrize(
    ("choices", "gold", "chance"),
    [
        ([4, 4, 4, 4], [0, 1, 2, 3], 1 / 4),
        ([2, 4, 4, 5], [0, 1, 2, 3], (1 / 2 + 1 / 4 + 1 / 4 + 1 / 5) / 4),
        ([2, 2, 2, 2], [1, 1, 0, 1], 1 / 2),  # as chance has it
        ([2] * 40, [1] * 36 + [0] * 4, 36 / 40),  # always the second
        ([2] * 40, [1] * 30 + [-1] * 6 + [0] * 4, 30 / 40),
        ([4] * 8, [1] * 8, 1),
        ([4] * 3, [1] * 3, 1 / 4),
        ([4, 4, 4, 4], [-1, -1, -1, -1], 1 / 4),
        ([0, 0, 0], [-1, -1, -1], 0),
        ([0, 0, 0], [0, 0, 0], 0),
        ([0, 2, 2, 0], [-1, 0, 1, -1], 1 / 4),
    ],
)
def test_chance_by_hand(choices: Any, gold: Any, chance: float) -> None:
    assert chance_level(np.array(choices), np.array(gold)) == pytest.approx(chance)


@pytest.mark.parametrize("choices", [2, 4])
def test_the_largest_class_counts_from_the_number_on_that_an_exact_test_says(choices: Any) -> None:
    """Of 60 examples: the first number whose binomial tail, summed by hand, is at most a hundredth
    of a class's.
    """
    chances = stats.binom(60, 1 / choices).pmf(np.arange(61))
    first = next(count for count in range(61) if chances[count:].sum() <= 0.01 / choices)
    for count, chance in ((first, first / 60), (first - 1, 1 / choices)):
        rest = np.arange(60 - count) % (choices - 1) + 1
        gold = np.concatenate([np.zeros(count, int), rest])
        assert chance_level(np.full(60, choices), gold) == pytest.approx(chance)


def test_chance_of_balanced_answers_is_rarely_anything_else() -> None:
    """50 examples of 4 balanced choices, 2,000 times; the largest class itself would be 0.32 on
    average.
    """
    generator = np.random.default_rng(0)
    golds = generator.integers(0, 4, size=(2000, 50))
    levels = np.array([chance_level(np.full(50, 4), gold) for gold in golds])
    assert (levels != 0.25).mean() <= 0.01
    assert np.mean([np.bincount(gold).max() / 50 for gold in golds]) == pytest.approx(
        0.32, abs=0.01
    )


def test_the_whole_data_set_decides_chance_where_it_is_known() -> None:
    """Whatever the part that was evaluated looks like."""
    choices, balanced, lopsided = np.full(40, 4), np.arange(40) % 4, np.zeros(40, int)
    assert chance_level(choices, balanced, [700, 100, 100, 100]) == pytest.approx(0.7)
    assert chance_level(choices, lopsided, [250, 250, 250, 250]) == 0.25
    assert chance_level(choices, lopsided, [262, 246, 246, 246]) == 0.25  # as chance has it
    assert chance_level(choices, balanced, [300, 240, 230, 230]) == pytest.approx(0.3)


# The table


def test_the_table_by_hand() -> None:
    """16, 11 and 6 of 20 right; perplexity has no standard error."""
    tasks = {
        "lambada": task(right(16, 11, 6), perplexity=("perplexity", 0, -right(16, 11, 6))),
        "piqa": task(right(10, 8, 1), acc_norm=("mean", 1, right(11, 9, 2))),
    }
    scores = make_scores(PLANS, tasks)
    table = tabulate(scores.dataset)
    assert list(table.columns) == list(COLUMNS)
    assert table["plan_name"].tolist() == [name for name in PLANS for _ in range(4)]
    assert table["plan"].tolist() == ["0-5"] * 4 + ["0, 1, 5"] * 4 + ["0, 1, 3-5"] * 4
    assert table["task"].tolist() == ["lambada", "lambada", "piqa", "piqa"] * 3
    assert table["metric"].tolist() == ["acc", "perplexity", "acc", "acc_norm"] * 3
    assert table["aggregation"].tolist() == ["mean", "perplexity", "mean", "mean"] * 3
    assert table["higher_is_better"].tolist() == [True, False, True, True] * 3
    assert table["examples"].tolist() == [20] * 12
    values = [0.8, -0.8, 0.5, 0.55, 0.55, -0.55, 0.4, 0.45, 0.3, -0.3, 0.05, 0.1]
    assert_allclose(table["value"], values)
    # Of a share p of n answers: the root of p (1 - p) / (n - 1).
    shares = np.array(values)
    errors = np.where(shares > 0, np.sqrt(np.abs(shares) * (1 - shares) / 19), np.nan)
    assert_allclose(table["standard_error"], errors)


def test_one_metric_of_each_task() -> None:
    tasks = {
        "piqa": task(right(10, 8, 1), acc_norm=("mean", 1, right(11, 9, 2))),
        "recall": task(right(4, 3, 2)),
        "wikitext": task_of({"perplexity": ("perplexity", 0, -right(4, 3, 2))}),
    }
    scores = make_scores(PLANS, tasks)
    table = tabulate(scores.dataset, "acc_norm")
    assert table["metric"].tolist() == ["acc_norm", "acc", "perplexity"] * 3
    assert table["value"].tolist()[:2] == [0.55, 0.2]
    assert tabulate(scores.dataset, "acc")["value"].tolist()[:2] == [0.5, 0.2]


def test_what_is_missing_has_neither_value_nor_error() -> None:
    """The second block is not finished under skip, and an example of drop has no score."""
    values = right(16, 11, 6)
    values[2, 3] = np.nan
    block = np.arange(20) // 10
    done = [[1, 1], [1, 0], [1, 1]]
    scores = make_scores(PLANS, {"piqa": task(values, block=block)}, done=done)
    table = tabulate(scores.dataset)
    for column in ("value", "standard_error"):
        assert table[column].isna().tolist() == [False, True, True]


def test_the_table_and_the_split_agree() -> None:
    scores = make_scores(PLANS, {name: task(answers(3, seed=row)) for row, name in enumerate("ab")})
    table = tabulate(scores.dataset, "acc")
    for each in split_by_task(scores.dataset, "acc"):
        rows = table[table["task"] == each.name]
        assert rows["metric"].tolist() == [each.metric] * 3
        assert_allclose(rows["value"], each.score.mean(1))


def test_a_table_of_a_metric_that_no_task_has() -> None:
    tasks = {"piqa": task(right(10, 8, 1), perplexity=("perplexity", 0, -right(1, 1, 1)))}
    with pytest.raises(RepsimError, match=r"^metric='f1': no task here has it; choose acc, perp"):
        tabulate(make_scores(PLANS, tasks).dataset, "f1")


def test_a_table_of_a_task_without_examples() -> None:
    scores = make_scores(PLANS, {"piqa": task(right(10, 8, 1))})
    fill = {"aggregation": "", "higher_is_better": -1}
    with pytest.raises(DataError, match=r"^task 'sciq' has no examples"):
        tabulate(scores.dataset.reindex(task=["piqa", "sciq"], fill_value=fill))
