"""What a model's modules keep besides their weights: taken, compared and put back.

Some models change themselves while they run: BigBird changes its attention with the length of a batch, rotary
embeddings that grow with the length keep their last frequencies, recurrent layers their last state. What such a model
gives then depends on what ran before. A run that takes the state first, and puts it back after each forward, does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# What every module has: hooks, which come and go while a model runs, and parameters, which offloading moves about.
_PLAIN = frozenset(vars(nn.Module())) - {"_buffers", "_modules", "training"}
_TABLES = ("_buffers", "_modules")
_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class ModuleState:
    """Attributes, buffers and submodules of a model and of all its modules, by reference.

    Values that are changed in place are not noticed; no model of transformers does that to more than a cache.

    attributes: each module, and what it kept.
    """

    attributes: tuple[tuple[nn.Module, dict[str, Any]], ...]

    @classmethod
    def of(cls, module: nn.Module) -> ModuleState:
        """The state of a model as it is now."""
        return cls(tuple((part, _attributes(part)) for part in module.modules()))

    @property
    def is_current(self) -> bool:
        """Whether the model has not changed since."""
        return all(_same(_attributes(module), kept) for module, kept in self.attributes)

    def restore(self) -> None:
        """Puts back what was kept."""
        for module, kept in self.attributes:
            held = vars(module)
            for name in [name for name in held if name not in kept and name not in _PLAIN]:
                del held[name]
            for name, value in kept.items():
                if name in _TABLES:
                    held[name].clear()
                    held[name].update(value)
                else:
                    held[name] = value


def _attributes(module: nn.Module) -> dict[str, Any]:
    held = vars(module)
    return {name: dict(held[name]) if name in _TABLES else held[name] for name in held if name not in _PLAIN}


def _same(now: dict[str, Any], kept: dict[str, Any]) -> bool:
    if now.keys() != kept.keys():
        return False
    return all(
        _same(now[name], value) if name in _TABLES else now[name] is value or _equal(now[name], value)
        for name, value in kept.items()
    )


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, _SCALARS) and type(one) is type(other) and one == other
