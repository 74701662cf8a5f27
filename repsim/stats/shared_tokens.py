"""Tokens that two captures have in common, and a subsample of them to compare states on.

Samples are the same by their key, which says which text they are; tokens by their position in it.
Captures of models that cut texts in other ways have no tokens in common: of these, only what is
kept once per text can be compared, its last token or the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.errors import DataError
from repsim.measures import sink_tokens
from repsim.stats.per_sample import TextSource
from repsim.stats.results import check_counts
from repsim.stats.subsample import TokenSubsample, require_enough, tokens_per_sample

PER_TEXT = ("last", "mean")  # what --tokens keeps once per text


@dataclass(frozen=True)
class SharedTokens:
    """Tokens that two captures have in common, sample by sample.

    samples: where each sample is in the one capture and in the other, `[sample, 2]`, int64.
    tokens: of each sample, which of its kept tokens these are, `[2, token]`, int64; one at least.
    left_out: samples of the one and of the other capture that have no such token.
    """

    samples: NDArray[np.int64]
    tokens: list[NDArray[np.int64]]
    left_out: tuple[int, int]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Shared tokens per sample, `[sample]`, int64."""
        return np.array([pairs.shape[1] for pairs in self.tokens], np.int64)

    @property
    def in_one_order(self) -> bool:
        """Whether both captures hold the samples in the same order."""
        return bool((np.diff(self.samples, axis=0) > 0).all())


def match_tokens(source: TextSource, other: TextSource, plan: str) -> SharedTokens:
    """The tokens that two captures have in common under a plan: same text, position and id.

    Their order depends on no capture more than on the other, and is a capture's own where both hold
    the samples in one order.

    Args:
        source: an open capture.
        other: another one; its model may be another.
        plan: whose states; in each capture the plan of this name.
    Raises:
        DataError: they have none in common, or it cannot be known which.
    """
    cuts_alike = source.identity.get("tokenizer") == other.identity.get("tokenizer")
    kept = [str(each.identity.get("tokens", "all")) for each in (source, other)]
    _check_comparable(source, other, kept, cuts_alike)

    # Samples by key, in the order of their ranks in both captures taken together.
    tables = [_tokens_by_key(each, plan) for each in (source, other)]
    places = [{key: place for place, key in enumerate(table)} for table in tables]
    common = sorted(
        places[0].keys() & places[1].keys(),
        key=lambda key: (places[0][key] + places[1][key], key),
    )

    # Tokens by position and id; of other tokenizers, the one that is kept.
    samples, tokens = [], []
    for key in common:
        if cuts_alike:
            pairs = np.stack(
                np.intersect1d(
                    tables[0][key], tables[1][key], assume_unique=True, return_indices=True
                )[1:]
            )
        else:
            pairs = np.zeros((2, 1), np.int64)
        if pairs.size:
            samples.append([place[key] for place in places])
            tokens.append(pairs)
    if not samples:
        corpora = " and ".join(str(each.identity["corpus"]) for each in (source, other))
        raise DataError(
            f"no token in common: the captures are of {corpora}, {len(tables[0])} and "
            f"{len(tables[1])} texts; capture the same texts with the same --tokens"
        )
    left_out = len(tables[0]) - len(samples), len(tables[1]) - len(samples)
    return SharedTokens(np.array(samples, np.int64), tokens, left_out)


