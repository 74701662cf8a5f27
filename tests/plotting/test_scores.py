"""Figures of scores: the paper's axes, every number at its place, and nothing drawn that is not in
the result.
"""

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba
from numpy.typing import NDArray

from repsim import plotting
from repsim.errors import RepsimError
from repsim.plotting.curves import families_in_order, look, look_of_task
from repsim.plotting.page import MARK
from repsim.studies.painters import FIGURE_NUMBERS as NUMBERS
from repsim.studies.painters import MIDDLE_FAMILIES
from support.figures import tick_texts
from support.score_figures import (
    PAINTERS,
    TASKS,
    Tasks,
    assert_legible,
    lines_of,
    make_degradation,
    make_latency,
)

MORE: Tasks = {
    "piqa": (0.5, 0.68, 1838),
    "mmlu_high_school_macroeconomics": (0.25, 0.4, 390),
    "sciq": (0.25, 0.8, 1000),
}
ONE = {name: TASKS[name] for name in ("arc_easy",)}
NONE = {name: TASKS[name] for name in ("gsm8k",)}


@cache
def draw_cached(number: int, *plans: str) -> plotting.Figure:
    return plotting.degradation(make_degradation(*plans), number)


def find_places(result: xr.Dataset, family: str, along: str = "start", **of: Any) -> dict[int, int]:
    """Start or layer → variant, worked out from the names."""
    of = {"family": family, "part": "", "loops": -1} | of
    rows = np.flatnonzero(
        np.all([result[f"variant_{name}"].values == value for name, value in of.items()], 0)
    )
    return dict(zip(result[f"variant_{along}"].values[rows].tolist(), rows, strict=True))


# Legible


@pytest.mark.parametrize("number", NUMBERS)
def test_nothing_is_clipped_or_overlaps(number: int) -> None:
    assert_legible(draw_cached(number, *PAINTERS))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("tasks", "layers"),
    [(TASKS | MORE, 30), (TASKS | MORE, 64), (TASKS, 12), (ONE, 6)],
    ids=["many", "deep", "12", "6"],
)
def test_nothing_is_clipped_or_overlaps_in_other_models(
    number: int, tasks: Tasks, layers: int
) -> None:
    assert_legible(
        plotting.degradation(make_degradation("painters", tasks=tasks, layers=layers), number)
    )


def test_lines_are_told_apart_in_grey() -> None:
    """Colours may look alike; a marker is shared by lines of different colour only."""
    of_tasks = [tuple(look_of_task(index).values()) for index in range(42)]
    of_families = [tuple(look(index).values()) for index in range(len(families_in_order()))]
    assert len(set(of_tasks)) == 42
    assert len(set(of_families)) == len(families_in_order())
    assert len({marker for _, marker in of_families[:6]}) == 6  # figure 11
    assert len({marker for _, marker in of_tasks[:7]}) == 7
    assert len({tuple(look_of_task(index).values()) for index in range(100)}) == 100
    assert len({tuple(look(index).values()) for index in range(150)}) == 150


@pytest.mark.parametrize("width", ["column", "slide"])
@pytest.mark.parametrize("number", NUMBERS)
def test_other_widths(number: int, width: Any) -> None:
    figure = plotting.degradation(make_degradation(*PAINTERS), number, width=width)
    assert figure.get_figwidth() == plotting.WIDTHS[width]
    assert_legible(figure)


def test_no_grid_crosses_the_heat_map() -> None:
    with plotting.styled("ggplot"):
        figure = plotting.degradation(make_degradation("fig10"), 10)
    for axes in figure.axes:
        lines = [*axes.get_xgridlines(), *axes.get_ygridlines()]
        assert not any(line.get_visible() for line in lines)


# Titles and captions


