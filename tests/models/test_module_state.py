"""What a forward leaves in modules, and putting it back."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from repsim.models import Model
from repsim.models.module_state import ModuleState
from repsim.models.stack import find_stack
from support.models import DECODER, VOCABULARY, build

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
BIGBIRD = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


class Remembering(nn.Module):
    """Keeps something in each way that a module can."""

    overwritten: torch.Tensor
    saved: torch.Tensor
    part: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grown", torch.zeros(2), persistent=False)
        self.register_buffer("overwritten", torch.zeros(2), persistent=False)
        self.register_buffer("saved", torch.zeros(2))
        self.seen = 0
        self.part = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.register_buffer("grown", torch.ones(3), persistent=False)
        self.register_buffer("new", torch.ones(1), persistent=False)
        self.overwritten += 1
        self.saved += 1
        self.seen += 1
        self.last = x
        self.part, self.other = nn.Identity(), nn.Identity()
        return x


def test_all_that_a_forward_leaves_is_undone_but_weights() -> None:
    module = Remembering()
    before = {name: getattr(module, name) for name in ("grown", "overwritten", "part")}
    state = ModuleState(module)
    for _ in range(2):
        with torch.inference_mode():
            module(torch.ones(2))
        state.restore()
        assert all(getattr(module, name) is value for name, value in before.items())
        assert module.overwritten.tolist() == [0, 0]
        assert module.seen == 0
        assert not any(hasattr(module, name) for name in ("new", "last", "other"))
        assert "new" not in module._non_persistent_buffers_set
    assert module.saved.tolist() == [2, 2]


def test_what_is_restored_follows_a_move_to_another_dtype() -> None:
    module = Remembering()
    state = ModuleState(module)
    module.double()
    module(torch.ones(2))
    state.restore()
    assert module.overwritten.dtype == torch.float64
    assert module.overwritten.tolist() == [0, 0]


def test_hooks_stay() -> None:
    module = Remembering()
    state = ModuleState(module)
    called: list[int] = []
    module.register_forward_hook(lambda *_: called.append(1))
    state.restore()
    module(torch.ones(2))
    assert called == [1]


@pytest.mark.parametrize(
    ("class_name", "config", "first", "then"),
    [
        (
            "LlamaForCausalLM",
            {**DECODER, "max_position_embeddings": 16, "rope_parameters": DYNAMIC},
            60,
            20,
        ),
        (
            "BigBirdModel",
            {**BIGBIRD, "vocab_size": VOCABULARY, "block_size": 2, "num_random_blocks": 1}
            | {"attention_type": "block_sparse", "max_position_embeddings": 64},
            4,
            40,
        ),
    ],
)
@torch.inference_mode()
def test_a_forward_gives_what_a_fresh_model_gives(
    class_name: str, config: dict[str, Any], first: int, then: int
) -> None:
    """`then` tokens after `first` tokens: rotary frequencies that grew, another attention."""
    module = build(class_name, config)
    fresh = copy.deepcopy(module)
    ids = (
        torch.arange(3, 3 + first)[None] % VOCABULARY,
        torch.arange(5, 5 + then)[None] % VOCABULARY,
    )
    state = ModuleState(module)
    module(ids[0])
    wanted = fresh(ids[1])[0]
    assert not torch.equal(copy.deepcopy(module)(ids[1])[0], wanted)
    state.restore()
    assert torch.equal(module(ids[1])[0], wanted)


@torch.inference_mode()
def test_a_private_copy_runs_as_new_and_its_model_stays_as_it_is() -> None:
    module = build(
        "LlamaForCausalLM", {**DECODER, "max_position_embeddings": 16, "rope_parameters": DYNAMIC}
    )
    fresh = copy.deepcopy(module)
    module.train()
    module.model.layers[1].eval()
    training = [child.training for child in module.modules()]
    module(torch.arange(3, 63)[None])
    grown = module.model.rotary_emb.inv_freq
    module.config.return_dict = False
    ids = torch.arange(5, 25)[None]
    own = Model(module, None, "used", None, find_stack(module)).private_copy().module
    assert not any(child.training for child in own.modules())
    assert torch.equal(own(ids).logits, fresh(ids).logits)
    own(torch.arange(3, 83)[None])
    assert [child.training for child in module.modules()] == training
    assert module.model.rotary_emb.inv_freq is grown
    assert module.model.rotary_emb.max_seq_len_cached == 60
    assert module.config.return_dict is False
    assert {id(p) for p in own.parameters()} == {id(p) for p in module.parameters()}
