"""Subsamples of tokens: equally many from each sample, at random, and nothing that is not there."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

import repsim
from repsim.captures.reader import Capture
from repsim.errors import RepsimError
from repsim.stats import subsample
from repsim.stats.subsample import TokenSubsample, draw_tokens
from support.captures import ArrayCapture, random_capture

Array = NDArray[Any]


def numbered(lengths: Sequence[int], states: int = 3) -> ArrayCapture:
    """States that say what they are: `(100 + sample, 1 + token of the sample, state)`, first tokens
    included.
    """
    tokens = [
        (100 + sample, 1 + token)
        for sample, length in enumerate(lengths)
        for token in range(length)
    ]
    return ArrayCapture(
        [[[sample, token, state] for sample, token in tokens] for state in range(states)], lengths
    )


def samples_and_tokens(drawn: TokenSubsample) -> list[tuple[int, ...]]:
    return [tuple(pair) for pair in (drawn.states[0, :, :2] - [100, 1]).astype(int).tolist()]


@pytest.mark.parametrize(
    ("available", "most", "each"),
    [
        ((4, 0, 11, 2), 1, 1),  # at most one of each
        ((4, 0, 11, 2), 2, 2),  # 3 ones or 3 twos
        ((4, 0, 11, 2), 4, 4),  # 3 ones, 3 twos, 2 threes or 2 fours
        ((4, 0, 8, 2), 100, 4),  # 8 of two samples rather than of one
        ((4, 0, 11, 2), 100, 4),  # 8 of two samples rather than 11 of one
        ((0, 0), 5, 1),
    ],
)
def test_how_many_of_each_sample_by_hand(available: Sequence[int], most: int, each: int) -> None:
    assert subsample.tokens_per_sample(np.array(available), most) == each


@pytest.mark.parametrize("seed", range(5))
def test_no_other_number_of_each_sample_gives_more(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths, most = generator.integers(0, 30, size=12), int(generator.integers(1, 30))
    samples = {size: sum(length >= size for length in lengths) for size in range(1, most + 1)}
    total = {size: count * size for size, count in samples.items() if count > 1}
    assert total[subsample.tokens_per_sample(lengths, most)] == max(total.values())


def test_equally_many_states_of_every_sample_that_has_enough() -> None:
    drawn = draw_tokens(numbered((7, 2, 9, 5)), "baseline", 16)
    # 4 of each but the second, which has 1 without its sink.
    assert drawn.states.shape == (3, 12, 3)
    assert drawn.samples == 3
    assert drawn.sample.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [sample for sample, _ in samples_and_tokens(drawn)] == [0] * 4 + [2] * 4 + [3] * 4


def test_what_is_drawn_are_different_tokens_of_the_sample_in_every_state() -> None:
    lengths = (12, 9, 30)
    drawn = draw_tokens(numbered(lengths), "baseline", 24)
    assert_array_equal(drawn.states[:, :, :2], np.broadcast_to(drawn.states[0, :, :2], (3, 24, 2)))
    assert_array_equal(drawn.states[:, :, 2], np.repeat([[0], [1], [2]], 24, axis=1))
    found = samples_and_tokens(drawn)
    assert len(set(found)) == 24
    assert all(0 < token < lengths[sample] for sample, token in found)


def test_the_dtype_is_the_store_s() -> None:
    assert draw_tokens(random_capture(lengths=(9, 9)), "baseline", 100).states.dtype == np.float16


def test_per_sample_sums_over_each_sample_s_items() -> None:
    drawn = subsample.TokenSubsample(np.zeros((1, 6, 1)), 3)
    assert drawn.per_sample(np.array([1.0, 2, 4, 8, 16, 32])).tolist() == [3, 12, 48]
    assert drawn.per_sample(np.arange(12.0).reshape(6, 2)).tolist() == [[2, 4], [10, 12], [18, 20]]


def test_a_seed_says_what_is_drawn() -> None:
    capture = numbered((40, 30, 20, 30))
    first, again, other = (
        draw_tokens(capture, "baseline", 16, seed=seed).states for seed in (3, 3, 4)
    )
    assert_array_equal(first, again)
    assert (first != other).any()


def test_every_token_that_is_no_sink_is_drawn_as_often_as_any_other() -> None:
    capture = numbered((9, 9, 5))
    drawn = [
        pair
        for seed in range(600)
        for pair in samples_and_tokens(draw_tokens(capture, "baseline", 12, seed=seed))
    ]
    count = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(count) == 8 + 8 + 4
    # 4 of 8 and of 4 tokens; a standard deviation is sqrt(600 / 4), and the last sample gives all
    # that it has
    for (sample, _), times in count.items():
        assert times == 600 if sample == 2 else abs(times - 300) < 4 * 150**0.5


def test_fewer_items_than_samples_are_of_as_many_samples() -> None:
    drawn = draw_tokens(numbered((6,) * 20), "baseline", 10)
    assert (drawn.samples, drawn.states.shape[1]) == (10, 10)
    assert len({sample for sample, _ in samples_and_tokens(drawn)}) == 10


@pytest.mark.parametrize("sinks", [False, True])
def test_sinks_are_drawn_if_one_insists(sinks: bool) -> None:
    capture = numbered((6, 6, 6))
    capture.array[1, 3] *= 40
    drawn = draw_tokens(capture, "baseline", 400, sinks=sinks)
    long = {(0, 0), (1, 0), (2, 0), (0, 3)}
    assert set(samples_and_tokens(drawn)) & long == (long if sinks else set())
    # 4 of each; 5 of the first and the last are no more.
    assert drawn.states.shape[1] == (18 if sinks else 12)


def test_a_sample_that_sinks_leave_too_few_tokens_of_is_left_out() -> None:
    """Lengths promise five of each; two sinks more leave 3 of the first, and 9 in all are fewer
    than 10.
    """
    capture = numbered((6, 6, 6))
    capture.array[2, 4:6] *= 40
    drawn = draw_tokens(capture, "baseline", 15)
    assert (drawn.samples, drawn.states.shape[1]) == (2, 10)
    assert {sample for sample, _ in samples_and_tokens(drawn)} == {1, 2}


def test_one_long_sample_does_not_leave_the_others_without_a_comparison() -> None:
    """4 tokens of each of two samples can be compared; 11 of the longest alone, which are more,
    cannot.
    """
    drawn = draw_tokens(numbered((5, 1, 12, 3)), "baseline", 100)
    assert (drawn.samples, drawn.states.shape[1]) == (2, 8)


def test_a_second_sink_in_every_sample_leaves_fewer_of_each() -> None:
    """5 of 7 tokens are no sinks in every sample, 6 would be by their lengths."""
    capture = numbered((7, 7, 7))
    capture.array[2, [3, 9, 15]] *= 40
    drawn = draw_tokens(capture, "baseline", 100)
    assert (drawn.samples, drawn.states.shape[1]) == (3, 15)


def test_states_that_are_overwritten_once_the_next_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `Capture.each_sample` may."""
    capture = numbered((7, 9, 8))
    expected = draw_tokens(capture, "baseline", 18).states
    reading, buffer = capture.each_sample, np.empty((3, 9, 3))

    def each_sample(*plans: str) -> Iterator[Array]:
        for states in reading(*plans):
            room = buffer[:, : states.shape[1]]
            room[:] = states
            yield room

    monkeypatch.setattr(capture, "each_sample", each_sample)
    assert_array_equal(draw_tokens(capture, "baseline", 18).states, expected)


