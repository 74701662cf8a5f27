"""Planned models against traces, hand-made models, and the model that they were made from."""

import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repsim
from repsim.data.batching import Batch
from repsim.errors import RepsimError
from repsim.models import Model
from repsim.models.planned_proof import layout_rounding
from repsim.models.stack import find_stack
from repsim.plans import resolve
from support.architectures import build as build_survey
from support.models import MORE, T, build, cached_model, make
from support.oracles import assert_equal_but_for_rounding, last_states, trace_plans
from support.plans import EXAMPLES

NEW_TOKENS = 6
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
# Dense, mixtures and hybrids; old loops that collect hidden states themselves (falcon, gptj, bloom)
# and hooks that do.
KINDS = (
    "llama",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "falcon",
    "gptj",
    "bloom",
    "opt",
    "mixtral",
    "qwen2_moe",
    "jamba",
    "granitemoehybrid",
    "qwen3_next",
    "bert",
    "modernbert",
)
MIXED_PLAN = "0, 2.mlp, (1|2|4)*2, 3*2, 1.attn, 5"


def ids_of(batch: Batch) -> Tensor:
    return torch.from_numpy(batch.token_ids)


def fresh(name: str) -> Model:
    """A model of one's own, to be used up."""
    if name not in MORE:
        return make(name)
    module = build(*MORE[name][:2])
    return Model(module, None, name, None, find_stack(module))


@pytest.mark.parametrize("plan", EXAMPLES)
def test_trace_and_planned_model_agree(model: Model, plan: str, batch: Batch) -> None:
    (states,) = trace_plans(model, [resolve(plan, T)[0].plan], batch)
    assert torch.equal(last_states(model, plan, batch), states[-1])
    assert_equal_but_for_rounding(
        last_states(model, plan, batch), states[-1], layers=len(states) - 1
    )


@pytest.mark.parametrize("plan", EXAMPLES)
def test_generation_with_the_cache_equals_generation_without(decoder: Model, plan: str) -> None:
    """Step by step, so that a wrong cache cannot hide behind an equal token."""
    prompt = torch.tensor([[11, 23, 42, 7, 77], [0, 0, 31, 5, 64]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])  # left padding, as generate wants it
    planned = repsim.planned(decoder, plan, check=False)  # which would leave out a wrong cache
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "output_logits": True,
        "return_dict_in_generate": True,
        **GREEDY,
    }
    runs = [
        planned.generate(prompt, attention_mask=mask, use_cache=cached, **settings)
        for cached in (True, False)
    ]
    assert runs[0].sequences.shape == (2, 5 + NEW_TOKENS)
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for cached, plain in zip(runs[0].logits, runs[1].logits, strict=True):
        torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-5)


def test_every_application_has_a_cache_slot(llama: Model, batch: Batch) -> None:
    with torch.inference_mode():
        cache = repsim.planned(llama, "0, (1|2)*2, 3*2, 5")(
            input_ids=ids_of(batch), use_cache=True
        ).past_key_values
    assert len(cache) == 1 + 4 + 2 + 1
    assert all(layer.get_seq_length() == batch.token_ids.shape[1] for layer in cache.layers)


# The model it was made from


def everything(module: Any) -> dict[str, Any]:
    """What using a model could change: its tree, each module's attributes and hooks, its
    configuration, its weights.
    """
    return {
        "modules": [(name, type(child), id(child)) for name, child in module.named_modules()],
        "attributes": [(name, sorted(vars(child))) for name, child in module.named_modules()],
        "hooks": [
            (name, key, list(value))
            for name, child in module.named_modules()
            for key, value in vars(child).items()
            if key.endswith(("hooks", "hooks_with_kwargs"))
        ],
        "plain": [
            (name, key, value)
            for name, child in module.named_modules()
            for key, value in vars(child).items()
            if isinstance(value, int | float | str | bool | None)
        ],
        "config": (module.config.to_dict(), type(module.config)),
        "generation": module.generation_config.to_dict() if module.can_generate() else None,
        "tensors": {
            name: tensor.clone()
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        },
    }


