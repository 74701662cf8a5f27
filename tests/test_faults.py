"""Captures that are killed, starved, raced and watched: what is finished stays, and what comes out is what was asked.

The processes that die are forked from a nursery, which has the model loaded, so that an attempt costs a fraction of a
second. `benchmarks/faults.py` does the same with the embedded model.
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim
from repsim import locks, store
from repsim.corpus import read_corpus
from repsim.places import PARTIAL, Folder, place_of
from repsim.runs import Progress

KILLS, APPEND_KILLS, BUCKET_KILLS, WATCHED_KILLS = 50, 10, 10, 3
PAUSE = 0.001  # seconds for each state, so that a capture lasts longer than an attempt
PLANS = ["baseline", "skip:start=1", "looped_parallel:start=1,loops=2", "drop:layer=2,part=attn"]
MORE_PLANS = [*PLANS, "reverse:start=1", "drop:layer=4"]
ASKED = {"plan": PLANS, "limit": 60, "max_tokens": 30, "batch_tokens": 60, "logprobs": True}
MORE = {**ASKED, "plan": MORE_PLANS, "limit": 75, "append": True}
SMALL = {**ASKED, "plan": PLANS[:2], "limit": 6}  # a request to the server takes milliseconds
WRITERS = 2
FINISHED, REFUSED, BROKEN = 0, 1, 2
SECONDS = 60.0  # that an attempt may take at most

Call = dict[str, Any]


# The nursery


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    status: FINISHED, REFUSED, BROKEN or the signal that killed it, negative.
    message: why it was refused or broke.
    made: seconds until the store was there and blocks began.
    seconds: that it took.
    """

    status: int
    message: str = ""
    made: float = float("nan")
    seconds: float = float("nan")


class Attempt:
    """A process that captures."""

    def __init__(self, nursery: "Nursery", process: int, told: Path) -> None:
        self._nursery, self.process, self._told = nursery, process, told

    @property
    def is_over(self) -> bool:
        """Whether it ended by itself."""
        return self._told.exists()

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)  # nobody else's: it is reaped by `wait` alone

    def wait(self) -> Outcome:
        status = self._nursery.ask({"reap": self.process})
        if status < 0:
            return Outcome(status)
        outcome = Outcome(status, **json.loads(self._told.read_text()))
        assert outcome.status != BROKEN, outcome.message
        return outcome


class Nursery:
    """A process with a model loaded that forks a child for each attempt; `with Nursery(model, folder) as nursery`.

    model: a folder; the embedded model where it is None.
    folder: where attempts leave word of how they ended.
    """

    entry = "from test_faults import nurse; nurse()"

    def __init__(self, model: str | None, folder: Path) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._folder, self._attempts = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.entry, *filter(None, [model])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet, "PYTHONPATH": path},
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_problem: object) -> None:
        self._process.communicate(timeout=SECONDS)

    def ask(self, request: Call) -> int:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery has died"
        return int(answer)

    def start(self, call: Call, *, pause: float = PAUSE, fill: str | None = None, at: int = 0) -> Attempt:
        """Starts `repsim.capture(**call)`, slowed down; before its progress number `at` the disk fills, if asked to."""
        self._attempts += 1
        told = self._folder / f"attempt-{self._attempts}.json"
        amazon = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        job = {"call": call, "pause": pause, "fill": fill, "at": at, "told": str(told), "environment": amazon}
        return Attempt(self, self.ask(job), told)

    def run(self, call: Call, **options: Any) -> Outcome:
        return self.start(call, **options).wait()


def nurse() -> None:
    """What a nursery runs: loads the model that is its argument, then forks and reaps as it is told."""
    import torch
    import tqdm

    import repsim.models.tracing
    import repsim.sinks

    tqdm.tqdm.monitor_interval = 0  # no thread for the bar that `load` draws
    torch.set_num_threads(1)
    store.CHUNK_BYTES, store.WRITE_BYTES, store.MARK_SECONDS = 1, 1 << 14, 0.02  # as many writes as a large model's
    model = repsim.models.load(sys.argv[1]) if sys.argv[1:] else repsim.models.load()
    _ = model.weights_digest, model.config_digest, model.tokenizer_digest
    warnings.simplefilter("error")
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        else:
            assert _threads() == 1, "a child would lack the other threads"
            answer = os.fork() or _attempt(model, **request)
        print(answer, flush=True)


def _threads() -> int:
    """How many there are; jemalloc's own, which it looks after itself, aside."""
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return len(names) - names.count("jemalloc_bg_thd\n")


