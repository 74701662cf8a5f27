"""Adapters of peft: a LoRA in a folder is merged into its base model, as peft would merge it.

A folder with `adapter_config.json` names its base model and holds two small matrices for each
weight that it changes,

    W' = W + scale B A,     scale = alpha / r, or alpha / sqrt(r) with `use_rslora`.

Plain LoRA is merged here, with the same numbers whether peft is installed or not; every other kind
of adapter is left to peft, where that is installed. Source: Hu et al. 2022, "LoRA: Low-Rank
Adaptation of Large Language Models".
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from repsim.errors import ModelError
from repsim.models.load_errors import one_line_errors
from repsim.models.model_files import (
    ADAPTER_SETTINGS,
    MERGE,
    describe_adapter,
    last_part,
    read_settings,
)

log = logging.getLogger("repsim")

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # what peft puts before the names of the base model's modules
# Settings that merging reads, or that only matter while training.
READ = {"peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora"}
READ |= {"fan_in_fan_out", "target_modules", "layers_to_transform", "layers_pattern"}
READ |= {"exclude_modules"}
IRRELEVANT = {"auto_mapping", "inference_mode", "lora_dropout", "megatron_core", "peft_version"}
IRRELEVANT |= {"qalora_group_size", "runtime_config", "task_type"}
# What settings hold where a LoRA is plain in their respect, beyond nothing at all.
PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian"),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder.

    folder: where it is.
    settings: what its `adapter_config.json` says.
    base: name or path of the model that it changes.
    """

    folder: Path
    settings: Mapping[str, Any]
    base: str

    @property
    def kind(self) -> str:
        """As peft calls it, e.g. `LORA`."""
        return str(self.settings.get("peft_type"))

    @property
    def text(self) -> str:
        """What a store says of it: no path, only its last part."""
        return f"{self.kind} of {last_part(self.base)}, merged"


def read_adapter(source: Path, name: str) -> Adapter | None:
    """The adapter that a folder holds; None where it holds something else.

    Args:
        source: folder, file or hub id of a model.
        name: as the user gave it.
    Raises:
        ModelError: the adapter does not say what it is, or its weights are not in safetensors.
    """
    if not (source / ADAPTER_SETTINGS).is_file():
        return None
    settings = read_settings(source / ADAPTER_SETTINGS)
    base = settings.get("base_model_name_or_path")
    what = f"model {name!r}: {describe_adapter(source)}"
    if not base or not settings.get("peft_type"):
        raise ModelError(f"{what}; merge it first (peft: {MERGE}) and name that folder")
    if not (source / WEIGHTS).is_file():
        raise ModelError(f"{what}, without its weights ({WEIGHTS}); put them there")
    return Adapter(source, settings, str(base))


def merge(module: nn.Module, adapter: Adapter, name: str) -> Any:
    """The base model with an adapter merged into its weights.

    Args:
        module: the base model, whose weights are changed.
        adapter: the adapter.
        name: what messages call it.
    Returns:
        The module; with peft, what that makes of it.
    Raises:
        ModelError: the adapter does not fit its base model, or is of a kind that only peft merges,
            which is not installed.
    """
    reason = _why_not_plain(adapter)
    if reason is None:
        _merge_plain(module, adapter, name)
        log.info("model %s: %s", name, adapter.text)
        return module
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"model {name!r}: {describe_adapter(adapter.folder)} with {reason}, which only peft "
            f"merges; run: pip install peft, or merge it where peft is ({MERGE}) and name that "
            "folder"
        )
    with one_line_errors(name, f"peft does not merge it ({adapter.kind})"):
        peft = importlib.import_module("peft")
        wrapped = peft.PeftModel.from_pretrained(module, str(adapter.folder))
        merged = wrapped.merge_and_unload()
    log.info("model %s: %s, by peft", name, adapter.text)
    return merged


def _why_not_plain(adapter: Adapter) -> str | None:
    """The first thing in which an adapter is more than a plain LoRA; None for a plain one."""
    if adapter.kind != "LORA":
        return f"peft_type {adapter.kind}"
    for setting, value in adapter.settings.items():
        if setting in READ | IRRELEVANT or not value:
            continue
        if value not in PLAIN_VALUES.get(setting, ()):
            return f"{setting} {value}"
    return None


