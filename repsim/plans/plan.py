"""Which layers run, in which order, on which input.

A layer plan is a tuple of steps; a step is one layer, or several layers on the same input whose
outputs are joined into one state. This module writes, reads and draws plans and joins plans that
begin alike into a trie. It knows layers by number only: no model, no torch, no numpy.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

from repsim.errors import PlanError

HALVES = ("attn", "mlp")
AXIS = 48  # columns of the layer axis in `draw`; deeper models share columns
MOST_STEPS = 100_000  # of a plan

_MEMBER = re.compile(r"([0-9]{1,9})(?:\.(attn|mlp))?")
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
_PIECE = re.compile(r"(\([^()*]+\)|[^()*]+)(?:\*([0-9]{1,30}))?")


@dataclass(frozen=True, order=True)
class Application:
    """One layer run once, or only one half of it.

    layer: 0 to T - 1.
    half: "" for the whole layer; "attn" or "mlp" for that half alone, the other left out.
    """

    layer: int
    half: str = ""

    def __post_init__(self) -> None:
        if type(self.layer) is not int or self.layer < 0 or self.half not in ("", *HALVES):
            raise PlanError(
                f"layer {self.layer!r}, half {self.half!r}: a layer is a whole number from 0 on, "
                "a half is 'attn', 'mlp' or '' for both"
            )

    @property
    def text(self) -> str:
        """`7`, or `7.mlp` for layer 7 without its attention."""
        return f"{self.layer}.{self.half}" if self.half else str(self.layer)


@dataclass(frozen=True, order=True)
class Step:
    """One move of a plan: what runs on the same input, and how its outputs become one state.

    members: at least one, distinct; they get sorted.
    join: `mean`, the mean of the members' outputs.
    """

    members: tuple[Application, ...]
    join: str = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(sorted(self.members)))
        if not self.members:
            raise PlanError("a step without layers: a step has at least one; leave it out")
        for one, other in itertools.pairwise(self.members):
            if one == other:
                raise PlanError(f"{self.text}: {one.text} is there twice; name it once")

    def __iter__(self) -> Iterator[Application]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def text(self) -> str:
        """`7`, `7.mlp` or `(13|14|15|16)`."""
        text = "|".join(member.text for member in self.members)
        return text if len(self) == 1 else f"({text})"

    @property
    def words(self) -> str:
        """What runs, for the eye."""
        if len(self) > 1:
            return f"layers {', '.join(member.text for member in self.members)} in parallel, outputs averaged"
        (only,) = self.members
        without = {"": "", "attn": " without its MLP", "mlp": " without its attention"}
        return f"layer {only.layer}{without[only.half]}"

    @property
    def note(self) -> str:
        """What `draw` writes beside the axis."""
        return self.text if len(self) == 1 else f"mean of {len(self)}"

    def glyph(self, member: Application) -> str:
        """One member on the axis of `draw`: a dot, a bar where it is one of several, `a` or `m` for
        a half.
        """
        return member.half[:1] or ("●" if len(self) == 1 else "┃")


Member: TypeAlias = SupportsIndex | str | Application
StepLike: TypeAlias = Member | Sequence[Member] | Step


@dataclass(frozen=True)
class Plan:
    """The layers that run, in order; equal plans have equal hidden states.

    steps: at least one.
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
        return ", ".join(map(_run_text, _runs(self.steps)))

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def applications(self) -> int:
        """How many times a layer, or half of one, is called."""
        return sum(map(len, self.steps))

    @property
    def max_layer(self) -> int:
        """The highest layer the plan names."""
        return max(member.layer for step in self.steps for member in step)

    def to_json(self) -> str:
        """A JSON list of steps, each a list of members: 7, or "7.mlp" for a half."""
        steps = [[m.text if m.half else m.layer for m in step] for step in self.steps]
        return json.dumps(steps, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            RepsimError: the text is not a JSON list of steps.
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

        Raises:
            RepsimError: a member is not a layer, a step repeats one, or there are no steps.
        """
        if isinstance(steps, str):
            raise PlanError(f"{steps[:40]!r}: a text, not a list of steps; use parse_plan")
        return cls(tuple(map(_step, steps)))


def _step(step: StepLike) -> Step:
    if isinstance(step, Step):
        return step
    members = step if isinstance(step, Sequence) and not isinstance(step, str) else [step]
    return Step(tuple(map(_application, members)))


def _application(member: Member) -> Application:
    if isinstance(member, Application):
        return member
    if isinstance(member, str) and (match := _MEMBER.fullmatch(member)):
        return Application(int(match[1]), match[2] or "")
    if hasattr(member, "__index__") and not isinstance(member, bool):
        return Application(operator.index(member))  # other libraries' integers become int
    raise PlanError(f"{member!r}: not a layer; write 7, '7.attn' or '7.mlp'")


# Text


def _runs(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """The steps cut where the canonical text has commas: one step, equal steps, or a range."""
    pieces = [tuple(group) for _, group in itertools.groupby(steps)]
    lone = [_lone_layer(piece) for piece in pieces]
    runs, begin = [], 0
    while begin < len(pieces):
        length = max(_range_length(lone, begin, 1), _range_length(lone, begin, -1))
        length = length if length >= 3 else 1
        runs.append(tuple(itertools.chain(*pieces[begin : begin + length])))
        begin += length
    return runs


def _lone_layer(piece: Sequence[Step]) -> int | None:
    """The layer of a piece that runs one whole layer once; None for every other piece."""
    member = piece[0].members[0]
    return member.layer if len(piece) == len(piece[0]) == 1 and not member.half else None


def _range_length(lone: Sequence[int | None], begin: int, direction: int) -> int:
    """How many entries from `begin` on count up or down by one; None never counts."""
    end, layer = begin, lone[begin]
    while layer is not None and end < len(lone) and lone[end] == layer:
        end, layer = end + 1, layer + direction
    return end - begin


def _is_range(run: Sequence[Step]) -> bool:
    return run[0] != run[-1]


def _run_text(run: Sequence[Step]) -> str:
    if _is_range(run):
        return f"{run[0].text}-{run[-1].text}"
    return run[0].text + (f"*{len(run)}" if len(run) > 1 else "")


def parse_plan(text: str, layers: int) -> Plan:
    """The plan of an explicit text such as `0-12, (13|14|15|16)*3, 17-29`.

    Args:
        text: steps joined by commas: `7`, `7.attn`, `0-13`, `19-10`, `(3|5-7)`, `14*3`.
        layers: the model's T.
    Raises:
        RepsimError: a piece cannot be understood, names a layer the model has not, or there are too
            many steps.
    """
    tight = re.sub(r" ?([-,|()*.]) ?", r"\1", " ".join(text.split()))
    steps: list[Step] = []
    for piece in tight.split(","):
        steps += _parse_piece(piece, layers)
        check_steps(len(steps))
    return Plan(tuple(steps))


def check_steps(steps: int) -> None:
    """Refuses a plan that would fill the memory before it could run."""
    if steps > MOST_STEPS:
        raise PlanError(
            f"a plan of {steps:,} steps: one has at most {MOST_STEPS:,}; repeat fewer times"
        )


def _parse_piece(piece: str, layers: int) -> list[Step]:
    match = _PIECE.fullmatch(piece)
    if not match:
        raise _not_a_step(piece)
    body, count = match[1], int(match[2] or 1)
    if count < 1:
        raise PlanError(f"{piece}: a count is at least 1; leave the step out instead")
    check_steps(count)
    if body.startswith("("):
        parts = body[1:-1].split("|")
        return [
            Step(tuple(m for part in parts for m in _parse_members(part, piece, layers)))
        ] * count
    if match[2] and "-" in body:
        raise PlanError(
            f"{piece}: a range takes no count; write ({body})*{count} for these layers in parallel or list the steps"
        )
    return [Step((member,)) for member in _parse_members(body, piece, layers)] * count


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
    found = f"{piece!r}: not a step" if piece else "an empty step"
    return PlanError(f"{found}; write a step as 7, 7.attn, 7.mlp, 0-13, (3|4|5) or 14*3")


def check_layer(layer: int, layers: int) -> None:
    if layer >= layers:
        raise PlanError(f"layer {layer}: a {layers}-layer model allows 0 to {layers - 1}")


# The trie


@dataclass(frozen=True)
class PlanTrie:
    """Plans joined where they begin alike; a node is "these steps, in this order".

    Nodes are numbered in order of first appearance, so extending a trie keeps every number.

    parents: `[node]`, each node's parent; the root is node 0 and has parent -1.
    steps: `[node]`, the step that leads to the node; None for the root.
    paths: `[plan][state]`, each plan's nodes in order, the root first.
    """

    parents: tuple[int, ...]
    steps: tuple[Step | None, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def build(cls, plans: Iterable[Plan]) -> PlanTrie:
        """The trie of these plans."""
        return cls((-1,), (None,), ()).extend(plans)

    def extend(self, plans: Iterable[Plan]) -> PlanTrie:
        """This trie with more plans; earlier nodes and plans keep their numbers."""
        index = {pair: node for node, pair in enumerate(zip(self.parents, self.steps, strict=True))}
        paths = list(self.paths)
        for plan in plans:
            path = [0]
            for step in plan.steps:
                path.append(index.setdefault((path[-1], step), len(index)))
            paths.append(tuple(path))
        parents, steps = zip(*index, strict=True)
        return PlanTrie(parents, steps, tuple(paths))

    def __len__(self) -> int:
        return len(self.parents)

    @functools.cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """`[node]`, each node's children in the order of their numbers."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    @property
    def ends(self) -> tuple[int, ...]:
        """`[plan]`, the node where each plan ends."""
        return tuple(path[-1] for path in self.paths)

    @property
    def depth(self) -> int:
        """The number of steps of the longest plan; 0 without plans."""
        return max((len(path) - 1 for path in self.paths), default=0)

    @property
    def applications(self) -> int:
        """How many layer applications it takes to compute every node once."""
        return sum(len(step) for step in self.steps if step is not None)

    def with_ancestors(self, nodes: Iterable[int]) -> frozenset[int]:
        """These nodes, the root and everything between."""
        found = {0}
        for node in nodes:
            while node not in found:
                found.add(node)
                node = self.parents[node]
        return frozenset(found)

    def depth_first(self) -> Iterator[int]:
        """Every node once, the root first; a node's descendants directly follow it."""
        waiting = [0]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(self.children[node]))


