"""What would icechunk save and cost, against repsim's own lock, extent and half-made stores? Run by
hand, in an environment of its own, as repsim does not depend on icechunk:

    python3 -m venv /tmp/icechunk && /tmp/icechunk/bin/pip install -e . icechunk
    /tmp/icechunk/bin/python benchmarks/icechunk_store.py [PART ...]

Parts: write, kill, second, race, grow, reader, flips; all of them if none is named.

A capture of 31 nodes, 20,000 tokens and 576 units in float16 is written in 12 blocks: by repsim's
writer, by the same writer through zarr (as it writes to buckets), and to an icechunk repository on
the same disk, with the same arrays, chunks, codecs and order, and a commit per block or per second.
The states are random, since only their size matters. docs/understanding/icechunk.md has the
results.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from repsim.data.samples import Sample
from repsim.plans import PlanTrie, resolve
from repsim.schema import Identity
from repsim.storage import state_store, state_writer
from repsim.storage.frame import (
    CHUNKS,
    ArraySpec,
    create_or_resize,
    open_for_writing,
    writable,
)
from repsim.storage.group import StoreGroup
from repsim.storage.lock import WriterLock
from repsim.storage.place_names import location_of
from repsim.storage.prefetch import SamplePrefetcher

ROUNDS = 3
LAYERS, UNITS = 30, 576
SAMPLE_TOKENS = 100
BLOCKS = (17,) * 11 + (13,)  # samples in each
NODES_PER_WRITE = 9  # as many as repsim's writer collects before it writes
FLIPS, RACES = 40, 200
KILLED_AT = 5  # the block in which a writer dies
IDENTITY = Identity("m", None, "77", "66", "88", "float32", "own", "99", "all", "cpu", {})


def layout_of(
    blocks: tuple[int, ...] = BLOCKS,
    plans: tuple[str, ...] = ("baseline",),
    layers: int = LAYERS,
    units: int = UNITS,
) -> state_store.Layout:
    """A capture's layout: every sample has 100 tokens."""
    named = resolve(plans, layers)
    ids = np.arange(SAMPLE_TOKENS, dtype=np.int32)
    samples = tuple(Sample(f"key{row}", ids) for row in range(sum(blocks)))
    trie = PlanTrie.build(item.plan for item in named)
    return state_store.Layout(IDENTITY, layers, named, trie, samples, blocks, units, "float16")


def states_of(layout: state_store.Layout) -> NDArray[np.float16]:
    """Random states, `[node, token, unit]`."""
    rng = np.random.default_rng(0)
    states = np.empty((len(layout.trie), layout.tokens, layout.units), np.float16)
    for node in states:
        node[...] = rng.standard_normal(node.shape, np.float32)
    return states


def write_repsim(
    path: Path,
    layout: state_store.Layout,
    states: NDArray[np.float16],
    through_zarr: bool = False,
    die_in: int | None = None,
) -> None:
    """Writes the blocks that are missing, as a capture does."""
    place = location_of(path)
    with WriterLock(place) as lock:
        writer = state_writer.prepare(place, layout, lock)
        if through_zarr:
            writer._chunks = None
        for block in range(len(layout.blocks)):
            pending = writer.pending(block)
            writer.begin(block)
            first, last = layout.token_starts[block : block + 2]
            for node in sorted(pending):
                if block == die_in and node == len(states) // 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                writer.write(node, states[node, first:last])
            writer.flush()
        writer.finish()


def repository(path: Path) -> icechunk.Repository:
    """The icechunk repository in a folder."""
    return icechunk.Repository.open_or_create(icechunk.local_filesystem_storage(str(path)))


def write_frame(group: zarr.Group, layout: state_store.Layout) -> None:
    """Makes, or grows, the arrays of a layout, as repsim does but for what keeps readers safe."""
    described = layout.coordinates()
    for key, variable in described.variables.items():
        dims = tuple(map(str, variable.dims))
        chunks = tuple(CHUNKS[dim] for dim in dims)
        spec = ArraySpec(dims, variable.shape, variable.dtype, chunks)
        sized(group, str(key), spec)[...] = variable.values
    for name, spec in layout.arrays().items():
        sized(group, name, spec)
    coordinates = " ".join(str(name) for name, of in described.coords.items() if of.dims != (name,))
    group.attrs.put({**layout.attributes(), "coordinates": coordinates})


