"""The paper's cache, against numbers of the paper's own code and against plain loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import repsim
from repsim.errors import RepsimError
from repsim.models import Model
from repsim.models.kv_cache import AveragingCache
from repsim.plans import Plan, parse_plan, resolve
from support.models import DECODER, DECODERS, MORE_DECODERS, T, cached_model

NEW_TOKENS = 6
# Left padding, as generate wants it.
PROMPT = torch.tensor([[11, 23, 42, 7, 77], [0, 0, 31, 5, 64], [3, 4, 5, 6, 7]])
SETTINGS = {
    "max_new_tokens": NEW_TOKENS,
    "do_sample": False,
    "output_logits": True,
    "eos_token_id": None,
}


def plan_of(text: str) -> Plan:
    return resolve(text, T)[0].plan


def generate(
    module: Any, plan: Plan | str, *, averaging: bool, prompt: Tensor = PROMPT
) -> tuple[Tensor, Tensor]:
    """What a model writes under a plan, and its logits there.

    Returns:
        `[sample, token]` and `[token, sample, vocabulary]`.
    """
    plan = plan_of(plan) if isinstance(plan, str) else plan
    with repsim.planned(module, plan) as follower:
        cache = AveragingCache(follower, plan) if averaging else None
        found = follower.generate(
            prompt,
            attention_mask=(prompt != 0).long(),
            past_key_values=cache,
            return_dict_in_generate=True,
            **SETTINGS,
        )
    return found.sequences[:, prompt.shape[1] :], torch.stack(found.logits)


# By hand


def test_a_pass_remembers_the_mean_of_its_layers(llama: Model) -> None:
    """Keys are numbers: slot s brings s first, 100 + s next; values are the negative."""
    # Slots 0, 1-2, 3-4, 5, 6, 7-8, 9-11, 12.
    plan = parse_plan("0, (1|2)*2, 3*2, (4|5.mlp), (1|2.mlp|3.attn), 5", T)
    means = [0.0, 1.5, 1.5, 3.5, 3.5, 5.0, 6.0, 7.0, 8.0, 10.0, 10.0, 10.0, 12.0]
    # Slot 10 is 2.mlp, without its attention: the mean of slots 9 and 11 happens to be what it is
    # given
    with repsim.planned(llama, plan) as module:
        cache = AveragingCache(module, plan)

    def forward(first: float) -> list[list[float]]:
        """Keys that each slot attends to when slot s brings one token, first + s."""
        attended = []
        for slot in range(13):
            key = torch.full((1, 2, 1, 8), first + slot)
            keys, values = cache.update(key, -key, slot)
            assert torch.equal(values, -keys)
            attended.append(keys[0, 0, :, 0].tolist())
        return attended

    assert forward(0.0) == [[float(slot)] for slot in range(13)]
    assert forward(100.0) == [[mean, 100.0 + slot] for slot, mean in enumerate(means)]
    assert forward(7.0) == [[mean, 100.0 + mean, 7.0 + slot] for slot, mean in enumerate(means)]
    assert cache.get_seq_length() == 3


# Against the paper's code

# What the paper's code writes (github.com/floatingbigcat/transformer_layers_as_painters at 6246104,
# transformers 4.41.2) with the weights of `waves`, for loop_parallel with start_layer 1. The best
# logit is 0.05 above the next.
PAPER_PROMPT = torch.tensor([[20, 34, 6, 81, 60], [0, 0, 26, 92, 18]])
PAPER_TEXTS = {
    "parallel:start=1": [[66, 7, 53, 44, 7, 83], [7, 7, 7, 0, 62, 54]],
    "looped_parallel:start=1,loops=3": [[66, 70, 70, 83, 66, 88], [7, 7, 62, 35, 17, 85]],
}


def waves() -> Any:
    """A Llama whose weights are a formula, the same in every version of every library."""
    llama: Any = LlamaForCausalLM(LlamaConfig(**DECODER))
    module = llama.eval().requires_grad_(False)
    for place, (_, parameter) in enumerate(sorted(module.named_parameters())):
        n = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
        wave = (n * n * (0.37 + place / 100)).sin().view(parameter.shape) / 4
        parameter.copy_(1 + wave if parameter.ndim == 1 else wave)
    return module


@pytest.mark.parametrize("plan", PAPER_TEXTS)
def test_it_writes_what_the_paper_s_code_writes(plan: str) -> None:
    module = waves()
    assert (
        generate(module, plan, averaging=True, prompt=PAPER_PROMPT)[0].tolist() == PAPER_TEXTS[plan]
    )
    exact = generate(module, plan, averaging=False, prompt=PAPER_PROMPT)[0].tolist()
    assert all(text != other for text, other in zip(exact, PAPER_TEXTS[plan], strict=True))


# Against a plain loop


def rotated(states: Tensor, positions: Tensor) -> Tensor:
    """Llama's rotary positions, base 10,000."""
    width = states.shape[-1] // 2
    angles = positions[:, None, :, None] * 10_000.0 ** -(torch.arange(width) / width)
    first, second = states[..., :width], states[..., width:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def heads_of(states: Any, heads: int) -> Any:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


Past = tuple[Tensor, Tensor]


def append(past: Past | None, key: Tensor, value: Tensor) -> Past:
    """A past with one more token."""
    if past is None:
        return key, value
    return torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)


