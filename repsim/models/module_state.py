"""What a model's modules hold besides weights, and putting it back.

A forward may leave traces in the modules: rotary frequencies grown for a long text (dynamic NTK),
attention switched to another kind for a short one (BigBird), recurrent states. The next text would
be computed with them, so its states would depend on which texts ran before it. `ModuleState`
remembers what was there and restores it; `prepare_for_run` makes a model ready for a run. This
module knows nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What `nn.Module` keeps of itself; hooks and weights come and go for reasons of their own.
BOOKKEEPING = frozenset(vars(nn.Module()))
PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    Tensor,
)


@dataclass(frozen=True)
class _Remembered:
    """A value and, since a tensor may be overwritten in place, a copy of it.

    copy: None where the value is no tensor.
    version: torch's count of writes in place; None where it does not count them.
    """

    value: Any
    copy: Tensor | None
    version: int | None

    def is_unchanged(self, now: Any) -> bool:
        """Whether this is the value, not written to since."""
        if self.copy is None:
            return now is self.value or (
                isinstance(now, type(self.value)) and bool(now == self.value)
            )
        if now is not self.value:
            return False
        return (
            torch.equal(now, self.copy) if self.version is None else _version(now) == self.version
        )

    def restored_value(self, now: Any) -> Any:
        """The value; for a tensor that has moved to another device or dtype, a copy there."""
        if self.copy is None:
            return self.value
        if isinstance(now, Tensor) and (now.device, now.dtype) != (
            self.copy.device,
            self.copy.dtype,
        ):
            return self.copy.to(now)
        if self.version is None or _version(self.value) != self.version:
            self.value.copy_(self.copy)
        return self.value


@dataclass(frozen=True)
class _ModuleSnapshot:
    """What one module held.

    values: in each of its dictionaries (attributes, buffers, submodules), what is remembered.
    sizes: how many entries each of these dictionaries had.
    """

    module: nn.Module
    values: tuple[dict[str, _Remembered], ...]
    sizes: tuple[int, ...]

    @staticmethod
    def take(module: nn.Module) -> _ModuleSnapshot:
        dictionaries = _dictionaries(module)
        values = (
            {name: _remember(held[name]) for name in names(module)} for held, names in dictionaries
        )
        sizes = (len(held) for held, _ in dictionaries)
        return _ModuleSnapshot(module, tuple(values), tuple(sizes))

    @property
    def is_current(self) -> bool:
        pairs = zip(_dictionaries(self.module), self.values, self.sizes, strict=True)
        return all(
            len(now) == size
            and all(remembered.is_unchanged(now.get(name)) for name, remembered in before.items())
            for (now, _), before, size in pairs
        )

    def restore(self) -> None:
        """Puts back what was there and removes what is new."""
        for (now, names), before, size in zip(
            _dictionaries(self.module), self.values, self.sizes, strict=True
        ):
            for name, remembered in before.items():
                value = now.get(name)
                if remembered.copy is not None or value is not remembered.value:
                    now[name] = remembered.restored_value(value)
            if len(now) > size:
                for name in set(names(self.module)) - before.keys():
                    del now[name]
                    self.module._non_persistent_buffers_set.discard(name)


class ModuleState:
    """Plain attributes, unsaved buffers and submodules of a module tree, as they are now.

    Weights are not among them (parameters and saved buffers), nor hooks, nor what lists and
    dictionaries hold.

    Example:
        >>> module = nn.Linear(2, 2)
        >>> module.calls = 0
        >>> state = ModuleState(module)
        >>> module.calls = 3
        >>> state.is_current
        False
        >>> state.restore()
        >>> module.calls
        0
    """

    def __init__(self, module: nn.Module) -> None:
        self._snapshots = [_ModuleSnapshot.take(child) for child in module.modules()]

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed since."""
        return all(snapshot.is_current for snapshot in self._snapshots)

    @torch.inference_mode()
    def restore(self) -> None:
        """Puts back what has changed."""
        for snapshot in self._snapshots:
            snapshot.restore()


def prepare_for_run(module: nn.Module) -> None:
    """Brings a model into the state in which repsim runs it.

    It is in evaluation mode, its rotary positions are those of a model that has seen no long text,
    and its parts return records whatever its configuration says (`return_dict`).
    """
    module.eval()
    _reset_rotary_frequencies(module)
    configs: list[Any] = [child.config for child in module.modules() if hasattr(child, "config")]
    for config in configs:
        if getattr(config, "return_dict", True) is False:
            config.return_dict = True


def _reset_rotary_frequencies(module: nn.Module) -> None:
    """Rotary frequencies as they were before longer texts made them grow.

    transformers keeps the original ones in a buffer of their own.
    """
    for child in module.modules():
        for name in [name for name in vars(child) if name.endswith("max_seq_len_cached")]:
            original = getattr(child, "original_max_seq_len", None)
            if original is None or vars(child)[name] <= original:
                continue
            prefix = name.removesuffix("max_seq_len_cached")
            child._buffers[f"{prefix}inv_freq"] = child.get_buffer(f"{prefix}original_inv_freq")
            vars(child)[name] = original


def _dictionaries(
    module: nn.Module,
) -> tuple[tuple[dict[str, Any], Callable[[nn.Module], list[str]]], ...]:
    """Where a module keeps attributes, buffers and submodules, and which names are remembered."""
    return (vars(module), _plain), (module._buffers, _unsaved), (module._modules, _children)


def _plain(module: nn.Module) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if name not in BOOKKEEPING and isinstance(value, PLAIN)
    ]


def _unsaved(module: nn.Module) -> list[str]:
    return [name for name in module._buffers if name in module._non_persistent_buffers_set]


def _children(module: nn.Module) -> list[str]:
    return list(module._modules)


def _remember(value: Any) -> _Remembered:
    if not isinstance(value, Tensor):
        return _Remembered(value, None, None)
    return _Remembered(value, value.detach().clone(), _version(value))


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
