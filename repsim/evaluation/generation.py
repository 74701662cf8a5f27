"""Texts that a model writes, under one plan after another.

Writing a token changes what the next one sees, so plans share nothing here: each runs through the
model itself (`repsim.models.planned`) with a cache of keys and values. Several texts are written
together only where that changes none of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from repsim.evaluation.scoring import score_examples
from repsim.schema import NOT_FINITE

if TYPE_CHECKING:
    from repsim.evaluation.questions import Example
    from repsim.evaluation.request import EvaluationRequest
    from repsim.models import Model
    from repsim.plans import NamedPlan, Plan
    from repsim.storage import score_store

MOST_TEXTS_AT_ONCE = 8

log = logging.getLogger("repsim")


def check_paper_cache(model: Model, plans: Sequence[NamedPlan]) -> None:
    """Refuses, before anything is computed, plans that cannot be generated with the paper's cache.

    Args:
        model: the model that is to write.
        plans: only those with a parallel step need the cache.

    Raises:
        RepsimError: the model's cache cannot be averaged for one of the plans.
    """
    from repsim.models.kv_cache import AveragingCache
    from repsim.models.planned import planned

    for named in plans:
        if _has_parallel_step(named.plan):
            AveragingCache(planned(model, named.plan, check=False), named.plan)


def choose_texts_at_once(request: EvaluationRequest) -> int:
    """How many texts are written together: several only if that changes none of them.

    Args:
        request: what is evaluated; its prompts are tried together and each by itself.

    Returns:
        `MOST_TEXTS_AT_ONCE` or 1.
    """
    from repsim.models.batch_invariance import can_generate_together

    prompts = [
        question.prompt
        for example in request.examples.values()
        for question in example.requests
        if question.prompt is not None
    ]
    if can_generate_together(request.model, prompts):
        return MOST_TEXTS_AT_ONCE
    log.info(
        "writing: one text at a time, as padding or a longer prompt in the same batch changes what "
        "the model writes"
    )
    return 1


def generate_texts(
    request: EvaluationRequest,
    layout: score_store.Layout,
    examples: Sequence[Example],
    pending: Sequence[int],
    at_once: int,
    finish: Callable[[int, dict[str, Any]], None],
) -> None:
    """A block's texts, written by the model under one pending plan after another.

    Args:
        request: what is evaluated; notes in `proven` which planned models were checked.
        layout: of the store.
        examples: of one block, all of one task.
        pending: indices of the plans to run.
        at_once: how many texts are written together, from `choose_texts_at_once`.
        finish: called per plan with its index and its arrays: `response` and `is_greedy`
            `[request]`, `score` `[example, metric]`.
    """
    from repsim.models.kv_cache import AveragingCache
    from repsim.models.planned import planned

    task = request.tasks[examples[0].task]
    docs = [example.doc for example in examples]
    for index in pending:
        # The planned model is checked against the plan's own steps once per run.
        plan = layout.plans[index].plan
        module = planned(request.model, plan, check=plan not in request.proven)
        request.proven.add(plan)

        # A text is None where the logits were not finite; it is stored as an empty one with a flag.
        averages = request.paper_cache and _has_parallel_step(plan)
        cache = partial(AveragingCache, module, plan) if averages else None
        texts = [
            text
            for texts_of_example in task.generate(docs, module, cache, at_once)
            for text in texts_of_example
        ]
        flags = np.array([NOT_FINITE if text is None else -1 for text in texts], np.int8)
        scores = score_examples(request, layout, examples, texts)
        responses = [text or "" for text in texts]
        finish(index, {"response": responses, "is_greedy": flags, "score": scores})


def _has_parallel_step(plan: Plan) -> bool:
    return any(len(step) > 1 for step in plan.steps)