def sized(group: zarr.Group, name: str, spec: ArraySpec) -> Any:
    """An array of this size, resized where it is there."""
    array = create_or_resize(group, name, spec)
    if array.shape != spec.shape:
        array.resize(spec.shape)
    return array


def write_icechunk(
    path: Path,
    layout: state_store.Layout,
    states: NDArray[np.float16],
    seconds: float = 0.0,
    die_in: int | None = None,
) -> None:
    """Writes all blocks; commits after a block if `seconds` have passed since the last commit."""
    repo = repository(path)
    session = repo.writable_session("main")
    write_frame(zarr.open_group(session.store, mode="a", zarr_format=3), layout)
    session.commit("layout")
    done = np.zeros((len(layout.trie), len(layout.blocks)), bool)
    committed = time.monotonic()
    session = None
    for block in range(len(layout.blocks)):
        if session is None:  # a committed session is read-only, so its arrays are opened again
            session = repo.writable_session("main")
            group = zarr.open_group(session.store, mode="r+", zarr_format=3)
            hidden, flags = writable(group, "hidden"), writable(group, "done")
        first, last = layout.token_starts[block : block + 2]
        for node in range(0, len(states), NODES_PER_WRITE):
            if block == die_in and node > len(states) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            hidden[node : node + NODES_PER_WRITE, first:last] = states[
                node : node + NODES_PER_WRITE, first:last
            ]
        done[:, block] = True
        flags[...] = done
        if time.monotonic() - committed >= seconds or block == len(layout.blocks) - 1:
            session.commit(f"block {block}")
            committed, session = time.monotonic(), None


def open_repsim(path: Path) -> xr.Dataset:
    """As repsim opens a store: attributes, sizes and flags are checked."""
    return StoreGroup.open(location_of(path)).dataset()


def open_plain(path: Path) -> xr.Dataset:
    """As a reader without repsim opens a store."""
    return xr.open_zarr(path, consolidated=False, chunks=None)


def open_icechunk(path: Path) -> xr.Dataset:
    """As xarray with icechunk opens the newest snapshot."""
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    store = repo.readonly_session("main").store
    return xr.open_zarr(store, consolidated=False, chunks=None)


def cosine_pass(pieces: Iterator[NDArray[np.float16]]) -> NDArray[np.float64]:
    """Mean cosine of each state with the one before it, `[node - 1]`, over all pieces."""
    total, tokens = np.float64(0), 0
    for piece in pieces:
        states = piece.astype(np.float32)
        norms = np.sqrt(np.einsum("ntu,ntu->nt", states, states))
        products = np.einsum("ntu,ntu->nt", states[1:], states[:-1])
        total = total + (products / (norms[1:] * norms[:-1])).sum(1, dtype=np.float64)
        tokens += piece.shape[1]
    return np.asarray(total / tokens)


def by_chunk(dataset: xr.Dataset, length: int) -> Iterator[NDArray[np.float16]]:
    """States at all nodes, `[node, token, unit]`, one run of tokens after the other."""
    for first in range(0, dataset.sizes["token"], length):
        yield dataset["hidden"][:, first : first + length].values


def by_prefetcher(path: Path, layout: state_store.Layout) -> Iterator[NDArray[np.float16]]:
    """The same as analyses of repsim read them."""
    group = StoreGroup.open(location_of(path))
    ends = np.cumsum(list(map(len, layout.samples)))
    for samples in SamplePrefetcher(group, np.arange(len(layout.trie)), ends):
        yield from samples


