"""What generation under a plan costs beside plain generation, counted; static caches, compiled."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from transformers import CompileConfig

import repsim
from repsim.models import Model
from support.counting import CountingMode, count_python_calls
from support.models import ARCHITECTURES, build, cached_model, make

FEW, MANY = 3, 7  # tokens; the difference is what tokens cost, without what a call costs
PROMPT = torch.tensor([[11, 23, 42, 7, 77], [9, 8, 31, 5, 64]])
DECODERS = ("llama", "gemma3_text", "gpt2", "falcon", "mixtral")


def generate(module: Any, tokens: int, **options: Any) -> torch.Tensor:
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    with torch.inference_mode():
        output: torch.Tensor = module.generate(
            PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=tokens, **settings
        )
    return output


def costs_of_tokens(module: Any) -> tuple[Counter[str], Counter[str], int]:
    """Launches, synchronisations and Python's calls that `MANY - FEW` more tokens need."""
    generate(module, FEW)  # whatever happens once
    launches, waits, calls = [], [], []
    for tokens in (FEW, MANY):
        with CountingMode() as counts:
            generate(module, tokens)
        launches.append(counts.launches)
        waits.append(counts.synchronisations)
        calls.append(count_python_calls(partial(generate, module, tokens)).total())
    return launches[1] - launches[0], waits[1] - waits[0], calls[1] - calls[0]


@pytest.mark.parametrize("name", DECODERS)
def test_the_baseline_costs_what_the_model_costs(name: str) -> None:
    model = cached_model(name)
    plain = costs_of_tokens(model.module)
    planned = costs_of_tokens(repsim.planned(model, "baseline"))
    assert plain[0].total() > 100
    assert planned[:2] == plain[:2]
    assert abs(planned[2] - plain[2]) <= 0.03 * plain[2]


@pytest.mark.parametrize("plan", ["0, 5", "0-3, 2-5"])
def test_a_plan_of_whole_layers_costs_what_a_model_of_its_depth_costs(
    llama: Model, plan: str
) -> None:
    planned = repsim.planned(llama, plan)
    class_name, config, _ = ARCHITECTURES["llama"]
    as_deep = build(class_name, {**config, "num_hidden_layers": planned.plan.applications})
    plain, of_plan = costs_of_tokens(as_deep), costs_of_tokens(planned)
    assert of_plan[:2] == plain[:2]
    assert abs(of_plan[2] - plain[2]) <= 0.03 * plain[2]


def test_a_parallel_step_adds_what_joins_its_members(llama: Model) -> None:
    plain = costs_of_tokens(llama.module)
    joined = costs_of_tokens(repsim.planned(llama, "0-1, (2|3|4), 5"))
    tokens = MANY - FEW
    assert joined[0] - plain[0] == Counter({"aten.add": 2 * tokens, "aten.div": tokens})
    assert joined[1] == plain[1]
    assert joined[2] <= 1.08 * plain[2]


def test_static_caches_and_their_compiled_forward() -> None:
    """Also where the model has generated so itself before: its compiled forward is its own."""
    model = make("llama")
    compiled = CompileConfig(backend="eager", mode="default", fullgraph=True)
    compiled._compile_all_devices = True  # type: ignore[assignment]  # generate asks for a GPU
    static: dict[str, Any] = {"cache_implementation": "static", "compile_config": compiled}
    model.module.get_compiled_call(compiled)
    planned = repsim.planned(model, "0, (1|2), 3.attn, 4.mlp", check=False)
    expected = generate(planned, FEW)
    assert torch.equal(generate(planned, FEW, cache_implementation="static"), expected)
    assert torch.equal(generate(planned, FEW, **static), expected)
    assert vars(planned)["_compiled_call"] is not vars(model.module)["_compiled_call"]
