"""The analyses that are installed: which kinds there are, what each kind promises, and loading one.

Any package can add an analysis: a module with `compute` and `plot`, named by an entry point of the
group `repsim.analyses`. Its `KIND` says what it is of. A third function, `summarise`, is optional:
it takes a result of `compute` and gives the few numbers that the figure is about as a
pandas.DataFrame of at most a dozen rows, which the command prints. Columns `NAME_low` and
`NAME_high`, or `NAME_standard_error`, are shown with `NAME`; a sentence in `attrs["note"]` is
printed below (see `repsim.analysis.tables`). This module knows no analysis by name and computes
nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from repsim.errors import RepsimError, brief, did_you_mean
from repsim.options import COLOUR_OPTIONS, FigureOptions, options_of
from repsim.schema import ANALYSES, Kind
from repsim.stats.per_sample import PlanSource, SampleStatistic, StateSource, TextSource

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

SECOND_STORE = "a second store"  # marks a keyword of `compute`, see `takes_store`


class AnalysisKind(StrEnum):
    """What an analysis is of, and so what its `compute` is called with.

    STATES: the states of one plan, `compute(capture, *, plan="baseline", ...)`; with several plans
    it is computed once per plan. What it asks of the capture: `StateSource`.
    PLANS: the states of several plans together, `compute(capture, *, plan=(), ...)`; `plan` is a
    sequence of names, an empty one stands for every plan of the capture. It asks for a
    `PlansSource`.
    LOGPROBS: the log-probabilities of several plans, called like PLANS. It asks for a
    `LogprobSource`.
    SCORES: the scores of every plan, `compute(scores, ...)`. It asks for a `ScoreSource`.
    SCORES_TOGETHER: the scores of two or more stores at once, `compute(*scores, plan=(), ...)`; one
    result with a dimension `store`. `plan` holds what was asked for, as it was written. It asks for
    a `ScoreSource` each.
    """

    STATES = "states"
    PLANS = "plans"
    LOGPROBS = "logprobs"
    SCORES = "scores"
    SCORES_TOGETHER = "scores_together"

    @property
    def reads(self) -> Kind:
        """The kind of store that it reads, as `repsim.open(store).kind` says it."""
        of_scores = (AnalysisKind.SCORES, AnalysisKind.SCORES_TOGETHER)
        return Kind.SCORES if self in of_scores else Kind.CAPTURE

    @property
    def takes_plans_together(self) -> bool:
        """Whether `plan` is a sequence of plans, computed at once."""
        return self in (AnalysisKind.PLANS, AnalysisKind.LOGPROBS, AnalysisKind.SCORES_TOGETHER)

    @property
    def takes_stores_together(self) -> bool:
        """Whether one result is of all stores, two at least."""
        return self is AnalysisKind.SCORES_TOGETHER


class PlansSource(StateSource, Protocol):
    """What an analysis of several plans asks of a capture."""

    @property
    def plans(self) -> Sequence[Any]: ...


OtherCapture = Annotated[TextSource | None, SECOND_STORE]
"""Type of a keyword of `compute` that takes a second capture; see `takes_store`."""


class LogprobSource(PlanSource, Protocol):
    """What an analysis of log-probabilities asks of a capture."""

    @property
    def plans(self) -> Sequence[Any]: ...

    def lengths(self, *plans: str) -> NDArray[np.int64]: ...

    def logprob(self, plan: str) -> xr.DataArray: ...


class ScoreSource(Protocol):
    """What an analysis of scores asks of a store; see `repsim.Scores`.

    dataset: the store as xarray opens it.
    layers: the model's T.
    identity: with `model`.
    """

    @property
    def dataset(self) -> xr.Dataset: ...

    @property
    def layers(self) -> int: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...


def installed() -> dict[str, EntryPoint]:
    """Name -> entry point of every installed analysis, broken ones included, in alphabetical
    order.
    """
    return {entry.name: entry for entry in sorted(entry_points(group=ANALYSES), key=_name)}


def find_analysis(name: str) -> ModuleType:
    """The module of the installed analysis of this name.

    Raises:
        RepsimError: there is none of this name, or it is broken.
    """
    entries = installed()
    if name not in entries:
        hint = did_you_mean(name, entries)
        raise RepsimError(f"no such analysis {name!r}; {hint}there are {', '.join(entries)}")
    return load_analysis(entries[name])


def load_analysis(entry: EntryPoint) -> ModuleType:
    """The module of an installed analysis.

    Raises:
        RepsimError: it cannot be imported, or it is no analysis.
    """
    try:
        module: ModuleType = entry.load()
    except (Exception, SystemExit) as problem:  # whatever another package does as it is imported
        raise broken_analysis(entry, problem) from problem
    for name in ("compute", "plot"):
        function = getattr(module, name, None)
        if not callable(function):
            raise broken_analysis(entry, f"it has no function {name}")
        try:
            keywords_of(function)
        except Exception as problem:  # an annotation that cannot be evaluated
            raise broken_analysis(entry, problem) from problem
    if not callable(getattr(module, "summarise", summarise)):
        raise broken_analysis(entry, "its summarise is no function")
    if not isinstance(getattr(module, "STATISTICS", {}), Mapping):
        raise broken_analysis(entry, "its STATISTICS are no mapping of names to kernels")
    return module


def kind_of(module: ModuleType) -> AnalysisKind:
    """What an analysis is of: its `KIND`, where that is an `AnalysisKind`.

    Modules from before there were kinds read scores where their `READS` says so, and one plan's
    states otherwise.
    """
    kind = getattr(module, "KIND", None)
    if isinstance(kind, AnalysisKind):
        return kind
    reads_scores = getattr(module, "READS", Kind.CAPTURE) == Kind.SCORES
    return AnalysisKind.SCORES if reads_scores else AnalysisKind.STATES


def keywords_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The keywords of an analysis's `compute` or `plot`, their annotations evaluated.

    Other parameters may be annotated with what only a type checker imports.
    """
    names = vars(inspect.getmodule(function))
    return [
        parameter.replace(annotation=eval(parameter.annotation, names))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def takes_store(keyword: inspect.Parameter) -> bool:
    """Whether a keyword of `compute` is annotated as a second store, as `OtherCapture` is.

    A command then takes a folder or a URL for it, and `repsim.analyze` whatever `repsim.open` takes
    or gives; `compute` gets it open.
    """
    return SECOND_STORE in getattr(keyword.annotation, "__metadata__", ())


def option_name(keyword: str) -> str:
    """How a keyword of `compute` or `plot` is spelled as an option: a word that Python reserves has
    an underscore behind it.

    Example:
        >>> option_name("with_"), option_name("max_size")
        ('with', 'max-size')
    """
    return keyword.rstrip("_").replace("_", "-")


def draws_together(module: ModuleType) -> bool:
    """Whether `plot` takes several results, and so draws several stores in one figure."""
    parameters = inspect.signature(module.plot).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)


