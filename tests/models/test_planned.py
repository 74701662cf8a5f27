import copy

import pytest
import torch

import repsim
from repsim.corpus import Batch
from repsim.families import resolve
from repsim.models import Model
from repsim.schema import RepsimError
from support.models import T, make
from support.oracles import FAMILIES, last_states, traced

NEW_TOKENS = 6


@pytest.mark.parametrize("plan", FAMILIES)
def test_trace_and_planned_stack_agree(model: Model, plan: str, batch: Batch) -> None:
    (states,) = traced(model, [resolve(plan, T)[0].plan], batch)
    torch.testing.assert_close(last_states(model, plan, batch), states[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plan", FAMILIES)
def test_generation_with_the_cache_equals_generation_without(decoder: Model, plan: str) -> None:
    """Step by step, so that a wrong cache cannot hide behind an equal token."""
    prompt = torch.tensor([[11, 23, 42, 7, 77], [0, 0, 31, 5, 64]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])  # left padding, as generate wants it
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "output_logits": True, "eos_token_id": None}
    with repsim.planned(decoder, plan) as module:
        runs = [
            module.generate(prompt, attention_mask=mask, use_cache=cached, return_dict_in_generate=True, **settings)
            for cached in (True, False)
        ]
    assert runs[0].sequences.shape == (2, 5 + NEW_TOKENS)
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for cached, plain in zip(runs[0].logits, runs[1].logits, strict=True):
        torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-5)


def test_every_application_has_a_cache_slot(llama: Model, batch: Batch) -> None:
    with repsim.planned(llama, "0, (1|2)*2, 3*2, 5") as module, torch.inference_mode():
        cache = module(input_ids=torch.from_numpy(batch.token_ids), use_cache=True).past_key_values
    assert len(cache) == 1 + 4 + 2 + 1
    assert all(layer.get_seq_length() == batch.token_ids.shape[1] for layer in cache.layers)


def snapshot(model: Model) -> tuple[object, ...]:
    module = model.module
    indices = [(name, child.layer_idx) for name, child in module.named_modules() if hasattr(child, "layer_idx")]
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return [name for name, _ in module.named_modules()], indices, module.config.to_dict(), weights


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_restored_bit_for_bit(model: Model, fails: bool, batch: Batch) -> None:
    names, indices, config, weights = copy.deepcopy(snapshot(model))
    list_before = model.module.get_submodule(model.stack.path)

    def forbid(*_: object) -> None:
        raise RuntimeError("in the middle of a layer")

    hook = model.stack.layers[3].register_forward_hook(forbid) if fails else None
    try:
        last_states(model, "looped_parallel:start=0,loops=2", batch)
    except RuntimeError:
        assert fails
    else:
        assert not fails
    finally:
        if hook is not None:
            hook.remove()
    assert model.module.get_submodule(model.stack.path) is list_before
    after = snapshot(model)
    assert (names, indices, config) == after[:3]
    assert all(torch.equal(tensor, after[3][name]) for name, tensor in weights.items())


def test_a_step_cut_short_by_an_error_does_not_spoil_the_next(llama: Model, batch: Batch) -> None:
    ids = torch.from_numpy(batch.token_ids)
    plan = "0, (1|2|3), 4-5"
    with repsim.planned(llama, plan) as module, torch.inference_mode():
        expected = module(input_ids=ids).logits
        hook = llama.stack.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            module(input_ids=ids)
        hook.remove()
        assert torch.equal(module(input_ids=ids).logits, expected)


def test_a_bare_hugging_face_model_will_do(batch: Batch) -> None:
    model = make("llama")
    with repsim.planned(model.module, "skip:start=1") as module:
        assert module is model.module
        assert len(module.model.layers) == 3


def test_bad_plans(llama: Model) -> None:
    with pytest.raises(RepsimError, match="stands for 3 plans"), repsim.planned(llama, "skip:start=0..2"):
        pass
    allowed = r"start=9: a 6-layer model allows 0 to 2"
    with pytest.raises(RepsimError, match=allowed), repsim.planned(llama, "skip:start=9"):
        pass
