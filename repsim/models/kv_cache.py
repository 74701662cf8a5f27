"""The KV cache of the paper's decoding: the layers of a parallel step share one past.

A layer's own code decides what its attention does with a past; this module only changes what is
remembered from one forward to the next. It knows nothing of tasks, of stores or of how a model
comes to follow a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from repsim.errors import ModelError
from repsim.plans import Plan

ADVICE = "leave out --paper-cache"


class AveragingCache(DynamicCache):
    """A KV cache in which the layers of a pass share one past: the mean of their pasts.

    A pass is one parallel step. Within a forward each layer of a pass attends to the shared past
    and to its own new tokens. Once the last layer has run, the mean of their new keys and the mean
    of their new values join the past. So the first forward is exact and later ones are not. Each
    round of a looped step is a pass of its own, and a layer that runs alone keeps its own past. A
    layer without its attention has no part in the mean; one with a sliding window sees the end of
    the past.

        key(t) = sum over the pass's layers l of key_l(t) / number of these layers, t in the past

    and likewise for values.

    Args:
        module: the model, following the plan.
        plan: the plan.
    Raises:
        ModelError: what the layers of a pass remember has no mean, or the model follows another
            plan.
    Source: Sun et al. 2024, Transformer Layers as Painters (arXiv 2407.09298), its code for Llama
        and Mistral.

    Example:
        >>> import transformers
        >>> from repsim.models.planned import planned
        >>> from repsim.plans import parse_plan
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> config = transformers.LlamaConfig(num_hidden_layers=3, vocab_size=32, **sizes)
        >>> plan = parse_plan("0, (1|2)", 3)
        >>> model = planned(transformers.LlamaForCausalLM(config).eval(), plan)
        >>> output = model(torch.tensor([[5, 6, 7]]), past_key_values=AveragingCache(model, plan))
        >>> first, second = output.past_key_values.layers[1:]
        >>> torch.equal(first.keys, second.keys)
        True
    """

    def __init__(self, module: Any, plan: Plan) -> None:
        if module.config.is_encoder_decoder or not module._supports_default_dynamic_cache():
            name = type(module).__name__
            raise ModelError(
                f"{name}: has a KV cache of its own kind, which cannot be averaged; {ADVICE}"
            )
        super().__init__(config=module.config)
        if len(self.layers) != plan.applications:
            raise ModelError(
                f"{plan}: runs {plan.applications} layers, but the model's KV cache has "
                f"{len(self.layers)} slots, so they would be averaged wrongly; give the model that "
                "follows this plan"
            )
        self._pass_of = {slot: slots for slots in _passes(plan) for slot in slots}
        # By slot, new keys and values of the current pass; empty between two passes.
        self._new: dict[int, tuple[Tensor, Tensor]] = {}
        for slot in self._pass_of:
            kind = type(self.layers[slot])
            # Other kinds hold recurrent states, an index, or nothing.
            if kind not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise ModelError(
                    f"{plan}: parallel layers that remember something else than keys and values "
                    f"({kind.__name__}) have no mean of these to share; {ADVICE}"
                )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds a layer's new keys and values, and shares the mean once a pass is complete.

        Args:
            key_states: `[sample, head, position, unit]`, of the new tokens.
            value_states: likewise.
            layer_idx: the layer's slot.
        Returns:
            Keys and values to attend to: the shared past and the layer's own new tokens.
        """
        attended = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        slots = self._pass_of.get(layer_idx, ())
        if slots:
            self._new[layer_idx] = key_states, value_states
        if slots and layer_idx == slots[-1]:
            self._remember_mean(slots)
        return attended

    def _remember_mean(self, slots: Sequence[int]) -> None:
        """Puts the mean over a pass in the place of each of its layers' new tokens."""
        keys, values = map(_mean, zip(*map(self._new.pop, slots), strict=True))
        for slot in slots:
            layer: Any = self.layers[slot]
            layer.keys, layer.values = _with_end(layer.keys, keys), _with_end(layer.values, values)


def _mean(states: Sequence[Tensor]) -> Tensor:
    """Mean over layers of their new keys, or values: `[sample, head, position, unit]`."""
    heads = {f"{state.shape[1]} of {state.shape[3]} units" for state in states}
    if len(heads) > 1:
        raise ModelError(
            f"parallel layers with different heads ({', '.join(sorted(heads))}): their keys and "
            f"values have no mean to share; {ADVICE}"
        )
    return torch.stack([state.to(states[0].device) for state in states]).mean(0)


def _with_end(states: Tensor, end: Tensor) -> Tensor:
    """The same tokens with others at their end; a sliding window may keep fewer than are new."""
    kept = min(end.shape[-2], states.shape[-2])
    return torch.cat(
        [states[..., : states.shape[-2] - kept, :], end[..., -kept:, :].to(states.device)], dim=-2
    )


def _passes(plan: Plan) -> list[tuple[int, ...]]:
    """KV slots of the layers that share a past, for each pass with several that attend."""
    passes, first_slot = [], 0
    for step in plan.steps:
        slots = (slot for slot, member in enumerate(step, first_slot) if member.sublayer != "mlp")
        passes.append(tuple(slots))
        first_slot += len(step)
    return [slots for slots in passes if len(slots) > 1]