def assert_untouched(module: Any, before: dict[str, Any]) -> None:
    after = everything(module)
    tensors, earlier = after.pop("tensors"), before.pop("tensors")
    assert after == before
    assert tensors.keys() == earlier.keys()
    assert all(torch.equal(tensor, earlier[name]) for name, tensor in tensors.items())


def outputs(module: Any, ids: Tensor) -> dict[str, Any]:
    """All that a forward can give, and the loss's gradients where there is one."""
    module.set_attn_implementation("eager")  # others give no attentions
    wishes = {"output_hidden_states": True, "output_attentions": True}
    if "output_router_logits" in inspect.signature(type(module).forward).parameters:
        wishes["output_router_logits"] = True
    output = module(input_ids=ids, **wishes)
    found = {name: value for name, value in output.items() if name != "past_key_values"}
    if module.can_generate():
        module.requires_grad_(True)
        found["loss"] = module(input_ids=ids, labels=ids, use_cache=False).loss
        found["loss"].backward()
        found["gradients"] = tuple(p.grad for p in module.parameters())
        module.zero_grad()
    return found


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one is None
        assert other is None


@pytest.mark.parametrize("name", KINDS)
def test_a_model_used_under_plans_is_as_one_that_never_was(name: str, batch: Batch) -> None:
    """Every use there is, on planned models of three plans; then the model they were made from
    against a fresh one.
    """
    model, ids = fresh(name), ids_of(batch)[:, :4]
    before = everything(model.module)
    for plan in ("0-3, 2-5", "0-1, (2|3|4), 5", "0-1, 2.mlp, 3.attn, 4-5"):
        with repsim.planned(model, plan) as planned:
            planned(input_ids=ids, output_hidden_states=True)
            copy.deepcopy(planned)
            planned.train()
            planned.activation_checkpointing_enable({"use_reentrant": False})
            planned(input_ids=ids)[0].sum()
            planned.eval()
            if planned.can_generate():
                planned.generate(ids, max_new_tokens=2, **GREEDY)
            planned.config.num_hidden_layers = 1
            planned.add_module("probe", nn.Linear(2, 2))
    assert_untouched(model.module, before)
    assert_same(outputs(model.module, ids), outputs(fresh(name).module, ids))


def test_a_model_is_untouched_where_a_layer_fails(llama: Model, batch: Batch) -> None:
    before = everything(llama.module)
    planned = repsim.planned(llama, "looped_parallel:start=0,loops=2")

    def forbid(*_: object) -> None:
        raise RuntimeError("in the middle of a layer")

    planned.model.layers[3].register_forward_hook(forbid)
    with pytest.raises(RuntimeError, match="in the middle"):
        planned(input_ids=ids_of(batch))
    assert_untouched(llama.module, before)


def test_the_model_is_itself_inside_the_block(llama: Model, batch: Batch) -> None:
    """It can be captured, generate and be planned again at the same time."""
    own = trace_plans(llama, [resolve("baseline", T)[0].plan], batch)[0]
    with torch.inference_mode():
        logits = llama.module(input_ids=ids_of(batch)).logits
        with (
            repsim.planned(llama, "0-1, (2|3|4), 5") as planned,
            repsim.planned(llama, "skip:start=1") as other,
        ):
            assert torch.equal(llama.module(input_ids=ids_of(batch)).logits, logits)
            again = trace_plans(llama, [resolve("baseline", T)[0].plan], batch)[0]
            assert not torch.allclose(planned(input_ids=ids_of(batch)).logits, logits, atol=1e-2)
            assert not torch.allclose(other(input_ids=ids_of(batch)).logits, logits, atol=1e-2)
    assert all(torch.equal(state, before) for state, before in zip(again, own, strict=True))


def test_parameters_are_shared(llama: Model) -> None:
    own = {id(parameter) for parameter in llama.module.parameters()}
    planned = repsim.planned(llama, MIXED_PLAN)
    assert {id(parameter) for parameter in planned.parameters()} <= own
    assert {id(parameter) for parameter in repsim.planned(llama, "0-5").parameters()} == own


def test_a_planned_model_is_freed(llama: Model) -> None:
    gone = weakref.ref(repsim.planned(llama, MIXED_PLAN))
    gc.collect()
    assert gone() is None


