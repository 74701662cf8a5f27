"""Figures: what a reader of the printed page needs, and nothing that depends on who draws."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import numpy as np
import PIL.Image
import pytest
import xarray as xr
from IPython.core.formatters import DisplayFormatter
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from numpy.typing import NDArray

from repsim import plotting
from repsim.analyses import blocks, clusters, drift
from repsim.errors import RepsimError
from repsim.options import FigureOptions
from repsim.plotting.colours import ColourScale, choose_scale
from repsim.stats.bootstrap import Estimate
from repsim.stats.per_sample import SampleStatistic
from support.figures import (
    LONG,
    STACKS,
    assert_nothing_is_clipped_or_overlaps,
    draw,
    make_similarity,
    tick_texts,
)


def colour_bar(figure: plotting.Figure) -> Axes:
    return figure.axes[1]


def test_labels_of_a_31_state_plan() -> None:
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
def test_labels_show_where_a_plan_departs_from_the_stack(stack: str, expected: list[str]) -> None:
    assert tick_texts(draw(STACKS[stack]).axes[0].yaxis) == expected


def test_a_step_that_is_not_a_layer_is_named() -> None:
    assert "(13|…|16) ×3" in tick_texts(draw(STACKS["looped"]).axes[0].yaxis)  # noqa: RUF001
    assert LONG in tick_texts(draw(["embed", "12", LONG, "17"]).axes[0].yaxis)
    assert "7.mlp" in tick_texts(draw(STACKS["half"]).axes[0].yaxis)


@pytest.mark.parametrize("width", plotting.WIDTHS)
@pytest.mark.parametrize("stack", STACKS)
def test_no_two_labels_overlap_and_nothing_is_clipped(stack: str, width: Any) -> None:
    assert_nothing_is_clipped_or_overlaps(
        plotting.similarity_matrices(make_similarity(STACKS[stack], -0.2), width=width)
    )


def test_a_column_wide_with_square_cells_from_the_top_left() -> None:
    figure = draw(STACKS["31"])
    assert figure.get_figwidth() == 3.35
    assert 2.6 < figure.get_figheight() < 3.2
    axes = figure.axes[0]
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height)
    assert box.width > 0.6 * figure.bbox.width
    assert axes.get_ylim() == (30.5, -0.5)
    assert axes.get_xlim() == (-0.5, 30.5)


def test_title_and_caption() -> None:
    figure = draw(STACKS["7"], corpus="costs $1 or $2")
    assert figure.get_suptitle() == "smollm2-135m · baseline · token average"
    assert "under the plan baseline, 12,345 tokens (costs $1 or $2)." in figure.caption
    assert "\n" not in figure.caption


@pytest.mark.parametrize("plan", [", ".join(map(str, range(60))), "x" * 200])
def test_a_long_title_is_one_line_and_whole_in_the_files(plan: str) -> None:
    figure = draw(STACKS["7"], plan=plan)
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.x1 <= figure.get_figwidth()
    title = figure.get_suptitle()
    assert "…" in title
    assert "\n" not in title
    assert plan in figure.metadata["Title"]


@pytest.mark.parametrize("title", ["none", "Figure 3", "words " * 30])
def test_a_title_of_the_users(title: str) -> None:
    with plotting.drawn_with(FigureOptions(title=title)):
        figure = draw(STACKS["7"])
    assert figure.get_suptitle().split() == ([] if title == "none" else title.split())
    assert figure.metadata["Title"].startswith("smollm2-135m · baseline")
    assert_nothing_is_clipped_or_overlaps(figure)


@pytest.mark.parametrize("lowest", [-0.97, -0.04, 0.31, 1.0])
def test_the_colour_scale_does_not_depend_on_the_values(lowest: float) -> None:
    figure = draw(STACKS["7"], lowest=lowest)
    bar = colour_bar(figure)
    assert bar.get_yticks().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert bar.get_ylim() == (0, 1)
    assert bar.get_ylabel() == "mean cosine similarity"
    assert (f"lower values, down to {lowest:.2g}" in figure.caption) == (lowest < 0)


def test_zero_is_marked_where_the_scale_passes_it() -> None:
    with plotting.drawn_with(FigureOptions(vmin=-0.5)):
        below = colour_bar(draw(STACKS["7"]))
    assert len(below.lines) == len(colour_bar(draw(STACKS["7"])).lines) + 1
    assert below.get_ylim() == (-0.5, 1)


def test_undefined_cells_are_grey_and_say_so() -> None:
    dataset = make_similarity(STACKS["7"])
    dataset["cosine"][2] = np.nan
    figure = plotting.similarity_matrices(dataset)
    assert colour_bar(figure).get_ylabel() == "mean cosine similarity (grey: undefined)"
    image: Any = figure.axes[0].images[0]
    assert image.to_rgba(image.get_array())[2, 3].tolist() == [0.85, 0.85, 0.85, 1]
    dataset["cosine"][:] = np.nan
    plotting.similarity_matrices(dataset)


def test_the_palette_is_even_in_grey() -> None:
    red_green_blue = matplotlib.colormaps[plotting.PALETTE](np.linspace(0, 1, 50))[:, :3]
    assert (np.diff(red_green_blue @ [0.299, 0.587, 0.114]) > 0).all()


def test_a_figure_that_cannot_be_drawn_to_its_end_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PNG is written and the PDF half, when the disk is full; then, when the process is
    stopped.
    """
    figure = draw(STACKS["7"])
    plotting.save(figure, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    original = type(figure).savefig
    problem: BaseException

    def half(self: Any, path: Path, *, format: str, **options: Any) -> None:
        original(self, path, format=format, **options)
        if format == "pdf":
            path.write_bytes(path.read_bytes()[:100])
            raise problem

    monkeypatch.setattr(type(figure), "savefig", half)
    problem = OSError(28, "No space left on device")
    with pytest.raises(
        RepsimError, match=r"cannot be written \(No space left on device\); choose another folder"
    ):
        plotting.save(figure, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    problem = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        plotting.save(figure, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_figure_without_a_name() -> None:
    with pytest.raises(RepsimError, match=r"^figure '\.': no name of a file"):
        plotting.save(draw(STACKS["7"]), "")


def test_save_writes_png_and_pdf(tmp_path: Path) -> None:
    paths = plotting.save(draw(STACKS["7"]), tmp_path / "new" / "cosine-v1.5")
    assert [path.name for path in paths] == [f"cosine-v1.5.{end}" for end in ("png", "pdf", "txt")]
    png, pdf, caption = (path.read_bytes() for path in paths)
    width = int.from_bytes(png[16:20])
    assert width == int(3.35 * 300)
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert pdf.count(b"/Subtype /Image") == 2  # the cells and the colour bar
    assert b"Date" not in png + pdf
    assert caption.decode() == f"{draw(STACKS['7']).caption}\n"
    with PIL.Image.open(paths[0]) as picture:
        assert picture.info["Description"] == caption.decode().strip()


def test_the_users_settings_neither_matter_nor_change(tmp_path: Path) -> None:
    expected = [path.read_bytes() for path in plotting.save(draw(STACKS["7"]), tmp_path / "a")]
    loud: Any = {"font.size": 30, "savefig.bbox": "tight", "image.origin": "lower"}
    with matplotlib.rc_context(loud):
        before = dict(matplotlib.rcParams)
        paths = plotting.save(draw(STACKS["7"]), tmp_path / "b")
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in paths] == expected


def test_the_same_bytes_in_another_process_and_no_pyplot(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from support.figures import *; from repsim import plotting;"
        "plotting.save(draw(STACKS['31']), sys.argv[2]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    for seed in "12":
        command = [sys.executable, "-c", script, str(Path(__file__).parents[1])]
        command.append(str(tmp_path / seed))
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    for suffix in (".png", ".pdf"):
        first, second = ((tmp_path / f"{seed}{suffix}").read_bytes() for seed in "12")
        assert first == second


def test_a_notebook_shows_it() -> None:
    formatter: Any = DisplayFormatter()
    shown, _ = formatter.format(draw(STACKS["7"]))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_an_unknown_width() -> None:
    with pytest.raises(RepsimError, match="width='poster': choose column, page or slide"):
        plotting.similarity_matrices(
            make_similarity(STACKS["7"]),
            width="poster",  # type: ignore[arg-type]
        )


# Several results side by side


def measured(
    labels: Sequence[str], measure: str = "debiased linear CKA", lowest: float = 0.1, **attrs: Any
) -> xr.Dataset:
    return make_similarity(labels, lowest, description=measure, **attrs).rename(cosine="similarity")


@pytest.mark.parametrize(
    "stacks", [("31", "7"), ("31", "81", "looped"), ("2", "random", "7", "81")]
)
@pytest.mark.parametrize("width", [None, *plotting.WIDTHS])
def test_matrices_of_different_depth_side_by_side_on_one_scale(
    stacks: tuple[str, ...], width: Any
) -> None:
    results = [
        make_similarity(STACKS[stack], lowest, model=stack)
        for stack, lowest in zip(stacks, (0.3, -0.2, 0.5, 0), strict=False)
    ]
    figure: Any = plotting.similarity_matrices(*results, width=width)
    assert_nothing_is_clipped_or_overlaps(figure)
    *panels, bar = figure.axes
    assert [axes.images[0].get_clim() for axes in panels] == [(0, 1)] * len(stacks)
    assert bar.get_ylim() == (0, 1)
    assert [axes.images[0].get_array().shape[0] for axes in panels] == [
        len(STACKS[stack]) for stack in stacks
    ]
    boxes = [axes.get_window_extent() for axes in panels]
    assert all(box.width == pytest.approx(box.height) for box in boxes)
    assert all(box.width == pytest.approx(boxes[0].width, rel=1e-3) for box in boxes)
    for axes, stack in zip(panels, stacks, strict=True):
        assert axes.get_title().startswith(stack)
    assert [axes.texts[0].get_text() for axes in panels] == list("abcd")[: len(stacks)]
    titles = [axes.title.get_window_extent() for axes in panels]
    assert not any(a.overlaps(b) for a, b in pairwise(titles))


def test_the_measure_is_named() -> None:
    figure = plotting.similarity_matrices(measured(STACKS["7"]), measured(STACKS["31"]))
    assert figure.axes[-1].get_ylabel() == "debiased linear CKA"


def test_different_measures_are_not_drawn_on_one_scale() -> None:
    other = measured(STACKS["7"], "RSA (Spearman, Euclidean)")
    for one in (measured(STACKS["7"]), make_similarity(STACKS["7"])):
        with pytest.raises(
            RepsimError, match=r"side by side: .*, RSA .Spearman.*; draw one measure at a time"
        ):
            plotting.similarity_matrices(one, other)


# Profiles


NAMES = {f"number_{i}": f"quantity {i}" for i in range(6)}


def profile(
    labels: Sequence[str], names: Iterable[str] = NAMES, low: float = 1.0, **attrs: Any
) -> xr.Dataset:
    states = np.arange(len(labels))
    data: dict[str, Any] = {}
    for row, name in enumerate(names):
        values = low + 10 * (1 + np.sin(states / 3 + row))
        data |= {
            name: ("state", values),
            f"{name}_low": ("state", values - 0.5),
            f"{name}_high": ("state", values + 0.5),
        }
    attrs = {
        "model": "smollm2-135m",
        "plan": "baseline",
        "corpus": "easel",
        "tokens": 12345,
    } | attrs
    return xr.Dataset(data, coords={"layer": ("state", labels)}, attrs=attrs)


@pytest.mark.parametrize("width", plotting.WIDTHS)
@pytest.mark.parametrize("stack", STACKS)
def test_a_profile_against_layers(stack: str, width: Any) -> None:
    result = profile(STACKS[stack])
    figure: Any = plotting.profiles([result], {"number_0": "quantity"}, width=width)
    assert_nothing_is_clipped_or_overlaps(figure)
    (axes,) = figure.axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == list(range(len(STACKS[stack])))
    assert line.get_ydata().tolist() == result["number_0"].values.tolist()
    assert axes.get_xlabel() == "state after layer"
    assert tick_texts(axes.xaxis)[0] == "embed"
    assert axes.get_legend() is None
    assert figure.get_suptitle().startswith("smollm2-135m · baseline")


@pytest.mark.parametrize("panels", [1, 2, 5, 6])
@pytest.mark.parametrize("several", [1, 7])
def test_panels_and_lines(panels: int, several: int) -> None:
    names = dict(list(NAMES.items())[:panels])
    results = [profile(STACKS[stack], model=f"model-{stack}") for stack in list(STACKS)[:several]]
    figure: Any = plotting.profiles(results, names)
    assert_nothing_is_clipped_or_overlaps(figure)
    drawn = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_ylabel() for axes in drawn] == list(names.values())
    assert [len(axes.lines) for axes in drawn] == [several] * panels
    assert [len(axes.collections) for axes in drawn] == [several] * panels
    if several == 1:
        return
    for axes in drawn:
        assert axes.get_xlabel() == "depth (share of steps)"
        assert all(line.get_xdata()[[0, -1]].tolist() == [0, 1] for line in axes.lines)
    styles = {(line.get_color(), line.get_marker()) for line in drawn[0].lines}
    assert len(styles) == several
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{each.attrs['model']} · baseline" for each in results
    ]
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    ("attrs", "names"),
    [
        (
            [{"corpus": "easel"}, {"corpus": "wiki"}],
            ["m · baseline (easel)", "m · baseline (wiki)"],
        ),
        (
            [{"tokens": 12}, {"tokens": 34}],
            ["m · baseline (tokens 12)", "m · baseline (tokens 34)"],
        ),
        ([{}, {}], ["m · baseline (1)", "m · baseline (2)"]),
        (
            [{"label": "m (run1)"}, {"label": "m (run2)"}],
            ["m (run1) · baseline", "m (run2) · baseline"],
        ),
        ([{"plan": "0-3"}, {}, {}], ["m · 0-3", "m · baseline (1)", "m · baseline (2)"]),
    ],
)
def test_results_of_one_name_are_told_apart(attrs: list[dict[str, Any]], names: list[str]) -> None:
    results = [profile(STACKS["7"], NAMES, model="m", **more) for more in attrs]
    figure: Any = plotting.profiles(results, NAMES)
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == names
    matrices = plotting.similarity_matrices(
        *(make_similarity(STACKS["7"]).assign_attrs(each.attrs) for each in results)
    )
    titles = [" ".join(axes.get_title().split()) for axes in matrices.axes[: len(names)]]
    assert all(title.startswith(name) for title, name in zip(titles, names, strict=True))


