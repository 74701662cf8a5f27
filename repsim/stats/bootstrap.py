"""How sure is a number? Bootstrap over samples, and permutation nulls, for any statistic.

Samples are independent, the tokens of one sample are not: every resample draws whole samples. A
statistic is a function of how often each sample was drawn, so that sums over samples are resampled
by one matrix product.

Of few samples the plain percentile interval is too narrow: resamples vary by (n - 1) / n of what
samples do, how much these vary is itself estimated, and skewed values err to one side.
`Estimate.interval` allows for all three; benchmarks/coverage.py says how often intervals hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

LEVEL = 0.95
TIE = 1e-6  # a shuffle that comes this close to the value may be the same items in the same places
FAR = 1e6  # standard errors: what a value without any error is from 0
IMAGINED = 4  # examples, half of them right, that `bootstrap_shares` adds

Array = NDArray[np.float64]
Weighted = Callable[[Array], Array]
"""`[resample, sample]`, how often each sample was drawn → `[resample, ...]`."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap distribution.

    value: `[...]`.
    replicates: `[resample, ...]`, the statistic of each resample; NaN where there is only one
    sample.
    samples: how many independent samples the statistic is of, one number or as many as broadcast to
    `value`.
    skewed: whether the statistic is near enough to a mean that `interval` may use the deviation and
        the skewness of the replicates; otherwise it takes their percentiles.
    """

    value: Array
    replicates: Array
    samples: float | Array = np.inf
    skewed: bool = False

    def map(
        self, function: Callable[[Array], Array], samples: float | Array | None = None
    ) -> Estimate:
        """The same function of the value and of each replicate; it works along the last axes.

        Args:
            function: `[..., n, m]` → `[..., k]`, say.
            samples: of how many samples the result is, where that is another number.
        """
        of = self.samples if samples is None else samples
        return Estimate(function(self.value), function(self.replicates), of, self.skewed)

    @property
    def standard_error(self) -> Array:
        """Standard deviation of the replicates, `[...]`."""
        with np.errstate(invalid="ignore"):
            return self.replicates.std(0, ddof=1)

    def interval(self, level: float = LEVEL) -> tuple[Array, Array]:
        """Interval that holds the truth as often as it says, of few samples as well; two arrays
        `[...]`.

        Of means: Student's t, its skewness removed by Hall's monotone transformation, with the
        replicates' deviation (times √(n / (n - 1)), which resampling takes away) and skewness. It
        contains the value, is longer to the side of the longer tail, and may pass a bound that the
        truth keeps to, such as a cosine's 1.

        Of shares and what is made of them: expanded percentiles, within the range of the
        replicates; see `tail`.

        Args:
            level: how often the interval is to hold the truth, 0 to 1.
        Returns:
            Lower and upper ends; NaN where a replicate is not finite.
        Source: Hall 1992, On the removal of skewness by transformation, eq. 2.2; Hesterberg 2015,
            What Teachers Should Know About the Bootstrap (the factor, and expanded percentiles).
        Example:
            >>> import numpy as np
            >>> values = np.array([0.3, 0.5, 0.4, 0.8, 0.6, 0.1, 0.5, 0.4])
            >>> low, high = bootstrap(ratio(values, np.ones(8)), 8).interval()
            >>> bool(0.2 < low < values.mean() < high < 0.7)
            True
        """
        if self.skewed:
            error, skewness = self._moments()
            reach = _t_quantile(self.samples, (1 + level) / 2)
            return (
                self.value - error * _skew(reach, skewness),
                self.value - error * _skew(-reach, skewness),
            )
        finite = np.where(np.isfinite(self.replicates), self.replicates, np.nan)
        samples = np.broadcast_to(self.samples, self.value.shape)
        low, high = np.empty(self.value.shape), np.empty(self.value.shape)
        for count in np.unique(samples):
            same, beyond = samples == count, tail(level, float(count))
            low[same], high[same] = np.quantile(finite[:, same], [beyond, 1 - beyond], axis=0)
        return low, high

    def _moments(self) -> tuple[Array, Array]:
        """Standard error as of samples, and skewness, -1 to 1 as of any mean; NaN where a replicate
        is not finite.
        """
        samples = np.asarray(self.samples, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            away = self.replicates - self.replicates.mean(0)
            variance = (away**2).mean(0)
            skewness = np.where(variance > 0, (away**3).mean(0) / variance**1.5, 0 * variance)
            factor = np.where(np.isfinite(samples) & (samples > 1), samples / (samples - 1), 1)
            return self.standard_error * np.sqrt(factor), np.clip(skewness, -1, 1)


def _t_quantile(samples: float | Array, share: float) -> Array:
    """Of Student's distribution with one degree of freedom less than samples."""
    samples = np.asarray(samples, np.float64)
    few = np.isfinite(samples) & (samples > 1)
    return np.where(few, stdtrit(np.where(few, samples - 1, 1), share), ndtri(share))


