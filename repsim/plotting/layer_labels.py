"""States as ticks along an axis: which steps they are the output of, and which of these have room
for a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter

from matplotlib.axes import Axes

from repsim.errors import PlanError
from repsim.plans import Step, parse_step
from repsim.plotting.page import LABEL_STEPS, MOST_LABELS, POINTS, font_size
from repsim.plotting.words import WIDEST

SHORT = 2  # characters of a label along x that never stands upright


@dataclass(frozen=True)
class Run:
    """States in a row that are the output of the same step.

    label: the step, e.g. `7` or `(13|14|15|16)`.
    times: number of states.
    middle: their mean index.
    """

    label: str
    times: int
    middle: float

    @property
    def step(self) -> Step | None:
        """None where the label is no step: the states that enter the stack are its embeddings."""
        try:
            return parse_step(self.label)
        except PlanError:
            return None

    @property
    def layer(self) -> int | None:
        """The layer, where the step runs one whole layer."""
        return None if self.step is None else self.step.layer

    @property
    def text(self) -> str:
        """The label and how often, about 13 characters: of a wide parallel step, the two ends."""
        times = f" ×{self.times}" if self.times > 1 else ""  # noqa: RUF001
        room = 13 - len(times)
        if self.step is not None:
            return self.step.short_text(room) + times
        label = self.label if len(self.label) <= room else f"{self.label[: room - 1]}…"
        return label + times

    def follows(self, other: Run) -> bool:
        """Whether the two are neighbouring layers, up or down the stack."""
        if self.layer is None or other.layer is None:
            return False
        return abs(self.layer - other.layer) == 1


def label_states_x(axes: Axes, labels: Sequence[str]) -> None:
    """Ticks along x at the states that are labelled; the figure has to have been drawn once.

    A label lies flat where there is room for it between its neighbours, else it stands upright.
    """
    cell = _cell(axes, axes.get_window_extent().width, len(labels))
    runs = _with_labels(_runs(labels), cell, along_x=True)
    axes.set_xticks([run.middle for run in runs], [run.text for run in runs])
    for text, flat in zip(axes.get_xticklabels(), _lie_flat(runs, cell), strict=True):
        text.set_rotation(0 if flat else 90)


def label_states_y(axes: Axes, labels: Sequence[str]) -> None:
    """Ticks along y at the states that are labelled; the figure has to have been drawn once."""
    cell = _cell(axes, axes.get_window_extent().height, len(labels))
    runs = _with_labels(_runs(labels), cell)
    axes.set_yticks([run.middle for run in runs], [run.text for run in runs])


def _cell(axes: Axes, side: float, states: int) -> float:
    """Points between two states along a side of that many pixels."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return side / figure.dpi * POINTS / states


def _runs(labels: Sequence[str]) -> list[Run]:
    """The states, those in a row with the same label taken together."""
    runs, first = [], 0
    for label, states in groupby(labels):
        times = len(list(states))
        runs.append(Run(label, times, first + (times - 1) / 2))
        first += times
    return runs


def _with_labels(runs: Sequence[Run], cell: float, *, along_x: bool = False) -> list[Run]:
    """The runs to label so that no two labels touch, in order.

    The first and the last one come first, then those that break the layers' order (parallel
    steps, halves, jumps), then layers that are multiples of 1, 2, 5, 10, ...

    Args:
        runs: all of them.
        cell: points between two states.
        along_x: whether labels stand side by side, where those that are no step (the embeddings)
            lie flat and take more room.
    """
    step = next(step for step in LABEL_STEPS if len(runs) / step <= MOST_LABELS)
    breaks = [run for before, run in pairwise(runs) if not run.follows(before)]
    multiples = [run for run in runs if run.layer is not None and run.layer % step == 0]
    chosen: list[Run] = []
    for run in (runs[0], runs[-1], *breaks, *multiples):
        rooms = (max(1.6 * font_size(), along_x * _room_between(run, other)) for other in chosen)
        distances = (abs(run.middle - other.middle) * cell for other in chosen)
        if all(distance >= room for distance, room in zip(distances, rooms, strict=True)):
            chosen.append(run)
    return sorted(chosen, key=attrgetter("middle"))


def _room_between(run: Run, other: Run) -> float:
    """Points from one label along x to another, steps of long names upright."""
    return sum(_reach(each, each.step is None or len(each.text) <= SHORT) for each in (run, other))


def _lie_flat(runs: Sequence[Run], cell: float) -> list[bool]:
    """Which labels along x lie flat: all but the longest ones that would touch a neighbour."""
    flat = [True] * len(runs)
    for row in sorted(range(len(runs)), key=lambda row: -len(runs[row].text)):
        neighbours = [other for other in (row - 1, row + 1) if 0 <= other < len(runs)]
        touching = any(
            abs(runs[row].middle - runs[other].middle) * cell
            < _reach(runs[row], flat[row]) + _reach(runs[other], flat[other])
            for other in neighbours
        )
        if touching and len(runs[row].text) > SHORT:
            flat[row] = False
    return flat


def _reach(run: Run, flat: bool) -> float:
    """Points from the middle of a label along x to its end, with a gap."""
    return font_size() * (0.15 + (WIDEST * len(run.text) / 2 if flat else 0.6))
