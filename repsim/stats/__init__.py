"""From per-sample numbers to an estimate with an interval."""

from repsim.stats.bootstrap import (
    LEVEL,
    Estimate,
    bootstrap,
    bootstrap_p_value,
    bootstrap_shares,
    chance_corrected,
    holm,
    linearised,
    max_statistic_p_values,
    permute_samples,
    ratio_of_sums,
    strata,
    tail,
)

__all__ = [
    "LEVEL",
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
    "tail",
]
