"""Digests of weights: the value of the first release, whatever runs them and where they are."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

from repsim.models import digests
from repsim.models.digests import digest_tensor, digest_weights
from support.models import ARCHITECTURES, T, make

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    ),
]
# Of `numbered(make("llama").module)`, by the release before digests were made on several threads.
RECORDED = "2cb37ee9b0a38ebd3268758bb861c4845f20f20a04df868c7a96ad78a57e4b95"


def numbered(module: nn.Module) -> nn.Module:
    """The module with weights that no version of torch draws otherwise."""
    for number, parameter in enumerate(module.parameters()):
        values = (torch.arange(parameter.numel()) * 7 + number) % 251 - 125
        parameter.data = (values / 64).to(parameter.dtype).reshape(parameter.shape)
    return module


def one_after_the_other(module: nn.Module) -> str:
    """The digest by a plain loop."""
    hashes = {}
    for path, child in module.named_modules():
        for name, tensor in itertools.chain(child._parameters.items(), child._buffers.items()):
            if tensor is None or name in child._non_persistent_buffers_set:
                continue
            raw: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            text = f"{tensor.dtype} {tuple(tensor.shape)}".encode() + raw.numpy().tobytes()
            hashes[f"{path}.{name}"] = hashlib.sha256(text).hexdigest()
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def test_the_recorded_digest() -> None:
    module = numbered(make("llama").module)
    assert digest_weights(module) == RECORDED


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "mixtral"])
def test_threads_and_devices_change_nothing(architecture: str, device: str) -> None:
    assert architecture in ARCHITECTURES
    module = make(architecture).module
    expected = one_after_the_other(module)
    module.to(device)
    assert [digest_weights(module, threads) for threads in (1, 2, 7)] == [expected] * 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_a_tensor_in_pieces(dtype: torch.dtype, device: str) -> None:
    """What goes through a buffer, in pieces that end anywhere, has the bytes of the whole."""
    grid = torch.arange(35).reshape(5, 7).to(dtype)
    for tensor in (grid, grid.T, grid[:, 2], grid[2, 2], grid[:0]):
        expected = digest_tensor(tensor)
        for size in (1, 3, 64, 1000):
            buffer = torch.empty(size, dtype=torch.uint8)
            assert digest_tensor(tensor.to(device), buffer) == expected


def test_a_shared_tensor_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("llama").module
    module.lm_head.weight = module.model.embed_tokens.weight
    expected, hashed = one_after_the_other(module), []

    def count(tensor: Tensor) -> str:
        hashed.append(tuple(tensor.shape))
        return digest_tensor(tensor)

    monkeypatch.setattr(digests, "digest_tensor", count)
    assert digest_weights(module) == expected
    assert hashed.count(tuple(module.lm_head.weight.shape)) == 1


def test_what_was_brought_from_a_disk_is_held_in_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make("llama").module
    expected, most = one_after_the_other(module), 20_000
    places = {name: "cpu" for name, _ in module.named_children()}
    del places["model"]
    places |= {f"model.{name}": "cpu" for name, _ in module.model.named_children()}
    del places["model.layers"]
    places |= {f"model.layers.{layer}": "disk" for layer in range(T)}
    accelerate.dispatch_model(
        module, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    monkeypatch.setattr(digests, "HELD_BYTES", most)
    sums: list[int] = []
    put_held = digests._Hasher.put_held

    def put(hasher: digests._Hasher, name: str, tensor: Tensor) -> None:
        put_held(hasher, name, tensor)
        sums.append(sum(hasher._held.values()))

    monkeypatch.setattr(digests._Hasher, "put_held", put)
    assert digest_weights(module) == expected
    assert len(sums) > T
    assert max(sums) <= most


def test_weights_that_cannot_be_read_are_an_error() -> None:
    with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
        digest_weights(nn.Linear(2, 2, device="meta"))
