"""Permutation nulls and several tests at once: is a value larger than chance gives?

Whole samples change places, because the tokens of one sample are not independent. The functions
that follow compare a value with its null, and correct for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A permutation this close to the value may be the same items in the same places, its sums rounded
# in another order.
TIE = 1e-6

Array = NDArray[np.float64]


def permute_samples(
    samples: NDArray[Any], permutations: int, *, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Orders of the items in which whole samples change places, each equally likely.

    A sample's items stay together and in their order, so whatever ties them together stays. With
    one item per sample, any order of the items is equally likely.

    Args:
        samples: `[item]`, any dtype: the sample of each item; every sample has equally many.
        permutations: how many orders to draw.
        seed: of the draws.
    Yields:
        `[item]`, int64: which item comes at each place.
    Raises:
        ValueError: samples have different numbers of items.
    Example:
        >>> import numpy as np
        >>> orders = permute_samples(np.array([0, 0, 1, 1]), 20)
        >>> sorted({tuple(order.tolist()) for order in orders})
        [(0, 1, 2, 3), (2, 3, 0, 1)]
    """
    sizes = np.unique(samples, return_counts=True)[1]
    if len(set(sizes.tolist())) > 1:
        raise ValueError(
            f"samples of {sizes.min()} to {sizes.max()} items cannot change places; "
            "draw equally many"
        )
    places = np.argsort(samples, kind="stable").reshape(len(sizes), -1)
    generator = np.random.default_rng(seed)
    for _ in range(permutations):
        order = np.empty(places.size, np.int64)
        order[places] = places[generator.permutation(len(places))]
        yield order


def max_statistic_p_values(value: Array, null: Array) -> Array:
    """Chance of a value this large where nothing is related, for several values at once.

        p_j = (1 + #{permutations b: max_k null[b, k] ≥ value_j}) / (1 + permutations)

    Each value is compared with the largest of every permutation. So the chance that any p-value is
    at most 0.05 by accident is 5 % for all values together, not for each.

    Args:
        value: `[...]`, float64; NaN marks what is not a comparison.
        null: `[permutation, ...]`, float64, the same statistics of permuted items; NaN as above.
    Returns:
        `[...]`, float64, 1 / (permutations + 1) to 1; NaN where the value is.
    Source: Westfall & Young 1993, Resampling-Based Multiple Testing (single-step maximum); + 1:
        Phipson & Smyth 2010, Permutation p-values should never be zero.
    Example:
        >>> import numpy as np
        >>> null = np.array([[3.0, 1], [2, 5], [4, 0]])  # the largest of each are 3, 5 and 4
        >>> max_statistic_p_values(np.array([3.0, 4.5, 6]), null).tolist()
        [1.0, 0.5, 0.25]
    """
    largest = np.fmax.reduce(null.reshape(len(null), -1), axis=1)
    above = (largest >= np.asarray(value)[..., None] - TIE).sum(-1)
    return np.where(
        np.isnan(value) | np.isnan(largest).any(), np.nan, (above + 1) / (len(null) + 1)
    )


def holm(p_values: Array) -> Array:
    """p-values of several tests, adjusted so that all of them together err as rarely as one would.

        p~_(i) = max over j ≤ i of min(1, (m - j + 1) p_(j)),   p_(1) ≤ ... ≤ p_(m)

    Where no difference exists, any adjusted value is at most 0.05 in at most 5 % of studies,
    however the tests depend on each other.

    Args:
        p_values: `[test]`, float64, 0 to 1. NaN is not a test: it stays NaN and does not count.
    Returns:
        `[test]`, float64, 0 to 1, in the order given.
    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    Example:
        >>> import numpy as np
        >>> holm(np.array([0.01, 0.04, 0.03, 0.005])).round(6).tolist()
        [0.03, 0.06, 0.06, 0.02]
    """
    tests = int((~np.isnan(p_values)).sum())
    order = np.argsort(p_values, kind="stable")[:tests]  # NaN sorts last
    adjusted = np.full(len(p_values), np.nan)
    remaining = np.arange(tests, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(remaining * p_values[order]), 1)
    return adjusted


def chance_corrected(value: Array, null: Array) -> Array:
    """A similarity relative to chance: 0 is what unrelated items give on average, 1 stays 1.

        (value - E) / (1 - E),   E = mean of the null over permutations

    May be negative. Undefined, NaN, where unrelated items are as alike as can be: of two or three
    samples, all permutations may be the items themselves.

    Args:
        value: `[...]`, float64, at most 1.
        null: `[permutation, ...]`, float64, the same similarities of permuted items.
    Returns:
        `[...]`, float64.
    Source: the correction for chance of Hubert & Arabie 1985, Comparing partitions, eq. 4.
    Example:
        >>> import numpy as np
        >>> null = np.array([[0.1], [0.3]])  # chance gives 0.2
        >>> chance_corrected(np.array([0.6]), null).round(6).tolist()
        [0.5]
    """
    mean = null.mean(0)
    room = np.where(mean == 1, np.nan, 1 - mean)
    return (value - mean) / room
