"""Plain chunks against shards of states: writing, reading, and how many files there are.

Run by hand:

    .venv/bin/python benchmarks/shards.py [FOLDER] [NODES] [TOKENS]

States of float16 and 4,096 units, chunks of 256 tokens (2 MiB), shards of 32 chunks (64 MiB).
Chunks are written as a capture writes them on a GPU: several threads, each for nodes of its own.
Shards are written by zarr, and by a writer that puts a shard's bytes together itself, as repsim
would. Writing ends when the disk has everything; reading comes from the page cache, as in most
analyses.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from repsim.storage.direct_io import ChunkFiles
from repsim.storage.local_folder import LocalFolder

UNITS, CHUNK, CHUNKS_PER_SHARD = 4096, 256, 32
THREADS, ROUNDS = 8, 3
SHARD = CHUNK * CHUNKS_PER_SHARD


def create(folder: Path, nodes: int, tokens: int, *, shards: bool) -> Any:
    """An empty array of states."""
    shutil.rmtree(folder, ignore_errors=True)
    return zarr.create_array(
        folder,
        shape=(nodes, tokens, UNITS),
        chunks=(1, CHUNK, UNITS),
        shards=(1, SHARD, UNITS) if shards else None,
        dtype="float16",
        compressors=(Crc32cCodec(),),
        fill_value=np.nan,
        config={"write_empty_chunks": True},
    )


def write_chunks(folder: Path, node: int, first: int, states: NDArray[np.float16]) -> None:
    """A shard's states as plain chunks, past the page cache where the file system allows it."""
    files = ChunkFiles(LocalFolder(str(folder)), threads=1)
    pieces = np.split(states, CHUNKS_PER_SHARD)
    paths = [folder / f"c/{node}/{first // CHUNK + row}/0" for row in range(CHUNKS_PER_SHARD)]
    files.put(list(zip(paths, pieces, strict=True)))


def write_shard(folder: Path, node: int, first: int, states: NDArray[np.float16]) -> None:
    """The same in one file: chunks with their checksums, then where each begins, as the sharding
    codec has it.
    """
    place, path = LocalFolder(str(folder)), folder / f"c/{node}/{first // SHARD}/0"
    index, start = [], 0
    with place.partial(path) as partial, partial.open("wb", buffering=0) as file:
        for piece in np.split(states, CHUNKS_PER_SHARD):
            data = piece.reshape(-1).view(np.uint8).data
            size = file.write(data) + file.write(struct.pack("<I", crc32c.crc32c(data)))
            index += [start, size]
            start += size
        packed = struct.pack(f"<{len(index)}Q", *index)
        file.write(packed + struct.pack("<I", crc32c.crc32c(packed)))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(words: list[str]) -> None:
    parent = Path(words[0]) if words else Path(tempfile.gettempdir())
    nodes, tokens = (int(word) for word in words[1:3]) if len(words) > 2 else (8, 2 * SHARD)
    folder = Path(tempfile.mkdtemp(prefix="repsim-shards-", dir=parent))
    states = np.random.default_rng(0).standard_normal((SHARD, UNITS), np.float32).astype("float16")
    pieces = [(node, first) for node in range(nodes) for first in range(0, tokens, SHARD)]
    print(f"{nodes} nodes, {tokens:,} tokens, {nodes * tokens * UNITS * 2 / 1e9:.2f} GB")

    def through_zarr(array: Any, node: int, first: int) -> None:
        array[node, first : first + SHARD] = states

    ways: dict[str, tuple[bool, Callable[[Path, Any, int, int], None]]] = {
        "chunks, as captures": (False, lambda at, _, n, first: write_chunks(at, n, first, states)),
        "chunks, by zarr": (False, lambda _, array, n, first: through_zarr(array, n, first)),
        "shards, own": (True, lambda at, _, n, first: write_shard(at, n, first, states)),
        "shards, by zarr": (True, lambda _, array, n, first: through_zarr(array, n, first)),
    }
    try:
        for name, (is_sharded, write) in ways.items():
            times: dict[str, list[float]] = {"write": [], "state": [], "run": []}
            for _ in range(ROUNDS):
                array = create(folder / "a", nodes, tokens, shards=is_sharded)

                def write_all(write: Any = write, array: Any = array) -> None:
                    with ThreadPoolExecutor(THREADS) as pool:
                        list(pool.map(lambda at: write(folder / "a", array, *at), pieces))
                    os.sync()

                times["write"].append(seconds(write_all))
                assert np.array_equal(array[nodes - 1, SHARD - CHUNK : SHARD], states[-CHUNK:])
                for reading, key in (
                    ("state", (0, slice(None))),
                    ("run", (slice(None), slice(CHUNK, 2 * CHUNK))),
                ):
                    _ = array[key]
                    times[reading].append(seconds(lambda key=key, array=array: array[key]))  # type: ignore[misc]
            files = sum(path.is_file() for path in (folder / "a").rglob("*"))
            folders = sum(path.is_dir() for path in (folder / "a").rglob("*"))
            written, state, run = (float(np.median(values)) for values in times.values())
            rates = (
                nodes * tokens * UNITS * 2 / written / 1e6,
                tokens * UNITS * 2 / state / 1e6,
                nodes * CHUNK * UNITS * 2 / run / 1e6,
            )
            print(
                f"{name}: {rates[0]:,.0f} MB/s written, one state {rates[1]:,.0f} MB/s, a run of "
                f"{CHUNK} tokens {rates[2]:,.0f} MB/s; {files:,} files in {folders:,} folders",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
