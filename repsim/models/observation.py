"""What each layer is called with and what it returns in the model's own forward, seen by hooks.

The forward ends behind the last layer unless it is asked to go on. This module knows nothing of
plans, of tracing or of disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from repsim.models.layer_call import LayerCall
from repsim.models.side_outputs import ObservedCall, container_contents


class _LeftStack(Exception):
    """Ends a forward behind the last layer."""


def observe_forward(
    module: nn.Module,
    layers: Sequence[nn.Module],
    inputs: dict[str, Any],
    *,
    to_the_end: bool = False,
) -> tuple[list[ObservedCall], Any]:
    """Runs a model's own forward and watches its layers.

    Args:
        module: the model.
        layers: its layers, in order.
        inputs: what the model is called with.
        to_the_end: whether the forward goes on behind the last layer.
    Returns:
        `[layer]`, each layer's call; and what the model returned, None where it was not run to the
        end.
    """
    contents_before: dict[int, dict[str, tuple[int, ...]]] = {}
    observed: dict[int, ObservedCall] = {}

    def watch(number: int, layer: nn.Module) -> list[Any]:
        """Puts a hook before and one behind a layer."""

        def enter(_layer: nn.Module, args: Any, kwargs: Any) -> None:
            contents_before[number] = container_contents(LayerCall(args, kwargs))

        def leave(_layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = LayerCall(args, kwargs)
            now = container_contents(call)
            before = contents_before[number]
            changed = tuple(name for name in before if before[name] != now[name])
            observed[number] = ObservedCall(call, output, changed)
            if number == len(layers) - 1 and not to_the_end:
                raise _LeftStack

        return [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave, with_kwargs=True),
        ]

    handles = [handle for number, layer in enumerate(layers) for handle in watch(number, layer)]
    output = None
    try:
        with suppress(_LeftStack):
            output = module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [observed[number] for number in sorted(observed)], output
