"""A model of transformers that is in memory already: run as it is, and never changed.

What runs is a copy that shares the module's parameters (`repsim.models.sharing`), in evaluation
mode. Around the module may be what compiles it, copies it over devices, or adds adapters to it:

    PeftModelForCausalLM            its forward calls the model below, and nothing else: checked
    └─ base_model: LoraModel
       └─ model: LlamaForCausalLM   what runs, with the adapters' layers in it
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from repsim.errors import ModelError, brief
from repsim.models.digests import is_adapter_layer
from repsim.models.forward import check_reads_text, check_stack
from repsim.models.model import Model
from repsim.models.model_files import last_part
from repsim.models.module_state import prepare_for_run
from repsim.models.sharing import SharedCopies, shared_copy
from repsim.models.stack import Stack, find_stack

log = logging.getLogger("repsim")

# Classes that `repsim.models.load` would load from files as they are; of any other, such as one
# that classifies texts, it takes the model below the head.
WHOLE = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "Model")
CAPTURING_HOOKS = "transformers.utils.output_capturing"
PROBE_TOKENS = 8


def model_of(module: nn.Module, tokenizer: Any, *, name: str | None, stack: str | None) -> Model:
    """A module in memory as a model that runs can take.

    Args:
        module: a model of transformers, alone or in one of peft, `torch.compile` or DataParallel.
        tokenizer: its tokenizer.
        name: what to call it; by default as `default_name`.
        stack: dotted path of the module list with the layers, where the search does not find it.
    Raises:
        ModelError: it is no model of transformers, it comes without a tokenizer, its weights are
            not there, or a wrapper does more than call it.
    """
    inner: Any = unwrap(module)
    kind = type(inner).__name__
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(
            f"model: {kind} in memory is not a model of transformers; hand over one, with "
            "tokenizer=, or a name"
        )
    if hasattr(inner, "_repsim_plan"):
        raise ModelError(
            f"model: {kind} in memory follows a plan already; hand over the model it was made "
            "from, with plan="
        )
    if tokenizer is None:
        raise ModelError(
            f"model: {kind} in memory comes without a tokenizer; hand it over with it "
            "(tokenizer=), an object or a name"
        )
    check_reads_text(inner, kind)
    embeddings = inner.get_input_embeddings()
    if embeddings.weight.is_meta and not hasattr(embeddings, "_hf_hook"):
        raise ModelError(f"model: {kind} in memory has no weights yet (device meta); load them")

    # What runs: a copy, without a head that files would not be loaded with.
    is_whole = kind.endswith(WHOLE)
    check_wrappers(module)
    copied = shared_copy(inner if is_whole else inner.base_model)
    prepare_for_run(copied)
    _fill_dtypes(copied.config, inner.dtype)
    layers = find_stack(copied, stack)
    check_stack(copied, layers)
    public = default_name(inner) if name is None else last_part(name)
    if hooks := _count_hooks(copied):
        log.warning(
            "model %s: hooks on %d of its modules run as well, and no digest says what they do",
            public,
            hooks,
        )
    return Model(
        copied,
        tokenizer,
        public,
        None,
        layers,
        in_memory=("model",),
        adapter=describe_adapters(inner),
        attention=attention_of(copied, layers),
    )


def unwrap(module: Any) -> Any:
    """The model inside what compiles it, copies it over devices or adds adapters to it."""
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def check_wrappers(module: Any) -> None:
    """Refuses a model of peft that does more than its base model with the adapters' layers.

    Adapters may also be tokens put before the text, or weights chosen by what surrounds the layers.

    Raises:
        ModelError: its outputs on a few tokens are not those of its base model.
    """
    while (inner := _inside(module)) is not None:
        if _is_peft_model(module):
            _check_base_alone(module, inner)
        module = inner


def _inside(module: Any) -> Any:
    """What a wrapper is around; None for a model itself."""
    if hasattr(module, "_orig_mod"):  # of torch.compile
        return module._orig_mod
    if isinstance(module, nn.DataParallel | DistributedDataParallel):
        return module.module
    return module.get_base_model() if _is_peft_model(module) else None


def _is_peft_model(module: Any) -> bool:
    """Whether a module is one of peft around another; known by its shape, peft may be missing."""
    return hasattr(module, "peft_config") and callable(getattr(module, "get_base_model", None))


def _check_base_alone(wrapper: Any, base: Any) -> None:
    copies = SharedCopies()
    wrapper_copy, base_copy = copies.copy(wrapper), copies.copy(base)
    wrapper_copy.eval()
    device = base.get_input_embeddings().weight.device
    token_ids = torch.arange(PROBE_TOKENS, device=device)[None]
    problem = "gives other outputs than its base model with the adapters' layers in it"
    try:
        with torch.no_grad():
            whole, alone = (each(input_ids=token_ids)[0] for each in (wrapper_copy, base_copy))
        if whole.shape == alone.shape and torch.allclose(whole, alone, rtol=1e-3, equal_nan=True):
            return
    except Exception as failure:  # what an adapter's own code says where a forward lacks something
        problem = f"does not run on token ids alone ({brief(failure)})"
    kinds = ", ".join(_kind(config) for config in wrapper.peft_config.values())
    raise ModelError(
        f"model: {type(wrapper).__name__} ({kinds}) {problem}; merge it (merge_and_unload) or hand "
        "over a model whose adapters are layers, such as LoRA's"
    )


def default_name(module: Any) -> str:
    """The last part of what a model was loaded from, or else its class.

    Example:
        >>> import transformers
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> config = transformers.LlamaConfig(num_hidden_layers=1, vocab_size=32, **sizes)
        >>> module = transformers.LlamaForCausalLM(config)
        >>> default_name(module)
        'LlamaForCausalLM'
        >>> module.config._name_or_path = "/scratch/runs/checkpoint-500"
        >>> default_name(module)
        'checkpoint-500'
    """
    module = unwrap(module)
    origin = str(getattr(getattr(module, "config", None), "_name_or_path", "") or "")
    path = Path(origin)
    return (path.resolve() if origin and path.exists() else path).name or type(module).__name__


def check_options(module: nn.Module, given: Sequence[str]) -> None:
    """Refuses options that say how files are loaded.

    Args:
        module: a model in memory.
        given: names of the options.
    Raises:
        ModelError: there are any.
    """
    if given:
        raise ModelError(
            f"{', '.join(given)}: {type(module).__name__} is in memory already and runs as it is, "
            "where it is; change it there, or give the name of its files"
        )


def check_tokenizer(tokenizer: Any) -> Any:
    """A copy of a tokenizer in memory, which a run may change.

    Raises:
        ModelError: it is none of transformers.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
    if not (callable(tokenizer) and hasattr(tokenizer, "model_max_length")):
        raise ModelError(
            f"tokenizer: {type(tokenizer).__name__} is neither a name nor a tokenizer of "
            "transformers; one of the library tokenizers goes into PreTrainedTokenizerFast("
            "tokenizer_object=...)"
        )
    return copy.deepcopy(tokenizer)


