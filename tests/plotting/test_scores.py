"""Figures of scores: the paper's axes, every number at its place, and nothing drawn that is not in
the result.
"""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from repsim import plotting
from repsim.analyses import degradation
from repsim.errors import RepsimError
from repsim.plans import resolve
from repsim.plotting.curves import FAMILIES, look, look_of_task
from repsim.plotting.page import MARK
from support.figures import assert_nothing_is_clipped_or_overlaps, tick_texts

T = 30
NUMBERS = (2, *range(4, 12))
PAINTERS = ("painters", "dropouts")
TASKS = {  # chance, the full model's score, examples
    "arc_easy": (0.25, 0.55, 2376),
    "winogrande": (0.5, 0.56, 1267),
    "hellaswag": (0.25, 0.42, 10042),
    "lambada_openai": (0.0, 0.36, 5153),
    "gsm8k": (0.0, 0.002, 1319),  # not above chance
}
MORE = {
    "piqa": (0.5, 0.68, 1838),
    "mmlu_high_school_macroeconomics": (0.25, 0.4, 390),
    "sciq": (0.25, 0.8, 1000),
}
ONE = {name: TASKS[name] for name in ("arc_easy",)}
NONE = {name: TASKS[name] for name in ("gsm8k",)}
HARM = {
    "skip": 1.3,
    "middle_repeat": 1.6,
    "reverse": 1.0,
    "random": 0.9,
    "parallel": 0.8,
    "looped_parallel": 0.6,
}


def harm(variant, layers):
    """What a plan costs, 0 to about 1.3: more in wide middles, at the ends of the stack, and far
    from M/3 loops.
    """
    values = variant.values
    if "layer" in values:
        depth = values["layer"] / (layers - 1)
        return (0.6 if "part" in values else 1) * (
            0.03 + 0.9 * np.exp(-25 * depth) + 0.3 * np.exp(25 * (depth - 1))
        )
    if "start" not in values:
        return 0
    middle = layers - 2 * values["start"] - 1
    off = abs(values.get("loops", 1) - middle / 3) if variant.family == "looped_parallel" else 0
    return 1.2 / (1 + np.exp(-9 * (HARM[variant.family] * middle / layers - 0.35))) + 0.02 * off


def estimates(name, dims, values, error):
    ends = {
        "_low": values - 2 * error,
        "_high": values + 2 * error,
        "_standard_error": error + 0 * values,
    }
    return {name: (dims, values), **{name + end: (dims, found) for end, found in ends.items()}}


def result(*plans, tasks=TASKS, layers=T):
    """What the analysis degradation gives, made up."""
    return made_up(plans, tuple(tasks.items()), layers).copy(deep=True)


@cache
def made_up(plans, tasks, layers):
    tasks = dict(tasks)
    named = resolve(["baseline", *plans], layers)
    variants = degradation.variants(
        [one.name for one in named], [one.plan.text for one in named], layers
    )
    chance, full, examples = (np.array(values) for values in zip(*tasks.values(), strict=True))
    error = np.sqrt(full * (1 - full) / examples)
    valid = full > chance + 2 * error
    noise = np.random.default_rng(0).normal(0, 0.02, (len(variants), len(tasks)))
    cost = np.array([harm(variant, layers) for variant in variants])[:, None]
    normalised = 1 - cost * (1 + 0.25 * np.sin(np.arange(len(tasks)))) + noise
    normalised[0] = 1
    seeds = np.array([len(variant.plans) for variant in variants])
    spread = np.where(seeds > 1, 0.08, np.nan)[:, None] * np.ones(len(tasks))
    of_variant, of_both = ("variant",), ("variant", "task")
    some = normalised[:, valid] if valid.any() else normalised[:, :1] * np.nan
    plans_of = [(variant.family, variant.values) for variant in variants]
    return xr.Dataset(
        {
            **estimates("value", of_both, chance + normalised * (full - chance), error),
            **estimates("normalised", of_both, normalised, error / (full - chance)),
            **estimates("median", of_variant, np.median(some, 1), 0.03),
            **estimates("mean", of_variant, some.mean(1), 0.02),
            "normalised_spread": (of_both, spread),
            "metric_of": ("task", np.array(["acc"] * len(tasks), object)),
            "chance": ("task", chance),
            "baseline": ("task", full),
            "valid": ("task", valid.astype(np.int8)),
            "examples": ("task", examples),
        },
        coords={
            "variant": np.array([variant.name for variant in variants], object),
            **degradation._parameters("variant", plans_of, layers, "variant_"),
            "variant_seeds": ("variant", seeds),
            "task": np.array(list(tasks), object),
        },
        attrs={
            "model": "smollm2-135m",
            "layers": layers,
            "interval": "95% of a bootstrap over examples",
        },
    )


