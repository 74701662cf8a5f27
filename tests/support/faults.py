"""Processes that are stopped or killed at a chosen write, disks that fill up, and an S3 server on
this machine.

A test never waits a while and hopes: a process stops itself before a write that the test has named,
the test looks around, and lets it go on or kills it. So what happens depends on no processor and on
nothing else that runs.

The processes are forked from a nursery, which has the model loaded, so that an attempt costs a
fraction of a second.
"""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

import repsim
from repsim.jobs.resumable import Progress
from repsim.storage import bucket, state_store, state_writer
from repsim.storage import lock as locks
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import OURS, PARTIAL
from repsim.storage.place_names import location_of

TESTS = Path(__file__).parents[1]
FINISHED, REFUSED, BROKEN = 0, 1, 2
SECONDS = 600.0  # after which a process hangs for certain

Call = dict[str, Any]
Moment = int | str | tuple[str, int]


# Moments


def stop_before_writes(
    where: str, moments: Sequence[Moment], error: int | None = None
) -> Callable[[], int]:
    """Has this process stop, as by SIGSTOP, before some of its writes to a store, until it gets
    SIGCONT.

    A write to a folder counts when a finished file gets its name, so that a half-written one lies
    there while the process is stopped; a write to a bucket when it is sent.

    Args:
        where: the store's folder or URL.
        moments: each the number of a write, counted from 1 without the lock's; or the beginning of
            a key, for the first write to a key that begins so; or such a beginning and a number,
            for a later one.
        error: number of an error of the system's; these writes fail with it, and the process does
            not stop.
    Returns:
        A function that says how many writes there were, without the lock's.
    """
    chosen = {(moment, 1) if isinstance(moment, str) else moment for moment in moments}
    count, counts, lock = (
        0,
        dict.fromkeys((moment[0] for moment in chosen if isinstance(moment, tuple)), 0),
        threading.Lock(),
    )

    def write(key: str) -> None:
        nonlocal count
        with lock:
            reached: set[Moment] = set()
            if key != locks.KEY:
                count += 1
                reached.add(count)
            for start in counts:
                if key.startswith(start):
                    counts[start] += 1
                    reached.add((start, counts[start]))
        if error is not None and not chosen.isdisjoint(reached):
            raise OSError(error, os.strerror(error))
        if not chosen.isdisjoint(reached):
            # To this thread: sent to the process, another thread may take it, and this one go on
            # for a moment.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    if "://" in where:
        _tell_of_requests(write)
    else:
        folder = f"{where}/"

        def audit(event: str, args: tuple[Any, ...]) -> None:
            if event not in ("os.rename", "os.link"):
                return
            target = os.fspath(args[1])
            # Not onto the writer's desk.
            if target.startswith(folder) and not OURS.search(Path(target).parent.name):
                write(target.removeprefix(folder))

        sys.addaudithook(audit)
    return lambda: count


def _tell_of_requests(write: Callable[[str], None]) -> None:
    import obstore

    put, put_async = obstore.put, obstore.put_async

    def told(bucket: Any, key: str, *rest: Any, **options: Any) -> Any:
        write(key)
        return put(bucket, key, *rest, **options)

    async def told_async(bucket: Any, key: str, *rest: Any, **options: Any) -> Any:
        write(key)
        return await put_async(bucket, key, *rest, **options)

    library: Any = obstore
    library.put, library.put_async = told, told_async


def start_command(
    words: Sequence[object], out: Path, moment: Moment, setting: str = ""
) -> subprocess.Popen[str]:
    """Starts `repsim WORDS --out OUT` and returns when it has stopped before a write; see
    `stop_before_writes`.

    Args:
        setting: Python code that the process runs before.
    """
    code = (
        f"from support.faults import stop_before_writes\nstop_before_writes({str(out)!r}, "
        f"[{moment!r}])\n"
        f"{setting}\nfrom repsim.cli.main import run\nrun()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **_paths(), "OMP_NUM_THREADS": "1"},
    )
    status = os.waitpid(process.pid, os.WUNTRACED)[1]
    assert os.WIFSTOPPED(status), process.stderr and process.stderr.read()
    return process


