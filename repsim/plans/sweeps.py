"""Plans by name: family texts, sweeps over their parameters, and the sets that figures need.

`resolve` turns any text a user may write into plans of a model's depth; `family_of` goes the other
way and finds the family that a plan belongs to. Nothing here knows a particular family.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from repsim.errors import PlanError, did_you_mean
from repsim.plans.families import FAMILIES, LARGEST, Family, Value
from repsim.plans.names import ALL, NAME, split_name
from repsim.plans.plan import Plan, check_layer, check_steps, parse_plan

MOST_PLANS = 100_000  # that texts may stand for together
MOST_STEPS_TOGETHER = 10_000_000
MOST_TRIED = 1_000_000  # combinations of values of which those that go together are counted
UNLIMITED_TRIED = 10  # values of a parameter without a limit, to find a plan's family
MOST_STEPS_TRIED = 2_500_000  # of a family's plans together, to find a plan's family


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
    """A plan and what to call it.

    name: its family text, `skip:start=3`, or its canonical text; else what its user calls it.
    family: the family it belongs to; empty where it belongs to none.
    values: parameter → value, so that the family's `build(layers, **values)` is the plan.
    """

    name: str
    plan: Plan
    family: str = field(default="", compare=False)  # follows from the plan, as do the values
    values: Mapping[str, Value] = field(default_factory=dict, compare=False)

    @property
    def has_given_name(self) -> bool:
        """Whether its user has named it, `late=0-3, 8-29`, rather than its family or its text."""
        return bool(NAME.fullmatch(self.name)) and not _is_reserved(self.name)


def names_of(plans: Sequence[NamedPlan]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(plans) - 8} more" if len(plans) > 8 else ""
    return ", ".join(named.name for named in plans[:8]) + more


def resolve(
    texts: str | Plan | Sequence[str | Plan], layers: int, stored: Sequence[NamedPlan] = ()
) -> tuple[NamedPlan, ...]:
    """The plans that the texts stand for, in order, each plan once: under the name that it was
    given, else under its first one.

    Of a sweep over several parameters, values that do not go together are left out; a text that
    stands for nothing else is refused.

    Args:
        texts: plans, plan texts, families, sweeps and named sets in any mix; `late=0-3, 8-29` names
            a plan.
        layers: the model's T.
        stored: plans of a store, which are found by the names that they were given; `all` stands
            for all of them.
    Raises:
        PlanError: a text cannot be understood, asks for what T layers do not allow, they stand
            for too many plans, or a name is given twice.
    Example:
        >>> [named.name for named in resolve(["skip:start=0..1", "0-2", "late=0, 4-5"], layers=6)]
        ['skip:start=0', 'skip:start=1', '0-2', 'late']
    """
    check_steps(layers)
    wanted = [texts] if isinstance(texts, str | Plan) else list(texts)
    sweeps = [sweep for text in wanted for sweep in _parse(text, layers, stored)]
    # Counted before any is built: 100,000 plans are a slip of the keyboard, and more than fits into
    # memory.
    if (count := sum(len(sweep) for sweep in sweeps)) > MOST_PLANS:
        request = " ".join(str(text) for text in wanted)
        request = request if len(request) <= 100 else f"{request[:97]}..."
        raise PlanError(
            f"{request}: stands for {count:,} plans; ask for at most {MOST_PLANS:,} at once"
        )
    # Built one by one; the first name of a plan stays, unless another was given to it.
    named_plans: dict[Plan, NamedPlan] = {}
    steps = 0
    for sweep in sweeps:
        for named in sweep:
            steps += len(named.plan)
            if steps > MOST_STEPS_TOGETHER:
                raise PlanError(
                    f"{named.name}: with it, the plans asked for have more than "
                    f"{MOST_STEPS_TOGETHER:,} steps together; ask for fewer or shorter ones"
                )
            present = named_plans.setdefault(named.plan, named)
            if named.has_given_name and not present.has_given_name:
                named_plans[named.plan] = named
            elif named.has_given_name and named.name != present.name:
                raise PlanError(
                    f"{present.name} and {named.name}: the same plan ({named.plan}); name it once"
                )
    check_distinct(tuple(named_plans.values()))
    return tuple(named_plans.values())


def check_distinct(plans: Sequence[NamedPlan]) -> None:
    """Refuses two plans of one name, of which only the first could be found again.

    Raises:
        PlanError: there are such.
    """
    by_name: dict[str, NamedPlan] = {}
    for named in plans:
        other = by_name.setdefault(named.name, named)
        if other.plan != named.plan and named.has_given_name:
            raise PlanError(
                f"{named.name}: names two plans, {other.plan} and {named.plan}; "
                "give each its own name"
            )


def recognise(name: str, plan: Plan, layers: int) -> NamedPlan:
    """A stored plan under the name it was stored by, with its family and values.

    They are those that the name says; where it says none, or by now means another plan, those that
    `family_of` finds.
    """
    try:
        resolved = resolve(name, layers)
    except PlanError:
        resolved = ()
    if len(resolved) == 1 and resolved[0].plan == plan:
        return replace(resolved[0], name=name)
    return _name_plan(name, plan, layers)


def _name_plan(name: str, plan: Plan, layers: int) -> NamedPlan:
    family, values = family_of(plan, layers) or ("", {})
    return NamedPlan(name, plan, family, values)


def family_of(plan: Plan, layers: int) -> tuple[str, dict[str, Value]] | None:
    """The family that a plan belongs to, and its values; None where it belongs to none.

    Families are tried in the order of their registration, so a plan that several build gets the
    first. Of a parameter without a limit, the first ten values are tried, and as many as the plan
    runs its most frequent layer times. A family with very many plans of so deep a model is passed
    over.

    Args:
        plan: any plan.
        layers: the model's T.
    Example:
        >>> family_of(Plan.from_steps([0, 1, 2, 4, 5]), layers=6)
        ('skip', {'start': 2})
        >>> family_of(Plan.from_steps([0, 1, 2, 3, 5]), layers=6)
        ('drop', {'layer': 4})
    """
    recognised = _family_of(plan, layers, tuple(FAMILIES.values()))
    return recognised and (recognised[0], dict(recognised[1]))


@functools.lru_cache(maxsize=10_000)
def _family_of(
    plan: Plan, layers: int, families: tuple[Family, ...]
) -> tuple[str, Mapping[str, Value]] | None:
    counts = Counter(member.layer for step in plan.steps for member in step)
    unlimited = max(UNLIMITED_TRIED, *counts.values())
    for family in families:
        for values in _values_to_try(family, layers, unlimited):
            if family.fits(layers, **values) and _build(family, layers, values) == plan:
                return family.name, values
    return None


def _values_to_try(family: Family, layers: int, unlimited: int) -> Iterator[dict[str, Value]]:
    """All values of a family's parameters; none where their plans have very many steps together.

    unlimited: how many values of a parameter without a limit.
    """
    choices: list[Sequence[Value | None]] = []
    for parameter in family.parameters:
        allowed = parameter.allowed(layers)
        limited = allowed if LARGEST not in allowed else allowed[:unlimited]
        choices.append([None, *limited] if parameter.optional else limited)
    if math.prod(map(len, choices)) * layers > MOST_STEPS_TRIED:
        return
    names = [parameter.name for parameter in family.parameters]
    for chosen in itertools.product(*choices):
        pairs = zip(names, chosen, strict=True)
        yield {name: value for name, value in pairs if value is not None}


def _build(family: Family, layers: int, values: Mapping[str, Value]) -> Plan | None:
    """The plan, or None where a model of so few layers has none."""
    try:
        return family.build(layers, **values)
    except PlanError:
        return None


class _Sweep:
    """The plans of `name:key=value,...`, the first key varying slowest.

    They are counted without building one.
    """

    def __init__(
        self, family: Family, choices: dict[str, list[Sequence[Value]]], layers: int
    ) -> None:
        self._family, self._choices, self._layers = family, choices, layers

    def __len__(self) -> int:
        total = math.prod(sum(map(len, runs)) for runs in self._choices.values())
        if self._family.objection is None or total > MOST_TRIED:
            return total
        return sum(1 for _ in self._combinations())

    def __iter__(self) -> Iterator[NamedPlan]:
        for values in self._combinations():
            plan = self._family.build(self._layers, **values)
            yield NamedPlan(self._family.text(**values), plan, self._family.name, values)

    def _combinations(self) -> Iterator[dict[str, Value]]:
        """The values that go together; where none do, the first, so that building says why not."""
        refused: dict[str, Value] = {}
        some_fit = False
        runs = (itertools.chain(*runs) for runs in self._choices.values())
        for chosen in itertools.product(*runs):
            values = dict(zip(self._choices, chosen, strict=True))
            if self._family.fits(self._layers, **values):
                some_fit = True
                yield values
            else:
                refused = refused or values
        if not some_fit:
            yield refused


def _parse(
    text: str | Plan, layers: int, stored: Sequence[NamedPlan]
) -> Sequence[_Sweep | tuple[NamedPlan, ...]]:
    """The sweeps, or the single plans, that a text stands for."""
    if isinstance(text, Plan):
        check_layer(text.max_layer, layers)
        return [(_name_plan(text.text, text, layers),)]
    if not isinstance(text, str):
        raise PlanError(f"{text!r}: not a plan; give a text, or Plan.from_steps of a list")

    # Plans of a store, by the names that they were given there.
    word = text.strip()
    if word == ALL:
        if not stored:
            raise PlanError(f"{ALL}: the plans of a store, and there is none; name plans or sets")
        return [tuple(stored)]
    present = {named.name: named for named in stored if named.has_given_name}
    if word in present:
        return [(present[word],)]

    # A plan with a name, which is one plan.
    name, plan = split_name(text)
    if name:
        return [(_parse_named(name, plan, layers),)]
    return _parse_unnamed(text, layers, tuple(present))


def _parse_named(name: str, text: str, layers: int) -> NamedPlan:
    """The plan of `name=text`."""
    if _is_reserved(name):
        kind = "a family" if name in FAMILIES else "a set" if name in SETS else "all of a store"
        raise PlanError(f"{name}={text}: {name} is {kind}; give the plan another name")
    sweeps = _parse_unnamed(text, layers, ())
    plans = list(itertools.islice(itertools.chain.from_iterable(sweeps), 2))
    if len(plans) != 1:
        raise PlanError(f"{name}={text}: stands for several plans; a name is for one")
    return replace(plans[0], name=name)


def _parse_unnamed(
    text: str, layers: int, names: Sequence[str]
) -> Sequence[_Sweep | tuple[NamedPlan, ...]]:
    """What a plan's steps, a set or a family stand for; `names` are others that could be meant."""
    if not re.match(r"\s*[A-Za-z_]", text):
        plan = parse_plan(text, layers)
        return [(_name_plan(plan.text, plan, layers),)]
    if text.strip() in SETS:
        return [_parse_sweep(sweep, layers) for sweep in SETS[text.strip()].texts(layers)]
    return [_parse_sweep(text, layers, names)]


