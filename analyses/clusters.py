"""Which neighbouring layers belong together? Start, middle and end from a similarity matrix."""

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

# mypy finds no package below the folder `analyses`.
Of = Literal[Average, Measure]  # type: ignore[valid-type]
MOST = 10  # groups tried by default
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
    """Groups of neighbouring states that are alike, and how certain their boundaries are.

    See `cluster`, which takes any similarity matrix; here it gets the one that `cosine` or
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
        matrix, facts = cosine.estimate(capture, plan, of, resamples)
        facts = {**facts, "quantity": "cosine similarity"}
    else:
        matrix, _, facts = similarity.estimate(
            capture, plan, of, resamples=resamples, permutations=0, seed=seed
        )
        facts = {**facts, "quantity": similarity.DESCRIPTION[of]}
    result = cluster(matrix, capture.steps(plan), groups=groups, seed=seed)
    result.attrs = {
        **results.attributes(
            capture, plan, "clusters", "Groups of neighbouring states.", of=of, seed=seed, **facts
        ),
        **result.attrs,
    }
    return result


def cluster(
    matrix: Estimate, steps: list[str], *, groups: int | None = None, seed: int = 0
) -> xr.Dataset:
    """Contiguous groups of states by average linkage, with bootstrap distributions.

        d(A, B) = mean over a in A, b in B of 1 - similarity[a, b],   A and B neighbouring groups

    The two neighbouring groups with the least distance are merged until `groups` are left.
    (scikit-learn's AgglomerativeClustering with a chain as its connectivity looks only at the
    distance of the two states at the boundary, whatever the linkage: it updates distances along the
    chain's edges alone.) The number of groups is the one with the best mean silhouette; `stability`
    is the mean adjusted Rand index of the groups of resampled matrices with those of the whole.
    Spectral clustering, which knows nothing of neighbours, is the check. The middle is the largest
    group (the first of several as large); the start is everything before it, the end everything
    after. Two groups have no middle: they are the start and the end.

    Args:
        matrix: similarities, `[state, state]`, with replicates; no NaN.
        steps: what each state is the output of.
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
    Source: Rousseeuw 1987, Silhouettes; Hubert & Arabie 1985, Comparing partitions (the adjusted
        Rand index).
    """
    # Refuse what cannot be grouped.
    states = len(steps)
    if states < 4:
        raise RepsimError(f"{states} states: groups take at least four")
    if groups is not None and not 2 <= groups < states:
        raise RepsimError(f"groups={groups}: {states} states allow 2 to {states - 1}")
    if np.isnan(matrix.value).any():
        raise RepsimError(
            "the similarity of some states is undefined (NaN), so they belong to no group"
        )

    # Group by linkage for each number of groups, and choose the one with the best silhouette.
    tried = range(2, max(min(MOST, states - 1), groups or 0) + 1)
    cuts = linkage(matrix.value)
    labels = {k: _labels(cuts, k) for k in tried}
    distance = np.clip(1 - matrix.value, 0, None)
    np.fill_diagonal(distance, 0)
    silhouette = np.array(
        [silhouette_score(distance, labels[k], metric="precomputed") for k in labels]
    )
    chosen = groups or tried[int(np.argmax(silhouette))]

    # Group each resampled matrix the same way: how stable are groups and boundaries?
    resampled_cuts = (
        []
        if np.isnan(matrix.replicates).any()
        else [linkage(replicate) for replicate in matrix.replicates]
    )
    few = resampled_cuts[:STABILITY_RESAMPLES]
    stability = [
        _mean([adjusted_rand_score(labels[k], _labels(cut, k)) for cut in few]) for k in labels
    ]
    starts = np.sort(cuts[: chosen - 1])
    resampled_starts = np.array([np.sort(cut[: chosen - 1]) for cut in resampled_cuts])
    resampled_starts = resampled_starts.reshape(-1, chosen - 1)
    low, high = _interval(resampled_starts, float(np.min(matrix.samples)))

    # Check with spectral clustering, and name the parts of the model.
    spectral = {k: _spectral(matrix.value, k, seed) for k in labels}
    agreement = np.array([adjusted_rand_score(labels[k], spectral[k]) for k in labels])
    group = labels[chosen]
    part = _parts(group)
    return xr.Dataset(
        {
            "similarity": ((STATE, results.STATE_OTHER), matrix.value),
            "group": (STATE, group),
            "spectral_group": (STATE, spectral[chosen]),
            "part": (STATE, part),
            "cut": (STATE, _share(resampled_starts, np.arange(states))),
            "silhouette": ("groups", silhouette),
            "stability": ("groups", np.array(stability)),
            "spectral_agreement": ("groups", agreement),
            "boundary": ("between", starts),
            "boundary_low": ("between", low),
            "boundary_high": ("between", high),
            "boundary_share": (
                "between",
                (resampled_starts == starts).mean(0)
                if len(resampled_starts)
                else np.full(len(starts), np.nan),
            ),
        },
        coords={
            **results.layer_coordinate(steps),
            **results.layer_coordinate(steps, results.STATE_OTHER),
            "groups": np.array(tried),
        },
        attrs={"chosen": chosen, "chosen_by": "asked for" if groups else "silhouette"},
    )


def linkage(matrix: Array) -> NDArray[np.int64]:
    """Where groups start, the most important boundary first, by average linkage of neighbours.

    The first k - 1 cut the states into k contiguous groups. This is the reverse of the order in
    which merging removes boundaries.

    Args:
        matrix: similarities, `[state, state]`, float64.
    Returns:
        `[state - 1]`, int64: the first state of the later group.
    Example:
        >>> import numpy as np
        >>> pairs = np.kron(np.eye(2), np.ones((2, 2)))  # states 0 and 1 alike, and 2 and 3
        >>> int(linkage(pairs)[0])
        2
    """
    # Invariant: sums[A, B] is the sum of distances between the states of groups A and B.
    sums = 1 - matrix
    starts, sizes = list(range(len(matrix))), np.ones(len(matrix))
    removed = []
    while len(starts) > 1:
        between = np.diagonal(sums, 1) / (sizes[:-1] * sizes[1:])
        first = int(np.argmin(between))
        removed.append(starts.pop(first + 1))
        for axis in (0, 1):
            sums = np.add.reduceat(
                sums, np.delete(np.arange(sums.shape[axis]), first + 1), axis=axis
            )
        sizes = np.add.reduceat(sizes, np.delete(np.arange(len(sizes)), first + 1))
    return np.array(removed[::-1])


def _labels(cuts: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """The group of each state, `[state]`, int64, counted from 0."""
    states = np.arange(len(cuts) + 1)
    return np.searchsorted(np.sort(cuts[: groups - 1]), states, side="right")


def _parts(group: NDArray[np.int64]) -> NDArray[Any]:
    """The part of the model that each state's group is in, `[state]`."""
    sizes = np.bincount(group)
    if len(sizes) == 2:
        return np.array(["start", "end"], object)[group]
    middle = int(np.argmax(sizes))
    return np.array(["start", "middle", "end"], object)[np.sign(group - middle) + 1]


def _spectral(matrix: Array, groups: int, seed: int) -> NDArray[np.int64]:
    """Groups by spectral clustering of positive similarities, numbered in the order of states."""
    affinity = np.clip((matrix + matrix.T) / 2, 1e-6, None)  # keeps the graph connected
    model = SpectralClustering(
        groups, affinity="precomputed", random_state=seed % 2**32, assign_labels="cluster_qr"
    )
    labels = model.fit_predict(affinity)
    order = list(dict.fromkeys(labels.tolist()))
    return np.array([order.index(label) for label in labels])


def _interval(starts: NDArray[np.int64], samples: float) -> tuple[Array, Array]:
    """As `Estimate.interval`, in whole numbers: no boundary lies between two states."""
    if not len(starts):
        nothing = np.full(starts.shape[1], np.nan)
        return nothing, nothing
    beyond = tail(LEVEL, samples)
    low, high = np.quantile(starts, [beyond, 1 - beyond], axis=0, method="inverted_cdf")
    return low.astype(np.float64), high.astype(np.float64)


def _share(starts: NDArray[np.int64], states: NDArray[np.int64]) -> Array:
    """Share of resamples in which a group starts at each state; NaN without resamples."""
    if not len(starts):
        return np.full(len(states), np.nan)
    return (starts[:, :, None] == states).any(1).mean(0)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def plot(dataset: xr.Dataset) -> Figure:
    """The matrix with its groups, and the evidence for them; see `repsim.plotting.clusters`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.clusters(dataset)
