"""What layers hand on besides the state, against hand-written loops over the models' layers."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from repsim.data.batching import Batch
from repsim.errors import RepsimError
from repsim.models import Model
from repsim.models.layer_call import LayerCall, state_of
from repsim.models.side_outputs import ObservedCall, SideOutput, find_side_outputs
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie, resolve
from support.models import BIG_BIRD, CARRYING, T5, T, batch_of, cached_model, model_of
from support.oracles import record_calls, trace_plans

HANDED_ON = {
    "zaya": SideOutput(1, 1, "prev_router_hidden_states"),
    "glm_moe_dsa": SideOutput(1, "prev_topk_indices", "prev_topk_indices"),
    "mistral_large4": SideOutput(1, "prev_topk_indices", "prev_topk_indices"),
    "lilt": SideOutput(1, 1, "layout_inputs"),
}
PLANS = ("baseline", "0, 1, 5", "0, 2*3, 3-5", "0, 2, 1, 3, 5, 4")
BASELINE = PlanTrie.build([Plan.from_steps(range(T))])


def no_cache(model: Model) -> dict[str, bool]:
    return {} if model.name == "lilt" else {"use_cache": False}


def own_states(model: Model, batch: Batch, **inputs: object) -> list[Tensor]:
    """What leaves each layer in the model's own forward, `[layer][token, unit]`."""
    states: list[Tensor] = []
    for layer in model.stack.layers:
        layer.register_forward_hook(lambda _m, _a, output: states.append(state_of(output)))
    with torch.inference_mode():
        model.module(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=torch.from_numpy(batch.mask).long(),
            **inputs,
        )
    return [state[torch.from_numpy(batch.mask)] for state in states]


def looped(model: Model, plan: str, batch: Batch) -> list[Tensor]:
    """A loop as models write it: each layer's second output is given to the plan's next layer."""
    side = HANDED_ON[model.name]
    calls = record_calls(model, batch, **no_cache(model))
    first = calls[0]
    state = first.state
    if isinstance(side.argument, str):
        passed = first.kwargs.get(side.argument)
    else:
        passed = first.args[side.argument]
    states = [state]
    for step in resolve(plan, T)[0].plan.steps:
        call = calls[step.members[0].layer]
        args, kwargs = [state, *call.args[1:]], dict(call.kwargs)
        if isinstance(side.argument, str):
            kwargs[side.argument] = passed
        else:
            args[side.argument] = passed
        with torch.inference_mode():
            state, passed = model.stack.layers[step.members[0].layer](*args, **kwargs)[:2]
        states.append(state)
    mask = torch.from_numpy(batch.mask)
    return [state[mask] for state in states]


def carrier(name: str) -> Model:
    model = model_of(*CARRYING[name])
    return Model(model.module, None, name, None, model.stack)


@pytest.mark.parametrize("name", CARRYING)
def test_the_baseline_is_the_models_own(name: str, batch: Batch) -> None:
    (states,) = trace_plans(carrier(name), [Plan.from_steps(range(T))], batch)
    fresh = carrier(name)
    own = own_states(fresh, batch, **no_cache(fresh))
    for ours, theirs in zip(states[1:], own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CARRYING)
