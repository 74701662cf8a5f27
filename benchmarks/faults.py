"""Kills captures of the embedded model before chosen writes, on a disk and on an S3 server here. Run by hand:

    .venv/bin/python benchmarks/faults.py [kills]

Each capture that is through is compared, object by object, with one that nothing interrupted; a difference ends it all.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from repsim.storage.location import place_of
from support.faults import Nursery, Whole, amazon, kill_often

KILLS = 50
ASKED = {
    "plan": ["baseline", "skip:start=10", "looped_parallel:start=10,loops=2"],
    "limit": 24,
    "max_tokens": 48,
    "batch_tokens": 96,
    "logprobs": True,
}
GROWN = {**ASKED, "plan": [*ASKED["plan"], "drop:layer=4"], "limit": 30, "append": True}
SMALL = {**ASKED, "plan": "baseline", "limit": 12}  # a request to the server takes milliseconds


def report(name: str, nursery: Nursery, call: dict, kills: int, whole: Whole, reset: Callable[[], None]) -> None:
    began = time.monotonic()
    captures = kill_often(nursery, call, kills, whole, reset)
    outcome = f"{kills} kills, {captures} captures with {len(whole.digests)} objects equal each time"
    print(f"{name}: {outcome}, {time.monotonic() - began:.0f} s", flush=True)


def main(kills: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="repsim-benchmark-"))
    try:
        with Nursery(None, folder) as nursery:
            first, second, out = (str(folder / name) for name in ("whole.zarr", "grown.zarr", "c.zarr"))
            whole = Whole.of(nursery, {**ASKED, "out": first})
            report("folder", nursery, {**ASKED, "out": out}, kills, whole, lambda: shutil.rmtree(out))

            def reset() -> None:
                shutil.rmtree(out, ignore_errors=True)
                shutil.copytree(first, out)

            shutil.copytree(first, second)
            grown = Whole.of(nursery, {**GROWN, "out": second})
            reset()
            report("extension", nursery, {**GROWN, "out": out}, kills, grown, reset)
            with amazon() as bucket:
                whole = Whole.of(nursery, {**SMALL, "out": f"{bucket}/whole.zarr"})
                url = f"{bucket}/c.zarr"
                report("bucket", nursery, {**SMALL, "out": url}, kills, whole, place_of(url).remove)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else KILLS)
