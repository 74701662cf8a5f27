"""What would a plan's loss of score buy? Depth and measured time of every plan against its score.

Layers of one parallel step do not wait for each other: on enough devices a step takes as long as
its slowest layer, and a plan as long as its steps, its critical path. What is measured here runs
one layer after another on one device.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.analyses import degradation
from repsim.errors import ModelError
from repsim.plans import Plan
from repsim.registry import AnalysisKind
from repsim.schema import PLAN
from repsim.stats import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repsim.evaluation.reader import Scores
    from repsim.models import Model

KIND = AnalysisKind.SCORES
KEPT = ("mean", "mean_standard_error", "mean_low", "mean_high")


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
    parallel layers run one after another.

    Args:
        scores: what `repsim evaluate` stored, the baseline among it.
        metric: as in the analysis degradation.
        model: the model to time, by name or folder; by default the one that the scores are of.
        tokens: length of the text that is timed.
        repeats: forwards of each plan; 0 measures nothing.
        resamples: draws of the bootstrap of the scores.
        seed: of the draws.
    Returns:
        `applications`, `critical_path`, `milliseconds`, and `mean` with `mean_standard_error`,
        `mean_low` and `mean_high` over variant, with the coordinates of the analysis degradation;
        of the random plans of a start, the first is timed.
    Raises:
        RepsimError: the model cannot be loaded, is another one, or has fewer positions than
            `tokens`.
    """
    results.check_counts(repeats=repeats, tokens=tokens)
    found = degradation.compute(scores, metric=metric, resamples=resamples, seed=seed)
    by_text = {named.plan.text: named.plan for named in scores.plans}
    texts = found[PLAN].values.tolist()
    names = [str(name) for name in found["plan_name"].values]
    variants = degradation.variants(names, texts, scores.layers)
    plans = [by_text[texts[variant.plans[0]]] for variant in variants]
    seconds = np.full(len(plans), np.nan)
    if repeats:
        seconds = _timed(_load(scores, model), plans, tokens, repeats)
    dims = (degradation.VARIANT,)
    coords = {name: values for name, values in found.coords.items() if values.dims == dims}
    return xr.Dataset(
        {
            **{name: found[name] for name in KEPT},
            "applications": (dims, np.array([plan.applications for plan in plans])),
            "critical_path": (dims, np.array([len(plan) for plan in plans])),
            "milliseconds": (dims, 1000 * seconds / tokens),
        },
        coords,
        {
            **found.attrs,
            "analysis": "latency",
            "description": "Score against critical path and measured time of each plan.",
            "benchmarks": ", ".join(
                str(task) for task in found["task"].values[found["valid"].values == 1]
            ),
            "tokens": tokens,
            "repeats": repeats,
        },
    )


def _load(scores: Scores, name: str | None) -> Model:
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


def _timed(model: Model, plans: list[Plan], tokens: int, repeats: int) -> NDArray[np.float64]:
    """Seconds of a forward under each plan, `[plan]`; they take turns, so that no drift of the
    machine favours one.
    """
    import torch

    from repsim.models.planned import planned

    if tokens > model.context_length:
        raise ModelError(f"tokens={tokens}: {model.name} takes at most {model.context_length}")
    most = min(1000, model.module.config.get_text_config().vocab_size)
    ids = torch.randint(0, most, (1, tokens), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    found = np.empty((repeats, len(plans)))
    with torch.inference_mode():
        model.module(input_ids=ids)
        for turn in range(repeats):
            for index, plan in enumerate(plans):
                # Its time is asked for, not what it says.
                module = planned(model, plan, check=False)
                began = time.perf_counter()
                logits: Any = module(input_ids=ids, use_cache=False).logits
                logits[0, -1, 0].item()  # waits for a GPU
                found[turn, index] = time.perf_counter() - began
    return np.median(found, axis=0)


def plot(found: xr.Dataset) -> Figure:
    """Score against critical path, and against measured time; see `repsim.plotting.latency`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.latency(found)
