"""Pairs of views of the same items, and maps of them, for the tests of measures."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def random_rotation(units: int, seed: int = 0) -> Array:
    """An orthogonal map, `[unit, unit]`."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(units, units))).Q


def related_views(
    items: int = 50, units: int = 6, other: int = 9, seed: int = 0
) -> tuple[Array, Array]:
    """Two views that share something: the second is part a map of the first, part noise."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(items, units)) * np.linspace(0.5, 3, units)
    return x, x @ generator.normal(size=(units, other)) / 2 + generator.normal(size=(items, other))


def shear(x: NDArray[Any]) -> Array:
    """An invertible map that is not a rotation: the first unit grows fivefold and is added to the
    second.
    """
    sheared = x.copy()
    sheared[:, 0] *= 5
    sheared[:, 1] += sheared[:, 0]
    return sheared
