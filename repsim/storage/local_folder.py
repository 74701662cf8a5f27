"""A folder that a store lives in.

What describes a store (metadata, plans, tokens) also survives a power cut: it is on the disk before
it takes the place of what was there. The states themselves are not waited for; their checksums tell
what a power cut took.

Each writer makes its files on a desk of its own, `done/TOKEN.partial/`, and renames them into
place; what it deletes, it renames onto its desk. Whoever takes over removes the desk first, in one
rename, so that every later rename of the old writer fails.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from repsim.errors import StoreError
from repsim.storage.location import GONE, OURS, PARTIAL, SOME, Location, TakenOver

UNSYNCED = ("hidden/c/", "logprob/c/", "statistics/", "done/", "analyses/")
DESKS = "done"  # the array under which desks lie, where zarr does not look for members
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalFolder(Location):
    """A folder on a disk."""

    def __init__(self, text: str) -> None:
        super().__init__(str(Path(text)))
        self.path = Path(text)
        self._desk: Path | None = None
        self._made = False  # whether the folder was made here, and goes if nothing comes of it

    @property
    def zarr(self) -> LocalStore:
        return _FencedStore(self)

    def read(self, key: str) -> bytes | None:
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def write(self, key: str, data: bytes) -> None:
        self.put(key, data, sync=True)

    def put(self, key: str, data: bytes, sync: bool) -> None:
        """Puts bytes at a key; with `sync` they are on the disk before they take the place of what
        was there.
        """
        with self.partial(self.path / key) as partial, partial.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())

    @contextmanager
    def partial(self, path: Path) -> Iterator[Path]:
        """A file to be written, which is then renamed to `path`, if this writer has not been taken
        over.

        Raises:
            TakenOver: it has, or the store is gone.
            RepsimError: a link stands in the way, through which other folders would be written.
        """
        self.check_links(path)
        if self._desk is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        else:
            partial = self._desk / uuid.uuid4().hex
        try:
            with self._told_of_the_desk():
                yield partial
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def create(self, key: str, data: bytes) -> bool:
        path = self.path / key
        self.check_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = (self._desk or path.parent) / f"{uuid.uuid4().hex}{PARTIAL}"
        try:
            with self._told_of_the_desk():
                partial.write_bytes(data)
                os.link(partial, path)  # unlike a rename it never replaces what is there
        except FileExistsError:
            if path.is_dir():
                raise StoreError(
                    f"{self}: {key} is a folder, where a file should be; remove it"
                ) from None
            return False
        except OSError as problem:
            if problem.errno not in NO_LINKS:
                raise
            raise StoreError(
                f"{self}: its file system has no hard links, which keep two writers apart; "
                "choose another --out"
            ) from None
        finally:
            partial.unlink(missing_ok=True)
        return True

    def exchange(self, key: str, expected: bytes, data: bytes | None) -> bool:
        path, taken = self.path / key, (self._desk or self.path) / f"{uuid.uuid4().hex}{PARTIAL}"
        try:
            path.rename(taken)
        except FileNotFoundError:
            with self._told_of_the_desk():
                return False
        try:
            if taken.read_bytes() != expected:
                with suppress(FileExistsError):
                    os.link(taken, path)  # it is another's: back to where it was
                return False
            return data is None or self.create(key, data)
        finally:
            taken.unlink(missing_ok=True)

    def renew(self, key: str, expected: bytes, data: bytes) -> bool:
        try:
            self.write(key, data)
        except TakenOver:
            return False
        return True

    def delete(self, key: str) -> None:
        path = self.path / key
        if self._desk is None:
            path.unlink(missing_ok=True)
        elif os.path.lexists(path):
            self.check_links(path)
            self._to_desk(path)

    def enter(self, token: str) -> None:
        desk = self.path / DESKS / f"{token}{PARTIAL}"
        self.check_links(desk)
        self._made = self._made or not self.path.exists()
        desk.mkdir(parents=True, exist_ok=True)
        self._desk = desk

    def take_over(self) -> None:
        assert self._desk is not None
        with self._told_of_the_desk():
            self._desk.stat()
            for other in self._desk.parent.iterdir():
                if other != self._desk and OURS.search(other.name):
                    self._to_desk(other)

    def _to_desk(self, path: Path) -> None:
        """Deletes a file or folder by a rename that only the writer succeeds with."""
        assert self._desk is not None
        waste = self._desk / f"{uuid.uuid4().hex}{PARTIAL}"
        with suppress(FileNotFoundError):
            path.rename(waste)
        with self._told_of_the_desk():
            if waste.is_dir() and not waste.is_symlink():
                shutil.rmtree(waste, ignore_errors=True)
            else:
                waste.unlink(missing_ok=True)
            self._desk.stat()

    def leave(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            shutil.rmtree(desk, ignore_errors=True)
            with suppress(OSError):  # where nothing else is there
                desk.parent.rmdir()
                if self._made:
                    self.path.rmdir()

    @contextmanager
    def _told_of_the_desk(self) -> Iterator[None]:
        """Where a file is missing because the desk is, says so."""
        try:
            yield
        except FileNotFoundError:
            if self._desk is None or self._desk.is_dir():
                raise
            raise TakenOver(self, None if self.path.is_dir() else GONE) from None

    def check_links(self, path: Path) -> None:
        """Refuses a path below a link, through which a folder elsewhere would be written.

        Raises:
            RepsimError: a folder on the way is a link.
        """
        for parent in path.parents:
            if parent == self.path:
                return
            if parent.is_symlink():
                raise StoreError(
                    f"{self}: {parent.name} is a link to another folder, where repsim does not "
                    "write"
                )

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not OURS.search(name)]
            for name in names:
                if not OURS.search(name):
                    file = Path(folder, name)
                    with suppress(FileNotFoundError):  # replaced or deleted meanwhile
                        found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

    def sample_keys(self) -> set[str]:
        if self.path.exists() and not self.path.is_dir():
            return {self.path.name}
        files = (
            path for path in self.path.rglob("*") if path.is_file() and not self._is_partial(path)
        )
        return {path.relative_to(self.path).as_posix() for path in islice(files, SOME)}

    def _is_partial(self, path: Path) -> bool:
        return any(OURS.search(part) for part in path.relative_to(self.path).parts)

    def remove(self) -> None:
        if self._desk is None:
            if self.path.exists():
                gone = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}{PARTIAL}")
                self.path.rename(gone)  # at once, lest half a store stays if this is cut short
                shutil.rmtree(gone, ignore_errors=True)
            return
        self.delete("zarr.json")  # first: without it the rest is no store
        for path in self.path.iterdir():
            if path != self._desk.parent:
                self._to_desk(path)
        for path in self._desk.parent.iterdir():
            if path.name == "zarr.json" or (path.is_dir() and path != self._desk):
                self._to_desk(path)

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(
            next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        ).free


class _FencedStore(LocalStore):
    """Zarr's folder store; writes by way of the writer's desk, and all but the bulk of a capture
    waits for the disk.
    """

    def __init__(self, place: LocalFolder, *, read_only: bool = False) -> None:
        super().__init__(place.path, read_only=read_only)
        self._place = place

    def with_read_only(self, read_only: bool = False) -> _FencedStore:
        return _FencedStore(self._place, read_only=read_only)

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        self._check_writable()
        if exclusive and os.path.lexists(self.root / key):
            raise FileExistsError(key)
        sync = not key.startswith(UNSYNCED) or key.endswith("zarr.json")
        await to_thread(self._place.put, key, value.to_bytes(), sync)

    async def delete(self, key: str) -> None:
        self._check_writable()
        await to_thread(self._place.delete, key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Without what a writer has under way, of which zarr would warn."""
        async for key in super().list_dir(prefix):
            if not OURS.search(key):
                yield key
