"""What a plan's states are by plain loops and by the model's own forward."""

import inspect
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import repsim
from repsim.data.batching import Batch
from repsim.data.packing import Packed, Window
from repsim.models import Model
from repsim.models.layer_call import LayerCall, state_of
from repsim.models.sublayers import ATTENTION_PATHS, MLP_PATHS, match_paths
from repsim.models.tracing import NodeState, Tracer
from repsim.plans import Plan, PlanTrie, resolve
from support.models import VOCABULARY, T

# What a step's members give together, of its input and their outputs, by kind of join.
JOINED: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "mean": lambda state, outputs: sum(outputs[1:], outputs[0]) / len(outputs),
}


def trace_plans(model: Model, plans: list[Plan], batch: Batch) -> list[list[Tensor]]:
    """Each plan's states by one trace of their trie, `[token, unit]`."""
    trie = PlanTrie.build(plans)
    states: dict[int, Tensor] = {}
    Tracer(model).run(
        trie, [batch], lambda state: states.update({state.node: state.hidden.clone()}), check=False
    )
    return [[states[node] for node in path] for path in trie.paths]


def record_calls(model: Model, batch: Batch, **inputs: object) -> list[LayerCall]:
    """What each layer is called with in the model's own forward, the states included."""
    calls: list[LayerCall] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(LayerCall(args, kwargs)), with_kwargs=True
        )
        for layer in model.stack.layers
    ]
    if "attention_mask" in inspect.signature(type(model.module).forward).parameters:
        inputs["attention_mask"] = torch.from_numpy(batch.mask).long()
    with torch.inference_mode():
        model.module(input_ids=torch.from_numpy(batch.token_ids), **inputs)
    for hook in hooks:
        hook.remove()
    return calls


def without_cache(model: Model) -> dict[str, bool]:
    """Inputs with which a model computes bit for bit what the trace computes.

    With its cache a model gives keys and values another layout, for which the kernels of some
    processors add up in another order.
    """
    return {"use_cache": False} if model.module.can_generate() else {}


def own_states(model: Model, batch: Batch, **inputs: object) -> list[Tensor]:
    """What enters and leaves each layer in the model's own forward, `[token, unit]`."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: states.append(state_of(out)))
        for layer in model.stack.layers
    ]
    first = record_calls(model, batch, **inputs)[0].state
    for hook in hooks:
        hook.remove()
    mask = torch.from_numpy(batch.mask)
    return [state[mask] for state in (first, *states)]


def assert_equal_but_for_rounding(ours: Tensor, theirs: Tensor, layers: int) -> None:
    """States that the same layers computed, with sums taken in another order.

    Rounding n terms of a sum errs like a random walk, by sqrt(n) eps / 2 of the result (Higham and
    Mary 2019), and two runs differ by sqrt(2) of that. A layer adds two such results to its input,
    so sqrt(n) eps for each layer; n is the longest sum of a layer, four times the units at most.

    Args:
        ours: `[token, unit]`.
        theirs: likewise.
        layers: how many led to these states.
    """
    assert ours.dtype == theirs.dtype
    eps = torch.finfo(theirs.dtype).eps
    bound = layers * (4 * theirs.shape[-1]) ** 0.5 * eps * theirs.norm(dim=-1)
    assert ((ours - theirs).norm(dim=-1) <= bound).all()


def naive(model: Model, plan: Plan, batch: Batch) -> list[Tensor]:
    """A plain loop over layers with forward hooks for sublayers; the oracle for every family."""
    calls = record_calls(model, batch, **without_cache(model))
    state = calls[0].state
    states = [state]
    for step in plan.steps:
        outputs = []
        for application in step:
            layer = model.stack.layers[application.layer]
            patterns = {"": (), "attn": MLP_PATHS, "mlp": ATTENTION_PATHS}[application.sublayer]
            hooks = [
                layer.get_submodule(path).register_forward_hook(
                    lambda _m, _a, out: (
                        (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
                    )
                )
                for path in match_paths(layer, patterns)
            ]
            with torch.inference_mode():
                call = calls[application.layer].on(state)
                outputs.append(state_of(layer(*call.args, **call.kwargs)))
            for hook in hooks:
                hook.remove()
        state = JOINED[step.join](state, outputs)
        states.append(state)
    mask = torch.from_numpy(batch.mask)
    return [state[mask] for state in states]


def last_states(model: Model, plan: str | Plan, batch: Batch, **inputs: object) -> Tensor:
    """What leaves the planned stack in the model's own forward, `[token, unit]`."""
    ends: list[Tensor] = []
    mask = torch.from_numpy(batch.mask)
    with repsim.planned(model, plan, check=False) as module, torch.inference_mode():
        stack = module.get_submodule(model.stack.path)
        stack[-1].register_forward_hook(lambda _m, _a, output: ends.append(state_of(output)))
        tokens = {"input_ids": torch.from_numpy(batch.token_ids), "attention_mask": mask.long()}
        module(**tokens, **without_cache(model), **inputs)
    return ends[0][mask]


def windows_that_share() -> list[Window]:
    """Five texts: four share six tokens, three of those nine, and the fifth shares nothing.

    One of the three ends where the others go on.
    """
    ids = np.random.default_rng(1).integers(3, VOCABULARY, 60).astype(np.int32)
    first, more = ids[:6], ids[6:9]
    inputs = [
        np.concatenate([first, more, ids[9:14]]),
        np.concatenate([first, more, ids[14:24]]),
        np.concatenate([first, ids[24:31]]),
        ids[31:45],
        np.concatenate([first, more]),
    ]
    return [
        Window(row, ids[45 : 45 + length])
        for row, length in zip(inputs, (3, 1, 7, 14, 2), strict=True)
    ]


def score_packed(
    model: Model, packed: Packed, plans: tuple[str, ...]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each plan: the states that predict, `[target, unit]`, and what `predict` makes of them."""
    tracer, trie = Tracer(model), PlanTrie.build([resolve(text, T)[0].plan for text in plans])
    token, target = torch.from_numpy(packed.token), torch.from_numpy(packed.target)
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def consume(state: NodeState) -> None:
        found[state.node] = state.hidden[token], *tracer.predict(state.hidden, token, target)

    tracer.run(trie, packed.batches, consume, nodes=trie.ends)
    return [found[end] for end in trie.ends]
