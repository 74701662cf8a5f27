"""What stands under a figure of hidden states in a paper: what is drawn, of what, how certain.

Sentences made from a result's attributes; an attribute that a result does not have (one of an
earlier release, say) is not spoken of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import xarray as xr

from repsim.errors import printable
from repsim.plotting.colours import ColourScale
from repsim.plotting.words import (
    is_of_two,
    letter_of,
    name_of,
    name_of_other,
    shortened,
    span_of_letters,
)

LONGEST_PLAN = 80  # characters of a plan in a caption
DISTANCE_TOKENS = {"last": "at the last token of each text", "all": "mean over tokens"}
# Of clusters: variable -> how its line is marked, and what it is.
EVIDENCE = {
    "silhouette": "circles: mean silhouette",
    "stability": "squares: stability, the mean adjusted Rand index with the groups of resamples",
    "spectral_agreement": "triangles: adjusted Rand index with spectral clustering",
}


# Phrases


def describe_subject(result: xr.Dataset) -> str:
    """The model and its plan: `smollm2-135m under the plan skip:start=3`."""
    plan = shortened(str(result.attrs["plan"]), LONGEST_PLAN)
    return f"{name_of(result)} under the plan {plan}"


def describe_texts(result: xr.Dataset) -> str:
    """Over what means are: `14,292 tokens of 64 texts (builtin)`."""
    of = result.attrs
    texts = f" of {of['samples']:,.0f} texts" if "samples" in of else ""
    left_out = of.get("left_out_tokens", 0)
    without = f", {left_out:,.0f} zero vectors left out" * bool(left_out)
    sinks = f", attention sinks {of['sinks']}" if "sinks" in of else ""
    return f"{of['tokens']:,.0f} tokens{texts} ({of['corpus']}{sinks}{without})"


def describe_interval(result: xr.Dataset) -> str:
    """Which interval, and of how many resamples; empty where the result does not say."""
    level, _, method = str(result.attrs.get("interval", "")).partition(" of ")
    if not method:
        return ""
    resamples = result.attrs.get("resamples")
    draws = f", {resamples:,.0f} resamples" if resamples is not None else ""
    return f"{level} intervals ({method}{draws})"


def _say_interval(mark: str, result: xr.Dataset) -> str:
    """A sentence of what marks the intervals; empty where these are not known."""
    interval = describe_interval(result)
    return f"{mark}: {interval}." if interval else ""


def join_sentences(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


# Captions


def caption_matrices(
    results: Sequence[xr.Dataset], name: str, measured: str, scale: ColourScale
) -> str:
    """Of `similarity_matrices`.

    name: of the variable that is drawn.
    measured: what it is.
    """
    subjects = [f"{describe_subject(result)}, {describe_texts(result)}" for result in results]
    if len(results) > 1:
        subjects = [f"({letter_of(row)}) {subject}" for row, subject in enumerate(subjects)]
    values = np.concatenate([result[name].values.ravel() for result in results])
    kind = str(results[0].attrs.get("description", "")) if name == "cosine" else ""
    undefined = "Grey: undefined." * bool(np.isnan(values).any())
    return join_sentences(
        f"{_capital(measured)} of {_say_pairs(results, subjects)}.",
        kind,
        "Rows and columns: the state after each layer, beginning with the embeddings (embed).",
        "Dot: the largest value of its row." * any(map(is_of_two, results)),
        scale.describe(values),
        undefined,
        *(_say_widest_interval(result, name) for result in results[:1]),
    )


def _say_pairs(results: Sequence[xr.Dataset], subjects: Sequence[str]) -> str:
    """Which states are compared: every two of one capture, or those of two captures."""
    others = [name_of_other(result) for result in results if is_of_two(result)]
    if not others:
        return f"every two states of {'; '.join(subjects)}"
    return f"every state of {'; '.join(subjects)} (rows) with every state of {'; '.join(others)}"


def _say_widest_interval(result: xr.Dataset, name: str) -> str:
    """How uncertain the least certain cell is, as no interval is drawn."""
    if "low" not in result or not (interval := describe_interval(result)):
        return ""
    value = result[name].values
    reach = np.abs(np.stack([result["low"].values, result["high"].values]) - value)
    if np.isnan(reach).all():
        return ""
    return f"The {interval} reach at most {np.nanmax(reach):.2g} beyond a value."


def caption_profiles(
    results: Sequence[xr.Dataset], labels: Mapping[str, str], names: Sequence[str]
) -> str:
    """Of `profiles`.

    labels: variable -> what its panel shows.
    names: of the results, as in the legend.
    """
    panels = list(labels.values())
    if len(panels) > 1:
        panels = [f"({letter_of(row)}) {label}" for row, label in enumerate(panels)]
    shown = ", ".join(panels)
    if len(results) == 1:
        what = f"{_capital(shown)}, after each layer of {describe_subject(results[0])}."
        over = f"Over {describe_texts(results[0])}."
    else:
        of = "; ".join(
            f"{name}: {describe_texts(result)}" for name, result in zip(names, results, strict=True)
        )
        what = f"{_capital(shown)}, against depth as a share of each plan's steps."
        over = f"Lines and what they are over: {of}."
    return join_sentences(what, over, _say_interval("Bands", results[0]))


def caption_blocks(result: xr.Dataset, scale: ColourScale) -> str:
    """Of `blocks`."""
    of = DISTANCE_TOKENS[str(result.attrs["distance_tokens"])]
    return join_sentences(
        "(a) Angular distance (share of half a turn) between the states before and after a run of "
        f"steps of {describe_subject(result)}, {of}: the run's first step to the right, its number "
        "of steps upwards. Dots: the run of each length with the least distance.",
        scale.describe(result["distance"].values),
        f"(b) Block Influence of each step, mean over {describe_texts(result)}.",
        _say_interval("Whiskers", result),
    )


def caption_drift(result: xr.Dataset, scale: ColourScale) -> str:
    """Of `drift`."""
    matrix = result["cosine"].values
    return join_sentences(
        f"(a) Mean cosine similarity between the states of {describe_subject(result)} (rows) and "
        "the baseline's (columns) at the same tokens. Dots: the baseline's most similar state.",
        scale.describe(matrix),
        "Grey: undefined." * bool(np.isnan(matrix).any()),
        "(b) Mean distance of each state from its counterpart, the baseline's state after the same "
        "layer, in units of the counterpart's norm.",
        f"Means over {describe_texts(result)}.",
        _say_interval("Band", result),
    )


def caption_clusters(result: xr.Dataset, scale: ColourScale) -> str:
    """Of `clusters`."""
    groups = list_groups(result)
    parts = [
        f"{part}: {_ends([label for label, _ in states])}"
        for part, states in groupby(
            zip(result["layer"].values, result["part"].values, strict=True), itemgetter(1)
        )
    ]
    evidence = "; ".join(text for name, text in EVIDENCE.items() if name in result)
    return join_sentences(
        f"(a) {_capital(str(result.attrs['quantity']))} of every two states of "
        f"{describe_subject(result)}, {describe_texts(result)}. "
        f"Boxes: the {len(groups)} groups of neighbouring states ({'; '.join(groups)}).",
        f"The largest group is the middle; {', '.join(parts)}." * (len(parts) > 1),
        scale.describe(result["similarity"].values),
        f"(b) By number of groups: {evidence}; grey: the number drawn.",
        f"({span_of_letters(1, first=2)}) Share of bootstrap resamples in which a group begins at "
        "a state.",
    )


def list_groups(result: xr.Dataset) -> list[str]:
    """The groups of `clusters` as the layers that their states come after: `0 to 18`."""
    pairs = zip(result["layer"].values, result["group"].values, strict=True)
    return [_ends([label for label, _ in states]) for _, states in groupby(pairs, itemgetter(1))]


def _ends(labels: Sequence[str]) -> str:
    """The first label, and the last where there are several."""
    return printable(f"{labels[0]}{f' to {labels[-1]}' * (len(labels) > 1)}")


def _capital(text: str) -> str:
    """A sentence's first letter; names such as CKA stay as they are."""
    return text[:1].upper() + text[1:]
