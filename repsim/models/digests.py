"""Digests of a model's weights: sha256 over all that its numbers depend on and that it carries.

Besides parameters and saved buffers that is what some layers keep elsewhere: the scales of weights
that bitsandbytes has packed, and how the layers of peft's adapters are applied.

Each tensor has a digest of its own, so tensors are hashed on several threads; the value does not
depend on how many there are. What is on a GPU is copied piece by piece through pinned memory, one
buffer per thread, so that no more than the buffers is on the host at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch
from accelerate.utils import align_module_device
from accelerate.utils.modeling import has_offloaded_params
from torch import Tensor, nn

from repsim.models.module_state import BOOKKEEPING

MOST_THREADS = 32
PIECE_BYTES = 8 << 20  # of a tensor on a GPU that is copied and hashed at a time
HELD_BYTES = 1 << 30  # of weights that were brought from elsewhere and wait to be hashed


def digest_of(values: Any) -> str:
    """sha256 over values as JSON, whose names are sorted."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def digest_weights(module: nn.Module, threads: int | None = None) -> str:
    """sha256 over names, dtypes, shapes and bytes of all that is saved with a model.

    Args:
        module: the model.
        threads: how many tensors are hashed at a time; by default as many as there are processors.
    Raises:
        NotImplementedError, RuntimeError, TypeError: a tensor has no bytes that can be read.

    Example:
        >>> digest_weights(nn.Linear(2, 2)) == digest_weights(nn.Linear(2, 2))
        False
    """
    in_place: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    with _Hasher(threads or min(MOST_THREADS, _count_processors())) as hasher:
        # What accelerate has moved to memory or disk is brought back, and packed weights are laid
        # out, module by module. Such a tensor is alive until it is hashed, also once its module
        # has let go of it.
        for path, child in module.named_modules():
            is_brought = has_offloaded_params(child) or _saves_more(child)
            with align_module_device(child):
                for name, tensor in _saved_tensors(child):
                    if is_brought:
                        hasher.put_held(f"{path}.{name}", tensor)
                    else:
                        in_place[f"{path}.{name}"] = tensor
            if is_adapter_layer(child):
                digests[f"{path}."] = digest_of(_settings(child))
        # The largest first, so that at the end no thread is left with much.
        for name in sorted(in_place, key=lambda name: -in_place[name].nbytes):
            hasher.put(name, in_place[name])
        digests |= hasher.digests()
    return digest_of(digests)


def is_adapter_layer(module: Any) -> bool:
    """Whether a module is a layer of peft's around one of the model's."""
    return hasattr(module, "base_layer") and hasattr(module, "merged_adapters")


def digest_tensor(tensor: Tensor, buffer: Tensor | None = None) -> str:
    """sha256 over dtype, shape and bytes of a tensor.

    Args:
        tensor: on any device.
        buffer: `[byte]`, uint8, in host memory. Where it is given, the tensor's bytes are copied
            into it piece by piece; otherwise the tensor is brought to the host as a whole.

    Example:
        >>> weight = torch.arange(12.0).reshape(3, 4)
        >>> digest_tensor(weight) == digest_tensor(weight, torch.empty(5, dtype=torch.uint8))
        True
    """
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if buffer is None:
        raw: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
        return digest.hexdigest()
    raw, copied = tensor.detach().contiguous().view(-1).view(torch.uint8), buffer.numpy().data
    for first in range(0, len(raw), len(buffer)):
        piece = raw[first : first + len(buffer)]
        buffer[: len(piece)].copy_(piece)  # returns when the bytes have arrived
        digest.update(copied[: len(piece)])
    return digest.hexdigest()


class _Hasher:
    """Hashes tensors on several threads; hashlib lets other threads run while it hashes.

    A tensor that several modules share is hashed once.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "repsim-digest")
        self._futures: dict[str, Future[str]] = {}
        self._of_tensor: dict[int, Future[str]] = {}  # by id; `put`'s caller keeps the tensors
        self._held: dict[str, int] = {}  # bytes of tensors that only their futures keep
        self._own = threading.local()

    def __enter__(self) -> _Hasher:
        return self

    def __exit__(self, *_problem: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, name: str, tensor: Tensor) -> None:
        """Hashes a tensor that the caller keeps until all are hashed."""
        if id(tensor) not in self._of_tensor:
            self._of_tensor[id(tensor)] = self._pool.submit(self._digest, tensor)
        self._futures[name] = self._of_tensor[id(tensor)]

    def put_held(self, name: str, tensor: Tensor) -> None:
        """Hashes a tensor that nobody keeps, after waiting until the memory of others is free."""
        while self._held and sum(self._held.values()) + tensor.nbytes > HELD_BYTES:
            oldest = next(iter(self._held))
            self._futures[oldest].result()
            del self._held[oldest]
        self._held[name] = tensor.nbytes
        self._futures[name] = self._pool.submit(self._digest, tensor)

    def digests(self) -> dict[str, str]:
        """Digests by name, once all are made; raises what the first of them raised."""
        return {name: future.result() for name, future in self._futures.items()}

    def _digest(self, tensor: Tensor) -> str:
        # Other kinds of tensors say themselves how they come to the host, or that they cannot.
        if tensor.device.type != "cuda" or type(tensor) not in (Tensor, nn.Parameter):
            return digest_tensor(tensor)
        if not hasattr(self._own, "buffer"):
            self._own.buffer = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        return digest_tensor(tensor, self._own.buffer)


def _count_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _saves_more(module: nn.Module) -> bool:
    """Whether a module saves more than its parameters, such as the scales of packed weights."""
    return type(module)._save_to_state_dict is not nn.Module._save_to_state_dict


def _saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is saved of a module itself, by name."""
    if _saves_more(module):
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
