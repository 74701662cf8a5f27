"""Numbers of analyses get names: an estimate, its standard error and interval as variables, and
what they are of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import PlanError, RepsimError
from repsim.files import replacing
from repsim.schema import STATE
from repsim.stats.bootstrap import LEVEL, Estimate
from repsim.stats.per_sample import StateSource

STATE_OTHER = "state_other"
LEFT_OUT = "left_out_tokens"

log = logging.getLogger("repsim")


def variables(
    name: str,
    dims: Sequence[str],
    estimate: Estimate,
    prefix: str = "",
    bounds: tuple[float | NDArray[np.float64], float | NDArray[np.float64]] = (-np.inf, np.inf),
) -> dict[str, Any]:
    """An estimate as variables: `name`, and `standard_error`, `low` and `high` (`prefix` before
    them).

    bounds: what the number cannot be beyond, nor the interval; broadcast to it.
    """
    low, high = estimate.interval()
    values = {name: estimate.value, f"{prefix}standard_error": estimate.standard_error}
    values |= {f"{prefix}low": np.clip(low, *bounds), f"{prefix}high": np.clip(high, *bounds)}
    return {key: (tuple(dims), value) for key, value in values.items()}


def layers(steps: Sequence[str], dim: str = STATE) -> dict[str, Any]:
    """What each state is the output of, as a coordinate: `layer` along `state`, `layer_other` along
    `state_other`.
    """
    # Zarr has no stable type for fixed lengths.
    return {dim.replace(STATE, "layer"): (dim, np.array(steps, object))}


def attributes(
    source: StateSource,
    plan: str,
    analysis: str,
    description: str,
    *,
    left_out: int = 0,
    **more: Any,
) -> Mapping[str, Any]:
    """What a result is of: analysis, plan, model, corpus and the numbers given.

    Args:
        source: an open capture.
        plan: plan whose states were measured.
        analysis: name of the analysis.
        description: what its numbers are.
        left_out: tokens that were left out because a state is a zero vector there, so that its
            cosine (its direction, its distance in units of its own length) is 0/0; of several
            numbers, the most that any is without. A line to the logger `repsim` says it.
        **more: further attributes.
    """
    if left_out:
        log.warning(
            "%s of plan %s: %d tokens left out: a state is a zero vector there and has no direction",
            analysis,
            source.plan_name(plan),
            left_out,
        )
    return {
        "analysis": analysis,
        "description": description,
        "plan": source.plan_name(plan),
        "plan_text": source.plan_text(plan),
        "model": source.identity["model"],
        "corpus": source.identity["corpus"],
        "interval": f"{LEVEL:.0%} of a bootstrap over samples",
        LEFT_OUT: left_out,
        **more,
    }


def steps(source: StateSource, plan: str) -> list[str]:
    """What each of a plan's states is the output of.

    Raises:
        RepsimError: it has but one state, so there are no two to compare.
    """
    found = source.steps(plan)
    if len(found) < 2:
        raise PlanError(
            f"plan {source.plan_name(plan)!r} runs no layer: a comparison needs at least two states"
        )
    return found


LEAST = {"resamples": 2, "items": 1, "permutations": 0, "seed": 0, "repeats": 0, "tokens": 1}


def check_counts(**counts: int | None) -> None:
    """Refuses a number that is too small for what it counts, in one line; None is a default."""
    for name, count in counts.items():
        if count is not None and count < LEAST[name]:
            raise RepsimError(f"{name}={count}: at least {LEAST[name]}")


def save(result: xr.Dataset, path: Path) -> None:
    """Writes a result as a NetCDF 3 file, the same bytes for the same numbers; missing folders are
    made.

    The file is whole or what it was before.

    Raises:
        RepsimError: the file cannot be written.
    """
    counts = {name: value for name, value in result.attrs.items() if isinstance(value, int)}
    # the format's integers are short
    result = result.assign_attrs(
        {name: float(value) for name, value in counts.items() if value >= 2**31}
    )
    with replacing([path], "choose another --figures") as (beside,):
        result.to_netcdf(beside, engine="scipy", format="NETCDF3_64BIT")
