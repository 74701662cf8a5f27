"""A sublayer of a layer: which modules to silence for it, and the proof that the rest is it.

A layer is attention and MLP. One of them alone is the layer with the other's contribution set to
zero; the residual and the norms stay. Which modules contribute is told by their paths, which say
nothing about what a module computes. So the first time a kind of layer is divided,
`prove_sublayers` runs its sublayers on random states and refuses them where they are something
else. This module knows nothing of plans, of tracing or of disks.
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
LayerKind = tuple[tuple[str, type[nn.Module]], ...]

# Paths, inside a layer, of the modules whose output is what a sublayer adds to the residual stream;
# attention stands for whatever mixes positions or reads an encoder, a star for each entry of a
# list. Of nested paths the inner one is taken: BERT's sublayers end in a dense layer next to the
# norm, and some modules (Bloom's, MPT's) add the residual themselves after their last dense layer.
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
SCALE = 2.0**-6  # of the random states: small next to what a sublayer behind a norm adds to them
# How far rounding may move an output, as a share of the largest one: kernels of experts differ with
# the number of their tokens.
ROUNDING = {
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
    torch.float32: 2.0**-17,
    torch.float64: 2.0**-40,
}


def match_paths(layer: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The innermost modules of a layer whose paths fit one of the patterns.

    Args:
        layer: the layer.
        patterns: dotted paths in which `*` stands for a number.

    Example:
        >>> layer = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(2, 2)), "norm": nn.Identity()})
        >>> match_paths(layer, ["mlp", "mlp.*"])
        ['mlp.0']
    """
    forms = [re.compile(re.escape(pattern).replace(r"\*", "[0-9]+")) for pattern in patterns]
    paths = [
        path
        for form in forms
        for path, module in layer.named_modules(remove_duplicate=False)
        # Lists and dictionaries of modules never run.
        if form.fullmatch(path) and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    ]
    return [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]


def paths_to_silence(layer: nn.Module, sublayer: str) -> list[str]:
    """Paths of the modules whose output is set to zero where one sublayer of a layer runs.

    Args:
        layer: the layer, or a copy of it.
        sublayer: what stays, `attn` or `mlp`.
    Raises:
        ModelError: no module of the other sublayer is known.
    """
    other, patterns = ("mlp", MLP_PATHS) if sublayer == "attn" else ("attention", ATTENTION_PATHS)
    paths = match_paths(layer, patterns)
    if not paths:
        children = ", ".join(name for name, _ in layer.named_children())
        raise ModelError(
            f"{type(layer).__name__} has no sublayer `{sublayer}`: no {other} module is known in "
            f"it (seen: {children}), so nothing could be dropped; name the whole layer instead"
        )
    return paths


def keep_sublayer(layer: nn.Module, sublayer: str) -> nn.Module:
    """Makes a layer one of its sublayers: the modules of the other one are silenced.

    Args:
        layer: a copy that may be changed (`repsim.models.sharing`).
        sublayer: what stays, `attn` or `mlp`.
    Returns:
        The same copy.
    Raises:
        ModelError: no module of the other sublayer is known.
    """
    for path in paths_to_silence(layer, sublayer):
        layer.set_submodule(path, SilentModule(layer.get_submodule(path)))
    return layer


class SilentModule(nn.Module):
    """A module that runs and whose output counts as zero.

    It runs so that its KV cache stays as long as the others'. It is a module and not a hook,
    because compiled code does not look for hooks. Any attribute read from it is the module's.
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
    """A forward hook: zeros in the form in which the module returns its output."""
    if isinstance(output, (tuple, list)):
        return type(output)([torch.zeros_like(output[0]), *output[1:]])
    return torch.zeros_like(output)


@contextmanager
def add_hooks(
    modules: Sequence[nn.Module], hook: Callable[[nn.Module, Any, Any], Any]
) -> Iterator[None]:
    """Gives modules one more forward hook inside the block."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Trial:
    """What a layer makes of two random states, with some of its modules silenced.

    The second state differs from the first one at positions 0, 2, 4, ...

    output: what leaves the layer for the first one, `[sample, position, unit]`.
    moved: the largest change of a unit in what leaves it for the second one, `[sample, position]`.
    """

    output: Tensor
    moved: Tensor

    @property
    def own_effect(self) -> Tensor:
        """How far the tokens moved whose own state changed."""
        return self.moved[:, ::2]

    @property
    def mixing(self) -> Tensor:
        """How far the tokens moved whose own state stayed: what they get from other tokens."""
        return self.moved[:, 1::2]

    @property
    def rounding(self) -> float:
        return float(ROUNDING[self.output.dtype] * self.output.abs().max())