def _attempt(model: Any, call: Call, pause: float, fill: str | None, at: int, told: str, environment: Any) -> int:
    """A child's life."""
    os.environ.update(environment)
    began, made, states = time.monotonic(), float("nan"), 0

    def progress(_: Progress) -> None:
        nonlocal made, states
        made = made if states else time.monotonic() - began
        if fill is not None and states == at:
            _fill(fill)
        states += 1
        time.sleep(pause)

    status, message = FINISHED, ""
    try:
        repsim.capture(model, progress=progress, **call)
    except repsim.RepsimError as problem:
        status, message = REFUSED, str(problem)
    except BaseException:
        status, message = BROKEN, traceback.format_exc()
    said = Path(f"{told}.said")
    said.write_text(json.dumps({"message": message, "made": made, "seconds": time.monotonic() - began}))
    said.rename(told)
    os._exit(status)


def _fill(path: str) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                while file.write(bytes(size)) == size:
                    pass
    except OSError:
        return


# Kills


def digests(where: Any) -> dict[str, str]:
    """sha256 of every object of a store but its lock; the root's attributes have no order."""
    place = place_of(where)
    found = {}
    for key in place.sizes():
        if key != locks.KEY:
            data = place.read(key)
            data = json.dumps(json.loads(data), sort_keys=True).encode() if key == "zarr.json" else data
            found[key] = sha256(data).hexdigest()
    return found


def extent(where: Any) -> Any:
    """Sizes that a store claims; None where it is not begun."""
    return json.loads(place_of(where).read("zarr.json") or "{}").get("attributes", {}).get("extent")


def holds(where: Any, attempt: Attempt) -> bool:
    """Whether the lock is this attempt's."""
    return json.loads(place_of(where).read(locks.KEY) or b"{}").get("process") == attempt.process


def leftovers(where: Any) -> int:
    """Half-written files in a folder."""
    place = place_of(where)
    return sum(1 for _ in place.path.rglob(f"*{PARTIAL}")) if isinstance(place, Folder) else 0


@dataclass(frozen=True)
class Whole:
    """What a capture that nothing interrupted left, and how long it took."""

    digests: dict[str, str]
    extent: Any
    outcome: Outcome

    @classmethod
    def of(cls, nursery: Nursery, call: Call) -> "Whole":
        outcome = nursery.run(call)
        assert outcome.status == FINISHED, outcome.message
        assert not repsim.verify(call["out"]).damages
        assert repsim.open(call["out"]).missing == 0
        return cls(digests(call["out"]), extent(call["out"]), outcome)


@dataclass
class Kills:
    """Where kills hit.

    early: before the attempt held the lock.
    making: while the store was made or extended.
    writing: while blocks were written.
    torn: how many of them left half-written files; a folder's only.
    captures: how many captures were through meanwhile, each compared with the one that nothing interrupted.
    """

    early: int = 0
    making: int = 0
    writing: int = 0
    torn: int = 0
    captures: int = 0

    @property
    def total(self) -> int:
        return self.early + self.making + self.writing


def kill_often(
    nursery: Nursery, call: Call, kills: int, whole: Whole, reset: Callable[[], None], aim: float = 0.75
) -> Kills:
    """Kills a capture at random moments so many times, starts it again each time by the same call, and compares.

    Args:
        reset: makes the place as it was before the first attempt; called whenever a capture is through before that.
        aim: share of the kills that are aimed at the making of the store, which is short, as long as it is not made.
    """
    dice, place, hit = random.Random(kills), place_of(call["out"]), Kills()

    def through() -> None:
        assert digests(place) == whole.digests
        assert not leftovers(place)
        hit.captures += 1

    while hit.total < kills:
        made = whole.outcome.made
        late = hit.total >= kills // 2 and not hit.writing  # a busy machine takes longer to make the store
        aimed = extent(place) != whole.extent and dice.random() < aim and not late
        attempt = nursery.start(call)
        while aimed and not (attempt.is_over or holds(place, attempt)):
            time.sleep(0.001)
        while late and not (attempt.is_over or extent(place) == whole.extent):
            time.sleep(0.001)
        shortest, longest = (0, 0.05) if late else (0, 0.5 * made) if aimed else (0.5 * made, 1.5 * made + 0.15)
        time.sleep(dice.uniform(shortest, longest))
        attempt.kill()
        outcome = attempt.wait()
        if outcome.status == FINISHED:
            through()
            reset()
            continue
        assert outcome.status == -signal.SIGKILL, outcome.message
        if not holds(place, attempt):
            hit.early += 1
        elif extent(place) == whole.extent:
            hit.writing += 1
        else:
            hit.making += 1
        hit.torn += leftovers(place) > 0
    assert nursery.run(call).status == FINISHED
    through()
    return hit