def timed(*plans, measured=True, **options):
    """What the analysis latency gives, made up."""
    found = result(*plans, **options)
    by_name = {
        one.name: one.plan
        for one in resolve(["baseline", *PAINTERS, *plans], found.attrs["layers"])
    }
    first = {name.partition(",seed")[0]: plan for name, plan in reversed(by_name.items())}
    ran = [first.get(name, by_name["baseline"]) for name in found["variant"].values]
    applications = np.array([plan.applications for plan in ran])
    return xr.Dataset(
        {name: found[name] for name in ("mean", "mean_low", "mean_high")}
        | {
            "applications": ("variant", applications),
            "critical_path": ("variant", np.array([len(plan) for plan in ran])),
            "milliseconds": (
                "variant",
                0.2 + 0.05 * applications if measured else np.full(len(ran), np.nan),
            ),
        },
        attrs=found.attrs | {"benchmarks": "arc_easy, winogrande, hellaswag, lambada_openai"},
    )


@cache
def drawn(number, *plans):
    return plotting.degradation(result(*plans), number)


def curves(axes):
    """Legend entry → the line's y values."""
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def curves_x(axes):
    return {line.get_label(): line.get_xdata() for line in axes.lines}


def place(found, family, along="start", **of):
    """Start or layer → variant, worked out from the names."""
    of = {"family": family, "part": "", "loops": -1} | of
    rows = np.flatnonzero(
        np.all([found[f"variant_{name}"].values == value for name, value in of.items()], 0)
    )
    return dict(zip(found[f"variant_{along}"].values[rows].tolist(), rows, strict=True))


def assert_legible(figure):
    """All text lies inside the figure, none on another, and no legend on a panel."""
    assert_nothing_is_clipped_or_overlaps(figure)
    panels = [axes for axes in figure.axes if axes.axison]
    texts = [figure._suptitle]
    for axes in panels:
        texts += [
            *axes.texts,
            axes.title,
            axes.xaxis.label,
            axes.yaxis.label,
            *axes.yaxis.get_ticklabels(),
        ]
        for each in (axes, *axes.child_axes):
            texts += [*each.xaxis.get_ticklabels(), each.xaxis.label]
    legends = figure.legends + [axes.get_legend() for axes in panels if axes.get_legend()]
    texts += [text for legend in legends for text in (*legend.get_texts(), legend.get_title())]
    boxes = {
        text: text.get_window_extent() for text in texts if text.get_text() and text.get_visible()
    }
    boxes = {text: box for text, box in boxes.items() if in_view(text, panels)}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    assert not [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    assert not any(
        legend.get_window_extent().overlaps(axes.bbox) for legend in legends for axes in panels
    )


def in_view(text, panels):
    """False for a label that matplotlib keeps for a tick beyond the axis."""
    for axes in panels:
        for axis, column in ((axes.xaxis, 0), (axes.yaxis, 1)):
            if text in axis.get_ticklabels():
                low, high = sorted(axis.get_view_interval())
                return low <= text.get_position()[column] <= high
    return True


# Legible


@pytest.mark.parametrize("number", NUMBERS)
def test_nothing_is_clipped_or_overlaps(number):
    assert_legible(drawn(number, *PAINTERS))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("tasks", "layers"),
    [(TASKS | MORE, 30), (TASKS | MORE, 64), (TASKS, 12), (ONE, 6)],
    ids=["many", "deep", "12", "6"],
)
def test_nothing_is_clipped_or_overlaps_in_other_models(number, tasks, layers):
    assert_legible(plotting.degradation(result("painters", tasks=tasks, layers=layers), number))


