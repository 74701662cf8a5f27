"""Plans for the eye: what runs, in words and as rows on an axis of layers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from repsim.plans.plan import Piece, Plan, check_layer

AXIS = 48  # columns of the layer axis; deeper models share columns


def describe(plan: Plan) -> list[str]:
    """What runs, in words: one line per step, with ranges and repeated steps merged.

    Example:
        >>> describe(Plan.from_steps([0, 1, 2, 4, 4]))
        ['steps 1-3: layers 0 to 2', 'steps 4-5: layer 4, 2 times']
    """
    return [
        f"{'steps' if len(piece) > 1 else 'step'} {numbers}: {_words(piece)}"
        for numbers, piece in _numbered(plan)
    ]


def draw(plan: Plan, layers: int, *, wrap: int | None = 79) -> str:
    """The plan on the axis of its layers, one row per piece of its text.

    A range is an arrow, a single layer a dot, parallel layers are bars, sublayers are `a` and `m`.

    Args:
        plan: what to draw.
        layers: the model's T.
        wrap: columns of the summary below the rows; None leaves it on one line.
    Raises:
        PlanError: the plan names a layer that the model does not have.
    Example:
        >>> print(draw(Plan.from_steps([0, 1, 2, (3, 4), (3, 4)]), layers=6))
        step  0
         1-3  ○─▸···  0-2
         4-5  ···┃┃·  mean of 2, 2 times
        steps: 5; layer applications: 7; never run: 5
    """
    check_layer(plan.max_layer, layers)
    # A deep model's neighbouring layers share a column.
    scale = -(-layers // AXIS)
    columns = -(-layers // scale)
    # The head of the table: every tenth column is labelled with its first layer.
    pieces = list(_numbered(plan))
    width = max(4, *(len(numbers) for numbers, _ in pieces))
    ticks = "".join(str(column * scale).ljust(10) for column in range(0, columns, 10)).rstrip()
    shared = f"  (1 column: {scale} layers)" if scale > 1 else ""
    rows = [f"{'step':>{width}}  {ticks}{shared}"]
    # One row per piece, then the summary.
    for numbers, piece in pieces:
        rows.append(f"{numbers:>{width}}  {_row(piece, scale, columns)}  {_note(piece)}")
    summary = _summary(plan, layers)
    return "\n".join([*rows, *(textwrap.wrap(summary, wrap) if wrap else [summary])])


def _numbered(plan: Plan) -> Iterator[tuple[str, Piece]]:
    """The pieces of the canonical text, each with the numbers of its steps from 1 on, `14-16`."""
    first = 1
    for piece in plan.pieces:
        last = first + len(piece) - 1
        yield (f"{first}-{last}" if len(piece) > 1 else str(first)), piece
        first = last + 1


def _words(piece: Piece) -> str:
    if piece.is_range:
        first, last = piece.first.members[0].layer, piece.last.members[0].layer
        return f"layers {first} to {last}" + (", backwards" if last < first else "")
    return piece.first.words + _times(piece)


def _note(piece: Piece) -> str:
    return piece.text if piece.is_range else piece.first.note + _times(piece)


def _times(piece: Piece) -> str:
    return f", {len(piece)} times" if len(piece) > 1 else ""


def _row(piece: Piece, scale: int, columns: int) -> str:
    cells = ["·"] * columns
    if piece.is_range:
        begin, end = (step.members[0].layer // scale for step in (piece.first, piece.last))
        low, high = sorted((begin, end))
        cells[low : high + 1] = "─" * (high + 1 - low)
        cells[begin], cells[end] = "○", "▸" if piece.last > piece.first else "◂"
    else:
        for member in piece.first:
            cells[member.layer // scale] = piece.first.glyph(member)
    return "".join(cells)


def _summary(plan: Plan, layers: int) -> str:
    idle = set(range(layers)).difference(m.layer for step in plan.steps for m in step)
    never = f"never run: {Plan.from_steps(sorted(idle))}" if idle else "every layer runs"
    return f"steps: {len(plan)}; layer applications: {plan.applications}; {never}"
