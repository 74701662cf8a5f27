import copy

import pytest
import torch
from torch import Tensor

import repsim
from repsim.corpus import Batch
from repsim.families import resolve
from repsim.models import Model
from repsim.models.kv_cache import AveragingCache
from repsim.schema import RepsimError
from support.models import T, make
from support.oracles import FAMILIES, assert_equal_but_for_rounding, last_states, traced, without_cache

NEW_TOKENS = 6


@pytest.mark.parametrize("plan", FAMILIES)
def test_trace_and_planned_stack_agree(model: Model, plan: str, batch: Batch) -> None:
    (states,) = traced(model, [resolve(plan, T)[0].plan], batch)
    assert torch.equal(last_states(model, plan, batch, **without_cache(model)), states[-1])
    assert_equal_but_for_rounding(last_states(model, plan, batch), states[-1], layers=len(states) - 1)


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


# The paper's cache

LOOPED = "0, (1|2)*3, 3*2, (4|5), 5"  # KV slots 0, 1 to 6, 7 and 8, 9 and 10, 11
ROUNDS = ((1, 3, 5), (2, 4, 6))  # slots of layers 1 and 2


def test_rounds_of_a_looped_parallel_step_remember_their_mean(llama: Model) -> None:
    plan = resolve(LOOPED, T)[0].plan
    with repsim.planned(llama, plan) as module:
        cache = AveragingCache(module, plan)

        def token(value: float) -> tuple[Tensor, Tensor]:
            """Keys and values `[sample, head, position, unit]` of one token."""
            return torch.full((1, 2, 1, 8), value), torch.full((1, 2, 1, 8), -value)

        first = [cache.update(*token(float(slot)), slot)[0][0, 0, :, 0].tolist() for slot in range(12)]
        second = [[found[0, 0, :, 0].tolist() for found in cache.update(*token(100.0), slot)] for slot in range(12)]
        third = [cache.update(*token(7.0), slot)[0][0, 0, :, 0].tolist() for slot in range(12)]
    assert first == [[float(slot)] for slot in range(12)]  # nothing is past yet
    means = [0.0, 3.0, 4.0, 3.0, 4.0, 3.0, 4.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    assert second == [[[mean, 100.0], [-mean, -100.0]] for mean in means]
    assert third == [[mean, 100.0, 7.0] for mean in means]
    assert cache.get_seq_length() == 3


def test_decoding_attends_to_the_mean_of_the_rounds(llama: Model) -> None:
    """Against a plain cache into which the means are put by hand before each step; the first forward is exact."""
    plan = resolve(LOOPED, T)[0].plan
    prompt = torch.tensor([[11, 23, 42, 7, 77], [31, 5, 64, 8, 9]])
    steps = [prompt, *torch.tensor([[12, 13], [50, 60], [33, 3]])[..., None]]
    exact: list[Tensor] = []
    with repsim.planned(llama, plan) as module, torch.inference_mode():
        cache = AveragingCache(module, plan)
        found = [module(input_ids=ids, past_key_values=cache, use_cache=True).logits for ids in steps]
        literal, plain, expected = None, None, []
        for ids in steps:
            if literal is not None:
                for slots in ROUNDS:
                    for name in ("keys", "values"):
                        mean = sum(getattr(literal.layers[slot], name) for slot in slots) / len(slots)
                        for slot in slots:
                            setattr(literal.layers[slot], name, mean.clone())
            output = module(input_ids=ids, past_key_values=literal, use_cache=True)
            literal = output.past_key_values
            expected.append(output.logits)
            output = module(input_ids=ids, past_key_values=plain, use_cache=True)
            plain = output.past_key_values
            exact.append(output.logits)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0], exact[0])
    assert (found[1] - exact[1]).abs().max() > 1e-3


@pytest.mark.parametrize("plan", ["baseline", "parallel:start=1", "repeat:layer=2,times=3", "0, (1|2), 3, (1|2), 5"])
def test_without_rounds_the_paper_s_cache_is_the_model_s_own(llama: Model, plan: str) -> None:
    """A parallel step that runs once, a layer that runs several times, equal steps that do not follow each other."""
    prompt = torch.tensor([[11, 23, 42, 7, 77], [31, 5, 64, 8, 9]])
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "output_logits": True, "eos_token_id": None}
    with repsim.planned(llama, plan) as module:
        runs = [
            module.generate(prompt, return_dict_in_generate=True, past_key_values=cache, **settings)
            for cache in (None, AveragingCache(module, resolve(plan, T)[0].plan))
        ]
    for plain, averaged in zip(runs[0].logits, runs[1].logits, strict=True):
        assert torch.equal(plain, averaged)


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
