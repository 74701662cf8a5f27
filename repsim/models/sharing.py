"""A module tree of its own that shares parameters and buffers with another one, and nothing else.

What a copy is given (hooks, another half layer, a KV-cache slot, another configuration) never
reaches the original, and what the copy computes on the way (a rotary table that grows, a recurrent
state) stays with the copy. Tensors are the same objects, so nothing is held in memory twice and
gradients arrive where they always did. This module knows nothing of plans or layers.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from typing import Any

from accelerate.hooks import ModelHook, SequentialHook
from torch import nn
from transformers import PreTrainedConfig

# What other libraries leave in a module that holds for that very module only: a compiled call,
# nnsight's controller, and the mark that transformers' hooks for `output_hidden_states` are in
# place (a copy is made without them).
_OWN_TO_A_MODULE = ("_compiled_call_impl", "__nnsight__", "_output_capturing_hooks_installed")
_CAPTURING_HOOKS = "transformers.utils.output_capturing"
_PLAIN = {str, int, float, bool, type(None)}
_CONTAINERS = {dict, OrderedDict, list, set, tuple}


class SharedCopies:
    """Copies of module trees that refer to each other as the originals do.

    Modules and configurations are copied once; references between them, whether as submodules, in
    plain attributes, in bound methods or in hooks, lead from copy to copy.
    """

    def __init__(self, parent: SharedCopies | None = None) -> None:
        """A new set of copies; with a `parent`, what that one has copied already stays its copy."""
        self._copies: dict[int, Any] = {} if parent is None else dict(parent._copies)
        self._configs: dict[int, Any] = {} if parent is None else parent._configs  # deepcopy's memo
        self._unfinished: list[tuple[nn.Module, nn.Module]] = []

    def use(self, original: nn.Module, replacement: nn.Module) -> None:
        """Whatever refers to `original` will refer to `replacement`."""
        self._copies[id(original)] = replacement

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of a module and of everything below it."""
        made = self._bare(module)
        while self._unfinished:
            self._fill(*self._unfinished.pop())
        return made

    def config(self, config: Any) -> Any:
        """The copy of a configuration; parts that configurations share stay shared between their
        copies.
        """
        return copy.deepcopy(config, self._configs)

    def _bare(self, module: nn.Module) -> nn.Module:
        """A module's copy with its children, the rest to be filled in once the whole tree is there."""
        if (known := self._copies.get(id(module))) is not None:
            return known
        made: nn.Module = object.__new__(type(module))
        self._copies[id(module)] = made
        children = {name: child and self._bare(child) for name, child in module._modules.items()}
        made.__dict__["_modules"] = children
        self._unfinished.append((module, made))
        return made

    def _fill(self, module: nn.Module, made: nn.Module) -> None:
        original, state = vars(module), vars(made)
        for name, value in original.items():
            if name in ("_parameters", "_buffers"):
                state[name] = value.copy()  # a dict of its own with the same tensors
            elif name != "_modules" and name not in _OWN_TO_A_MODULE:
                state[name] = self._moved(value)
        for key, hook in original["_forward_hooks"].items():
            if getattr(hook, "__module__", None) == _CAPTURING_HOOKS:
                del state["_forward_hooks"][key]
        if "__nnsight__" in original:
            state.pop("forward", None)  # its controller; the class' own forward is behind it
        if "_hf_hook" in original:  # accelerate's, which brings a module's weights before each call
            state["forward"] = functools.partial(_with_weights_at_hand, made)

    def _moved(self, value: Any) -> Any:
        """A value as the copy should hold it."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind in _CONTAINERS and not value:  # most hooks of most modules
            return kind()
        if (known := self._copies.get(id(value))) is not None:
            return known
        if isinstance(value, PreTrainedConfig):
            return self.config(value)
        if isinstance(value, types.MethodType):
            owner = self._copies.get(id(value.__self__))
            return value if owner is None else types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            return functools.partial(
                value.func,
                *map(self._moved, value.args),
                **{k: self._moved(v) for k, v in value.keywords.items()},
            )
        if isinstance(value, weakref.ref):
            target = self._copies.get(id(value()))
            return value if target is None else weakref.ref(target)
        if isinstance(value, ModelHook):
            return self._hook(value)
        if kind in (dict, OrderedDict):
            return self._remembered(
                value, kind((key, self._moved(item)) for key, item in value.items())
            )
        if kind in _CONTAINERS:
            return self._remembered(value, kind(map(self._moved, value)))
        return value

    def _hook(self, hook: ModelHook) -> ModelHook:
        """accelerate's hooks keep what one call has loaded, so each copy needs its own."""
        made = copy.copy(hook)
        if isinstance(made, SequentialHook):
            made.hooks = tuple(map(self._hook, made.hooks))
        return self._remembered(hook, made)

    def _remembered(self, value: Any, made: Any) -> Any:
        """Two modules that share a list or a hook share its copy."""
        self._copies[id(value)] = made
        return made


def _with_weights_at_hand(module: Any, *args: Any, **kwargs: Any) -> Any:
    """A module's forward between the two halves of its accelerate hook."""
    args, kwargs = module._hf_hook.pre_forward(module, *args, **kwargs)
    output = module._old_forward(*args, **kwargs)
    return module._hf_hook.post_forward(module, output)


def shared_copy(module: nn.Module) -> nn.Module:
    """A module tree of its own that shares parameters and buffers with `module`."""
    return SharedCopies().of(module)
