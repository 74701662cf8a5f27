"""Tiny random models of many architectures, made from their configuration classes: nothing is downloaded."""

import copy
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer

from repsim.corpus import Batch, read_corpus
from repsim.layers import find_stack
from repsim.models import Model

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

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
    return Batch(token_ids, mask)


@pytest.fixture(scope="session")
def batch() -> Batch:
    return batch_of((9, 7, 4))


def _folder(path: Path, architecture: str, template: str | None) -> Path:
    """A tiny model and a word-level tokenizer of its own, as `save_pretrained` leaves them."""
    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = Lowercase(), Whitespace()
    special = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    trainer = WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=list(special.values()), show_progress=False)
    words.train_from_iterator((text.text for text in read_corpus().texts), trainer)
    if template is not None:
        words.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    make(architecture).module.save_pretrained(path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `repsim.models.load` reads: the Llama of `make`, and a tokenizer without special tokens added."""
    return _folder(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", None)


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with BERT; its tokenizer adds [CLS] and [SEP]."""
    return _folder(tmp_path_factory.mktemp("models") / "tiny-bert", "bert", "[CLS] $A [SEP]")
