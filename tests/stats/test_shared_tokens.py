"""Tokens that two captures have in common: by hand, and drawn as of one capture."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from repsim.errors import DataError
from repsim.stats.shared_tokens import draw_shared_tokens, each_shared_sample, match_tokens
from repsim.stats.subsample import draw_tokens
from support.captures import TextCapture, pair_of_captures


def capture(*texts: tuple[str, int], **more: Any) -> TextCapture:
    """States that say which text and token they are of: 100 times its letter, and its position."""
    lengths = [length for _, length in texts]
    values = np.concatenate([100 * ord(key) + np.arange(length) for key, length in texts])
    return TextCapture(
        values[None, :, None].astype(float), lengths, [key for key, _ in texts], **more
    )


def test_by_hand() -> None:
    first = capture(("a", 5), ("b", 4), ("c", 3))
    second = capture(("d", 9), ("c", 5), ("a", 2))
    shared = match_tokens(first, second, "baseline")
    assert shared.samples.tolist() == [[0, 2], [2, 1]]  # a and c
    assert [pairs.tolist() for pairs in shared.tokens] == [[[0, 1]] * 2, [[0, 1, 2]] * 2]
    assert (shared.left_out, shared.lengths.tolist()) == ((1, 1), [2, 3])
    assert not shared.in_one_order
    back = match_tokens(second, first, "baseline")
    assert_array_equal(back.samples, shared.samples[:, ::-1])


def test_a_token_with_another_id_is_not_the_same() -> None:
    """What a text is cut at may end in [SEP]."""
    first = capture(("a", 4), token_ids=[5, 6, 7, 2])
    second = capture(("a", 3), token_ids=[5, 6, 2])
    (pairs,) = match_tokens(first, second, "baseline").tokens
    assert pairs.tolist() == [[0, 1], [0, 1]]


def test_of_other_tokenizers_one_state_per_text() -> None:
    first = capture(("a", 1), ("b", 1), ("c", 1), kept="last")
    second = capture(("c", 1), ("b", 1), kept="last", tokenizer="other")
    shared = match_tokens(first, second, "baseline")
    assert shared.samples.tolist() == [[1, 1], [2, 0]]
    assert shared.left_out == (1, 0)


@pytest.mark.parametrize(
    ("kept", "tokenizers", "says"),
    [
        (("all", "all"), ("x", "y"), "have different tokenizers, and the captures keep all and"),
        (("mean", "last"), ("x", "y"), "keep mean and last of a text's tokens: only one state"),
        (("mean", "all"), ("x", "x"), "and a mean is no token; capture both alike"),
    ],
)
def test_what_cannot_be_matched(kept: Any, tokenizers: Any, says: str) -> None:
    first, second = (
        capture(("a", 1), ("b", 1), kept=each, tokenizer=tokenizer)
        for each, tokenizer in zip(kept, tokenizers, strict=True)
    )
    with pytest.raises(DataError, match=says):
        match_tokens(first, second, "baseline")


def test_nothing_in_common() -> None:
    with pytest.raises(DataError, match="no token in common: the captures are of easel and easel"):
        match_tokens(capture(("a", 3)), capture(("b", 3)), "baseline")


@pytest.mark.parametrize("options", [{}, {"sinks": True}, {"directions": True}])
def test_a_capture_with_itself_is_drawn_from_as_alone(options: Any) -> None:
    source, _ = pair_of_captures()
    source.array[1, [3, 30, 31]] = 0
    source.array[2, 12] *= 50  # a sink
    alone = draw_tokens(source, "baseline", 40, seed=3, **options)
    both, _ = draw_shared_tokens(source, source, "baseline", 40, seed=3, **options)
    for drawn in both:
        assert_array_equal(drawn.states, alone.states)
        assert (drawn.samples, drawn.left_out) == (alone.samples, alone.left_out)


def test_both_are_read_at_the_same_tokens_whichever_comes_first() -> None:
    first = capture(*((key, 9) for key in "abcdefgh"))
    second = capture(*((key, 7) for key in "xhgbacy"))
    (here, there), shared = draw_shared_tokens(first, second, "baseline", 12)
    assert_array_equal(here.states, there.states)
    assert here.samples == 5
    assert shared.left_out == (3, 2)
    assert (here.states % 100 > 0).all()  # no first token
    (back, _), _ = draw_shared_tokens(second, first, "baseline", 12)
    assert_array_equal(back.states, here.states)


def test_a_sink_of_one_capture_is_drawn_from_neither() -> None:
    first, second = pair_of_captures(samples=2, tokens=9)
    second.array[0, 4] *= 1000
    (here, _), _ = draw_shared_tokens(first, second, "baseline", 18)
    assert here.states.shape[1] == 2 * 7
    drawn = {tuple(state) for state in here.states[0]}
    assert tuple(first.array[0, 4]) not in drawn


def test_too_little_in_common() -> None:
    with pytest.raises(DataError, match="2 tokens of 2 samples without attention sinks; comparing"):
        draw_shared_tokens(capture(("a", 2), ("b", 2)), capture(("b", 9), ("a", 9)), "baseline", 99)


def test_samples_side_by_side() -> None:
    first, second = capture(("a", 3), ("b", 3), ("c", 2)), capture(("a", 3), ("c", 3))
    shared = match_tokens(first, second, "baseline")
    read = [
        (here[0, pairs[0], 0].tolist(), there[0, pairs[1], 0].tolist())
        for here, there, pairs in each_shared_sample(first, second, "baseline", shared)
    ]
    assert read == [([9700, 9701, 9702],) * 2, ([9900, 9901],) * 2]
    swapped = capture(("c", 3), ("a", 2))
    shared = match_tokens(first, swapped, "baseline")
    with pytest.raises(DataError, match="hold their common texts in other orders"):
        list(each_shared_sample(first, swapped, "baseline", shared))
