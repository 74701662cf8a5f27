"""The model itself follows a plan: `planned` swaps the layer stack, so that generation and training run a plan.

Each application of a layer becomes one entry of the model's module list, with its own KV-cache slot; the model's
configuration is told how many entries there are and which kind each is, so that its own code builds the masks and the
cache. Tracing does not use this module; both call layers through `repsim.models.layer_call`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from repsim.families import resolve
from repsim.models.layer_call import Join, LayerCall, apply_layer, replaced_layers, state_of, with_state
from repsim.models.model import Model
from repsim.models.stack import Stack, find_stack
from repsim.plans import Application, Plan
from repsim.schema import RepsimError

# Lists in a configuration with one entry a layer that a model's forward or its cache reads.
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
SLOT_NAMES = ("layer_idx", "layer_id")  # what a layer's modules call their slot in the KV cache


class AppliedLayer(nn.Module):
    """One application of a layer inside a planned stack.

    Members of a parallel step stand one after the other: all but the last pass the step's input on unchanged, the last
    returns the mean of all their outputs. Any attribute a model asks of its layer is the layer's own.
    """

    def __init__(self, stack: Stack, application: Application, slot: int, mean: Join, first: bool) -> None:
        super().__init__()
        self.layer = stack.layers[application.layer]
        self._stack, self._application, self._slot = stack, application, slot
        self._mean, self._first = mean, first

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = LayerCall(args, kwargs)
        if self._first:
            self._mean.clear()
        with _cache_slot(self.layer, self._slot):
            output = apply_layer(self._stack, self._application, call)
        mean = self._mean.add(state_of(output))
        return with_state(output, call.state if mean is None else mean)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


@contextmanager
def _cache_slot(layer: nn.Module, slot: int) -> Iterator[None]:
    """A layer's modules ask the KV cache for their own slot; this points them at another one for one call."""
    indexed = [
        (module, name, vars(module)[name]) for module in layer.modules() for name in SLOT_NAMES if name in vars(module)
    ]
    for module, name, _ in indexed:
        setattr(module, name, slot)
    try:
        yield
    finally:
        for module, name, index in indexed:
            setattr(module, name, index)


@contextmanager
def _configured(config: Any, applications: list[Application], layers: int) -> Iterator[None]:
    """The configuration of a model with one layer for each application.

    A class laid over the configuration's own says so, since some configurations derive these values and let nobody
    set them; the configuration itself never changes.
    """
    changes: dict[str, Any] = {"num_hidden_layers": len(applications)}
    for name in PER_LAYER_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and len(values) == layers:
            changes[name] = [values[application.layer] for application in applications]
    own = type(config)
    names = getattr(config, "attribute_map", {})
    overlay = {names.get(name, name): _constant(value) for name, value in changes.items()}
    config.__class__ = type(own.__name__, (own,), overlay)
    try:
        yield
    finally:
        config.__class__ = own


def _constant(value: Any) -> property:
    return property(lambda _config: value)


@contextmanager
def planned(model: Model | nn.Module, plan: str | Plan) -> Iterator[nn.Module]:
    """The model under a plan: inside the block its forward and `generate` run the plan's steps.

    Every application of a layer has a KV-cache slot of its own, so generation with the cache equals generation without
    it. On leaving, also by an exception, stack and configuration are what they were; weights are never copied.

    Args:
        model: what `repsim.models.load` gave, or any Hugging Face model.
        plan: a plan, its text or a family, e.g. `skip:start=10`.
    Yields:
        The Hugging Face model.
    Raises:
        RepsimError: the plan does not fit the model or stands for several plans, or the model follows one already.
    """
    module = model.module if isinstance(model, Model) else model
    stack = model.stack if isinstance(model, Model) else find_stack(module)
    if any(isinstance(layer, AppliedLayer) for layer in module.modules()):
        raise RepsimError(f"{plan}: the model follows another plan; leave that block first")
    found = resolve(plan, len(stack))
    if len(found) != 1:
        raise RepsimError(f"{plan}: stands for {len(found)} plans; a model follows one at a time")
    applied: list[AppliedLayer] = []
    applications: list[Application] = []
    for step in found[0].plan.steps:
        mean = Join(len(step))
        for application in step:
            first = application == step.members[0]
            applied.append(AppliedLayer(stack, application, len(applied), mean, first))
            applications.append(application)
    config: Any = module.config
    with replaced_layers(stack, applied), _configured(config.get_text_config(decoder=True), applications, len(stack)):
        yield module
