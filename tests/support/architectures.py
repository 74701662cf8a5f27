"""Tiny random models of every text architecture that transformers' configuration classes can
describe.

`tiny` shrinks a model type's default configuration by the names of its fields, so that a type needs
an entry of its own only where its sizes depend on each other in a way of their own. Nothing is
downloaded, and nothing here knows repsim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

T = 6
VOCABULARY = 97
# What texts are made of; ids from 80 on stand for images, sounds and the like.
TOKENS = range(3, 80)

# What a field of a configuration becomes, by its name; a field that is absent or None stays so.
SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "hidden_dim_size"), 32
    ),
    **dict.fromkeys(
        ("word_embed_proj_dim", "output_dim", "projection_dim", "out_hidden_size", "lru_width"), 32
    ),
    **dict.fromkeys(
        ("attention_hidden_size", "dim_model_base", "pooler_hidden_size", "backbone_hidden_size"),
        32,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), T
    ),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "depth"), T),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4
    ),
    **dict.fromkeys(
        ("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"), 2
    ),
    **dict.fromkeys(
        (
            "head_dim",
            "d_kv",
            "kv_channels",
            "d_head",
            "dim_head",
            "swa_head_dim",
            "attention_head_size",
        ),
        8,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "dff", "dim_ff", "hidden_dim", "d_inner"), 48
    ),
    **dict.fromkeys(
        ("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "feed_forward_size"), 48
    ),
    **dict.fromkeys(
        ("intermediate_size_mlp", "dense_intermediate_size", "shared_intermediate_size"), 48
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16
    ),
    **dict.fromkeys(
        ("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), 16
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k"),
        2,
    ),
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    **dict.fromkeys(
        ("topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1
    ),
    **dict.fromkeys(
        ("vocab_size", "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size"), VOCABULARY
    ),
    **dict.fromkeys(("vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 64
    ),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 64),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(
        ("sliding_window", "local_attention", "sliding_window_size", "attention_window_size"), 4
    ),
    **dict.fromkeys(("attention_chunk_size", "window_size"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(
        ("qk_nope_head_dim", "v_head_dim", "index_head_dim", "query_pre_attn_scalar"), 8
    ),
    "qk_head_dim": 12,
    **dict.fromkeys(("index_n_heads", "index_topk", "index_topk_blocks", "index_block_size"), 4),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(
        ("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "mamba_headdim"), 8
    ),
    **dict.fromkeys(
        ("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_head", "mamba_head_dim"), 8
    ),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 2),
    **dict.fromkeys(
        ("embedding_size", "hidden_size_per_layer_input", "embedding_rank", "entity_emb_size"), 16
    ),
    **dict.fromkeys(
        ("input_embedding_size", "adapter_rank", "router_hidden_size", "laurel_rank"), 16
    ),
    **dict.fromkeys(("hidden_act_dim", "conv_inner_dim"), 32),
    **dict.fromkeys(("image_size",), 16),
    **dict.fromkeys(("patch_size",), 4),
    **dict.fromkeys(("spatial_merge_size", "scale_factor"), 2),
    "temporal_patch_size": 1,
    "type_vocab_size": 2,
    "entity_vocab_size": 9,
    "num_kv_shared_layers": 2,
    "hc_lowrank": 8,
    "ple_embed_dim": 32,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

# What the names do not say. Keys are paths in the configuration (`text_config.num_experts`).
MIXED = ["sliding_attention", "full_attention", "sliding_attention"] * 2
EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
}
THREE_AXES = {"rope_parameters.mrope_section": [2, 1, 1]}
TEXT_OF_THREE_AXES = {"text_config.rope_parameters.mrope_section": [2, 1, 1]}
MAMBA_HYBRID = ["mamba", "hybrid", "mamba", "hybrid", "mamba", "mamba"]
MAMBA_MIXED = ["mamba", "attention", "mamba"] * 2
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 4, "num_random_blocks": 1},  # sparse beyond 28 tokens
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 1},
    "bamba": {"attn_layer_indices": [1, 4]},
    "cohere_compass_text": {"layer_types": MIXED, "head_dim": 8},
    "cosmos3_edge_text": {"rope_parameters.mrope_section": [2, 1, 1]},
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0},
    "deepseek_v2": EXPERTS,
    "dots1": {**EXPERTS, "layer_types": MIXED},
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters.mrope_section": [2, 1, 1],
        "text_config.moe_num_experts": 4,
    },
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 0, "mask_token_id": 80},
    "gemma3n_text": {"num_kv_shared_layers": 1},
    "glm5_next_text": {"index_kpool": 2, "indexer_types": ["full", "shared", "shared"] * 2},
    **dict.fromkeys(
        ("glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_vl_text", "qwen2_5_vl_text"),
        THREE_AXES,
    ),
    **dict.fromkeys(
        ("glm4v", "glm46v", "glm_ocr", "qwen2_vl", "qwen2_5_vl", "paddleocr_vl"), TEXT_OF_THREE_AXES
    ),
    "glm4v_moe_text": {"rope_parameters.mrope_section": [1, 1, 0]},
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [1, 1, 0]},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 3]],
        "attention_layers": ["global", "local"] * 3,
    },
    "granitemoehybrid": {"layer_types": MAMBA_MIXED, "shared_intermediate_size": 32},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"] * 2},
    "lilt": {"hidden_size": 48},
    "mamba2": {"num_heads": 8},
    "glm_moe_dsa": {"indexer_types": ["full", "shared", "shared"] * 2},
    "mistral_large4_text": {"indexer_types": ["full", "shared", "shared"] * 2},
    "hy_v4": {"indexer_types": ["full", "shared", "shared"] * 2},
    "rwkv": {"rescale_every": 0},
    "xlstm": {"num_heads": 4, "head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "full_attention"] * 2},
    "zamba": {
        "layers_block_type": MAMBA_HYBRID,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": MAMBA_HYBRID,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "kv_channels": 8,
    },
    "ministral": {"head_dim": 8, "layer_types": MIXED},
    "nemotron": {"num_key_value_heads": 2},
    "squeezebert": {"embedding_size": 32},
    "qwen4_exp": {"text_config.indexer_budget": 4, "text_config.indexer_compress_ratio": 2},
    "qwen4_exp_text": {"indexer_budget": 4, "indexer_compress_ratio": 2},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh", "local", "lsh", "local", "lsh"],
    },
    "zaya": {"num_experts_per_tok": 1},
}
# Types whose class for the next token does not take their whole configuration.
CLASSES = {
    "bert": "BertForMaskedLM",
    "emu3": "Emu3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}


def tiny(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A type's configuration at a size that runs in milliseconds, its proportions kept where its
    class checks them.
    """
    cls = CONFIG_MAPPING[model_type]
    values = _shrunk(cls(), first_special=80)
    for path, value in {**EXCEPTIONS.get(model_type, {}), **changes}.items():
        *outer, name = path.split(".")
        inside = values
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[name] = value
    return cls(**values)


