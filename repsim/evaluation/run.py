"""Benchmarks under layer plans, in one pass: joins tasks, packing, trace and stack to a store of
scores.

Requests whose answer is a log-likelihood run through the trie of all plans, in trees of texts that
share what they begin with, and only the states that leave a plan are scored, at the tokens that
predict something. Requests whose answer is a text run plan by plan through the model itself, with a
KV cache. Progress goes to a callable, remarks to the logger `repsim`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from repsim.data.corpus import Company
from repsim.data.packing import Packed, Window, cut_prefix_trees, pack_prefix_trees, pack_rows
from repsim.errors import Interrupted, ModelError, PlanError, RepsimError, StoreDamaged, StoreError
from repsim.evaluation.reader import CACHES, Scores, open_scores
from repsim.jobs import interruption
from repsim.jobs.interruption import DEFAULT_BATCH_TOKENS, Progress
from repsim.plans import NamedPlan, Plan, PlanTrie, names_of, resolve
from repsim.schema import DEFAULT_MODEL, NOT_FINITE, Identity, ReplayVerdict
from repsim.storage import score_store, state_store
from repsim.storage.location import Location, location_of
from repsim.storage.lock import WriterLock, is_locked

if TYPE_CHECKING:
    from repsim.evaluation.tasks import Example, Task
    from repsim.models import Model
    from repsim.models.tracing import NodeState

GENERATED = 8  # texts that are written together
PACKAGES = ("lm-eval", "datasets")

log = logging.getLogger("repsim")


def evaluate(
    model: str | Path | Model = DEFAULT_MODEL,
    *,
    plan: str | Plan | Sequence[str | Plan] = "baseline",
    tasks: str | Sequence[str] = "offline",
    limit: int | None = None,
    shots: int | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    append: bool = False,
    repair: bool = False,
    paper_cache: bool = False,
    contexts: str = "auto",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Callable[[Progress], None] | None = None,
    **load_options: Any,
) -> Scores:
    """Scores a model on benchmarks under layer plans, with lm-eval's tasks and metrics.

    What plans share is computed once, and so is what the texts of a benchmark share. Where `out`
    holds a part of the same evaluation, the rest is computed.

    Args:
        model: a name for `repsim.models.load`, or what that gave.
        plan: plans, families, sweeps or named sets.
        tasks: lm-eval's tasks, groups or tags, or the offline suite's; several in a list or with
            commas.
        limit: the first so many examples of each task.
        shots: solved examples before each; each task's own number by default.
        data_dir: folder of `<task>.<split>.jsonl` files, read in place of the Hub.
        out: the store, a folder or a URL; by default under the cache, named after model, tasks and
            plan.
        append: add the plans, tasks and examples that a finished store lacks.
        repair: read the store first and compute again what is damaged or missing.
        paper_cache: when generating, average the keys and values of each parallel step's layers, as
            the paper did; not exact.
        contexts: `trees` where texts share what they begin with, `rows` where each runs by itself;
            `auto` tries whether the model takes trees.
        batch_tokens: about so many tokens are computed and finished together.
        progress: called as scores are finished; counts the tokens of all requests under all plans.
        **load_options: for `repsim.models.load`: revision, dtype as `model_dtype`, device,
            device_map, ...
    Raises:
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
        RepsimError: something asked for cannot be had; what is finished stays.
    """
    named = [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks)]
    plans = [plan] if isinstance(plan, str | Plan) else list(plan)
    model = interruption.name_or_model(model)
    if batch_tokens < 1:
        raise RepsimError(f"batch_tokens={batch_tokens}: at least 1")
    if not plans:
        raise PlanError("no plan: name at least one, e.g. baseline")
    if data_dir is not None and not str(data_dir).strip():
        raise RepsimError("data_dir: an empty path; name a folder, or leave it out")
    if contexts not in ("auto", "trees", "rows"):
        raise RepsimError(f"contexts {contexts!r}: choose auto, trees or rows")
    parts = ("+".join(named), "+".join(map(str, plans)))
    default = interruption.default_path("scores", model, load_options.get("stack"), parts)
    place = location_of(default if out is None else out)
    interruption.check_target(place)
    loaded = interruption.load_or_reuse(model, load_options)
    resolved = resolve(plans, loaded.layers)

    from repsim.evaluation.tasks import load as load_tasks

    folder = None if data_dir is None else Path(data_dir)
    loaded = loaded.at_rest()  # lm-eval changes it
    benchmarks = load_tasks(named, loaded, data_dir=folder, limit=limit, shots=shots)
    command = {
        "model": loaded.name,
        "plan": list(map(str, plans)),
        "tasks": ",".join(named),
        "limit": limit,
        "shots": shots,
        "data_dir": folder and "DIR",  # no paths in a store
        "contexts": contexts if contexts != "auto" else None,
        "batch_tokens": batch_tokens if batch_tokens != DEFAULT_BATCH_TOKENS else None,
        "paper_cache": paper_cache or None,
        "model_dtype": str(load_options.get("model_dtype") or "").removeprefix("torch.") or None,
        **{
            name: load_options.get(name) or None
            for name in ("revision", "stack", "trust_remote_code")
        },
    }
    command = {name: value for name, value in command.items() if value is not None}
    asked = _Asked(loaded, resolved, benchmarks, command, paper_cache, batch_tokens)
    if paper_cache and any(one.generates for one in benchmarks):
        _check_paper_cache(loaded, asked.plans)

    if not repair:
        try:
            layout, missing, grows = _joined(place, asked, append)
            if not (missing.any() or grows) and _is_aggregated(place):
                log.info("%s: complete already", place)
                return open_scores(place.text)
        except StoreDamaged:
            # Else its writer's machine may have stopped, which the lock will tell.
            if not is_locked(place):
                raise
    with WriterLock(place) as lock:
        repair = repair or lock.after_crash
        # Again: it may have grown meanwhile.
        layout, missing, _ = _joined(place, asked, append, repair)
        with interruption.remove_unstarted_store(place, lock):
            writer = score_store.prepare(place, layout, lock, repair=repair)
            missing = asked.cells(layout, writer.done)
            _run(asked, layout, writer, missing, place, contexts, progress or (lambda _: None))
            writer.put_aggregates(_aggregates(asked, layout, writer))
            writer.flush()
    return _reported(open_scores(place.text))


class _Asked:
    """What one call asks for: plans and benchmarks of a model.

    plans, benchmarks: as resolved.
    examples: `(task, doc)` → the example, in order.
    proven: plans whose planned model has been found to be right.
    """

    def __init__(
        self,
        model: Model,
        plans: Sequence[Any],
        benchmarks: Sequence[Task],
        command: dict[str, Any],
        paper_cache: bool,
        batch_tokens: int,
    ) -> None:
        self.model, self.plans, self.command, self.paper_cache = (
            model,
            tuple(plans),
            command,
            paper_cache,
        )
        self.batch_tokens = batch_tokens
        self.proven: set[Plan] = set()
        self.benchmarks = {benchmark.name: benchmark for benchmark in benchmarks}
        self.examples: dict[tuple[str, int], Example] = {
            (example.task, example.doc): example
            for benchmark in benchmarks
            for example in benchmark.examples
        }

    @property
    def tasks(self) -> pd.DataFrame:
        rows = [
            (one.name, one.version, one.digest, one.shots, one.gold_count)
            for one in self.benchmarks.values()
        ]
        return pd.DataFrame(rows, columns=["task", "version", "digest", "shots", "gold_count"])

    @property
    def metrics(self) -> pd.DataFrame:
        rows = [
            (one.name, metric, aggregation, better)
            for one in self.benchmarks.values()
            for metric, (aggregation, better) in one.metrics.items()
        ]
        return pd.DataFrame(rows, columns=["task", "metric", "aggregation", "better"])

    def requests(self, examples: pd.DataFrame) -> pd.DataFrame:
        """Of these examples, which are numbered by their index."""
        rows = [
            (task, doc, request.choice, request.digest, number)
            for number, task, doc in examples[["task", "doc"]].itertuples()
            for request in self.examples[task, doc].requests
        ]
        return pd.DataFrame(rows, columns=["task", "doc", "choice", "digest", "example"])

    def blocks(self, keys: Sequence[tuple[str, int]]) -> list[int]:
        """The block of each of these examples, counted from 0: neighbours of one task that run
        together.
        """
        sizes: list[int] = []
        for task, of in groupby(keys, key=itemgetter(0)):
            own = list(of)
            if self.benchmarks[task].generates:
                sizes += [
                    min(GENERATED, len(own) - first) for first in range(0, len(own), GENERATED)
                ]
            else:
                sizes += cut_prefix_trees(
                    [_windows([self.examples[key]]) for key in own], self.batch_tokens
                )
        return np.repeat(np.arange(len(sizes)), sizes).tolist()

    def cells(self, layout: score_store.Layout, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What this call asks for and the store lacks, `[plan, block]`.

        Raises:
            RepsimError: it asks for a part of what has to be computed together.
        """
        own = {named.plan for named in self.plans}
        keys = layout.examples[["task", "doc"]].itertuples(index=False, name=None)
        block = layout.examples["block"].to_numpy()
        total, part = np.bincount(block), np.bincount(block, [key in self.examples for key in keys])
        missing = (
            np.array([named.plan in own for named in layout.plans])[:, None] & (part > 0) & ~done
        )
        if missing[:, part < total].any():
            raise StoreError(
                "the store holds more examples of a task than are asked for, and new plans need them all; "
                "ask for at least as many (--limit)"
            )
        return missing


