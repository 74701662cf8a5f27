"""How fast are the analyses, against plain ways to the same numbers? Run by hand, on a quiet
machine:

    .venv/bin/python benchmarks/similarity.py [cosine] [cka] [suite]

`cosine`: the matrix of all 31 states over 50,000 tokens from disk, against the double loop of
`torch.nn.functional.cosine_similarity` (over the same states loaded as float32; loading is given
apart) and against scikit-learn's paired cosines (of some pairs, scaled to all). `cka`: minibatch
CKA of all pairs against a plain loop over batches and pairs (some of both, scaled). `suite`: every
analysis on the demo's capture.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import torch
from capture import corpus_file, long_texts
from sklearn.metrics.pairwise import paired_cosine_distances

import repsim
from repsim.analyses import cosine, similarity
from repsim.measures import sink_tokens
from repsim.schema import ANALYSES, CAPTURE

ROUNDS = 5
TEXTS = 168  # 50,550 tokens
SKLEARN_PAIRS, CKA_SAMPLES, CKA_PAIRS = 16, 8, 32
STORE = "cache/captures/smollm2-135m-builtin-baseline.zarr"


def seconds(way: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each round, sorted, after one that warms up where there are several."""
    times = []
    for _ in range(rounds + (rounds > 1)):
        began = time.perf_counter()
        way()
        times.append(time.perf_counter() - began)
    return sorted(times[rounds > 1 :])


def median(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s ({times[0]:.2f} to {times[-1]:.2f})"


def rates() -> dict[str, float]:
    """What the machine can do, in float32: operations a second of a large matrix product; of this
    shape; bytes read.
    """
    square = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)
    flat = square.reshape(32, -1)
    product = min(seconds(lambda: square @ square))
    narrow = min(seconds(lambda: flat @ flat.T))
    return {"product": 2 * 4096**3 / product, "narrow": 2 * 32 * flat.size / narrow}


def read_rate(files: list[Path]) -> float:
    """Bytes a second of `dd` past the page cache, which reads every chunk file in two processes
    side by side.
    """

    def read() -> None:
        halves = [files[half::2] for half in (0, 1)]
        script = 'for file; do dd if="$file" of=/dev/null bs=2M iflag=direct status=none; done'
        running = [subprocess.Popen(["sh", "-c", script, "sh", *map(str, half)]) for half in halves]
        assert not any(process.wait() for process in running)

    return sum(file.stat().st_size for file in files) / min(seconds(read, 3))


def cosine_benchmark(capture: repsim.Capture) -> None:
    tokens, states, units = (
        capture.complete,
        len(capture.steps("baseline")),
        capture.dataset.attrs["units"],
    )
    print(
        f"cosine matrix of {states} states, {tokens:,} tokens, {units} units, from disk", flush=True
    )
    ours = seconds(lambda: cosine.compute(capture, resamples=1000))
    once = seconds(lambda: cosine.compute(capture, resamples=2))
    print(f"  repsim, with 1,000 resamples: {median(ours)}; with 2: {median(once)}", flush=True)
    began = time.perf_counter()
    loaded = torch.from_numpy(capture.hidden().values).float()
    print(f"  loading as float32: {time.perf_counter() - began:.2f} s", flush=True)
    matrix = np.empty((states, states))

    def loop() -> None:
        for i in range(states):
            for j in range(states):
                matrix[i, j] = torch.nn.functional.cosine_similarity(
                    loaded[i], loaded[j], dim=-1
                ).mean()

    theirs = seconds(loop, 1)
    difference = np.abs(cosine.compute(capture)["cosine"].values - matrix).max()
    print(
        f"  double loop over the loaded states: {median(theirs)}; largest difference "
        f"{difference:.1e}",
        flush=True,
    )
    pairs = [(i, (7 * i + 3) % states) for i in range(SKLEARN_PAIRS)]
    arrays = loaded.numpy()

    def paired() -> None:
        for i, j in pairs:
            assert (
                abs(1 - paired_cosine_distances(arrays[i], arrays[j]).mean() - matrix[i, j]) < 1e-5
            )

    sklearn = statistics.median(seconds(paired, 3)) / len(pairs) * states * (states - 1) / 2
    print(
        f"  scikit-learn, {len(pairs)} pairs scaled to {states * (states - 1) // 2}: "
        f"{sklearn:.1f} s"
    )
    mine = statistics.median(once)
    print(f"  double loop / repsim: {theirs[0] / statistics.median(ours):.0f} (at least 100)")
    print(f"  scikit-learn / repsim: {sklearn / statistics.median(ours):.1f}")
    found = rates()
    files = sorted(Path(capture.path).glob("hidden/c/*/*/0"))
    stored = sum(file.stat().st_size for file in files)
    rate = read_rate(files)
    operations = 2 * states * states * tokens * units
    print(
        f"  machine: product {found['product'] / 1e9:.0f} GFLOP/s, product of 32 rows "
        f"{found['narrow'] / 1e9:.0f}, "
        f"dd {rate / 1e9:.2f} GB/s"
    )
    print(
        f"  repsim: {operations / mine / 1e9:.0f} GFLOP/s = "
        f"{operations / mine / found['product']:.0%} of a product's, "
        f"{operations / mine / found['narrow']:.0%} of 32 rows'; {stored / mine / 1e9:.2f} GB/s = "
        f"{stored / mine / rate:.0%} of dd's",
        flush=True,
    )


