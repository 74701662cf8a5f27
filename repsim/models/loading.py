"""Loading a model and its tokenizer: an embedded default, a hub id, a local folder or a GGUF file.

Weights come from safetensors or GGUF; pickled weights only where the name that was given is the
pickled file itself. GGUF files are converted to safetensors once, under the cache, so that later
starts are quick. Where a model's files are is `repsim.models.model_files`; what its layers do is
`repsim.models.layer_call`.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import logging
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
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
from repsim.hub import cache_if_unreachable
from repsim.models.forward import check_stack
from repsim.models.model import Model
from repsim.models.model_files import (
    EMBEDDED,
    PICKLE_SUFFIXES,
    find_files,
    has_weights,
)
from repsim.models.stack import find_stack
from repsim.schema import DEFAULT_MODEL

log = logging.getLogger("repsim")

SOUND = ("input_features", "input_values", "audio_values")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Words by which failures of other libraries are told apart, as transformers 5.23 and
# huggingface_hub 2.4 put them. Where another version puts them otherwise, its own first sentences
# are shown instead.
SAYS_OWN_CODE = "trust_remote_code"
SAYS_NO_SAFETENSORS = "file named model.safetensors"
SAYS_NO_TOKENIZER = "instantiate the backend tokenizer"


def load(
    name: str | Path = DEFAULT_MODEL,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    stack: str | None = None,
) -> Model:
    """Loads a model in evaluation mode.

    Args:
        name: `smollm2-135m`, `minilm-l6`, a hub id, a local folder, a GGUF file, or a file of
            pickled weights.
        revision: branch or commit on the hub.
        dtype: dtype of the weights, e.g. `bfloat16`; the checkpoint's own by default.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one.
        device_map: given to transformers, for a model larger than one device.
        trust_remote_code: run code that a hub repository brings.
        stack: dotted path of the module list with the layers, where the search does not find it.
    Returns:
        The model with its tokenizer and its layers.
    Raises:
        ModelError: there is nothing by that name, its files are damaged, incomplete or pickled, it
            is not a model of text, or its stack is not found.
    """
    if not isinstance(name, str | Path):
        given = type(name).__name__
        raise ModelError(
            f"model: {given} is not a name; give an embedded name, a hub id, a folder or a GGUF "
            "file"
        )
    name = str(name)
    options: dict[str, Any] = {"dtype": _dtype(dtype), "device_map": device_map}
    if device_map is None:
        target = _device(device)

    # Where the files are. GGUF is converted to a folder of safetensors first.
    source = _find_or_convert(name)
    is_pickled = source.suffix in PICKLE_SUFFIXES
    options["use_safetensors"] = not is_pickled
    if is_pickled:
        source = source.parent
    if revision is not None and source.exists():
        raise ModelError(
            f"revision={revision}: {name} is not from the hub, where revisions are; leave it out"
        )

    # Configuration, weights, tokenizer. A model of images or sound is refused before a tokenizer
    # is looked for, which it may lack.
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _one_line_errors(name, "configuration cannot be read"):
        config = AutoConfig.from_pretrained(str(source), **hub)
    module = _load_weights(name, _class_of(config), source, config=config, **options, **hub)
    _check_reads_text(module, name)
    with _one_line_errors(name, "tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(str(source), **hub)
    module.eval()
    if device_map is None:
        module.to(target)

    # What it is called: a path keeps its last part only.
    local = source if is_pickled else Path(name)
    public = name if name in EMBEDDED or not local.exists() else local.resolve().name
    commit = getattr(module.config, "_commit_hash", None) or revision

    # Where its layers are.
    layers = find_stack(module, stack)
    check_stack(module, layers)
    return Model(module, tokenizer, public, commit, layers)


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
    with _one_line_errors(source.name, "tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **gguf)
    # Written next to its place and moved there as a whole.
    with _one_line_errors(
        source.name, f"cannot be converted in {folder.parent} (see REPSIM_CACHE)"
    ):
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
    with _one_line_errors(name, "weights cannot be read"):
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


def _check_reads_text(module: Any, name: str) -> None:
    """Refuses models of pictures or sound, by what their forward is called with."""
    takes = module.main_input_name
    if takes == "input_ids" or "input_ids" in inspect.signature(type(module).forward).parameters:
        return
    kind = "pictures" if "pixel" in takes else "sound" if takes in SOUND else "something else"
    raise ModelError(
        f"model {name!r}: a model of {kind} ({module.config.model_type}): it reads {takes}, "
        "not text"
    )


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


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(1, device=target).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        usable = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu"
        raise ModelError(
            f"device {device!r}: not to be had here ({_brief(problem)}); use {usable}"
        ) from None
    return target


@contextlib.contextmanager
def _one_line_errors(name: str, failure: str) -> Iterator[None]:
    """Loads quietly, and turns any failure into one line that says what to do.

    Damaged files and odd configurations fail in whatever way the code that meets them does, so
    every exception is caught.
    """
    loggers = [logging.getLogger(library) for library in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        is_local = name in EMBEDDED or Path(name).exists()
        hub = contextlib.nullcontext() if is_local else cache_if_unreachable()
        with contextlib.redirect_stderr(io.StringIO()), hub:  # progress bars of several libraries
            yield
    except Exception as problem:
        raise ModelError(f"model {name!r}: {_advice(name, failure, problem)}") from problem
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _advice(name: str, failure: str, problem: Exception) -> str:
    """What to do about a failure of transformers or the hub, as far as their words tell it."""
    text = str(problem)
    is_local = Path(name).exists()
    if SAYS_OWN_CODE in text:
        return (
            "it brings its own code; read that, then allow it with trust_remote_code=True "
            "(--trust-remote-code)"
        )
    if SAYS_NO_SAFETENSORS in text and not is_local:
        return (
            "its weights are not in safetensors; download it and name the pickled file "
            "(FOLDER/pytorch_model.bin)"
        )
    if SAYS_NO_TOKENIZER in text:
        return "there is no tokenizer among its files; put one beside its weights (tokenizer.json)"
    if failure.startswith("configuration") and isinstance(problem, OSError) and not is_local:
        return (
            f"not embedded ({', '.join(EMBEDDED)}), no local folder, and not to be had from the "
            f"hub ({_brief(problem)}); check the name and the connection, and `hf auth login` for "
            "a gated model"
        )
    return f"{failure}: {_brief(problem)}"


def _brief(problem: Exception) -> str:
    """The first sentences of a message, 200 characters or the first one."""
    text = " ".join(str(problem).split())
    if " " not in text:
        return repr(problem)
    kept, *more = re.split(r"(?<=[.!?]) ", text)
    for sentence in more:
        if len(kept) + len(sentence) > 200:
            break
        kept = f"{kept} {sentence}"
    return textwrap.shorten(kept, 300, placeholder=" ...").removesuffix(".")
