"""The few numbers that `repsim analyze` prints are those of the result's own arrays."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from repsim.analyses import (
    blocks,
    clusters,
    cosine,
    degradation,
    drift,
    geometry,
    latency,
    norms,
    similarity,
)
from repsim.analysis import tables
from repsim.plans import NamedPlan, parse_plan
from repsim.registry import installed, load_analysis
from repsim.stats.bootstrap import Estimate
from support.captures import random_capture
from support.scores import LAYERS, MadeUpScores, answers, make_scores, task

FEW = 12
LENGTHS = (9, 8, 7, 12, 9)
STACK = ["embed", *map(str, range(9))]


def by(table: pd.DataFrame, column: str, value: Any) -> dict[str, Any]:
    """The row whose column has the value."""
    (row,) = table[table[column] == value].to_dict("records")
    return row


@pytest.fixture(scope="module")
def capture() -> Any:
    return random_capture(LENGTHS, states=10)


def test_every_analysis_of_ours_has_a_summary() -> None:
    for name, entry in installed().items():
        assert callable(load_analysis(entry).summarise), name


@pytest.mark.parametrize("analysis", [norms, geometry, blocks, drift, cosine, similarity, clusters])
def test_summaries_are_small_and_can_be_shown(analysis: Any, capture: Any) -> None:
    options = {"permutations": 2} if analysis is similarity else {}
    result = analysis.compute(capture, resamples=20, **options)
    table = analysis.summarise(result)
    assert 2 <= len(table) <= FEW
    assert tables.render(table)
    assert "[" in tables.render(table) or analysis is clusters


def test_norms(capture: Any) -> None:
    result = norms.compute(capture, resamples=20)
    table = norms.summarise(result)
    assert {"embed", "8"} < set(table["layer"])
    for state, layer in enumerate(STACK):
        if layer in set(table["layer"]):
            row = by(table, "layer", layer)
            assert row["norm"] == result["norm"][state]
            assert (row["norm_low"], row["norm_high"]) == (
                result["low"][state],
                result["high"][state],
            )
    longest = STACK[int(result["norm"].values.argmax())]
    assert longest in set(table["layer"])


def test_geometry(capture: Any) -> None:
    result = geometry.compute(capture, resamples=20)
    table = geometry.summarise(result)
    assert table["quantity"].tolist() == list(geometry.LABELS.values())
    row = by(table, "quantity", "effective rank")
    for title, state in (("first", 0), ("middle", 4), ("last", 9)):
        assert row[title] == result["effective_rank"][state]
        assert row[f"{title}_high"] == result["effective_rank_high"][state]
    assert table.attrs["note"] == "layers: first embed, middle 3, last 8"


def test_blocks(capture: Any) -> None:
    result = blocks.compute(capture, resamples=20)
    table = blocks.summarise(result)
    assert table["length"].tolist() == list(range(1, 9))
    for size in (1, 3):
        distances = result["distance"].sel(size=size).values
        state = int(np.nanargmin(distances))
        row = by(table, "length", size)
        layers = [str(layer) for layer in range(state, state + size)]
        assert row["layers"] == (layers[0] if size == 1 else f"{layers[0]} to {layers[-1]}")
        assert row["distance"] == np.nanmin(distances)
        assert row["distance_low"] == result["low"].sel(size=size)[state]
        assert row["share_least"] == result["least"].sel(size=size)[state]
    step = int(result["influence"].values.argmin())
    assert f"lowest Block Influence: layer {step}, " in table.attrs["note"]
    assert f"{result['influence'][step].item():.3g} [" in table.attrs["note"]


def test_drift() -> None:
    capture = random_capture(LENGTHS, states=4)
    capture.others["other"] = (["embed", "1", "(0|2)", "2"], capture.array[[0, 2, 3, 1]])
    result = drift.compute(capture, plan="other", resamples=20)
    table = drift.summarise(result)
    assert table["layer"].tolist() == ["embed", "1", "2"]
    assert table["in_baseline"].tolist() == ["embed", "1", "2"]
    for row, (state, partner) in enumerate([(0, 0), (1, 2), (3, 3)]):
        assert table["distance"][row] == result["distance"][state]
        assert table["distance_high"][row] == result["distance_high"][state]
        assert table["cosine"][row] == result["cosine"][state, partner]


def block_matrix() -> np.ndarray[Any, np.dtype[np.float64]]:
    """States 0 to 2 alike, and 3 to 7, and both a little."""
    group = np.repeat([0, 1], [3, 5])
    matrix = np.where(group[:, None] == group, 0.8, 0.2) + 0.01 * np.arange(8)[:, None]
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    return matrix


@pytest.mark.parametrize(("analysis", "name"), [(cosine, "cosine"), (similarity, "similarity")])
def test_groups_of_a_similarity_matrix(analysis: Any, name: str) -> None:
    capture, matrix = random_capture(LENGTHS, states=8), block_matrix()
    options = {"permutations": 0} if analysis is similarity else {}
    result = analysis.compute(capture, resamples=20, **options)
    result[name].values[:] = matrix
    table = analysis.summarise(result)
    pairs = {
        "within embed to 1": [matrix[a, b] for a in range(3) for b in range(3) if a != b],
        "within 2 to 6": [matrix[a, b] for a in range(3, 8) for b in range(3, 8) if a != b],
        "between embed to 1 and 2 to 6": [matrix[a, b] for a in range(3) for b in range(3, 8)],
        "neighbours, mean": [matrix[a, a + 1] for a in range(7)],
    }
    for states, values in pairs.items():
        row = by(table, "states", states)
        assert row[name] == pytest.approx(np.mean(values))
        assert np.isnan(row[f"{name}_low"])
    row = by(table, "states", "neighbours, least alike: 1 and 2")
    assert (row[name], row[f"{name}_low"]) == (matrix[2, 3], result["low"][2, 3])
    row = by(table, "states", "first and last: embed and 6")
    assert (row[name], row[f"{name}_high"]) == (matrix[0, 7], result["high"][0, 7])


def test_two_stacks_have_no_groups() -> None:
    capture = random_capture(LENGTHS, states=5)
    result = cosine.compute(capture, resamples=20).isel(state=slice(1, 4))
    table = clusters.summarise_similarity(result, "cosine")
    assert by(table, "states", "all pairs, mean")["cosine"] == pytest.approx(
        result["cosine"].mean().item()
    )
    assert by(table, "states", "last and last: 2 and 3")["cosine"] == result["cosine"][2, 4]


def test_clusters() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, size=(40, 8, 8))
    replicates = block_matrix() + noise + noise.swapaxes(1, 2)
    result = clusters.cluster(Estimate(block_matrix(), replicates, 10), STACK[:8])
    table = clusters.summarise(result)
    assert table["layers"].tolist() == ["embed to 1", "2 to 6"]
    assert table["states"].tolist() == [3, 5]
    assert table["begins"].tolist() == ["", "2"]
    assert table["part"].tolist() == result["part"].values[[0, 3]].tolist()
    assert table["share_begins"][1] == result["boundary_share"][0]
    ends = [STACK[int(result[f"boundary_{end}"][0])] for end in ("low", "high")]
    assert table["begins_between"][1] == " and ".join(ends)
    assert f"silhouette {result['silhouette'][0].item():.3f}" in table.attrs["note"]


class ScoresWithPlans:
    """Made-up scores with what an analysis of plans asks for besides."""

    def __init__(self, scores: MadeUpScores, plans: list[NamedPlan]) -> None:
        self.dataset, self.layers, self.identity = scores.dataset, scores.layers, scores.identity
        self.plans = plans


PLANS = ["baseline", "skip:start=0..2", "drop:layer=0..5,part=mlp", "reverse:start=0", "0-2, 5"]


@pytest.fixture(scope="module")
def scores() -> MadeUpScores:
    tasks = {"gsm8k": task(answers(12, worst=0.3)), "hellaswag": task(answers(12, seed=1))}
    return make_scores(PLANS, tasks)


def test_degradation(scores: MadeUpScores) -> None:
    result = degradation.compute(scores, resamples=50)
    table = degradation.summarise(result)
    assert table["family"].tolist() == ["skip", "reverse", "drop mlp", "0-2, 5"]
    mean = result["mean"].to_series()
    row = by(table, "family", "drop mlp")
    layers = [f"drop:layer={layer},part=mlp" for layer in range(6)]
    assert row["plans"] == 6
    assert row["average"] == pytest.approx(mean[layers].mean())
    for title, name in (("best", mean[layers].idxmax()), ("worst", mean[layers].idxmin())):
        assert row[title] == mean[name]
        assert row[f"{title}_low"] == result["mean_low"].sel(variant=name)
        assert f"drop:{row[f'{title}_at']}" == name
    own = by(table, "family", "0-2, 5")
    assert own["best"] == own["average"] == mean["0-2, 5"]
    assert np.isnan(own["worst"])
    sensitivity = result["order_sensitivity"].sel(kind="mathematics").item()
    assert f"order sensitivity: mathematics {sensitivity:.3g} [" in table.attrs["note"]


def test_many_plans_are_a_few_rows() -> None:
    plans = ["baseline", *(f"{layer}, {layer}" for layer in range(6)), *map(str, range(6)), "1, 2"]
    made = make_scores(plans, {"piqa": task(answers(len(plans)))})
    table = degradation.summarise(degradation.compute(made, resamples=20))
    assert len(table) == FEW
    assert table.attrs["note"].endswith("1 more families or plans")


def test_no_task_is_above_chance() -> None:
    made = make_scores(PLANS[:2], {"piqa": task(np.zeros((4, 20)))})
    table = degradation.summarise(degradation.compute(made, resamples=20))
    assert np.isnan(table["average"]).all()
    assert "over no task" in table.attrs["note"]
    assert tables.render(table)


def test_latency_shows_what_no_shorter_plan_beats(scores: MadeUpScores) -> None:
    texts = scores.dataset["plan"].values
    source: Any = ScoresWithPlans(
        scores, [NamedPlan("", parse_plan(text, LAYERS)) for text in texts]
    )
    result = latency.compute(source, repeats=0, resamples=20)
    points = list(zip(result["critical_path"].values, result["mean"].values, strict=True))
    unbeaten = {
        (path, mean)
        for path, mean in points
        if not any(
            (other <= path and score > mean) or (other < path and score >= mean)
            for other, score in points
        )
    }
    table = latency.summarise(result)
    assert set(zip(table["critical_path"], table["mean"], strict=True)) == unbeaten
    for row in table.to_dict("records"):
        of_plan = result.sel(variant=row["plan"])
        assert (row["mean"], row["mean_low"]) == (of_plan["mean"], of_plan["mean_low"])
        assert row["applications"] == of_plan["applications"]
    assert table["critical_path"].is_monotonic_decreasing
