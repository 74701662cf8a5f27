"""How far several plans, models or tasks are from one of them: differences with their certainty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from repsim.stats.bootstrap import Estimate, bootstrap_p_value

Array = NDArray[np.float64]


def subtract_row(
    estimate: Estimate, row: int, *, tested: Estimate | None = None, most: float = np.inf
) -> dict[str, Array]:
    """Differences from one entry, paired: replicate by replicate.

    The p-value is that of a studentised mean (`repsim.stats.bootstrap_p_value` of `skewed`
    estimates), which can be as small as the data allow. A share of resamples is never below 2 in
    1000, so that no difference would stand among more than 25 after Holm's correction.

    Args:
        estimate: `[entry]`, all of the same draws.
        row: which entry the others are compared with.
        tested: a mean that is the same where nothing differs, such as the log-likelihood behind a
            perplexity, `[entry]`; by default the estimate itself is a mean.
        most: what a difference cannot pass, such as 1 of shares.
    Returns:
        `difference`, `difference_standard_error`, `difference_low`, `difference_high` and
        `p_value`, `[entry]` each; NaN in the row itself.
    Example:
        >>> import numpy as np
        >>> shares = Estimate(np.array([0.9, 0.5]), np.array([[0.8, 0.5], [1.0, 0.5]]), 20)
        >>> subtract_row(shares, 0)["difference"].tolist()
        [nan, -0.4]
    """
    difference, difference_tested = (
        each.map(lambda array: array - array[..., row : row + 1])
        for each in (estimate, estimate if tested is None else tested)
    )
    with np.errstate(invalid="ignore"):  # of infinite perplexities
        low, high = difference.interval()
        columns = {
            "difference": difference.value,
            "difference_standard_error": difference.standard_error,
            "difference_low": np.clip(low, -most, most),
            "difference_high": np.clip(high, -most, most),
            "p_value": bootstrap_p_value(replace(difference_tested, skewed=True)),
        }
    is_other = np.arange(len(estimate.value)) != row
    return {name: np.where(is_other, values, np.nan) for name, values in columns.items()}
