"""What stores and results are called: in figures, in files, and in the store that keeps them.

Names depend on what a result is of and on the options that differ from others', so that two results
never share a file and the same result always finds its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from repsim.cache import file_name
from repsim.captures.reader import Capture
from repsim.errors import RepsimError
from repsim.evaluation.reader import Scores
from repsim.plotting.labels import tell_apart
from repsim.registry import keywords_of, kind_of, option_name
from repsim.schema import Kind

DIGEST = "(?:-([0-9a-f]{6}))?"  # of a path, as `repsim.cache.file_name` writes it
LONGEST_LABEL = 200  # bytes of a file's name that a label may take
LONGEST_PARTNER = 80  # and another store's name in that of a result

AnyStore = Capture | Scores


@dataclass(frozen=True, eq=False)
class Subject:
    """What one result is of, and its names.

    stores: what `compute` is called with: one store, or several together.
    options: of `compute`.
    labels: what figures call the stores, and the second store where there is one.
    words: what tells the result from others that the first store keeps.
    file: what files call it.
    """

    stores: Sequence[AnyStore]
    options: Mapping[str, Any]
    labels: Sequence[str]
    words: Sequence[str]
    file: str

    @property
    def every_store(self) -> list[AnyStore]:
        """The stores, and those among the options."""
        return [*self.stores, *second_stores(self.options)]


def name_subjects(
    module: ModuleType,
    stores: Sequence[AnyStore],
    options: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
) -> list[Subject]:
    """The subjects of an analysis: each store, or all together where it is of several.

    Args:
        module: the analysis.
        stores: of one figure.
        options: of `compute`, for each store, or for all of them.
        labels: the user's names for the stores, or none.
    """
    words = [option_words(module.compute, each) for each in options]
    seconds = second_stores(options[0])
    shown = figure_labels([*stores, *seconds])
    names = labels or shown[: len(stores)]
    if kind_of(module).takes_stores_together:
        each_file = file_labels(stores, [[]] * len(stores), labels)
        file = file_name("+".join(each_file), *words[0], longest=LONGEST_LABEL)
        partners = partner_word(stores[1:])
        return [Subject(stores, options[0], names, [*words[0], "with", partners], file)]
    files = file_labels(stores, words, labels)
    return [
        Subject([store], each, [name, *shown[len(stores) :]], said, file)
        for store, each, name, said, file in zip(stores, options, names, words, files, strict=True)
    ]


def second_stores(options: Mapping[str, Any]) -> list[AnyStore]:
    """The stores among the options of `compute`; see `repsim.registry.takes_store`."""
    return [value for value in options.values() if isinstance(value, AnyStore)]


def partner_word(stores: Sequence[AnyStore]) -> str:
    """Other stores in the name of a result: label, or how many, and a digest of what they hold.

    The digest is of the identities and of the requests that made them, and of no path: of a pair of
    stores, the result has the same name wherever they lie, and two pairs never share one.
    """
    content = [[store.identity, store.dataset.attrs["requests"]] for store in stores]
    digest = sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    what = stores[0].label if len(stores) == 1 else f"{len(stores)} others"
    return file_name(file_name(what, longest=LONGEST_PARTNER), digest[:6])


def check_labels(labels: Sequence[str], stores: Sequence[object]) -> None:
    """Refuses labels unless there are none, or one per store and no two alike.

    Raises:
        RepsimError: their number is another, or one is given twice.
    """
    if labels and len(labels) != len(stores):
        raise RepsimError(
            f"--label: {len(labels)} for {len(stores)} stores; "
            "name every store once, in their order"
        )
    for label in labels:
        if labels.count(label) > 1:
            raise RepsimError(f"--label {label!r}: it names two stores; give each its own")


def figure_labels(stores: Sequence[Capture | Scores]) -> list[str]:
    """What figures call the stores: the model, and what tells it from others of the same name."""
    models = [str(store.identity["model"]) for store in stores]
    additions = tell_apart(models, [store.parts for store in stores])
    return [
        f"{model} ({addition})" if addition else model
        for model, addition in zip(models, additions, strict=True)
    ]


def file_labels(
    stores: Sequence[Capture | Scores], words: Sequence[Sequence[str]], labels: Sequence[str]
) -> list[str]:
    """What files call the stores: label, or model, corpus and the store's name; then the options.

    Args:
        stores: of one figure.
        words: the options of each store's result, see `option_words`.
        labels: the user's names for the stores, or none.
    """
    if labels:
        names = [file_name(label, *each) for label, each in zip(labels, words, strict=True)]
    else:
        names = []
        for store, each in zip(stores, words, strict=True):
            names.append(file_name(store.label, *each, *_own_words(store)))
    additions = tell_apart(names, [store.parts for store in stores])
    unique: list[str] = []
    for number, (name, addition) in enumerate(zip(names, additions, strict=True), 1):
        label = file_name(name, addition, longest=LONGEST_LABEL)
        unique.append(file_name(label, number) if label in unique else label)
    return unique


def _own_words(store: Capture | Scores) -> list[str]:
    """What a store's own name says beyond its model and what it is over.

    A store at its default place is named after its content, which is not said twice: what is left
    are digests of paths and, of scores, the plans, on all of which their figures depend.
    """
    model, over = file_name(store.identity["model"]), file_name(store.over)
    stem = Path(str(store.path)).stem
    default = rf"{re.escape(model)}{DIGEST}(?:-.+?)??-{re.escape(over)}{DIGEST}(?:-(.+))?"
    match = re.fullmatch(default, stem)
    if match is None:
        return [stem]
    *digests, plans = match.groups(default="")
    return [*digests, plans if store.kind is Kind.SCORES else ""]


def option_words(compute: Callable[..., Any], options: Mapping[str, Any]) -> list[str]:
    """Options that name a result: plans and choices by their word, numbers unless the default.

    As an example, `plan="baseline", average="token", resamples=20` gives `baseline`, `token` and
    `resamples=20`.
    """
    defaults = {parameter.name: parameter.default for parameter in keywords_of(compute)}
    words: list[str] = []
    for name, value in options.items():
        if name == "plan":
            plans = [value] if isinstance(value, str) else value
            words += [file_name(plan, distinct=True) for plan in plans]
        elif isinstance(value, AnyStore):
            words += [option_name(name), partner_word([value])]
        elif isinstance(value, str):
            words.append(value)
        elif isinstance(value, Path):
            words.append(file_name(value))
        elif value != defaults[name]:
            words.append(f"{name}={value}")
    return words
