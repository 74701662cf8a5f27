"""The command `repsim`: parses, calls one function, prints.

Heavy modules are imported inside the commands, so that help appears at once. Wrong input is one
line on standard error and exit status 2; anything unforeseen is one line that says what to report,
and status 1 (REPSIM_DEBUG=1 shows the traceback).
"""

from __future__ import annotations

import inspect
import logging
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from importlib.metadata import entry_points, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from repsim.errors import Interrupted, RepsimError, printable
from repsim.schema import ANALYSES, CAPTURE, DEFAULT_MODEL, SCORES

if TYPE_CHECKING:
    from repsim.captures.reader import Capture
    from repsim.evaluation.reader import Scores
    from repsim.jobs.interruption import Progress

DEFAULT_LAYERS = 30  # of the default model, for `repsim plans`
# Versions that a report names.
REPORTED = ("repsim-layers", "torch", "transformers", "nnsight", "lm-eval")
PLAIN_SECONDS = 10  # between lines of progress where there is no terminal
UNWRAPPED = 10_000  # columns, more than any line of ours has
# Help is drawn on a terminal; what goes into a pipe has one line for each option and command, so
# that grep finds it.
MARKUP: Literal["rich"] | None = "rich" if sys.stdout.isatty() else None
LONGEST_LABEL = 200  # bytes of a file name that a label may take

