"""Which neighbouring layers belong together? Start, middle and end from a similarity matrix."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score

from repsim.analyses import cosine, similarity
from repsim.analyses.cosine import Average
from repsim.analyses.similarity import Measure
from repsim.errors import RepsimError
from repsim.schema import STATE
from repsim.stats import results, summaries
from repsim.stats.bootstrap import LEVEL, Estimate, tail
from repsim.stats.per_sample import StateSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# mypy finds no package below the folder `analyses`.
Of = Literal[Average, Measure]  # type: ignore[valid-type]
HEAT_MAPS = True  # of its figure, for --vmin and --vmax
MOST = 10  # groups tried by default
STABILITY_RESAMPLES = 200
MOST_SUMMARISED = 4  # groups of a similarity matrix
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
            capture,
            plan,
            "clusters",
            "Groups of neighbouring states.",
            of=of,
            resamples=resamples,
            seed=seed,
            **facts,
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


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """The groups with their layers, and where each begins, by the layer of its first state."""
    layers, group = result["layer"].values.tolist(), result["group"].values
    rows = []
    for number in range(int(group.max()) + 1):
        states = np.flatnonzero(group == number)
        row = {
            "group": number + 1,
            "part": str(result["part"].values[states[0]]),
            "layers": summaries.span([layers[state] for state in states]),
            "states": len(states),
            "begins": "",
            "begins_between": "",
            "share_begins": np.nan,
        }
        if number:
            ends = [result[f"boundary_{end}"].values[number - 1] for end in ("low", "high")]
            if not np.isnan(ends).any():
                row["begins_between"] = " and ".join(str(layers[int(end)]) for end in ends)
            row["begins"] = str(layers[int(result["boundary"].values[number - 1])])
            row["share_begins"] = float(result["boundary_share"].values[number - 1])
        rows.append(row)
    table = pd.DataFrame(rows)
    chosen = result.sel(groups=result.attrs["chosen"])
    table.attrs["note"] = (
        f"{result.attrs['chosen']} groups, {result.attrs['chosen_by']}: silhouette "
        f"{chosen['silhouette'].item():.3f}, stability {chosen['stability'].item():.3f}. begins "
        "between: 95 %; share begins: of resamples in which the group begins there."
    )
    return table


def summarise_similarity(result: xr.Dataset, name: str) -> pd.DataFrame:
    """The few numbers of a similarity matrix: means within and between groups of neighbouring
    states, of neighbours, and of the first with the last.

    The groups are those of `cluster`, at most `MOST_SUMMARISED`, by the best silhouette.

    Args:
        result: with the matrix over (state, state_other) and its `low` and `high`.
        name: of the matrix.
    Returns:
        `states`, `NAME`, and `NAME_low` and `NAME_high` where the number is of two states, of which
        the result has an interval. Of two different stacks, the states most alike and the last.
    """
    matrix = result[name].values
    layers, others = (result[key].values.tolist() for key in ("layer", "layer_other"))
    last, last_other = len(layers) - 1, len(others) - 1
    ends = [("last and last", last, last_other)]
    rows: list[dict[str, Any]] = []
    if layers != others or not np.array_equal(matrix, matrix.T, equal_nan=True):
        if not np.isnan(matrix).all():
            best = np.unravel_index(np.nanargmax(matrix), matrix.shape)
            ends.insert(0, ("most alike", int(best[0]), int(best[1])))
        rows.append({"states": "all pairs, mean", name: float(np.nanmean(matrix))})
    else:
        rows += [{"states": text, name: mean} for text, mean in _group_means(matrix, layers)]
        neighbours = np.diagonal(matrix, 1)
        rows.append({"states": "neighbours, mean", name: float(neighbours.mean())})
        ends = [("first and last", 0, last)]
        if not np.isnan(neighbours).all():
            least = int(np.nanargmin(neighbours))
            ends.insert(0, ("neighbours, least alike", least, least + 1))
    rows += [
        {
            "states": f"{text}: {layers[state]} and {others[other]}",
            **summaries.pick(result, name, state=state, state_other=other),
        }
        for text, state, other in ends
    ]
    return pd.DataFrame(rows).reindex(columns=["states", name, f"{name}_low", f"{name}_high"])


def _group_means(matrix: Array, layers: list[str]) -> list[tuple[str, float]]:
    """Means within groups of several states, and between groups that are neighbours."""
    states = len(layers)
    if states < 4 or np.isnan(matrix).any():
        return []
    distance = np.clip(1 - matrix, 0, None)
    np.fill_diagonal(distance, 0)
    cuts = linkage(matrix)
    tried = [_labels(cuts, k) for k in range(2, min(MOST_SUMMARISED, states - 1) + 1)]
    scores = [silhouette_score(distance, labels, metric="precomputed") for labels in tried]
    labels = tried[int(np.argmax(scores))]
    groups = [np.flatnonzero(labels == group) for group in range(int(labels.max()) + 1)]
    texts = [summaries.span([layers[state] for state in group]) for group in groups]
    within = [
        (
            f"within {text}",
            float(matrix[np.ix_(group, group)][~np.eye(len(group), dtype=bool)].mean()),
        )
        for group, text in zip(groups, texts, strict=True)
        if len(group) > 1
    ]
    between = [
        (f"between {texts[row]} and {texts[row + 1]}", float(matrix[np.ix_(group, after)].mean()))
        for row, (group, after) in enumerate(pairwise(groups))
    ]
    return within + between


def plot(dataset: xr.Dataset) -> Figure:
    """The matrix with its groups, and the evidence for them; see `repsim.plotting.clusters`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.clusters(dataset)
