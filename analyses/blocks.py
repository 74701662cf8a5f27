"""Which run of layers does least? Distances between states n steps apart, and Block Influence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from array_api_compat import array_namespace, is_numpy_array
from numpy.typing import NDArray

from repsim import stats
from repsim.errors import RepsimError
from repsim.measures import half_turns, token_cosines
from repsim.schema import STATE
from repsim.stats import results, summaries
from repsim.stats.per_sample import (
    SampleStatistic,
    StateSource,
    collect_sums,
    pack_symmetric,
    runs_anywhere,
    unpack_symmetric,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tokens = Literal["last", "all"]
HEAT_MAPS = True  # of its figure, for --vmin and --vmax
SIZE = "size"
SUMMARISED = 8  # sizes of runs
PIECE = 256  # tokens whose cosines are held at once


@runs_anywhere
def _distances(states: Any) -> Any:
    """A sample's angular distances at its last token, their sums over tokens, and sums of
    1 - cosine over each step; then how many tokens each of these is over, `[value]`.

    A token counts where neither state is a zero vector, which has no direction.
    """
    # Sum over the sample piece by piece, so that few cosines are held at once.
    xp = array_namespace(states)
    sums = counts = influence = 0.0
    for first in range(0, states.shape[-2], PIECE):
        piece = states[..., first : first + PIECE, :]
        cosines = token_cosines(piece)
        undefined = _undefined(piece, cosines)
        cosines = xp.where(undefined, 1.0, cosines)  # adds 0 to every sum
        distances = half_turns(cosines)
        sums = sums + xp.sum(distances, axis=-3)
        counts = counts + xp.sum(~undefined, axis=-3, dtype=xp.float64)
        influence = influence + xp.sum(1 - xp.linalg.diagonal(cosines, offset=1), axis=-2)

    # The last piece holds the last token.
    at_last = xp.astype(~undefined[..., -1, :, :], xp.float64)
    packed = [pack_symmetric(each) for each in (distances[..., -1, :, :], sums, at_last, counts)]
    steps = xp.linalg.diagonal(counts, offset=1)
    return xp.concat([*packed[:2], influence, *packed[2:], steps], axis=-1)


def _undefined(states: Any, cosines: Any) -> Any:
    """Where one of two states is a zero vector, `[..., token, state, state]`, bool.

    NaN cosines of states that are not finite are not among these.
    """
    xp = array_namespace(states)
    if is_numpy_array(states) and not np.isnan(np.linalg.diagonal(cosines)).any():
        return np.zeros(cosines.shape, bool)
    zero = xp.moveaxis(xp.all(states == 0, axis=-1), -1, -2)
    return zero[..., :, None] | zero[..., None, :]


# What a capture without states computes from each sample for this analysis.
STATISTICS = {"distances": _distances}


def compute(
    capture: StateSource, *, plan: str = "baseline", tokens: Tokens = "last", resamples: int = 1000
) -> xr.Dataset:
    """Angular distance between the states around every run of a plan's steps, and each step's Block
    Influence.

        distance     mean_t arccos(cos(h_i[t], h_(i+n)[t])) / π    0 (no change) to 1 (opposite)
        influence    mean_t (1 - cos(h_i[t], h_(i+1)[t]))          0 to 2, over all tokens

    The run of n steps with the least distance is the one that "The Unreasonable Ineffectiveness of
    the Deeper Layers" would prune; Block Influence is that of ShortGPT.

    Intervals, and how often a run is the least, come from a bootstrap over samples.

    A zero vector has no direction: its token is left out of that state's distances and influences
    and of no others. `left_out_tokens` is the largest number of tokens that any number is without.
    Anything not finite stays NaN.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        tokens: last: distance at each sample's last kept token, as published; all: mean over
            tokens.
        resamples: draws of the bootstrap.
    Returns:
        `distance`, `standard_error`, `low`, `high` and `least` (share of resamples in which the run
        is the least of its size) over (size, state), the run beginning after `state`, NaN where it
        would pass the end; `influence` and its `influence_standard_error`, `influence_low`,
        `influence_high` over step; coordinates `layer`, `size` and `step_layer`.
    Raises:
        RepsimError: an unknown choice of tokens, a plan without steps, or nothing is finished.
    Source:
        Gromov et al. 2024 (arXiv 2403.17887), eq. 7; Men et al. 2024, ShortGPT (arXiv 2403.03853),
        eq. 1.
    """
    if tokens not in get_args(Tokens):
        raise RepsimError(f"tokens={tokens!r}: choose {' or '.join(get_args(Tokens))}")
    results.check_counts(resamples=resamples)
    steps = results.require_two_states(capture, plan)
    states = len(steps)

    # Collect the sums of `_distances` and what each is over; without zero vectors, every token.
    pairs = states * (states + 1) // 2
    statistic = SampleStatistic("blocks.distances", _distances)
    lengths, values, counts = collect_sums(capture, plan, statistic, 2 * pairs + states - 1)
    all_tokens = np.where(np.arange(values.shape[1]) < pairs, 1, lengths[:, None])
    counts = np.where(np.isnan(counts), all_tokens, counts)

    # Mean distances of all pairs of states, arranged by the size of the run between them.
    columns = slice(pairs) if tokens == "last" else slice(pairs, 2 * pairs)
    means = stats.bootstrap(
        stats.ratio_of_sums(values[:, columns], counts[:, columns]),
        len(lengths),
        resamples=resamples,
    )
    distance = means.map(lambda array: _by_size(unpack_symmetric(array, states)))

    # Mean Block Influence of each step.
    columns = slice(2 * pairs, None)
    influence = stats.bootstrap(
        stats.ratio_of_sums(values[:, columns], counts[:, columns]),
        len(lengths),
        resamples=resamples,
    )

    # In which share of resamples each run is the least of its size; a distance is at most 1.
    undefined = np.isnan(distance.value) | (len(lengths) == 1)
    first = np.argmin(np.nan_to_num(distance.replicates, nan=2), axis=2)
    least = np.where(undefined, np.nan, (first[:, :, None] == np.arange(states - 1)).mean(0))
    return xr.Dataset(
        {
            **results.variables("distance", (SIZE, STATE), distance, bounds=(0, 1)),
            "least": ((SIZE, STATE), least),
            **results.variables("influence", ("step",), influence, "influence_", (0, 2)),
        },
        coords={
            **results.layer_coordinate(steps[:-1]),
            SIZE: np.arange(1, states),
            "step_layer": ("step", np.array(steps[1:], object)),
        },
        attrs=results.attributes(
            capture,
            plan,
            "blocks",
            "Angular distance between the states before and after a run of steps; Block Influence "
            "of each step.",
            left_out=int((all_tokens - counts).sum(0).max()),
            distance_tokens=tokens,
            tokens=int(lengths.sum()),
            samples=len(lengths),
            resamples=resamples,
        ),
    )


def _by_size(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pairs of states by how many steps lie between: `[..., state, state]` → `[..., size, state]`.

    Row n - 1 holds the n-th diagonal above the main one, then NaN.
    """
    states = matrices.shape[-1]
    by_size = np.full((*matrices.shape[:-2], states - 1, states - 1), np.nan)
    for size in range(1, states):
        by_size[..., size - 1, : states - size] = np.diagonal(matrices, size, -2, -1)
    return by_size


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """The run of each length that changes the states least, of the first few lengths; below, the
    step with the lowest Block Influence.
    """
    steps = result["step_layer"].values.tolist()
    rows = []
    for row, size in enumerate(result[SIZE].values[:SUMMARISED].tolist()):
        distances = result["distance"].values[row]
        if np.isnan(distances).all():
            continue
        state = int(np.nanargmin(distances))
        numbers = summaries.pick(result, "distance", size=row, state=state)
        share = float(result["least"].values[row, state])
        layers = summaries.span(steps[state : state + size])
        rows.append({"length": size, "layers": layers, **numbers, "share_least": share})
    table = pd.DataFrame(rows)
    influence = result["influence"].values
    if not np.isnan(influence).all():
        step = int(np.nanargmin(influence))
        numbers = summaries.pick(result, "influence", step=step)
        table.attrs["note"] = (
            f"lowest Block Influence: layer {steps[step]}, "
            f"{summaries.with_interval('influence', numbers)}. share least: of resamples in which "
            "the run is the least of its length."
        )
    return table


def plot(dataset: xr.Dataset) -> Figure:
    """Distance by size and place, the least of each size marked, above Block Influence.

    See `repsim.plotting.blocks`.
    """
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.blocks(dataset)
