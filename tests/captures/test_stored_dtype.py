"""`--dtype auto`: what is measured, what follows from it, and that the dtype of a store rules."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

import repsim
from repsim import models
from repsim.captures import run, stored_dtype
from repsim.captures.stored_dtype import TRIED_TEXTS, TRIED_TOKENS
from repsim.errors import RepsimError
from repsim.models.stack import find_stack
from repsim.options import AUTO
from repsim.storage.requests import storable

LONG = [" ".join([word] * 40) for word in ("of", "and", "to", "in", "is", "that", "a", "it")]
PLANS = ["baseline", "looped_parallel:start=0,loops=3"]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


class Adding(torch.nn.Module):
    """In place of an MLP: adds the same to every unit."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.full_like(hidden, self.value)


def constant_model(
    model: models.Model, value: float, *, layers: int = 0, **words: float
) -> models.Model:
    """A copy of the model in which every state holds one number.

    Args:
        model: a Llama.
        value: what the last `layers` layers add to each unit, or all states where there are none.
        layers: how many layers add; the others do nothing.
        **words: the states of some words in place of it.
    """
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.model.embed_tokens.weight.fill_(0 if layers else value)
        for word, other in words.items():
            module.model.embed_tokens.weight[model.tokenizer.convert_tokens_to_ids(word)] = other
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    for layer in list(module.model.layers)[len(module.model.layers) - layers :]:
        layer.mlp = Adding(value)
    return replace(model, module=module, stack=find_stack(module))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.zarr"


def test_a_quarter_of_float16() -> None:
    assert stored_dtype.MOST == 16376
    assert stored_dtype.DtypeTrial(16376.0, 9).dtype == "float16"
    assert (
        str(stored_dtype.DtypeTrial(68398.2, 1256))
        == "float32 (auto: states of 1,256 tokens reach 68,398.2; float32 past 16,376)"
    )


