from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

import repsim
from repsim.data.batching import Batch
from repsim.errors import RepsimError
from repsim.models import Model
from repsim.models.forward import check_stack
from repsim.models.layer_call import LayerCall, state_of
from repsim.models.logits import logits_of
from repsim.models.stack import find_stack
from repsim.models.tracing import NodeState, Tracer
from repsim.plans import Plan, PlanTrie, resolve
from support.architectures import build as build_survey
from support.models import (
    ARCHITECTURES,
    DECODER,
    DECODERS,
    HEAD,
    MIXED,
    MORE,
    MORE_DECODERS,
    POST_NORM,
    RELATIVE,
    SMALL,
    VOCABULARY,
    WITHOUT_SUBLAYERS,
    T,
    batch_of,
    build,
    cached_model,
)
from support.oracles import (
    assert_equal_but_for_rounding,
    last_states,
    naive,
    own_states,
    trace_plans,
    without_cache,
)
from support.plans import EXAMPLES

PLANS = (
    "reverse:start=1",
    "looped_parallel:start=1,loops=2",
    "drop:layer=1",
    "drop:layer=3,part=attn",
    "drop:layer=2,part=mlp",
    "repeat:layer=4,times=3",
    "0, 3-5",
)  # each keeps an attention layer of the hybrids: transformers' cache cannot do without one


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_find_stack(name: str) -> None:
    stack = cached_model(name).stack
    assert stack.path == (ARCHITECTURES | MORE)[name][2]
    assert len(stack) == T
    assert stack.head is cached_model(name).module.get_output_embeddings()
    assert (stack.norm is None) == (name in POST_NORM)
    assert find_stack(cached_model(name).module, stack.path) == stack


@pytest.mark.parametrize(
    "name", [name for name in (*ARCHITECTURES, *MORE) if name != "opt_post_norm"]
)
def test_the_final_norm_is_all_there_is_between_the_stack_and_the_last_hidden_state(
    name: str, batch: Batch
) -> None:
    """Post-norm OPT alone widens its states behind the stack."""
    model = cached_model(name)
    ends: list[Tensor] = []
    hook = model.stack.layers[-1].register_forward_hook(
        lambda _m, _a, output: ends.append(state_of(output))
    )
    base = getattr(model.module, model.module.base_model_prefix, model.module)
    with torch.inference_mode():
        output = base(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=torch.from_numpy(batch.mask).long(),
        ).last_hidden_state
        hook.remove()
        assert torch.equal(
            ends[0] if model.stack.norm is None else model.stack.norm(ends[0]), output
        )


@pytest.mark.parametrize("name", MORE)
def test_trace_of_more_architectures(name: str, batch: Batch) -> None:
    """The baseline is the model's own, every family the naive loop's, with one trace of one trie:
    bit for bit.

    With its cache the model's own forward may round otherwise.
    """
    model = cached_model(name)
    plans = [resolve(text, T)[0].plan for text in EXAMPLES if "part" not in text]
    baseline, *others = trace_plans(model, plans, batch)
    for ours, theirs in zip(
        baseline, own_states(model, batch, **without_cache(model)), strict=True
    ):
        assert torch.equal(ours, theirs)
    for layers, (ours, theirs) in enumerate(zip(baseline, own_states(model, batch), strict=True)):
        assert_equal_but_for_rounding(ours, theirs, layers)
    for plan, states in zip(plans[1:], others, strict=True):
        for ours, theirs in zip(states, naive(model, plan, batch), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", MORE)
def test_planned_more_architectures(name: str, batch: Batch) -> None:
    model = cached_model(name)
    texts = [text for text in PLANS if name not in WITHOUT_SUBLAYERS or "part" not in text]
    for text, states in zip(
        texts, trace_plans(model, [resolve(text, T)[0].plan for text in texts], batch), strict=True
    ):
        assert torch.equal(last_states(model, text, batch), states[-1])
        assert_equal_but_for_rounding(
            last_states(model, text, batch), states[-1], layers=len(states) - 1
        )


@pytest.mark.parametrize("name", MORE_DECODERS)
def test_generation_of_more_architectures(name: str) -> None:
    """With the cache as without it, step by step, for a plan that is longer than the model and one
    that is shorter.
    """
    model = cached_model(name)
    prompt, settings = (
        torch.tensor([[11, 23, 42, 7, 77]]),
        {"max_new_tokens": 4, "do_sample": False},
    )
    for text in ("0, (1|2|4)*2, 3*2, 5", "reverse:start=1", "0, 3-5"):
        with repsim.planned(model, text, check=False) as module:
            runs = [
                module.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    use_cache=cached,
                    return_dict_in_generate=True,
                    output_logits=True,
                    eos_token_id=None,
                    **settings,
                )
                for cached in (True, False)
            ]
        for cached, plain in zip(runs[0].logits, runs[1].logits, strict=True):
            torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MORE_DECODERS)
