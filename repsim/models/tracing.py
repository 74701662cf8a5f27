"""Runs a trie of plans on a block of batches and gives the state at each node.

The only module that imports nnsight. There is one trace per batch. As the model's forward reaches
each layer, the trace reads what the layer was called with (its mask, its positions, in whatever
form the architecture uses) and lets the layer's input pass it by unchanged; at the last layer it
has one call for every layer and stops. Then the trie runs, depth first, on the states that entered
the stack, each layer with its own calls. So a layer keeps its own kind of call wherever a plan runs
it (Gemma's sliding and full attention), and no more states are alive than the current path has
branches. What layers hand on besides the state follows the path (`side_outputs`), and before the
first batch of each kind runs, the replayed baseline is compared with the model's own forward
(`proof`). Nothing here touches a disk.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from torch import Tensor, nn

from repsim.data.batching import Batch
from repsim.errors import ModelError
from repsim.models.forward import batch_inputs, check_layer_calls, probe_batch
from repsim.models.layer_call import (
    AbsentLayer,
    LayerCall,
    apply_layer,
    join_of,
    prove_new_sublayers,
    state_of,
    with_state,
)
from repsim.models.logits import TargetPiece, cut_targets, logits_of, next_tokens, score_targets
from repsim.models.model import Model
from repsim.models.module_state import ModuleState
from repsim.models.observation import observe_forward
from repsim.models.proof import (
    ReplayProof,
    batch_kind,
    excerpt,
    first_divergence,
    relative_distance,
    replay_error,
    replay_rounding,
)
from repsim.models.sharing import SharedCopies
from repsim.models.side_outputs import (
    Handoff,
    ObservedCall,
    SideOutput,
    check_steps,
    container_contents,
    find_side_outputs,
)
from repsim.plans import Plan, PlanTrie, Step


@dataclass(frozen=True)
class NodeState:
    """The state of a block at one node of the trie; padding is gone.

    node: index in the trie; 0 is the state that enters the stack.
    hidden: `[token, unit]`, the block's samples one after the other, on the model's device.
    logprob: `[token]`, log-probability in nats of each token's successor, float32; NaN at a
        sample's last token. None unless log-probabilities were requested and the node ends a plan.
    """

    node: int
    hidden: Tensor
    logprob: Tensor | None


@dataclass(frozen=True)
class _BatchRun:
    """What one batch runs with.

    calls: `[layer]`.
    tokens: indices of the real tokens among the flattened positions, `[token]`.
    following: the id that follows each token in its sample, `[token]`; -1 at a sample's last one;
        in the host's memory.
    module_state: what the forward left in the model's modules; None where it left them as they
        were.
    """

    calls: list[LayerCall]
    tokens: Tensor
    following: Tensor
    module_state: ModuleState | None

    @functools.cached_property
    def predicting(self) -> Tensor:
        """The tokens that another one follows, `[target]`."""
        return (self.following >= 0).nonzero()[:, 0]

    @functools.cached_property
    def predicted(self) -> list[TargetPiece]:
        """What follows them."""
        targets = self.following[self.predicting]
        return cut_targets(self.predicting, targets, self.tokens.device)


class _Envoy(nnsight.NNsight):  # type: ignore[misc]
    """nnsight's view of a model that leaves inputs where they are.

    nnsight would move them to the device of the first parameter, which may be offloaded.
    """

    @property
    def device(self) -> None:
        return None


class Tracer:
    """Runs tries of plans on one model.

    What runs is a private copy that shares the model's parameters, so nothing that a run does
    reaches the model that was given.

    model: the private copy.
    proof: how far the replay was found to be from the model's own forward so far.

    Example:
        >>> import numpy as np
        >>> import transformers
        >>> from repsim.models.stack import find_stack
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> config = transformers.LlamaConfig(num_hidden_layers=3, vocab_size=32, **sizes)
        >>> module = transformers.LlamaForCausalLM(config).eval()
        >>> model = Model(module, None, "tiny", None, find_stack(module))
        >>> batch = Batch(np.array([[5, 6, 7, 8]]), np.ones((1, 4), bool))
        >>> trie = PlanTrie.build([Plan.from_steps([0, 1, 2]), Plan.from_steps([0, 2])])
        >>> states = []
        >>> Tracer(model).run(trie, [batch], states.append)
        >>> [(state.node, tuple(state.hidden.shape)) for state in states]
        [(0, (4, 8)), (1, (4, 8)), (2, (4, 8)), (3, (4, 8)), (4, (4, 8))]
    """

    def __init__(self, model: Model) -> None:
        """A tracer of a model, which is left as it is."""
        self.model = model = model.private_copy()
        self.proof = ReplayProof()
        self._module_state = ModuleState(model.module)
        # What a layer returned, for its form: a tensor, or a tuple that may hold what later layers
        # read (T5's biases).
        self._form: Any = None

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
        """Hands the node states of one block to `consume`, parents before children.

        Args:
            trie: the plans' nodes.
            batches: the block's token ids and masks, padded on the right.
            consume: takes each node's state; a state it does not keep is freed at once.
            nodes: those wanted, all by default; what leads to them is computed and not handed out.
            logprobs: whether to score the next token at the nodes that end a plan.
            check: whether to prove the replay for each kind of batch that comes for the first time.
        Raises:
            ModelError: the model cannot run these plans, or its replayed layers are not the model.
        """
        with self._restore_afterwards():
            # Nothing runs before what runs is known to be right: the steps, their sublayers, and
            # the replay of batches of these kinds.
            check_steps(self.model.name, trie.steps, self._side_outputs)
            applications = itertools.chain.from_iterable(filter(None, trie.steps))
            prove_new_sublayers(self.model.stack, applications, self._record_probe_calls)
            for batch in batches if check else ():
                if not self.proof.covers(batch):
                    self.prove(batch)
            wanted = range(len(trie)) if nodes is None else nodes
            self._run(trie, batches, consume, wanted, logprobs)

    def _run(
        self,
        trie: PlanTrie,
        batches: Sequence[Batch],
        consume: Callable[[NodeState], None],
        wanted: Collection[int],
        logprobs: bool = False,
    ) -> None:
        """`run`, without proof."""
        runs = [self._record_calls(batch) for batch in batches]
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
                logprob = torch.cat([self._logprob(piece, run) for piece, run in pairs])
            consume(NodeState(node, pieces[0] if len(pieces) == 1 else torch.cat(pieces), logprob))

    def predict(self, hidden: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How likely the model finds what follows some tokens.

        Args:
            hidden: `[token, unit]`, states that leave the stack.
            tokens: `[target]`, indices of the predicting tokens; one may predict several targets.
            targets: `[target]`, the ids to predict.
        Returns:
            `[target]`, log-probability in nats, float32; and whether it is the likeliest of all
            ids.
        Raises:
            ModelError: as `score`.
        """
        return self.score(hidden, cut_targets(tokens, targets, hidden.device))

    @torch.inference_mode()
    def score(self, hidden: Tensor, pieces: Sequence[TargetPiece]) -> tuple[Tensor, Tensor]:
        """`predict` of targets that were cut into pieces before, for the states of many plans.

        Raises:
            ModelError: the model's logits depend on more than the state that leaves the stack.
        """
        with self._restore_afterwards():
            if not self.proof.logits:
                self._prove_logits()
            module, stack = self.model.module, self.model.stack
            return score_targets(module, stack, hidden, pieces, form=self._form)

    def final_states(self, batches: Sequence[Batch]) -> Tensor:
        """States that leave the whole stack, `[token, unit]`, float32; without proof."""
        states: list[Tensor] = []
        trie = self._baseline
        with self._restore_afterwards():
            self._run(trie, batches, lambda state: states.append(state.hidden.float()), trie.ends)
        return states[0]

    # What the model calls its layers with

    def _record_calls(self, batch: Batch) -> _BatchRun:
        """What the model's forward calls its layers with.

        No layer runs, except the first one once, for the form of what layers return.
        """
        self._module_state.restore()
        envoy, places = self._wrap_model()
        inputs, calls = batch_inputs(self.model, batch), []
        first_layer = self.model.stack.layers[0]
        # Inside the trace each line waits until the forward reaches its layer.
        with envoy.trace(**inputs) as tracer:
            for place in places:
                args, kwargs = place.inputs
                calls.append(LayerCall(args, kwargs))
                check_layer_calls(self.model, calls, inputs["input_ids"])
                if len(calls) == 1 and not isinstance(self._form, Tensor):
                    self._form = first_layer(*args, **kwargs)
                if len(calls) < len(places):
                    place.skip(with_state(self._form, calls[-1].state))
            tracer.stop()
        # A model whose forward changes it (BigBird's kind of attention) is this batch's while the
        # batch runs; until then it is as it was.
        module_state = None
        if not self._module_state.is_current:
            module_state = ModuleState(self.model.module)
            self._module_state.restore()
        mask = torch.from_numpy(batch.mask)
        tokens = mask.flatten().nonzero()[:, 0].to(self.model.device)
        following = next_tokens(torch.from_numpy(batch.token_ids).long(), mask)
        return _BatchRun(calls, tokens, following, module_state)

    def _wrap_model(self) -> tuple[Any, list[Any]]:
        """The model without its layers as nnsight sees it, and the places of the layers in it.

        A new one for each forward, so that nothing which a forward leaves in it reaches the next.
        """
        copies, stack = SharedCopies(), self.model.stack
        copies.replace(stack.layers, nn.ModuleList(map(AbsentLayer, stack.layers)))
        with warnings.catch_warnings():
            # nnsight renames submodules called `output`, which are not read here.
            warnings.filterwarnings(
                "ignore", message="Module .* has a submodule named", category=UserWarning
            )
            envoy = _Envoy(copies.copy(self.model.module))
        places = envoy
        for part in stack.path.split("."):
            places = getattr(places, part)
        return envoy, [places[layer] for layer in range(len(stack))]

    def _record_probe_calls(self) -> list[LayerCall]:
        """Calls on a few random tokens; the model stays in the state that such a forward left."""
        run = self._record_calls(probe_batch(self.model, 0))
        if run.module_state is not None:
            run.module_state.restore()
        return run.calls

    @contextmanager
    def _restore_afterwards(self) -> Iterator[None]:
        """Leaves the model's modules as they were before, whatever the forward changed in them."""
        try:
            yield
        finally:
            if not self._module_state.is_current:
                self._module_state.restore()

    # The trie

    def _depth_first(
        self, trie: PlanTrie, runs: Sequence[_BatchRun], nodes: Collection[int]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Node and its states, `[sample, position, unit]` per batch.

        Args:
            trie: the plans' nodes.
            runs: one per batch.
            nodes: those to visit, ancestors included.
        """
        # Invariant: `alive` holds the states of exactly those nodes that were visited and have
        # children to come (`children_left`); a state is freed when its last child begins.
        alive = {0: [Handoff.from_call(run.calls[0], self._side_outputs) for run in runs]}
        children_left = [sum(child in nodes for child in children) for children in trie.children]
        changes_with_batch = any(run.module_state is not None for run in runs)
        for node in trie.depth_first():
            if node not in nodes:
                continue
            if node:
                parent = trie.parents[node]
                children_left[parent] -= 1
                entering = alive[parent] if children_left[parent] else alive.pop(parent)
                alive[node] = []
                for run, handoff in zip(runs, entering, strict=True):
                    if changes_with_batch:
                        (run.module_state or self._module_state).restore()
                        # Sublayers are copies of layers in another batch's state.
                        self.model.stack.sublayers.clear()
                    alive[node].append(self._run_step(trie.steps[node], run.calls, handoff))
                del entering, handoff
            leaving = alive[node] if children_left[node] else alive.pop(node)
            yield node, [handoff.state for handoff in leaving]
            del leaving

    def _run_step(self, step: Step | None, calls: list[LayerCall], handoff: Handoff) -> Handoff:
        """One step of a plan on what the step before handed on."""
        assert step is not None, "only the root has no step"
        join = join_of(step)
        join.begin(handoff.state)
        for application in step:
            call = handoff.apply_to(calls[application.layer], self._side_outputs)
            try:
                output = apply_layer(self.model.stack, application, call)
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:
                # A layer may fail because nothing before it made the value that it reads.
                if None not in handoff.side_values:
                    raise
                raise ModelError(
                    f"{self.model.name}: layer {application.text} takes {self._side_names} from "
                    "the layer before it, and in this plan no layer before it has made one "
                    f"({problem}); keep the layer that makes it"
                ) from problem
            joined = join.add(state_of(output))
        assert joined is not None, "the last member completes the step"
        return Handoff(joined, Handoff.from_output(output, self._side_outputs).side_values)

    def _logprob(self, hidden: Tensor, run: _BatchRun) -> Tensor:
        """Log-probability of the id that follows each token, NaN where none follows, `[token]`."""
        logprob = torch.full((len(hidden),), torch.nan, device=hidden.device)
        scored, _ = self.score(hidden, run.predicted)
        logprob[run.predicting.to(hidden.device)] = scored
        return logprob

    # What layers hand on besides the state

    @functools.cached_property
    def _side_outputs(self) -> tuple[SideOutput, ...]:
        """What the layers hand on besides the state.

        Nothing, where they return the state alone and are given nothing that they could change.
        """
        calls = self._record_calls(probe_batch(self.model, 0)).calls
        if isinstance(self._form, Tensor) and not any(map(container_contents, calls)):
            return ()
        return find_side_outputs(
            self.model.name,
            self.model.stack.layers,
            self._observe(probe_batch(self.model, 0))[0],
            lambda: self._observe(probe_batch(self.model, 1))[0],
        )

    @property
    def _side_names(self) -> str:
        return ", ".join(side.name for side in self._side_outputs)

    # The replay against the model's own forward

    @torch.inference_mode()
    def prove(self, batch: Batch) -> None:
        """Compares the replayed baseline with the model's own forward on a part of a batch.

        Args:
            batch: of which a part is run; its kind is proven.
        Raises:
            ModelError: they differ by more than rounding; names the layer.
        """
        small, dtype = excerpt(batch), self.model.module.dtype
        replayed: list[Tensor] = []
        trie = self._baseline

        def keep(state: NodeState) -> None:
            replayed.append(state.hidden.clone())

        with self._restore_afterwards():
            check_steps(self.model.name, trie.steps, self._side_outputs)
            self._run(trie, [small], keep, range(1, len(trie)))
            own = self._own_states(small)
            errors = [relative_distance(*pair) for pair in zip(replayed, own, strict=True)]
            layer = first_divergence(errors, dtype)
            # A model that differs from itself as much, from one forward to the next, is no fault
            # of the replay.
            if layer is not None:
                noise = max(map(relative_distance, self._own_states(small), own))
                layer = first_divergence(errors, dtype, noise)
        if layer is not None:
            raise replay_error(self.model.name, layer, errors[layer], batch_kind(batch), dtype)
        self.proof = self.proof.with_batch(batch, max(errors))

    def _prove_logits(self) -> None:
        """Compares what is made of states that leave the stack with the model's own logits.

        Raises:
            ModelError: they differ by more than rounding.
        """
        observed, output = self._observe(probe_batch(self.model, 0), to_the_end=True)
        if self._form is None:
            self._form = observed[0].output
        states = state_of(observed[-1].output).flatten(0, 1)
        logits = logits_of(self.model.module, self.model.stack, states, form=self._form)
        error = relative_distance(logits, output.logits.flatten(0, 1))
        allowed = replay_rounding(self.model.module.dtype, self.model.layers)
        if not error <= allowed:  # NaN differs, too
            raise ModelError(
                f"{self.model.name}: logits made of the state that leaves layer "
                f"{self.model.layers - 1} differ from the model's own by {error:.1g} of their norm "
                f"(rounding allows {allowed:.1g}): the model uses more than that state, so "
                "log-probabilities would be wrong; capture without --logprobs"
            )
        self.proof = self.proof.with_logits(error)

    @functools.cached_property
    def _baseline(self) -> PlanTrie:
        return PlanTrie.build([Plan.from_steps(range(self.model.layers))])

    def _own_states(self, batch: Batch) -> list[Tensor]:
        """What leaves each layer in the model's own forward, `[layer][token, unit]`."""
        tokens = torch.from_numpy(batch.mask).to(self.model.device).flatten().nonzero()[:, 0]
        observed, _ = self._observe(batch)
        return [_without_padding(state_of(call.output), tokens) for call in observed]

    def _observe(self, batch: Batch, *, to_the_end: bool = False) -> tuple[list[ObservedCall], Any]:
        """Each layer's call in the model's own forward, and what the model returned at the end."""
        module, layers = self.model.module, list(self.model.stack.layers)
        with self._restore_afterwards():
            inputs = batch_inputs(self.model, batch)
            return observe_forward(module, layers, inputs, to_the_end=to_the_end)


def _without_padding(state: Tensor, tokens: Tensor) -> Tensor:
    """`[sample, position, unit]` → `[token, unit]`; a view where nothing is padding."""
    flat = state.flatten(0, 1)
    tokens = tokens.to(flat.device)
    return flat if len(tokens) == len(flat) else flat.index_select(0, tokens)
