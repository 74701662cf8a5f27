"""What stands under a figure of scores in a paper: which plans, which benchmarks, how certain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from repsim.errors import printable
from repsim.plotting.captions import describe_interval, join_sentences
from repsim.plotting.colours import ColourScale
from repsim.plotting.curves import count_scored, find_rows
from repsim.plotting.words import name_of, span_of_letters
from repsim.studies.painters import Curve, count_places, describe_middle

NORMALISED = "normalised scores (0: chance, 1: the full model)"
GUIDES = "Dashed: the full model; dotted: chance."


# Phrases


def name_with_examples(task: xr.Dataset) -> str:
    """A benchmark and how many examples of it: `arc_easy (100)`."""
    return printable(f"{task['task'].item()} ({int(task['examples'])})")


def describe_benchmarks(result: xr.Dataset) -> str:
    """The valid benchmarks and their numbers of examples."""
    valid = np.flatnonzero(result["valid"].values).tolist()
    names = [name_with_examples(result.isel(task=task)) for task in valid]
    return f"the benchmarks (examples) {', '.join(names)}"


def describe_left_out(result: xr.Dataset) -> str:
    """A sentence on the benchmarks that are not valid; empty where all are."""
    tasks = result["task"].values[result["valid"].values == 0]
    if not len(tasks):
        return ""
    names = printable(", ".join(map(str, tasks)))
    return f"Left out, as the full model is not above chance: {names}."


def describe_seeds(result: xr.Dataset, curve: Curve) -> str:
    """How many random orders of each start: `10 seeds`, or `3 to 10 seeds`."""
    counts = result["variant_seeds"].values[list(find_rows(result, curve).values())]
    fewest, most = int(counts.min()), int(counts.max())
    return f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"


def say_intervals(mark: str, result: xr.Dataset) -> str:
    """A sentence of what marks the intervals; empty where the result does not say."""
    interval = describe_interval(result)
    return f"{mark}: {interval}." if interval else ""


# Captions


def caption_single_layers(
    result: xr.Dataset, curves: Sequence[Curve], tasks: Sequence[xr.Dataset]
) -> str:
    """Of figure 2."""
    layers, valid = int(result.attrs["layers"]), int(result["valid"].sum())
    counts = [
        f"{curve.label}, {count_scored(result, curve, 'value')} of "
        f"{count_places(curve.family, layers)}"
        for curve in curves
    ]
    names = ", ".join(name_with_examples(task) for task in tasks)
    return join_sentences(
        f"{name_of(result)} with one of its {layers} layers skipped, or two neighbouring layers "
        f"switched, by layer: (a) the median of {NORMALISED} over the {valid} benchmarks on which "
        f"the full model is above chance; ({span_of_letters(len(tasks), 1)}) the score on each "
        f"benchmark (examples): {names}.",
        f"Plans with a score: {'; '.join(counts)}.",
        say_intervals("Bands", result),
        GUIDES,
    )


def caption_one_variant(result: xr.Dataset, curve: Curve, number: int) -> str:
    """Of figures 4 to 9."""
    layers = int(result.attrs["layers"])
    has_seeds = curve.family == "random"
    seeds = f", {describe_seeds(result, curve)} each" * has_seeds
    return join_sentences(
        f"{name_of(result)} with {describe_middle(number, layers)}, by the start layer N: "
        f"{NORMALISED} on {describe_benchmarks(result)}, and their median (bold).",
        f"{count_scored(result, curve, 'median')} of {count_places(curve.family, layers)} starts"
        f"{seeds}.",
        say_intervals("Band of the median", result),
        "Whiskers, side by side: each benchmark's standard deviation over seeds." * has_seeds,
        GUIDES,
        describe_left_out(result),
    )


def caption_all_variants(result: xr.Dataset, curves: Sequence[Curve]) -> str:
    """Of figure 11."""
    layers = int(result.attrs["layers"])
    counts = [
        f"{curve.label} {count_scored(result, curve, 'mean')}"
        + (f" ({describe_seeds(result, curve)})" if curve.family == "random" else "")
        for curve in curves
    ]
    return join_sentences(
        f"{name_of(result)} with {describe_middle(11, layers)}, by the start layer N: mean of "
        f"{NORMALISED} over {describe_benchmarks(result)}.",
        f"Starts drawn, of {count_places('skip', layers)}: {', '.join(counts)}.",
        say_intervals("Bands", result),
        GUIDES,
        describe_left_out(result),
    )


def caption_loops_by_width(result: xr.Dataset, table: pd.DataFrame, scale: ColourScale) -> str:
    """Of figure 10."""
    layers = int(result.attrs["layers"])
    return join_sentences(
        f"{name_of(result)} with {describe_middle(10, layers)}, by the number M of layers in "
        f"parallel and the number of loops: mean of {NORMALISED} over "
        f"{describe_benchmarks(result)}.",
        f"{int(table.count().sum())} of {table.size} cells have a score. "
        "Framed: the best number of loops for each M.",
        scale.describe(table.values),
        describe_left_out(result),
    )


def caption_plans(result: xr.Dataset, plans: str) -> str:
    """Of `plan_scores`.

    Args:
        result: what is drawn.
        plans: which of the plans have a row.
    """
    if result["valid"].values.any():
        what = f"mean of {NORMALISED} over {describe_benchmarks(result)}"
    else:
        tasks = [result.isel(task=task) for task in range(result.sizes["task"])]
        names = ", ".join(name_with_examples(task) for task in tasks if task["metric_of"].item())
        what = f"scores on each benchmark (examples): {names}"
    return join_sentences(
        f"{name_of(result)} under {plans}, the best first: {what}.",
        say_intervals("Whiskers", result),
        GUIDES,
        describe_left_out(result) if result["valid"].values.any() else "",
    )


def caption_latency(result: xr.Dataset) -> str:
    """Of `latency`."""
    scored = int(np.isfinite(result["mean"].values).sum())
    timed = int(np.isfinite(result["milliseconds"].values).sum())
    benchmarks = result.attrs.get("benchmarks")
    over = f" over {benchmarks}" if benchmarks else ""
    spread = "milliseconds_low" in result and bool(timed)
    repeats = result.attrs.get("repeats")
    return join_sentences(
        f"{name_of(result)} under {scored} of {result.sizes['variant']} plans: mean of "
        f"{NORMALISED}{over} against (a) the critical path and (b) the measured time per token, "
        "both relative to the full model's (star). A parallel step counts once in the critical "
        "path, and was timed layer after layer.",
        say_intervals("Vertical whiskers", result),
        f"Horizontal whiskers: the fastest and the slowest of {repeats} repeats." * spread,
        f"{timed} plans were timed.",
        GUIDES,
    )
