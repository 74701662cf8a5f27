"""Loading a model and its tokenizer: by name, or as a module that is in memory already.

A name is an embedded default, a hub id, a local folder (of a model, or of an adapter), or a GGUF
file. Weights come from safetensors or GGUF; pickled weights only where the name that was given is
the pickled file itself. GGUF files are converted to safetensors once, under the cache, so that
later starts are quick. Where a model's files are is `repsim.models.model_files`; adapters are
`repsim.models.adapters`, modules in memory `repsim.models.in_memory`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GgufConfig,
)

from repsim.cache import cache_folder
from repsim.errors import ModelError
from repsim.models import in_memory
from repsim.models.adapters import Adapter, merge, read_adapter
from repsim.models.forward import check_reads_text, check_stack
from repsim.models.load_errors import first_sentences, one_line_errors
from repsim.models.model import Model
from repsim.models.model_files import (
    ADAPTER_SETTINGS,
    EMBEDDED,
    PICKLE_SUFFIXES,
    find_files,
    has_tokenizer,
    has_weights,
)
from repsim.models.stack import find_stack
from repsim.schema import DEFAULT_MODEL

log = logging.getLogger("repsim")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load(
    model: str | Path | nn.Module = DEFAULT_MODEL,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    stack: str | None = None,
    tokenizer: Any = None,
    attn_implementation: str | None = None,
    name: str | None = None,
) -> Model:
    """Loads a model in evaluation mode, or takes one that is in memory.

    Args:
        model: `smollm2-135m`, `minilm-l6`, a hub id, a local folder, a GGUF file, or a file of
            pickled weights; or a model of transformers in memory, with or without adapters of peft.
            A module is run as it is and never changed.
        revision: branch or commit on the hub.
        dtype: dtype of the weights, e.g. `bfloat16`; the checkpoint's own by default.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one.
        device_map: given to transformers, for a model larger than one device.
        trust_remote_code: run code that a hub repository brings.
        stack: dotted path of the module list with the layers, where the search does not find it.
        tokenizer: a name, as of a model, or a tokenizer of transformers; by default the one among
            the model's files. A module in memory needs one.
        attn_implementation: given to transformers, e.g. `eager`.
        name: what stores and figures call a module in memory; by default the last part of what it
            was loaded from, or its class.
    Returns:
        The model with its tokenizer and its layers.
    Raises:
        ModelError: there is nothing by that name, its files are damaged, incomplete or pickled, it
            is not a model of text, or its stack is not found; a module in memory comes without a
            tokenizer, or with options that only files have.
    """
    given_tokenizer = None if tokenizer is None else _tokenizer(tokenizer, trust_remote_code)
    objects = () if tokenizer is None or isinstance(tokenizer, str | Path) else ("tokenizer",)

    # A module in memory runs as it is, so nothing about its loading can be chosen.
    if isinstance(model, nn.Module):
        values = {"revision": revision, "dtype": dtype, "device_map": device_map}
        values["attn_implementation"] = attn_implementation
        given = [option for option, value in values.items() if value is not None]
        given += ["device"] * (device != "auto") + ["trust_remote_code"] * trust_remote_code
        in_memory.check_options(model, given)
        taken = in_memory.model_of(model, given_tokenizer, name=name, stack=stack)
        return replace(taken, in_memory=(*taken.in_memory, *objects))

    # Anything else is a name.
    if not isinstance(model, str | Path):
        raise ModelError(
            f"model: {type(model).__name__} is not a name; give an embedded name, a hub id, a "
            "folder or a GGUF file, or a model of transformers in memory"
        )
    if name is not None:
        raise ModelError(f"name={name}: for a model in memory; load one of that name by {name!r}")
    options: dict[str, Any] = {"dtype": _dtype(dtype), "device_map": device_map}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    target = find_device(device) if device_map is None else None
    loaded = _load_named(
        str(model), given_tokenizer, target, revision, trust_remote_code, stack, options
    )
    attention = attn_implementation and in_memory.attention_of(loaded.module, loaded.stack)
    return replace(loaded, in_memory=objects, attention=attention)


def _load_named(
    name: str,
    tokenizer: Any,
    target: torch.device | None,
    revision: str | None,
    trust_remote_code: bool,
    stack: str | None,
    options: dict[str, Any],
) -> Model:
    """A model from its files.

    Args:
        name: as the user gave it.
        tokenizer: in place of the one among its files.
        target: where it goes to; None where transformers spreads it.
        revision: branch or commit on the hub.
        trust_remote_code: run code that a hub repository brings.
        stack: dotted path of the module list with the layers.
        options: for transformers.
    """
    # Where the files are. GGUF is converted to a folder of safetensors first, and an adapter's
    # folder names its base model.
    source = _find_or_convert(name)
    is_pickled = source.suffix in PICKLE_SUFFIXES
    options["use_safetensors"] = not is_pickled
    if is_pickled:
        source = source.parent
    if revision is not None and source.exists():
        raise ModelError(
            f"revision={revision}: {name} is not from the hub, where revisions are; leave it out"
        )
    adapter = read_adapter(source, name)
    base_name, base = (name, source) if adapter is None else _base_of(adapter, name)

    # Configuration, weights, tokenizer. A model of images or sound is refused before a tokenizer
    # is looked for, which it may lack.
    if adapter is not None and not base.exists():
        revision = adapter.settings.get("revision")
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    with one_line_errors(base_name, "configuration cannot be read"):
        config = AutoConfig.from_pretrained(str(base), **hub)
    is_placed = target is None or _is_packed(config)
    if is_placed and target is not None:
        options["device_map"] = {"": target}
    module = _load_weights(base_name, _class_of(config), base, config=config, **options, **hub)
    check_reads_text(module, base_name)
    if adapter is not None:
        module = merge(module, adapter, name)
    if tokenizer is None:
        folder = source if adapter is None or has_tokenizer(source) else base
        with one_line_errors(name, "tokenizer cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), **hub)
    module.eval()
    if not is_placed:
        module.to(target)

    # What it is called: a path keeps its last part only.
    local = source if is_pickled else Path(name)
    public = name if name in EMBEDDED or not local.exists() else local.resolve().name
    commit = getattr(module.config, "_commit_hash", None) or revision

    # Where its layers are.
    layers = find_stack(module, stack)
    check_stack(module, layers)
    return Model(
        module,
        tokenizer,
        public,
        commit if adapter is None else None,
        layers,
        adapter=None if adapter is None else adapter.text,
    )


def _tokenizer(tokenizer: Any, trust_remote_code: bool) -> Any:
    """A tokenizer by its name, or a copy of one in memory.

    Raises:
        ModelError: there is none by that name, or it is none of transformers.
    """
    if not isinstance(tokenizer, str | Path):
        return in_memory.check_tokenizer(tokenizer)
    name = str(tokenizer)
    path = Path(name)
    if not name.strip() or (name.startswith((".", "/", "~")) and not path.is_dir()):
        raise ModelError(f"tokenizer {name!r}: no such folder")
    # A GGUF file's tokenizer comes with its conversion.
    if name in EMBEDDED or path.suffix == ".gguf":
        path = _find_or_convert(name)
    with one_line_errors(name, "named tokenizer cannot be read", "tokenizer"):
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)


def _base_of(adapter: Adapter, name: str) -> tuple[str, Path]:
    """The base model's name, and the folder or hub id where it is.

    Raises:
        ModelError: there is no whole model by that name.
    """
    try:
        base = _find_or_convert(adapter.base)
        problem = "it is an adapter itself" if (base / ADAPTER_SETTINGS).is_file() else None
    except ModelError as failure:
        problem = str(failure)
    if problem is not None:
        raise ModelError(
            f"model {name!r}: an adapter of {adapter.base}, by base_model_name_or_path in its "
            f"{ADAPTER_SETTINGS}: {problem}; write there where it is"
        )
    return adapter.base, base


def _is_packed(config: Any) -> bool:
    """Whether weights are packed by bitsandbytes, which are loaded to where they stay."""
    settings = getattr(config, "quantization_config", None) or {}
    values = settings if isinstance(settings, dict) else settings.to_dict()
    method = values.get("quant_method", "")
    return "bitsandbytes" in str(getattr(method, "value", method))


def _find_or_convert(name: str) -> Path:
    """Folder, pickled file or hub id that transformers is to read."""
    path = find_files(name)
    if name in EMBEDDED:
        return path if path.is_dir() else _convert_gguf(path, name)
    return _convert_gguf(path, path.stem) if path.suffix == ".gguf" else path


def _convert_gguf(source: Path, name: str) -> Path:
    """A GGUF file as a safetensors folder under the cache, written once and whole."""
    # The folder's name holds the file's digest, so another file of the same name is not taken for
    # this one.
    with source.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    folder = cache_folder() / "models" / f"{name}-{key}"
    if has_weights(folder):
        return folder
    log.info("model %s: converting %s to safetensors, once", name, source.name)
    gguf = {"gguf_file": source.name}
    module = _load_weights(
        source.name,
        AutoModelForCausalLM,
        source.parent,
        dtype=torch.float32,
        quantization_config=GgufConfig(**gguf, dequantize=True),
        **gguf,
    )
    with one_line_errors(source.name, "tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **gguf)
    # Written next to its place and moved there as a whole.
    with one_line_errors(source.name, f"cannot be converted in {folder.parent} (see REPSIM_CACHE)"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
        try:
            module.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            if not has_weights(folder):  # another process may have finished the same folder first
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _load_weights(name: str, cls: Any, source: Path, **options: Any) -> Any:
    """A model whose every weight came from its files.

    transformers would fill gaps with random numbers; so what is missing is an error, unless nothing
    that repsim runs uses it.
    """
    with one_line_errors(name, "weights cannot be read"):
        module, report = cls.from_pretrained(
            str(source), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    for key, stored, expected in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"model {name!r}: {key} has shape {tuple(stored)} in its files and {tuple(expected)} "
            "by its configuration"
        )
    missing = sorted(report["missing_keys"])
    if lost := [key for key in missing if not _is_unused(module, key)]:
        raise ModelError(
            f"model {name!r}: its files lack {len(lost)} of its weights, e.g. {lost[0]}; is it "
            "whole?"
        )
    for key in missing:
        module.state_dict()[key].zero_()  # the same digest with every load
    return module


def _is_unused(module: Any, key: str) -> bool:
    """Whether a weight is used only behind all that repsim runs.

    That is an encoder's pooler, or its head for masked tokens.
    """
    prefix = module.base_model_prefix
    behind = hasattr(module, prefix) and not key.startswith(f"{prefix}.")
    return "pooler" in key or (behind and not module.can_generate())


def _class_of(config: Any) -> Any:
    """The class to load: the one that wrote the files.

    It has no head unless that predicts tokens.
    """
    architecture = (config.architectures or [""])[0]
    named = getattr(transformers, architecture, None) if architecture else None
    # The name may be no class of transformers, or that of another kind of model.
    if getattr(named, "config_class", None) is not type(config):
        named = None
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return named or AutoModelForCausalLM
    if architecture.endswith("ForMaskedLM"):
        return named or AutoModelForMaskedLM
    if architecture.endswith("ForConditionalGeneration") and not config.is_encoder_decoder:
        return named or AutoModel  # decoders that also take images or sound
    if architecture.endswith("Model"):  # T5EncoderModel is half of what AutoModel would make
        return named or AutoModel
    return AutoModel


def _dtype(dtype: str | torch.dtype | None) -> Any:
    if dtype is None:
        return "auto"
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if named not in DTYPES:
        raise ModelError(
            f"dtype {dtype!r}: not a floating-point dtype; use float32, bfloat16 or float16"
        )
    return named


def find_device(device: str) -> torch.device:
    """The device of that name; `auto` is a graphics card where there is one.

    Raises:
        ModelError: it is not to be had here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(1, device=target).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        usable = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu"
        raise ModelError(
            f"device {device!r}: not to be had here ({first_sentences(problem)}); use {usable}"
        ) from None
    return target
