"""Ratios of capture times, each pair measured in one run on the embedded model. Run by hand:

    .venv/bin/python benchmarks/capture.py [equal] [natural] [trie]

Rounds alternate between the ways, so that a slow moment of the machine hits all of them; the median over rounds counts.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import repsim
from repsim.corpus import Batch, Sample, batches, read_corpus, tokenize
from repsim.families import resolve
from repsim.models import Model, load
from repsim.plans import PlanTrie
from repsim.trace import Tracer

ROUNDS = 5
EQUAL_SAMPLES, EQUAL_LENGTH = 48, 128
PAPER_BATCH = 8
TRIE_TOKENS = 64

Ways = dict[str, Callable[[Path], None]]


def medians(ways: Ways) -> dict[str, float]:
    """Seconds that each way takes, median over rounds; each writes into a folder of its own."""
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
    return {name: statistics.median(values) for name, values in seconds.items()}


def stack_forward(model: Model, made: list[Batch]) -> None:
    """A bare forward of the stack: no cache, no logits, nothing kept."""
    with torch.inference_mode():
        for batch in made:
            ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.mask).long()
            model.module.model(input_ids=ids, attention_mask=mask, use_cache=False)


def save_hidden_states(model: Model, made: list[Batch], folder: Path) -> None:
    """The paper's way: every hidden state by `output_hidden_states`, one torch.save a batch."""
    with torch.inference_mode():
        for number, batch in enumerate(made):
            ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.mask).long()
            output = model.module(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            torch.save(output.hidden_states, folder / f"{number}.pt")


def as_they_come(samples: tuple[Sample, ...]) -> Iterator[Batch]:
    """Batches of eight in the corpus's order."""
    for first in range(0, len(samples), PAPER_BATCH):
        eight = samples[first : first + PAPER_BATCH]
        yield from batches(eight, PAPER_BATCH * max(map(len, eight)), 0)


def equal(model: Model) -> None:
    """Samples of one length: no padding for anybody."""
    with tempfile.TemporaryDirectory() as folder:
        _equal(model, Path(folder))


def _equal(model: Model, folder: Path) -> None:
    corpus = folder / "equal.jsonl"
    long = {sample.key for sample in _samples(model) if len(sample) >= EQUAL_LENGTH}
    texts = [{"text": text.text} for text in read_corpus().texts if text.key in long]
    corpus.write_text("\n".join(map(json.dumps, texts[:EQUAL_SAMPLES])))
    samples, _ = tokenize(read_corpus(str(corpus)), model.tokenizer, EQUAL_LENGTH)
    made = list(batches(samples, 2048, 0))
    times = medians(
        {
            "bare": lambda _: stack_forward(model, made),
            "capture": lambda out: _capture(model, str(corpus), out, max_tokens=EQUAL_LENGTH),
            "torch.save": lambda out: save_hidden_states(model, made, out),
        }
    )
    _report("equal lengths, capture / bare forward of the stack", times["capture"] / times["bare"], 1.10, times)
    _report("equal lengths, capture / output_hidden_states + torch.save", times["capture"] / times["torch.save"], 0.95)


def natural(model: Model) -> None:
    """The built-in corpus, 43 to 195 words a passage; padding counts."""
    unsorted = sorted(_samples(model), key=lambda sample: _order(sample.key))
    paper = list(as_they_come(tuple(unsorted)))
    times = medians(
        {
            "capture": lambda out: _capture(model, "builtin", out),
            "paper": lambda out: save_hidden_states(model, paper, out),
        }
    )
    _report("natural lengths, capture / the paper's way, batches of 8", times["capture"] / times["paper"], 0.75, times)


def trie(model: Model) -> None:
    """All of the paper's plans on one short batch: the trie against one trace a plan. One round: it is long."""
    plans = [named.plan for named in resolve("painters", model.layers)]
    sample = _samples(model)[0]
    (batch,) = batches((Sample(sample.key, sample.token_ids[:TRIE_TOKENS]),), TRIE_TOKENS, 0)
    tracer = Tracer(model)
    whole = PlanTrie.build(plans)
    began = time.perf_counter()
    tracer.run(whole, batch, lambda _: None)
    together = time.perf_counter() - began
    began = time.perf_counter()
    for plan in plans:
        tracer.run(PlanTrie.build([plan]), batch, lambda _: None)
    apart = time.perf_counter() - began
    work = whole.applications / sum(plan.applications for plan in plans)
    _report("painters, trie / plan by plan", together / apart, 0.70, {"trie": together, "plan by plan": apart})
    print(f"    layer applications, trie / plan by plan: {work:.3f}")


def _capture(model: Model, corpus: str, folder: Path, max_tokens: int | None = None) -> None:
    repsim.capture(model, corpus=corpus, max_tokens=max_tokens, out=folder / "store.zarr")


def _samples(model: Model) -> tuple[Sample, ...]:
    return tokenize(read_corpus(), model.tokenizer, model.context_length)[0]


def _order(key: str) -> int:
    return [text.key for text in read_corpus().texts].index(key)


def _report(name: str, ratio: float, bound: float, times: dict[str, float] | None = None) -> None:
    detail = "".join(f", {way} {seconds:.2f} s" for way, seconds in (times or {}).items())
    print(f"{name}: {ratio:.3f} (at most {bound:.2f}){detail}", flush=True)


def main() -> None:
    model = load()
    print(f"{model.name}, {model.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for part in (equal, natural, trie):
        if len(sys.argv) == 1 or part.__name__ in sys.argv[1:]:
            part(model)


if __name__ == "__main__":
    main()
