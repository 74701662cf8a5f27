"""An analysis from end to end: opens the stores, computes, keeps the results, draws.

`analyze` is what the command `repsim analyze` calls and prints. It knows no analysis: each is a
module found by its entry point (`repsim.registry`), called by what its kind says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import xarray as xr

from repsim import stores as store_access
from repsim.analysis.names import (
    LONGEST_LABEL,
    check_labels,
    figure_labels,
    file_labels,
    option_words,
)
from repsim.cache import file_name
from repsim.captures.reader import Capture
from repsim.errors import RepsimError, did_you_mean, printable
from repsim.evaluation.reader import Scores
from repsim.plans import ALL, read_plans
from repsim.plotting import Figure, save, styled
from repsim.registry import draws_together, find_analysis, keywords_of, kind_of
from repsim.stats import results

if TYPE_CHECKING:
    import matplotlib.figure

Store: TypeAlias = str | Path | Capture | Scores

log = logging.getLogger("repsim")


@dataclass(frozen=True, eq=False)
class Analysis:
    """What an analysis gave, or a part of it: parts are added.

    name: of the analysis.
    results: a labelled Dataset for each plan (where it is of one plan) and each store.
    figures: name -> figure.
    files: what was written to the folder of figures: data of each result, then its pictures.
    remarks: what a reader of the numbers has to know: results that no store keeps, stores that are
        not finished.
    lines: what was done, as the command prints it.
    """

    name: str
    results: list[xr.Dataset] = field(default_factory=list)
    figures: dict[str, matplotlib.figure.Figure] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __add__(self, other: Analysis) -> Analysis:
        return Analysis(
            self.name,
            self.results + other.results,
            self.figures | other.figures,
            self.files + other.files,
            self.remarks + other.remarks,
            self.lines + other.lines,
        )

    def __repr__(self) -> str:
        counts = [
            f"{len(things)} {word}" + "s" * (len(things) != 1)
            for things, word in ((self.results, "result"), (self.figures, "figure"))
        ]
        lines = [*self.lines, *(f"remark: {remark}" for remark in self.remarks)]
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


def analyze(
    name: str,
    stores: Store | Sequence[Store],
    *,
    labels: Sequence[str] | None = None,
    figures: str | Path | None = None,
    style: str | Path | None = None,
    progress: Callable[[Analysis], None] | None = None,
    **options: Any,
) -> Analysis:
    """Analyses stores: a labelled result for each, kept with its store, and figures.

    An analysis of one plan is computed for every plan named. Stores are drawn together where the
    analysis can, else each by itself.

    Args:
        name: an installed analysis, e.g. `cosine`; `repsim.registry.installed()` lists them.
        stores: captures or scores: folders, URLs, or what `repsim.open` gave; one or several.
        labels: what to call the stores in figures and files, one per store; by default the model,
            and what tells it from the others.
        figures: folder for the figures and the data behind them; by default nothing is saved there.
        style: a matplotlib style, by name or file, on top of repsim's.
        progress: called with each part as soon as it is there: a store's result, then the figures.
        **options: of the analysis, as its `compute` and `plot` take them; `plan` takes plans,
            families, sweeps and named sets, one or several.
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
    computing, drawing = _split_options(name, module, options)
    paths = [stores] if isinstance(stores, str | Path | Capture | Scores) else list(stores)
    if not paths:
        raise RepsimError(f"{name}: no store; name at least one")
    opened = [
        path if isinstance(path, Capture | Scores) else store_access.open(path) for path in paths
    ]
    for store in opened:
        _check_kind(name, module, store)
    check_labels(labels or [], opened)
    folder = None if figures is None else Path(figures)

    # Each round is one result per store and what is drawn of these.
    whole = Analysis(name)
    with styled(style) if style is not None else nullcontext():
        for chosen in _rounds(module, opened, computing):
            for part in _analyze_round(name, module, opened, chosen, labels or [], drawing, folder):
                whole += part
                if progress is not None:
                    progress(part)
    return whole


def _split_options(
    name: str, module: ModuleType, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `compute` with defaults filled in, as results are named after them, and those
    of `plot`.

    Raises:
        RepsimError: the analysis has no such option.
    """
    of_compute = {parameter.name: parameter.default for parameter in keywords_of(module.compute)}
    of_plot = {parameter.name: parameter.default for parameter in keywords_of(module.plot)}
    known = [*of_compute, *of_plot]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise RepsimError(f"{name}: no option {option!r}; {hint}options: {', '.join(known)}")
    computing = {key: options.get(key, default) for key, default in of_compute.items()}
    return computing, {key: options[key] for key in of_plot if key in options}


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

    A family may stand for other plans in a model of another depth, so it is resolved per store.

    Raises:
        RepsimError: a plan is not understood, or stands for more plans in one store than another.
    """
    if "plan" not in options:
        yield [options] * len(stores)
        return
    asked = read_plans(options["plan"])
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
    """One result per store, each a part, and then what is drawn of them.

    Args:
        options: of `compute`, for each store.
        labels: the user's names for the stores, or none.
        drawing: options of `plot`.
        folder: where data and pictures go; None for nowhere.
    """
    words = [option_words(module.compute, each) for each in options]
    shown = labels or figure_labels(stores)
    files = file_labels(stores, words, labels)

    # Numbers: labelled where the model's name does not say enough. What a store keeps has no label,
    # as it does not depend on what it was drawn with.
    labelled: list[xr.Dataset] = []
    for store, each, label, said, file in zip(stores, options, shown, words, files, strict=True):
        result: xr.Dataset = module.compute(store, **each)
        labelled.append(
            result if label == store.identity["model"] else result.assign_attrs(label=label)
        )
        data = None if folder is None else folder / f"{name}-{file}.nc"
        if data is not None:
            results.save(labelled[-1], data)
        group = file_name(name, *said)
        yield _keep(name, store, each, group, result) + Analysis(
            name,
            [labelled[-1]],
            files=[data] if data else [],
            lines=[f"  data:   {data}"] if data else [],
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
            lines = [f"  figure: {', '.join(map(str, saved))}"] if saved else []
            yield Analysis(name, figures={stem: figure}, files=saved, lines=lines)


def _keep(
    name: str, store: Capture | Scores, options: dict[str, Any], group: str, result: xr.Dataset
) -> Analysis:
    """Keeps a result with its store, or remarks that it cannot be kept there.

    A store may be somebody else's to write, or lie on a read-only disk; the numbers are right all
    the same.
    """
    remarks: list[str] = []
    lines = [f"{name} of {store.path} ({', '.join(map(_spoken, options.items()))})"]
    try:
        store.write_result(group, result)
        lines.append(f"  result: {store.path}/analyses/{group}")
    except RepsimError as problem:
        remarks.append(f"result not kept with the store: {problem}")
        log.error("%s", remarks[-1])  # an error, so that --quiet shows it
    if store.remark:
        remarks.append(f"incomplete: {store.remark}")
        log.warning("%s", remarks[-1])
    return Analysis(name, remarks=remarks, lines=lines)


def _spoken(option: tuple[str, Any]) -> str:
    """An option as the command says it: `plan baseline`."""
    name, value = option
    return f"{name} {', '.join(value) if isinstance(value, list) else value}"