def _joined(
    place: Location, asked: _Asked, append: bool, repair: bool = False
) -> tuple[score_store.Layout, NDArray[np.bool_], bool]:
    """The layout of the store once it has what is asked for, and what it lacks of that now.

    Returns:
        The layout; what is yet to be computed, `[plan, block]`; whether the store has to grow.

    Raises:
        RepsimError: another evaluation is there, one that would have to be extended without
            `append`, or a damaged one.
    """
    begun = state_store.exists(place)
    if begun:
        score_store.check(place, repair=repair)
    found = open_scores(place.text) if begun else None
    tables = score_store.tables(found.dataset) if found else None
    held_tasks, held_metrics, held_examples, held_requests = tables or (pd.DataFrame(),) * 4
    held_plans = found.plans if found else ()
    identity = _identity(asked.model, "")
    if found:
        if difference := identity.difference(replace(Identity(**found.identity), corpus_digest="")):
            raise StoreError(
                f"{place}: holds another evaluation: {difference}; choose another --out or remove it"
            )
        cache, wanted = (
            found.dataset.attrs["paper_cache"],
            asked.paper_cache and score_store.PAPER_CACHE,
        )
        if cache != wanted:
            raise StoreError(
                f"{place}: holds another evaluation (--paper-cache: {CACHES[cache]} there, "
                f"{CACHES[wanted]} here); choose another --out or remove it"
            )
        _check_same(place, asked, held_tasks, held_examples, held_requests)
    known = (
        set()
        if held_examples.empty
        else set(held_examples[["task", "doc"]].itertuples(index=False, name=None))
    )
    fresh = [key for key in asked.examples if key not in known]
    plans = tuple(
        named for named in asked.plans if named.plan not in {held.plan for held in held_plans}
    )
    if found and (plans or fresh) and not append:
        lacks = [f"plans {names_of(plans)}"] if plans else []
        lacks += [f"{len(fresh):,} examples"] if fresh else []
        raise StoreError(
            f"{place}: holds {names_of(held_plans)} on {len(known):,} examples, not {' nor '.join(lacks)}; "
            "add --append, or choose another --out"
        )
    rows = [
        (task, doc, asked.examples[task, doc].choices, asked.examples[task, doc].gold, block)
        for (task, doc), block in zip(fresh, asked.blocks(fresh), strict=True)
    ]
    new = pd.DataFrame(rows, columns=["task", "doc", "choices", "gold", "block"])
    new.index += len(held_examples)
    new["block"] += 0 if held_examples.empty else held_examples["block"].max() + 1
    names = set() if held_tasks.empty else set(held_tasks["task"])
    requests = _stacked(held_requests, asked.requests(new))
    commands = tuple(found.dataset.attrs["requests"]) if found else ()
    if not commands or not interruption.same_request(commands[-1], asked.command):
        commands = (*commands, asked.command)
    generates = any(one.generates for one in asked.benchmarks.values())
    layout = score_store.Layout(
        identity=_identity(asked.model, sha256("".join(requests["digest"]).encode()).hexdigest()),
        layers=asked.model.layers,
        plans=held_plans + plans,
        tasks=_stacked(held_tasks, asked.tasks[~asked.tasks["task"].isin(names)]),
        metrics=_stacked(held_metrics, asked.metrics[~asked.metrics["task"].isin(names)]),
        examples=_stacked(held_examples, new),
        requests=requests,
        commands=commands,
        paper_cache=asked.paper_cache,
        generates=generates or (found is not None and "response" in found.dataset),
    )
    done = np.zeros((len(layout.plans), layout.blocks), bool)
    if found:
        before = found.dataset["done"].values
        done[tuple(map(slice, before.shape))] = before
    missing, grows = asked.cells(layout, done), bool(plans or fresh)
    if found and (missing.any() or grows or repair):
        state_store.check_current(place)
    return layout, missing, grows