def test_no_two_of_many_lines_look_alike() -> None:
    results = [profile(STACKS["7"], ["number_0"], model=f"m{row}") for row in range(60)]
    lines = plotting.profiles(results, {"number_0": "quantity"}).axes[0].lines
    assert (
        len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 60
    )


def test_a_logarithmic_axis_where_all_values_are_positive() -> None:
    names = {"number_0": "quantity"}
    scales = [
        plotting.profiles([profile(STACKS["7"], names, low)], names, logarithmic=names)
        .axes[0]
        .get_yscale()
        for low in (1.0, -10.0)
    ]
    assert scales == ["log", "linear"]


def test_values_that_are_missing_leave_a_gap() -> None:
    result = profile(STACKS["7"])
    result["number_0"][3] = np.nan
    figure = plotting.profiles([result], {"number_0": "quantity"}, logarithmic=["number_0"])
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).sum() == 1


# The other figures


class Fake:
    """Random states under a plan and the baseline, with any names."""

    identity: ClassVar[dict[str, str]] = {"model": "smollm2-135m", "corpus": "easel"}

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels: dict[str, Any] = {"plan": labels, "baseline": STACKS["31"]}

    def steps(self, plan: str) -> list[str]:
        return self.labels[plan]

    def plan_name(self, plan: str) -> str:
        return plan

    plan_text = plan_name

    def per_sample(
        self, plans: str | Sequence[str], statistic: SampleStatistic
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        plans = [plans] if isinstance(plans, str) else plans
        generator = np.random.default_rng(0)
        for tokens in (5, 9, 7, 6):
            yield (
                tokens,
                statistic.kernel(
                    generator.normal(size=(sum(len(self.labels[p]) for p in plans), tokens, 8))
                ),
            )


def of_blocks(labels: Sequence[str]) -> plotting.Figure:
    return plotting.blocks(blocks.compute(Fake(labels), plan="plan", resamples=10))


def of_drift(labels: Sequence[str]) -> plotting.Figure:
    return plotting.drift(drift.compute(Fake(labels), plan="plan", resamples=10))


def of_clusters(labels: Sequence[str]) -> plotting.Figure:
    matrix = make_similarity(labels)["cosine"].values
    result = clusters.cluster(Estimate(matrix, np.array([matrix] * 4)), labels)
    result.attrs |= make_similarity(labels).attrs | {"quantity": "cosine similarity"}
    return plotting.clusters(result)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("drawn", [of_blocks, of_drift, of_clusters])
def test_every_figure_of_every_plan_is_legible(
    drawn: Callable[..., plotting.Figure], stack: str
) -> None:
    if drawn is of_clusters and len(STACKS[stack]) < 5:
        stack = "7"
    figure = drawn(STACKS[stack])
    assert_nothing_is_clipped_or_overlaps(figure)
    for axes in figure.axes:
        if legend := axes.get_legend():
            box = legend.get_window_extent()
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("width", plotting.WIDTHS)
def test_blocks_in_both_widths(width: Any) -> None:
    figure = plotting.blocks(
        blocks.compute(Fake(STACKS["31"]), plan="plan", resamples=10), width=width
    )
    assert figure.get_figwidth() == plotting.WIDTHS[width]
    assert_nothing_is_clipped_or_overlaps(figure)


def test_blocks_marks_the_least_and_draws_block_influence() -> None:
    result = blocks.compute(Fake(STACKS["7"]), plan="plan", resamples=10)
    figure: Any = plotting.blocks(result)
    upper, lower, bar = figure.axes
    assert upper.lines[0].get_xdata().tolist() == np.nanargmin(result["distance"], axis=1).tolist()
    assert upper.lines[0].get_ydata().tolist() == result["size"].values.tolist()
    assert [patch.get_height() for patch in lower.patches] == result["influence"].values.tolist()
    assert bar.get_ylabel() == "angular distance (half turns), last token"
    assert upper.collections[0].get_clim() == (0, 0.5)


def test_drift_marks_the_most_similar_state_of_the_baseline() -> None:
    result = drift.compute(Fake(STACKS["skip"]), plan="plan", resamples=10)
    figure: Any = plotting.drift(result)
    left, right = figure.axes[:2]
    assert left.lines[0].get_xdata().tolist() == np.argmax(result["cosine"].values, axis=1).tolist()
    assert right.lines[0].get_ydata().tolist() == result["distance"].values.tolist()
    assert right.get_ylim()[0] == 0


def test_clusters_frames_the_groups_and_names_the_parts() -> None:
    figure: Any = of_clusters(STACKS["31"])
    frames = figure.axes[0].patches
    assert sum(frame.get_width() for frame in frames) == 31
    assert frames[0].get_x() == -0.5
    names = figure.get_suptitle().partition(" groups: ")[2].split(", ")
    assert len(names) == len(frames)
    assert names[0].startswith("embed to ")


def test_one_sample_s_clusters_are_drawn() -> None:
    matrix = make_similarity(STACKS["7"])["cosine"].values
    result = clusters.cluster(Estimate(matrix, np.full((4, 7, 7), np.nan)), STACKS["7"])
    result.attrs |= make_similarity(STACKS["7"]).attrs | {"quantity": "cosine similarity"}
    assert_nothing_is_clipped_or_overlaps(plotting.clusters(result))


@pytest.mark.parametrize("drawn", [of_blocks, of_drift, of_clusters])
def test_saved_figures_hold_text_in_fonts_and_the_same_bytes(
    tmp_path: Path, drawn: Callable[..., plotting.Figure]
) -> None:
    first, again = (plotting.save(drawn(STACKS["7"]), tmp_path / name / "figure") for name in "ab")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    pdf = first[1].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf


@pytest.mark.parametrize("drawn", [plotting.blocks, plotting.drift, plotting.clusters])
def test_an_unknown_width_of_another_figure(drawn: Callable[..., plotting.Figure]) -> None:
    with pytest.raises(RepsimError, match="width='poster': choose column, page or slide"):
        drawn(make_similarity(STACKS["7"]), width="poster")
    with pytest.raises(RepsimError, match="width='poster': choose column, page or slide"):
        plotting.profiles(
            [profile(STACKS["7"])],
            NAMES,
            width="poster",  # type: ignore[arg-type]
        )


# Options of all figures


@pytest.mark.parametrize("width", plotting.WIDTHS)
@pytest.mark.parametrize("drawn", [of_blocks, of_drift, of_clusters])
def test_every_width_of_every_figure(drawn: Callable[..., plotting.Figure], width: str) -> None:
    with plotting.drawn_with(FigureOptions(width=width)):
        figure = drawn(STACKS["looped"])
    assert figure.get_figwidth() == plotting.WIDTHS[width]
    assert_nothing_is_clipped_or_overlaps(figure)
    sizes = {text.get_fontsize() for axes in figure.axes for text in axes.get_xticklabels()}
    assert sizes == {14 if width == "slide" else 7}


@pytest.mark.parametrize("drawn", [draw, of_blocks, of_drift, of_clusters])
@pytest.mark.parametrize("style", ["ggplot", "seaborn-v0_8-whitegrid"])
def test_no_grid_crosses_a_heat_map(drawn: Callable[..., plotting.Figure], style: str) -> None:
    with plotting.styled(style):
        figure = drawn(STACKS["7"])
    heat_maps = [axes for axes in figure.axes if axes.images or axes.findobj(QuadMesh)]
    assert heat_maps
    for axes in heat_maps:
        lines = [*axes.get_xgridlines(), *axes.get_ygridlines()]
        assert not any(line.get_visible() for line in lines)


def test_the_embeddings_lie_flat_along_x() -> None:
    for stack in ("7", "31", "81"):
        ticks = draw(STACKS[stack]).axes[0].get_xticklabels()
        assert [text.get_rotation() for text in ticks] == [0] * len(ticks)
    looped = {
        text.get_text(): text.get_rotation()
        for text in draw(STACKS["looped"]).axes[0].get_xticklabels()
    }
    assert looped["embed"] == 0
    assert looped["(13|…|16) ×3"] == 90  # noqa: RUF001


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (-0.1, 1, [-0.1, 0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (0.97, 1, [0.97, 0.98, 0.99, 1]),
        (0.137, 0.9, [0.137, 0.4, 0.6, 0.8, 0.9]),
    ],
)
def test_ticks_of_a_scale_of_colours(low: float, high: float, ticks: list[float]) -> None:
    assert ColourScale(low, high).ticks == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("values", "extend"),
    [([0, 1], "neither"), ([-0.1, 0.5], "min"), ([0.2, 1.1], "max"), ([-1, np.nan, 2], "both")],
)
def test_a_colour_bar_says_that_values_are_beyond_it(values: list[float], extend: str) -> None:
    assert choose_scale(np.array(values)).extend == extend