@pytest.mark.parametrize("plans", [PAINTERS, ("fig11",), ("skip:start=3",), ("baseline",)])
@pytest.mark.parametrize("measured", [True, False])
def test_latency_is_legible(plans, measured):
    assert_legible(plotting.latency(timed(*plans, measured=measured)))


def test_lines_are_told_apart_in_grey():
    """Colours may look alike; a marker is shared by lines of different colour only."""
    of_tasks = [tuple(look_of_task(index).values()) for index in range(42)]
    of_families = [tuple(look(index).values()) for index in range(len(FAMILIES))]
    assert len(set(of_tasks)) == 42
    assert len(set(of_families)) == len(FAMILIES)
    assert len({marker for _, marker in of_families[:6]}) == 6  # figure 11
    assert len({marker for _, marker in of_tasks[:7]}) == 7
    assert len({tuple(look_of_task(index).values()) for index in range(100)}) == 100
    assert len({tuple(look(index).values()) for index in range(150)}) == 150


# Titles


def test_titles_say_model_benchmarks_seeds_and_grid_points():
    titles = {number: drawn(number, *PAINTERS).get_suptitle() for number in NUMBERS}
    assert all(title.startswith("smollm2-135m · ") for title in titles.values())
    assert "skip layer N: 30 of 30, switch layers N and N+1: 29 of 29" in titles[2]
    assert "layers N+1 to 29-N skipped" in titles[4]
    assert "each replaced by layer 15" in titles[5]
    assert "15 of 15 starts · 10 seeds" in titles[7]
    assert "standard deviation over seeds" in titles[7]
    assert "366 of 390 cells" in titles[10]  # of M = 1, 1 and 3 loops
    assert "from 0 (chance) to 1 (full model)" in titles[10]
    assert (
        "starts drawn, of 15: skip 15, middle_repeat 15, reverse 15, random 15 (10 seeds)"
        in titles[11]
    )
    for number in (10, 11):
        assert (
            "(examples): arc_easy (2376), winogrande (1267), hellaswag (10042), lambada"
            in titles[number]
        )
    assert all(
        "not above chance: gsm8k" in title for number, title in titles.items() if number != 2
    )
    entries = [text.get_text() for text in drawn(4, *PAINTERS).axes[0].get_legend().get_texts()]
    assert entries[:4] == [
        "arc_easy (2376)",
        "winogrande (1267)",
        "hellaswag (10042)",
        "lambada_openai (5153)",
    ]
    assert entries[4:] == ["median", "full model", "chance"]


def test_seeds_that_differ_between_starts():
    found = result("random:start=3,seed=0..2", "random:start=5,seed=0..8")
    at = list(place(found, "random").values())
    found["variant_seeds"][at] = np.arange(3, 3 + len(at))
    assert (
        f"{len(at)} of 15 starts · 3 to {2 + len(at)} seeds"
        in plotting.degradation(found, 7).get_suptitle()
    )
    found["variant_seeds"][at] = 1
    assert f"{len(at)} of 15 starts · 1 seed ·" in plotting.degradation(found, 7).get_suptitle()


# Figure 2


