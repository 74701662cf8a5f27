"""What a plan's states are by plain loops and by the model's own forward."""

import numpy as np
import torch
from torch import Tensor

import repsim
from repsim.corpus import Batch
from repsim.models import Model
from repsim.models.layer_call import LayerCall, state_of
from repsim.models.tracing import Tracer
from repsim.packing import Window
from repsim.plans import Plan, PlanTrie
from support.models import VOCABULARY

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


def recorded_calls(model: Model, batch: Batch, **inputs: object) -> list[LayerCall]:
    """What each layer is called with in the model's own forward, and with it the model's own states."""
    calls: list[LayerCall] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(LayerCall(args, kwargs)), with_kwargs=True)
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


def last_states(model: Model, plan: str, batch: Batch) -> Tensor:
    """What leaves the planned stack in the model's own forward, `[token, unit]`."""
    ends: list[Tensor] = []
    mask = torch.from_numpy(batch.mask)
    with repsim.planned(model, plan) as module, torch.inference_mode():
        stack = module.get_submodule(model.stack.path)
        stack[-1].register_forward_hook(lambda _m, _a, output: ends.append(state_of(output)))
        module(input_ids=torch.from_numpy(batch.token_ids), attention_mask=mask.long())
    return ends[0][mask]


def windows_that_share() -> list[Window]:
    """Four share six tokens, three of those nine; one of them ends where others go on, and the fifth shares nothing."""
    ids = np.random.default_rng(1).integers(3, VOCABULARY, 60).astype(np.int32)
    first, more = ids[:6], ids[6:9]
    inputs = [
        np.concatenate([first, more, ids[9:14]]),
        np.concatenate([first, more, ids[14:24]]),
        np.concatenate([first, ids[24:31]]),
        ids[31:45],
        np.concatenate([first, more]),
    ]
    return [Window(row, ids[45 : 45 + length]) for row, length in zip(inputs, (3, 1, 7, 14, 2), strict=True)]
