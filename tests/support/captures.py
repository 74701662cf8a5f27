"""Captures made of arrays, and slow loops to compare analyses with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.spatial.distance import cosine as cosine_distance

from repsim.stats.per_sample import SampleStatistic

LENGTHS = (5, 1, 12, 3)

Array = NDArray[Any]


class ArrayCapture:
    """A capture made of arrays: of one plan, whatever its name, or of several by name.

    array: `[state, token, unit]`, the states of every plan not named in `others`.
    sizes: tokens per sample.
    others: plan → what its states are the outputs of, and `[state, token, unit]`.
    """

    def __init__(
        self, states: ArrayLike, lengths: Sequence[int], **others: tuple[list[str], ArrayLike]
    ) -> None:
        self.identity: Mapping[str, Any] = {"model": "painter", "corpus": "easel"}
        self.array, self.sizes = np.asarray(states), lengths
        self.others = {name: (steps, np.asarray(array)) for name, (steps, array) in others.items()}

    def states(self, plan: str) -> Array:
        return self.others[plan][1] if plan in self.others else self.array

    def steps(self, plan: str) -> list[str]:
        if plan in self.others:
            return self.others[plan][0]
        return ["embed", *map(str, range(len(self.array) - 1))]

    def plan_name(self, plan: str) -> str:
        return f"name of {plan}"

    def plan_text(self, plan: str) -> str:
        return "0, 1, 2"

    def lengths(self, *plans: str) -> NDArray[np.int64]:
        return np.array(self.sizes, np.int64)

    def each_sample(self, *plans: str) -> Iterator[Array]:
        states = np.concatenate([self.states(plan) for plan in plans])
        for first, last in pairwise(np.cumsum([0, *self.sizes])):
            yield states[:, first:last]

    def per_sample(
        self, plan: str | Sequence[str], statistic: SampleStatistic
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        for states in self.each_sample(*([plan] if isinstance(plan, str) else plan)):
            yield states.shape[1], statistic.kernel(states)


def random_capture(
    lengths: Sequence[int] = LENGTHS, states: int = 4, units: int = 8, seed: int = 0
) -> ArrayCapture:
    """States that share a direction, its strength varying from sample to sample."""
    generator = np.random.default_rng(seed)
    shared = np.repeat(generator.normal(size=(len(lengths), 1)), lengths, axis=0) + 1
    values = generator.normal(size=(states, sum(lengths), units)) + shared
    return ArrayCapture(values.astype(np.float16), lengths)


def sample_states(capture: ArrayCapture, plan: str = "baseline") -> list[Array]:
    """Each sample's states, `[state, token, unit]`, in float64."""
    ends = np.cumsum([0, *capture.sizes])
    return [capture.states(plan)[:, a:b].astype(float) for a, b in pairwise(ends)]


def naive_cosines(states: Array) -> Array:
    """Token cosines of every two states, `[state, state, token]`."""
    return np.array(
        [
            [[1 - cosine_distance(*pair) for pair in zip(a, b, strict=True)] for b in states]
            for a in states
        ]
    )


def naive_flattened_cosines(states: Array) -> Array:
    """Cosines of every two states flattened over tokens and units, `[state, state]`."""
    return naive_cosines(states.reshape(len(states), 1, -1))[:, :, 0]


def drop_sinks(states: Array) -> Array:
    """The states of a sample at the tokens that are not attention sinks.

    Sinks are the first token, and those three times as long as the median in some state.
    """
    kept = []
    for token in range(1, states.shape[1]):
        if not any(
            np.linalg.norm(state[token]) > 3 * np.median([np.linalg.norm(v) for v in state])
            for state in states
        ):
            kept.append(token)
    return states[:, kept]


def resample(
    sums: Iterable[Array], weights: Iterable[Any], resamples: int = 1000
) -> NDArray[np.float64]:
    """Sum over sum of samples drawn with replacement as the bootstrap draws, `[resample, ...]`."""
    sums, weights = list(sums), list(weights)
    samples = len(sums)
    draws = np.random.default_rng(0).multinomial(samples, [1 / samples] * samples, resamples)
    replicates = []
    for counts in draws:
        total = sum(count * one_sum for count, one_sum in zip(counts, sums, strict=True))
        weight = sum(count * one_weight for count, one_weight in zip(counts, weights, strict=True))
        replicates.append(total / weight)
    return np.array(replicates)


def hall_interval(
    value: ArrayLike, replicates: Array, samples: int, bounds: tuple[float, float] = (-1, 1)
) -> NDArray[np.float64]:
    """Hall's interval by scipy, `[end, ...]`.

    Its ends are where the studentised value, its skewness removed, is as far out as Student's t.
    """
    value = np.asarray(value)
    ends = np.full((2, *value.shape), np.nan)
    for place in np.ndindex(value.shape):
        column = replicates[(slice(None), *place)]
        if not np.isfinite(column).all():
            continue
        error = column.std(ddof=1) * np.sqrt(samples / (samples - 1))
        away = column - column.mean()
        skewness = np.clip((away**3).mean() / (away**2).mean() ** 1.5, -1, 1) if away.any() else 0.0
        for end, reach in enumerate(stats.t.ppf([0.975, 0.025], samples - 1)):

            def beyond(t: float, reach: float = reach, skewness: float = skewness) -> float:
                return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6 - reach

            ends[(end, *place)] = value[place] - error * brentq(beyond, -1e3, 1e3)
    return np.clip(ends, *bounds)


class TextCapture(ArrayCapture):
    """A capture made of arrays that says which texts and tokens its states are of.

    keys: of the samples.
    token_ids: `[token]`, by default the same in every capture at the same position.
    kept: what `--tokens` kept.
    """

    def __init__(
        self,
        states: ArrayLike,
        lengths: Sequence[int],
        keys: Sequence[str],
        *,
        tokenizer: str = "shared",
        kept: str = "all",
        token_ids: ArrayLike | None = None,
        **others: tuple[list[str], ArrayLike],
    ) -> None:
        super().__init__(states, lengths, **others)
        self.identity = {**self.identity, "tokenizer": tokenizer, "tokens": kept}
        positions = np.concatenate([np.arange(length) for length in lengths])
        if kept == "last":
            positions = np.arange(len(positions)) + 7
        ids = positions if token_ids is None else np.asarray(token_ids)
        self.tokens = xr.Dataset({"position": ("token", positions), "token_id": ("token", ids)})
        self.samples = xr.DataArray(list(keys), dims="sample")


def pair_of_captures(
    samples: int = 14, tokens: int = 8, seed: int = 0
) -> tuple[TextCapture, TextCapture]:
    """Two models that share something, of other depths and widths, over the same texts."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(1, samples * tokens, 3))
    keys = [f"text {number}" for number in range(samples)]

    def model(states: int, units: int) -> TextCapture:
        mixed = shared @ generator.normal(size=(states, 3, units))
        noise = generator.normal(size=(states, samples * tokens, units))
        return TextCapture(mixed + noise + 2, (tokens,) * samples, keys)

    return model(3, 6), model(4, 9)
