"""From states that leave the stack to logits and scores, by the model's own code.

This module knows nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repsim.models.layer_call import AbsentLayer, replace_layers, with_state
from repsim.models.stack import Stack

LOGIT_TOKENS = 512  # tokens whose logits are held at once: `[token, vocabulary]` is large


def logits_of(module: nn.Module, stack: Stack, states: Tensor, *, form: Any) -> Tensor:
    """Logits that the model's own code makes of states: final norm, head, any scaling.

    Args:
        module: the model.
        stack: where its layers are.
        states: `[token, unit]`, which leave the stack; the code after a stack works on each
            position by itself.
        form: what one of the model's layers returned; only its form counts.
    Returns:
        `[token, vocabulary]`.
    """
    output = with_state(form, states[:, None])
    # Each state is a sample of one position, so that no model has too few positions for them.
    stand_in = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
    with replace_layers(stack, [AbsentLayer(stack.layers[0], output)]):
        logits: Tensor = module(input_ids=stand_in, use_cache=False).logits[:, 0]
    return logits


@dataclass(frozen=True)
class TargetPiece:
    """Targets whose logits are made together.

    tokens: the tokens that predict them, `[token]`.
    places: where these targets stand among all, `[target]`.
    rows: which of `tokens` predicts each, `[target]`.
    ids: what they are, `[target]`.
    """

    tokens: Tensor
    places: Tensor
    rows: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.places)


def cut_targets(tokens: Tensor, targets: Tensor, device: torch.device) -> list[TargetPiece]:
    """Targets in pieces of `LOGIT_TOKENS` predicting tokens; a device is not waited for per piece.

    Args:
        tokens: `[target]`, indices of the predicting tokens; one may predict several targets, whose
            logits are made once.
        targets: `[target]`, the ids to predict.
        device: where states are that will be scored.
    Example:
        >>> tokens, targets = torch.tensor([7, 3, 7]), torch.tensor([10, 11, 12])
        >>> (piece,) = cut_targets(tokens, targets, torch.device("cpu"))
        >>> piece.tokens.tolist(), piece.rows.tolist(), piece.ids.tolist()
        ([3, 7], [1, 0, 1], [10, 11, 12])
    """
    predicting, row = torch.unique(tokens.cpu(), return_inverse=True)
    targets = targets.cpu()
    pieces = []
    for first in range(0, len(predicting), LOGIT_TOKENS):
        (places,) = ((row >= first) & (row < first + LOGIT_TOKENS)).nonzero(as_tuple=True)
        parts = (
            predicting[first : first + LOGIT_TOKENS],
            places,
            row[places] - first,
            targets[places],
        )
        pieces.append(TargetPiece(*(part.to(device) for part in parts)))
    return pieces


def score_targets(
    module: nn.Module, stack: Stack, hidden: Tensor, pieces: Sequence[TargetPiece], *, form: Any
) -> tuple[Tensor, Tensor]:
    """How likely the model finds what follows some tokens.

    Args:
        module: the model.
        stack: where its layers are.
        hidden: `[token, unit]`, states that leave the stack.
        pieces: what to predict, from `cut_targets`.
        form: what one of the model's layers returned; only its form counts.
    Returns:
        `[target]`, log-probability in nats, float32; and whether it is the likeliest of all ids.
    """
    targets = sum(map(len, pieces))
    logprob = torch.empty(targets, device=hidden.device)
    is_likeliest = torch.empty(targets, dtype=torch.bool, device=hidden.device)
    for piece in pieces:
        logits = logits_of(module, stack, hidden[piece.tokens.to(hidden.device)], form=form)
        # Of a model on several devices, logits may be on another one than the states.
        rows, ids = piece.rows.to(logits.device), piece.ids.to(logits.device)
        places = piece.places.to(hidden.device)
        chosen = torch.log_softmax(logits, -1, dtype=torch.float32)[rows, ids]
        logprob[places] = chosen.to(logprob.device)
        is_likeliest[places] = (logits.max(-1).indices[rows] == ids).to(is_likeliest.device)
    return logprob, is_likeliest


def next_tokens(token_ids: Tensor, mask: Tensor) -> Tensor:
    """The id that follows each real token in its sample, `[token]`; -1 at a sample's last token.

    Example:
        >>> ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> next_tokens(ids, mask.bool()).tolist()
        [6, 7, -1, 9, -1]
    """
    following = torch.full_like(token_ids, -1)
    following[:, :-1] = torch.where(mask[:, 1:], token_ids[:, 1:], -1)
    return following[mask]
