"""Where a store lives: a folder, or a URL (`s3://`, `gs://`, `az://`, `memory://`). Keys and bytes,
not their meaning.

Every write is whole or absent: a folder's by renaming a finished file, a bucket's by its own
promise. What describes a store (metadata, plans, tokens) also survives a power cut: it is on the
disk before it takes the place of what was there. The states themselves are not waited for; their
checksums tell what a power cut took.

A writer that was taken for dead, and wakes, can change nothing. In a folder each writer makes its
files on a desk of its own, `done/TOKEN.partial/`, and renames them into place; what it deletes, it
renames onto its desk. Whoever takes over removes the desk first, in one rename, so that every later
rename of the old writer fails. In a bucket, an object that was read is replaced only if it is still
the version that was read.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import zarr.abc.store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore, ObjectStore

from repsim.errors import StoreError, StoreLocked

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore as Bucketlike

UNSYNCED = ("hidden/c/", "logprob/c/", "statistics/", "done/", "analyses/")
PARTIAL = ".partial"  # what zarr calls a file that it has not finished
# An unfinished file or a desk, and no file of a user's.
OURS = re.compile(r"(^|\.)[0-9a-f]{32}\.partial$")
DESKS = "done"  # the array under which desks lie, where zarr does not look for members
SOME = 20
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# A request to a bucket that is not answered in time is sent again for a minute; then the run ends,
# and can go on.
RETRY_SECONDS, REQUEST_SECONDS = 60, 30
GONE = "moved or removed while it was written"
_memory: dict[str, Any] = {}


class Location(ABC):
    """A folder or URL by the name its user gave it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    @property
    @abstractmethod
    def zarr(self) -> zarr.abc.store.Store:
        """As zarr reads and writes it."""

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """The bytes at a key, None where there are none."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Puts bytes at a key, whatever was there."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Puts bytes at a key; False, and nothing done, where there are some. Of two at once only
        one succeeds.
        """

    @abstractmethod
    def exchange(self, key: str, expected: bytes, data: bytes | None) -> bool:
        """Replaces these bytes at a key by others, or by none; False, and nothing done, where other
        bytes are there.

        Of two at once only one succeeds.
        """

    @abstractmethod
    def renew(self, key: str, expected: bytes, data: bytes) -> bool:
        """As `exchange`, by the one writer that may still write; at no moment is there nothing."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes a key, if it is there."""

    @abstractmethod
    def enter(self, token: str) -> None:
        """Makes ready to write as the writer of this token; `take_over` comes before the first
        write but the lock's.
        """

    @abstractmethod
    def take_over(self) -> None:
        """From here on no earlier writer can change anything.

        Raises:
            TakenOver: another one has been faster.
        """

    @abstractmethod
    def leave(self) -> None:
        """Ends what `enter` began."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Every key and how many bytes it holds."""

    @abstractmethod
    def sample_keys(self) -> set[str]:
        """A few of the keys, all where there are few."""

    @abstractmethod
    def remove(self) -> None:
        """Deletes everything; a writer's lock goes when it leaves."""

    @property
    @abstractmethod
    def free_bytes(self) -> int | None:
        """What fits; None where there is no telling."""


def location_of(where: str | Path | Location) -> Location:
    """The place of this name.

    Raises:
        RepsimError: a URL of a kind that is not known.
    """
    if isinstance(where, Location):
        return where
    text = str(where)
    if not text.strip():
        raise StoreError("an empty path: name a folder or a URL")
    if text.startswith("file://"):
        return LocalFolder(text.removeprefix("file://"))
    return Bucket(text) if "://" in text else LocalFolder(text)


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


