"""Ratios of capture times, each measured in one run on the embedded model, and what capture needs.
Run by hand:

    .venv/bin/python benchmarks/capture.py [equal] [natural] [trie] [memory] [compression] [checks]

Rounds alternate between the ways, so that a slow moment of the machine hits all of them; a ratio is
the median of the rounds' own ratios. Every way but the bare forward leaves all states on disk, in
the working directory's file system.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

import repsim
from repsim.captures import run as capture_run
from repsim.captures.reader import open_capture
from repsim.data.batching import Batch, batches, costs_on, cut_blocks
from repsim.data.corpus import read_corpus
from repsim.data.samples import Sample, tokenize
from repsim.evaluation.prefix_sharing import LikelihoodScorer
from repsim.models import Model, load, tracing
from repsim.models.tracing import Tracer
from repsim.options import DEFAULT_BATCH_TOKENS
from repsim.plans import PlanTrie, resolve

ROUNDS = 5
EQUAL_SAMPLES, EQUAL_LENGTH = 96, 128
PAPER_BATCH = 8
TRIE_TOKENS = 64
MEMORY_TOKENS = (1_000, 10_000, 100_000)

Ways = dict[str, Callable[[Path], None]]


def rounds(ways: Ways) -> dict[str, list[float]]:
    """Seconds that each way takes in each round; each writes into a folder of its own."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):  # the first one warms up
        for name, way in ways.items():
            folder = Path(tempfile.mkdtemp(prefix="repsim-benchmark-", dir="."))
            try:
                began = time.perf_counter()
                way(folder)
                if round_:
                    seconds[name].append(time.perf_counter() - began)
            finally:
                shutil.rmtree(folder)
    return seconds


def report(seconds: dict[str, list[float]], base: str, bounds: dict[str, float]) -> None:
    """`base` against each other way: median ratio of the rounds, and the spread."""
    for name, times in seconds.items():
        print(f"  {name}: {statistics.median(times):.2f} s", flush=True)
    for name, bound in bounds.items():
        ratios = sorted(
            mine / other for mine, other in zip(seconds[base], seconds[name], strict=True)
        )
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        print(
            f"  {base} / {name}: {statistics.median(ratios):.3f} ({spread}; at most {bound:.2f})",
            flush=True,
        )


def long_texts(count: int) -> list[str]:
    """Texts of about 300 tokens, no two alike: each two of the built-in passages, one after the
    other.
    """
    passages = [text.text for text in read_corpus().texts]
    return [f"{passages[i % 96]} {passages[(i + 1 + i // 96) % 96]}" for i in range(count)]


def corpus_file(folder: Path, texts: Sequence[str]) -> str:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def blocks_of(samples: tuple[Sample, ...], waste: float = 1.0) -> list[tuple[Batch, ...]]:
    """The batches that capture makes; with the greatest waste, one batch a block."""
    ends = np.cumsum((0, *cut_blocks(samples, DEFAULT_BATCH_TOKENS)))
    overhead = costs_on("cpu")["overhead"] if waste < 1 else 1e9
    return [
        batches(samples[first:last], 0, overhead=overhead, waste=waste)
        for first, last in pairwise(ends)
    ]


def inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.from_numpy(batch.token_ids),
        "attention_mask": torch.from_numpy(batch.mask).long(),
    }


def stack_forward(model: Model, made: Sequence[Batch]) -> None:
    """A bare forward of the stack: no cache, no logits, nothing kept."""
    with torch.inference_mode():
        for batch in made:
            model.module.model(**inputs(batch), use_cache=False)


def save_hidden_states(model: Model, made: Sequence[Batch], folder: Path, how: str) -> None:
    """The paper's way: every hidden state by `output_hidden_states`, saved batch by batch."""
    with torch.inference_mode():
        for number, batch in enumerate(made):
            states = model.module(
                **inputs(batch), output_hidden_states=True, use_cache=False
            ).hidden_states
            if how == "torch":
                torch.save(states, folder / f"{number}.pt")
            else:
                np.save(folder / f"{number}.npy", torch.stack(states).numpy())


def save_by_nnsight(
    model: Model, envoy: nnsight.NNsight, made: Sequence[Batch], folder: Path
) -> None:
    """nnsight's own way: the output of every layer saved out of a trace."""
    with torch.inference_mode():
        for number, batch in enumerate(made):
            with envoy.trace(**inputs(batch), use_cache=False):
                states = nnsight.save([layer.output for layer in envoy.model.layers])
            torch.save(states, folder / f"{number}.pt")


