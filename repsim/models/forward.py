"""The model's own forward on text: what it is called with, and whether its stack runs as a stack
must.

What a layer computes is `repsim.models.layer_call`; where the layers are is `repsim.models.stack`.
This module knows nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from repsim.errors import ModelError, brief
from repsim.models.sharing import SharedCopies
from repsim.models.stack import Stack

PROBE_TOKENS = 8
# What a layer may return; a tuple or list begins with the state.
PLAIN_FORMS = {Tensor, tuple, list}


def decoder_inputs(
    module: nn.Module, token_ids: Tensor, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """What the forward of an encoder-decoder needs besides `input_ids`; empty for any other model.

    Encoder and decoder read the same tokens. Left to itself the decoder would read them one place
    off, behind a start token, or refuse to run, and its states would stand in a store under their
    neighbours' tokens.

    Args:
        module: a Hugging Face model.
        token_ids: `[sample, position]`.
        mask: `[sample, position]`, whether a position holds a token.
    """
    if not getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return {}
    accepted = inspect.signature(type(module).forward).parameters
    offered = {"decoder_input_ids": token_ids}
    if mask is not None:
        offered["decoder_attention_mask"] = mask.long()
    return {name: value for name, value in offered.items() if name in accepted}


def without_cache(module: Any) -> dict[str, bool]:
    """What tells a forward to keep no KV cache; empty for models that know of none."""
    accepted = inspect.signature(type(module).forward).parameters
    takes_it = "use_cache" in accepted or module.can_generate()  # GraniteMoe hides it in **kwargs
    return {"use_cache": False} if takes_it else {}


def check_stack(module: Any, stack: Stack) -> None:
    """Refuses a stack that the model's own forward does not run as one, found out on two texts of
    eight tokens.

    Each entry has to run once, in order, on a text alone, and the state that enters it at a place
    has to be that of the token at this place: else the list holds no layers (sublayers, layers of
    another input, layers that run over and over), or the states are those of other tokens than the
    store would name.

    Raises:
        RepsimError: the forward needs more than tokens, or the stack runs in another way.
    """
    copies = SharedCopies()  # a forward may leave traces in a model
    try:
        token_ids = _probe(module).to(module.get_input_embeddings().weight.device)
        order, root, forms = _run(copies.of(module), copies.of(stack.layers), token_ids)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # what a model's own code says where it is not given all it needs
        raise ModelError(
            f"{type(module).__name__}: its forward does not run on token ids alone ({brief(problem)}); "
            "repsim takes models of text"
        ) from problem
    name = f"{type(module).__name__}: {stack.path}"
    if order != list(range(len(stack))):
        shown = ", ".join(map(str, order[:8])) + (", ..." if len(order) > 8 else "")
        found = (
            f"its {len(stack)} entries run in the order {shown}"
            if order
            else "none of its entries runs on text"
        )
        raise ModelError(
            f"{name}: {found}; layers that a plan can arrange run once each, one after the other; "
            "name another list with stack=PATH (--stack PATH), or take another model"
        )
    if strange := forms - PLAIN_FORMS:
        raise ModelError(
            f"{name}: its layers hand on {', '.join(sorted(form.__name__ for form in strange))}, more than one state, "
            "so they cannot be rearranged; take another model"
        )
    changed = int((token_ids[0] != token_ids[1]).nonzero())
    # The trace says what is wrong with such states.
    if root is None or root.shape[:2] != token_ids.shape:
        return
    if torch.equal(root[0, changed], root[1, changed]):
        raise ModelError(
            f"{name}: the state at a place does not depend on the token there, so a store would name the wrong tokens; "
            "models that shift or fold their tokens cannot be captured"
        )


def ordinary_tokens(module: Any, number: int) -> Tensor:
    """Different token ids that the configuration gives no meaning of their own, `[number]`; fewer
    repeat.
    """
    config = module.config.get_text_config()
    size = getattr(config, "vocab_size", None) or module.get_input_embeddings().weight.shape[0]
    special = set(_special(module.config.to_dict()))
    ordinary = [i for i in range(min(size, len(special) + 4 * number)) if i not in special]
    ordinary = ordinary if len(ordinary) > 1 else [0, 1]
    return torch.tensor([ordinary[i % len(ordinary)] for i in range(number)])


def _probe(module: Any) -> Tensor:
    """Two texts that differ in one token, `[2, position]`."""
    positions = (
        getattr(module.config.get_text_config(), "max_position_embeddings", None) or PROBE_TOKENS
    )
    length = min(PROBE_TOKENS, positions) if positions > 0 else PROBE_TOKENS
    *ids, another = ordinary_tokens(module, length + 1).tolist()
    other = [*ids]
    other[length // 2] = another
    return torch.tensor([ids, other])


def _special(config: dict[Any, Any]) -> Iterator[int]:
    """Ids of tokens that a configuration, or a part of it, names: padding, begin, image, ..."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special(value)
        elif str(name).endswith(("token_id", "token_index", "_token_ids")):
            yield from (
                one
                for one in (value if isinstance(value, list) else [value])
                if isinstance(one, int)
            )


def _run(module: Any, layers: Any, token_ids: Tensor) -> tuple[list[int], Tensor | None, set[type]]:
    """Indices of the entries as they run, the state that the first one is given, and what they
    return.
    """
    order: list[int] = []
    states: list[Tensor] = []
    forms: set[type] = set()
    numbers: dict[nn.Module, list[int]] = {}
    for number, layer in enumerate(layers):
        numbers.setdefault(layer, []).append(number)

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        own = numbers[layer]  # one module may be several entries
        if not order:
            states.extend(
                value
                for value in (*args[:1], kwargs.get("hidden_states"))
                if isinstance(value, Tensor)
            )
        order.append(own[sum(number in own for number in order) % len(own)])
        forms.add(Tensor if isinstance(output, Tensor) else type(output))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in numbers]
    try:
        with torch.no_grad():
            module(
                input_ids=token_ids, **decoder_inputs(module, token_ids), **without_cache(module)
            )
    finally:
        for handle in handles:
            handle.remove()
    return order, states[0] if states else None, forms
