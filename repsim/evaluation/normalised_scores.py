"""Scores as shares of what the full model scores above chance: their means over examples, their
normalisation and their means over tasks, each with its bootstrap distribution.

Arrays in, estimates out; nothing here knows what a plan is or where scores lie.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from repsim import stats
from repsim.stats.bootstrap import Estimate

Array = NDArray[np.float64]

# Means over examples


def estimate_means(
    scores: Mapping[str, Array], plans: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Mean over the examples of each task under each plan, with its bootstrap distribution.

    Tasks are independent strata. Within one, all plans have the same draws, which depend on nothing
    else in the store.

    Args:
        scores: task → `[plan, example]`; a mean with a NaN is NaN.
        plans: canonical texts, `[plan]`.
        resamples: draws of the bootstrap.
        seed: of the draws.
    Returns:
        `[plan, task]`.
    Example:
        >>> import numpy as np
        >>> right = np.array([[1.0, 1, 1, 0], [1, 0, 0, 0]])
        >>> estimate_means({"piqa": right}, ["0-5", "0, 1, 5"], resamples=20).value.tolist()
        [[0.75], [0.25]]
    """
    return stats.strata(
        [
            estimate_mean(task, values, plans, resamples=resamples, seed=seed)
            for task, values in scores.items()
        ]
    )


def estimate_mean(
    task: str, scores: Array, plans: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """One task of `estimate_means`: `[plan, example]` → `[plan]`."""
    # Seeds are of names, so that a task's draws and a plan's coins are the same in any store.
    seeds = (seed, zlib.crc32(task.encode()))
    if is_share(scores):
        coins = [zlib.crc32(plan.encode()) for plan in plans]
        return stats.bootstrap_shares(scores.T, resamples=resamples, seed=seeds, coins=coins)
    mean = stats.ratio_of_sums(scores.T, np.ones(scores.shape[1]))
    estimate = stats.bootstrap(mean, scores.shape[1], resamples=resamples, seed=seeds)
    # Percentiles, as ratios and exponentials of it may be far out.
    return replace(estimate, skewed=False)


def is_share(scores: Array) -> bool:
    """Whether the mean is a share: every score that there is is 0 or 1."""
    known = scores[np.isfinite(scores)]
    return bool(len(known)) and bool(np.isin(known, (0, 1)).all())


# Against the baseline and chance


def normalise(value: Estimate, chance: Array) -> tuple[Estimate, NDArray[np.bool_], int]:
    """Scores as a share of what the baseline scores above chance: (score - chance) / (baseline -
    chance).

    Args:
        value: scores, `[variant, task]`; the baseline is the first variant.
        chance: what guessing scores, `[task]`.
    Returns:
        Normalised scores, `[variant, task]`, NaN where the baseline is not above chance; which
        tasks are valid, `[task]`: the baseline is more than two standard errors above chance; and
        how many resamples were left out, in which a valid task's baseline is not above chance.
    Example:
        >>> import numpy as np
        >>> value = Estimate(np.array([[0.75], [0.5]]), np.array([[[0.7], [0.5]], [[0.8], [0.5]]]))
        >>> normalised, valid, undefined = normalise(value, np.array([0.25]))
        >>> normalised.value.tolist(), valid.tolist(), undefined
        ([[1.0], [0.5]], [True], 0)
    """
    baseline = value.map(lambda array: array[..., 0, :])
    valid = baseline.value > chance + 2 * baseline.standard_error
    normalised = value.map(lambda array: normalise_array(array, chance))
    normalised, undefined = drop_undefined(normalised, valid)
    return normalised, valid, undefined


def normalise_array(array: Array, chance: Array) -> Array:
    """`[..., variant, task]` with the baseline first → 1 for the baseline's score, 0 for chance."""
    return (array - chance) / above_chance(array[..., :1, :], chance)


def above_chance(baseline: Array, chance: Array) -> Array:
    """How far the baseline is above chance; NaN where it is not."""
    return np.where(baseline > chance, baseline - chance, np.nan)


def drop_undefined(normalised: Estimate, valid: NDArray[np.bool_]) -> tuple[Estimate, int]:
    """Without the resamples in which a valid task's baseline is not above chance, and how many
    these are.
    """
    is_defined = ~np.isnan(normalised.replicates[:, 0, valid]).any(1)
    if is_defined.all():
        return normalised, 0
    # Of a single resample there is no spread.
    replicates = (
        normalised.replicates[is_defined]
        if is_defined.sum() > 1
        else np.full_like(normalised.replicates, np.nan)
    )
    estimate = Estimate(normalised.value, replicates, normalised.samples)
    return estimate, int((~is_defined).sum())


def summarise_tasks(
    normalised: Estimate, valid: NDArray[np.bool_], summary: Callable[..., Array]
) -> Estimate:
    """A summary over the valid tasks, `[..., variant, task]` → `[..., variant]`; NaN if there are
    none.

    Args:
        normalised: scores, see `normalise`.
        valid: `[task]`.
        summary: `np.mean`, `np.median` or another function with `axis`.
    """
    if not valid.any():
        return normalised.map(lambda array: array[..., 0] * np.nan, samples=np.inf)
    examples = np.broadcast_to(normalised.samples, valid.shape)[valid].sum()
    return normalised.map(
        lambda array: summary(array[..., valid], axis=-1), samples=float(examples)
    )
