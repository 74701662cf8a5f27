"""What a layer hands to the next one besides the state: found in the model's own forward, carried
along a plan's path.

ZAYA's layers pass on the states of their routers, those of GLM-MoE-DSA the tokens that an indexer
chose. Which argument of a layer is which output of the layer before is told by identity, so no
model is known by name. What depends on the tokens is carried; what is the same for all tokens (T5's
position biases) stays with the layer's own call. Knows neither plans nor tracing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from repsim.errors import ModelError
from repsim.models.layer_call import LayerCall, state_of


@dataclass(frozen=True)
class Observed:
    """What went into a layer in the model's own forward, and what came out.

    call: its arguments.
    output: what it returned.
    changed: names of arguments that the layer changed in place.
    """

    call: LayerCall
    output: Any
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slot:
    """A value that layers hand on.

    position: its place in what a layer returns; 0 is the state.
    argument: its place among a layer's arguments, or its keyword.
    name: what the layer calls it.
    """

    position: int
    argument: int | str
    name: str


@dataclass(frozen=True)
class Passed:
    """What leaves one step of a plan and enters the next.

    state: `[sample, position, unit]`.
    carried: `[slot]`, what else is handed on.
    """

    state: Tensor
    carried: tuple[Any, ...] = ()

    @classmethod
    def into(cls, call: LayerCall, slots: Sequence[Slot]) -> Passed:
        """What enters the layer that a call is of."""
        return cls(call.state, tuple(_argument(call, slot) for slot in slots))

    @classmethod
    def from_output(cls, output: Any, slots: Sequence[Slot]) -> Passed:
        """What leaves a layer."""
        return cls(state_of(output), tuple(output[slot.position] for slot in slots))

    def onto(self, call: LayerCall, slots: Sequence[Slot]) -> LayerCall:
        """A layer's own call with what was passed in place of what it was called with."""
        call = call.on(self.state)
        args, kwargs = list(call.args), dict(call.kwargs)
        for slot, value in zip(slots, self.carried, strict=True):
            if isinstance(slot.argument, str):
                kwargs[slot.argument] = value
            else:
                args[slot.argument] = value
        return LayerCall(tuple(args), kwargs)


def find_slots(
    model: str,
    layers: Sequence[nn.Module],
    observed: Sequence[Observed],
    again: Callable[[], Sequence[Observed]],
) -> tuple[Slot, ...]:
    """What the layers hand on besides the state.

    Args:
        model: its name, for messages.
        layers: the model's.
        observed: each layer in the model's own forward, in order.
        again: the same for other tokens of the same shape; asked only where something is handed on.
    Raises:
        RepsimError: a layer hands something on in a way that cannot be carried.
    """
    for layer, seen in enumerate(observed):
        if seen.changed:
            raise ModelError(
                f"{model}: layer {layer} changes its argument {seen.changed[0]} in place, so what a layer does depends "
                "on which layers ran before; it cannot be traced"
            )
    found = _handed_on(observed)
    if not found:
        return ()
    other = again()
    slots: dict[int | str, Slot] = {}
    for layer, argument, position in found:
        name = _name(layers[layer], argument)
        here, there = (
            _argument(seen[layer].call, replace(_ANY, argument=argument))
            for seen in (observed, other)
        )
        makers = {
            id(leaf)
            for number, slot, _ in found
            if slot == argument
            for leaf in _tensors(observed, number, slot)
        }
        if len(makers) == 1 and _equal(here, there):
            continue  # made by one layer for all, and the same for all tokens
        if (
            position is None
            or slots.setdefault(argument, Slot(position, argument, name)).position != position
        ):
            raise ModelError(
                f"{model}: layer {layer} takes {name} from layers before it in a way that repsim cannot carry along a "
                "plan, so under a plan it would get another layer's; it cannot be traced"
            )
    return tuple(slots.values())


_ANY = Slot(0, 0, "")


def _handed_on(observed: Sequence[Observed]) -> list[tuple[int, int | str, int | None]]:
    """Layer, argument, and the place in what the layer before returned; None where it is not there
    as it is.
    """
    made: set[int] = set()
    found: list[tuple[int, int | str, int | None]] = []
    for layer, seen in enumerate(observed):
        for argument, value in _arguments(seen.call):
            if any(id(leaf) in made for leaf in _leaves(value)):
                before = observed[layer - 1].output
                places = (
                    [place for place, output in enumerate(before) if output is value]
                    if _many(before)
                    else []
                )
                found.append((layer, argument, places[0] if places else None))
        extras = seen.output[1:] if _many(seen.output) else ()
        made |= {id(leaf) for leaf in _leaves(extras)}
    return found


def _many(output: Any) -> bool:
    return isinstance(output, (tuple, list))


def _arguments(call: LayerCall) -> Iterator[tuple[int | str, Any]]:
    """Arguments but for the state and the model's cache, which the replay leaves out."""
    yield from (
        (place, value)
        for place, value in enumerate(call.args)
        if place and not isinstance(value, Cache)
    )
    state = None if call.args else "hidden_states"
    yield from (
        (key, value)
        for key, value in call.kwargs.items()
        if key != state and not isinstance(value, Cache)
    )


def _argument(call: LayerCall, slot: Slot) -> Any:
    return (
        call.kwargs.get(slot.argument)
        if isinstance(slot.argument, str)
        else call.args[slot.argument]
    )


def _tensors(observed: Sequence[Observed], layer: int, argument: int | str) -> Iterator[Tensor]:
    return _leaves(_argument(observed[layer].call, replace(_ANY, argument=argument)))


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)


def _equal(one: Any, other: Any) -> bool:
    ours, theirs = list(_leaves(one)), list(_leaves(other))
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def _name(layer: nn.Module, argument: int | str) -> str:
    if isinstance(argument, str):
        return argument
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    return names[argument] if argument < len(names) else f"argument {argument}"


def contents(call: LayerCall) -> dict[str, tuple[int, ...]]:
    """What the containers among a call's arguments hold, by identity; a layer that changes it is
    found out.
    """
    return {
        str(name): tuple(map(id, _leaves(value)))
        for name, value in _arguments(call)
        if isinstance(value, (dict, list))
    }
