"""The figure of scores against what plans cost: every plan at its place, whatever its family."""

from typing import Any

import numpy as np
import pytest

from repsim import plotting
from repsim.errors import RepsimError
from repsim.plans import FAMILIES
from repsim.plotting.curves import families_in_order, label_of_family, look_of_family
from repsim.studies.painters import MIDDLE_FAMILIES
from support.figures import tick_texts
from support.score_figures import PAINTERS, assert_legible, make_latency, x_of_lines

# More plans of no curve than are named one by one.
MANY_PLANS = (
    *(f"0-{layer}, {layer + 2}-29" for layer in range(5, 14)),
    "drop_block:first=3,last=5",
    "repeat:layer=3,times=3",
)


@pytest.mark.parametrize("plans", [PAINTERS, ("fig11",), ("skip:start=3",), ("baseline",)])
@pytest.mark.parametrize("measured", [True, False])
def test_latency_is_legible(plans: tuple[str, ...], measured: bool) -> None:
    assert_legible(plotting.latency(make_latency(*plans, measured=measured)))


@pytest.mark.parametrize(("panel", "cost"), [(0, "critical_path"), (1, "milliseconds")])
def test_scores_against_what_they_cost(panel: int, cost: str) -> None:
    result = make_latency("fig11", "switch:layer=3", *MANY_PLANS)
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
    low, high = relative.values.min(), relative.values.max()
    assert axes.get_xlim()[0] == pytest.approx(low - 0.05 * (high - low))  # not from 0


def test_plans_of_no_curve_are_named_where_they_are_few() -> None:
    plans = ("0-10, 12-29", "drop_block:first=3,last=5", "repeat:layer=3,times=3")
    result = make_latency("fig4", *plans)
    left, right = plotting.latency(result).axes
    legend = right.get_legend()
    assert legend is not None
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == ["skip", *plans, "full model", "chance"]
    for plan in plans:
        (row,) = np.flatnonzero(result["variant"].values == plan)
        (line,) = (line for line in left.lines if line.get_label() == plan)
        assert np.asarray(line.get_ydata()).tolist() == [result["mean"].values[row]]


def test_whiskers_from_the_fastest_to_the_slowest_repeat() -> None:
    result = make_latency("skip:start=3")
    times = result["milliseconds"]
    result = result.assign(milliseconds_low=0.9 * times, milliseconds_high=1.3 * times)
    result.attrs["repeats"] = 3
    figure = plotting.latency(result)
    right: Any = figure.axes[1]
    (skipped,) = (container for container in right.containers if container.has_xerr)
    across = skipped.lines[2][0].get_segments()[0][:, 0]
    place = float(times[1] / times[0])
    assert across == pytest.approx([0.9 * place, 1.3 * place])
    assert "the fastest and the slowest of 3 repeats" in figure.caption


@pytest.mark.parametrize("width", plotting.WIDTHS)
def test_latency_in_every_width(width: Any) -> None:
    figure = plotting.latency(make_latency("fig11", "0-10, 12-29"), width=width)
    assert figure.get_figwidth() == plotting.WIDTHS[width]
    assert_legible(figure)


def test_every_family_has_a_look_and_a_name_of_its_own() -> None:
    families = [name for name in FAMILIES if name != "baseline"]
    looks = {tuple(sorted(look_of_family(name).items())) for name in families}
    names = {label_of_family(name) for name in families}
    assert len(looks) == len(names) == len(families)
    assert "other plans" not in names


def test_the_full_model_is_in_the_legend_once() -> None:
    left, right = plotting.latency(make_latency("fig11")).axes
    legend = right.get_legend()
    assert legend is not None
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == [label_of_family(name) for name in MIDDLE_FAMILIES] + ["full model", "chance"]
    assert left.get_legend() is None
    assert left.get_xlabel() == "critical path / full model's (30 steps)"
    assert right.get_xlabel() == "time per token / full model's (1.7 ms)"


def test_times_far_apart_are_on_a_logarithmic_axis_without_mathtext() -> None:
    axes = plotting.latency(make_latency("fig10")).axes[1]
    assert axes.get_xscale() == "log"
    assert "1" in tick_texts(axes.xaxis)
    assert not any("$" in text for text in tick_texts(axes.xaxis))


def test_plans_that_were_not_timed() -> None:
    result = make_latency("skip:start=0..5", measured=False)
    right = plotting.latency(result).axes[1]
    assert [text.get_text() for text in right.texts] == ["not measured", "b"]
    result["milliseconds"][:3] = [2.0, 1.0, 0.5]
    figure = plotting.latency(result)
    assert np.isfinite(x_of_lines(figure.axes[1])["skip"]).sum() == 2
    assert "3 plans were timed" in figure.caption


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
    result = make_latency("fig4", "repeat:layer=3,times=3", *MANY_PLANS)
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
