"""From per-sample numbers to an estimate with an interval.

`bootstrap` says how certain a number is, `differences` how certain its distance from another,
`permutation` whether it is more than chance gives.
"""

from repsim.stats.bootstrap import (
    LEVEL,
    CountStatistic,
    Estimate,
    bootstrap,
    bootstrap_p_value,
    bootstrap_shares,
    linearised,
    ratio_of_sums,
    strata,
    tail,
)
from repsim.stats.differences import student_p_value, subtract_row
from repsim.stats.permutation import (
    chance_corrected,
    holm,
    max_statistic_p_values,
    permute_samples,
)

__all__ = [
    "LEVEL",
    "CountStatistic",
    "Estimate",
    "bootstrap",
    "bootstrap_p_value",
    "bootstrap_shares",
    "chance_corrected",
    "holm",
    "linearised",
    "max_statistic_p_values",
    "permute_samples",
    "ratio_of_sums",
    "strata",
    "student_p_value",
    "subtract_row",
    "tail",
]