def plain_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased HSIC of Song et al. 2012 (eq. 5), as written there."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    n, one = len(k), torch.ones(len(k), 1, dtype=k.dtype)
    trace = torch.trace(k @ l)
    middle = (one.T @ k @ one) * (one.T @ l @ one) / (n - 1) / (n - 2)
    return (trace + middle - 2 / (n - 2) * (one.T @ k @ l @ one)).item() / (n * (n - 3))


def cka_benchmark(capture: repsim.Capture) -> None:
    states = len(capture.steps("baseline"))
    print(
        f"minibatch CKA of all pairs of {states} states, {capture.complete:,} tokens, from disk",
        flush=True,
    )
    ours = seconds(lambda: similarity.compute(capture, measure="minibatch-cka"), 3)
    print(f"  repsim, with 1,000 resamples: {median(ours)}", flush=True)
    few: list[torch.Tensor] = []
    for sample in capture.each_sample("baseline"):
        kept = sample[:, ~sink_tokens(sample)]
        if len(few) < CKA_SAMPLES:
            few.append(torch.from_numpy(kept.astype(np.float32)))
    pairs = [(i % states, (7 * i + 3) % states) for i in range(CKA_PAIRS)]
    began = time.perf_counter()
    for batch in few:
        for first in range(0, batch.shape[1], similarity.BATCH):
            part = batch[:, first : first + similarity.BATCH]
            if part.shape[1] >= 4:
                for i, j in pairs:
                    for a, b in ((i, j), (i, i), (j, j)):
                        plain_hsic(part[a], part[b])
    share = (
        sum(batch.shape[1] for batch in few)
        / capture.complete
        * len(pairs)
        / (states * (states - 1) / 2)
    )
    plain = (time.perf_counter() - began) / share
    print(f"  plain loop, {len(few)} samples and {len(pairs)} pairs scaled to all: {plain:.0f} s")
    print(f"  plain loop / repsim: {plain / statistics.median(ours):.0f}", flush=True)


def suite() -> None:
    print(f"every analysis of captures with its defaults on {STORE}, a process each", flush=True)
    total = 0.0
    analyses = {entry.name: entry.load() for entry in entry_points(group=ANALYSES)}
    for name in sorted(
        name for name, module in analyses.items() if getattr(module, "READS", CAPTURE) == CAPTURE
    ):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-c",
                "from repsim.cli.main import run; run()",
                "analyze",
                name,
                STORE,
            ]
            run = partial(subprocess.run, [*command, "--quiet", "--figures", folder], check=True)
            (took,) = seconds(run, 1)
        total += took
        print(f"  {name}: {took:.1f} s", flush=True)
    print(f"  all: {total:.0f} s (at most 120)", flush=True)


def main(wanted: list[str]) -> None:
    wanted = wanted or ["cosine", "cka", "suite"]
    if {"cosine", "cka"} & set(wanted):
        with tempfile.TemporaryDirectory(prefix="repsim-benchmark-", dir=".") as folder:
            corpus = corpus_file(Path(folder), long_texts(TEXTS))
            out = Path(folder) / "s.zarr"
            capture = repsim.capture("smollm2-135m", corpus=corpus, dtype="float16", out=out)
            if "cosine" in wanted:
                cosine_benchmark(capture)
            if "cka" in wanted:
                cka_benchmark(capture)
    if "suite" in wanted:
        suite()


if __name__ == "__main__":
    main(sys.argv[1:])
