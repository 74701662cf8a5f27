"""Whether a planned model is what its plan says, found out on a few tokens.

Its own code runs a loop that was written for another stack: it may hand a layer what belongs to its
place in the list, or keep a cache that depends on which layer comes first. So a planned model's
states are compared with the trace's, and those that it computes with a KV cache with those without;
and a folder is written only where what it loads as gives the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from repsim.data.batching import Batch
from repsim.errors import ModelError, brief
from repsim.models.forward import decoder_inputs, ordinary_tokens, without_cache
from repsim.models.layer_call import state_of
from repsim.models.model import Model
from repsim.models.module_state import ModuleState
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie

TOKENS = 6  # of the longer of two texts that a proof runs
# How far two layouts of the same tokens (padded or not, with the cache or without) may be apart,
# relative to a state's length: rounding grows about as the square root of the layers that it
# passes, times what a model's few huge units make of it. SmolLM2-135M comes to 9e-5 in float32,
# which allows 3e-4; the smallest known fault was 6e-3. Beyond the cap nothing is rounding, whatever
# the dtype.
ROUNDING, CAP = 512.0, 0.1


def layout_rounding(dtype: torch.dtype, applications: int) -> float:
    """The largest relative difference that counts as rounding between two layouts.

        min(CAP, ROUNDING * eps(dtype) * sqrt(applications))

    Args:
        dtype: of the states.
        applications: how many layers the states have passed.
    """
    return min(CAP, ROUNDING * torch.finfo(dtype).eps * math.sqrt(applications))


def prove(planned_model: Any, plan: Plan, model: Model) -> str | None:
    """Compares a planned model with the trace of its plan.

    Args:
        planned_model: the planned model.
        plan: what it follows.
        model: the model it was made from.
    Returns:
        What is wrong with its KV cache; None where the cache is right or the model has none.
    Raises:
        ModelError: its states are not the plan's.
    """
    ids, mask = _texts(model)
    real = mask.bool()
    bound = layout_rounding(planned_model.dtype, plan.applications)
    cached, cache_error = None, None
    with torch.inference_mode(), _evaluation_mode(planned_model):
        # First as it generates, with its cache: where these states are the plan's, all is right.
        if planned_model.can_generate() and not planned_model.config.is_encoder_decoder:
            try:
                ids, states = _generated(planned_model, model, ids, mask)
                # A model without a cache reads all again.
                cached = states if states.shape[:2] == ids.shape else None
            except Exception as problem:  # a cache meets a stack that it was not written for
                cache_error = f"it fails ({brief(problem)})"
        traced = _traced(model, plan, ids, mask)
        if cached is not None and _error(cached[real], traced[real]) <= bound:
            return None
        # Otherwise without the cache: are the states wrong, or the cache, or do padding tokens on
        # the left change what this model computes?
        try:
            plain = _last_states(planned_model, model, ids, mask)
        except Exception as problem:
            raise ModelError(
                f"{plan}: {model.name} cannot run it in its own forward ({brief(problem)}); "
                "capture the plan instead"
            ) from problem
    if not (error := _error(plain[0], traced[0])) <= bound:
        raise ModelError(
            f"{plan}: in its own forward {model.name} comes to other states than its layers do "
            f"(relative difference {error:.1g}, rounding is {bound:.1g}): it gives its layers "
            "something that depends on their place in the stack; capture the plan instead"
        )
    if cached is not None and not (error := _error(cached[real], plain[real])) <= bound:
        cache_error = f"the states differ by {error:.1g} (relative)"
    return cache_error


def _texts(model: Model) -> tuple[Tensor, Tensor]:
    """Ids and mask of two texts, the shorter padded on the left, as `generate` takes them."""
    ids = ordinary_tokens(model.module, TOKENS).to(model.device).repeat(2, 1)
    ids[1] = ids[1].flip(0)
    mask = torch.ones_like(ids)
    mask[1, : TOKENS // 2] = 0
    return ids, mask


def _generated(
    planned_model: Any, model: Model, ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Lets the model write one token, and read it, with its cache.

    Returns:
        The ids that it has read, `[2, TOKENS]`, and what left the stack at each of them, `[2,
        TOKENS, unit]`.
    """
    pad = getattr(planned_model.config.get_text_config(), "pad_token_id", None)
    settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=2,
        min_new_tokens=2,
        num_beams=1,
        do_sample=False,
        use_cache=True,
        pad_token_id=pad or 0,
    )
    with _record_last_layer(planned_model, model) as states:
        written = planned_model.generate(
            ids[:, :-1], attention_mask=mask[:, :-1], generation_config=settings
        )
    return written[:, :-1], torch.cat(states, 1)


