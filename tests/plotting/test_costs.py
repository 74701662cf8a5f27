"""The figure of scores against what plans cost: every plan at its place, whatever its family."""

from typing import Any

import numpy as np
import pytest

from repsim import plotting
from repsim.errors import RepsimError
from repsim.plans import FAMILIES
from repsim.plotting.curves import families_in_order, label_of_family
from repsim.studies.painters import MIDDLE_FAMILIES
from support.figures import tick_texts
from support.score_figures import PAINTERS, assert_legible, make_latency, x_of_lines


@pytest.mark.parametrize("plans", [PAINTERS, ("fig11",), ("skip:start=3",), ("baseline",)])
@pytest.mark.parametrize("measured", [True, False])
def test_latency_is_legible(plans: tuple[str, ...], measured: bool) -> None:
    assert_legible(plotting.latency(make_latency(*plans, measured=measured)))


@pytest.mark.parametrize(("panel", "cost"), [(0, "critical_path"), (1, "milliseconds")])
def test_scores_against_what_they_cost(panel: int, cost: str) -> None:
    result = make_latency(
        "fig11",
        "switch:layer=3",
        "0-10, 12-29",
        "drop_block:first=3,last=5",
        "repeat:layer=3,times=3",
    )
    axes = plotting.latency(result).axes[panel]
    points: dict[Any, Any] = {line.get_label(): line for line in axes.lines}
    relative = result[cost] / result[cost][0]
    for family in [*families_in_order(), "baseline"]:
        label = label_of_family(family)
        own = result["variant_family"].values == family
        if label in points and label != "full model":
            assert points[label].get_xdata().tolist() == relative.values[own].tolist()
            assert points[label].get_ydata().tolist() == result["mean"].values[own].tolist()
        else:
            assert not own.any() or family == "baseline"
    assert (
        points["full model"].get_xdata().tolist(),
        points["full model"].get_ydata().tolist(),
    ) == ([1], [1])
    assert points["full model"].get_marker() == "*"
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim()[0] == 0


def test_the_full_model_is_in_the_legend_once() -> None:
    left, right = plotting.latency(make_latency("fig11")).axes
    legend = right.get_legend()
    assert legend is not None
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == [label_of_family(name) for name in MIDDLE_FAMILIES] + ["full model", "chance"]
    assert left.get_legend() is None
    assert left.get_xlabel() == "critical path / the full model's (30 steps)"
    assert right.get_xlabel() == "time per token / the full model's (1.7 ms)"


def test_times_far_apart_are_on_a_logarithmic_axis_without_mathtext() -> None:
    axes = plotting.latency(make_latency("fig10")).axes[1]
    assert axes.get_xscale() == "log"
    assert "1" in tick_texts(axes.xaxis)
    assert not any("$" in text for text in tick_texts(axes.xaxis))


def test_plans_that_were_not_timed() -> None:
    result = make_latency("skip:start=0..5", measured=False)
    right = plotting.latency(result).axes[1]
    assert [text.get_text() for text in right.texts] == ["not measured"]
    result["milliseconds"][:3] = [2.0, 1.0, 0.5]
    figure = plotting.latency(result)
    assert np.isfinite(x_of_lines(figure.axes[1])["skip"]).sum() == 2
    assert "3 were timed" in figure.get_suptitle()


def test_latency_without_the_full_model_or_scores() -> None:
    result = make_latency("fig4")
    with pytest.raises(
        RepsimError, match="the full model is not in the result; add --plan baseline"
    ):
        plotting.latency(result.isel(variant=slice(1, None)))
    result["mean"][:] = np.nan
    with pytest.raises(RepsimError, match="none of 16 variants has a normalised score"):
        plotting.latency(result)


@pytest.mark.parametrize("unknown", ["loop_block", "no family", ""])
def test_families_that_are_not_known_here_are_other_plans(unknown: str) -> None:
    """Of a newer version, say: nothing vanishes from the figure."""
    result = make_latency("fig4", "repeat:layer=3,times=3", "0-10, 12-29")
    families = result["variant_family"].values.copy()
    rows = np.flatnonzero(families == "repeat")
    families[rows] = unknown
    result = result.assign_coords(variant_family=("variant", families))
    others = np.flatnonzero(~np.isin(families, list(FAMILIES)))
    assert set(rows) <= set(others)
    for axes, cost in zip(
        plotting.latency(result).axes, ("critical_path", "milliseconds"), strict=True
    ):
        points: dict[Any, Any] = {line.get_label(): line for line in axes.lines}
        assert set(points) >= {"skip", "other plans", "full model"}
        assert points["other plans"].get_ydata().tolist() == result["mean"].values[others].tolist()
        relative = result[cost].values / result[cost].values[0]
        assert points["other plans"].get_xdata().tolist() == relative[others].tolist()
        drawn = sum(len(points[label].get_ydata()) for label in points if label != "chance")
        # Both lines of the full model have its name; the star is the last.
        assert drawn == result.sizes["variant"]