def _shrunk(config: Any, first_special: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    special = first_special
    mapped = {ours: theirs for theirs, ours in getattr(config, "attribute_map", {}).items()}
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            values[name] = {"model_type": value.model_type} | _shrunk(value, first_special)
        elif isinstance(value, dict) and "mrope_section" in value:
            values[name] = {**value, "mrope_section": [2, 1, 1]}  # of 8 numbers in a head
        elif name in SPECIAL:
            values[name] = (
                SPECIAL[name] if value is not None or name != "decoder_start_token_id" else None
            )
        elif isinstance(value, bool) or value is None:
            continue
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            values[name], special = min(special, VOCABULARY - 1), special + 1
        elif isinstance(value, int) and name in SIZES:
            values[name] = _size(config, name, value)
        elif isinstance(value, int) and mapped.get(name) in SIZES:
            values[name] = SIZES[mapped[name]]
    return values


def _size(config: Any, name: str, value: int) -> int:
    """As many key and value heads as heads where that is the default; no experts stay none."""
    if name == "head_dim" and value == getattr(config, "qk_rope_head_dim", None):
        return SIZES["qk_rope_head_dim"]
    heads = getattr(config, "num_attention_heads", None)
    if name in ("num_key_value_heads", "num_kv_heads") and value == heads:
        return SIZES["num_attention_heads"]
    if name == "num_key_value_heads" and value == 1:
        return 1
    if value == 0 and name != "first_k_dense_replace":
        return 0
    return SIZES[name]


def class_of(model_type: str) -> Any:
    """The class for a type: for masked tokens, else for the next token, else without a head."""
    if model_type in CLASSES:
        return getattr(transformers, CLASSES[model_type])
    if CONFIG_MAPPING[model_type]().is_encoder_decoder:
        bare: Any = MODEL_MAPPING_NAMES
        return getattr(transformers, bare[model_type])
    mappings: Any = (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )
    for names in mappings:
        if model_type in names:
            name = names[model_type]
            return getattr(transformers, name if isinstance(name, str) else name[0])
    raise KeyError(model_type)


def build(model_type: str, **changes: Any) -> Any:
    """A random model, always the same one for the same type.

    Its layers change a state as much as trained ones do.
    """
    torch.manual_seed(7)
    config = tiny(model_type, **changes)
    config._attn_implementation = "eager"
    module = class_of(model_type)(config).eval().requires_grad_(False)
    for parameter in module.parameters():  # the usual 0.02 leaves layers that hardly change a state
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return module


@dataclass(frozen=True)
class Subject:
    """One model of the survey.

    model_type: as transformers calls it.
    side: `encoder`, `decoder` or `text` where a model has several stacks and `--stack` is to name
    this one.
    """

    model_type: str
    side: str = ""

    @property
    def name(self) -> str:
        return f"{self.model_type}:{self.side}" if self.side else self.model_type

    def build(self) -> Any:
        """A random model of this type."""
        return build(self.model_type)

    def stack(self, module: nn.Module) -> str | None:
        """What `--stack` is given: the outermost module list of this side with T entries."""
        if not self.side:
            return None
        lists = [
            name
            for name, child in module.named_modules()
            if isinstance(child, nn.ModuleList) and len(child) == T
        ]
        outermost = [
            name for name in lists if not any(name.startswith(f"{other}.") for other in lists)
        ]
        words = {"text": ("language_model", "text_model", "lm.", "model.layers")}.get(
            self.side, (self.side,)
        )
        return next(name for word in words for name in outermost if word in name)


NAMES = """
afmoe albert apertus arcee aria aria_text axk1 axk2 bailing_hybrid bamba bart:decoder bart:encoder
beam bert bert-generation big_bird bigbird_pegasus:decoder bigbird_pegasus:encoder biogpt bitnet
blenderbot:decoder bloom camembert canine codegen cohere cohere2 cohere2_moe convbert cpmant ctrl
cwm data2vec-text dbrx deberta deberta-v2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama
distilbert doge dots1 dpr electra embedding_gemma2_text ernie ernie4_5 ernie4_5_moe esm esmc
eurobert exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint fnet fsmt:decoder
fsmt:encoder funnel gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm
glm4 glm5_next_text glm_moe_dsa gpt2 gpt_neo gpt_neox gpt_oss gptj granite granitemoe
granitemoehybrid helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v4 idefics3 inkling2_text
inkling_text jamba jetmoe kimi_linear led lfm2 lfm2_moe lfm3 llama llama4_text llava longcat_flash
longformer longt5:encoder luke m2m_100:decoder mamba mamba2 marian:encoder mbart:decoder minimax
minimax_m2 mistral mistral_large4_text mixtral mllama mobilebert modernbert mpnet mpt mra
mt5:decoder muse_spark_text nemotron nemotron_h nystromformer olmo olmo2 olmo3 olmo_hybrid olmoe
openai-gpt opt paligemma pegasus:encoder persimmon phi phi3 phimoe prophetnet:decoder qwen2
qwen2_moe qwen2_vl qwen3 qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rembert roberta roformer
rwkv seed_oss smollm3 squeezebert stablelm starcoder2 switch_transformers:encoder t5:decoder
t5:encoder t5gemma:decoder t5gemma:encoder umt5:encoder xglm xlm xlm-roberta xlnet xlstm yoso zamba
zamba2 zaya
"""
SUBJECTS = [Subject(*name.split(":")) for name in NAMES.split()]
# Dense models, mixtures of experts, hybrids and encoders that are tried in every use of a model.
USED = {
    *("llama", "gpt2", "gpt_neox", "falcon", "opt", "gemma3_text", "bert", "modernbert"),
    *("mixtral", "gpt_oss", "qwen2_moe", "deepseek_v3"),
    *(
        "qwen3_next",
        "bamba",
        "jamba",
        "granitemoehybrid",
        "lfm2",
        "mamba",
        "falcon_h1",
        "recurrent_gemma",
    ),
}
