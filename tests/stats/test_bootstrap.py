"""The bootstrap: by hand, slow loops, scipy, and how often intervals hold the truth."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import kstest

from repsim.measures.geometry import (
    anisotropy_parts,
    effective_rank_parts,
    participation_ratio_parts,
    spectrum,
    two_nn_parts,
)
from repsim.measures.subspace import Pair, basis, canonical, rotation, unit_norm
from repsim.stats import (
    Estimate,
    bootstrap,
    bootstrap_p_value,
    bootstrap_shares,
    linearised,
    ratio_of_sums,
    strata,
    tail,
)

Array = NDArray[Any]


def two_views(x: Array) -> list[Array]:
    """The left and the right half of the units."""
    return np.split(x, 2, axis=1)


def pair_parts(pair: Pair) -> tuple[float, Array]:
    return pair.value, pair.influence


# A statistic of items and each one's influence.
PARTS: dict[str, Any] = {
    "participation ratio": lambda x: participation_ratio_parts(*spectrum(x)),
    "effective rank": lambda x: effective_rank_parts(*spectrum(x)),
    "two_nn": two_nn_parts,
    "anisotropy": lambda x: anisotropy_parts(x + 1),
    "rotation": lambda x: pair_parts(rotation(*map(unit_norm, two_views(x)))),
    "canonical": lambda x: pair_parts(canonical(*map(basis, two_views(x)))),
}


def dependent_samples(generator: np.random.Generator, samples: int = 60) -> list[Array]:
    """Values of the tokens of each sample, 2 to 20, around 0; tokens of one sample share half of
    their variance.
    """
    tokens = generator.integers(2, 21, size=samples)
    return [generator.normal() + generator.normal(size=size) for size in tokens]


def related_views(generator: np.random.Generator, items: int = 400) -> Array:
    """Two views of three units side by side, with canonical correlations of 0.9, 0.6 and 0.4."""
    rho = np.array([0.9, 0.6, 0.4])
    x, noise = generator.normal(size=(2, items, 3))
    return np.concatenate(
        [x * [1, 2, 3], (rho * x + np.sqrt(1 - rho**2) * noise) * [1, 0.7, 0.5]], axis=1
    )


def some_totals(samples: int = 12, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(samples, 2, 3)) + 1, generator.uniform(1, 5, size=samples)


def covers(estimate: Estimate, truth: float) -> bool:
    low, high = estimate.interval()
    return bool(low <= truth <= high)


def test_ratio_by_hand() -> None:
    """Of totals 3 and 5 with weights 1 and 3: all, each alone, and the first twice beside the
    second.
    """
    statistic = ratio_of_sums(np.array([3.0, 5.0]), np.array([1.0, 3.0]))
    assert_allclose(
        statistic(np.array([[1.0, 1], [1, 0], [0, 1], [2, 1]])),
        [8 / 4, 3, 5 / 3, 11 / 5],
        rtol=1e-15,
    )


def test_linear_by_hand() -> None:
    statistic = linearised(np.array(10.0), np.array([2.0, -3, 1]))
    assert_allclose(
        statistic(np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 3]])), [10, 10 + 2 - 1, 10 - 2 + 3 + 2]
    )


def test_two_sided_by_hand() -> None:
    """One of nine below 0; all above; as many on both sides; on one side but for zeros, which are
    on both.
    """
    columns = [[-1, 1, 2, 3, 4, 5, 6, 7, 8], range(1, 10), [-1, 1] * 4 + [0], [0, 0] + [1] * 7]
    replicates = np.array([list(column) for column in columns], float).T
    assert_allclose(bootstrap_p_value(Estimate(np.zeros(4), replicates)), [0.4, 0.2, 1, 0.6])


def test_strata_by_hand() -> None:
    """A sum of two strata: value from value, replicate from replicate."""
    one, other = (
        Estimate(np.array([1.0, 2]) * k, np.array([[1.0, 2], [3, 4]]) * k) for k in (1, 10)
    )
    total = strata([one, other]).map(lambda array: array.sum(-1))
    assert_allclose(total.value, [11, 22])
    assert_allclose(total.replicates, [[11, 22], [33, 44]])


def test_interval_is_of_percentiles() -> None:
    estimate = Estimate(np.zeros(()), np.random.default_rng(0).permutation(np.arange(1001.0)))
    assert_allclose(estimate.interval(), (25, 975))
    assert_allclose(estimate.interval(0.5), (250, 750))
    assert estimate.standard_error == pytest.approx(np.arange(1001).std(ddof=1))


def test_an_interval_of_few_samples_takes_percentiles_further_out() -> None:
    """By scipy.stats; of entries of other numbers of samples, each its own."""
    generator = np.random.default_rng(0)
    replicates = generator.normal(size=(400, 2, 3))
    estimate = Estimate(np.zeros((2, 3)), replicates, np.array([5.0, 24, np.inf]))
    found = estimate.interval()
    for column, samples in enumerate((5, 24, np.inf)):
        shift = 1 if np.isinf(samples) else np.sqrt(samples / (samples - 1))
        beyond = stats.norm.cdf(-shift * stats.t.ppf(0.975, samples - 1))
        assert tail(0.95, samples) == pytest.approx(beyond, rel=1e-9)
        expected = np.quantile(replicates[:, :, column], [beyond, 1 - beyond], axis=0)
        assert_allclose(np.stack(found)[:, :, column], expected, rtol=1e-9)


def scipy_bootstrap(values: Array, method: str) -> Any:
    """scipy's bootstrap of the mean, with its own draws."""
    return stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method=method, rng=np.random.default_rng(1)
    )


