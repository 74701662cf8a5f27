"""Groups of neighbouring states: against a slow loop, and on blocks that were planted."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.sparse import diags_array
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score

from repsim.analyses import clusters, cosine, similarity
from repsim.errors import RepsimError
from repsim.stats.bootstrap import Estimate
from support.captures import ArrayCapture, random_capture

Array = NDArray[Any]

BLOCKS = (3, 7, 4)


def layers(states: int) -> list[str]:
    return ["embed", *map(str, range(states - 1))]


def planted(
    sizes: Sequence[int] = BLOCKS,
    within: float = 0.9,
    between: float = 0.2,
    noise: float = 0.0,
    seed: int = 0,
) -> Array:
    """Similarities of blocks of states, with symmetric noise and a diagonal of one."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    matrix = np.where(group[:, None] == group, within, between)
    matrix = matrix + noise * np.random.default_rng(seed).normal(size=matrix.shape)
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    return matrix


def estimate(
    sizes: Sequence[int] = BLOCKS, noise: float = 0.02, resamples: int = 60, **options: float
) -> Estimate:
    return Estimate(
        planted(sizes, noise=0.001, seed=99, **options),
        np.array([planted(sizes, noise=noise, seed=seed, **options) for seed in range(resamples)]),
    )


def random_matrix(states: int, seed: int) -> Array:
    matrix = np.random.default_rng(seed).uniform(-1, 1, size=(states, states))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    return matrix


def naive_linkage(matrix: Array) -> list[int]:
    """First states of the later group of each merge, last merge first; every mean anew from the
    states.
    """
    groups = [[state] for state in range(len(matrix))]
    gone = []
    while len(groups) > 1:
        means = [
            np.mean([[1 - matrix[a, b] for b in after] for a in before])
            for before, after in pairwise(groups)
        ]
        first = int(np.argmin(means))
        gone.append(groups[first + 1][0])
        groups[first : first + 2] = [groups[first] + groups[first + 1]]
    return gone[::-1]


def groups_of(cuts: Any, groups: int, states: int) -> Array:
    return np.searchsorted(np.sort(cuts[: groups - 1]), np.arange(states), side="right")


def test_linkage_by_hand() -> None:
    """Distances: 1 between neighbours 0 and 1, 2 between 1 and 2, 4 between 0 and 2, and 2.5 from 2
    to 3.

    0 and 1 merge first. 2 is then (2 + 4) / 2 = 3 away from the two, and 2.5 from state 3, so these
    merge next.
    """
    distance = np.array([[0, 1, 4, 9], [1, 0, 2, 9], [4, 2, 0, 2.5], [9, 9, 2.5, 0]])
    assert clusters.linkage(1 - distance).tolist() == [2, 3, 1]


@pytest.mark.parametrize("states", [2, 4, 9, 31])
@pytest.mark.parametrize("seed", range(3))
def test_linkage_equals_a_loop_over_all_pairs_of_states(states: int, seed: int) -> None:
    matrix = random_matrix(states, seed)
    assert clusters.linkage(matrix).tolist() == naive_linkage(matrix)


def test_every_boundary_appears_once() -> None:
    assert sorted(clusters.linkage(random_matrix(20, 0)).tolist()) == list(range(1, 20))


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_s_chain_looks_at_neighbours_alone(seed: int) -> None:
    """Why the linkage is our own: with a chain as connectivity, average linkage is single linkage
    along the chain.
    """
    matrix = random_matrix(12, seed)
    chain = diags_array([np.ones(11), np.ones(11)], offsets=[-1, 1], shape=(12, 12))
    model = AgglomerativeClustering(
        3, metric="precomputed", linkage="average", connectivity=chain, compute_distances=True
    )
    model.fit(1 - matrix)
    assert_allclose(model.distances_, np.sort(np.diagonal(1 - matrix, 1)))
    edges = np.sort(np.argsort(np.diagonal(matrix, 1))[:2] + 1)
    assert_array_equal(np.flatnonzero(np.diff(model.labels_)) + 1, edges)


def test_the_states_at_a_boundary_alone_do_not_decide() -> None:
    """4 and 5 are more alike than 1 and 2, but their blocks are not alike, and 1 and 2 lie within
    one.
    """
    matrix = planted((5, 5), within=0.9, between=0.1)
    matrix[4, 5] = matrix[5, 4] = 0.85
    matrix[1, 2] = matrix[2, 1] = 0.8
    assert clusters.linkage(matrix)[0] == 5
    found = clusters.cluster(Estimate(matrix, matrix[None]), layers(10))
    assert found["boundary"].values.tolist() == [5]


