"""How often do 95 % intervals hold the truth? Data are drawn whose truth is known. Run by hand:

    .venv/bin/python benchmarks/coverage.py [REPETITIONS]

Every cell is `REPETITIONS` studies (4,000): each draws data, and asks `repsim.stats`, or the
functions that the analysis degradation consists of, for an interval. `before` is the plain
percentile interval of a plain bootstrap of the same data. Studies of one batch share the draws of
the bootstrap, so that one matrix product serves them all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm

from repsim import stats
from repsim.evaluation.normalised_scores import (
    drop_undefined,
    estimate_mean,
    normalise_array,
    summarise_tasks,
)
from repsim.stats.bootstrap import Estimate

Array = NDArray[np.float64]
REPETITIONS, BATCH, RESAMPLES = 4000, 100, 1000
SAMPLES = (8, 24, 96)
EXAMPLES = (24, 96)
CHANCES = (0.0, 0.25, 0.25, 0.25, 0.5, 0.0)  # of six tasks


@dataclass(frozen=True)
class Study:
    """A batch of studies: what each found, before and now, and what is true, `[study]` each."""

    before: Estimate
    now: Estimate
    truth: Array


def with_plain(estimate: Estimate, truth: Array | float) -> Study:
    """Of an estimate whose replicates were the same before."""
    return Study(
        Estimate(estimate.value, estimate.replicates),
        estimate,
        np.broadcast_to(truth, estimate.value.shape),
    )


# Means of what is continuous: each gives the studies of one batch, of so many samples.


def tokens_of(generator: np.random.Generator, samples: int, spread: float) -> tuple[Array, Array]:
    """Sizes of the samples, `[sample]`, and normal values whose tokens are half alike: `[sample,
    study]` means.
    """
    sizes = np.maximum(1, np.round(12 * np.exp(spread * generator.normal(size=samples))))
    shared, own = generator.normal(size=(2, samples, BATCH))
    return sizes, (shared + own / np.sqrt(sizes[:, None])) / np.sqrt(2)


def ratio_of(sizes: Array, means: Array, seed: int) -> Estimate:
    totals = means * sizes[:, None]
    return stats.bootstrap(
        stats.ratio_of_sums(totals, sizes), len(sizes), resamples=RESAMPLES, seed=seed
    )


def normal_means(generator: np.random.Generator, samples: int, seed: int) -> Study:
    values = generator.normal(size=(samples, BATCH))
    return with_plain(ratio_of(np.ones(samples), values, seed), 0)


def normal_ratios(generator: np.random.Generator, samples: int, seed: int) -> Study:
    return with_plain(ratio_of(*tokens_of(generator, samples, 0.5), seed), 0)


def lopsided_ratios(generator: np.random.Generator, samples: int, seed: int) -> Study:
    return with_plain(ratio_of(*tokens_of(generator, samples, 1.0), seed), 0)


def cosine_ratios(generator: np.random.Generator, samples: int, seed: int) -> Study:
    """Samples' mean cosines 1 - exp(-2 + z / 2): 0.85 on average, with a tail towards 0."""
    sizes, means = tokens_of(generator, samples, 0.5)
    spread = np.sqrt((1 + 1 / sizes[:, None]) / 2)
    cosines = 1 - np.exp(-2 + means / spread / 2)
    return with_plain(ratio_of(sizes, cosines, seed), 1 - np.exp(-2 + 1 / 8))


def exponential_means(generator: np.random.Generator, samples: int, seed: int) -> Study:
    values = generator.exponential(size=(samples, BATCH))
    return with_plain(ratio_of(np.ones(samples), values, seed), 1)