@pytest.mark.parametrize("draw", ["normal", "exponential"])
@pytest.mark.parametrize("samples", [30, 200])
def test_percentiles_and_standard_errors_of_scipy_s_replicates_are_scipy_s(
    samples: int, draw: str
) -> None:
    """With infinitely many samples percentiles are not expanded."""
    values = getattr(np.random.default_rng(0), draw)(size=samples)
    expected = scipy_bootstrap(values, "percentile")
    estimate = Estimate(np.array(values.mean()), expected.bootstrap_distribution)
    assert_allclose(estimate.interval(), expected.confidence_interval, rtol=1e-12)
    assert estimate.standard_error == pytest.approx(expected.standard_error, rel=1e-12)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
@pytest.mark.parametrize("samples", [30, 200])
def test_replicates_are_spread_as_scipy_s(samples: int, draw: str) -> None:
    """Deciles and standard errors, to 4 and 3 times their own errors with 9,999 resamples."""
    values = getattr(np.random.default_rng(0), draw)(size=samples)
    expected = scipy_bootstrap(values, "percentile")
    estimate = bootstrap(ratio_of_sums(values, np.ones(samples)), samples, resamples=9999)
    assert estimate.standard_error == pytest.approx(expected.standard_error, rel=0.03)
    deciles = [
        np.quantile(replicates, np.arange(0.1, 1, 0.1)) - values.mean()
        for replicates in (estimate.replicates, expected.bootstrap_distribution)
    ]
    assert_allclose(deciles[0], deciles[1], atol=0.1 * expected.standard_error)


def test_skewed_intervals_are_those_of_scipy_s_bca_where_samples_are_many() -> None:
    """Both are accurate to second order; plain percentiles, to first, lie three times as far off.

    scipy's ends are moved out by the factor that they leave out: √(n / (n - 1)), and Student's t
    over the normal quantile.
    """
    samples = 200
    t, normal = stats.t.ppf(0.975, samples - 1), stats.norm.ppf(0.975)
    widening = np.sqrt(samples / (samples - 1)) * t / normal
    away: dict[str, list[Array]] = {"BCa": [], "percentile": []}
    for seed in range(3):
        values = np.random.default_rng(seed).exponential(size=samples)
        estimate = bootstrap(ratio_of_sums(values, np.ones(samples)), samples, resamples=9999)
        ends = np.array(estimate.interval()) - values.mean()
        for method in away:
            expected = np.array(scipy_bootstrap(values, method).confidence_interval)
            away[method].append(widening * (expected - values.mean()) / ends - 1)
    assert_allclose(away["BCa"], 0, atol=0.03)
    assert np.abs(away["percentile"]).mean() > 3 * np.abs(away["BCa"]).mean()