def draw_shared_tokens(
    source: TextSource,
    other: TextSource,
    plan: str,
    items: int,
    *,
    sinks: bool = False,
    directions: bool = False,
    seed: int = 0,
) -> tuple[tuple[TokenSubsample, TokenSubsample], SharedTokens]:
    """Draws about `items` shared tokens at random, equally many from every sample, as `draw_tokens`
    does of one capture.

    A token is an attention sink, or a zero vector, where it is one in either capture. Reads each
    capture's states once to find these, if they are left out, and once more for the tokens drawn.

    Args:
        source: an open capture that keeps its states.
        other: another one.
        plan: whose states; in each capture the plan of this name.
        items: tokens to draw; fewer where the captures share fewer.
        sinks: whether attention sinks may be drawn.
        directions: draw no token at which a state is a zero vector, which has no direction.
        seed: of the draws.
    Returns:
        The states of each capture at the drawn tokens, the same tokens in the same order; and what
        the captures share.
    Raises:
        DataError: fewer than 8 tokens or 2 samples are left, or they share none.
        RepsimError: a number that is too small, or a plan that a capture does not hold.
    """
    check_counts(items=items, seed=seed)
    shared = match_tokens(source, other, plan)

    # Choose the samples to draw from, and at most how many tokens of each, by their lengths.
    generator = np.random.default_rng(seed)
    candidates = generator.permutation(np.flatnonzero(shared.lengths > (not sinks)))[:items]
    most = max(1, min(items // max(1, len(candidates)), int(shared.lengths.max())))
    chosen = np.sort(candidates).tolist()

    # Which of their tokens may be drawn.
    usable = {row: np.ones(shared.lengths[row], bool) for row in chosen}
    nonzero = {row: np.ones(shared.lengths[row], bool) for row in chosen}
    for side, capture in enumerate((source, other)):
        for row, states in _states_of(
            capture, plan, shared, chosen, side, sinks and not directions
        ):
            tokens = shared.tokens[row][side]
            if not sinks:
                usable[row] &= ~sink_tokens(states)[tokens]
            if directions:
                nonzero[row] &= (states != 0).any(-1).all(0)[tokens]
    left_out = sum(int((usable[row] & ~nonzero[row]).sum()) for row in chosen)

    # Draw, and keep equally many tokens of the samples that have enough.
    picked = {
        row: generator.permutation(np.flatnonzero(usable[row] & nonzero[row]))[:most]
        for row in chosen
    }
    each = tokens_per_sample(np.array([len(picked[row]) for row in chosen], np.int64), most)
    drawn = [row for row in chosen if len(picked[row]) >= each]
    require_enough(plan, len(drawn), each, sinks=sinks, left_out=left_out)

    # Read them.
    subsamples = []
    for side, capture in enumerate((source, other)):
        states_of = {
            row: states[:, shared.tokens[row][side][picked[row][:each]]]
            for row, states in _states_of(capture, plan, shared, drawn, side)
        }
        states = np.concatenate([states_of[row] for row in drawn], axis=1)
        subsamples.append(TokenSubsample(states, len(drawn), left_out))
    first, second = subsamples
    return (first, second), shared


def each_shared_sample(
    source: TextSource, other: TextSource, plan: str, shared: SharedTokens
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]]:
    """States of each shared sample in both captures, `[state, token, unit]` each, whole, and which
    tokens they share, `[2, token]`; an array is valid only until the next one is read.

    Raises:
        DataError: the captures hold the samples in other orders.
    """
    if not shared.in_one_order:
        raise DataError(
            "the captures hold their common texts in other orders, as another --max-tokens gives; "
            "capture with the same, or choose a measure that draws items"
        )
    rows = range(len(shared.tokens))
    both = (
        _states_of(capture, plan, shared, rows, side)
        for side, capture in enumerate((source, other))
    )
    for (row, states), (_, states_other) in zip(*both, strict=True):
        yield states, states_other, shared.tokens[row]


def _check_comparable(
    source: TextSource, other: TextSource, kept: Sequence[str], cuts_alike: bool
) -> None:
    """Refuses captures of which it cannot be known which states are of the same tokens."""
    if not cuts_alike and (kept[0] != kept[1] or kept[0] not in PER_TEXT):
        raise DataError(
            f"{source.identity['model']} and {other.identity['model']} have different tokenizers, "
            f"and the captures keep {kept[0]} and {kept[1]} of a text's tokens: only one state per "
            "text can be compared; capture both with --tokens mean, or both with --tokens last"
        )
    if kept[0] != kept[1] and "mean" in kept:
        raise DataError(
            f"the captures keep {kept[0]} and {kept[1]} of a text's tokens, and a mean is no "
            "token; capture both alike"
        )


def _tokens_by_key(source: TextSource, plan: str) -> dict[str, NDArray[np.int64]]:
    """Key → position and id of each kept token as one number, `[token]`, of finished samples."""
    lengths, tokens = source.lengths(plan), source.tokens
    total = int(lengths.sum())
    positions, ids = (
        tokens[name].values[:total].astype(np.int64) for name in ("position", "token_id")
    )
    keys = [str(key) for key in source.samples.values[: len(lengths)]]
    pieces = np.split((positions << 32) + ids, np.cumsum(lengths)[:-1])
    return dict(zip(keys, pieces, strict=True))


def _states_of(
    source: TextSource,
    plan: str,
    shared: SharedTokens,
    rows: Sequence[int],
    side: int,
    skip: bool = False,
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Some shared samples' states in one capture, in its order: the row in `shared`, and `[state,
    token, unit]`.

    skip: read nothing, as nothing is wanted.
    """
    if skip:
        return
    row_of = {int(shared.samples[row, side]): row for row in rows}
    for place, states in enumerate(source.each_sample(plan)):
        if place in row_of:
            yield row_of[place], states