def test_titles_are_one_line_and_captions_say_the_rest() -> None:
    figures = {number: draw_cached(number, *PAINTERS) for number in NUMBERS}
    titles = {number: figure.get_suptitle() for number, figure in figures.items()}
    assert all(title.startswith("smollm2-135m · ") for title in titles.values())
    assert not any("\n" in title for title in titles.values())
    assert "layers N+1 to 29-N skipped" in titles[4]
    assert "each replaced by layer 15" in titles[5]
    said = {number: figure.caption for number, figure in figures.items()}
    assert "skip layer N, 30 of 30; switch layers N and N+1, 29 of 29" in said[2]
    assert "15 of 15 starts, 10 seeds each" in said[7]
    assert "standard deviation over seeds" in said[7]
    assert "366 of 390 cells" in said[10]  # of M = 1, 1 and 3 loops
    assert "(0: chance, 1: the full model)" in said[10]
    assert (
        "Starts drawn, of 15: skip 15, middle repeat 15, reverse 15, random order 15 (10 seeds)"
        in said[11]
    )
    for number in NUMBERS[1:]:
        assert (
            "(examples) arc_easy (2376), winogrande (1267), hellaswag (10042), lambada"
            in said[number]
        )
        assert "not above chance: gsm8k" in said[number]
    legend = draw_cached(4, *PAINTERS).axes[0].get_legend()
    assert legend is not None
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries[:4] == [
        "arc_easy (2376)",
        "winogrande (1267)",
        "hellaswag (10042)",
        "lambada_openai (5153)",
    ]
    assert entries[4:] == ["median", "full model", "chance"]


def test_seeds_that_differ_between_starts() -> None:
    result = make_degradation("random:start=3,seed=0..2", "random:start=5,seed=0..8")
    at = list(find_places(result, "random").values())
    result["variant_seeds"][at] = np.arange(3, 3 + len(at))
    caption = plotting.degradation(result, 7).caption
    assert f"{len(at)} of 15 starts, 3 to {2 + len(at)} seeds each" in caption
    result["variant_seeds"][at] = 1
    assert f"{len(at)} of 15 starts, 1 seed each" in plotting.degradation(result, 7).caption


# Figure 2


def test_figure_2_has_a_panel_for_the_median_and_each_benchmark() -> None:
    result = make_degradation(*PAINTERS)
    median, *panels = draw_cached(2, *PAINTERS).axes
    sweeps = {
        "skip layer N": find_places(result, "drop", "layer"),
        "switch layers N and N+1": find_places(result, "switch", "layer"),
        "skip attention of N": find_places(result, "drop", "layer", part="attn"),
        "skip MLP of N": find_places(result, "drop", "layer", part="mlp"),
    }
    for label, rows in sweeps.items():
        assert list(rows) == list(range(29 if "switch" in label else 30))
        for axes, values in (
            (median, result["median"]),
            *zip(panels, result["value"].T, strict=True),
        ):
            drawn_values = lines_of(axes)[label]
            assert drawn_values[list(rows)].tolist() == values.values[list(rows.values())].tolist()
            assert np.isnan(drawn_values).sum() == 30 - len(rows)
    for axes, chance, full in zip(
        panels, result["chance"].values, result["baseline"].values, strict=True
    ):
        assert set(lines_of(axes)["chance"]) == {chance}
        assert set(lines_of(axes)["full model"]) == {full}
        assert axes.get_ylabel() == "acc"
    assert set(lines_of(median)["full model"]) == {1}
    assert [axes.get_title() for axes in panels[1:]] == [
        "winogrande, 1267 examples",
        "hellaswag, 10042 examples",
        "lambada_openai, 5153 examples",
        "gsm8k, 1319 examples\n(full model not above chance)",
    ]
    assert median.get_title() == "median of 4 benchmarks"


def test_figure_2_without_halves_has_two_lines() -> None:
    assert list(lines_of(draw_cached(2, "fig2").axes[0])) == [
        "skip layer N",
        "switch layers N and N+1",
        "full model",
        "chance",
    ]


def test_a_benchmark_without_a_score_of_its_own_has_no_panel() -> None:
    result = make_degradation("fig2")
    result["metric_of"][1] = ""
    assert [
        axes.get_title().split(",")[0]
        for axes in plotting.degradation(result, 2).axes
        if axes.axison
    ] == [
        "median of 4 benchmarks",
        "arc_easy",
        "hellaswag",
        "lambada_openai",
        "gsm8k",
    ]
    result["baseline"][0] = np.nan
    result["valid"][0] = 0
    assert "(full model without a score)" in plotting.degradation(result, 2).axes[1].get_title()


