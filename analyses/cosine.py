"""How alike are the states of a plan? Mean cosine similarity between every two of them.

This module streams states from a capture into the kernels of `repsim.measures` and turns their
sums into a mean with a standard error. It knows nothing of models, of files or of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.measures import cosine_from_gram, grams, token_cosine_sums
from repsim.schema import SAMPLE, STATE, TOKEN, RepsimError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Average = Literal["token", "sequence"]

RUN_BYTES = 64 * 2**20  # one run of tokens over all states, counted as float32

DESCRIPTION = {
    "token": "Mean over tokens of the cosine between two states at the same token.",
    "sequence": "Mean over samples of the cosine between two states flattened over a sample's tokens, without padding.",
}


class Capture(Protocol):
    """What this analysis asks of a capture; see `repsim.captures.Capture`."""

    @property
    def chunk_tokens(self) -> int: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def hidden(self, plan: str) -> xr.DataArray: ...

    def plan_name(self, plan: str) -> str: ...


def compute(capture: Capture, *, plan: str = "baseline", average: Average = "token") -> xr.Dataset:
    """Mean cosine similarity between every two states of a plan.

    -1 (opposite directions) to 1 (same direction). The two averages answer different questions
    and differ a lot: in the middle layers of a decoder the first token's state is tens to
    hundreds of times longer than the others', so it alone rules a sample's flattened cosine, and
    `sequence` is near 1 there whatever the other tokens do. `token` weighs all tokens alike.

    The standard error takes samples, not tokens, as independent. For `token` it is that of a
    ratio of sums over samples (linearised), for `sequence` the samples' standard deviation /
    sqrt(samples); NaN where there is only one sample. A zero vector has no direction: a state
    that holds one is NaN against all states.

    States are read in runs of whole chunks, about 64 MiB as float32 or one chunk if that is
    more; memory does not grow with the number of tokens.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        average: `token`: the cosine at each token, mean over tokens; `sequence`: the cosine of
            each sample's states flattened over its tokens, mean over samples.
    Returns:
        `cosine` and `standard_error` over (state, state_other), with coordinates `layer` and
        `layer_other`; the attributes say what was measured on what.
    Raises:
        RepsimError: an unknown average, a plan of fewer than two states, or no tokens.
    Source:
        `sequence`: Sun et al. 2024, Transformer Layers as Painters (arXiv 2407.09298), fig. 3,
        without the padding that the notebook beside it flattens along with the tokens.
        Ratio's standard error: Cochran 1977, Sampling Techniques, ch. 6.
    """
    if average not in get_args(Average):
        raise RepsimError(f"average={average!r}: choose {' or '.join(get_args(Average))}")
    hidden = capture.hidden(plan)
    name = capture.plan_name(plan)
    _check(hidden, name)
    cosine, standard_error, samples = _ratio(_sample_totals(hidden, capture.chunk_tokens, average))
    layer = hidden["layer"].values.astype(object)  # zarr has no stable type for fixed lengths
    return xr.Dataset(
        {
            "cosine": ((STATE, "state_other"), cosine),
            "standard_error": ((STATE, "state_other"), standard_error),
        },
        coords={"layer": (STATE, layer), "layer_other": ("state_other", layer)},
        attrs={
            "analysis": "cosine",
            "description": DESCRIPTION[average],
            "average": average,
            "plan": name,
            "plan_text": str(hidden["plan"].item()) if "plan" in hidden.coords else str(plan),
            "model": capture.identity["model"],
            "corpus": capture.identity["corpus"],
            "tokens": hidden.sizes[TOKEN],
            "samples": samples,
        },
    )


def plot(result: xr.Dataset) -> Figure:
    """Heat map of the cosine matrix; see `repsim.figures.similarity_matrix`."""
    from repsim import figures  # here, so that computing does not wait for matplotlib

    return figures.similarity_matrix(result)


def _check(hidden: xr.DataArray, name: str) -> None:
    """Raises where there is nothing to compare."""
    if hidden.sizes[STATE] < 2:
        raise RepsimError(f"plan {name!r} runs no layer: a comparison needs at least two states")
    if hidden.sizes[TOKEN] == 0:
        raise RepsimError("this capture holds no tokens: capture a corpus with at least one")


def _sample_totals(
    hidden: xr.DataArray, chunk_tokens: int, average: Average
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each sample's weight in the mean and its cosines times that weight, `[state, state]`."""
    pieces = _pieces(hidden, chunk_tokens)
    if average == "token":
        yield from _sample_sums(pieces, token_cosine_sums)
    else:
        for _, gram in _sample_sums(pieces, grams):
            yield 1, cosine_from_gram(gram)


def _sample_sums(
    pieces: Iterator[tuple[int, NDArray[Any]]],
    kernel: Callable[[NDArray[Any]], NDArray[np.float64]],
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each sample's number of tokens and the kernel's sum over its pieces, `[state, state]`."""
    for _, sample in groupby(pieces, key=itemgetter(0)):
        tokens, total = 0, np.zeros(())
        for _, states in sample:
            tokens += states.shape[1]
            total = total + kernel(states)
        yield tokens, total


def _pieces(hidden: xr.DataArray, chunk_tokens: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """(sample, its states `[state, token, unit]`); several in a row where it straddles runs."""
    step = _run_tokens(hidden, chunk_tokens)
    for first in range(0, hidden.sizes[TOKEN], step):
        run = hidden.isel({TOKEN: slice(first, first + step)})
        states, sample = run.values, run[SAMPLE].values
        starts = [0, *(np.flatnonzero(np.diff(sample)) + 1), len(sample)]
        for start, stop in pairwise(starts):
            yield int(sample[start]), states[:, start:stop]


def _ratio(
    totals: Iterator[tuple[int, NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Sum of totals / sum of weights, its standard error over samples, the number of samples.

    The samples are not kept: the squared residuals (total - mean * weight)^2 are summed from
    their expanded terms, which leaves a standard error below about 1e-8 to rounding.
    """
    samples, weights, squared_weights = 0, 0, 0
    sums = squares = products = np.zeros(())
    for weight, total in totals:
        samples, weights = samples + 1, weights + weight
        squared_weights += weight**2
        sums, squares, products = sums + total, squares + total**2, products + weight * total
    mean = sums / weights
    if samples == 1:
        return mean, np.full_like(mean, np.nan), samples
    residuals = np.maximum(squares - 2 * mean * products + mean**2 * squared_weights, 0)
    return mean, np.sqrt(residuals * samples / (samples - 1)) / weights, samples


def _run_tokens(hidden: xr.DataArray, chunk_tokens: int) -> int:
    """Tokens to read at once: whole chunks, at least one, about `RUN_BYTES`."""
    chunk_bytes = 4 * chunk_tokens * hidden.sizes[STATE] * hidden.sizes["unit"]
    return chunk_tokens * max(1, RUN_BYTES // chunk_bytes)