@pytest.fixture(scope="module")
def capture(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    out = tmp_path_factory.mktemp("items") / "c.zarr"
    plan = ["baseline", "skip:start=1"]
    return repsim.capture(
        str(tiny_folder), plan=plan, limit=8, max_tokens=20, out=out, batch_tokens=32
    )


def test_how_the_states_are_cut_into_chunks_does_not_matter(
    capture: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repsim.storage.state_store.CHUNK_BYTES", 1)
    capture_options: dict[str, Any] = {
        "plan": ["baseline", "skip:start=1"],
        "limit": 8,
        "max_tokens": 20,
        "batch_tokens": 16,
    }
    cut = repsim.capture(str(tiny_folder), out=tmp_path / "cut.zarr", **capture_options)
    assert cut.chunk_tokens == 64 < cut.dataset.sizes["token"]  # and no multiple of a sample's 20
    whole, piece = (draw_tokens(one, "skip:start=1", 40) for one in (capture, cut))
    assert_array_equal(piece.states, whole.states)
    assert piece.samples == whole.samples == 8


def test_a_real_capture_s_own_states(capture: Any) -> None:
    drawn = draw_tokens(capture, "baseline", 40)
    hidden = capture.hidden("baseline")
    states, sample = hidden.values, hidden["sample"].values
    places = [
        np.flatnonzero((states == item[:, None]).all((0, 2))).item()
        for item in drawn.states.swapaxes(0, 1)
    ]
    assert len(set(places)) == 40
    assert_array_equal(sample[places], drawn.sample)
    assert (hidden["position"].values[places] > 0).all()


@pytest.mark.parametrize(
    ("lengths", "wanted", "sinks", "message"),
    [
        ((50,), 40, False, "'baseline': 1 tokens of 1 samples without attention sinks"),
        (
            (4, 4),
            100,
            False,
            "6 tokens of 2 samples without attention sinks; comparing takes at least 8 of 2",
        ),
        ((3, 3), 100, True, "6 tokens of 2 samples; comparing"),
        ((30, 30), 4, False, "4 tokens of 2 samples without"),
        ((1, 1, 1), 40, False, "0 tokens of 0 samples without"),
        ((), 40, False, "0 tokens of 0 samples without"),
        ((30, 30), 0, False, "items=0: at least 1"),
        ((30, 30), -5, False, "items=-5: at least 1"),
    ],
)
def test_too_few_tokens(lengths: Sequence[int], wanted: int, sinks: bool, message: str) -> None:
    with pytest.raises(RepsimError, match=message) as caught:
        draw_tokens(
            numbered(lengths) if lengths else ArrayCapture(np.zeros((3, 0, 3)), ()),
            "baseline",
            wanted,
            sinks=sinks,
        )
    assert "\n" not in str(caught.value)


def test_a_capture_without_states_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    kept: dict[str, Any] = {"keep": "none", "statistics": "norms", "limit": 4, "max_tokens": 10}
    capture = repsim.capture(str(tiny_folder), out=tmp_path / "none.zarr", **kept)
    with pytest.raises(RepsimError, match=r"holds no states, .*; capture with --keep all"):
        draw_tokens(capture, "baseline", 40)