def test_figure_2_is_drawn_where_the_full_model_is_above_chance_in_nothing() -> None:
    figure = plotting.degradation(make_degradation("fig2", tasks=NONE), 2)
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
def test_each_benchmark_and_the_median_against_the_start(
    number: int, family: str, of: dict[str, Any]
) -> None:
    result = make_degradation(*PAINTERS)
    rows = find_places(result, family, **of)
    assert list(rows) == list(range(15))
    at = list(rows.values())
    axes: Any = draw_cached(number, *PAINTERS).axes[0]
    lines = lines_of(axes)
    for task, (name, (*_, examples)) in enumerate(TASKS.items()):
        if name == "gsm8k":
            assert f"gsm8k ({examples})" not in lines
        else:
            assert (
                lines[f"{name} ({examples})"].tolist()
                == result["normalised"].values[at, task].tolist()
            )
    assert lines["median"].tolist() == result["median"].values[at].tolist()
    band = axes.collections[-2].get_datalim(axes.transData)
    assert band.y0 == pytest.approx(result["median_low"].values[at].min())
    assert band.y1 == pytest.approx(result["median_high"].values[at].max())
    assert (set(lines["full model"]), set(lines["chance"])) == ({1}, {0})
    assert all(line.get_xdata().tolist() == list(range(15)) for line in axes.lines[:5])
    widths = {line.get_label(): line.get_linewidth() for line in axes.lines}
    assert widths["median"] > 2 * widths["arc_easy (2376)"]
    (above,) = axes.child_axes
    assert tick_texts(above.xaxis) == [str(many) for many in result["variant_affected"].values[at]]
    assert above.get_xticks().tolist() == axes.get_xticks().tolist() == list(range(15))


def test_random_orders_have_whiskers_of_one_standard_deviation() -> None:
    result = make_degradation("fig7")
    containers: list[Any] = draw_cached(7, "fig7").axes[0].containers
    (*whiskers,) = [c for c in containers if c.has_yerr]
    at = list(find_places(result, "random").values())
    assert len(whiskers) == 4
    for task, container in enumerate(whiskers):
        ends = np.array(container.lines[2][0].get_segments())[:, :, 1]
        middle, spread = (
            result["normalised"].values[at, task],
            result["normalised_spread"].values[at, task],
        )
        assert ends == pytest.approx(np.stack([middle - spread, middle + spread], 1))
    asides = [container.lines[2][0].get_segments()[0][0, 0] for container in whiskers]
    assert len(set(np.round(asides, 6))) == 4
    others: list[Any] = draw_cached(6, *PAINTERS).axes[0].containers
    assert not [c for c in others if c.has_yerr]


def test_a_line_for_each_variant() -> None:
    result = make_degradation(*PAINTERS)
    lines = lines_of(draw_cached(11, *PAINTERS).axes[0])
    families = dict(zip(lines, MIDDLE_FAMILIES, strict=False))
    assert families == {
        "skip": "skip",
        "middle repeat": "middle_repeat",
        "reverse": "reverse",
        "random order": "random",
        "parallel": "parallel",
        "looped parallel, 3 loops": "looped_parallel",
    }
    for label, family in families.items():
        rows = find_places(result, family, loops=3 if family == "looped_parallel" else -1)
        assert lines[label].tolist() == result["mean"].values[list(rows.values())].tolist()


def test_a_missing_start_is_a_hole() -> None:
    plans = ("skip:start=0..2", "skip:start=5|7|8")
    for number in (4, 11):
        lines = lines_of(draw_cached(number, *plans).axes[0])
        for label in ("arc_easy (2376)", "median") if number == 4 else ("skip",):
            assert np.isfinite(lines[label]).nonzero()[0].tolist() == [0, 1, 2, 5, 7, 8]
    axes: Any = draw_cached(4, *plans).axes[0]
    alone = axes.collections[-1].get_segments()  # the interval of a start without neighbours
    assert [segment[0, 0] for segment in alone] == [5]
    assert "6 of 15 starts" in draw_cached(4, *plans).caption


