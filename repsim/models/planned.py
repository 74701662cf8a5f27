"""A model that follows a plan: `planned` makes one, for generation, training and any other use.

It is a module tree that shares parameters and buffers with the model it was made from, which is
never touched (`repsim.models.sharing`). Each application of a layer is one entry of its module
list: a copy of the layer, or of one sublayer of it, with its own KV-cache slot. Its configuration
says how many entries there are and of which kind each is (`repsim.models.planned_config`), so that
the model's own code builds the masks and the cache. Tracing does not use this module; both call
layers through `repsim.models.layer_call`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.utils.output_capturing import _active_collector

from repsim.errors import ModelError
from repsim.models.in_memory import check_wrappers, unwrap
from repsim.models.layer_call import Join, LayerCall, join_of, state_of, with_state
from repsim.models.model import Model
from repsim.models.planned_config import configs_of, describe_plan
from repsim.models.planned_proof import prove, savable_weights
from repsim.models.sharing import SharedCopies
from repsim.models.stack import Stack, find_stack
from repsim.models.sublayers import keep_sublayer
from repsim.plans import Plan, read_plans, resolve

# Attributes of a stack's owner that hold the index of its last layer plus one where a model does
# without what they are for (Gemma 4's shared keys and values).
PAST_THE_LAST = ("first_kv_shared_layer_idx",)
SLOT_NAMES = ("layer_idx", "layer_id")  # what a layer's modules call their slot in the KV cache

log = logging.getLogger("repsim")


def planned(model: Model | nn.Module, plan: str | Plan, *, check: bool = True) -> Any:
    """A model that follows a plan, in its forward, `generate` and everything built on them.

    It shares parameters and buffers with `model`, which stays as it is; gradients arrive at the
    shared parameters. Every application of a layer has a KV-cache slot of its own, so generation
    with the cache equals generation without it. Hooks that were on a layer are on each of its
    copies; hooks put on `model` later are not. Several planned models may be used at once, also by
    several threads.

    Args:
        model: what `repsim.models.load` gave, or any Hugging Face model, also inside one of peft:
            the layers of its adapters are copied with those they stand in.
        plan: a plan, its text, a family, e.g. `skip:start=10`, or `@FILE` that holds one.
        check: prove on a few tokens that the planned model's states are the plan's, and find out
            whether it can use a KV cache; `False` leaves both out.
    Returns:
        A Hugging Face model of the same class; also a context manager that yields itself.
    Raises:
        PlanError: the plan does not fit the model.
        ModelError: the text stands for several plans, the model follows a plan already, or the
            proof fails.

    Example:
        >>> import torch, transformers
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> config = transformers.LlamaConfig(num_hidden_layers=4, vocab_size=32, **sizes)
        >>> model = transformers.LlamaForCausalLM(config).eval()
        >>> looped = planned(model, "0, (1|2)*2, 3")
        >>> looped.plan.text, looped.config.num_hidden_layers, model.config.num_hidden_layers
        ('0, (1|2)*2, 3', 6, 4)
        >>> looped.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, min_new_tokens=2).shape
        torch.Size([1, 5])
    """
    if not isinstance(model, Model):
        check_wrappers(model)
        module = unwrap(model)
        if isinstance(module, PlannedModel):
            raise ModelError(
                f"{plan}: the model follows the plan {module.plan}; plan the model it was made from"
            )
        model = Model(module, None, type(module).__name__, None, find_stack(module))
    plans = resolve(read_plans(plan), model.layers)
    if len(plans) != 1:
        raise ModelError(f"{plan}: stands for {len(plans)} plans; a model follows one at a time")
    planned_model = _build(model.module, model.stack, plans[0].plan)
    if check:
        cache_error = prove(planned_model, planned_model.plan, model)
        if cache_error is not None:
            log.warning(
                "plan %s: text is generated without a KV cache; with it, %s",
                planned_model.plan,
                cache_error,
            )
            planned_model.config.use_cache = planned_model.generation_config.use_cache = False
            planned_model._repsim_uses_cache = False
    return planned_model


class PlannedModel(nn.Module):
    """What a planned model can do beyond its class, which comes second among its bases."""

    _repsim_plan: Plan
    _repsim_stack: str  # path of its module list
    _repsim_uses_cache = True

    @property
    def plan(self) -> Plan:
        """The plan that the model follows."""
        return self._repsim_plan

    def __enter__(self) -> PlannedModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _empty_planned, (type(self).__bases__[1],), vars(self)

    def generate(self, *args: Any, **options: Any) -> Any:
        """As the class generates; without a cache where that was found to change the states."""
        if not self._repsim_uses_cache:
            options["use_cache"] = False
        return super().generate(*args, **options)  # type: ignore[misc]

    def save_pretrained(
        self, folder: Any, *args: Any, state_dict: Any = None, **options: Any
    ) -> None:
        """Saves a folder that loads as this very model.

        A layer that runs several times is there several times.

        Args:
            folder: where to.
            state_dict: weights to save in place of the model's own.
            args: further arguments of transformers' `save_pretrained`.
            options: likewise.
        Raises:
            ModelError: a Hugging Face folder cannot say what the plan runs.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        options["state_dict"] = savable_weights(self, self.plan, weights)
        super().save_pretrained(folder, *args, **options)  # type: ignore[misc]