@torch.no_grad()
def prove_sublayers(layer: nn.Module, state: Tensor, run: Run) -> None:
    """Proves on random states that a layer is the two sublayers that its paths name.

    1. A token whose output depends on its own state in the layer does so in each sublayer and
       without both: the residual passes.
    2. Without attention no token depends on another; without the MLP tokens do.
    3. Without both no weight acts, so no third sublayer runs in either. Linear maps may act, as
       MobileBERT's bottlenecks do: they belong to the residual.
    4. What acts in the layer acts in its own sublayer.

    Args:
        layer: the layer or a copy of it, in evaluation mode; it carries hooks while the proof runs.
        state: one that the layer can be called with, for its shape, dtype and device, `[sample,
            position, unit]`; a single position shows nothing of how tokens depend on each other.
        run: calls the layer with a state in place of that one and returns the state that leaves it.
    Raises:
        ModelError: no module of a sublayer is known, or the layer is not these two.
    """
    attention, mlp = paths_to_silence(layer, "mlp"), paths_to_silence(layer, "attn")
    states = _random_states(state)

    def trial(*silenced: str) -> _Trial:
        with add_hooks([layer.get_submodule(path) for path in silenced], zero_output):
            first, second = map(run, states)
        return _Trial(first, (first - second).abs().amax(-1))

    # The layer, the layer without both sublayers, and each sublayer.
    whole, rest = trial(), trial(*attention, *mlp)
    attn_only, mlp_only = trial(*mlp), trial(*attention)

    # The first rule that is broken, in words.
    without_attention, without_mlp = f"without {', '.join(attention)}", f"without {', '.join(mlp)}"
    without_both = f"{without_attention} and {', '.join(mlp)}"
    problem = None
    for without, part in (
        (without_both, rest),
        (without_attention, mlp_only),
        (without_mlp, attn_only),
    ):
        if (whole.own_effect.bool() & ~part.own_effect.bool()).any():
            problem = problem or f"{without} tokens no longer depend on their own states"
    if rest.mixing.any():
        problem = problem or f"{without_both} tokens still depend on each other"
    if (mlp_only.mixing > mlp_only.rounding).any():
        problem = problem or f"{without_attention} tokens still depend on each other"
    if (whole.mixing > whole.rounding).any() and not attn_only.mixing.any():
        problem = problem or f"{without_mlp} tokens no longer depend on each other"
    mlp_acts = not torch.equal(mlp_only.output, rest.output)
    if not torch.equal(whole.output, attn_only.output) and not mlp_acts:
        problem = problem or f"{without_attention} {', '.join(mlp)} has no effect"
    problem = problem or _acting_weight(layer, (*attention, *mlp), run, states, rest, without_both)
    if problem:
        raise ModelError(
            f"{type(layer).__name__} is not one attention and one MLP: {problem}, so neither "
            "`attn` nor `mlp` of it would be what its name says; name the whole layer instead"
        )


def _random_states(state: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (SCALE * torch.randn(state.shape, generator=generator) for _ in range(2))
    second[:, 1::2] = first[:, 1::2]
    return first.to(state), second.to(state)


def _acting_weight(
    layer: nn.Module,
    silenced: Sequence[str],
    run: Run,
    states: tuple[Tensor, Tensor],
    rest: _Trial,
    without: str,
) -> str | None:
    """The first module with a matrix that acts although both sublayers are silenced.

    None where there is no such module, or where all that acts is linear.
    """
    zeroed = [layer.get_submodule(path) for path in silenced]
    # Modules around a silenced one add the residual themselves, so what leaves them says nothing of
    # their weights.
    around = {
        "",
        *(path[:dot] for path in silenced for dot, letter in enumerate(path) if letter == "."),
    }
    weighted = {
        name: module
        for name, module in layer.named_modules()
        if name not in around
        and any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    }

    # A module acts if the layer's output changes with the module's.
    def acts(modules: list[nn.Module]) -> bool:
        with (
            add_hooks(modules, _disturb),
            add_hooks(zeroed, zero_output),
        ):  # hooks run in this order
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
    with add_hooks(zeroed, zero_output):
        output, mirrored, middle = run(state), run(-state), run(torch.zeros_like(state))
    bound = ROUNDING[output.dtype] / 2 * output.norm()
    return bool((output + mirrored - 2 * middle).norm() <= bound)


def _disturb(_module: nn.Module, _args: Any, output: Any) -> Any:
    """A forward hook that adds to a module's output something that no norm takes away."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not (isinstance(first, Tensor) and first.is_floating_point()):
        return output
    noise = torch.arange(first.numel(), device=first.device).sin().view(first.shape)
    moved = first + noise.to(first.dtype)
    return type(output)([moved, *output[1:]]) if isinstance(output, (tuple, list)) else moved


def layer_kind(layer: nn.Module) -> LayerKind:
    """What tells the layers of a model apart: their class and the classes of all modules inside."""
    return tuple((name, type(module)) for name, module in layer.named_modules())
