"""How certain is a number? The bootstrap over samples, for any statistic.

Samples are independent, the tokens of one sample are not: every resample draws whole samples. A
statistic is a function of how often each sample was drawn, so sums over samples are resampled by
one matrix product.

With few samples the plain percentile interval is too narrow: the variance of resamples is (n - 1) /
n of that of samples, that variance is itself an estimate, and skewed values err to one side.
`Estimate.interval` allows for all three; benchmarks/coverage.py measures how often intervals hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

LEVEL = 0.95
FAR = 1e6  # standard errors between 0 and a value without any error
IMAGINED = 4  # examples, half of them right, that `bootstrap_shares` adds

Array = NDArray[np.float64]
CountStatistic = Callable[[Array], Array]
"""`[resample, sample]`, how often each sample was drawn → `[resample, ...]`, both float64."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap distribution.

    value: `[...]`, float64.
    replicates: `[resample, ...]`, float64, the statistic of each resample; NaN where there is only
        one sample.
    samples: how many independent samples the statistic is over; one number, or an array that
        broadcasts to `value`.
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
        """The estimate of a function of the statistic, applied to the value and each replicate.

        Args:
            function: acts on the last axes, e.g. `[..., n, m]` → `[..., k]`.
            samples: how many samples the result is over; by default as many as before.
        Returns:
            The estimate of the result.
        Example:
            >>> import numpy as np
            >>> pair = Estimate(np.array([1.0, 3]), np.array([[1.0, 2], [2, 5]]))
            >>> difference = pair.map(lambda array: array[..., 1] - array[..., 0])
            >>> float(difference.value), difference.replicates.tolist()
            (2.0, [1.0, 3.0])
        """
        count = self.samples if samples is None else samples
        return Estimate(function(self.value), function(self.replicates), count, self.skewed)

    @property
    def standard_error(self) -> Array:
        """Standard deviation of the replicates, `[...]`, float64; NaN where one is not finite."""
        with np.errstate(invalid="ignore"):
            return self.replicates.std(0, ddof=1)

    def interval(self, level: float = LEVEL) -> tuple[Array, Array]:
        """Interval that holds the truth in a share `level` of studies, with few samples as well.

        Means (`skewed`): value - s g⁻¹(±t), with t the quantile of Student's distribution with
        n - 1 degrees of freedom, s the replicates' deviation times √(n / (n - 1)), which resampling
        takes away, and Hall's monotone transformation

            g(u) = u + k u² / 3 + k² u³ / 27 + k / 6,   k the skewness of the replicates

        The interval contains the value, is longer on the side of the longer tail, and may pass a
        bound that the truth keeps to, such as a cosine's 1.

        Shares and what is derived from them: expanded percentiles, within the range of the
        replicates; see `tail`.

        Args:
            level: share of studies whose interval holds the truth, 0 to 1.
        Returns:
            Lower and upper ends, `[...]` each, float64; NaN where a replicate is not finite.
        Source: Hall 1992, On the removal of skewness by transformation, eq. 2.2; Hesterberg 2015,
            What Teachers Should Know About the Bootstrap (the factor, and expanded percentiles).
        Example:
            >>> import numpy as np
            >>> values = np.array([0.3, 0.5, 0.4, 0.8, 0.6, 0.1, 0.5, 0.4])
            >>> low, high = bootstrap(ratio_of_sums(values, np.ones(8)), 8).interval()
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
        # How far out the percentiles lie depends on the number of samples: one group per number.
        finite = np.where(np.isfinite(self.replicates), self.replicates, np.nan)
        samples = np.broadcast_to(self.samples, self.value.shape)
        low, high = np.empty(self.value.shape), np.empty(self.value.shape)
        for count in np.unique(samples):
            group, beyond = samples == count, tail(level, float(count))
            low[group], high[group] = np.quantile(finite[:, group], [beyond, 1 - beyond], axis=0)
        return low, high

    def _moments(self) -> tuple[Array, Array]:
        """Standard error over samples (not resamples), and skewness clipped to ±1; `[...]` each.

        NaN where a replicate is not finite.
        """
        samples = np.asarray(self.samples, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            away = self.replicates - self.replicates.mean(0)
            variance = (away**2).mean(0)
            skewness = np.where(variance > 0, (away**3).mean(0) / variance**1.5, 0 * variance)
            factor = np.where(np.isfinite(samples) & (samples > 1), samples / (samples - 1), 1)
            return self.standard_error * np.sqrt(factor), np.clip(skewness, -1, 1)


def _t_quantile(samples: float | Array, share: float) -> Array:
    """Quantile of Student's distribution, samples - 1 degrees of freedom; normal if infinite."""
    samples = np.asarray(samples, np.float64)
    few = np.isfinite(samples) & (samples > 1)
    return np.where(few, stdtrit(np.where(few, samples - 1, 1), share), ndtri(share))