@pytest.mark.parametrize("draw", ["normal", "exponential"])
@pytest.mark.parametrize("samples", [8, 24])
def test_intervals_of_few_samples_hold_the_truth_as_often_as_they_say(
    samples: int, draw: str
) -> None:
    """1,600 data sets: 93 to 97 in 100, where plain percentiles hold in 85 to 93."""
    values = getattr(np.random.default_rng(0), draw)(size=(samples, 1600))
    truth = 0 if draw == "normal" else 1
    estimate = bootstrap(ratio_of_sums(values, np.ones(samples)), samples)
    low, high = estimate.interval()
    assert 0.925 <= ((low <= truth) & (truth <= high)).mean() <= 0.97
    low, high = Estimate(estimate.value, estimate.replicates).interval()
    assert ((low <= truth) & (truth <= high)).mean() < (0.9 if samples == 8 else 0.94)


@pytest.mark.parametrize("examples", [24, 96])
def test_intervals_of_shares_hold_the_truth_as_often_as_they_say(examples: int) -> None:
    """Of 1,600 shares from 0 to 1, and of paired differences of two."""
    generator = np.random.default_rng(0)
    share = generator.uniform(size=(2, 1600))
    right = (generator.uniform(size=(examples, 1, 1600)) < share).astype(float)
    estimate = bootstrap(ratio_of_sums(right, np.ones(examples)), examples)
    difference = estimate.map(lambda array: array[..., 1, :] - array[..., 0, :])
    for found, truth in ((estimate, share), (difference, share[1] - share[0])):
        low, high = found.interval()
        assert ((low <= truth) & (truth <= high)).mean() >= 0.93
        assert (high - low).min() > 0


def test_hall_s_interval_by_hand() -> None:
    """The skewness of replicates 0, 0, 0 and 4 is 2 / √3, and cut at 1; of 0, 1 and 2 it is 0, and
    t is Student's.
    """
    even = Estimate(np.array(1.0), np.array([0.0, 1, 2]), 5, skewed=True)
    assert_allclose(
        even.interval(), 1 + np.array([-1, 1]) * np.sqrt(5 / 4) * stats.t.ppf(0.975, 4), rtol=1e-5
    )
    skewed = Estimate(np.array(1.0), np.array([0.0, 0, 0, 4]), 5, skewed=True)
    reach = 3 * np.cbrt(5 / 6 + np.array([1, -1]) * stats.t.ppf(0.975, 4)) - 3
    assert_allclose(skewed.interval(), 1 - 2 * np.sqrt(5 / 4) * reach)
    assert skewed.interval()[1] - 1 > 1 - skewed.interval()[0]


def test_ratios_of_other_weights_equal_loops_over_resamples() -> None:
    """Each total by its own tokens; a draw without any is NaN, as is what none has."""
    generator = np.random.default_rng(0)
    totals, weights = (
        generator.normal(size=(6, 3)),
        generator.integers(1, 9, size=(6, 3)).astype(float),
    )
    weights[:, 1], weights[1:, 2] = 0, 0
    totals[weights == 0] = 0
    counts = generator.multinomial(6, [1 / 6] * 6, 40)
    found = ratio_of_sums(totals, weights)(counts.astype(float))
    for row, column in np.ndindex(40, 3):
        drawn = np.repeat(np.arange(6), counts[row])
        weight = weights[drawn, column].sum()
        expected = totals[drawn, column].sum() / weight if weight else np.nan
        assert_allclose(found[row, column], expected, rtol=1e-12)
    same = np.repeat(weights[:, :1], 3, axis=1)
    assert_allclose(
        ratio_of_sums(totals, same)(counts.astype(float)),
        ratio_of_sums(totals, weights[:, 0])(counts.astype(float)),
    )


@pytest.mark.parametrize("right", [0, 1, 12, 23, 24])
def test_a_share_s_interval_is_about_agresti_and_coull_s(right: int) -> None:
    """Their deviation of the share with four more examples, half of them right; never zero."""
    outcomes = (np.arange(24) < right).astype(float)
    estimate = bootstrap_shares(outcomes, resamples=20000)
    assert estimate.value == right / 24
    assert estimate.replicates.mean() == pytest.approx(right / 24, abs=2e-3)
    share = (right + 2) / 28
    assert estimate.standard_error == pytest.approx(np.sqrt(share * (1 - share) / 28), rel=0.03)
    low, high = estimate.interval()
    assert low < right / 24 < high


