"""Benchmarks under layer plans, in one pass: joins tasks, packing, trace and stack to scores.

Requests whose answer is a log-likelihood run through the trie of all plans, in trees of texts that
share what they begin with (`repsim.evaluation.prefix_sharing`). Requests whose answer is a text run
plan by plan through the model itself (`repsim.evaluation.generation`). Progress goes to a callable,
remarks to the logger `repsim`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from repsim.errors import Interrupted, PlanError, RepsimError, StoreDamaged
from repsim.evaluation import resume
from repsim.evaluation.generation import (
    MOST_TEXTS_AT_ONCE,
    check_paper_cache,
    choose_texts_at_once,
    generate_texts,
)
from repsim.evaluation.prefix_sharing import LikelihoodScorer, count_tokens
from repsim.evaluation.reader import Scores, open_scores
from repsim.evaluation.request import EvaluationRequest
from repsim.evaluation.scoring import aggregate_scores
from repsim.jobs.batch_size import TokenCosts, choose_batch_tokens, costs_of, kept_batch_tokens
from repsim.jobs.interruption import defer_interrupts
from repsim.jobs.memory import BatchLimit, explain_out_of_memory
from repsim.jobs.resumable import Progress, RemainingWork, ResumableRun, WorkUnit, work_units
from repsim.jobs.subject import (
    default_store,
    load_or_reuse,
    name_or_model,
    request_of_subject,
)
from repsim.options import (
    EVALUATE_RECORDS,
    NOT_OF_EVALUATE,
    EvaluateKeywords,
    ModelOptions,
    PlanOptions,
    ResultsOptions,
    StoreOptions,
    TaskOptions,
    check_known,
    from_keywords,
    request_of,
    takes,
    with_new_names,
)
from repsim.plans import NamedPlan, PlanTrie, read_plans, resolve
from repsim.schema import DEFAULT_MODEL
from repsim.storage import integrity, score_store
from repsim.storage.lock import WriterLock
from repsim.storage.metadata import exists
from repsim.storage.place_names import location_of
from repsim.storage.requests import is_task_file, names_in, storable
from repsim.storage.score_store import Layout
from repsim.storage.starting import check_target

if TYPE_CHECKING:
    from torch import nn

    from repsim.evaluation.questions import Example
    from repsim.models import Model

log = logging.getLogger("repsim")


@takes(*EVALUATE_RECORDS, without=NOT_OF_EVALUATE)
def evaluate(
    model: str | Path | Model | nn.Module = DEFAULT_MODEL,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[EvaluateKeywords],
) -> Scores:
    """Scores a model on benchmarks under layer plans, with lm-eval's tasks and metrics.

    What plans share is computed once, and so is what the texts of a benchmark share. Where `out`
    holds a part of the same evaluation, the rest is computed.

    Args:
        model: a name for `repsim.models.load`, what that gave, or a model of transformers in
            memory, with its `tokenizer`.
        progress: called as scores are finished; counts the tokens of all requests under all plans.
    Returns:
        The scores, open.
    Raises:
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
        RepsimError: something asked for cannot be had; what is finished stays.
    """
    run = EvaluationRun(name_or_model(model), options, progress or (lambda _: None))
    scores = run.run()
    for name, count in zip(
        scores.dataset["plan_name"].values, scores.nonfinite.values, strict=True
    ):
        if count:
            log.warning(
                "plan %s: states not finite on %d examples, which have no score", name, count
            )
    if run.results.output_path is not None:
        from repsim.evaluation.lm_eval_results import write_results

        write_results(
            scores, run.request, Path(run.results.output_path), samples=run.results.log_samples
        )
    return scores


class EvaluationRun(ResumableRun[Layout, Scores]):
    """One call of `evaluate`.

    request: what is asked for.
    results: which files for other programs are wanted.
    """

    def __init__(
        self,
        model: str | Model | nn.Module,
        options: EvaluateKeywords,
        progress: Callable[[Progress], None],
    ) -> None:
        keywords = with_new_names(options)
        check_known("evaluate", keywords, *EVALUATE_RECORDS, without=NOT_OF_EVALUATE)
        tasks = from_keywords(TaskOptions, keywords)
        store = from_keywords(StoreOptions, keywords)
        loading = from_keywords(ModelOptions, keywords)
        plans = read_plans(from_keywords(PlanOptions, keywords).plan)
        self._progress, self.repair, self._append = progress, store.repair, store.append
        self._prefix_sharing = tasks.prefix_sharing
        self._damages: Sequence[integrity.Damage] | None = None
        # Everything that can be refused without a model is refused before one is loaded.
        if not plans:
            raise PlanError("no plan: name at least one, e.g. baseline")
        for option, path in (("data_dir", tasks.data_dir), ("include_path", tasks.include_path)):
            if path is not None and not str(path).strip():
                raise RepsimError(f"{option}: an empty path; name a folder, or leave it out")
        if tasks.include_path is not None and not Path(tasks.include_path).is_dir():
            raise RepsimError(f"include_path {str(tasks.include_path)!r}: no such folder")
        self.results = from_keywords(ResultsOptions, keywords)
        _check_results_options(self.results)

        from repsim.evaluation.prompting import prompting_of

        prompting = prompting_of(tasks)
        names = names_in(tasks.tasks)
        folder = None if tasks.data_dir is None else Path(tasks.data_dir)
        over: list[str | Path] = [Path(name) if is_task_file(name) else name for name in names]
        over += [] if folder is None else [folder]
        default = default_store(
            "scores", model, loading.stack, over, plans, tasks=names, data_dir=folder
        )
        self.location = location_of(default if store.out is None else store.out)
        check_target(self.location)
        loaded = load_or_reuse(model, loading)
        resolved = resolve(plans, loaded.layers)

        from repsim.evaluation.tasks import load as load_tasks

        loaded = loaded.private_copy()  # lm-eval changes it
        batch_tokens = choose_batch_tokens(
            store.batch_tokens, self.location, loaded, lambda: _token_costs(loaded, resolved)
        )
        command = {
            "model": loaded.name,
            "plan": list(map(str, plans)),
            "tasks": names,
            **request_of(tasks, store, loading),
            **request_of_subject(loaded),
            "gen_kwargs": prompting.gen_kwargs or None,
            "batch_tokens": kept_batch_tokens(batch_tokens, loaded),
        }
        self.request = EvaluationRequest(
            loaded,
            resolved,
            load_tasks(
                names,
                loaded,
                data_dir=folder,
                include_path=None if tasks.include_path is None else Path(tasks.include_path),
                limit=tasks.limit,
                shots=tasks.shots,
                prompting=prompting,
            ),
            storable(command),
            paper_cache=tasks.paper_cache,
            batch_tokens=batch_tokens,
        )
        if tasks.paper_cache and self.request.generates:
            check_paper_cache(loaded, resolved)

    def read_existing(self) -> Scores | None:
        return resume.read_existing(self.location)

    def plan(self, existing: Scores | None) -> RemainingWork[Layout]:
        return resume.plan_remaining_work(self.request, existing, append=self._append)

    def is_complete(self, existing: Scores, work: RemainingWork[Layout]) -> bool:
        return work.is_none and self._damages is None and resume.is_aggregated(existing)

    def check_sound(self) -> None:
        if exists(self.location):
            for damage in score_store.find_damages(self.location):
                raise StoreDamaged(f"{self.location}: {damage}; add --repair")

    def mend(self) -> None:
        self._damages = score_store.find_damages(self.location)
        score_store.clear_damaged_flags(self.location, self._damages)

    def compute(
        self, existing: Scores | None, work: RemainingWork[Layout], lock: WriterLock
    ) -> None:
        layout = work.layout
        writer = score_store.prepare(
            self.location,
            layout,
            lock,
            existing=None if existing is None else existing.group,
            damages=self._damages,
        )
        # Again: what was damaged is missing as well.
        missing = self.request.missing_in(layout, writer.done)
        keys = list(layout.examples[["task", "doc"]].itertuples(index=False, name=None))
        units = [
            (unit, [self.request.examples[key] for key in keys[layout.examples_of(*unit.blocks)]])
            for unit in work_units(missing)
        ]
        likelihoods = [unit for unit, examples in units if not _generates(examples[0])]
        scorer = self._scorer(layout) if likelihoods else None
        limit = BatchLimit(self.request.model, writer)
        at_once = MOST_TEXTS_AT_ONCE
        if len(likelihoods) < len(units):
            at_once = choose_texts_at_once(self.request)
        # Units differ in tokens, and all plans of one count alike.
        tokens = [count_tokens(self.request, examples) for _, examples in units]
        total = sum(own * len(unit.rows) for own, (unit, _) in zip(tokens, units, strict=True))
        finished = 0
        self._progress(Progress(0, total))
        with defer_interrupts() as received:

            def finish(plan: int, answers: dict[str, Any], block: int, own: int) -> None:
                nonlocal finished
                writer.put(plan, block, **answers)
                finished += own
                if received:
                    writer.flush()
                    raise Interrupted(self._interrupted_message(received[0]), received[0])
                self._progress(Progress(finished, total))

            for own, (unit, examples) in zip(tokens, units, strict=True):
                (block,) = unit.blocks
                put = partial(finish, block=block, own=own)
                self._compute_unit(unit, examples, writer, layout, scorer, limit, at_once, put)
        aggregates = aggregate_scores(self.request, layout, writer.values, writer.done)
        writer.put_aggregates(aggregates)
        writer.flush()

    def _scorer(self, layout: Layout) -> LikelihoodScorer:
        # All that is asked for is tried, so that what is left of it runs as the rest did.
        examples = [one for one in self.request.examples.values() if not _generates(one)]
        return LikelihoodScorer(self.request, layout, examples, self._prefix_sharing)

    def _compute_unit(
        self,
        unit: WorkUnit,
        examples: Sequence[Example],
        writer: score_store.Writer,
        layout: Layout,
        scorer: LikelihoodScorer | None,
        limit: BatchLimit,
        at_once: int,
        finish: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """Answers a unit's examples under its plans; `finish` takes a plan and its answers."""
        (block,) = unit.blocks
        doing = f"block {block} of {layout.blocks} ({examples[0].task} {examples[0].doc}, ...)"
        model, plans = self.request.model, list(unit.rows)
        if scorer is not None and not _generates(examples[0]):
            left = dict.fromkeys(plans)  # what is finished stays so if the rest runs once more

            def put(plan: int, answers: dict[str, Any]) -> None:
                finish(plan, answers)
                left.pop(plan)

            limit.run(
                doing,
                "fewer --batch-tokens",
                partial(scorer.pack, examples),
                attrgetter("batches"),
                lambda packed: scorer.score(examples, packed, list(left), put, limit.positions),
            )
            writer.note_replay(scorer.verdict)
        else:
            advice = f"more memory: texts are written {MOST_TEXTS_AT_ONCE} at a time"
            with explain_out_of_memory(model, doing, advice):
                generate_texts(self.request, layout, examples, plans, at_once, finish)

    def _interrupted_message(self, number: int) -> str:
        remark = open_scores(self.location.text).remark or "everything finished"
        return (
            f"stopped by {signal.Signals(number).name}; {remark} in {self.location}; the same "
            "command goes on from there"
        )


def _check_results_options(results: ResultsOptions) -> None:
    """Refuses files that cannot be written before anything is computed.

    Raises:
        RepsimError: no folder is named, or something else is there.
    """
    path = results.output_path
    if path is None:
        if results.log_samples:
            raise RepsimError("log_samples: name a folder for them with --output-path")
        return
    if not str(path).strip():
        raise RepsimError("output_path: an empty path; name a folder, or leave it out")
    if Path(path).is_file() or Path(path).suffix == ".json":
        raise RepsimError(
            f"output_path {str(path)!r}: name a folder; each plan gets a file of its own in it"
        )


def _token_costs(model: Model, plans: Sequence[NamedPlan]) -> TokenCosts:
    """What a token takes of a GPU under these plans."""
    trie = PlanTrie.build(named.plan for named in plans)
    return costs_of(model, trie, logits=True, leaves_device=False, whole_paths=False)


def _generates(example: Example) -> bool:
    """Whether a text is to be written; otherwise log-likelihoods are asked for."""
    return example.requests[0].prompt is not None
