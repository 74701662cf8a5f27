"""Captures that are killed, starved, raced and watched: what is finished stays, and what comes out
is what was asked.

`benchmarks/faults.py` does the same with the embedded model.
"""

import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import repsim
from repsim.data.corpus import read_corpus
from repsim.storage import lock as locks
from repsim.storage.frame import GO_ON
from repsim.storage.place_names import location_of
from support.cli import main
from support.faults import (
    FINISHED,
    REFUSED,
    Call,
    Nursery,
    Whole,
    amazon,
    digests,
    end_command,
    kill_often,
    leftovers,
    raise_zombies,
    start_command,
)
from support.network import Network

KILLS, APPEND_KILLS, BUCKET_KILLS = 6, 3, 3  # `benchmarks/faults.py` has hundreds
PLANS = ["baseline", "skip:start=1", "looped_parallel:start=1,loops=2", "drop:layer=2,part=attn"]
MORE_PLANS = [*PLANS, "reverse:start=1", "drop:layer=4"]
ASKED: Call = {"plan": PLANS, "limit": 60, "max_tokens": 30, "batch_tokens": 60, "logprobs": True}
MORE: Call = {**ASKED, "plan": MORE_PLANS, "limit": 75, "append": True}
SMALL: Call = {**ASKED, "plan": PLANS[:2], "limit": 6}  # a request to the server takes milliseconds


def open_capture(path: Path) -> repsim.Capture:
    capture = repsim.open(path)
    assert isinstance(capture, repsim.Capture)
    return capture


@pytest.fixture(scope="module")
def nursery(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(str(tiny_folder), tmp_path_factory.mktemp("told")) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Whole]:
    """A capture that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "whole.zarr"
    return out, Whole.of(nursery, {**ASKED, "out": str(out)})


@pytest.fixture(scope="module")
def grown(
    nursery: Nursery, whole: tuple[Path, Whole], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Whole]:
    """The same, extended by plans and samples."""
    out = tmp_path_factory.mktemp("grown") / "grown.zarr"
    shutil.copytree(whole[0], out)
    return out, Whole.of(nursery, {**MORE, "out": str(out)})


def test_digests_notice_a_byte(whole: tuple[Path, Whole], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "c.zarr")
    assert digests(tmp_path / "c.zarr") == whole[1].digests
    chunk = tmp_path / "c.zarr" / "hidden" / "c" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert digests(tmp_path / "c.zarr") != whole[1].digests


def test_a_capture_that_is_killed_often(
    nursery: Nursery, whole: tuple[Path, Whole], tmp_path: Path
) -> None:
    assert len(repsim.open(whole[0]).dataset["block"].values) > 24
    call = {**ASKED, "out": str(tmp_path / "made on the way" / "c.zarr")}
    assert kill_often(nursery, call, KILLS, whole[1], lambda: shutil.rmtree(call["out"])) > 1


@pytest.fixture
def threads(nursery: Nursery) -> Iterator[None]:
    """Captures write beside their computation, on several threads, as they do on a GPU."""
    nursery.threads = True
    yield
    nursery.threads = False


@pytest.mark.parametrize("tokens", ["all", "every:4"])
def test_a_capture_with_threads_that_is_killed_often(
    nursery: Nursery, tmp_path: Path, threads: None, tokens: str
) -> None:
    """Killed while several threads write, it ends as what the calling thread leaves."""
    call = {**ASKED, "tokens": tokens, "limit": 30, "out": str(tmp_path / "c.zarr")}
    nursery.threads = False
    alone = Whole.of(nursery, {**call, "out": str(tmp_path / "alone.zarr")})
    nursery.threads = True
    whole = Whole.of(nursery, {**call, "out": str(tmp_path / "whole.zarr")})
    assert whole.digests == alone.digests
    assert kill_often(nursery, call, APPEND_KILLS, whole, lambda: shutil.rmtree(call["out"])) > 0


def test_a_writer_with_threads_that_wakes_changes_nothing(
    nursery: Nursery, tmp_path: Path, threads: None
) -> None:
    whole = Whole.of(nursery, {**SMALL, "out": str(tmp_path / "undisturbed.zarr")})
    moments: list[int | str] = ["hidden/c/3", whole.outcome.writes - 1]
    raise_zombies(nursery, {**SMALL, "out": str(tmp_path / "c.zarr")}, moments, whole)


def test_an_extension_that_is_killed_often(
    nursery: Nursery, whole: tuple[Path, Whole], grown: tuple[Path, Whole], tmp_path: Path
) -> None:
    call = {**MORE, "out": str(tmp_path / "c.zarr")}

    def reset() -> None:
        shutil.rmtree(call["out"], ignore_errors=True)
        shutil.copytree(whole[0], call["out"])

    reset()
    kill_often(nursery, call, APPEND_KILLS, grown[1], reset)


def test_a_capture_to_a_bucket_that_is_killed_often(nursery: Nursery) -> None:
    with amazon() as bucket:
        whole = Whole.of(nursery, {**SMALL, "out": f"{bucket}/whole.zarr"})
        call = {**SMALL, "out": f"{bucket}/a folder/c.zarr"}
        kill_often(nursery, call, BUCKET_KILLS, whole, location_of(call["out"]).remove)
        assert repsim.verify(call["out"]).damages == ()


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_writer_that_wakes_changes_nothing(nursery: Nursery, tmp_path: Path, kind: str) -> None:
    """Interrupted before its first write, before the last that makes the store, at flags, states
    and its last write.
    """
    with amazon() if kind == "bucket" else nullcontext(tmp_path) as where:
        whole = Whole.of(nursery, {**SMALL, "out": f"{where}/undisturbed.zarr"})
        made, writes = whole.outcome.made, whole.outcome.writes
        moments: list[int | str] = [1, made, writes, "done/c", "hidden/c/3"]
        raise_zombies(nursery, {**SMALL, "out": f"{where}/c.zarr"}, moments, whole)


def test_a_network_that_fails_now_and_then(nursery: Nursery) -> None:
    """One request of 24 does not come through at once, of whatever kind it is."""
    chance = random.Random(0)
    fates = [
        chance.choice((fault, *[None] * 23))
        for fault in ("lost", "unanswered", "late", "refused") * 100
    ]
    with amazon() as url:
        whole = Whole.of(nursery, {**SMALL, "out": f"{url}/whole.zarr"})
        call = {**SMALL, "out": f"{url}/c.zarr"}
        with Network(
            os.environ["AWS_ENDPOINT_URL"], lambda number, _: fates[number % len(fates)]
        ) as network:
            assert nursery.run(call, endpoint=network.url).status == FINISHED
        assert network.requests > 150
        assert digests(call["out"]) == whole.digests


def test_a_write_that_hangs_is_sent_again(nursery: Nursery) -> None:
    """The lock's, and a later one. One that hangs for good: `benchmarks/faults.py`."""
    hung: list[int] = []

    def fate(number: int, method: str) -> str | None:
        if method == "PUT" and (not hung or (number > 150 and len(hung) == 1)):
            hung.append(number)
            return "hangs"
        return None

    with amazon() as url:
        whole = Whole.of(nursery, {**SMALL, "out": f"{url}/whole.zarr"})
        call = {**SMALL, "out": f"{url}/c.zarr"}
        with Network(os.environ["AWS_ENDPOINT_URL"], fate) as network:
            assert nursery.run(call, endpoint=network.url, patience=5).status == FINISHED
        assert len(hung) == 2
        assert digests(call["out"]) == whole.digests