def test_colours_that_would_end_before_they_begin() -> None:
    with (
        plotting.drawn_with(FigureOptions(vmin=2)),
        pytest.raises(RepsimError, match=r"^the colours would run from 2 to 1; give"),
    ):
        draw(STACKS["7"])


def test_every_format_is_written_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    with plotting.drawn_with(FigureOptions(format="svg,png,pdf", dpi=100)):
        first, again = (plotting.save(draw(STACKS["7"]), tmp_path / name / "x") for name in "ab")
    assert [path.suffix for path in first] == [".svg", ".png", ".pdf", ".txt"]
    for path, other in zip(first, again, strict=True):
        assert path.read_bytes() == other.read_bytes()
    with PIL.Image.open(first[1]) as picture:
        assert picture.width == 335
    svg = first[0].read_text()
    assert "smollm2-135m · baseline · token average" in svg
    assert "corpus: easel; tokens: 12345" in svg


# Styles


def test_a_style_is_on_top_of_ours_and_undone_afterwards(tmp_path: Path) -> None:
    plain = [path.read_bytes() for path in plotting.save(draw(STACKS["7"]), tmp_path / "plain")]
    before = dict(matplotlib.rcParams)
    with plotting.styled("ggplot"):
        figure = draw(STACKS["7"])
        assert figure.axes[0].get_facecolor()[:3] == pytest.approx((0xE5 / 255,) * 3)  # ggplot's
        assert figure.axes[0].yaxis.get_major_ticks()[0].tick1line.get_markersize() == 2  # ours
        styled = [path.read_bytes() for path in plotting.save(figure, tmp_path / "styled")]
    assert dict(matplotlib.rcParams) == before
    assert all(one != other for one, other in zip(plain[:2], styled[:2], strict=True))
    assert plain[2] == styled[2]  # the caption
    assert [
        path.read_bytes() for path in plotting.save(draw(STACKS["7"]), tmp_path / "again")
    ] == plain


