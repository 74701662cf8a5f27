"""Does repsim agree on a device with itself on the CPU, and with what others compute there?

The sections `agree` and `compiled` of `benchmarks/gpu.py`, on a small random model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CompileConfig

import repsim
from gpu_run import Run, Shape, evaluation_settings, generate, tasks_of
from repsim.analyses import cosine
from repsim.models import Model

SMALL = Shape(*(128, 256, 8, 4, torch.float32, 12, 96, 2048, 12, (3, 12), (8,), 0))
SMALL_PLANS = (
    "baseline",
    "skip:start=2",
    "reverse:start=2",
    "parallel:start=2",
    "looped_parallel:start=2,loops=2",
    "middle_repeat:start=2",
    "random:start=1,seed=3",
    "drop:layer=3,part=attn",
    "drop:layer=3,part=mlp",
    "switch:layer=1",
)


def relative(values: NDArray[Any], expected: NDArray[Any]) -> float:
    """Norm of the difference as a share of the norm."""
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def agree(run: Run) -> None:
    """A small float32 model on the CPU and on the device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu, model = run.llama(SMALL, "cpu"), run.llama(SMALL, "cpu")
    model.module.to(run.device)
    plans = SMALL_PLANS if run.is_card else SMALL_PLANS[:4]
    options: dict[str, Any] = {"plan": plans, "corpus": run.texts, "limit": 8 if run.is_card else 2}
    options |= {"max_tokens": SMALL.length, "dtype": "float32"}
    with run.temporary(run.folder) as folder:
        # States and log-probabilities.
        there = repsim.capture(on_cpu, out=folder / "cpu.zarr", logprobs=True, **options)
        here = repsim.capture(model, out=folder / "device.zarr", logprobs=True, **options)
        states, logprobs = (
            [store.dataset[name].values for store in (here, there)]
            for name in ("hidden", "logprob")
        )
        run.check("states, device against CPU, relative", relative(*states), 1e-5)
        apart = float(np.nanmax(np.abs(logprobs[0] - logprobs[1])))
        run.check("log-probabilities, device against CPU, nats", apart, 1e-4)

        # Statistics that were made without keeping states.
        kept: dict[str, Any] = {"keep": "none", "statistics": "cosine,norms"}
        statistics = repsim.capture(model, out=folder / "statistics.zarr", **options, **kept)
        for plan in ("baseline", "parallel:start=2"):
            results = [cosine.compute(store, plan=plan)["cosine"] for store in (statistics, there)]
            apart = float(np.abs(results[0] - results[1]).max())
            run.check(f"cosines without states, {plan}, against the CPU's", apart, 1e-6)

        _agree_offloaded(run, model, folder, options, states[0])
    _agree_generation(run, model, plans)
    _agree_scores(run, model, plans[:4] if run.is_card else plans[:2])


def _agree_offloaded(
    run: Run, model: Model, folder: Path, options: dict[str, Any], states: NDArray[Any]
) -> None:
    """Half of the layers on the CPU, brought to the card for each call."""
    if not run.is_card:
        run.say("half of the layers offloaded: needs a card")
        return
    model.module.save_pretrained(folder / "model")
    run.tokenizer.save_pretrained(folder / "model")
    places: dict[str, int | str] = dict.fromkeys(
        ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), 0
    )
    half = SMALL.layers // 2
    places |= {f"model.layers.{n}": 0 if n < half else "cpu" for n in range(SMALL.layers)}
    parts = repsim.models.load(str(folder / "model"), device_map=places)
    store = repsim.capture(parts, out=folder / "parts.zarr", logprobs=True, **options)
    apart = relative(store.dataset["hidden"].values, states)
    run.check("half of the layers offloaded, relative", apart, 1e-5)


def _agree_generation(run: Run, model: Model, plans: Sequence[str]) -> None:
    count, tokens = SMALL.written
    ids = torch.randint(3, len(run.tokenizer), (count, 17), device=run.device)
    differing = []
    for plan in plans:
        planned = repsim.planned(model, plan)
        cached, plain = (generate(planned, ids, tokens, use_cache=use) for use in (True, False))
        if not torch.equal(cached, plain):
            differing.append(plan)
    run.check("plans whose cached text differs from the uncached", len(differing), 0)


def _agree_scores(run: Run, model: Model, plans: Sequence[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    settings = evaluation_settings(run, min(SMALL.rows, run.shape.rows))
    instances = [
        instance for task in tasks_of(model, settings) for instance in task._task.instances
    ]
    with run.temporary(run.folder) as folder:
        scores = repsim.evaluate(model, plan=plans, out=folder / "s.zarr", **settings)
        values = scores.dataset["log_likelihood"].values
    worst = 0.0
    for row, plan in enumerate(plans):
        planned = repsim.planned(model, plan)
        harness = HFLM(pretrained=planned, tokenizer=run.tokenizer, batch_size=8)
        answers = harness.loglikelihood(instances, disable_tqdm=True)
        worst = max(worst, float(np.abs(values[row] - [number for number, _ in answers]).max()))
    run.check(f"log-likelihoods of {len(plans)} plans against HFLM, nats", worst, 1e-3)


def compiled(run: Run) -> None:
    """Static caches and their compiled forward, plain and under a plan, on a small model."""
    model = run.llama(SMALL, run.device)
    ids = torch.randint(3, len(run.tokenizer), (2, 16), device=run.device)
    # Where there is no card there may be no compiler either.
    settings = CompileConfig() if run.is_card else CompileConfig(backend="eager", mode="default")
    settings._compile_all_devices = True  # type: ignore[assignment]  # generate asks for a card
    modules = {
        "plain": model.module,
        **{plan: repsim.planned(model, plan) for plan in SMALL_PLANS[3:4]},
    }
    for name, module in modules.items():
        expected = generate(module, ids, 8)
        static = generate(module, ids, 8, cache_implementation="static", disable_compile=True)
        run.say(f"static cache, {name}: {'equal' if torch.equal(static, expected) else 'DIFFERS'}")
        options: dict[str, Any] = {"cache_implementation": "static", "compile_config": settings}
        seconds = run.timed(partial(generate, module, ids, 8, **options))
        same = torch.equal(generate(module, ids, 8, **options), expected)
        run.say(f"compiled, {name}: {'equal' if same else 'DIFFERS'}, {seconds:.1f} s at first")
