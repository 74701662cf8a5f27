"""How sure is a number? Bootstrap over samples, and permutation nulls, for any statistic.

Samples are independent, the tokens of one sample are not: every resample draws whole samples. A statistic is a function
of how often each sample was drawn, so that sums over samples are resampled by one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
TIE = 1e-6  # a shuffle that comes this close to the value may be the same items in the same places

Array = NDArray[np.float64]
Weighted = Callable[[Array], Array]
"""`[resample, sample]`, how often each sample was drawn → `[resample, ...]`."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap distribution.

    value: `[...]`.
    replicates: `[resample, ...]`, the statistic of each resample; NaN where there is only one sample.
    """

    value: Array
    replicates: Array

    def map(self, function: Callable[[Array], Array]) -> Estimate:
        """The same function of the value and of each replicate; it works along the last axes."""
        return Estimate(function(self.value), function(self.replicates))

    @property
    def standard_error(self) -> Array:
        """Standard deviation of the replicates, `[...]`."""
        with np.errstate(invalid="ignore"):
            return self.replicates.std(0, ddof=1)

    def interval(self, level: float = LEVEL) -> tuple[Array, Array]:
        """Percentile interval, two arrays `[...]`.

        Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
        """
        finite = np.where(np.isfinite(self.replicates), self.replicates, np.nan)
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high


def bootstrap(statistic: Weighted, samples: int, *, resamples: int = 1000, seed: int | Sequence[int] = 0) -> Estimate:
    """A statistic of all samples, and of samples drawn with replacement.

    Args:
        statistic: takes how often each sample counts, `[resample, sample]`, and gives `[resample, ...]`; see `ratio`
            and `linear` for two that take no loop.
        samples: how many there are; with one, nothing can be said of the spread, and the replicates are NaN.
        resamples: how often samples are drawn, at least 2.
        seed: of the draws; several numbers together are one seed.
    Raises:
        ValueError: fewer than one sample or two resamples.
    Source: Efron 1979; whole samples as the unit: Field & Welsh 2007, Bootstrapping clustered data.
    """
    if samples < 1 or resamples < 2:
        raise ValueError(f"{samples} samples, {resamples} resamples: at least 1 and 2")
    value = statistic(np.ones((1, samples)))[0]
    if samples == 1:
        return Estimate(value, np.full((resamples, *value.shape), np.nan))
    draws = np.random.default_rng(seed).multinomial(samples, np.full(samples, 1 / samples), resamples)
    return Estimate(value, statistic(draws.astype(np.float64)))


def ratio(totals: Array, weights: NDArray[Any]) -> Weighted:
    """Sum of totals / sum of weights, the statistic behind means over tokens.

    Args:
        totals: `[sample, ...]`.
        weights: `[sample]`.
    """
    flat = totals.reshape(len(totals), -1)

    def statistic(counts: Array) -> Array:
        with np.errstate(invalid="ignore"):  # of infinities
            return ((counts @ flat) / (counts @ weights)[:, None]).reshape(len(counts), *totals.shape[1:])

    return statistic


def linear(value: Array, influence: Array) -> Weighted:
    """A statistic to first order: its value, and what counting a sample once more adds to it.

    For statistics without sums of their own (the infinitesimal jackknife's approximation).

    Args:
        value: `[...]`.
        influence: `[sample, ...]`, summing to 0 over samples.
    Source: Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, ch. 6.
    """
    flat = influence.reshape(len(influence), -1)

    def statistic(counts: Array) -> Array:
        return value + ((counts - 1) @ flat).reshape(len(counts), *influence.shape[1:])

    return statistic


def strata(estimates: Sequence[Estimate]) -> Estimate:
    """Estimates of independent strata side by side: replicate i of each makes replicate i of the whole.

    Args:
        estimates: `[...]` each, of as many replicates, drawn with different seeds.
    Returns:
        `[..., stratum]`.
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 8.3 (every sample resampled by itself).
    """
    values, replicates = zip(*((estimate.value, estimate.replicates) for estimate in estimates), strict=True)
    return Estimate(np.stack(values, -1), np.stack(replicates, -1))


def shuffles(samples: NDArray[Any], permutations: int, *, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Items in another order: whole samples change places, so that what ties a sample's items together stays.

    With one item a sample, any order of the items is equally likely.

    Args:
        samples: `[item]`, the sample of each; every sample has as many items as the others.
        permutations: how many orders.
        seed: of the draws.
    Yields:
        `[item]`: which item comes at each place.
    Raises:
        ValueError: samples have different numbers of items.
    """
    sizes = np.unique(samples, return_counts=True)[1]
    if len(set(sizes.tolist())) > 1:
        raise ValueError(f"samples of {sizes.min()} to {sizes.max()} items cannot change places; draw equally many")
    places = np.argsort(samples, kind="stable").reshape(len(sizes), -1)
    generator = np.random.default_rng(seed)
    for _ in range(permutations):
        order = np.empty(places.size, np.int64)
        order[places] = places[generator.permutation(len(places))]
        yield order


def p_values(value: Array, null: Array) -> Array:
    """Chance of so large a value where nothing is related, for each of several values at once.

    Each value is compared with the largest of every permutation, so the chance that any of them is small by accident
    is what a single p-value says. At least 1 / (permutations + 1).

    Args:
        value: `[...]`.
        null: `[permutation, ...]`, the same statistics of shuffled items; NaN for what is no comparison.
    Source: Westfall & Young 1993 (single-step maximum); + 1: Phipson & Smyth 2010.
    """
    largest = np.fmax.reduce(null.reshape(len(null), -1), axis=1)
    above = (largest >= np.asarray(value)[..., None] - TIE).sum(-1)
    return np.where(np.isnan(value) | np.isnan(largest).any(), np.nan, (above + 1) / (len(null) + 1))


def two_sided(replicates: Array) -> Array:
    """Two-sided p-value of a difference of 0: twice the share of replicates on the rarer side of 0, at most 1.

    At least 2 / (resamples + 1): each tail counts the value itself. NaN replicates do not count; where all are NaN, so
    is the p-value.

    Args:
        replicates: of the difference, `[resample, ...]`.
    Source: the level at which the percentile interval begins to exclude 0, Efron & Tibshirani 1993, An Introduction
        to the Bootstrap, section 15.4; + 1: Davison & Hinkley 1997, Bootstrap Methods and their Application, ch. 4.
    """
    known = (~np.isnan(replicates)).sum(0)
    rarer = np.minimum((replicates <= 0).sum(0), (replicates >= 0).sum(0))
    return np.where(known > 0, np.minimum(2 * (1 + rarer) / (1 + known), 1), np.nan)


def holm(p_values: Array) -> Array:
    """p-values of several tests, raised so that any at most 0.05 is false by chance in at most 5 % of studies.

    Holds however the tests depend on each other. NaN is no test: it stays NaN, and the others are that many fewer.

    Args:
        p_values: `[test]`.
    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_values, kind="stable")[: (~np.isnan(p_values)).sum()]  # NaN comes last
    adjusted = np.full(len(p_values), np.nan)
    left = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(left * p_values[order]), 1)
    return adjusted


def calibrated(value: Array, null: Array) -> Array:
    """A similarity against what unrelated items give: 0 is their mean, 1 stays 1; may be negative.

    Args:
        value: `[...]`, at most 1.
        null: `[permutation, ...]`, the same similarities of shuffled items.
    Source: the correction for chance of Hubert & Arabie 1985, eq. 4.
    """
    mean = null.mean(0)
    return (value - mean) / (1 - mean)
