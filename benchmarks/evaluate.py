"""Benchmarks under plans: do they agree with lm-eval's own evaluation, and how much faster are
they?

    python benchmarks/evaluate.py agree   [--rows 100] [--plan-rows 3]
    python benchmarks/evaluate.py written [--items 8]
    python benchmarks/evaluate.py speed fig2 [--rows 100] [--dtype float32] [--reference 4]

`agree` compares every per-request log-likelihood with lm-eval's `HFLM`, the model's own forward:
under the baseline, and under plans of every kind with what `repsim.planned(...)` gives; and `HFLM`
with itself at another batch size, which is how much of it is rounding. `written` compares the texts
of GSM8K. `speed` times `repsim evaluate` over a whole set of plans against one `HFLM` evaluation a
plan, measured on a few of them, loading left out on both sides. Data come from ../shared/data.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

import repsim
from repsim.data.batching import costs_on
from repsim.data.packing import cut_prefix_trees, pack_prefix_trees, pack_rows
from repsim.evaluation import tasks
from repsim.models import Model, load
from repsim.options import DEFAULT_BATCH_TOKENS
from repsim.plans import PlanTrie, resolve

DATA = Path(__file__).parents[2] / "shared" / "data"
CHOICES = ("arc_easy", "arc_challenge", "hellaswag", "winogrande", "lambada_openai")
TIMED = ("arc_easy", "hellaswag", "lambada_openai")
PLANS = (
    *(f"skip:start={n}" for n in (5, 10, 14)),
    *(f"reverse:start={n}" for n in (5, 10, 13)),
    *(f"middle_repeat:start={n}" for n in (5, 10, 13)),
    *(f"parallel:start={n}" for n in (5, 10, 13)),
    *(f"looped_parallel:start={n},loops=3" for n in (5, 10, 13)),
    *(f"random:start={n},seed=1" for n in (5, 10, 13)),
    *(f"drop:layer={n}" for n in (0, 14, 29)),
    *(f"switch:layer={n}" for n in (0, 14, 28)),
    *(f"drop:layer={n},part=attn" for n in (0, 14, 29)),
)


def benchmarks_of(model: Model, names: Sequence[str], rows: int, shots: int | None = None) -> Any:
    return tasks.load(names, model, data_dir=DATA, limit=rows, shots=shots)


def agree(arguments: argparse.Namespace) -> None:
    model = load(dtype="float32")
    compare(model, CHOICES, arguments.rows, ("baseline",))
    compare(model, ("arc_easy",), arguments.rows, ("baseline",), shots=5)
    compare(model, CHOICES, arguments.plan_rows, PLANS)


def compare(
    model: Model, names: Sequence[str], rows: int, plans: Sequence[str], shots: int | None = None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "data_dir": DATA,
            "limit": rows,
            "shots": shots,
            "plan": list(plans),
        }
        found = repsim.evaluate(
            model, tasks=list(names), out=f"{folder}/s.zarr", **options
        ).dataset.load()
    made = benchmarks_of(model, names, rows, shots)
    for row, plan in enumerate(plans):
        expected, metrics = reference(model, made, plan, 8)
        again, _ = reference(model, made, plan, 1)
        own = found["log_likelihood"].values[row]
        apart, noise = (np.abs(one - expected).max() for one in (own, again))
        differ = [
            (task, metric, float(value))
            for (task, metric), value in metrics.items()
            if not np.isclose(
                found["aggregate"][row].sel(task=task, metric=metric), value, rtol=1e-4
            )
        ]
        print(
            f"{plan}, {shots or 0}-shot, {rows} rows a task: log-likelihoods {own.min():.1f} to "
            f"{own.max():.1f} nats "
            f"within {apart:.1e} (HFLM at batch size 1: {noise:.1e}), relative "
            f"{np.abs(own / expected - 1).max():.1e}; "
            f"{len(metrics)} metrics, differing: {differ or 'none'}",
            flush=True,
        )


def reference(
    model: Model, made: Any, plan: str, batch: int
) -> tuple[np.ndarray, dict[tuple[str, str], float]]:
    """lm-eval's own log-likelihoods of every request, and its metrics."""
    harness = HFLM(
        pretrained=repsim.planned(model, plan), tokenizer=model.tokenizer, batch_size=batch
    )
    numbers: list[float] = []
    metrics: dict[tuple[str, str], float] = {}
    for benchmark in made:
        instances = benchmark._task.instances
        answers = harness.loglikelihood(instances, disable_tqdm=True)
        numbers += [number for number, _ in answers]
        for instance, answer in zip(instances, answers, strict=True):
            instance.resps = [answer]
        benchmark._task.apply_filters()
        values: dict[str, list[Any]] = {}
        docs = {instance.doc_id: instance.doc for instance in instances}
        for number, doc in docs.items():
            own = [one.filtered_resps["none"] for one in instances if one.doc_id == number]
            for metric, value in benchmark._task.process_results(doc, own).items():
                values.setdefault(metric, []).append(value)
        metrics |= {
            (benchmark.name, metric): float(benchmark._task.aggregation()[metric](v))
            for metric, v in values.items()
        }
    return np.array(numbers), metrics


