"""A capture's labels and tables: layers, tokens and plans as a researcher asks for them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import ttest_rel

import repsim
from repsim import models
from repsim.errors import ModelError, PlanError

TEXTS = ("the time of day is in a house", "people see that who now", "it was one", "and with when")
PLANS = ("baseline", "skip:start=1", "looped_parallel:start=1,loops=2")


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


@pytest.fixture(scope="module")
def capture(model: models.Model, tmp_path_factory: pytest.TempPathFactory) -> repsim.Capture:
    """With log-probabilities; not to be changed."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "lines.txt").write_text("\n".join(TEXTS))
    options: dict[str, Any] = {"corpus": str(folder / "lines.txt"), "out": folder / "c.zarr"}
    return repsim.capture(model, plan=PLANS, logprobs=True, **options)


# Labels


def test_a_state_is_selected_by_its_layer_and_by_its_place(capture: repsim.Capture) -> None:
    hidden = capture.hidden("skip:start=1")
    assert hidden["layer"].values.tolist() == ["embed", "0", "1", "5"]
    assert_array_equal(hidden.sel(layer="5"), hidden.isel(state=3))
    assert_array_equal(hidden.sel(layer=["1", "embed"]), hidden.isel(state=[2, 0]))
    twice = capture.hidden("looped_parallel:start=1,loops=2")
    assert_array_equal(twice.sel(layer="(2|3|4)"), twice.isel(state=[3, 4]))


def test_two_plans_are_subtracted_layer_by_layer(capture: repsim.Capture) -> None:
    skipped, whole = capture.hidden("skip:start=1"), capture.hidden()
    difference = skipped - whole
    assert difference["layer"].values.tolist() == ["embed", "0", "1", "5"]
    assert_array_equal(difference[:3], 0)
    expected = skipped.values[3] - whole.values[6]
    assert_array_equal(difference.sel(layer="5"), expected)


def test_a_dtype_is_asked_for_and_read_lazily(capture: repsim.Capture) -> None:
    hidden, stored = capture.hidden(dtype="float32"), capture.hidden()
    assert hidden.dtype == "float32"
    assert stored.dtype == "float16"
    piece = hidden.isel(state=[2, 0], token=slice(1, 3))
    assert not hidden.variable._in_memory
    assert not piece.variable._in_memory
    assert piece.values.dtype == "float32"
    assert_array_equal(piece, stored.isel(state=[2, 0], token=slice(1, 3)).values)
    assert_array_equal(hidden.sel(layer="3").isel(unit=5), stored.values[4, :, 5])
    assert_array_equal(hidden.values, stored.values.astype(np.float32))
    assert not hidden.variable._in_memory
    xr_mean = capture.hidden("skip:start=1", np.float64).mean("token")
    assert_allclose(xr_mean, capture.hidden("skip:start=1").values.astype(float).mean(1))


def test_plans_are_indexed_by_their_names(capture: repsim.Capture) -> None:
    path = capture.dataset["path"].sel(plan="skip:start=1")
    assert path["plan_text"].item() == "0, 1, 5"
    assert capture.dataset["plan_text"].values.tolist() == [
        each.plan.text for each in capture.plans
    ]
    assert capture.hidden("0, 1, 5")["plan"].item() == "skip:start=1"


# Tokens


def test_one_row_per_token(capture: repsim.Capture, model: models.Model) -> None:
    frame = capture.to_frame(tokenizer=model.tokenizer)
    assert len(frame) == capture.complete
    for name in ("sample", "position", "token_id"):
        assert_array_equal(frame[name], capture.tokens[name])
    assert frame["sample_key"].tolist() == capture.samples.values[frame["sample"]].tolist()
    for plan in PLANS:
        assert_array_equal(frame[f"logprob {plan}"], capture.logprob(plan))
    for sample, rows in frame.groupby("sample"):
        ids = rows["token_id"].tolist()
        assert "".join(rows["token_text"]).replace(" ", "") == model.tokenizer.decode(ids).replace(
            " ", ""
        ), sample
    one = capture.to_frame(plan="skip:start=0..1")
    assert list(one.columns)[4:] == ["logprob skip:start=1"]
    with pytest.raises(PlanError, match=r"plan 'drop:layer=0' is not in .*; it holds: baseline, "):
        capture.to_frame(plan="drop:layer=0")


