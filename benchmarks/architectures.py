"""Every text architecture of transformers, tiny and random, against plain loops over its layers.

Run by hand:

    .venv/bin/python benchmarks/architectures.py [--log FILE] [ARCHITECTURE ...]

Prints a row per architecture and writes all of them to benchmarks/ARCHITECTURES.md. What is right
never comes from repsim: layers are called with what hooks saw the model's own forward give them,
sublayers are layers in which the other sublayer's last weights are zero, logits come from the
model's own forward with one state exchanged, and generation with a cache is held against generation
without.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from transformers.utils import logging as transformers_logging

from support.architectures import SUBJECTS, USED, Subject, build
from support.survey import Outcome, examine, told
from support.uses import examine_uses

PROCESSES = 2
LIMIT_S = 90  # of processor time for one architecture
TABLE = Path(__file__).with_name("ARCHITECTURES.md")
CHECKS = ("baseline", "families", "sublayers", "log-probabilities", "generation", "uses")


def main(names: list[str], log: Path | None = None) -> int:
    """Prints a row per architecture; the whole survey also writes its page.

    Args:
        names: of the architectures; all of them by default.
        log: a file that keeps every outcome; what it holds is not done again.
    """
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    build("llama")  # imports, once for all processes, what all of them need
    known = {subject.name: subject for subject in SUBJECTS}
    subjects = [known[name] for name in names] or SUBJECTS
    outcomes = read(log)
    for subject, found in examine_all(
        [subject for subject in subjects if subject.name not in outcomes]
    ):
        outcomes[subject.name] = found
        print(row(subject, found), flush=True)
        if log:
            with log.open("a") as lines:
                lines.write(json.dumps([subject.name, [vars(outcome) for outcome in found]]) + "\n")
    faults = [
        (subject.name, outcome)
        for subject in subjects
        for outcome in outcomes[subject.name]
        if outcome.is_fault
    ]
    times = os.times()
    seconds = sum(times[:4])
    print(f"{len(subjects)} architectures, {len(faults)} faults, {seconds:.0f} s of processor time")
    for name, fault in faults:
        print(f"{name}: {fault.check}: {fault.case}: {fault.text}")
    if not names:
        TABLE.write_text(page([(subject, outcomes[subject.name]) for subject in subjects]))
    return 1 if faults else 0


def read(log: Path | None) -> dict[str, list[Outcome]]:
    if log is None or not log.exists():
        return {}
    lines = map(json.loads, log.read_text().splitlines())
    return {name: [Outcome(**each) for each in found] for name, found in lines}


def examine_all(subjects: list[Subject]) -> Iterator[tuple[Subject, list[Outcome]]]:
    """Each subject in a process of its own, two at a time."""
    context = multiprocessing.get_context("fork")
    left = list(subjects)
    running: dict[Any, tuple[Subject, Any]] = {}
    while left or running:
        while left and len(running) < PROCESSES:
            subject = left.pop(0)
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(subject, sending))
            process.start()
            sending.close()
            running[receiving] = (subject, process)
        for ready in wait(list(running)):
            subject, process = running.pop(ready)
            try:
                message: Any = ready
                found = [Outcome(**each) for each in json.loads(message.recv())]
            except EOFError:
                process.join()
                ended = f"its process ended with {process.exitcode} (a limit of {LIMIT_S} s holds)"
                found = [Outcome("baseline", "", "crash", ended)]
            process.join()
            yield subject, found


def work(subject: Subject, sending: Connection) -> None:
    """What a process does; seconds of its own time are counted, so that a busy machine decides
    nothing.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        found = examine(subject)
        if subject.name in USED:
            found += examine_uses(subject)
    except Exception as problem:
        found = [Outcome("baseline", "", "crash", told(problem))]
    sending.send(json.dumps([vars(outcome) for outcome in found]))


def cell(found: list[Outcome], check: str) -> str:
    """The largest difference of a check, and what was refused or wrong."""
    outcomes = [outcome for outcome in found if outcome.check == check]
    if not outcomes:
        return "-"
    parts = []
    if faults := [outcome.text for outcome in outcomes if outcome.is_fault]:
        parts.append(f"**{len(faults)} WRONG** ({max(faults)[:60]})")
    if equal := [outcome.difference for outcome in outcomes if outcome.kind == "equal"]:
        parts.append(f"{max(equal):.0e}")
    if not parts and all(outcome.kind == "none" for outcome in outcomes):
        return "no loop"
    if refused := sum(outcome.kind == "refused" for outcome in outcomes):
        every = refused == len(outcomes)
        parts.append("refused" if every else f"{refused} of {len(outcomes)} refused")
    return ", ".join(parts)


def row(subject: Subject, found: list[Outcome]) -> str:
    return "| " + " | ".join([subject.name, *(cell(found, check) for check in CHECKS)]) + " |"


def page(rows: list[tuple[Subject, list[Outcome]]]) -> str:
    refusals = [
        f"- {subject.name}: {line}"
        for subject, found in rows
        for line in dict.fromkeys(
            f"{outcome.check}: {outcome.text}" for outcome in found if outcome.kind == "refused"
        )
    ]
    head = ["architecture", *CHECKS]
    lines = [
        "# Architectures",
        "",
        f"{len(rows)} tiny random models from transformers' configuration classes, made by",
        "`python benchmarks/architectures.py`: the largest relative difference of any token from a "
        "plain loop",
        "over the model's own layers (float32), or what is refused.",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---"] * len(head)) + " |",
        *(row(subject, found) for subject, found in rows),
        "",
        "## Refused",
        "",
        *refusals,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    sys.exit(main(options.names, options.log))
