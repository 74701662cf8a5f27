import gc

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import DECODERS, T, batch_of, make
from repsim import trace
from repsim.corpus import Batch
from repsim.families import resolve
from repsim.layers import Call, state_of
from repsim.models import Model
from repsim.plans import Plan, PlanTrie
from repsim.trace import NodeState, Tracer

# Every family, twice where its middle can be wide or narrow.
FAMILIES = (
    "baseline",
    "skip:start=1",
    "middle_repeat:start=0",
    "reverse:start=1",
    "random:start=0,seed=3",
    "parallel:start=0",
    "looped_parallel:start=1,loops=3",
    "drop:layer=0",
    "drop:layer=5",
    "drop:layer=2,part=attn",
    "drop:layer=3,part=mlp",
    "switch:layer=2",
    "drop_block:first=1,last=3",
    "repeat:layer=4,times=3",
)


def traced(model: Model, plans: list[Plan], batch: Batch) -> list[list[Tensor]]:
    """Each plan's states by one trace of their trie, `[token, unit]`."""
    trie = PlanTrie.build(plans)
    states: dict[int, Tensor] = {}
    Tracer(model).run(trie, [batch], lambda state: states.update({state.node: state.hidden.clone()}))
    return [[states[node] for node in path] for path in trie.paths]


def recorded_calls(model: Model, batch: Batch, **inputs: object) -> list[Call]:
    """What each layer is called with in the model's own forward, and with it the model's own states."""
    calls: list[Call] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(Call(args, kwargs)), with_kwargs=True)
        for layer in model.stack.layers
    ]
    with torch.inference_mode():
        model.module(
            input_ids=torch.from_numpy(batch.token_ids), attention_mask=torch.from_numpy(batch.mask).long(), **inputs
        )
    for hook in hooks:
        hook.remove()
    return calls


def naive(model: Model, plan: Plan, batch: Batch) -> list[Tensor]:
    """A plain loop over layers with forward hooks for halves; the oracle for every family."""
    no_cache = {"use_cache": False} if model.module.can_generate() else {}
    calls = recorded_calls(model, batch, **no_cache)
    state = calls[0].state
    states = [state]
    for step in plan.steps:
        outputs = []
        for application in step:
            layer = model.stack.layers[application.layer]
            dropped = {"": None, "attn": model.stack.mlp, "mlp": model.stack.attention}[application.half]
            hook = None
            if dropped is not None:
                hook = layer.get_submodule(dropped).register_forward_hook(
                    lambda _m, _a, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
                )
            with torch.inference_mode():
                call = calls[application.layer].on(state)
                outputs.append(state_of(layer(*call.args, **call.kwargs)))
            if hook is not None:
                hook.remove()
        state = torch.stack(outputs).mean(0)
        states.append(state)
    mask = torch.from_numpy(batch.mask)
    return [state[mask] for state in states]


def test_baseline_is_the_models_own_hidden_states(model: Model, batch: Batch) -> None:
    calls = []
    hook = model.stack.layers[-1].register_forward_hook(lambda _m, _a, output: calls.append(state_of(output)))
    mask = torch.from_numpy(batch.mask)
    with torch.inference_mode():
        output = model.module(
            input_ids=torch.from_numpy(batch.token_ids), attention_mask=mask.long(), output_hidden_states=True
        )
    hook.remove()
    own = [*output.hidden_states[:T], calls[0]]  # the last one before the final norm
    (states,) = traced(model, [Plan.from_steps(range(T))], batch)
    assert len(states) == T + 1
    for ours, theirs in zip(states, own, strict=True):
        assert torch.equal(ours, theirs[mask])


def test_every_family_equals_a_naive_loop(model: Model, batch: Batch) -> None:
    plans = [resolve(text, T)[0].plan for text in FAMILIES]
    for plan, states in zip(plans, traced(model, plans, batch), strict=True):
        for ours, theirs in zip(states, naive(model, plan, batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("text", "kept"), [("drop:layer=2", [0, 1, 3, 4, 5]), ("skip:start=1", [0, 1, 5])])
def test_removed_layers(model: Model, batch: Batch, text: str, kept: list[int]) -> None:
    """`drop` and `skip` equal a model from which the layers were physically taken."""
    (states,) = traced(model, [resolve(text, T)[0].plan], batch)
    smaller, no_cache = make(model.name), {"use_cache": False} if model.module.can_generate() else {}
    for layer in sorted(set(range(T)) - set(kept), reverse=True):
        del smaller.stack.layers[layer]
        if getattr(smaller.module.config, "layer_types", None):
            del smaller.module.config.layer_types[layer]
    smaller.module.config.num_hidden_layers = len(kept)
    ends = []
    smaller.stack.layers[-1].register_forward_hook(lambda _m, _a, output: ends.append(state_of(output)))
    mask = torch.from_numpy(batch.mask)
    with torch.inference_mode():
        smaller.module(input_ids=torch.from_numpy(batch.token_ids), attention_mask=mask.long(), **no_cache)
    assert torch.equal(states[-1], ends[0][mask])


def test_one_layer_middle_reversed_is_the_baseline() -> None:
    five = resolve(["reverse:start=2", "baseline"], 5)
    assert len(five) == 1


def test_a_sample_does_not_depend_on_its_batch(model: Model) -> None:
    lengths = (9, 7, 4, 1)
    whole = batch_of(lengths)
    plan = resolve("looped_parallel:start=1,loops=2", T)[0].plan
    (together,) = traced(model, [plan], whole)
    ends = np.cumsum((0, *lengths))
    for row, length in enumerate(lengths):
        alone = Batch(whole.token_ids[row : row + 1, :length], whole.mask[row : row + 1, :length])
        (single,) = traced(model, [plan], alone)
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
    torch.testing.assert_close(found[trie.ends[0]], expected[mask], equal_nan=True, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[trie.ends[1]], expected[mask], equal_nan=True)


def test_states_alive_grow_with_depth_not_with_nodes(llama: Model, batch: Batch) -> None:
    """A wide trie of many plans keeps no more states alive than its branching points on one path."""
    plans = [named.plan for named in resolve("painters", T)]
    trie = PlanTrie.build(plans)
    assert len(trie) > 10 * trie.depth
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


def test_an_error_in_the_consumer_reaches_the_caller_and_leaves_the_model_usable(llama: Model, batch: Batch) -> None:
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
    """A block in two batches without padding gives the states of one padded batch, in the same order."""
    lengths = (9, 9, 4, 4)
    whole = batch_of(lengths)
    pieces = [Batch(whole.token_ids[:2], whole.mask[:2]), Batch(whole.token_ids[2:, :4], whole.mask[2:, :4])]
    trie = PlanTrie.build(
        [resolve(text, T)[0].plan for text in ("baseline", "parallel:start=1", "drop:layer=2,part=attn")]
    )
    together: dict[int, Tensor] = {}
    apart: dict[int, Tensor] = {}
    Tracer(model).run(trie, [whole], lambda state: together.update({state.node: state.hidden.clone()}))
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
    run_application = trace.run_application
    monkeypatch.setattr(
        trace,
        "run_application",
        lambda stack, what, call: (ran.append(what.layer), run_application(stack, what, call))[1],
    )
    found: dict[int, Tensor] = {}
    tracer.run(trie, [batch], lambda state: found.update({state.node: state.hidden.clone()}), nodes=wanted)
    assert set(found) == wanted
    assert all(torch.equal(found[node], every[node]) for node in wanted)
    assert sorted(ran) == [0, 1, 2, 5]  # 0-2 lead to node 3; 0, 1, 5 is skip:start=1
