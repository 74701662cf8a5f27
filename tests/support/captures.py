"""Captures made of arrays, and slow loops to compare analyses with."""

from itertools import pairwise

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.spatial.distance import cosine as cosine_distance

LENGTHS = (5, 1, 12, 3)


class Stored:
    """A capture made of arrays `[state, token, unit]`: of one plan, whatever its name, or of
    several by name.
    """

    identity = {"model": "painter", "corpus": "easel"}  # noqa: RUF012

    def __init__(self, states, lengths, **others):
        self.array, self.sizes = np.asarray(states), lengths
        self.others = {name: (steps, np.asarray(array)) for name, (steps, array) in others.items()}

    def states(self, plan):
        return self.others[plan][1] if plan in self.others else self.array

    def steps(self, plan):
        return (
            self.others[plan][0]
            if plan in self.others
            else ["embed", *map(str, range(len(self.array) - 1))]
        )

    def plan_name(self, plan):
        return f"name of {plan}"

    def plan_text(self, plan):
        return "0, 1, 2"

    def lengths(self, *plans):
        return np.array(self.sizes, np.int64)

    def each_sample(self, *plans):
        states = np.concatenate([self.states(plan) for plan in plans])
        for first, last in pairwise(np.cumsum([0, *self.sizes])):
            yield states[:, first:last]

    def per_sample(self, plan, statistic):
        for states in self.each_sample(*([plan] if isinstance(plan, str) else plan)):
            yield states.shape[1], statistic.kernel(states)


def random_capture(lengths=LENGTHS, states=4, units=8, seed=0):
    """States that share a direction, its strength varying from sample to sample."""
    generator = np.random.default_rng(seed)
    shared = np.repeat(generator.normal(size=(len(lengths), 1)), lengths, axis=0) + 1
    states = generator.normal(size=(states, sum(lengths), units)) + shared
    return Stored(states.astype(np.float16), lengths)


def sample_states(capture, plan="baseline"):
    ends = np.cumsum([0, *capture.sizes])
    return [capture.states(plan)[:, a:b].astype(float) for a, b in pairwise(ends)]


def naive(states):
    """Token cosines of every two states, `[state, state, token]`."""
    return np.array(
        [
            [[1 - cosine_distance(*pair) for pair in zip(a, b, strict=True)] for b in states]
            for a in states
        ]
    )


def flattened(states):
    return naive(states.reshape(len(states), 1, -1))[:, :, 0]


def without_sinks(states):
    """The states of a sample's tokens but the first, and but those three times as long as is usual
    in some state.
    """
    kept = []
    for token in range(1, states.shape[1]):
        if not any(
            np.linalg.norm(one[token]) > 3 * np.median([np.linalg.norm(v) for v in one])
            for one in states
        ):
            kept.append(token)
    return states[:, kept]


def resampled(sums, weights, resamples=1000):
    """Sum over sum of samples drawn with replacement, `[resample, ...]`; the same draws as the
    bootstrap's.
    """
    samples = len(sums)
    draws = np.random.default_rng(0).multinomial(samples, [1 / samples] * samples, resamples)
    found = []
    for counts in draws:
        total = sum(count * one for count, one in zip(counts, sums, strict=True))
        found.append(
            total / sum(count * weight for count, weight in zip(counts, weights, strict=True))
        )
    return np.array(found)


def interval(value, replicates, samples, bounds=(-1, 1)):
    """Hall's interval by scipy: where the studentised value, its skewness removed, is as far out as
    Student's t.
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

            def beyond(t, reach=reach, skewness=skewness):
                return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6 - reach

            ends[(end, *place)] = value[place] - error * brentq(beyond, -1e3, 1e3)
    return np.clip(ends, *bounds)
