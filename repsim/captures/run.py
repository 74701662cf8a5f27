"""A capture from end to end: loads, tokenizes, traces and writes what a store still lacks.

That is all of it, the rest of a capture that was stopped, or what an extension adds. On a GPU,
computing, copying to the host and writing go on side by side. Progress goes to a callable and
remarks to the logger `repsim`, so that the command line and a notebook show them in their own way.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from rich import filesize

from repsim.captures import resume
from repsim.captures.reader import Capture, open_capture
from repsim.data.batching import Batch, BatchRule, batches, costs_on, cut_blocks
from repsim.data.chat import format_corpus
from repsim.data.corpus import Corpus, read_corpus
from repsim.data.samples import TokenRule, corpus_digest, tokenize
from repsim.errors import Interrupted, ModelError, PlanError, RepsimError, StoreError
from repsim.jobs.batch_size import TokenCosts, choose_batch_tokens, costs_of, kept_batch_tokens
from repsim.jobs.interruption import defer_interrupts
from repsim.jobs.memory import BatchLimit, explain_out_of_memory
from repsim.jobs.resumable import Progress, RemainingWork, ResumableRun, WorkUnit, work_units
from repsim.jobs.subject import (
    default_store,
    identity_of,
    load_or_reuse,
    name_or_model,
    request_of_subject,
)
from repsim.options import (
    AUTO,
    CAPTURE_RECORDS,
    CaptureKeywords,
    CorpusOptions,
    ModelOptions,
    PlanOptions,
    StatesOptions,
    StoreOptions,
    check_known,
    from_keywords,
    request_of,
    takes,
)
from repsim.plans import Plan, PlanTrie, read_plans, resolve
from repsim.registry import statistics_of
from repsim.schema import DEFAULT_MODEL
from repsim.stats.per_sample import SampleStatistic
from repsim.storage import state_writer
from repsim.storage.lock import WriterLock
from repsim.storage.place_names import location_of
from repsim.storage.requests import is_path, names_in, storable
from repsim.storage.starting import check_target
from repsim.storage.state_store import Layout

if TYPE_CHECKING:
    from torch import nn

    from repsim.captures.write_queue import WriteQueue
    from repsim.models import Model
    from repsim.models.tracing import NodeState, Tracer

log = logging.getLogger("repsim")


@takes(*CAPTURE_RECORDS)
def capture(
    model: str | Path | Model | nn.Module = DEFAULT_MODEL,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[CaptureKeywords],
) -> Capture:
    """Captures the hidden states of a model over a corpus under layer plans.

    Every prefix that plans share is computed and stored once. Where `out` holds a part of the same
    capture, the rest is computed; where it holds all of it, it is opened as it is.

    Args:
        model: a name for `repsim.models.load`, what that gave, or a model of transformers in
            memory, with its `tokenizer`.
        progress: called as states are computed and handed on to the disk.
    Returns:
        The capture, open.
    Raises:
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
        RepsimError: something asked for cannot be had; what is finished stays.
    """
    return CaptureRun(name_or_model(model), options, progress or (lambda _: None)).run()


class CaptureRun(ResumableRun[Layout, Capture]):
    """One call of `capture`.

    requested: what the store is to hold, as if nothing were there; in float16 where `--dtype auto`
        leaves the dtype open.
    """

    def __init__(
        self,
        model: str | Model | nn.Module,
        options: CaptureKeywords,
        progress: Callable[[Progress], None],
    ) -> None:
        check_known("capture", options, *CAPTURE_RECORDS)
        self._states = from_keywords(StatesOptions, options)
        self._store = from_keywords(StoreOptions, options)
        corpus = from_keywords(CorpusOptions, options)
        loading = from_keywords(ModelOptions, options)
        plans = read_plans(from_keywords(PlanOptions, options).plan)
        self._progress, self.repair = progress, self._store.repair
        # Everything that can be refused without a model is refused before one is loaded.
        statistics = _statistics_asked(self._states)
        texts = _read_texts(corpus)
        source = request_of(corpus).get("corpus")
        is_file = source is not None and is_path(source)
        over: str | Path = Path(str(source)) if is_file else texts.distinct_name
        default = default_store("captures", model, loading.stack, [over], plans, corpus=source)
        self.location = location_of(default if self._store.out is None else self._store.out)
        check_target(self.location)
        self._model = load_or_reuse(model, loading)
        self._batch_tokens = choose_batch_tokens(
            self._store.batch_tokens,
            self.location,
            self._model,
            lambda: _token_costs(self._model, plans, self._states),
        )
        command = {
            "model": self._model.name,
            "plan": list(map(str, plans)),
            **request_of(corpus, self._states, self._store, loading),
            **request_of_subject(self._model),
            "batch_tokens": kept_batch_tokens(self._batch_tokens, self._model),
        }
        self.requested = _requested_layout(
            self._model,
            texts,
            plans,
            corpus,
            self._states,
            statistics,
            self._batch_tokens,
            storable(command),
        )

    def read_existing(self) -> Capture | None:
        return resume.read_existing(self.location)

    def plan(self, existing: Capture | None) -> RemainingWork[Layout]:
        requested = self._measured if existing is None else self.requested
        return resume.plan_remaining_work(
            requested,
            existing,
            append=self._store.append,
            batch_tokens=self._batch_tokens,
            any_dtype=self._states.dtype == AUTO,
        )

    @cached_property
    def _measured(self) -> Layout:
        """What is requested, for a new store: `--dtype auto` is decided by what states reach.

        Raises:
            StoreError: it would not fit, whatever the dtype; nothing runs then.
        """
        if self._states.dtype != AUTO:
            return self.requested
        from repsim.captures.stored_dtype import try_dtype

        work = resume.plan_remaining_work(
            self.requested, None, append=False, batch_tokens=self._batch_tokens
        )
        self.check_room(work)
        tracer, batch_rule = self._tried
        with explain_out_of_memory(self._model, "trying the first texts", "fewer --max-tokens"):
            trial = try_dtype(tracer, self.requested, batch_rule)
        log.info("dtype: %s", trial)
        return replace(self.requested, dtype=trial.dtype)

    @cached_property
    def _tried(self) -> tuple[Tracer, BatchRule]:
        """The model's tracer, and which of the samples may share a batch."""
        return _try_batches(self._model, self.requested)

    def mend(self) -> None:
        resume.mend(self.location, self.requested, any_dtype=self._states.dtype == AUTO)

    def check_room(self, work: RemainingWork[Layout]) -> str:
        layout, missing = work.layout, work.missing
        needed, free = layout.bytes_of(missing), self.location.free_bytes
        size = filesize.decimal(needed)
        advice = "take fewer plans or texts, --tokens last, or --keep none --statistics cosine"
        most = self._store.max_bytes
        if most is not None and needed > most:
            raise StoreError(
                f"{self.location}: {size} are needed, --max-bytes allows "
                f"{filesize.decimal(most)}; {advice}"
            )
        if free is not None and needed > free and layout.compression == "none":
            raise StoreError(
                f"{self.location}: {size} are needed, {filesize.decimal(free)} are free; "
                f"make room, choose another --out, {advice}"
            )
        lacking = f", {int(missing.sum()):,} of {missing.size:,} blocks missing"
        room = "" if free is None else f" ({filesize.decimal(free)} are free)"
        numbers = (
            f"plans {len(layout.plans):,}, nodes {len(layout.trie):,}, "
            f"samples {len(layout.samples):,}, tokens {layout.tokens:,}"
        )
        return f"{numbers}{'' if missing.all() else lacking}: {size} to {self.location}{room}"

    def compute(
        self, existing: Capture | None, work: RemainingWork[Layout], lock: WriterLock
    ) -> None:
        from repsim.captures.write_queue import WriteQueue, goes_beside

        tracer, batch_rule = self._tried
        layout = replace(work.layout, batch_rule=batch_rule)
        is_beside = goes_beside(self._model.device.type, self.location)
        writer = state_writer.prepare(self.location, layout, lock, threads=is_beside)
        missing = writer.missing
        lengths = np.diff(layout.token_starts)
        limit = BatchLimit(self._model, writer)
        finished, total = 0.0, int(lengths[missing.any(0)].sum())
        self._progress(Progress(0, total))
        queue = WriteQueue.beside(self._model, layout, writer) if is_beside else WriteQueue(writer)
        with defer_interrupts() as received, queue:
            for unit in work_units(missing):
                tokens = float(lengths[list(unit.blocks)].sum())

                def report(share: float, before: float = finished, own: float = tokens) -> None:
                    self._progress(Progress(round(before + share * own), total))

                self._compute_unit(unit, tracer, writer, layout, queue, limit, received, report)
                finished += tokens

    def _compute_unit(
        self,
        unit: WorkUnit,
        tracer: Tracer,
        writer: state_writer.Writer,
        layout: Layout,
        queue: WriteQueue,
        limit: BatchLimit,
        received: Sequence[int],
        report: Callable[[float], None],
    ) -> None:
        """Computes and writes the states of a unit.

        Args:
            limit: of the positions of a batch.
            received: signals that have come; with the first, the run ends after the next state.
            report: told the share of the unit that is taken.
        """
        pending = frozenset(unit.rows)
        for number, block in enumerate(unit.blocks):

            def report_block(share: float, before: int = number) -> None:
                report((before + share) / len(unit.blocks))

            self._compute_block(
                block, pending, tracer, writer, layout, queue, limit, received, report_block
            )

    def _compute_block(
        self,
        block: int,
        pending: frozenset[int],
        tracer: Tracer,
        writer: state_writer.Writer,
        layout: Layout,
        queue: WriteQueue,
        limit: BatchLimit,
        received: Sequence[int],
        report: Callable[[float], None],
    ) -> None:
        """Computes a block's states at the pending nodes; they may be written later."""
        from repsim.captures.write_queue import StateSink

        samples = layout.samples[slice(*layout.sample_starts[block : block + 2])]
        allow = self._states.allow_nonfinite
        sink = StateSink(self._model, layout, writer, queue, block, pending, allow)
        writer.begin(block)
        left = set(pending)  # what is taken stays taken if the rest runs in smaller batches

        def consume(state: NodeState) -> None:
            # Batches and logits are proven before their states come, and a block that is finished
            # is not run again, so what was proven is in the store before the states are.
            writer.note_replay(tracer.proof.verdict)
            sink.take(state)
            left.discard(state.node)
            if received:
                sink.finish()
                raise Interrupted(self._interrupted_message(received[0]), received[0])
            report(1 - len(left) / len(pending))

        def pack(most: int | None) -> tuple[Batch, ...]:
            return batches(
                samples,
                self._model.tokenizer.pad_token_id or 0,
                **costs_on(self._model.device.type),
                batch_rule=BatchRule(layout.batch_rule),
                most=most,
            )

        def run(ready: Sequence[Batch]) -> None:
            nodes = frozenset(left) if layout.keep else layout.trie.with_ancestors(left)
            tracer.run(layout.trie, ready, consume, nodes=nodes, logprobs=layout.logprobs)

        doing = f"block {block} of {len(layout.blocks)} ({samples[0].key}, ...)"
        limit.run(doing, "fewer --batch-tokens or --max-tokens", pack, tuple, run)
        queue.end_block()

    def _interrupted_message(self, number: int) -> str:
        capture = open_capture(self.location.text)
        total = capture.dataset.sizes["token"]
        return (
            f"stopped by {signal.Signals(number).name} with {capture.complete:,} of {total:,} "
            f"tokens finished in {self.location}; the same command goes on from there"
        )


