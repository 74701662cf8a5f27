"""Copies of module trees that share parameters and buffers with the original, and nothing else.

What a copy is given (hooks, a silenced sublayer, a KV-cache slot, another configuration) never
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

# What other libraries leave in a module that is valid for that very module only: compiled calls
# (torch's, and what transformers' `generate` compiles for a static cache, with its settings),
# nnsight's controller, and the mark that transformers' hooks for `output_hidden_states` are in
# place (a copy is made without them).
_NOT_COPIED = (
    "_compiled_call_impl",
    "_compiled_call",
    "_negative_compiled_call",
    "_last_compile_config",
    "__nnsight__",
    "_output_capturing_hooks_installed",
)
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

    def replace(self, original: nn.Module, replacement: nn.Module) -> None:
        """In copies, what refers to `original` in the originals will refer to `replacement`."""
        self._copies[id(original)] = replacement

    def copy(self, module: nn.Module) -> nn.Module:
        """The copy of a module and of everything below it."""
        # The whole tree first, without attributes; then the attributes, which may refer to any
        # module of the tree.
        copied = self._copy_tree(module)
        while self._unfinished:
            self._copy_attributes(*self._unfinished.pop())
        return copied

    def copy_config(self, config: Any) -> Any:
        """The copy of a configuration; parts that configurations share stay shared."""
        return copy.deepcopy(config, self._configs)

    def _copy_tree(self, module: nn.Module) -> nn.Module:
        """A module's copy with its children, whose other attributes are still to come."""
        known: nn.Module | None = self._copies.get(id(module))
        if known is not None:
            return known
        copied: nn.Module = object.__new__(type(module))
        self._copies[id(module)] = copied
        children = {n: child and self._copy_tree(child) for n, child in module._modules.items()}
        copied.__dict__["_modules"] = children
        self._unfinished.append((module, copied))
        return copied

    def _copy_attributes(self, module: nn.Module, copied: nn.Module) -> None:
        original, state = vars(module), vars(copied)
        for name, value in original.items():
            if name in ("_parameters", "_buffers"):
                state[name] = value.copy()  # another dictionary with the same tensors
            elif name != "_modules" and name not in _NOT_COPIED:
                state[name] = self._copy_value(value)
        # What other libraries hang on a module: transformers' hooks, nnsight's controller in the
        # place of `forward` (the class's own is behind it), accelerate's hook that brings the
        # module's weights before each call.
        for key, hook in original["_forward_hooks"].items():
            if getattr(hook, "__module__", None) == _CAPTURING_HOOKS:
                del state["_forward_hooks"][key]
        if "__nnsight__" in original:
            state.pop("forward", None)
        if "_hf_hook" in original:
            state["forward"] = functools.partial(_forward_between_hooks, copied)

    def _copy_value(self, value: Any) -> Any:
        """A value as the copy should hold it: what refers to an original refers to its copy."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind in _CONTAINERS and not value:  # most hooks of most modules
            return kind()
        if (known := self._copies.get(id(value))) is not None:
            return known
        if isinstance(value, PreTrainedConfig):
            return self.copy_config(value)
        if isinstance(value, types.MethodType):
            owner = self._copies.get(id(value.__self__))
            return value if owner is None else types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            keywords = {key: self._copy_value(item) for key, item in value.keywords.items()}
            return functools.partial(value.func, *map(self._copy_value, value.args), **keywords)
        if isinstance(value, weakref.ref):
            target = self._copies.get(id(value()))
            return value if target is None else weakref.ref(target)
        if isinstance(value, ModelHook):
            return self._copy_hook(value)
        if kind in (dict, OrderedDict):
            items = ((key, self._copy_value(item)) for key, item in value.items())
            return self._remember(value, kind(items))
        if kind in _CONTAINERS:
            return self._remember(value, kind(map(self._copy_value, value)))
        return value

    def _copy_hook(self, hook: ModelHook) -> ModelHook:
        """accelerate's hooks keep what one call has loaded, so each copy needs its own."""
        copied = copy.copy(hook)
        if isinstance(copied, SequentialHook):
            copied.hooks = tuple(map(self._copy_hook, copied.hooks))
        return self._remember(hook, copied)

    def _remember(self, value: Any, copied: Any) -> Any:
        """Two modules that share a list or a hook share its copy."""
        self._copies[id(value)] = copied
        return copied


def _forward_between_hooks(module: Any, *args: Any, **kwargs: Any) -> Any:
    """A module's forward between what its accelerate hook does before and after it."""
    args, kwargs = module._hf_hook.pre_forward(module, *args, **kwargs)
    output = module._old_forward(*args, **kwargs)
    return module._hf_hook.post_forward(module, output)


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of a module tree that shares parameters and buffers with it.

    Example:
        >>> module = nn.Linear(2, 2)
        >>> copied = shared_copy(module)
        >>> copied is module, copied.weight is module.weight
        (False, True)
    """
    return SharedCopies().copy(module)