def test_logprobs_of_more_architectures(name: str, batch: Batch) -> None:
    """Scaled and capped logits (Cohere, Granite, Gemma 2) included."""
    model = cached_model(name)
    trie = PlanTrie.build([Plan.from_steps(range(T))])
    found: list[NodeState] = []
    Tracer(model).run(trie, [batch], found.append, logprobs=True)
    ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.mask)
    with torch.inference_mode():
        logprobs = model.module(input_ids=ids, attention_mask=mask.long()).logits.log_softmax(-1)
    expected = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0][mask[:, 1:]]
    ours = found[-1].logprob
    assert ours is not None
    torch.testing.assert_close(ours[~ours.isnan()], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_is_the_models_own_end(name: str, batch: Batch) -> None:
    model, ids = cached_model(name), torch.from_numpy(batch.token_ids)
    outputs: list[object] = []
    hook = model.stack.layers[-1].register_forward_hook(
        lambda _m, _a, output: outputs.append(output)
    )
    with torch.inference_mode():
        logits = model.module(input_ids=ids).logits
        hook.remove()
        states = state_of(outputs[0]).flatten(0, 1)
        ours = logits_of(model.module, model.stack, states, form=outputs[0])
    torch.testing.assert_close(ours, logits.flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert model.module.get_submodule(model.stack.path) is model.stack.layers


def test_a_replayed_call_leaves_the_models_cache_alone(llama: Model) -> None:
    """Some models make a cache whatever they are told (GraniteMoe takes `use_cache` only further
    in).
    """
    cache, state = transformers.DynamicCache(), torch.ones(1, 2, 32)
    call = LayerCall((state, cache), {"past_key_values": cache, "use_cache": True}).on(state * 2)
    assert call.args[1] is None
    assert call.kwargs == {"past_key_values": None, "use_cache": True}
    assert torch.equal(call.state, state * 2)
    assert torch.equal(
        LayerCall((), {"hidden_states": state, "layer_past": cache}).on(state * 3).state, state * 3
    )


class Blocks(nn.Module):
    """A module with lists of these lengths, and a configuration of this depth."""

    def __init__(self, depth: int, **lists: int) -> None:
        super().__init__()
        self.config = transformers.LlamaConfig(num_hidden_layers=depth)
        for name, length in lists.items():
            self.add_module(name, nn.ModuleList(nn.Linear(1, 1) for _ in range(length)))


@pytest.mark.parametrize(
    ("module", "path", "message"),
    [
        (
            Blocks(3, blocks=2),
            None,
            "no module list fits its layers; seen: blocks (2); no plan can arrange them",
        ),
        (Blocks(3), None, "no module list fits its layers; seen: none"),
        (
            Blocks(3, a=3, b=3, c=1),
            None,
            "could be the layers; seen: a (3), b (3), c (1); name one with stack=PATH "
            "(--stack PATH)",
        ),
        (Blocks(3, a=3), "layers", "stack=layers: Blocks has no such module list; seen: a (3)"),
    ],
)
def test_no_stack_or_several(module: nn.Module, path: str | None, message: str) -> None:
    with pytest.raises(RepsimError) as caught:
        find_stack(module, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_decides() -> None:
    stack = find_stack(Blocks(3, a=3, b=3), "b")
    assert (stack.path, stack.is_named) == ("b", True)
    assert not find_stack(Blocks(3, a=3, b=2), "a").is_named
    assert not find_stack(Blocks(3, a=3)).is_named


T5_CONFIG = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "decoder_start_token_id": 0,
}
BART_CONFIG = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
BART_CONFIG |= {
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
}
BART_CONFIG |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2}


@pytest.mark.parametrize(
    ("class_name", "config", "path", "message"),
    [
        (
            "AlbertModel",
            {**SMALL, "embedding_size": 16, "num_hidden_layers": 2, "inner_group_num": 2},
            "encoder.albert_layer_groups.0.albert_layers",
            "it is a part of an entry of encoder.albert_layer_groups, so it does not hold the "
            "layers of AlbertModel",
        ),
        (
            "AlbertModel",
            {**SMALL, "embedding_size": 16},
            "encoder.albert_layer_groups",
            "it has 1 entries where the configuration says 6, so",
        ),
        (
            "T5Model",
            {**T5_CONFIG, "num_layers": 2, "num_decoder_layers": 3},
            "encoder.block.0.layer",
            "it is a part of an entry of encoder.block",
        ),
        (
            "T5Model",
            {**T5_CONFIG, "num_layers": 2, "num_decoder_layers": 3},
            "decoder.block.1.layer",
            "it is a part of an entry of decoder.block",
        ),
        (
            "HrmTextForCausalLM",
            DECODER,
            "model.L_module.layers",
            "it has 6 entries where the configuration says ",
        ),
        (
            "T5Model",
            {**T5_CONFIG, "num_layers": 2, "num_decoder_layers": 3},
            "layers",
            "has no such module list",
        ),
    ],
)
def test_a_path_that_names_no_layers(
    class_name: str, config: dict[str, Any], path: str, message: str
) -> None:
    """A list that is named is no better for it: the same tests as for one that is found."""
    with pytest.raises(RepsimError) as caught:
        find_stack(build(class_name, config), path)
    assert str(caught.value).startswith(f"stack={path}: ")
    assert message in str(caught.value)


def test_an_encoder_and_a_decoder_of_different_depths() -> None:
    module = build("T5Model", {**T5_CONFIG, "num_layers": 2, "num_decoder_layers": 3})
    assert [len(find_stack(module, f"{half}.block")) for half in ("encoder", "decoder")] == [2, 3]


class Runs(nn.Module):
    """A text model of three layers that run in some order, each handed what the one before gave."""

    def __init__(self, order: list[int], shift: int = 0, wrap: Any = lambda state: state) -> None:
        super().__init__()
        self.config = transformers.LlamaConfig(num_hidden_layers=3, vocab_size=VOCABULARY)
        self.embed, self.order, self.shift, self.wrap = (
            nn.Embedding(VOCABULARY, 4),
            order,
            shift,
            wrap,
        )
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for layer in self.layers:
            layer.register_forward_hook(lambda _layer, _args, output: wrap(output))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def can_generate(self) -> bool:
        return False

    def forward(self, input_ids: Tensor) -> Tensor:
        state = self.embed(input_ids.roll(self.shift, 1))
        for number in self.order:
            output = self.layers[number](state)
            state = output[0] if isinstance(output, tuple) else output
        return state


class TwoStates(NamedTuple):
    hidden: Tensor
    other: Tensor


def test_the_forward_decides_what_is_a_stack() -> None:
    for right in (Runs([0, 1, 2]), Runs([0, 1, 2], wrap=lambda state: (state, None))):
        check_stack(right, find_stack(right))
        # Of `Runs`; the check's are gone.
        assert [len(layer._forward_hooks) for layer in right.layers] == [1, 1, 1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Runs([0, 1, 2, 0, 1, 2]),
            "Runs: layers: its 3 entries run in the order 0, 1, 2, 0, 1, 2; layers that a plan can",
        ),
        (Runs([2, 1, 0]), "its 3 entries run in the order 2, 1, 0; "),
        (Runs([0, 2]), "its 3 entries run in the order 0, 2; "),
        (Runs([]), "none of its entries runs on text; "),
        (
            Runs([7]),
            "Runs: its forward does not run on token ids alone (IndexError: index 7 is out of "
            "range); ",
        ),
        (
            Runs([0, 1, 2], shift=1),
            "the state at a place does not depend on the token there, so a store would name the ",
        ),
        (
            Runs([0, 1, 2], wrap=lambda state: TwoStates(state, state)),
            "its layers hand on TwoStates, more than one state, so they cannot be rearranged; "
            "take another model",
        ),
    ],
)
def test_what_the_forward_shows_to_be_no_stack(module: nn.Module, message: str) -> None:
    with pytest.raises(RepsimError) as caught:
        check_stack(module, find_stack(module))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("class_name", "config", "half"),
    [
        ("T5Model", {**T5_CONFIG, "num_layers": 2, "num_decoder_layers": 3}, "decoder.block"),
        ("T5ForConditionalGeneration", {**T5_CONFIG, "num_layers": 3}, "encoder.block"),
        ("BartModel", BART_CONFIG, "decoder.layers"),
        ("BartModel", BART_CONFIG, "encoder.layers"),
        ("MarianModel", BART_CONFIG, "decoder.layers"),
        ("M2M100Model", BART_CONFIG, "decoder.layers"),
    ],
)
def test_encoder_and_decoder_read_the_tokens_that_a_store_names(
    class_name: str, config: dict[str, Any], half: str, batch: Batch
) -> None:
    """Each text by itself through plain transformers, the decoder on that very text and not one
    place behind it.
    """
    module = build(class_name, config)
    stack = find_stack(module, half)
    check_stack(module, stack)
    model = Model(module, None, "two", None, stack)
    (states,) = trace_plans(model, [Plan.from_steps(range(len(stack)))], batch)
    name = f"{half.partition('.')[0]}_hidden_states"
    start = 0
    for row, mask in zip(batch.token_ids, batch.mask, strict=True):
        ids = torch.from_numpy(row[mask])[None]
        with torch.inference_mode():
            own = module(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)[name]
        for number, expected in enumerate(own[:-1]):  # the last one is behind the final norm
            found = states[number][start : start + len(ids[0])]
            torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-5)
        start += len(ids[0])


