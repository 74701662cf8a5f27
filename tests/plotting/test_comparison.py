"""The figure of several stores' scores: rows, dots, and what is certain."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from repsim import plotting
from repsim.errors import RepsimError
from support.figures import assert_nothing_is_clipped_or_overlaps, tick_texts


def make_comparison(plans: int = 1, tasks: int = 3, stores: int = 2) -> xr.Dataset:
    """What the analysis compare gives: every other difference is certain."""
    shape = plans, tasks, stores
    score = 0.3 + 0.4 * np.random.default_rng(0).uniform(size=shape)
    difference = score - score[..., :1]
    difference[..., 0] = np.nan
    p_holm = np.where((np.arange(np.prod(shape)) // stores % 2 == 0).reshape(shape), 0.01, 0.5)
    of_tasks = {"score": score, "difference": difference}
    of_means = {"mean": score.mean(1), "mean_difference": difference.mean(1)}
    data: dict[str, Any] = {
        f"{name}{end}": (dims, values + shift)
        for dims, estimates in (
            (("plan", "task", "store"), of_tasks),
            (("plan", "store"), of_means),
        )
        for name, values in estimates.items()
        for end, shift in (("", 0), ("_low", -0.05), ("_high", 0.07))
    }
    data |= {
        "p_holm": (("plan", "task", "store"), p_holm),
        "mean_p_holm": (("plan", "store"), p_holm[:, 0]),
        "examples": (("plan", "task"), np.full(shape[:2], 1200)),
        "metric_of": ("task", ["acc"] * tasks),
        "chance": ("task", np.full(tasks, 0.25)),
    }
    coords = {
        "plan": [f"skip:start={start}" for start in range(plans)],
        "task": [f"task_{letter}" for letter in "abcdefghij"[:tasks]],
        "store": [f"model-{number}" for number in range(stores)],
    }
    return xr.Dataset(data, coords, {"interval": "95% of a bootstrap over examples"})


@pytest.mark.parametrize(("plans", "tasks", "stores"), [(1, 1, 2), (2, 3, 3), (13, 4, 5)])
@pytest.mark.parametrize("width", plotting.WIDTHS)
def test_nothing_overlaps(plans: int, tasks: int, stores: int, width: Any) -> None:
    figure: Any = plotting.compare(make_comparison(plans, tasks, stores), width=width)
    assert_nothing_is_clipped_or_overlaps(figure)
    assert figure.get_figwidth() == plotting.WIDTHS[width]
    assert figure.get_figheight() < 20


def test_rows_and_dots() -> None:
    result = make_comparison(plans=2, tasks=2)
    scores, differences = plotting.compare(result).axes
    labels = ["task_a (1,200)", "task_b (1,200)", "mean over tasks"]
    assert tick_texts(scores.yaxis) == ["skip:start=0", *labels, "skip:start=1", *labels]
    dots = [line for line in scores.lines if line.get_marker() not in ("None", "")]
    assert len(dots) == 2 * 3 * 2
    assert dots[0].get_xdata()[0] == result["score"][0, 0, 0]  # type: ignore[index]
    assert dots[-1].get_xdata()[0] == result["mean"][1, 1]  # type: ignore[index]
    apart = [line for line in differences.lines if line.get_marker() not in ("None", "")]
    assert [line.get_xdata()[0] for line in apart] == pytest.approx(  # type: ignore[index]
        [
            value
            for plan in range(2)
            for value in [
                *result["difference"].values[plan, :, 1],
                result["mean_difference"].values[plan, 1],
            ]
        ]
    )
    hollow = [line.get_markerfacecolor() == "white" for line in apart]
    assert hollow == [False, True, False] * 2
    assert differences.get_xlabel() == "difference from model-0"


def test_of_one_task_there_is_no_mean() -> None:
    axes = plotting.compare(make_comparison(tasks=1)).axes[0]
    assert tick_texts(axes.yaxis) == ["task_a (1,200)"]


def test_of_many_plans_only_the_means() -> None:
    figure = plotting.compare(make_comparison(plans=30, tasks=3))
    assert tick_texts(figure.axes[0].yaxis) == [f"skip:start={start}" for start in range(30)]
    assert "mean scores over 3 tasks" in figure.get_suptitle()


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(RepsimError, match="compare: 60 plans on 2 tasks do not fit a page; name"):
        plotting.compare(make_comparison(plans=60, tasks=2))
    with pytest.raises(RepsimError, match="compare: 60 plans on 1 task"):
        plotting.compare(make_comparison(plans=60, tasks=1))
    result = make_comparison()
    result["score"][:] = np.nan
    with pytest.raises(RepsimError, match="compare: no score on examples that every store has"):
        plotting.compare(result)


# Matrices of two captures


@pytest.mark.parametrize("stacks", [("31", "7"), ("2", "half")])
@pytest.mark.parametrize("width", plotting.WIDTHS)
def test_a_rectangle_with_the_labels_of_both(stacks: tuple[str, str], width: Any) -> None:
    from support.figures import STACKS

    rows, columns = (STACKS[stack] for stack in stacks)
    values = np.random.default_rng(0).uniform(size=(len(rows), len(columns)))
    result = xr.Dataset(
        {"similarity": (("state", "state_other"), values)},
        {"layer": ("state", rows), "layer_other": ("state_other", columns)},
        {
            "model": "smollm2-135m",
            "model_other": "gpt2",
            "label_other": "gpt2 (tuned)",
            "plan": "baseline",
            "corpus": "easel",
            "tokens": 1024,
            "description": "debiased linear CKA",
        },
    )
    figure: Any = plotting.similarity_matrices(result, width=width)
    assert_nothing_is_clipped_or_overlaps(figure)
    axes = figure.axes[0]
    box = axes.get_window_extent()
    assert 0.8 <= round(box.height / box.width, 3) <= 1
    assert tick_texts(axes.yaxis)[0] == tick_texts(axes.xaxis)[0] == "embed"
    (dots,) = axes.lines
    assert dots.get_xdata().tolist() == values.argmax(1).tolist()
    assert axes.get_xlabel().startswith("state of gpt2 (tuned), after layer")
