"""How many tokens make a block where `--batch-tokens auto` leaves it open.

On a CPU 2,048, in any case. On a GPU as many as fit into what is free once the model is there: a
small batch leaves a GPU waiting for its next kernel. A store that is there goes on with the number
that it was begun with, since bits are the same for equal batches only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import filesize

from repsim.errors import RepsimError
from repsim.options import AUTO, DEFAULT_BATCH_TOKENS
from repsim.storage.metadata import exists, read_attributes

if TYPE_CHECKING:
    from repsim.models import Model
    from repsim.plans import PlanTrie
    from repsim.storage.location import Location

LEAST, MOST = 1 << 10, 1 << 16  # tokens that a GPU is given
USABLE = 0.5  # share of the free memory that is planned with; pieces of memory do not fit closely
HOST_STATE_BYTES = 128 << 20  # of one node's states on their way to the disk, where several wait
# What configurations call the width between the two halves of an MLP; 4 units where none is there.
INNER_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "hidden_dim", "d_ff")

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class TokenCosts:
    """What the tokens of a block take of a device's memory.

    units: width of a state.
    inner: width inside an MLP.
    states: states of one token that are alive at a time.
    vocabulary: logits of a token; 0 where none are made.
    itemsize: bytes of a number of the model's dtype.
    leaves_device: whether every state goes to the host.
    """

    units: int
    inner: int
    states: int
    vocabulary: int
    itemsize: int
    leaves_device: bool

    @property
    def per_token(self) -> int:
        """Bytes of a device for one token.

        States on the path; in the layer that runs, its input, output and sum, queries, keys,
        values and what attention gives, and an MLP's two inner states and their product; and a
        norm in float32.
        """
        in_dtype = self.units * (self.states + 3 + 4) + 3 * self.inner
        return in_dtype * self.itemsize + 2 * self.units * 4

    @property
    def fixed(self) -> int:
        """Bytes for the logits of one piece, and for what makes log-probabilities of them."""
        from repsim.models.logits import LOGIT_TOKENS

        return LOGIT_TOKENS * self.vocabulary * (self.itemsize + 2 * 4)

    def of_block(self, tokens: int) -> int:
        """Bytes of a device for a block of so many tokens that runs as one batch."""
        return self.fixed + tokens * self.per_token


@dataclass(frozen=True)
class GpuRoom:
    """Bytes of a GPU: those that this process uses, and those that nothing does."""

    used: int
    free: int


def fitting_tokens(free: int, costs: TokenCosts) -> int:
    """How many tokens a block on a GPU has: a power of two from 1,024 to 65,536.

    Args:
        free: bytes of the device that nothing uses once the model is loaded.
        costs: what a token takes of them.

    Example:
        >>> llama = TokenCosts(4096, 11008, states=3, vocabulary=32000, itemsize=2,
        ...                    leaves_device=False)
        >>> fitting_tokens(120 << 30, llama), fitting_tokens(4 << 30, llama)
        (65536, 8192)
    """
    fits = (int(free * USABLE) - costs.fixed) // costs.per_token
    if costs.leaves_device:
        fits = min(fits, HOST_STATE_BYTES // (costs.units * costs.itemsize))
    return 1 << (max(LEAST, min(MOST, fits)).bit_length() - 1)


def costs_of(
    model: Model, trie: PlanTrie, *, logits: bool, leaves_device: bool, whole_paths: bool
) -> TokenCosts:
    """What a token takes of a device under the plans of a trie.

    Args:
        model: what runs.
        trie: the plans.
        logits: whether next tokens are scored.
        leaves_device: whether every state goes to the host.
        whole_paths: whether all states of a plan are held until it ends, and then side by side,
            for statistics.
    """
    config = model.module.config.get_text_config()
    widths = (getattr(config, name, None) for name in INNER_WIDTHS)
    return TokenCosts(
        units=model.units,
        inner=next((width for width in widths if isinstance(width, int)), 4 * model.units),
        states=count_alive(trie) + 2 * (trie.depth + 1) * whole_paths,
        vocabulary=int(config.vocab_size) * logits,
        itemsize=model.module.dtype.itemsize,
        leaves_device=leaves_device,
    )


def count_alive(trie: PlanTrie) -> int:
    """The most states that are alive at a time while a trie runs depth first.

    Example:
        >>> from repsim.plans import Plan, PlanTrie
        >>> count_alive(PlanTrie.build([Plan.from_steps([0, 1, 2])]))
        2
        >>> count_alive(PlanTrie.build([Plan.from_steps([0, 1, 2]), Plan.from_steps([1, 2])]))
        3
    """
    left = [len(children) for children in trie.children]
    alive, most = 0, 0
    for node in trie.depth_first():
        # A state is there while its node runs, and then as long as children are to come; the state
        # that a node runs on goes when its last child is done with it.
        most = max(most, alive + 1)
        alive += left[node] > 0
        if node:
            left[trie.parents[node]] -= 1
            alive -= left[trie.parents[node]] == 0
    return most


def choose_batch_tokens(
    asked: int | str, location: Location, model: Model, costs: Callable[[], TokenCosts]
) -> int:
    """About how many tokens make a block.

    Args:
        asked: a number, or `auto`.
        location: of the store; one that is there says the number that it was begun with.
        model: what runs.
        costs: what a token takes; asked where a GPU has to hold it.
    """
    # A number that is asked for rules, then the store's.
    tokens = _stored_batch_tokens(location) if asked == AUTO else int(asked)
    if (room := _gpu_room(model)) is None:
        return DEFAULT_BATCH_TOKENS if tokens is None else tokens

    # On a GPU it is said what is chosen, and what the peak will be.
    needed = costs()
    if tokens is None:
        tokens = fitting_tokens(room.free, needed)
        log.info(
            "batch tokens: %s (auto: %s are free on the GPU, a token takes %s)",
            f"{tokens:,}",
            filesize.decimal(room.free),
            filesize.decimal(needed.per_token),
        )
    block = needed.of_block(tokens)
    log.info(
        "memory: the GPU will hold about %s at most (%s now, %s for %s tokens)",
        filesize.decimal(room.used + block),
        filesize.decimal(room.used),
        filesize.decimal(block),
        f"{tokens:,}",
    )
    return tokens


def kept_batch_tokens(tokens: int, model: Model) -> int | None:
    """What a request says of the number; None, nothing, is 2,048 on a CPU."""
    return None if tokens == DEFAULT_BATCH_TOKENS and model.device.type == "cpu" else tokens


def _stored_batch_tokens(location: Location) -> int | None:
    """The number of the last request of a store; None where there is no store to ask."""
    try:
        requests: Any = read_attributes(location)["requests"] if exists(location) else None
        return int(requests[-1].get("batch_tokens", DEFAULT_BATCH_TOKENS)) if requests else None
    except (RepsimError, KeyError, TypeError, ValueError, AttributeError):
        return None  # whatever is wrong with it is told when the store is opened


def _gpu_room(model: Model) -> GpuRoom | None:
    """The room on the fullest GPU that a model is on; None where it is on none."""
    import torch

    devices = {tensor.device for tensor in model.module.parameters()} | {model.device}
    rooms = []
    for gpu in devices:
        if gpu.type == "cuda":
            # torch keeps what it has freed, and gives it to whoever asks next.
            used, kept = torch.cuda.memory_allocated(gpu), torch.cuda.memory_reserved(gpu)
            rooms.append(GpuRoom(used, torch.cuda.mem_get_info(gpu)[0] + kept - used))
    return min(rooms, key=lambda room: room.free, default=None)
