"""Names for the numbers of analyses: variables, coordinates and attributes of their results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import PlanError, RepsimError
from repsim.files import replacing
from repsim.schema import PLAN, STATE
from repsim.stats.bootstrap import LEVEL, Estimate
from repsim.stats.per_sample import PlanSource, StateSource

STATE_OTHER = "state_other"
LEFT_OUT = "left_out_tokens"
PLAN_NAME, PLAN_TEXT = "plan_name", "plan_text"

DataT = TypeVar("DataT", xr.Dataset, xr.DataArray)

log = logging.getLogger("repsim")


def variables(
    name: str,
    dims: Sequence[str],
    estimate: Estimate,
    prefix: str = "",
    bounds: tuple[float | NDArray[np.float64], float | NDArray[np.float64]] = (-np.inf, np.inf),
) -> dict[str, Any]:
    """An estimate as four variables: `name`, and `standard_error`, `low` and `high`.

    Args:
        name: of the value.
        dims: of the value.
        estimate: `[...]`, one axis per dimension.
        prefix: stands before `standard_error`, `low` and `high`.
        bounds: what neither the number nor its interval can pass, `[...]` or one number each.
    Returns:
        Name → (dimensions, values), as `xarray.Dataset` takes them.
    Example:
        >>> import numpy as np
        >>> estimate = Estimate(np.array([0.5]), np.array([[0.4], [0.6]]))
        >>> list(variables("norm", ["state"], estimate, prefix="norm_"))
        ['norm', 'norm_standard_error', 'norm_low', 'norm_high']
    """
    low, high = estimate.interval()
    values = {name: estimate.value, f"{prefix}standard_error": estimate.standard_error}
    values |= {f"{prefix}low": np.clip(low, *bounds), f"{prefix}high": np.clip(high, *bounds)}
    return {key: (tuple(dims), value) for key, value in values.items()}


def layer_coordinate(steps: Sequence[str], dim: str = STATE) -> dict[str, Any]:
    """What each state is the output of, as a coordinate of `dim`.

    Args:
        steps: one per state, `embed` first.
        dim: `state`, or `state_...` for a second dimension of states.
    Returns:
        `layer` (or `layer_...`) → (dimension, values), as `xarray.Dataset` takes them.
    Example:
        >>> list(layer_coordinate(["embed", "0"], "state_other"))
        ['layer_other']
    """
    # Zarr has no stable type for fixed lengths.
    return {dim.replace(STATE, "layer"): (dim, np.array(steps, object))}


def index_layers(data: DataT) -> DataT:
    """With an index on the layers of states, so that `sel(layer="10")` takes the state after
    layer 10; places along `state`, which count `embed` as well, stay as they are.

    A plan that runs a layer twice has two states of that label, and `sel` gives both.

    Args:
        data: with coordinates as `layer_coordinate` makes them, or without.
    Example:
        >>> import xarray as xr
        >>> norm = xr.DataArray([3.0, 4, 5], layer_coordinate(["embed", "0", "2"]), ["state"])
        >>> float(index_layers(norm).sel(layer="2"))
        5.0
    """
    for name, values in data.coords.items():
        of_states = values.ndim == 1 and str(values.dims[0]).startswith(STATE)
        if of_states and str(name).startswith("layer") and name not in data.xindexes:
            data = data.set_xindex(str(name))
    return data


def name_plans(dataset: xr.Dataset) -> xr.Dataset:
    """Names of plans as the index of `plan`, and their canonical texts as `plan_text`, where stores
    have the texts as index and the names as `plan_name`.

    Where several plans have one name, their texts tell them apart: `name (0-3, 5)`.

    Args:
        dataset: of a store, or a result; without `plan_name`, or named already, it is returned as
            it is.
    Example:
        >>> import xarray as xr
        >>> plans = {"plan": ["0-5", "0, 5"], "plan_name": ("plan", ["baseline", "mine"])}
        >>> scores = name_plans(xr.Dataset({"score": ("plan", [0.9, 0.4])}, plans))
        >>> float(scores.score.sel(plan="mine")), scores.plan_text.values.tolist()
        (0.4, ['0-5', '0, 5'])
    """
    if PLAN_NAME not in dataset.coords or PLAN_TEXT in dataset.coords:
        return dataset
    texts = plan_texts(dataset)
    labels = tell_apart([str(name) for name in dataset[PLAN_NAME].values], texts)
    return dataset.assign_coords(
        {PLAN: np.array(labels, object), PLAN_TEXT: (PLAN, np.array(texts, object))}
    )


def tell_apart(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Names of plans; those of several plans with the plan's text.

    Example:
        >>> tell_apart(["baseline", "mine", "mine"], ["0-5", "0, 5", "0, 4, 5"])
        ['baseline', 'mine (0, 5)', 'mine (0, 4, 5)']
    """
    texts_of: dict[str, set[str]] = {name: set() for name in names}
    for name, text in zip(names, texts, strict=True):
        texts_of[name].add(text)
    return [
        name if len(texts_of[name]) == 1 else f"{name} ({text})"
        for name, text in zip(names, texts, strict=True)
    ]