def linear_ratios(generator: np.random.Generator, samples: int, seed: int) -> Study:
    """The ratio of two means, 1/2, to first order."""
    above, below = (
        1 + generator.normal(size=(samples, BATCH)) / 2,
        2 + generator.normal(size=(samples, BATCH)) / 2,
    )
    value = above.mean(0) / below.mean(0)
    influence = (above - value * below) / below.sum(0)
    estimate = stats.bootstrap(
        stats.linearised(value, influence), samples, resamples=RESAMPLES, seed=seed
    )
    return with_plain(estimate, 0.5)


# Scores, through the functions that the analysis degradation consists of


def answers(generator: np.random.Generator, examples: int, shares: Array) -> Array:
    """Right (1) and wrong (0) answers, `[study, plan, example]`; of two plans an example is as
    hard, in half.
    """
    studies, plans = shares.shape
    shared, own = (
        generator.normal(size=(studies, 1, examples)),
        generator.normal(size=(studies, plans, examples)),
    )
    return (ndtr((shared + own) / np.sqrt(2)) < shares[:, :, None]).astype(np.float64)


def means_of(right: Array, seed: int, name: str = "task") -> tuple[Estimate, Estimate]:
    """Mean scores of `[study, plan, example]` before and now, `[study, plan]`."""
    flat = right.reshape(-1, right.shape[-1])
    plans = [str(column) for column in range(len(flat))]
    now = estimate_mean(name, flat, plans, resamples=RESAMPLES, seed=seed)
    examples = right.shape[-1]
    plain = stats.bootstrap(
        lambda counts: counts @ flat.T / examples, examples, resamples=RESAMPLES, seed=seed
    )

    def by_study(array: Array) -> Array:
        return array.reshape(*array.shape[:-1], *right.shape[:2])

    return Estimate(by_study(plain.value), by_study(plain.replicates)), now.map(by_study)


def shares(low: float, high: float) -> Callable[[np.random.Generator, int, int], Study]:
    def study(generator: np.random.Generator, examples: int, seed: int) -> Study:
        share = generator.uniform(low, high, size=(BATCH, 1))
        before, now = means_of(answers(generator, examples, share), seed)
        cut = now.map(lambda array: array[..., 0])
        return Study(before.map(lambda array: array[..., 0]), cut, share[:, 0])

    return study


def differences(generator: np.random.Generator, examples: int, seed: int) -> Study:
    share = generator.uniform(size=(BATCH, 2))
    before, now = (
        estimate.map(lambda array: array[..., 1] - array[..., 0])
        for estimate in means_of(answers(generator, examples, share), seed)
    )
    return Study(before, now, share[:, 1] - share[:, 0])


def no_differences(generator: np.random.Generator, examples: int, seed: int) -> Study:
    share = np.repeat(generator.uniform(size=(BATCH, 1)), 2, axis=1)
    before, now = (
        estimate.map(lambda array: array[..., 1] - array[..., 0])
        for estimate in means_of(answers(generator, examples, share), seed)
    )
    return Study(before, now, np.zeros(BATCH))


def normalised(tasks: int) -> Callable[[np.random.Generator, int, int], Study]:
    """A plan's normalised score, the mean over so many tasks; over those that are valid, as the
    analysis takes it.
    """

    def study(generator: np.random.Generator, examples: int, seed: int) -> Study:
        chance = np.array(CHANCES if tasks > 1 else CHANCES[1:2])
        base = generator.uniform(chance + 0.35, 0.98, size=(BATCH, tasks))
        share = generator.uniform(chance / 2, base)
        both = np.stack([base, share], -1)
        found = [
            means_of(answers(generator, examples, both[:, task]), seed * 100 + task, f"task {task}")
            for task in range(tasks)
        ]
        # [study, plan, task].
        of_each = [stats.strata(estimates) for estimates in zip(*found, strict=True)]
        truth = (share - chance) / (base - chance)
        results: list[list[Estimate]] = [[], []]
        valid = of_each[1].value[:, 0] > chance + 2 * of_each[1].standard_error[:, 0]
        for way, estimate in enumerate(of_each):
            for row in range(BATCH):
                one = Estimate(estimate.value[row], estimate.replicates[:, row], estimate.samples)
                score = one.map(lambda array: normalise_array(array, chance))
                score, _ = drop_undefined(score, valid[row])
                results[way].append(
                    summarise_tasks(score, valid[row], np.mean).map(lambda array: array[..., 1])
                )
        truths = np.array(
            [truth[row, valid[row]].mean() if valid[row].any() else np.nan for row in range(BATCH)]
        )
        before, now = map(_side_by_side, results)
        return Study(before, now, truths)

    return study