def test_a_server_that_forgets(nursery: Nursery) -> None:
    with amazon() as url:
        call = {**SMALL, "out": f"{url}/c.zarr"}
        with Network(
            os.environ["AWS_ENDPOINT_URL"], lambda number, _: "forgotten" if number == 150 else None
        ) as network:
            outcome = nursery.run(call, endpoint=network.url)
        assert outcome.status == REFUSED
        # Reading, or writing.
        noticed = "damaged|moved or removed while it was written; this one stops"
        assert re.match(f"{call['out']}: ({noticed})", outcome.message)
        with pytest.raises(repsim.RepsimError, match=r"no such store|; choose another place$"):
            repsim.open(call["out"])


# A disk that fills up


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("at", [0, 100])
def test_a_disk_that_fills_up(
    nursery: Nursery, whole: tuple[Path, Whole], disk: Path, at: int
) -> None:
    """The check of what is free passes, something else fills the disk, and once it is gone the same
    call goes on.
    """
    out, other = disk / "c.zarr", disk / "other"
    call = {**ASKED, "out": str(out)}
    refused = nursery.run(call, fill=str(other), at=at)
    assert refused.status == REFUSED
    assert refused.message == f"{out}: cannot be written: No space left on device; {GO_ON}"
    assert not (out / locks.KEY).exists()
    assert not leftovers(out)
    assert other.stat().st_size > 1 << 20
    if at == 100:
        assert open_capture(out).complete > 0
    other.unlink()
    assert nursery.run(call).status == FINISHED
    assert digests(out) == whole[1].digests


# Others at the same store


