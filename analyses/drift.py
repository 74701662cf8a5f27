"""How far does a plan take the states from where the baseline's were, at the same tokens?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from repsim import stats
from repsim.measures import norms, token_cosine_totals
from repsim.schema import STATE
from repsim.stats import results, summaries
from repsim.stats.per_sample import SampleStatistic, StateSource, collect_sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAT_MAPS = True  # of its figure, for --vmin and --vmax
STATE_BASELINE = "state_baseline"

log = logging.getLogger("repsim")


def compute(capture: StateSource, *, plan: str = "baseline", resamples: int = 1000) -> xr.Dataset:
    """Cosine of every state of a plan with every state of the baseline, and its distance from its
    counterpart.

    A state's counterpart is the baseline's state after the same layer; the last state's is the
    last. Parallel steps and sublayers have none, and their distance is NaN. With h the plan's
    states, g the baseline's and T tokens,

        cosine      (1 / T) Σ_t h_i[t] · g_j[t] / (|h_i[t]| |g_j[t]|)     -1 to 1
        distance    (1 / T) Σ_t |h_i[t] - g_j[t]| / |g_j[t]|              0 (the same) upwards

    Standard errors and intervals come from a bootstrap over samples.

    A zero vector has neither a direction nor a length to divide by: its token is left out of the
    cosines of that state, and of the distance from it, and of no others. `left_out_tokens` is the
    largest number of tokens that any number is without. Anything not finite stays NaN.

    Args:
        capture: an open capture that keeps its states and holds the baseline.
        plan: plan whose states are compared with the baseline's.
        resamples: draws of the bootstrap.
    Returns:
        `cosine`, `cosine_standard_error`, `cosine_low` and `cosine_high` over (state,
        state_baseline); `distance`, `distance_standard_error`, `distance_low` and `distance_high`
        over state; coordinates `layer`, `layer_baseline`.
    Raises:
        RepsimError: the plan or the baseline is not in the capture, or its states were not kept.
    """
    results.check_counts(resamples=resamples)
    steps, base = capture.steps(plan), capture.steps("baseline")
    if steps == base:
        log.warning(
            "drift: shows the baseline against itself; --plan PLAN shows another one, --plan all "
            "every plan of the capture"
        )
    paired, partners = counterparts(steps, base)
    states = len(steps)

    # Per sample: sums of cosines and distances over tokens, and how many tokens each is over.
    def sums(both: NDArray[Any]) -> NDArray[np.float64]:
        cosines, defined = (total[:states, states:].ravel() for total in token_cosine_totals(both))
        distances, counts = np.zeros((2, len(paired)))
        # One pair at a time takes less memory.
        for row, (state, partner) in enumerate(zip(paired, states + partners, strict=True)):
            length = norms(both[partner])
            nonzero = length != 0
            with np.errstate(invalid="ignore"):  # of infinities
                apart = norms(both[state].astype(np.float32) - both[partner])
                share = np.divide(apart, length, where=nonzero, out=np.zeros_like(length))
                distances[row] = share.sum()
            counts[row] = nonzero.sum()
        return np.concatenate([cosines, distances, defined, counts])

    cosines = states * len(base)
    tokens, values, counts = collect_sums(
        capture,
        [plan, "baseline"],
        SampleStatistic("drift.sums", sums),
        size=cosines + len(paired),
    )

    # Divide sum by sum, and give the cosines and the distances their axes.
    means = stats.bootstrap(stats.ratio_of_sums(values, counts), len(tokens), resamples=resamples)
    cosine = means.map(
        lambda array: array[..., :cosines].reshape(*array.shape[:-1], states, len(base))
    )
    distance = means.map(lambda array: _spread(array[..., cosines:], paired, states))
    return xr.Dataset(
        {
            **results.variables("cosine", (STATE, STATE_BASELINE), cosine, "cosine_", (-1, 1)),
            **results.variables("distance", (STATE,), distance, "distance_", (0, np.inf)),
        },
        coords={
            **results.layer_coordinate(steps),
            **results.layer_coordinate(base, STATE_BASELINE),
        },
        attrs=results.attributes(
            capture,
            plan,
            "drift",
            "States of a plan against the baseline's at the same tokens.",
            left_out=int((tokens[:, None] - counts).sum(0).max()),
            tokens=int(tokens.sum()),
            samples=len(tokens),
            resamples=resamples,
        ),
    )


def counterparts(steps: list[str], base: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The states with a counterpart in the baseline, and these counterparts.

    Args:
        steps: what each state of the plan is the output of.
        base: what each state of the baseline is the output of.
    Returns:
        Indices into `steps` and into `base`, `[pair]` each, int64.
    Example:
        >>> states, partners = counterparts(["embed", "(0|1)", "2"], ["embed", "0", "1", "2"])
        >>> states.tolist(), partners.tolist()
        ([0, 2], [0, 3])
    """
    place = {step: index for index, step in enumerate(base)}
    partner = {index: place[step] for index, step in enumerate(steps) if step in place}
    partner[len(steps) - 1] = len(base) - 1
    return np.array(list(partner), np.int64), np.array(list(partner.values()), np.int64)


def _spread(
    values: NDArray[np.float64], places: NDArray[np.int64], states: int
) -> NDArray[np.float64]:
    """Values at some places among the states, `[..., place]` → `[..., state]`; NaN elsewhere."""
    spread = np.full((*values.shape[:-1], states), np.nan)
    spread[..., places] = values
    return spread


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """Distance from the counterpart in the baseline, and cosine with it, of a few states from the
    first to the last.
    """
    layers, base = (result[name].values.tolist() for name in ("layer", "layer_baseline"))
    states, partners = counterparts(layers, base)
    rows = [
        {
            "layer": layers[states[place]],
            "in_baseline": base[partners[place]],
            **summaries.pick(result, "distance", state=int(states[place])),
            **summaries.pick(
                result, "cosine", state=int(states[place]), state_baseline=int(partners[place])
            ),
        }
        for place in summaries.spread_places(len(states))
    ]
    return pd.DataFrame(rows)


def plot(dataset: xr.Dataset) -> Figure:
    """The plan's states among the baseline's, and their distance; see `repsim.plotting.drift`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.drift(dataset)