# What a Hugging Face model can be used for


def last_hidden(model: Model, plan: str, ids: Tensor) -> list[Tensor]:
    """The residual stream under a plan by the trace, `[state][sample, position, unit]`, unpadded
    texts.
    """
    (states,) = trace_plans(
        model, [resolve(plan, T)[0].plan], Batch(ids.numpy(), np.ones(ids.shape, bool))
    )
    return [state.reshape(*ids.shape, -1) for state in states]


@pytest.mark.parametrize(
    "plan", ["0-3, 2-5", "0-1, (2|3|4), 5", "(0|1), 2, (3|4)*2, 5", "0, 3-5", "0-1, 2.mlp, 3-5"]
)
@pytest.mark.parametrize("name", KINDS)
def test_hidden_states_are_the_plans_states(name: str, plan: str, batch: Batch) -> None:
    """One for each state of the plan, the mean of a parallel step among them; the last one may be
    normed.
    """
    model, ids = cached_model(name), ids_of(batch)[:, :4]
    with torch.inference_mode():
        found = repsim.planned(model, plan, check=False)(
            input_ids=ids, output_hidden_states=True
        ).hidden_states
    states = last_hidden(model, plan, ids)
    assert len(found) == len(states)
    for ours, theirs in zip(found[:-1], states[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_some_hidden_states(llama: Model, batch: Batch) -> None:
    """transformers keeps those that are asked for by index, None in place of the others."""
    planned, ids = repsim.planned(llama, "0-1, (2|3|4), 5"), ids_of(batch)
    with torch.inference_mode():
        every = planned(input_ids=ids, output_hidden_states=True).hidden_states
        some = planned(input_ids=ids, output_hidden_states=[3, -1]).hidden_states
    assert [state is None for state in some] == [True, True, True, False, False]
    assert torch.equal(some[3], every[3])


@pytest.mark.parametrize("return_dict", [True, False])
def test_hidden_states_of_a_loop_that_collects_them(return_dict: bool, batch: Batch) -> None:
    with torch.inference_mode():
        output = repsim.planned(cached_model("gptj"), "0-1, (2|3|4), 5")(
            input_ids=ids_of(batch),
            output_hidden_states=True,
            use_cache=False,
            return_dict=return_dict,
        )
    assert len(output.hidden_states if return_dict else output[-1]) == 5


class SublayerByHand(nn.Module):
    """A Llama layer without its attention or without its MLP, written by hand."""

    def __init__(self, layer: Any, sublayer: str) -> None:
        super().__init__()
        self.layer, self.sublayer = layer, sublayer

    def forward(self, hidden_states: Tensor, **call: Any) -> Any:
        if self.sublayer == "attn":
            normed = self.layer.input_layernorm(hidden_states)
            return hidden_states + self.layer.self_attn(hidden_states=normed, **call)[0]
        return hidden_states + self.layer.mlp(self.layer.post_attention_layernorm(hidden_states))


class Mean(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: Tensor, **call: Any) -> Tensor:
        return torch.stack([layer(hidden_states, **call) for layer in self.layers]).mean(0)


def by_hand(plan: str) -> tuple[Any, dict[str, nn.Parameter]]:
    """A Llama whose module list holds just what the plan runs, put together by hand, and all of its
    parameters.
    """
    module = make("llama").module.requires_grad_(True)
    parameters = dict(module.named_parameters())
    layers = module.model.layers
    entries = {
        "0-1, 2.mlp, 3-5": [*layers[:2], SublayerByHand(layers[2], "mlp"), *layers[3:]],
        "0-1, 2.attn, 3-5": [*layers[:2], SublayerByHand(layers[2], "attn"), *layers[3:]],
        "0-1, (2|3|4)*2, 5": [*layers[:2], *[Mean(*layers[2:5])] * 2, layers[5]],
        "0-3, 2-5": [*layers[:4], *layers[2:]],
    }[plan]
    module.model.layers = nn.ModuleList(entries)
    module.config.num_hidden_layers = len(entries)
    return module, parameters


BY_HAND = ("0-1, 2.mlp, 3-5", "0-1, 2.attn, 3-5", "0-1, (2|3|4)*2, 5", "0-3, 2-5")


@pytest.mark.parametrize(
    "reentrant", [None, False, True], ids=["plain", "checkpointing", "reentrant"]
)
@pytest.mark.parametrize("plan", BY_HAND)
def test_gradients(plan: str, reentrant: bool | None, batch: Batch) -> None:
    """They arrive at the shared parameters, with checkpointing as without it; none where nothing
    runs.
    """
    ids, model = ids_of(batch), make("llama")
    model.module.requires_grad_(True)
    planned = repsim.planned(model, plan).train()
    if reentrant is not None:
        planned.activation_checkpointing_enable({"use_reentrant": reentrant})
    planned(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    literal, parameters = by_hand(plan)
    literal(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, own in model.module.named_parameters():
        expected = parameters[name].grad
        assert (own.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(own.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plan", BY_HAND)
def test_compiled(plan: str, batch: Batch) -> None:
    """As a whole, and made of a model whose layers were compiled; several plans one after the
    other.
    """
    ids, model = ids_of(batch), make("llama")
    with torch.inference_mode():
        expected = repsim.planned(model, plan)(input_ids=ids, use_cache=False).logits
        for other in (plan, "0-1, (2|3), 4-5", "baseline", plan):
            compiled: Any = torch.compile(repsim.planned(model, other), backend="eager")
            compiled_logits = compiled(input_ids=ids, use_cache=False).logits
        for layer in model.module.model.layers:
            layer.compile(backend="eager")
        layered = repsim.planned(model, plan)(input_ids=ids, use_cache=False).logits
        compiled_module: Any = torch.compile(model.module, backend="eager")
        of_compiled = repsim.planned(compiled_module, plan)(input_ids=ids).logits
    for logits in (compiled_logits, layered, of_compiled):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "jamba", "mamba"])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda planned: pickle.loads(pickle.dumps(planned))]
)
def test_copies_and_pickles(name: str, copied: Callable[[Any], Any], batch: Batch) -> None:
    planned = repsim.planned(cached_model(name), "0-1, (2|3|4), 1, 5")
    other = copied(planned)
    assert isinstance(other, type(cached_model(name).module))
    assert other.plan == planned.plan
    assert other.config.to_dict() == planned.config.to_dict()
    with torch.inference_mode():
        ours, theirs = (each(input_ids=ids_of(batch)).logits for each in (planned, other))
    assert torch.equal(ours, theirs)
    assert not {id(p) for p in planned.parameters()} & {id(p) for p in other.parameters()}


def test_several_threads_generate() -> None:
    """Each of them gets what it gets alone."""
    planned = repsim.planned(make("llama"), "0-1, (2|3|4)*2, 2-5")
    prompts = [
        torch.randint(3, 90, (1, 7), generator=torch.Generator().manual_seed(seed))
        for seed in range(4)
    ]
    expected = [planned.generate(prompt, max_new_tokens=8, **GREEDY) for prompt in prompts]
    wrong: list[str] = []

    def work() -> None:
        for prompt, text in zip(prompts * 3, expected * 3, strict=True):
            try:
                if not torch.equal(planned.generate(prompt, max_new_tokens=8, **GREEDY), text):
                    wrong.append("other tokens")
            except Exception as problem:
                wrong.append(repr(problem))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_speculative_decoding_with_its_own_first_layers() -> None:
    """transformers sets the configuration's depth for the draft and back again."""
    planned, ids = repsim.planned(make("llama"), "0-3, 2-5"), torch.arange(3, 14)[None]
    expected = planned.generate(ids, max_new_tokens=8, **GREEDY)
    assert torch.equal(
        planned.generate(ids, max_new_tokens=8, assistant_early_exit=2, **GREEDY), expected
    )
    assert planned.config.num_hidden_layers == 8


def test_hooks_are_copied_with_their_layer(batch: Batch) -> None:
    """A steering hook acts wherever its layer runs; taking it off the model later leaves the
    planned one as it is.
    """
    model, ids = make("llama"), ids_of(batch)
    handle = model.module.model.layers[2].register_forward_hook(lambda _m, _a, output: output + 1)
    with torch.inference_mode():
        steered = repsim.planned(model, "0-2, 2-5")
        found = steered(input_ids=ids).logits
        handle.remove()
        assert torch.equal(steered(input_ids=ids).logits, found)
        plain, layers = repsim.planned(model, "0-2, 2-5"), []
        for entry in plain.model.layers[2:4]:
            layers.append(entry.register_forward_hook(lambda _m, _a, output: output + 1))
        assert torch.equal(plain(input_ids=ids).logits, found)


@pytest.mark.parametrize("offload", [accelerate.cpu_offload, accelerate.disk_offload])
def test_offloaded_weights(offload: Callable[..., Any], tmp_path: Path, batch: Batch) -> None:
    expected, ids = repsim.planned(make("llama"), MIXED_PLAN), ids_of(batch)
    model = make("llama")
    offload(
        model.module, **({"offload_dir": tmp_path} if offload is accelerate.disk_offload else {})
    )
    planned = repsim.planned(model, MIXED_PLAN)
    with torch.inference_mode():
        assert torch.equal(planned(input_ids=ids).logits, expected(input_ids=ids).logits)
        assert torch.equal(planned(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert all(parameter.is_meta for parameter in planned.parameters())


# Saving


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "mixtral", "bert", "lfm2"])
@pytest.mark.parametrize("plan", ["0-3, 2-5", "drop:layer=2", "reverse:start=1"])
def test_a_saved_folder_loads_as_the_planned_model(
    name: str, plan: str, tmp_path: Path, batch: Batch
) -> None:
    planned, ids = repsim.planned(cached_model(name), plan), ids_of(batch)
    planned.save_pretrained(tmp_path)
    loaded = type(cached_model(name).module).from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        found, expected = (each(input_ids=ids)[0] for each in (loaded, planned))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        ("llama", "0-1, 2.mlp, 3-5", "a Hugging Face folder holds whole layers"),
        ("llama", "0-1, (2|3|4), 5", "a Hugging Face folder holds whole layers"),
        ("jamba", "0-2, 4, 3, 5", "would "),  # which layers attend is a period there, not a list
        ("deepseek_v3", "5, 0-4", "would "),  # and here the first two are dense
    ],
)
def test_what_a_folder_cannot_say_is_not_saved(
    name: str, plan: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RepsimError, match=message) as caught:
        repsim.planned(cached_model(name), plan).save_pretrained(tmp_path / "folder")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "folder").exists()


