"""The model's own forward on text: its inputs, and whether its stack runs as a stack must.

What a layer computes is `repsim.models.layer_call`; where the layers are is `repsim.models.stack`.
This module knows nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repsim.data.batching import Batch
from repsim.errors import ModelError, brief
from repsim.models.layer_call import LayerCall
from repsim.models.model import Model
from repsim.models.sharing import SharedCopies
from repsim.models.stack import Stack

PROBE_TOKENS = 8  # of the texts on which a stack is tried
PROBE_SHAPE = 2, 12  # samples and positions of random tokens on which a model is tried
SOUND = ("input_features", "input_values", "audio_values")  # what models of sound read
# What a layer may return; a tuple or list begins with the state.
PLAIN_FORMS = {Tensor, tuple, list}


def batch_inputs(model: Model, batch: Batch) -> dict[str, Any]:
    """What a model is called with to run a batch, on the model's device, without a KV cache.

    Args:
        model: the model.
        batch: token ids and either a padding mask, or for trees what each token attends to.
    """
    device, module = model.device, model.module
    token_ids = torch.from_numpy(batch.token_ids).to(device)
    mask = torch.from_numpy(batch.mask).to(device)
    return {
        "input_ids": token_ids,
        **decoder_inputs(module, token_ids, mask),
        **_mask_inputs(model, batch),
        **without_cache(module),
    }


def _mask_inputs(model: Model, batch: Batch) -> dict[str, Tensor]:
    """What tells the model which tokens see which: padding, or for trees every pair."""
    if batch.attention_mask is None or batch.position_ids is None:
        return {"attention_mask": torch.from_numpy(batch.mask).to(model.device).long()}
    # An additive mask, `[sample, 1, position, position]`, which models take as it is: 0 where a
    # token sees another, the lowest number elsewhere.
    sees = torch.from_numpy(batch.attention_mask).to(model.device)[:, None]
    dtype = model.module.dtype
    additive = torch.zeros(sees.shape, dtype=dtype, device=model.device)
    additive.masked_fill_(~sees, torch.finfo(dtype).min)
    position_ids = torch.from_numpy(batch.position_ids).to(model.device)
    return {"attention_mask": additive, "position_ids": position_ids}


def decoder_inputs(
    module: nn.Module, token_ids: Tensor, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """What the forward of an encoder-decoder needs besides `input_ids`; empty for any other model.

    Encoder and decoder read the same tokens. Otherwise the decoder would refuse to run, or read
    them shifted by one behind a start token, and a store would hold its states under their
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
    """What tells a forward to keep no KV cache; empty for models that have none."""
    accepted = inspect.signature(type(module).forward).parameters
    takes_it = "use_cache" in accepted or module.can_generate()  # GraniteMoe hides it in **kwargs
    return {"use_cache": False} if takes_it else {}


def check_reads_text(module: Any, name: str) -> None:
    """Refuses models of pictures or sound, by what their forward is called with.

    Args:
        module: a Hugging Face model.
        name: what messages call it.
    Raises:
        ModelError: it does not read token ids.
    """
    takes = module.main_input_name
    if takes == "input_ids" or "input_ids" in inspect.signature(type(module).forward).parameters:
        return
    kind = "pictures" if "pixel" in takes else "sound" if takes in SOUND else "something else"
    raise ModelError(
        f"model {name!r}: a model of {kind} ({module.config.model_type}): it reads {takes}, "
        "not text"
    )