log = logging.getLogger("repsim")
app = typer.Typer(
    help="Representation analysis of transformers under layer plans.",
    rich_markup_mode=MARKUP,
    context_settings={"terminal_width": UNWRAPPED} if MARKUP is None else {},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PlanOption = Annotated[
    list[str],
    typer.Option(
        "--plan", "-p", metavar="PLAN", help="A plan, family, sweep or named set; repeatable."
    ),
]
LabelOption = Annotated[
    list[str],
    typer.Option(
        "--label",
        metavar="LABEL",
        help="What to call a store in figures and files; once for each store.",
    ),
]
FiguresOption = Annotated[Path, typer.Option(help="Folder for the figure and the data behind it.")]
StyleOption = Annotated[
    str | None, typer.Option(help="A matplotlib style, by name or file, on top of ours.")
]
StoresArgument = Annotated[
    list[str], typer.Argument(metavar="STORE...", help="Captures, or scores: folders or URLs.")
]
ModelArgument = Annotated[str, typer.Argument(help="Embedded name, hub id, folder or GGUF file.")]
ModelDtypeOption = Annotated[
    str | None, typer.Option(help="Dtype to compute in; the checkpoint's by default.")
]
DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
DeviceMapOption = Annotated[
    str | None, typer.Option(help="auto spreads a large model over devices.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch or commit on the hub.")]
StackOption = Annotated[str | None, typer.Option(help="Path of the module list with the layers.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the hub's code.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


class AnalysisGroup(TyperGroup):
    """One command for each installed analysis, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(entry_points(group=ANALYSES).names)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The analysis's command; one that says what is wrong where a package's analysis is broken."""
        from repsim.stats.per_sample import broken_analysis, load_analysis

        found = entry_points(group=ANALYSES, name=cmd_name)
        if not found:
            return None
        try:
            return analysis_command(cmd_name, load_analysis(found[cmd_name]))
        except RepsimError as problem:
            return _refusing_command(cmd_name, str(problem))
        except Exception as problem:
            # Its signature or its words are none that a command can be made of.
            return _refusing_command(cmd_name, str(broken_analysis(found[cmd_name], problem)))


def _refusing_command(name: str, reason: str) -> Any:
    """A command that takes anything and does nothing but say why."""

    def command() -> None:
        raise RepsimError(reason)

    command.__doc__ = _literal(reason)
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=MARKUP
    )
    single.command(
        name, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
    )(command)
    return typer.main.get_command(single)


def _literal(text: str) -> str:
    """A text in which rich, which draws the help, finds no markup."""
    from rich.markup import escape

    return escape(text) if MARKUP else text


analyze_app = typer.Typer(
    cls=AnalysisGroup,
    help="Analyses a store and draws the figure.",
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
)
plans_app = typer.Typer(
    help="Lists plan families and sets; `show` draws a plan.",
    invoke_without_command=True,
    rich_markup_mode=MARKUP,
)
app.add_typer(analyze_app, name="analyze")
app.add_typer(plans_app, name="plans")


@analyze_app.callback()
def _analyze() -> None:
    """Analyses a store and draws the figure."""


@app.command()
def capture(
    model: ModelArgument = DEFAULT_MODEL,
    plan: PlanOption = ["baseline"],
    corpus: Annotated[
        str, typer.Option(help="builtin, a .txt or .jsonl file, or hf:name/config:split:field.")
    ] = "builtin",
    field: Annotated[
        str, typer.Option(help="Field of a .jsonl file that holds the text.")
    ] = "text",
    limit: Annotated[int | None, typer.Option(help="Use the first so many texts.", min=1)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Keep so many tokens of each sample.", min=1)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="The store, a folder or a URL; by default under cache/captures."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype of the stored states: float16 or float32.")
    ] = "float16",
    tokens: Annotated[
        str, typer.Option(help="Kept of each sample: all, last, mean or every:N.")
    ] = "all",
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Also store next-token log-probabilities.")
    ] = False,
    keep: Annotated[str, typer.Option(help="all states, or none and only --statistics.")] = "all",
    statistics: Annotated[
        str,
        typer.Option(help="With --keep none: analyses to take statistics for, e.g. cosine,norms."),
    ] = "",
    compression: Annotated[str, typer.Option(help="Of the states: none, fast or small.")] = "none",
    append: Annotated[
        bool, typer.Option("--append", help="Add plans and texts that the store lacks.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Read the store; compute again what is damaged or missing."),
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Store infinities and NaNs as they are.")
    ] = False,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Refuse a larger capture, e.g. 500MB or 2TB.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="Compute about so many tokens together.", min=1)
    ] = 2048,
    model_dtype: ModelDtypeOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    revision: RevisionOption = None,
    stack: StackOption = None,
    trust_remote_code: TrustOption = False,
    quiet: QuietOption = False,
) -> None:
    """Captures hidden states of a model over a corpus under layer plans."""
    with _progress(quiet) as progress:
        import repsim

        capture = repsim.capture(
            model,
            plan=plan,
            corpus=corpus,
            field=field,
            limit=limit,
            max_tokens=max_tokens,
            out=out,
            dtype=dtype,
            tokens=tokens,
            logprobs=logprobs,
            keep=keep,
            statistics=[name for name in statistics.split(",") if name],
            compression=compression,
            append=append,
            repair=repair,
            allow_nonfinite=allow_nonfinite,
            max_bytes=None if max_bytes is None else byte_count(max_bytes),
            batch_tokens=batch_tokens,
            progress=progress,
            model_dtype=model_dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            stack=stack,
            trust_remote_code=trust_remote_code,
        )
    if not quiet:
        print(capture)
        names = [named.name for named in capture.plans]
        option = "" if "baseline" in names else f" --plan '{names[0]}'"
        analysis = (statistics or "cosine").partition(",")[0]
        if analysis == "similarity" and not capture.keeps_states:
            option += " --measure minibatch-cka"
        _tell(f"Next: repsim analyze {analysis} {capture.path}{option}")


@app.command()
def evaluate(
    model: ModelArgument = DEFAULT_MODEL,
    plan: PlanOption = ["baseline"],
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", "-t", help="lm-eval's tasks with commas, or offline: repsim's own four."
        ),
    ] = "offline",
    limit: Annotated[
        int | None, typer.Option(help="Use the first so many examples of each task.", min=1)
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Solved examples before each; else the task's own.", min=0)
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Read DIR/TASK.SPLIT.jsonl in place of the hub.", exists=True, file_okay=False
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="The store, a folder or a URL; by default under cache/scores."
        ),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add plans, tasks and examples the store lacks.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Read the store; compute again what is damaged or missing."),
    ] = False,
    paper_cache: Annotated[
        bool,
        typer.Option(
            "--paper-cache",
            help="Generating, average keys and values over a parallel step's layers.",
        ),
    ] = False,
    contexts: Annotated[
        str,
        typer.Option(
            help="trees: texts share what they begin with; rows: each by itself; auto: as the model can."
        ),
    ] = "auto",
    batch_tokens: Annotated[
        int, typer.Option(help="Compute about so many tokens together.", min=1)
    ] = 2048,
    model_dtype: ModelDtypeOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    revision: RevisionOption = None,
    stack: StackOption = None,
    trust_remote_code: TrustOption = False,
    quiet: QuietOption = False,
) -> None:
    """Scores a model on benchmarks under layer plans."""
    with _progress(quiet) as progress:
        import repsim

        scores = repsim.evaluate(
            model,
            plan=plan,
            tasks=tasks,
            limit=limit,
            shots=shots,
            data_dir=data_dir,
            out=out,
            append=append,
            repair=repair,
            paper_cache=paper_cache,
            contexts=contexts,
            batch_tokens=batch_tokens,
            progress=progress,
            model_dtype=model_dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            stack=stack,
            trust_remote_code=trust_remote_code,
        )
    if not quiet:
        print(scores)
        _tell(f"Next: repsim analyze degradation {scores.path}")


StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="A capture or scores: a folder or a URL.")
]


@app.command()
def info(store: StoreArgument) -> None:
    """Prints what a store is: identity, plans, tokens or tasks, completeness, versions."""
    import repsim

    for name, value in repsim.open(store).info.items():
        print(f"{name + ':':<15} {printable(value)}")


@app.command()
def verify(store: StoreArgument) -> None:
    """Reads a whole store and names every damaged or missing chunk; exits with 1 if there is one."""
    import repsim

    found = repsim.verify(store)
    for damage in found.damages:
        _tell(damage)
    if found.foreign:
        _tell(f"not repsim's, not read: {', '.join(found.foreign)}")
    if found.unchecked:
        _tell(f"without checksums, not checked: {found.unchecked}")
    read = f"{found.chunks:,} chunks, {found.bytes / 1e6:,.1f} MB read"
    if not found.damages:
        _tell(f"{store}: sound; {read}")
        return
    parts = "1 part" if len(found.damages) == 1 else f"{len(found.damages):,} parts"
    _tell(f"{store}: {parts} damaged or missing; {read}")
    _tell(*repsim.stores.repair_advice(store, found))
    raise typer.Exit(1)


def byte_count(text: str) -> int:
    """`500MB`, `1.5 GiB` or plain bytes as a number.

    Raises:
        RepsimError: it is none of these.
    """
    match = re.fullmatch(r"([0-9]{1,15}[.]?[0-9]*) *(?:([kmgtp])(i?)b?|b?)", text.strip().lower())
    if not match:
        raise RepsimError(f"size {text!r}: write e.g. 500MB, 2TB or 10GiB")
    number, prefix, binary = match.groups()
    return int(
        float(number) * (1024 if binary else 1000) ** (" kmgtp".index(prefix) if prefix else 0)
    )


@plans_app.callback()
def plans(ctx: typer.Context) -> None:
    """Lists the plan families and the named sets."""
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table

    from repsim.plans import FAMILIES, SETS

    table = Table.grid(padding=(0, 2))
    for family in FAMILIES.values():
        table.add_row(family.usage, family.summary)
    table.add_row("")
    for named in SETS.values():
        table.add_row(named.name, named.summary)
    _console().print(table)


@plans_app.command()
def show(
    plan: Annotated[str, typer.Argument(help="A plan, family, sweep or named set.")],
    layers: Annotated[
        int, typer.Option(help="The model's number of layers, T.", min=1, max=100_000)
    ] = DEFAULT_LAYERS,
) -> None:
    """Draws what a plan runs, step by step; counts plans, steps and trie nodes of a set."""
    from repsim.plans import PlanTrie, describe, draw, resolve

    found = resolve(plan, layers)
    if len(found) == 1:
        only = found[0].plan
        wrap = 79 if sys.stdout.isatty() else None
        print(
            f"{found[0].name}: {only.text}",
            draw(only, layers, wrap=wrap),
            *describe(only),
            sep="\n",
        )
        return
    trie = PlanTrie.build(named.plan for named in found)
    steps = sum(len(named.plan) for named in found)
    applications = sum(named.plan.applications for named in found)
    print(f"{plan}: {len(found):,} plans of a {layers}-layer model")
    print(f"{steps:,} steps; {len(trie):,} trie nodes, the root included")
    print(
        f"{applications:,} layer applications plan by plan, {trie.applications:,} through the trie"
    )