def _stacked(held: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    # An empty one would take the others' dtypes away.
    found = [table for table in (held, new) if not table.empty]
    return pd.concat(found or [new], ignore_index=True)


def _check_same(
    place: Location,
    asked: _Asked,
    tasks: pd.DataFrame,
    examples: pd.DataFrame,
    requests: pd.DataFrame,
) -> None:
    """What the store holds of the tasks asked for must be the same questions."""
    for held in tasks.itertuples():
        one = asked.benchmarks.get(held.task)
        if one and (one.version, one.shots, one.digest) != (held.version, held.shots, held.digest):
            there, here = (
                f"version {held.version}, {held.shots}-shot",
                f"version {one.version}, {one.shots}-shot",
            )
            raise StoreError(
                f"{place}: holds {held.task} of another kind ({there} there, {here} here); choose another --out"
            )
    digests = {
        (request.task, request.doc, request.choice): request.digest
        for example in asked.examples.values()
        for request in example.requests
    }
    other = [
        (held.task, held.doc)
        for held in requests.itertuples()
        if digests.get((held.task, held.doc, held.choice), held.digest) != held.digest
    ]
    for held in examples.itertuples():
        example = asked.examples.get((held.task, held.doc))
        if example and (example.choices, example.gold) != (held.choices, held.gold):
            other.append((held.task, held.doc))
    for task, doc in other:
        raise StoreError(
            f"{place}: example {doc} of {task} asks something else there; other data or another lm-eval? "
            "choose another --out"
        )


def _identity(model: Model, digest: str) -> Identity:
    return interruption.identity(model, "benchmarks", digest, "scored", *PACKAGES)


def _is_aggregated(place: Location) -> bool:
    """Whether everything that is finished has its aggregates."""
    found = open_scores(place.text)
    data = found.dataset
    applies = data["higher_is_better"].values >= 0
    block, tasks = data["block"].values, data["example_task"].values
    whole = np.stack(
        [data["done"].values[:, np.unique(block[tasks == task])].all(1) for task in found.tasks], 1
    )
    lost = np.isnan(data["aggregate"].values) & applies & whole[..., None]
    return not lost[found.nonfinite.values == 0].any()


# Computing


def _run(
    asked: _Asked,
    layout: score_store.Layout,
    writer: score_store.Writer,
    missing: NDArray[np.bool_],
    place: Location,
    contexts: str,
    progress: Callable[[Progress], None],
) -> None:
    keys = list(layout.examples[["task", "doc"]].itertuples(index=False, name=None))
    blocks = {
        block: [asked.examples[key] for key in keys[layout.examples_of(block)]]
        for block in np.flatnonzero(missing.any(0)).tolist()
    }
    likelihoods = {
        block: found for block, found in blocks.items() if found[0].requests[0].prompt is None
    }
    # all that is asked for, so that what is left of it runs as the rest did
    every = [example for example in asked.examples.values() if example.requests[0].prompt is None]
    scorer = _Scorer(asked, layout, every, contexts) if likelihoods else None
    written = [block for block in blocks if block not in likelihoods]
    at_once = _texts_at_once(asked) if written else GENERATED
    weights = {block: _tokens(asked, examples) for block, examples in blocks.items()}
    total = sum(weights[block] * int(missing[:, block].sum()) for block in blocks)
    taken = 0
    progress(Progress(0, total))
    with interruption.defer_interrupts() as received:
        for block, examples in blocks.items():
            pending = np.flatnonzero(missing[:, block]).tolist()

            def finish(plan: int, answers: dict[str, Any], block: int = block) -> None:
                nonlocal taken
                writer.put(plan, block, **answers)
                taken += weights[block]
                if received:
                    writer.flush()
                    raise Interrupted(_interrupted_message(place, received[0]), received[0])
                progress(Progress(taken, total))

            doing = f"block {block} of {layout.blocks} ({examples[0].task} {examples[0].doc}, ...)"
            if scorer is not None and block in likelihoods:
                with interruption.explain_out_of_memory(asked.model, doing, "fewer --batch-tokens"):
                    scorer.score(examples, scorer.packed(examples), pending, finish)
                writer.note_replay(scorer.verdict)
            else:
                with interruption.explain_out_of_memory(
                    asked.model, doing, f"more memory: texts are written {GENERATED} at a time"
                ):
                    _generate(asked, layout, examples, pending, at_once, finish)


class _Scorer:
    """Log-likelihoods of blocks of examples, in trees of texts where the model takes them.

    Raises:
        RepsimError: trees were asked for, and the model does not take them; or its tokens see those
            after them.
    """

    def __init__(
        self, asked: _Asked, layout: score_store.Layout, examples: Sequence[Example], contexts: str
    ) -> None:
        from repsim.models.company import Trials
        from repsim.models.tracing import Tracer

        self._asked, self._layout = asked, layout
        self._trie = PlanTrie.build(named.plan for named in layout.plans)
        self._tracer = Tracer(asked.model)
        texts = [window.inputs for window in _windows(examples)]
        trials = Trials(asked.model, self._tracer, texts)
        with interruption.explain_out_of_memory(
            asked.model, "trying two texts together", "fewer --shots"
        ):
            log.info("batches: %s", trials.company)
            trials.check_foresight("benchmarks")
        self._company = trials.company.company
        longest = max(map(len, texts))
        # Of a model whose states depend on neighbours, rows cannot be shared.
        alike = self._company is Company.ANY
        self._trees = contexts != "rows" and alike and self._tracer.shares_contexts(longest)
        if contexts == "trees" and not self._trees:
            raise ModelError(
                f"contexts 'trees': {asked.model.name} does not take trees of texts; leave it to auto"
            )
        how = (
            "trees, what texts share is computed once"
            if self._trees
            else "rows, each text by itself"
        )
        log.info("contexts: %s", how)

    @property
    def verdict(self) -> ReplayVerdict:
        """How far the replay was proven to be the model."""
        return self._tracer.proof.verdict

    def packed(self, examples: Sequence[Example], trees: bool = True) -> Packed:
        """A block's texts as batches; in trees if the model takes them."""
        model, windows = self._asked.model, _windows(examples)
        pad_id, costs = model.tokenizer.pad_token_id or 0, interruption.costs(model)
        if trees and self._trees:
            return pack_prefix_trees(windows, pad_id, **costs)
        return pack_rows(windows, pad_id, **costs, company=self._company)

    def score(
        self,
        examples: Sequence[Example],
        packed: Packed,
        pending: Sequence[int],
        finish: Callable[[int, Any], None],
    ) -> None:
        """A block's log-likelihoods under the pending plans; `finish` takes a plan and its answers."""
        import torch

        requests = [request for example in examples for request in example.requests]
        owner = np.repeat(np.arange(len(requests)), [len(request.windows) for request in requests])[
            packed.window
        ]
        plans = {self._trie.ends[plan]: plan for plan in pending}
        token, target = torch.from_numpy(packed.token), torch.from_numpy(packed.target)
        spoilt: list[int] = []

        def consume(state: NodeState) -> None:
            logprob, likeliest = self._tracer.predict(state.hidden, token, target)
            sums = np.bincount(owner, logprob.cpu().double().numpy(), len(requests))
            finite = np.isfinite(sums)
            if not finite.all() and packed.batches[0].sees is not None:
                # What a token does not see still reaches it as 0 x NaN.
                spoilt.append(plans[state.node])
                return
            greedy = np.bincount(owner, ~likeliest.cpu().numpy(), len(requests)) == 0
            values, flags = (
                np.where(finite, sums, np.nan),
                np.where(finite, greedy, NOT_FINITE).astype(np.int8),
            )
            answers = list(zip(values.tolist(), greedy.tolist(), strict=True))
            scored = _scored(self._asked, self._layout, examples, answers)
            finish(
                plans[state.node], {"log_likelihood": values, "is_greedy": flags, "score": scored}
            )

        self._tracer.run(self._trie, packed.batches, consume, nodes=plans.keys())
        if spoilt:
            self.score(examples, self.packed(examples, trees=False), spoilt, finish)


def _windows(examples: Sequence[Example]) -> list[Window]:
    return [
        window for example in examples for request in example.requests for window in request.windows
    ]


def _tokens(asked: _Asked, examples: Sequence[Example]) -> int:
    """How many tokens the requests have, what they share counted each time."""
    prompts = [
        request.prompt
        for example in examples
        for request in example.requests
        if request.prompt is not None
    ]
    written = sum(len(asked.model.tokenizer(prompt)["input_ids"]) for prompt in prompts)
    return written + sum(len(window.inputs) for window in _windows(examples))


def _check_paper_cache(model: Model, plans: Sequence[NamedPlan]) -> None:
    """Refuses before anything is computed what could not be generated with the paper's cache."""
    from repsim.models.kv_cache import AveragingCache
    from repsim.models.planned import planned

    for named in plans:
        if any(len(step) > 1 for step in named.plan.steps):
            AveragingCache(planned(model, named.plan, check=False), named.plan)


def _texts_at_once(asked: _Asked) -> int:
    """How many texts are written together: several only if that changes none."""
    from repsim.models.company import can_write_together

    examples = asked.examples.values()
    prompts = [
        request.prompt
        for example in examples
        for request in example.requests
        if request.prompt is not None
    ]
    if can_write_together(asked.model, prompts):
        return GENERATED
    log.info(
        "writing: one text at a time, as padding or a longer prompt beside it changes what the model writes"
    )
    return 1


def _generate(
    asked: _Asked,
    layout: score_store.Layout,
    examples: Sequence[Example],
    pending: Sequence[int],
    at_once: int,
    finish: Callable[[int, dict[str, Any]], None],
) -> None:
    """A block's texts, written by the model under one pending plan after another."""
    from repsim.models.kv_cache import AveragingCache
    from repsim.models.planned import planned

    benchmark = asked.benchmarks[examples[0].task]
    docs = [example.doc for example in examples]
    for plan in pending:
        steps = layout.plans[plan].plan
        module = planned(asked.model, steps, check=steps not in asked.proven)
        asked.proven.add(steps)
        averages = asked.paper_cache and any(len(step) > 1 for step in steps.steps)
        cache = (lambda m=module, p=steps: AveragingCache(m, p)) if averages else None
        texts = [
            text for found in benchmark.generate(docs, module, cache, at_once) for text in found
        ]
        lost = np.array([NOT_FINITE if text is None else -1 for text in texts], np.int8)
        scored = _scored(asked, layout, examples, texts)
        answers = {"response": [text or "" for text in texts], "is_greedy": lost, "score": scored}
        finish(plan, answers)


def _scored(
    asked: _Asked, layout: score_store.Layout, examples: Sequence[Example], answers: Sequence[Any]
) -> NDArray[np.float64]:
    """`[example, metric]`; NaN for all metrics of an example with an answer that is none."""
    found = np.full((len(examples), len(layout.metric_names)), np.nan)
    for row, (example, metrics) in enumerate(_metrics(asked, examples, answers)):
        for metric, value in metrics.items():
            if metric in layout.metric_names:
                found[row, layout.metric_names.index(metric)] = asked.benchmarks[
                    example.task
                ].number(metric, value)
    return found


def _metrics(
    asked: _Asked, examples: Sequence[Example], answers: Sequence[Any]
) -> Iterator[tuple[Example, dict[str, Any]]]:
    """lm-eval's metrics of each example; none where an answer is missing."""
    begin = 0
    for example in examples:
        own = [
            answer[0] if request.rolling else answer
            for request, answer in zip(example.requests, answers[begin:], strict=False)
        ]
        begin += len(own)
        lost = any(
            answer is None or (not isinstance(answer, str) and np.isnan(np.min(answer)))
            for answer in own
        )
        yield example, {} if lost else asked.benchmarks[example.task].score(example.doc, own)


def _aggregates(
    asked: _Asked, layout: score_store.Layout, writer: score_store.Writer
) -> NDArray[np.float64]:
    """lm-eval's aggregates of every task that a plan has finished, `[plan, task, metric]`."""
    values = writer.values
    found: NDArray[np.float64] = values["aggregate"].copy()
    names = layout.examples["task"].to_numpy()
    keys = list(layout.examples[["task", "doc"]].itertuples(index=False, name=None))
    first = np.searchsorted(layout.requests["example"].to_numpy(), np.arange(len(keys) + 1))
    for column, task in enumerate(layout.tasks["task"]):
        own = np.flatnonzero(names == task).tolist()
        benchmark = asked.benchmarks.get(task)
        if benchmark is None or any(keys[row] not in asked.examples for row in own):
            continue
        blocks = layout.examples["block"].to_numpy()[own]
        examples = [asked.examples[keys[row]] for row in own]
        places = [place for row in own for place in range(first[row], first[row + 1])]
        lost = np.isnan(values["score"][:, own]).all(-1).any(1)  # no aggregate of what is left
        new = np.isnan(
            found[:, column, [layout.metric_names.index(metric) for metric in benchmark.metrics]]
        ).any(1)
        for plan in np.flatnonzero(writer.done[:, blocks].all(1) & ~lost & new).tolist():
            answers = _answers(values, plan, places, benchmark.generates)
            metrics = [metrics for _, metrics in _metrics(asked, examples, answers)]
            for metric in dict.fromkeys(metric for one in metrics for metric in one):
                if metric in layout.metric_names:
                    whole = benchmark.aggregate(
                        metric, [one[metric] for one in metrics if metric in one]
                    )
                    found[plan, column, layout.metric_names.index(metric)] = whole
    return found


def _answers(values: dict[str, Any], plan: int, places: list[int], generates: bool) -> list[Any]:
    if generates:
        return list(values["response"][plan, places])
    numbers, greedy = values["log_likelihood"][plan, places], values["is_greedy"][plan, places] == 1
    return list(zip(numbers.tolist(), greedy.tolist(), strict=True))


def _reported(found: Scores) -> Scores:
    """Says which plans left the numbers that there are."""
    for name, count in zip(found.dataset["plan_name"].values, found.nonfinite.values, strict=True):
        if count:
            log.warning(
                "plan %s: states not finite on %d examples, which have no score", name, count
            )
    return found


def _interrupted_message(place: Location, number: int) -> str:
    remark = open_scores(place.text).remark or "everything finished"
    return f"stopped by {signal.Signals(number).name}; {remark} in {place}; the same command goes on from there"
