"""LoRA in a folder: merged into its base model exactly, or refused with what it is."""

import importlib.util
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import repsim
from repsim.errors import RepsimError
from repsim.models import Model, load
from support.adapters import ALPHA, RANK, TARGETS, PeftModel, save_adapter, with_lora
from support.models import build, make

WEIGHTS = "adapter_model.safetensors"
HAS_PEFT = importlib.util.find_spec("peft") is not None


@pytest.fixture(scope="module")
def wrapped() -> PeftModel:
    """The tiny Llama with a LoRA in some of its layers."""
    return with_lora(make("llama").module)


@pytest.fixture
def folder(wrapped: PeftModel, tiny_folder: Path, tmp_path: Path) -> Path:
    """What peft saves of it."""
    return save_adapter(tmp_path / "tiny-lora", wrapped, tiny_folder)


def failure(folder: Path) -> str:
    with pytest.raises(RepsimError) as caught:
        load(folder, device="cpu")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"model '{folder}': ")
    return line


def merged_by_hand(wrapped: PeftModel, scale: float) -> dict[str, torch.Tensor]:
    """W + scale B A, one entry at a time, of the base model's layers that have a LoRA."""
    weights = {}
    for path, layer in wrapped.get_base_model().named_modules():
        if path.endswith(TARGETS):
            low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            change = sum(torch.outer(high[:, rank], low[rank]) for rank in range(RANK))
            weights[f"{path}.weight"] = layer.base_layer.weight + scale * change
    return weights


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_weights_are_those_of_the_formula(
    wrapped: PeftModel, tiny_folder: Path, tmp_path: Path, use_rslora: bool
) -> None:
    folder = save_adapter(tmp_path / "tiny-lora", wrapped, tiny_folder, use_rslora=use_rslora)
    model = load(folder, device="cpu")
    scale = ALPHA / (math.sqrt(RANK) if use_rslora else RANK)
    expected = merged_by_hand(wrapped, scale)
    assert len(expected) == 12
    base, state = load(tiny_folder, device="cpu"), model.module.state_dict()
    for name, weight in base.module.state_dict().items():
        torch.testing.assert_close(state[name], expected.get(name, weight), rtol=1e-5, atol=1e-6)
    assert (model.name, model.adapter, model.revision) == (
        "tiny-lora",
        "LORA of tiny-llama, merged",
        None,
    )
    # Tokenizer and configuration are the base model's.
    assert model.tokenizer_digest == base.tokenizer_digest
    assert model.config_digest == base.config_digest
    assert model.weights_digest != base.weights_digest


def test_what_is_merged_computes_what_the_layers_do(wrapped: PeftModel, folder: Path) -> None:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        merged = load(folder, device="cpu").module(ids).logits
        on_top = wrapped.eval()(ids).logits
    torch.testing.assert_close(merged, on_top, rtol=1e-4, atol=1e-4)


def test_the_dtype_is_rounded_to_once(wrapped: PeftModel, folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    narrow = load(folder, device="cpu", dtype="bfloat16").module.state_dict()[name]
    base = make("llama").module.state_dict()[name].bfloat16().float()
    layer = wrapped.get_base_model().get_submodule(name.removesuffix(".weight"))
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.equal(narrow, (base + change * (ALPHA / RANK)).bfloat16())


def test_a_transposed_layer(tiny_folder: Path, tmp_path: Path) -> None:
    """GPT-2's weights are `[in, out]`, which peft sees by the layer's class."""
    base = build("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 97})
    base.save_pretrained(tmp_path / "gpt2")
    shutil.copy(tiny_folder / "tokenizer.json", tmp_path / "gpt2")
    shutil.copy(tiny_folder / "tokenizer_config.json", tmp_path / "gpt2")
    low, high = torch.randn(RANK, 8), torch.randn(24, RANK)
    folder = save_adapter(
        tmp_path / "lora", PeftModel(base), tmp_path / "gpt2", target_modules=["h.1.attn.c_attn"]
    )
    path = "base_model.model.transformer.h.1.attn.c_attn"
    save_file({f"{path}.lora_A.weight": low, f"{path}.lora_B.weight": high}, folder / WEIGHTS)
    before = base.transformer.h[1].attn.c_attn.weight
    after = load(folder, device="cpu").module.transformer.h[1].attn.c_attn.weight
    torch.testing.assert_close(after, before + (ALPHA / RANK) * (high @ low).T)


def test_a_log_line_and_info_say_that_it_is_merged(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="repsim"):
        capture = repsim.capture(folder, device="cpu", limit=2, out=tmp_path / "a.zarr")
    assert f"model {folder}: LORA of tiny-llama, merged" in caplog.text
    assert capture.info["adapter"] == "LORA of tiny-llama, merged"
    assert str(tmp_path) not in str(capture.identity)
    (command,) = capture.commands
    assert command.startswith("repsim capture tiny-lora --plan baseline --limit 2 --out ")


def test_a_tokenizer_beside_the_adapter_comes_first(
    folder: Path, tiny_encoder_folder: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_encoder_folder / name, folder)
    own: Model = load(folder, device="cpu")
    assert own.tokenizer_digest == load(tiny_encoder_folder, device="cpu").tokenizer_digest


@pytest.mark.skipif(HAS_PEFT, reason="peft would merge it")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "LORA) of {base} with use_dora True, which only peft merges; "),
        ({"bias": "all"}, "LORA) of {base} with bias all, which only peft"),
        ({"init_lora_weights": "pissa"}, "with init_lora_weights pissa, which only peft"),
        ({"modules_to_save": ["lm_head"]}, "with modules_to_save ['lm_head'], which only peft"),
        ({"rank_pattern": {"q_proj": 4}}, "with rank_pattern {{'q_proj': 4}}, which only peft"),
        ({"of_a_later_peft": 1}, "with of_a_later_peft 1, which only peft"),
        ({"peft_type": "LOHA"}, "LOHA) of {base} with peft_type LOHA, which only peft merges; run"),
    ],
)
def test_what_only_peft_merges(
    wrapped: PeftModel, tiny_folder: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    line = failure(save_adapter(tmp_path / "odd", wrapped, tiny_folder, **settings))
    assert reason.format(base=tiny_folder) in line
    assert "run: pip install peft, or merge it where peft is (PeftModel.from_pretrained(" in line


def edit(folder: Path, key: str | None, tensor: torch.Tensor | None) -> None:
    """Replaces or removes one of the matrices."""
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in sorted(tensors) if key is None or key in name)
    del tensors[name]
    save_file({**tensors, **({} if tensor is None else {name: tensor})}, folder / WEIGHTS)


