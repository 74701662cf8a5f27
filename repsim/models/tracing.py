"""A model, a trie and a block of batches give node states, by nnsight. The only module that imports nnsight.

One trace a batch. As the model's forward reaches each layer, the trace reads what the layer was called with (its
mask, its positions, in whatever form the architecture uses) and lets the layer's input pass it by unchanged; at the
last layer it holds one call for every layer and stops. Then the trie runs, depth first, on the states that entered the
stack, each layer with its own calls. So a layer keeps its own kind of call wherever a plan runs it (Gemma's sliding and
full attention), and no more states are alive than the path under way has branches. Nothing here touches a disk.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nnsight
import numpy as np
import torch
from torch import Tensor

from repsim.corpus import Batch
from repsim.models.layer_call import (
    Join,
    LayerCall,
    apply_layer,
    logits_of,
    prove_unproven_halves,
    state_of,
    with_state,
)
from repsim.models.model import Model
from repsim.packing import Window, pack_rows, pack_trees
from repsim.plans import Plan, PlanTrie, Step
from repsim.schema import RepsimError

LOGIT_TOKENS = 512
PROOF_TOKENS = 16  # of a text that shows what a layer's halves are
WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")
ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
# How far trees may be from plain texts, as a share of how far they are where positions or mask are not heeded.
TREE_ERRORS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.2}

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class NodeState:
    """What a block's traces found at one node; padding is gone.

    node: index in the trie; 0 is the state that enters the stack.
    hidden: `[token, unit]`, the block's samples one after the other, on the model's device.
    logprob: `[token]`, log-probability in nats of each token's successor, float32; NaN at a sample's last token. None
        unless asked for and the node ends a plan.
    """

    node: int
    hidden: Tensor
    logprob: Tensor | None


@dataclass(frozen=True)
class _Run:
    """What one batch runs with.

    calls: `[layer]`.
    tokens: indices of the real tokens among the flattened positions, `[token]`.
    following: the id that follows each token in its sample, `[token]`; -1 at a sample's last one.
    """

    calls: list[LayerCall]
    tokens: Tensor
    following: Tensor


class Tracer:
    """Runs tries of plans on one model; makes the nnsight envoys once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        with warnings.catch_warnings():
            # BERT's submodules named `output` are reached through their layer; that nnsight renames them is no news.
            warnings.filterwarnings("ignore", message="Module .* has a submodule named", category=UserWarning)
            self._envoy = nnsight.NNsight(model.module)
        layers = self._envoy
        for part in model.stack.path.split("."):
            layers = getattr(layers, part)
        self._envoys = [layers[i] for i in range(model.layers)]
        accepted = inspect.signature(type(model.module).forward).parameters
        # What a layer returned, for its form: a tensor, or a tuple that may carry what later layers read (T5's biases).
        self._form: Any = None
        takes_use_cache = "use_cache" in accepted or model.module.can_generate()  # GraniteMoe hides it in **kwargs
        self._no_cache = {"use_cache": False} if takes_use_cache else {}

    @torch.inference_mode()
    def run(
        self,
        trie: PlanTrie,
        batches: Sequence[Batch],
        consume: Callable[[NodeState], None],
        *,
        nodes: Collection[int] | None = None,
        logprobs: bool = False,
    ) -> None:
        """Hands node states of one block to `consume`, parents before children.

        Args:
            trie: the plans' nodes.
            batches: the block's token ids and masks, padded on the right.
            consume: takes each node's state; a state it does not keep is freed at once.
            nodes: those wanted, all by default; what leads to them is computed and not handed out.
            logprobs: whether to score the next token at the nodes that end a plan.
        """
        applications = itertools.chain.from_iterable(filter(None, trie.steps))
        prove_unproven_halves(self._model.stack, applications, lambda: self._calls(_few_tokens(batches)).calls)
        runs = [self._calls(batch) for batch in batches]
        wanted = range(len(trie)) if nodes is None else nodes
        scored = frozenset(trie.ends) if logprobs else frozenset()
        for node, states in self._depth_first(trie, [run.calls for run in runs], trie.with_ancestors(wanted)):
            if node not in wanted:
                continue
            pieces = [_without_padding(state, run.tokens) for state, run in zip(states, runs, strict=True)]
            logprob = None
            if node in scored:
                pairs = zip(pieces, runs, strict=True)
                logprob = torch.cat([self._logprob(piece, run.following) for piece, run in pairs])
            consume(NodeState(node, pieces[0] if len(pieces) == 1 else torch.cat(pieces), logprob))

    def _calls(self, batch: Batch) -> _Run:
        """What the model's forward calls its layers with; none of them runs, but for the first one's form."""
        token_ids = torch.from_numpy(batch.token_ids).to(self._model.device)
        mask = torch.from_numpy(batch.mask).to(self._model.device)
        calls: list[LayerCall] = []
        with self._envoy.trace(input_ids=token_ids, **self._masked(batch), **self._no_cache) as tracer:
            for layer in self._envoys:
                args, kwargs = layer.inputs
                calls.append(LayerCall(args, kwargs))
                self._check(calls, token_ids)
                if len(calls) == 1 and not isinstance(self._form, Tensor):
                    self._form = layer(*args, **kwargs)
                if len(calls) < len(self._model.stack):
                    layer.skip(with_state(self._form, calls[-1].state))
            tracer.stop()
        return _Run(calls, mask.flatten().nonzero()[:, 0], next_tokens(token_ids, mask))

    def _masked(self, batch: Batch) -> dict[str, Tensor]:
        """What tells the model which tokens see which: padding, or for trees everything."""
        device = self._model.device
        if batch.sees is None or batch.depth is None:
            return {"attention_mask": torch.from_numpy(batch.mask).to(device).long()}
        sees = torch.from_numpy(batch.sees).to(device)[:, None]
        dtype = self._model.module.dtype
        hidden = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
        return {"attention_mask": hidden, "position_ids": torch.from_numpy(batch.depth).to(device)}

    def _check(self, calls: list[LayerCall], token_ids: Tensor) -> None:
        """Replaying layers is the model only if each takes one state a token and nothing else changes the states."""
        root, state, last = calls[0].state, calls[-1].state, len(calls) - 1
        if state.shape != (expected := (*token_ids.shape, self._model.units)):
            raise RepsimError(
                f"{self._model.name}: layer {last} takes states of shape {tuple(state.shape)}, not {tuple(expected)} "
                "(sample, position, unit); models that fold, pad or multiply positions cannot be traced"
            )
        if state is not root and not torch.equal(state.to(root.device), root):  # each layer passed its input by
            raise RepsimError(
                f"{self._model.name}: the model itself changes the states between layers {last - 1} and {last}, "
                "so its layers alone are not the model; it cannot be traced"
            )

    def _depth_first(
        self, trie: PlanTrie, calls: list[list[LayerCall]], nodes: Collection[int]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Node and its states, `[sample, position, unit]` a batch; let go once the last child has begun.

        Args:
            trie: the plans' nodes.
            calls: `[batch][layer]`.
            nodes: those to visit, ancestors included.
        """
        alive = {0: [these[0].state for these in calls]}
        left = [sum(child in nodes for child in children) for children in trie.children]
        for node in trie.depth_first():
            if node not in nodes:
                continue
            if node:
                parent = trie.parents[node]
                left[parent] -= 1
                states = alive[parent] if left[parent] else alive.pop(parent)
                alive[node] = [self._step(trie.steps[node], *pair) for pair in zip(calls, states, strict=True)]
                del states
            states = alive[node] if left[node] else alive.pop(node)
            yield node, states
            del states

    def _step(self, step: Step | None, calls: list[LayerCall], state: Tensor) -> Tensor:
        assert step is not None, "only the root has no step"
        join = Join(step)
        for position, application in enumerate(step):
            output = apply_layer(self._model.stack, application, calls[application.layer].on(state))
            joined = join.add(position, state_of(output))
        assert joined is not None, "the last member completes the step"
        return joined

    def _logprob(self, hidden: Tensor, following: Tensor) -> Tensor:
        (tokens,) = (following >= 0).nonzero(as_tuple=True)
        found = torch.full(following.shape, torch.nan, device=hidden.device)
        found[tokens.to(hidden.device)] = self.predict(hidden, tokens, following[tokens])[0].to(hidden.device)
        return found

    @torch.inference_mode()
    def predict(self, hidden: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How likely the model finds what follows some tokens; each token's logits are computed once.

        Args:
            hidden: `[token, unit]`, states that leave the stack.
            tokens: `[target]`, indices of the predicting tokens; one may predict several targets.
            targets: `[target]`, the ids to predict.
        Returns:
            `[target]`, log-probability in nats, float32; and whether it is the likeliest of all ids.
        """
        needed, row = torch.unique(tokens.to(hidden.device), return_inverse=True)
        logprob = torch.empty(len(targets), device=hidden.device)
        likeliest = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        for first in range(0, len(needed), LOGIT_TOKENS):
            piece = hidden[needed[first : first + LOGIT_TOKENS]]
            logits = logits_of(self._model.module, self._model.stack, piece, form=self._form)
            (here,) = ((row >= first) & (row < first + LOGIT_TOKENS)).nonzero(as_tuple=True)
            at, wanted = (row[here] - first).to(logits.device), targets.to(logits.device)[here.to(logits.device)]
            logprob[here] = torch.log_softmax(logits, -1, dtype=torch.float32)[at, wanted].to(logprob.device)
            likeliest[here] = (logits.max(-1).indices[at] == wanted).to(likeliest.device)
        return logprob, likeliest

    def shares_contexts(self, longest: int) -> bool:
        """Whether trees of texts give the states that the texts give one by one.

        Tried on a small tree: it has to come much closer to the plain texts than what comes out where its positions
        or its mask are not heeded. Attention within windows is told of trees where every text fits into one; layers
        that are no attention, and windows that count places in the row, cannot be told.

        Args:
            longest: tokens of the longest text.
        """
        config = self._model.module.config.get_text_config()
        spans = [getattr(config, name, None) for name in WINDOWS]
        if any(isinstance(span, int) and 0 < span < longest for span in spans):
            return False
        kinds = getattr(config, "layer_types", None) or ()
        if not ATTENTION_KINDS.issuperset(kinds) or "local" in getattr(config, "attention_layers", ()):  # GPT-Neo
            return False
        ids = np.random.default_rng(0).integers(0, min(1000, config.vocab_size), 44).astype(np.int32)
        parts = ids[6:26], ids[26:36], ids[36:]
        windows = [Window(np.concatenate([ids[:6], part]), part) for part in parts]
        plain, tree = (pack(windows, 0, overhead=1, waste=1) for pack in (pack_rows, pack_trees))
        (batch,) = tree.batches
        length = batch.token_ids.shape[1]
        unplaced = replace(batch, depth=np.arange(length)[None])
        unmasked = replace(batch, sees=np.tril(np.ones((1, length, length), bool)))
        try:
            wanted = self._last(plain.batches)[plain.token]
            errors = [(self._last([one])[tree.token] - wanted).norm().item() for one in (batch, unplaced, unmasked)]
        except Exception as problem:  # models refuse what they cannot take in whatever way
            log.debug("%s takes no trees: %s", self._model.name, problem)
            return False
        return errors[0] < TREE_ERRORS.get(self._model.module.dtype, 0.2) * min(errors[1:])

    def _last(self, batches: Sequence[Batch]) -> Tensor:
        """States that leave the whole stack, `[token, unit]`, float32."""
        found: list[Tensor] = []
        trie = PlanTrie.build([Plan.from_steps(range(self._model.layers))])
        self.run(trie, batches, lambda state: found.append(state.hidden.float()), nodes=trie.ends)
        return found[0]


def _few_tokens(batches: Sequence[Batch]) -> Batch:
    """The longest sample's first tokens."""
    batch = max(batches, key=lambda batch: batch.mask.sum(1).max())
    row = batch.mask.sum(1).argmax()
    real = slice(batch.mask[row, :PROOF_TOKENS].sum())
    return Batch(
        batch.token_ids[[row], real],
        batch.mask[[row], real],
        None if batch.sees is None else batch.sees[[row], real, real],
        None if batch.depth is None else batch.depth[[row], real],
    )


def _without_padding(state: Tensor, tokens: Tensor) -> Tensor:
    """`[sample, position, unit]` → `[token, unit]`; a view where nothing is padding."""
    flat = state.flatten(0, 1)
    tokens = tokens.to(flat.device)
    return flat if len(tokens) == len(flat) else flat.index_select(0, tokens)


def next_tokens(token_ids: Tensor, mask: Tensor) -> Tensor:
    """The id that follows each real token in its sample, `[token]`; -1 at a sample's last token."""
    following = torch.full_like(token_ids, -1)
    following[:, :-1] = torch.where(mask[:, 1:], token_ids[:, 1:], -1)
    return following[mask]
