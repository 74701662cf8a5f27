"""Whether a text's states depend on others, against the model's own forward on each text alone."""

import copy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

import repsim
from repsim.data.batching import BatchRule, batches
from repsim.data.samples import Sample
from repsim.errors import RepsimError
from repsim.evaluation import tasks
from repsim.models import Model
from repsim.models.batch_invariance import BatchTrial, BatchTrials, can_generate_together
from repsim.models.stack import find_stack
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie
from repsim.registry import statistics_of
from support.models import (
    ARCHITECTURES,
    DECODER,
    HEAD,
    MIXED,
    MORE,
    SMALL,
    VOCABULARY,
    Config,
    T,
    build,
)

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 5.0, 6.0, 8.0],
    "original_max_position_embeddings": 16,
}
UNMASKED: dict[str, tuple[str, Config]] = {
    "fnet": ("FNetModel", {**SMALL, "use_tpu_fourier_optimizations": False}),
    "yoso": ("YosoModel", SMALL),
    "nystromformer": ("NystromformerModel", SMALL),
    "convbert": ("ConvBertModel", {**SMALL, "embedding_size": 32}),
    "mobilebert": (
        "MobileBertModel",
        {**SMALL, "intra_bottleneck_size": 32, "true_hidden_size": 32, "embedding_size": 32},
    ),
}
ROTARY: dict[str, tuple[str, Config]] = {
    "dynamic": (
        "LlamaForCausalLM",
        {**DECODER, "max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    ),
    "longrope": (
        "Phi3ForCausalLM",
        {**DECODER, "max_position_embeddings": 512, "original_max_position_embeddings": 16}
        | {"rope_parameters": LONGROPE},
    ),
}
FORESEEING: dict[str, tuple[str, Config]] = {
    "bert_lm": ("BertLMHeadModel", SMALL),
    "gemma3_bidirectional": (
        "Gemma3ForCausalLM",
        {**HEAD, "sliding_window": 4, "layer_types": MIXED, "use_bidirectional_attention": True},
    ),
}
MASKED = {name: each[:2] for name, each in {**ARCHITECTURES, **MORE}.items()}
SOME = (
    "llama",
    "gemma3_text",
    "gpt2",
    "bert",
    "modernbert",
    "mixtral",
    "deberta_v2",
    "jamba",
    "bloom",
    "lfm2",
)
COSTS: dict[str, Any] = {"overhead": 16.0, "waste": 0.5}
LENGTHS = (40, 33, 20, 20, 17, 16, 12, 5, 5, 2)


def model_of(class_name: str, config: Config) -> Model:
    module = build(class_name, config)
    return Model(module, SimpleNamespace(pad_token_id=0), class_name, None, find_stack(module))


def texts_of(*lengths: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(1)
    return [generator.integers(3, VOCABULARY, length).astype(np.int32) for length in lengths]


def tried(model: Model, *lengths: int) -> BatchRule:
    return BatchTrials(model, Tracer(model), texts_of(*lengths)).result.rule


def alone(model: Model, text: NDArray[np.int32]) -> torch.Tensor:
    """The model's own states of a text but the last, `[state, token, unit]`."""
    with torch.inference_mode():
        output = copy.deepcopy(model.module)(
            torch.from_numpy(text)[None].long(), output_hidden_states=True
        )
    return torch.cat(output.hidden_states[:T])


def captured(
    model: Model, texts: list[NDArray[np.int32]], batch_rule: BatchRule
) -> list[torch.Tensor]:
    """The states that a run gives each text."""
    made = batches([Sample("", text) for text in texts], 0, **COSTS, batch_rule=batch_rule)
    trie = PlanTrie.build([Plan.from_steps(range(T))])
    found: list[torch.Tensor] = []
    Tracer(model).run(trie, made, lambda state: found.append(state.hidden.clone()))
    return list(torch.split(torch.stack(found[:T]), [len(text) for text in texts], 1))


@pytest.mark.parametrize("name", [*UNMASKED, *ROTARY])
def test_states_are_those_of_each_text_alone(name: str) -> None:
    model = model_of(*{**UNMASKED, **ROTARY}[name])
    texts = texts_of(*LENGTHS)
    wanted = [alone(model, text) for text in texts]
    assert tried(model, *LENGTHS) is BatchRule.EQUAL
    for batch_rule, right in ((BatchRule.EQUAL, True), (BatchRule.ANY, False)):
        pairs = zip(captured(model, texts, batch_rule), wanted, strict=True)
        errors = [
            ((found - own).norm(dim=-1) / own.norm(dim=-1)).max().item() for found, own in pairs
        ]
        assert (max(errors) < 1e-5) is right


@pytest.mark.parametrize("name", SOME)
def test_models_that_mask_padding_run_texts_of_any_length(name: str) -> None:
    model = model_of(*MASKED[name])
    assert tried(model, *LENGTHS) is BatchRule.ANY


@pytest.mark.parametrize("name", ROTARY)
def test_lengths_on_one_side_of_a_boundary_run_together(name: str) -> None:
    model = model_of(*ROTARY[name])
    assert tried(model, 16, 12, 7, 2) is BatchRule.ANY
    assert tried(model, 17, 16) is BatchRule.EQUAL
    assert tried(model, 17, 2) is BatchRule.EQUAL
    assert tried(model, 100, 90, 20, 1) is (BatchRule.EQUAL if name == "dynamic" else BatchRule.ANY)


@pytest.mark.parametrize("lengths", [(9,), (7, 7, 7), (1, 1)])
def test_texts_of_one_length_are_never_padded(lengths: tuple[int, ...]) -> None:
    assert tried(model_of(*UNMASKED["fnet"]), *lengths) is BatchRule.ANY


def test_a_model_that_takes_no_such_text_is_refused_in_one_line() -> None:
    """Where landmarks are means of segments, texts have one length only."""
    model = model_of(
        "NystromformerModel", {**SMALL, "num_landmarks": 4, "segment_means_seq_len": 32}
    )
    with pytest.raises(
        RepsimError,
        match=r"^NystromformerModel: its forward fails on texts of 2 tokens \(shape .*\); ",
    ):
        tried(model, *LENGTHS)


class Crowd(nn.Module):
    """Adds the mean of the batch to each state, as routers with a capacity per batch do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.layer(hidden_states, *args, **kwargs) + hidden_states.mean((0, 1))


def test_where_any_neighbour_matters_each_text_runs_by_itself() -> None:
    model = model_of(*MASKED["llama"])
    model.module.model.layers[3] = Crowd(model.module.model.layers[3])
    assert tried(model, *LENGTHS) is BatchRule.NONE
    assert tried(model, 7, 7) is BatchRule.NONE


def test_a_layer_of_another_kind_is_tried_as_well() -> None:
    """Only layer 4 does not mask padding."""
    model = model_of(*MASKED["bert"])
    attention = model.module.encoder.layer[4].attention.self
    attention.forward = lambda states, *_args, **_kwargs: (
        states.mean(1, keepdim=True).expand_as(states),
        None,
    )
    attention.is_another = True
    assert tried(model, *LENGTHS) is BatchRule.EQUAL


def test_a_trial_says_what_it_found() -> None:
    assert (
        str(BatchTrial(BatchRule.ANY, 3e-7))
        == "texts of any length, padded (tried: the same states to 3e-07)"
    )
    assert str(BatchTrial(BatchRule.EQUAL, 0.3)) == (
        "texts of one length, unpadded (padding, or a longer text in its batch, changes a text's "
        "states, by 0.3)"
    )


def test_a_trial_costs_few_tokens() -> None:
    """Of 31 layers one runs, on texts of 30 and 120 tokens, each alone and beside one of 220."""
    model = model_of("LlamaForCausalLM", {**DECODER, "num_hidden_layers": 31})
    positions: list[int] = []
    for layer in model.stack.layers:
        layer.mlp.register_forward_hook(
            lambda _m, _a, output: positions.append(output.shape[:2].numel())
        )
    tracer, texts = Tracer(model), texts_of(*range(220, 29, -2))
    for text in (texts[0], texts[-1]):  # the proof of the replay comes first
        made = batches([Sample("", text), Sample("", texts[-1])], 0, overhead=1e9, waste=1.0)
        tracer.run(PlanTrie.build([Plan.from_steps([0])]), made, lambda _: None)
    positions.clear()
    assert BatchTrials(model, tracer, texts).result.rule is BatchRule.ANY
    assert positions == [30, 2 * 220, 120, 2 * 220]


# What follows a token


@pytest.mark.parametrize("name", FORESEEING)
def test_a_model_that_sees_what_follows_is_refused(name: str) -> None:
    model = model_of(*FORESEEING[name])
    with pytest.raises(
        RepsimError, match=r"^--logprobs: \w+ lets a token see those after it \(.*by 0\.0|1\."
    ) as caught:
        BatchTrials(model, Tracer(model), texts_of(*LENGTHS)).check_causality("--logprobs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["llama", "gemma3_text", "mixtral", "jamba", "qwen3_next", "gpt_oss", "bloom"]
)
def test_causal_models_see_nothing_of_what_follows(name: str) -> None:
    model = model_of(*MASKED[name])
    for lengths in (LENGTHS, (1,), (2, 1), (3,)):
        BatchTrials(model, Tracer(model), texts_of(*lengths)).check_causality("--logprobs")


# Writing


class Numbers:
    """A tokenizer for which a prompt is a row of numbers."""

    pad_token_id = 0
    model_max_length = 10**6

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (MASKED["llama"], True),
        (MASKED["gpt2"], True),
        (ROTARY["longrope"], False),
        (
            (
                "RwkvForCausalLM",
                {
                    "vocab_size": VOCABULARY,
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "rescale_every": 0,
                },
            ),
            False,
        ),
    ],
)
def test_texts_are_written_together_where_that_changes_none(
    found: tuple[str, Config], right: bool
) -> None:
    module = build(*found)
    model = Model(module, Numbers(), "x", None, find_stack(module))
    assert can_generate_together(model, ["5 6 7", "8 9 10 11 12 13 14 15", "5 6 7"]) is right
    assert can_generate_together(model, ["5 6 7", "5 6 7"])


# From end to end


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = ["the", "of", "and", "to", "a", "in", "it", "is", "was", "that"]
    generator = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    path.write_text("\n".join(" ".join(generator.choice(words, length)) for length in LENGTHS))
    return str(path)


def with_words(tiny_folder: Path, class_name: str, config: Config) -> Model:
    module = build(class_name, config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    return Model(module, tokenizer, class_name, None, find_stack(module))


@pytest.mark.parametrize("name", [*UNMASKED, *ROTARY])
def test_a_capture_holds_the_states_of_each_text_alone(
    tiny_folder: Path, tmp_path: Path, lines: str, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """As a fresh model gives them; this one has run long texts before."""
    model = with_words(tiny_folder, *{**UNMASKED, **ROTARY}[name])
    fresh = copy.deepcopy(model)
    model.module.train()
    with torch.inference_mode():
        model.module(torch.full((1, 50), 5))
    logprobs = name in ROTARY
    with caplog.at_level("INFO", "repsim"):
        capture = repsim.capture(
            model,
            corpus=lines,
            out=tmp_path / "c.zarr",
            dtype="float32",
            logprobs=logprobs,
            max_tokens=40,
        )
    if name != "dynamic":  # no text is longer than its context, where it changes
        assert (
            "batches: texts of one length, unpadded (padding, or a longer text in its batch"
            in caplog.text
        )
        assert capture.info["batches"] == "texts of one length, unpadded"
    assert model.module.training
    assert model.positions is not None
    lengths = [min(length, model.positions) for length in LENGTHS]
    assert capture.dataset.length.values.tolist() == lengths
    states, ids = capture.hidden("baseline").values[:T], capture.dataset["token_id"].values
    for first, last in pairwise(np.cumsum([0, *lengths])):
        wanted = alone(fresh, ids[first:last])
        assert torch.allclose(torch.from_numpy(states[:, first:last]), wanted, rtol=1e-5, atol=1e-5)
        if logprobs:
            text = torch.from_numpy(ids[first:last]).long()
            logits = copy.deepcopy(fresh.module)(text[None]).logits[0, :-1].log_softmax(-1)
            own = logits.gather(1, text[1:, None])[:, 0].detach()
            assert np.allclose(
                capture.logprob("baseline").values[first : last - 1], own, rtol=1e-5, atol=1e-5
            )


def test_statistics_are_those_of_texts_alone(tiny_folder: Path, tmp_path: Path, lines: str) -> None:
    model = with_words(tiny_folder, *ROTARY["longrope"])
    options: dict[str, Any] = {"corpus": lines, "dtype": "float32"}
    states = repsim.capture(model, out=tmp_path / "states.zarr", **options)
    kept = repsim.capture(
        model, out=tmp_path / "none.zarr", keep="none", statistics="norms", **options
    )
    (statistic,) = statistics_of(["norms"])
    for (_, found), own in zip(
        kept.per_sample("baseline", statistic), states.each_sample("baseline"), strict=True
    ):
        assert np.allclose(found, statistic.kernel(own))


@pytest.mark.parametrize("setting", ["output_hidden_states", "return_dict", "use_cache"])
def test_settings_of_the_configuration_change_nothing(
    tiny_folder: Path, tmp_path: Path, lines: str, setting: str
) -> None:
    model = with_words(tiny_folder, *MASKED["llama"])
    wanted = repsim.capture(model, corpus=lines, out=tmp_path / "wanted.zarr", logprobs=True)
    other = with_words(tiny_folder, *MASKED["llama"])
    value = not getattr(other.module.config, setting)
    setattr(other.module.config, setting, value)
    found = repsim.capture(other, corpus=lines, out=tmp_path / "found.zarr", logprobs=True)
    for name in ("hidden", "logprob"):
        assert np.array_equal(
            found.dataset[name].values, wanted.dataset[name].values, equal_nan=True
        )
    assert getattr(other.module.config, setting) is value


def test_more_tokens_than_the_tokenizer_likes_are_kept_where_they_are_asked_for(
    tiny_folder: Path, tmp_path: Path, lines: str
) -> None:
    model = with_words(tiny_folder, *MASKED["llama"])
    model.tokenizer.model_max_length = 7
    for asked, longest in ((None, 7), (20, 20), (9999, max(LENGTHS))):
        capture = repsim.capture(
            model, corpus=lines, out=tmp_path / f"{asked}.zarr", max_tokens=asked
        )
        assert capture.dataset.length.values.max() == longest


def test_a_capture_without_causal_attention_has_no_log_probabilities(
    tiny_folder: Path, tmp_path: Path, lines: str
) -> None:
    model = with_words(tiny_folder, *FORESEEING["bert_lm"])
    with pytest.raises(
        RepsimError, match=r"^--logprobs: BertLMHeadModel lets a token see those after it"
    ):
        repsim.capture(model, corpus=lines, out=tmp_path / "c.zarr", logprobs=True)
    assert not (tmp_path / "c.zarr").exists()
    assert repsim.capture(model, corpus=lines, out=tmp_path / "c.zarr").missing == 0
    with pytest.raises(
        RepsimError, match=r"^benchmarks: BertLMHeadModel lets a token see those after it"
    ):
        repsim.evaluate(model, tasks="grammar", limit=3, out=tmp_path / "s.zarr")


def test_log_likelihoods_are_those_of_each_text_alone(tiny_folder: Path, tmp_path: Path) -> None:
    model = with_words(tiny_folder, *ROTARY["longrope"])
    fresh = copy.deepcopy(model)
    (task,) = tasks.load(["recall"], model, limit=6)
    found = (
        repsim.evaluate(model, tasks="recall", limit=6, out=tmp_path / "s.zarr")
        .dataset["log_likelihood"]
        .values
    )
    requests = [request for example in task.examples for request in example.requests]
    wanted = []
    for request in requests:
        (window,) = request.windows
        with torch.inference_mode():
            logits = copy.deepcopy(fresh.module)(
                torch.from_numpy(window.inputs)[None].long()
            ).logits[0]
        scored = logits[-len(window.targets) :].log_softmax(-1)
        wanted.append(
            scored.gather(1, torch.from_numpy(window.targets)[:, None].long()).sum().item()
        )
    assert len({len(request.windows[0].inputs) for request in requests}) > 1
    assert np.allclose(found[0], wanted, rtol=1e-5)
