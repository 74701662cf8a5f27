"""Every option of a run, spelled once: its name, type, default, limits and help.

The commands `repsim capture` and `repsim evaluate`, the functions `repsim.capture` and
`repsim.evaluate`, and the request that a store keeps are all made from the records below. To add an
option, add a field to a record and the same line, without its default, to the keywords of the
functions that take it (`CaptureKeywords`, `EvaluateKeywords`; a test compares the two), then use
it.
"""

# ruff: noqa: RUF009 - `option` gives a dataclass field, as `field` does

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from repsim.errors import RepsimError, did_you_mean

if TYPE_CHECKING:
    from repsim.plans import PlanRequest

BUILTIN = "builtin"
STDIN = "-"
DEFAULT_BATCH_TOKENS = 2048  # what auto is on a CPU, and in stores that do not say
# What a request says of a value that was an object in memory, which no command can name.
IN_MEMORY = "<memory>"
AUTO = "auto"
STORE_DTYPES = ("float16", "float32")
COMPRESSION = ("none", "fast", "small")
KEEP = ("all", "none")
PREFIX_SHARING = ("auto", "on", "off")
FORMATS = ("png", "pdf", "svg")
WIDTHS = ("auto", "column", "page", "slide")
# Of `FigureOptions`, those that only heat maps heed.
COLOUR_OPTIONS = ("vmin", "vmax")


Record = TypeVar("Record")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is said of an option beyond its name, type and default.

    help: one sentence, for `--help` and docstrings.
    short: one-letter form on the command line, e.g. `-p`.
    metavar: what stands for the value in help.
    least: smallest number allowed.
    choices: the words allowed; with `least`, in place of a number.
    kept: whether the request in a store carries it; False for what does not change the numbers.
    repeatable: whether the command line takes it several times.
    objects: whether Python functions take an object for it; requests say `IN_MEMORY` of one.
    """

    help: str
    short: str | None = None
    metavar: str | None = None
    least: int | None = None
    choices: tuple[str, ...] = ()
    kept: bool = True
    repeatable: bool = False
    objects: bool = False


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of a record of options; see `Option`."""
    return field(default=default, metadata={"option": Option(help, **more)})


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded."""

    model_dtype: Any = option(None, "Dtype to compute in; the checkpoint's by default.")
    device: str = option(
        "auto", "cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.", kept=False
    )
    device_map: Any = option(None, "auto spreads a large model over devices.", kept=False)
    tokenizer: Any = option(
        None, "Hub id, folder or embedded name of a tokenizer; the model's own by default."
    )
    attn_implementation: str | None = option(
        None, "How transformers computes attention: eager, sdpa, flash_attention_2, ..."
    )
    revision: str | None = option(None, "Branch or commit on the hub.")
    stack: str | None = option(None, "Path of the module list with the layers.")
    trust_remote_code: bool = option(False, "Run the hub's code.")


@dataclass(frozen=True)
class CorpusOptions:
    """Which texts, and how much of each."""

    corpus: str | Path | Iterable[Any] = option(
        BUILTIN,
        "builtin, a .txt, .jsonl, .json, .csv or .parquet file (also .gz), a folder of .txt files, "
        "- (standard input) or hf:name/config:split:field; in Python also a list of texts, a "
        "column or a table.",
        objects=True,
    )
    field: str = option("text", "Field or column that holds the text.")
    limit: int | None = option(None, "Use the first LIMIT texts.", least=1)
    max_tokens: int | None = option(
        None,
        "Keep the first MAX_TOKENS tokens of each sample; the model's context length by default.",
        least=1,
    )
    apply_chat_template: bool = option(
        False, "Format each text as a user message, and lists of messages whole."
    )
    system_instruction: str | None = option(
        None, "With --apply-chat-template: a system message before each text."
    )


@dataclass(frozen=True)
class StatesOptions:
    """What is kept of the hidden states, and in which form."""

    dtype: str = option(
        AUTO,
        "Dtype of the stored states; auto: float16, or float32 where states may outgrow that.",
        choices=(AUTO, *STORE_DTYPES),
    )
    tokens: str = option("all", "Kept of each sample: all, last, mean or every:N.")
    logprobs: bool = option(False, "Also store next-token log-probabilities.")
    keep: str = option("all", "all states, or none and only --statistics.", choices=KEEP)
    statistics: str | Sequence[str] = option(
        (), "With --keep none: analyses to take statistics for, e.g. cosine,norms."
    )
    compression: str = option("none", "Of the states: none, fast or small.", choices=COMPRESSION)
    allow_nonfinite: bool = option(False, "Store infinities and NaNs as they are.", kept=False)


@dataclass(frozen=True)
class TaskOptions:
    """Which benchmarks, how many examples of them, and how they are asked."""

    tasks: str | Sequence[str] = option(
        "offline",
        "lm-eval's tasks with commas, patterns ('arc_*'), files (own.yaml), or offline: repsim's "
        "own four; list names all.",
        short="-t",
    )
    limit: int | None = option(None, "Use the first LIMIT examples of each task.", least=1)
    shots: int | None = option(
        None, "Solved examples before each; the task's own number by default.", least=0
    )
    data_dir: str | Path | None = option(
        None, "Read DIR/TASK.SPLIT.jsonl in place of the hub.", metavar="DIR"
    )
    include_path: str | Path | None = option(
        None, "A folder of tasks of your own, as lm-eval's YAML.", metavar="DIR"
    )
    apply_chat_template: bool = option(
        False, "Ask in the form of the tokenizer's chat template, as lm-eval does."
    )
    system_instruction: str | None = option(
        None, "What a system message says before everything else.", metavar="TEXT"
    )
    fewshot_as_multiturn: bool | None = option(
        None, "With a chat template: solved examples as turns of their own, which is the default."
    )
    gen_kwargs: str | Mapping[str, Any] | None = option(
        None, "Settings of tasks that write text, e.g. max_gen_toks=32.", metavar="SETTINGS"
    )
    paper_cache: bool = option(
        False, "When generating, average keys and values over a parallel step's layers."
    )
    prefix_sharing: str = option(
        "auto",
        "on: what texts begin with alike is computed once; off: each by itself; "
        "auto: as the model can.",
        choices=PREFIX_SHARING,
    )


@dataclass(frozen=True)
class ResultsOptions:
    """Which files an evaluation leaves for programs that read lm-eval's."""

    output_path: str | Path | None = option(
        None,
        "Also write the results as lm-eval's JSON, below FOLDER.",
        metavar="FOLDER",
        kept=False,
    )
    log_samples: bool = option(
        False, "With --output-path: every question and answer as well, as lm-eval's.", kept=False
    )


