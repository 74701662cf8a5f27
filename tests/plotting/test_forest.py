"""The figure of any plans: every plan at its place, the best at the top."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim import plotting
from repsim.analyses import degradation
from repsim.errors import RepsimError
from repsim.options import FigureOptions
from repsim.studies.painters import FIGURE_NUMBERS
from support.figures import tick_texts
from support.score_figures import TASKS, Tasks, assert_legible, make_degradation

OWN = ("0-5, 8-29", "drop_block:first=3,last=5", "repeat:layer=4,times=3")
NONE: Tasks = {"gsm8k": TASKS["gsm8k"], "grammar": (0.5, 0.51, 100)}


@pytest.mark.parametrize("width", plotting.WIDTHS)
@pytest.mark.parametrize("plans", [OWN, ("painters", "dropouts")])
@pytest.mark.parametrize("tasks", [TASKS, NONE])
def test_it_is_legible(plans: tuple[str, ...], tasks: Tasks, width: Any) -> None:
    assert_legible(plotting.plan_scores(make_degradation(*plans, tasks=tasks), width=width))


def test_a_dot_and_its_interval_for_each_plan_the_best_first() -> None:
    result = make_degradation(*OWN)
    means = result["mean"].values[1:]
    order = np.argsort(-means) + 1
    figure = plotting.plan_scores(result)
    (axes,) = figure.axes
    assert tick_texts(axes.yaxis) == [str(name) for name in result["variant"].values[order]]
    *guides, dots = axes.lines
    assert np.asarray(dots.get_xdata()).tolist() == result["mean"].values[order].tolist()
    assert np.asarray(dots.get_ydata()).tolist() == [0, 1, 2]
    assert axes.get_ylim() == (2.5, -0.5)
    assert {line.get_label(): line.get_xdata() for line in guides} == {
        "full model": [1, 1],
        "chance": [0, 0],
    }
    whiskers: Any = axes.collections[0]
    ends = np.array([segment[:, 0] for segment in whiskers.get_segments()])
    assert ends[:, 0].tolist() == result["mean_low"].values[order].tolist()
    assert ends[:, 1].tolist() == result["mean_high"].values[order].tolist()
    assert "under 3 plans, the best first" in figure.caption


def test_a_panel_for_each_benchmark_where_nothing_is_normalised() -> None:
    result = make_degradation(*OWN, tasks=NONE)
    figure = plotting.plan_scores(result)
    assert [axes.get_title() for axes in figure.axes] == ["gsm8k (1319)", "grammar (100)"]
    for task, axes in enumerate(figure.axes):
        lines = {line.get_label(): np.unique(line.get_xdata()).tolist() for line in axes.lines[:2]}
        full, chance = result["baseline"].values[task], result["chance"].values[task]
        assert lines == {"full model": [full], "chance": [chance]}
        drawn, expected = axes.lines[2].get_xdata(), result["value"].values[1:, task]
        assert np.sort(np.asarray(drawn)).tolist() == np.sort(expected).tolist()


def test_of_many_plans_those_of_no_curve_are_drawn() -> None:
    result = make_degradation("painters", *OWN)
    with plotting.drawn_with(FigureOptions()) as remarks:
        figure = plotting.plan_scores(result)
    assert sorted(tick_texts(figure.axes[0].yaxis)) == sorted(OWN)
    scored = result.sizes["variant"] - 1
    assert remarks == [f"plans: 3 of {scored} plans drawn; the data has all"]
    assert f"under 3 of {scored} plans, those of no curve of the paper, the" in figure.caption
    with plotting.drawn_with(FigureOptions()) as remarks:
        best = plotting.plan_scores(make_degradation("painters"))
    assert len(tick_texts(best.axes[0].yaxis)) == 40
    assert "under the best 40 of" in best.caption


def test_long_names_are_shortened_and_told_apart() -> None:
    layers = list(range(0, 30, 2))
    plans = [", ".join(map(str, [*layers[:7], middle, *layers[8:]])) for middle in (15, 17)]
    (axes,) = plotting.plan_scores(make_degradation(*plans)).axes
    first, second = tick_texts(axes.yaxis)
    assert first.startswith("0, 2, 4")
    assert (first[-4:], second[-4:]) == (" (1)", " (2)")
    assert first[:-4] == second[:-4]
    assert len(first) <= 32


def test_nothing_but_the_full_model() -> None:
    with pytest.raises(RepsimError, match=r"^figure plans: none of 0 plans beside the full model"):
        plotting.plan_scores(make_degradation())


# Which figures there are


@pytest.mark.parametrize(
    ("plans", "figures"),
    [
        (OWN, ["plans"]),
        (("fig4",), ["fig4", "fig11"]),
        (("fig4", *OWN), ["fig4", "fig11", "plans"]),
        (("looped_parallel:start=3,loops=2",), ["plans"]),
    ],
)
def test_all_draws_what_the_plans_give_and_says_what_not(
    plans: tuple[str, ...], figures: list[str]
) -> None:
    with plotting.drawn_with(FigureOptions()) as remarks:
        drawn = degradation.plot(make_degradation(*plans))
    assert list(drawn) == figures
    (remark,) = remarks
    missing = [f"fig{number}" for number in FIGURE_NUMBERS if f"fig{number}" not in figures]
    names = ", ".join(missing)
    assert remark == f"not drawn: {names} (missing plans); evaluate with e.g. --plan fig4 --append"


@pytest.mark.parametrize(
    ("figure", "says"), [("3", "see repsim analyze cosine"), ("12", "choose all, plans, 2, 4")]
)
def test_a_figure_that_there_is_not(figure: Any, says: str) -> None:
    with pytest.raises(RepsimError, match=says):
        degradation.plot(make_degradation(), figure=figure)


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    first, again = (
        plotting.save(plotting.plan_scores(make_degradation(*OWN)), tmp_path / name)
        for name in "ab"
    )
    for path, other in zip(first, again, strict=True):
        assert path.read_bytes() == other.read_bytes()
