"""Digests of a model's weights: sha256 over all that its numbers depend on and that it carries.

Besides parameters and saved buffers that is what some layers keep elsewhere: the scales of weights
that bitsandbytes has packed, and how the layers of peft's adapters are applied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from repsim.models.module_state import BOOKKEEPING


def digest_of(values: Any) -> str:
    """sha256 over values as JSON, whose names are sorted."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def digest_weights(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of all that is saved with a model.

    Example:
        >>> digest_weights(nn.Linear(2, 2)) == digest_weights(nn.Linear(2, 2))
        False
    """
    digests = {}
    for path, child in module.named_modules():
        with align_module_device(child):  # brings what accelerate has moved to memory or disk
            for name, tensor in _saved_tensors(child):
                raw: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
                digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(memoryview(raw.numpy()))
                digests[f"{path}.{name}"] = digest.hexdigest()
        if is_adapter_layer(child):
            digests[f"{path}."] = digest_of(_settings(child))
    return digest_of(digests)


def is_adapter_layer(module: Any) -> bool:
    """Whether a module is a layer of peft's around one of the model's."""
    return hasattr(module, "base_layer") and hasattr(module, "merged_adapters")


def _saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is saved of a module itself, by name."""
    if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
        # It keeps more than parameters, such as the scales of packed weights.
        saved: dict[str, Any] = {}
        module._save_to_state_dict(saved, "", True)
        named: Iterator[tuple[str, Any]] = iter(saved.items())
    else:
        unsaved = module._non_persistent_buffers_set
        both = chain(module._parameters.items(), module._buffers.items())
        named = ((name, tensor) for name, tensor in both if name not in unsaved)
    return ((name, tensor) for name, tensor in named if isinstance(tensor, Tensor))


def _settings(layer: nn.Module) -> dict[str, Any]:
    """What a layer of an adapter keeps besides tensors: scales, which adapters are used, merged."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in BOOKKEEPING and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    """Whether a value is made of words and numbers alone, in lists and dictionaries or not."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
