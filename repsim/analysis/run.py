"""An analysis from end to end: opens the stores, computes, keeps the results, draws.

`analyze` is what the command `repsim analyze` calls and prints. It knows no analysis: each is a
module found by its entry point (`repsim.registry`), called by what its kind says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

import numpy as np
import xarray as xr

from repsim import stores as store_access
from repsim.analysis.names import (
    LONGEST_LABEL,
    Subject,
    check_labels,
    name_subjects,
)
from repsim.analysis.tables import render
from repsim.cache import file_name
from repsim.captures.arithmetic import arithmetic_in_force, arithmetic_on
from repsim.captures.reader import Capture
from repsim.errors import RepsimError, did_you_mean, printable
from repsim.evaluation.reader import Scores
from repsim.options import COLOUR_OPTIONS, FigureOptions, from_keywords, takes
from repsim.plans import ALL, read_plans
from repsim.plotting import Figure, drawn_with, options_in_force, save
from repsim.registry import (
    draws_together,
    figure_options_of,
    find_analysis,
    keywords_of,
    kind_of,
    option_name,
    summarise,
    takes_store,
)
from repsim.schema import STORE, Kind
from repsim.stats import results

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd

Store: TypeAlias = str | Path | Capture | Scores

log = logging.getLogger("repsim")


@dataclass(frozen=True, eq=False)
class Analysis:
    """What an analysis gave, or a part of it: parts are added.

    name: of the analysis.
    results: a labelled Dataset for each plan (where it is of one plan) and each store.
    figures: name -> figure.
    files: what was written to the folder of figures: data of each result, then its pictures and
        their captions.
    remarks: what a reader of the numbers has to know: results that no store keeps, stores that are
        not finished.
    lines: what was done, as the command prints it.
    tables: the few numbers of each result, where the analysis names them.
    """

    name: str
    results: list[xr.Dataset] = field(default_factory=list)
    figures: dict[str, matplotlib.figure.Figure] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)

    def __add__(self, other: Analysis) -> Analysis:
        return Analysis(
            self.name,
            self.results + other.results,
            self.figures | other.figures,
            self.files + other.files,
            self.remarks + other.remarks,
            self.lines + other.lines,
            self.tables + other.tables,
        )

    def __repr__(self) -> str:
        counts = [
            f"{len(things)} {word}" + "s" * (len(things) != 1)
            for things, word in ((self.results, "result"), (self.figures, "figure"))
        ]
        lines = [*self.lines, *(f"remark: {remark}" for remark in self.remarks)]
        lines += [line for table in self.tables for line in render(table).splitlines()]
        return "\n".join(
            [
                f"<repsim.Analysis {printable(self.name)}: {', '.join(counts)}>",
                *(f"  {printable(line)}" for line in lines),
            ]
        )

    def _repr_png_(self) -> bytes | None:
        """The figure as a notebook shows it, where there is exactly one."""
        if len(self.figures) != 1:
            return None
        (figure,) = self.figures.values()
        return figure._repr_png_() if isinstance(figure, Figure) else None


@takes(FigureOptions, more=True)
def analyze(
    name: str,
    stores: Store | Sequence[Store],
    *,
    labels: Sequence[str] | None = None,
    figures: str | Path | None = None,
    progress: Callable[[Analysis], None] | None = None,
    device: str = "auto",
    **options: Any,
) -> Analysis:
    """Analyses stores: a labelled result for each, kept with its store, and figures.

    An analysis of one plan is computed for every plan named. Stores are drawn together where the
    analysis can, else each by itself. An analysis of several stores has one result, kept with the
    first.

    Args:
        name: an installed analysis, e.g. `cosine`; `repsim.registry.installed()` lists them.
        stores: captures or scores: folders, URLs, or what `repsim.open` gave; one or several.
        labels: what to call the stores in figures and files, one per store; by default the model,
            and what tells it from the others.
        figures: folder for the figures and the data behind them; by default nothing is saved there.
        progress: called with each part as soon as it is there: a store's result, then the figures.
        device: where sums over stored states are made: cpu, cuda, cuda:1, ...; auto: on a graphics
            card where there is one. To 1e-6 the numbers are the same, and a result's attribute
            `device` says where they were made.
        **options: of the analysis, as its `compute` and `plot` take them; `plan` takes plans,
            families, sweeps and named sets, one or several. Options of figures are listed above.
    Returns:
        The results, in the order of the plans and then of the stores, and the figures.
    Raises:
        RepsimError: no such analysis, store or option; a store of another kind; or what the
            analysis itself refuses. Results that were finished before stay with their stores.

    Example:
        repsim.analyze("cosine", "cache/captures/smollm2-135m-builtin-baseline.zarr", plan="fig4")
    """
    # Everything is checked and opened before the first number is computed.
    module = find_analysis(name)
    computing, drawing, of_figures = _split_options(name, module, options)
    paths = [stores] if isinstance(stores, str | Path | Capture | Scores) else list(stores)
    if not paths:
        raise RepsimError(f"{name}: no store; name at least one")
    opened = [
        path if isinstance(path, Capture | Scores) else store_access.open(path) for path in paths
    ]
    for store in opened:
        _check_kind(name, module, store)
    if device != "auto" and kind_of(module).reads is not Kind.CAPTURE:
        raise RepsimError(f"{name}: no option 'device'; it reads scores, which have no states")
    if kind_of(module).takes_stores_together and len(opened) < 2:
        raise RepsimError(f"{name}: one store; name two or more, the first to compare with")
    computing = _open_second_stores(name, module, computing)
    check_labels(labels or [], opened)
    folder = None if figures is None else Path(figures)

    # Each round is one result per store and what is drawn of these.
    whole = Analysis(name)
    with drawn_with(of_figures) as remarks, arithmetic_on(device):
        for chosen in _rounds(module, opened, computing):
            for part in _analyze_round(name, module, opened, chosen, labels or [], drawing, folder):
                part += _on_figures(name, remarks)
                whole += part
                if progress is not None:
                    progress(part)
    return whole


def _split_options(
    name: str, module: ModuleType, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], FigureOptions]:
    """The options of `compute` with defaults filled in, as results are named after them, those of
    `plot`, and those of all figures.

    Raises:
        RepsimError: the analysis has no such option, or `plot` no such choice.
    """
    of_compute = {parameter.name: parameter.default for parameter in keywords_of(module.compute)}
    of_plot = {parameter.name: parameter for parameter in keywords_of(module.plot)}
    of_figures = figure_options_of(module)
    known = [*of_compute, *of_plot, *of_figures]
    for option in options:
        if option in COLOUR_OPTIONS and option not in known:
            raise RepsimError(f"{name}: no option {option!r}; it draws no heat map")
        if option not in known:
            hint = did_you_mean(option, known)
            raise RepsimError(f"{name}: no option {option!r}; {hint}options: {', '.join(known)}")
    computing = {key: options.get(key, default) for key, default in of_compute.items()}
    drawing = {key: options[key] for key in of_plot if key in options}

    # A figure that there is not is refused before anything is computed.
    for key, value in drawing.items():
        choices = get_args(of_plot[key].annotation)
        if get_origin(of_plot[key].annotation) is Literal and value not in choices:
            raise RepsimError(f"{key}={value!r}: choose {', '.join(map(str, choices))}")
    # What is not asked for here is as around this call, see `repsim.plotting.drawn_with`.
    asked = {key: options[key] for key in of_figures if key in options}
    return computing, drawing, from_keywords(FigureOptions, vars(options_in_force()) | asked)


def _open_second_stores(name: str, module: ModuleType, options: dict[str, Any]) -> dict[str, Any]:
    """The options of `compute` with every second store open, see `repsim.registry.takes_store`."""
    opened = dict(options)
    for keyword in filter(takes_store, keywords_of(module.compute)):
        store = options[keyword.name]
        if store is not None and not isinstance(store, Capture | Scores):
            store = store_access.open(store)
        if store is not None:
            _check_kind(name, module, store)
        opened[keyword.name] = store
    return opened


def _check_kind(name: str, module: ModuleType, store: Capture | Scores) -> None:
    """Refuses a store of another kind than the analysis reads."""
    wanted = kind_of(module).reads
    makers = {each.kind: each.maker for each in (Capture, Scores)}
    if wanted != store.kind:
        raise RepsimError(
            f"{store.path}: holds {store.kind}; {name} reads {wanted}, made by {makers[wanted]}"
        )


def _rounds(
    module: ModuleType, stores: Sequence[Capture | Scores], options: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """The options for each store, round by round: one per plan where the analysis is of one plan.

    A family may stand for other plans in a model of another depth, so it is resolved per store. An
    analysis of several stores is given what was asked for, and finds what they have in common.

    Raises:
        RepsimError: a plan is not understood, or stands for more plans in one store than another.
    """
    if "plan" not in options:
        yield [options] * len(stores)
        return
    asked = read_plans(options["plan"])
    if kind_of(module).takes_stores_together:
        yield [{**options, "plan": [str(each) for each in asked]}]
        return
    names = [[named.name for named in store.find_plans(*asked)] for store in stores]
    if kind_of(module).takes_plans_together:
        # Every plan is what such an analysis takes by default.
        every: list[list[str]] = [[]] * len(names) if asked == [ALL] else names
        yield [{**options, "plan": plans} for plans in every]
        return
    if ALL in asked:
        if len({frozenset(plans) for plans in names}) > 1:
            raise RepsimError(
                f"--plan {ALL}: the stores hold other plans; name those that all of them have"
            )
        names = [names[0]] * len(names)
    if len({len(plans) for plans in names}) > 1:
        counts = ", ".join(
            f"{len(plans)} for {store.path}" for plans, store in zip(names, stores, strict=True)
        )
        raise RepsimError(
            f"--plan {' '.join(map(str, asked))}: {counts} plans; name plans that every model has"
        )
    for plans in zip(*names, strict=True):
        yield [{**options, "plan": each} for each in plans]


def _analyze_round(
    name: str,
    module: ModuleType,
    stores: Sequence[Capture | Scores],
    options: Sequence[dict[str, Any]],
    labels: Sequence[str],
    drawing: dict[str, Any],
    folder: Path | None,
) -> Iterator[Analysis]:
    """One result per store, or one of all of them, each a part, and then what is drawn of them.

    Args:
        options: of `compute`, for each store, or for all of them.
        labels: the user's names for the stores, or none.
        drawing: options of `plot`.
        folder: where data and pictures go; None for nowhere.
    """
    subjects = name_subjects(module, stores, options, labels)
    files = [subject.file for subject in subjects]

    # Numbers: labelled where the model's name does not say enough. What a store keeps has no label,
    # as it does not depend on what it was drawn with.
    labelled: list[xr.Dataset] = []
    for subject in subjects:
        result = _compute(module, subject)
        labelled.append(_label(result, subject))
        data = None if folder is None else folder / f"{name}-{subject.file}.nc"
        if data is not None:
            results.save(labelled[-1], data)
        group = file_name(name, *subject.words)
        table = summarise(module, labelled[-1])
        yield _keep(name, subject, group, result) + Analysis(
            name,
            [results.index_layers(labelled[-1])],
            files=[data] if data else [],
            lines=[f"  data:   {data}"] if data else [],
            tables=[] if table is None else [table],
        )

    # Pictures: one of all stores, or one of each.
    if draws_together(module):
        drawn = [(file_name("+".join(files), longest=LONGEST_LABEL), labelled)]
    else:
        drawn = [(file, [result]) for file, result in zip(files, labelled, strict=True)]
    for file, shown_results in drawn:
        plotted = module.plot(*shown_results, **drawing)
        parts = plotted if isinstance(plotted, dict) else {"": plotted}
        named = {file_name(name, file, part): figure for part, figure in parts.items()}
        for stem, figure in named.items():
            saved = [] if folder is None else save(figure, folder / stem)
            captions = [path for path in saved if path.suffix == ".txt"]
            pictures = [path for path in saved if path not in captions]
            lines = [f"  figure: {', '.join(map(str, pictures))}"] if pictures else []
            lines += [f"  caption: {path}" for path in captions]
            yield Analysis(name, figures={stem: figure}, files=saved, lines=lines)


def _compute(module: ModuleType, subject: Subject) -> xr.Dataset:
    """The numbers; of states, with the place where they were made."""
    result: xr.Dataset = module.compute(*subject.stores, **subject.options)
    if kind_of(module).reads is Kind.CAPTURE:
        return result.assign_attrs(device=arithmetic_in_force().made_on)
    return result


def _label(result: xr.Dataset, subject: Subject) -> xr.Dataset:
    """A result with the names of its stores, where their models' do not say enough."""
    if STORE in result.dims:
        return result.assign_coords({STORE: (STORE, np.array(subject.labels, object))})
    pairs = zip(("label", "label_other"), subject.labels, subject.every_store, strict=False)
    for attribute, label, store in pairs:
        if label != store.identity["model"]:
            result = result.assign_attrs({attribute: label})
    return result