def test_figure_2_has_a_panel_for_the_median_and_each_benchmark():
    found = result(*PAINTERS)
    median, *panels = drawn(2, *PAINTERS).axes
    sweeps = {
        "skip layer N": place(found, "drop", "layer"),
        "switch layers N and N+1": place(found, "switch", "layer"),
        "skip attention of N": place(found, "drop", "layer", part="attn"),
        "skip MLP of N": place(found, "drop", "layer", part="mlp"),
    }
    for label, rows in sweeps.items():
        assert list(rows) == list(range(29 if "switch" in label else 30))
        for axes, values in (
            (median, found["median"]),
            *zip(panels, found["value"].T, strict=True),
        ):
            drawn_values = curves(axes)[label]
            assert drawn_values[list(rows)].tolist() == values.values[list(rows.values())].tolist()
            assert np.isnan(drawn_values).sum() == 30 - len(rows)
    for axes, chance, full in zip(
        panels, found["chance"].values, found["baseline"].values, strict=True
    ):
        assert set(curves(axes)["chance"]) == {chance}
        assert set(curves(axes)["full model"]) == {full}
        assert axes.get_ylabel() == "acc"
    assert set(curves(median)["full model"]) == {1}
    assert [axes.get_title() for axes in panels[1:]] == [
        "winogrande, 1267 examples",
        "hellaswag, 10042 examples",
        "lambada_openai, 5153 examples",
        "gsm8k, 1319 examples\n(full model not above chance)",
    ]
    assert median.get_title() == "median of 4 benchmarks"


def test_figure_2_without_halves_has_two_lines():
    assert list(curves(drawn(2, "fig2").axes[0])) == [
        "skip layer N",
        "switch layers N and N+1",
        "full model",
        "chance",
    ]


def test_a_benchmark_without_a_score_of_its_own_has_no_panel():
    found = result("fig2")
    found["metric_of"][1] = ""
    assert [
        axes.get_title().split(",")[0]
        for axes in plotting.degradation(found, 2).axes
        if axes.axison
    ] == [
        "median of 4 benchmarks",
        "arc_easy",
        "hellaswag",
        "lambada_openai",
        "gsm8k",
    ]
    found["baseline"][0] = np.nan
    found["valid"][0] = 0
    assert "(full model without a score)" in plotting.degradation(found, 2).axes[1].get_title()


def test_figure_2_is_drawn_where_the_full_model_is_above_chance_in_nothing():
    figure = plotting.degradation(result("fig2", tasks=NONE), 2)
    assert_legible(figure)
    assert figure.axes[0].texts[0].get_text() == "full model above\nchance in none"


# Figures 4 to 9 and 11


@pytest.mark.parametrize(
    ("number", "family", "of"),
    [
        (4, "skip", {}),
        (5, "middle_repeat", {}),
        (6, "reverse", {}),
        (7, "random", {}),
        (8, "parallel", {}),
        (9, "looped_parallel", {"loops": 3}),
    ],
)
def test_each_benchmark_and_the_median_against_the_start(number, family, of):
    found = result(*PAINTERS)
    rows = place(found, family, **of)
    assert list(rows) == list(range(15))
    at = list(rows.values())
    axes = drawn(number, *PAINTERS).axes[0]
    lines = curves(axes)
    for task, (name, (*_, examples)) in enumerate(TASKS.items()):
        if name == "gsm8k":
            assert f"gsm8k ({examples})" not in lines
        else:
            assert (
                lines[f"{name} ({examples})"].tolist()
                == found["normalised"].values[at, task].tolist()
            )
    assert lines["median"].tolist() == found["median"].values[at].tolist()
    band = axes.collections[-2].get_datalim(axes.transData)
    assert band.y0 == pytest.approx(found["median_low"].values[at].min())
    assert band.y1 == pytest.approx(found["median_high"].values[at].max())
    assert (set(lines["full model"]), set(lines["chance"])) == ({1}, {0})
    assert all(line.get_xdata().tolist() == list(range(15)) for line in axes.lines[:5])
    widths = {line.get_label(): line.get_linewidth() for line in axes.lines}
    assert widths["median"] > 2 * widths["arc_easy (2376)"]
    (above,) = axes.child_axes
    assert tick_texts(above.xaxis) == [str(many) for many in found["variant_affected"].values[at]]
    assert above.get_xticks().tolist() == axes.get_xticks().tolist() == list(range(15))


