"""From states that leave the stack to logits and scores, by the model's own code.

This module knows nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

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


def score_targets(
    module: nn.Module, stack: Stack, hidden: Tensor, tokens: Tensor, targets: Tensor, *, form: Any
) -> tuple[Tensor, Tensor]:
    """How likely the model finds what follows some tokens.

    Args:
        module: the model.
        stack: where its layers are.
        hidden: `[token, unit]`, states that leave the stack.
        tokens: `[target]`, indices of the predicting tokens; one may predict several targets.
        targets: `[target]`, the ids to predict.
        form: what one of the model's layers returned; only its form counts.
    Returns:
        `[target]`, log-probability in nats, float32; and whether it is the likeliest of all ids.
    """
    # The logits of each predicting token are computed once; `row` says which ones a target needs.
    predicting, row = torch.unique(tokens.to(hidden.device), return_inverse=True)
    logprob = torch.empty(len(targets), device=hidden.device)
    is_likeliest = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for first in range(0, len(predicting), LOGIT_TOKENS):
        piece = hidden[predicting[first : first + LOGIT_TOKENS]]
        logits = logits_of(module, stack, piece, form=form)
        # The targets of these tokens, as rows and columns of the logits, which may be on another
        # device than the states.
        (here,) = ((row >= first) & (row < first + LOGIT_TOKENS)).nonzero(as_tuple=True)
        rows = (row[here] - first).to(logits.device)
        ids = targets.to(logits.device)[here.to(logits.device)]
        chosen = torch.log_softmax(logits, -1, dtype=torch.float32)[rows, ids]
        logprob[here] = chosen.to(logprob.device)
        is_likeliest[here] = (logits.max(-1).indices[rows] == ids).to(is_likeliest.device)
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
