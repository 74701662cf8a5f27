"""Runs whose memory runs out: they go on in smaller batches, say so once and keep it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor, nn

import repsim
from repsim import models
from repsim.data.batching import costs_on
from repsim.data.packing import pack_prefix_trees
from repsim.errors import RepsimError
from repsim.evaluation import prefix_sharing as prefix_sharing_module
from repsim.jobs.memory import is_out_of_memory
from repsim.jobs.resumable import Progress
from repsim.models import tracing
from repsim.models.stack import find_stack
from repsim.storage.frame import StoreWriter
from support.evaluation import asked_of, close

PLANS = ["baseline", "drop:layer=1", "drop:layer=4"]
WORDS = (9, 9, 9, 9, 8, 8, 8, 8, 12, 12, 12, 12) * 2  # of each text
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


class Narrow(nn.Module):
    """A module that runs out of memory at batches of more positions than `most`, in a block."""

    most = 1 << 30
    in_block = False
    error: Exception = ERRORS[0]

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def check(self, values: Tensor) -> None:
        if Narrow.in_block and values.shape[0] * values.shape[1] > Narrow.most:
            raise Narrow.error

    def forward(self, values: Tensor) -> Tensor:
        self.check(values)
        result: Tensor = self.inner(values)
        return result


@pytest.fixture(scope="module")
def model(tiny_folder: Path, request: pytest.FixtureRequest) -> models.Model:
    """It runs out of memory in the layer 3, or before the stack, while its forward is traced."""
    loaded = models.load(str(tiny_folder))
    module = copy.deepcopy(loaded.module)
    if getattr(request, "param", "layer") == "layer":
        module.model.layers[3].mlp = Narrow(module.model.layers[3].mlp)
    else:
        module.model.rotary_emb = NarrowPositions(module.model.rotary_emb)
    return replace(loaded, module=module, stack=find_stack(module))


class NarrowPositions(Narrow):
    """The same for rotary positions, which the forward makes before any layer runs."""

    def forward(self, values: Tensor, position_ids: Tensor) -> Any:  # type: ignore[override]
        self.check(values)
        return self.inner(values, position_ids)


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    yield
    Narrow.most, Narrow.error = 1 << 30, ERRORS[0]


@pytest.fixture(autouse=True)
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The batches of every block that runs, trials aside."""
    seen: list[list[tuple[int, ...]]] = []
    run = tracing.Tracer.run

    def watch(self: tracing.Tracer, trie: Any, ready: Any, consume: Any, **more: Any) -> None:
        if len(trie) > self.model.layers:
            seen.append([batch.mask.shape for batch in ready])
            Narrow.in_block = True
        try:
            run(self, trie, ready, consume, **more)
        finally:
            Narrow.in_block = False

    monkeypatch.setattr(tracing.Tracer, "run", watch)
    return seen


def remarks(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if "out of memory" in line]


def asked(out: Path, **others: Any) -> dict[str, Any]:
    texts = [f"{'the cat ' * (words // 2)}{row} dog" for row, words in enumerate(WORDS)]
    return {
        "plan": PLANS,
        "corpus": texts,
        "out": out,
        "dtype": "float32",
        "logprobs": True,
        "batch_tokens": 130,
        **others,
    }


KINDS: list[dict[str, Any]] = [
    {},
    {"keep": "none", "statistics": "cosine,norms", "logprobs": False},
    {"tokens": "mean"},
]


def arrays(capture: repsim.Capture) -> dict[str, Any]:
    names = ("hidden", "logprob")
    found = {name: capture.dataset[name].values for name in names if name in capture.dataset}
    if capture.dataset.attrs["keep"] == "none":
        group: Any = zarr.open_group(str(capture.path), mode="r")["statistics"]
        found |= {name: np.asarray(array[:]) for name, array in group.arrays()}
    return found