def _on_figures(name: str, remarks: list[str]) -> Analysis:
    """What was remarked on figures since the last time, said once."""
    said = remarks.copy()
    remarks.clear()
    for text in said:
        log.warning("%s", text)
    return Analysis(name, remarks=said)


def _keep(name: str, subject: Subject, group: str, result: xr.Dataset) -> Analysis:
    """Keeps a result with its store, or remarks that it cannot be kept there.

    A store may be somebody else's to write, or lie on a read-only disk; the numbers are right all
    the same.
    """
    remarks: list[str] = []
    paths = ", ".join(str(store.path) for store in subject.stores)
    chosen = [option for option in subject.options.items() if option[1] not in (None, [], ())]
    lines = [f"{name} of {paths} ({', '.join(map(_spoken, chosen))})"]
    store = subject.stores[0]
    try:
        store.write_result(group, result)
        lines.append(f"  result: {store.path}/analyses/{group}")
    except RepsimError as problem:
        remarks.append(f"result not kept with the store: {problem}")
        log.error("%s", remarks[-1])  # an error, so that --quiet shows it
    for store in subject.every_store:
        if store.remark:
            remarks.append(f"incomplete: {store.remark}")
            log.warning("%s", remarks[-1])
    return Analysis(name, remarks=remarks, lines=lines)


def _spoken(option: tuple[str, Any]) -> str:
    """An option as the command says it: `plan baseline`."""
    name, value = option
    if isinstance(value, Capture | Scores):
        value = value.path
    return f"{option_name(name)} {', '.join(value) if isinstance(value, list) else value}"