def summarise(module: ModuleType, result: xr.Dataset) -> pd.DataFrame | None:
    """The few numbers that an analysis's figure is about, of one result; None where the analysis
    names none.
    """
    function: Callable[[xr.Dataset], pd.DataFrame] | None = getattr(module, "summarise", None)
    return None if function is None else function(result)


def draws_heat_maps(module: ModuleType) -> bool:
    """Whether figures of an analysis have cells whose colours can be set: its `HEAT_MAPS`."""
    return bool(getattr(module, "HEAT_MAPS", False))


def figure_options_of(module: ModuleType) -> list[str]:
    """Names of the options of figures that an analysis has.

    Those of colours only where it draws heat maps, and none that means something else to it: its
    own options come first.
    """
    of_analysis = {
        keyword.name for part in (module.compute, module.plot) for keyword in keywords_of(part)
    }
    without = of_analysis if draws_heat_maps(module) else {*of_analysis, *COLOUR_OPTIONS}
    return [name for name in options_of(FigureOptions) if name not in without]


def broken_analysis(entry: EntryPoint, problem: BaseException | str) -> RepsimError:
    """What is wrong with an analysis, whose it is, and what to do."""
    reason = problem if isinstance(problem, str) else brief(problem)
    package = entry.dist.name if entry.dist else entry.module
    return RepsimError(
        f"analysis {entry.name!r} of {package} is broken: {reason}; "
        f"mend, update or remove {package}"
    )


def statistics_of(analyses: Iterable[str]) -> tuple[SampleStatistic, ...]:
    """Every statistic of these analyses, by name.

    Raises:
        RepsimError: no such analysis is installed, or it cannot do without the states.
    """
    entries = installed()
    statistics: list[SampleStatistic] = []
    for analysis in dict.fromkeys(analyses):
        if analysis not in entries:
            names = ", ".join(filter(None, map(_name_with_statistics, entries.values())))
            raise RepsimError(f"statistics {analysis!r}: no such analysis; there are {names}")
        kernels = getattr(load_analysis(entries[analysis]), "STATISTICS", None)
        if not kernels:
            raise RepsimError(
                f"statistics {analysis!r}: it needs the states themselves; capture with --keep all"
            )
        statistics += [
            SampleStatistic(f"{analysis}.{name}", kernel) for name, kernel in kernels.items()
        ]
    return tuple(statistics)


def _name(entry: EntryPoint) -> str:
    return entry.name


def _name_with_statistics(entry: EntryPoint) -> str:
    """An analysis's name if it has statistics, or is broken; else nothing."""
    try:
        return entry.name if hasattr(load_analysis(entry), "STATISTICS") else ""
    except RepsimError:
        return f"{entry.name} (broken)"
