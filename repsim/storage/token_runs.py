"""Tokens of one node on their way to the disk, gathered over blocks until they fill a chunk.

Takes arrays and indices; knows no store.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenRun:
    """Neighbouring tokens of one node.

    first: index of the first token.
    states: one or more pieces in order, each `[token, unit]`.
    logprobs: their log-probabilities, each `[token]`; None where the node ends no plan.
    blocks: the blocks whose last token is in the run, each with the index after that token.
    since: when the oldest piece came, in seconds of `time.monotonic`.
    """

    first: int
    states: tuple[NDArray[Any], ...]
    logprobs: tuple[NDArray[np.float32], ...] | None
    blocks: tuple[tuple[int, int], ...]
    since: float

    @property
    def last(self) -> int:
        """The index after the last token."""
        return self.first + sum(map(len, self.states))

    @property
    def nbytes(self) -> int:
        """Bytes of the states and the log-probabilities."""
        return sum(piece.nbytes for piece in (*self.states, *(self.logprobs or ())))

    def joined(self, other: TokenRun) -> TokenRun:
        """This run and one that begins where it ends."""
        assert other.first == self.last
        logprobs = None
        if self.logprobs is not None and other.logprobs is not None:
            logprobs = self.logprobs + other.logprobs
        states, blocks = self.states + other.states, self.blocks + other.blocks
        return TokenRun(self.first, states, logprobs, blocks, self.since)

    def split(self, at: int) -> tuple[TokenRun | None, TokenRun | None]:
        """What comes before the token `at`, and the rest; None where that is nothing.

        Example:
            >>> piece = np.zeros((5, 2))
            >>> run = TokenRun(10, (piece,), None, ((0, 12), (1, 15)), since=0.0)
            >>> before, rest = run.split(14)
            >>> (before.first, before.last, before.blocks), (rest.first, rest.last, rest.blocks)
            ((10, 14, ((0, 12),)), (14, 15, ((1, 15),)))
        """
        if at <= self.first:
            return None, self
        if at >= self.last:
            return self, None
        halves = []
        for left, right in ((self.first, at), (at, self.last)):
            logprobs = None if self.logprobs is None else self._cut(self.logprobs, left, right)
            blocks = tuple((block, end) for block, end in self.blocks if left < end <= right)
            states = self._cut(self.states, left, right)
            halves.append(TokenRun(left, states, logprobs, blocks, self.since))
        return halves[0], halves[1]

    def with_own_last_piece(self) -> TokenRun:
        """The same, its last piece in memory of its own, which nobody else reuses."""
        states = (*self.states[:-1], self.states[-1].copy())
        logprobs = self.logprobs and (*self.logprobs[:-1], self.logprobs[-1].copy())
        return TokenRun(self.first, states, logprobs, self.blocks, self.since)

    def states_of(self, left: int, right: int) -> NDArray[Any]:
        """States of the tokens `left` to `right`, which are in the run; a view where they came in
        one piece.
        """
        pieces = self._cut(self.states, left, right)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _cut(
        self, pieces: tuple[NDArray[Any], ...], left: int, right: int
    ) -> tuple[NDArray[Any], ...]:
        """Those parts of the pieces that hold the tokens `left` to `right`."""
        starts = accumulate(map(len, pieces), initial=self.first)
        cut = (
            piece[max(left - start, 0) : max(right - start, 0)]
            for piece, start in zip(pieces, starts, strict=False)
        )
        return tuple(piece for piece in cut if len(piece))
