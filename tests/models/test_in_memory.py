"""A model in memory: the numbers of its files, nothing of it changed, and refusals in one line."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import repsim
from repsim.errors import RepsimError
from repsim.models import load
from support.adapters import PeftModel, with_lora
from support.models import ARCHITECTURES, MORE, batch_of, build, make

PLANS = ["baseline", "skip:start=2"]
SMALL: dict[str, Any] = {"limit": 3, "dtype": "float32"}


@pytest.fixture(scope="module")
def module(tiny_folder: Path) -> Any:
    """The tiny Llama as transformers loads it; tests leave it as it is."""
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


def failure(*arguments: Any, run: Any = load, **options: Any) -> str:
    with pytest.raises(RepsimError) as caught:
        run(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


# The same numbers as from files


def test_the_identity_is_that_of_the_files(module: Any, tokenizer: Any, tiny_folder: Path) -> None:
    file = load(tiny_folder, device="cpu")
    compiled: Any = torch.compile(module, backend="eager")
    for taken in (
        load(module, tokenizer=tokenizer),
        load(compiled, tokenizer=str(tiny_folder)),
        load(nn.DataParallel(module), tokenizer=tiny_folder),
    ):
        for part in ("name", "weights_digest", "config_digest", "tokenizer_digest", "dtype"):
            assert getattr(taken, part) == getattr(file, part)
        assert (taken.revision, taken.adapter, taken.attention) == (None, None, None)


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt2", "bert", "mpt"])
def test_a_model_made_here_and_saved_is_the_same(
    architecture: str, tokenizer: Any, tmp_path: Path
) -> None:
    class_name, config, _ = {**ARCHITECTURES, **MORE}[architecture]
    made = build(class_name, config)
    made.save_pretrained(tmp_path / class_name)
    taken = load(made, tokenizer=tokenizer)
    file = load(tmp_path / class_name, tokenizer=tokenizer, device="cpu")
    assert (taken.name, file.name) == (class_name, class_name)
    assert taken.weights_digest == file.weights_digest
    assert taken.config_digest == file.config_digest


def test_a_head_that_files_are_loaded_without(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Of a model that classifies texts its body runs, in memory as from its folder."""
    classes: Any = transformers.BertForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder_folder)
    trained = classes.from_pretrained(tiny_encoder_folder, num_labels=3)
    trained.save_pretrained(tmp_path / "labels")
    tokenizer.save_pretrained(tmp_path / "labels")
    taken, file = load(trained, tokenizer=tokenizer), load(tmp_path / "labels", device="cpu")
    assert type(taken.module) is type(file.module) is transformers.BertModel
    assert taken.weights_digest == file.weights_digest


@pytest.mark.parametrize("begun_in_memory", [True, False])
def test_a_capture_is_resumed_from_folder_and_memory(
    module: Any,
    tokenizer: Any,
    tiny_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    begun_in_memory: bool,
) -> None:
    out = tmp_path / "a.zarr"

    def capture(in_memory: bool, **options: Any) -> repsim.Capture:
        if in_memory:
            return repsim.capture(module, tokenizer=tokenizer, out=out, **SMALL, **options)
        return repsim.capture(tiny_folder, device="cpu", out=out, **SMALL, **options)

    first = capture(begun_in_memory)
    with caplog.at_level(logging.INFO, logger="repsim"):
        second = capture(not begun_in_memory)
    assert "complete already" in caplog.text
    assert second.commands == first.commands  # it asked for nothing new
    grown = capture(not begun_in_memory, plan=PLANS, append=True)
    assert (grown.plans[1].name, len(grown.commands)) == (PLANS[1], 2)
    assert np.array_equal(grown.hidden(plan="baseline").values, first.hidden().values)


