"""Is repsim as fast as the card that it runs on, and does it agree there with the CPU? Run by hand:

    python benchmarks/gpu.py [SECTION ...] [--seconds 400] [--folder FOLDER]

Each section is a question; without names all are asked, in this order:

    agree       float32 states, log-probabilities and statistics against the CPU; lm-eval's HFLM
    limits      a product, a copy to the host, writing by 1 and by 8 threads
    digest      of the weights
    statistics  `--keep none --statistics cosine,norms` against a bare forward
    tokens      `--tokens last` and `mean` against a bare forward
    states      all states to memory and to the disk against what threads write there
    cosine      the cosine matrix from a store against the rate of reading its files
    evaluation  one plan, and fig2, against HFLM once per plan and against what sharing allows
    decoding    `generate` under a plan against plain `generate`
    compiled    static caches, and their compiled forward
    profile     time by stage, launches and synchronisations, kernels by name

Ratios are of one run. A line is printed as soon as it is known, to `$OUT/gpu.log` as well; bounds
are those of a card with Llama-2-7B's shape. Without a card all of it runs in small, to rehearse.
`TOK` names a folder with a tokenizer and `DATA` one with lm-eval's data, TASK.SPLIT.jsonl.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
import transformers

import repsim
from gpu_agreement import agree, compiled
from gpu_profile import profile
from gpu_run import (
    GB,
    MEMORY,
    THREADS,
    OutOfTime,
    Run,
    evaluation_settings,
    forget,
    generate,
    tasks_of,
)
from repsim.analyses import cosine
from repsim.data.batching import costs_on
from repsim.data.packing import cut_prefix_trees, pack_prefix_trees
from repsim.errors import RepsimError
from repsim.jobs.resumable import Progress
from repsim.models.digests import digest_weights
from repsim.options import CaptureKeywords
from repsim.plans import PlanTrie, resolve


def limits(run: Run) -> None:
    """What the machine reaches without repsim."""
    size = 8192 if run.is_card else 512
    factors = [torch.randn(size, size, device=run.device, dtype=torch.bfloat16) for _ in range(2)]
    seconds = run.timed(lambda: factors[0] @ factors[1], rounds=5, warm=5)
    run.say(f"bfloat16 product of {size} by {size}: {2 * size**3 / seconds / 1e12:.4g} TFLOP/s")
    if run.is_card:
        source = torch.empty(2**30, dtype=torch.uint8, device=run.device)
        target = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
        seconds = run.timed(lambda: target.copy_(source, non_blocking=True), rounds=5, warm=2)
        run.say(f"device to pinned host: {2**30 / seconds / GB:.1f} GB/s")
    for where in dict.fromkeys((run.folder, run.memory)):
        rates = [f"{run.write_rate(where, n) / GB:.2f} GB/s by {n}" for n in (1, THREADS)]
        run.say(f"writing to {where}: {', '.join(rates)} threads")


def digest(run: Run) -> None:
    """The digest of the large model's weights."""
    seconds = run.timed(lambda: digest_weights(run.model.module))
    run.judge(f"digest of the weights by {os.cpu_count()} cores, seconds", seconds, at_most=4)


