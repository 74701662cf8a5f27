"""What scores that are there hold of what is asked for, and what remains to be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pandas as pd

from repsim.errors import StoreError
from repsim.evaluation.reader import CACHES, Scores, open_scores
from repsim.evaluation.request import EvaluationRequest, ExampleKey
from repsim.jobs.resumable import RemainingWork, check_plan_names
from repsim.jobs.subject import identity_of
from repsim.plans import NamedPlan, names_of
from repsim.schema import Identity
from repsim.storage import score_store
from repsim.storage.group import StoreGroup
from repsim.storage.location import Location
from repsim.storage.requests import is_same_request
from repsim.storage.score_store import Layout

PACKAGES = ("lm-eval", "datasets")  # whose versions count as well
OTHER = "choose another --out or remove it"


def read_existing(location: Location) -> Scores | None:
    """The scores as they are; None where there are none.

    Raises:
        StoreError: something else is there, or it is damaged.
    """
    return None if StoreGroup.find(location) is None else open_scores(location.text)


def plan_remaining_work(
    request: EvaluationRequest, existing: Scores | None, *, append: bool
) -> RemainingWork[Layout]:
    """What a store of scores lacks of what is requested.

    Plans, tasks and examples that are there stay where they are; the rest follows.

    Args:
        request: what is asked for.
        existing: what is there.
        append: whether it may be extended.
    Raises:
        StoreError: another evaluation is there, or one that would have to be extended unasked.
    """
    tables: tuple[pd.DataFrame, ...] = (pd.DataFrame(),) * 4
    present_plans: tuple[NamedPlan, ...] = ()
    if existing is not None:
        tables, present_plans = score_store.tables(existing.dataset), existing.plans
        _check_same_evaluation(request, existing)
        _check_same_questions(request, existing, *tables)
        check_plan_names(existing.place, present_plans, request.plans)
    tasks, metrics, examples, requests = tables
    # What is there comes first, in its order; what is requested beyond that is new.
    present = _keys(examples)
    new_keys = [key for key in request.examples if key not in present]
    known_plans = {named.plan for named in present_plans}
    new_plans = tuple(named for named in request.plans if named.plan not in known_plans)
    if existing is not None and (new_plans or new_keys) and not append:
        raise _extension_error(existing, len(present), new_plans, new_keys)
    # The layout of the store once it holds both.
    new_examples = request.example_table(
        new_keys, 0 if examples.empty else int(examples["block"].max()) + 1
    )
    new_examples.index += len(examples)
    all_requests = _stack(requests, request.request_table(new_examples))
    names = set() if tasks.empty else set(tasks["task"])
    new_tasks, new_metrics = (
        table[~table["task"].isin(names)] for table in (request.task_table, request.metric_table)
    )
    digest = sha256("".join(all_requests["digest"]).encode()).hexdigest()
    layout = Layout(
        identity=_identity(request, digest),
        layers=request.model.layers,
        plans=present_plans + new_plans,
        tasks=_stack(tasks, new_tasks),
        metrics=_stack(metrics, new_metrics),
        examples=_stack(examples, new_examples),
        requests=all_requests,
        commands=_commands(request, existing),
        paper_cache=request.paper_cache,
        generates=request.generates or (existing is not None and "response" in existing.dataset),
    )
    done = np.zeros((len(layout.plans), layout.blocks), bool)
    if existing is not None:
        before = existing.dataset["done"].values
        done[: before.shape[0], : before.shape[1]] = before
    missing = request.missing_in(layout, done)
    work = RemainingWork(layout, missing, bool(new_plans or new_keys))
    if existing is not None and not work.is_none:
        existing.group.check_current()
    return work


def is_aggregated(scores: Scores) -> bool:
    """Whether every task that a plan has finished has its aggregates."""
    data = scores.dataset
    applies = data["higher_is_better"].values >= 0
    block, tasks = data["block"].values, data["example_task"].values
    finished = np.stack(
        [data["done"].values[:, np.unique(block[tasks == task])].all(1) for task in scores.tasks], 1
    )
    lacking = np.isnan(data["aggregate"].values) & applies & finished[..., None]
    # A plan whose states were not finite has no aggregates, and never will have.
    return not lacking[scores.nonfinite.values == 0].any()


def _identity(request: EvaluationRequest, digest: str) -> Identity:
    return identity_of(request.model, "benchmarks", digest, "scored", *PACKAGES)


def _keys(examples: pd.DataFrame) -> set[ExampleKey]:
    if examples.empty:
        return set()
    return set(examples[["task", "doc"]].itertuples(index=False, name=None))


def _commands(request: EvaluationRequest, existing: Scores | None) -> tuple[dict[str, object], ...]:
    """The commands that made the store; one that asks for nothing new leaves no trace."""
    commands = tuple(existing.dataset.attrs["requests"]) if existing is not None else ()
    if commands and is_same_request(commands[-1], request.command):
        return commands
    return (*commands, request.command)


def _stack(present: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    # An empty table would take the others' dtypes away.
    tables = [table for table in (present, new) if not table.empty]
    return pd.concat(tables or [new], ignore_index=True)


def _extension_error(
    existing: Scores, examples: int, plans: Sequence[NamedPlan], keys: Sequence[ExampleKey]
) -> StoreError:
    lacks = [f"plans {names_of(plans)}"] if plans else []
    lacks += [f"{len(keys):,} examples"] if keys else []
    return StoreError(
        f"{existing.place}: holds {names_of(existing.plans)} on {examples:,} examples, not "
        f"{' nor '.join(lacks)}; add --append, or choose another --out"
    )


def _check_same_evaluation(request: EvaluationRequest, existing: Scores) -> None:
    """Refuses scores of another model, or of texts written with another cache."""
    place = existing.place
    stored = replace(Identity(**existing.identity), corpus_digest="")
    if difference := _identity(request, "").difference(stored):
        raise StoreError(f"{place}: holds another evaluation: {difference}; {OTHER}")
    there = existing.dataset.attrs["paper_cache"]
    here = request.paper_cache and score_store.PAPER_CACHE
    if there != here:
        raise StoreError(
            f"{place}: holds another evaluation (--paper-cache: {CACHES[there]} there, "
            f"{CACHES[here]} here); {OTHER}"
        )


def _check_same_questions(
    request: EvaluationRequest,
    existing: Scores,
    tasks: pd.DataFrame,
    _metrics: pd.DataFrame,
    examples: pd.DataFrame,
    requests: pd.DataFrame,
) -> None:
    """Refuses scores of the same tasks with other questions."""
    place = existing.place
    for stored in tasks.itertuples():
        task = request.tasks.get(stored.task)
        if task is None:
            continue
        if (task.version, task.shots, task.digest) != (stored.version, stored.shots, stored.digest):
            raise StoreError(
                f"{place}: holds {stored.task} of another kind (version {stored.version}, "
                f"{stored.shots}-shot there, version {task.version}, {task.shots}-shot here; or "
                "another chat template, system instruction or gen_kwargs); choose another --out"
            )
    digests = {
        (question.task, question.doc, question.choice): question.digest
        for example in request.examples.values()
        for question in example.requests
    }
    differing = [
        (stored.task, stored.doc)
        for stored in requests.itertuples()
        if digests.get((stored.task, stored.doc, stored.choice), stored.digest) != stored.digest
    ]
    for stored in examples.itertuples():
        example = request.examples.get((stored.task, stored.doc))
        if example and (example.choices, example.gold) != (stored.choices, stored.gold):
            differing.append((stored.task, stored.doc))
    for task_name, doc in differing:
        raise StoreError(
            f"{place}: example {doc} of {task_name} asks something else there; other data or "
            "another lm-eval? choose another --out"
        )
