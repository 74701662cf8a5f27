"""A campaign of faults against stores: whatever happens, nothing is lost, unnoticed or falsely
accused. Run by hand:

    .venv/bin/python benchmarks/faults.py [--threads] [PART ...]

Parts: kills, zombies, starts, flips, deletions, errors, disks, bucket, network; all of them if none
is named. With `--threads` the captures write beside their computation, on several threads, as they
do on a GPU.

Every part makes captures of a tiny random model and compares them, object by object, with one that
nothing interrupted. A process that dies, wakes or fails does so at a chosen write, so each round is
the same on every machine. The lines say how many trials there were, and how many stores lost
something, hid a damage, or were accused without one.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import repsim
from repsim.storage.lock import KEY
from repsim.storage.place_names import location_of
from support.faults import (
    FINISHED,
    REFUSED,
    Nursery,
    Whole,
    amazon,
    digests,
    kill_often,
    leftovers,
    raise_zombies,
)
from support.models import save_folder
from support.network import FAULTS, Network

KILLS, ZOMBIES, STARTS, FLIPS, DELETIONS, ERRORS, DISKS, FAULTS_EACH = (
    60,
    40,
    60,
    100,
    40,
    60,
    20,
    5,
)
ASKED: dict[str, Any] = {
    "plan": ["baseline", "skip:start=1", "looped_parallel:start=1,loops=2"],
    "limit": 24,
    "max_tokens": 30,
    "batch_tokens": 96,
    "logprobs": True,
}
GROWN = {**ASKED, "plan": [*ASKED["plan"], "drop:layer=4", "0-2"], "limit": 30, "append": True}
SMALL = {**ASKED, "plan": "baseline", "limit": 12}  # a request to the server takes milliseconds
REFUSALS = (errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES)


@dataclass
class Tally:
    """What became of the stores of one part of the campaign.

    lost: stores that were not, in the end, what an undisturbed capture leaves.
    unnoticed: damages that `verify` did not name, or runs that failed without one line.
    false_alarms: whole stores or living writers that were accused.
    """

    trials: int = 0
    lost: int = 0
    unnoticed: int = 0
    false_alarms: int = 0


class Campaign:
    """Where the stores lie, and what an undisturbed capture looks like."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery, self.folder = nursery, folder
        self.out = str(folder / "c.zarr")
        self.asked, self.grown = {**ASKED, "out": self.out}, {**GROWN, "out": self.out}
        self.first, self.second = folder / "first.zarr", folder / "second.zarr"
        self.whole = Whole.of(nursery, {**ASKED, "out": str(self.first)})
        shutil.copytree(self.first, self.second)
        self.larger = Whole.of(nursery, {**GROWN, "out": str(self.second)})

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def restart(self) -> None:
        """The finished capture, about to be extended."""
        self.clear()
        shutil.copytree(self.first, self.out)

    # Parts

    def kills(self) -> Tally:
        self.clear()
        kill_often(self.nursery, self.asked, KILLS // 2, self.whole, self.clear)
        self.restart()
        kill_often(self.nursery, self.grown, KILLS // 2, self.larger, self.restart)
        return Tally(KILLS)

    def zombies(self) -> Tally:
        moments = np.linspace(1, self.whole.outcome.writes, ZOMBIES, dtype=int).tolist()
        return Tally(raise_zombies(self.nursery, self.asked, moments, self.whole))

    def starts(self) -> Tally:
        """Two at once over a dead lock, one of which is held up before a write to the lock: one of
        them writes.
        """
        tally = Tally()
        for round_ in range(STARTS):
            self.clear()
            dead = self.nursery.start(self.asked, [f"hidden/c/{round_ % 4}"])
            assert dead.stops()
            dead.kill()
            held_up = self.nursery.start(self.asked, [KEY] if round_ % 2 else [1 + round_ % 5])
            stopped = held_up.stops()
            other = self.nursery.run(self.asked)
            if stopped:
                held_up.go_on()
            outcomes = sorted([other.status, held_up.wait().status])
            tally.trials += 1
            tally.lost += (
                digests(self.out) != self.whole.digests
                or outcomes[0] != FINISHED
                or leftovers(self.out) > 0
            )
            tally.unnoticed += outcomes[1] not in (FINISHED, REFUSED)
        return tally

    def flips(self) -> Tally:
        return self._harm(FLIPS, self._flip)

    def deletions(self) -> Tally:
        return self._harm(DELETIONS, lambda path, _chance: path.unlink())

    @staticmethod
    def _flip(path: Path, chance: random.Random) -> None:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)

    def _harm(self, trials: int, harm: Callable[[Path, random.Random], None]) -> Tally:
        """Harms one file of all, has it named, and repairs it where the store can be repaired."""
        chance, tally = random.Random(0), Tally()
        for _ in range(trials):
            self.clear()
            shutil.copytree(self.first, self.out)
            files = sorted(
                path for path in Path(self.out).rglob("*") if path.is_file() and path.stat().st_size
            )
            harm(chance.choice(files), chance)
            tally.trials += 1
            try:
                named = len(repsim.verify(self.out).damages) > 0
            except repsim.RepsimError:  # the root is none any more: one line, which is as good
                continue
            changed = digests(self.out) != self.whole.digests
            tally.unnoticed += changed and not named
            tally.false_alarms += named and not changed
            outcome = self.nursery.run({**self.asked, "repair": True})
            repaired = digests(self.out) == self.whole.digests
            tally.lost += outcome.status == FINISHED and not repaired
        return tally

    def errors(self) -> Tally:
        """A write fails: one line, and the same call goes on."""
        tally = Tally()
        for row, write in enumerate(
            np.linspace(1, self.whole.outcome.writes, ERRORS, dtype=int).tolist()
        ):
            self.clear()
            outcome = self.nursery.run(
                self.asked, moments=[write], error=REFUSALS[row % len(REFUSALS)]
            )
            tally.trials += 1
            tally.unnoticed += outcome.status != REFUSED
            finished = self.nursery.run(self.asked).status == FINISHED
            tally.lost += not finished or digests(self.out) != self.whole.digests
        return tally

    def disks(self) -> Tally:
        """Something else fills the disk at a chosen state."""
        tally, disk = Tally(), self.folder / "disk"
        disk.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
        try:
            for at in np.linspace(0, 60, DISKS, dtype=int).tolist():
                shutil.rmtree(disk / "c.zarr", ignore_errors=True)
                call, other = {**ASKED, "out": str(disk / "c.zarr")}, disk / "other"
                tally.trials += 1
                tally.unnoticed += self.nursery.run(call, fill=str(other), at=at).status != REFUSED
                other.unlink(missing_ok=True)
                finished = self.nursery.run(call).status == FINISHED
                tally.lost += not finished or digests(call["out"]) != self.whole.digests
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)
        return tally

    def bucket(self) -> Tally:
        with amazon() as url:
            whole = Whole.of(self.nursery, {**SMALL, "out": f"{url}/campaign.zarr"})
            call = {**SMALL, "out": f"{url}/c.zarr"}
            kill_often(self.nursery, call, 20, whole, location_of(call["out"]).remove)
            moments = np.linspace(1, whole.outcome.writes, 10, dtype=int).tolist()
            return Tally(20 + raise_zombies(self.nursery, call, moments, whole))

    def network(self) -> Tally:
        """A request to a bucket meets one of the faults that networks have; writing goes on, or
        ends with one line.
        """
        tally = Tally()
        with amazon() as url:
            server = os.environ["AWS_ENDPOINT_URL"]
            call = {**SMALL, "out": f"{url}/c.zarr"}
            whole = Whole.of(self.nursery, {**SMALL, "out": f"{url}/campaign.zarr"})
            with Network(server, lambda _number, _method: None) as quiet:
                self.nursery.run(call, endpoint=quiet.url)
            for fault in FAULTS:
                for at in np.linspace(1, quiet.requests - 1, FAULTS_EACH, dtype=int).tolist():
                    location_of(call["out"]).remove()
                    with Network(server, partial(fault_at, fault, at)) as network:
                        outcome = self.nursery.run(call, endpoint=network.url, patience=10)
                    tally.trials += 1
                    told = outcome.status == REFUSED and outcome.message.startswith(
                        f"{call['out']}: "
                    )
                    if fault == "forgotten":  # what it held by then is gone
                        tally.unnoticed += not told and digests(call["out"]) != whole.digests
                        continue
                    tally.false_alarms += outcome.status != FINISHED  # one fault alone is borne
                    tally.lost += digests(call["out"]) != whole.digests
            # For good.
            for at in np.linspace(1, quiet.requests - 1, FAULTS_EACH, dtype=int).tolist():
                location_of(call["out"]).remove()
                with Network(server, partial(fault_since, "hangs", at)) as network:
                    outcome = self.nursery.run(call, endpoint=network.url, patience=1)
                tally.trials += 1
                tally.unnoticed += outcome.status != REFUSED
                tally.lost += (
                    self.nursery.run(call).status != FINISHED
                    or digests(call["out"]) != whole.digests
                )
        return tally


