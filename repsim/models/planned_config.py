"""The configuration of a planned model: how many layers there are, and of which kind each is.

A model's own code reads its configuration to build masks and the KV cache, so a planned model's
configuration has to describe the plan. Most values can be set. A few are properties that a class
derives from others: Jamba has `layers_block_type` from `attn_layer_period` and `attn_layer_offset`,
and no period describes the plan `0, 4*2, 2`. Such a configuration becomes one of a subclass, made
here, in which these properties are plain attributes:

    JambaConfig                     layers_block_type: property without a setter
    └─ JambaConfig (of a plan)      layers_block_type = ["mamba", "attention", "attention", "mamba"]

Its class is exchanged in place (`config.__class__ = ...`), because many modules of the model hold
this very configuration. This module knows nothing of how the model's layers are put together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from repsim.models.stack import Stack
from repsim.plans import Application

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
DEPTHS = ("num_hidden_layers", "num_layers")
DECODER_DEPTHS = ("decoder_layers", "num_decoder_layers")
ENCODER_DEPTHS = ("encoder_layers", "num_encoder_layers", *DEPTHS)


def configs_of(module: Any, stack: Stack) -> list[Any]:
    """The configurations that say how deep the stack is.

    The model's, and its owner's where the owner has one of its own.
    """
    config = module.config
    of_model = config if config.is_encoder_decoder else config.get_text_config(decoder=True)
    of_owner = getattr(stack.owner, "config", None)
    return [of_model] if of_owner is None or of_owner is of_model else [of_model, of_owner]


def describe_plan(config: Any, applications: Sequence[Application], stack: Stack) -> None:
    """Tells a configuration how many layers run and of which kind each is.

    Args:
        config: a copy that may be changed.
        applications: what the planned model runs, one per entry of its module list.
        stack: the stack of the model that it was made from.
    """
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
        _set_value(config, name, value)


def _set_value(config: Any, name: str, value: Any) -> None:
    """Sets a value of a configuration, also one that is a property without a setter."""
    name = config.attribute_map.get(name, name)
    config_class: Any = type(config)
    if not isinstance(getattr(config_class, name, None), property):
        setattr(config, name, value)
        return
    # One subclass for all such properties of a configuration, not one on top of another.
    freed = getattr(config_class, "_repsim_derived", ())
    original_class = config_class.__bases__[0] if freed else config_class
    config.__class__ = _class_with_attributes(original_class, (*freed, name))
    vars(config)[name] = value


@functools.cache
def _class_with_attributes(config_class: Any, names: tuple[str, ...]) -> Any:
    """A subclass of a configuration's class in which some properties are plain attributes.

    It keeps the class's name, by which transformers looks things up, and files leave the
    attributes out, since the original class could not read them.
    """

    def to_dict(config: Any) -> dict[str, Any]:
        values = config_class.to_dict(config)
        return {name: value for name, value in values.items() if name not in names}

    body = {
        **dict.fromkeys(names),
        "_repsim_derived": names,
        "to_dict": to_dict,
        "__reduce_ex__": _reduce_config,
        "__module__": config_class.__module__,
        "__qualname__": config_class.__qualname__,
    }
    return type(config_class.__name__, (config_class,), body)


def _reduce_config(config: Any, _protocol: Any) -> tuple[Any, ...]:
    """For copies and pickles, which cannot look the subclass up by its name."""
    return _empty_config, (type(config).__bases__[0], config._repsim_derived), vars(config)


def _empty_config(config_class: Any, names: tuple[str, ...]) -> Any:
    return object.__new__(_class_with_attributes(config_class, names))