@pytest.mark.parametrize(
    ("model", "kind", "error"),
    [("layer", kind, ERRORS[0]) for kind in KINDS] + [("embeddings", {}, ERRORS[1])],
    indirect=["model"],
)
def test_a_capture_goes_on_in_smaller_batches(
    model: models.Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    shapes: list[list[tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
    error: Exception,
) -> None:
    plain = repsim.capture(model, **asked(tmp_path / "plain.zarr", **kind))
    blocks = len(shapes)
    largest = max(rows * width for batch in shapes for rows, width in batch)
    assert blocks > 2
    assert remarks(caplog) == []
    assert "batch_limit" not in plain.dataset.attrs

    # Half of the largest batch is still too much.
    shapes.clear()
    Narrow.most, Narrow.error = largest // 3, error
    small = repsim.capture(model, **asked(tmp_path / "small.zarr", **kind))
    limit = small.dataset.attrs["batch_limit"]
    assert limit <= Narrow.most
    assert len(shapes) == blocks + 2
    assert len(remarks(caplog)) == 1
    assert remarks(caplog)[0].startswith("block 0 of ")
    assert f"batches have at most {limit} tokens, which the store keeps" in remarks(caplog)[0]
    assert repsim.verify(small.path).damages == ()
    assert small.missing == 0
    assert (small.dataset["block"].values == plain.dataset["block"].values).all()
    one, other = arrays(plain), arrays(small)
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=2e-5, atol=2e-5, err_msg=name)

    # Bits are those of the same batches, had they been made so from the start.
    monkeypatch.setattr(StoreWriter, "batch_limit", limit)
    again = arrays(repsim.capture(model, **asked(tmp_path / "again.zarr", **kind)))
    first = int((plain.dataset["block"].values == 0).sum())
    for name, values in other.items():
        along = "token" if name in ("hidden", "logprob") else "sample"
        begin = first if along == "sample" else int((plain.dataset["sample"].values < first).sum())
        np.testing.assert_array_equal(values[:, begin:], again[name][:, begin:], err_msg=name)


def test_a_capture_that_was_stopped_goes_on_with_small_batches(
    model: models.Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    shapes: list[list[tuple[int, ...]]],
) -> None:
    def stop(progress: Progress) -> None:
        if progress.tokens > 150:
            raise KeyboardInterrupt

    Narrow.most = 30
    with pytest.raises(KeyboardInterrupt):
        repsim.capture(model, progress=stop, **asked(tmp_path / "c.zarr"))
    assert len(remarks(caplog)) == 1
    caplog.clear()
    shapes.clear()
    done = repsim.capture(model, **asked(tmp_path / "c.zarr"))
    assert done.missing == 0
    assert remarks(caplog) == []
    assert max(rows * width for batch in shapes for rows, width in batch) <= 30
    # What an extension adds is computed with the same limit.
    grown = repsim.capture(
        model, **asked(tmp_path / "c.zarr", plan=[*PLANS, "skip:start=0"], append=True)
    )
    assert remarks(caplog) == []
    assert grown.dataset.attrs["batch_limit"] == done.dataset.attrs["batch_limit"]
    assert repsim.verify(grown.path).damages == ()


def test_texts_that_do_not_fit_by_themselves_are_one_line(
    model: models.Model, tmp_path: Path
) -> None:
    Narrow.most = 8
    with pytest.raises(
        RepsimError, match=r"^block \d of \d \(.*\): out of memory on cpu; .* fewer --batch-tokens"
    ):
        repsim.capture(model, **asked(tmp_path / "c.zarr", logprobs=False))


@pytest.mark.parametrize("prefix_sharing", ["on", "off"])
def test_an_evaluation_goes_on_in_smaller_batches(
    model: models.Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    shapes: list[list[tuple[int, ...]]],
    prefix_sharing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Several rows in a batch, as on a GPU.
    pack = partial(pack_prefix_trees, row_tokens=40)
    monkeypatch.setattr(prefix_sharing_module, "pack_prefix_trees", pack)
    monkeypatch.setattr(prefix_sharing_module, "costs_on", lambda _device: costs_on("cuda"))
    kind: dict[str, Any] = {"prefix_sharing": prefix_sharing, "batch_tokens": 2000, "limit": 30}
    kind |= {"plan": PLANS, "tasks": "recall"}
    plain = repsim.evaluate(model, **asked_of(tmp_path / "plain.zarr", **kind))
    largest = max(rows * width for batch in shapes for rows, width in batch if rows > 1)
    blocks = len(shapes)
    shapes.clear()
    Narrow.most = largest - 1
    small = repsim.evaluate(model, **asked_of(tmp_path / "small.zarr", **kind))
    assert len(shapes) == blocks + 1
    assert len(remarks(caplog)) == 1
    assert small.dataset.attrs["batch_limit"] == largest // 2
    close(plain.dataset, small.dataset)
    assert repsim.verify(tmp_path / "small.zarr").damages == ()
    # With another plan, the store's limit is there from the start.
    caplog.clear()
    shapes.clear()
    more = {**kind, "plan": [*PLANS, "skip:start=0"], "append": True}
    repsim.evaluate(model, **asked_of(tmp_path / "small.zarr", **more))
    assert remarks(caplog) == []
    assert len(shapes) == blocks
    assert (
        max(rows * width for batch in shapes for rows, width in batch if rows > 1) <= largest // 2
    )


@pytest.mark.parametrize(
    ("problem", "says"),
    [(error, True) for error in ERRORS] + [(RuntimeError("shape"), False), (KeyError(), False)],
)
def test_which_errors_are_of_a_full_memory(problem: Exception, says: bool) -> None:
    assert is_out_of_memory(problem) is says
