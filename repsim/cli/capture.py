"""`repsim capture`: its options are the fields of the records in `repsim.options`."""

from __future__ import annotations

from typing import Any

from repsim.cli.options import (
    ModelArgument,
    QuietOption,
    keywords_from,
    parameter,
    parameters_of,
    set_parameters,
)
from repsim.cli.printing import tell
from repsim.cli.progress import show_progress
from repsim.options import CAPTURE_RECORDS
from repsim.schema import DEFAULT_MODEL


def capture(model: str, quiet: bool, **options: Any) -> None:
    """Captures hidden states of a model over a corpus under layer plans."""
    with show_progress(quiet) as progress:
        import repsim

        store = repsim.capture(model, progress=progress, **keywords_from(options))
    if quiet:
        return
    print(store)
    # The command that most likely comes next, so that it can be copied.
    names = [named.name for named in store.plans]
    plan = "" if "baseline" in names else f" --plan '{names[0]}'"
    analysis = (options["statistics"] or "cosine").partition(",")[0]
    needs_measure = analysis == "similarity" and not store.keeps_states
    measure = " --measure minibatch-cka" if needs_measure else ""
    tell(f"Next: repsim analyze {analysis} {store.path}{plan}{measure}")


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
