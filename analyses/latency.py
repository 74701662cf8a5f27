"""What would a plan's loss of score buy? Depth and measured time of every plan against its score.

Layers of one parallel step do not wait for each other: on enough devices a step takes as long as
its slowest layer, and a plan as long as its steps, its critical path. What is measured here runs
one layer after another on one device.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from repsim.analyses import degradation
from repsim.errors import ModelError
from repsim.plans import Plan
from repsim.registry import AnalysisKind
from repsim.stats import results, summaries
from repsim.studies.painters import find_variants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repsim.evaluation.reader import Scores
    from repsim.models import Model

KIND = AnalysisKind.SCORES
OF_DEGRADATION = ("mean", "mean_standard_error", "mean_low", "mean_high")
MOST_IDS = 1000  # token ids that are drawn for the text that is timed


def compute(
    scores: Scores,
    *,
    metric: str = "acc",
    model: str | None = None,
    tokens: int = 64,
    repeats: int = 3,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Layer applications, critical path and time per token of every plan, and its mean normalised
    score.

    `critical_path` counts a parallel step once however many layers it has; `applications` counts
    each layer. `milliseconds` is the time of a forward of the model under the plan, embeddings and
    head included, for each of its tokens: the median of the repeats, on this machine, where
    parallel layers run one after another; `milliseconds_low` and `milliseconds_high` are those of
    the fastest and the slowest repeat.

    Args:
        scores: what `repsim evaluate` stored, the baseline among it.
        metric: as in the analysis degradation.
        model: the model to time, by name or folder; by default the one that the scores are of.
        tokens: length of the text that is timed.
        repeats: forwards under each plan; 0 measures nothing.
        resamples: draws of the bootstrap of the scores.
        seed: of the draws.
    Returns:
        `applications`, `critical_path`, `milliseconds` with `milliseconds_low` and
        `milliseconds_high`, and `mean` with `mean_standard_error`, `mean_low` and `mean_high` over
        variant, with the coordinates of the analysis degradation;
        of the random plans of a start, the first is timed.
    Raises:
        ModelError: the model cannot be loaded, has other weights than the scores are of, or has
            fewer positions than `tokens`.
    """
    results.check_counts(repeats=repeats, tokens=tokens)

    # One plan per variant: of the random plans of a start, the first.
    harm = degradation.compute(scores, metric=metric, resamples=resamples, seed=seed)
    plan_of = {named.plan.text: named.plan for named in scores.plans}
    names, texts = harm["plan_name"].values.tolist(), results.plan_texts(harm)
    variants = find_variants(names, texts, scores.layers)
    plans = [plan_of[texts[variant.plans[0]]] for variant in variants]

    # What each costs.
    seconds = np.full((1, len(plans)), np.nan)
    if repeats:
        seconds = _time_plans(_load(scores, model), plans, tokens, repeats)
    dims = (degradation.VARIANT,)
    coords = {name: values for name, values in harm.coords.items() if values.dims == dims}
    valid_tasks, valid_examples = (
        harm[name].values[harm["valid"].values == 1] for name in ("task", "examples")
    )
    return xr.Dataset(
        {
            **{name: harm[name] for name in OF_DEGRADATION},
            "applications": (dims, np.array([plan.applications for plan in plans])),
            "critical_path": (dims, np.array([len(plan) for plan in plans])),
            "milliseconds": (dims, 1000 * np.median(seconds, axis=0) / tokens),
            "milliseconds_low": (dims, 1000 * seconds.min(0) / tokens),
            "milliseconds_high": (dims, 1000 * seconds.max(0) / tokens),
        },
        coords,
        {
            **harm.attrs,
            "analysis": "latency",
            "description": "Score against critical path and measured time of each plan.",
            "benchmarks": ", ".join(str(task) for task in valid_tasks),
            "benchmark_examples": ", ".join(str(count) for count in valid_examples),
            "tokens": tokens,
            "repeats": repeats,
        },
    )


def _load(scores: Scores, name: str | None) -> Model:
    """The model that the scores are of, as their last command loaded it, or that of a name.

    Raises:
        ModelError: it cannot be loaded, or its weights are others than the scores are of.
    """
    from repsim.models import load

    request = scores.dataset.attrs["requests"][-1]
    options = {
        key: request[key] for key in ("revision", "stack", "trust_remote_code") if key in request
    }
    model = load(name or request["model"], dtype=scores.identity["compute_dtype"], **options)
    if model.weights_digest != scores.identity["weights"]:
        raise ModelError(
            f"{model.name}: other weights than the scores are of; name the right ones with --model"
        )
    return model


def _time_plans(model: Model, plans: list[Plan], tokens: int, repeats: int) -> NDArray[np.float64]:
    """Seconds of each forward under each plan, `[repeat, plan]`.

    Plans take turns, so that no drift of the machine favours one.
    """
    import torch

    from repsim.models.planned import planned

    if tokens > model.context_length:
        raise ModelError(f"tokens={tokens}: {model.name} takes at most {model.context_length}")

    # A text of random tokens, the same for all plans.
    vocabulary = model.module.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(MOST_IDS, vocabulary), (1, tokens), generator=generator)
    ids = ids.to(model.device)

    seconds = np.empty((repeats, len(plans)))
    with torch.inference_mode():
        model.module(input_ids=ids)  # what only a first forward takes is not timed
        for turn in range(repeats):
            for index, plan in enumerate(plans):
                # No check: the time is wanted, not the output.
                module = planned(model, plan, check=False)
                start = time.perf_counter()
                logits: Any = module(input_ids=ids, use_cache=False).logits
                logits[0, -1, 0].item()  # waits for a GPU
                seconds[turn, index] = time.perf_counter() - start
    return seconds


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """The plans that no other plan of as short a critical path beats, the shortest last; of many, a
    few.
    """
    path, mean = result["critical_path"].values, result["mean"].values
    best: list[int] = []
    for row in sorted(np.flatnonzero(~np.isnan(mean)).tolist(), key=lambda row: path[row]):
        if not best or mean[row] > mean[best[-1]]:
            if best and path[row] == path[best[-1]]:
                best.pop()
            best.append(row)
    best.reverse()
    shown = [best[place] for place in summaries.spread_places(len(best), 12)] if best else []
    table = pd.DataFrame(
        [
            {
                "plan": str(result[degradation.VARIANT].values[row]),
                **{
                    name: result[name].values[row].item()
                    for name in ("critical_path", "applications", "milliseconds")
                },
                **summaries.pick(result, "mean", variant=row),
            }
            for row in shown
        ]
    )
    table.attrs["note"] = (
        "plans that no plan with as short a critical path beats; mean: normalised score over tasks."
    )
    return table


def plot(result: xr.Dataset) -> Figure:
    """Score against critical path, and against measured time; see `repsim.plotting.latency`.

    Args:
        result: what `compute` gave.
    """
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.latency(result)
