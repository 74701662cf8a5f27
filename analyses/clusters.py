"""Which neighbouring layers belong together? Start, middle and end of a model, read off a
similarity matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score

from repsim.analyses import cosine, similarity
from repsim.analyses.cosine import Average
from repsim.analyses.similarity import Measure
from repsim.errors import RepsimError
from repsim.schema import STATE
from repsim.stats import results
from repsim.stats.bootstrap import LEVEL, Estimate, tail
from repsim.stats.per_sample import StateSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Of = Literal[Average, Measure]  # type: ignore[valid-type]  # mypy finds no package below the folder analyses
MOST = 10  # groups that are tried
STABILITY_RESAMPLES = 200
Array = NDArray[np.float64]


def compute(
    capture: StateSource,
    *,
    plan: str = "baseline",
    of: Of = "token",
    groups: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Groups of neighbouring states that are alike, and how sure their boundaries are.

    See `cluster`, which takes any similarity matrix; this gives it one that `cosine` or
    `similarity` computes.

    Args:
        capture: an open capture.
        plan: plan whose states are grouped.
        of: the similarity: an average of `cosine` (token, sequence, centred, without-sinks) or a
            measure of `similarity` (cka, minibatch-cka, procrustes, ...), with its defaults.
        groups: how many; by default as many as give the best silhouette.
        resamples: draws of the bootstrap.
        seed: of the draws and of spectral clustering.
    Returns:
        As `cluster`, with the attributes of the similarity.
    Raises:
        RepsimError: an option that does not fit, or a plan of fewer than four states.
    """
    if of not in get_args(Of):
        raise RepsimError(f"of={of!r}: choose {', '.join(get_args(Of))}")
    results.check_counts(seed=seed)
    facts: dict[str, Any]
    if of in get_args(Average):
        found, facts = cosine.estimate(capture, plan, of, resamples)
        facts = {**facts, "quantity": "cosine similarity"}
    else:
        found, _, facts = similarity.estimate(
            capture, plan, of, resamples=resamples, permutations=0, seed=seed
        )
        facts = {**facts, "quantity": similarity.DESCRIPTION[of]}
    result = cluster(found, capture.steps(plan), groups=groups, seed=seed)
    result.attrs = {
        **results.attributes(
            capture, plan, "clusters", "Groups of neighbouring states.", of=of, seed=seed, **facts
        ),
        **result.attrs,
    }
    return result


def cluster(
    found: Estimate, layers: list[str], *, groups: int | None = None, seed: int = 0
) -> xr.Dataset:
    """Contiguous groups of states by average linkage on 1 - similarity, with bootstrap
    distributions.

    Of all neighbouring groups the two with the least mean distance between their states are merged,
    until `groups` are left. (scikit-learn's AgglomerativeClustering with a chain as its
    connectivity looks at the distance of the two states at the boundary alone, whatever the
    linkage: it updates distances along the chain's edges only.) The number of groups is the one
    with the best mean silhouette; `stability` is the mean adjusted Rand index of the groups of
    resampled matrices with those of the whole. Spectral clustering, which knows nothing of
    neighbours, is the check. The middle is the largest group (the first, of equals); the start is
    what lies before it, the end what lies after.

    Args:
        found: similarities, `[state, state]`, with replicates; NaN nowhere.
        layers: what each state is the output of.
        groups: how many, 2 to states - 1; by default chosen.
        seed: of spectral clustering.
    Returns:
        `similarity` over (state, state_other); `group` and `spectral_group` over state, counted
        from 0 in the order of the states; `part` over state, `start`, `middle` or `end`;
        `silhouette`, `stability` and `spectral_agreement` (adjusted Rand index of the two
        clusterings) over groups; `boundary`, `boundary_low`, `boundary_high` over
        between: the first state of the next group, its interval, and `boundary_share`, the share of
        resamples in which it is exactly this one; `cut` over state: the share of resamples in which
        a group begins there.
    Raises:
        RepsimError: fewer than four states, a similarity that is NaN, or a number of groups that
            does not fit.
    """
    states = len(layers)
    if states < 4:
        raise RepsimError(f"{states} states: groups take at least four")
    if groups is not None and not 2 <= groups < states:
        raise RepsimError(f"groups={groups}: {states} states allow 2 to {states - 1}")
    if np.isnan(found.value).any():
        raise RepsimError(
            "the similarity of some states is undefined (NaN), so they belong to no group"
        )
    tried = range(2, max(min(MOST, states - 1), groups or 0) + 1)
    cuts = linkage(found.value)
    labels = {k: _labels(cuts, k) for k in tried}
    distance = np.clip(1 - found.value, 0, None)
    np.fill_diagonal(distance, 0)
    silhouette = np.array(
        [silhouette_score(distance, labels[k], metric="precomputed") for k in labels]
    )
    chosen = groups or tried[int(np.argmax(silhouette))]
    resampled = (
        [linkage(matrix) for matrix in found.replicates]
        if not np.isnan(found.replicates).any()
        else []
    )
    few = resampled[:STABILITY_RESAMPLES]
    stability = [
        _mean([adjusted_rand_score(labels[k], _labels(cut, k)) for cut in few]) for k in labels
    ]
    spectral = {k: _spectral(found.value, k, seed) for k in labels}
    starts = np.sort(cuts[: chosen - 1])
    again = np.array([np.sort(cut[: chosen - 1]) for cut in resampled]).reshape(-1, chosen - 1)
    low, high = _interval(again, float(np.min(found.samples)))
    group = labels[chosen]
    middle = int(np.argmax(np.bincount(group)))
    part = np.array(["start", "middle", "end"], object)[np.sign(group - middle) + 1]
    return xr.Dataset(
        {
            "similarity": ((STATE, results.STATE_OTHER), found.value),
            "group": (STATE, group),
            "spectral_group": (STATE, spectral[chosen]),
            "part": (STATE, part),
            "cut": (STATE, _share(again, np.arange(states))),
            "silhouette": ("groups", silhouette),
            "stability": ("groups", np.array(stability)),
            "spectral_agreement": (
                "groups",
                np.array([adjusted_rand_score(labels[k], spectral[k]) for k in labels]),
            ),
            "boundary": ("between", starts),
            "boundary_low": ("between", low),
            "boundary_high": ("between", high),
            "boundary_share": (
                "between",
                (again == starts).mean(0) if len(again) else np.full(len(starts), np.nan),
            ),
        },
        coords={
            **results.layer_coordinate(layers),
            **results.layer_coordinate(layers, results.STATE_OTHER),
            "groups": np.array(tried),
        },
        attrs={"chosen": chosen, "chosen_by": "asked for" if groups else "silhouette"},
    )


