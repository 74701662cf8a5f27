"""Signals that end a run between two pieces of work, with everything finished on disk."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("repsim")


@contextmanager
def defer_interrupts() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, noted in the list instead of cutting work short; a second one does cut it
    short.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in wanted}

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        log.warning(
            "%s: finishing the states under way; once more to stop at once",
            signal.Signals(number).name,
        )
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in wanted:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