def equal(model: Model) -> None:
    """Samples of one length: no padding for anybody."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_file(Path(folder), long_texts(EQUAL_SAMPLES))
        samples, _ = tokenize(read_corpus(corpus), model.tokenizer, EQUAL_LENGTH)
        made = [batch for block in blocks_of(samples) for batch in block]
        envoy = nnsight.NNsight(model.module)
        print(f"equal lengths: {len(samples)} samples of {EQUAL_LENGTH} tokens")
        seconds = rounds(
            {
                "stack forward": lambda _: stack_forward(model, made),
                "capture": lambda out: capture(model, corpus, out, max_tokens=EQUAL_LENGTH),
                "output_hidden_states + torch.save": lambda out: save_hidden_states(
                    model, made, out, "torch"
                ),
                "output_hidden_states + np.save": lambda out: save_hidden_states(
                    model, made, out, "numpy"
                ),
                "nnsight .save() + torch.save": lambda out: save_by_nnsight(
                    model, envoy, made, out
                ),
            }
        )
    others = {name: 0.92 for name in list(seconds)[2:]}
    report(seconds, "capture", {"stack forward": 1.05, **others})


def natural(model: Model) -> None:
    """The built-in corpus, 43 to 195 words a passage; padding counts."""
    samples = tokenize(read_corpus(), model.tokenizer, model.context_length)[0]
    place = {text.key: number for number, text in enumerate(read_corpus().texts)}
    as_they_come = sorted(samples, key=lambda sample: place[sample.key])
    eights = [
        as_they_come[first : first + PAPER_BATCH] for first in range(0, len(samples), PAPER_BATCH)
    ]
    paper = [batch for eight in eights for batch in batches(eight, 0, overhead=1e9, waste=1)]
    packed = [batch for block in blocks_of(samples, costs_on("cpu")["waste"]) for batch in block]
    for name, made in (("capture", packed), ("batches of 8 as they come", paper)):
        positions = sum(batch.mask.size for batch in made)
        padding = 1 - sum(batch.tokens for batch in made) / positions
        print(
            f"natural lengths, {name}: {len(made)} batches, {100 * padding:.1f} % of positions "
            "are padding"
        )
    seconds = rounds(
        {
            "capture": lambda out: capture(model, "builtin", out),
            "output_hidden_states + torch.save": lambda out: save_hidden_states(
                model, paper, out, "torch"
            ),
            "output_hidden_states + np.save": lambda out: save_hidden_states(
                model, paper, out, "numpy"
            ),
        }
    )
    report(seconds, "capture", {name: 0.70 for name in list(seconds)[1:]})


MEASURED = """
import resource, sys, psutil, repsim
process, seen = psutil.Process(), [0]
def look(_):
    seen.append(process.memory_info().rss)
repsim.capture(corpus=sys.argv[1], out=sys.argv[2], max_tokens=256, dtype="float16", progress=look)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, max(seen))
"""


def memory(_model: Model) -> None:
    """Peak resident memory of a process that captures, and while it captures: loading the model may
    take more.
    """
    print("peak resident memory")
    for tokens in MEMORY_TOKENS:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            corpus = corpus_file(Path(folder), long_texts(tokens // 250))
            command = [sys.executable, "-c", MEASURED, corpus, f"{folder}/store.zarr"]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            whole, capturing = (int(word) / 2**20 for word in told.split())
            count = open_capture(f"{folder}/store.zarr").complete
        print(
            f"  {count:,} tokens: {whole:,.0f} MiB, {capturing:,.0f} MiB while capturing",
            flush=True,
        )


def compression(model: Model) -> None:
    """Ratio and speed of codecs on real states, one node by 1024 tokens per chunk."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "store.zarr"
        states = (
            repsim.capture(model, limit=48, dtype="float16", out=path)
            .hidden()
            .isel(token=slice(7168))
            .values
        )
        shuffled: list[tuple[Any, int, Any]] = [
            (cname, level, shuffle)
            for cname, level in (("lz4", 1), ("zstd", 1), ("zstd", 3), ("zstd", 5))
            for shuffle in ("shuffle", "bitshuffle")
        ]
        codecs: dict[str, list[Any]] = {
            "none": [],
            **{f"zstd {level}": [ZstdCodec(level=level)] for level in (1, 3)},
            **{
                f"blosc {c} {n} {s}": [BloscCodec(cname=c, clevel=n, shuffle=s, typesize=2)]
                for c, n, s in shuffled
            },
        }
        print(f"compression of {states.nbytes / 1e6:.0f} MB of float16 states")
        for name, chosen in codecs.items():
            group = zarr.create_group(Path(folder) / name)
            array = group.create_array(
                "x",
                shape=states.shape,
                chunks=(1, 1024, states.shape[2]),
                dtype="float16",
                compressors=[*chosen, Crc32cCodec()],
            ).with_config({"write_empty_chunks": True})
            began = time.perf_counter()
            for first in range(0, len(states), 7):
                array[first : first + 7] = states[first : first + 7]
            wrote = time.perf_counter() - began
            began = time.perf_counter()
            assert np.array_equal(array[:], states)
            read = time.perf_counter() - began
            size = sum(
                file.stat().st_size for file in (Path(folder) / name).rglob("*") if file.is_file()
            )
            rates = (
                f"{states.nbytes / 1e6 / wrote:.0f} MB/s written, "
                f"{states.nbytes / 1e6 / read:.0f} MB/s read"
            )
            print(f"  {name}: {size / states.nbytes:.3f} of the size, {rates}", flush=True)