def _skew(t: Array, skewness: Array) -> Array:
    """Quantile of a studentised mean, of Student's: the inverse of `_unskew`."""
    some = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    return 3 / some * (np.cbrt(1 + some * (t - some / 6)) - 1)


def _unskew(t: Array, skewness: Array) -> Array:
    """Hall's transformation of a studentised mean, which Student's distribution then fits;
    increasing.
    """
    return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6


def tail(level: float, samples: float) -> float:
    """Share of the replicates beyond each end of an interval of expanded percentiles.

    (1 - level) / 2 of infinitely many samples; of n, Φ(-√(n / (n - 1)) t), where t is the quantile
    of Student's distribution with n - 1 degrees of freedom that leaves (1 - level) / 2 above it.

    Args:
        level: of the interval, 0 to 1.
        samples: n, above 1.
    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap (The American
        Statistician 69).
    """
    if not 1 < samples < np.inf:
        return (1 - level) / 2
    return float(ndtr(-np.sqrt(samples / (samples - 1)) * _t_quantile(samples, (1 + level) / 2)))


def bootstrap(
    statistic: Weighted, samples: int, *, resamples: int = 1000, seed: int | Sequence[int] = 0
) -> Estimate:
    """A statistic of all samples, and of samples drawn with replacement.

    Args:
        statistic: takes how often each sample counts, `[resample, sample]`, and gives `[resample,
            ...]`; see `ratio` and `linear` for two that take no loop. Means of nothing but zeros
            and ones are shares: `bootstrap_shares` resamples these.
        samples: how many there are; with one, nothing can be said of the spread, and the replicates
            are NaN.
        resamples: how often samples are drawn, at least 2.
        seed: of the draws; several numbers together are one seed.
    Raises:
        ValueError: fewer than one sample or two resamples.
    Source: Efron 1979; whole samples as the unit: Field & Welsh 2007, Bootstrapping clustered data.
    """
    if samples < 1 or resamples < 2:
        raise ValueError(f"{samples} samples, {resamples} resamples: at least 1 and 2")
    if isinstance(statistic, _Ratio) and statistic.is_share:
        return bootstrap_shares(statistic.totals, resamples=resamples, seed=seed)
    value = statistic(np.ones((1, samples)))[0]
    if samples == 1:
        return Estimate(value, np.full((resamples, *value.shape), np.nan), 1, skewed=True)
    draws = np.random.default_rng(seed).multinomial(
        samples, np.full(samples, 1 / samples), resamples
    )
    return Estimate(value, statistic(draws.astype(np.float64)), samples, skewed=True)


