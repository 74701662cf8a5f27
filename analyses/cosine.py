"""How alike are the states of a plan? Mean cosine similarity between every two of them.

This module takes the sums that the kernels of `repsim.measures` make of each sample's states, stored or not, and turns
them into a mean with a standard error. It knows nothing of models, of files or of pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.measures import cosine_from_gram, grams, token_cosine_sums
from repsim.schema import STATE, RepsimError
from repsim.statistics import Source, Statistic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Average = Literal["token", "sequence"]

DESCRIPTION = {
    "token": "Mean over tokens of the cosine between two states at the same token.",
    "sequence": "Mean over samples of the cosine between two states flattened over a sample's tokens, without padding.",
}


def _upper(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A symmetric matrix's upper triangle, row by row."""
    packed: NDArray[np.float64] = matrix[np.triu_indices(len(matrix))]
    return packed


def _whole(packed: NDArray[np.float64], states: int) -> NDArray[np.float64]:
    """The symmetric matrix of an upper triangle."""
    matrix = np.empty((states, states))
    rows, columns = np.triu_indices(states)
    matrix[rows, columns] = matrix[columns, rows] = packed
    return matrix


# What a capture that keeps no states takes of each sample for this analysis.
STATISTICS = {
    "token": lambda states: _upper(token_cosine_sums(states)),
    "sequence": lambda states: _upper(grams(states)),
}


def compute(capture: Source, *, plan: str = "baseline", average: Average = "token") -> xr.Dataset:
    """Mean cosine similarity between every two states of a plan.

    -1 (opposite directions) to 1 (same direction). The two averages answer different questions
    and differ a lot: in the middle layers of a decoder the first token's state is tens to
    hundreds of times longer than the others', so it alone rules a sample's flattened cosine, and
    `sequence` is near 1 there whatever the other tokens do. `token` weighs all tokens alike.

    The standard error takes samples, not tokens, as independent. For `token` it is that of a
    ratio of sums over samples (linearised), for `sequence` the samples' standard deviation /
    sqrt(samples); NaN where there is only one sample. A zero vector has no direction: a state
    that holds one is NaN against all states.

    Works on a capture that keeps its states, and on one that keeps the statistic `cosine` of them.

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
    name, steps = capture.plan_name(plan), capture.steps(plan)
    if len(steps) < 2:
        raise RepsimError(f"plan {name!r} runs no layer: a comparison needs at least two states")
    statistic = Statistic(f"cosine.{average}", STATISTICS[average])
    cosine, standard_error, tokens, samples = _ratio(_totals(capture.per_sample(plan, statistic), len(steps), average))
    layer = np.array(steps, object)  # zarr has no stable type for fixed lengths
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
            "plan_text": capture.plan_text(plan),
            "model": capture.identity["model"],
            "corpus": capture.identity["corpus"],
            "tokens": tokens,
            "samples": samples,
        },
    )


def plot(result: xr.Dataset) -> Figure:
    """Heat map of the cosine matrix; see `repsim.figures.similarity_matrix`."""
    from repsim import figures  # here, so that computing does not wait for matplotlib

    return figures.similarity_matrix(result)


def _totals(
    samples: Iterable[tuple[int, NDArray[np.float64]]], states: int, average: Average
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Each sample's tokens, its weight in the mean and its cosines times that weight, `[state, state]`."""
    for tokens, packed in samples:
        matrix = _whole(packed, states)
        yield (tokens, tokens, matrix) if average == "token" else (tokens, 1, cosine_from_gram(matrix))


def _ratio(
    totals: Iterable[tuple[int, int, NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int]:
    """Sum of totals / sum of weights, its standard error over samples, the numbers of tokens and of samples.

    The samples are not kept: the squared residuals (total - mean * weight)^2 are summed from
    their expanded terms, which leaves a standard error below about 1e-8 to rounding.
    """
    tokens, samples, weights, squared_weights = 0, 0, 0, 0
    sums = squares = products = np.zeros(())
    for length, weight, total in totals:
        tokens, samples, weights = tokens + length, samples + 1, weights + weight
        squared_weights += weight**2
        sums, squares, products = sums + total, squares + total**2, products + weight * total
    if not samples:
        raise RepsimError("this capture holds no finished tokens: run it to the end of a block at least")
    mean = sums / weights
    if samples == 1:
        return mean, np.full_like(mean, np.nan), tokens, samples
    residuals = np.maximum(squares - 2 * mean * products + mean**2 * squared_weights, 0)
    return mean, np.sqrt(residuals * samples / (samples - 1)) / weights, tokens, samples