def end_command(
    process: subprocess.Popen[str], number: signal.Signals | None = None
) -> tuple[str, str]:
    """Sends a command that has stopped a signal, if any, and lets it go on; what it says to the
    end.
    """
    if number is not None:
        process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    return process.communicate(timeout=SECONDS)


def _paths() -> dict[str, str]:
    return {
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    }


# The nursery


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    status: FINISHED, REFUSED, BROKEN or the signal that killed it, negative.
    message: why it was refused or broke.
    made: writes until the store was there and blocks began.
    writes: in all.
    """

    status: int
    message: str = ""
    made: int = -1
    writes: int = -1


class Attempt:
    """A process that makes a store."""

    def __init__(self, nursery: "Nursery", process: int, told: Path) -> None:
        self._nursery, self.process, self._told = nursery, process, told
        self._status: int | None = None  # of the process, as `waitpid` gives it

    def stops(self) -> bool:
        """Waits until it stops before the next of its moments; False if it has come to its end
        before.
        """
        self._status = self._nursery.ask({"wait": self.process})
        return os.WIFSTOPPED(self._status)

    def go_on(self) -> None:
        os.kill(self.process, signal.SIGCONT)  # nobody else's: it is reaped by `wait` alone

    def kill(self) -> None:
        """Kills it where it has stopped."""
        os.kill(self.process, signal.SIGKILL)
        assert self.wait().status == -signal.SIGKILL

    def wait(self) -> Outcome:
        """How it ends; it must not stop before."""
        if self._status is None or os.WIFSTOPPED(self._status):
            assert not self.stops()
        assert self._status is not None
        status = os.waitstatus_to_exitcode(self._status)
        if status < 0:
            return Outcome(status)
        outcome = Outcome(status, **json.loads(self._told.read_text()))
        assert outcome.status != BROKEN, outcome.message
        return outcome


class Nursery:
    """A process with a model loaded that forks a child for each attempt; `with Nursery(model,
    folder) as nursery`.

    model: a folder; the embedded model where it is None.
    folder: where attempts leave word of how they ended.
    threads: whether attempts write beside the computation, on several threads, as on a GPU.
    """

    entry = "from support.faults import nurse; nurse()"

    def __init__(self, model: str | None, folder: Path, *, threads: bool = False) -> None:
        self.threads = threads
        quiet = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._folder, self._attempts = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.entry, *filter(None, [model])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet, **_paths()},
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_problem: object) -> None:
        self._process.communicate(timeout=SECONDS)

    def ask(self, request: Call) -> int:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        to.write(json.dumps(request) + "\n")
        to.flush()
        answer = back.readline()
        assert answer, "the nursery has died"
        return int(answer)

    def start(
        self,
        call: Call,
        moments: Sequence[int | str] = (),
        *,
        fill: str | None = None,
        at: int = 0,
        machine: str | None = None,
        error: int | None = None,
        endpoint: str | None = None,
        patience: int | None = None,
    ) -> Attempt:
        """Starts `repsim.capture(**call)`, or what else this nursery makes.

        Args:
            moments: where it stops; see `stop_before_writes`.
            fill: a file; it fills the disk before progress number `at`.
            machine: another one than this, as far as locks can tell; there, whoever is stopped is
                taken for dead at once.
            error: writes at these moments fail with this error of the system's.
            endpoint: where requests to buckets go instead.
            patience: seconds after which a request is given up.
        """
        self._attempts += 1
        told = self._folder / f"attempt-{self._attempts}.json"
        amazon = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        if endpoint is not None:
            amazon["AWS_ENDPOINT_URL"] = endpoint
        job: Call = {
            "call": call,
            "moments": list(moments),
            "fill": fill,
            "at": at,
            "machine": machine,
            "error": error,
            "threads": self.threads,
        }
        job |= {"told": str(told), "environment": amazon, "patience": patience}
        return Attempt(self, self.ask(job), told)

    def run(self, call: Call, **options: Any) -> Outcome:
        return self.start(call, **options).wait()


def nurse(make: Callable[..., Any] = repsim.capture) -> None:
    """What a nursery runs: loads the model that is its argument, then forks and reaps as it is
    told.

    Args:
        make: what attempts call with the model, to make a store.
    """
    import torch
    import tqdm

    import repsim.captures.write_queue
    import repsim.models.tracing

    tqdm.tqdm.monitor_interval = 0  # no thread for the bar that `load` draws
    torch.set_num_threads(1)
    # As many writes as a large model's.
    state_store.CHUNK_BYTES, state_writer.WRITE_BYTES = 1, 1 << 14
    # Nothing is written because time has passed.
    state_writer.MARK_SECONDS, locks.BEAT_SECONDS = -1.0, SECONDS
    state_writer.HELD_SECONDS = SECONDS
    model = repsim.models.load(sys.argv[1]) if sys.argv[1:] else repsim.models.load()
    _ = model.weights_digest, model.config_digest, model.tokenizer_digest
    warnings.simplefilter("error")
    alive: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            process, answer = os.waitpid(request["wait"], os.WUNTRACED)
            if not os.WIFSTOPPED(answer):
                alive.remove(process)
        else:
            # The system may show a thread for a moment after it was joined.
            for _ in range(100):
                if _threads() == 1:
                    break
                time.sleep(0.01)
            assert _threads() == 1, "a child would lack the other threads"
            answer = os.fork() or _attempt(make, model, **request)
            alive.add(answer)
        print(answer, flush=True)
    for process in alive:  # a test has failed
        os.kill(process, signal.SIGKILL)


def _threads() -> int:
    """How many there are; jemalloc's own, which it looks after itself, aside."""
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return len(names) - names.count("jemalloc_bg_thd\n")


