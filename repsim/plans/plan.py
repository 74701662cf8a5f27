"""Which layers run, in which order, on which input.

A layer plan is a tuple of steps; a step is one layer, or several layers on the same input whose
outputs are joined into one state. This module holds these records and writes and reads their text.
It knows layers by number only: no model, no torch, no numpy.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

from repsim.errors import PlanError
from repsim.plans.joins import JOIN_KINDS, MEAN, JoinKind

SUBLAYERS = ("attn", "mlp")
MOST_STEPS = 100_000  # of a plan

_SIGNS = "".join(kind.sign for kind in JOIN_KINDS.values())
_SPACED = re.compile(rf" ?([-,()*.{re.escape(_SIGNS)}]) ?")
_MEMBER = re.compile(r"([0-9]{1,9})(?:\.(attn|mlp))?")
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
_PIECE = re.compile(r"(\([^()*]+\)|[^()*]+)(?:\*([0-9]{1,30}))?")


@dataclass(frozen=True, order=True)
class Application:
    """One layer run once, or only one of its two sublayers.

    layer: 0 to T - 1.
    sublayer: "" for the whole layer; "attn" or "mlp" for that sublayer alone, the other left out.
    """

    layer: int
    sublayer: str = ""

    def __post_init__(self) -> None:
        if type(self.layer) is not int or self.layer < 0 or self.sublayer not in ("", *SUBLAYERS):
            raise PlanError(
                f"layer {self.layer!r}, sublayer {self.sublayer!r}: a layer is a whole number from "
                "0 on, a sublayer is 'attn', 'mlp' or '' for both"
            )

    @property
    def text(self) -> str:
        """`7`, or `7.mlp` for layer 7 without its attention."""
        return f"{self.layer}.{self.sublayer}" if self.sublayer else str(self.layer)


@dataclass(frozen=True, order=True)
class Step:
    """One move of a plan: what runs on the same input, and how its outputs become one state.

    members: at least one, distinct; they get sorted.
    join: a name in `JOIN_KINDS`. A step of one member is that member's output however it is joined,
        so there it becomes `mean`, and steps that compute the same are equal.
    """

    members: tuple[Application, ...]
    join: str = MEAN.name

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(sorted(self.members)))
        if not self.members:
            raise PlanError("a step without layers: a step has at least one; leave it out")
        if self.join not in JOIN_KINDS:
            raise PlanError(f"join {self.join!r}: unknown; choose {' or '.join(JOIN_KINDS)}")
        if len(self.members) == 1:
            object.__setattr__(self, "join", MEAN.name)
        for member, following in itertools.pairwise(self.members):
            if member == following:
                raise PlanError(f"{self.text}: {member.text} is there twice; name it once")

    def __iter__(self) -> Iterator[Application]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def kind(self) -> JoinKind:
        """How its outputs are joined."""
        return JOIN_KINDS[self.join]

    @property
    def layer(self) -> int | None:
        """The layer of a step that runs one whole layer; None for every other step."""
        (first, *others) = self.members
        return None if others or first.sublayer else first.layer

    @property
    def text(self) -> str:
        """`7`, `7.mlp` or `(13|14|15|16)`."""
        text = self.kind.sign.join(member.text for member in self.members)
        return text if len(self) == 1 else f"({text})"

    def short_text(self, room: int) -> str:
        """Its text in about `room` characters; of more than two members, the first and the last."""
        if len(self.text) <= room:
            return self.text
        if len(self) == 2:
            return f"{self.text[: room - 1]}…"
        first, last = self.members[0], self.members[-1]
        return f"({self.kind.sign.join([first.text, '…', last.text])})"

    @property
    def words(self) -> str:
        """What runs, for the eye."""
        if len(self) > 1:
            return f"layers {', '.join(member.text for member in self.members)} {self.kind.words}"
        (only,) = self.members
        without = {"": "", "attn": " without its MLP", "mlp": " without its attention"}
        return f"layer {only.layer}{without[only.sublayer]}"

    @property
    def note(self) -> str:
        """What a drawing writes next to the axis."""
        return self.text if len(self) == 1 else self.kind.note.format(count=len(self))

    def glyph(self, member: Application) -> str:
        """A member on the axis of a drawing: a dot, the join's mark where it is one of several, `a`
        or `m` for a sublayer.
        """
        return member.sublayer[:1] or ("●" if len(self) == 1 else self.kind.glyph)


Member: TypeAlias = SupportsIndex | str | Application
StepLike: TypeAlias = Member | Sequence[Member] | Mapping[str, Sequence[Member]] | Step


@dataclass(frozen=True)
class Piece:
    """What stands between two commas of a plan's canonical text.

    steps: one step, equal steps, or the steps of a range of layers, up or down.
    """

    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def first(self) -> Step:
        return self.steps[0]

    @property
    def last(self) -> Step:
        return self.steps[-1]

    @property
    def is_range(self) -> bool:
        return self.first != self.last

    @property
    def text(self) -> str:
        """`0-13`, `7.mlp` or `(13|14)*3`."""
        if self.is_range:
            return f"{self.first.text}-{self.last.text}"
        return self.first.text + (f"*{len(self)}" if len(self) > 1 else "")


@dataclass(frozen=True)
class Plan:
    """The layers that run, in order; equal plans have equal hidden states.

    steps: at least one.

    Example:
        >>> plan = Plan.from_steps([0, 1, (2, 3), (2, 3), "4.mlp"])
        >>> plan.text, len(plan), plan.applications
        ('0, 1, (2|3)*2, 4.mlp', 5, 7)
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise PlanError("a plan without steps: a plan has at least one; name a layer")

    def __str__(self) -> str:
        return self.text

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def text(self) -> str:
        """The canonical text; `parse_plan` is its inverse."""
        return ", ".join(piece.text for piece in self.pieces)

    @property
    def pieces(self) -> list[Piece]:
        """The steps cut where the canonical text has commas."""
        groups = [tuple(group) for _, group in itertools.groupby(self.steps)]
        lone = [group[0].layer if len(group) == 1 else None for group in groups]
        pieces, begin = [], 0
        while begin < len(groups):
            # Two layers in order are written one by one; a range has at least three.
            length = max(_range_length(lone, begin, 1), _range_length(lone, begin, -1))
            length = length if length >= 3 else 1
            pieces.append(Piece(tuple(itertools.chain(*groups[begin : begin + length]))))
            begin += length
        return pieces

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def applications(self) -> int:
        """How many times a layer, or a sublayer of one, is called."""
        return sum(map(len, self.steps))

    @property
    def max_layer(self) -> int:
        """The highest layer the plan names."""
        return max(member.layer for step in self.steps for member in step)

    def to_json(self) -> str:
        """A JSON list of steps. A step is a list of members, 7 or "7.mlp" for a sublayer; where its
        outputs are not averaged, that list under the join's name, as in {"name": [7, 8]}.
        """
        return json.dumps([_json_step(step) for step in self.steps], separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is not a JSON list of steps.
        """
        try:
            steps = json.loads(text)
        except ValueError as error:
            raise PlanError(f"{text[:40]!r}: not JSON ({error}); write [[0], [1, 2]]") from None
        if not isinstance(steps, list):
            raise PlanError(f"{text[:40]!r}: not a JSON list of steps; write [[0], [1, 2]]")
        return cls.from_steps(steps)

    @classmethod
    def from_steps(cls, steps: Iterable[StepLike]) -> Plan:
        """The plan of a Python list such as `[0, "1.mlp", (2, 3)]`; (2, 3) run in parallel.

        Args:
            steps: each a layer's number, `"1.mlp"`, several of these, a mapping from the name of a
                join to several of these, or a `Step`.
        Raises:
            PlanError: a member is not a layer, a step repeats one, or there are no steps.
        """
        if isinstance(steps, str):
            raise PlanError(f"{steps[:40]!r}: a text, not a list of steps; use parse_plan")
        return cls(tuple(map(_step, steps)))


def _range_length(lone: Sequence[int | None], begin: int, direction: int) -> int:
    """How many entries from `begin` on count up or down by one; None never counts."""
    end, layer = begin, lone[begin]
    while layer is not None and end < len(lone) and lone[end] == layer:
        end, layer = end + 1, layer + direction
    return end - begin


def _json_step(step: Step) -> list[int | str] | dict[str, list[int | str]]:
    members = [member.text if member.sublayer else member.layer for member in step]
    return members if step.kind is MEAN else {step.join: members}


@functools.lru_cache(maxsize=10_000)
def _lone_step(layer: int) -> Step:
    """The step of one whole layer; most steps are, so each is made and checked once."""
    return Step((Application(layer),))


def _step(step: StepLike) -> Step:
    if type(step) is int:
        return _lone_step(step)
    if isinstance(step, Step):
        return step
    join: str = MEAN.name
    if isinstance(step, Mapping):
        if len(step) != 1:
            raise PlanError(f"{step!r}: not a step; write one join and its members")
        ((join, step),) = step.items()
    members = step if isinstance(step, Sequence) and not isinstance(step, str) else [step]
    return Step(tuple(map(_application, members)), join)


def _application(member: Member) -> Application:
    if isinstance(member, Application):
        return member
    if isinstance(member, str) and (match := _MEMBER.fullmatch(member)):
        return Application(int(match[1]), match[2] or "")
    if hasattr(member, "__index__") and not isinstance(member, bool):
        return Application(operator.index(member))  # other libraries' integers become int
    raise PlanError(f"{member!r}: not a layer; write 7, '7.attn' or '7.mlp'")


# From text to steps


def parse_plan(text: str, layers: int) -> Plan:
    """The plan of an explicit text such as `0-12, (13|14|15|16)*3, 17-29`.

    Args:
        text: steps joined by commas: `7`, `7.attn`, `0-13`, `19-10`, `(3|5-7)`, `14*3`.
        layers: the model's T.
    Raises:
        PlanError: a piece cannot be understood, names a layer the model does not have, or there are
            too many steps.
    Example:
        >>> parse_plan("0, 1, 2, (4|3), 5", layers=6).text
        '0-2, (3|4), 5'
    """
    steps: list[Step] = []
    for piece in _tight(text).split(","):
        steps += _parse_piece(piece, layers)
        check_steps(len(steps))
    return Plan(tuple(steps))


def parse_step(text: str) -> Step:
    """The step of a text that `Step.text` wrote, e.g. one that a store holds.

    Raises:
        PlanError: it is not the text of one step.
    """
    steps = _parse_piece(_tight(text), LARGEST_MODEL)
    if len(steps) != 1:
        raise PlanError(f"{text!r}: {len(steps)} steps, not one")
    return steps[0]


LARGEST_MODEL = 1_000_000_000  # more layers than a text can name


def check_steps(steps: int) -> None:
    """Refuses a plan that would fill the memory before it could run."""
    if steps > MOST_STEPS:
        raise PlanError(
            f"a plan of {steps:,} steps: one has at most {MOST_STEPS:,}; repeat fewer times"
        )


def _tight(text: str) -> str:
    """Without white space around punctuation."""
    return _SPACED.sub(r"\1", " ".join(text.split()))


def _parse_piece(piece: str, layers: int) -> list[Step]:
    match = _PIECE.fullmatch(piece)
    if not match:
        raise _not_a_step(piece)
    body, count = match[1], int(match[2] or 1)
    if count < 1:
        raise PlanError(f"{piece}: a count is at least 1; leave the step out instead")
    check_steps(count)
    if body.startswith("("):
        return [_parse_parallel(body[1:-1], piece, layers)] * count
    if match[2] and "-" in body:
        raise PlanError(
            f"{piece}: a range takes no count; write ({body})*{count} for these layers in parallel "
            "or list the steps"
        )
    return [Step((member,)) for member in _parse_members(body, piece, layers)] * count


def _parse_parallel(inside: str, piece: str, layers: int) -> Step:
    """The step of what stands between brackets; without any sign it is a mean: `(5-7)`."""
    kinds = [kind for kind in JOIN_KINDS.values() if kind.sign in inside] or [MEAN]
    if len(kinds) > 1:
        signs = " and ".join(kind.sign for kind in kinds)
        raise PlanError(f"{piece}: {signs} in one step; a step joins its members in one way")
    parts = inside.split(kinds[0].sign)
    members = [member for part in parts for member in _parse_members(part, piece, layers)]
    return Step(tuple(members), kinds[0].name)


def _parse_members(part: str, piece: str, layers: int) -> list[Application]:
    if match := _RANGE.fullmatch(part):
        first, last = int(match[1]), int(match[2])
        check_layer(max(first, last), layers)
        check_steps(abs(last - first) + 1)
        way = 1 if last >= first else -1
        return [Application(layer) for layer in range(first, last + way, way)]
    if not _MEMBER.fullmatch(part):
        raise _not_a_step(piece)
    member = _application(part)
    check_layer(member.layer, layers)
    return [member]


def _not_a_step(piece: str) -> PlanError:
    what = f"{piece!r}: not a step" if piece else "an empty step"
    parallel = ", ".join(f"({kind.sign.join('345')})" for kind in JOIN_KINDS.values())
    return PlanError(f"{what}; write a step as 7, 7.attn, 7.mlp, 0-13, {parallel} or 14*3")


def check_layer(layer: int, layers: int) -> None:
    """Raises PlanError unless a model of that many layers has the layer."""
    if layer >= layers:
        raise PlanError(f"layer {layer}: a {layers}-layer model allows 0 to {layers - 1}")
