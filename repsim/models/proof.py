"""Is the replay the model? What a comparison of the two found, and what rounding allows.

The states that a tracer's replay gives are compared with those of the model's own forward, layer by
layer, for each kind of batch. The running is `repsim.models.tracing`; this module knows the batches
and the arithmetic of the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repsim.data.batching import Batch
from repsim.errors import ModelError
from repsim.schema import ReplayVerdict

# Of one kind of batch; they run twice, in the replay and in the model's own forward.
PROOF_TOKENS = 128
PADDED_ROWS = 24, 16  # tokens of the rows that prove batches with padding
ROUNDINGS = 4  # how many roundings a layer may add


@dataclass(frozen=True)
class ReplayProof:
    """How far the replay was from the model's own forward, for all that was compared.

    error: largest distance of a layer's states from the model's own, as a share of their norm.
    kinds: of batches that were compared: `plain`, `padded`, `trees`.
    longest: positions of the longest batch among them, at most `PROOF_TOKENS`.
    logits: whether logits were compared too.
    """

    error: float = 0.0
    kinds: tuple[str, ...] = ()
    longest: int = 0
    logits: bool = False

    def covers(self, batch: Batch) -> bool:
        """Whether a batch of this kind, and not much shorter, was compared."""
        kind = kind_of(batch)
        longer = kind != "padded" and min(batch.token_ids.shape[1], PROOF_TOKENS) > 2 * self.longest
        return kind in self.kinds and not longer

    def adding(self, batch: Batch, error: float) -> ReplayProof:
        """The verdict once a batch was compared, too."""
        kinds = tuple(dict.fromkeys((*self.kinds, kind_of(batch))))
        length = min(batch.token_ids.shape[1], PROOF_TOKENS)
        # Of one position, samples and positions look alike.
        longest = max(self.longest, length if length > 1 else 0)
        return ReplayProof(max(self.error, error), kinds, longest, self.logits)

    def with_logits(self, error: float) -> ReplayProof:
        """The verdict once logits were compared, too."""
        return ReplayProof(max(self.error, error), self.kinds, self.longest, True)

    @property
    def verdict(self) -> ReplayVerdict:
        """What a store keeps of it."""
        return ReplayVerdict().merged(
            ReplayVerdict(self.error, (*self.kinds, *(["logits"] if self.logits else [])))
        )


def kind_of(batch: Batch) -> str:
    """`trees`, `padded` or `plain`: each reaches a model's attention in its own way."""
    if batch.attention_mask is not None:
        return "trees"
    return "plain" if batch.mask.all() else "padded"


def excerpt(batch: Batch) -> Batch:
    """A small batch of the same kind, of a batch's own tokens, with as many rows as no other size
    is.

    Models that turn samples and positions round are found out only where the two differ in number.
    """
    ids, length = batch.token_ids, batch.token_ids.shape[1]
    if batch.attention_mask is not None and batch.position_ids is not None:
        whole, kept = batch.mask[:1], slice(min(PROOF_TOKENS, length))
        return Batch(
            ids[:1, kept],
            whole[:, kept],
            batch.attention_mask[:1, kept, kept],
            batch.position_ids[:1, kept],
        )
    if kind_of(batch) == "plain":
        kept = slice(min(PROOF_TOKENS, length))
        rows = min(2, len(ids)) if length == 1 else 1
        return Batch(ids[:rows, kept], batch.mask[:rows, kept])
    first = int(batch.mask.sum(1).argmax())
    longest = min(PADDED_ROWS[0], length)
    shortest = min(PADDED_ROWS[1], max(1, longest * 2 // 3))
    rows = 3 if longest == 2 else 2
    mask = np.arange(longest) < np.array([longest] + [shortest] * (rows - 1))[:, None]
    pad = ids[~batch.mask][0]
    return Batch(np.where(mask, np.repeat(ids[first : first + 1, :longest], rows, 0), pad), mask)


def distance(found: Tensor, own: Tensor) -> float:
    """Norm of the difference as a share of the model's own norm; what is not finite in both counts
    as equal.
    """
    ours, theirs = found.double(), own.to(found.device).double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = torch.where(same, 0.0, ours - theirs).norm().item()
    scale = torch.where(theirs.isfinite(), theirs, 0.0).norm().item()
    return difference / scale if difference and scale else difference


def rounding(dtype: torch.dtype, layers: int) -> float:
    """How far rounding alone may take states after so many layers: a few roundings each, which add
    up at random.
    """
    return ROUNDINGS * torch.finfo(dtype).eps * math.sqrt(layers)


def parting(errors: Sequence[float], dtype: torch.dtype, noise: float = 0.0) -> int | None:
    """The first layer where replay and model part by more than rounding, and more than the model
    from itself.

    Args:
        errors: `[layer]`, distance of what leaves each layer.
        dtype: of the states.
        noise: largest distance between two of the model's own forwards of the same batch.
    """
    for layer, error in enumerate(errors):
        if not error <= max(rounding(dtype, layer + 1), 4 * noise):  # NaN parts
            return layer
    return None


def refusal(model: str, layer: int, error: float, kind: str, dtype: torch.dtype) -> ModelError:
    """Says that a replay is not the model, and where it parts."""
    return ModelError(
        f"{model}: replayed layers are not the model: at layer {layer} their states part from those of the model's own "
        f"forward by {error:.1g} of their norm ({kind} batch; rounding allows {rounding(dtype, layer + 1):.1g}), so "
        "every number would be wrong; the layer depends on more than the state it is given, and cannot be traced"
    )