def test_token_texts_are_of_the_tokenizer_that_the_tokens_are_from(
    capture: repsim.Capture, model: models.Model, tiny_folder: Path, tiny_encoder_folder: Path
) -> None:
    texts = capture.token_texts(tiny_folder)
    ids = capture.tokens["token_id"].values
    for token, text in zip(ids.tolist(), texts.values.tolist(), strict=True):
        assert text == model.tokenizer.decode([token])
    with pytest.raises(ModelError, match="a store keeps no tokenizer, and tiny-llama is not emb"):
        capture.token_texts()
    other = models.load(str(tiny_encoder_folder)).tokenizer
    with pytest.raises(ModelError, match="another tokenizer than the tokens of tiny-llama"):
        capture.token_texts(other)


# Plans


def naive_means(capture: repsim.Capture, plan: str) -> dict[str, float]:
    """Sample key → mean log-probability, and under "" the mean over all tokens."""
    frame = capture.to_frame(plan=plan).dropna()
    column = f"logprob {plan}"
    return {"": frame[column].mean()} | frame.groupby("sample")[column].mean().to_dict()


def test_one_row_per_plan(capture: repsim.Capture) -> None:
    table = capture.table().set_index("plan_name")
    assert table.index.tolist() == list(PLANS)
    assert table["states"].tolist() == [7, 4, 6]
    assert set(table["tokens"]) == {capture.complete}
    assert set(table["samples"]) == {len(TEXTS)}
    for plan in PLANS:
        mean = naive_means(capture, plan)[""]
        assert table.loc[plan, "logprob"] == pytest.approx(mean, rel=1e-6)
        assert table.loc[plan, "perplexity"] == pytest.approx(np.exp(-mean), rel=1e-6)
    of_baseline = table.loc["baseline"]
    assert of_baseline[["difference", "p_value", "p_holm"]].isna().all()
    others = table.loc[list(PLANS[1:])]
    assert_allclose(others["difference"], others["logprob"] - of_baseline["logprob"])
    assert (others["difference_low"] < others["difference"]).all()
    assert (others["difference"] < others["difference_high"]).all()
    assert (others["p_holm"] >= others["p_value"]).all()


def test_a_filter_changes_no_number(capture: repsim.Capture) -> None:
    whole, one = capture.table(), capture.table(plan="skip:start=1")
    pd.testing.assert_frame_equal(one, whole.iloc[[1]].reset_index(drop=True))


def test_samples_of_equal_length_are_tested_as_by_scipy(
    model: models.Model, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("\n".join(TEXTS * 3))
    options: dict[str, Any] = {"corpus": str(tmp_path / "long.txt"), "out": tmp_path / "c.zarr"}
    capture = repsim.capture(model, plan=PLANS[:2], logprobs=True, max_tokens=2, **options)
    base, other = (naive_means(capture, plan) for plan in PLANS[:2])
    keys = [key for key in base if key != ""]
    expected = ttest_rel([other[key] for key in keys], [base[key] for key in keys]).pvalue
    p_value = capture.table(resamples=5000)["p_value"][1]
    assert p_value == pytest.approx(expected, rel=0.5)


def test_without_log_probabilities_or_the_baseline(
    model: models.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    options: dict[str, Any] = {"corpus": str(tmp_path / "lines.txt"), "plan": PLANS[1]}
    plain = repsim.capture(model, out=tmp_path / "a.zarr", **options)
    assert list(plain.table().columns) == ["plan_name", "states", "samples", "tokens", "plan"]
    assert list(plain.to_frame().columns) == ["sample", "sample_key", "position", "token_id"]
    alone = repsim.capture(model, out=tmp_path / "b.zarr", logprobs=True, **options)
    with caplog.at_level(logging.WARNING, "repsim"):
        table = alone.table()
    assert "no differences: the baseline is not in the capture" in caplog.text
    assert "difference" not in table
    assert np.isfinite(table["logprob"]).all()