def test_shares_of_many_examples_are_resampled_as_means_are() -> None:
    outcomes = (np.random.default_rng(0).uniform(size=(2000, 3)) < [0.2, 0.5, 0.7]).astype(float)
    shares, means = (
        bootstrap_shares(outcomes),
        bootstrap(ratio_of_sums(outcomes, np.ones(2000)), 2000),
    )
    assert_allclose(shares.value, means.value, rtol=1e-12)
    assert_allclose(shares.standard_error, means.standard_error, rtol=0.06)
    difference = [one.map(lambda array: array[..., 1] - array[..., 0]) for one in (shares, means)]
    assert difference[0].standard_error == pytest.approx(difference[1].standard_error, rel=0.06)


def test_shares_are_paired() -> None:
    """Columns that are equal differ by what four imagined examples, each a coin of its own, may
    add.
    """
    outcomes = np.repeat(np.random.default_rng(0).integers(0, 2, size=(100, 1)), 2, axis=1).astype(
        float
    )
    difference = bootstrap_shares(outcomes).map(lambda array: array[..., 1] - array[..., 0])
    assert difference.standard_error == pytest.approx(np.sqrt(4 / 2) / 104, rel=0.1)


def test_shares_of_one_example_or_of_what_is_not_there() -> None:
    assert np.isnan(bootstrap_shares(np.ones((1, 2)), resamples=5).replicates).all()
    found = bootstrap_shares(np.array([[1.0, np.nan], [0, 1]]), resamples=5)
    assert_array_equal(np.isnan(found.value), [False, True])
    assert_array_equal(np.isnan(found.interval()[0]), [False, True])
    with pytest.raises(ValueError, match="0 examples, 5 resamples: at least 1 and 2"):
        bootstrap_shares(np.ones((0, 2)), resamples=5)


def test_a_function_of_an_estimate_is_taken_of_each_replicate() -> None:
    estimate = bootstrap(ratio_of_sums(*some_totals()), 12, resamples=20)
    mapped = estimate.map(lambda value: value.sum(-1))
    assert_array_equal(mapped.value, estimate.value.sum(-1))
    assert_array_equal(mapped.replicates, estimate.replicates.sum(-1))


@pytest.mark.parametrize("samples", [20, 400])
def test_standard_error_of_a_mean(samples: int) -> None:
    values = np.random.default_rng(0).exponential(size=samples)
    estimate = bootstrap(ratio_of_sums(values, np.ones(samples)), samples, resamples=4000)
    assert estimate.value == pytest.approx(values.mean(), rel=1e-14)
    assert estimate.standard_error == pytest.approx(values.std() / samples**0.5, rel=0.05)


def test_standard_error_of_a_linear_statistic() -> None:
    """Of a mean: each sample adds (value - mean) / n."""
    values = np.random.default_rng(0).normal(size=(50, 3))
    parts = linearised(values.mean(0), (values - values.mean(0)) / 50)
    assert_allclose(
        bootstrap(parts, 50).replicates,
        bootstrap(ratio_of_sums(values, np.ones(50)), 50).replicates,
        rtol=1e-10,
        atol=1e-12,
    )


def test_ratio_equals_a_loop_over_resamples() -> None:
    totals, weights = some_totals()
    counts = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), 40)
    drawn = [np.repeat(np.arange(12), count) for count in counts]
    expected = [totals[index].sum(0) / weights[index].sum() for index in drawn]
    assert_allclose(ratio_of_sums(totals, weights)(counts.astype(float)), expected, rtol=1e-12)
    estimate = bootstrap(ratio_of_sums(totals, weights), 12, resamples=40, seed=3)
    assert_allclose(estimate.replicates, expected, rtol=1e-12)
    assert_allclose(estimate.value, totals.sum(0) / weights.sum(), rtol=1e-12)


def test_linear_equals_a_loop_over_resamples() -> None:
    influence = np.random.default_rng(0).normal(size=(12, 2, 3))
    influence -= influence.mean(0)
    value = np.arange(6.0).reshape(2, 3)
    counts = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), 40)
    expected = [value + influence[np.repeat(np.arange(12), count)].sum(0) for count in counts]
    estimate = bootstrap(linearised(value, influence), 12, resamples=40, seed=3)
    assert_allclose(estimate.replicates, expected, rtol=1e-12, atol=1e-12)
    assert_array_equal(estimate.value, value)


