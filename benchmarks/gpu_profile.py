"""Where the time of a run goes: the section `profile` of `benchmarks/gpu.py`.

`StageClock` puts itself around functions of repsim, each of which is a stage. Of every call it
takes the host's seconds, and on a card the seconds between two CUDA events, both without what other
stages inside took; so the stages of one thread add up to its time, and what is left over is said.
Stages that the tree does not have are said as well. Operations, launches and synchronisations
are counted by `support.counting.CountingMode` and, on a card, by torch's own warnings; kernels by
name come from torch's profiler.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

import repsim
from gpu_run import GB, Run, evaluation_settings, generate
from repsim.models.digests import digest_weights
from support.counting import CountingMode

PROOFS = "proofs and trials"
# Stage, the functions that make it (module:name), and whether a card does the work.
STAGES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("loading tasks", ("repsim.evaluation.tasks:load",), False),
    ("digest", ("repsim.models.model:digest_weights",), False),
    (
        "making and opening stores",
        (
            "repsim.storage.state_store:prepare",
            "repsim.storage.state_writer:prepare",
            "repsim.storage.score_store:prepare",
            "repsim.captures.run:open_capture",
            "repsim.evaluation.run:open_scores",
        ),
        False,
    ),
    ("tokenising", ("repsim.captures.run:tokenize",), False),
    (
        "packing",
        ("repsim.captures.run:batches", "repsim.evaluation.prefix_sharing:LikelihoodScorer.pack"),
        False,
    ),
    (
        PROOFS,
        (
            "repsim.models.tracing:Tracer.prove",
            "repsim.models.tracing:Tracer._prove_logits",
            "repsim.captures.run:_try_batches",
            "repsim.captures.stored_dtype:try_dtype",
            "repsim.evaluation.prefix_sharing:LikelihoodScorer.__init__",
        ),
        True,
    ),
    ("reading the layers' calls", ("repsim.models.tracing:Tracer._record_calls",), True),
    ("layers", ("repsim.models.tracing:apply_layer",), True),
    ("attention", ("transformers.models.llama.modeling_llama:LlamaAttention.forward",), True),
    ("logits", ("repsim.models.tracing:score_targets",), True),
    (
        "statistics",
        (
            "repsim.captures.write_queue:StateSink._take_statistics",
            "repsim.captures.path_statistics:PathStatistics.take",
        ),
        True,
    ),
    ("copying", ("repsim.captures.write_queue:StateSink._to_host",), True),
    ("metrics", ("repsim.evaluation.prefix_sharing:score_examples",), False),
    (
        "writing",
        (
            "repsim.storage.state_store:Writer.write",
            "repsim.storage.state_store:Writer.write_statistics",
            "repsim.storage.state_store:Writer.finish",
            "repsim.storage.state_writer:Writer.write",
            "repsim.storage.state_writer:Writer.write_statistics",
            "repsim.storage.state_writer:Writer.finish",
            "repsim.storage.score_store:Writer.put",
            "repsim.storage.score_store:Writer.flush",
        ),
        False,
    ),
    (
        "waiting",
        (
            "repsim.captures.write_queue:WriteQueue.drain",
            "repsim.captures.write_queue:WriteQueue.end_block",
            "repsim.captures.write_queue:WriteQueue.finish",
            "repsim.captures.host_buffers:HostBuffers.take",
            "repsim.captures.host_buffers:Arrival.wait",
        ),
        False,
    ),
)
KERNELS = 8  # of the longest, by name
PLACES = 6  # of the code that synchronises most


@dataclass
class Span:
    """One call of a stage: seconds, and on a card the events before and behind it."""

    stage: str
    thread: int
    parent: Span | None
    seconds: float = 0.0
    events: tuple[Any, Any] | None = None


class StageClock:
    """Times stages wherever they are called inside `watching`.

    missing: stages of which the tree has no function; a stage may be known by several names.
    """

    def __init__(self, is_card: bool) -> None:
        self._is_card = is_card
        self._spans: list[Span] = []
        self._current = threading.local()
        self.missing: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Puts the clock around the functions of all stages inside the block."""
        with ExitStack() as undo:
            for stage, targets, on_device in STAGES:
                places = list(filter(None, map(_find, targets)))
                self.missing += [] if places else [stage]
                for owner, name in places:
                    before = vars(owner).get(name, getattr(owner, name))
                    undo.callback(setattr, owner, name, before)
                    setattr(owner, name, self._timed(getattr(owner, name), stage, on_device))
            yield

    def _timed(self, function: Callable[..., Any], stage: str, on_device: bool) -> Any:
        uses_events = on_device and self._is_card

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            parent: Span | None = getattr(self._current, "span", None)
            if parent is not None and parent.stage == PROOFS:  # with all that they run
                return function(*args, **options)
            span = Span(stage, threading.get_ident(), parent)
            self._current.span = span
            if uses_events:
                span.events = _event(), _event()
                span.events[0].record()
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                span.seconds = time.perf_counter() - begin
                if span.events is not None:
                    span.events[1].record()
                self._current.span = parent
                self._spans.append(span)

        return run

    def lines(self, whole: float) -> list[str]:
        """What each stage took, and what no stage of the main thread took of the whole."""
        host: defaultdict[tuple[str, bool], float] = defaultdict(float)
        device: defaultdict[str, float] = defaultdict(float)
        calls: Counter[str] = Counter()
        main = threading.main_thread().ident
        covered = 0.0
        for span in self._spans:
            is_main = span.thread == main
            calls[span.stage] += 1
            host[span.stage, is_main] += span.seconds
            if is_main and span.parent is None:
                covered += span.seconds
            if span.parent is not None:  # own time only
                host[span.parent.stage, is_main] -= span.seconds
            if span.events is not None:
                seconds = span.events[0].elapsed_time(span.events[1]) / 1e3
                device[span.stage] += seconds
                if span.parent is not None and span.parent.events is not None:
                    device[span.parent.stage] -= seconds
        lines = []
        for stage, _, _ in STAGES:
            if not calls[stage]:
                continue
            parts = [f"{host[stage, True]:.3f} s"]
            if (stage, False) in host:
                parts.append(f"{host[stage, False]:.3f} s on other threads")
            if stage in device:
                parts.append(f"{device[stage]:.3f} s of the card")
            lines.append(f"{stage}: {', '.join(parts)}, {calls[stage]:,} calls")
        lines.append(f"all else: {whole - covered:.3f} of {whole:.3f} s")
        return lines


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _find(target: str) -> tuple[Any, str] | None:
    """The module or class that holds a function, and its name there; None where there is none."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    try:
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        getattr(owner, name)
    except (ImportError, AttributeError):
        return None
    return owner, name


def profile(run: Run) -> None:
    """Stages, counts and kernels of a capture, of statistics, of an evaluation and of decoding."""
    _profile_loading(run)
    with run.temporary(run.memory) as folder:
        for name, work, unit, units in _workloads(run, folder):
            _profile_stages(run, name, work)
            _profile_counts(run, name, work, unit, units)
            _profile_kernels(run, name, work)


def _profile_loading(run: Run) -> None:
    """Rates of loading a model from files in memory, and of its digest."""
    shape = replace(run.shape, layers=4)
    with run.temporary(run.memory) as folder:
        model = run.llama(shape, run.device)
        size = sum(weight.numel() * weight.element_size() for weight in model.module.parameters())
        model.module.save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)
        del model
        loaded: list[Any] = []
        seconds = run.timed(
            lambda: loaded.append(repsim.models.load(str(folder), device=run.device))
        )
        run.say(f"loading {size / GB:.3g} GB: {seconds:.2f} s, {size / seconds / GB:.3g} GB/s")
        seconds = run.timed(lambda: digest_weights(loaded[0].module))
        run.say(f"their digest: {seconds:.2f} s, {size / seconds / GB:.3g} GB/s")


def _workloads(run: Run, folder: Path) -> Iterator[tuple[str, Callable[[], object], str, int]]:
    """Name, work, and by what its counts are divided."""
    texts = max(2, run.shape.texts // 4)
    blocks = len(run.blocks(texts))
    model, shape = run.model, run.shape

    def capture(**options: Any) -> Callable[[], object]:
        def work() -> None:
            with run.temporary(folder) as out:
                run.capture(out, texts, **options)

        return work

    yield "capture, all states", capture(), "block", blocks
    statistics = capture(keep="none", statistics="cosine,norms")
    yield "capture, statistics", statistics, "block", blocks

    plans = [f"drop:layer={layer}" for layer in range(1, shape.layers, max(3, shape.layers // 8))]
    settings = evaluation_settings(run, max(2, shape.rows // 4))

    def evaluate() -> None:
        with run.temporary(folder) as out:
            repsim.evaluate(model, plan=plans, out=out / "s.zarr", **settings)

    yield f"evaluation, {len(plans)} plans", evaluate, "plan", len(plans)

    planned = repsim.planned(model, "baseline", check=False)
    count, tokens = shape.written
    ids = torch.randint(3, len(run.tokenizer), (count, 16), device=run.device)
    yield "decoding", functools.partial(generate, planned, ids, tokens), "token", tokens


def _profile_stages(run: Run, name: str, work: Callable[[], object]) -> None:
    clock = StageClock(run.is_card)
    with clock.watching():
        whole = run.timed(work)
    run.say(f"{name}: {whole:.3f} s")
    for line in clock.lines(whole):
        run.say(f"    {line}")
    if clock.missing:
        run.say(f"    not there: {', '.join(clock.missing)}")


def _profile_counts(run: Run, name: str, work: Callable[[], object], unit: str, units: int) -> None:
    """Launches and synchronisations of the main thread, in all and per unit."""
    with warnings.catch_warnings(record=True) as caught, CountingMode() as counts:
        warnings.simplefilter("always")
        if run.is_card:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            if run.is_card:
                torch.cuda.set_sync_debug_mode("default")
    launches, waits = counts.launches.total(), counts.synchronisations.total()
    run.say(
        f"{name}: {launches:,} launches, {waits:,} synchronisations, {launches / units:,.0f} and "
        f"{waits / units:,.1f} per {unit}"
    )
    run.say(f"    launches: {_most(counts.launches)}")
    run.say(f"    synchronisations: {_most(counts.synchronisations)}")
    places = Counter(
        f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
    if run.is_card:
        run.say(f"    torch warned of {places.total():,} synchronisations: {_most(places)}")


def _most(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(PLACES)) or "none"


def _profile_kernels(run: Run, name: str, work: Callable[[], object]) -> None:
    """The kernels that take longest; on a CPU, the operations."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * run.is_card
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        run.wait()
    rows: Sequence[Any] = profiler.key_averages()
    own = "self_device_time_total" if run.is_card else "self_cpu_time_total"
    total = sum(getattr(row, own) for row in rows) or 1
    longest = sorted(rows, key=lambda row: -getattr(row, own))[:KERNELS]
    run.say(f"{name}: longest kernels of {total / 1e6:.3f} s")
    for row in longest:
        share = getattr(row, own) / total
        run.say(f"    {share:5.1%} {row.count:7,} x {row.key[:70]}")