@pytest.mark.parametrize(
    "second", ["at the same time", "later", "later, after one that was killed"]
)
def test_of_two_writers_one_is_refused(nursery: Nursery, tmp_path: Path, second: str) -> None:
    """They come to a store that is not there, at the same time or not, or to one whose writer was
    killed.
    """
    short = {**ASKED, "limit": 20}
    whole = Whole.of(nursery, {**short, "out": str(tmp_path / "whole.zarr")})
    out = tmp_path / "c.zarr"
    call = {**short, "out": str(out)}
    if "killed" in second:
        attempt = nursery.start(call, ["hidden/c/3"])
        assert attempt.stops()
        attempt.kill()
        assert (out / locks.KEY).exists()
    together = second == "at the same time"
    attempts = [
        nursery.start(call, [locks.KEY, 10] if together else [10]) for _ in range(1 + together)
    ]
    for attempt in attempts if together else []:
        assert attempt.stops()
    for attempt in attempts if together else []:
        attempt.go_on()
    # The writer holds the lock until the other one is through.
    stopped = [attempt.stops() for attempt in attempts]
    assert sorted(stopped) == [False] * together + [True]
    writer = attempts[stopped.index(True)]
    other = attempts[stopped.index(False)] if together else nursery.start(call)
    refused = other.wait()
    assert refused.status == REFUSED
    since = r"started 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
    named = rf"process {writer.process} on {re.escape(os.uname().nodename)}, {since}; wait for it, "
    assert re.search(f"being written by {named}", refused.message)
    writer.go_on()
    assert writer.wait().status == FINISHED
    assert digests(out) == whole.digests


def test_a_reader_sees_what_is_finished_and_nothing_else(
    nursery: Nursery, whole: tuple[Path, Whole], tmp_path: Path
) -> None:
    """A store that is written, killed, resumed and extended, and opened at every moment."""
    out = tmp_path / "c.zarr"
    reference = tmp_path / "more.zarr"
    shutil.copytree(whole[0], reference)
    samples = {**ASKED, "limit": MORE["limit"], "append": True}
    assert nursery.run({**samples, "out": str(reference)}).status == FINISHED
    expected = {plan: open_capture(reference).hidden(plan).values for plan in PLANS}
    seen: list[int] = []

    def look() -> None:
        try:
            capture = open_capture(out)
        except repsim.RepsimError:
            assert not seen  # from the first time on it is there
            return
        plan = PLANS[len(seen) % len(PLANS)]
        seen.append(capture.complete)
        values = capture.hidden(plan).values
        assert values.shape[1] >= capture.complete
        assert not np.isnan(values).any()
        np.testing.assert_array_equal(values, expected[plan][:, : values.shape[1]])

    moments = range(1, 2 * whole[1].outcome.writes, whole[1].outcome.writes // 40)
    for call in (ASKED, samples):
        for looks in (4, 8, 2, None):  # before it is killed
            attempt = nursery.start({**call, "out": str(out)}, moments)
            while (stopped := attempt.stops()) and looks != 0:
                look()
                attempt.go_on()
                look()  # beside the writer
                looks = looks and looks - 1
            if stopped:
                attempt.kill()
        assert attempt.wait().status == FINISHED
        look()
        assert seen[-1] == repsim.open(out).dataset.sizes["token"]
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    assert digests(out) == digests(reference)


# Signals


def test_signals_to_the_command(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGINT and SIGTERM: the exit status says so, the message says how to go on, and the same
    command goes on.
    """
    corpus = tmp_path / "texts.txt"
    corpus.write_text(
        "\n".join(" ".join(text.text.split()[:40]) for text in read_corpus().texts[:12])
    )
    plans = [word for plan in MORE_PLANS for word in ("--plan", plan)]
    words = ["capture", tiny_folder, *plans, "--corpus", corpus, "--batch-tokens", "64"]
    # while blocks are written, and while the store is made
    cases = [(signal.SIGINT, "hidden/c/3"), (signal.SIGTERM, "zarr.json")]
    outs = [tmp_path / str(row) / "c.zarr" for row in range(len(cases))]
    running = [
        start_command(words, out, moment) for out, (_, moment) in zip(outs, cases, strict=True)
    ]
    for process, out, (number, moment) in zip(running, outs, cases, strict=True):
        lines = end_command(process, number)[1]
        assert process.returncode == 128 + number, lines
        assert "Traceback" not in lines
        counts = rf" with [\d,]+ of [\d,]+ tokens finished in {out}"
        stopped = (
            rf"repsim: stopped by {number.name}({counts})?; the same command goes on( from there)?"
        )
        found = re.fullmatch(stopped, lines.splitlines()[-1])
        assert found, lines
        assert (found[1] is not None) == (moment != "zarr.json"), lines
        assert not (out / locks.KEY).exists()
        if found[1]:
            assert open_capture(out).missing > 0
    for out in outs:
        assert main(*words, "--out", out) == 0
        assert "complete:  yes" in capfd.readouterr().out
    first, other = map(digests, outs)
    assert other == first