@pytest.mark.parametrize(
    ("class_name", "config", "message"),
    [
        (
            "AlbertModel",
            {**SMALL, "embedding_size": 16},
            "seen: encoder.albert_layer_groups (1), encoder.albert_layer_",
        ),
        (
            "T5ForConditionalGeneration",
            {
                "d_model": 32,
                "d_kv": 8,
                "d_ff": 48,
                "num_layers": T,
                "num_heads": 4,
                "vocab_size": VOCABULARY,
            },
            "several module lists could be the layers; seen: encoder.block (6), "
            "encoder.block.*.layer (2), decoder.block (6), decoder.block.*.layer (3); name one",
        ),
        (
            "Gemma3nForCausalLM",
            {
                **HEAD,
                "num_kv_shared_layers": 2,
                "layer_types": MIXED,
                "vocab_size_per_layer_input": VOCABULARY,
            }
            | {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "intermediate_size": [48] * T}
            | {"activation_sparsity_pattern": [0.0] * T},
            "its last 2 layers read the keys and values of layers before them",
        ),
    ],
)
def test_models_without_a_stack_of_their_own(
    class_name: str, config: dict[str, Any], message: str
) -> None:
    """ALBERT runs one layer over and over, T5 has two stacks, Gemma 3n's layers share keys and
    values.
    """
    with pytest.raises(RepsimError) as caught:
        find_stack(build(class_name, config))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("class_name", "config", "message"),
    [
        (
            "DebertaV2Model",
            {**SMALL, **RELATIVE, "conv_kernel_size": 3},
            "the model itself changes the states between layers 0 and 1",
        ),
        (
            "LongformerModel",
            {**SMALL, "attention_window": 4},
            r"takes states of shape \(3, 12, 32\), not \(3, 9, 32\)",
        ),
        (
            "XLNetModel",
            {"d_model": 32, "n_layer": T, "n_head": 4, "d_inner": 48, "vocab_size": VOCABULARY},
            r"takes states of shape \(12, 2, 32\), not \(2, 12, 32\)",
        ),
    ],
)
def test_models_that_are_more_than_their_layers(
    class_name: str, config: dict[str, Any], message: str, batch: Batch
) -> None:
    module = build(class_name, config)
    with pytest.raises(RepsimError, match=message):
        trace_plans(
            Model(module, None, "odd", None, find_stack(module)), [Plan.from_steps(range(T))], batch
        )


def test_a_batch_of_one_sample(batch: Batch) -> None:
    """Shapes with a single sample and a single token do not confuse tuples, lists and tensors."""
    single = batch_of((1,))
    for name in ("llama", "falcon", "mpt", "bloom"):
        (states,) = trace_plans(cached_model(name), [Plan.from_steps(range(T))], single)
        for ours, theirs in zip(
            states,
            own_states(cached_model(name), single, **without_cache(cached_model(name))),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


def test_a_model_that_divides_its_weights_is_refused_before_it_runs() -> None:
    module, advised = (build_survey("rwkv", rescale_every=every) for every in (3, 0))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(
        RepsimError, match=r"RwkvForCausalLM: divides its weights .*load it with rescale_every=0"
    ):
        repsim.planned(module, "0, 2-5")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    ids = torch.arange(3, 12)[None]
    # Norms add a constant to what is halved.
    assert_close(module(ids).logits, advised(ids).logits, rtol=0, atol=1e-3)
    first, second = (one.rwkv.blocks[5].attention.output.weight for one in (module, advised))
    assert torch.equal(2 * first, second)