def analysis_command(name: str, module: Any) -> Any:
    """The command of one analysis, its options read from signature and docstring of `compute` and
    `plot`.
    """
    parameters = [*_keywords(module.compute), *_keywords(module.plot)]
    drawing = {parameter.name for parameter in _keywords(module.plot)}
    help_lines = argument_help(inspect.getdoc(module.plot) or "") | argument_help(
        inspect.getdoc(module.compute) or ""
    )

    def command(
        stores: list[str],
        label: list[str],
        figures: Path,
        style: str | None,
        quiet: bool,
        **options: Any,
    ) -> None:
        import repsim
        from repsim.plotting import styled

        opened = [repsim.open(store) for store in stores]
        for one in opened:
            _check_kind(name, module, one)
        _check_labels(label, stores)
        drawn = {key: options.pop(key) for key in drawing}
        with styled(style) if style is not None else nullcontext():
            for chosen in _each_plan(opened, options):
                _analyze_one(
                    name,
                    module,
                    list(zip(opened, chosen, strict=True)),
                    label,
                    drawn,
                    figures,
                    quiet,
                )

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shown = [
        inspect.Parameter("stores", positional, annotation=StoresArgument),
        *(_option(parameter, help_lines.get(parameter.name)) for parameter in parameters),
        inspect.Parameter("label", positional, default=[], annotation=LabelOption),
        inspect.Parameter("figures", positional, default=Path("figures"), annotation=FiguresOption),
        inspect.Parameter("style", positional, default=None, annotation=StyleOption),
        inspect.Parameter("quiet", positional, default=False, annotation=QuietOption),
    ]
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    command.__doc__ = _literal((inspect.getdoc(module.compute) or name).partition("\n")[0])
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=MARKUP
    )
    single.command(name)(command)
    return typer.main.get_command(single)