def test_linear_is_the_ratio_to_first_order() -> None:
    """A tenth of the change leaves a hundredth of the difference."""
    totals, weights = some_totals()
    value = totals.sum(0) / weights.sum()
    first_order = linearised(value, (totals - value * weights[:, None, None]) / weights.sum())
    nudge = np.random.default_rng(1).uniform(-1, 1, size=(5, 12))
    apart = [
        np.abs(ratio_of_sums(totals, weights)(1 + h * nudge) - first_order(1 + h * nudge)).max()
        for h in (1e-2, 1e-3)
    ]
    assert apart[0] < 1e-3
    assert apart[1] == pytest.approx(apart[0] / 100, rel=0.1)


def test_linear_has_the_ratios_standard_error_with_many_samples() -> None:
    totals, weights = some_totals(samples=400)
    value = totals.sum(0) / weights.sum()
    first_order = linearised(value, (totals - value * weights[:, None, None]) / weights.sum())
    exact = bootstrap(ratio_of_sums(totals, weights), 400)
    assert_allclose(bootstrap(first_order, 400).standard_error, exact.standard_error, rtol=0.02)


def test_intervals_of_whole_samples_hold_the_truth_as_often_as_they_say() -> None:
    """200 data sets whose mean is 0, tokens of a sample alike: 95 % intervals, and those that
    resample tokens.
    """
    generator = np.random.default_rng(0)
    by_sample, by_token = [], []
    for _ in range(200):
        samples = dependent_samples(generator)
        totals, tokens = np.array([[values.sum(), len(values)] for values in samples]).T
        by_sample.append(
            covers(bootstrap(ratio_of_sums(totals, tokens), len(samples), resamples=300), 0)
        )
        values = np.concatenate(samples)
        by_token.append(
            covers(
                bootstrap(ratio_of_sums(values, np.ones(len(values))), len(values), resamples=300),
                0,
            )
        )
    assert 0.90 <= np.mean(by_sample) <= 0.99
    assert np.mean(by_token) < 0.8


@pytest.mark.parametrize("name", PARTS)
def test_a_linear_standard_error_is_the_spread_over_fresh_data(name: str) -> None:
    """60 data sets of 400 items; within a quarter. Of two_nn it is a sixth too small: items share
    neighbours.
    """
    generator = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(60):
        value, influence = PARTS[name](related_views(generator))
        values.append(value)
        errors.append(
            bootstrap(linearised(np.array(value), influence), 400, resamples=200).standard_error
        )
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.25)


