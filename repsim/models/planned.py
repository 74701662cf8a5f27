"""A model that follows a plan: `planned` makes one, for generation, training and whatever else
models are used for.

It is a module tree of its own that shares parameters and buffers with the model it was made from,
which is never touched (`repsim.models.sharing`). Each application of a layer is one entry of its
module list: a copy of the layer, or of one half of it, with its own KV-cache slot. Its
configuration says how many entries there are and of which kind each is, so that the model's own
code builds the masks and the cache. Tracing does not use this module; both call layers through
`repsim.models.layer_call`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.utils.output_capturing import _active_collector

from repsim.errors import ModelError
from repsim.models.halves import half_layer
from repsim.models.layer_call import Join, LayerCall, join_of, state_of, with_state
from repsim.models.model import Model
from repsim.models.planned_proof import prove, savable_weights
from repsim.models.sharing import SharedCopies
from repsim.models.stack import Stack, find_stack
from repsim.plans import Application, Plan, resolve

# Lists in a configuration with one entry per layer that a model's forward, its cache or its making
# reads.
PER_LAYER_LISTS = (
    "layer_types",
    "layers_block_type",
    "attention_layers",
    "mlp_layer_types",
    "no_rope_layers",
    "layer_rope_theta",
    "indexer_types",
    "kv_sharing_modes",
)
# Of a loop: the place of the first layer that never comes.
PAST_THE_LAST = ("first_kv_shared_layer_idx",)
SLOT_NAMES = ("layer_idx", "layer_id")  # what a layer's modules call their slot in the KV cache
DEPTHS = ("num_hidden_layers", "num_layers")
DECODER_DEPTHS = ("decoder_layers", "num_decoder_layers")
ENCODER_DEPTHS = ("encoder_layers", "num_encoder_layers", *DEPTHS)

log = logging.getLogger("repsim")


def planned(model: Model | nn.Module, plan: str | Plan, *, check: bool = True) -> Any:
    """A model that follows a plan: its forward, `generate` and everything built on them run the
    plan's steps.

    It shares parameters and buffers with `model`, which stays as it is; gradients arrive at the
    shared parameters. Every application of a layer has a KV-cache slot of its own, so generation
    with the cache equals generation without it. Hooks that were on a layer are on each of its
    copies; hooks put on `model` later are not. Several planned models may be used at once, also by
    several threads.

    Args:
        model: what `repsim.models.load` gave, or any Hugging Face model.
        plan: a plan, its text or a family, e.g. `skip:start=10`.
        check: prove on a few tokens that the planned model's states are the plan's, and find out
            whether it can use a KV cache; `False` leaves both out.
    Returns:
        A Hugging Face model of the same class; also a context manager that yields itself.
    Raises:
        RepsimError: the plan does not fit the model or stands for several plans, the model follows
            a plan already, or the proof fails.
    """
    if not isinstance(model, Model):
        module = getattr(model, "_orig_mod", model)  # of torch.compile
        if isinstance(module, PlannedModel):
            raise ModelError(
                f"{plan}: the model follows the plan {module.plan}; plan the model it was made from"
            )
        model = Model(module, None, type(module).__name__, None, find_stack(module))
    plans = resolve(plan, model.layers)
    if len(plans) != 1:
        raise ModelError(f"{plan}: stands for {len(plans)} plans; a model follows one at a time")
    made = _made(model.module, model.stack, plans[0].plan)
    if check:
        cache_error = prove(made, made.plan, model)
        if cache_error is not None:
            log.warning(
                "plan %s: text is generated without a KV cache; with it, %s", made.plan, cache_error
            )
            made.config.use_cache = made.generation_config.use_cache = False
            made._repsim_uses_cache = False
    return made


class PlannedModel(nn.Module):
    """What a planned model can do beyond its class, which comes second among its bases.

    plan: what it follows.
    """

    _repsim_plan: Plan
    _repsim_stack: str  # path of its module list
    _repsim_uses_cache = True

    @property
    def plan(self) -> Plan:
        return self._repsim_plan

    def __enter__(self) -> PlannedModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _empty, (type(self).__bases__[1],), vars(self)

    def generate(self, *args: Any, **options: Any) -> Any:
        """As the class generates; without a cache where the cache was found to change the states."""
        if not self._repsim_uses_cache:
            options["use_cache"] = False
        return super().generate(*args, **options)  # type: ignore[misc]

    def save_pretrained(
        self, folder: Any, *args: Any, state_dict: Any = None, **options: Any
    ) -> None:
        """Saves a folder that loads as this very model, layers that run several times as so many
        copies.

        Raises:
            RepsimError: a Hugging Face folder cannot say what the plan runs.
        """
        state_dict = savable_weights(
            self, self.plan, self.state_dict() if state_dict is None else state_dict
        )
        super().save_pretrained(folder, *args, state_dict=state_dict, **options)  # type: ignore[misc]


@functools.cache
def _planned_class(own: Any) -> Any:
    """A model's class with `PlannedModel` before it; its name stays, since transformers looks
    things up by it.
    """
    return type(
        own.__name__,
        (PlannedModel, own),
        {"__module__": own.__module__, "__qualname__": own.__qualname__},
    )


def _empty(own: type) -> Any:
    return object.__new__(_planned_class(own))


def _made(module: nn.Module, stack: Stack, plan: Plan) -> Any:
    """The planned model, unproven."""
    applications = [member for step in plan.steps for member in step]
    copies = SharedCopies()
    entries = nn.ModuleList()
    copies.use(stack.layers, entries)
    made: Any = copies.of(module)
    for config in _configs_of(module, stack):
        _configure(copies.config(config), applications, stack)
    for step in plan.steps:
        join = join_of(step)
        for position, application in enumerate(step):
            layer = SharedCopies(copies).of(stack.layers[application.layer])
            _point_to_slot(layer, len(entries))
            if application.sublayer:
                half_layer(layer, application.sublayer)
            entries.append(layer if len(step) == 1 else ParallelMember(layer, join, position))
    owner = made.get_submodule(stack.path.rpartition(".")[0])
    for name in PAST_THE_LAST:
        if vars(owner).get(name) == len(stack):
            setattr(owner, name, len(entries))
    if len(applications) > len(plan):
        starts = [number for step in plan.steps for number in (True, *[False] * (len(step) - 1))]
        owner.register_forward_hook(functools.partial(_without_inner_states, starts))
        for module_asked in (made, owner):
            count = functools.partial(_count_states_from_the_front, len(plan) + 1)
            module_asked.register_forward_pre_hook(count, with_kwargs=True)
    own: Any = type(module)
    made.__class__ = _planned_class(own)
    made._repsim_plan, made._repsim_stack = plan, stack.path
    return made


def _point_to_slot(layer: nn.Module, slot: int) -> None:
    for part in layer.modules():
        for name in SLOT_NAMES:
            if name in vars(part):
                setattr(part, name, slot)


# Configurations


def _configs_of(module: Any, stack: Stack) -> list[Any]:
    """The configurations that say how deep the stack is: the model's, and where it has one of its
    own its owner's.
    """
    config = module.config
    found = [config if config.is_encoder_decoder else config.get_text_config(decoder=True)]
    own = getattr(stack.owner, "config", None)
    return found if own is None or own is found[0] else [*found, own]


def _configure(config: Any, applications: Sequence[Application], stack: Stack) -> None:
    """Tells a configuration how many layers there are and of which kind each is."""
    names: tuple[str, ...] = DEPTHS
    if config.is_encoder_decoder:
        names = DECODER_DEPTHS if "decoder" in stack.path.split(".") else ENCODER_DEPTHS
    # All are read before the first is set, since some are derived from others.
    changes: dict[str, Any] = {}
    for name in names:
        if getattr(config, name, None) == len(stack):
            changes[name] = len(applications)
    for name in PER_LAYER_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and len(values) == len(stack):
            changes[name] = [values[application.layer] for application in applications]
    for name, value in changes.items():
        _set(config, name, value)


def _set(config: Any, name: str, value: Any) -> None:
    """Sets a value of a configuration, also one that its class derives from others and lets nobody
    set.
    """
    name = config.attribute_map.get(name, name)
    own: Any = type(config)
    if not isinstance(getattr(own, name, None), property):
        setattr(config, name, value)
        return
    derived = getattr(own, "_repsim_derived", ())
    config.__class__ = _with_attributes(own.__bases__[0] if derived else own, (*derived, name))
    vars(config)[name] = value


@functools.cache
def _with_attributes(own: Any, names: tuple[str, ...]) -> Any:
    """A configuration's class in which some properties are attributes that can be set; files leave
    them out.
    """

    def to_dict(config: Any) -> dict[str, Any]:
        return {name: value for name, value in own.to_dict(config).items() if name not in names}

    body = {
        **dict.fromkeys(names),
        "_repsim_derived": names,
        "to_dict": to_dict,
        "__reduce_ex__": _reduce_config,
    }
    return type(
        own.__name__,
        (own,),
        {**body, "__module__": own.__module__, "__qualname__": own.__qualname__},
    )


def _reduce_config(config: Any, _protocol: Any) -> tuple[Any, ...]:
    return _empty_config, (type(config).__bases__[0], config._repsim_derived), vars(config)


def _empty_config(own: Any, names: tuple[str, ...]) -> Any:
    return object.__new__(_with_attributes(own, names))


# Parallel steps


class ParallelMember(nn.Module):
    """One member of a parallel step, an entry of the module list like any layer.

    Members stand one after the other: each runs on the step's input, all but the last pass that
    input on, and the last returns what the outputs of all are joined to. Any attribute a model asks
    of its layer is the layer's own.
    """

    def __init__(self, layer: nn.Module, join: Join, position: int) -> None:
        super().__init__()
        self.layer = layer
        self._join, self._position = join, position

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = LayerCall(args, kwargs)
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
    """What transformers' hooks on layers have collected so far for `output_hidden_states`; nothing
    where it is unasked.

    A step is one state of the residual stream, but each member is a layer that those hooks record,
    and transformers has no other way to say which outputs count.
    """
    collected: dict[str, list[Tensor | None]] = _active_collector.get() or {}  # type: ignore[no-untyped-call]
    return collected.get("hidden_states", [])


def _record_once(recorded: list[Tensor | None], before: int, joined: Tensor | None) -> None:
    """Takes back a member's record, but not that of the state that entered the stack, and puts in
    the joined state.
    """
    while len(recorded) > max(before, 1):
        recorded.pop()
    if joined is not None:
        selection = _active_collector.get().get("_hidden_states_layers")  # type: ignore[no-untyped-call]
        recorded.append(joined if selection is None or len(recorded) in selection else None)


def _count_states_from_the_front(
    states: int, _module: nn.Module, args: Any, kwargs: dict[str, Any]
) -> Any:
    """Some hidden states may be asked for by index; transformers counts negative ones by entries,
    not by states.
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
    """Leaves out the states between a parallel step's members where a model's loop collects what
    enters each entry.

    Args:
        starts: `[entry]`, whether an entry is the first of its step.
        output: what the loop's module returns, its fields or a tuple of them.
    """
    kept = (*starts, True)

    def of(value: Any) -> Any:
        states = (
            isinstance(value, tuple)
            and len(value) == len(kept)
            and all(isinstance(v, Tensor) for v in value)
        )
        return (
            tuple(state for state, keep in zip(value, kept, strict=True) if keep)
            if states
            else value
        )

    if isinstance(output, tuple):
        return tuple(map(of, output))
    if isinstance(output, dict) and output.get("hidden_states") is not None:
        output["hidden_states"] = of(output["hidden_states"])
    return output
