"""What planned models are used for, against plain loops, and the model they were made from.

The latter is held against a model that never was planned. Every use that an architecture's own
class offers: hidden states, gradients with and without checkpointing, copies, pickles, folders,
threads.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import repsim
from repsim.models import Model
from repsim.models.stack import find_stack
from repsim.plans import Plan
from support.architectures import Subject
from support.survey import (
    NEW_TOKENS,
    Outcome,
    Unknown,
    Witness,
    batch_of,
    difference,
    generated,
    inputs_of,
    judge,
    state_of,
    zero_sublayer,
)

REPEATED = "0-3, 2-5"
PARALLEL = "0-1, (2|3|4), 5"
HALVED = "0-1, 2.mlp, 3-5"
USED_ROUNDING = 1e-4  # gradients add up in another order


def examine_uses(subject: Subject) -> list[Outcome]:
    """Every use of one architecture that a plan's model and the model it was made from have."""
    module = subject.build()
    found: list[Outcome] = []
    model = Model(module, None, subject.name, None, find_stack(module, subject.stack(module)))
    for name, compare in _uses(subject, model):
        judge(found, "uses", name, USED_ROUNDING, compare)
    return found


def _uses(subject: Subject, model: Model) -> Iterator[tuple[str, Callable[[], float | str]]]:
    """Name and comparison of each use; each comparison is the largest relative difference."""
    batch = batch_of((9, 6, 4))
    path = model.stack.path

    def hidden_states(text: str) -> float | str:
        witness = Witness(subject, path, batch)
        own = _hidden_states(witness.module, batch)
        if own is None or len(own) != model.layers + 1:
            return f"the model itself gives {own and len(own)} hidden states"
        plan = repsim.plans.parse_plan(text, model.layers)
        right = witness.states(plan)
        found = _hidden_states(repsim.planned(model, plan), batch)
        mask = torch.from_numpy(batch.mask)
        if found is None or len(found) != len(right):
            raise AssertionError(f"{found and len(found)} hidden states, right is {len(right)}")
        if difference(own[0][mask], witness.own()[0]) > 1e-5:
            return "the model's own hidden states are not those that its layers exchange"
        return max(
            difference(state[mask], other)
            for state, other in zip(found[:-1], right[:-1], strict=True)
        )

    def gradients(text: str, checkpointing: bool) -> float | str:
        """Of the last state's product with random numbers; in training mode with checkpointing."""
        planned = repsim.planned(model, text)
        if not checkpointing:
            found = _gradients(planned, model.module, path, batch)
            right = _loop_gradients(Witness(subject, path, batch), text)
            return _largest(found, right)
        planned.train()
        right = _gradients(planned, model.module, path, batch)
        try:
            planned.gradient_checkpointing_enable()
        except ValueError as problem:
            return f"the model has no checkpointing: {problem}"
        return _largest(_gradients(planned, model.module, path, batch), right)

    def copied(by: Callable[[Any], Any]) -> float:
        planned = repsim.planned(model, PARALLEL)
        right = _last_state(planned, path, batch)
        return difference(_last_state(by(planned), path, batch), right)

    def reloaded(planned: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            planned.save_pretrained(folder)
            return type(subject.build()).from_pretrained(folder, attn_implementation="eager").eval()

    def saved(text: str) -> float:
        planned = repsim.planned(model, text)
        right = _last_state(planned, path, batch)
        return difference(_last_state(reloaded(planned), path, batch), right)

    def threads() -> float | str:
        if not model.predicts_next_token:
            return "writes no text"
        planned = repsim.planned(model, REPEATED)
        prompts = [batch_of((5 + turn % 3,), seed=turn) for turn in range(6)]
        right = [generated(planned, prompt, NEW_TOKENS, use_cache=True)[0] for prompt in prompts]
        with ThreadPoolExecutor(3) as pool:
            found = list(
                pool.map(
                    lambda prompt: generated(planned, prompt, NEW_TOKENS, use_cache=True)[0],
                    prompts,
                )
            )
        return max(
            difference(a, b)
            for pair in zip(found, right, strict=True)
            for a, b in zip(*pair, strict=True)
        )

    def untouched() -> float:
        fresh: Any = subject.build()
        used: Any = model.module
        same = used.state_dict()
        if any(not torch.equal(tensor, same[name]) for name, tensor in fresh.state_dict().items()):
            raise AssertionError("weights changed")
        for of in (str, lambda m: m.config.to_dict(), _hooks, lambda m: type(m)):
            if of(fresh) != of(used):
                raise AssertionError(f"{of(fresh)!s:.60} became {of(used)!s:.60}")
        mine, right = (_hidden_states(module, batch) or () for module in (used, fresh))
        if len(mine) != len(right):
            raise AssertionError(f"{len(mine)} hidden states instead of {len(right)}")
        ends = [_last_state(module, path, batch) for module in (used, fresh)]
        return max(
            difference(*ends), *(difference(*pair) for pair in zip(mine, right, strict=True))
        )

    for text in (REPEATED, PARALLEL):
        yield f"hidden states, {text}", partial(hidden_states, text)
    for text in (HALVED, PARALLEL):
        for checkpointing in (False, True):
            name = "checkpointed gradients" if checkpointing else "gradients"
            yield f"{name}, {text}", partial(gradients, text, checkpointing)
    yield "deepcopy", lambda: copied(copy.deepcopy)
    yield "pickle", lambda: copied(lambda planned: pickle.loads(pickle.dumps(planned)))
    for text in (REPEATED, HALVED):
        yield f"save_pretrained, {text}", partial(saved, text)
    yield "threads", threads
    yield "the model it was made from", untouched


def _hidden_states(module: Any, batch: Any) -> tuple[Tensor, ...] | None:
    with torch.no_grad():
        output = module(**inputs_of(module, batch), output_hidden_states=True)
    return getattr(output, "hidden_states", None) or getattr(output, "decoder_hidden_states", None)


def _last_state(module: Any, path: str, batch: Any) -> Tensor:
    ends: list[Tensor] = []
    hook = module.get_submodule(path)[-1].register_forward_hook(
        lambda _m, _a, out: ends.append(state_of(out))
    )
    with torch.no_grad():
        module(**inputs_of(module, batch))
    hook.remove()
    return ends[-1][torch.from_numpy(batch.mask)]


def _hooks(module: nn.Module) -> list[tuple[str, int, int, bool]]:
    """What hangs on each module.

    Except transformers' own hooks for hidden states, which come with the first request for them.
    """
    return [
        (name, len(part._forward_pre_hooks), len(part._backward_hooks), "forward" in vars(part))
        for name, part in module.named_modules()
    ]


def _loss(state: Tensor) -> Any:
    weights = torch.randn(state.shape, generator=torch.Generator().manual_seed(3))
    return (state * weights).sum()


def _gradients(planned: Any, base: nn.Module, path: str, batch: Any) -> dict[str, Tensor]:
    ends: list[Tensor] = []
    base.requires_grad_(True).zero_grad()
    last = planned.get_submodule(path)[-1]
    hook = last.register_forward_hook(lambda _m, _a, out: ends.append(state_of(out)))
    torch.manual_seed(5)
    with torch.enable_grad():
        planned(**inputs_of(planned, batch))
        hook.remove()
        _loss(ends[0]).backward()
    found = {name: p.grad.clone() for name, p in base.named_parameters() if p.grad is not None}
    base.requires_grad_(False).zero_grad()
    return found


def _loop_gradients(witness: Witness, text: str) -> dict[str, Tensor]:
    """By a loop that knows nothing of repsim.

    A dropped sublayer has no gradients, and neither have its last weights.
    """
    plan = repsim.plans.parse_plan(text, len(witness.layers))
    layers = list(witness.layers)
    names = {id(p): name for name, p in witness.module.named_parameters()}
    if text == HALVED:
        plan = Plan.from_steps(range(len(layers)))
        own, layers[2] = layers[2], copy.deepcopy(layers[2])
        zeroed = zero_sublayer(layers[2], "attn")
        if not zeroed:
            raise Unknown("no last weights of attn known")
        for (name, mine), theirs in zip(
            layers[2].named_parameters(), own.parameters(), strict=True
        ):
            names[id(mine)] = "" if name in zeroed else names.pop(id(theirs))
    parameters = [*witness.module.parameters(), *layers[2].parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        witness.watch()
        _loss(witness.loop(plan, layers)[-1]).backward()
    found = {names.get(id(p), ""): p.grad for p in parameters if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if name}


def _largest(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest difference of any parameter's gradient, as a share of the largest gradient's
    norm; none is zero.
    """
    scale = max(gradient.norm().item() for gradient in right.values())
    names = {*found, *right}
    nothing = torch.zeros(())
    return max((found.get(n, nothing) - right.get(n, nothing)).norm().item() for n in names) / scale