def statistics(run: Run) -> None:
    """Statistics without states against a bare forward of the same layer applications."""
    layers = run.shape.layers
    middle = layers // 2
    five = ("baseline", "drop:layer=1", f"drop:layer={middle}", "reverse:start=1", "skip:start=1")
    options: dict[str, Any] = {"keep": "none", "statistics": "cosine,norms"}
    for texts, plans in ((run.shape.texts, five[:1]), (run.shape.texts // 4, five)):
        nodes = PlanTrie.build(named.plan for named in resolve(list(plans), layers)).applications
        forward = run.forward_seconds(texts) * nodes / layers
        for dtype, bound in (("auto", 1.25), ("float32", 1.4)):
            named = "baseline and four plans" if len(plans) > 1 else "baseline"
            what = f"statistics of {named}, dtype {dtype} / bare forward"
            ratio = _judge_capture(
                run, what, texts, forward, bound, plan=list(plans), dtype=dtype, **options
            )
            if ratio > 10 and run.is_card:
                run.miss("statistics, further lines", "left out, since this one took so long")
                return


def tokens(run: Run) -> None:
    """One state per text against a bare forward."""
    texts = run.shape.texts
    for kept in ("last", "mean"):
        what = f"--tokens {kept} / bare forward"
        _judge_capture(run, what, texts, run.forward_seconds(texts), 1.1, tokens=kept)


def _judge_capture(
    run: Run, what: str, texts: int, base: float, bound: float, **options: Any
) -> float:
    """The time of a capture, the better of two, against a bare forward's."""
    timings = []
    for _ in range(2):
        with run.temporary(run.folder) as folder:
            timings.append(run.capture(folder, texts, **options))
        if timings[0].whole > 10 * base:
            break
    best = min(timings, key=lambda timing: timing.whole)
    run.judge(what, best.whole / base, at_most=bound)
    computing = (best.whole - best.setup) / base
    run.say(f"    {best.whole:.3f} s, of it set-up {best.setup:.3f}; without it {computing:.2f}")
    return best.whole / base


def states(run: Run) -> None:
    """All states, to memory and to the disk, against what threads write there just before."""
    ways: list[dict[str, Any]] = [{}]
    if "shards" in CaptureKeywords.__annotations__:
        ways = [{"shards": way} for way in ("off", "on")]
    else:
        run.say("--shards: not there")
    for where, bound in ((run.memory, 0.8), (run.folder, 0.85)):
        is_memory = where == MEMORY
        for options in ways:
            named = "".join(f" --{name} {value}" for name, value in options.items())
            what = f"all states{named} to {'memory' if is_memory else 'disk'}"
            rate = run.write_rate(where, THREADS)
            if not is_memory:
                rate = max(rate, run.write_rate(where, 1))
            try:
                with run.temporary(where) as folder:
                    timing = run.capture(folder, run.shape.texts, **options)
                    files = sum(path.is_file() for path in folder.rglob("*"))
            except RepsimError as problem:  # no room for them
                run.miss(what, str(problem))
                continue
            reached = timing.bytes / timing.whole
            run.judge(f"{what}, share of what threads write", reached / rate, at_least=bound)
            forward = run.forward_seconds(run.shape.texts)
            run.say(
                f"    {timing.bytes / GB:.3g} GB in {timing.whole:.2f} s, set-up {timing.setup:.2f}"
                f": {reached / GB:.2f} of {rate / GB:.2f} GB/s, {files:,} files; "
                f"{timing.whole / forward:.2f} of a bare forward"
            )


def cosine_from_store(run: Run) -> None:
    """The cosine matrix from a store, read from the disk and from memory."""
    texts = run.shape.texts // 2
    try:
        arithmetic_on = importlib.import_module("repsim.captures.arithmetic").arithmetic_on
    except ImportError:
        run.say("cosine on the device: not there")
        arithmetic_on = nullcontext

    def compute(folder: Path) -> None:
        with arithmetic_on(run.device):
            cosine.compute(repsim.open(folder / "s.zarr"))

    for where in dict.fromkeys((run.folder, run.memory)):
        with run.temporary(where) as folder:
            run.capture(folder, texts)
            files = [path for path in folder.rglob("*") if path.is_file()]
            rate = run.read_rate(folder)
            forget(files)
            seconds = run.timed(partial(compute, folder))
            size = sum(path.stat().st_size for path in files)
        name = "memory" if where == MEMORY else "disk"
        if where == run.folder:
            what = f"cosine from the {name}, share of the read rate"
            run.judge(what, size / seconds / rate, at_least=0.8)
        run.say(
            f"    cosine of {size / GB:.3g} GB from the {name}: {seconds:.3f} s, "
            f"{size / seconds / GB:.2f} GB/s; reading alone {rate / GB:.2f} GB/s"
        )


def evaluation(run: Run) -> None:
    """Scores under one plan and under fig2 against lm-eval's own evaluation, once per plan."""
    from lm_eval.models.huggingface import HFLM

    model, settings = run.model, evaluation_settings(run, run.shape.rows)
    tasks = tasks_of(model, settings)
    instances = [instance for task in tasks for instance in task._task.instances]

    # lm-eval's own evaluation of a plan, at the best of some batch sizes.
    best = np.inf
    for size in run.shape.batch_sizes:
        planned = repsim.planned(model, f"drop:layer={run.shape.layers // 2}")
        harness = HFLM(pretrained=planned, tokenizer=run.tokenizer, batch_size=size)
        seconds = run.timed(partial(harness.loglikelihood, instances, disable_tqdm=True), 1, 1)
        run.say(f"HFLM at batch size {size}: {seconds:.3f} s for {len(instances)} requests")
        best = min(best, seconds)

    # What sharing allows: each token of the trees once per node, each scored one once per plan.
    examples = [
        [window for request in example.requests for window in request.windows]
        for task in tasks
        for example in task.examples
    ]
    begin, shared, scored = 0, 0, 0
    for count in cut_prefix_trees(examples, run.shape.batch_tokens):
        windows = [window for texts in examples[begin : begin + count] for window in texts]
        packed = pack_prefix_trees(windows, 0, **costs_on(run.device))
        shared, scored, begin = (
            shared + packed.tokens,
            scored + len(set(packed.token)),
            begin + count,
        )
    all_tokens = sum(len(sample) for sample in run.samples(run.shape.texts))
    second_per_token = run.forward_seconds(run.shape.texts) / all_tokens
    weights = sum(weight.numel() for weight in model.module.model.layers.parameters())
    head = model.module.lm_head.weight.numel() / weights

    for plan in ("baseline", "fig2"):
        plans = resolve(plan, run.shape.layers)
        applications = PlanTrie.build(named.plan for named in plans).applications
        layers = shared * applications / run.shape.layers
        allowed = second_per_token * (layers + scored * head * len(plans))
        with run.temporary(run.memory) as folder:
            options = {**settings, "plan": plan, "out": folder / "s.zarr"}

            def evaluate(told: Callable[[Progress], None], options: Any = options) -> object:
                return repsim.evaluate(model, progress=told, **options)

            timing = run.time_run(evaluate, folder)
        own = timing.whole - timing.setup
        run.say(
            f"evaluation of {plan}: {timing.whole:.3f} s, of it set-up {timing.setup:.3f}; "
            f"{timing.whole / len(plans):.3f} s per plan, sharing allows "
            f"{allowed / len(plans):.3f}"
        )
        if plan == "baseline":
            run.judge(
                "baseline alone, times as fast as HFLM, without set-up", best / own, at_least=0.9
            )
        else:
            faster = best * len(plans) / timing.whole
            run.judge("fig2, times as fast as HFLM once per plan", faster, at_least=4)
            run.judge("fig2, share of what sharing allows", allowed / timing.whole, at_least=0.7)


def decoding(run: Run) -> None:
    """Plain generation and under plans, by turns."""
    count, tokens = run.shape.written
    ids = torch.randint(3, len(run.tokenizer), (count, 64), device=run.device)
    start = run.shape.layers // 4
    ways: dict[str, Any] = {"plain": run.model.module}
    for plan in ("baseline", f"skip:start={start}", f"parallel:start={start}"):
        ways[plan] = repsim.planned(run.model, plan)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(4):
        for name, module in ways.items():
            took = run.timed(partial(generate, module, ids, tokens))
            if number:  # the first round warms up
                seconds[name].append(took)
    for name, module in ways.items():
        ratios = np.divide(seconds[name], seconds["plain"])
        ratio, rate = float(np.median(ratios)), count * tokens / float(np.median(seconds[name]))
        spread = f"{ratios.min():.2f} to {ratios.max():.2f}"
        entries = module.config.num_hidden_layers
        run.say(f"    {name}, {entries} layers: {rate:,.0f} tokens/s, {ratio:.3f} ({spread})")
        if name == "baseline":
            run.judge("generate under planned(baseline) / plain", ratio, at_most=1.03)


# Sections, and the seconds that each may take on a card.
SECTIONS: dict[str, tuple[Callable[[Run], None], float]] = {
    "agree": (agree, 60),
    "limits": (limits, 40),
    "digest": (digest, 60),
    "statistics": (statistics, 100),
    "tokens": (tokens, 30),
    "states": (states, 90),
    "cosine": (cosine_from_store, 60),
    "evaluation": (evaluation, 90),
    "decoding": (decoding, 40),
    "compiled": (compiled, 60),
    "profile": (profile, 120),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--seconds", type=float, default=400, help="of all sections together")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.sections if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}: choose {', '.join(SECTIONS)}")
    for name, level in (("repsim", logging.ERROR), ("lm_eval", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    log = Path(os.environ["OUT"], "gpu.log") if "OUT" in os.environ else None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.folder, arguments.seconds, log)
    if not run.is_card:
        torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    machine = torch.cuda.get_device_name(0) if run.is_card else "no card: a rehearsal in small"
    run.say(
        f"repsim {repsim.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}; {machine}; "
        f"{os.cpu_count()} cores"
    )
    for name in arguments.sections or SECTIONS:
        run_section(run, name)
    run.say(f"{len(run.judged)} lines were judged:")
    for line in run.judged:
        run.say(f"    {line}")


def run_section(run: Run, name: str) -> None:
    """Runs a section; one that fails, or takes too long, says so in one line."""
    section, seconds = SECTIONS[name]
    begin = time.monotonic()
    run.say(f"== {name}")
    try:
        with run.within(seconds if run.is_card else run.seconds):
            section(run)
    except (Exception, OutOfTime) as problem:
        message = " ".join(str(problem).split())[:300]
        run.miss(name, f"FAILED, {type(problem).__name__}: {message}")
        if run.log is not None:
            with run.log.open("a") as file:
                traceback.print_exc(file=file)
    if run.is_card:
        torch.cuda.empty_cache()
    run.say(f"-- {name}: {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
