"""A capture from end to end: joins trace to store.

`capture` loads, tokenizes, traces and writes what a store still lacks: all of it, the rest of a
capture that was stopped, or what an extension adds. On a GPU, computing, copying to the host and
writing go on side by side. Progress goes to a callable and remarks to the logger `repsim`, so that
the command line and a notebook show them in their own way.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repsim.captures.reader import Capture, open_capture
from repsim.data.corpus import (
    BUILTIN,
    Company,
    Corpus,
    Sample,
    TokenRule,
    batches,
    corpus_digest,
    cut_blocks,
    read_corpus,
    tokenize,
)
from repsim.errors import Interrupted, ModelError, PlanError, RepsimError, StoreDamaged, StoreError
from repsim.jobs import interruption
from repsim.jobs.interruption import DEFAULT_BATCH_TOKENS, Progress
from repsim.plans import Plan, PlanTrie, names_of, resolve
from repsim.schema import DEFAULT_MODEL, Identity
from repsim.stats.per_sample import statistics_of
from repsim.storage import integrity, state_store
from repsim.storage.location import LocalFolder, Location, location_of
from repsim.storage.lock import WriterLock, is_locked

if TYPE_CHECKING:
    from repsim.models import Model
    from repsim.models.tracing import NodeState, Tracer

log = logging.getLogger("repsim")


def capture(
    model: str | Path | Model = DEFAULT_MODEL,
    *,
    plan: str | Plan | Sequence[str | Plan] = "baseline",
    corpus: str | Path = BUILTIN,
    field: str = "text",
    limit: int | None = None,
    max_tokens: int | None = None,
    out: str | Path | None = None,
    dtype: str = "float16",
    tokens: str = "all",
    logprobs: bool = False,
    keep: str = "all",
    statistics: str | Sequence[str] = (),
    compression: str = "none",
    append: bool = False,
    repair: bool = False,
    allow_nonfinite: bool = False,
    max_bytes: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Callable[[Progress], None] | None = None,
    **load_options: Any,
) -> Capture:
    """Captures the hidden states of a model over a corpus under layer plans.

    Every prefix that plans share is computed and stored once. Where `out` holds a part of the same
    capture, the rest is computed; where it holds all of it, it is opened as it is.

    Args:
        model: a name for `repsim.models.load`, or what that gave.
        plan: plans, families, sweeps or named sets.
        corpus: `builtin`, a .txt or .jsonl file, or `hf:name/config:split:field`.
        field: the text's field in a .jsonl file.
        limit: use the first so many texts.
        max_tokens: keep the first so many tokens of each sample; the model's context length by
            default.
        out: the store, a folder or a URL; by default under the cache, named after model, corpus and
            plan.
        dtype: dtype of the stored states, `float16` or `float32`.
        tokens: which are kept of each sample: `all`, `last`, `mean` (their mean, one a sample) or
            `every:N`.
        logprobs: also store the log-probability of each next token where a plan ends.
        keep: `all` states, or `none` of them and only `statistics`.
        statistics: analyses whose statistics are taken while capturing, e.g. `cosine,norms`; with
            `keep="none"`.
        compression: of the states: `none`, `fast` or `small`.
        append: add the plans and texts that a finished store lacks.
        repair: read the store first and compute again what is damaged or missing.
        allow_nonfinite: store infinities and NaNs as they are.
        max_bytes: refuse a capture that is larger.
        batch_tokens: about so many tokens are computed and finished together.
        progress: called as states reach the disk.
        **load_options: for `repsim.models.load`: revision, dtype as `model_dtype`, device,
            device_map, ...
    Raises:
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
        RepsimError: something asked for cannot be had; what is finished stays.
    """
    named = statistics.split(",") if isinstance(statistics, str) else statistics
    analyses = [name for name in named if name]
    _check_options(dtype, tokens, keep, analyses, compression, batch_tokens, logprobs)
    kernels = statistics_of(analyses)
    model = interruption.name_or_model(model)
    plans = [plan] if isinstance(plan, str | Plan) else list(plan)
    texts = read_corpus(str(corpus), field=field, limit=limit)
    parts = (texts.name, "+".join(map(str, plans)))
    default = interruption.default_path("captures", model, load_options.get("stack"), parts)
    place = location_of(default if out is None else out)
    interruption.check_target(place)
    loaded = interruption.load_or_reuse(model, load_options)
    chosen = {
        "corpus": _unpathed(str(corpus)),
        "field": field,
        "limit": limit,
        "max_tokens": max_tokens,
        "dtype": dtype,
        "tokens": tokens,
        "logprobs": logprobs,
        "keep": keep,
        "statistics": ",".join(analyses),
        "compression": compression,
        "batch_tokens": batch_tokens,
        "model_dtype": str(load_options.get("model_dtype") or "").removeprefix("torch.") or None,
        **{name: load_options.get(name) for name in ("revision", "stack", "trust_remote_code")},
    }
    asked = _layout(loaded, texts, plans, max_tokens, chosen, kernels, batch_tokens)
    asked = replace(asked, nonfinite=allow_nonfinite)
    if not repair:
        try:
            layout, missing, grows = _joined(place, asked, batch_tokens, append)
            if not (missing.any() or grows):
                log.info("%s: complete already", place)
                return open_capture(place.text)
            _check_room(place, layout, missing, max_bytes)
        except StoreDamaged:
            # Else its writer's machine may have stopped, which the lock will tell.
            if not is_locked(place):
                raise
    with WriterLock(place) as lock:
        if state_store.exists(place):
            after_crash = lock.after_crash and isinstance(place, LocalFolder)
            if after_crash:
                log.info("%s: its writer's machine stopped; reading what it had finished", place)
            if repair or after_crash:
                _repair(place, asked)
        # Again: it may have grown meanwhile.
        layout, missing, grows = _joined(place, asked, batch_tokens, append)
        if not (missing.any() or grows):
            log.info("%s: complete already", place)
            return open_capture(place.text)
        log.info("%s", _check_room(place, layout, missing, max_bytes))
        with interruption.remove_unstarted_store(place, lock):
            tracer, company = _tried(loaded, layout)
            layout = replace(layout, company=company)
            writer = state_store.prepare(place, layout, lock)
            _run(loaded, tracer, layout, writer, missing, place, allow_nonfinite, progress)
    return open_capture(place.text)


def _check_options(
    dtype: str,
    tokens: str,
    keep: str,
    analyses: list[str],
    compression: str,
    batch: int,
    logprobs: bool,
) -> None:
    """Refuses what no model could give, before one is loaded."""
    state_store.check_form(dtype, compression)
    TokenRule(tokens)
    if keep not in ("all", "none"):
        raise RepsimError(f"keep {keep!r}: choose all or none")
    if keep == "none" and not analyses:
        raise RepsimError("keep 'none': nothing would be left; add --statistics, e.g. cosine,norms")
    if keep == "all" and analyses:
        raise RepsimError(
            f"statistics {','.join(analyses)}: analyses take them from the states; or add --keep none"
        )
    if batch < 1:
        raise RepsimError(f"batch_tokens={batch}: at least 1")
    if logprobs and tokens == "last":
        raise RepsimError(
            "--logprobs: nothing follows a sample's last token; use --tokens all, mean or every:N"
        )


def _unpathed(corpus: str) -> str:
    return corpus if corpus == BUILTIN or corpus.startswith("hf:") else Path(corpus).name


def _layout(
    model: Model,
    texts: Corpus,
    asked: Sequence[str | Plan],
    max_tokens: int | None,
    chosen: dict[str, Any],
    kernels: tuple[Any, ...],
    batch_tokens: int,
) -> state_store.Layout:
    """What is asked for, as if nothing were there."""
    if chosen["logprobs"] and not model.predicts_next_token:
        raise ModelError(f"--logprobs: {model.name} does not predict a next token")
    plans = resolve(asked, model.layers)
    if not plans:
        raise PlanError("no plan: name at least one, e.g. baseline")
    longest = (
        model.context_length
        if max_tokens is None
        else min(max_tokens, model.positions or max_tokens)
    )
    samples, cut = tokenize(texts, model.tokenizer, longest)
    model.check_ids(sample.token_ids for sample in samples)
    for note in (*texts.notes, *cut):
        log.warning("corpus %s: %s", texts.name, note)
    identity = interruption.identity(model, texts.name, corpus_digest(samples), chosen["tokens"])
    unset: dict[str, Any] = {
        "corpus": BUILTIN,
        "field": "text",
        "dtype": "float16",
        "tokens": "all",
        "keep": "all",
    }
    unset |= {"compression": "none", "batch_tokens": DEFAULT_BATCH_TOKENS}
    said = {name: value for name, value in chosen.items() if value and value != unset.get(name)}
    return state_store.Layout(
        identity=identity,
        layers=model.layers,
        plans=plans,
        trie=PlanTrie.build(named.plan for named in plans),
        samples=samples,
        blocks=cut_blocks(samples, batch_tokens),
        units=model.units,
        dtype=chosen["dtype"],
        logprobs=chosen["logprobs"],
        keep=chosen["keep"] == "all",
        statistics=kernels,
        compression=chosen["compression"],
        requests=({"model": model.name, "plan": list(map(str, asked)), **said},),
    )


# What is there and what is missing


def _joined(
    place: Location, asked: state_store.Layout, batch_tokens: int, append: bool
) -> tuple[state_store.Layout, NDArray[np.bool_], bool]:
    """The layout of the store once it has what is asked for, and what it lacks now.

    Returns:
        The layout; what is yet to be computed, `[node, block]`; whether the store has to grow,
        which it also has where nothing is to be computed: a plan may end inside another.

    Plans, samples and begun blocks that are there stay where they are; the rest follows.

    Raises:
        RepsimError: another capture is there, or one that would have to be extended without
            `append`.
    """
    if not state_store.exists(place):
        return asked, np.repeat(asked.wanted[:, None], len(asked.blocks), 1), True
    found = open_capture(place.text)
    if difference := _difference(found, asked):
        raise StoreError(
            f"{place}: holds another capture: {difference}; choose another --out or remove it"
        )
    keys = found.samples.values.tolist()
    by_key = {sample.key: sample for sample in asked.samples}
    if missing := [key for key in keys if key not in by_key]:
        raise StoreError(
            f"{place}: holds another capture: {len(missing):,} of its {len(keys):,} samples are not in the corpus "
            "asked for (--limit, --corpus); choose another --out or remove it"
        )
    kept: tuple[Sample, ...] = tuple(by_key.pop(key) for key in keys)
    there, here = found.identity["corpus_digest"], corpus_digest(kept)
    if there != here:
        raise StoreError(
            f"{place}: holds another capture: other texts or --max-tokens ({there[:8]} there, {here[:8]} here); "
            "choose another --out or remove it"
        )
    held = {named.plan for named in found.plans}
    plans = tuple(named for named in asked.plans if named.plan not in held)
    if (plans or by_key) and not append:
        lacks = [f"plans {names_of(plans)}"] if plans else []
        lacks += [f"{len(by_key):,} samples"] if by_key else []
        raise StoreError(
            f"{place}: holds {names_of(found.plans)} over {len(keys):,} samples, not {' nor '.join(lacks)}; "
            "add --append, or choose another --out"
        )
    samples = kept + tuple(by_key.values())
    done = found.dataset["done"].values
    begun = np.flatnonzero(done.any(0))
    blocks = np.bincount(found.dataset["block"].values)[
        : int(begun[-1]) + 1 if len(begun) else 0
    ].tolist()
    blocks += cut_blocks(samples[sum(blocks) :], batch_tokens)
    request = asked.requests[0]
    earlier = tuple(found.dataset.attrs["requests"])
    layout = replace(
        asked,
        identity=replace(Identity(**found.identity), corpus_digest=corpus_digest(samples)),
        plans=found.plans + plans,
        trie=PlanTrie.build(named.plan for named in found.plans + plans),
        samples=samples,
        blocks=tuple(blocks),
        requests=earlier
        if interruption.same_request(earlier[-1], request)
        else (*earlier, request),
        nonfinite=asked.nonfinite or bool(found.dataset.attrs.get("nonfinite")),
    )

    def grown(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        larger = np.zeros((len(layout.trie), len(blocks)), bool)
        shared = min(flags.shape[1], len(blocks))
        larger[: len(flags), :shared] = flags[:, :shared]
        return larger

    predicted = grown(found.dataset["predicted"].values) if "predicted" in found.dataset else None
    lacking, grows = state_store.missing_in(layout, grown(done), predicted), bool(plans or by_key)
    if lacking.any() or grows:
        state_store.check_current(place)
    return layout, lacking, grows


def _difference(found: Capture, asked: state_store.Layout) -> str | None:
    """In what a store is not what was asked for, texts and plans aside."""
    attributes = found.dataset.attrs
    stored = Identity(**found.identity)
    if difference := replace(asked.identity, corpus_digest=stored.corpus_digest).difference(stored):
        return difference
    pairs = {
        "dtype": (attributes["dtype"], asked.dtype),
        "--keep": (attributes["keep"], "all" if asked.keep else "none"),
        "--statistics": (
            attributes["statistics"],
            [statistic.name for statistic in asked.statistics],
        ),
        "--compression": (attributes["compression"], asked.compression),
        "--logprobs": ("logprob" in found.dataset, asked.logprobs),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            return f"{name} ({there} there, {here} here)"
    return None


def _check_room(
    place: Location, layout: state_store.Layout, missing: NDArray[np.bool_], max_bytes: int | None
) -> str:
    """How large the capture is; refuses one that does not fit."""
    needed, free = layout.bytes_of(missing), place.free_bytes
    size = f"{needed / 1e9:,.2f} GB"
    advice = "take fewer plans or texts, --tokens last, or --keep none --statistics cosine"
    if max_bytes is not None and needed > max_bytes:
        raise StoreError(
            f"{place}: {size} are needed, --max-bytes allows {max_bytes / 1e9:,.2f} GB; {advice}"
        )
    if free is not None and needed > free and layout.compression == "none":
        raise StoreError(
            f"{place}: {size} are needed, {free / 1e9:,.2f} GB are free; make room, choose another --out, {advice}"
        )
    blocks = "" if missing.all() else f", {int(missing.sum()):,} of {missing.size:,} blocks missing"
    room = "" if free is None else f" ({free / 1e9:,.2f} GB are free)"
    counts = (len(layout.plans), len(layout.trie), len(layout.samples), layout.tokens)
    numbers = ", ".join(
        f"{name} {n:,}"
        for name, n in zip(("plans", "nodes", "samples", "tokens"), counts, strict=True)
    )
    return f"{numbers}{blocks}: {size} to {place}{room}"


def _repair(place: Location, asked: state_store.Layout) -> None:
    """Reads the whole store; what is damaged or missing counts as not computed."""
    state_store.check_current(place)
    found = integrity.check(place)
    for damage in found.damages:
        log.warning("%s: %s", place, damage)
    if any(map(integrity.is_metadata, found.damages)):
        integrity.restore(place, asked, found.damages)
        found = integrity.check(place)  # what is missing can only be told now
    if found.damages:
        integrity.invalidate(place, found.damages)


# Computing and writing


def _tried(model: Model, layout: state_store.Layout) -> tuple[Tracer, Company]:
    """The model's tracer, and which of the samples may share a batch.

    Raises:
        RepsimError: log-probabilities are asked for, and a token has seen the one after it.
    """
    from repsim.models.company import Trials
    from repsim.models.tracing import Tracer

    tracer = Tracer(model)
    trials = Trials(model, tracer, [sample.token_ids for sample in layout.samples])
    with interruption.explain_out_of_memory(
        model, "trying two texts together", "fewer --max-tokens"
    ):
        log.info("batches: %s", trials.company)
        if layout.logprobs:
            trials.check_foresight("--logprobs")
    return tracer, trials.company.company


def _run(
    model: Model,
    tracer: Tracer,
    layout: state_store.Layout,
    writer: state_store.Writer,
    missing: NDArray[np.bool_],
    place: Location,
    allow_nonfinite: bool,
    progress: Callable[[Progress], None] | None,
) -> None:
    from repsim.captures.write_queue import StateSink, WriteQueue

    kind = model.device.type
    lengths = np.diff(layout.token_starts)
    before, total = 0.0, int(lengths[missing.any(0)].sum())
    progress = progress or (lambda _: None)
    progress(Progress(0, total))
    with (
        interruption.defer_interrupts() as received,
        WriteQueue(side_by_side=kind != "cpu" or not isinstance(place, LocalFolder)) as lane,
    ):
        for block in np.flatnonzero(missing.any(0)).tolist():
            pending = writer.pending(block)
            first, last = layout.sample_starts[block : block + 2]
            samples = layout.samples[first:last]
            sink = StateSink(model, layout, writer, lane, block, pending, allow_nonfinite)
            writer.begin(block)
            share = lengths[block] / len(pending)

            def consume(
                state: NodeState,
                sink: StateSink = sink,
                before: float = before,
                share: float = share,
            ) -> None:
                sink.take(state)
                if received:
                    sink.finish()
                    raise Interrupted(_interrupted_message(place, received[0]), received[0])
                progress(Progress(round(before + share * sink.taken), total))

            pad_id = model.tokenizer.pad_token_id or 0
            made = batches(
                samples, pad_id, **interruption.costs(model), company=Company(layout.company)
            )
            nodes = pending if layout.keep else layout.trie.with_ancestors(pending)
            doing = f"block {block} of {len(layout.blocks)} ({samples[0].key}, ...)"
            with interruption.explain_out_of_memory(
                model, doing, "fewer --batch-tokens or --max-tokens"
            ):
                tracer.run(layout.trie, made, consume, nodes=nodes, logprobs=layout.logprobs)
            sink.finish()
            writer.note_replay(tracer.proof.verdict)
            before += lengths[block]


def _interrupted_message(place: Location, number: int) -> str:
    found = open_capture(place.text)
    total = found.dataset.sizes["token"]
    return (
        f"stopped by {signal.Signals(number).name} with {found.complete:,} of {total:,} tokens finished in {place}; "
        "the same command goes on from there"
    )
