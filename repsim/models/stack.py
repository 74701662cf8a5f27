"""Where a Hugging Face model keeps its layers: the one module list that holds its blocks, and what
stands around it.

`find_stack` looks for the list, the final norm and the head. What a layer computes is
`repsim.models.layer_call`, what its halves are `repsim.models.halves`. This module knows nothing of
plans, of tracing or of disks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from repsim.errors import ModelError
from repsim.plans import Application

# What configurations call the depth of a stack; the first stands for the model's own, found by
# whatever name.
DEPTHS = (
    "num_hidden_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)


@dataclass(frozen=True)
class Stack:
    """The blocks of a model and what stands around them.

    path: dotted path of the module list, e.g. `model.layers`.
    owner: the module that holds the list and loops over it.
    layers: the module list, one entry per layer.
    norm: the norm between the last layer and the head; None for post-norm encoders.
    head: the module that gives logits; None for a model without one.
    is_named: whether the list had to be named: the search alone gives none or another one.
    halves: the half layers that have been made so far.
    proven_kinds: the kinds of layers whose halves have been proven so far (`repsim.models.halves`).
    """

    path: str
    owner: nn.Module
    layers: Any
    norm: nn.Module | None
    head: nn.Module | None
    is_named: bool = False
    halves: dict[Application, nn.Module] = field(default_factory=dict, compare=False, repr=False)
    proven_kinds: set[Any] = field(default_factory=set, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.layers)


def find_stack(module: nn.Module, path: str | None = None) -> Stack:
    """The stack of a model, found by its shape or named by its path.

    A list that is named passes the tests that one has to pass which is found: it is no part of
    another list, and as long as the configuration says. Whether its entries run once each, in
    order, only the model's forward can tell: `repsim.models.forward.check_stack`.

    Args:
        module: a Hugging Face model.
        path: dotted path of the module list, e.g. `model.layers`; needed only where the search is
            not unique.
    Raises:
        RepsimError: no list or several fit, or `path` names none that does (the message lists the
            module lists seen); or the layers cannot run apart from each other.
    """
    lists = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child)
    }
    fits = [
        name
        for name in lists
        if _overflow_message(name, lists, _depths(module, DEPTHS[:1])) is None
    ]
    if path is None:
        path = _only(fits, module, lists)
        is_named = False
    else:
        _check_named(path, module, lists)
        is_named = fits != [path]
    layers = lists[path]
    # Gemma 3n, Gemma 4 E2B and E4B.
    if shared := getattr(_text_config(module), "num_kv_shared_layers", 0):
        raise ModelError(
            f"{type(module).__name__}: its last {shared} layers read the keys and values of layers before them, "
            "so they cannot run by themselves; take a model without shared keys and values"
        )
    owner = module.get_submodule(path.rpartition(".")[0])
    # RWKV.
    if (
        hasattr(owner, "layers_are_rescaled")
        and getattr(_text_config(module), "rescale_every", 0) > 0
    ):
        raise ModelError(
            f"{type(module).__name__}: divides its weights and states on the way, so they are not each layer's own; "
            "load it with rescale_every=0 in its config.json, which gives the same logits"
        )
    return Stack(
        path=path,
        owner=owner,
        layers=layers,
        norm=_final_norm(owner),
        head=getattr(module, "get_output_embeddings", lambda: None)(),
        is_named=is_named,
    )


def _only(fits: Sequence[str], module: nn.Module, lists: Mapping[str, nn.ModuleList]) -> str:
    """The one list that fits."""
    if len(fits) == 1:
        return fits[0]
    problem = (
        "several module lists could be the layers" if fits else "no module list fits its layers"
    )
    could = [
        name for name in lists if _overflow_message(name, lists, _depths(module, DEPTHS)) is None
    ]
    remedy = (
        "name one with stack=PATH (--stack PATH)"
        if could
        else "no plan can arrange them; take another model"
    )
    raise ModelError(f"{type(module).__name__}: {problem}; seen: {_seen(lists)}; {remedy}")


def _check_named(path: str, module: nn.Module, lists: Mapping[str, nn.ModuleList]) -> None:
    kind = type(module).__name__
    if path not in lists:
        raise ModelError(f"stack={path}: {kind} has no such module list; seen: {_seen(lists)}")
    if misfit := _overflow_message(path, lists, _depths(module, DEPTHS)):
        raise ModelError(
            f"stack={path}: {misfit}, so it does not hold the layers of {kind}; seen: {_seen(lists)}"
        )


def _overflow_message(
    path: str, lists: Mapping[str, nn.ModuleList], depths: set[int]
) -> str | None:
    """Why a module list cannot be the layers; None where it can."""
    if outer := next((other for other in lists if path.startswith(f"{other}.")), None):
        return f"it is a part of an entry of {outer}"
    if depths and len(lists[path]) not in depths:
        said = " or ".join(map(str, sorted(depths)))
        return f"it has {len(lists[path])} entries where the configuration says {said}"
    return None


def _depths(module: nn.Module, names: Sequence[str]) -> set[int]:
    """What the configuration says of how deep the model's stacks are; nothing where it has no word
    for it.
    """
    configs = [_text_config(module)]
    if len(names) > 1:  # a model that is made of two has a configuration for each
        configs += vars(getattr(module, "config", None) or object).values()
    found = [getattr(config, name, None) for config in configs for name in names]
    return {depth for depth in found if isinstance(depth, int)}


def _seen(lists: Mapping[str, nn.ModuleList]) -> str:
    """Lists inside layers are alike from layer to layer: `encoder.block.*.layer (2)` stands for all
    of them.
    """
    names = {
        f"{re.sub(r'[.][0-9]+', '.*', name)} ({len(child)})": None for name, child in lists.items()
    }
    return ", ".join(names) or "none"


def _text_config(module: nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    try:
        return None if config is None else config.get_text_config()
    except ValueError as problem:  # several parts of it could be the one for text
        raise ModelError(
            f"{type(module).__name__}: made of several models of text; load one of them"
        ) from problem


def _final_norm(owner: nn.Module) -> nn.Module | None:
    """The last of the norms beside the layers; those of embeddings are called so
    (`layernorm_embedding`).
    """
    norms = [
        child
        for name, child in owner.named_children()
        if "norm" in type(child).__name__.lower()
        and not name.endswith(("emb", "embedding", "embeddings"))
    ]
    return norms[-1] if norms else None