def check_stack(module: Any, stack: Stack) -> None:
    """Refuses a stack that the model's own forward does not run as one, tried on two short texts.

    Each entry has to run once, in order, on a text alone, and the state that enters the stack at a
    position has to depend on the token there. Otherwise the list does not hold layers (but
    sublayers, layers of another input, layers that run over and over), or a store would name the
    wrong tokens.

    Args:
        module: a Hugging Face model.
        stack: where its layers are.
    Raises:
        ModelError: the forward needs more than tokens, or the stack runs in another way.
    """
    # A copy runs, since a forward may leave traces in a model.
    copies = SharedCopies()
    try:
        token_ids = _probe(module).to(module.get_input_embeddings().weight.device)
        order, root, forms = _run(copies.copy(module), copies.copy(stack.layers), token_ids)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # what a model's own code says where it is not given all it needs
        raise ModelError(
            f"{type(module).__name__}: its forward does not run on token ids alone "
            f"({brief(problem)}); repsim takes models of text"
        ) from problem

    # Does each entry run once, and hand on a state and nothing that hides it?
    name = f"{type(module).__name__}: {stack.path}"
    if order != list(range(len(stack))):
        shown = ", ".join(map(str, order[:8])) + (", ..." if len(order) > 8 else "")
        reason = (
            f"its {len(stack)} entries run in the order {shown}"
            if order
            else "none of its entries runs on text"
        )
        raise ModelError(
            f"{name}: {reason}; layers that a plan can arrange run once each, one after the other; "
            "name another list with stack=PATH (--stack PATH), or take another model"
        )
    if strange := forms - PLAIN_FORMS:
        names = ", ".join(sorted(form.__name__ for form in strange))
        raise ModelError(
            f"{name}: its layers hand on {names}, more than one state, so they cannot be "
            "rearranged; take another model"
        )

    # Is the state at a position that of the token there? The two texts differ in one token. States
    # of another shape are refused by the trace, which says more of them.
    changed = int((token_ids[0] != token_ids[1]).nonzero())
    if root is None or root.shape[:2] != token_ids.shape:
        return
    if torch.equal(root[0, changed], root[1, changed]):
        raise ModelError(
            f"{name}: the state at a place does not depend on the token there, so a store would "
            "name the wrong tokens; models that shift or fold their tokens cannot be captured"
        )


def check_layer_calls(model: Model, calls: Sequence[LayerCall], token_ids: Tensor) -> None:
    """Refuses a model whose layers are not called as a stack.

    Replaying layers is the model only if each takes one state per token and nothing between the
    layers changes the states.

    Args:
        model: the model.
        calls: of the layers so far, each of which passed its input by, so all have to be on the
            first one's state; the last one is checked.
        token_ids: `[sample, position]`, what the model was called with.
    Raises:
        ModelError: the last call is on another state, or on one of another shape.
    """
    root, state, last = calls[0].state, calls[-1].state, len(calls) - 1
    if state.shape != (expected := (*token_ids.shape, model.units)):
        raise ModelError(
            f"{model.name}: layer {last} takes states of shape {tuple(state.shape)}, not "
            f"{tuple(expected)} (sample, position, unit); models that fold, pad or multiply "
            "positions cannot be traced"
        )
    if state is not root and not torch.equal(state.to(root.device), root):
        raise ModelError(
            f"{model.name}: the model itself changes the states between layers {last - 1} and "
            f"{last}, so its layers alone are not the model; it cannot be traced"
        )


def probe_batch(model: Model, seed: int) -> Batch:
    """Random tokens without padding, on which a model is tried."""
    most = min(1000, model.module.config.get_text_config().vocab_size)
    ids = np.random.default_rng(seed).integers(most // 10, most, PROBE_SHAPE)
    return Batch(ids, np.ones(PROBE_SHAPE, bool))


def ordinary_tokens(module: Any, number: int) -> Tensor:
    """Different token ids without a special meaning in the configuration, `[number]`.

    Where there are fewer, they repeat.
    """
    config = module.config.get_text_config()
    size = getattr(config, "vocab_size", None) or module.get_input_embeddings().weight.shape[0]
    special = set(_special(module.config.to_dict()))
    ordinary = [i for i in range(min(size, len(special) + 4 * number)) if i not in special]
    ordinary = ordinary if len(ordinary) > 1 else [0, 1]
    return torch.tensor([ordinary[i % len(ordinary)] for i in range(number)])


def _probe(module: Any) -> Tensor:
    """Two texts that differ in one token, `[2, position]`."""
    positions = getattr(module.config.get_text_config(), "max_position_embeddings", None) or 0
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
            ids = value if isinstance(value, list) else [value]
            yield from (token_id for token_id in ids if isinstance(token_id, int))


def _run(module: Any, layers: Any, token_ids: Tensor) -> tuple[list[int], Tensor | None, set[type]]:
    """Runs a model's own forward and watches the entries of a module list.

    Returns:
        Indices of the entries in the order in which they run; the state that the first one is
        given; and the types of what they return.
    """
    order: list[int] = []
    states: list[Tensor] = []
    forms: set[type] = set()
    numbers: dict[nn.Module, list[int]] = {}
    for number, layer in enumerate(layers):
        numbers.setdefault(layer, []).append(number)

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not order:
            given = (*args[:1], kwargs.get("hidden_states"))
            states.extend(value for value in given if isinstance(value, Tensor))
        entries = numbers[layer]  # one module may be several entries, which run in their order
        order.append(entries[sum(number in entries for number in order) % len(entries)])
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
