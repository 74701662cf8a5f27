"""A model, a trie and a block of batches give node states, by nnsight. The only module that imports
nnsight.

One trace a batch. As the model's forward reaches each layer, the trace reads what the layer was
called with (its mask, its positions, in whatever form the architecture uses) and lets the layer's
input pass it by unchanged; at the last layer it holds one call for every layer and stops. Then the
trie runs, depth first, on the states that entered the stack, each layer with its own calls. So a
layer keeps its own kind of call wherever a plan runs it (Gemma's sliding and full attention), and
no more states are alive than the path under way has branches. What layers hand on besides the state
is carried along (`carrying`), and before the first batch of each kind runs, the replayed baseline
is compared with the model's own forward (`proof`). Nothing here touches a disk.
"""

from __future__ import annotations

import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import nnsight
import numpy as np
import torch
from torch import Tensor, nn

from repsim.data.batching import Batch
from repsim.data.packing import Window, pack_prefix_trees, pack_rows
from repsim.errors import ModelError
from repsim.models.carrying import Observed, Passed, Slot, contents, find_slots
from repsim.models.forward import decoder_inputs, without_cache
from repsim.models.layer_call import (
    Absent,
    LayerCall,
    apply_layer,
    join_of,
    logits_of,
    prove_unproven_halves,
    state_of,
    with_state,
)
from repsim.models.model import Model
from repsim.models.module_state import ModuleState
from repsim.models.proof import ReplayProof, distance, excerpt, kind_of, parting, refusal, rounding
from repsim.models.sharing import SharedCopies
from repsim.plans import Plan, PlanTrie, Step

LOGIT_TOKENS = 512
PROBE_SHAPE = 2, 12  # samples and positions of random tokens on which a model is tried
WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")
ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
# How far trees may be from plain texts, as a share of how far they are where positions or mask are
# not heeded.
TREE_ERRORS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.2}

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class NodeState:
    """What a block's traces found at one node; padding is gone.

    node: index in the trie; 0 is the state that enters the stack.
    hidden: `[token, unit]`, the block's samples one after the other, on the model's device.
    logprob: `[token]`, log-probability in nats of each token's successor, float32; NaN at a
        sample's last token. None unless asked for and the node ends a plan.
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
    state: what the forward left in the model's modules; None where it left them as they were.
    """

    calls: list[LayerCall]
    tokens: Tensor
    following: Tensor
    state: ModuleState | None


class _StackLeft(Exception):
    """Ends a forward behind the last layer."""


class _Frame(nnsight.NNsight):  # type: ignore[misc]
    """nnsight's view of a model, whose inputs stay where they are: its first parameter may be
    offloaded.
    """

    @property
    def device(self) -> None:
        return None


