"""Mean cosine similarity: by hand, against slow loops, and whatever way the tokens are cut."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import transformers
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import repsim
from repsim.analyses import blocks, cosine
from repsim.errors import RepsimError
from support.captures import (
    LENGTHS,
    ArrayCapture,
    drop_sinks,
    hall_interval,
    naive_cosines,
    naive_flattened_cosines,
    random_capture,
    resample,
    sample_states,
)

Array = NDArray[Any]

AVERAGES = get_args(cosine.Average)


def each_sample(capture: ArrayCapture, average: Any) -> tuple[list[Array], list[int]]:
    """Per-sample cosine sums and weights, the slow way; samples without weight are left out."""
    pieces = sample_states(capture)
    if average == "sequence":
        return [naive_flattened_cosines(states) for states in pieces], [1] * len(pieces)
    if average == "centred":
        mean = sum(states.sum(1) for states in pieces) / sum(capture.sizes)
        pieces = [states - mean[:, None] for states in pieces]
    if average == "without-sinks":
        pieces = [states for states in map(drop_sinks, pieces) if states.shape[1]]
    return [naive_cosines(states).sum(2) for states in pieces], [
        states.shape[1] for states in pieces
    ]


def test_by_hand() -> None:
    states = [[[1, 0], [0, 1], [1, 0]], [[2, 0], [0, -3], [1, 1]]]
    capture = ArrayCapture(states, lengths=(2, 1))
    token = cosine.compute(capture)
    # cosines 1, -1 | sqrt(1/2)
    mean = 0.5**0.5 / 3
    assert_allclose(token["cosine"], [[1, mean], [mean, 1]], rtol=1e-6)
    assert_allclose([token["low"][0, 1], token["high"][0, 1]], [-1, 1])  # two samples say nothing
    # drawn are both samples, the first twice or the second twice: 0 and sqrt(1/2) in a quarter of
    # the draws each
    error = np.std([0, mean, mean, 0.5**0.5])
    assert token["standard_error"][0, 1] == pytest.approx(error, rel=0.05)
    assert_allclose(np.diagonal(token["standard_error"]), 0, atol=1e-7)
    sequence = cosine.compute(capture, average="sequence")
    # flattened: (2 - 3) / sqrt(2 * 13) | sqrt(1/2)
    both = [-1 / 26**0.5, 0.5**0.5]
    assert_allclose(sequence["cosine"][0, 1], np.mean(both), rtol=1e-6)


def test_centred_by_hand() -> None:
    """Less their means, (1, 1), (2, 0) and (0, 1): (1, 0) and (-1, 0), (0, 1) and (0, -1), (-5, 0)
    and (5, 0).
    """
    states = np.array([[[2, 1], [0, 1]], [[2, 1], [2, -1]], [[-5, 1], [5, 1]]])
    result = cosine.compute(ArrayCapture(states, lengths=(1, 1)), average="centred")
    assert_array_equal(result["cosine"], [[1, 0, -1], [0, 1, 0], [-1, 0, 1]])


def test_without_sinks_by_hand() -> None:
    """Of five tokens the first, and the third, four times as long in one state as the others, do
    not count.
    """
    first = [[9, 0], [1, 0], [1, 0], [0, 1], [1, 0]]
    second = [[0, 9], [1, 0], [0, 4], [1, 0], [1, 0]]
    result = cosine.compute(ArrayCapture([first, second], lengths=(5,)), average="without-sinks")
    assert_allclose(result["cosine"][0, 1], 2 / 3, rtol=1e-6)  # 1, 0 and 1
    assert (result.attrs["tokens"], result.attrs["samples"]) == (3, 1)


def test_a_long_first_token_rules_the_flattened_cosine_alone() -> None:
    states = [[[100, 0], [0, 1], [0, 1]], [[100, 0], [0, -1], [0, -1]]]
    capture = ArrayCapture(states, lengths=(3,))
    assert cosine.compute(capture)["cosine"][0, 1] == pytest.approx(-1 / 3)
    assert cosine.compute(capture, average="sequence")["cosine"][0, 1] > 0.999


@pytest.mark.parametrize("average", AVERAGES)
def test_equals_a_loop_over_states_and_tokens(average: Any) -> None:
    capture = random_capture()
    sums, weights = each_sample(capture, average)
    result = cosine.compute(capture, average=average)
    assert_allclose(result["cosine"], np.sum(sums, 0) / np.sum(weights), atol=1e-6)
    assert result.attrs["samples"] == len(weights)
    assert result.attrs["tokens"] == (sum(weights) if average == "without-sinks" else sum(LENGTHS))


def test_sinks_in_any_state_are_left_out() -> None:
    capture = random_capture(lengths=(20, 9, 1))
    capture.array[2, [3, 24]] *= 30
    sums, weights = each_sample(capture, "without-sinks")
    assert weights == [18, 7]
    result = cosine.compute(capture, average="without-sinks")
    assert_allclose(result["cosine"], np.sum(sums, 0) / 25, atol=1e-6)
    assert (result.attrs["tokens"], result.attrs["samples"]) == (25, 2)


def test_centring_reads_the_states_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the mean over all samples, once for the cosines; a constant that all tokens share
    does not matter.
    """
    capture, read = random_capture(), []
    per_sample = capture.per_sample

    def record(plan: str, statistic: Any) -> Iterator[tuple[int, Array]]:
        read.append(plan)
        return per_sample(plan, statistic)

    monkeypatch.setattr(capture, "per_sample", record)
    plain = cosine.compute(capture, average="centred")
    assert read == ["baseline"] * 2
    moved = ArrayCapture(
        capture.array.astype(np.float32) + np.linspace(-20, 20, 8, dtype=np.float32), LENGTHS
    )
    xr.testing.assert_allclose(cosine.compute(moved, average="centred"), plain, atol=1e-5)


