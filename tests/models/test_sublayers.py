"""Sublayers against their mathematics written by hand, and what the proof passes and refuses."""

import copy
import functools
import gc
import inspect
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from torch import Tensor, nn

from repsim.data.batching import Batch
from repsim.errors import RepsimError
from repsim.models import Model, layer_call, sublayers
from repsim.models.layer_call import LayerCall, apply_layer, prove_new_sublayers, state_of
from repsim.models.sharing import shared_copy
from repsim.models.stack import Stack
from repsim.plans import Application, Plan
from support.models import (
    ARCHITECTURES,
    DECODER,
    HEAD,
    LATENT,
    MIXED,
    MORE,
    POST_NORM,
    SMALL,
    TOKENS,
    VOCABULARY,
    WITHOUT_SUBLAYERS,
    Config,
    T,
    batch_of,
    build,
    cached_model,
)
from support.oracles import last_states, record_calls, trace_plans

SEQ2SEQ = {**TOKENS, "decoder_start_token_id": 1}
LONGCAT = {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2}
# Layers that are more than one attention and one MLP: (model class, configuration, where the layers
# are).
COMPOSED: dict[str, tuple[str, Config, str]] = {
    "mobilebert": (
        "MobileBertModel",
        {**SMALL, "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16}
        | {"num_feedforward_networks": 3},
        "encoder.layer",
    ),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        {**DECODER, **LATENT, **LONGCAT, "num_key_value_heads": 4, "num_layers": T, "head_dim": 4}
        | {"n_routed_experts": 4},
        "model.layers",
    ),
    "t5_encoder": (
        "T5EncoderModel",
        {**SEQ2SEQ, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": T, "num_heads": 4},
        "encoder.block",
    ),
    "bart_decoder": (
        "BartModel",
        {**SEQ2SEQ, "d_model": 32, "encoder_layers": 2, "decoder_layers": T, "encoder_ffn_dim": 48}
        | {"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
        "decoder.layers",
    ),
    "fnet": ("FNetModel", SMALL, "encoder.layer"),
}


@functools.cache
def composed(name: str) -> Model:
    """A model of `COMPOSED` or of those that all tests share."""
    if name not in COMPOSED:
        return cached_model(name)
    class_name, config, path = COMPOSED[name]
    module = build(class_name, config)
    layers = module.get_submodule(path)
    stack = Stack(path, module.get_submodule(path.rpartition(".")[0]), layers, None, None)
    return Model(module, None, name, None, stack)


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """A copy of its own."""
    module = copy.deepcopy(model.module).to(dtype)
    path = model.stack.path
    owner = module.get_submodule(path.rpartition(".")[0])
    return replace(
        model, module=module, stack=Stack(path, owner, module.get_submodule(path), None, None)
    )


def calls_of(model: Model, batch: Batch) -> list[LayerCall]:
    inputs: dict[str, object] = {"use_cache": False} if model.module.can_generate() else {}
    if model.module.config.is_encoder_decoder and model.stack.path.startswith("decoder"):
        inputs = {"use_cache": False, "decoder_input_ids": torch.from_numpy(batch.token_ids)}
    return record_calls(model, batch, **inputs)


def run(model: Model, layer: int, sublayer: str, call: LayerCall) -> Tensor:
    with torch.inference_mode():
        return state_of(apply_layer(model.stack, Application(layer, sublayer), call))


# The sublayers of a layer, written by hand. `attend` calls the layer's own attention with the
# layer's arguments.
Attend = Callable[..., Tensor]
ByHand = Callable[[Any, Attend, Tensor], Tensor]


def pre_norm(norm: str, attention: str, second_norm: str, mlp: str) -> tuple[ByHand, ByHand]:
    return (
        lambda layer, attend, x: x + attend(getattr(layer, attention), getattr(layer, norm)(x)),
        lambda layer, attend, x: x + getattr(layer, mlp)(getattr(layer, second_norm)(x)),
    )


def opt_mlp(layer: Any, x: Tensor) -> Any:
    return layer.fc2(layer.activation_fn(layer.fc1(x)))


def bert_attention(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    return layer.output.LayerNorm(attend(layer.attention, x))


def bert_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    x = layer.attention.output.LayerNorm(x)
    return layer.output.LayerNorm(x + layer.output.dense(layer.intermediate(x)))


def mpnet_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    x = layer.attention.LayerNorm(x)
    return layer.output.LayerNorm(x + layer.output.dense(layer.intermediate(x)))


def fnet_attention(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    mixed = torch.fft.fftn(x, dim=(1, 2)).real
    return layer.output.LayerNorm(layer.fourier.output.LayerNorm(x + mixed))


def fnet_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    x = layer.fourier.output.LayerNorm(x)
    return layer.output.LayerNorm(x + layer.output.dense(layer.intermediate(x)))


def mobilebert_attention(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    """Without its inner feed-forward networks the attention's output passes their norms."""
    inner = attend(layer.attention, *layer.bottleneck(x))
    for network in layer.ffn:
        inner = network.output.LayerNorm(inner)
    bottleneck = layer.output.bottleneck
    return bottleneck.LayerNorm(x + bottleneck.dense(layer.output.LayerNorm(inner)))


def mobilebert_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    *_, inner = layer.bottleneck(x)
    inner = layer.attention.output.LayerNorm(inner)
    for network in layer.ffn:
        inner = network.output.LayerNorm(inner + network.output.dense(network.intermediate(inner)))
    inner = layer.output.LayerNorm(inner + layer.output.dense(layer.intermediate(inner)))
    bottleneck = layer.output.bottleneck
    return bottleneck.LayerNorm(x + bottleneck.dense(inner))


def longcat_attention(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    for norm, attention in zip(layer.input_layernorm, layer.self_attn, strict=True):
        x = x + attend(attention, norm(x))
    return x


def longcat_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    first, second = layer.post_attention_layernorm
    experts = layer.mlp(first(x))
    x = x + layer.mlps[0](first(x))
    return x + layer.mlps[1](second(x)) + experts


def t5_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    network = layer.layer[-1]
    return x + network.DenseReluDense(network.layer_norm(x))


def bart_attention(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    x = layer.self_attn_layer_norm(x + attend(layer.self_attn, x))
    encoder = {
        "key_value_states": "encoder_hidden_states",
        "attention_mask": "encoder_attention_mask",
    }
    return layer.final_layer_norm(
        layer.encoder_attn_layer_norm(x + attend(layer.encoder_attn, x, **encoder))
    )


def bart_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    x = layer.encoder_attn_layer_norm(layer.self_attn_layer_norm(x))
    return layer.final_layer_norm(x + opt_mlp(layer, x))


def distilbert_attention(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    return layer.output_layer_norm(layer.sa_layer_norm(x + attend(layer.attention, x)))


def distilbert_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    x = layer.sa_layer_norm(x)
    return layer.output_layer_norm(x + layer.ffn(x))


def opt_post_mlp(layer: Any, attend: Attend, x: Tensor) -> Tensor:
    x = layer.self_attn_layer_norm(x)
    return layer.final_layer_norm(x + opt_mlp(layer, x))


LLAMA = pre_norm("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
SEQUENTIAL: dict[str, tuple[ByHand, ByHand]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen3": LLAMA,
    "mixtral": LLAMA,
    "gpt2": pre_norm("ln_1", "attn", "ln_2", "mlp"),
    "modernbert": pre_norm("attn_norm", "attn", "mlp_norm", "mlp"),
    "opt": (
        lambda layer, attend, x: x + attend(layer.self_attn, layer.self_attn_layer_norm(x)),
        lambda layer, attend, x: x + opt_mlp(layer, layer.final_layer_norm(x)),
    ),
    "gemma3_text": (
        lambda layer, attend, x: (
            x + layer.post_attention_layernorm(attend(layer.self_attn, layer.input_layernorm(x)))
        ),
        lambda layer, attend, x: (
            x + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))
        ),
    ),
    "gpt_neox_sequential": pre_norm(
        "input_layernorm", "attention", "post_attention_layernorm", "mlp"
    ),
    "falcon_alibi": pre_norm(
        "input_layernorm", "self_attention", "post_attention_layernorm", "mlp"
    ),
    "bloom": (
        # Adds the residual itself.
        lambda layer, attend, x: attend(layer.self_attention, layer.input_layernorm(x)),
        lambda layer, attend, x: layer.mlp(layer.post_attention_layernorm(x), x),
    ),
    "mpt": (
        lambda layer, attend, x: x + attend(layer.attn, layer.norm_1(x)),
        lambda layer, attend, x: layer.ffn(layer.norm_2(x), x),
    ),
    "granitemoehybrid": (
        lambda layer, attend, x: (
            x + attend(layer.mamba, layer.input_layernorm(x)) * layer.residual_multiplier
        ),
        lambda layer, attend, x: (
            x
            + (layer.block_sparse_moe(h := layer.post_attention_layernorm(x)) + layer.shared_mlp(h))
            * layer.residual_multiplier
        ),
    ),
}
PARALLEL: dict[str, tuple[ByHand, ByHand]] = {
    "gpt_neox": pre_norm("input_layernorm", "attention", "post_attention_layernorm", "mlp"),
    "falcon": pre_norm("input_layernorm", "self_attention", "input_layernorm", "mlp"),
    "falcon_two_norms": pre_norm("ln_attn", "self_attention", "ln_mlp", "mlp"),
    "gptj": pre_norm("ln_1", "attn", "ln_1", "mlp"),
}
POST: dict[str, tuple[ByHand, ByHand]] = {
    "bert": (bert_attention, bert_mlp),
    "roberta": (bert_attention, bert_mlp),
    "distilbert": (distilbert_attention, distilbert_mlp),
    "opt_post_norm": (
        lambda layer, attend, x: layer.final_layer_norm(
            layer.self_attn_layer_norm(x + attend(layer.self_attn, x))
        ),
        opt_post_mlp,
    ),
}
BY_HAND = SEQUENTIAL | PARALLEL | POST
BY_HAND |= {
    "mpnet": (bert_attention, mpnet_mlp),
    "mobilebert": (mobilebert_attention, mobilebert_mlp),
    "longcat_flash": (longcat_attention, longcat_mlp),
    "t5_encoder": (lambda layer, attend, x: attend(layer.layer[0], x), t5_mlp),
    "bart_decoder": (bart_attention, bart_mlp),
    "fnet": (fnet_attention, fnet_mlp),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_sublayers_by_hand(name: str, batch: Batch) -> None:
    model, index = composed(name), 2
    layer, call = model.stack.layers[index], calls_of(model, batch)[index]
    arguments = (
        inspect.signature(type(layer).forward).bind(layer, *call.args, **call.kwargs).arguments
    )
    for name in ("self", "hidden_states", "x"):
        arguments.pop(name, None)
    arguments |= arguments.pop("kwargs", {})

    def attend(module: nn.Module, *states: Tensor, **renamed: str) -> Tensor:
        accepted = inspect.signature(type(module).forward).parameters
        named = arguments | {name: arguments[theirs] for name, theirs in renamed.items()}
        own = {
            name: value for name, value in named.items() if name in accepted or "kwargs" in accepted
        }
        if "residual" in accepted:
            own["residual"] = call.state
        return state_of(module(*states, **own))

    for sublayer, by_hand in zip(("attn", "mlp"), BY_HAND[model.name], strict=True):
        with torch.inference_mode():
            expected = by_hand(layer, attend, call.state)
        torch.testing.assert_close(
            run(model, index, sublayer, call), expected, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_sublayers_one_after_the_other_are_the_layer(name: str, batch: Batch) -> None:
    model = cached_model(name)
    call = calls_of(model, batch)[2]
    composed_output = run(model, 2, "mlp", call.on(run(model, 2, "attn", call)))
    torch.testing.assert_close(composed_output, run(model, 2, "", call), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_sublayers_add_up_to_the_layer(name: str, batch: Batch) -> None:
    model = cached_model(name)
    call = calls_of(model, batch)[2]
    x, whole, attn, mlp = (
        call.state,
        *(run(model, 2, sublayer, call) for sublayer in ("", "attn", "mlp")),
    )
    torch.testing.assert_close(whole - x, (attn - x) + (mlp - x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", [*ARCHITECTURES, *(name for name in MORE if name not in WITHOUT_SUBLAYERS)]
)
def test_sublayers_of_every_layer(name: str, batch: Batch) -> None:
    """Without attention no position sees others; without both a pre-norm layer changes nothing."""
    model = cached_model(name)
    for index, call in enumerate(calls_of(model, batch)):
        other = call.state.clone()
        other[0, 2] = torch.randn(model.units)
        elsewhere = torch.arange(9) != 2
        here = call.state.clone()
        alone, alone_other = (run(model, index, "mlp", call.on(state)) for state in (here, other))
        torch.testing.assert_close(
            alone[0, elsewhere], alone_other[0, elsewhere], rtol=1e-6, atol=1e-6
        )
        mixed, mixed_other = (run(model, index, "attn", call.on(state)) for state in (here, other))
        assert not torch.allclose(
            mixed[0, elsewhere], mixed_other[0, elsewhere], rtol=1e-4, atol=1e-4
        )
        assert torch.equal(here, call.state), "a layer wrote into its input"
        if name in POST_NORM:
            continue
        layer = shared_copy(model.stack.layers[index])
        paths = [
            sublayers.match_paths(layer, patterns)
            for patterns in (sublayers.ATTENTION_PATHS, sublayers.MLP_PATHS)
        ]
        for path in (*paths[0], *paths[1]):
            layer.set_submodule(path, sublayers.SilentModule(layer.get_submodule(path)))
        with torch.inference_mode():
            nothing = state_of(layer(*call.args, **call.kwargs))
        assert torch.equal(nothing, call.state)


@pytest.mark.parametrize("sublayer", ["attn", "mlp"])
def test_an_unknown_sublayer(sublayer: str, batch: Batch) -> None:
    """The same line from a trace, where layers are envoys, and from the planned stack."""
    plan, other = f"0-1, 2.{sublayer}, 3-5", {"attn": "mlp", "mlp": "attention"}[sublayer]
    message = (
        f"MambaBlock has no sublayer `{sublayer}`: no {other} module is known in it "
        "(seen: norm, mixer)"
    )
    with pytest.raises(RepsimError, match=re.escape(message)):
        last_states(cached_model("mamba"), plan, batch)
    with pytest.raises(RepsimError, match=re.escape(message)):
        trace_plans(
            cached_model("mamba"), [Plan.from_steps([0, 1, f"2.{sublayer}", 3, 4, 5])], batch
        )


DIVIDED = [*ARCHITECTURES, *COMPOSED, *(name for name in MORE if name not in WITHOUT_SUBLAYERS)]


def prove(model: Model, layer: int, call: LayerCall) -> None:
    """The proof of one layer by itself, whatever was proven before."""
    model.stack.proven_kinds.clear()
    calls = [call] * model.layers
    prove_new_sublayers(model.stack, [Application(layer, "mlp")], lambda: calls)


@pytest.mark.parametrize("name", DIVIDED)
def test_the_proof_passes_what_is_right(name: str, batch: Batch) -> None:
    """Every layer of every architecture, with padding, under inference mode, and leaves no hook
    behind.
    """
    model = composed(name)
    with torch.inference_mode():
        for layer, call in enumerate(calls_of(model, batch)):
            prove(model, layer, call)
    assert not any(module._forward_hooks for module in model.module.modules())


@pytest.mark.parametrize(
    "name", ["llama", "gpt_oss", "qwen3_next", "mobilebert", "jamba", "falcon_h1", "bert"]
)
def test_the_proof_in_bfloat16(name: str, batch: Batch) -> None:
    model = in_dtype(composed(name), torch.bfloat16)
    for layer, call in enumerate(calls_of(model, batch)):
        prove(model, layer, call)


@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_the_proof_under_any_mask(padding: str) -> None:
    """Padding stands where a token would see others; one token alone hides nothing that is
    remembered.
    """
    model, batch = cached_model("llama"), batch_of((9, 3, 1))
    if padding == "left":
        batch = Batch(batch.token_ids[:, ::-1].copy(), batch.mask[:, ::-1].copy())
    elif padding == "none":
        batch = batch_of((2, 2))
    prove(model, 2, calls_of(model, batch)[2])
    assert len(model.stack.proven_kinds) == 1
    prove(model, 2, calls_of(model, batch_of((1,)))[2])
    assert not model.stack.proven_kinds


def test_the_proof_of_offloaded_layers(batch: Batch, tmp_path: Path) -> None:
    model = in_dtype(cached_model("llama"), torch.float32)
    disk_offload(model.module, tmp_path, execution_device=torch.device("cpu"))
    assert next(model.stack.layers.parameters()).is_meta
    prove(model, 2, calls_of(cached_model("llama"), batch)[2])


PLANTED = {  # architecture, paths of attention, paths of the MLP: what is found
    "the residual is zeroed": (
        "mpnet",
        ("attention",),
        ("output.dense",),
        "tokens no longer depend on their own states",
    ),
    "the residual of the other sublayer is": (
        "bert",
        ("attention.output.dense",),
        ("output",),
        "no longer depend on their own",
    ),
    "an MLP is left running": ("mobilebert", None, ("output.dense",), "still acts"),
    "experts are left running": (
        "granitemoehybrid",
        None,
        ("shared_mlp",),
        "block_sparse_moe.* still acts",
    ),
    "what never runs is dropped": (
        "llama",
        ("self_attn.idle",),
        None,
        "tokens still depend on each other",
    ),
    "what never runs is the MLP": ("llama", None, ("mlp.idle",), "mlp.gate_proj still acts"),
    "the sublayers are swapped": (
        "llama",
        ("mlp",),
        ("self_attn",),
        "without mlp tokens still depend on each other",
    ),
    "attention takes the MLP along": (
        "llama",
        ("self_attn", "mlp"),
        None,
        "self_attn, mlp mlp has no effect",
    ),
    "the MLP takes attention along": (
        "llama",
        None,
        ("self_attn", "mlp"),
        "no longer depend on each other",
    ),
    "one of two mixers is left": (
        "falcon_h1",
        ("self_attn",),
        None,
        "tokens still depend on each other",
    ),
    "cross-attention is left": ("bart_decoder", ("self_attn",), None, "encoder_attn.* still acts"),
    "one of two sublayers is left": (
        "longcat_flash",
        ("self_attn.0",),
        None,
        "tokens still depend on each other",
    ),
}


# What MobileBERT's inner networks add to bottlenecks that are linear is lost in bfloat16's
# rounding.
LOW = [(fault, torch.bfloat16) for fault in PLANTED if fault != "an MLP is left running"]


@pytest.mark.parametrize(("fault", "dtype"), [*((fault, torch.float32) for fault in PLANTED), *LOW])
def test_the_proof_refuses_what_is_wrong(
    fault: str, dtype: torch.dtype, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, attention, mlp, message = PLANTED[fault]
    model = in_dtype(composed(name), dtype)
    for part in ("self_attn", "mlp") if name == "llama" else ():
        model.stack.layers[1].get_submodule(part).add_module("idle", nn.Identity())
    call = calls_of(model, batch)[1]
    monkeypatch.setattr(sublayers, "ATTENTION_PATHS", attention or sublayers.ATTENTION_PATHS)
    monkeypatch.setattr(sublayers, "MLP_PATHS", mlp or sublayers.MLP_PATHS)
    with pytest.raises(RepsimError, match=message) as caught:
        prove(model, 1, call)
    layer = type(model.stack.layers[1]).__name__
    assert str(caught.value).startswith(f"{layer} is not one attention and one MLP: without ")
    assert str(caught.value).endswith("; name the whole layer instead")
    assert not any(module._forward_hooks for module in model.stack.layers.modules())


@pytest.mark.parametrize(
    ("class_name", "config", "path", "message"),
    [
        (
            "RwkvForCausalLM",
            {
                **TOKENS,
                "hidden_size": 32,
                "num_hidden_layers": T,
                "attention_hidden_size": 32,
                "rescale_every": 0,
            },
            "rwkv.blocks",
            # Its other sublayer mixes each token with the last one.
            "without attention tokens still depend on each other",
        ),
        (
            "Gemma4ForCausalLM",
            {
                **HEAD,
                "layer_types": MIXED,
                "hidden_size_per_layer_input": 8,
                "num_kv_shared_layers": 0,
            }
            | {"vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 8},
            "model.layers",
            "per_layer_input_gate still acts",  # a third sublayer
        ),
    ],
)
def test_layers_that_are_not_attention_and_mlp(
    class_name: str, config: Config, path: str, message: str, batch: Batch
) -> None:
    module = build(class_name, config)
    owner = module.get_submodule(path.rpartition(".")[0])
    model = Model(
        module, None, "odd", None, Stack(path, owner, module.get_submodule(path), None, None)
    )
    with pytest.raises(RepsimError, match=message):
        prove(model, 1, calls_of(model, batch)[1])


def test_each_kind_of_layer_is_proven_once_for_a_model(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jamba has three kinds: attention and Mamba, each with an MLP, and Mamba with experts."""
    model = in_dtype(cached_model("jamba"), torch.float32)
    proven: list[nn.Module] = []
    monkeypatch.setattr(layer_call, "prove_sublayers", lambda layer, *_: proven.append(layer))
    plan = Plan.from_steps(["0.attn", "1.attn", "2.mlp", "3.attn", "4.mlp", "5.attn"])
    for _ in range(2):
        trace_plans(model, [plan], batch)
    kinds = {sublayers.layer_kind(layer) for layer in model.stack.layers}
    assert len(proven) == len({sublayers.layer_kind(layer) for layer in proven})
    assert {sublayers.layer_kind(layer) for layer in proven} == kinds


def test_whole_layers_need_no_proof(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_call, "prove_sublayers", lambda *_: pytest.fail("proven"))
    trace_plans(cached_model("llama"), [Plan.from_steps([0, 1, (2, 3)])], batch)


def test_no_model_is_kept_alive_by_its_proof(batch: Batch) -> None:
    model = in_dtype(cached_model("llama"), torch.float32)
    prove(model, 2, calls_of(model, batch)[2])
    layer = weakref.ref(model.stack.layers[2])
    del model
    gc.collect()
    assert layer() is None


@pytest.mark.parametrize(
    ("patterns", "paths"),
    [
        (("mlp", "mlps.*"), ["mlp", "mlps.0", "mlps.1"]),
        (("self_attn",), []),  # a list never runs
        (("self_attn.*", "self_attn.1.o_proj"), ["self_attn.0", "self_attn.1.o_proj"]),
        (("mlp", "mlp.router"), ["mlp.router"]),
        (("lp",), []),
    ],
)
def test_match_paths(patterns: tuple[str, ...], paths: list[str]) -> None:
    assert sublayers.match_paths(composed("longcat_flash").stack.layers[0], patterns) == paths
