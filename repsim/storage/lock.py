"""One writer per store: an advisory lock with a heartbeat; the lock of a dead writer is taken over.

The lock is an object in the store, made only where there is none. Its owner rewrites it every ten
seconds. On the owner's own machine a process that is gone has lost it; seen from another machine,
an owner that gives no sign of life for forty seconds has. Clocks are not compared. Taking over is
one exchange of the dead owner's bytes for one's own, so of several that try, one succeeds. A writer
that was taken for dead, and wakes, can change nothing any more (`repsim.storage.local_folder`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from repsim.errors import StoreLocked
from repsim.storage.location import Location, TakenOver, one_line_errors

KEY = "done/lock"  # inside an array, where zarr does not look for members
BEAT_SECONDS = 10.0
MISSED_BEATS = 4

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    process: its number.
    host: the machine's name.
    started: when the process began, in seconds since 1970.
    machine: digest of what tells machines, their reboots and their containers apart.
    token: of this lock and no other.
    beat: how often it has been renewed.
    """

    process: int
    host: str
    started: float
    machine: str
    token: str
    beat: int = 0

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.started).astimezone().isoformat(" ", "seconds")
        return f"process {self.process} on {self.host}, started {since}"

    @property
    def bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class WriterLock:
    """Held while a store is written: `with Lock(place) as lock`.

    after_crash: whether it was taken over from a writer on a machine that has been started anew
        since, or on another one, or was damaged, so that a power cut may have taken what was
        written last.
    Raises:
        RepsimError: a living writer holds it; on `check`, if another one has taken it over.
    """

    def __init__(self, place: Location) -> None:
        self._place = place
        self._me = Owner(
            os.getpid(),
            socket.gethostname(),
            psutil.Process().create_time(),
            _machine(),
            uuid.uuid4().hex,
        )
        self._stop = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._lost = False
        self.after_crash = False

    def __enter__(self) -> Self:
        with one_line_errors(self._place):
            try:
                self._acquire()
            except BaseException:
                self._place.leave()
                raise
        self._beating.start()
        return self

    def _acquire(self) -> None:
        self._place.enter(self._me.token)
        while True:
            try:
                # a request to a bucket that is sent again after a lost answer finds our own lock
                while not self._place.create(KEY, self._me.bytes) and self._mine() is None:
                    self._succeed_the_dead()
                self._place.take_over()
                # The dead one may have had a last beat.
                self._place.renew(KEY, self._me.bytes, self._me.bytes)
                return
            except TakenOver:
                # Somebody else has begun meanwhile: look at what he does, and who he is.
                self._place.enter(self._me.token)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._beating.join()  # otherwise it could write the lock again
        try:
            try:
                if (held := self._mine()) is not None:
                    self._place.exchange(KEY, held, None)
            finally:
                self._place.leave()
        except Exception as failure:  # whatever ends the work must not be hidden by this
            log.debug("%s: lock not released: %s", self._place, failure)

    @property
    def held(self) -> bool:
        """Whether it is still ours."""
        return not self._lost and self._mine() is not None

    def check(self) -> None:
        """Refuses to go on without the lock."""
        if not self.held:
            owner = self._read()
            raise TakenOver(self._place, owner and f"taken over by {owner}")

    def _succeed_the_dead(self) -> None:
        """Puts our lock in the place of one whose owner is dead; the loop around it sees whether
        that succeeded.
        """
        data = self._place.read(KEY)
        if data is None:  # released this moment
            return
        owner = _parse(data)
        if owner is not None and self._alive(owner):
            raise StoreLocked(
                f"{self._place}: being written by {owner}; wait for it, stop it, or choose "
                "another --out"
            )
        if self._place.exchange(KEY, data, self._me.bytes):
            log.info(
                "%s: %s is gone; its lock is taken over",
                self._place,
                owner or "the owner of a damaged lock",
            )
            self.after_crash = owner is None or owner.machine != self._me.machine

    def _alive(self, owner: Owner) -> bool:
        if owner.machine == self._me.machine:
            try:
                process = psutil.Process(owner.process)
                same = abs(process.create_time() - owner.started) < 1  # numbers are given anew
                return same and bool(process.status() != psutil.STATUS_ZOMBIE)
            except psutil.NoSuchProcess:
                return False
        patience = BEAT_SECONDS * MISSED_BEATS
        log.info("%s: held by %s; waiting %.0f s for a sign of life", self._place, owner, patience)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 20)
            if (now := self._read()) != owner:
                return now is not None  # else released
        return False

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._me = replace(self._me, beat=self._me.beat + 1)
                there = self._mine()
                # a request to a bucket whose answer was lost may have renewed it, and be refused
                # when it is sent again
                if there is None or not (
                    self._place.renew(KEY, there, self._me.bytes) or self._mine() is not None
                ):
                    self._lost = True
                    return
            except Exception as problem:  # a full disk or a slow network: try again
                log.debug("%s: lock not renewed: %s", self._place, problem)

    def _mine(self) -> bytes | None:
        """The lock as it is there, if it is ours, at whatever beat."""
        data = self._place.read(KEY)
        owner = None if data is None else _parse(data)
        return data if owner is not None and owner.token == self._me.token else None

    def _read(self) -> Owner | None:
        data = self._place.read(KEY)
        return None if data is None else _parse(data)


def is_locked(place: Location) -> bool:
    """Whether there is a lock, be its owner dead or alive."""
    with one_line_errors(place, "cannot be read", "check the address and the rights"):
        return bool(place.read(KEY))


def _parse(data: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):  # damaged, as a power cut leaves it: nobody's
        return None


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    container = Path("/proc/self/ns/pid")
    parts = (
        socket.gethostname(),
        boot.read_text() if boot.exists() else str(int(psutil.boot_time())),
        os.readlink(container) if container.is_symlink() else "",
    )
    return sha256("\n".join(parts).encode()).hexdigest()[:16]
