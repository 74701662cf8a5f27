"""The command that most likely comes next, whole, so that it can be copied."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from repsim.cli.printing import tell

if TYPE_CHECKING:
    from repsim.captures.reader import Capture
    from repsim.evaluation.reader import Scores
    from repsim.storage.reader import StoreReader


def tell_next_of_capture(capture: Capture) -> None:
    """Says which analysis of a capture to run first.

    It is one of what was kept, of the baseline or, where that was not captured, of the first plan.
    """
    analysis, options = "cosine", list[str]()
    if not capture.keeps_states:
        analysis = str(capture.dataset.attrs["statistics"][0]).partition(".")[0]
    if not _has_baseline(capture):
        options += ["--plan", capture.plans[0].name]
    if analysis == "similarity" and not capture.keeps_states:
        options += ["--measure", "minibatch-cka"]
    _tell_analysis(analysis, capture, *options)


def tell_next_of_scores(scores: Scores, places: Mapping[str, object]) -> None:
    """Says how to compare scores with the baseline's, or how to add those where they lack.

    Args:
        scores: of an evaluation that is finished.
        places: option -> file or folder as its command named it, which no store keeps.
    """
    from repsim.storage.requests import commands, located

    if _has_baseline(scores):
        _tell_analysis("degradation", scores)
        return
    requests = located(scores.dataset.attrs["requests"], places)
    wanted = [{**request, "plan": ["baseline"]} for request in requests]
    lines = [commands(scores.maker, [request], scores.path)[0] for request in wanted]
    tell("Next: " + " && ".join(f"{line} --append" for line in dict.fromkeys(lines)))


def _has_baseline(store: StoreReader) -> bool:
    (baseline,) = store.find_plans("baseline")
    return any(named.plan == baseline.plan for named in store.plans)


def _tell_analysis(name: str, store: StoreReader, *options: str) -> None:
    tell("Next: " + shlex.join(["repsim", "analyze", name, str(store.path), *options]))
