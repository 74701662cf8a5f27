"""`repsim evaluate`: its options are the fields of the records in `repsim.options`."""

from __future__ import annotations

from typing import Any

from repsim.cli.advice import tell_next_of_scores
from repsim.cli.options import (
    ModelArgument,
    QuietOption,
    keywords_from,
    parameter,
    parameters_of,
    set_parameters,
)
from repsim.cli.printing import show_names
from repsim.cli.progress import show_progress
from repsim.cli.table import print_scores
from repsim.options import EVALUATE_RECORDS, NOT_OF_EVALUATE
from repsim.schema import DEFAULT_MODEL

LIST = "list"  # in place of tasks
PLACES = ("data_dir", "include_path", "tokenizer")  # options that may name a file or folder


def evaluate(model: str, quiet: bool, **options: Any) -> None:
    """Scores a model on benchmarks under layer plans."""
    if options["tasks"] == LIST:
        from repsim.evaluation.task_index import all_names

        show_names(all_names(options["include_path"]))
        return
    with show_progress(quiet) as progress:
        import repsim

        scores = repsim.evaluate(model, progress=progress, **keywords_from(options))
        if not quiet:
            print(scores)
            print_scores(scores)
    if not quiet:
        tell_next_of_scores(scores, {"model": model, **{name: options[name] for name in PLACES}})


set_parameters(
    evaluate,
    parameter("model", ModelArgument, DEFAULT_MODEL),
    *parameters_of(
        *EVALUATE_RECORDS,
        without=NOT_OF_EVALUATE,
        out="The store, a folder or a URL; by default under cache/scores.",
        append="Add plans, tasks and examples that a finished store lacks.",
    ),
    parameter("quiet", QuietOption, False),
)