def _is_reserved(name: str) -> bool:
    """Whether a name means something already, wherever plans are written."""
    return name == ALL or name in FAMILIES or name in SETS


def _parse_sweep(text: str, layers: int, names: Sequence[str] = ()) -> _Sweep:
    """What `name:key=value,...` stands for; `names` are others that could be meant."""
    tight = re.sub(r" ?([:,=|]|\.\.) ?", r"\1", " ".join(text.split()))
    name, colon, rest = tight.partition(":")
    if name in SETS:
        raise PlanError(f"{tight}: {name} is a set and takes no parameters; write {name}")
    if name not in FAMILIES:
        raise _unknown(name, names)
    family = FAMILIES[name]
    texts = _assignments(family, rest.split(",") if colon else [])
    known = {parameter.name: parameter for parameter in family.parameters}
    choices = {key: known[key].values(value, layers) for key, value in texts.items()}
    return _Sweep(family, choices, layers)


def _assignments(family: Family, pairs: Sequence[str]) -> dict[str, str]:
    """Parameter → text of its values.

    Raises:
        PlanError: a parameter is missing, unknown, or given twice.
    """
    texts: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in {parameter.name for parameter in family.parameters}:
            raise PlanError(f"{pair!r}: {family.name} does not take it; write {family.usage}")
        if key in texts:
            raise PlanError(f"{key}={texts[key]},{pair}: {key} is there twice; write {key}=A|B")
        texts[key] = value
    for parameter in family.parameters:
        if not parameter.optional and parameter.name not in texts:
            raise PlanError(f"{family.name}: {parameter.name} is missing; write {family.usage}")
    return texts


def _unknown(name: str, names: Sequence[str]) -> PlanError:
    hint = did_you_mean(name, [*names, *FAMILIES, *SETS])
    families, sets = ", ".join(FAMILIES), ", ".join(SETS)
    own = f"; of the store: {', '.join(names)}" if names else ""
    return PlanError(f"{name!r}: unknown; {hint}families: {families}; sets: {sets}{own}")