def test_a_score_that_is_missing_is_a_hole() -> None:
    result = make_degradation("fig4")
    row = find_places(result, "skip")[4]
    for name in ("normalised", "median", "mean"):
        for end in ("", "_low", "_high"):
            result[name + end][row] = np.nan
    for number, label in ((4, "median"), (4, "arc_easy (2376)"), (11, "skip")):
        values = lines_of(plotting.degradation(result, number).axes[0])[label]
        assert np.isnan(values).nonzero()[0].tolist() == [4]
    assert "14 of 15 starts" in plotting.degradation(result, 4).caption


# Figure 10


def grid(
    values: Any, starts: Sequence[int] = (3, 4), loops: Sequence[int] = (1, 2, 3)
) -> xr.Dataset:
    """A result of these scores, `[loop, start]`, and no others."""
    result = make_degradation(
        *[f"looped_parallel:start={start},loops={loop}" for loop in loops for start in starts]
    )
    result["mean"][:] = np.nan
    for row, loop in enumerate(loops):
        at = find_places(result, "looped_parallel", loops=loop)
        result["mean"][[at[start] for start in starts]] = values[row]
    return result


def frames(axes: Any) -> set[Any]:
    """Column and row of each."""
    return {patch.get_xy() for patch in axes.patches}


def cells(axes: Any) -> NDArray[Any]:
    """`[loop, width]`, NaN where there is none."""
    return np.ma.filled(axes.collections[0].get_array(), np.nan)


def test_loops_by_width_by_hand() -> None:
    figure: Any = plotting.degradation(grid([[0.2, 0.9], [0.5, 0.8], [0.4, -0.1]]), 10)
    axes, bar = figure.axes
    assert cells(axes).tolist() == [[0.9, 0.2], [0.8, 0.5], [-0.1, 0.4]]  # wider to the right
    assert axes.get_ylim() == (0, 3)  # more loops upwards
    assert tick_texts(axes.xaxis) == ["21", "23"]
    assert tick_texts(axes.yaxis) == ["1", "2", "3"]
    assert frames(axes) == {(0, 0), (1, 1)}
    assert all(patch.get_edgecolor() == to_rgba(MARK) and not patch.fill for patch in axes.patches)
    assert axes.collections[0].get_clim() == (0, 1)
    assert "lower values, down to -0.1" in figure.caption
    assert bar.get_ylabel() == "mean normalised score"


def test_of_equal_scores_the_fewest_loops_are_framed() -> None:
    assert frames(plotting.degradation(grid([[0.2, 0.8], [0.5, 0.8], [0.5, 0.8]]), 10).axes[0]) == {
        (0, 0),
        (1, 1),
    }


def test_cells_that_are_not_in_the_result_are_grey() -> None:
    figure: Any = plotting.degradation(
        grid([[0.2, 0.9], [np.nan, 0.8], [0.4, np.nan]], loops=(1, 2, 4)), 10
    )
    axes, bar = figure.axes
    assert np.isnan(cells(axes)).tolist() == [
        [False, False],
        [False, True],
        [True, True],
        [True, False],
    ]
    quads = axes.collections[0]
    assert quads.to_rgba(quads.get_array())[2, 0].tolist() == [0.85, 0.85, 0.85, 1]
    assert bar.get_ylabel() == "mean normalised score (grey: no score)"
    assert frames(axes) == {(0, 0), (1, 3)}
    assert "4 of 8 cells" in figure.caption


def test_one_number_of_loops_has_no_best() -> None:
    assert frames(
        plotting.degradation(grid([[0.2, 0.9], [0.5, np.nan], [0.4, np.nan]]), 10).axes[0]
    ) == {(1, 1)}
    # Without M = 1, whose single loop is the baseline.
    assert cells(draw_cached(10, "fig10").axes[0]).shape == (26, 14)