def test_what_is_handed_on_follows_the_plan(name: str, batch: Batch) -> None:
    model = carrier(name)
    plans = [resolve(plan, T)[0].plan for plan in PLANS]
    for plan, states in zip(PLANS, trace_plans(model, plans, batch), strict=True):
        for ours, theirs in zip(states, looped(model, plan, batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kept", [[0, 1, 5], [2, 3, 4]])
def test_zaya_without_layers_is_zaya_from_which_they_were_taken(
    kept: list[int], batch: Batch
) -> None:
    (states,) = trace_plans(carrier("zaya"), [Plan.from_steps(kept)], batch)
    smaller = carrier("zaya")
    for layer in sorted(set(range(T)) - set(kept), reverse=True):
        del smaller.stack.layers[layer], smaller.module.config.layer_types[layer]
    smaller.module.config.num_hidden_layers = len(kept)
    for ours, theirs in zip(states[1:], own_states(smaller, batch, use_cache=False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CARRYING)
def test_what_is_handed_on_is_found(name: str) -> None:
    assert Tracer(carrier(name))._side_outputs == (HANDED_ON[name],)


@pytest.mark.parametrize("name", ["llama", "falcon", "gpt2", "bert", "deberta"])
def test_most_layers_hand_on_the_state_alone(name: str) -> None:
    assert Tracer(cached_model(name))._side_outputs == ()


def test_a_mean_of_what_is_handed_on_is_refused(batch: Batch) -> None:
    plan = resolve("0, (1|2), 5", T)[0].plan
    with pytest.raises(
        RepsimError, match=r"step \(1\|2\) joins the outputs of .* layer 1 hands on prev_router_hid"
    ):
        trace_plans(carrier("zaya"), [plan], batch)


def test_a_layer_without_the_one_it_depends_on_is_refused_by_name(batch: Batch) -> None:
    """Layer 1 reads the tokens that layer 0 or 3 chose."""
    with pytest.raises(
        RepsimError, match=r"glm_moe_dsa: layer 1 takes prev_topk_indices .* no layer before it"
    ):
        trace_plans(carrier("glm_moe_dsa"), [Plan.from_steps([1, 2])], batch)


def test_position_biases_of_the_first_layer_stay_with_each_layers_call(batch: Batch) -> None:
    """Made by the first layer for all, from positions alone; plans without it need them, too."""
    model = model_of(*T5)
    assert Tracer(model)._side_outputs == ()
    (states,) = trace_plans(model, [Plan.from_steps([1, 2, 5])], batch)
    calls = record_calls(model, batch)
    state = calls[0].state
    for layer in (1, 2, 5):
        call = calls[layer].on(state)
        with torch.inference_mode():
            state = model.stack.layers[layer](*call.args, **call.kwargs)[0]
    torch.testing.assert_close(
        states[-1], state[torch.from_numpy(batch.mask)], rtol=1e-6, atol=1e-6
    )


# Which values are carried, on records made by hand

STATE, BIAS, OTHER = torch.zeros(1, 2, 3), torch.ones(2), torch.full((2,), 2.0)


def seen(*outputs: object, changed: Sequence[str] = (), **kwargs: object) -> ObservedCall:
    return ObservedCall(LayerCall((STATE,), kwargs), (STATE, *outputs), tuple(changed))


class Layer(torch.nn.Module):
    def forward(self, hidden_states: Tensor, extra: Tensor | None = None) -> Tensor:
        return hidden_states


LAYERS = [Layer() for _ in range(3)]


def test_what_every_layer_makes_is_carried_and_what_is_passed_through_unchanged_is_not() -> None:
    extra = SideOutput(1, "extra", "extra")
    made_each = [seen(BIAS, extra=None), seen(OTHER, extra=BIAS), seen(BIAS, extra=OTHER)]
    assert find_side_outputs("m", LAYERS, made_each, lambda: made_each) == (extra,)
    through = [seen(BIAS, extra=None), seen(BIAS, extra=BIAS), seen(BIAS, extra=BIAS)]
    alike = [seen(BIAS.clone()), seen(extra=BIAS.clone()), seen(extra=BIAS.clone())]
    assert find_side_outputs("m", LAYERS, through, lambda: alike) == ()
    unlike = [seen(OTHER), seen(extra=OTHER), seen(extra=OTHER)]
    assert find_side_outputs("m", LAYERS, through, lambda: unlike) == (extra,)


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param([seen(BIAS), seen(OTHER), seen(extra=BIAS)], id="of a layer further back"),
        pytest.param(
            [seen(BIAS), seen(OTHER, extra={"a": BIAS}), seen(extra=None)], id="inside a dictionary"
        ),
        pytest.param(
            [seen(BIAS), seen(None, OTHER, extra=BIAS), seen(extra=OTHER)], id="from another place"
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(observed: list[ObservedCall]) -> None:
    other = [seen(OTHER), seen(OTHER, extra=OTHER + 1), seen(extra=OTHER + 1)]
    with pytest.raises(RepsimError, match=r"m: layer [12] takes extra from layers before it"):
        find_side_outputs("m", LAYERS, observed, lambda: other)


def test_a_container_that_layers_change_is_refused() -> None:
    """As shared keys and values are."""
    model = cached_model("llama")
    held: dict[str, Tensor] = {}
    hooks = [
        model.module.model.register_forward_pre_hook(
            lambda _m, args, kwargs: (args, {**kwargs, "shared": held}), with_kwargs=True
        ),
        model.stack.layers[0].self_attn.register_forward_hook(
            lambda _m, _a, out: held.update(key=out[0])
        ),
    ]
    try:
        with pytest.raises(RepsimError, match="layer 0 changes its argument shared in place"):
            Tracer(model).run(BASELINE, [batch_of((9, 9))], lambda _: None)
    finally:
        for hook in hooks:
            hook.remove()


# Models that change with the batch


def last_states(model: Model, batches: Sequence[Batch]) -> Tensor:
    found: list[Tensor] = []
    Tracer(model).run(
        BASELINE, batches, lambda state: found.append(state.hidden.clone()), nodes=BASELINE.ends
    )
    return found[0]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_each_batch_runs_as_the_model_takes_it(order: list[int]) -> None:
    """BigBird's attention is sparse for long texts and full for short ones; it stays as it was."""
    batches = [(batch_of((32, 32)), batch_of((9, 9), seed=1))[number] for number in order]
    model = model_of(*BIG_BIRD)
    states = last_states(model, batches)
    own = torch.cat([own_states(model_of(*BIG_BIRD), batch)[-1] for batch in batches])
    torch.testing.assert_close(states, own, rtol=1e-6, atol=1e-6)
    assert model.module.attention_type == "block_sparse"
    full = model_of(*BIG_BIRD)
    full.module.set_attention_type("original_full")
    assert not torch.allclose(
        own_states(full, batches[order.index(0)])[-1],
        own_states(model, batches[order.index(0)])[-1],
        atol=1e-3,
    )