def _attempt(
    make: Callable[..., Any],
    model: Any,
    call: Call,
    moments: list[int | str],
    fill: str | None,
    at: int,
    machine: str | None,
    error: int | None,
    threads: bool,
    told: str,
    environment: Any,
    patience: int | None,
) -> int:
    """A child's life."""
    from repsim.captures import write_queue

    write_queue.ALWAYS_BESIDE, write_queue.WRITERS = threads, 3
    os.environ.update(environment)
    if patience is not None:
        bucket.REQUEST_SECONDS, bucket.RETRY_SECONDS = patience, 2 * patience
    if machine is not None:
        locks._machine, locks.MISSED_BEATS = lambda: machine, 0
    made, states = -1, 0
    writes = stop_before_writes(call["out"], moments, error)

    def progress(_: Progress) -> None:
        nonlocal made, states
        made = made if states else writes()
        if fill is not None and states == at:
            _fill(fill)
        states += 1

    status, message = FINISHED, ""
    try:
        make(model, progress=progress, **call)
    except repsim.RepsimError as problem:
        status, message = REFUSED, str(problem)
    except BaseException:
        status, message = BROKEN, traceback.format_exc()
    Path(told).write_text(json.dumps({"message": message, "made": made, "writes": writes()}))
    os._exit(status)


def _fill(path: str) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                while file.write(bytes(size)) == size:
                    pass
    except OSError:
        return


# What lies there


def digests(where: Any) -> dict[str, str]:
    """sha256 of every object of a store but its lock; the root's attributes have no order."""
    place = location_of(where)
    found = {}
    for key in place.sizes():
        if key != locks.KEY:
            data = place.read(key)
            assert data is not None, key
            data = (
                json.dumps(json.loads(data), sort_keys=True).encode()
                if key == "zarr.json"
                else data
            )
            found[key] = sha256(data).hexdigest()
    return found


def extent(where: Any) -> Any:
    """Sizes that a store claims; None where it is not begun."""
    return (
        json.loads(location_of(where).read("zarr.json") or "{}").get("attributes", {}).get("extent")
    )


def leftovers(where: Any) -> int:
    """Half-written files in a folder."""
    place = location_of(where)
    return sum(1 for _ in place.path.rglob(f"*{PARTIAL}")) if isinstance(place, LocalFolder) else 0


