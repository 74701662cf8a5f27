"""The entry point of the command `repsim`: errors become one line and an exit status.

Wrong input is one line on standard error and status 2; anything unforeseen is one line that says
what to report, and status 1 (REPSIM_DEBUG=1 shows the traceback). Heavy modules are imported inside
the commands, so that help appears at once.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise

from typer.exceptions import TyperException

from repsim.cli.app import app
from repsim.cli.printing import warn
from repsim.errors import Interrupted, RepsimError

# Versions that a report names.
REPORTED = ("repsim-layers", "torch", "transformers", "nnsight", "lm-eval")
MOST_CHARACTERS = 300  # of an unforeseen error's own text


def run() -> None:
    """Entry point of the command."""
    # Runs handle the signal more finely; this is for all other commands.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and gives its exit status; no traceback reaches a user."""
    try:
        check_empty(sys.argv[1:] if arguments is None else arguments)
        status = app(arguments, standalone_mode=False)
    except Interrupted as stop:
        return _say(str(stop), 128 + stop.signal)
    except RepsimError as problem:
        return _say(str(problem), 2)
    except TyperException as problem:
        message = problem.format_message()
        # Where no command was given, its help is shown, on a terminal by rich.
        if type(problem).__name__ == "NoArgsIsHelpError":
            print(message, end="\n" * bool(message), file=sys.stderr)
            return 2
        return _say(" ".join(message.split()), 2)
    except SystemExit as left:
        status = left.code
    except BrokenPipeError:
        # The reader of a pipe has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if os.environ.get("REPSIM_DEBUG"):
            raise
        return _say(refused_by_system(problem) or unforeseen(problem), 1)
    # Typer makes the former of a KeyboardInterrupt.
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return _say(
            f"stopped by {signal.Signals(status - 128).name}; the same command goes on", status
        )
    return status if isinstance(status, int) else 0


def refused_by_system(problem: Exception) -> str | None:
    """What a disk or a network has refused, in one line; None if it was something else."""
    from obstore.exceptions import BaseError

    from repsim.storage.location import one_line

    if not isinstance(problem, (OSError, BaseError)):
        return None
    where = f"{problem.filename}: " if isinstance(problem, OSError) and problem.filename else ""
    return f"{where}{one_line(problem)}; make that good, and the same command goes on"


def check_empty(arguments: Sequence[str]) -> None:
    """Refuses an empty value, which most often is a shell's variable that was not set."""
    for before, argument in pairwise(("", *arguments)):
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
        else:
            option, equals, value = "", "=", argument
        if equals and not value.strip():
            what = option or (before if before.startswith("-") else "an argument")
            raise RepsimError(f"{what}: an empty value; give one, or leave it out")


def unforeseen(problem: Exception) -> str:
    """What to say of a mistake of our own, and what to send to whom."""
    text = " ".join(str(problem).split())[:MOST_CHARACTERS]
    versions = ", ".join(f"{name} {version(name)}" for name in REPORTED)
    return (
        f"unforeseen {type(problem).__name__}: {text} - a fault of repsim's: please report it to "
        f"its makers with the command, this line and what the same command prints with "
        f"REPSIM_DEBUG=1 before it ({versions}, Python {platform.python_version()})"
    )


def _say(message: str, status: int) -> int:
    """Says why the command ended; gives the exit status."""
    warn(f"repsim: {message}")
    return status
