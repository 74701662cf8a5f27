"""Folders and buckets: one contract, whole writes, errors in one line."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore.exceptions
import pytest
import zarr

from repsim.schema import RepsimError
from repsim.storage import location
from repsim.storage.location import PARTIAL, SOME, Bucket, Folder, Place, one_line_errors, place_of


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    made = place_of(tmp_path / "a b" / "s.zarr" if request.param == "folder" else "memory://test-places")
    yield made
    made.remove()


# One contract


def test_what_is_written_is_read_and_replaced(place):
    for data in (b"first", b"", b"\0\xff" * 5000):
        place.write("deep/in/key", data)
        assert place.read("deep/in/key") == data
    assert place.read("deep/in/other") is None
    assert place.read("deep/in/key/below") is None
    assert place.read("deep/in") is None


def test_only_the_first_creates(place):
    assert place.create("done/lock", b"first")
    assert not place.create("done/lock", b"second")
    assert place.read("done/lock") == b"first"
    place.delete("done/lock")
    assert place.create("done/lock", b"third")
    assert place.sizes() == {"done/lock": 5}


def test_of_many_at_once_one_creates(place):
    with ThreadPoolExecutor(8) as pool:
        for key in map(str, range(20)):
            names = [str(number).encode() for number in range(8)]
            made = list(pool.map(lambda name, key=key: place.create(key, name), names))
            assert sum(made) == 1
            assert place.read(key) == names[made.index(True)]
    assert len(place.sizes()) == 20


def test_what_is_deleted_is_gone(place):
    place.write("a/b", b"1")
    place.write("a/c", b"2")
    place.delete("a/b")
    place.delete("a/b")  # twice does no harm
    assert place.sizes() == {"a/c": 1}


def test_sizes_name_every_key(place):
    assert place.sizes() == {}
    expected = {f"a/{number}/c": number for number in range(120)}
    for key, size in expected.items():
        place.write(key, b"x" * size)
    assert place.sizes() == expected


def test_some_keys_are_all_where_there_are_few(place):
    assert place.some_keys() == set()
    for count in range(3 * SOME):
        place.write(f"key/{count}", b"")
        if count < SOME:
            assert place.some_keys() == {f"key/{number}" for number in range(count + 1)}
    assert place.some_keys() <= place.sizes().keys()
    assert place.some_keys()


def test_nothing_is_left_after_removing(place):
    place.remove()  # there is nothing yet
    place.write("a/b", b"1")
    place.write("zarr.json", b"2")
    place.remove()
    assert (place.sizes(), place.some_keys(), place.read("a/b")) == ({}, set(), None)
    place.write("a/b", b"3")


def test_zarr_sees_the_same_keys(place):
    array = zarr.create_array(place.zarr, name="hidden", shape=(4,), chunks=(2,), dtype="float32")
    array[:] = np.arange(4)
    assert place.sizes().keys() >= {"hidden/zarr.json", "hidden/c/0", "hidden/c/1"}
    assert zarr.open_array(place_of(place.text).zarr, path="hidden", mode="r")[:].tolist() == [0, 1, 2, 3]
    place.delete("hidden/c/0")
    assert array[:].tolist() == [0, 0, 2, 3]


def test_beginning_keeps_what_is_finished(place):
    place.begin()
    place.write("hidden/c/0", b"1")
    place.begin()
    assert place.sizes() == {"hidden/c/0": 1}


# What is each one's own


def test_names_of_places(tmp_path):
    assert isinstance(place_of(tmp_path), Folder)
    assert place_of(f"file://{tmp_path}").path == tmp_path
    assert str(place_of("a/./b.zarr/")) == "a/b.zarr"
    bucket = place_of("memory://names/")
    assert isinstance(bucket, Bucket)
    assert str(bucket) == "memory://names"
    assert place_of(bucket) is bucket


def test_room_on_a_disk_is_known_before_the_folder_is_made(tmp_path):
    disk = os.statvfs(tmp_path)
    free = place_of(tmp_path / "not" / "yet").free_bytes
    assert abs(free - disk.f_bavail * disk.f_frsize) < 1e9  # others write meanwhile
    assert place_of("memory://room").free_bytes is None


def test_half_written_files_do_not_count_and_are_cleaned(tmp_path):
    place = place_of(tmp_path / "s.zarr")
    place.write("hidden/c/0", b"whole")
    (place.path / "hidden" / "c" / f"1.4711{PARTIAL}").write_bytes(b"ha")
    assert place.sizes() == {"hidden/c/0": 5}
    assert place.some_keys() == {"hidden/c/0"}
    place.begin()
    assert [file.name for file in place.path.rglob("*") if file.is_file()] == ["0"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    place = place_of(tmp_path)
    place.write("zarr.json", b"old")

    def fail(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(location.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        place.write("zarr.json", b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("zarr.json", b"old")]


def test_what_describes_a_store_is_on_the_disk_before_it_replaces(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(location.os, "fsync", lambda file: (happened.append("sync"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (happened.append(Path(to).name), replace(path, to)))
    group = zarr.create_group(place_of(tmp_path).zarr)
    parent, hidden = (group.create_array(name, shape=(2,), dtype="float32") for name in ("parent", "hidden"))
    assert happened == ["sync", "zarr.json"] * 3
    parent[:] = 1
    assert happened[6:] == ["sync", "0"]
    hidden[:] = 1
    assert "sync" not in happened[8:]  # its checksums tell


# Bad input


@pytest.mark.parametrize("url", ["ftp://host/s.zarr", "nonsense://x", "s3:///", "://x"])
def test_unknown_urls_are_refused_in_one_line(url):
    with pytest.raises(RepsimError, match=r"; a store is a folder or an s3://, gs:// or az:// URL$") as caught:
        place_of(url)
    assert str(caught.value).startswith(url.rstrip("/"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (PermissionError(13, "Permission denied", "/secret"), "Permission denied"),
        (OSError("odd\nlines"), "odd lines"),
        (obstore.exceptions.GenericError("refused\n by server\n\nDebug source:\n lots"), "refused by server"),
        (obstore.exceptions.BaseError("x" * 999), "x" * 200),
    ],
)
def test_errors_are_one_line(place: Place, problem, text):
    with pytest.raises(RepsimError) as caught, one_line_errors(place):
        raise problem
    assert str(caught.value) == f"{place}: cannot be written: {text}; choose another --out"
    with (
        pytest.raises(RepsimError, match=r"cannot be read: .*; try again$"),
        one_line_errors(place, "cannot be read", "try again"),
    ):
        raise problem


def test_other_errors_are_not_touched(place):
    with pytest.raises(ZeroDivisionError), one_line_errors(place):
        _ = 1 / 0
