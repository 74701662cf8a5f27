"""The ways in which the outputs of a step's members become one state, and how each is written.

What each computes is declared once more, in `repsim.models.layer_call`. To add a way, add its
record to `JOIN_KINDS` here and its arithmetic there; a test compares the two lists.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JoinKind:
    """One way to join outputs, as plans write, read and draw it.

    name: what code and JSON call it.
    sign: stands between the members in a step's text, `(13|14)`; one character that no layer,
        range, list or count is written with.
    words: follows the members in a description.
    note: stands next to the axis of a drawing; `{count}` is the number of members.
    glyph: marks each member on that axis.
    """

    name: str
    sign: str
    words: str
    note: str
    glyph: str


MEAN = JoinKind("mean", "|", "in parallel, outputs averaged", "mean of {count}", "┃")

JOIN_KINDS: dict[str, JoinKind] = {kind.name: kind for kind in (MEAN,)}