@pytest.mark.parametrize("sizes", [(5, 6), BLOCKS, (1, 8, 3), (4, 4, 4, 4), (2, 3, 9, 2, 3)])
def test_planted_blocks_are_found(sizes: Sequence[int]) -> None:
    found = clusters.cluster(estimate(sizes), layers(sum(sizes)))
    assert found.attrs["chosen"] == len(sizes)
    assert found.attrs["chosen_by"] == "silhouette"
    assert found["group"].values.tolist() == np.repeat(range(len(sizes)), sizes).tolist()
    assert found["spectral_group"].values.tolist() == found["group"].values.tolist()
    boundaries = np.cumsum(sizes)[:-1].tolist()
    for name in ("boundary", "boundary_low", "boundary_high"):
        assert found[name].values.tolist() == boundaries
    assert found["boundary_share"].values.tolist() == [1] * len(boundaries)
    assert np.flatnonzero(found["cut"].values).tolist() == boundaries
    chosen = found.sel(groups=len(sizes))
    assert (chosen["stability"], chosen["spectral_agreement"]) == (1, 1)
    assert chosen["silhouette"] == found["silhouette"].max()


def test_the_silhouette_is_scikit_learn_s_of_the_slow_loop_s_groups() -> None:
    matrix = random_matrix(14, 3)
    found = clusters.cluster(Estimate(matrix, matrix[None]), layers(14))
    cuts = naive_linkage(matrix)
    assert found["groups"].values.tolist() == list(range(2, 11))
    for k in range(2, 11):
        expected = silhouette_score(1 - matrix, groups_of(cuts, k, 14), metric="precomputed")
        assert found["silhouette"].sel(groups=k) == pytest.approx(expected, abs=1e-12)
    assert found.attrs["chosen"] == found["groups"].values[found["silhouette"].values.argmax()]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ((3, 7, 4), {"start": 3, "middle": 7, "end": 4}),
        ((2, 2, 7, 3), {"start": 4, "middle": 7, "end": 3}),
        ((8, 3, 2), {"middle": 8, "end": 5}),
        ((2, 4, 4), {"start": 2, "middle": 4, "end": 4}),  # of two that are as large the first
        ((3, 8), {"start": 3, "end": 8}),  # two groups have no middle
        ((5, 5), {"start": 5, "end": 5}),
    ],
)
def test_the_middle_is_the_largest_group(sizes: Sequence[int], parts: Any) -> None:
    found = clusters.cluster(estimate(sizes), layers(sum(sizes)))
    assert found["part"].values.tolist() == [
        part for part, size in parts.items() for _ in range(size)
    ]


def test_a_boundary_that_resamples_disagree_on() -> None:
    """In 6 of 40 resamples the second block begins a state earlier: more than 2.5 %, so within the
    interval.
    """
    matrix, other = planted((5, 7)), planted((4, 8))
    found = clusters.cluster(Estimate(matrix, np.array([matrix] * 34 + [other] * 6)), layers(12))
    assert found["boundary"].values.tolist() == [5]
    assert (found["boundary_low"].item(), found["boundary_high"].item()) == (4, 5)
    assert found["boundary_share"].item() == 34 / 40
    assert found["cut"].values[[4, 5]].tolist() == [6 / 40, 34 / 40]
    assert found["cut"].values.sum() == pytest.approx(1)
    rand = (34 + 6 * adjusted_rand_score([0] * 5 + [1] * 7, [0] * 4 + [1] * 8)) / 40
    assert found["stability"].sel(groups=2) == pytest.approx(rand)


def test_noise_makes_boundaries_uncertain() -> None:
    sure, unsure = (
        clusters.cluster(estimate(noise=noise, within=0.4, resamples=150), layers(14), groups=3)
        for noise in (0.02, 0.5)
    )
    assert sure["boundary_share"].values.tolist() == [1, 1]
    assert (unsure["boundary_share"].values < 0.9).all()
    assert (unsure["boundary_high"] > unsure["boundary_low"]).all()
    assert (unsure["boundary_low"] <= unsure["boundary"]).all()
    assert (unsure["boundary_high"] >= unsure["boundary"]).all()
    assert unsure["cut"].sum().item() == pytest.approx(2)
    assert unsure["stability"].sel(groups=3) < sure["stability"].sel(groups=3) == 1


def test_as_many_groups_as_are_asked_for() -> None:
    found = clusters.cluster(estimate(), layers(14), groups=12)
    assert (found.attrs["chosen"], found.attrs["chosen_by"]) == (12, "asked for")
    assert found["groups"].values.tolist() == list(range(2, 13))
    assert found["group"].values.max() == 11
    assert found["boundary"].sizes["between"] == 11
    assert (np.diff(found["boundary"]) > 0).all()


def test_groups_of_fewer_are_unions_of_groups_of_more() -> None:
    matrix = random_matrix(16, 1)
    few, many = (
        clusters.cluster(Estimate(matrix, matrix[None]), layers(16), groups=k) for k in (3, 6)
    )
    assert set(few["boundary"].values) < set(many["boundary"].values)


