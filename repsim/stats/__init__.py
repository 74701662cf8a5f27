"""From per-sample numbers to an estimate with an interval."""

from repsim.stats.bootstrap import (
    LEVEL,
    Estimate,
    bootstrap,
    bootstrap_shares,
    calibrated,
    holm,
    linear,
    p_values,
    ratio,
    shuffles,
    strata,
    tail,
    two_sided,
)

__all__ = [
    "LEVEL",
    "Estimate",
    "bootstrap",
    "bootstrap_shares",
    "calibrated",
    "holm",
    "linear",
    "p_values",
    "ratio",
    "shuffles",
    "strata",
    "tail",
    "two_sided",
]
