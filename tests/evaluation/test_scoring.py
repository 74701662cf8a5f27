"""From answers to scores and aggregates, with tasks whose metrics can be worked out by hand."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from repsim.evaluation.questions import Example, Request
from repsim.evaluation.scoring import aggregate_scores, iter_metrics, score_examples

NAN = float("nan")


class TwoChoices:
    """Chooses the likelier of two answers; gives a metric that no store has, too."""

    generates, metrics = False, {"acc": ("mean", True)}

    def score(self, doc: int, answers: Sequence[Any]) -> dict[str, Any]:
        return {"acc": float(answers[0][0] > answers[1][0]), "unknown": 1}

    def to_number(self, metric: str, value: Any) -> float:
        return float(value)

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        return float(np.mean(values))


class WholeText(TwoChoices):
    """Takes the log-likelihood alone, per word; only has a meaning for many texts."""

    metrics = {"perplexity": ("perplexity", False)}  # noqa: RUF012

    def score(self, doc: int, answers: Sequence[Any]) -> dict[str, Any]:
        (log_likelihood,) = answers
        return {"perplexity": (log_likelihood, 2)}

    def to_number(self, metric: str, value: Any) -> float:
        return self.aggregate(metric, [value])

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        total, words = np.sum(values, 0)
        return float(-total / words)


def example(task: str, doc: int, requests: int, is_whole_text: bool = False) -> Example:
    questions = tuple(
        Request(task, doc, choice, "", (), is_whole_text=is_whole_text)
        for choice in range(requests)
    )
    return Example(task, doc, 0, -1, questions)


EXAMPLES = [
    example("choice", 0, 2),
    example("choice", 1, 2),
    example("text", 0, 1, is_whole_text=True),
    example("text", 1, 1, is_whole_text=True),
]
ANSWERS = [(-1.0, True), (-2.0, False), (-3.0, True), (-2.5, False), (-8.0, True), (-4.0, True)]
SCORES = [[1, NAN], [0, NAN], [NAN, 4], [NAN, 2]]


@pytest.fixture
def evaluation_request() -> Any:
    return SimpleNamespace(
        tasks={"choice": TwoChoices(), "text": WholeText()},
        examples={(one.task, one.doc): one for one in EXAMPLES},
    )


@pytest.fixture
def layout() -> Any:
    """Each task is a block."""
    return SimpleNamespace(
        metric_names=["acc", "perplexity"],
        tasks=pd.DataFrame({"task": ["choice", "text"]}),
        examples=pd.DataFrame(
            {"task": ["choice"] * 2 + ["text"] * 2, "doc": [0, 1, 0, 1], "block": [0, 0, 1, 1]}
        ),
        requests=pd.DataFrame({"example": [0, 0, 1, 1, 2, 3]}),
    )


@pytest.fixture
def values() -> dict[str, Any]:
    """Two plans, of which both answered alike; nothing is aggregated yet."""
    log_likelihoods, is_greedy = zip(*ANSWERS, strict=True)
    return {
        "log_likelihood": np.array([log_likelihoods] * 2),
        "is_greedy": np.array([is_greedy] * 2).astype(np.int8),
        "score": np.array([SCORES] * 2),
        "aggregate": np.full((2, 2, 2), np.nan),
    }


ALL_DONE = np.ones((2, 2), bool)
AGGREGATES = [[0.5, NAN], [NAN, 3.0]]  # (8 + 4) / (2 + 2), not the mean of the scores


# By hand


def test_scores_of_two_tasks_by_hand(evaluation_request: Any, layout: Any) -> None:
    scores = score_examples(evaluation_request, layout, EXAMPLES, ANSWERS)
    np.testing.assert_array_equal(scores, SCORES)


def test_aggregates_of_two_tasks_by_hand(
    evaluation_request: Any, layout: Any, values: dict[str, Any]
) -> None:
    aggregates = aggregate_scores(evaluation_request, layout, values, ALL_DONE)
    np.testing.assert_array_equal(aggregates, [AGGREGATES] * 2)
    assert np.isnan(values["aggregate"]).all()  # the store's own array is left alone


# What is missing


@pytest.mark.parametrize("missing", [(NAN, True), None])
def test_an_example_with_a_missing_answer_has_no_metrics(
    missing: Any, evaluation_request: Any, layout: Any
) -> None:
    answers = [*ANSWERS[:3], missing, *ANSWERS[4:]]
    metrics = [metrics for _, metrics in iter_metrics(evaluation_request, EXAMPLES, answers)]
    assert [bool(of_example) for of_example in metrics] == [True, False, True, True]
    scores = score_examples(evaluation_request, layout, EXAMPLES, answers)
    np.testing.assert_array_equal(scores, [SCORES[0], [NAN, NAN], *SCORES[2:]])


def test_only_a_finished_task_has_an_aggregate(
    evaluation_request: Any, layout: Any, values: dict[str, Any]
) -> None:
    done = np.array([[True, False], [False, True]])
    aggregates = aggregate_scores(evaluation_request, layout, values, done)
    np.testing.assert_array_equal(
        aggregates, [[AGGREGATES[0], [NAN, NAN]], [[NAN, NAN], AGGREGATES[1]]]
    )


def test_a_task_with_an_example_that_has_no_score_has_no_aggregate(
    evaluation_request: Any, layout: Any, values: dict[str, Any]
) -> None:
    values["score"][0, 1] = np.nan
    aggregates = aggregate_scores(evaluation_request, layout, values, ALL_DONE)
    np.testing.assert_array_equal(aggregates, [[[NAN, NAN], AGGREGATES[1]], AGGREGATES])


def test_a_task_that_is_partly_asked_for_has_no_new_aggregate(
    evaluation_request: Any, layout: Any, values: dict[str, Any]
) -> None:
    del evaluation_request.examples["text", 1]
    values["aggregate"][1, 1, 1] = 7.0  # stored by an earlier run, and kept
    aggregates = aggregate_scores(evaluation_request, layout, values, ALL_DONE)
    np.testing.assert_array_equal(
        aggregates, [[AGGREGATES[0], [NAN, NAN]], [AGGREGATES[0], [NAN, 7.0]]]
    )


def test_answers_and_requests_must_agree_in_number(evaluation_request: Any) -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(iter_metrics(evaluation_request, EXAMPLES, ANSWERS[:-1]))