def linkage(matrix: Array) -> NDArray[np.int64]:
    """First states of groups, most important first: the first k - 1 cut the states into k
    contiguous groups.

    Average linkage that merges neighbouring groups only: the reverse of the order in which
    boundaries vanish.

    Args:
        matrix: similarities, `[state, state]`.
    """
    sums = 1 - matrix
    starts, sizes = list(range(len(matrix))), np.ones(len(matrix))
    gone = []
    while len(starts) > 1:
        between = np.diagonal(sums, 1) / (sizes[:-1] * sizes[1:])
        first = int(np.argmin(between))
        gone.append(starts.pop(first + 1))
        for axis in (0, 1):
            sums = np.add.reduceat(
                sums, np.delete(np.arange(sums.shape[axis]), first + 1), axis=axis
            )
        sizes = np.add.reduceat(sizes, np.delete(np.arange(len(sizes)), first + 1))
    return np.array(gone[::-1])


def _labels(cuts: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """The group of each state, counted from 0."""
    states = np.arange(len(cuts) + 1)
    return np.searchsorted(np.sort(cuts[: groups - 1]), states, side="right")


def _spectral(matrix: Array, groups: int, seed: int) -> NDArray[np.int64]:
    """Spectral clustering of the similarities that are positive, numbered in the order of the
    states.
    """
    affinity = np.clip((matrix + matrix.T) / 2, 1e-6, None)  # a graph in one piece
    found = SpectralClustering(
        groups, affinity="precomputed", random_state=seed % 2**32, assign_labels="cluster_qr"
    )
    labels = found.fit_predict(affinity)
    order = list(dict.fromkeys(labels.tolist()))
    return np.array([order.index(label) for label in labels])


def _interval(starts: NDArray[np.int64], samples: float) -> tuple[Array, Array]:
    """As `Estimate.interval`, of whole numbers: no boundary lies between two states."""
    if not len(starts):
        nothing = np.full(starts.shape[1], np.nan)
        return nothing, nothing
    beyond = tail(LEVEL, samples)
    low, high = np.quantile(starts, [beyond, 1 - beyond], axis=0, method="inverted_cdf")
    return low.astype(np.float64), high.astype(np.float64)


def _share(starts: NDArray[np.int64], states: NDArray[np.int64]) -> Array:
    if not len(starts):
        return np.full(len(states), np.nan)
    return (starts[:, :, None] == states).any(1).mean(0)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def plot(found: xr.Dataset) -> Figure:
    """The matrix with its groups, and what speaks for them; see `repsim.plotting.clusters`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.clusters(found)