@functools.cache
def _planned_class(model_class: Any) -> Any:
    """A model's class with `PlannedModel` before it.

    Its name stays, since transformers looks things up by it.
    """
    names = {"__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    return type(model_class.__name__, (PlannedModel, model_class), names)


def _empty_planned(model_class: type) -> Any:
    """For copies and pickles, which cannot look the class up by its name."""
    return object.__new__(_planned_class(model_class))


def _build(module: nn.Module, stack: Stack, plan: Plan) -> Any:
    """The planned model, unproven."""
    applications = [member for step in plan.steps for member in step]

    # A copy of the model in which `entries`, still empty, is in the place of the layers, and whose
    # configurations describe the plan.
    copies = SharedCopies()
    entries = nn.ModuleList()
    copies.replace(stack.layers, entries)
    planned_model: Any = copies.copy(module)
    for config in configs_of(module, stack):
        describe_plan(copies.copy_config(config), applications, stack)

    # One entry per application: each is a copy, which refers to the rest of the copied model.
    for step in plan.steps:
        join = join_of(step)
        for position, application in enumerate(step):
            layer = SharedCopies(copies).copy(stack.layers[application.layer])
            _point_to_slot(layer, len(entries))
            if application.sublayer:
                keep_sublayer(layer, application.sublayer)
            entries.append(layer if len(step) == 1 else ParallelMember(layer, join, position))

    # What the owner remembers of its depth, and the hidden states that it collects: one per step.
    owner = planned_model.get_submodule(stack.path.rpartition(".")[0])
    for name in PAST_THE_LAST:
        if vars(owner).get(name) == len(stack):
            setattr(owner, name, len(entries))
    if len(applications) > len(plan):
        starts = [position == 0 for step in plan.steps for position in range(len(step))]
        owner.register_forward_hook(functools.partial(_without_inner_states, starts))
        count = functools.partial(_count_states_from_the_front, len(plan) + 1)
        planned_model.register_forward_pre_hook(count, with_kwargs=True)
        owner.register_forward_pre_hook(count, with_kwargs=True)

    model_class: Any = type(module)
    planned_model.__class__ = _planned_class(model_class)
    planned_model._repsim_plan, planned_model._repsim_stack = plan, stack.path
    return planned_model


def _point_to_slot(layer: nn.Module, slot: int) -> None:
    for part in layer.modules():
        for name in SLOT_NAMES:
            if name in vars(part):
                setattr(part, name, slot)


# Parallel steps


class ParallelMember(nn.Module):
    """One member of a parallel step, an entry of the module list like any layer.

    Members stand one after the other: each runs on the step's input, all but the last pass that
    input on, and the last returns what the outputs of all are joined to. Any attribute that a model
    reads of its layer is the layer's own.
    """

    def __init__(self, layer: nn.Module, join: Join, position: int) -> None:
        super().__init__()
        self.layer = layer
        self._join, self._position = join, position

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = LayerCall(args, kwargs)
        # transformers records what each entry returns; a step has one state.
        recorded = _recorded_states()
        before = len(recorded)
        if self._position == 0:
            self._join.begin(call.state)
        output = self.layer(*args, **kwargs)
        joined = self._join.add(state_of(output))
        if len(recorded) > before:
            _record_once(recorded, before, joined)
        return with_state(output, call.state if joined is None else joined)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def _recorded_states() -> list[Tensor | None]:
    """What transformers' hooks on layers have collected so far for `output_hidden_states`.

    Empty where hidden states were not requested. A step is one state of the residual stream, but
    each member is a layer that those hooks record, and transformers has no other way to say which
    outputs count.
    """
    collected: dict[str, list[Tensor | None]] = _active_collector.get() or {}  # type: ignore[no-untyped-call]
    return collected.get("hidden_states", [])


def _record_once(recorded: list[Tensor | None], before: int, joined: Tensor | None) -> None:
    """Replaces a member's record by the joined state, once the step is complete.

    The first record, of the state that entered the stack, stays.
    """
    while len(recorded) > max(before, 1):
        recorded.pop()
    if joined is not None:
        selection = _active_collector.get().get("_hidden_states_layers")  # type: ignore[no-untyped-call]
        recorded.append(joined if selection is None or len(recorded) in selection else None)


def _count_states_from_the_front(
    states: int, _module: nn.Module, args: Any, kwargs: dict[str, Any]
) -> Any:
    """A forward pre-hook that makes negative indices of hidden states count states.

    Some hidden states may be requested by index; transformers counts negative ones by entries.
    """
    wanted = kwargs.get("output_hidden_states")
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        wanted = [wanted]
    if isinstance(wanted, (list, tuple)):
        kwargs = {**kwargs, "output_hidden_states": [i + states if i < 0 else i for i in wanted]}
    return args, kwargs


def _without_inner_states(
    starts: Sequence[bool], _owner: nn.Module, _args: Any, output: Any
) -> Any:
    """A forward hook that leaves out the states between a parallel step's members.

    A model's loop may collect what enters each entry.

    Args:
        starts: `[entry]`, whether an entry is the first of its step.
        output: what the loop's module returns, its fields or a tuple of them.
    """
    kept = (*starts, True)

    def select(value: Any) -> Any:
        """One state per step of a tuple with one per entry; anything else as it is."""
        if not (isinstance(value, tuple) and len(value) == len(kept)):
            return value
        if not all(isinstance(state, Tensor) for state in value):
            return value
        return tuple(state for state, keep in zip(value, kept, strict=True) if keep)

    if isinstance(output, tuple):
        return tuple(map(select, output))
    if isinstance(output, dict) and output.get("hidden_states") is not None:
        output["hidden_states"] = select(output["hidden_states"])
    return output
