"""What shape do the states of a plan have? Norm, dimensions filled, and the direction shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from repsim import stats
from repsim.measures import geometry, norms
from repsim.schema import STATE
from repsim.stats import results, summaries
from repsim.stats.per_sample import StateSource
from repsim.stats.subsample import draw_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ITEMS = 2048
LABELS = {
    "norm": "mean norm",
    "effective_rank": "effective rank",
    "participation_ratio": "participation ratio",
    "intrinsic_dimension": "intrinsic dimension",
    "anisotropy": "anisotropy",
}


def compute(
    capture: StateSource,
    *,
    plan: str = "baseline",
    items: int = ITEMS,
    sinks: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Geometry of each state of a plan on a random subsample of tokens, equally many from each
    sample.

    `norm`: mean Euclidean norm. `effective_rank`: exponential of the singular values' entropy, and
    `participation_ratio`: (Σλ)² / Σλ² of the covariance's eigenvalues, both in directions; they
    depend on the number of items. `intrinsic_dimension`: TwoNN. `anisotropy`: mean cosine of two
    different tokens. `repsim.measures` has each number's formula, range and source.

    Standard errors and intervals come from a bootstrap over samples, to first order.

    A zero vector has no direction and is left out of the state's anisotropy; every other number is
    defined for it. `left_out_tokens` is the largest number of items that any state is without.

    Args:
        capture: an open capture that keeps its states.
        plan: plan whose states are measured.
        items: tokens to measure on.
        sinks: measure attention sinks too: first tokens and those over 3 times as long as the
            sample's median.
        resamples: draws of the bootstrap.
        seed: of the draw of items.
    Returns:
        Each number over state, with `NAME_standard_error`, `NAME_low` and `NAME_high`, and the
        coordinate `layer`.
    Raises:
        RepsimError: the plan is not in the capture, its states were not kept, or too few tokens.
    """
    # Measure each state: every number with each item's influence on it.
    results.check_counts(resamples=resamples)
    drawn = draw_tokens(capture, plan, items, sinks=sinks, seed=seed)
    rows = []
    for state in drawn.states:
        lengths = norms(state)
        spectrum = geometry.spectrum(state)
        rows.append(
            (
                (float(lengths.mean()), (lengths - lengths.mean()) / len(lengths)),
                geometry.effective_rank_parts(*spectrum),
                geometry.participation_ratio_parts(*spectrum),
                geometry.two_nn_parts(state),
                geometry.anisotropy_parts(state),
            )
        )

    # Bootstrap each number over samples, whose influence is the sum of their items'.
    variables: dict[str, Any] = {}
    for name, parts in zip(LABELS, zip(*rows, strict=True), strict=True):
        value = np.array([number for number, _ in parts])
        influence = np.stack([drawn.per_sample(per_item) for _, per_item in parts], axis=-1)
        estimate = stats.bootstrap(
            stats.linearised(value, influence), drawn.samples, resamples=resamples
        )
        lowest = -1 if name == "anisotropy" else 0
        variables |= results.variables(name, (STATE,), estimate, f"{name}_", (lowest, np.inf))
    return xr.Dataset(
        variables,
        coords=results.layer_coordinate(capture.steps(plan)),
        attrs=results.attributes(
            capture,
            plan,
            "geometry",
            "Geometry of each state over a subsample of tokens.",
            left_out=int((norms(drawn.states) == 0).sum(1).max()),
            sinks="kept" if sinks else "left out",
            seed=seed,
            tokens=len(drawn.sample),
            samples=drawn.samples,
            resamples=resamples,
        ),
    )


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """Every number in the first, the middle and the last state."""
    places = summaries.spread_places(result.sizes[STATE], most=3)
    titles = ["first", "middle", "last"][: len(places)]
    rows = []
    for name, label in LABELS.items():
        row: dict[str, Any] = {"quantity": label}
        for title, place in zip(titles, places, strict=True):
            numbers = summaries.pick(result, name, state=place)
            row |= {key.replace(name, title): value for key, value in numbers.items()}
        rows.append(row)
    table = pd.DataFrame(rows)
    labels = result["layer"].values[places]
    table.attrs["note"] = "layers: " + ", ".join(
        f"{title} {label}" for title, label in zip(titles, labels, strict=True)
    )
    return table


def plot(*datasets: xr.Dataset) -> Figure:
    """One panel per number, one line per result; see `repsim.plotting.profiles`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.profiles(datasets, LABELS, logarithmic=["norm"])