@pytest.mark.parametrize("average", AVERAGES)
def test_standard_error_and_interval_are_those_of_an_explicit_loop_over_resamples(
    average: Any,
) -> None:
    capture = random_capture(lengths=(5, 1, 12, 3, 7, 2))
    result = cosine.compute(capture, average=average)
    replicates = resample(*each_sample(capture, average))
    assert_allclose(result["standard_error"], replicates.std(0, ddof=1), atol=1e-6)
    for name, expected in zip(
        ("low", "high"),
        hall_interval(result["cosine"], replicates, 6 - (average == "without-sinks")),
        strict=True,
    ):
        assert_allclose(result[name], expected, atol=1e-6)


@pytest.mark.parametrize("resamples", [2, 50])
def test_the_number_of_resamples(resamples: int) -> None:
    result = cosine.compute(random_capture(), resamples=resamples)
    replicates = resample(*each_sample(random_capture(), "token"), resamples)
    assert_allclose(result["standard_error"], replicates.std(0, ddof=1), atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_symmetric_with_a_diagonal_of_one(average: Any) -> None:
    matrix = cosine.compute(random_capture(), average=average)["cosine"].values
    assert_array_equal(matrix, matrix.T)
    assert_allclose(np.diagonal(matrix), 1, atol=1e-6)


def test_token_average_ignores_lengths() -> None:
    capture = random_capture()
    array = capture.array.astype(np.float32)
    scale = np.random.default_rng(1).uniform(0.01, 100, size=(*array.shape[:2], 1))
    scaled = ArrayCapture((array * scale).astype(np.float32), LENGTHS)
    xr.testing.assert_allclose(cosine.compute(scaled), cosine.compute(capture), atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_rotation_of_all_states_changes_nothing(average: Any) -> None:
    capture = random_capture()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8))).Q
    turned = ArrayCapture(capture.array @ rotation, LENGTHS)
    expected = cosine.compute(capture, average=average)
    xr.testing.assert_allclose(cosine.compute(turned, average=average), expected, atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_the_order_of_samples_does_not_matter(average: Any) -> None:
    capture = random_capture()
    states = np.concatenate([s.astype(np.float16) for s in sample_states(capture)[::-1]], axis=1)
    turned = ArrayCapture(states, LENGTHS[::-1])
    expected = cosine.compute(capture, average=average)  # the draws are others, so the errors are
    assert_allclose(
        cosine.compute(turned, average=average)["cosine"], expected["cosine"], atol=1e-7
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_standard_error_is_the_linearised_ratio_s_where_there_are_many_samples(
    average: Any,
) -> None:
    """80 samples of 2 to 30 tokens, within 15 %."""
    generator = np.random.default_rng(5)
    capture = random_capture(lengths=tuple(generator.integers(2, 31, size=80)), states=3)
    sums, weights = map(np.array, each_sample(capture, average))
    residuals = sums - weights[:, None, None] * (sums.sum(0) / weights.sum())
    samples = len(weights)
    expected = np.sqrt(samples / (samples - 1) * (residuals**2).sum(0)) / weights.sum()
    result = cosine.compute(capture, average=average)
    apart = ~np.eye(3, dtype=bool)
    assert_allclose(result["standard_error"].values[apart], expected[apart], rtol=0.15)
    for name, sign in (("low", -1), ("high", 1)):
        distance = sign * (result[name] - result["cosine"]).values[apart]
        assert_allclose(distance, 1.96 * expected[apart], rtol=0.25)


@pytest.mark.parametrize("average", AVERAGES)
def test_one_sample_has_no_standard_error(average: Any) -> None:
    result = cosine.compute(random_capture(lengths=(9,)), average=average)
    for name in ("standard_error", "low", "high"):
        assert np.isnan(result[name]).all()
    assert np.isfinite(result["cosine"]).all()


@pytest.mark.parametrize("average", ["token", "sequence", "without-sinks"])
def test_a_zero_vector_is_left_out_of_its_state_s_cosines_alone_and_counted(
    average: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Two tokens of state 1, one of them and another of state 3, one of which is zero in both; the
    slow way.
    """
    capture = random_capture(lengths=(6, 9, 7, 8))
    zeros = {1: [8, 20], 3: [20, 24]}
    for state, tokens in zeros.items():
        capture.array[state, tokens] = 0
    result = cosine.compute(capture, average=average)
    pieces = [
        drop_sinks(one) if average == "without-sinks" else one for one in sample_states(capture)
    ]
    for i, j in np.ndindex(4, 4):
        total, weight = 0.0, 0
        for a, b in ((piece[i], piece[j]) for piece in pieces):
            if average == "sequence":
                a, b = a.reshape(1, -1), b.reshape(1, -1)
            for x, y in zip(a, b, strict=True):
                if x.any() and y.any():
                    total, weight = (
                        total + x @ y / np.linalg.norm(x) / np.linalg.norm(y),
                        weight + 1,
                    )
        assert result["cosine"][i, j] == pytest.approx(total / weight, abs=1e-6)
    assert np.isfinite(result["low"]).all()
    lost = 0 if average == "sequence" else 3
    assert result.attrs["left_out_tokens"] == lost
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    expected = (
        "cosine of plan name of baseline: 3 tokens left out: "
        "a state is a zero vector there and has no direction"
    )
    assert warnings == [expected] * (lost > 0)


@pytest.mark.parametrize("average", [average for average in AVERAGES if average != "centred"])
def test_a_state_without_direction_anywhere_is_undefined_against_all(average: Any) -> None:
    capture = random_capture()
    capture.array[1] = 0
    result = cosine.compute(capture, average=average)
    undefined = np.zeros((4, 4), bool)
    undefined[1] = undefined[:, 1] = True
    assert_array_equal(np.isnan(result["cosine"]), undefined)
    for name in ("standard_error", "low", "high"):
        assert_array_equal(np.isnan(result[name]), undefined)
    assert result.attrs["left_out_tokens"] == result.attrs["tokens"]


def test_a_sample_whose_state_is_zero_is_left_out_of_its_flattened_cosines() -> None:
    capture = random_capture()
    capture.array[1, 6:18] = 0  # all of the third sample's 12 tokens
    result = cosine.compute(capture, average="sequence")
    sums = [
        naive_flattened_cosines(states)
        for row, states in enumerate(sample_states(capture))
        if row != 2
    ]
    assert_allclose(result["cosine"][1, 0], np.mean(sums, 0)[1, 0], atol=1e-6)
    assert result["cosine"][0, 2] == pytest.approx(
        cosine.compute(random_capture(), average="sequence")["cosine"][0, 2]
    )
    assert result.attrs["left_out_tokens"] == 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("average", ["token", "sequence", "without-sinks"])
def test_what_is_not_finite_is_left_out_of_nothing(average: Any, value: float) -> None:
    capture = random_capture()
    if average == "without-sinks" and np.isinf(value):
        return  # an infinite vector is a sink
    capture.array[1, 8, 3] = value
    capture.array[2, 8] = 0  # which is left out, of the cosine with what is not finite as well
    result = cosine.compute(capture, average=average)
    undefined = np.zeros((4, 4), bool)
    undefined[1] = undefined[:, 1] = True
    if average != "sequence":
        undefined[1, 2] = undefined[2, 1] = False
    assert_array_equal(np.isnan(result["cosine"]), undefined)


@pytest.mark.parametrize("padding", [0, 5, 30])
def test_a_store_from_before_counts_were_kept(
    padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statistics are sums alone; where one plan has more states than another, NaN follows."""
    capture = random_capture()
    expected = cosine.compute(capture)

    def before(plan: str, statistic: Any) -> Iterator[tuple[int, Array]]:
        for tokens, values in ArrayCapture.per_sample(capture, plan, statistic):
            yield tokens, np.append(values[:10], [np.nan] * padding)

    monkeypatch.setattr(capture, "per_sample", before)
    xr.testing.assert_identical(cosine.compute(capture), expected)


def test_a_state_that_never_changes_is_undefined_once_centred() -> None:
    capture = random_capture()
    capture.array[1] = np.arange(8)
    result = cosine.compute(capture, average="centred")
    assert_array_equal(np.isnan(result["cosine"]).all("state_other"), [False, True, False, False])
    assert np.isnan(result["standard_error"][1]).all()


def test_names() -> None:
    result = cosine.compute(random_capture(), plan="baseline", average="sequence")
    assert result["cosine"].dims == ("state", "state_other")
    assert result["layer"].values.tolist() == ["embed", "0", "1", "2"]
    assert result["layer_other"].values.tolist() == ["embed", "0", "1", "2"]
    description = result.attrs.pop("description")
    assert result.attrs == {
        "analysis": "cosine",
        "average": "sequence",
        "plan": "name of baseline",
        "plan_text": "0, 1, 2",
        "model": "painter",
        "corpus": "easel",
        "tokens": 21,
        "samples": 4,
        "resamples": 1000,
        "interval": "95% of a bootstrap over samples",
        "left_out_tokens": 0,
    }
    assert "without padding" in description


def test_survives_a_round_trip_through_zarr(tmp_path: Path) -> None:
    result = cosine.compute(random_capture())
    result.to_zarr(tmp_path / "result", zarr_format=3, consolidated=False)
    with xr.open_zarr(tmp_path / "result", consolidated=False, chunks=None) as read:
        xr.testing.assert_identical(read.load(), result)


def test_plot_draws_the_matrix() -> None:
    figure = cosine.plot(cosine.compute(random_capture()))
    assert "name of baseline" in figure.get_suptitle()


def test_plot_draws_several_side_by_side() -> None:
    first, second = (
        cosine.compute(random_capture(states=states), average="centred") for states in (4, 6)
    )
    assert len(cosine.plot(first, second).axes) == 3  # and the colour bar


def test_an_unknown_average() -> None:
    with pytest.raises(
        RepsimError, match="average='word': choose token, sequence, centred, without-sinks"
    ):
        cosine.compute(random_capture(), average="word")


def test_too_few_resamples() -> None:
    with pytest.raises(RepsimError, match="resamples=1: at least 2"):
        cosine.compute(random_capture(), resamples=1)


def test_sinks_alone() -> None:
    with pytest.raises(RepsimError, match="every kept token is a sink"):
        cosine.compute(random_capture(lengths=(1, 1, 1)), average="without-sinks")


def test_a_plan_without_layers() -> None:
    with pytest.raises(RepsimError, match="'name of empty' runs no layer"):
        cosine.compute(random_capture(states=1), plan="empty")


@pytest.mark.parametrize("average", AVERAGES)
def test_no_tokens(average: Any) -> None:
    with pytest.raises(RepsimError, match="holds no finished tokens"):
        cosine.compute(ArrayCapture(np.zeros((3, 0, 4)), lengths=()), average=average)


def test_statistics_of_zero_vectors_equal_those_of_stored_states(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A model in which the embedding of a frequent word is zero, as that of a padding token is."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    module: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    module.get_input_embeddings().weight.data[tokenizer("the")["input_ids"][0]] = 0
    for part in (module, tokenizer):
        part.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    sizes: dict[str, Any] = {"limit": 6, "max_tokens": 40}
    kept = repsim.capture(model, out=tmp_path / "all.zarr", **sizes)
    streamed = repsim.capture(
        model, out=tmp_path / "none.zarr", keep="none", statistics="cosine,blocks", **sizes
    )
    zeros = (kept.hidden().values[0] == 0).all(-1).sum()
    assert zeros > 3
    for average in ("token", "sequence", "without-sinks"):
        results = [cosine.compute(capture, average=average) for capture in (kept, streamed)]
        xr.testing.assert_identical(*results)
        assert np.isfinite(results[0]["low"]).all()
    assert cosine.compute(kept).attrs["left_out_tokens"] == zeros
    for tokens in ("last", "all"):
        results = [blocks.compute(capture, tokens=tokens) for capture in (kept, streamed)]
        xr.testing.assert_identical(*results)
        assert results[0].attrs["left_out_tokens"] == zeros
        assert np.isfinite(results[0]["influence_high"]).all()
