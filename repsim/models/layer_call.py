"""How one layer is called on a state that is not its own.

`apply_layer` calls a layer, or one sublayer of it, on any state; `Join` makes one state of the
outputs of a parallel step's members. Tracing and the planned model are both built from these, so
they cannot disagree. This module knows nothing of plans' text, of tracing or of disks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from repsim.models.sharing import shared_copy
from repsim.models.stack import Stack
from repsim.models.sublayers import keep_sublayer, layer_kind, paths_to_silence, prove_sublayers
from repsim.plans import Application, Step


@dataclass(frozen=True)
class LayerCall:
    """The arguments that a model gave to one of its layers.

    The state is the first positional argument or the keyword `hidden_states`; masks, positions and
    the rest stay with the layer wherever a plan runs it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def state(self) -> Tensor:
        """`[sample, position, unit]`."""
        state: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return state

    def on(self, state: Tensor) -> LayerCall:
        """The same call on another state.

        Without the model's own KV cache, in which only states of the model's own forward belong.
        """
        args = tuple(None if isinstance(value, Cache) else value for value in self.args)
        kwargs = {
            name: None if isinstance(value, Cache) else value for name, value in self.kwargs.items()
        }
        if args:
            return LayerCall((state, *args[1:]), kwargs)
        return LayerCall((), {**kwargs, "hidden_states": state})


def apply_layer(stack: Stack, application: Application, call: LayerCall) -> Any:
    """What a layer, or one sublayer of it, returns for a call.

    Sublayers are made once per model and kept in `Stack.sublayers`.

    Args:
        stack: the layers.
        application: which of them runs, and whether whole.
        call: its arguments, the state among them.
    Returns:
        A state, or a tuple that begins with one: the form is the layer's.
    Raises:
        ModelError: the layer has no such sublayer.
    """
    layer = stack.layers[application.layer]
    if application.sublayer:
        if application not in stack.sublayers:
            stack.sublayers[application] = keep_sublayer(shared_copy(layer), application.sublayer)
        layer = stack.sublayers[application]
    return layer(*call.args, **call.kwargs)


def prove_new_sublayers(
    stack: Stack, applications: Iterable[Application], calls: Callable[[], Sequence[LayerCall]]
) -> None:
    """Proves the sublayers of each kind of layer that is divided for the first time in its model.

    Args:
        stack: the layers, in evaluation mode.
        applications: what will run; whole layers need no proof.
        calls: gives what the model calls its layers with on a few tokens, `[layer]`; called only
            where a proof is due.
    Raises:
        ModelError: a layer is not attention and MLP.
    """
    proven = stack.proven_kinds
    recorded: Sequence[LayerCall] = ()
    for application in applications:
        layer = stack.layers[application.layer]
        if not application.sublayer or layer_kind(layer) in proven:
            continue
        # First of all refuse a sublayer that is not known, in words for the one that was named.
        paths_to_silence(layer, application.sublayer)
        recorded = recorded or calls()
        # The proof puts hooks on the layer, so it gets a copy.
        call, layer_copy = recorded[application.layer], shared_copy(layer)
        prove_sublayers(layer_copy, call.state, partial(_state_after, layer_copy, call))
        if call.state.shape[1] > 1:  # one token alone does not show which tokens see which
            proven.add(layer_kind(layer))


def _state_after(layer: Any, call: LayerCall, state: Tensor) -> Tensor:
    call = call.on(state)
    return state_of(layer(*call.args, **call.kwargs))


def state_of(output: Any) -> Tensor:
    """The state in what a layer returned; Falcon's layers return a tuple, most others a tensor."""
    state: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return state


def with_state(output: Any, state: Tensor) -> Any:
    """A layer's output in its own form, with another state in it."""
    return type(output)([state, *output[1:]]) if isinstance(output, (tuple, list)) else state


class Join:
    """The outputs of a step's members as one state.

    `begin` takes the step's input, then `add` each member's output, in order. What members
    contribute is summed in float32 or wider and rounded once at the end; they may sit on different
    devices, and the sum gathers on the first one's. Each thread joins outputs of its own.
    Subclasses say what a member contributes and what the sum becomes; `JOINS` lists them.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self._pending = threading.local()

    def __reduce__(self) -> tuple[Callable[[Step], Join], tuple[Step]]:
        return join_of, (self.step,)

    def begin(self, state: Tensor) -> None:
        """Takes the state that enters the step, also after one that an exception cut short."""
        self._pending.state, self._pending.outputs = state, 0

    def add(self, output: Tensor) -> Tensor | None:
        """Takes the next member's output; returns the joined state with the last one."""
        if len(self.step) == 1:
            return output
        pending = self._pending
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        term = self.contribution(wide, pending.state)
        pending.total = pending.total + term.to(pending.total.device) if pending.outputs else term
        pending.outputs += 1
        if pending.outputs < len(self.step):
            return None
        joined = self.result(pending.total, pending.state).to(output.dtype)
        pending.state = pending.total = None  # nothing is kept alive
        return joined

    def contribution(self, output: Tensor, state: Tensor) -> Tensor:
        """What a member adds to the sum.

        Args:
            output: the member's, float32 or wider.
            state: what entered the step, in the model's dtype, maybe on another device.
        """
        raise NotImplementedError

    def result(self, total: Tensor, state: Tensor) -> Tensor:
        """The joined state, float32 or wider, of the sum of all contributions."""
        raise NotImplementedError


class MeanJoin(Join):
    """The mean of the members' outputs."""

    def contribution(self, output: Tensor, state: Tensor) -> Tensor:
        return output

    def result(self, total: Tensor, state: Tensor) -> Tensor:
        return total / len(self.step)


JOINS: dict[str, type[Join]] = {"mean": MeanJoin}  # one for each of `repsim.plans.JOIN_KINDS`


def join_of(step: Step) -> Join:
    """What joins the outputs of a step's members."""
    return JOINS[step.join](step)


@contextmanager
def replace_layers(stack: Stack, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Runs the model with other modules in place of its layers, which come back afterwards."""
    name = stack.path.rpartition(".")[2]
    before = getattr(stack.owner, name)
    setattr(stack.owner, name, nn.ModuleList(modules))
    try:
        yield
    finally:
        setattr(stack.owner, name, before)


class AbsentLayer(nn.Module):
    """Stands in a model's list in the place of a layer that does not run.

    Attributes that a model reads of its layer, e.g. which mask it wants (`attention_type`), are
    the layer's.
    """

    def __init__(self, layer: nn.Module, output: Any = None) -> None:
        """A stand-in for `layer` that returns `output`, in the form that the layers use."""
        super().__init__()
        self.output = output
        self._layer = [layer]  # in a list, so that it is no submodule

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"][0], name)