# The proof


def test_a_model_that_minds_a_layer_s_place_is_refused(batch: Batch) -> None:
    """A planted one: its forward adds to each state what depends on its place in the list."""
    model = make("llama")
    forward = type(model.module.model.layers[0]).forward

    def placed(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, hidden_states, *args, **kwargs) + 0.01 * self.self_attn.layer_idx

    for layer in model.module.model.layers:
        layer.forward = placed.__get__(layer)
    repsim.planned(model, "0-3")  # each layer in its own place
    with pytest.raises(RepsimError, match="comes to other states than its layers do") as caught:
        repsim.planned(model, "0, 2-5")
    assert "\n" not in str(caught.value)
    repsim.planned(model, "0, 2-5", check=False)


def test_a_cache_that_minds_a_layer_s_place_is_not_used() -> None:
    """A planted one: the second slot forgets; text is then generated without it, and the log says
    so.
    """
    model = make("llama")
    attention = type(model.module.model.layers[0].self_attn).forward

    def forgetful(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        cache = None if self.layer_idx == 1 else past_key_values
        return attention(self, *args, past_key_values=cache, **kwargs)

    for layer in model.module.model.layers:
        layer.self_attn.forward = forgetful.__get__(layer.self_attn)
    planned, ids = repsim.planned(model, "0, 2-5"), torch.arange(3, 14)[None]
    expected = repsim.planned(make("llama"), "0, 2-5").generate(ids, max_new_tokens=8, **GREEDY)
    assert torch.equal(planned.generate(ids, max_new_tokens=8, **GREEDY), expected)
    assert torch.equal(planned.generate(ids, max_new_tokens=8, use_cache=True, **GREEDY), expected)


def test_a_loop_that_changes_where_layers_begin_to_share_runs_a_longer_plan() -> None:
    """Gemma 4 counts its layers when it is made; against a deeper one with the same weights."""
    module, order = build_survey("gemma4_unified_text"), (0, 1, 1, 2, 3, 4, 5)
    kinds = [module.config.layer_types[layer] for layer in order]
    deeper = build_survey("gemma4_unified_text", num_hidden_layers=len(order), layer_types=kinds)
    weights = module.state_dict()

    def source(name: str) -> str:
        head, _, rest = name.partition("layers.")
        layer, _, tail = rest.partition(".")
        return f"{head}layers.{order[int(layer)]}.{tail}" if rest else name

    deeper.load_state_dict({name: weights[source(name)] for name in deeper.state_dict()})
    ids = torch.arange(3, 9)[None]
    with repsim.planned(module, "0-1, 1-5") as planned:
        for cached in (True, False):
            options = {"max_new_tokens": 6, "do_sample": False, "use_cache": cached}
            assert torch.equal(planned.generate(ids, **options), deeper.generate(ids, **options))


def test_the_proof_s_short_texts_leave_no_trace() -> None:
    """BigBird attends fully for good once it has read a short text; a long one must still be read
    in blocks.
    """
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 40, (1, 40)))
    expected = build_survey("big_bird")(ids).logits
    with repsim.planned(build_survey("big_bird"), "0-5") as planned:
        assert torch.equal(planned(ids).logits, expected)


