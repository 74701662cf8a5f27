"""Half of a layer: which modules it drops, and the proof that what is left is that half.

A half is the layer with the other half's contribution set to zero; the residual and the norms stay.
Which modules contribute is told by their paths, which say nothing about what a module computes. So
the first time a kind of layer is halved, `prove_halves` runs its halves on random states and
refuses those that are none. This module knows nothing of plans, of tracing or of disks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repsim.errors import ModelError

Run = Callable[[Tensor], Tensor]  # a layer, called as its model calls it, on another state
Kind = tuple[tuple[str, type[nn.Module]], ...]

# Paths, inside a layer, of the modules whose output is what that half adds to the residual stream;
# attention stands for whatever mixes positions or reads an encoder, a star for each entry of a
# list. Of nested paths the inner one is taken: BERT's halves end in a dense layer beside the norm,
# and some modules (Bloom's, MPT's) add the residual themselves after their last dense layer.
ATTENTION_PATHS = (
    "attention.output.dense",
    "attention.attn",
    "self_attention.dense",
    "attention.post_proj",
    "crossattention.output.dense",
    "norm_attn_norm.attn",
    "self_att.self_attention",
    "fourier.self",
    "self_attn",
    "self_attn.*",
    "encoder_attn",
    "cross_attn",
    "cross_attention",
    "linear_attn",
    "attn",
    "self_attention",
    "attention",
    "layer.*.SelfAttention",
    "layer.*.LocalSelfAttention",
    "layer.*.TransientGlobalSelfAttention",
    "layer.*.EncDecAttention",
    "multi_head_attention",
    "temporal_block",
    "mlstm_layer",
    "mamba",
    "conv",
)
MLP_PATHS = (
    "output.dense",
    "ffn.*.output.dense",
    "mlp.dense_4h_to_h",
    "ffn.down_proj",
    "ffn.linear_2",
    "ffn.ffn",
    "mlp",
    "mlps.*",
    "ffn",
    "feed_forward",
    "fc2",
    "layer.*.DenseReluDense",
    "layer.*.mlp",
    "block_sparse_moe",
    "shared_mlp",
    "moe",
    "mlp_block",
)
SCALE = 2.0**-6  # of the random states: small beside what a sublayer behind a norm adds to them
# How far rounding may move an output, as a share of the largest one: experts' kernels differ with
# their tokens' number.
ROUNDING = {
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
    torch.float32: 2.0**-17,
    torch.float64: 2.0**-40,
}


def half_paths(layer: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The modules of a layer that fit one of the patterns, without those that contain another of
    them.
    """
    forms = [re.compile(re.escape(pattern).replace(r"\*", "[0-9]+")) for pattern in patterns]
    paths = [
        path
        for form in forms
        for path, module in layer.named_modules(remove_duplicate=False)
        # These never run.
        if form.fullmatch(path) and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    ]
    return [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]


def dropped_paths(layer: nn.Module, sublayer: str) -> list[str]:
    """Paths of the modules whose output is set to zero where a layer runs as one of its halves.

    Args:
        layer: the layer, or a copy of it.
        sublayer: the half that stays, `attn` or `mlp`.
    Raises:
        RepsimError: no module of the other half is known.
    """
    dropped, patterns = ("mlp", MLP_PATHS) if sublayer == "attn" else ("attention", ATTENTION_PATHS)
    paths = half_paths(layer, patterns)
    if not paths:
        parts = ", ".join(name for name, _ in layer.named_children())
        raise ModelError(
            f"{type(layer).__name__} has no half `{sublayer}`: no {dropped} module is known in it (seen: {parts}), so "
            "nothing could be dropped; name the whole layer instead"
        )
    return paths


def half_layer(layer: nn.Module, sublayer: str) -> nn.Module:
    """One half of a layer: the modules of the other one are silenced.

    Args:
        layer: a copy that may be changed (`repsim.models.sharing`); it is what is returned.
        sublayer: the half that stays, `attn` or `mlp`.
    Raises:
        RepsimError: no module of the other half is known.
    """
    for path in dropped_paths(layer, sublayer):
        layer.set_submodule(path, Silenced(layer.get_submodule(path)))
    return layer


class Silenced(nn.Module):
    """A module that runs, so that its KV cache stays as long as the others', and whose output
    counts as zero.

    A module of its own and no hook: compiled code does not look for hooks. Any attribute asked of
    it is the module's.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            output = self.module(*args, **kwargs)
        return zero_output(self, args, output)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def zero_output(_module: nn.Module, _args: Any, output: Any) -> Any:
    """A forward hook: what the module adds to the residual stream is zero, in the form in which it
    returns it.
    """
    if isinstance(output, (tuple, list)):
        return type(output)([torch.zeros_like(output[0]), *output[1:]])
    return torch.zeros_like(output)


@contextmanager
def hooked(
    modules: Sequence[nn.Module], hook: Callable[[nn.Module, Any, Any], Any]
) -> Iterator[None]:
    """Modules with one more forward hook inside the block."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Trial:
    """What a layer makes of two random states, with some of its modules dropped.

    output: what leaves it for the first one, `[sample, position, unit]`.
    moved: the most that the second one, which differs at every other position from the first on,
        changes a unit of it, `[sample, position]`.
    """

    output: Tensor
    moved: Tensor

    @property
    def changed(self) -> Tensor:
        return self.moved[:, ::2]

    @property
    def unchanged(self) -> Tensor:
        """How far the tokens moved whose own state stayed."""
        return self.moved[:, 1::2]

    @property
    def rounding(self) -> float:
        return float(ROUNDING[self.output.dtype] * self.output.abs().max())


