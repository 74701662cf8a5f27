"""Made-up results of the analyses degradation and latency, and what their figures must be."""

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.text import Text

from repsim import plotting
from repsim.analyses.degradation import family_coordinates
from repsim.plans import resolve
from repsim.studies.painters import Variant, find_variants
from support.figures import assert_nothing_is_clipped_or_overlaps

T = 30  # layers
PAINTERS = ("painters", "dropouts")
Tasks: TypeAlias = dict[str, tuple[float, float, int]]
TASKS: Tasks = {  # chance, the full model's score, examples
    "arc_easy": (0.25, 0.55, 2376),
    "winogrande": (0.5, 0.56, 1267),
    "hellaswag": (0.25, 0.42, 10042),
    "lambada_openai": (0.0, 0.36, 5153),
    "gsm8k": (0.0, 0.002, 1319),  # not above chance
}
HARM = {
    "skip": 1.3,
    "middle_repeat": 1.6,
    "reverse": 1.0,
    "random": 0.9,
    "parallel": 0.8,
    "looped_parallel": 0.6,
}


def harm(variant: Variant, layers: int) -> float:
    """What a plan costs, 0 to about 1.3: more in wide middles, at the ends of the stack, and far
    from M/3 loops.
    """
    values = variant.values
    if "layer" in values:
        depth = int(values["layer"]) / (layers - 1)
        ends = 0.9 * np.exp(-25 * depth) + 0.3 * np.exp(25 * (depth - 1))
        return float((0.6 if "part" in values else 1) * (0.03 + ends))
    if "start" not in values:
        return 0.0
    middle = layers - 2 * int(values["start"]) - 1
    off = (
        abs(int(values.get("loops", 1)) - middle / 3) if variant.family == "looped_parallel" else 0
    )
    steepness = -9 * (HARM[variant.family] * middle / layers - 0.35)
    return float(1.2 / (1 + np.exp(steepness)) + 0.02 * off)


def estimates(name: str, dims: tuple[str, ...], values: Any, error: Any) -> dict[str, Any]:
    ends = {
        "_low": values - 2 * error,
        "_high": values + 2 * error,
        "_standard_error": error + 0 * values,
    }
    return {name: (dims, values), **{name + end: (dims, array) for end, array in ends.items()}}


def make_degradation(*plans: str, tasks: Tasks = TASKS, layers: int = T) -> xr.Dataset:
    """What the analysis degradation gives, made up."""
    return _make_degradation(plans, tuple(tasks.items()), layers).copy(deep=True)


@cache
def _make_degradation(
    plans: tuple[str, ...], items: tuple[tuple[str, tuple[float, float, int]], ...], layers: int
) -> xr.Dataset:
    tasks = dict(items)
    named = resolve(["baseline", *plans], layers)
    texts = [each.plan.text for each in named]
    variants = find_variants([each.name for each in named], texts, layers)
    chance, full, examples = (np.array(values) for values in zip(*tasks.values(), strict=True))
    error = np.sqrt(full * (1 - full) / examples)
    valid = full > chance + 2 * error
    noise = np.random.default_rng(0).normal(0, 0.02, (len(variants), len(tasks)))
    cost = np.array([harm(variant, layers) for variant in variants])[:, None]
    normalised = 1 - cost * (1 + 0.25 * np.sin(np.arange(len(tasks)))) + noise
    normalised[0] = 1
    seeds = np.array([len(variant.plans) for variant in variants])
    spread = np.where(seeds > 1, 0.08, np.nan)[:, None] * np.ones(len(tasks))
    of_variant: tuple[str, ...] = ("variant",)
    of_both: tuple[str, ...] = ("variant", "task")
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
            **family_coordinates("variant", plans_of, layers, "variant_"),
            "variant_seeds": ("variant", seeds),
            "task": np.array(list(tasks), object),
        },
        attrs={
            "model": "smollm2-135m",
            "layers": layers,
            "interval": "95% of a bootstrap over examples",
        },
    )


def make_latency(*plans: str, measured: bool = True, **options: Any) -> xr.Dataset:
    """What the analysis latency gives, made up."""
    result = make_degradation(*plans, **options)
    by_name = {
        each.name: each.plan
        for each in resolve(["baseline", *PAINTERS, *plans], result.attrs["layers"])
    }
    first = {name.partition(",seed")[0]: plan for name, plan in reversed(by_name.items())}
    ran = [first.get(name, by_name["baseline"]) for name in result["variant"].values]
    applications = np.array([plan.applications for plan in ran])
    return xr.Dataset(
        {name: result[name] for name in ("mean", "mean_low", "mean_high")}
        | {
            "applications": ("variant", applications),
            "critical_path": ("variant", np.array([len(plan) for plan in ran])),
            "milliseconds": (
                "variant",
                0.2 + 0.05 * applications if measured else np.full(len(ran), np.nan),
            ),
        },
        attrs=result.attrs | {"benchmarks": "arc_easy, winogrande, hellaswag, lambada_openai"},
    )


def lines_of(axes: Axes) -> dict[str, Any]:
    """Legend entry → the line's y values."""
    return {str(line.get_label()): line.get_ydata() for line in axes.lines}


def x_of_lines(axes: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line.get_xdata() for line in axes.lines}


def assert_legible(figure: plotting.Figure) -> None:
    """All text lies inside the figure, none on another, and no legend on a panel."""
    assert_nothing_is_clipped_or_overlaps(figure)
    panels = [axes for axes in figure.axes if axes.axison]
    # Of the title as an artist, matplotlib makes no public name.
    texts: list[Any] = [figure._suptitle]  # type: ignore[attr-defined]
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
    legends: list[Any] = figure.legends + [
        axes.get_legend() for axes in panels if axes.get_legend()
    ]
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


def in_view(text: Text, panels: Sequence[Axes]) -> bool:
    """False for a label that matplotlib keeps for a tick beyond the axis."""
    for axes in panels:
        for axis, column in ((axes.xaxis, 0), (axes.yaxis, 1)):
            if text in axis.get_ticklabels():
                low, high = sorted(axis.get_view_interval())
                return low <= text.get_position()[column] <= high
    return True
