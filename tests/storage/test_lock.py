"""One writer a store: who is refused, whose lock is taken over, who learns that it lost."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from queue import Queue
from threading import Semaphore
from typing import Any

import psutil
import pytest

from repsim.errors import RepsimError
from repsim.storage import lock as locks
from repsim.storage.bucket import Bucket
from repsim.storage.location import Location
from repsim.storage.lock import KEY, Owner, WriterLock
from repsim.storage.place_names import location_of
from support.stores import read_bytes

ME = Owner(
    os.getpid(), socket.gethostname(), psutil.Process().create_time(), locks._machine(), "ff"
)
GONE = replace(ME, process=2**22 + 1)  # beyond what Linux numbers processes by
FAR = replace(ME, host="far", machine="elsewhere")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    location = location_of(
        tmp_path / "s.zarr" if request.param == "folder" else "memory://test-locks"
    )
    yield location
    location.remove()


class Clock:
    """Stands in for the module `time` while a lock waits for a sign of life: only its waiting makes
    time pass.

    slept: called after each wait with the seconds that have passed.
    """

    def __init__(self, slept: Callable[[float], None] = lambda _now: None) -> None:
        self.now, self._slept = 0.0, slept

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._slept(self.now)


class Pulse:
    """Stands in for the event between a lock's signs of life: they come when a test says so, in the
    lock's thread.
    """

    def __init__(self) -> None:
        self._waiting = Semaphore(0)
        self._stop: Queue[bool] = Queue()

    def wait(self, _seconds: float) -> bool:
        self._waiting.release()
        return self._stop.get()

    def set(self) -> None:
        self._stop.put(True)

    def beat(self, last: bool = False) -> None:
        """Has the lock beat once; returns after that, unless it will beat no more."""
        self._waiting.acquire()
        self._stop.put(False)
        if not last:
            self._waiting.acquire()
            self._waiting.release()


def pulsed(place: Location) -> tuple[WriterLock, Pulse]:
    """A lock, and what makes it beat."""
    lock, pulse = WriterLock(place), Pulse()
    lock._stop = pulse  # type: ignore[assignment]
    return lock, pulse


def is_free(place: Location) -> bool:
    """Nothing is left; in a bucket, which cannot delete conditionally, an empty lock is."""
    return place.sizes() in ({}, {KEY: 0})


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_owner_for_the_eye() -> None:
    started = datetime(2026, 3, 4, 5, 6, 7).astimezone()
    owner = Owner(12, "host", started.timestamp(), "m", "t")
    assert str(owner) == f"process 12 on host, started {started.isoformat(' ')}"


def test_a_lock_is_there_while_it_is_held(place: Location) -> None:
    with WriterLock(place) as lock:
        lock.check()
        assert set(place.sizes()) == {KEY}
        assert not lock.after_crash
    assert is_free(place)
    with WriterLock(place):  # and can be had again
        pass


def test_a_lock_is_released_when_work_fails(place: Location) -> None:
    with pytest.raises(ZeroDivisionError), WriterLock(place):
        _ = 1 / 0
    assert is_free(place)


def test_a_second_holder_is_refused_and_told_of_the_first(place: Location) -> None:
    with WriterLock(place) as lock:
        lock_bytes = place.read(KEY)
        since = datetime.fromtimestamp(ME.started).astimezone().isoformat(" ", "seconds")
        with pytest.raises(RepsimError) as caught, WriterLock(place):
            pass
        assert str(caught.value) == (
            f"{place}: being written by process {os.getpid()} on {socket.gethostname()}, started "
            f"{since}; "
            "wait for it, stop it, or choose another --out"
        )
        assert place.read(KEY) == lock_bytes
        lock.check()


def test_another_process_is_refused(tmp_path: Path) -> None:
    command = (
        "import sys; from repsim.storage.lock import WriterLock; from "
        "repsim.storage.place_names import location_of as at\n"
    )
    command += "with WriterLock(at(sys.argv[1])): pass"
    with WriterLock(location_of(tmp_path)):
        refused = subprocess.run(
            [sys.executable, "-c", command, tmp_path], capture_output=True, text=True
        )
    assert f"being written by process {os.getpid()} on" in refused.stderr
    assert subprocess.run([sys.executable, "-c", command, tmp_path]).returncode == 0


@pytest.mark.parametrize(
    "owner", [GONE, replace(ME, started=ME.started - 60)], ids=["gone", "number given anew"]
)
def test_a_dead_process_has_lost_its_lock(place: Location, owner: Owner) -> None:
    place.write(KEY, owner.bytes)
    with WriterLock(place) as lock:
        lock.check()
        assert not lock.after_crash  # the machine is up, so what was written is there
    assert is_free(place)


def test_a_zombie_is_dead(place: Location) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
        until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        place.write(KEY, replace(ME, process=child.pid, started=process.create_time()).bytes)
        with WriterLock(place) as lock:
            lock.check()


def test_a_killed_writer_has_lost_its_lock(tmp_path: Path) -> None:
    command = "import sys, os, signal; from repsim.storage.lock import WriterLock\n"
    command += "from repsim.storage.place_names import location_of as at\n"
    command += "with WriterLock(at(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", command, tmp_path]).returncode == -9
    assert (tmp_path / KEY).exists()
    with WriterLock(location_of(tmp_path)) as lock:
        lock.check()


def test_a_writer_elsewhere_that_beats_is_alive(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(KEY, FAR.bytes)

    def beat(now: float) -> None:
        """Late, but within what a lock waits for."""
        if now > locks.BEAT_SECONDS * (locks.MISSED_BEATS - 1):
            place.write(KEY, replace(FAR, beat=1).bytes)

    monkeypatch.setattr(locks, "time", Clock(beat))
    with (
        pytest.raises(
            RepsimError, match=rf"being written by process {FAR.process} on far, started"
        ),
        WriterLock(place),
    ):
        pass
    assert b'"far"' in read_bytes(place, KEY)


def test_a_writer_elsewhere_that_does_not_beat_is_dead(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(KEY, FAR.bytes)
    clock = Clock()
    monkeypatch.setattr(locks, "time", clock)
    with WriterLock(place) as lock:
        assert 40 <= clock.now < 50
        assert lock.after_crash
        lock.check()


def test_a_writer_elsewhere_that_releases_meanwhile_is_followed(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(KEY, FAR.bytes)
    clock = Clock(lambda _now: place.delete(KEY))
    monkeypatch.setattr(locks, "time", clock)
    with WriterLock(place) as lock:
        assert not lock.after_crash
    assert clock.now < locks.BEAT_SECONDS


@pytest.mark.parametrize(
    "data", [b"", b'{"process": 1', b"[]", b"null", b'{"process": 1}', b"\xff\0"]
)
def test_a_damaged_lock_is_nobodys(place: Location, data: bytes) -> None:
    if isinstance(place, Bucket) and not data:
        data = b"{"  # an empty one has been released
    place.write(KEY, data)
    with WriterLock(place) as lock:
        lock.check()
        assert lock.after_crash  # a power cut damages locks, nothing else does


def test_a_lock_is_renewed(place: Location) -> None:
    lock, pulse = pulsed(place)
    with lock:
        first = place.read(KEY)
        pulse.beat()
        assert place.read(KEY) != first
        lock.check()
    assert not lock._beating.is_alive()
    assert is_free(place)


def test_signs_of_life_come_by_themselves(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with WriterLock(place):
        until(lambda: b'"beat": 0' not in read_bytes(place, KEY))


@pytest.mark.parametrize("taken", [FAR, None])
def test_who_lost_a_lock_learns_of_it_and_leaves_the_new_one(
    place: Location, taken: Owner | None
) -> None:
    with WriterLock(place) as lock:
        place.delete(KEY)
        if taken is not None:
            place.write(KEY, taken.bytes)
        who = "process .* on far, started .*" if taken else "another writer"
        with pytest.raises(RepsimError, match=f"taken over by {who}; this one stops$"):
            lock.check()
    assert place.read(KEY) == (taken and taken.bytes)


def test_a_beat_does_not_take_a_lost_lock_back(place: Location) -> None:
    lock, pulse = pulsed(place)
    with lock:
        pulse.beat()
        place.write(KEY, FAR.bytes)
        pulse.beat(last=True)
        lock._beating.join()
        assert place.read(KEY) == FAR.bytes
        place.delete(KEY)
        with pytest.raises(RepsimError, match="taken over by another writer"):
            lock.check()
    assert is_free(place)


def test_a_beat_whose_answer_was_lost_is_no_lost_lock(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent again, and refused, since it has arrived."""
    lock, pulse = pulsed(place)
    with lock:
        renew = place.renew

        def renew_unheard(*beat: Any) -> bool:
            assert renew(*beat)
            return renew(*beat)

        with monkeypatch.context() as patch:
            patch.setattr(place, "renew", renew_unheard)
            pulse.beat()
        lock.check()
        before = place.read(KEY)
        pulse.beat()
        assert place.read(KEY) != before
        lock.check()
    assert is_free(place)


def test_a_beat_that_fails_is_tried_again(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, pulse = pulsed(place)
    with lock:
        failed: list[int] = []

        def fail(*_args: Any) -> None:
            failed.append(1)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(place, "renew", fail)
            pulse.beat()
            pulse.beat()
        assert len(failed) == 2
        before = place.read(KEY)
        pulse.beat()
        assert place.read(KEY) != before
        lock.check()