def _merge_plain(module: nn.Module, adapter: Adapter, name: str) -> None:
    """W + scale B A for every pair of matrices, rounded once to the weights' dtype."""
    with one_line_errors(name, f"{WEIGHTS} cannot be read"):
        tensors = load_file(adapter.folder / WEIGHTS)
    pairs = _pairs_in(tensors, name)
    modules = _targets(module, adapter, pairs, name)
    settings = adapter.settings
    rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    for path, (low, high) in pairs.items():
        target = modules[path]
        weight = target.weight.data
        # On the CPU, wherever the weights are, so that the numbers are the same.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        change = high.to(dtype) @ low.to(dtype)
        if isinstance(target, Conv1D) or settings.get("fan_in_fan_out"):
            change = change.T
        if len(low) != rank or change.shape != weight.shape:
            raise ModelError(
                f"model {name!r}: its matrices for {path}, of rank {len(low)}, give "
                f"{tuple(change.shape)}, where its settings say rank {rank} and {adapter.base} has "
                f"{tuple(weight.shape)}; is it another model's adapter?"
            )
        weight.copy_(weight.to(dtype) + (change * scale).to(weight.device))


def _pairs_in(tensors: Mapping[str, Tensor], name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrices A and B of each module, by the module's path."""
    matrices: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if match is None or tensor.ndim != 2:
            raise ModelError(
                f"model {name!r}: {key} in its {WEIGHTS} is no matrix of a plain LoRA; merge it "
                f"where peft is ({MERGE}) and name that folder"
            )
        matrices.setdefault(match[1], {})[match[2]] = tensor
    if single := [path for path, both in matrices.items() if len(both) < 2]:
        raise ModelError(
            f"model {name!r}: its {WEIGHTS} lacks one of the two matrices for {single[0]}; is it "
            "whole?"
        )
    return {path: (both["A"], both["B"]) for path, both in matrices.items()}


def _targets(
    module: nn.Module, adapter: Adapter, paths: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """The module of the base model that each path means.

    Raises:
        ModelError: there is none, it has no weights that can be added to, or the adapter lacks
            matrices for a module that its settings name.
    """
    # A base model that was trained without its head has paths without the head's prefix.
    prefix = str(getattr(module, "base_model_prefix", ""))
    children = dict(module.named_modules())
    uses = Counter(
        id(weight) for child in children.values() for weight in child._parameters.values()
    )
    targets = {}
    for path in paths:
        target = children.get(path) or children.get(f"{prefix}.{path}")
        problem = None
        if not isinstance(target, nn.Linear | Conv1D):
            problem = f"has no such linear layer: {path}"
        elif not target.weight.is_floating_point():
            problem = f"is quantised in {path}; hand over the PeftModel in memory"
        elif target.weight.is_meta:
            problem = f"waits on a disk in {path}; merge it first (peft: {MERGE})"
        elif uses[id(target.weight)] > 1:
            problem = f"uses the weights of {path} twice; merge it where peft is ({MERGE})"
        if problem is not None:
            raise ModelError(f"model {name!r}: {describe_adapter(adapter.folder)}, which {problem}")
        targets[path] = target
    # A file that was cut off would leave layers as they are.
    named = adapter.settings.get("target_modules")
    is_plain_list = isinstance(named, list) and not any(
        adapter.settings.get(setting) is not None
        for setting in ("layers_to_transform", "layers_pattern", "exclude_modules")
    )
    if is_plain_list:
        changed = {id(target) for target in targets.values()}
        for path, child in children.items():
            is_named = any(path == end or path.endswith(f".{end}") for end in named or ())
            if is_named and isinstance(child, nn.Linear | Conv1D) and id(child) not in changed:
                raise ModelError(
                    f"model {name!r}: its {WEIGHTS} lacks the matrices for {path}, which "
                    "target_modules names; is it whole?"
                )
    return targets
