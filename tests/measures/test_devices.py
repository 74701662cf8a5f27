"""Kernels on arrays of torch, as on a graphics card, against numpy's and against plain formulas."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.utils._python_dispatch import TorchDispatchMode

from repsim.analyses import blocks, cosine, norms, similarity
from repsim.measures import grams, sink_tokens, token_cosine_totals, token_cosines
from repsim.measures._arrays import products_on_device

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics card"),
    ),
]
KERNELS: dict[str, Callable[[Any], Any]] = {
    f"{module.__name__.rpartition('.')[2]}.{name}": kernel
    for module in (blocks, cosine, norms, similarity)
    for name, kernel in module.STATISTICS.items()
}
# Operations that hand a device's value to Python, or need one to know a shape.
LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class NoLooking(TorchDispatchMode):
    """Refuses what would make the computer wait for a device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.__name__.split(".")[0]
        assert name not in LOOKS, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


def states_of(samples: int, tokens: int, dtype: Any = np.float32, states: int = 5) -> Any:
    """Like a decoder's: a first token that is much longer, and zero vectors."""
    drawn = np.random.default_rng(tokens).normal(size=(samples, states, tokens, 24))
    drawn[:, :, 0] *= 40
    if tokens > 4:
        drawn[:, 1, 3] = 0
        drawn[0, :, 2] = 0
    return drawn.astype(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("tokens", [1, 5, 300])
@pytest.mark.parametrize("name", KERNELS)
def test_a_device_gives_what_numpy_gives(name: str, tokens: int, dtype: Any, device: str) -> None:
    states = states_of(2, tokens, dtype)
    expected = np.stack([KERNELS[name](sample) for sample in states])
    given = KERNELS[name](torch.from_numpy(states).to(device))
    assert given.dtype == torch.float64
    assert given.device.type == device
    # Angles of equal directions are as exact as the root of a cosine's rounding; inner products
    # as exact as float32 is of the two norms' product.
    scale = {"blocks.distances": 5e-4 * tokens, "cosine.sequence": 1e-6 * expected.max()}
    assert_allclose(given.cpu().numpy(), expected, rtol=1e-6, atol=scale.get(name, 1e-6 * tokens))


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"similarity.minibatch"}))
def test_nothing_waits_for_the_device(name: str) -> None:
    states = torch.from_numpy(states_of(2, 40))
    KERNELS[name](states)  # the places of an upper triangle are kept
    with NoLooking():
        KERNELS[name](states)


def test_looking_is_seen() -> None:
    with NoLooking(), pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        bool(torch.zeros(2).any())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1e-30, 1e-22, 1.0, 1e22, 1e30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_directions_of_any_length(dtype: torch.dtype, length: float, device: str) -> None:
    """Products of these lengths leave float32's range."""
    states = (torch.from_numpy(states_of(1, 9)[0]) * length).to(dtype)
    wide = states.double()
    wide = wide / wide.norm(dim=-1, keepdim=True)
    expected = torch.einsum("itu,jtu->tij", wide, wide)
    given = token_cosines(states.to(device)).cpu()
    assert_allclose(given, expected, atol=1e-6)
    sums, counts = token_cosine_totals(states.to(device))
    assert_allclose(sums.cpu(), expected.nansum(0), atol=1e-5)
    assert_array_equal(counts.cpu(), (~expected.isnan()).sum(0))


@pytest.mark.parametrize("device", DEVICES)
def test_narrow_dtypes_are_added_up_in_float32(device: str) -> None:
    vectors = torch.full((1, 2, 4096), 1.0, dtype=torch.bfloat16, device=device)
    vectors[:, 1, ::2] = 1.0078125  # the next number after 1
    given = products_on_device(vectors, scaled=False)[0].cpu()
    assert given.dtype == torch.float32
    assert_array_equal(given[0], [4096, 4112])


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_shows_and_nothing_else_does(device: str) -> None:
    states = states_of(1, 6)[0]
    states[2, 4, 0], states[4, 5, 1] = np.inf, np.nan
    for kernel in (token_cosines, grams, lambda x: token_cosine_totals(x)[0]):
        with np.errstate(invalid="ignore"):
            expected = np.isfinite(kernel(states))
        given = kernel(torch.from_numpy(states).to(device)).isfinite().cpu()
        assert_array_equal(given, expected)
    assert_array_equal(sink_tokens(torch.from_numpy(states).to(device)).cpu(), sink_tokens(states))