PARTS = ("kills", "zombies", "starts", "flips", "deletions", "errors", "disks", "bucket", "network")


def fault_at(fault: str, at: int, number: int, _method: str) -> str | None:
    return fault if number == at else None


def fault_since(fault: str, at: int, number: int, _method: str) -> str | None:
    return fault if number >= at else None


def main(words: list[str]) -> None:
    threads, parts = "--threads" in words, [word for word in words if word != "--threads"]
    folder = Path(tempfile.mkdtemp(prefix="repsim-benchmark-"))
    try:
        model = save_folder(folder / "tiny-llama", "llama", None)
        with Nursery(str(model), folder, threads=threads) as nursery:
            campaign = Campaign(nursery, folder)
            for name, tally in run(campaign, parts or list(PARTS)):
                counts = (
                    f"lost {tally.lost}, unnoticed {tally.unnoticed}, false alarms "
                    f"{tally.false_alarms}"
                )
                print(f"{name}: {tally.trials}; {counts}", flush=True)
    finally:
        shutil.rmtree(folder)


def run(campaign: Campaign, parts: list[str]) -> Iterator[tuple[str, Tally]]:
    for name in parts:
        part: Any = getattr(campaign, name)
        began = time.monotonic()
        tally = part()
        yield f"{name} ({time.monotonic() - began:.0f} s)", tally


if __name__ == "__main__":
    main(sys.argv[1:])