def plan_texts(dataset: xr.Dataset) -> list[str]:
    """Canonical texts of the plans, `[plan]`, whether a dataset has them as index or, with named
    plans, as `plan_text`.
    """
    key = PLAN_TEXT if PLAN_TEXT in dataset.coords else PLAN
    return [str(text) for text in dataset[key].values]


def attributes(
    source: PlanSource,
    plan: str | Sequence[str],
    analysis: str,
    description: str,
    *,
    left_out: int = 0,
    **more: Any,
) -> Mapping[str, Any]:
    """The attributes of a result: analysis, plan, model, corpus and the numbers given.

    Args:
        source: an open capture.
        plan: plan whose states were measured, or several.
        analysis: name of the analysis.
        description: what its numbers are.
        left_out: tokens that were left out because a state is a zero vector there, so that its
            cosine (its direction, its distance in units of its own length) is 0/0; the largest
            count, where numbers differ in it. The logger `repsim` warns of them.
        **more: further attributes.
    Returns:
        Attribute → value.
    """
    plans = [plan] if isinstance(plan, str) else list(plan)
    names = ", ".join(map(source.plan_name, plans))
    if left_out:
        log.warning(
            "%s of plan %s: %d tokens left out: a state is a zero vector there and has no "
            "direction",
            analysis,
            names,
            left_out,
        )
    return {
        "analysis": analysis,
        "description": description,
        "plan": names,
        "plan_text": "; ".join(map(source.plan_text, plans)),
        "model": source.identity["model"],
        "corpus": source.identity["corpus"],
        "interval": f"{LEVEL:.0%} of a bootstrap over samples",
        LEFT_OUT: left_out,
        **more,
    }


def require_two_states(source: StateSource, plan: str) -> list[str]:
    """What each of a plan's states is the output of, if there are two states to compare.

    Args:
        source: an open capture.
        plan: whose states.
    Returns:
        One step per state, `embed` first.
    Raises:
        PlanError: the plan has only one state.
    """
    steps = source.steps(plan)
    if len(steps) < 2:
        raise PlanError(
            f"plan {source.plan_name(plan)!r} runs no layer: a comparison needs at least two states"
        )
    return steps


LEAST = {"resamples": 2, "items": 1, "permutations": 0, "seed": 0, "repeats": 0, "tokens": 1}


def check_counts(**counts: int | None) -> None:
    """Refuses a number that is too small for what it counts.

    Args:
        **counts: option → number; None stands for a default. `LEAST` lists the options.
    Raises:
        RepsimError: a number is too small.
    Example:
        >>> check_counts(resamples=1000, seed=0, items=None)
    """
    for name, count in counts.items():
        if count is not None and count < LEAST[name]:
            raise RepsimError(f"{name}={count}: at least {LEAST[name]}")


def save(result: xr.Dataset, path: Path) -> None:
    """Writes a result as a NetCDF 3 file; equal results give equal bytes.

    Makes missing folders. If writing fails, the file stays as it was before.

    Args:
        result: of an analysis.
        path: where to.
    Raises:
        RepsimError: the file cannot be written.
    """
    counts = {name: value for name, value in result.attrs.items() if isinstance(value, int)}
    # The format's integers have 32 bits.
    result = result.assign_attrs(
        {name: float(value) for name, value in counts.items() if value >= 2**31}
    )
    with replacing([path], "choose another --figures") as (beside,):
        result.to_netcdf(beside, engine="scipy", format="NETCDF3_64BIT")
