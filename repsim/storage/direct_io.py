"""Whole chunks of states to a local disk, past the page cache, and back: byte for byte as zarr
would write them.

A capture writes much and reads nothing back, so a cache of what it wrote is of no use and costs a
copy and fresh memory for every byte: more than all else that capture does beside the model's own
work (benchmarks/RESULTS.md). Where the file system does not write directly, the page cache is used
after all. Analyses read the same chunks again and again, so they read through it.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
from numpy.typing import NDArray

from repsim.storage.local_folder import LocalFolder

DIRECT = getattr(os, "O_DIRECT", 0)
ALIGNMENT = 4096
CHECKSUM = 4  # bytes of a crc32c
THREADS = 4


class ChunkFiles:
    """Writes and reads uncompressed chunks with a crc32c at their end, several at a time.

    threads: how many share the chunks of a call; with one, it is the caller's own, and several
        callers may call at the same time.
    """

    def __init__(self, place: LocalFolder, threads: int = THREADS) -> None:
        self.place, self._threads = place, threads
        self._pool = ThreadPoolExecutor(threads, "repsim-chunks") if threads > 1 else None
        self._own = threading.local()
        self._direct = bool(DIRECT)

    def _share(
        self, do: Callable[[Path, NDArray[Any]], None], chunks: Sequence[tuple[Path, NDArray[Any]]]
    ) -> None:
        """Each thread does its share of the chunks: a task a chunk would cost the other threads
        time.
        """

        def work(first: int) -> None:
            for path, values in chunks[first :: self._threads]:
                do(path, values)

        if self._pool is None:
            work(0)
        else:
            list(self._pool.map(work, range(self._threads)))

    def put(self, chunks: Sequence[tuple[Path, NDArray[Any]]]) -> None:
        """Writes each array, C-contiguous and little-endian, to its path; each file is whole or as
        it was before.

        Raises:
            OSError: what the file system refuses.
        """
        self._share(self._put, chunks)

    def _put(self, path: Path, values: NDArray[Any]) -> None:
        data = values.reshape(-1).view(np.uint8)
        checksum = crc32c.crc32c(data.data).to_bytes(CHECKSUM, "little")
        with self.place.partial(path) as partial:
            self._write(partial, data, checksum)

    def _write(self, path: Path, data: NDArray[np.uint8], checksum: bytes) -> None:
        if self._direct and data.nbytes % ALIGNMENT == 0:
            try:
                self._write_direct(path, data)
            except OSError as problem:
                if problem.errno != errno.EINVAL:
                    raise
                self._direct = False  # not on this file system
            else:
                with path.open("ab") as file:
                    file.write(checksum)
                return
        with path.open("wb") as file:
            file.write(data.data)
            file.write(checksum)

    def _write_direct(self, path: Path, data: NDArray[np.uint8]) -> None:
        aligned = self._aligned(data.nbytes)
        np.copyto(aligned, data)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | DIRECT, 0o666)
        try:
            written = 0
            while written < data.nbytes:
                written += os.write(file, aligned[written:].data)
        finally:
            os.close(file)

    def _aligned(self, size: int) -> NDArray[np.uint8]:
        """This thread's buffer, at the start of a page."""
        buffer = getattr(self._own, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._own.buffer = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        return buffer[:size]

    def get(self, chunks: Sequence[tuple[Path, NDArray[np.uint8]]]) -> None:
        """Reads each path into its bytes, and compares them with their checksum.

        Args:
            chunks: where each chunk lies, and contiguous memory of its size.
        Raises:
            OSError: what the file system refuses.
            ValueError: a chunk's size or checksum is not what it should be.
        """
        self._share(self._get, chunks)

    def _get(self, path: Path, data: NDArray[np.uint8]) -> None:
        tail = bytearray(CHECKSUM + 1)
        file = os.open(path, os.O_RDONLY)
        try:
            read = os.readv(file, [data.data, tail])
        finally:
            os.close(file)
        checksum = crc32c.crc32c(data.data).to_bytes(CHECKSUM, "little")
        if read != data.nbytes + CHECKSUM or tail[:CHECKSUM] != checksum:
            raise ValueError(f"{path.name}: not the bytes that were written")