class Bucket(Location):
    """A prefix in an object store, by obstore; credentials come from the environment
    (`AWS_ACCESS_KEY_ID`, ...).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip("/"))
        # Of what a writer has read or written; None of no object.
        self.versions: dict[str, Any] | None = None
        _ = self._bucket  # so that a wrong URL is refused here

    @cached_property
    def _bucket(self) -> Bucketlike:
        from obstore.store import MemoryStore, from_url

        if self.text.startswith("memory://"):
            return _memory.setdefault(self.text, MemoryStore())
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        try:
            return from_url(
                self.text,
                client_options={"timeout": timedelta(seconds=REQUEST_SECONDS), "allow_http": plain},
                retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )
        except Exception as problem:
            raise StoreError(
                f"{self.text}: {one_line(problem)}; a store is a folder or an s3://, gs:// or "
                "az:// URL"
            ) from None

    @property
    def zarr(self) -> ObjectStore[Any]:
        return _VersionedStore(self, self._bucket)

    def read(self, key: str) -> bytes | None:
        try:
            return bytes(self._bucket.get(key).bytes())
        except FileNotFoundError:
            return None

    def read_for_writing(self, key: str) -> bytes | None:
        """The bytes at a key, which a writer will replace only while they are these.

        Raises:
            TakenOver: they are not those that it read, or wrote, last.
        """
        try:
            there = self._bucket.get(key)
            data, version = bytes(there.bytes()), version_of(there.meta)
        except FileNotFoundError:
            data, version = None, None
        if self.versions is not None and self.versions.setdefault(key, version) != version:
            raise TakenOver(self, GONE if version is None else None)
        return data

    def write(self, key: str, data: bytes) -> None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        if self.versions is None:
            self._bucket.put(key, data)
            return
        mode: Any = "overwrite" if key not in self.versions else self.versions[key] or "create"
        try:
            put = self._put(key, data, mode)
        except (AlreadyExistsError, PreconditionError):
            present = self.read(key)
            if present != data:  # else our own, sent again after a lost answer
                raise TakenOver(self, GONE if present is None else None) from None
            put = self._bucket.head(key)
        except FileNotFoundError:
            raise TakenOver(self, GONE) from None
        self.versions[key] = version_of(put)

    def _put(self, key: str, data: bytes, mode: Any) -> Any:
        """Puts bytes if nothing else is there; again for a while, as obstore does not where they
        may have arrived.
        """
        from obstore.exceptions import GenericError

        end = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return self._bucket.put(key, data, mode=mode)
            except GenericError:
                if time.monotonic() > end:
                    raise

    def create(self, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        try:
            self._put(key, data, "create")
        except AlreadyExistsError:
            return self.exchange(key, b"", data)  # what was exchanged for nothing
        return True

    def exchange(self, key: str, expected: bytes, data: bytes | None) -> bool:
        from obstore.exceptions import PreconditionError

        try:
            there = self._bucket.get(key)
            version = version_of(there.meta)
            if bytes(there.bytes()) != expected:
                return False
            # To delete only if it is the same, buckets do not offer.
            self._put(key, data or b"", version)
        except (FileNotFoundError, PreconditionError):
            return False
        return True

    def renew(self, key: str, expected: bytes, data: bytes) -> bool:
        return self.exchange(key, expected, data)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._bucket.delete(key)
        if self.versions is not None:
            self.versions[key] = None

    def enter(self, token: str) -> None:
        """Nothing to do before the lock is held."""

    def take_over(self) -> None:
        self.versions = {}

    def leave(self) -> None:
        self.versions = None

    def sizes(self) -> dict[str, int]:
        return {entry["path"]: entry["size"] for page in self._bucket.list() for entry in page}

    def sample_keys(self) -> set[str]:
        return {entry["path"] for entry in next(iter(self._bucket.list(chunk_size=SOME)), [])}

    def remove(self) -> None:
        # First: without it the rest is no store.
        if keys := sorted(self.sizes(), key="zarr.json".__ne__):
            self._bucket.delete(keys)

    @property
    def free_bytes(self) -> None:
        return None


class TakenOver(StoreLocked):
    """Another writer has the store, or it is not where it was; nothing more is written."""

    def __init__(self, place: Location, found: object | None = None) -> None:
        super().__init__(f"{place}: {found or 'taken over by another writer'}; this one stops")


def version_of(meta: Mapping[str, Any]) -> UpdateVersion:
    """What tells an object of a bucket from one put in its place."""
    found = {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
    return cast("UpdateVersion", found)


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


class _VersionedStore(ObjectStore[Any]):
    """Zarr's object store; a writer replaces an object only if it is still the one that it read, or
    wrote, last.
    """

    def __init__(self, place: Bucket, bucket: Any, *, read_only: bool = False) -> None:
        super().__init__(bucket, read_only=read_only)
        self._place = place

    def with_read_only(self, read_only: bool = False) -> _VersionedStore:
        return _VersionedStore(self._place, self.store, read_only=read_only)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        prototype = prototype or default_buffer_prototype()
        if self._place.versions is None or byte_range is not None:
            return await super().get(key, prototype, byte_range)
        data = await to_thread(self._place.read_for_writing, key)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await to_thread(self._place.write, key, value.to_bytes())


@contextmanager
def one_line_errors(
    place: Location, doing: str = "cannot be written", advice: str = "choose another --out"
) -> Iterator[None]:
    """What the operating system or the network refuses, in one line."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (OSError, BaseError) as problem:
        raise StoreError(f"{place}: {doing}: {one_line(problem)}; {advice}") from None


def one_line(problem: BaseException) -> str:
    """What went wrong, without the pages that some libraries add."""
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return " ".join(str(problem).partition("\n\n")[0].split())[:200]
