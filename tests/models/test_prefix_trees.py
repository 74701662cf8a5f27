"""Trees of texts against the texts one by one, and which models are found to take them."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from repsim.data.packing import Window, pack_prefix_trees, pack_rows
from repsim.models import Model
from repsim.models.prefix_trees import supports_prefix_trees
from repsim.models.stack import find_stack
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie
from support.models import DECODER, VOCABULARY, T, batch_of, make
from support.oracles import score_packed, windows_that_share

TAKES_TREES = {
    "llama": True,
    "mistral": False,  # its window of four tokens cannot be told of trees
    "qwen3": True,
    "gemma3_text": False,  # likewise in two of three layers
    "gpt2": True,
    "gpt_neox": True,
    "opt": True,
    "falcon": True,
    "bert": False,
    "roberta": False,
    "distilbert": False,
    "modernbert": False,
    "mixtral": True,
}
TREE_PLANS = ("baseline", "0, (1|2|3), 4*3, 5", "drop:layer=2,part=attn")


def test_which_models_take_trees(model: Model) -> None:
    assert supports_prefix_trees(Tracer(model), 30) is TAKES_TREES[model.name]


@pytest.mark.parametrize("row_tokens", [10, 256])
def test_states_and_scores_of_trees_are_those_of_the_texts_one_by_one(
    decoder: Model, row_tokens: int
) -> None:
    """Under every plan; where a model was found not to take trees, it refuses them or its numbers
    are others.
    """
    windows = windows_that_share()
    costs: dict[str, Any] = {"overhead": 20, "waste": 0.5}
    rows = score_packed(decoder, pack_rows(windows, 0, **costs), TREE_PLANS)
    packed = pack_prefix_trees(windows, 0, **costs, row_tokens=row_tokens)
    assert packed.tokens < sum(len(window.inputs) for window in windows)
    trees = score_packed(decoder, packed, TREE_PLANS)
    for (state, logprob, likeliest), (wanted, expected, best) in zip(trees, rows, strict=True):
        if TAKES_TREES[decoder.name]:
            assert (state - wanted).norm() <= 1e-5 * wanted.norm()
            torch.testing.assert_close(logprob, expected, rtol=0, atol=1e-4)
            assert torch.equal(likeliest, best)
        else:
            assert (logprob - expected).abs().max() > 1e-2
    assert not torch.allclose(rows[0][1], rows[1][1], atol=1e-2)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_texts_longer_than_a_window_of_attention_cannot_share(architecture: str) -> None:
    """A window of 40 tokens is no hindrance to texts of 40."""
    model = make(architecture)
    config = type(model.module.config)(**model.module.config.to_dict() | {"sliding_window": 40})
    wide = type(model.module)(config)
    wide.load_state_dict(model.module.state_dict())
    tracer = Tracer(
        Model(wide.eval().requires_grad_(False), None, architecture, None, find_stack(wide))
    )
    assert supports_prefix_trees(tracer, 40)
    assert not supports_prefix_trees(tracer, 41)


def small(class_name: str, **config: object) -> Model:
    """A random model of another architecture."""
    cls = getattr(transformers, class_name)
    torch.manual_seed(7)
    module = (
        cls(cls.config_class(**{"vocab_size": VOCABULARY, "pad_token_id": 0} | config))
        .eval()
        .requires_grad_(False)
    )
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return Model(module, None, class_name, None, find_stack(module))


def test_a_window_that_counts_places_in_the_row_cannot_share() -> None:
    """GPT-Neo's local attention is by place, whatever mask it is given; rows of trees are longer
    than its texts.
    """
    ids = {
        name: DECODER[name]
        for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    }
    kinds = {"attention_types": [[["global", "local"], T // 2]], "window_size": 50}
    model = small("GPTNeoForCausalLM", hidden_size=32, num_layers=T, num_heads=4, **kinds, **ids)
    generator = np.random.default_rng(3)
    texts = generator.integers(3, VOCABULARY, (12, 30)).astype(np.int32)
    texts[:, :12] = texts[0, :12]
    windows = [Window(row, row[-5:]) for row in texts]
    rows, trees = (
        score_packed(model, pack(windows, 0, overhead=20, waste=0.5), ("baseline",))[0][1]
        for pack in (pack_rows, pack_prefix_trees)
    )
    assert not torch.allclose(trees, rows, atol=1e-2)
    assert not supports_prefix_trees(Tracer(model), 30)


def test_layers_that_mix_neighbours_cannot_share() -> None:
    """LFM2's convolutions take the tokens before in the row, some of which are of other texts."""
    kinds = ["conv", "full_attention"] * (T // 2)
    model = small("Lfm2ForCausalLM", **{**DECODER, "layer_types": kinds})
    assert not supports_prefix_trees(Tracer(model), 30)


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_positions_or_mask_is_found_out(ignored: str) -> None:
    model = make("llama")
    assert supports_prefix_trees(Tracer(model), 30)

    def forget(
        _module: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[object, object]:
        return args, {**kwargs, ignored: None}

    model.module.model.register_forward_pre_hook(forget, with_kwargs=True)
    assert not supports_prefix_trees(Tracer(model), 30)


def test_a_model_that_takes_no_positions_is_found_out() -> None:
    """What it raises is not the user's concern; it gets plain rows."""
    model = make("llama")

    def refuse(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if "position_ids" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    model.module.register_forward_pre_hook(refuse, with_kwargs=True)
    tracer = Tracer(model)
    assert not supports_prefix_trees(tracer, 30)
    states: list[Tensor] = []
    trie = PlanTrie.build([Plan.from_steps(range(T))])
    tracer.run(trie, [batch_of((5, 3))], lambda state: states.append(state.hidden), nodes=trie.ends)
    assert states[0].shape == (8, model.units)