def test_influences_of_dependent_items_are_summed_over_samples_first() -> None:
    """Items that come ten times alike: the spread is that of a tenth of the items."""
    x = np.random.default_rng(0).normal(size=(100, 4)) * [1, 2, 3, 4]
    value, influence = PARTS["participation ratio"](x)
    again, repeated = PARTS["participation ratio"](np.repeat(x, 10, axis=0))
    assert again == pytest.approx(value, rel=1e-12)
    assert_allclose(repeated.reshape(100, 10).sum(1), influence, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_nothing_is_said_of_the_spread_of_one_sample(shape: Any) -> None:
    estimate = bootstrap(ratio_of_sums(np.full((1, *shape), 6.0), np.array([3.0])), 1, resamples=10)
    assert_array_equal(estimate.value, np.full(shape, 2.0))
    assert estimate.replicates.shape == (10, *shape)
    for unknown in (estimate.standard_error, *estimate.interval()):
        assert unknown.shape == shape
        assert np.isnan(unknown).all()


def test_a_total_that_was_not_measured_leaves_the_others_alone() -> None:
    totals, weights = some_totals()
    totals[4, 0, 1] = np.nan
    estimate = bootstrap(ratio_of_sums(totals, weights), 12, resamples=50)
    unknown = np.isnan(totals).any(0)
    assert_array_equal(np.isnan(estimate.value), unknown)
    assert_array_equal(np.isnan(estimate.interval()[0]), unknown)


def test_seeds_reproduce_draws_and_others_do_not() -> None:
    statistic = ratio_of_sums(*some_totals())
    first, again, other = (
        bootstrap(statistic, 12, resamples=20, seed=seed).replicates for seed in (5, 5, 6)
    )
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_resamples_draw_as_many_samples_as_there_are() -> None:
    seen = []

    def statistic(counts: Array) -> Array:
        seen.append(counts)
        return counts[:, 0]

    bootstrap(statistic, 7, resamples=30)
    whole, drawn = seen
    assert_array_equal(whole, np.ones((1, 7)))
    assert drawn.shape == (30, 7)
    assert_array_equal(drawn.sum(1), 7)
    assert (drawn != 1).any()


def test_two_sided_p_values_of_no_difference_are_uniform() -> None:
    """Means of 300 around 0, beside means around 1."""
    generator, found = np.random.default_rng(0), []
    for seed in range(400):
        values = generator.normal(size=(300, 2)) + np.array([0, 1])
        found.append(
            bootstrap_p_value(
                bootstrap(ratio_of_sums(values, np.ones(300)), 300, resamples=199, seed=seed)
            )
        )
    none, one = np.transpose(found)
    assert kstest(none, "uniform").pvalue > 0.05
    assert 0.02 <= (none <= 0.05).mean() <= 0.09
    assert one.max() < 0.001


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("samples", [np.inf, 200, 24, 8])
def test_a_two_sided_p_value_is_the_level_whose_interval_begins_at_0(
    samples: int, skewed: bool
) -> None:
    replicates = np.random.default_rng(0).gamma(2, 0.5, size=999) - 0.1
    estimate = Estimate(np.array(0.9), replicates, samples, skewed)
    p = float(bootstrap_p_value(estimate))
    ends = [estimate.interval(1 - level)[0] for level in (p - 0.006, p + 0.006)]
    assert ends[0] < 0 < ends[1]
    assert bootstrap_p_value(
        Estimate(-estimate.value, -replicates, samples, skewed)
    ) == pytest.approx(p, rel=1e-12)


def test_what_does_not_vary_differs_from_0_or_does_not() -> None:
    estimate = Estimate(
        np.array([0.0, 0.5, -2.0]), np.tile([0.0, 0.5, -2.0], (9, 1)), 8, skewed=True
    )
    assert_allclose(bootstrap_p_value(estimate), [1, 0, 0], atol=1e-12)
    assert_array_equal(np.stack(estimate.interval()), [[0, 0.5, -2]] * 2)


def test_a_p_value_of_few_samples_is_that_of_student_s_t() -> None:
    """Replicates as normal as they can be, their deviation that of resamples of n: √((n - 1) / n)
    of the samples'.
    """
    quantiles = stats.norm.ppf((np.arange(9999) + 0.5) / 9999)
    for samples, t in ((8, 2.0), (24, 2.5)):
        for skewed in (False, True):
            estimate = Estimate(
                np.array(t), t + quantiles * np.sqrt((samples - 1) / samples), samples, skewed
            )
            assert bootstrap_p_value(estimate) == pytest.approx(
                2 * stats.t.sf(t, samples - 1), rel=0.02
            )
            low, high = estimate.interval()
            assert_allclose(
                (low, high), t + np.array([-1, 1]) * stats.t.ppf(0.975, samples - 1), rtol=0.02
            )


def test_strata_are_independent() -> None:
    """The variance of a sum is the sum of variances; with one seed for both it is that of twice the
    same.
    """
    values = np.random.default_rng(0).normal(size=200)

    def error(*seeds: Any) -> Any:
        each = [
            bootstrap(ratio_of_sums(values, np.ones(200)), 200, resamples=4000, seed=seed)
            for seed in seeds
        ]
        return strata(each).map(lambda array: array.sum(-1)).standard_error

    one = values.std() / 200**0.5
    assert error((0, 1), (0, 2)) == pytest.approx(2**0.5 * one, rel=0.05)
    assert error((0, 1), (0, 1)) == pytest.approx(2 * one, rel=0.05)


def test_what_was_not_measured_has_no_two_sided_p_value() -> None:
    replicates = np.array([[np.nan, 1, 1], [np.nan, np.nan, 2], [np.nan, 3, np.inf]])
    assert_allclose(bootstrap_p_value(Estimate(np.ones(3), replicates)), [np.nan, 2 / 3, 2 / 4])


@pytest.mark.parametrize(("samples", "resamples"), [(0, 10), (5, 1)])
def test_too_few_samples_or_resamples(samples: int, resamples: int) -> None:
    with pytest.raises(
        ValueError, match=f"{samples} samples, {resamples} resamples: at least 1 and 2"
    ):
        bootstrap(lambda counts: counts[:, 0], samples, resamples=resamples)