def _last_states(planned_model: Any, model: Model, ids: Tensor, mask: Tensor) -> Tensor:
    """What leaves the planned stack in one forward without a cache, `[2, TOKENS, unit]`."""
    options: dict[str, Any] = {
        **without_cache(planned_model),
        **decoder_inputs(planned_model, ids, mask),
    }
    if (
        planned_model.can_generate()
        and "position_ids" in inspect.signature(type(planned_model).forward).parameters
    ):
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)  # as `generate` counts them
    with _record_last_layer(planned_model, model) as states:
        planned_model(input_ids=ids, attention_mask=mask, **options)
    return states[0]


def _traced(model: Model, plan: Plan, ids: Tensor, mask: Tensor) -> Tensor:
    """What leaves the plan's last step by the trace, which pads on the right.

    Returns:
        `[2, TOKENS, unit]`, at the places of the texts that are padded on the left.
    """
    real = mask.bool().cpu().numpy()
    batch = Batch(np.zeros(real.shape, np.int64), np.sort(real)[:, ::-1].copy())
    batch.token_ids[batch.mask] = ids.cpu().numpy()[real]
    states: list[Tensor] = []
    trie = PlanTrie.build([plan])
    Tracer(model).run(
        trie, [batch], lambda state: states.append(state.hidden), nodes=trie.ends, check=False
    )
    placed = states[0].new_zeros(*real.shape, states[0].shape[-1])
    placed[torch.from_numpy(real)] = states[0]
    return placed


def _error(states: Tensor, expected: Tensor) -> float:
    """The largest difference of a token's states, relative to their length.

    What overflows must do so in both.
    """
    states, expected = states.float().to(expected.device), expected.float()
    apart = (states - expected).norm(dim=-1) / expected.norm(dim=-1)
    finite, alike = (tensor.isfinite().all(-1) for tensor in (expected, states))
    return float(torch.where(finite, apart, torch.where(alike, torch.inf, 0.0)).max())


@contextmanager
def _record_last_layer(planned_model: Any, model: Model) -> Iterator[list[Tensor]]:
    """The states that leave the planned stack while the block runs, one tensor per forward."""
    states: list[Tensor] = []
    last = planned_model.get_submodule(model.stack.path)[-1]
    handle = last.register_forward_hook(
        lambda _module, _args, output: states.append(state_of(output))
    )
    try:
        yield states
    finally:
        handle.remove()


@contextmanager
def _evaluation_mode(planned_model: nn.Module) -> Iterator[None]:
    """Runs a model without dropout, and leaves it as it was: training modes and module state."""
    before = ModuleState(planned_model)
    training = [module for module in planned_model.modules() if module.training]
    planned_model.eval()
    try:
        yield
    finally:
        before.restore()
        for module in training:
            module.training = True


# Saving


def savable_weights(
    planned_model: Any, plan: Plan, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A planned model's weights for a Hugging Face folder.

    Layers that run several times are there several times.

    Args:
        planned_model: the planned model.
        plan: what it follows.
        weights: its state dictionary.
    Raises:
        ModelError: the folder would load as another model, so nothing is to be written.
    """
    if any(len(step) > 1 or member.sublayer for step in plan.steps for member in step):
        raise ModelError(
            f"{plan}: a Hugging Face folder holds whole layers one after the other, no sublayers "
            "or parallel steps; save the model itself and keep the plan's text"
        )
    # safetensors refuses tensors that share memory, so each repetition of a layer is a copy.
    addresses: set[int] = set()
    physical: dict[str, Tensor] = {}
    path = f"{planned_model._repsim_stack}."
    for name, tensor in weights.items():
        repeats = name.startswith(path) and tensor.numel() > 0 and tensor.data_ptr() in addresses
        physical[name] = tensor.clone() if repeats else tensor
        addresses.add(tensor.data_ptr())
    _check_loads_as(planned_model, plan, physical)
    return physical


def _check_loads_as(planned_model: Any, plan: Plan, weights: Mapping[str, Tensor]) -> None:
    """Makes a model of the configuration and these weights, and compares both on some tokens."""
    advice = (
        "its configuration cannot say which layers these are; save the model itself and keep the "
        "plan's text"
    )
    model_class: Any = type(planned_model).__bases__[1]
    ids = ordinary_tokens(planned_model, 2 * TOKENS)[None].to(
        planned_model.get_input_embeddings().weight.device
    )
    try:
        config = model_class.config_class.from_dict(planned_model.config.to_dict())
        fresh = model_class.from_pretrained(
            None, config=config, state_dict=dict(weights), dtype=planned_model.dtype
        ).eval()
        with torch.inference_mode(), _evaluation_mode(planned_model):
            models = (fresh, planned_model)
            loaded, expected = (model.to(ids.device)(input_ids=ids)[0] for model in models)
        bound = layout_rounding(planned_model.dtype, len(plan))
        same = loaded.shape == expected.shape and _error(loaded, expected) <= bound
    except Exception as problem:  # a configuration or its model refuse in whatever way
        raise ModelError(
            f"{plan}: would not load from a folder ({brief(problem)}): {advice}"
        ) from problem
    if not same:
        raise ModelError(f"{plan}: would load from a folder as another model: {advice}")