def bootstrap_shares(
    outcomes: NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int | Sequence[int] = 0,
    coins: Sequence[int] | None = None,
) -> Estimate:
    """Shares of outcomes that are right (1) or wrong (0), and their spread, which is never zero.

    A share of 0 or 1 among the examples is no proof that it is 0 or 1, yet all its resamples are
    equal. So each is drawn from the examples and from `IMAGINED` more, which each column gets right
    or wrong by the toss of a coin of its own; then the replicates are moved so that their mean is
    the share that was seen. Unlike the intervals of Agresti & Coull, which add the same four
    examples, these do not lean to 1/2, so that means over many shares do not lean either.
    Replicates may lie below 0 or above 1.

    Args:
        outcomes: `[example, ...]`, each 0 or 1; the columns are resampled together, so that
            differences are paired. A column with a NaN is NaN.
        resamples: how often examples are drawn, at least 2.
        seed: of the draws and of the coins; several numbers together are one seed.
        coins: a number of its own for each column, in any order, so that its coins fall alike
            whatever columns are beside it; by default its place.
    Returns:
        `[...]`.
    Raises:
        ValueError: fewer than one example or two resamples.
    Source: Agresti & Coull 1998, Approximate is better than "exact" for interval estimation of
        binomial proportions; of paired shares Agresti & Min 2005, Simple improved confidence
        intervals for comparing matched proportions.
    Example:
        >>> import numpy as np
        >>> low, high = bootstrap_shares(np.zeros(24)).interval()
        >>> bool(low < 0 and 0.05 < high < 0.2)
        True
    """
    examples, columns = len(outcomes), outcomes.shape[1:]
    if examples < 1 or resamples < 2:
        raise ValueError(f"{examples} examples, {resamples} resamples: at least 1 and 2")
    flat = outcomes.reshape(examples, -1).astype(np.float64)
    value = flat.mean(0)
    if examples == 1:
        return Estimate(value.reshape(columns), np.full((resamples, *columns), np.nan), examples)
    all_examples, seeds = examples + IMAGINED, np.atleast_1d(seed).tolist()
    chances = np.append(np.full(examples, 1 / all_examples), IMAGINED / all_examples)
    draws = np.random.default_rng(seeds).multinomial(all_examples, chances, resamples)
    right = draws[:, :-1] @ flat
    for column, coin in enumerate(range(flat.shape[1]) if coins is None else coins):
        right[:, column] += np.random.default_rng((*seeds, coin)).binomial(draws[:, -1], 0.5)
    expected = (examples * value + IMAGINED / 2) / all_examples
    replicates = value + right / all_examples - expected
    return Estimate(value.reshape(columns), replicates.reshape(resamples, *columns), examples)


@dataclass(frozen=True)
class _Ratio:
    """The statistic of `ratio`.

    totals: `[sample, ...]`.
    weights: `[sample, value]`, one value for all entries or one each.
    """

    totals: Array
    weights: Array

    def __call__(self, counts: Array) -> Array:
        flat = self.totals.reshape(len(self.totals), -1)
        # Of infinities, and of what no sample has.
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((counts @ flat) / (counts @ self.weights)).reshape(
                len(counts), *self.totals.shape[1:]
            )

    @property
    def is_share(self) -> bool:
        """Whether it is of right (1) and wrong (0) answers, NaN where there is none, that count
        alike.
        """
        answered = self.totals[~np.isnan(self.totals)]
        return bool((self.weights == 1).all() and len(answered) and np.isin(answered, (0, 1)).all())


def ratio_of_sums(totals: NDArray[Any], weights: NDArray[Any]) -> _Ratio:
    """Sum of totals / sum of weights, the statistic behind means over tokens.

    Args:
        totals: `[sample, ...]`.
        weights: `[sample]`, or as totals, where each total is of another number of tokens. A draw
            in which no sample has weight is NaN.
    """
    weights = np.asarray(weights, np.float64)
    weights = weights.reshape(len(weights), -1)
    if (weights == weights[:, :1]).all():
        weights = weights[:, :1]
    return _Ratio(totals, weights)


def linearised(value: Array, influence: Array) -> Weighted:
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
    """Estimates of independent strata side by side: replicate i of each makes replicate i of the
    whole.

    Args:
        estimates: `[...]` each, of as many replicates, drawn with different seeds.
    Returns:
        `[..., stratum]`, and the number of samples of each stratum.
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 8.3 (every sample
        resampled by itself).
    """
    values, replicates, samples, skewed = zip(
        *((one.value, one.replicates, one.samples, one.skewed) for one in estimates), strict=True
    )
    return Estimate(
        np.stack(values, -1), np.stack(replicates, -1), np.array(samples, np.float64), all(skewed)
    )


