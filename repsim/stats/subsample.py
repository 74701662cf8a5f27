"""A subsample of tokens to compare states on, for measures that need all items at once.

As many tokens from every sample, so that samples can change places in a permutation and no long one
rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.errors import DataError
from repsim.measures import sink_tokens
from repsim.stats.per_sample import StateSource
from repsim.stats.results import check_counts


@dataclass(frozen=True)
class TokenSubsample:
    """States of a plan at some tokens.

    states: `[state, item, unit]`, the store's dtype; a sample's items follow each other.
    samples: how many samples they come from, equally many items each.
    left_out: tokens of the samples looked at that were not drawn because a state is a zero vector
    there.
    """

    states: NDArray[Any]
    samples: int
    left_out: int = 0

    @property
    def sample(self) -> NDArray[np.int64]:
        """The sample of each item, `[item]`, counted from 0."""
        return np.repeat(np.arange(self.samples), self.states.shape[1] // self.samples)

    def per_sample(self, influence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over each sample's items, `[item, ...]` → `[sample, ...]`."""
        return influence.reshape(self.samples, -1, *influence.shape[1:]).sum(1)


def draw_tokens(
    source: StateSource,
    plan: str,
    items: int,
    *,
    sinks: bool = False,
    directions: bool = False,
    seed: int = 0,
) -> TokenSubsample:
    """Draws about so many tokens at random: equally many from every sample that has enough.

    Reads all states once, in pieces; keeps only what it draws.

    Args:
        source: an open capture that keeps its states.
        plan: whose states.
        items: tokens to draw; fewer where the capture holds fewer.
        sinks: whether attention sinks (`repsim.measures.sink_tokens`) may be among them.
        directions: draw no token at which a state is a zero vector, which has no direction.
        seed: of the draws.
    Raises:
        RepsimError: fewer than 8 tokens or 2 samples are left, or a number that does not fit.
    """
    check_counts(items=items, seed=seed)
    generator = np.random.default_rng(seed)
    lengths = source.lengths(plan)
    candidates = generator.permutation(np.flatnonzero(lengths > (not sinks)))[:items]
    most = max(1, min(items // max(1, len(candidates)), int(lengths.max(initial=1))))
    wanted, picked, left_out = set(candidates.tolist()), [], 0
    for number, states in enumerate(source.each_sample(plan)):
        if number in wanted:
            left = np.arange(states.shape[1]) if sinks else np.flatnonzero(~sink_tokens(states))
            if directions:
                vectors = (states != 0).any(-1).all(0)[left]
                left, left_out = left[vectors], left_out + int((~vectors).sum())
            picked.append(states[:, generator.permutation(left)[:most]])
    each = _each(np.array([states.shape[1] for states in picked], np.int64), most)
    drawn = [states[:, :each] for states in picked if states.shape[1] >= each]
    if len(drawn) < 2 or len(drawn) * each < 8:
        without = "" if sinks else " without attention sinks"
        without += f" and {left_out} tokens that are zero vectors" if left_out else ""
        raise DataError(
            f"plan {plan!r}: {len(drawn) * each} tokens of {len(drawn)} samples{without}; "
            "comparing takes at least 8 of 2: ask for more items or --sinks, or capture more texts"
        )
    return TokenSubsample(np.concatenate(drawn, axis=1), len(drawn), left_out)


def _each(available: NDArray[np.int64], most: int) -> int:
    """Tokens to take of each sample, at most so many: those that give the most in all, from two
    samples at least.
    """
    sizes = np.arange(1, most + 1)
    samples = (available[:, None] >= sizes).sum(0)
    return int(sizes[np.argmax(np.where(samples > 1, samples * sizes, 0))])