class Tracer:
    """Runs tries of plans on one model, or rather on module trees of its own that share the model's
    parameters.

    proof: what comparing the replay with the model's own forward has found so far.
    """

    def __init__(self, model: Model) -> None:
        self._model = model = model.at_rest()
        self.proof = ReplayProof()
        self._state = ModuleState(model.module)
        # What a layer returned, for its form: a tensor, or a tuple that may carry what later layers
        # read (T5's biases).
        self._form: Any = None
        self._no_cache = without_cache(model.module)

    @torch.inference_mode()
    def run(
        self,
        trie: PlanTrie,
        batches: Sequence[Batch],
        consume: Callable[[NodeState], None],
        *,
        nodes: Collection[int] | None = None,
        logprobs: bool = False,
        check: bool = True,
    ) -> None:
        """Hands node states of one block to `consume`, parents before children.

        Args:
            trie: the plans' nodes.
            batches: the block's token ids and masks, padded on the right.
            consume: takes each node's state; a state it does not keep is freed at once.
            nodes: those wanted, all by default; what leads to them is computed and not handed out.
            logprobs: whether to score the next token at the nodes that end a plan.
            check: whether to prove the replay for each kind of batch that comes for the first time.
        """
        with self._unchanged():
            self._check_steps(trie)
            applications = itertools.chain.from_iterable(filter(None, trie.steps))
            prove_unproven_halves(self._model.stack, applications, self._probe_calls)
            for batch in batches if check else ():
                if not self.proof.covers(batch):
                    self.prove(batch)
            self._run(
                trie, batches, consume, range(len(trie)) if nodes is None else nodes, logprobs
            )

    def _run(
        self,
        trie: PlanTrie,
        batches: Sequence[Batch],
        consume: Callable[[NodeState], None],
        wanted: Collection[int],
        logprobs: bool = False,
    ) -> None:
        """`run`, without proof."""
        runs = [self._calls(batch) for batch in batches]
        scored = frozenset(trie.ends) if logprobs else frozenset()
        for node, states in self._depth_first(trie, runs, trie.with_ancestors(wanted)):
            if node not in wanted:
                continue
            pieces = [
                _without_padding(state, run.tokens) for state, run in zip(states, runs, strict=True)
            ]
            logprob = None
            if node in scored:
                pairs = zip(pieces, runs, strict=True)
                logprob = torch.cat([self._logprob(piece, run.following) for piece, run in pairs])
            consume(NodeState(node, pieces[0] if len(pieces) == 1 else torch.cat(pieces), logprob))

    def _frame(self) -> tuple[Any, list[Any]]:
        """The model without its layers as nnsight sees it, and the places of the layers in it.

        A new one for each forward, so that nothing which a forward leaves in it reaches the next.
        """
        copies, stack = SharedCopies(), self._model.stack
        copies.use(stack.layers, nn.ModuleList(map(Absent, stack.layers)))
        with warnings.catch_warnings():
            # Submodules named `output` are not asked for; that nnsight renames them is no news.
            warnings.filterwarnings(
                "ignore", message="Module .* has a submodule named", category=UserWarning
            )
            envoy = _Frame(copies.of(self._model.module))
        places = envoy
        for part in stack.path.split("."):
            places = getattr(places, part)
        return envoy, [places[layer] for layer in range(len(stack))]

    def _calls(self, batch: Batch) -> _Run:
        """What the model's forward calls its layers with; none of them runs, but for the first
        one's form.
        """
        self._state.restore()
        envoy, places = self._frame()
        inputs, calls = self._inputs(batch), []
        mask = torch.from_numpy(batch.mask).to(self._model.device)
        first = self._model.stack.layers[0]
        with envoy.trace(**inputs) as tracer:
            for place in places:
                args, kwargs = place.inputs
                calls.append(LayerCall(args, kwargs))
                self._check(calls, inputs["input_ids"])
                if len(calls) == 1 and not isinstance(self._form, Tensor):
                    self._form = first(*args, **kwargs)
                if len(calls) < len(places):
                    place.skip(with_state(self._form, calls[-1].state))
            tracer.stop()
        left = None if self._state.is_current else ModuleState(self._model.module)
        if left is not None:
            self._state.restore()
        following = next_tokens(inputs["input_ids"], mask)
        return _Run(calls, mask.flatten().nonzero()[:, 0], following, left)

    def _probe_calls(self) -> list[LayerCall]:
        """Calls on a few random tokens; the layers are left as a forward on these takes them."""
        run = self._calls(self._probe(0))
        if run.state is not None:
            run.state.restore()
        return run.calls

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Leaves the model's modules as they were found, whatever its forward or its layers do to
        them.
        """
        try:
            yield
        finally:
            if not self._state.is_current:
                self._state.restore()

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model is called with."""
        token_ids = torch.from_numpy(batch.token_ids).to(self._model.device)
        decoded = decoder_inputs(
            self._model.module, token_ids, torch.from_numpy(batch.mask).to(self._model.device)
        )
        return {"input_ids": token_ids, **decoded, **self._masked(batch), **self._no_cache}

    def _masked(self, batch: Batch) -> dict[str, Tensor]:
        """What tells the model which tokens see which: padding, or for trees everything."""
        device = self._model.device
        if batch.attention_mask is None or batch.position_ids is None:
            return {"attention_mask": torch.from_numpy(batch.mask).to(device).long()}
        sees = torch.from_numpy(batch.attention_mask).to(device)[:, None]
        dtype = self._model.module.dtype
        hidden = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(
            ~sees, torch.finfo(dtype).min
        )
        return {
            "attention_mask": hidden,
            "position_ids": torch.from_numpy(batch.position_ids).to(device),
        }

    def _check(self, calls: list[LayerCall], token_ids: Tensor) -> None:
        """Replaying layers is the model only if each takes one state a token and nothing else
        changes the states.
        """
        root, state, last = calls[0].state, calls[-1].state, len(calls) - 1
        if state.shape != (expected := (*token_ids.shape, self._model.units)):
            raise ModelError(
                f"{self._model.name}: layer {last} takes states of shape {tuple(state.shape)}, not {tuple(expected)} "
                "(sample, position, unit); models that fold, pad or multiply positions cannot be traced"
            )
        # Each layer passed its input by.
        if state is not root and not torch.equal(state.to(root.device), root):
            raise ModelError(
                f"{self._model.name}: the model itself changes the states between layers {last - 1} and {last}, "
                "so its layers alone are not the model; it cannot be traced"
            )

    def _depth_first(
        self, trie: PlanTrie, runs: Sequence[_Run], nodes: Collection[int]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Node and its states, `[sample, position, unit]` per batch; let go once the last child has
        begun.

        Args:
            trie: the plans' nodes.
            runs: one per batch.
            nodes: those to visit, ancestors included.
        """
        alive = {0: [Passed.into(run.calls[0], self._slots) for run in runs]}
        left = [sum(child in nodes for child in children) for children in trie.children]
        switches = any(run.state is not None for run in runs)
        for node in trie.depth_first():
            if node not in nodes:
                continue
            if node:
                parent = trie.parents[node]
                left[parent] -= 1
                entering = alive[parent] if left[parent] else alive.pop(parent)
                alive[node] = []
                for run, passed in zip(runs, entering, strict=True):
                    # A model that changes with the batch is this batch's while it runs.
                    if switches:
                        (run.state or self._state).restore()
                        self._model.stack.halves.clear()  # copies of layers in another batch's mode
                    alive[node].append(self._step(trie.steps[node], run.calls, passed))
                del entering, passed
            leaving = alive[node] if left[node] else alive.pop(node)
            yield node, [passed.state for passed in leaving]
            del leaving

    def _step(self, step: Step | None, calls: list[LayerCall], passed: Passed) -> Passed:
        assert step is not None, "only the root has no step"
        join = join_of(step)
        join.begin(passed.state)
        for application in step:
            call = passed.onto(calls[application.layer], self._slots)
            try:
                output = apply_layer(self._model.stack, application, call)
            except Exception as problem:
                if None not in passed.carried:
                    raise
                raise ModelError(
                    f"{self._model.name}: layer {application.text} takes {self._handed_on} from the layer before it, "
                    f"and in this plan no layer before it has made one ({problem}); keep the layer that makes it"
                ) from problem
            joined = join.add(state_of(output))
        assert joined is not None, "the last member completes the step"
        return Passed(joined, Passed.from_output(output, self._slots).carried)

    @property
    def _handed_on(self) -> str:
        return ", ".join(slot.name for slot in self._slots)

    def _logprob(self, hidden: Tensor, following: Tensor) -> Tensor:
        (tokens,) = (following >= 0).nonzero(as_tuple=True)
        found = torch.full(following.shape, torch.nan, device=hidden.device)
        found[tokens.to(hidden.device)] = self.predict(hidden, tokens, following[tokens])[0].to(
            hidden.device
        )
        return found

    @torch.inference_mode()
    def predict(self, hidden: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How likely the model finds what follows some tokens; each token's logits are computed
        once.

        Args:
            hidden: `[token, unit]`, states that leave the stack.
            tokens: `[target]`, indices of the predicting tokens; one may predict several targets.
            targets: `[target]`, the ids to predict.
        Returns:
            `[target]`, log-probability in nats, float32; and whether it is the likeliest of all
            ids.
        """
        with self._unchanged():
            if not self.proof.logits:
                self._prove_logits()
            return self._predict(hidden, tokens, targets)

    def _predict(self, hidden: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        needed, row = torch.unique(tokens.to(hidden.device), return_inverse=True)
        logprob = torch.empty(len(targets), device=hidden.device)
        likeliest = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        for first in range(0, len(needed), LOGIT_TOKENS):
            piece = hidden[needed[first : first + LOGIT_TOKENS]]
            logits = logits_of(self._model.module, self._model.stack, piece, form=self._form)
            (here,) = ((row >= first) & (row < first + LOGIT_TOKENS)).nonzero(as_tuple=True)
            at, wanted = (
                (row[here] - first).to(logits.device),
                targets.to(logits.device)[here.to(logits.device)],
            )
            logprob[here] = torch.log_softmax(logits, -1, dtype=torch.float32)[at, wanted].to(
                logprob.device
            )
            likeliest[here] = (logits.max(-1).indices[at] == wanted).to(likeliest.device)
        return logprob, likeliest

    def shares_contexts(self, longest: int) -> bool:
        """Whether trees of texts give the states that the texts give one by one.

        Tried on a small tree: it has to come much closer to the plain texts than what comes out
        where its positions or its mask are not heeded. Attention within windows is told of trees
        where every text fits into one; layers that are no attention, and windows that count places
        in the row, cannot be told.

        Args:
            longest: tokens of the longest text.
        """
        config = self._model.module.config.get_text_config()
        spans = [getattr(config, name, None) for name in WINDOWS]
        if any(isinstance(span, int) and 0 < span < longest for span in spans):
            return False
        kinds = getattr(config, "layer_types", None) or ()
        # GPT-Neo.
        if not ATTENTION_KINDS.issuperset(kinds) or "local" in getattr(
            config, "attention_layers", ()
        ):
            return False
        ids = (
            np.random.default_rng(0).integers(0, min(1000, config.vocab_size), 44).astype(np.int32)
        )
        parts = ids[6:26], ids[26:36], ids[36:]
        windows = [Window(np.concatenate([ids[:6], part]), part) for part in parts]
        plain, tree = (
            pack(windows, 0, overhead=1, waste=1) for pack in (pack_rows, pack_prefix_trees)
        )
        (batch,) = tree.batches
        length = batch.token_ids.shape[1]
        unplaced = replace(batch, position_ids=np.arange(length)[None])
        unmasked = replace(batch, attention_mask=np.tril(np.ones((1, length, length), bool)))
        try:
            wanted = self._last(plain.batches)[plain.token]
            errors = [
                (self._last([one])[tree.token] - wanted).norm().item()
                for one in (batch, unplaced, unmasked)
            ]
        except Exception as problem:  # models refuse what they cannot take in whatever way
            log.debug("%s takes no trees: %s", self._model.name, problem)
            return False
        return errors[0] < TREE_ERRORS.get(self._model.module.dtype, 0.2) * min(errors[1:])

    def _last(self, batches: Sequence[Batch]) -> Tensor:
        """States that leave the whole stack, `[token, unit]`, float32."""
        found: list[Tensor] = []
        trie = self._baseline
        with self._unchanged():
            self._run(trie, batches, lambda state: found.append(state.hidden.float()), trie.ends)
        return found[0]

    # The replay and the model's own forward

    @torch.inference_mode()
    def prove(self, batch: Batch) -> None:
        """Compares the replayed baseline with the model's own forward on a part of a batch.

        Raises:
            RepsimError: they part by more than rounding; names the layer.
        """
        small, dtype = excerpt(batch), self._model.module.dtype
        replayed: list[Tensor] = []
        trie = self._baseline
        with self._unchanged():
            self._check_steps(trie)
            self._run(
                trie,
                [small],
                lambda state: replayed.append(state.hidden.clone()),
                range(1, len(trie)),
            )
            own = self._own_states(small)
            errors = [distance(*pair) for pair in zip(replayed, own, strict=True)]
            layer = parting(errors, dtype)
            if layer is not None:  # a model that differs from itself as much is not to blame
                again = self._own_states(small)
                layer = parting(errors, dtype, max(map(distance, again, own)))
        if layer is not None:
            raise refusal(self._model.name, layer, errors[layer], kind_of(batch), dtype)
        self.proof = self.proof.adding(batch, max(errors))

    def _prove_logits(self) -> None:
        """Compares what is made of states that leave the stack with the model's own logits.

        Raises:
            RepsimError: they differ by more than rounding.
        """
        observed, output = self._forward(self._probe(0), to_the_end=True)
        if self._form is None:
            self._form = observed[0].output
        states = state_of(observed[-1].output).flatten(0, 1)
        found = logits_of(self._model.module, self._model.stack, states, form=self._form)
        error = distance(found, output.logits.flatten(0, 1))
        allowed = rounding(self._model.module.dtype, self._model.layers)
        if not error <= allowed:
            raise ModelError(
                f"{self._model.name}: logits made of the state that leaves layer {self._model.layers - 1} part from "
                f"the model's own by {error:.1g} of their norm (rounding allows {allowed:.1g}): the model uses more "
                "than that state, so log-probabilities would be wrong; capture without --logprobs"
            )
        self.proof = self.proof.with_logits(error)

    @functools.cached_property
    def _slots(self) -> tuple[Slot, ...]:
        """What the layers hand on besides the state.

        Nothing, where they return the state alone and are given nothing that they could change.
        """
        calls = self._calls(self._probe(0)).calls
        if isinstance(self._form, Tensor) and not any(map(contents, calls)):
            return ()
        return find_slots(
            self._model.name,
            self._model.stack.layers,
            self._forward(self._probe(0))[0],
            lambda: self._forward(self._probe(1))[0],
        )

    def _check_steps(self, trie: PlanTrie) -> None:
        """What layers hand on besides the state cannot be joined, and half a layer may make
        another one.
        """
        for step in trie.steps if self._slots else ():
            if step is not None and any(member.sublayer for member in step):
                raise ModelError(
                    f"{self._model.name}: step {step.text} runs half of a layer, which hands on {self._handed_on} "
                    "besides the state, so the other half may still act on later layers; name whole layers"
                )
            if step is not None and len(step) > 1:
                raise ModelError(
                    f"{self._model.name}: step {step.text} joins the outputs of layers, and layer "
                    f"{step.members[0].layer} hands on {self._handed_on} besides the state, which "
                    "cannot be joined; take plans without parallel steps"
                )

    @functools.cached_property
    def _baseline(self) -> PlanTrie:
        return PlanTrie.build([Plan.from_steps(range(self._model.layers))])

    def _probe(self, seed: int) -> Batch:
        """Random tokens without padding."""
        most = min(1000, self._model.module.config.get_text_config().vocab_size)
        ids = np.random.default_rng(seed).integers(most // 10, most, PROBE_SHAPE)
        return Batch(ids, np.ones(PROBE_SHAPE, bool))

    def _own_states(self, batch: Batch) -> list[Tensor]:
        """What leaves each layer in the model's own forward, `[layer][token, unit]`."""
        tokens = torch.from_numpy(batch.mask).to(self._model.device).flatten().nonzero()[:, 0]
        return [_without_padding(state_of(seen.output), tokens) for seen in self._forward(batch)[0]]

    def _forward(self, batch: Batch, *, to_the_end: bool = False) -> tuple[list[Observed], Any]:
        """Each layer in the model's own forward, in order, and what the model returns where it runs
        to the end.
        """
        layers = list(self._model.stack.layers)[: self._model.layers]
        held: dict[int, dict[str, tuple[int, ...]]] = {}
        observed: dict[int, Observed] = {}

        def enter(layer: int, args: Any, kwargs: Any) -> None:
            held[layer] = contents(LayerCall(args, kwargs))

        def leave(layer: int, args: Any, kwargs: Any, output: Any) -> None:
            call = LayerCall(args, kwargs)
            now = contents(call)
            changed = tuple(name for name, before in held[layer].items() if before != now[name])
            observed[layer] = Observed(call, output, changed)
            if layer == len(layers) - 1 and not to_the_end:
                raise _StackLeft

        handles = []
        for number, layer in enumerate(layers):
            before = lambda _, args, kwargs, n=number: enter(n, args, kwargs)
            after = lambda _, args, kwargs, output, n=number: leave(n, args, kwargs, output)
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.register_forward_hook(after, with_kwargs=True))
        output = None
        try:
            with self._unchanged():
                output = self._model.module(**self._inputs(batch))
        except _StackLeft:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [observed[layer] for layer in sorted(observed)], output


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
