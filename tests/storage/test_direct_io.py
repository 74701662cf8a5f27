"""Chunks written past zarr: the bytes that zarr would write, whole or not at all."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from repsim.storage import direct_io
from repsim.storage.direct_io import ChunkFiles
from repsim.storage.local_folder import LocalFolder

OLD = b"as it was"


def values_of(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def by_zarr(path: Path, values: np.ndarray) -> bytes:
    """What zarr writes for an array that is one chunk."""
    array = zarr.create_array(
        path,
        shape=values.shape,
        chunks=values.shape,
        dtype=values.dtype,
        compressors=(Crc32cCodec(),),
    )
    array[...] = values
    return Path(path, "c", *["0"] * values.ndim).read_bytes()


def chunk_files(folder: Path) -> ChunkFiles:
    return ChunkFiles(LocalFolder(str(folder)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hidden" / "c" / "3" / "0"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(64, 32), (128, 96), (1024, 576), (64, 33), (7, 4), (1, 1)])
def test_files_are_those_of_zarr(
    path: Path, tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    values = values_of(shape, dtype)
    chunk_files(tmp_path).put([(path, values)])
    assert path.read_bytes() == by_zarr(tmp_path / "z", values)


def test_many_sizes_side_by_side(tmp_path: Path) -> None:
    """Each thread's buffer serves chunks smaller and larger than itself; what is there already is
    replaced.
    """
    arrays = {tmp_path / str(i): values_of((1 + 7 * i % 32, 1024)) + i for i in range(32)}
    (tmp_path / "3").write_bytes(OLD * 100_000)
    chunk_files(tmp_path).put(list(arrays.items()))
    for path, values in arrays.items():
        assert path.read_bytes()[:-4] == values.tobytes()
    assert len(list(tmp_path.iterdir())) == len(arrays)


def test_a_piece_of_a_larger_array(path: Path, tmp_path: Path) -> None:
    values = values_of((256, 32))
    chunk_files(tmp_path).put([(path, values[64:128])])
    assert path.read_bytes()[:-4] == values[64:128].tobytes()


def test_a_file_system_that_does_not_write_directly_is_asked_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Any] = []

    def refuse(*args: Any) -> None:
        attempts.append(args)
        raise OSError(errno.EINVAL, "Invalid argument")

    values, files = values_of((64, 32)), chunk_files(tmp_path)
    expected = by_zarr(tmp_path / "z", values)
    monkeypatch.setattr(os, "open", refuse)
    for name in ("0", "1", "2"):
        files.put([(path.with_name(name), values)])
        assert path.with_name(name).read_bytes() == expected
    assert len(attempts) == bool(direct_io.DIRECT)
    assert len(list(path.parent.iterdir())) == 3


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 8192:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:4096])  # a part fits

    files = chunk_files(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(OLD)
    monkeypatch.setattr(files, "_direct", True)
    monkeypatch.setattr(direct_io, "DIRECT", 0)  # lest the file system under the test refuses it
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        files.put([(path, values_of((64, 32)))])
    monkeypatch.undo()
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [(path.name, OLD)]


@pytest.mark.parametrize("units", [32, 33])
def test_what_the_system_refuses_leaves_the_old_file_and_nothing_else(
    path: Path, units: int, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk; a multiple of 4096 goes one way, the
    rest the other.
    """
    path.parent.mkdir(parents=True)
    path.write_bytes(OLD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            chunk_files(tmp_path).put([(path, values_of((64, units)))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [(path.name, OLD)]


@pytest.mark.parametrize("shape", [(128, 96), (64, 33)])
def test_reads_what_it_wrote(path: Path, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = values_of(shape)
    files = chunk_files(tmp_path)
    files.put([(path, values)])
    read = np.empty(values.nbytes, np.uint8)
    files.get([(path, read)])
    assert read.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "harm", ["flip", "flip the checksum", "cut", "cut into the checksum", "grow"]
)
def test_reading_refuses_what_was_not_written(path: Path, harm: str, tmp_path: Path) -> None:
    values = values_of((128, 96))
    chunk_files(tmp_path).put([(path, values)])
    data = path.read_bytes()
    harmed = {
        "flip": bytes([data[0] ^ 1]) + data[1:],
        "flip the checksum": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:100],
        "cut into the checksum": data[:-1],
        "grow": data + b"x",
    }
    path.write_bytes(harmed[harm])
    with pytest.raises(ValueError, match="not the bytes that were written"):
        chunk_files(tmp_path).get([(path, np.empty(values.nbytes, np.uint8))])
