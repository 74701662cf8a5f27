"""A subsample of tokens to compare states on, for measures that need all items at once.

Equally many tokens from every sample, so that samples can change places in a permutation and no
long sample dominates. An item is a drawn token.
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
    """States of a plan at some tokens, the items.

    states: `[state, item, unit]`, the store's dtype; a sample's items follow each other.
    samples: how many samples the items come from, equally many items each.
    left_out: tokens of those samples that could not be drawn because a state is a zero vector
        there.
    """

    states: NDArray[Any]
    samples: int
    left_out: int = 0

    @property
    def sample(self) -> NDArray[np.int64]:
        """The sample of each item, `[item]`, int64, counted from 0."""
        return np.repeat(np.arange(self.samples), self.states.shape[1] // self.samples)

    def per_sample(self, influence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over each sample's items.

        Args:
            influence: `[item, ...]`, float64.
        Returns:
            `[sample, ...]`, float64.
        Example:
            >>> import numpy as np
            >>> drawn = TokenSubsample(np.zeros((1, 4, 1)), samples=2)
            >>> drawn.per_sample(np.array([1.0, 2, 4, 8])).tolist()
            [3.0, 12.0]
        """
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
    """Draws about `items` tokens at random: equally many from every sample that has enough.

    Reads all states once, sample by sample, and keeps only what it draws.

    Args:
        source: an open capture that keeps its states.
        plan: whose states.
        items: tokens to draw; fewer where the capture holds fewer.
        sinks: whether attention sinks (`repsim.measures.sink_tokens`) may be drawn.
        directions: draw no token at which a state is a zero vector, which has no direction.
        seed: of the draws.
    Returns:
        The states at the drawn tokens.
    Raises:
        DataError: fewer than 8 tokens or 2 samples are left.
        RepsimError: a number that is too small, or a plan that the capture does not hold.
    """
    # Choose the samples to draw from, and at most how many tokens of each, by their lengths.
    check_counts(items=items, seed=seed)
    generator = np.random.default_rng(seed)
    lengths = source.lengths(plan)
    candidates = generator.permutation(np.flatnonzero(lengths > (not sinks)))[:items]
    most = max(1, min(items // max(1, len(candidates)), int(lengths.max(initial=1))))

    # Draw up to that many tokens of each chosen sample, as its states are read.
    wanted, picked, left_out = set(candidates.tolist()), [], 0
    for number, states in enumerate(source.each_sample(plan)):
        if number in wanted:
            tokens = np.arange(states.shape[1]) if sinks else np.flatnonzero(~sink_tokens(states))
            if directions:
                nonzero = (states != 0).any(-1).all(0)[tokens]
                tokens, left_out = tokens[nonzero], left_out + int((~nonzero).sum())
            picked.append(states[:, generator.permutation(tokens)[:most]])

    # Sinks and zero vectors may have left some samples too few: keep equally many of the others.
    each = tokens_per_sample(np.array([states.shape[1] for states in picked], np.int64), most)
    drawn = [states[:, :each] for states in picked if states.shape[1] >= each]
    require_enough(plan, len(drawn), each, sinks=sinks, left_out=left_out)
    return TokenSubsample(np.concatenate(drawn, axis=1), len(drawn), left_out)


def require_enough(plan: str, samples: int, each: int, *, sinks: bool, left_out: int) -> None:
    """Refuses a subsample that is too small to compare states on.

    Args:
        plan: whose states.
        samples: that are left, with so many tokens each.
        each: tokens per sample.
        sinks: whether attention sinks are among them.
        left_out: tokens that are zero vectors.
    Raises:
        DataError: fewer than 8 tokens or 2 samples.
    """
    if samples < 2 or samples * each < 8:
        without = "" if sinks else " without attention sinks"
        without += f" and {left_out} tokens that are zero vectors" if left_out else ""
        raise DataError(
            f"plan {plan!r}: {samples * each} tokens of {samples} samples{without}; "
            "comparing takes at least 8 of 2: ask for more items or --sinks, or capture more texts"
        )


def tokens_per_sample(available: NDArray[np.int64], most: int) -> int:
    """Tokens per sample that give the most tokens in all, from at least two samples.

    Args:
        available: `[sample]`, int64, tokens that each sample has.
        most: the largest number to take per sample.
    """
    sizes = np.arange(1, most + 1)
    samples = (available[:, None] >= sizes).sum(0)
    return int(sizes[np.argmax(np.where(samples > 1, samples * sizes, 0))])