def test_random_orders_have_whiskers_of_one_standard_deviation():
    found = result("fig7")
    (*whiskers,) = [c for c in drawn(7, "fig7").axes[0].containers if c.has_yerr]
    at = list(place(found, "random").values())
    assert len(whiskers) == 4
    for task, container in enumerate(whiskers):
        ends = np.array(container.lines[2][0].get_segments())[:, :, 1]
        middle, spread = (
            found["normalised"].values[at, task],
            found["normalised_spread"].values[at, task],
        )
        assert ends == pytest.approx(np.stack([middle - spread, middle + spread], 1))
    asides = [container.lines[2][0].get_segments()[0][0, 0] for container in whiskers]
    assert len(set(np.round(asides, 6))) == 4
    assert not [c for c in drawn(6, *PAINTERS).axes[0].containers if c.has_yerr]


def test_a_line_for_each_variant():
    found = result(*PAINTERS)
    lines = curves(drawn(11, *PAINTERS).axes[0])
    families = dict(zip(lines, degradation.COMPARED, strict=False))
    assert families == {
        "skip": "skip",
        "middle repeat": "middle_repeat",
        "reverse": "reverse",
        "random order": "random",
        "parallel": "parallel",
        "looped parallel, 3 loops": "looped_parallel",
    }
    for label, family in families.items():
        rows = place(found, family, loops=3 if family == "looped_parallel" else -1)
        assert lines[label].tolist() == found["mean"].values[list(rows.values())].tolist()


def test_a_missing_start_is_a_hole():
    plans = ("skip:start=0..2", "skip:start=5|7|8")
    for number in (4, 11):
        lines = curves(drawn(number, *plans).axes[0])
        for label in ("arc_easy (2376)", "median") if number == 4 else ("skip",):
            assert np.isfinite(lines[label]).nonzero()[0].tolist() == [0, 1, 2, 5, 7, 8]
    axes = drawn(4, *plans).axes[0]
    alone = axes.collections[-1].get_segments()  # the interval of a start without neighbours
    assert [segment[0, 0] for segment in alone] == [5]
    assert "6 of 15 starts" in drawn(4, *plans).get_suptitle()


def test_a_score_that_is_missing_is_a_hole():
    found = result("fig4")
    row = place(found, "skip")[4]
    for name in ("normalised", "median", "mean"):
        for end in ("", "_low", "_high"):
            found[name + end][row] = np.nan
    for number, label in ((4, "median"), (4, "arc_easy (2376)"), (11, "skip")):
        values = curves(plotting.degradation(found, number).axes[0])[label]
        assert np.isnan(values).nonzero()[0].tolist() == [4]
    assert "14 of 15 starts" in plotting.degradation(found, 4).get_suptitle()


# Figure 10


def grid(values, starts=(3, 4), loops=(1, 2, 3)):
    """A result of these scores, `[loop, start]`, and no others."""
    found = result(
        *[f"looped_parallel:start={start},loops={loop}" for loop in loops for start in starts]
    )
    found["mean"][:] = np.nan
    for row, loop in enumerate(loops):
        at = place(found, "looped_parallel", loops=loop)
        found["mean"][[at[start] for start in starts]] = values[row]
    return found


def frames(axes):
    """Column and row of each."""
    return {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches}


def cells(axes):
    """`[loop, width]`, NaN where there is none."""
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def test_loops_by_width_by_hand():
    figure = plotting.degradation(grid([[0.2, 0.9], [0.5, 0.8], [0.4, -0.1]]), 10)
    axes, bar = figure.axes
    assert cells(axes).tolist() == [[0.9, 0.2], [0.8, 0.5], [-0.1, 0.4]]  # wider to the right
    assert axes.images[0].origin == "lower"
    assert tick_texts(axes.xaxis) == ["21", "23"]
    assert tick_texts(axes.yaxis) == ["1", "2", "3"]
    assert frames(axes) == {(0, 0), (1, 1)}
    assert all(patch.get_edgecolor() == to_rgba(MARK) and not patch.fill for patch in axes.patches)
    assert axes.images[0].get_clim() == (-0.1, 1)
    assert [line.get_ydata()[0] for line in bar.lines if len(set(line.get_ydata())) == 1] == [0]
    assert bar.get_ylabel() == "mean normalised score"


