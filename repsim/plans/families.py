"""Named ways to make plans of any number of layers: the paper's families and a few more.

One registration says everything that anyone needs to know of a family: how its text is written,
what its plans run, which values go together, what legends call it, how many layers it changes, and
examples for tests. To add a family, write its function below with `register_family` above it; help,
`repsim plans`, sweeps, figures and tests take it from `FAMILIES`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from repsim.errors import PlanError
from repsim.plans.plan import SUBLAYERS, Application, Plan, Step, StepLike, check_steps

LARGEST = 999_999_999  # of a parameter without a limit; texts have nine digits at most

Value: TypeAlias = int | str
Builder: TypeAlias = Callable[..., Plan]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a family.

    allowed: the allowed values in order, for T layers.
    optional: whether the family's text may leave it out.
    """

    name: str
    allowed: Callable[[int], Sequence[Value]]
    optional: bool = False

    def check(self, value: Value, layers: int) -> None:
        """Raises PlanError unless a model of that many layers allows the value."""
        allowed = self.allowed(layers)
        if not allowed:
            raise PlanError(f"{self.name}={value}: a {layers}-layer model is too shallow for it")
        # The type comes first: a range would be searched for a text number by number.
        kind = int if isinstance(allowed, range) else str
        if not isinstance(value, kind) or value not in allowed:
            to = "to" if isinstance(allowed, range) else "or"
            ends = f"{allowed[0]} {to} {allowed[-1]}"
            raise PlanError(f"{self.name}={value}: a {layers}-layer model allows {ends}")

    def values(self, text: str, layers: int) -> list[Sequence[Value]]:
        """The values that a text stands for: `3`, `0..14`, `2..`, `..` (all), `attn|mlp`, or a mix.

        Returns:
            One run of values per alternative.
        """
        return [self._between(part, layers) for part in text.split("|")]

    def _between(self, text: str, layers: int) -> Sequence[Value]:
        allowed = self.allowed(layers)
        first, dots, last = text.partition("..")
        if not dots or not allowed:
            self.check(_value(text), layers)
            return [_value(text)]
        if not last and LARGEST in allowed:
            raise PlanError(f"{self.name}={text}: there is no largest one; write both ends")
        ends = [_value(first) if first else allowed[0], _value(last) if last else allowed[-1]]
        for end in ends:
            self.check(end, layers)
        low, high = map(allowed.index, ends)
        if high < low:
            raise PlanError(f"{self.name}={text}: runs backwards; write {last}..{first}")
        return allowed[low : high + 1]


def _value(text: str) -> Value:
    return int(text) if re.fullmatch("-?[0-9]{1,9}", text) else text


@dataclass(frozen=True)
class Family:
    """A named way to make a plan for any number of layers.

    name: how its texts begin.
    label: what legends call it.
    summary: one line that says what runs.
    parameters: in the order of its text.
    examples: texts of it for tests, for models of six layers or more.
    build: `build(layers, **values) -> Plan`; refuses values that are not allowed.
    affected: `affected(layers, **values) -> int`, how many layers are not run as in the baseline;
        ignores values it does not need.
    objection: `objection(layers, **values) -> str`, why values that are each allowed do not go
        together; empty where they do. None where they always do.
    """

    name: str
    label: str
    summary: str
    parameters: tuple[Parameter, ...]
    examples: tuple[str, ...]
    build: Builder
    affected: Callable[..., int]
    objection: Callable[..., str] | None = None

    @property
    def usage(self) -> str:
        """How its text is written: `drop:layer=..[,part=..]`."""
        pairs = (f"[,{p.name}=..]" if p.optional else f",{p.name}=.." for p in self.parameters)
        return (self.name + "".join(pairs)).replace(",", ":", 1)

    def text(self, **values: Value | None) -> str:
        """The family text with these values: `skip:start=3`."""
        given = (p for p in self.parameters if values.get(p.name) is not None)
        pairs = (f",{p.name}={values[p.name]}" for p in given)
        return (self.name + "".join(pairs)).replace(",", ":", 1)

    def fits(self, layers: int, **values: Value) -> bool:
        """Whether values that are each allowed go together."""
        return self.objection is None or not self.objection(layers, **values)


FAMILIES: dict[str, Family] = {}


def register_family(
    *parameters: Parameter,
    label: str,
    affected: Callable[..., int],
    examples: tuple[str, ...],
    objection: Callable[..., str] | None = None,
) -> Callable[[Builder], Builder]:
    """Registers the decorated function as the family of its name; see `Family` for the arguments.

    The function builds the plan. The first line of its docstring is the summary. Its values are
    checked before it runs.
    """

    def register(function: Builder) -> Builder:
        @functools.wraps(function)
        def build(layers: int, **values: Value | None) -> Plan:
            for parameter in parameters:
                if (value := values.get(parameter.name)) is not None:
                    parameter.check(value, layers)
            if objection is not None and (reason := objection(layers, **values)):
                raise PlanError(reason)
            return function(layers, **values)

        name, summary = function.__name__, (function.__doc__ or "").partition("\n")[0]
        FAMILIES[name] = Family(
            name, label, summary, parameters, examples, build, affected, objection
        )
        return build

    return register


# Parameters, and how many layers are affected

