"""`repsim capture`: its options are the fields of the records in `repsim.options`."""

from __future__ import annotations

from typing import Any

from repsim.cli.advice import tell_next_of_capture
from repsim.cli.options import (
    ModelArgument,
    QuietOption,
    keywords_from,
    parameter,
    parameters_of,
    set_parameters,
)
from repsim.cli.progress import show_progress
from repsim.options import CAPTURE_RECORDS
from repsim.schema import DEFAULT_MODEL


def capture(model: str, quiet: bool, **options: Any) -> None:
    """Captures hidden states of a model over a corpus under layer plans."""
    with show_progress(quiet) as progress:
        import repsim

        store = repsim.capture(model, progress=progress, **keywords_from(options))
    if not quiet:
        print(store)
        tell_next_of_capture(store)


set_parameters(
    capture,
    parameter("model", ModelArgument, DEFAULT_MODEL),
    *parameters_of(
        *CAPTURE_RECORDS,
        out="The store, a folder or a URL; by default under cache/captures.",
        append="Add plans and texts that a finished store lacks.",
    ),
    parameter("quiet", QuietOption, False),
)
