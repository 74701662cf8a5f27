"""Tiny random models of many architectures, made from their configuration classes: nothing is
downloaded.
"""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer

from repsim.data.batching import Batch
from repsim.data.corpus import read_corpus
from repsim.models import Model
from repsim.models.stack import find_stack

Config = dict[str, Any]

T = 6
VOCABULARY = 97
SMALL: Config = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": T,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
DECODER: Config = {**SMALL, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
MIXED = (["sliding_attention"] * 2 + ["full_attention"]) * 2

# architecture: (model class, configuration, where its layers are)
ARCHITECTURES: dict[str, tuple[str, Config, str]] = {
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
    "falcon": (
        "FalconForCausalLM",
        {**SMALL, "bos_token_id": 1, "eos_token_id": 2},
        "transformer.h",
    ),
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
DECODERS = [
    name for name, (cls, _, _) in ARCHITECTURES.items() if cls.endswith(("CausalLM", "LMHeadModel"))
]


def make(architecture: str) -> Model:
    """A random model, always the same one for the same name."""
    class_name, config, _ = ARCHITECTURES[architecture]
    module = build(class_name, config)
    return Model(module, None, architecture, None, find_stack(module))


TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {**TOKENS, "n_embd": 32, "n_layer": T, "n_head": 4}
LONG = {**TOKENS, "hidden_size": 32, "n_layer": T, "n_head": 4}
HEAD = {**DECODER, "head_dim": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {"shared_expert_intermediate_size": 16}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
# Chunks of 256, the default, cost a tiny model ten times as long.
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}

# More architectures, and other forms of those above: (model class, configuration, where the layers
# are).
MORE: dict[str, tuple[str, Config, str]] = {
    "gpt_neox_sequential": (
        "GPTNeoXForCausalLM",
        {**SMALL, **TOKENS, "use_parallel_residual": False},
        "gpt_neox.layers",
    ),
    "opt_post_norm": (
        "OPTForCausalLM",
        {
            **SMALL,
            **TOKENS,
            "ffn_dim": 48,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
        "model.decoder.layers",
    ),
    "falcon_two_norms": (
        "FalconForCausalLM",
        {**SMALL, **TOKENS, "new_decoder_architecture": True, "num_kv_heads": 2},
        "transformer.h",
    ),
    "falcon_alibi": (
        "FalconForCausalLM",
        {
            **SMALL,
            **TOKENS,
            "alibi": True,
            "parallel_attn": False,
            "multi_query": False,
            "bias": True,
        },
        "transformer.h",
    ),
    "gptj": ("GPTJForCausalLM", {**GPT, "rotary_dim": 4}, "transformer.h"),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {**TOKENS, "hidden_size": 32, "num_layers": T, "num_heads": 4, "window_size": 4}
        | {"attention_types": [[["global", "local"], 3]]},
        "transformer.h",
    ),
    "phi": ("PhiForCausalLM", DECODER, "model.layers"),
    "phi3": ("Phi3ForCausalLM", DECODER, "model.layers"),
    "gemma": ("GemmaForCausalLM", HEAD, "model.layers"),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**HEAD, "sliding_window": 4, "query_pre_attn_scalar": 8},
        "model.layers",
    ),
    "qwen2": ("Qwen2ForCausalLM", DECODER, "model.layers"),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**DECODER, **MOE, **SHARED}, "model.layers"),
    "qwen3_next": ("Qwen3NextForCausalLM", {**HEAD, **MOE, **SHARED, **LINEAR}, "model.layers"),
    "cohere": ("CohereForCausalLM", {**DECODER, "logit_scale": 0.3}, "model.layers"),
    "granite": (
        "GraniteForCausalLM",
        {**DECODER, "logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
        "model.layers",
    ),
    "granitemoe": ("GraniteMoeForCausalLM", {**DECODER, "num_local_experts": 4}, "model.layers"),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        {
            **DECODER,
            **MAMBA,
            "num_local_experts": 4,
            "shared_intermediate_size": 32,
            "mamba_n_groups": 1,
        }
        | {"layer_types": ["mamba", "attention", "mamba"] * 2},
        "model.layers",
    ),
    "stablelm": ("StableLmForCausalLM", {**DECODER, "use_parallel_residual": True}, "model.layers"),
    "bloom": ("BloomForCausalLM", LONG, "transformer.h"),
    "mpt": (
        "MptForCausalLM",
        {
            **TOKENS,
            "d_model": 32,
            "n_layers": T,
            "n_heads": 4,
            "max_seq_len": 64,
            "expansion_ratio": 2,
        },
        "transformer.blocks",
    ),
    "olmo2": ("Olmo2ForCausalLM", DECODER, "model.layers"),
    "electra": ("ElectraModel", {**SMALL, "embedding_size": 16}, "encoder.layer"),
    "mpnet": ("MPNetModel", SMALL, "encoder.layer"),
    "deberta": ("DebertaModel", {**SMALL, **RELATIVE}, "encoder.layer"),
    "deberta_v2": ("DebertaV2Model", {**SMALL, **RELATIVE, "position_buckets": 8}, "encoder.layer"),
    "bamba": (
        "BambaForCausalLM",
        {**DECODER, **MAMBA, "attn_layer_indices": [1, 4]},
        "model.layers",
    ),
    "mamba": (
        "MambaForCausalLM",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": T, "state_size": 8},
        "backbone.layers",
    ),
    "jamba": (
        "JambaForCausalLM",
        {**DECODER, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4},
        "model.layers",
    ),
    "falcon_h1": ("FalconH1ForCausalLM", {**HEAD, **MAMBA, "mamba_d_ssm": 64}, "model.layers"),
    "lfm2": (
        "Lfm2ForCausalLM",
        {**DECODER, "layer_types": ["conv", "full_attention", "conv"] * 2},
        "model.layers",
    ),
    "smollm3": ("SmolLM3ForCausalLM", DECODER, "model.layers"),
    "ernie4_5": ("Ernie4_5ForCausalLM", HEAD, "model.layers"),
    "glm4": ("Glm4ForCausalLM", HEAD, "model.layers"),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
        "model.layers",
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **DECODER,
            **MOE,
            **LATENT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
        }
        | {"first_k_dense_replace": 2},
        "model.layers",
    ),
}
SPARSE: Config = {
    **DECODER,
    **MOE,
    **LATENT,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
SPARSE |= {
    "first_k_dense_replace": 2,
    "index_topk": 4,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "head_dim": 4,
}
SPARSE |= {
    "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 4,
    "indexer_types": ["full", "shared", "shared"] * 2,
}
RESIDUAL: Config = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 4,
}
RESIDUAL |= {"d_rel": 4, "rel_extent": 16, "n_layers_per_attn_res_block": 2}
RESIDUAL |= {"n_routed_experts": 4, "num_experts_per_tok": 2}

