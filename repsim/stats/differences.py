"""How far several plans, models or tasks are from one of them: differences with their certainty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from repsim.stats.bootstrap import Estimate

Array = NDArray[np.float64]


def subtract_row(
    estimate: Estimate, row: int, *, tested: Estimate | None = None, most: float = np.inf
) -> dict[str, Array]:
    """Differences from one entry, paired: replicate by replicate.

    For p-values see `student_p_value`.

    Args:
        estimate: `[entry]`, all of the same draws.
        row: which entry the others are compared with.
        tested: a mean that is the same where nothing differs, such as the log-likelihood behind a
            perplexity, `[entry]`; by default the estimate itself is a mean.
        most: what a difference cannot pass, such as 1 of shares.
    Returns:
        `difference`, `difference_standard_error`, `difference_low`, `difference_high` and
        `p_value`, `[entry]` each; NaN in the row itself.
    Source: of shares, whose spread allows for all answers being right: Agresti & Min 2005, Simple
        improved confidence intervals for comparing matched proportions.
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
            "p_value": student_p_value(difference_tested),
        }
    is_other = np.arange(len(estimate.value)) != row
    return {name: np.where(is_other, values, np.nan) for name, values in columns.items()}


def student_p_value(difference: Estimate) -> Array:
    """P-value of a difference, two-sided: Student's t with a degree of freedom per sample but one.

        p = 2 P(T > |d| / s),   s the replicates' deviation times √(n / (n - 1)) for n samples

    It can be as small as the data allow, where a share of 1000 resamples is never below 2 in 1001.

    Args:
        difference: `[...]`, 0 where nothing differs.
    Returns:
        `[...]`, 0 to 1; 1 where nothing differs, NaN where the spread is not known.
    Source: Student 1908, The probable error of a mean.
    Example:
        >>> import numpy as np
        >>> replicates = np.array([[0.1], [0.3]])
        >>> student_p_value(Estimate(np.array([0.2]), replicates, 11)).round(3).tolist()
        [0.207]
    """
    samples = np.broadcast_to(np.asarray(difference.samples, np.float64), difference.value.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = difference.standard_error * np.sqrt(samples / (samples - 1))
        t = np.where((difference.value == 0) & (error == 0), 0, difference.value / error)
        p_value: Array = 2 * stdtr(samples - 1, -np.abs(t))
    return p_value