def written(arguments: argparse.Namespace) -> None:
    """GSM8K: the same texts as `HFLM` writes."""
    model, items = load(dtype="float32"), arguments.items
    (benchmark,) = benchmarks_of(model, ["gsm8k"], items)
    for plan in ("baseline", "skip:start=13", "looped_parallel:start=13,loops=3"):
        with tempfile.TemporaryDirectory() as folder:
            options = {"tasks": "gsm8k", "data_dir": DATA, "limit": items, "plan": plan}
            found = (
                repsim.evaluate(model, out=f"{folder}/s.zarr", **options)
                .dataset["response"]
                .values[0]
                .tolist()
            )
        harness = HFLM(
            pretrained=repsim.planned(model, plan), tokenizer=model.tokenizer, batch_size=items
        )
        expected = harness.generate_until(benchmark._task.instances, disable_tqdm=True)
        same = sum(one == other for one, other in zip(found, expected, strict=True))
        print(f"gsm8k under {plan}: {same} of {items} texts the same", flush=True)


def speed(arguments: argparse.Namespace) -> None:
    model = load(dtype=arguments.dtype)
    made = benchmarks_of(model, TIMED, arguments.rows)
    plans = resolve(arguments.set, model.layers)
    picked = [plans[int(i)] for i in np.linspace(0, len(plans) - 1, arguments.reference)]
    instances = [instance for benchmark in made for instance in benchmark._task.instances]
    fits = []
    for named in picked:
        planned = repsim.planned(model, named.plan)
        harness = HFLM(pretrained=planned, tokenizer=model.tokenizer, batch_size=16)
        took = timed(partial(harness.loglikelihood, instances, disable_tqdm=True))
        fits.append((named.plan.applications, took))
        print(
            f"HFLM under {named.name}: {named.plan.applications} layer applications, {took:.1f} s",
            flush=True,
        )
    # seconds = what a plan costs beside its layers + what a layer costs: the other plans by their
    # layers
    applications, seconds = np.array(fits).T
    slope, rest = np.polyfit(applications, seconds, 1)
    per_plan = statistics.mean(rest + slope * named.plan.applications for named in plans)
    folder = tempfile.mkdtemp()
    options: dict[str, Any] = {
        "data_dir": DATA,
        "limit": arguments.rows,
        "plan": arguments.set,
        "out": f"{folder}/s.zarr",
    }
    took = timed(lambda: repsim.evaluate(model, tasks=list(TIMED), **options))
    shutil.rmtree(folder)
    print(
        f"{arguments.set}, {arguments.dtype}, {arguments.rows} rows a task, {len(plans)} plans: "
        f"HFLM {per_plan:.2f} s a plan (seconds = {rest:.2f} + {slope:.3f} a layer application), "
        f"repsim {took / len(plans):.2f} s a plan ({took:.0f} s in all): "
        f"{per_plan * len(plans) / took:.1f} times faster"
    )
    shares(model, made, plans)


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def shares(model: Model, made: Any, plans: Any) -> None:
    """How much of the work each kind of sharing saves, counted."""
    trie = PlanTrie.build(named.plan for named in plans)
    apart = sum(named.plan.applications for named in plans)
    texts = [
        [window for request in example.requests for window in request.windows]
        for one in made
        for example in one.examples
    ]
    windows = [window for text in texts for window in text]
    plain, begin, trees = sum(len(window.inputs) for window in windows), 0, []
    for size in cut_prefix_trees(texts, DEFAULT_BATCH_TOKENS):
        part = [window for text in texts[begin : begin + size] for window in text]
        trees.append(pack_prefix_trees(part, 0, **costs_on(model.device.type)))
        begin += size
    shared = sum(one.tokens for one in trees)
    scored = sum(len(np.unique(one.token)) for one in trees)
    padded = sum(batch.token_ids.size for one in trees for batch in one.batches)
    rows = sum(
        b.token_ids.size for b in pack_rows(windows, 0, **costs_on(model.device.type)).batches
    )
    lines = (
        ("layers", "applications", apart, "plan by plan", trie.applications, "through the trie"),
        (
            "contexts",
            "tokens",
            plain,
            "request by request",
            shared,
            f"in trees ({padded:,} with padding)",
        ),
        (
            "contexts",
            "tokens",
            plain,
            "request by request",
            rows,
            "positions in rows of equal inputs",
        ),
        ("logits", "positions", plain, "in all", scored, "where something is predicted"),
    )
    for what, unit, before, how, after, instead in lines:
        print(
            f"  {what}: {before:,} {unit} {how}, {after:,} {instead}: {before / after:.2f} times "
            "fewer"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("agree")
    one.add_argument("--rows", type=int, default=100)
    one.add_argument("--plan-rows", type=int, default=3)
    one.set_defaults(run=agree)
    one = kinds.add_parser("written")
    one.add_argument("--items", type=int, default=8)
    one.set_defaults(run=written)
    one = kinds.add_parser("speed")
    one.add_argument("set")
    one.add_argument("--rows", type=int, default=100)
    one.add_argument("--dtype", default="float32")
    one.add_argument("--reference", type=int, default=4)
    one.set_defaults(run=speed)
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.manual_seed(0)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
