"""One writer a store: who is refused, whose lock is taken over, who learns that it lost."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from threading import Event, Thread

import psutil
import pytest

from repsim import locks
from repsim.locks import KEY, Lock, Owner
from repsim.places import place_of
from repsim.schema import RepsimError

ME = Owner(os.getpid(), socket.gethostname(), psutil.Process().create_time(), locks._machine(), "ff")
GONE = replace(ME, process=2**22 + 1)  # beyond what Linux numbers processes by
FAR = replace(ME, host="far", machine="elsewhere")


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    made = place_of(tmp_path / "s.zarr" if request.param == "folder" else "memory://test-locks")
    yield made
    made.remove()


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)


@contextmanager
def beating(place, owner):
    """A living writer elsewhere."""
    place.write(KEY, owner.bytes)
    stop = Event()

    def beat():
        beats = 0
        while not stop.wait(0.05):
            beats += 1
            place.write(KEY, replace(owner, beat=beats).bytes)

    thread = Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def until(true) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_owner_for_the_eye():
    started = datetime(2026, 3, 4, 5, 6, 7).astimezone()
    owner = Owner(12, "host", started.timestamp(), "m", "t")
    assert str(owner) == f"process 12 on host, started {started.isoformat(' ')}"


def test_a_lock_is_there_while_it_is_held(place):
    with Lock(place) as lock:
        lock.check()
        assert set(place.sizes()) == {KEY}
        assert not lock.after_crash
    assert place.sizes() == {}
    with Lock(place):  # and can be had again
        pass


def test_a_lock_is_released_when_work_fails(place):
    with pytest.raises(ZeroDivisionError), Lock(place):
        _ = 1 / 0
    assert place.sizes() == {}


def test_a_second_holder_is_refused_and_told_of_the_first(place):
    with Lock(place) as lock:
        held = place.read(KEY)
        since = datetime.fromtimestamp(ME.started).astimezone().isoformat(" ", "seconds")
        with pytest.raises(RepsimError) as caught, Lock(place):
            pass
        assert str(caught.value) == (
            f"{place}: being written by process {os.getpid()} on {socket.gethostname()}, started {since}; "
            "wait for it, stop it, or choose another --out"
        )
        assert place.read(KEY) == held
        lock.check()


def test_another_process_is_refused(tmp_path):
    command = "import sys; from repsim.locks import Lock; from repsim.places import place_of as at\n"
    command += "with Lock(at(sys.argv[1])): pass"
    with Lock(place_of(tmp_path)):
        found = subprocess.run([sys.executable, "-c", command, tmp_path], capture_output=True, text=True)
    assert f"being written by process {os.getpid()} on" in found.stderr
    assert subprocess.run([sys.executable, "-c", command, tmp_path]).returncode == 0


@pytest.mark.parametrize("owner", [GONE, replace(ME, started=ME.started - 60)], ids=["gone", "number given anew"])
def test_a_dead_process_has_lost_its_lock(place, owner):
    place.write(KEY, owner.bytes)
    with Lock(place) as lock:
        lock.check()
        assert not lock.after_crash  # the machine is up, so what was written is there
    assert place.sizes() == {}


def test_a_zombie_is_dead(place):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
        until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        place.write(KEY, replace(ME, process=child.pid, started=process.create_time()).bytes)
        with Lock(place) as lock:
            lock.check()


def test_a_killed_writer_has_lost_its_lock(tmp_path):
    command = "import sys, os, signal; from repsim.locks import Lock; from repsim.places import place_of as at\n"
    command += "with Lock(at(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", command, tmp_path]).returncode == -9
    assert (tmp_path / KEY).exists()
    with Lock(place_of(tmp_path)) as lock:
        lock.check()


def test_a_writer_elsewhere_that_beats_is_alive(place, fast):
    with beating(place, FAR):
        with pytest.raises(RepsimError, match=rf"being written by process {FAR.process} on far, started"), Lock(place):
            pass
        assert b'"far"' in place.read(KEY)


def test_a_writer_elsewhere_that_does_not_beat_is_dead(place, fast):
    place.write(KEY, FAR.bytes)
    start = time.monotonic()
    with Lock(place) as lock:
        assert time.monotonic() - start >= 4 * 0.05
        assert lock.after_crash
        lock.check()


def test_a_writer_elsewhere_that_releases_meanwhile_is_followed(place, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 1.0)
    place.write(KEY, FAR.bytes)
    release = Thread(target=lambda: (time.sleep(0.2), place.delete(KEY)))
    release.start()
    with Lock(place) as lock:
        assert not lock.after_crash
    release.join()


@pytest.mark.parametrize("data", [b"", b'{"process": 1', b"[]", b"null", b'{"process": 1}', b"\xff\0"])
def test_a_damaged_lock_is_nobodys(place, data):
    place.write(KEY, data)
    with Lock(place) as lock:
        lock.check()
        assert lock.after_crash  # a power cut damages locks, nothing else does


def test_a_lock_is_renewed(place, fast):
    with Lock(place) as lock:
        first = place.read(KEY)
        until(lambda: place.read(KEY) != first)
        lock.check()
    time.sleep(0.1)
    assert place.sizes() == {}


@pytest.mark.parametrize("taken", [FAR, None])
def test_who_lost_a_lock_learns_of_it_and_leaves_the_new_one(place, fast, taken):
    with Lock(place) as lock:
        until(lambda: b'"beat": 0' not in place.read(KEY))
        lock._stop.set()  # lest a beat under way writes over it
        lock._beating.join()
        place.delete(KEY)
        if taken is not None:
            place.write(KEY, taken.bytes)
        who = "process .* on far, started .*" if taken else "another writer"
        with pytest.raises(RepsimError, match=f"taken over by {who}; this one stops$"):
            lock.check()
    assert place.read(KEY) == (taken and taken.bytes)


def test_a_beat_does_not_take_a_lost_lock_back(place, fast):
    with Lock(place) as lock:
        place.write(KEY, FAR.bytes)
        until(lambda: not lock._beating.is_alive())
        place.delete(KEY)
        with pytest.raises(RepsimError, match="taken over by another writer"):
            lock.check()
    assert place.sizes() == {}


def test_a_beat_that_fails_is_tried_again(place, fast, monkeypatch):
    with Lock(place) as lock:
        failed = []

        def fail(*_args):
            failed.append(1)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(place, "write", fail)
            until(lambda: len(failed) > 1)
        before = place.read(KEY)
        until(lambda: place.read(KEY) != before)
        lock.check()