def _token_costs(
    model: Model, asked_plans: Sequence[str | Plan], states: StatesOptions
) -> TokenCosts:
    """What a token takes of a GPU under these plans."""
    plans = resolve(asked_plans, model.layers)
    return costs_of(
        model,
        PlanTrie.build(named.plan for named in plans),
        logits=states.logprobs,
        leaves_device=states.keep == "all",
        whole_paths=states.keep == "none",
    )


def _read_texts(options: CorpusOptions) -> Corpus:
    """The texts that are asked for, not yet formatted.

    Raises:
        RepsimError: they cannot be read, or options do not go together.
    """
    if options.system_instruction is not None and not options.apply_chat_template:
        raise RepsimError(
            "--system-instruction: a chat template says where it goes; add --apply-chat-template"
        )
    return read_corpus(
        options.corpus,
        field=options.field,
        limit=options.limit,
        conversations=options.apply_chat_template,
    )


def _statistics_asked(states: StatesOptions) -> tuple[SampleStatistic, ...]:
    """The statistics to take while capturing.

    Raises:
        RepsimError: options that no model could give together.
    """
    names = names_in(states.statistics)
    TokenRule(states.tokens)
    if states.keep == "none" and not names:
        raise RepsimError("keep 'none': nothing would be left; add --statistics, e.g. cosine,norms")
    if states.keep == "all" and names:
        raise RepsimError(
            f"statistics {','.join(names)}: analyses take them from the states; or add --keep none"
        )
    if states.logprobs and states.tokens == "last":
        raise RepsimError(
            "--logprobs: nothing follows a sample's last token; use --tokens all, mean or every:N"
        )
    return statistics_of(names)


