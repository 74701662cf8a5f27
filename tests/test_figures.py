"""Figures: what a reader of the printed page needs, and nothing that depends on who draws."""

import os
import subprocess
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import xarray as xr
from IPython.core.formatters import DisplayFormatter

from repsim import figures
from repsim.schema import RepsimError

LONG = "(13|14|15|16)"
STACKS = {
    "2": ["embed", "0"],
    "7": ["embed", *map(str, range(6))],
    "31": ["embed", *map(str, range(30))],
    "81": ["embed", *map(str, range(80))],
    "looped": ["embed", *map(str, range(13)), *[LONG] * 3, *map(str, range(17, 30))],
    "skip": ["embed", *"0123", *map(str, range(26, 30))],
    "repeat": ["embed", "0", *["15"] * 28, "29"],
    "all": ["embed", "0", f"({'|'.join(map(str, range(1, 29)))})", "29"],
    "half": ["embed", *map(str, range(7)), "7.mlp", *map(str, range(8, 30))],
    "random": ["embed", *map(str, np.random.default_rng(0).permutation(30))],
}


def result(labels, lowest=0.1, **attrs):
    distance = np.abs(np.subtract.outer(np.arange(len(labels)), np.arange(len(labels))))
    values = 1 - (1 - lowest) * distance / distance.max()
    return xr.Dataset(
        {"cosine": (("state", "state_other"), values)},
        coords={"layer": ("state", labels), "layer_other": ("state_other", labels)},
        attrs={"model": "smollm2-135m", "plan": "baseline", "corpus": "easel", "tokens": 12345}
        | {"average": "token"}
        | attrs,
    )


def draw(labels, **attrs):
    figure = figures.similarity_matrix(result(labels, **attrs))
    figure.draw_without_rendering()
    return figure


def tick_texts(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def colour_bar(figure):
    return figure.axes[1]


def test_labels_of_a_31_state_plan():
    axes = draw(STACKS["31"]).axes[0]
    assert tick_texts(axes.yaxis) == ["embed", "5", "10", "15", "20", "25", "29"]
    assert tick_texts(axes.xaxis) == tick_texts(axes.yaxis)
    assert axes.get_yticks().tolist() == [0, 6, 11, 16, 21, 26, 30]


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ("7", ["embed", "0", "1", "2", "3", "4", "5"]),
        ("81", ["embed", "10", "20", "30", "40", "50", "60", "70", "79"]),
        ("skip", ["embed", "0", "1", "2", "3", "26", "27", "28", "29"]),
        ("repeat", ["embed", "15 ×28", "29"]),  # noqa: RUF001
        ("all", ["embed", "0", "(1|…|28)", "29"]),
    ],
)
def test_labels_show_where_a_plan_departs_from_the_stack(stack, expected):
    assert tick_texts(draw(STACKS[stack]).axes[0].yaxis) == expected


def test_a_step_that_is_not_a_layer_is_named():
    assert "(13|…|16) ×3" in tick_texts(draw(STACKS["looped"]).axes[0].yaxis)  # noqa: RUF001
    assert LONG in tick_texts(draw(["embed", "12", LONG, "17"]).axes[0].yaxis)
    assert "7.mlp" in tick_texts(draw(STACKS["half"]).axes[0].yaxis)


@pytest.mark.parametrize("width", figures.WIDTHS)
@pytest.mark.parametrize("stack", STACKS)
def test_no_two_labels_overlap_and_nothing_is_clipped(stack, width):
    figure = figures.similarity_matrix(result(STACKS[stack], -0.2), width=width)
    figure.draw_without_rendering()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis, colour_bar(figure).yaxis):
        boxes = [text.get_window_extent() for text in axis.get_ticklabels()]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    inside = figure.get_tightbbox()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= figure.get_figwidth()
    assert inside.y1 <= figure.get_figheight()


def test_a_column_wide_with_square_cells_from_the_top_left():
    figure = draw(STACKS["31"])
    assert figure.get_figwidth() == 3.35
    assert 2.8 < figure.get_figheight() < 3.4
    axes = figure.axes[0]
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height)
    assert box.width > 0.6 * figure.bbox.width
    assert axes.get_ylim() == (30.5, -0.5)
    assert axes.get_xlim() == (-0.5, 30.5)


