"""From a model's answers to numbers: lm-eval's metrics per example, and its aggregates per task.

An answer is what `repsim.evaluation.questions.Answer` says: a log-likelihood with whether it is
greedy, or a text. Metrics and aggregations are the tasks' own code; here their results are put into
the arrays of a store of scores. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from repsim.evaluation.questions import Example
    from repsim.evaluation.request import EvaluationRequest
    from repsim.storage import score_store


def score_examples(
    request: EvaluationRequest,
    layout: score_store.Layout,
    examples: Sequence[Example],
    answers: Sequence[Any],
) -> NDArray[np.float64]:
    """Metrics of examples as one row each.

    Args:
        request: what is evaluated; its tasks compute the metrics.
        layout: its metric names are the columns.
        examples: neighbours of one block.
        answers: of all requests of these examples, one after another.

    Returns:
        `[example, metric]`; NaN where a task has no such metric, and in the whole row of an example
        with a missing answer.
    """
    columns = {metric: column for column, metric in enumerate(layout.metric_names)}
    scores = np.full((len(examples), len(columns)), np.nan)
    for row, (example, metrics) in enumerate(iter_metrics(request, examples, answers)):
        task = request.tasks[example.task]
        for metric, value in metrics.items():
            if metric in columns:
                scores[row, columns[metric]] = task.to_number(metric, value)
    return scores


def iter_metrics(
    request: EvaluationRequest, examples: Sequence[Example], answers: Sequence[Any]
) -> Iterator[tuple[Example, dict[str, Any]]]:
    """lm-eval's metrics of each example, in the form in which lm-eval aggregates them.

    Args:
        request: what is evaluated; its tasks compute the metrics.
        examples: any of its examples.
        answers: of all requests of these examples, one after another. A log-likelihood that is NaN
            and a text that is None are missing.

    Yields:
        Each example with its metrics; no metrics where an answer is missing.
    """
    remaining = iter(answers)
    for example in examples:
        # lm-eval wants the number alone for a whole text, and a pair for a continuation.
        own_answers = islice(remaining, len(example.requests))
        answers_of_example = [
            answer[0] if question.is_whole_text else answer
            for question, answer in zip(example.requests, own_answers, strict=True)
        ]
        if any(map(_is_missing, answers_of_example)):
            yield example, {}
        else:
            task = request.tasks[example.task]
            yield example, task.score(example.doc, answers_of_example)


def _is_missing(answer: Any) -> bool:
    if answer is None or isinstance(answer, str):
        return answer is None
    return bool(np.isnan(np.min(answer)))


def aggregate_scores(
    request: EvaluationRequest,
    layout: score_store.Layout,
    values: Mapping[str, NDArray[Any]],
    done: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """lm-eval's aggregates of every task that a plan has finished.

    An aggregate that the store holds already stays. A task whose examples are only partly asked for
    gets none, and neither does a plan that left an example without a score: an aggregate of the
    rest would be one of other examples.

    Args:
        request: what is evaluated.
        layout: of the store.
        values: the store's arrays by name.
        done: which blocks are finished, `[plan, block]`.

    Returns:
        `[plan, task, metric]`; NaN where there is none.
    """
    aggregates: NDArray[np.float64] = values["aggregate"].copy()
    column_of = {metric: column for column, metric in enumerate(layout.metric_names)}
    keys = list(layout.examples[["task", "doc"]].itertuples(index=False, name=None))
    task_of_example = layout.examples["task"].to_numpy()
    # Requests of example i stand from first_request[i] to first_request[i + 1].
    first_request = np.searchsorted(layout.requests["example"].to_numpy(), np.arange(len(keys) + 1))
    for task_row, name in enumerate(layout.tasks["task"]):
        # Only tasks of which every stored example is asked for.
        rows = np.flatnonzero(task_of_example == name).tolist()
        task = request.tasks.get(name)
        if task is None or any(keys[row] not in request.examples for row in rows):
            continue
        examples = [request.examples[keys[row]] for row in rows]
        places = [
            place for row in rows for place in range(first_request[row], first_request[row + 1])
        ]

        # Only plans that finished the task, scored every example and lack an aggregate.
        finished = done[:, layout.examples["block"].to_numpy()[rows]].all(1)
        has_gaps = np.isnan(values["score"][:, rows]).all(-1).any(1)
        columns = [column_of[metric] for metric in task.metrics]
        is_new = np.isnan(aggregates[:, task_row, columns]).any(1)
        for plan in np.flatnonzero(finished & ~has_gaps & is_new).tolist():
            answers = restore_answers(values, plan, places, task.generates)
            metrics = [metrics for _, metrics in iter_metrics(request, examples, answers)]
            for metric in dict.fromkeys(metric for results in metrics for metric in results):
                if metric in column_of:
                    aggregates[plan, task_row, column_of[metric]] = task.aggregate(
                        metric, [results[metric] for results in metrics if metric in results]
                    )
    return aggregates


def restore_answers(
    values: Mapping[str, NDArray[Any]], plan: int, places: Sequence[int], generates: bool
) -> list[Any]:
    """Answers as the task takes them, from the store's arrays at these requests."""
    if generates:
        return list(values["response"][plan, places])
    log_likelihoods = values["log_likelihood"][plan, places]
    is_greedy = values["is_greedy"][plan, places] == 1
    return list(zip(log_likelihoods.tolist(), is_greedy.tolist(), strict=True))