def test_adapters_that_are_not_whole(
    wrapped: PeftModel, folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    edit(folder, "layers.0.mlp.down_proj.lora_A", None)
    assert "lacks one of the two matrices for model.layers.0.mlp.down_proj; is" in failure(folder)
    edit(folder, "layers.0.mlp.down_proj.lora_B", None)
    assert "lacks the matrices for model.layers.0.mlp.down_proj, which target_" in failure(folder)
    (folder / WEIGHTS).unlink()
    assert failure(folder).endswith(f"without its weights ({WEIGHTS}); put them there")
    other = save_adapter(tmp_path / "other", wrapped, tiny_folder)
    (other / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes()[:-100])
    assert f"{WEIGHTS} cannot be read: " in failure(other)


def test_adapters_of_another_model(folder: Path) -> None:
    edit(folder, "layers.0.self_attn.q_proj.lora_B", torch.zeros(16, RANK))
    line = failure(folder)
    assert "its matrices for model.layers.0.self_attn.q_proj, of rank 2, give (16, 32), wh" in line
    assert line.endswith("has (32, 32); is it another model's adapter?")
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {f"base_model.model.x.lora_{m}.weight": torch.zeros(2, 2) for m in "AB"}, folder / WEIGHTS
    )
    assert failure(folder).endswith(", which has no such linear layer: x")
    save_file({"base_model.model.x.lora_embedding_A": tensors.popitem()[1]}, folder / WEIGHTS)
    assert "is no matrix of a plain LoRA; merge it where peft is (" in failure(folder)


def test_the_base_model_has_to_be_there(wrapped: PeftModel, folder: Path, tmp_path: Path) -> None:
    for base, problem in (
        ("/nowhere/base", "model '/nowhere/base': no such folder; write there where it is"),
        (str(folder), "it is an adapter itself; write there where it is"),
    ):
        other = save_adapter(tmp_path / base.replace("/", "-"), wrapped, base)
        line = failure(other)
        assert f"an adapter of {base}, by base_model_name_or_path in its adapter_config" in line
        assert line.endswith(problem)


def test_an_adapter_on_the_hub_is_downloaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_options: object) -> None:
        raise OSError(f"{name} does not appear to have a file named config.json. Checkout 'https")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    assert failure(Path("org/lora")) == (
        "model 'org/lora': it has no config.json on the hub; if it holds an adapter, download it "
        "(hf download org/lora --local-dir FOLDER) and name that folder"
    )


def test_weights_that_serve_twice_are_not_changed(tiny_folder: Path, tmp_path: Path) -> None:
    """A head that is the embedding as well: with the change in one, the other would have it."""
    tied = build("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 97})
    tied.save_pretrained(tmp_path / "tied")
    folder = save_adapter(tmp_path / "lora", PeftModel(tied), tmp_path / "tied")
    save_file(
        {
            "base_model.model.lm_head.lora_A.weight": torch.ones(RANK, 8),
            "base_model.model.lm_head.lora_B.weight": torch.ones(97, RANK),
        },
        folder / WEIGHTS,
    )
    assert "which uses the weights of lm_head twice; merge it where peft is (" in failure(folder)
