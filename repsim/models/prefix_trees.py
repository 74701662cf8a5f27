"""Whether a model can run texts that begin alike as one tree, their common beginning once.

In a tree (`repsim.data.packing.pack_prefix_trees`) tokens of several texts stand in one row; the
attention mask says which of them belong together, and the position ids say where in its own text
each token stands. Only a model that heeds both gives each text its own states. This is tried on
one small tree, never told by a model's name.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from repsim.data.batching import Batch
from repsim.data.packing import Window, pack_prefix_trees, pack_rows
from repsim.models.tracing import Tracer

WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")
ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
# The tree that is tried: a prefix and three branches, each of another length.
#
#     prefix (6) -+- branch (20)
#                 +- branch (10)
#                 +- branch  (8)
PREFIX = 6
BRANCHES = (20, 10, 8)
VOCABULARY = 1000  # ids are drawn from the first ones
# How far trees may be from plain texts, as a share of how far they are where positions or mask are
# ignored: rounding is far below it, an ignored input far above.
TREE_ERRORS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.2}

log = logging.getLogger("repsim")


def supports_prefix_trees(tracer: Tracer, longest: int) -> bool:
    """Whether trees of texts give the states that the texts give one by one.

    The tree's states have to be much closer to those of the plain texts than the states that come
    out where the positions are ignored, and where the mask is. Two things are not seen on a small
    tree and are decided by the configuration: attention within windows, which is right only where
    every text fits into one; and layers that are no attention, or whose windows count places in
    the row.

    Args:
        tracer: of the model.
        longest: tokens of the longest text.
    """
    config = tracer.model.module.config.get_text_config()
    if not _may_support_trees(config, longest):
        return False

    # The same three texts, one per row and as one tree.
    size = min(VOCABULARY, config.vocab_size)
    ids = np.random.default_rng(0).integers(0, size, PREFIX + sum(BRANCHES)).astype(np.int32)
    ends = list(itertools.accumulate((PREFIX, *BRANCHES)))
    branches = [ids[first:end] for first, end in itertools.pairwise(ends)]
    windows = [Window(np.concatenate([ids[:PREFIX], branch]), branch) for branch in branches]
    plain = pack_rows(windows, 0, overhead=1, waste=1)
    tree = pack_prefix_trees(windows, 0, overhead=1, waste=1)

    # The tree as a model takes it that ignores the positions, and one that ignores the mask.
    (batch,) = tree.batches
    length = batch.token_ids.shape[1]
    by_place_in_row = replace(batch, position_ids=np.arange(length)[None])
    causal_in_row = replace(batch, attention_mask=np.tril(np.ones((1, length, length), bool)))

    def error(case: Batch) -> float:
        states = tracer.final_states([case])[tree.token]
        return (states - expected).norm().item()

    try:
        expected = tracer.final_states(plain.batches)[plain.token]
        tree_error, *ignored_errors = map(error, (batch, by_place_in_row, causal_in_row))
    except Exception as problem:  # models refuse what they cannot take in whatever way
        log.debug("%s takes no trees: %s", tracer.model.name, problem)
        return False
    allowed = TREE_ERRORS.get(tracer.model.module.dtype, 0.2) * min(ignored_errors)
    return tree_error < allowed


def _may_support_trees(config: Any, longest: int) -> bool:
    """Whether nothing in a model's configuration speaks against trees."""
    windows = [getattr(config, name, None) for name in WINDOWS]
    if any(isinstance(window, int) and 0 < window < longest for window in windows):
        return False
    if not ATTENTION_KINDS.issuperset(getattr(config, "layer_types", None) or ()):
        return False
    return "local" not in getattr(config, "attention_layers", ())  # GPT-Neo's windows
