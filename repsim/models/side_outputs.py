"""What a layer hands to the next one besides the state, and how it follows a plan's path.

ZAYA's layers pass on the states of their routers, those of GLM-MoE-DSA the tokens that an indexer
chose. Which argument of a layer is which output of the layer before is told by identity in the
model's own forward, so no model is known by name. What depends on the tokens follows the plan; what
is the same for all tokens (T5's position biases) stays with the layer's own call. This module knows
nothing of tracing or of disks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from repsim.errors import ModelError
from repsim.models.layer_call import LayerCall, state_of
from repsim.plans import Step

Argument = int | str  # a place among a layer's positional arguments, or a keyword


@dataclass(frozen=True)
class ObservedCall:
    """What went into a layer in the model's own forward, and what came out.

    call: its arguments.
    output: what it returned.
    changed: names of arguments that the layer changed in place.
    """

    call: LayerCall
    output: Any
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class SideOutput:
    """A value besides the state that layers hand on.

    position: its place in what a layer returns; 0 is the state.
    argument: its place among the next layer's arguments, or its keyword.
    name: what the layer calls it.
    """

    position: int
    argument: Argument
    name: str


@dataclass(frozen=True)
class Handoff:
    """What leaves one step of a plan and enters the next.

    state: `[sample, position, unit]`.
    side_values: `[side output]`, the values that are handed on besides it.
    """

    state: Tensor
    side_values: tuple[Any, ...] = ()

    @classmethod
    def from_call(cls, call: LayerCall, side_outputs: Sequence[SideOutput]) -> Handoff:
        """What enters the layer that is called."""
        return cls(call.state, tuple(_argument(call, side.argument) for side in side_outputs))

    @classmethod
    def from_output(cls, output: Any, side_outputs: Sequence[SideOutput]) -> Handoff:
        """What leaves a layer."""
        return cls(state_of(output), tuple(output[side.position] for side in side_outputs))

    def apply_to(self, call: LayerCall, side_outputs: Sequence[SideOutput]) -> LayerCall:
        """A layer's own call with what is handed on in place of what it was called with."""
        call = call.on(self.state)
        args, kwargs = list(call.args), dict(call.kwargs)
        for side, value in zip(side_outputs, self.side_values, strict=True):
            if isinstance(side.argument, str):
                kwargs[side.argument] = value
            else:
                args[side.argument] = value
        return LayerCall(tuple(args), kwargs)


def find_side_outputs(
    model: str,
    layers: Sequence[nn.Module],
    observed: Sequence[ObservedCall],
    observe_again: Callable[[], Sequence[ObservedCall]],
) -> tuple[SideOutput, ...]:
    """What the layers hand on besides the state.

    Args:
        model: its name, for messages.
        layers: the model's.
        observed: each layer in the model's own forward, in order.
        observe_again: gives the same for other tokens of the same shape; called only where
            something is handed on.
    Raises:
        ModelError: a layer hands something on in a way that cannot follow a plan.
    """
    # Values that travel in a container which the layers change leave no trace in what they return.
    for layer, seen in enumerate(observed):
        if seen.changed:
            raise ModelError(
                f"{model}: layer {layer} changes its argument {seen.changed[0]} in place, so what "
                "a layer does depends on which layers ran before; it cannot be traced"
            )
    links = _find_links(observed)
    if not links:
        return ()
    other = observe_again()
    side_outputs: dict[Argument, SideOutput] = {}
    for layer, argument, position in links:
        name = _name(layers[layer], argument)
        # What one layer makes for all layers, and is the same for all tokens, stays where it is.
        here, there = (_argument(calls[layer].call, argument) for calls in (observed, other))
        makers = {
            id(tensor)
            for linked_layer, linked_argument, _ in links
            if linked_argument == argument
            for tensor in _tensors_in(_argument(observed[linked_layer].call, argument))
        }
        if len(makers) == 1 and _equal(here, there):
            continue
        # Anything else has to be at one place in the output of the layer before, for all layers.
        side = SideOutput(position or 0, argument, name)
        if position is None or side_outputs.setdefault(argument, side).position != position:
            raise ModelError(
                f"{model}: layer {layer} takes {name} from layers before it in a way that repsim "
                "cannot carry along a plan, so under a plan it would get another layer's; it "
                "cannot be traced"
            )
    return tuple(side_outputs.values())


def check_steps(
    model: str, steps: Sequence[Step | None], side_outputs: Sequence[SideOutput]
) -> None:
    """Refuses steps that side outputs do not allow.

    They cannot be joined, and a sublayer may hand on another one than its layer would.

    Args:
        model: its name, for messages.
        steps: of a trie; None at its root.
        side_outputs: what the model's layers hand on.
    Raises:
        ModelError: a step runs a sublayer or several layers, and there are side outputs.
    """
    names = ", ".join(side.name for side in side_outputs)
    for step in steps if side_outputs else ():
        if step is not None and any(member.sublayer for member in step):
            raise ModelError(
                f"{model}: step {step.text} runs a sublayer of a layer that hands on {names} "
                "besides the state, so its other sublayer may still act on later layers; name "
                "whole layers"
            )
        if step is not None and len(step) > 1:
            raise ModelError(
                f"{model}: step {step.text} joins the outputs of layers, and layer "
                f"{step.members[0].layer} hands on {names} besides the state, which cannot be "
                "joined; take plans without parallel steps"
            )


def container_contents(call: LayerCall) -> dict[str, tuple[int, ...]]:
    """What the lists and dictionaries among a call's arguments hold, by identity.

    Compared before and after a layer runs, it shows whether the layer changed one of them.
    """
    return {
        str(name): tuple(map(id, _tensors_in(value)))
        for name, value in _side_arguments(call)
        if isinstance(value, (dict, list))
    }


def _find_links(
    observed: Sequence[ObservedCall],
) -> list[tuple[int, Argument, int | None]]:
    """Arguments that hold what layers before returned.

    Returns:
        Layer, argument, and the place in what the layer before returned; None where the value is
        not there as it is.
    """
    returned_so_far: set[int] = set()
    links: list[tuple[int, Argument, int | None]] = []
    for layer, seen in enumerate(observed):
        for argument, value in _side_arguments(seen.call):
            if any(id(tensor) in returned_so_far for tensor in _tensors_in(value)):
                before = observed[layer - 1].output
                outputs = before if isinstance(before, (tuple, list)) else ()
                places = (place for place, output in enumerate(outputs) if output is value)
                links.append((layer, argument, next(places, None)))
        side_values = seen.output[1:] if isinstance(seen.output, (tuple, list)) else ()
        returned_so_far |= {id(tensor) for tensor in _tensors_in(side_values)}
    return links


def _side_arguments(call: LayerCall) -> Iterator[tuple[Argument, Any]]:
    """Arguments except the state and the model's cache, which the replay leaves out."""
    named: list[tuple[Argument, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    state: Argument = 0 if call.args else "hidden_states"
    for argument, value in named:
        if argument != state and not isinstance(value, Cache):
            yield argument, value


def _argument(call: LayerCall, argument: Argument) -> Any:
    return call.kwargs.get(argument) if isinstance(argument, str) else call.args[argument]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors_in(part)


def _equal(value: Any, other: Any) -> bool:
    ours, theirs = list(_tensors_in(value)), list(_tensors_in(other))
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def _name(layer: nn.Module, argument: Argument) -> str:
    if isinstance(argument, str):
        return argument
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    return names[argument] if argument < len(names) else f"argument {argument}"