def _side_by_side(estimates: list[Estimate]) -> Estimate:
    """Of studies with other numbers of replicates left: as few as are left of each."""
    fewest = min(len(one.replicates) for one in estimates)
    return Estimate(
        np.stack([one.value for one in estimates]),
        np.stack([one.replicates[:fewest] for one in estimates], -1),
        np.array([one.samples for one in estimates], np.float64),
    )


MakeStudy: TypeAlias = "Callable[[np.random.Generator, int, int], Study]"
CONTINUOUS: dict[str, MakeStudy] = {
    "mean, normal": normal_means,
    "mean over tokens, samples of like sizes": normal_ratios,
    "mean over tokens, few samples hold most": lopsided_ratios,
    "mean cosine over tokens, skewed": cosine_ratios,
    "ratio to first order (`linear`)": linear_ratios,
    "mean, exponential (very skewed)": exponential_means,
}
SCORED: dict[str, MakeStudy] = {
    "share, 0 to 1": shares(0, 1),
    "share, 0 to 0.1": shares(0, 0.1),
    "paired difference of shares": differences,
    "paired difference, none": no_differences,
    "normalised score": normalised(1),
    "mean normalised score of 6 tasks": normalised(len(CHANCES)),
}


def batches(study: MakeStudy, size: int, repetitions: int) -> Iterator[Study]:
    for number in range(-(-repetitions // BATCH)):
        yield study(np.random.default_rng((number, size)), size, number)


def coverage(
    study: Callable[[np.random.Generator, int, int], Study],
    size: int,
    repetitions: int = REPETITIONS,
) -> tuple[float, float, float, float]:
    """Per cent of the intervals that hold the truth, before and now, and their mean widths."""
    held, widths = [], []
    for batch in batches(study, size, repetitions):
        known = np.isfinite(batch.truth)
        ends = [estimate.interval() for estimate in (batch.before, batch.now)]
        held.append(
            [(low <= batch.truth + 1e-12) & (batch.truth - 1e-12 <= high) for low, high in ends]
        )
        held[-1] = [one[known] for one in held[-1]]
        widths.append([(high - low)[known] for low, high in ends])
    before, now = (100 * np.concatenate(each).mean() for each in zip(*held, strict=True))
    wide_before, wide_now = (np.nanmean(np.concatenate(each)) for each in zip(*widths, strict=True))
    return float(before), float(now), float(wide_before), float(wide_now)


def main(repetitions: int = REPETITIONS) -> None:
    began = time.process_time()
    print("| 95 % interval of | of | held before | holds now | width before | now |")
    print("| --- | --- | --- | --- | --- | --- |")
    cells = [(name, study, size) for name, study in CONTINUOUS.items() for size in SAMPLES]
    cells += [(name, study, size) for name, study in SCORED.items() for size in EXAMPLES]
    for name, study, size in cells:
        before, now, wide_before, wide_now = coverage(study, size, repetitions)
        print(
            f"| {name} | {size} | {before:.1f} % | {now:.1f} % | {wide_before:.3f} | "
            f"{wide_now:.3f} |",
            flush=True,
        )
    print(
        f"\n{time.process_time() - began:.0f} s of processor time; {repetitions:,} studies per "
        "cell, so that "
    )
    print(
        f"coverage is known to {norm.ppf(0.975) * 100 * np.sqrt(0.05 * 0.95 / repetitions):.1f} % "
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