@dataclass(frozen=True)
class Whole:
    """What a capture that nothing interrupted left, and how many writes it took."""

    digests: dict[str, str]
    extent: Any
    outcome: Outcome

    @classmethod
    def of(cls, nursery: Nursery, call: Call) -> "Whole":
        outcome = nursery.run(call)
        assert outcome.status == FINISHED, outcome.message
        assert not repsim.verify(call["out"]).damages
        assert not repsim.open(call["out"]).remark
        return cls(digests(call["out"]), extent(call["out"]), outcome)


# Kills


def kill_often(
    nursery: Nursery, call: Call, kills: int, whole: Whole, reset: Callable[[], None]
) -> int:
    """Kills a capture at many writes, starts it again each time by the same call, and compares.

    A third of the kills hit the making or extending of the store, from its first write to its last;
    the others the writing of blocks.

    Args:
        reset: makes the place as it was before the first attempt; called whenever a capture is
            through.
    Returns:
        How many captures came through, each compared with the one that nothing interrupted.
    """
    place, outcome, captures = location_of(call["out"]), whole.outcome, 0
    before = extent(place)

    def through() -> None:
        nonlocal captures
        assert digests(place) == whole.digests
        assert not leftovers(place)
        captures += 1

    def stopped(write: int) -> Attempt:
        """An attempt before a write; where fewer were left, on the way to the end, one that begins
        from the start.
        """
        attempt = nursery.start(call, [write])
        if attempt.stops():
            return attempt
        assert attempt.wait().status == FINISHED
        through()
        reset()
        attempt = nursery.start(call, [write])
        assert attempt.stops()
        return attempt

    making = np.linspace(1, outcome.made, kills // 3, dtype=int).tolist()
    writing = np.linspace(outcome.made + 1, outcome.writes, kills - kills // 3, dtype=int).tolist()
    random.Random(kills).shuffle(writing)
    for write in (*making, *writing):  # in this order: once a store is made, it is not made again
        attempt = stopped(write)
        claimed = extent(place)  # all at once, also where an earlier attempt has made a part of it
        assert claimed == whole.extent or (write <= outcome.made and claimed == before)
        assert (leftovers(place) > 0) == isinstance(place, LocalFolder)
        attempt.kill()
    assert nursery.run(call).status == FINISHED
    through()
    return captures


def raise_zombies(nursery: Nursery, call: Call, moments: Sequence[int | str], whole: Whole) -> int:
    """At each moment a writer stops, another takes over and finishes, and the first one wakes.

    It must have changed nothing, and has to end with one line; only before its very last write,
    which the other has made as well, it may come to its end. The store is made anew each time.

    Returns:
        How many there were.
    """
    place = location_of(call["out"])
    for moment in moments:
        place.remove()
        sleeper = nursery.start(call, [moment], machine="a")
        assert sleeper.stops(), moment
        assert nursery.run(call, machine="b").status == FINISHED, moment
        assert digests(place) == whole.digests, moment
        sleeper.go_on()
        outcome = sleeper.wait()
        if outcome.status != FINISHED or moment != whole.outcome.writes:
            assert outcome.status == REFUSED, (moment, outcome)
            assert re.search("taken over by .*; this one stops$", outcome.message), (
                moment,
                outcome.message,
            )
        assert digests(place) == whole.digests, moment
        assert not leftovers(place), moment
        assert not repsim.verify(place.text).damages, moment
    return len(moments)


def empty(server: str) -> None:
    """Leaves an S3 server of this machine with one bucket, and nothing in it."""
    # What it holds outlives the server.
    for method, where in (("POST", "moto-api/reset"), ("PUT", "bucket")):
        urllib.request.urlopen(urllib.request.Request(f"{server}/{where}", method=method)).close()


@contextmanager
def amazon() -> Iterator[str]:
    """An S3 server on this machine with one bucket; its URL. The environment points to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    told = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        empty(url)
        yield "s3://bucket"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})