def test_scores_are_resumed_likewise(
    module: Any, tokenizer: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    options: Any = {"tasks": "grammar", "limit": 2, "out": tmp_path / "s.zarr"}
    before = dict(vars(tokenizer))
    scores = repsim.evaluate(module, tokenizer=tokenizer, **options)
    again = repsim.evaluate(tiny_folder, device="cpu", **options)
    assert again.commands == scores.commands
    assert scores.commands[0].startswith("repsim.evaluate(repsim.models.load(model, tokenizer=tok")
    assert vars(tokenizer) == before  # lm-eval gives a tokenizer tokens that it lacks


# The module stays as it is


def everything_of(module: nn.Module) -> dict[str, Any]:
    """What a run could change of a module tree: modes, tensors, hooks, configuration."""
    state: dict[str, Any] = {"config": json.dumps(module.config.to_dict(), default=str)}  # type: ignore[operator, union-attr]
    for path, child in module.named_modules():
        tensors = {**child._parameters, **child._buffers}
        state[path] = (
            child.training,
            {
                name: (id(tensor), tensor._version, tensor.requires_grad, tensor.device)
                for name, tensor in tensors.items()
                if tensor is not None
            },
            {name: len(value) for name, value in vars(child).items() if name.endswith("hooks")},
            sorted(vars(child)),
        )
    return state


def test_nothing_of_the_module_is_changed(module: Any, tokenizer: Any, tmp_path: Path) -> None:
    trained = copy.deepcopy(module).train()
    trained.config.return_dict = False
    trained.model.layers[1].eval().requires_grad_(False)
    before = everything_of(trained)
    options: Any = {"tokenizer": tokenizer, "plan": PLANS}
    repsim.capture(trained, out=tmp_path / "a.zarr", logprobs=True, **SMALL, **options)
    repsim.evaluate(trained, tasks="grammar", limit=2, out=tmp_path / "s.zarr", **options)
    assert everything_of(trained) == before


def test_its_mode_does_not_matter(tokenizer: Any, tmp_path: Path) -> None:
    """A model with dropout that is being trained: its states are those of evaluation mode."""
    trained = build("BertModel", ARCHITECTURES["bert"][1] | {"hidden_dropout_prob": 0.5})
    by_mode = [
        repsim.capture(
            trained.train(mode), tokenizer=tokenizer, out=tmp_path / f"{mode}.zarr", **SMALL
        )
        for mode in (True, False)
    ]
    first, second = (capture.hidden().values for capture in by_mode)
    assert np.array_equal(first, second)


def test_a_model_that_is_trained_further_is_another(module: Any, tokenizer: Any) -> None:
    trained = copy.deepcopy(module)
    taken = load(trained, tokenizer=tokenizer, name="my-run")
    run = repsim.jobs.subject.load_or_reuse
    before = run(taken, repsim.options.ModelOptions()).weights_digest
    with torch.no_grad():
        trained.lm_head.weight.mul_(2)
    assert run(taken, repsim.options.ModelOptions()).weights_digest != before


def test_hooks_run_and_are_said(
    module: Any, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooked = copy.deepcopy(module)
    hooked.model.layers[0].register_forward_hook(lambda _module, _args, output: output * 2)
    hooked.model.layers[3].register_forward_pre_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING, logger="repsim"):
        load(hooked, tokenizer=tokenizer)
    assert "model tiny-llama: hooks on 2 of its modules run as well, and no digest" in caplog.text


# What is handed over


def test_what_a_store_says_of_a_model_in_memory(
    module: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Its command could not run, so it is a call, and words say what it needs."""
    out = tmp_path / "a.zarr"
    model = load(module, tokenizer=tokenizer, name="my-run", stack="model.layers")
    capture = repsim.capture(model, out=out, **SMALL)
    options = f"plan=['baseline'], limit=3, dtype='float32', out='{out}'"
    loading = "repsim.models.load(model, tokenizer=tokenizer, name='my-run')"
    assert capture.identity["model"] == "my-run"
    assert capture.commands == [f"repsim.capture({loading}, {options})"]
    assert str(tmp_path) not in str(capture.dataset.attrs["requests"])

    # Damaged, it is repaired by what `verify` says to call.
    chunk = max(out.glob("hidden/**/c/**/*"), key=lambda path: path.is_file())
    chunk.write_bytes(b"spoilt")
    (line,) = repsim.stores.repair_advice(out, repsim.verify(out))
    call = f"repsim.capture({loading}, {options}, repair=True)"
    assert line == f"Repair in Python, handing over the same model and tokenizer: {call}"
    eval(call, {"repsim": repsim, "model": module, "tokenizer": tokenizer})
    assert not repsim.verify(out).damages


def test_a_module_without_a_tokenizer(module: Any, tmp_path: Path) -> None:
    for run in (load, repsim.capture, repsim.evaluate):
        options = {} if run is load else {"out": tmp_path / "a.zarr"}
        assert failure(module, run=run, **options) == (
            "model: LlamaForCausalLM in memory comes without a tokenizer; hand it over with it "
            "(tokenizer=), an object or a name"
        )
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"device": "cpu"}, "device"),
        ({"revision": "main", "trust_remote_code": True}, "revision, trust_remote_code"),
        ({"attn_implementation": "eager", "device_map": "auto"}, "device_map, attn_implementation"),
    ],
)
def test_options_of_files(
    module: Any, tokenizer: Any, options: dict[str, Any], names: str, tmp_path: Path
) -> None:
    message = (
        f"{names}: LlamaForCausalLM is in memory already and runs as it is, where it is; change it "
        "there, or give the name of its files"
    )
    assert failure(module, tokenizer=tokenizer, **options) == message
    capturing = {"run": repsim.capture, "tokenizer": tokenizer, "out": tmp_path / "a.zarr"}
    assert failure(module, **capturing, **options) == message
    line = failure(module, run=repsim.capture, model_dtype="bfloat16", tokenizer=tokenizer)
    assert line.startswith("model_dtype: LlamaForCausalLM is in memory already and runs ")


def test_modules_that_are_not_taken(module: Any, tokenizer: Any) -> None:
    line = failure(nn.Linear(1, 1), tokenizer=tokenizer)
    assert line.startswith("model: Linear in memory is not a model of transformers; hand over ")
    follower = repsim.planned(module, "0-4", check=False)
    assert "LlamaForCausalLM in memory follows a plan already; hand over the model it" in failure(
        follower, tokenizer=tokenizer
    )
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(module.config)
    assert failure(empty, tokenizer=tokenizer).startswith(
        "model: LlamaForCausalLM in memory has no weights yet (device meta); "
    )
    pictures = transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1, hidden_size=12))
    assert failure(pictures, tokenizer=tokenizer) == (
        "model 'ViTModel': a model of pictures (vit): it reads pixel_values, not text"
    )
    assert failure("tiny", name="my-run").startswith("name=my-run: for a model in memory; ")


@pytest.mark.parametrize("given", [7, "raw", torch.nn.Linear(1, 1)])
def test_what_is_no_tokenizer(module: Any, tokenizer: Any, given: Any) -> None:
    given = tokenizer.backend_tokenizer if given == "raw" else given
    line = failure(module, tokenizer=given)
    assert line.startswith(f"tokenizer: {type(given).__name__} is neither a name nor a tokenizer")


# A tokenizer by its name


def test_a_folder_without_a_tokenizer(
    tiny_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    make("llama").module.save_pretrained(tmp_path / "bare")
    assert "name one (--tokenizer NAME, tokenizer=)" in failure(tmp_path / "bare", device="cpu")
    named = load(tmp_path / "bare", tokenizer=tiny_folder, device="cpu")
    assert named.tokenizer_digest == load(tiny_folder, device="cpu").tokenizer_digest
    out = tmp_path / "a.zarr"
    options: Any = {"device": "cpu", "out": out, **SMALL}
    capture = repsim.capture(tmp_path / "bare", tokenizer=str(tiny_folder), **options)
    assert "--tokenizer tiny-llama" in capture.commands[0]
    assert capture.identity["tokenizer"] == named.tokenizer_digest
    # A tokenizer object is of the same identity, and another tokenizer is not.
    loaded = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    repsim.capture(tmp_path / "bare", tokenizer=loaded, **options)
    with pytest.raises(RepsimError, match="holds another capture: another tokenizer"):
        repsim.capture(tmp_path / "bare", tokenizer=tiny_encoder_folder, **options)


def test_tokenizers_that_are_not_there(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("/nowhere", "./nowhere", " "):
        line = failure(tiny_folder, tokenizer=name, device="cpu")
        assert line == f"tokenizer {name!r}: no such folder"
    assert failure(tiny_folder, tokenizer=tmp_path).startswith(
        f"tokenizer '{tmp_path}': there is no tokenizer among its files"
    )
    assert failure(tiny_folder, tokenizer="nobody/nothing").startswith(
        "tokenizer 'nobody/nothing': not embedded ("
    )


# How attention is computed


def test_another_attention_is_another_capture(
    module: Any, tokenizer: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.zarr"
    options: Any = {"device": "cpu", "out": out, **SMALL}
    capture = repsim.capture(tiny_folder, attn_implementation="eager", **options)
    assert capture.info["attention"] == capture.identity["attention"] == "eager"
    assert "--attn-implementation eager" in capture.commands[0]
    with pytest.raises(
        RepsimError,
        match=r"implementation of attention \(eager there, transformers' own choice here\); choo",
    ):
        repsim.capture(tiny_folder, **options)
    # A module's own, by which the same capture goes on.
    eager = copy.deepcopy(module)
    eager.set_attn_implementation("eager")
    repsim.capture(eager, tokenizer=tokenizer, out=out, **SMALL)
    # What transformers chooses by itself makes no difference.
    assert load(tiny_folder, attn_implementation="sdpa", device="cpu").attention is None


@pytest.mark.parametrize("name", ["frobnicate", "flash_attention_2"])
def test_an_attention_that_is_not_there(tiny_folder: Path, name: str) -> None:
    line = failure(tiny_folder, attn_implementation=name, device="cpu")
    assert line.startswith(f"model '{tiny_folder}': weights cannot be read: ")
    assert len(line) < 500


# Adapters of peft in memory


@pytest.fixture
def wrapped(module: Any) -> PeftModel:
    return with_lora(copy.deepcopy(module))


def test_a_model_of_peft_runs_with_its_layers(
    wrapped: PeftModel, tokenizer: Any, tmp_path: Path
) -> None:
    before = everything_of(wrapped.get_base_model())
    capture = repsim.capture(wrapped, tokenizer=tokenizer, out=tmp_path / "a.zarr", **SMALL)
    assert everything_of(wrapped.get_base_model()) == before
    assert capture.identity["model"] == "tiny-llama"
    assert capture.info["adapter"] == "LORA default, on top"
    first = capture.dataset["sample"].values == 0
    ids = torch.from_numpy(capture.dataset["token_id"].values[first].astype(np.int64))[None]
    with torch.no_grad():
        own = wrapped.eval()(ids, output_hidden_states=True).hidden_states
    states = torch.from_numpy(capture.hidden().values[:, first])
    torch.testing.assert_close(states[3], own[3][0])


def test_how_adapters_are_applied_counts(wrapped: PeftModel, tokenizer: Any) -> None:
    """Neither scale nor which of them are used is a weight, and both change the numbers."""
    layer = wrapped.get_base_model().model.layers[0].self_attn.q_proj
    digests = {load(wrapped, tokenizer=tokenizer).weights_digest}
    layer.scaling["default"] = 2.0
    digests.add(load(wrapped, tokenizer=tokenizer).weights_digest)
    layer._disable_adapters = True
    digests.add(load(wrapped, tokenizer=tokenizer).weights_digest)
    assert len(digests) == 3


def test_a_model_of_peft_that_is_more_than_layers(module: Any, tokenizer: Any) -> None:
    prompted = PeftModel(copy.deepcopy(module), virtual_tokens=2)
    for line in (
        failure(prompted, tokenizer=tokenizer),
        failure(prompted, "0-4", run=repsim.planned),
    ):
        assert line.startswith("model: PeftModel (PROMPT_TUNING) gives other outputs than its base")


def test_a_planned_model_of_peft(wrapped: PeftModel) -> None:
    """A layer that runs twice has its LoRA twice, and gradients arrive there."""
    planned = repsim.planned(wrapped, "0, 1*2, 2-5")
    ids = torch.from_numpy(batch_of((9,)).token_ids)
    planned(ids, labels=ids).loss.backward()
    model = wrapped.eval().get_base_model()
    base = model.model.layers
    assert base[1].self_attn.q_proj.lora_A["default"].weight.grad.abs().sum() > 0
    with torch.no_grad():
        looped = planned.eval()(ids).logits
        # By hand: the layer a second time in the model's own list.
        model.model.layers = nn.ModuleList([base[0], base[1], *base[1:]])
        model.config.num_hidden_layers = len(model.model.layers)
        expected = wrapped(ids, use_cache=False).logits
    torch.testing.assert_close(looped, expected)


# Packed weights


class PackedLinear(nn.Linear):
    """As bitsandbytes' layers: weights as bytes, whose scale is no parameter and no buffer."""

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = layer.weight.detach().abs().max() / (2 ** (bits - 1) - 1)
        packed = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}SCB"] = self.scale


def test_packed_weights(module: Any, tokenizer: Any, tmp_path: Path) -> None:
    packed = copy.deepcopy(module)
    for layer in packed.model.layers:
        layer.mlp.up_proj = PackedLinear(layer.mlp.up_proj, bits=8)
    taken = load(packed, tokenizer=tokenizer)
    assert taken.dtype == "float32"
    capture = repsim.capture(packed, tokenizer=tokenizer, out=tmp_path / "a.zarr", **SMALL)
    assert capture.identity["weights"] == taken.weights_digest
    # Twice the scale is another model, with the same bytes.
    packed.model.layers[0].mlp.up_proj.scale *= 2
    assert load(packed, tokenizer=tokenizer).weights_digest != taken.weights_digest
