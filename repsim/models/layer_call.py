"""How one layer is called on a state that is not its own.

`apply_layer` calls a layer, or one half of it, on any state; `Join` makes one state of the outputs
of a parallel step's members; `logits_of` lets the model's own code finish from a state. Tracing and
the planned model are both built from these, so they cannot disagree. This module knows nothing of
plans' text, of tracing or of disks.
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

from repsim.models.halves import dropped_paths, half_layer, kind_of, prove_halves
from repsim.models.sharing import shared_copy
from repsim.models.stack import Stack
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
        """The same call on another state, without the model's own KV cache: the state may not be
        one of the model's.
        """
        args = tuple(None if isinstance(value, Cache) else value for value in self.args)
        kwargs = {
            name: None if isinstance(value, Cache) else value for name, value in self.kwargs.items()
        }
        return (
            LayerCall((state, *args[1:]), kwargs)
            if args
            else LayerCall((), {**kwargs, "hidden_states": state})
        )


def apply_layer(stack: Stack, application: Application, call: LayerCall) -> Any:
    """What a layer, or one half of it, returns for a call: a state, or a tuple that begins with
    one.
    """
    layer = stack.layers[application.layer]
    if application.sublayer:
        if application not in stack.halves:
            stack.halves[application] = half_layer(shared_copy(layer), application.sublayer)
        layer = stack.halves[application]
    return layer(*call.args, **call.kwargs)


def prove_unproven_halves(
    stack: Stack, applications: Iterable[Application], calls: Callable[[], Sequence[LayerCall]]
) -> None:
    """Proves the halves of every kind of layer that is halved here for the first time in its model.

    Args:
        stack: the layers, in evaluation mode.
        applications: what will run; whole layers need no proof.
        calls: gives what the model calls its layers with on a few tokens, `[layer]`; asked where a
            proof is due.
    Raises:
        RepsimError: a layer does not fall into halves.
    """
    proven = stack.proven_kinds
    recorded: Sequence[LayerCall] = ()
    for application in applications:
        layer = stack.layers[application.layer]
        if not application.sublayer or kind_of(layer) in proven:
            continue
        # What is not known is named for the half that was asked for.
        dropped_paths(layer, application.sublayer)
        recorded = recorded or calls()
        call, tried = recorded[application.layer], shared_copy(layer)
        prove_halves(tried, call.state, partial(_state_after, tried, call))
        if call.state.shape[1] > 1:  # one token alone does not show who heeds whom
            proven.add(kind_of(layer))


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
def replaced_layers(stack: Stack, modules: Sequence[nn.Module]) -> Iterator[None]:
    """The model with other modules in place of its layers, which are back whatever happens."""
    name = stack.path.rpartition(".")[2]
    before = getattr(stack.owner, name)
    setattr(stack.owner, name, nn.ModuleList(modules))
    try:
        yield
    finally:
        setattr(stack.owner, name, before)


class Absent(nn.Module):
    """Stands in a model's list in the place of a layer that does not run.

    What a model asks of its layer, e.g. which mask it wants (`attention_type`), is the layer's.
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


def logits_of(module: nn.Module, stack: Stack, states: Tensor, *, form: Any) -> Tensor:
    """Logits that the model's own code gives to states which leave the stack: final norm, head, any
    scaling.

    Args:
        module: the model, or an envoy of it inside a trace.
        states: `[token, unit]`; the code after a stack works on each position by itself.
        form: what one of the model's layers returned; only its form counts.
    Returns:
        `[token, vocabulary]`.
    """
    output = with_state(form, states[:, None])
    # Each state is a sample of one position, so that no model has too few positions for them.
    stand_in = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
    with replaced_layers(stack, [Absent(stack.layers[0], output)]):
        logits: Tensor = module(input_ids=stand_in, use_cache=False).logits[:, 0]
    return logits
