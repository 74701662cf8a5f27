"""How far does a plan take the states from where the baseline's were, at the same tokens?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim import stats
from repsim.measures import norms, token_cosine_totals
from repsim.schema import STATE
from repsim.stats import results
from repsim.stats.per_sample import SampleStatistic, StateSource, collect_sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATE_BASELINE = "state_baseline"


def compute(capture: StateSource, *, plan: str = "baseline", resamples: int = 1000) -> xr.Dataset:
    """Cosine of every state of a plan with every state of the baseline, and its distance from its
    counterpart.

    A state's counterpart is the baseline's state after the same layer; the last state's is the
    last. Parallel steps and halves of layers have none, and their distance is NaN. `distance` is
    |plan - baseline| / |baseline|, the mean over tokens: 0 (the same) upwards. `cosine` is the mean
    over tokens, -1 to 1.

    Standard errors and intervals come from a bootstrap over samples.

    A zero vector has no direction, and nothing is a share of its length: its token is left out of
    the cosines of that state, and of the distance from it, and no others. `left_out_tokens` is how
    many tokens the number that lacks most is without. What is not finite stays NaN.

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
    own, other = counterparts(steps, base)
    states = len(steps)

    def sums(both: NDArray[Any]) -> NDArray[np.float64]:
        cosines, defined = (total[:states, states:].ravel() for total in token_cosine_totals(both))
        apart, counts = np.zeros((2, len(own)))
        # One by one: less memory.
        for row, (mine, theirs) in enumerate(zip(own, states + other, strict=True)):
            length = norms(both[theirs])
            long = length != 0
            with np.errstate(invalid="ignore"):  # of infinities
                away = norms(both[mine].astype(np.float32) - both[theirs])
                apart[row] = np.divide(away, length, where=long, out=np.zeros_like(length)).sum()
            counts[row] = long.sum()
        return np.concatenate([cosines, apart, defined, counts])

    size = states * len(base) + len(own)
    tokens, values, counts = collect_sums(
        capture, [plan, "baseline"], SampleStatistic("drift.sums", sums), size
    )
    found = stats.bootstrap(stats.ratio_of_sums(values, counts), len(tokens), resamples=resamples)
    cosine = found.map(
        lambda array: array[..., : states * len(base)].reshape(*array.shape[:-1], states, len(base))
    )
    distance = found.map(lambda array: _spread(array[..., states * len(base) :], own, states))
    return xr.Dataset(
        {
            **results.variables("cosine", (STATE, STATE_BASELINE), cosine, "cosine_", (-1, 1)),
            **results.variables("distance", (STATE,), distance, "distance_", (0, np.inf)),
        },
        coords={**results.layer_coordinate(steps), **results.layer_coordinate(base, STATE_BASELINE)},
        attrs=results.attributes(
            capture,
            plan,
            "drift",
            "States of a plan against the baseline's at the same tokens.",
            left_out=int((tokens[:, None] - counts).sum(0).max()),
            tokens=int(tokens.sum()),
            samples=len(tokens),
        ),
    )


def counterparts(steps: list[str], base: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the states that the baseline has a counterpart for, and of the counterparts."""
    place = {step: index for index, step in enumerate(base)}
    found = {index: place[step] for index, step in enumerate(steps) if step in place}
    found[len(steps) - 1] = len(base) - 1
    return np.array(list(found), np.int64), np.array(list(found.values()), np.int64)


def _spread(
    values: NDArray[np.float64], places: NDArray[np.int64], states: int
) -> NDArray[np.float64]:
    """`[..., place]` → `[..., state]`, NaN elsewhere."""
    spread = np.full((*values.shape[:-1], states), np.nan)
    spread[..., places] = values
    return spread


def plot(found: xr.Dataset) -> Figure:
    """Where the plan's states lie among the baseline's, and how far from it; see
    `repsim.plotting.drift`.
    """
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.drift(found)
