"""How long are the states of a plan? Mean Euclidean norm of the residual stream after each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from repsim import measures, stats
from repsim.schema import STATE
from repsim.stats import results, summaries
from repsim.stats.per_sample import SampleStatistic, StateSource, collect, runs_anywhere

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"norm": "mean norm"}


@runs_anywhere
def _norm_sums(states: Any) -> Any:
    """Sum over tokens of the norm of each state: `[state, token, unit]` → `[state]`, float64."""
    return measures.norms(states).sum(-1)


# What a capture without states computes from each sample for this analysis.
STATISTICS = {"sum": _norm_sums}


def compute(capture: StateSource, *, plan: str = "baseline", resamples: int = 1000) -> xr.Dataset:
    """Mean over tokens of the Euclidean norm of each state of a plan.

        (1 / T) Σ_t |h_i[t]|,   T tokens

    At least 0, in the units of the residual stream. In the middle layers of many decoders the first
    token's state is tens to hundreds of times longer than the others' (attention sinks), and the
    mean counts it in full.

    Standard error and interval come from a bootstrap over samples; NaN where there is only one.

    Args:
        capture: an open capture.
        plan: plan whose states are measured.
        resamples: draws of the bootstrap.
    Returns:
        `norm`, `standard_error`, `low` and `high` over state, with the coordinate `layer`.
    Raises:
        RepsimError: the plan is not in the capture, or nothing is finished.
    """
    results.check_counts(resamples=resamples)
    tokens, sums = collect(capture, plan, SampleStatistic("norms.sum", _norm_sums))
    mean = stats.bootstrap(stats.ratio_of_sums(sums, tokens), len(tokens), resamples=resamples)
    description = "Mean over tokens of the Euclidean norm of each state."
    return xr.Dataset(
        results.variables("norm", (STATE,), mean, bounds=(0, np.inf)),
        coords=results.layer_coordinate(capture.steps(plan)),
        attrs=results.attributes(
            capture,
            plan,
            "norms",
            description,
            tokens=int(tokens.sum()),
            samples=len(tokens),
            resamples=resamples,
        ),
    )


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """Norms of a few states from the first to the last, and of the longest."""
    places = summaries.spread_places(result.sizes[STATE])
    finite = np.nan_to_num(result["norm"].values, nan=-np.inf, posinf=-np.inf)
    rows = [
        {"layer": result["layer"].values[place], **summaries.pick(result, "norm", state=place)}
        for place in sorted({*places, int(finite.argmax())})
    ]
    return pd.DataFrame(rows)


def plot(*datasets: xr.Dataset) -> Figure:
    """Norm against state, one line per result; see `repsim.plotting.profiles`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.profiles(datasets, LABELS, logarithmic=["norm"])