def test_negative_similarities_and_rounding_above_one() -> None:
    matrix = planted((4, 5), within=1 + 1e-12, between=-0.9)
    found = clusters.cluster(Estimate(matrix, matrix[None]), layers(9))
    assert found["boundary"].values.tolist() == [4]
    assert found["spectral_group"].values.tolist() == found["group"].values.tolist()


def test_a_seed_makes_spectral_groups_the_same() -> None:
    matrix = random_matrix(14, 5)
    first, again = (
        clusters.cluster(Estimate(matrix, matrix[None]), layers(14), seed=4) for _ in range(2)
    )
    assert first.identical(again)


# From captures


def in_blocks(
    sizes: Sequence[int] = (3, 6, 3), lengths: Sequence[int] = (12,) * 10, seed: int = 0
) -> ArrayCapture:
    """States of a block are a view of the block's own, with a little noise; neighbouring blocks
    share nothing.
    """
    generator = np.random.default_rng(seed)
    tokens = sum(lengths)
    states = [
        own + 0.2 * generator.normal(size=own.shape)
        for size in sizes
        for own in [generator.normal(size=(tokens, 16))]
        for _ in range(size)
    ]
    return ArrayCapture(np.array(states, np.float32), lengths)


@pytest.mark.parametrize(
    "of", ["token", "sequence", "centred", "without-sinks", "cka", "minibatch-cka", "procrustes"]
)
def test_blocks_of_a_capture_are_found_by_any_similarity(of: Any) -> None:
    capture = in_blocks()
    found = clusters.compute(capture, of=of, resamples=50)
    assert found["boundary"].values.tolist() == [3, 9]
    assert found["part"].values.tolist() == ["start"] * 3 + ["middle"] * 6 + ["end"] * 3
    assert found["boundary_share"].values.tolist() == [1, 1]
    if of in cosine.DESCRIPTION:
        expected = cosine.compute(capture, average=of)["cosine"]
    else:
        expected = similarity.compute(capture, measure=of, permutations=0 if of == "cka" else None)[
            "similarity"
        ]
    assert_array_equal(found["similarity"], expected)


def test_every_similarity_can_be_asked_for() -> None:
    assert set(clusters.get_args(clusters.Of)) == {*cosine.DESCRIPTION, *similarity.DESCRIPTION}


def test_names() -> None:
    found = clusters.compute(in_blocks(), of="cka", resamples=20, seed=3)
    assert found["similarity"].dims == ("state", "state_other")
    assert found["layer"].values.tolist() == found["layer_other"].values.tolist() == layers(12)
    assert found.attrs == {
        "analysis": "clusters",
        "description": "Groups of neighbouring states.",
        "plan": "name of baseline",
        "plan_text": "0, 1, 2",
        "model": "painter",
        "corpus": "easel",
        "interval": "95% of a bootstrap over samples",
        "left_out_tokens": 0,
        "of": "cka",
        "quantity": "debiased linear CKA",
        "resamples": 20,
        "seed": 3,
        "tokens": 110,
        "samples": 10,
        "chosen": 3,
        "chosen_by": "silhouette",
    }


def test_one_sample_says_nothing_of_how_sure_boundaries_are() -> None:
    found = clusters.compute(in_blocks(lengths=(60,)))
    assert found["boundary"].values.tolist() == [3, 9]
    for name in ("boundary_low", "boundary_high", "boundary_share", "cut", "stability"):
        assert np.isnan(found[name]).all(), name
    assert np.isfinite(found["silhouette"]).all()


def test_plot_frames_each_group() -> None:
    figure = clusters.plot(clusters.compute(in_blocks(), resamples=20))
    assert [patch.get_width() for patch in figure.axes[0].patches] == [3, 6, 3]


@pytest.mark.parametrize("groups", [-1, 0, 1, 14, 20])
def test_a_number_of_groups_that_does_not_fit(groups: int) -> None:
    with pytest.raises(RepsimError, match=f"groups={groups}: 14 states allow 2 to 13"):
        clusters.cluster(estimate(), layers(14), groups=groups)


def test_undefined_similarities() -> None:
    found = estimate()
    found.value[2] = np.nan
    with pytest.raises(RepsimError, match="undefined"):
        clusters.cluster(found, layers(14))


def test_fewer_than_four_states() -> None:
    with pytest.raises(RepsimError, match="3 states: groups take at least four"):
        clusters.compute(random_capture(states=3))
    assert clusters.compute(random_capture(states=4), resamples=20)["groups"].values.tolist() == [
        2,
        3,
    ]


def test_an_unknown_similarity() -> None:
    with pytest.raises(RepsimError, match="of='cosine': choose token, sequence"):
        clusters.compute(in_blocks(), of="cosine")
