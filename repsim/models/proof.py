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

PROOF_TOKENS = 128  # at most per row of a batch that is compared; both sides run them
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
        """Whether a batch of this kind was compared that was not much shorter."""
        kind = batch_kind(batch)
        longer = kind != "padded" and min(batch.token_ids.shape[1], PROOF_TOKENS) > 2 * self.longest
        return kind in self.kinds and not longer

    def with_batch(self, batch: Batch, error: float) -> ReplayProof:
        """The verdict once a batch was compared, too."""
        kinds = tuple(dict.fromkeys((*self.kinds, batch_kind(batch))))
        length = min(batch.token_ids.shape[1], PROOF_TOKENS)
        # With one position, samples and positions look alike.
        longest = max(self.longest, length if length > 1 else 0)
        return ReplayProof(max(self.error, error), kinds, longest, self.logits)

    def with_logits(self, error: float) -> ReplayProof:
        """The verdict once logits were compared, too."""
        return ReplayProof(max(self.error, error), self.kinds, self.longest, True)

    @property
    def verdict(self) -> ReplayVerdict:
        """What a store keeps of it."""
        kinds = (*self.kinds, "logits") if self.logits else self.kinds
        return ReplayVerdict().merged(ReplayVerdict(self.error, kinds))


def batch_kind(batch: Batch) -> str:
    """`trees`, `padded` or `plain`: each reaches a model's attention in its own way."""
    if batch.attention_mask is not None:
        return "trees"
    return "plain" if batch.mask.all() else "padded"


def excerpt(batch: Batch) -> Batch:
    """A small batch of the same kind, of a batch's own tokens.

    It has another number of rows than of positions: a model that swaps samples and positions is
    seen only where the two differ.
    """
    ids, length = batch.token_ids, batch.token_ids.shape[1]
    # A tree, cut: each token sees earlier ones only, so the beginning is a tree, too.
    if batch.attention_mask is not None and batch.position_ids is not None:
        whole, kept = batch.mask[:1], slice(min(PROOF_TOKENS, length))
        return Batch(
            ids[:1, kept],
            whole[:, kept],
            batch.attention_mask[:1, kept, kept],
            batch.position_ids[:1, kept],
        )
    # Whole rows: one, or two where a row has one position.
    if batch_kind(batch) == "plain":
        kept = slice(min(PROOF_TOKENS, length))
        rows = min(2, len(ids)) if length == 1 else 1
        return Batch(ids[:rows, kept], batch.mask[:rows, kept])
    # Padding: the longest text, and the same text cut.
    first = int(batch.mask.sum(1).argmax())
    longest = min(PADDED_ROWS[0], length)
    shortest = min(PADDED_ROWS[1], max(1, longest * 2 // 3))
    rows = 3 if longest == 2 else 2
    mask = np.arange(longest) < np.array([longest] + [shortest] * (rows - 1))[:, None]
    pad = ids[~batch.mask][0]
    return Batch(np.where(mask, np.repeat(ids[first : first + 1, :longest], rows, 0), pad), mask)


def relative_distance(replayed: Tensor, own: Tensor) -> float:
    """How far replayed states are from the model's own: |replayed - own| / |own|.

    Equal infinities, and NaN in both, count as equal.

    Args:
        replayed: of any shape.
        own: of the same shape.

    Example:
        >>> relative_distance(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
        0.1
    """
    ours, theirs = replayed.double(), own.to(replayed.device).double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference: float = torch.where(same, 0.0, ours - theirs).norm().item()
    scale: float = torch.where(theirs.isfinite(), theirs, 0.0).norm().item()
    return difference / scale if difference and scale else difference


def replay_rounding(dtype: torch.dtype, layers: int) -> float:
    """How far rounding alone may take states after a number of layers, as a share of their norm.

    A layer adds a few roundings, which add up at random:

        ROUNDINGS * eps(dtype) * sqrt(layers)
    """
    return ROUNDINGS * torch.finfo(dtype).eps * math.sqrt(layers)


def first_divergence(errors: Sequence[float], dtype: torch.dtype, noise: float = 0.0) -> int | None:
    """The first layer where replay and model differ by more than rounding and noise; None if none.

    Args:
        errors: `[layer]`, relative distance of what leaves each layer.
        dtype: of the states.
        noise: largest distance between two of the model's own forwards of the same batch.
    """
    for layer, error in enumerate(errors):
        if not error <= max(replay_rounding(dtype, layer + 1), 4 * noise):  # NaN differs, too
            return layer
    return None


def replay_error(model: str, layer: int, error: float, kind: str, dtype: torch.dtype) -> ModelError:
    """The error that says that a replay is not the model, and from which layer on."""
    return ModelError(
        f"{model}: replayed layers are not the model: at layer {layer} their states differ from "
        f"those of the model's own forward by {error:.1g} of their norm ({kind} batch; rounding "
        f"allows {replay_rounding(dtype, layer + 1):.1g}), so every number would be wrong; the "
        "layer depends on more than the state it is given, and cannot be traced"
    )