@contextmanager
def amazon() -> Iterator[str]:
    """An S3 server on this machine with one bucket; its URL. The environment leads there meanwhile."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    told = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")):
            yield "s3://bucket"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


@pytest.fixture(scope="module")
def nursery(tiny_folder, tmp_path_factory) -> Iterator[Nursery]:
    with Nursery(str(tiny_folder), tmp_path_factory.mktemp("told")) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory) -> tuple[Path, Whole]:
    """A capture that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "whole.zarr"
    return out, Whole.of(nursery, {**ASKED, "out": str(out)})


@pytest.fixture(scope="module")
def grown(nursery, whole, tmp_path_factory) -> tuple[Path, Whole]:
    """The same, extended by plans and samples."""
    out = tmp_path_factory.mktemp("grown") / "grown.zarr"
    shutil.copytree(whole[0], out)
    return out, Whole.of(nursery, {**MORE, "out": str(out)})


def test_digests_notice_a_byte(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "c.zarr")
    assert digests(tmp_path / "c.zarr") == whole[1].digests
    chunk = tmp_path / "c.zarr" / "hidden" / "c" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert digests(tmp_path / "c.zarr") != whole[1].digests


def test_a_capture_that_is_killed_often(nursery, whole, tmp_path):
    assert len(repsim.open(whole[0]).dataset["block"].values) > 24
    call = {**ASKED, "out": str(tmp_path / "made on the way" / "c.zarr")}
    hit = kill_often(nursery, call, KILLS, whole[1], lambda: shutil.rmtree(call["out"]))
    print(hit)
    assert hit.total == KILLS
    assert hit.making >= KILLS // 20
    assert hit.writing >= KILLS // 4
    assert hit.torn > 0


def test_an_extension_that_is_killed_often(nursery, whole, grown, tmp_path):
    call = {**MORE, "out": str(tmp_path / "c.zarr")}

    def reset() -> None:
        shutil.rmtree(call["out"], ignore_errors=True)
        shutil.copytree(whole[0], call["out"])

    reset()
    hit = kill_often(nursery, call, APPEND_KILLS, grown[1], reset)
    print(hit)
    assert hit.total == APPEND_KILLS
    assert hit.writing > 0
    assert hit.making > 0


def test_a_capture_to_a_bucket_that_is_killed_often(nursery):
    with amazon() as bucket:
        whole = Whole.of(nursery, {**SMALL, "out": f"{bucket}/whole.zarr"})
        call = {**SMALL, "out": f"{bucket}/a folder/c.zarr"}
        hit = kill_often(nursery, call, BUCKET_KILLS, whole, place_of(call["out"]).remove, aim=0.4)
        print(hit)
        assert repsim.verify(call["out"]).damages == ()
    assert hit.total == BUCKET_KILLS
    assert hit.writing > 0


# A disk that fills up


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("at", [0, 100])
def test_a_disk_that_fills_up(nursery, whole, disk, at):
    """The check of what is free passes, something else fills the disk, and once it is gone the same call goes on."""
    out, other = disk / "c.zarr", disk / "other"
    call = {**ASKED, "out": str(out)}
    refused = nursery.run(call, fill=str(other), at=at)
    assert refused.status == REFUSED
    assert refused.message == f"{out}: cannot be written: No space left on device; {store.GO_ON}"
    assert not (out / locks.KEY).exists()
    assert not leftovers(out)
    assert other.stat().st_size > 1 << 20
    if at == 100:
        assert repsim.open(out).complete > 0
    other.unlink()
    assert nursery.run(call).status == FINISHED
    assert digests(out) == whole[1].digests


# Others at the same store


@pytest.mark.parametrize("stale", [False, True])
def test_of_two_writers_one_is_refused(nursery, tmp_path, stale):
    """They come at the same time to a store that is not there, or whose writer was killed."""
    dice = random.Random(stale)
    short = {**ASKED, "limit": 20}
    whole = Whole.of(nursery, {**short, "out": str(tmp_path / "whole.zarr")})
    for row in range(WRITERS):
        call = {**short, "out": str(tmp_path / f"{row}.zarr")}
        if stale:
            attempt = nursery.start(call)
            while not (Path(call["out"]) / "hidden" / "c" / "3").exists():
                time.sleep(0.005)
            attempt.kill()
            attempt.wait()
            assert (Path(call["out"]) / locks.KEY).exists()
        attempts = [nursery.start(call)]
        time.sleep(dice.uniform(0, whole.outcome.made) * (row > 0))
        attempts.append(nursery.start(call))
        outcomes = {attempt.process: attempt.wait() for attempt in attempts}
        refused = [process for process, outcome in outcomes.items() if outcome.status == REFUSED]
        assert len(refused) == 1, outcomes
        (writer,) = outcomes.keys() - set(refused)
        since = r"started 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
        named = rf"process {writer} on {re.escape(os.uname().nodename)}, {since}; wait for it, "
        assert re.search(f"being written by {named}", outcomes[refused[0]].message), outcomes
        assert digests(call["out"]) == whole.digests


