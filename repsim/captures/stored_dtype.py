"""Which dtype a new capture's states are stored in, where `--dtype auto` leaves it open.

Float16 holds numbers up to 65,504. States of many models stay far below; in some, a few units of a
few tokens go beyond, and what a plan repeats grows further.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from repsim.data.batching import BatchRule, batches, costs_on
from repsim.data.samples import Sample, TokenRule
from repsim.models.tracing import NodeState, Tracer
from repsim.storage.state_store import Layout

MOST = (
    torch.finfo(torch.float16).max / 4
)  # what float16 is trusted with: states vary from text to text
TRIED_TEXTS = 8
TRIED_TOKENS = 32  # of each


@dataclass(frozen=True)
class DtypeTrial:
    """What was found out about the range of a capture's states.

    largest: largest absolute value.
    tokens: how many tokens were run.
    """

    largest: float
    tokens: int

    @property
    def dtype(self) -> str:
        """`float32` past a quarter of float16's range, `float16` up to it."""
        return "float32" if self.largest > MOST else "float16"

    def __str__(self) -> str:
        return (
            f"{self.dtype} (auto: states of {self.tokens:,} tokens reach {self.largest:,.1f}; "
            f"float32 past {MOST:,.0f})"
        )


def try_dtype(tracer: Tracer, layout: Layout, batch_rule: BatchRule) -> DtypeTrial:
    """Measures the states of a few tokens before a store is made.

    Looked at are all states of all plans of the layout, from the one that enters the stack to the
    last, for the first 32 tokens of the first 8 samples in the store's order, which are those of
    the first block unless it has fewer. Of these only what the store would keep counts: the last
    of the 32, or their mean, under `--tokens last` or `mean`. Values that are not finite count for
    nothing, as no dtype holds them.

    Args:
        tracer: of the model.
        layout: what is to be captured, in whatever dtype.
        batch_rule: which texts may share a batch.
    """
    samples = [
        Sample(sample.key, sample.token_ids[:TRIED_TOKENS])
        for sample in layout.samples[:TRIED_TEXTS]
    ]
    lengths, rule = list(map(len, samples)), TokenRule(layout.identity.tokens)
    largest: list[float] = []

    def measure(state: NodeState) -> None:
        for kept in _kept(state.hidden, lengths, rule):
            largest.append(float(kept.abs().nan_to_num(0, 0).max()))

    model = tracer.model
    ready = batches(
        samples,
        model.tokenizer.pad_token_id or 0,
        **costs_on(model.device.type),
        batch_rule=batch_rule,
    )
    # The replay is proven on the blocks themselves; nothing of this is stored.
    tracer.run(layout.trie, ready, measure, check=False)
    return DtypeTrial(max(largest), sum(lengths))


def _kept(hidden: Tensor, lengths: list[int], rule: TokenRule) -> Iterator[Tensor]:
    """The states that a rule keeps, `[token, unit]`, of all samples or of one after the other."""
    if rule.text == "all":
        yield hidden
        return
    for piece in hidden.split(lengths):  # type: ignore[no-untyped-call]
        if rule.is_mean:
            yield piece.to(torch.float32).mean(0)
        else:
            yield piece[torch.from_numpy(rule.positions(len(piece))).to(piece.device)]
