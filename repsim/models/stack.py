"""Where a Hugging Face model keeps its layers: the one module list that holds its blocks.

`find_stack` looks for the list, the final norm and the head. What a layer computes is
`repsim.models.layer_call`, what its sublayers are `repsim.models.sublayers`. This module knows
nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from repsim.errors import ModelError
from repsim.plans import Application

# What configurations call the depth of a stack; the first one is the model's own depth, to which
# transformers maps other names.
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
    sublayers: the layers with a silenced sublayer that have been made so far.
    proven_kinds: the kinds of layers whose sublayers have been proven so far
        (`repsim.models.sublayers`).
    """

    path: str
    owner: nn.Module
    layers: Any
    norm: nn.Module | None
    head: nn.Module | None
    is_named: bool = False
    sublayers: dict[Application, nn.Module] = field(default_factory=dict, compare=False, repr=False)
    proven_kinds: set[Any] = field(default_factory=set, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.layers)


def find_stack(module: nn.Module, path: str | None = None) -> Stack:
    """The stack of a model, found by its shape or named by its path.

    It is the one module list that is not inside another list and as long as the model is deep by
    its configuration. A list that is named has to fit likewise. Whether its entries run once each,
    in order, only the model's forward can tell: `repsim.models.forward.check_stack`.

    Args:
        module: a Hugging Face model.
        path: dotted path of the module list, e.g. `model.layers`; needed only where the search is
            not unique.
    Raises:
        ModelError: no list or several fit, or `path` names none that does (the message shows the
            module lists seen); or the layers cannot run apart from each other.

    Example:
        >>> import transformers
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> config = transformers.LlamaConfig(num_hidden_layers=3, vocab_size=32, **sizes)
        >>> stack = find_stack(transformers.LlamaForCausalLM(config))
        >>> stack.path, len(stack), type(stack.norm).__name__
        ('model.layers', 3, 'LlamaRMSNorm')
    """
    lists = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child)
    }
    own_depth = _depths(module, DEPTHS[:1])
    fits = [name for name in lists if _mismatch(name, lists, own_depth) is None]
    if path is None:
        path = _choose(fits, module, lists)
        is_named = False
    else:
        _check_path(path, module, lists)
        is_named = fits != [path]
    owner = module.get_submodule(path.rpartition(".")[0])
    _check_independence(module, owner)
    return Stack(
        path=path,
        owner=owner,
        layers=lists[path],
        norm=_final_norm(owner),
        head=getattr(module, "get_output_embeddings", lambda: None)(),
        is_named=is_named,
    )


def _check_independence(module: nn.Module, owner: nn.Module) -> None:
    """Refuses layers that depend on each other by more than the state."""
    config = _text_config(module)
    if shared := getattr(config, "num_kv_shared_layers", 0):  # Gemma 3n, Gemma 4 E2B and E4B
        raise ModelError(
            f"{type(module).__name__}: its last {shared} layers read the keys and values of layers "
            "before them, so they cannot run by themselves; take a model without shared keys and "
            "values"
        )
    # RWKV.
    if hasattr(owner, "layers_are_rescaled") and getattr(config, "rescale_every", 0) > 0:
        raise ModelError(
            f"{type(module).__name__}: divides its weights and states on the way, so they are not "
            "each layer's own; load it with rescale_every=0 in its config.json, which gives the "
            "same logits"
        )


def _choose(fits: Sequence[str], module: nn.Module, lists: Mapping[str, nn.ModuleList]) -> str:
    """The one list that fits.

    Raises:
        ModelError: none fits, or several do.
    """
    if len(fits) == 1:
        return fits[0]
    problem = (
        "several module lists could be the layers" if fits else "no module list fits its layers"
    )
    # A list that was named may be as deep as any part of the model.
    depths = _depths(module, DEPTHS)
    can_be_named = any(_mismatch(name, lists, depths) is None for name in lists)
    remedy = (
        "name one with stack=PATH (--stack PATH)"
        if can_be_named
        else "no plan can arrange them; take another model"
    )
    raise ModelError(f"{type(module).__name__}: {problem}; seen: {_list_names(lists)}; {remedy}")


def _check_path(path: str, module: nn.Module, lists: Mapping[str, nn.ModuleList]) -> None:
    kind = type(module).__name__
    if path not in lists:
        raise ModelError(
            f"stack={path}: {kind} has no such module list; seen: {_list_names(lists)}"
        )
    if mismatch := _mismatch(path, lists, _depths(module, DEPTHS)):
        raise ModelError(
            f"stack={path}: {mismatch}, so it does not hold the layers of {kind}; "
            f"seen: {_list_names(lists)}"
        )


def _mismatch(path: str, lists: Mapping[str, nn.ModuleList], depths: set[int]) -> str | None:
    """Why a module list cannot be the layers; None where it can."""
    if outer := next((other for other in lists if path.startswith(f"{other}.")), None):
        return f"it is a part of an entry of {outer}"
    if depths and len(lists[path]) not in depths:
        expected = " or ".join(map(str, sorted(depths)))
        return f"it has {len(lists[path])} entries where the configuration says {expected}"
    return None


def _depths(module: nn.Module, names: Sequence[str]) -> set[int]:
    """How deep the model's stacks are by its configuration; empty where it does not say."""
    configs = [_text_config(module)]
    if len(names) > 1:  # a model that is made of two has a configuration for each
        configs += vars(getattr(module, "config", None) or object).values()
    values = [getattr(config, name, None) for config in configs for name in names]
    return {depth for depth in values if isinstance(depth, int)}


def _list_names(lists: Mapping[str, nn.ModuleList]) -> str:
    """Module lists with their lengths, those inside layers once.

    They are alike from layer to layer: `encoder.block.*.layer (2)` stands for all of them.
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
    """The last norm among the modules next to the layers, except norms of embeddings.

    Their names say so, e.g. `layernorm_embedding`.
    """
    norms = [
        child
        for name, child in owner.named_children()
        if "norm" in type(child).__name__.lower()
        and not name.endswith(("emb", "embedding", "embeddings"))
    ]
    return norms[-1] if norms else None