def test_the_whole_grid() -> None:
    result = make_degradation(*PAINTERS)
    axes = draw_cached(10, *PAINTERS).axes[0]
    values = cells(axes)
    for start in range(15):
        at = {
            loops: find_places(result, "looped_parallel", loops=loops).get(start)
            for loops in range(1, 27)
        }
        expected = [np.nan if row is None else float(result["mean"][row]) for row in at.values()]
        np.testing.assert_array_equal(values[:, 14 - start], expected)
        assert (14 - start, np.nanargmax(expected)) in frames(axes)
    assert len(axes.patches) == 15
    assert tick_texts(axes.xaxis) == [str(many) for many in range(1, 30, 2)]
    assert tick_texts(axes.yaxis) == ["1", *map(str, range(2, 27, 2))]
    assert axes.get_yticks().tolist() == [0.5, *np.arange(1.5, 26, 2)]


def test_seaborn_neither_meets_our_settings_nor_changes_the_users(tmp_path: Path) -> None:
    """In a fresh process, where the figure imports seaborn for the first time."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import matplotlib; matplotlib.rcParams['font.size'] = 30;"
        "before = dict(matplotlib.rcParams);"
        "from support.score_figures import *; from repsim import plotting;"
        "assert 'seaborn' not in sys.modules;"
        "figure = plotting.degradation(make_degradation('fig10'), 10);"
        "plotting.save(figure, sys.argv[2]);"
        "assert dict(matplotlib.rcParams) == before;"
        "import seaborn; seaborn.reset_orig();"
        "assert dict(matplotlib.rcParams) == before;"
        "import matplotlib.pyplot as plt; assert not plt.get_fignums()"
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(Path(__file__).parents[1]),
        str(tmp_path / "there"),
    ]
    subprocess.run(command, check=True)
    plotting.save(draw_cached(10, "fig10"), tmp_path / "here")
    for suffix in (".png", ".pdf"):
        there, here = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("there", "here"))
        assert there == here
    assert here.count(b"/Subtype /Image") == 2  # the cells and the colour bar, without hairlines


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
            "figure 10: no looped_parallel with several loops among baseline, "
            "looped_parallel; .*fig10",
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
def test_what_is_not_in_the_result(number: int, plans: tuple[str, ...], message: str) -> None:
    with pytest.raises(RepsimError, match=f"^{message}") as caught:
        plotting.degradation(make_degradation(*plans), number)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_in_the_result_and_has_no_score(number: int) -> None:
    result = make_degradation(*PAINTERS)
    for name in ("value", "normalised", "median", "mean"):
        result[name][:] = np.nan
    with pytest.raises(
        RepsimError,
        match=rf"^figure {number}: none of \d+ variants of .* has a score: .* unfinished",
    ):
        plotting.degradation(result, number)


@pytest.mark.parametrize("number", NUMBERS[1:])
def test_without_a_valid_benchmark_nothing_is_normalised(number: int) -> None:
    with pytest.raises(
        RepsimError,
        match=f"figure {number}: the full model is not above chance in any of gsm8k; draw",
    ):
        plotting.degradation(make_degradation("painters", tasks=NONE), number)


@pytest.mark.parametrize("number", [*NUMBERS, 0])
def test_the_same_bytes_twice(tmp_path: Path, number: int) -> None:
    for name in "ab":
        figure = (
            plotting.degradation(make_degradation(*PAINTERS), number)
            if number
            else plotting.latency(make_latency(*PAINTERS))
        )
        plotting.save(figure, tmp_path / name)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf


def test_a_result_read_from_a_file_is_drawn_alike(tmp_path: Path) -> None:
    result = make_degradation("painters")
    result.to_netcdf(tmp_path / "result.nc")
    with xr.open_dataset(tmp_path / "result.nc") as again:
        for number in NUMBERS:
            one, other = (plotting.degradation(each, number).axes[0] for each in (result, again))
            for line, same in zip(one.lines, other.lines, strict=True):
                np.testing.assert_array_equal(line.get_ydata(), same.get_ydata())