def decode(module: Any, plan: Plan, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's decoding of a Llama with 4 heads and 2 of keys, with one past per step."""
    real = prompt != 0
    pasts: list[Past | None] = [None] * len(plan.steps)
    ids, texts, logits = prompt, [], []
    for _ in range(NEW_TOKENS):
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        total, new = real.shape[1], ids.shape[1]
        causal = torch.arange(total) <= torch.arange(total - new, total)[:, None]
        itself = torch.arange(total) == torch.arange(total - new, total)[:, None]
        seen = causal & (real[:, None] | itself)  # `[sample, new, total]`; padding sees itself
        state = module.model.embed_tokens(ids)
        for number, step in enumerate(plan.steps):
            outputs, own = [], []
            for application in step:
                layer = module.model.layers[application.layer]
                output = state
                if application.sublayer != "mlp":
                    attention, normed = layer.self_attn, layer.input_layernorm(state)
                    query = rotated(heads_of(attention.q_proj(normed), 4), positions)
                    key = rotated(heads_of(attention.k_proj(normed), 2), positions)
                    value = heads_of(attention.v_proj(normed), 2)
                    own.append((key, value))
                    keys, values = append(pasts[number], key, value)
                    scores = query @ keys.repeat_interleave(2, 1).mT / math.sqrt(query.shape[-1])
                    weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
                    mixed = (weights @ values.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)
                    output = output + attention.o_proj(mixed)
                if application.sublayer != "attn":
                    output = output + layer.mlp(layer.post_attention_layernorm(output))
                outputs.append(output)
            state = sum(outputs) / len(outputs)
            if own:
                key, value = (sum(states) / len(own) for states in zip(*own, strict=True))
                pasts[number] = append(pasts[number], key, value)
        logits.append(module.lm_head(module.model.norm(state[:, -1])))
        ids = logits[-1].argmax(-1, keepdim=True)
        texts.append(ids)
        real = torch.cat([real, torch.ones_like(ids, dtype=torch.bool)], 1)
    return torch.cat(texts, 1), torch.stack(logits)


@pytest.mark.parametrize(
    "plan",
    [
        "parallel:start=0",
        "parallel:start=1",
        "looped_parallel:start=0,loops=2",
        "looped_parallel:start=1,loops=3",
        "0, (1|2)*2, 3*2, (1|2), (4|5), 5",
        "0, (1|2.mlp|3.attn), (4|5.mlp), 5",
    ],
)
def test_it_decodes_as_a_plain_loop_with_one_past_per_pass(llama: Model, plan: str) -> None:
    with torch.inference_mode():
        texts, logits = decode(llama.module, plan_of(plan), PROMPT)
    found = generate(llama.module, plan, averaging=True)
    exact = generate(llama.module, plan, averaging=False)
    assert torch.equal(found[0], texts)
    torch.testing.assert_close(found[1], logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1][0], exact[1][0])
    assert (found[1][1] - exact[1][1]).abs().max() > 1e-3