def test_the_bound_on_rounding_by_hand() -> None:
    assert layout_rounding(torch.float32, 16) == pytest.approx(512 * 2.0**-23 * 4)
    assert layout_rounding(torch.bfloat16, 16) == 0.1


@pytest.mark.parametrize("name", ["jamba", "bamba", "lfm2"])
def test_a_hybrid_s_plan_without_attention(name: str, batch: Batch) -> None:
    """transformers' cache cannot do without an attention layer; the text is the same without a
    cache.
    """
    model = cached_model(name)
    kinds = model.module.config.layer_types
    plan = repsim.Plan.from_steps(
        [layer for layer, kind in enumerate(kinds) if "attention" not in kind or "linear" in kind]
    )
    planned, ids = repsim.planned(model, plan), ids_of(batch)[:, :4]
    (states,) = trace_plans(model, [plan], batch)
    torch.testing.assert_close(
        last_states(model, plan.text, batch), states[-1], rtol=1e-6, atol=1e-6
    )
    written = planned.generate(ids, max_new_tokens=3, **GREEDY)
    literal = ids
    for _ in range(3):
        with torch.inference_mode():
            logits = planned(input_ids=literal, use_cache=False).logits
        literal = torch.cat([literal, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(written, literal)


# Configurations, and what is asked for


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mamba", "jamba"])
def test_a_planned_model_says_how_deep_it_is(name: str) -> None:
    """Depth and kinds of layers, also where a configuration derives them (Mamba, Jamba) or calls
    them otherwise.
    """
    model = cached_model(name)
    kinds = getattr(model.module.config, "layer_types", None)
    config = repsim.planned(model, "0, 4*2, 2").config
    assert config.num_hidden_layers == 4
    assert getattr(config, "layer_types", None) == (kinds and [kinds[i] for i in (0, 4, 4, 2)])
    config.num_hidden_layers = 2
    assert config.num_hidden_layers == 2


def test_a_bare_hugging_face_model_will_do() -> None:
    module = make("llama").module
    planned = repsim.planned(module, "skip:start=1")
    assert type(planned).__name__ == type(module).__name__
    assert len(planned.model.layers) == 3
    assert planned.plan.text == "0, 1, 5"


def test_bad_plans(llama: Model) -> None:
    with pytest.raises(RepsimError, match="stands for 3 plans"):
        repsim.planned(llama, "skip:start=0..2")
    with pytest.raises(RepsimError, match=r"start=9: a 6-layer model allows 0 to 2"):
        repsim.planned(llama, "skip:start=9")
    with pytest.raises(
        RepsimError, match=r"the model follows the plan 0, 1, 5; plan the model it was made from"
    ):
        repsim.planned(repsim.planned(llama, "skip:start=1"), "0-2")