def timed(do: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of processor time."""
    began, used = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - began, time.process_time() - used


def usage(path: Path) -> str:
    """Size and number of the files in a folder."""
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    return f"{sum(sizes) / 1e6:,.1f} MB in {len(sizes):,} files"


def forget_cached(path: Path) -> None:
    """Takes a folder's files out of the page cache."""
    os.sync()
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def summary(times: list[tuple[float, float]]) -> str:
    """Median and range of the seconds, and the median of the processor's."""
    clock, used = sorted(time for time, _ in times), [cpu for _, cpu in times]
    text = f"{statistics.median(clock):.2f} s ({clock[0]:.2f} to {clock[-1]:.2f})"
    return f"{text}, processor {statistics.median(used):.2f} s"


def outcome(do: Callable[[], object]) -> str:
    """What a call returns, or its error in one line."""
    try:
        return str(do())
    except Exception as problem:
        text = " ".join(str(problem).split())
        return f"{type(problem).__name__}: {text[:200]}"


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that goes away at the end."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("ICECHUNK_DIR")) as name:
        yield Path(name)


def measure_writing() -> None:
    """Seconds, size, and reading of a whole capture."""
    layout = layout_of()
    states = states_of(layout)
    ways: dict[str, Callable[[Path], None]] = {
        "repsim": lambda path: write_repsim(path, layout, states),
        "repsim through zarr": lambda path: write_repsim(path, layout, states, True),
        "icechunk, commit per block": lambda path: write_icechunk(path, layout, states),
        "icechunk, commit per second": lambda path: write_icechunk(path, layout, states, 1.0),
    }
    print(f"states: {states.nbytes / 1e6:,.1f} MB, chunks of {layout.chunk_tokens} tokens")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    flushes: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with folder() as root:
        # Rounds go through all ways, so that what else the machine does meets each of them.
        for _ in range(ROUNDS):
            for name, way in ways.items():
                path = root / name.replace(" ", "-")
                shutil.rmtree(path, ignore_errors=True)
                os.sync()
                times[name].append(timed(partial(way, path)))
                flushes[name].append(timed(os.sync))
        for name in ways:
            path = root / name.replace(" ", "-")
            print(f"{name}: write {summary(times[name])}; sync {summary(flushes[name])}")
            print(f"    {usage(path)}")
            if name.startswith("icechunk"):
                repo = repository(path)
                count = len(list(repo.ancestry(branch="main")))
                now = datetime.now(UTC)
                repo.expire_snapshots(older_than=now)
                seconds, _ = timed(partial(repo.garbage_collect, now))
                print(f"    {count} snapshots; collected in {seconds:.2f} s: {usage(path)}")
        one, other = root / "repsim", root / "icechunk,-commit-per-block"
        openers = {"repsim": (open_repsim, one), "xarray on repsim's": (open_plain, one)}
        openers["icechunk"] = (open_icechunk, other)
        for name, (opener, path) in openers.items():
            measure_reading(name, opener, path, layout, states)
        passes = [
            timed(lambda: cosine_pass(by_prefetcher(one, layout))) for _ in range(ROUNDS + 1)
        ][1:]
        print(f"cosine pass, repsim's prefetcher: {summary(passes)}")


def measure_reading(
    name: str,
    opener: Callable[[Path], xr.Dataset],
    path: Path,
    layout: state_store.Layout,
    states: NDArray[np.float16],
) -> None:
    """Seconds to open a store, to read a state of it, and to pass over all states."""
    for cold in (False, True):
        opens, reads, passes = [], [], []
        for _ in range(ROUNDS):
            if cold:
                forget_cached(path)
            opens.append(timed(partial(opener, path)))
            dataset = opener(path)
            if cold:
                forget_cached(path)
            reads.append(timed(partial(np.asarray, dataset["hidden"][15])))
            if cold:
                forget_cached(path)
            passes.append(timed(partial(cosine_pass, by_chunk(dataset, layout.chunk_tokens))))
        assert np.array_equal(dataset["hidden"][15].values, states[15])
        print(f"{name}, {'disk' if cold else 'page cache'}: open {summary(opens)}")
        print(f"    one state {summary(reads)}; cosine pass {summary(passes)}")


def measure_kill() -> None:
    """What a writer leaves that is killed in the middle of its sixth block."""
    layout = layout_of()
    states = states_of(layout)
    with folder() as root:
        for name, opener in (("repsim", open_repsim), ("icechunk", open_icechunk)):
            path = root / name
            child = subprocess.run([sys.executable, __file__, "die", name, str(path)], check=False)
            assert child.returncode == -signal.SIGKILL
            done = opener(path)["done"].values
            print(f"{name}, killed in block {KILLED_AT}: {usage(path)}")
            print(f"    finished blocks at every node {int(done.all(0).sum())}, at some")
            print(f"    {int(done.any(0).sum())}; finished states {int(done.sum())}")
            if name == "icechunk":
                now = datetime.now(UTC)
                swept = timed(partial(repository(path).garbage_collect, now))
                print(f"    collected in {swept[0]:.2f} s: {usage(path)}")
            else:
                seconds, _ = timed(partial(write_repsim, path, layout, states))
                print(f"    taken over and completed in {seconds:.2f} s: {usage(path)}")


def measure_second_writer() -> None:
    """What a second writer is told, and when."""
    layout = layout_of((17, 17, 17), layers=3, units=64)
    states = states_of(layout)
    with folder() as root:
        place = location_of(root / "repsim")
        with WriterLock(place):
            print("repsim, second writer at its start:")
            print("   ", outcome(lambda: WriterLock(location_of(root / "repsim")).__enter__()))
        write_icechunk(root / "ice", layout, states)
        repo = repository(root / "ice")
        size = layout.chunk_tokens
        cases = {"a shared chunk of states": (size - 8, "hidden"), "flags only": (0, "done")}
        cases["no shared chunk"] = (size, "hidden")
        for case, (token, name) in cases.items():
            first, second = repo.writable_session("main"), repo.writable_session("main")
            for session, at in ((first, 0), (second, token)):
                array = writable(zarr.open_group(session.store, mode="r+"), name)
                if name == "hidden":
                    array[:, at : at + 16] = 1
                else:
                    array[0 if session is first else 1, 0] = True
            first.commit("first")
            print(f"icechunk, second writer at its commit, {case}:")
            print("   ", outcome(partial(second.commit, "second")))
            rebased = partial(second.commit, "second", rebase_with=icechunk.ConflictDetector())
            print("    with rebase:", outcome(rebased))


def measure_race() -> None:
    """Do commits of two processes at one time survive on a local disk?"""
    with folder() as root:
        session = repository(root).writable_session("main")
        group = zarr.create_group(session.store, zarr_format=3)
        group.create_array("value", shape=(2 * RACES,), chunks=(1,), dtype="int64", fill_value=0)
        session.commit("empty")
        arguments = [sys.executable, __file__, "racer", str(root)]
        racers = [
            subprocess.Popen([*arguments, str(row)], stdout=subprocess.PIPE, text=True)
            for row in (0, 1)
        ]
        told = sum(int(racer.communicate()[0].split()[-1]) for racer in racers)
        value: Any = zarr.open_group(repository(root).readonly_session("main").store, mode="r")
        there = int(np.asarray(value["value"][:]).sum())
        print(f"icechunk, two processes committing: {told} commits said to be done, {there} there")


def race(root: Path, row: int) -> None:
    """One of two processes that commit, each its own chunks."""
    committed, repo = 0, repository(root)
    for turn in range(RACES):
        session = repo.writable_session("main")
        array: Any = zarr.open_group(session.store, mode="r+")["value"]
        array[row * RACES + turn] = 1
        try:
            session.commit("one", rebase_with=icechunk.ConflictDetector())
            committed += 1
        except icechunk.IcechunkError:
            pass
    print(committed)


def measure_growth() -> None:
    """Seconds until a store is ready for more samples and plans."""
    layout = layout_of()
    larger = layout_of((*BLOCKS, 20, 20), ("baseline", "drop:layer=14"))
    states = states_of(layout)
    with folder() as root:
        write_repsim(root / "repsim", layout, states)
        place = location_of(root / "repsim")
        before = open_repsim(root / "repsim")
        with WriterLock(place):
            seconds, _ = timed(lambda: open_for_writing(place, larger))
        after = open_repsim(root / "repsim")
        print(f"repsim: grown in {seconds:.3f} s, {dict(before['hidden'].sizes)} before,")
        print(f"    {dict(after['hidden'].sizes)} after")
        write_icechunk(root / "icechunk", layout, states)
        before = open_icechunk(root / "icechunk")

        def grow() -> None:
            session = repository(root / "icechunk").writable_session("main")
            write_frame(zarr.open_group(session.store, mode="a", zarr_format=3), larger)
            session.commit("grown")

        seconds, _ = timed(grow)
        after = open_icechunk(root / "icechunk")
        same = np.array_equal(before["hidden"][15].values, states[15])
        print(f"icechunk: grown in {seconds:.3f} s, {dict(after['hidden'].sizes)} after;")
        print(f"    a reader from before reads what it read: {same}")


def measure_reader() -> None:
    """What a reader without icechunk finds."""
    layout = layout_of((17, 17, 17), layers=3, units=64)
    with folder() as root:
        write_icechunk(root / "store", layout, states_of(layout))
        names = sorted(path.name for path in (root / "store").iterdir())
        print("in the folder of an icechunk repository:", ", ".join(names))
        print("xarray.open_zarr:", outcome(lambda: open_plain(root / "store")))
        large = layout_of()
        write_icechunk(root / "large", large, states_of(large))
        dataset = open_icechunk(root / "large")

        def export() -> None:
            group = zarr.create_group(root / "plain", zarr_format=3)
            write_frame(group, large)
            hidden = writable(group, "hidden")
            for row, piece in enumerate(by_chunk(dataset, large.chunk_tokens)):
                first = row * large.chunk_tokens
                hidden[:, first : first + piece.shape[1]] = piece

        print(f"written as plain zarr: {summary([timed(export)])}")


def read_all(opener: Callable[[Path], xr.Dataset], path: Path, expected: xr.Dataset) -> str:
    """What reading everything ends in: an error, the same, or something else and no error."""
    try:
        dataset = opener(path).load()
    except BaseException as problem:  # icechunk's panics are no Exceptions
        if isinstance(problem, KeyboardInterrupt):
            raise
        kind = type(problem).__name__
        return "panic" if "Panic" in kind else "error"
    return "same" if dataset.identical(expected) else "OTHER VALUES"


def measure_flips() -> None:
    """One flipped bit in each kind of file, and one file missing: is it noticed?"""
    rng = random.Random(0)
    layout = layout_of((17, 17, 17), layers=3, units=64)
    states = states_of(layout)
    with folder() as root:
        write_repsim(root / "repsim", layout, states)
        write_icechunk(root / "icechunk", layout, states)
        openers = {"repsim": (open_repsim, "repsim"), "xarray on repsim's": (open_plain, "repsim")}
        openers["icechunk"] = (open_icechunk, "icechunk")
        for name, (opener, where) in openers.items():
            path = root / where
            expected = opener(path).load()
            groups: dict[str, list[Path]] = {}
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    inner = file.relative_to(path)
                    kind = "metadata" if file.name == "zarr.json" else "chunks"
                    groups.setdefault(inner.parts[0] if where == "icechunk" else kind, []).append(
                        file
                    )
            if where == "icechunk":
                newest = next(iter(repository(path).ancestry(branch="main"))).id
                groups["the newest snapshot"] = [path / "snapshots" / newest]
            for kind, files in groups.items():
                flips: Counter[str] = Counter()
                lost: Counter[str] = Counter()
                for _ in range(FLIPS):
                    file = rng.choice(files)
                    data = file.read_bytes()
                    bit = rng.randrange(8 * len(data))
                    flipped = bytearray(data)
                    flipped[bit // 8] ^= 1 << bit % 8
                    file.write_bytes(flipped)
                    flips[read_all(opener, path, expected)] += 1
                    file.unlink()
                    lost[read_all(opener, path, expected)] += 1
                    file.write_bytes(data)
                print(f"{name}, {kind}: flipped {dict(flips)}, missing {dict(lost)}")


PARTS = {
    "write": measure_writing,
    "kill": measure_kill,
    "second": measure_second_writer,
    "race": measure_race,
    "grow": measure_growth,
    "reader": measure_reader,
    "flips": measure_flips,
}


def main(words: list[str]) -> None:
    """Runs the parts that are named, or is a child process of one of them."""
    icechunk.set_logs_filter("error")
    warnings.simplefilter("ignore")  # of zarr, about damaged stores
    if words[:1] == ["die"]:
        layout = layout_of()
        writer = write_repsim if words[1] == "repsim" else write_icechunk
        writer(Path(words[2]), layout, states_of(layout), die_in=KILLED_AT)
    elif words[:1] == ["racer"]:
        race(Path(words[1]), int(words[2]))
    else:
        print(f"icechunk {icechunk.__version__}, zarr {zarr.__version__}, {os.cpu_count()} cores")
        for name in words or PARTS:
            print(f"\n{name}")
            PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