def test_of_equal_scores_the_fewest_loops_are_framed():
    assert frames(plotting.degradation(grid([[0.2, 0.8], [0.5, 0.8], [0.5, 0.8]]), 10).axes[0]) == {
        (0, 0),
        (1, 1),
    }


def test_cells_that_are_not_in_the_result_are_grey():
    figure = plotting.degradation(
        grid([[0.2, 0.9], [np.nan, 0.8], [0.4, np.nan]], loops=(1, 2, 4)), 10
    )
    axes, bar = figure.axes
    assert np.isnan(cells(axes)).tolist() == [
        [False, False],
        [False, True],
        [True, True],
        [True, False],
    ]
    image = axes.images[0]
    assert image.to_rgba(image.get_array())[2, 0].tolist() == [0.85, 0.85, 0.85, 1]
    assert bar.get_ylabel() == "mean normalised score (grey: no score)"
    assert frames(axes) == {(0, 0), (1, 3)}
    assert "4 of 8 cells" in figure.get_suptitle()


def test_one_number_of_loops_has_no_best():
    assert frames(
        plotting.degradation(grid([[0.2, 0.9], [0.5, np.nan], [0.4, np.nan]]), 10).axes[0]
    ) == {(1, 1)}
    # Without M = 1, whose single loop is the baseline.
    assert cells(drawn(10, "fig10").axes[0]).shape == (26, 14)


def test_the_whole_grid():
    found = result(*PAINTERS)
    axes = drawn(10, *PAINTERS).axes[0]
    values = cells(axes)
    for start in range(15):
        at = {
            loops: place(found, "looped_parallel", loops=loops).get(start) for loops in range(1, 27)
        }
        expected = [np.nan if row is None else float(found["mean"][row]) for row in at.values()]
        np.testing.assert_array_equal(values[:, 14 - start], expected)
        assert (14 - start, np.nanargmax(expected)) in frames(axes)
    assert len(axes.patches) == 15
    assert tick_texts(axes.xaxis) == [str(many) for many in range(1, 30, 2)]


# Latency


@pytest.mark.parametrize(("panel", "cost"), [(0, "critical_path"), (1, "milliseconds")])
def test_scores_against_what_they_cost(panel, cost):
    found = timed(
        "fig11",
        "switch:layer=3",
        "0-10, 12-29",
        "drop_block:first=3,last=5",
        "repeat:layer=3,times=3",
    )
    axes = plotting.latency(found).axes[panel]
    points = {line.get_label(): line for line in axes.lines}
    relative = found[cost] / found[cost][0]
    for family, label in (FAMILIES | {"baseline": "full model"}).items():
        own = found["variant_family"].values == family
        if label in points and label != "full model":
            assert points[label].get_xdata().tolist() == relative.values[own].tolist()
            assert points[label].get_ydata().tolist() == found["mean"].values[own].tolist()
        else:
            assert not own.any() or family == "baseline"
    assert (
        points["full model"].get_xdata().tolist(),
        points["full model"].get_ydata().tolist(),
    ) == ([1], [1])
    assert points["full model"].get_marker() == "*"
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim()[0] == 0


def test_the_full_model_is_in_the_legend_once():
    left, right = plotting.latency(timed("fig11")).axes
    entries = [text.get_text() for text in right.get_legend().get_texts()]
    assert entries == [FAMILIES[name] for name in degradation.COMPARED] + ["full model", "chance"]
    assert left.get_legend() is None
    assert left.get_xlabel() == "critical path / the full model's (30 steps)"
    assert right.get_xlabel() == "time per token / the full model's (1.7 ms)"


