"""Where a Hugging Face model keeps its layers, and how one of them is called on a state that is not its own.

`find_stack` looks for the one module list that holds a model's blocks, with the two halves of a block, the final
norm and the head around it. `run_application` calls a layer, or one half of it, on any state; `Mean` averages the
members of a parallel step; `logits_of` lets the model's own code finish from a state. Tracing and the planned stack
are both built from these, so they cannot disagree. This module knows nothing of plans' text, of tracing or of disks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from repsim.plans import Application
from repsim.schema import RepsimError

# Paths, inside a layer, of the modules whose output is what that half adds to the residual stream; attention stands for
# whatever mixes positions. Of nested paths the inner one is taken: BERT's halves end in a dense layer beside the norm,
# and some modules (Bloom's, MPT's) add the residual themselves after their last dense layer.
ATTENTION_PATHS = (
    "attention.output.dense",
    "self_attention.dense",
    "self_attn",
    "linear_attn",
    "attn",
    "self_attention",
    "attention",
    "temporal_block",
    "mamba",
    "conv",
)
MLP_PATHS = (
    "output.dense",
    "mlp.dense_4h_to_h",
    "ffn.down_proj",
    "mlp",
    "ffn",
    "feed_forward",
    "fc2",
    "block_sparse_moe",
    "shared_mlp",
    "moe",
    "mlp_block",
)


@dataclass(frozen=True)
class Stack:
    """The blocks of a model and what stands around them.

    path: dotted path of the module list, e.g. `model.layers`.
    owner: the module that holds the list and loops over it.
    layers: the module list, one entry a layer; inside a trace, an envoy for each entry.
    attention, mlp: path inside the first layer of the half's output module; None where none was found. Layers of other
        kinds are looked up as they run.
    norm: the norm between the last layer and the head; None for post-norm encoders.
    head: the module that gives logits; None for a model without one.
    """

    path: str
    owner: nn.Module
    layers: Any
    attention: str | None
    mlp: str | None
    norm: nn.Module | None
    head: nn.Module | None

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class Call:
    """The arguments that a model gave to one of its layers.

    The state is the first positional argument or the keyword `hidden_states`; masks, positions and the rest stay
    with the layer wherever a plan runs it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def state(self) -> Tensor:
        """`[sample, position, unit]`."""
        state: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return state

    def on(self, state: Tensor) -> Call:
        """The same call on another state, without the model's own KV cache: the state may not be one of the model's."""
        args = tuple(None if isinstance(value, Cache) else value for value in self.args)
        kwargs = {name: None if isinstance(value, Cache) else value for name, value in self.kwargs.items()}
        return Call((state, *args[1:]), kwargs) if args else Call((), {**kwargs, "hidden_states": state})


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
        attention=next(iter(half_paths(layers[0], ATTENTION_PATHS)), None),
        mlp=next(iter(half_paths(layers[0], MLP_PATHS)), None),
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


def half_paths(layer: nn.Module, paths: Sequence[str]) -> list[str]:
    """Those of the paths that a layer has, without the ones that contain another of them."""
    found = [path for path in paths if _has(layer, path)]
    return [path for path in found if not any(other.startswith(f"{path}.") for other in found)]


def _has(layer: nn.Module, path: str) -> bool:
    try:
        layer.get_submodule(path)
    except AttributeError:
        return False
    return True


def _final_norm(owner: nn.Module) -> nn.Module | None:
    """The last of the norms beside the layers; those of embeddings are called so (`layernorm_embedding`)."""
    norms = [
        child
        for name, child in owner.named_children()
        if "norm" in type(child).__name__.lower() and not name.endswith(("emb", "embedding", "embeddings"))
    ]
    return norms[-1] if norms else None


def run_application(stack: Stack, application: Application, call: Call) -> Any:
    """What a layer, or one half of it, returns for a call: a state, or a tuple that begins with one.

    Half of a layer is the layer with the other half's contribution set to zero: the residual and the norms stay.
    """
    layer = stack.layers[application.layer]
    with _without_other_half(layer, application) if application.half else nullcontext():
        return layer(*call.args, **call.kwargs)


@contextmanager
def _without_other_half(layer: Any, application: Application) -> Iterator[None]:
    dropped, paths = ("mlp", MLP_PATHS) if application.half == "attn" else ("attention", ATTENTION_PATHS)
    modules = [layer.get_submodule(path) for path in half_paths(layer, paths)]
    if not modules:
        parts = ", ".join(name for name, _ in layer.named_children())
        raise RepsimError(f"{application.text}: no {dropped} module is known in {layer._get_name()}; seen: {parts}")
    handles = [module.register_forward_hook(_zero) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero(_module: nn.Module, _args: Any, output: Any) -> Any:
    return with_state(output, torch.zeros_like(state_of(output)))


def state_of(output: Any) -> Tensor:
    """The state in what a layer returned; Falcon's layers return a tuple, most others a tensor."""
    state: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return state


def with_state(output: Any, state: Tensor) -> Any:
    """A layer's output in its own form, with another state in it."""
    return type(output)([state, *output[1:]]) if isinstance(output, (tuple, list)) else state


class Mean:
    """Mean of the outputs of one step's members, summed in float32 or wider and rounded once at the end.

    Members may sit on different devices; the sum gathers on the first one's.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self._sum: Tensor | None
        self._added: int
        self.clear()

    def add(self, state: Tensor) -> Tensor | None:
        """Takes one member's output; returns the mean with the last one and starts anew."""
        if self.members == 1:
            return state
        wide = state.to(torch.promote_types(state.dtype, torch.float32))
        self._sum = wide if self._sum is None else self._sum + wide.to(self._sum.device)
        self._added += 1
        if self._added < self.members:
            return None
        mean = (self._sum / self.members).to(state.dtype)
        self.clear()
        return mean

    def clear(self) -> None:
        """Forgets a step that an exception cut short."""
        self._sum, self._added = None, 0


@contextmanager
def replaced_layers(stack: Stack, modules: Sequence[nn.Module]) -> Iterator[None]:
    """The model with other modules in place of its layers; what was there is back whatever happens."""
    name = stack.path.rpartition(".")[2]
    before = getattr(stack.owner, name)
    setattr(stack.owner, name, nn.ModuleList(modules))
    try:
        yield
    finally:
        setattr(stack.owner, name, before)


class _Given(nn.Module):
    """Stands in for a whole stack and returns a given state in the form that the layers use.

    What a model asks of its layer, e.g. which mask it wants (`attention_type`), is the first layer's.
    """

    def __init__(self, output: Any, layer: nn.Module) -> None:
        super().__init__()
        self.output = output
        self._layer = [layer]  # in a list, so that it is no submodule

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer[0], name)


def logits_of(module: nn.Module, stack: Stack, states: Tensor, *, form: Any) -> Tensor:
    """Logits that the model's own code gives to states which leave the stack: final norm, head, any scaling.

    Args:
        module: the model, or an envoy of it inside a trace.
        states: `[token, unit]`; the code after a stack works on each position by itself.
        form: what one of the model's layers returned; only its form counts.
    Returns:
        `[token, vocabulary]`.
    """
    output = with_state(form, states[None])
    stand_in = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    with replaced_layers(stack, [_Given(output, stack.layers[0])]):
        logits: Tensor = module(input_ids=stand_in, use_cache=False).logits[0]
    return logits