def test_title():
    figure = draw(STACKS["7"], corpus="costs $1 or $2")
    assert figure.get_suptitle() == ("smollm2-135m · baseline\ncosts $1 or $2 · 12,345 tokens · token average")


@pytest.mark.parametrize("plan", [", ".join(map(str, range(60))), "x" * 200])
def test_a_long_title_is_wrapped(plan):
    figure = draw(STACKS["7"], plan=plan)
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert figure.get_suptitle().replace("\n", "").replace(" ", "").count(plan.replace(" ", "")) == 1


@pytest.mark.parametrize(
    ("lowest", "ticks"),
    [
        (-0.97, [-1, -0.5, 0, 0.5, 1]),
        (-0.04, [-0.1, 0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.31, [0.3, 0.4, 0.6, 0.8, 1]),
        (0.5, [0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        (0.97, [0.97, 0.98, 0.99, 1]),
        (1.0, [0.999, 1]),
    ],
)
def test_the_colour_scale_spans_the_values(lowest, ticks):
    bar = colour_bar(draw(STACKS["7"], lowest=lowest))
    assert bar.get_yticks().tolist() == ticks
    assert bar.get_ylim() == (ticks[0], 1)
    assert bar.get_ylabel() == "mean cosine similarity"


def test_zero_is_marked_where_there_are_values_below_it():
    below, above = (len(colour_bar(draw(STACKS["7"], lowest=x)).lines) for x in (-0.04, 0.04))
    assert below == above + 1


def test_undefined_cells_are_grey_and_say_so():
    dataset = result(STACKS["7"])
    dataset["cosine"][2] = np.nan
    figure = figures.similarity_matrix(dataset)
    assert colour_bar(figure).get_ylabel() == "mean cosine similarity (grey: undefined)"
    image = figure.axes[0].images[0]
    assert image.to_rgba(image.get_array())[2, 3].tolist() == [0.85, 0.85, 0.85, 1]
    dataset["cosine"][:] = np.nan
    figures.similarity_matrix(dataset)


def test_the_palette_is_even_in_grey():
    red_green_blue = matplotlib.colormaps[figures.PALETTE](np.linspace(0, 1, 50))[:, :3]
    assert (np.diff(red_green_blue @ [0.299, 0.587, 0.114]) > 0).all()


def test_save_writes_png_and_pdf(tmp_path):
    paths = figures.save(draw(STACKS["7"]), tmp_path / "new" / "cosine-v1.5")
    assert [path.name for path in paths] == ["cosine-v1.5.png", "cosine-v1.5.pdf"]
    png, pdf = (path.read_bytes() for path in paths)
    width = int.from_bytes(png[16:20])
    assert width == int(3.35 * 300)
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert pdf.count(b"/Subtype /Image") == 2  # the cells and the colour bar
    assert b"Date" not in png + pdf


def test_the_users_settings_neither_matter_nor_change(tmp_path):
    expected = [path.read_bytes() for path in figures.save(draw(STACKS["7"]), tmp_path / "a")]
    loud = {"font.size": 30, "savefig.bbox": "tight", "image.origin": "lower"}
    with matplotlib.rc_context(loud):
        before = dict(matplotlib.rcParams)
        paths = figures.save(draw(STACKS["7"]), tmp_path / "b")
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in paths] == expected


def test_the_same_bytes_in_another_process_and_no_pyplot(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from test_figures import *;"
        "figures.save(draw(STACKS['31']), sys.argv[2]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    for seed in "12":
        command = [sys.executable, "-c", script, os.path.dirname(__file__), tmp_path / seed]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    for suffix in (".png", ".pdf"):
        first, second = ((tmp_path / f"{seed}{suffix}").read_bytes() for seed in "12")
        assert first == second


def test_a_notebook_shows_it():
    shown, _ = DisplayFormatter().format(draw(STACKS["7"]))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_an_unknown_width():
    with pytest.raises(RepsimError, match="width='poster': choose column or page"):
        figures.similarity_matrix(result(STACKS["7"]), width="poster")