@pytest.mark.parametrize("rule", ["all", "every:3", "last", "mean"])
def test_what_is_measured_is_the_largest_state_of_the_beginnings(
    model: models.Model, path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Eight texts, cut at 32 tokens, under all plans; the ninth, a short one, does not count."""
    trials: list[stored_dtype.DtypeTrial] = []

    def note(*arguments: Any) -> stored_dtype.DtypeTrial:
        trials.append(measure(*arguments))
        return trials[-1]

    measure = stored_dtype.try_dtype
    monkeypatch.setattr(stored_dtype, "try_dtype", note)
    repsim.capture(model, plan=PLANS, corpus=[*LONG, "the sea"], tokens=rule, out=path)
    (trial,) = trials
    whole = repsim.capture(
        model,
        plan=PLANS,
        corpus=LONG,
        tokens=rule,
        dtype="float32",
        max_tokens=TRIED_TOKENS,
        out=path.with_name("w.zarr"),
    )
    assert trial.tokens == TRIED_TEXTS * TRIED_TOKENS
    assert trial.largest == pytest.approx(abs(whole.dataset["hidden"].values).max(), rel=1e-5)


@pytest.mark.parametrize("keep", ["all", "none"])
@pytest.mark.parametrize(("largest", "dtype"), [(16000, "float16"), (17000, "float32")])
def test_auto_is_what_the_first_texts_ask_for(
    model: models.Model,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    keep: str,
    largest: float,
    dtype: str,
) -> None:
    caplog.set_level("INFO", "repsim")
    keywords: dict[str, Any] = {"corpus": LONG, "out": path, "keep": keep}
    keywords |= {"statistics": "norms"} if keep == "none" else {}
    capture = repsim.capture(constant_model(model, largest), **keywords)
    assert capture.dataset.attrs["dtype"] == dtype
    said = [text for text in caplog.messages if text.startswith("dtype: ")]
    tokens = TRIED_TEXTS * TRIED_TOKENS
    assert said == [
        f"dtype: {dtype} (auto: states of {tokens} tokens reach {largest:,}.0; float32 past 16,376)"
    ]
    # The request leaves it open, as it was asked; the same request is complete, however spelled.
    assert "dtype" not in capture.dataset.attrs["requests"][0]
    for spelled in (AUTO, dtype):
        repsim.capture(constant_model(model, largest), **keywords, dtype=spelled)
        assert caplog.messages[-1].endswith("complete already")


def test_plans_whose_loops_grow_decide_too(model: models.Model, path: Path) -> None:
    """Each of the last two layers adds 6,000."""
    grown = constant_model(model, 6000, layers=2)
    dtypes = {
        plan: repsim.capture(
            grown, plan=plan, corpus=LONG[:2], out=path.with_name(f"{row}.zarr")
        ).dataset.attrs["dtype"]
        for row, plan in enumerate(("baseline", "0-5, 4-5"))
    }
    assert dtypes == {"baseline": "float16", "0-5, 4-5": "float32"}


def test_values_that_are_not_finite_count_for_nothing(model: models.Model, path: Path) -> None:
    capture = repsim.capture(
        constant_model(model, np.inf), corpus=LONG[:1], out=path, allow_nonfinite=True
    )
    assert capture.dataset.attrs["dtype"] == "float16"
    assert np.isinf(capture.hidden().values).any()


# The dtype of what is there


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_the_dtype_of_a_store_rules(
    model: models.Model,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stored: str,
) -> None:
    """Resumed, extended and repaired by requests that leave it open; nothing is measured."""
    large = constant_model(model, 17000)  # of which auto would make float32
    keywords: dict[str, Any] = {"corpus": LONG[:3], "out": path}
    with monkeypatch.context() as earlier_release:  # which did not keep its default
        earlier_release.setattr(run, "storable", without_dtype)
        first = repsim.capture(large, dtype=stored, **keywords)
    assert "dtype" not in first.dataset.attrs["requests"][0]
    monkeypatch.setattr(stored_dtype, "try_dtype", refuse)
    caplog.set_level("INFO", "repsim")
    for spelled in (AUTO, stored):
        repsim.capture(large, dtype=spelled, **keywords)
        assert caplog.messages[-1].endswith("complete already")
    grown = repsim.capture(large, plan=["baseline", "drop:layer=1"], append=True, **keywords)
    assert grown.hidden("drop:layer=1").dtype == stored
    assert len(grown.commands) == 2
    chunk = path / "hidden" / "c" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"x" * 9)
    mended = repsim.capture(
        large, plan=["baseline", "drop:layer=1"], append=True, repair=True, **keywords
    )
    assert not repsim.verify(path).damages
    np.testing.assert_array_equal(mended.hidden().values, first.hidden().values)
    other = {"float16": "float32", "float32": "float16"}[stored]
    with pytest.raises(
        RepsimError, match=rf"another capture: dtype \({stored} there, {other} here"
    ):
        repsim.capture(large, dtype=other, **keywords)


def test_a_stopped_capture_goes_on_in_its_dtype(
    model: models.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progress: Any) -> None:
        if progress.tokens > 50:
            raise KeyboardInterrupt

    large = constant_model(model, 17000)
    keywords: dict[str, Any] = {"corpus": LONG[:3], "out": path, "batch_tokens": 40}
    with pytest.raises(KeyboardInterrupt):
        repsim.capture(large, progress=stop, **keywords)
    monkeypatch.setattr(stored_dtype, "try_dtype", refuse)
    capture = repsim.capture(large, **keywords)
    assert (capture.missing, str(capture.hidden().dtype)) == (0, "float32")
    assert len(capture.commands) == 1


def test_an_overflow_that_was_not_foreseen_names_what_would_work(
    model: models.Model, path: Path
) -> None:
    """In the ninth text, when the others are finished in float16."""
    texts = [*LONG, "the sea"]
    large = constant_model(model, 1, the=1e6)
    with pytest.raises(RepsimError) as caught:
        repsim.capture(large, corpus=texts, out=path, batch_tokens=40)
    advice = "does not fit float16; use --dtype float32 and another --out, or --allow-nonfinite"
    assert str(caught.value).endswith(f": 1000000 {advice}")
    elsewhere = path.with_name("d.zarr")
    assert not repsim.capture(large, corpus=texts, out=elsewhere, dtype="float32").missing


def test_what_does_not_fit_even_in_float16_is_refused_before_anything_runs(
    model: models.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_dtype, "try_dtype", refuse)
    with pytest.raises(RepsimError, match="are needed, --max-bytes allows"):
        repsim.capture(model, corpus=LONG, out=path, max_bytes=100)
    assert not path.exists()


def without_dtype(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in storable(request).items() if name != "dtype"}


def refuse(*_: Any) -> NoReturn:
    raise AssertionError("measured")