def test_a_reader_sees_what_is_finished_and_nothing_else(nursery, whole, grown, tmp_path):
    """A store that is written, killed, resumed and extended by more samples, opened all the while."""
    out = tmp_path / "c.zarr"
    dice = random.Random(0)
    reference = tmp_path / "more.zarr"
    shutil.copytree(whole[0], reference)
    samples = {**ASKED, "limit": MORE["limit"], "append": True}
    assert nursery.run({**samples, "out": str(reference)}).status == FINISHED
    expected = {plan: repsim.open(reference).hidden(plan).values for plan in PLANS}
    seen: list[int] = []

    def look() -> None:
        try:
            capture = repsim.open(out)
        except repsim.RepsimError:
            assert not seen  # from the first time on it is there
            return
        seen.append(capture.complete)
        plan = dice.choice(PLANS)
        values = capture.hidden(plan).values
        assert values.shape[1] >= capture.complete
        assert not np.isnan(values).any()
        np.testing.assert_array_equal(values, expected[plan][:, : values.shape[1]])

    for call in (ASKED, samples):
        for patience in [dice.uniform(0.5, 1.0) * whole[1].outcome.seconds for _ in range(WATCHED_KILLS)] + [SECONDS]:
            attempt, end = nursery.start({**call, "out": str(out)}), time.monotonic() + patience
            while not attempt.is_over and time.monotonic() < end:
                look()
                time.sleep(0.002)
            attempt.kill()
            attempt.wait()
        look()
        assert seen[-1] == repsim.open(out).dataset.sizes["token"]
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    print(len(seen), "looks,", len(set(seen)), "different")
    assert digests(out) == digests(reference)


# Signals


def test_signals_to_the_command(tiny_folder, tmp_path):
    """SIGINT and SIGTERM: the exit status says so, the message says how to go on, and the same command goes on."""
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(" ".join(text.text.split()[:40]) for text in read_corpus().texts[:40]))
    cases = [(signal.SIGINT, "hidden/c/3"), (signal.SIGTERM, "hidden/c/3"), (signal.SIGTERM, locks.KEY)]
    outs = {case: tmp_path / str(row) / "c.zarr" for row, case in enumerate(cases)}
    said: dict[Any, str] = {}

    def start(out: Path) -> subprocess.Popen[str]:
        plans = [word for plan in MORE_PLANS for word in ("--plan", plan)]
        options = ["--corpus", corpus, "--batch-tokens", "64", "--out", out]
        return subprocess.Popen(
            [Path(sys.executable).with_name("repsim"), "capture", tiny_folder, *plans, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )

    running = {case: start(out) for case, out in outs.items()}
    waiting, end = set(cases), time.monotonic() + SECONDS
    while waiting and time.monotonic() < end:
        for number, key in list(waiting):
            if (outs[number, key] / key).exists():
                running[number, key].send_signal(number)
                waiting.remove((number, key))
        time.sleep(0.002)
    for case, process in running.items():
        said[case] = process.communicate(timeout=SECONDS)[1]
    assert not waiting
    for (number, key), lines in said.items():
        assert running[number, key].returncode == 128 + number, lines
        assert "Traceback" not in lines
        counts = rf" with [\d,]+ of [\d,]+ tokens finished in {outs[number, key]}"
        stopped = rf"repsim: stopped by {number.name}({counts})?; the same command goes on( from there)?"
        found = re.fullmatch(stopped, lines.splitlines()[-1])
        assert found, lines
        if key != locks.KEY:
            assert found[1], lines
            assert repsim.open(outs[number, key]).missing > 0
            assert not (outs[number, key] / locks.KEY).exists()
    running = {case: start(out) for case, out in outs.items() if case[1] != locks.KEY}
    ended = {case: process.communicate(timeout=SECONDS) for case, process in running.items()}
    for case, (shown, lines) in ended.items():
        assert running[case].returncode == 0, lines
        assert "complete:  yes" in shown
    first, second = (digests(outs[case]) for case in running)
    assert first == second