@torch.no_grad()
def prove_halves(layer: nn.Module, state: Tensor, run: Run) -> None:
    """Proves on random states that a layer falls into the two halves that its paths name.

    1. A token that heeds itself in the layer does so in each half and without both: the residual
    passes. 2. Without attention no token heeds another; without the MLP tokens do. 3. Without both
    halves no weight acts, so no third sublayer runs in either. Linear maps may, as MobileBERT's
       bottlenecks do: they belong to the residual.
    4. What acts in the layer acts in its own half.

    Args:
        layer: the layer or a copy of it, in evaluation mode; it carries hooks as long as the proof
            runs.
        state: one that the layer can be called with, for its shape, dtype and device, `[sample,
            position, unit]`; with a single position nothing is learned of who heeds whom.
        run: calls the layer with a state in place of that one and returns the state that leaves it.
    Raises:
        RepsimError: no module of a half is known, or the halves are none.
    """
    attention, mlp = dropped_paths(layer, "mlp"), dropped_paths(layer, "attn")
    states = _random_states(state)

    def trial(*dropped: str) -> _Trial:
        with hooked([layer.get_submodule(path) for path in dropped], zero_output):
            first, second = map(run, states)
        return _Trial(first, (first - second).abs().amax(-1))

    whole, rest = trial(), trial(*attention, *mlp)
    attn_half, mlp_half = trial(*mlp), trial(*attention)
    without_attention, without_mlp = f"without {', '.join(attention)}", f"without {', '.join(mlp)}"
    without_both = f"{without_attention} and {', '.join(mlp)}"

    problem = None
    for without, half in (
        (without_both, rest),
        (without_attention, mlp_half),
        (without_mlp, attn_half),
    ):
        if (whole.changed.bool() & ~half.changed.bool()).any():
            problem = problem or f"{without} tokens no longer heed their own states"
    if rest.unchanged.any():
        problem = problem or f"{without_both} tokens still heed each other"
    if (mlp_half.unchanged > mlp_half.rounding).any():
        problem = problem or f"{without_attention} tokens still heed each other"
    if (whole.unchanged > whole.rounding).any() and not attn_half.unchanged.any():
        problem = problem or f"{without_mlp} tokens no longer heed each other"
    if not torch.equal(whole.output, attn_half.output) and torch.equal(
        mlp_half.output, rest.output
    ):
        problem = problem or f"{without_attention} {', '.join(mlp)} has no effect"
    problem = problem or _acting_weight(layer, (*attention, *mlp), run, states, rest, without_both)
    if problem:
        raise ModelError(
            f"{type(layer).__name__} does not fall into attention and MLP: {problem}, so neither `attn` nor "
            "`mlp` of it would be what its name says; name the whole layer instead"
        )


def _random_states(state: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (SCALE * torch.randn(state.shape, generator=generator) for _ in range(2))
    second[:, 1::2] = first[:, 1::2]
    return first.to(state), second.to(state)


def _acting_weight(
    layer: nn.Module,
    dropped: Sequence[str],
    run: Run,
    states: tuple[Tensor, Tensor],
    rest: _Trial,
    without: str,
) -> str | None:
    """The first module with a matrix that acts although both halves are dropped, unless all that
    acts is linear.
    """
    zeroed = [layer.get_submodule(path) for path in dropped]
    # Modules around a dropped one add the residual themselves, so what leaves them says nothing of
    # their weights.
    around = {
        "",
        *(path[:dot] for path in dropped for dot, letter in enumerate(path) if letter == "."),
    }
    weighted = {
        name: module
        for name, module in layer.named_modules()
        if name not in around
        and any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    }

    def acts(modules: list[nn.Module]) -> bool:
        with hooked(modules, _disturb), hooked(zeroed, zero_output):  # hooks run in this order
            return not torch.equal(run(states[0]), rest.output)

    if not acts(list(weighted.values())):
        return None
    if _is_affine(run, states[0] / SCALE, zeroed):
        return None
    return next(
        (f"{without} {name} still acts" for name, module in weighted.items() if acts([module])),
        None,
    )


def _is_affine(run: Run, state: Tensor, zeroed: Sequence[nn.Module]) -> bool:
    """Whether f(x) + f(-x) = 2 f(0), up to rounding."""
    with hooked(zeroed, zero_output):
        output, mirrored, middle = run(state), run(-state), run(torch.zeros_like(state))
    bound = ROUNDING[output.dtype] / 2 * output.norm()
    return bool((output + mirrored - 2 * middle).norm() <= bound)


def _disturb(_module: nn.Module, _args: Any, output: Any) -> Any:
    """A forward hook that moves the first tensor of a module's output by something that no norm
    takes away.
    """
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not (isinstance(first, Tensor) and first.is_floating_point()):
        return output
    noise = torch.arange(first.numel(), device=first.device).sin().view(first.shape)
    moved = first + noise.to(first.dtype)
    return type(output)([moved, *output[1:]]) if isinstance(output, (tuple, list)) else moved


def kind_of(layer: nn.Module) -> Kind:
    """What tells the layers of one model apart: their class and the classes of all modules inside."""
    return tuple((name, type(module)) for name, module in layer.named_modules())