# For the eye


def describe(plan: Plan) -> list[str]:
    """What runs, in words: one line a step, with ranges and repeated steps merged."""
    return [f"{'steps' if '-' in at else 'step'} {at}: {_words(run)}" for at, run in _at(plan)]


def _at(plan: Plan) -> Iterator[tuple[str, tuple[Step, ...]]]:
    """The runs of the canonical text, each with the numbers of its steps from 1 on, `14-16`."""
    first = 1
    for run in _runs(plan.steps):
        last = first + len(run) - 1
        yield (f"{first}-{last}" if len(run) > 1 else str(first)), run
        first = last + 1


def _words(run: Sequence[Step]) -> str:
    if _is_range(run):
        first, last = run[0].members[0].layer, run[-1].members[0].layer
        return f"layers {first} to {last}" + (", backwards" if last < first else "")
    return run[0].words + (f", {len(run)} times" if len(run) > 1 else "")


def draw(plan: Plan, layers: int, *, wrap: int | None = 79) -> str:
    """The plan on the axis of its layers, one row for each piece of its text; 80 columns unless
    told otherwise.

    A range is an arrow, a single layer a dot, parallel layers are bars, halves are `a` and `m`.

    Raises:
        RepsimError: the plan names a layer that the model has not.
    """
    check_layer(plan.max_layer, layers)
    scale = -(-layers // AXIS)
    columns = -(-layers // scale)
    runs = list(_at(plan))
    width = max(4, *(len(at) for at, _ in runs))
    ticks = "".join(str(column * scale).ljust(10) for column in range(0, columns, 10)).rstrip()
    rows = [f"{'step':>{width}}  {ticks}" + (f"  (1 column: {scale} layers)" if scale > 1 else "")]
    for at, run in runs:
        rows.append(f"{at:>{width}}  {_row(run, scale, columns)}  {_note(run)}")
    summary = _summary(plan, layers)
    return "\n".join([*rows, *(textwrap.wrap(summary, wrap) if wrap else [summary])])


def _row(run: Sequence[Step], scale: int, columns: int) -> str:
    cells = ["·"] * columns
    if _is_range(run):
        begin, end = run[0].members[0].layer // scale, run[-1].members[0].layer // scale
        low, high = sorted((begin, end))
        cells[low : high + 1] = "─" * (high + 1 - low)
        cells[begin], cells[end] = "○", "▸" if run[-1] > run[0] else "◂"
    else:
        for member in run[0]:
            cells[member.layer // scale] = run[0].glyph(member)
    return "".join(cells)


def _note(run: Sequence[Step]) -> str:
    if _is_range(run):
        return _run_text(run)
    return run[0].note + (f", {len(run)} times" if len(run) > 1 else "")


def _summary(plan: Plan, layers: int) -> str:
    idle = set(range(layers)).difference(m.layer for step in plan.steps for m in step)
    never = f"never run: {Plan.from_steps(sorted(idle))}" if idle else "every layer runs"
    return f"steps: {len(plan)}; layer applications: {plan.applications}; {never}"