# Layers that hand on more than the state: (model class, configuration).
CARRYING: dict[str, tuple[str, Config]] = {
    "zaya": (
        "ZayaForCausalLM",
        {**HEAD, "moe_intermediate_size": 16, "num_experts": 4, "router_hidden_size": 16},
    ),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", SPARSE),
    "mistral_large4": ("MistralLarge4TextModel", SPARSE),
    "lilt": ("LiltModel", {**SMALL, "hidden_size": 48}),
}
INKLING2: tuple[str, Config] = (
    "Inkling2ForCausalLM",
    {**HEAD, **RESIDUAL, "moe_intermediate_size": 16, "unpadded_vocab_size": 90},
)
BIG_BIRD: tuple[str, Config] = (
    "BigBirdModel",
    {**SMALL, "block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 256},
)
FSMT: tuple[str, Config] = (
    "FSMTModel",
    {
        "langs": ["en", "de"],
        "src_vocab_size": VOCABULARY,
        "tgt_vocab_size": VOCABULARY,
        "d_model": 32,
    }
    | {
        "encoder_layers": T,
        "decoder_layers": T,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    | {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64},
)
T5: tuple[str, Config] = (
    "T5EncoderModel",
    {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": T,
        "num_heads": 4,
    },
)
MORE_DECODERS = [name for name in MORE if "CausalLM" in MORE[name][0]]
WITHOUT_SUBLAYERS = {"mamba"}
POST_NORM = {
    "deberta",
    "deberta_v2",
    "bert",
    "roberta",
    "distilbert",
    "opt_post_norm",
    "electra",
    "mpnet",
}


def build(class_name: str, config: Config) -> Any:
    """A random model of a class, always the same one for the same configuration."""
    cls = getattr(transformers, class_name)
    torch.manual_seed(7)
    module = cls(cls.config_class(**copy.deepcopy(config))).eval().requires_grad_(False)
    for parameter in module.parameters():  # the usual 0.02 leaves layers that hardly change a state
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return module


@functools.cache
def cached_model(name: str) -> Model:
    """A model of `ARCHITECTURES` or `MORE`, made once; not to be changed."""
    if name in ARCHITECTURES:
        return make(name)
    module = build(*MORE[name][:2])
    return Model(module, None, name, None, find_stack(module))


def model_of(class_name: str, config: Config, stack: str | None = None) -> Model:
    """A random model, made each time."""
    module = build(class_name, config)
    return Model(module, None, class_name, None, find_stack(module, stack))


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    """Random token ids of these lengths, padded on the right."""
    generator = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    token_ids = np.where(mask, generator.integers(3, VOCABULARY, mask.shape), 0)
    return Batch(token_ids, mask)


def save_folder(path: Path, architecture: str, template: str | None) -> Path:
    """A tiny model and a word-level tokenizer of its own, as `save_pretrained` leaves them."""
    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = Lowercase(), Whitespace()
    special = {
        "pad_token": "[PAD]",
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    trainer = WordLevelTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special.values()), show_progress=False
    )
    words.train_from_iterator((text.text for text in read_corpus().texts), trainer)
    if template is not None:
        words.post_processor = TemplateProcessing(
            single=template, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    make(architecture).module.save_pretrained(path)
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=words, **special).save_pretrained(path)
    return path