_START = Parameter("start", lambda layers: range((layers + 1) // 2))
_LAYER = Parameter("layer", range)
_PAIR = Parameter("layer", lambda layers: range(layers - 1))
_PART = Parameter("part", lambda layers: SUBLAYERS, optional=True)
_FIRST, _LAST = Parameter("first", range), Parameter("last", range)


def _count(name: str, low: int) -> Parameter:
    """A whole number without an upper limit."""
    return Parameter(name, lambda layers: range(low, LARGEST + 1))


def _always(count: int) -> Callable[..., int]:
    """The same number of affected layers for every model and every value."""
    return lambda layers, **_: count


def _middle_size(layers: int, *, start: int, **_: Value) -> int:
    return layers - 2 * start - 1


def _block_size(layers: int, *, first: int, last: int, **_: Value) -> int:
    return last - first + 1


# The families


def _middle(layers: int, start: int) -> list[int]:
    """The T - 2 start - 1 layers that a variant changes; none where T is odd and start largest."""
    return list(range(start + 1, layers - start))


def _around(layers: int, start: int, middle: Sequence[StepLike]) -> Plan:
    return Plan.from_steps([*range(start + 1), *middle, *range(layers - start, layers)])


def _together(layers: Sequence[int]) -> Step:
    """The step that runs these layers on the same input."""
    return Step(tuple(map(Application, layers)))


@register_family(label="full model", affected=_always(0), examples=("baseline",))
def baseline(layers: int) -> Plan:
    """Every layer once, in order."""
    return Plan.from_steps(range(layers))


@register_family(_START, label="skip", affected=_middle_size, examples=("skip:start=1",))
def skip(layers: int, *, start: int) -> Plan:
    """The middle left out."""
    return _around(layers, start, [])


@register_family(
    _START, label="middle repeat", affected=_middle_size, examples=("middle_repeat:start=0",)
)
def middle_repeat(layers: int, *, start: int) -> Plan:
    """Every layer of the middle replaced by layer T//2."""
    return _around(layers, start, [layers // 2] * len(_middle(layers, start)))


@register_family(_START, label="reverse", affected=_middle_size, examples=("reverse:start=1",))
def reverse(layers: int, *, start: int) -> Plan:
    """The middle backwards."""
    return _around(layers, start, _middle(layers, start)[::-1])


@register_family(
    _START,
    _count("seed", 0),
    label="random order",
    affected=_middle_size,
    examples=("random:start=0,seed=3",),
)
def random(layers: int, *, start: int, seed: int) -> Plan:
    """The middle in a random order, the one the paper's code draws for the seed."""
    middle = _middle(layers, start)
    Random(seed).shuffle(middle)
    return _around(layers, start, middle)


@register_family(_START, label="parallel", affected=_middle_size, examples=("parallel:start=0",))
def parallel(layers: int, *, start: int) -> Plan:
    """The middle as one step: its layers on the same input, their outputs averaged."""
    middle = _middle(layers, start)
    return _around(layers, start, [middle] if middle else [])


@register_family(
    _START,
    _count("loops", 1),
    label="looped parallel",
    affected=_middle_size,
    examples=("looped_parallel:start=1,loops=3",),
)
def looped_parallel(layers: int, *, start: int, loops: int) -> Plan:
    """The middle as one parallel step, its mean fed back, loops times."""
    middle = _middle(layers, start)
    check_steps(2 * start + 2 + loops)
    return _around(layers, start, [_together(middle)] * loops if middle else [])


@register_family(
    _LAYER,
    _PART,
    label="skip one layer",
    affected=_always(1),
    examples=(
        "drop:layer=0",
        "drop:layer=5",
        "drop:layer=2,part=attn",
        "drop:layer=3,part=mlp",
    ),
)
def drop(layers: int, *, layer: int, part: str | None = None) -> Plan:
    """The whole stack but one layer, or but its attention or MLP."""
    if part is None:
        return drop_block(layers, first=layer, last=layer)
    kept = "mlp" if part == "attn" else "attn"
    return Plan.from_steps([*range(layer), f"{layer}.{kept}", *range(layer + 1, layers)])


@register_family(
    _PAIR, label="switch two layers", affected=_always(2), examples=("switch:layer=2",)
)
def switch(layers: int, *, layer: int) -> Plan:
    """A layer and the one after it in each other's place."""
    return Plan.from_steps([*range(layer), layer + 1, layer, *range(layer + 2, layers)])


def _no_block_to_drop(layers: int, *, first: int, last: int) -> str:
    if last < first:
        return f"first={first},last={last}: no block; last is {first} to {layers - 1}"
    if last - first + 1 == layers:
        return f"dropping {first} to {last}: a {layers}-layer model must keep a layer"
    return ""


@register_family(
    _FIRST,
    _LAST,
    label="skip a block",
    affected=_block_size,
    examples=("drop_block:first=1,last=3",),
    objection=_no_block_to_drop,
)
def drop_block(layers: int, *, first: int, last: int) -> Plan:
    """The whole stack but the layers first to last, both included."""
    return Plan.from_steps([*range(first), *range(last + 1, layers)])


@register_family(
    _LAYER,
    _count("times", 1),
    label="repeat one layer",
    affected=_always(1),
    examples=("repeat:layer=4,times=3",),
)
def repeat(layers: int, *, layer: int, times: int) -> Plan:
    """One layer several times in place."""
    check_steps(layers - 1 + times)
    return Plan.from_steps(
        [*range(layer), *[_together([layer])] * times, *range(layer + 1, layers)]
    )
