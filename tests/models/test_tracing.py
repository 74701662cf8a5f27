"""Traced states against the model's own forward, plain loops and models with fewer layers."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repsim.data.batching import Batch
from repsim.models import Model, tracing
from repsim.models.layer_call import LayerCall, apply_layer, state_of
from repsim.models.stack import Stack
from repsim.models.tracing import NodeState, Tracer
from repsim.plans import Application, Plan, PlanTrie, resolve
from support.models import DECODERS, T, batch_of, make
from support.oracles import (
    assert_equal_but_for_rounding,
    naive,
    trace_plans,
    without_cache,
)
from support.plans import EXAMPLES


@pytest.mark.parametrize("cached", [False, True])
def test_baseline_is_the_models_own_hidden_states(model: Model, batch: Batch, cached: bool) -> None:
    """Bit for bit where the model's own forward runs without a cache, as the trace does; else but
    for rounding.
    """
    calls = []
    hook = model.stack.layers[-1].register_forward_hook(
        lambda _m, _a, output: calls.append(state_of(output))
    )
    mask = torch.from_numpy(batch.mask)
    with torch.inference_mode():
        output = model.module(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=mask.long(),
            output_hidden_states=True,
            **{} if cached else without_cache(model),
        )
    hook.remove()
    own = [*output.hidden_states[:T], calls[0]]  # the last one before the final norm
    (states,) = trace_plans(model, [Plan.from_steps(range(T))], batch)
    assert len(states) == T + 1
    for layers, (ours, theirs) in enumerate(zip(states, own, strict=True)):
        if cached:
            assert_equal_but_for_rounding(ours, theirs[mask], layers)
        else:
            assert torch.equal(ours, theirs[mask])


def test_every_family_equals_a_naive_loop(model: Model, batch: Batch) -> None:
    plans = [resolve(text, T)[0].plan for text in EXAMPLES]
    for plan, states in zip(plans, trace_plans(model, plans, batch), strict=True):
        for ours, theirs in zip(states, naive(model, plan, batch), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("text", "kept"), [("drop:layer=2", [0, 1, 3, 4, 5]), ("skip:start=1", [0, 1, 5])]
)
def test_removed_layers(model: Model, batch: Batch, text: str, kept: list[int]) -> None:
    """`drop` and `skip` equal a model from which the layers were physically taken."""
    (states,) = trace_plans(model, [resolve(text, T)[0].plan], batch)
    smaller = make(model.name)
    for layer in sorted(set(range(T)) - set(kept), reverse=True):
        del smaller.stack.layers[layer]
        if getattr(smaller.module.config, "layer_types", None):
            del smaller.module.config.layer_types[layer]
    smaller.module.config.num_hidden_layers = len(kept)
    ends = []
    smaller.stack.layers[-1].register_forward_hook(
        lambda _m, _a, output: ends.append(state_of(output))
    )
    mask = torch.from_numpy(batch.mask)
    with torch.inference_mode():
        smaller.module(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=mask.long(),
            **without_cache(model),
        )
    assert torch.equal(states[-1], ends[0][mask])


def test_one_layer_middle_reversed_is_the_baseline() -> None:
    five = resolve(["reverse:start=2", "baseline"], 5)
    assert len(five) == 1


def test_a_sample_does_not_depend_on_its_batch(model: Model) -> None:
    lengths = (9, 7, 4, 1)
    whole = batch_of(lengths)
    plan = resolve("looped_parallel:start=1,loops=2", T)[0].plan
    (together,) = trace_plans(model, [plan], whole)
    ends = np.cumsum((0, *lengths))
    for row, length in enumerate(lengths):
        alone = Batch(whole.token_ids[row : row + 1, :length], whole.mask[row : row + 1, :length])
        (single,) = trace_plans(model, [plan], alone)
        for ours, theirs in zip(together, single, strict=True):
            piece = ours[ends[row] : ends[row + 1]]
            assert (piece - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("architecture", DECODERS)
def test_logprobs_are_those_of_the_models_own_logits(architecture: str, batch: Batch) -> None:
    model = make(architecture)
    trie = PlanTrie.build([Plan.from_steps(range(T)), resolve("skip:start=1", T)[0].plan])
    found: dict[int, Tensor] = {}

    def consume(state: NodeState) -> None:
        if state.logprob is not None:
            found[state.node] = state.logprob

    Tracer(model).run(trie, [batch], consume, logprobs=True)
    assert set(found) == set(trie.ends)
    ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.mask)
    with torch.inference_mode():
        logprobs = model.module(input_ids=ids, attention_mask=mask.long()).logits.log_softmax(-1)
    expected = torch.full(mask.shape, torch.nan)
    expected[:, :-1] = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    for row, length in enumerate(mask.sum(1)):
        expected[row, length - 1] = torch.nan
    torch.testing.assert_close(
        found[trie.ends[0]], expected[mask], equal_nan=True, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(found[trie.ends[1]], expected[mask], equal_nan=True)


def test_states_alive_grow_with_depth_not_with_nodes(llama: Model, batch: Batch) -> None:
    """A wide trie of many plans keeps alive no more states than one path has branching points."""
    plans = [named.plan for named in resolve("painters", T)][::5]
    trie = PlanTrie.build(plans)
    assert len(trie) > 3 * trie.depth
    shape = (*batch.mask.shape, llama.units)

    def states() -> list[Tensor]:
        return [t for t in gc.get_objects() if type(t) is Tensor and t.shape == shape]

    def alive(trie: PlanTrie) -> int:
        gc.collect()
        earlier, most = states(), 0  # what other tests left behind stays and is not counted
        others = {t.data_ptr() for t in earlier}

        def consume(_state: NodeState) -> None:
            nonlocal most
            most = max(most, len({t.data_ptr() for t in states()} - others))

        Tracer(llama).run(trie, [batch], consume)
        return most

    assert alive(trie) <= trie.depth + 4
    assert alive(PlanTrie.build(plans[:1])) <= 4


def test_an_error_in_the_consumer_reaches_the_caller_and_leaves_the_model_usable(
    llama: Model, batch: Batch
) -> None:
    class Refused(Exception):
        pass

    tracer = Tracer(llama)
    trie = PlanTrie.build([Plan.from_steps(range(T))])

    def refuse(state: NodeState) -> None:
        if state.node == 2:
            raise Refused("node 2")

    with pytest.raises(Refused, match="node 2"):
        tracer.run(trie, [batch], refuse)
    nodes: list[int] = []
    tracer.run(trie, [batch], lambda state: nodes.append(state.node))
    assert nodes == list(range(T + 1))


def test_several_batches_of_a_block_equal_one(model: Model) -> None:
    """A block in two batches without padding gives the states of one padded batch, in the same
    order.
    """
    lengths = (9, 9, 4, 4)
    whole = batch_of(lengths)
    pieces = [
        Batch(whole.token_ids[:2], whole.mask[:2]),
        Batch(whole.token_ids[2:, :4], whole.mask[2:, :4]),
    ]
    trie = PlanTrie.build(
        [
            resolve(text, T)[0].plan
            for text in ("baseline", "parallel:start=1", "drop:layer=2,part=attn")
        ]
    )
    together: dict[int, Tensor] = {}
    apart: dict[int, Tensor] = {}
    Tracer(model).run(
        trie, [whole], lambda state: together.update({state.node: state.hidden.clone()})
    )
    Tracer(model).run(trie, pieces, lambda state: apart.update({state.node: state.hidden.clone()}))
    assert list(apart) == list(together)
    for ours, theirs in zip(apart.values(), together.values(), strict=True):
        assert ((ours - theirs).norm(dim=-1) <= 1e-5 * theirs.norm(dim=-1)).all()


def test_wanted_nodes_alone_are_handed_out_and_no_others_are_computed_but_their_ancestors(
    llama: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [resolve(text, T)[0].plan for text in ("baseline", "skip:start=1", "drop:layer=4")]
    trie = PlanTrie.build(plans)
    every: dict[int, Tensor] = {}
    tracer = Tracer(llama)
    tracer.run(trie, [batch], lambda state: every.update({state.node: state.hidden.clone()}))
    wanted = frozenset({3, trie.ends[1]})
    ran: list[int] = []

    def apply_and_note(stack: Stack, application: Application, call: LayerCall) -> Any:
        ran.append(application.layer)
        return apply_layer(stack, application, call)

    monkeypatch.setattr(tracing, "apply_layer", apply_and_note)
    found: dict[int, Tensor] = {}
    tracer.run(
        trie, [batch], lambda state: found.update({state.node: state.hidden.clone()}), nodes=wanted
    )
    assert set(found) == wanted
    assert all(torch.equal(found[node], every[node]) for node in wanted)
    assert sorted(ran) == [0, 1, 2, 5]  # 0-2 lead to node 3; 0, 1, 5 is skip:start=1