def test_times_far_apart_are_on_a_logarithmic_axis_without_mathtext():
    axes = plotting.latency(timed("fig10")).axes[1]
    assert axes.get_xscale() == "log"
    assert "1" in tick_texts(axes.xaxis)
    assert not any("$" in text for text in tick_texts(axes.xaxis))


def test_plans_that_were_not_timed():
    found = timed("skip:start=0..5", measured=False)
    right = plotting.latency(found).axes[1]
    assert [text.get_text() for text in right.texts] == ["not measured"]
    found["milliseconds"][:3] = [2.0, 1.0, 0.5]
    figure = plotting.latency(found)
    assert np.isfinite(curves_x(figure.axes[1])["skip"]).sum() == 2
    assert "3 were timed" in figure.get_suptitle()


# Errors, and bytes


@pytest.mark.parametrize(
    ("number", "plans", "message"),
    [
        (3, ("skip:start=1",), "figure=3: choose 2 or one of 4, 5, 6, 7, 8, 9, 10, 11"),
        (
            2,
            ("skip:start=1",),
            "figure 2: no drop or switch among baseline, skip; evaluate with --plan fig2 --append",
        ),
        (
            5,
            ("skip:start=1",),
            "figure 5: no middle_repeat among baseline, skip; evaluate with --plan fig5 --append",
        ),
        (
            9,
            ("looped_parallel:start=1,loops=2",),
            "figure 9: no looped_parallel with loops=3 among baseline, looped_parallel; "
            "evaluate with --plan fig9 --append",
        ),
        (
            10,
            ("fig9",),
            "figure 10: no looped_parallel with several loops among baseline, looped_parallel; .*fig10",
        ),
        (
            10,
            ("0-5, 7-29",),
            "figure 10: no looped_parallel with .* among baseline, plans of no family; .*fig10",
        ),
        (
            11,
            ("drop:layer=3",),
            "figure 11: no skip or middle_repeat or .*loops=3 among baseline, drop; .*fig11",
        ),
    ],
)
def test_what_is_not_in_the_result(number, plans, message):
    with pytest.raises(RepsimError, match=f"^{message}") as caught:
        plotting.degradation(result(*plans), number)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_in_the_result_and_has_no_score(number):
    found = result(*PAINTERS)
    for name in ("value", "normalised", "median", "mean"):
        found[name][:] = np.nan
    with pytest.raises(
        RepsimError,
        match=rf"^figure {number}: none of \d+ variants of .* has a score: .* unfinished",
    ):
        plotting.degradation(found, number)


@pytest.mark.parametrize("number", NUMBERS[1:])
def test_without_a_valid_benchmark_nothing_is_normalised(number):
    with pytest.raises(
        RepsimError,
        match=f"figure {number}: the full model is not above chance in any of gsm8k; draw",
    ):
        plotting.degradation(result("painters", tasks=NONE), number)


def test_latency_without_the_full_model_or_scores():
    found = timed("fig4")
    with pytest.raises(
        RepsimError, match="the full model is not in the result; add --plan baseline"
    ):
        plotting.latency(found.isel(variant=slice(1, None)))
    found["mean"][:] = np.nan
    with pytest.raises(RepsimError, match="none of 16 variants has a normalised score"):
        plotting.latency(found)


@pytest.mark.parametrize("number", [*NUMBERS, 0])
def test_the_same_bytes_twice(tmp_path, number):
    for name in "ab":
        figure = (
            plotting.degradation(result(*PAINTERS), number)
            if number
            else plotting.latency(timed(*PAINTERS))
        )
        plotting.save(figure, tmp_path / name)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf


def test_a_result_read_from_a_file_is_drawn_alike(tmp_path):
    found = result("painters")
    found.to_netcdf(tmp_path / "found.nc")
    with xr.open_dataset(tmp_path / "found.nc") as again:
        for number in NUMBERS:
            one, other = (plotting.degradation(each, number).axes[0] for each in (found, again))
            for line, same in zip(one.lines, other.lines, strict=True):
                np.testing.assert_array_equal(line.get_ydata(), same.get_ydata())
