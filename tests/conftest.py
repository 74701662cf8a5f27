"""Tiny random models of many architectures, made from their configuration classes: nothing is downloaded."""

import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import transformers

from repsim.corpus import Batch
from repsim.layers import find_stack
from repsim.models import Model

T = 6
VOCABULARY = 97
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": T,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
DECODER = {**SMALL, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
MIXED = (["sliding_attention"] * 2 + ["full_attention"]) * 2

# architecture: (model class, configuration, where its layers are)
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", {**DECODER}, "model.layers"),
    "mistral": ("MistralForCausalLM", {**DECODER, "sliding_window": 4}, "model.layers"),
    "qwen3": ("Qwen3ForCausalLM", {**DECODER, "head_dim": 8}, "model.layers"),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {**DECODER, "head_dim": 8, "sliding_window": 4, "layer_types": MIXED},
        "model.layers",
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": T, "n_head": 4, "vocab_size": VOCABULARY, "pad_token_id": 0}
        | {"bos_token_id": 1, "eos_token_id": 2},
        "transformer.h",
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {**SMALL, "bos_token_id": 1, "eos_token_id": 2},
        "gpt_neox.layers",
    ),
    "opt": (
        "OPTForCausalLM",
        {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 2},
        "model.decoder.layers",
    ),
    "falcon": ("FalconForCausalLM", {**SMALL, "bos_token_id": 1, "eos_token_id": 2}, "transformer.h"),
    "bert": ("BertModel", SMALL, "encoder.layer"),
    "roberta": ("RobertaModel", SMALL, "encoder.layer"),
    "distilbert": (
        "DistilBertModel",
        {"dim": 32, "hidden_dim": 48, "n_layers": T, "n_heads": 4, "vocab_size": VOCABULARY},
        "transformer.layer",
    ),
    "modernbert": (
        "ModernBertModel",
        {**SMALL, "local_attention": 4, "layer_types": MIXED, "bos_token_id": 1}
        | {"eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        "layers",
    ),
    "mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 3}, "model.layers"),
}
DECODERS = [name for name, (cls, _, _) in ARCHITECTURES.items() if cls.endswith(("CausalLM", "LMHeadModel"))]


def make(architecture: str) -> Model:
    """A random model, always the same one for the same name."""
    class_name, config, _ = ARCHITECTURES[architecture]
    cls = getattr(transformers, class_name)
    torch.manual_seed(7)
    module = cls(cls.config_class(**copy.deepcopy(config))).eval().requires_grad_(False)
    for parameter in module.parameters():  # the usual 0.02 leaves layers that hardly change a state
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return Model(module, None, architecture, None, find_stack(module))


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Model:
    return make(request.param)


@pytest.fixture(scope="session", params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Model:
    return make(request.param)


@pytest.fixture(scope="session")
def llama() -> Model:
    return make("llama")


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    """Random token ids of these lengths, padded on the right."""
    generator = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    token_ids = np.where(mask, generator.integers(3, VOCABULARY, mask.shape), 0)
    return Batch(0, token_ids, mask)


@pytest.fixture(scope="session")
def batch() -> Batch:
    return batch_of((9, 7, 4))
