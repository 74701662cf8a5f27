"""Named ways to make plans: the paper's families, sweeps over their parameters and the sets its
figures need.

`resolve` turns any text a user may write into plans of a model's depth; `FAMILIES` and `SETS` are
what there is to name. This module knows layers by number only: no model, no torch, no numpy.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from repsim.errors import PlanError
from repsim.plans.plan import (
    HALVES,
    Application,
    Plan,
    Step,
    StepLike,
    check_layer,
    check_steps,
    parse_plan,
)

LARGEST = 999_999_999  # of a parameter without a limit; texts have nine digits at most
MOST_PLANS = 100_000  # that texts may stand for together
MOST_STEPS_TOGETHER = 10_000_000

Value: TypeAlias = int | str
Builder: TypeAlias = Callable[..., Plan]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a family.

    allowed: the allowed values in order, for T layers.
    """

    name: str
    allowed: Callable[[int], Sequence[Value]]
    optional: bool = False

    def check(self, value: Value, layers: int) -> None:
        """Raises RepsimError unless a model of that many layers allows the value."""
        allowed = self.allowed(layers)
        if not allowed:
            raise PlanError(f"{self.name}={value}: a {layers}-layer model is too shallow for it")
        # A range would be searched for a text number by number.
        kind = int if isinstance(allowed, range) else str
        if not isinstance(value, kind) or value not in allowed:
            to = "to" if isinstance(allowed, range) else "or"
            ends = f"{allowed[0]} {to} {allowed[-1]}"
            raise PlanError(f"{self.name}={value}: a {layers}-layer model allows {ends}")

    def values(self, text: str, layers: int) -> list[Sequence[Value]]:
        """The runs of values that `3`, `0..14`, `2..`, `..` (all), `attn|mlp` or a mix stand for."""
        return [self._between(t, layers) for t in text.split("|")]

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

    build: `build(layers, **values) -> Plan`; refuses values that are not allowed.
    summary: one line that says what runs.
    """

    name: str
    build: Builder
    parameters: tuple[Parameter, ...]
    summary: str

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


FAMILIES: dict[str, Family] = {}


def _family(*parameters: Parameter) -> Callable[[Builder], Builder]:
    """Registers a function as the family of its name, its values checked before it runs."""

    def register(function: Builder) -> Builder:
        @functools.wraps(function)
        def build(layers: int, **values: Value | None) -> Plan:
            for parameter in parameters:
                if (value := values.get(parameter.name)) is not None:
                    parameter.check(value, layers)
            return function(layers, **values)

        name, summary = function.__name__, (function.__doc__ or "").partition("\n")[0]
        FAMILIES[name] = Family(name, build, parameters, summary)
        return build

    return register


_START = Parameter("start", lambda layers: range((layers + 1) // 2))
_LAYER = Parameter("layer", range)
_PAIR = Parameter("layer", lambda layers: range(layers - 1))
_PART = Parameter("part", lambda layers: HALVES, optional=True)


def _count(name: str, low: int) -> Parameter:
    return Parameter(name, lambda layers: range(low, LARGEST + 1))


def _middle(layers: int, start: int) -> list[int]:
    """The T - 2 start - 1 layers that a variant changes; none where T is odd and start largest."""
    return list(range(start + 1, layers - start))


def _around(layers: int, start: int, middle: Sequence[StepLike]) -> Plan:
    return Plan.from_steps([*range(start + 1), *middle, *range(layers - start, layers)])


def _together(layers: Sequence[int]) -> Step:
    """The step that runs these layers on the same input."""
    return Step(tuple(map(Application, layers)))


@_family()
def baseline(layers: int) -> Plan:
    """Every layer once, in order."""
    return Plan.from_steps(range(layers))


@_family(_START)
def skip(layers: int, *, start: int) -> Plan:
    """The middle left out."""
    return _around(layers, start, [])


@_family(_START)
def middle_repeat(layers: int, *, start: int) -> Plan:
    """Every layer of the middle replaced by layer T//2."""
    return _around(layers, start, [layers // 2] * len(_middle(layers, start)))


@_family(_START)
def reverse(layers: int, *, start: int) -> Plan:
    """The middle backwards."""
    return _around(layers, start, _middle(layers, start)[::-1])


@_family(_START, _count("seed", 0))
def random(layers: int, *, start: int, seed: int) -> Plan:
    """The middle in a random order, the one the paper's code draws for the seed."""
    middle = _middle(layers, start)
    Random(seed).shuffle(middle)
    return _around(layers, start, middle)


@_family(_START)
def parallel(layers: int, *, start: int) -> Plan:
    """The middle as one step: its layers on the same input, their outputs averaged."""
    middle = _middle(layers, start)
    return _around(layers, start, [middle] if middle else [])


@_family(_START, _count("loops", 1))
def looped_parallel(layers: int, *, start: int, loops: int) -> Plan:
    """The middle as one parallel step, its mean fed back, loops times."""
    middle = _middle(layers, start)
    check_steps(2 * start + 2 + loops)
    return _around(layers, start, [_together(middle)] * loops if middle else [])


@_family(_LAYER, _PART)
def drop(layers: int, *, layer: int, part: str | None = None) -> Plan:
    """The whole stack but one layer, or but its attention or MLP."""
    if part is None:
        return drop_block(layers, first=layer, last=layer)
    kept = "mlp" if part == "attn" else "attn"
    return Plan.from_steps([*range(layer), f"{layer}.{kept}", *range(layer + 1, layers)])


@_family(_PAIR)
def switch(layers: int, *, layer: int) -> Plan:
    """A layer and the one after it in each other's place."""
    return Plan.from_steps([*range(layer), layer + 1, layer, *range(layer + 2, layers)])


@_family(Parameter("first", range), Parameter("last", range))
def drop_block(layers: int, *, first: int, last: int) -> Plan:
    """The whole stack but the layers first to last, both included."""
    if last < first:
        raise PlanError(f"first={first},last={last}: no block; last is {first} to {layers - 1}")
    if last - first + 1 == layers:
        raise PlanError(f"dropping {first} to {last}: a {layers}-layer model must keep a layer")
    return Plan.from_steps([*range(first), *range(last + 1, layers)])


@_family(_LAYER, _count("times", 1))
def repeat(layers: int, *, layer: int, times: int) -> Plan:
    """One layer several times in place."""
    check_steps(layers - 1 + times)
    return Plan.from_steps(
        [*range(layer), *[_together([layer])] * times, *range(layer + 1, layers)]
    )


# Named sets and resolution


@dataclass(frozen=True)
class NamedSet:
    """Plans that answer one question together; the baseline comes first.

    sweeps: family texts; `{starts}` and `{loops}` stand for the ends of the loops by width grid.
    """

    name: str
    summary: str
    sweeps: tuple[str, ...]

    def texts(self, layers: int) -> tuple[str, ...]:
        """The family texts of the set for T layers; 28 loops for the paper's 32 layers."""
        starts, loops = max(0, (layers + 1) // 2 - 2), max(1, layers - 4)
        texts = ("baseline", *self.sweeps)
        return tuple(text.format(starts=starts, loops=loops) for text in texts)


_FIG2 = ("drop:layer=..", "switch:layer=..")
_FIG10 = "looped_parallel:start=0..{starts},loops=1..{loops}"
_VARIANTS = {
    "fig4": ("skip:start=..", "the middle left out"),
    "fig5": ("middle_repeat:start=..", "the middle replaced by the stack's centre layer"),
    "fig6": ("reverse:start=..", "the middle backwards"),
    "fig7": ("random:start=..,seed=0..9", "the middle in ten random orders"),
    "fig8": ("parallel:start=..", "the middle in parallel"),
    "fig9": ("looped_parallel:start=..,loops=3", "the middle in parallel, three times"),
}
_FIG11 = tuple(sweep for sweep, _ in _VARIANTS.values())
_DROPS = ("drop:layer=..", "drop:layer=..,part=attn", "drop:layer=..,part=mlp")
_SETS = (
    NamedSet("fig2", "each layer dropped, each pair of neighbours switched", _FIG2),
    NamedSet("fig3", "the baseline alone", ()),
    *(NamedSet(name, summary, (sweep,)) for name, (sweep, summary) in _VARIANTS.items()),
    NamedSet("fig10", "the middle in parallel, loops by width", (_FIG10,)),
    NamedSet("fig11", "the variants of figures 4 to 9", _FIG11),
    NamedSet("painters", "figures 2 to 11 together", (*_FIG2, *_FIG11, _FIG10)),
    NamedSet("dropouts", "each layer dropped: whole, its attention, its MLP", _DROPS),
)
SETS: dict[str, NamedSet] = {named.name: named for named in _SETS}


@dataclass(frozen=True)
class NamedPlan:
    """A plan and what to call it: its family text, `skip:start=3`, or its canonical text."""

    name: str
    plan: Plan


def names_of(plans: Sequence[NamedPlan]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(plans) - 8} more" if len(plans) > 8 else ""
    return ", ".join(named.name for named in plans[:8]) + more


def resolve(texts: str | Plan | Sequence[str | Plan], layers: int) -> tuple[NamedPlan, ...]:
    """The plans that the texts stand for, in order, each plan once under its first name.

    Args:
        texts: plans, plan texts, families, sweeps and named sets in any mix.
        layers: the model's T.
    Raises:
        RepsimError: a text cannot be understood, asks what T layers do not allow, or they stand for
            too many plans.
    """
    check_steps(layers)
    wanted = [texts] if isinstance(texts, str | Plan) else list(texts)
    parsed = [sweep for text in wanted for sweep in _parsed(text, layers)]
    # Counted before any is made: 100,000 plans are a slip of the keyboard, and more than a memory
    # holds.
    if (count := sum(len(sweep) for sweep in parsed)) > MOST_PLANS:
        asked = " ".join(str(text) for text in wanted)
        asked = asked if len(asked) <= 100 else f"{asked[:97]}..."
        raise PlanError(
            f"{asked}: stands for {count:,} plans; ask for at most {MOST_PLANS:,} at once"
        )
    named: dict[Plan, NamedPlan] = {}
    steps = 0
    for sweep in parsed:
        for item in sweep:
            steps += len(item.plan)
            if steps > MOST_STEPS_TOGETHER:
                raise PlanError(
                    f"{item.name}: with it, the plans asked for have more than {MOST_STEPS_TOGETHER:,} steps together; "
                    "ask for fewer or shorter ones"
                )
            named.setdefault(item.plan, item)
    return tuple(named.values())


class _Sweep:
    """The plans of `name:key=value,...`, the first key varying slowest; counted without making one."""

    def __init__(self, family: Family, runs: dict[str, list[Sequence[Value]]], layers: int) -> None:
        self._family, self._runs, self._layers = family, runs, layers

    def __len__(self) -> int:
        return math.prod(sum(map(len, runs)) for runs in self._runs.values())

    def __iter__(self) -> Iterator[NamedPlan]:
        for values in itertools.product(*(itertools.chain(*runs) for runs in self._runs.values())):
            chosen = dict(zip(self._runs, values, strict=True))
            yield NamedPlan(self._family.text(**chosen), self._family.build(self._layers, **chosen))


def _parsed(text: str | Plan, layers: int) -> Sequence[_Sweep | tuple[NamedPlan]]:
    if isinstance(text, Plan):
        check_layer(text.max_layer, layers)
        return [(NamedPlan(text.text, text),)]
    if not isinstance(text, str):
        raise PlanError(f"{text!r}: not a plan; give a text, or Plan.from_steps of a list")
    if not re.match(r"\s*[A-Za-z_]", text):
        plan = parse_plan(text, layers)
        return [(NamedPlan(plan.text, plan),)]
    if text.strip() in SETS:
        return [_sweep(sweep, layers) for sweep in SETS[text.strip()].texts(layers)]
    return [_sweep(text, layers)]


def _sweep(text: str, layers: int) -> _Sweep:
    """What `name:key=value,...` stands for."""
    tight = re.sub(r" ?([:,=|]|\.\.) ?", r"\1", " ".join(text.split()))
    name, colon, rest = tight.partition(":")
    if name in SETS:
        raise PlanError(f"{tight}: {name} is a set and takes no parameters; write {name}")
    if name not in FAMILIES:
        raise _unknown(name)
    family = FAMILIES[name]
    asked = _assignments(family, rest.split(",") if colon else [])
    known = {parameter.name: parameter for parameter in family.parameters}
    return _Sweep(family, {key: known[key].values(asked[key], layers) for key in asked}, layers)


def _assignments(family: Family, pairs: Sequence[str]) -> dict[str, str]:
    asked: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in {parameter.name for parameter in family.parameters}:
            raise PlanError(f"{pair!r}: {family.name} does not take it; write {family.usage}")
        if key in asked:
            raise PlanError(f"{key}={asked[key]},{pair}: {key} is there twice; write {key}=A|B")
        asked[key] = value
    for parameter in family.parameters:
        if not parameter.optional and parameter.name not in asked:
            raise PlanError(f"{family.name}: {parameter.name} is missing; write {family.usage}")
    return asked


def _unknown(name: str) -> PlanError:
    close = difflib.get_close_matches(name, [*FAMILIES, *SETS], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    families, sets = ", ".join(FAMILIES), ", ".join(SETS)
    return PlanError(f"{name!r}: unknown; {hint}families: {families}; sets: {sets}")