@dataclass(frozen=True)
class StoreOptions:
    """Where the numbers go, and what happens to what is there."""

    out: str | Path | None = option(
        None, "The store, a folder or a URL; by default under the cache.", short="-o", kept=False
    )
    append: bool = option(False, "Add what a finished store lacks.", kept=False)
    repair: bool = option(
        False, "Read the store; compute again what is damaged or missing.", kept=False
    )
    max_bytes: int | None = option(
        None, "Refuse a larger capture, e.g. 500MB or 2TB.", metavar="SIZE", kept=False
    )
    batch_tokens: int | str = option(
        AUTO,
        "Compute about BATCH_TOKENS tokens together; auto: 2,048 on a CPU, as many as fit on a "
        "GPU, and what a store was begun with.",
        metavar="BATCH_TOKENS",
        least=1,
        choices=(AUTO,),
    )


@dataclass(frozen=True)
class PlanOptions:
    """Which layer plans."""

    plan: PlanRequest = option(
        "baseline",
        "A plan, family, sweep, named set or @FILE of plans; NAME=PLAN names one; repeatable.",
        short="-p",
        metavar="PLAN",
        repeatable=True,
    )


@dataclass(frozen=True)
class FigureOptions:
    """How every figure of every analysis is drawn and saved."""

    title: str = option(
        "auto", "The line above a figure: auto, none, or a text.", metavar="TEXT", kept=False
    )
    format: str = option(
        "png,pdf", "Files of a figure: png, pdf or svg, several with commas.", kept=False
    )
    dpi: int = option(300, "Pixels per inch of a PNG.", least=10, kept=False)
    width: str = option(
        "auto",
        "column (3.35 in), page (6.9 in), slide (10 in, larger text), or auto: as the figure "
        "needs.",
        choices=WIDTHS,
        kept=False,
    )
    style: str | Path | None = option(
        None, "A matplotlib style, by name or file, on top of ours.", kept=False
    )
    vmin: float | None = option(
        None, "Where the colours of a heat map begin; by default fixed per measure.", kept=False
    )
    vmax: float | None = option(None, "Where the colours of a heat map end.", kept=False)

    def __post_init__(self) -> None:
        if not self.formats or not set(self.formats) <= set(FORMATS):
            *others, last = FORMATS
            raise RepsimError(
                f"format {self.format!r}: choose {', '.join(others)} or {last}, several with commas"
            )
        if self.vmin is not None and self.vmax is not None and self.vmin >= self.vmax:
            raise RepsimError(f"vmin={self.vmin:g}, vmax={self.vmax:g}: vmin is the smaller one")

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats, each once, in the order in which they were named."""
        names = (name.strip().lower() for name in self.format.split(","))
        return tuple(dict.fromkeys(filter(None, names)))


class ModelKeywords(TypedDict, total=False):
    """`ModelOptions` as keywords."""

    model_dtype: Any
    device: str
    device_map: Any
    tokenizer: Any
    attn_implementation: str | None
    revision: str | None
    stack: str | None
    trust_remote_code: bool


class CaptureKeywords(ModelKeywords, total=False):
    """What `repsim.capture` takes beside the model and `progress`."""

    plan: PlanRequest
    corpus: str | Path | Iterable[Any]
    field: str
    limit: int | None
    max_tokens: int | None
    apply_chat_template: bool
    system_instruction: str | None
    dtype: str
    tokens: str
    logprobs: bool
    keep: str
    statistics: str | Sequence[str]
    compression: str
    allow_nonfinite: bool
    out: str | Path | None
    append: bool
    repair: bool
    max_bytes: int | None
    batch_tokens: int | str


class EvaluateKeywords(ModelKeywords, total=False):
    """What `repsim.evaluate` takes beside the model and `progress`."""

    plan: PlanRequest
    tasks: str | Sequence[str]
    limit: int | None
    shots: int | None
    num_fewshot: int | None  # lm-eval's name of `shots`
    data_dir: str | Path | None
    include_path: str | Path | None
    apply_chat_template: bool
    system_instruction: str | None
    fewshot_as_multiturn: bool | None
    gen_kwargs: str | Mapping[str, Any] | None
    paper_cache: bool
    prefix_sharing: str
    output_path: str | Path | None
    log_samples: bool
    out: str | Path | None
    append: bool
    repair: bool
    batch_tokens: int | str


CAPTURE_RECORDS = (PlanOptions, CorpusOptions, StatesOptions, StoreOptions, ModelOptions)
EVALUATE_RECORDS = (PlanOptions, TaskOptions, ResultsOptions, StoreOptions, ModelOptions)
NOT_OF_EVALUATE = ("max_bytes",)
ALL_RECORDS = tuple(dict.fromkeys((*CAPTURE_RECORDS, *EVALUATE_RECORDS)))
# Other spellings: name -> (the option's name, value -> value). Those of earlier releases, which
# requests in stores carry, and those that lm-eval has for the same thing.
ALIASES: Mapping[str, tuple[str, Mapping[Any, Any]]] = {
    "contexts": ("prefix_sharing", {"trees": "on", "rows": "off"}),
    "num_fewshot": ("shots", {}),
}


def options_of(*records: type) -> dict[str, tuple[Any, Option]]:
    """Name -> field and description of every option of these records, in their order.

    Example:
        >>> list(options_of(PlanOptions, CorpusOptions))[:4]
        ['plan', 'corpus', 'field', 'limit']
    """
    found: dict[str, tuple[Any, Option]] = {}
    for record in records:
        for item in fields(record):
            found[item.name] = (item, item.metadata["option"])
    return found


def from_keywords(record: type[Record], keywords: Mapping[str, Any]) -> Record:
    """The record of these keywords; keywords of other records are passed over.

    Raises:
        RepsimError: a number is too small, or a word is not among the choices.
    """
    own = {name: keywords[name] for name in options_of(record) if name in keywords}
    for name, (_, about) in options_of(record).items():
        if name not in own:
            continue
        value = own[name]
        if about.least is not None:
            _check_number(name, value, about)
        elif about.choices and value not in about.choices:
            *others, last = about.choices
            raise RepsimError(f"{name} {value!r}: choose {', '.join(others)} or {last}")
    return record(**own)


def _check_number(name: str, value: Any, about: Option) -> None:
    """Refuses a number that is too small, and words but those of the option.

    Raises:
        RepsimError: the value is such a number or word.
    """
    if value is None or value in about.choices:
        return
    if isinstance(value, str):
        words = "".join(f" or {word}" for word in about.choices)
        raise RepsimError(f"{name} {value!r}: a number of at least {about.least}{words}")
    if value < about.least:
        raise RepsimError(f"{name}={value}: at least {about.least}")


def with_new_names(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords, or a request of an earlier release, with the options' names of today.

    Raises:
        RepsimError: an option is given under two names, with different values.

    Example:
        >>> with_new_names({"contexts": "trees", "limit": 5})
        {'prefix_sharing': 'on', 'limit': 5}
    """
    renamed: dict[str, Any] = {}
    for name, value in keywords.items():
        new, values = ALIASES.get(name, (name, {}))
        if new != name and not values and keywords.get(new, value) != value:
            raise RepsimError(f"{new}={keywords[new]}, {name}={value}: one option; give it once")
        renamed[new] = values.get(value, value) if values else value
    return renamed


