"""Runs of tokens are cut and joined like the arrays they hold."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from repsim.storage.token_runs import TokenRun


def run_of(lengths: list[int], first: int = 10, scored: bool = True) -> TokenRun:
    """A block per piece; the states of token n are n, its log-probability is -n."""
    ends = np.cumsum([first, *lengths]).tolist()
    pieces = [np.arange(left, right) for left, right in pairwise(ends)]
    states = tuple(np.stack([piece, piece], 1).astype("float32") for piece in pieces)
    logprobs = tuple(-piece.astype("float32") for piece in pieces) if scored else None
    return TokenRun(first, states, logprobs, tuple(enumerate(ends[1:])), since=0.0)


def tokens_of(run: TokenRun) -> NDArray[np.float32]:
    states = run.states_of(run.first, run.last)
    if run.logprobs is not None:
        assert_array_equal(np.concatenate(run.logprobs), -states[:, 0])
    tokens: NDArray[np.float32] = states[:, 0]
    return tokens


def test_a_piece_is_shown_and_several_are_put_together() -> None:
    run = run_of([3, 2])
    assert np.shares_memory(run.states_of(13, 15), run.states[1])
    assert run.states_of(12, 14).tolist() == [[12, 12], [13, 13]]
    assert run.nbytes == 5 * 2 * 4 + 5 * 4
    own = run.with_own_last_piece()
    assert np.shares_memory(own.states[0], run.states[0])
    assert not np.shares_memory(own.states[1], run.states[1])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(5, 40), st.booleans())
def test_halves_make_the_whole(lengths: list[int], at: int, scored: bool) -> None:
    run = run_of(lengths, scored=scored)
    before, rest = run.split(at)
    halves = [half for half in (before, rest) if half is not None]
    assert (before is None, rest is None) == (at <= run.first, at >= run.last)
    assert_array_equal(np.concatenate([tokens_of(half) for half in halves]), tokens_of(run))
    # A block belongs to the half that its last token is in.
    assert tuple(block for half in halves for block in half.blocks) == run.blocks
    for half in halves:
        assert all(half.first < end <= half.last for _, end in half.blocks)
    if len(halves) == 2:
        joined = halves[0].joined(halves[1])
        assert (joined.first, joined.last, joined.blocks) == (run.first, run.last, run.blocks)
        assert_array_equal(tokens_of(joined), tokens_of(run))