def _requested_layout(
    model: Model,
    texts: Corpus,
    asked_plans: Sequence[str | Plan],
    options: CorpusOptions,
    states: StatesOptions,
    statistics: tuple[SampleStatistic, ...],
    batch_tokens: int,
    command: dict[str, Any],
) -> Layout:
    """What is asked for, as if nothing were there.

    Raises:
        RepsimError: the model, its tokenizer or the texts do not give it.
    """
    if states.logprobs and not model.predicts_next_token:
        raise ModelError(f"--logprobs: {model.name} does not predict a next token")
    plans = resolve(asked_plans, model.layers)
    if not plans:
        raise PlanError("no plan: name at least one, e.g. baseline")
    longest, most = model.context_length, options.max_tokens
    if most is not None:
        longest = min(most, model.positions or most)
    if options.apply_chat_template:
        texts = format_corpus(texts, model.tokenizer, options.system_instruction)
    samples, cut = tokenize(
        texts, model.tokenizer, longest, special_tokens=not options.apply_chat_template
    )
    model.check_ids(sample.token_ids for sample in samples)
    for note in (*texts.notes, *cut):
        log.warning("corpus %s: %s", texts.name, note)
    return Layout(
        identity=identity_of(model, texts.name, corpus_digest(samples), states.tokens),
        layers=model.layers,
        plans=plans,
        trie=PlanTrie.build(named.plan for named in plans),
        samples=samples,
        blocks=cut_blocks(samples, batch_tokens),
        units=model.units,
        dtype="float16" if states.dtype == AUTO else states.dtype,
        logprobs=states.logprobs,
        keep=states.keep == "all",
        statistics=statistics,
        compression=states.compression,
        commands=(command,),
        nonfinite=states.allow_nonfinite,
    )


def _try_batches(model: Model, layout: Layout) -> tuple[Tracer, BatchRule]:
    """The model's tracer, and which of the samples may share a batch.

    Raises:
        ModelError: log-probabilities are asked for, and a token has seen the one after it.
    """
    from repsim.models.batch_invariance import BatchTrials
    from repsim.models.tracing import Tracer

    tracer = Tracer(model)
    trials = BatchTrials(model, tracer, [sample.token_ids for sample in layout.samples])
    with explain_out_of_memory(model, "trying two texts together", "fewer --max-tokens"):
        log.info("batches: %s", trials.result)
        if layout.logprobs:
            trials.check_causality("--logprobs")
    return tracer, trials.result.rule