def check_known(
    function: str, keywords: Mapping[str, Any], *records: type, without: Sequence[str] = ()
) -> None:
    """Refuses a keyword that none of the records has.

    Raises:
        RepsimError: there is no such option; the closest one is named.
    """
    known = [name for name in options_of(*records) if name not in without]
    for name in keywords:
        if name not in known:
            hint = did_you_mean(name, known)
            raise RepsimError(f"{function}: no option {name!r}; {hint}options: {', '.join(known)}")


def request_of(*records: Any) -> dict[str, Any]:
    """What a store keeps of the options: all that are kept and are not the default.

    Example:
        >>> request_of(CorpusOptions(limit=5))
        {'limit': 5}
        >>> request_of(CorpusOptions(corpus=["one text", "another"]))
        {'corpus': '<memory>'}
    """
    request: dict[str, Any] = {}
    for record in records:
        for name, (item, about) in options_of(type(record)).items():
            value = getattr(record, name)
            if about.objects and not isinstance(value, str | Path | None):
                value = IN_MEMORY
            if about.kept and value != item.default:
                request[name] = value
    return request


def takes(
    *records: type, without: Sequence[str] = (), more: bool = False
) -> Callable[[Function], Function]:
    """Shows the options of these records in a function's signature and under `Args:`.

    For whoever asks Python about the function; type checkers see its `**options: Unpack[...]`.

    Args:
        records: classes of options.
        without: names of options that the function does not have.
        more: whether the function takes keywords beyond these, and keeps its `**options`.
    """

    def document(function: Function) -> Function:
        options = {n: o for n, o in options_of(*records).items() if n not in without}
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD and more]
        shown = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=item.default)
            for name, (item, _) in options.items()
        ]
        function.__signature__ = signature.replace(parameters=own + shown + rest)  # type: ignore[attr-defined]
        lines = [f"    {name}: {about.help}" for name, (_, about) in options.items()]
        text = inspect.getdoc(function) or ""
        function.__doc__ = text.replace("Args:\n", "Args:\n" + "\n".join(lines) + "\n", 1)
        return function

    return document
