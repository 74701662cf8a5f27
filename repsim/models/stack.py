"""Where a Hugging Face model keeps its layers: the one module list that holds its blocks, and what stands around it.

`find_stack` looks for the list, the final norm and the head. What a layer computes is `repsim.models.layer_call`, what
its halves are `repsim.models.halves`. This module knows nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from repsim.plans import Application
from repsim.schema import RepsimError


@dataclass(frozen=True)
class Stack:
    """The blocks of a model and what stands around them.

    path: dotted path of the module list, e.g. `model.layers`.
    owner: the module that holds the list and loops over it.
    layers: the module list, one entry per layer.
    norm: the norm between the last layer and the head; None for post-norm encoders.
    head: the module that gives logits; None for a model without one.
    halves: the half layers that have been made so far.
    """

    path: str
    owner: nn.Module
    layers: Any
    norm: nn.Module | None
    head: nn.Module | None
    halves: dict[Application, nn.Module] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.layers)


def find_stack(module: nn.Module, path: str | None = None) -> Stack:
    """The stack of a model, found by its shape or named by its path.

    Args:
        module: a Hugging Face model.
        path: dotted path of the module list, e.g. `model.layers`; needed only where the search is not unique.
    Raises:
        RepsimError: no list or several fit, or `path` names none (the message lists the module lists seen); or the
            layers cannot run apart from each other.
    """
    lists = {name: child for name, child in module.named_modules() if isinstance(child, nn.ModuleList) and len(child)}
    # Lists inside layers are alike from layer to layer: `encoder.block.*.layer (2)` stands for all of them.
    names = {f"{re.sub(r'[.][0-9]+', '.*', name)} ({len(child)})": None for name, child in lists.items()}
    seen = ", ".join(names) or "none"
    if path is None:
        fits = _likely_stacks(module, lists)
        if len(fits) != 1:
            problem = "several module lists could be the layers" if fits else "no module list fits its layers"
            raise RepsimError(
                f"{type(module).__name__}: {problem}; seen: {seen}; name one with stack=PATH (--stack PATH)"
            )
        path = fits[0]
    elif path not in lists:
        raise RepsimError(f"stack={path}: {type(module).__name__} has no such module list; seen: {seen}")
    layers = lists[path]
    if shared := getattr(_text_config(module), "num_kv_shared_layers", 0):  # Gemma 3n, Gemma 4 E2B and E4B
        raise RepsimError(
            f"{type(module).__name__}: its last {shared} layers read the keys and values of layers before them, "
            "so they cannot run by themselves; take a model without shared keys and values"
        )
    owner = module.get_submodule(path.rpartition(".")[0])
    return Stack(
        path=path,
        owner=owner,
        layers=layers,
        norm=_final_norm(owner),
        head=getattr(module, "get_output_embeddings", lambda: None)(),
    )


def _likely_stacks(module: nn.Module, lists: dict[str, nn.ModuleList]) -> list[str]:
    """Outermost lists as long as the configuration says the model is deep."""
    depth = getattr(_text_config(module), "num_hidden_layers", None)
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [name for name in outermost if depth is None or len(lists[name]) == depth]


def _text_config(module: nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    return None if config is None else config.get_text_config()


def _final_norm(owner: nn.Module) -> nn.Module | None:
    """The last of the norms beside the layers; those of embeddings are called so (`layernorm_embedding`)."""
    norms = [
        child
        for name, child in owner.named_children()
        if "norm" in type(child).__name__.lower() and not name.endswith(("emb", "embedding", "embeddings"))
    ]
    return norms[-1] if norms else None