RECURRENT = {"qwen3_next", "granitemoehybrid", "bamba", "mamba", "jamba", "falcon_h1", "lfm2"}


@pytest.mark.parametrize(
    "architecture", [name for name in (*DECODERS, *MORE_DECODERS) if name not in RECURRENT]
)
def test_every_architecture_attends_to_the_mean(architecture: str) -> None:
    """Against a cache of whole pasts into which the means are put by hand after each forward."""
    plan = parse_plan("0, (1|2|3)*2, (4|5), 2", T)
    passes = ((1, 2, 3), (4, 5, 6), (7, 8))
    forwards = [PROMPT[::2], *torch.tensor([[12, 13], [50, 60], [33, 3]])[..., None]]
    whole = DynamicCache()
    with repsim.planned(cached_model(architecture), plan) as module, torch.inference_mode():
        averaging = AveragingCache(module, plan)
        for ids in forwards:
            found = module(input_ids=ids, past_key_values=averaging, use_cache=True).logits
            expected = module(input_ids=ids, past_key_values=whole, use_cache=True).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            for slots in passes:
                for name in ("keys", "values"):
                    mean = sum(getattr(whole.layers[slot], name) for slot in slots) / len(slots)
                    for slot in slots:
                        setattr(whole.layers[slot], name, mean.clone())


@pytest.mark.parametrize(
    "plan",
    ["baseline", "repeat:layer=2,times=3", "reverse:start=0", "0, (1|2.mlp), 3.attn, 4.mlp, 5"],
)
def test_without_layers_that_share_a_past_it_is_the_model_s_own(llama: Model, plan: str) -> None:
    found, own = (generate(llama.module, plan, averaging=averaging) for averaging in (True, False))
    assert torch.equal(found[0], own[0])
    assert torch.equal(found[1], own[1])


# Refusals


@pytest.mark.parametrize("architecture", sorted(RECURRENT))
def test_layers_that_remember_more_than_keys_and_values_are_refused(architecture: str) -> None:
    plan = plan_of("parallel:start=0")
    with (
        repsim.planned(cached_model(architecture), plan) as module,
        pytest.raises(
            RepsimError,
            match=r"^0, \(1\|2\|3\|4\|5\): .*\(LinearAttention\w+\).*; leave out --paper-cache$",
        ),
    ):
        AveragingCache(module, plan)


def test_layers_that_keep_their_own_past_may_remember_anything() -> None:
    # Granitemoehybrid's layers 1 and 4 attend, the others are recurrent.
    plan = parse_plan("0, 1, (2|5), 3, 4", T)
    with repsim.planned(
        cached_model("granitemoehybrid"), parse_plan("0, (1|4), 2, 3, 5", T)
    ) as module:
        AveragingCache(module, parse_plan("0, (1|4), 2, 3, 5", T))
    with (
        repsim.planned(cached_model("granitemoehybrid"), plan) as module,
        pytest.raises(RepsimError, match="LinearAttention"),
    ):
        AveragingCache(module, plan)


def test_what_has_no_mean_is_refused(llama: Model) -> None:
    plan = parse_plan("0, (1|2), 3", T)
    sequence_to_sequence = T5ForConditionalGeneration(
        T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2)
    )
    with pytest.raises(
        RepsimError, match=r"^T5ForConditionalGeneration: .*; leave out --paper-cache$"
    ):
        AveragingCache(sequence_to_sequence, plan)
    with pytest.raises(RepsimError, match=r"^0, \(1\|2\), 3: runs 4 layers, .* has 6 slots"):
        AveragingCache(llama.module, plan)
    with repsim.planned(llama, plan) as module:
        cache = AveragingCache(module, plan)
    cache.update(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8), 1)
    with pytest.raises(
        RepsimError, match=r"^parallel layers with different heads \(2 of 8 units, 4 of 8 units\)"
    ):
        cache.update(torch.ones(1, 4, 3, 8), torch.ones(1, 4, 3, 8), 2)