def _keywords(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A function's keywords, their annotations evaluated; the others may name what only a type
    checker imports.
    """
    return [
        parameter.replace(annotation=eval(parameter.annotation, vars(inspect.getmodule(function))))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _check_kind(name: str, module: Any, opened: Capture | Scores) -> None:
    """An analysis reads captures, or says `READS = "scores"`."""
    wanted = getattr(module, "READS", CAPTURE)
    if wanted != opened.kind:
        maker = {CAPTURE: "repsim capture", SCORES: "repsim evaluate"}[wanted]
        raise RepsimError(
            f"{opened.path}: holds {opened.kind}; {name} reads {wanted}, made by {maker}"
        )


def _check_labels(labels: Sequence[str], stores: Sequence[str]) -> None:
    """Labels name every store, each another, or none does."""
    if labels and len(labels) != len(stores):
        raise RepsimError(
            f"--label: {len(labels)} for {len(stores)} stores; name every store once, in their order"
        )
    for label in labels:
        if labels.count(label) > 1:
            raise RepsimError(f"--label {label!r}: it names two stores; give each its own")


def _option(parameter: inspect.Parameter, text: str | None) -> inspect.Parameter:
    """A keyword of `compute` as an option; `plan` is repeatable in every command."""
    if parameter.name == "plan":
        option = parameter.replace(annotation=PlanOption, default=[parameter.default])
    else:
        option = parameter.replace(
            annotation=Annotated[parameter.annotation, typer.Option(help=text and _literal(text))]
        )
    return option.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)


def argument_help(docstring: str) -> dict[str, str]:
    """Name to text of the lines under `Args:` in a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(
        r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE
    )
    return {name: " ".join(text.split()) for name, text in entries}


def _each_plan(
    opened: list[Capture | Scores], options: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """The options for each store, plan by plan; a family may be another plan in a model of another
    depth.
    """
    from repsim.plans import resolve

    if "plan" not in options:
        yield [options] * len(opened)
        return
    found = [
        [named.name for named in resolve(options["plan"], capture.layers)] for capture in opened
    ]
    if len({len(names) for names in found}) > 1:
        counts = ", ".join(
            f"{len(names)} for {capture.path}" for names, capture in zip(found, opened, strict=True)
        )
        raise RepsimError(
            f"--plan {' '.join(options['plan'])}: {counts} plans; name plans that every model has"
        )
    for names in zip(*found, strict=True):
        yield [{**options, "plan": name} for name in names]


def _analyze_one(
    name: str,
    module: Any,
    asked: list[tuple[Capture | Scores, dict[str, Any]]],
    given: Sequence[str],
    drawing: dict[str, Any],
    folder: Path,
    quiet: bool,
) -> None:
    """Computes one result for each store; draws them together where the analysis can, else one by
    one.

    Args:
        given: labels of the stores that the user has named; none by default.
    """
    from repsim.plotting import save
    from repsim.stats import results

    stores = [opened for opened, _ in asked]
    shown = given or _labels(stores)
    said = [_option_words(module, options) for _, options in asked]
    files = _file_labels(stores, said, given)
    found: list[Any] = []
    for (opened, options), label, words, file in zip(asked, shown, said, files, strict=True):
        result = module.compute(opened, **options)
        group, data = _slug(name, *words), folder / f"{name}-{file}.nc"
        labelled = result if label == opened.identity["model"] else result.assign_attrs(label=label)
        found.append(labelled)
        results.save(labelled, data)
        written = [f"  data:   {data}"]
        try:
            opened.write_result(group, result)
            written.insert(0, f"  result: {opened.path}/analyses/{group}")
        except RepsimError as problem:  # of a store that is somebody else's to write, say
            _warn(f"result not kept with the store: {problem}")
        if not quiet:
            if opened.remark:
                _warn(f"incomplete: {opened.remark}")
            _tell(
                f"{name} of {opened.path} ({', '.join(f'{key} {value}' for key, value in options.items())})"
            )
            _tell(*written)
    each = list(zip(files, ([one] for one in found), strict=True))
    together = [(_short("+".join(files)), found)] if _draws_several(module) else each
    for file, drawn in together:
        plotted = module.plot(*drawn, **drawing)
        for part, figure in plotted.items() if isinstance(plotted, dict) else [("", plotted)]:
            paths = save(figure, folder / _slug(name, file, part))
            if not quiet:
                _tell(f"  figure: {', '.join(map(str, paths))}")


def _labels(stores: Sequence[Capture | Scores]) -> list[str]:
    """What figures call the stores: the model, and what tells it from the others of the same name."""
    from repsim.plotting.labels import tell_apart

    models = [str(opened.identity["model"]) for opened in stores]
    added = tell_apart(models, [opened.parts for opened in stores])
    return [
        f"{model} ({more})" if more else model for model, more in zip(models, added, strict=True)
    ]


def _file_labels(
    stores: Sequence[Capture | Scores], said: Sequence[Sequence[str]], given: Sequence[str]
) -> list[str]:
    """What files call the stores: the label given, or model, corpus and the store's own name; and
    what was asked.
    """
    from repsim.plotting.labels import tell_apart

    if given:
        names = [_slug(label, *words) for label, words in zip(given, said, strict=True)]
    else:
        names = []
        for opened, words in zip(stores, said, strict=True):
            of, stem = _slug(opened.label), Path(str(opened.path)).stem
            names.append(_slug(of, *words, "" if stem.startswith(of) else stem))
    added = tell_apart(names, [opened.parts for opened in stores])
    labels: list[str] = []
    for number, (label, more) in enumerate(zip(names, added, strict=True), 1):
        label = _short(_slug(label, more))
        labels.append(_slug(label, number) if label in labels else label)
    return labels


def _draws_several(module: Any) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(module.plot).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _option_words(module: Any, options: dict[str, Any]) -> list[str]:
    """Options that name a result: the plan and every choice by its word, numbers where they are not
    the default.
    """
    parameters = inspect.signature(module.compute).parameters
    words = {name: isinstance(value, str) for name, value in options.items()}
    return [
        (_file_name(str(value)) if name == "plan" else str(value))
        if words[name]
        else f"{name}={value}"
        for name, value in options.items()
        if words[name] or value != parameters[name].default
    ]


def _file_name(plan: str) -> str:
    """A plan's name; with a digest where it holds what no file's name should, as `0-5` and `0, 5`
    are not one plan.
    """
    return (
        plan
        if re.fullmatch(r"[\w.=+:-]*", plan)
        else f"{plan}-{sha256(plan.encode()).hexdigest()[:6]}"
    )


def _short(label: str) -> str:
    """A label that a file system takes, which counts bytes."""
    if len(label.encode()) <= LONGEST_LABEL:
        return label
    beginning = label.encode()[: LONGEST_LABEL - 10].decode(errors="ignore")
    return f"{beginning}-{sha256(label.encode()).hexdigest()[:6]}"


def _slug(*parts: Any) -> str:
    slugs = (re.sub(r"[^\w.=+]+", "-", str(part)).strip("-") for part in parts)
    return "-".join(filter(None, slugs))


def _tell(*lines: object) -> None:
    """Prints each as one line; names in it may come from a stranger's store, and a terminal obeys
    what it is sent.
    """
    print(*map(printable, lines), sep="\n")


def _warn(line: object) -> None:
    print(printable(line), file=sys.stderr)


class _OneLine(logging.Formatter):
    """A remark of the library as one line that is safe to show."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a plain line now and then elsewhere; remarks of the library on standard
    error.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        if quiet:
            yield lambda _: None
        elif sys.stderr.isatty():
            with _bar() as show:
                yield show
        else:
            yield _plain()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(stderr=True)) as bar:
        task = bar.add_task("", total=None, rate="-")
        began = 0.0

        def show(state: Any) -> None:
            nonlocal began
            began = began or time.monotonic()  # loading the model is no part of the rate
            rate = f"{state.tokens / (time.monotonic() - began):,.0f}" if state.tokens else "-"
            bar.update(task, completed=state.tokens, total=state.total, rate=rate)

        yield show


def _plain() -> Callable[[Progress], None]:
    began = said = 0.0

    def show(state: Progress) -> None:
        nonlocal began, said
        now = time.monotonic()
        if not state.tokens:
            began = said = now  # loading the model is no part of the rate
        if not state.tokens or (now - said < PLAIN_SECONDS and state.tokens < state.total):
            return
        said = now
        rate = state.tokens / (now - began)
        left = (state.total - state.tokens) / rate
        line = (
            f"{state.tokens:,} of {state.total:,} tokens, {rate:,.0f} tokens/s, {left:,.0f} s left"
        )
        print(line, file=sys.stderr, flush=True)

    return show


def _console(stderr: bool = False) -> Any:
    """A console that wraps at a terminal's width, and nowhere else: what goes into a pipe is cut
    into lines there.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else UNWRAPPED
    )


def run() -> None:
    """Entry point of the command."""
    # Where nothing finer heeds it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and gives its exit status; no traceback reaches a user."""
    try:
        _check_empty(sys.argv[1:] if arguments is None else arguments)
        status = app(arguments, standalone_mode=False)
    except Interrupted as stop:
        return _say(str(stop), 128 + stop.signal)
    except RepsimError as problem:
        return _say(str(problem), 2)
    except TyperException as problem:
        message = " ".join(problem.format_message().split())
        return _say(message, 2) if message else 2  # help has been shown where no command was given
    except SystemExit as left:
        status = left.code
    except BrokenPipeError:
        # The reader of a pipe has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if os.environ.get("REPSIM_DEBUG"):
            raise
        return _say(_refused_by_system(problem) or _unforeseen(problem), 1)
    # Typer makes the former of a KeyboardInterrupt.
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return _say(
            f"stopped by {signal.Signals(status - 128).name}; the same command goes on", status
        )
    return status if isinstance(status, int) else 0


def _refused_by_system(problem: Exception) -> str | None:
    """What a disk or a network has refused, in one line; None if it was something else."""
    from obstore.exceptions import BaseError

    from repsim.storage.location import one_line

    if not isinstance(problem, (OSError, BaseError)):
        return None
    where = f"{problem.filename}: " if isinstance(problem, OSError) and problem.filename else ""
    return f"{where}{one_line(problem)}; make that good, and the same command goes on"


def _check_empty(arguments: Sequence[str]) -> None:
    """Refuses an empty value, which most often is a shell's variable that was not set."""
    for before, argument in pairwise(("", *arguments)):
        option, equals, value = (
            argument.partition("=") if argument.startswith("--") else ("", "=", argument)
        )
        if equals and not value.strip():
            what = option or (before if before.startswith("-") else "an argument")
            raise RepsimError(f"{what}: an empty value; give one, or leave it out")


def _unforeseen(problem: Exception) -> str:
    """What to say of a mistake of our own, and what to send to whom."""
    text = " ".join(str(problem).split())[:300]
    versions = ", ".join(f"{name} {version(name)}" for name in REPORTED)
    return (
        f"unforeseen {type(problem).__name__}: {text} - a fault of repsim's: please report it to its makers with the "
        f"command, this line and what the same command prints with REPSIM_DEBUG=1 before it ({versions}, Python "
        f"{platform.python_version()})"
    )


def _say(message: str, status: int) -> int:
    _warn(f"repsim: {message}")
    return status