def trie(model: Model) -> None:
    """All of the paper's plans on one short batch: the trie against one trace a plan. One round: it
    is long.
    """
    plans = [named.plan for named in resolve("painters", model.layers)]
    sample = tokenize(read_corpus(), model.tokenizer, TRIE_TOKENS)[0][0]
    made = batches((sample,), 0, overhead=0, waste=0)
    tracer = Tracer(model)
    whole = PlanTrie.build(plans)
    began = time.perf_counter()
    tracer.run(whole, made, lambda _: None)
    together = time.perf_counter() - began
    began = time.perf_counter()
    for plan in plans:
        tracer.run(PlanTrie.build([plan]), made, lambda _: None)
    apart = time.perf_counter() - began
    work = whole.applications / sum(plan.applications for plan in plans)
    print(f"painters on {TRIE_TOKENS} tokens: trie {together:.1f} s, plan by plan {apart:.1f} s")
    print(
        f"  trie / plan by plan: {together / apart:.3f} (at most 0.70); layer applications "
        f"{work:.3f}"
    )


def checks(model: Model) -> None:
    """What the self-checks take of the demo's capture and of its fig2 sweep, and what making a
    planned model costs.
    """
    sweep: dict[str, Any] = {"plan": "fig2", "tasks": "offline", "limit": 40}
    runs: dict[str, Callable[[str], Any]] = {
        "the demo's capture": lambda out: repsim.capture(model, dtype="float16", out=out),
        "the demo's fig2 sweep": lambda out: repsim.evaluate(model, out=out, **sweep),
    }
    for name, run in runs.items():
        with tempfile.TemporaryDirectory(dir=".") as folder, timed_checks() as spent:
            began = time.perf_counter()
            run(f"{folder}/s.zarr")
            whole = time.perf_counter() - began
        share = sum(spent) / whole
        print(f"self-checks of {name}: {share:.1%} ({sum(spent):.2f} of {whole:.1f} s)", flush=True)
    ids = torch.arange(100, 116)[None]
    ways: dict[str, Callable[[str], Any]] = {
        "forward": lambda plan: repsim.planned(model, plan, check=False)(input_ids=ids),
        "unchecked": lambda plan: repsim.planned(model, plan, check=False),
        "checked": lambda plan: repsim.planned(model, plan),
    }
    for plan in ("baseline", "skip:start=10", "looped_parallel:start=12,loops=2"):
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                with torch.inference_mode():
                    way(plan)
                seconds[name].append(time.perf_counter() - began)
        forward, made, proven = (statistics.median(seconds[name]) for name in ways)
        forward -= made
        print(
            f"planned under {plan}: made in {made / forward:.2f} forwards of 16 tokens "
            f"({forward * 1e3:.0f} ms each), "
            f"proven in {(proven - made) / forward:.2f}",
            flush=True,
        )


@contextmanager
def timed_checks() -> Iterator[list[float]]:
    """Seconds spent in self-checks inside the block, each counted where the outermost of them
    begins.
    """
    spent: list[float] = []
    inside = False
    places: list[tuple[Any, str]] = [
        (Tracer, "prove"),
        (tracing, "prove_new_sublayers"),
        (Tracer, "_prove_logits"),
    ]
    places += [(capture_run, "_try_batches"), (LikelihoodScorer, "__init__")]
    before = [(where, name, getattr(where, name)) for where, name in places]

    def timed(check: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return check(*args, **options)
            inside, began = True, time.perf_counter()
            try:
                return check(*args, **options)
            finally:
                inside = False
                spent.append(time.perf_counter() - began)

        return run

    for where, name, check in before:
        setattr(where, name, timed(check))
    try:
        yield spent
    finally:
        for where, name, check in before:
            setattr(where, name, check)


def capture(model: Model, corpus: str, folder: Path, max_tokens: int | None = None) -> None:
    out = folder / "store.zarr"
    repsim.capture(model, corpus=corpus, max_tokens=max_tokens, dtype="float16", out=out)


def main() -> None:
    model = load()
    print(
        f"{model.name}, {model.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for part in (equal, natural, trie, memory, compression, checks):
        if len(sys.argv) == 1 or part.__name__ in sys.argv[1:]:
            part(model)


if __name__ == "__main__":
    main()