def attention_of(module: nn.Module, stack: Stack) -> str | None:
    """How the layers compute attention; None where that is what transformers chooses by itself."""
    # A model of several has a kind of attention for each.
    model: Any = module
    path = ""
    for part in stack.path.split("."):
        path = f"{path}.{part}".lstrip(".")
        child = module.get_submodule(path)
        model = child if isinstance(child, PreTrainedModel) else model
    chosen = getattr(model.config, "_attn_implementation", None)
    return None if chosen == model.get_correct_attn_implementation(None) else chosen


def describe_adapters(module: Any) -> str | None:
    """Which adapters of peft are in a model's layers, and how; None where there are none.

    Example:
        >>> describe_adapters(nn.Linear(2, 2)) is None
        True
    """
    layers = [child for child in module.modules() if is_adapter_layer(child)]
    if not layers:
        return None
    configs = getattr(module, "peft_config", None)
    kinds = {name: _kind(config) for name, config in configs.items()} if configs else {}
    active = dict.fromkeys(name for layer in layers for name in _names(layer._active_adapter))
    names = ", ".join(f"{kinds.get(name, 'adapter')} {name}" for name in active)
    if all(layer._disable_adapters for layer in layers):
        return f"{names}, switched off"
    is_merged = all(layer.merged_adapters for layer in layers)
    return f"{names}, {'merged' if is_merged else 'on top'}"


def _names(active: str | Sequence[str]) -> Sequence[str]:
    return [active] if isinstance(active, str) else active


def _kind(config: Any) -> str:
    """What kind of adapter a configuration of peft's is of, e.g. `LORA`."""
    kind = getattr(config, "peft_type", None)
    return str(getattr(kind, "value", kind))


def _fill_dtypes(config: Any, dtype: torch.dtype) -> None:
    """Gives the parts of a configuration the dtype that they would have if loaded from files."""
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None and part.dtype is None:
            part.dtype = dtype


def _count_hooks(module: nn.Module) -> int:
    """How many modules have hooks on their forward that are not transformers' own."""
    return sum(
        any(
            getattr(hook, "__module__", None) != CAPTURING_HOOKS
            for hook in (*child._forward_hooks.values(), *child._forward_pre_hooks.values())
        )
        for child in module.modules()
    )
