"""A KV cache in which the rounds of a looped parallel step remember their mean, as in the paper's decoding."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from repsim.plans import Plan
from repsim.schema import RepsimError


class AveragingCache(DynamicCache):
    """A KV cache in which the rounds of a looped parallel step remember the mean of their keys and values.

    So each layer of such a step remembers one past, however often the step runs, as in the paper's decoding. Within a
    forward every round still attends to its own new tokens, so the first forward is exact; later ones are not.

    Args:
        module: the model, inside `planned`.
        plan: the plan it follows.
    Raises:
        RepsimError: layers of such a step keep only a window of the past.
    """

    def __init__(self, module: Any, plan: Plan) -> None:
        super().__init__(config=module.config)
        self._rounds = _rounds(plan)
        if any(getattr(layer, "is_sliding", False) for slot, layer in enumerate(self.layers) if slot in self._rounds):
            raise RepsimError(f"{plan}: layers with sliding windows have no past to average; leave out --paper-cache")

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        before = self.get_seq_length(layer_idx)
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        rounds = self._rounds.get(layer_idx, ())
        if not before or not rounds:
            return found
        past = [[getattr(self.layers[slot], name)[..., :before, :] for slot in rounds] for name in ("keys", "values")]
        keys, values = (
            torch.cat([torch.stack(each).mean(0), own[..., before:, :]], -2)
            for each, own in zip(past, found, strict=True)
        )
        return keys, values


def _rounds(plan: Plan) -> dict[int, tuple[int, ...]]:
    """KV slots of a layer in all rounds of a looped parallel step, for each of these slots."""
    found: dict[int, tuple[int, ...]] = {}
    slot = 0
    for step, run in groupby(plan.steps):
        times = len(list(run))
        for member in range(len(step) if times > 1 and len(step) > 1 else 0):
            slots = tuple(slot + member + turn * len(step) for turn in range(times))
            found |= dict.fromkeys(slots, slots)
        slot += times * len(step)
    return found