def permute_samples(
    samples: NDArray[Any], permutations: int, *, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Items in another order: whole samples change places, so that what ties a sample's items
    together stays.

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
        raise ValueError(
            f"samples of {sizes.min()} to {sizes.max()} items cannot change places; draw equally many"
        )
    places = np.argsort(samples, kind="stable").reshape(len(sizes), -1)
    generator = np.random.default_rng(seed)
    for _ in range(permutations):
        order = np.empty(places.size, np.int64)
        order[places] = places[generator.permutation(len(places))]
        yield order


def max_statistic_p_values(value: Array, null: Array) -> Array:
    """Chance of so large a value where nothing is related, for each of several values at once.

    Each value is compared with the largest of every permutation, so the chance that any of them is
    small by accident is what a single p-value says. At least 1 / (permutations + 1).

    Args:
        value: `[...]`.
        null: `[permutation, ...]`, the same statistics of shuffled items; NaN for what is no
            comparison.
    Source: Westfall & Young 1993 (single-step maximum); + 1: Phipson & Smyth 2010.
    """
    largest = np.fmax.reduce(null.reshape(len(null), -1), axis=1)
    above = (largest >= np.asarray(value)[..., None] - TIE).sum(-1)
    return np.where(
        np.isnan(value) | np.isnan(largest).any(), np.nan, (above + 1) / (len(null) + 1)
    )


def bootstrap_p_value(estimate: Estimate) -> Array:
    """Two-sided p-value of a difference of 0: 1 less the level at which the interval begins to
    exclude 0, at most 1.

    Of means, that of Student's t with the skewness removed. Otherwise the share of replicates on
    the rarer side of 0 is a `tail`, whose level this is (of infinitely many samples, twice the
    share); each tail counts the value itself, so that the share is at least 1 / (resamples + 1),
    and NaN replicates do not count. NaN where nothing is known.

    Args:
        estimate: of the difference, `[...]`.
    Source: as `Estimate.interval`; Efron & Tibshirani 1993, An Introduction to the Bootstrap,
        section 15.4; + 1: Davison & Hinkley 1997, Bootstrap Methods and their Application, ch. 4.
    """
    replicates, samples = (
        estimate.replicates,
        np.broadcast_to(estimate.samples, estimate.value.shape),
    )
    few = (samples > 1) & np.isfinite(samples)
    degrees = np.where(few, samples - 1, 1.0)
    if estimate.skewed:
        error, skewness = estimate._moments()
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(estimate.value == 0, 0, estimate.value / error)
        away = np.abs(_unskew(np.clip(t, -FAR, FAR), skewness))
        return np.where(few, 2 * stdtr(degrees, -away), 2 * ndtr(-away))
    known = (~np.isnan(replicates)).sum(0)
    rarer = np.minimum((replicates <= 0).sum(0), (replicates >= 0).sum(0))
    share = np.where(known > 0, np.minimum((1 + rarer) / (1 + known), 0.5), np.nan)
    return np.where(
        few, 2 * stdtr(degrees, ndtri(share) * np.sqrt(degrees / (degrees + 1))), 2 * share
    )


def holm(p_values: Array) -> Array:
    """p-values of several tests, raised so that any at most 0.05 is false by chance in at most 5 %
    of studies.

    Holds however the tests depend on each other. NaN is no test: it stays NaN, and the others are
    that many fewer.

    Args:
        p_values: `[test]`.
    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_values, kind="stable")[: (~np.isnan(p_values)).sum()]  # NaN comes last
    adjusted = np.full(len(p_values), np.nan)
    left = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(left * p_values[order]), 1)
    return adjusted


def chance_corrected(value: Array, null: Array) -> Array:
    """A similarity against what unrelated items give: 0 is their mean, 1 stays 1; may be negative.

    Args:
        value: `[...]`, at most 1.
        null: `[permutation, ...]`, the same similarities of shuffled items.
    Source: the correction for chance of Hubert & Arabie 1985, eq. 4.
    """
    mean = null.mean(0)
    return (value - mean) / (1 - mean)
