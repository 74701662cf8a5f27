"""How long are the states of a plan? Mean Euclidean norm of the residual stream after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.schema import STATE, RepsimError
from repsim.statistics import Source, Statistic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _norm_sums(states: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over tokens of the norm of each state, `[state]`."""
    return np.sqrt(np.einsum("stu,stu->st", states, states, dtype=np.float64)).sum(1)  # type: ignore[no-any-return]


# What a capture that keeps no states takes of each sample for this analysis.
STATISTICS = {"sum": _norm_sums}


def compute(capture: Source, *, plan: str = "baseline") -> xr.Dataset:
    """Mean over tokens of the Euclidean norm of each state of a plan.

    At least 0, in the units of the residual stream. In the middle layers of many decoders the first token's state is
    tens to hundreds of times longer than the others' (attention sinks) and counts as much as it is long.

    The standard error takes samples, not tokens, as independent: the linearised one of a ratio of sums over samples.
    NaN where there is only one sample.

    Args:
        capture: an open capture.
        plan: plan whose states are measured.
    Returns:
        `norm` and `standard_error` over state, with the coordinate `layer`.
    Raises:
        RepsimError: the plan is not in the capture, or nothing is finished.
    Source:
        Ratio's standard error: Cochran 1977, Sampling Techniques, ch. 6.
    """
    rows = list(capture.per_sample(plan, Statistic("norms.sum", _norm_sums)))
    if not rows:
        raise RepsimError("this capture holds no finished tokens: run it to the end of a block at least")
    tokens, sums = np.array([count for count, _ in rows]), np.stack([values for _, values in rows])
    norm = sums.sum(0) / tokens.sum()
    residuals = sums - tokens[:, None] * norm
    samples = len(rows)
    correction = samples / (samples - 1) if samples > 1 else np.nan
    return xr.Dataset(
        {
            "norm": (STATE, norm),
            "standard_error": (STATE, np.sqrt((residuals**2).sum(0) * correction) / tokens.sum()),
        },
        coords={"layer": (STATE, np.array(capture.steps(plan), object))},
        attrs={
            "analysis": "norms",
            "description": "Mean over tokens of the Euclidean norm of each state.",
            "plan": capture.plan_name(plan),
            "plan_text": capture.plan_text(plan),
            "model": capture.identity["model"],
            "corpus": capture.identity["corpus"],
            "tokens": int(tokens.sum()),
            "samples": samples,
        },
    )


def plot(result: xr.Dataset) -> Figure:
    """Norm against state; see `repsim.figures.profile`."""
    from repsim import figures  # here, so that computing does not wait for matplotlib

    return figures.profile(result, "norm", "mean norm of the state")