def test_a_style_is_undone_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), plotting.styled("ggplot"):
        raise ZeroDivisionError
    assert draw(STACKS["7"]).axes[0].get_facecolor() == (1, 1, 1, 1)


def test_a_style_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.mplstyle").write_text("axes.facecolor: 00ff00\n")
    with plotting.styled(tmp_path / "mine.mplstyle"):
        assert draw(STACKS["7"]).axes[0].get_facecolor() == (0, 1, 0, 1)


@pytest.mark.parametrize("style", ["no-such-style", "no/such/file.mplstyle"])
def test_an_unknown_style(style: str) -> None:
    message = f"style '{style}': no such file, and matplotlib knows .*ggplot"
    with pytest.raises(RepsimError, match=message) as caught, plotting.styled(style):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("highest", [9.0, 900.0])
def test_a_logarithmic_axis_needs_no_mathtext(highest: float) -> None:
    """Below a decade matplotlib labels the ticks in between, too."""
    values = np.linspace(4, highest, 7)
    result = xr.Dataset(
        {name: ("state", values) for name in ("norm", "low", "high")},
        coords={"layer": ("state", STACKS["7"])},
        attrs={"model": "painter", "plan": "baseline", "corpus": "easel", "tokens": 7},
    )
    figure = plotting.profiles([result], {"norm": "norm"}, logarithmic=["norm"])
    figure.draw_without_rendering()
    labels = figure.axes[0].yaxis.get_ticklabels(which="both")
    assert any(text.get_text() for text in labels)
    assert not any("$" in text.get_text() for text in labels)
