"""Folders and buckets: one contract, whole writes, errors in one line."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import obstore.exceptions
import pytest
import zarr

from repsim.errors import RepsimError
from repsim.storage.bucket import Bucket
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import PARTIAL, SOME, Location, TakenOver, one_line_errors
from repsim.storage.place_names import location_of
from support.stores import folder_of


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    location = location_of(
        tmp_path / "a b" / "s.zarr" if request.param == "folder" else "memory://test-places"
    )
    yield location
    location.remove()


# One contract


def test_what_is_written_is_read_and_replaced(place: Location) -> None:
    for data in (b"first", b"", b"\0\xff" * 5000):
        place.write("deep/in/key", data)
        assert place.read("deep/in/key") == data
    assert place.read("deep/in/other") is None
    assert place.read("deep/in/key/below") is None
    assert place.read("deep/in") is None


def test_only_the_first_creates(place: Location) -> None:
    assert place.create("done/lock", b"first")
    assert not place.create("done/lock", b"second")
    assert place.read("done/lock") == b"first"
    place.delete("done/lock")
    assert place.create("done/lock", b"third")
    assert place.sizes() == {"done/lock": 5}


def test_of_many_at_once_one_creates(place: Location) -> None:
    with ThreadPoolExecutor(8) as pool:
        for key in map(str, range(20)):
            names = [str(number).encode() for number in range(8)]
            created = list(pool.map(lambda name, key=key: place.create(key, name), names))
            assert sum(created) == 1
            assert place.read(key) == names[created.index(True)]
    assert len(place.sizes()) == 20


def test_what_is_deleted_is_gone(place: Location) -> None:
    place.write("a/b", b"1")
    place.write("a/c", b"2")
    place.delete("a/b")
    place.delete("a/b")  # twice does no harm
    assert place.sizes() == {"a/c": 1}


def test_sizes_name_every_key(place: Location) -> None:
    assert place.sizes() == {}
    expected = {f"a/{number}/c": number for number in range(120)}
    for key, size in expected.items():
        place.write(key, b"x" * size)
    assert place.sizes() == expected


def test_some_keys_are_all_where_there_are_few(place: Location) -> None:
    assert place.sample_keys() == set()
    for count in range(3 * SOME):
        place.write(f"key/{count}", b"")
        if count < SOME:
            assert place.sample_keys() == {f"key/{number}" for number in range(count + 1)}
    assert place.sample_keys() <= place.sizes().keys()
    assert place.sample_keys()


def test_nothing_is_left_after_removing(place: Location) -> None:
    place.remove()  # there is nothing yet
    place.write("a/b", b"1")
    place.write("zarr.json", b"2")
    place.remove()
    assert (place.sizes(), place.sample_keys(), place.read("a/b")) == ({}, set(), None)
    place.write("a/b", b"3")


def test_zarr_sees_the_same_keys(place: Location) -> None:
    array = zarr.create_array(place.zarr, name="hidden", shape=(4,), chunks=(2,), dtype="float32")
    array[:] = np.arange(4)
    assert place.sizes().keys() >= {"hidden/zarr.json", "hidden/c/0", "hidden/c/1"}
    reopened = zarr.open_array(location_of(place.text).zarr, path="hidden", mode="r")
    assert np.asarray(reopened[:]).tolist() == [0, 1, 2, 3]
    place.delete("hidden/c/0")
    assert np.asarray(array[:]).tolist() == [0, 0, 2, 3]


def test_taking_over_keeps_what_is_finished(place: Location) -> None:
    first, second = "1" * 32, "2" * 32
    place.enter(first)
    place.take_over()
    place.write("hidden/c/0", b"1")
    other = location_of(place.text)
    other.enter(second)
    other.take_over()
    assert other.read("hidden/c/0") == b"1"
    other.leave()
    place.leave()
    assert other.sizes() == {"hidden/c/0": 1}


@pytest.mark.parametrize(
    "act", ["write", "delete", "create", "renew", "exchange", "remove", "take_over"]
)
def test_who_was_taken_over_changes_nothing(tmp_path: Path, act: str) -> None:
    """Whatever a writer does after another has entered and taken over, files of the other stay as
    they are.
    """
    first, second = location_of(tmp_path / "s.zarr"), location_of(tmp_path / "s.zarr")
    first.enter("1" * 32)
    first.take_over()
    first.write("hidden/c/0", b"old")
    second.enter("2" * 32)
    second.take_over()
    second.write("hidden/c/0", b"new")
    arguments = {
        "write": (b"x",),
        "create": (b"x",),
        "renew": (b"new", b"x"),
        "exchange": (b"new", b"x"),
    }
    key = {"remove": (), "take_over": (), "create": ("hidden/c/1",)}.get(act, ("hidden/c/0",))
    if act in ("renew", "exchange"):
        with suppress(TakenOver):
            assert not getattr(first, act)(*key, *arguments[act])
    else:
        with pytest.raises(TakenOver, match=r"taken over by another writer; this one stops"):
            getattr(first, act)(*key, *arguments.get(act, ()))
    assert second.sizes() == {"hidden/c/0": 3}
    assert second.read("hidden/c/0") == b"new"
    second.write("hidden/c/0", b"newer")
    assert second.read("hidden/c/0") == b"newer"


@pytest.mark.parametrize("there", [False, True])
def test_an_empty_folder_stays_where_it_was_there_before(tmp_path: Path, there: bool) -> None:
    place = folder_of(tmp_path / "s.zarr")
    if there:
        place.path.mkdir()
    place.enter("1" * 32)
    place.leave()
    assert place.path.exists() == there


def test_a_store_that_is_moved_under_its_writer(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "s.zarr")
    place.enter("1" * 32)
    place.take_over()
    place.path.rename(tmp_path / "t.zarr")
    with pytest.raises(RepsimError, match="moved or removed while it was written; this one stops"):
        place.write("hidden/c/0", b"x")
    assert not place.path.exists()


def test_an_object_that_another_has_replaced_is_not_overwritten() -> None:
    """In a bucket: what was read, or found missing, is put only where it is still that."""
    first, second = Bucket("memory://versions"), Bucket("memory://versions")
    first.take_over()
    array = zarr.create_array(first.zarr, name="done", shape=(4,), chunks=(2,), dtype="int8")
    array[:2] = 1
    array[2:3] = 1  # reads, changes, writes
    zarr.open_array(second.zarr, path="done")[:] = 2
    for part in (slice(1, 2), slice(3, 4)):
        with pytest.raises(TakenOver):
            array[part] = 3
    assert np.asarray(zarr.open_array(second.zarr, path="done")[:]).tolist() == [2, 2, 2, 2]
    second.remove()


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.txt").write_text("mine")
    place = folder_of(tmp_path / "s.zarr")
    place.path.mkdir()
    (place.path / "analyses").symlink_to(elsewhere)
    for act in (place.write, place.create):
        with pytest.raises(RepsimError, match=r"s\.zarr: analyses is a link to another folder"):
            act("analyses/own.txt", b"theirs")
    place.remove()
    assert (elsewhere / "own.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_paths: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(RepsimError, match=r"no hard links.*; choose another --out"):
        location_of(tmp_path).create("done/lock", b"x")
    assert [path.name for path in tmp_path.rglob("*")] == ["done"]


# What belongs to one kind


def test_names_of_places(tmp_path: Path) -> None:
    assert isinstance(location_of(tmp_path), LocalFolder)
    folder = location_of(f"file://{tmp_path}")
    assert isinstance(folder, LocalFolder)
    assert folder.path == tmp_path
    assert str(location_of("a/./b.zarr/")) == "a/b.zarr"
    bucket = location_of("memory://names/")
    assert isinstance(bucket, Bucket)
    assert str(bucket) == "memory://names"
    assert location_of(bucket) is bucket


def test_room_on_a_disk_is_known_before_the_folder_is_made(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = folder_of(tmp_path / "not" / "yet").free_bytes
    assert abs(free - disk.f_bavail * disk.f_frsize) < 1e9  # others write meanwhile
    assert location_of("memory://room").free_bytes is None


def test_half_written_files_do_not_count_and_are_cleaned(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "s.zarr")
    place.write("hidden/c/0", b"whole")
    (place.path / f"own{PARTIAL}").write_bytes(b"a user's")
    desk = place.path / "done" / f"{'4' * 32}{PARTIAL}"
    desk.mkdir(parents=True)
    (desk / "1").write_bytes(b"ha")
    assert place.sizes() == {"hidden/c/0": 5, f"own{PARTIAL}": 8}
    place.enter("5" * 32)
    place.take_over()
    place.leave()
    assert {file.name for file in place.path.rglob("*") if file.is_file()} == {"0", f"own{PARTIAL}"}


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = location_of(tmp_path)
    place.write("zarr.json", b"old")

    def fail(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        place.write("zarr.json", b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        ("zarr.json", b"old")
    ]


def test_what_describes_a_store_is_on_the_disk_before_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def tell_of_sync(file: int) -> None:
        happened.append("sync")
        fsync(file)

    def tell_of_replacing(path: Path, to: Path) -> Path:
        happened.append(Path(to).name)
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", tell_of_sync)
    monkeypatch.setattr(Path, "replace", tell_of_replacing)
    group = zarr.create_group(location_of(tmp_path).zarr)
    parent, hidden = (
        group.create_array(name, shape=(2,), dtype="float32") for name in ("parent", "hidden")
    )
    assert happened == ["sync", "zarr.json"] * 3
    parent[:] = 1
    assert happened[6:] == ["sync", "0"]
    hidden[:] = 1
    assert "sync" not in happened[8:]  # its checksums tell


# Bad input


@pytest.mark.parametrize("url", ["ftp://host/s.zarr", "nonsense://x", "s3:///", "://x"])
def test_unknown_urls_are_refused_in_one_line(url: str) -> None:
    with pytest.raises(
        RepsimError, match=r"; a store is a folder or an s3://, gs:// or az:// URL$"
    ) as caught:
        location_of(url)
    assert str(caught.value).startswith(url.rstrip("/"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (PermissionError(13, "Permission denied", "/secret"), "Permission denied"),
        (OSError("odd\nlines"), "odd lines"),
        (
            obstore.exceptions.GenericError("refused\n by server\n\nDebug source:\n lots"),
            "refused by server",
        ),
        (obstore.exceptions.BaseError("x" * 999), "x" * 200),
    ],
)
def test_errors_are_one_line(place: Location, problem: Exception, text: str) -> None:
    with pytest.raises(RepsimError) as caught, one_line_errors(place):
        raise problem
    assert str(caught.value) == f"{place}: cannot be written: {text}; choose another --out"
    with (
        pytest.raises(RepsimError, match=r"cannot be read: .*; try again$"),
        one_line_errors(place, "cannot be read", "try again"),
    ):
        raise problem


def test_other_errors_are_not_touched(place: Location) -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors(place):
        _ = 1 / 0
