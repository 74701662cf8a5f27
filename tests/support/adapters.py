"""LoRA without peft: modules in memory of peft's shape, and folders as it saves them."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK, ALPHA = 2, 3.0
TARGETS = ("q_proj", "down_proj")


class LoraLinear(nn.Module):
    """As peft's `lora.Linear`: a linear layer, and two small ones beside it."""

    def __init__(self, base_layer: nn.Linear, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base_layer = base_layer
        low = nn.Linear(base_layer.in_features, RANK, bias=False)
        high = nn.Linear(RANK, base_layer.out_features, bias=False)
        for child in (low, high):
            child.weight.data = torch.randn(child.weight.shape, generator=generator)
        self.lora_A, self.lora_B = nn.ModuleDict({"default": low}), nn.ModuleDict({"default": high})
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.5)})
        self.scaling = {"default": ALPHA / RANK}
        self.merged_adapters: list[str] = []
        self._active_adapter, self._disable_adapters = ["default"], False

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.base_layer(states)
        if self._disable_adapters:
            return output
        for name in self._active_adapter:
            change = self.lora_B[name](self.lora_A[name](self.lora_dropout[name](states)))
            output = output + change * self.scaling[name]
        return output


class PeftModel(nn.Module):
    """As peft's `PeftModelForCausalLM` around a `LoraModel` around a model of transformers.

    virtual_tokens: how many tokens it puts before a text, as prompt tuning does.
    """

    def __init__(self, model: Any, virtual_tokens: int = 0) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        kind = "PROMPT_TUNING" if virtual_tokens else "LORA"
        self.peft_config = {"default": SimpleNamespace(peft_type=SimpleNamespace(value=kind))}
        model.peft_config = self.peft_config
        self.virtual_tokens = virtual_tokens

    def get_base_model(self) -> Any:
        return self.base_model.model

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        ids = torch.cat([input_ids[:, :1]] * self.virtual_tokens + [input_ids], 1)
        return self.get_base_model()(input_ids=ids, **options)


def with_lora(model: Any, targets: Sequence[str] = TARGETS) -> PeftModel:
    """A model in which some linear layers have a LoRA beside them, in training mode."""
    paths = [path for path, _ in model.named_modules() if path.endswith(tuple(targets))]
    for seed, path in enumerate(paths):
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        setattr(parent, name, LoraLinear(getattr(parent, name), seed))
    return PeftModel(model).train()


def save_adapter(folder: Path, wrapped: PeftModel, base: object, **settings: Any) -> Path:
    """A LoRA's folder as peft's `save_pretrained` writes it."""
    folder.mkdir()
    weights = {
        f"base_model.model.{path}.{kind}.weight": getattr(layer, kind)["default"].weight.data
        for path, layer in wrapped.get_base_model().named_modules()
        if isinstance(layer, LoraLinear)
        for kind in ("lora_A", "lora_B")
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS)}
    plain |= {"base_model_name_or_path": str(base), "bias": "none", "init_lora_weights": True}
    plain |= {"use_rslora": False, "use_dora": False, "rank_pattern": {}, "qalora_group_size": 16}
    (folder / "adapter_config.json").write_text(json.dumps(plain | settings))
    return folder