def _skew(t: Array, skewness: Array) -> Array:
    """Quantile of a studentised mean from one of Student's distribution: inverts `_unskew`."""
    nonzero = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    return 3 / nonzero * (np.cbrt(1 + nonzero * (t - nonzero / 6)) - 1)


def _unskew(t: Array, skewness: Array) -> Array:
    """Hall's increasing transformation of a studentised mean to Student's distribution."""
    return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6


def tail(level: float, samples: float) -> float:
    """Share of the replicates beyond each end of an interval of expanded percentiles.

        Φ(-√(n / (n - 1)) t),   t the 1 - (1 - level) / 2 quantile of Student's distribution, n - 1
        degrees of freedom

    With infinitely many samples this is (1 - level) / 2.

    Args:
        level: of the interval, 0 to 1.
        samples: n, above 1.
    Returns:
        The share, 0 to 1/2.
    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap (The American
        Statistician 69).
    Example:
        >>> import numpy as np
        >>> round(tail(0.95, np.inf), 6), tail(0.95, 10) < 0.01
        (0.025, True)
    """
    if not 1 < samples < np.inf:
        return (1 - level) / 2
    return float(ndtr(-np.sqrt(samples / (samples - 1)) * _t_quantile(samples, (1 + level) / 2)))


def bootstrap(
    statistic: CountStatistic, samples: int, *, resamples: int = 1000, seed: int | Sequence[int] = 0
) -> Estimate:
    """A statistic of all samples, and of as many samples drawn with replacement, repeatedly.

    Args:
        statistic: takes how often each sample counts, `[resample, sample]`, and gives `[resample,
            ...]`; `ratio_of_sums` and `linearised` make two that need no loop. Means of nothing but
            zeros and ones are shares: `bootstrap_shares` resamples these.
        samples: how many there are. One says nothing about the spread: its replicates are NaN.
        resamples: how often samples are drawn, at least 2.
        seed: of the draws; several numbers together are one seed.
    Returns:
        The statistic with its replicates.
    Raises:
        ValueError: fewer than one sample or two resamples.
    Source: Efron 1979, Bootstrap methods: another look at the jackknife; whole samples as the unit:
        Field & Welsh 2007, Bootstrapping clustered data.
    Example:
        >>> import numpy as np
        >>> values = np.random.default_rng(0).normal(size=400)
        >>> estimate = bootstrap(ratio_of_sums(values, np.ones(400)), 400)
        >>> bool(np.isclose(estimate.standard_error, values.std() / 20, rtol=0.1))
        True
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

    A share of 0 or 1 among the examples does not prove that the true share is 0 or 1, yet all its
    resamples are equal. So each resample is drawn from the examples and from `IMAGINED` more, which
    each column gets right or wrong by the toss of its own coin; then the replicates are moved so
    that their mean is the observed share. The intervals of Agresti & Coull, which add the same four
    examples, are drawn towards 1/2; these are not, and so neither are means over many shares.
    Replicates may lie below 0 or above 1.

    Args:
        outcomes: `[example, ...]`, any dtype, each 0 or 1; the columns are resampled together, so
            differences are paired. A column with a NaN is NaN.
        resamples: how often examples are drawn, at least 2.
        seed: of the draws and of the coins; several numbers together are one seed.
        coins: one distinct number per column, in any order, which fixes the column's coins whatever
            the other columns are; by default the column's index.
    Returns:
        The shares, `[...]`, with their replicates.
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

    # The observed shares; one example says nothing about their spread.
    flat = outcomes.reshape(examples, -1).astype(np.float64)
    value = flat.mean(0)
    if examples == 1:
        return Estimate(value.reshape(columns), np.full((resamples, *columns), np.nan), examples)

    # Draw how often each example, and any imagined one (the last entry), comes up.
    all_examples, seeds = examples + IMAGINED, np.atleast_1d(seed).tolist()
    chances = np.append(np.full(examples, 1 / all_examples), IMAGINED / all_examples)
    draws = np.random.default_rng(seeds).multinomial(all_examples, chances, resamples)

    # Count right answers; those to imagined examples fall as each column's coins do.
    right = draws[:, :-1] @ flat
    for column, coin in enumerate(range(flat.shape[1]) if coins is None else coins):
        right[:, column] += np.random.default_rng((*seeds, coin)).binomial(draws[:, -1], 0.5)

    # Move the replicates so that their expected mean is the observed share.
    expected = (examples * value + IMAGINED / 2) / all_examples
    replicates = value + right / all_examples - expected
    return Estimate(value.reshape(columns), replicates.reshape(resamples, *columns), examples)


@dataclass(frozen=True)
class _Ratio:
    """The statistic of `ratio_of_sums`.

    totals: `[sample, ...]`.
    weights: `[sample, value]`, float64: one value shared by all entries of a sample, or one each.
    """

    totals: Array
    weights: Array

    def __call__(self, counts: Array) -> Array:
        flat = self.totals.reshape(len(self.totals), -1)
        # Infinities, and resamples without any weight.
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((counts @ flat) / (counts @ self.weights)).reshape(
                len(counts), *self.totals.shape[1:]
            )

    @property
    def is_share(self) -> bool:
        """Whether the totals are right (1) and wrong (0) answers, or NaN, of equal weight."""
        answered = self.totals[~np.isnan(self.totals)]
        return bool((self.weights == 1).all() and len(answered) and np.isin(answered, (0, 1)).all())


def ratio_of_sums(totals: NDArray[Any], weights: NDArray[Any]) -> _Ratio:
    """Sum of totals over sum of weights, the statistic behind means over tokens.

        r(c) = Σ_i c_i total_i / Σ_i c_i weight_i,   c_i how often sample i was drawn

    Args:
        totals: `[sample, ...]`, any dtype.
        weights: `[sample]`, any dtype, such as tokens per sample; or the shape of `totals`, where
            the totals of a sample are over different numbers of tokens.
    Returns:
        A statistic for `bootstrap`; NaN in a resample where no sample has weight.
    Example:
        >>> import numpy as np
        >>> mean = ratio_of_sums(np.array([3.0, 5.0]), np.array([1.0, 3.0]))
        >>> mean(np.array([[1.0, 1], [2, 0]])).tolist()  # each sample once, the first twice
        [2.0, 3.0]
    """
    weights = np.asarray(weights, np.float64)
    weights = weights.reshape(len(weights), -1)
    if (weights == weights[:, :1]).all():
        weights = weights[:, :1]
    return _Ratio(totals, weights)


def linearised(value: Array, influence: Array) -> CountStatistic:
    """A statistic to first order: its value, and how much counting a sample once more adds.

        r(c) = value + Σ_i (c_i - 1) influence_i,   c_i how often sample i was drawn

    For statistics that are not ratios of sums (the infinitesimal jackknife's approximation).

    Args:
        value: `[...]`, float64.
        influence: `[sample, ...]`, float64, summing to 0 over samples.
    Returns:
        A statistic for `bootstrap`.
    Source: Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, ch. 6.
    Example:
        >>> import numpy as np
        >>> statistic = linearised(np.array(10.0), np.array([2.0, -3, 1]))
        >>> statistic(np.array([[1.0, 1, 1], [2, 1, 0]])).tolist()
        [10.0, 11.0]
    """
    flat = influence.reshape(len(influence), -1)

    def statistic(counts: Array) -> Array:
        return value + ((counts - 1) @ flat).reshape(len(counts), *influence.shape[1:])

    return statistic


def strata(estimates: Sequence[Estimate]) -> Estimate:
    """Estimates of independent strata stacked: replicate i of each makes replicate i of the whole.

    Args:
        estimates: `[...]` each, with equally many replicates, drawn with different seeds.
    Returns:
        `[..., stratum]`, and the number of samples of each stratum.
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 8.3 (every sample
        resampled by itself).
    Example:
        >>> import numpy as np
        >>> first, second = (Estimate(np.array(k), np.array([k, 3 * k])) for k in (1.0, 10.0))
        >>> strata([first, second]).map(lambda array: array.sum(-1)).replicates.tolist()
        [11.0, 33.0]
    """
    return Estimate(
        np.stack([estimate.value for estimate in estimates], -1),
        np.stack([estimate.replicates for estimate in estimates], -1),
        np.stack([np.asarray(estimate.samples, np.float64) for estimate in estimates], -1),
        all(estimate.skewed for estimate in estimates),
    )


def bootstrap_p_value(estimate: Estimate) -> Array:
    """Two-sided p-value of no difference: 1 - the level at which the interval starts to exclude 0.

        means (`skewed`)    2 P(T > |g(value / s)|),   T of Student's distribution, g and s as in
                            `Estimate.interval`
        otherwise           1 - level,   where tail(level, samples) = (1 + b) / (1 + resamples), b
                            the number of replicates on the rarer side of 0

    With infinitely many samples the second is twice that share. A tail counts the value itself, so
    its share is at least 1 / (resamples + 1); NaN replicates do not count.

    Args:
        estimate: of the difference, `[...]`.
    Returns:
        `[...]`, float64, 0 to 1; NaN where no replicate is known.
    Source: as `Estimate.interval`; Efron & Tibshirani 1993, An Introduction to the Bootstrap,
        section 15.4; + 1: Davison & Hinkley 1997, Bootstrap Methods and their Application, ch. 4.
    Example:
        >>> import numpy as np
        >>> replicates = np.array([-1.0, 1, 2, 3, 4, 5, 6, 7, 8])  # one of nine is below 0
        >>> float(bootstrap_p_value(Estimate(np.array(4.0), replicates)))
        0.4
    """
    replicates = estimate.replicates
    samples = np.broadcast_to(estimate.samples, estimate.value.shape)
    few = (samples > 1) & np.isfinite(samples)
    degrees = np.where(few, samples - 1, 1.0)

    # Means: studentise, remove the skewness, and ask Student's distribution.
    if estimate.skewed:
        error, skewness = estimate._moments()
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(estimate.value == 0, 0, estimate.value / error)
        away = np.abs(_unskew(np.clip(t, -FAR, FAR), skewness))
        return np.where(few, 2 * stdtr(degrees, -away), 2 * ndtr(-away))

    # Everything else: the share of replicates on the rarer side of 0 is the tail of some level.
    known = (~np.isnan(replicates)).sum(0)
    rarer = np.minimum((replicates <= 0).sum(0), (replicates >= 0).sum(0))
    share = np.where(known > 0, np.minimum((1 + rarer) / (1 + known), 0.5), np.nan)
    return np.where(
        few, 2 * stdtr(degrees, ndtri(share) * np.sqrt(degrees / (degrees + 1))), 2 * share
    )
