"""Where a store lives: a folder, or a URL (`s3://`, `gs://`, `az://`, `memory://`). Keys and bytes, not their meaning.

Every write is whole or absent: a folder's by renaming a finished file, a bucket's by its own promise. What describes a
store (metadata, plans, tokens) also survives a power cut: it is on the disk before it takes the place of what was
there. The states themselves are not waited for; their checksums tell what a power cut took.
"""

from __future__ import annotations

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr.abc.store
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, ObjectStore

from repsim.schema import RepsimError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Bucketlike

UNSYNCED = ("hidden/c/", "logprob/c/", "statistics/", "done/", "analyses/")
PARTIAL = ".partial"  # what zarr calls a file that it has not finished
SOME = 20
_memory: dict[str, Any] = {}


class Place(ABC):
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
        """Puts bytes at a key; False, and nothing done, where there are some. Of two at once only one succeeds."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes a key, if it is there."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Every key and how many bytes it holds."""

    @abstractmethod
    def some_keys(self) -> set[str]:
        """A few of the keys, all where there are few."""

    @abstractmethod
    def remove(self) -> None:
        """Deletes everything."""

    @abstractmethod
    def begin(self) -> None:
        """Makes it ready for a writer, without what a dead one left half-written."""

    @property
    @abstractmethod
    def free_bytes(self) -> int | None:
        """What fits; None where there is no telling."""


def place_of(where: str | Path | Place) -> Place:
    """The place of this name.

    Raises:
        RepsimError: a URL of a kind that is not known.
    """
    if isinstance(where, Place):
        return where
    text = str(where)
    if not text.strip():
        raise RepsimError("an empty path: name a folder or a URL")
    if text.startswith("file://"):
        return Folder(text.removeprefix("file://"))
    return Bucket(text) if "://" in text else Folder(text)


class Folder(Place):
    """A folder on a disk."""

    def __init__(self, text: str) -> None:
        super().__init__(str(Path(text)))
        self.path = Path(text)

    @property
    def zarr(self) -> LocalStore:
        return _SyncingStore(self.path)

    def read(self, key: str) -> bytes | None:
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def write(self, key: str, data: bytes) -> None:
        _put_synced(self.path / key, data)

    def create(self, key: str, data: bytes) -> bool:
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            partial.write_bytes(data)
            os.link(partial, path)  # unlike a rename it never replaces what is there
        except (FileExistsError, FileNotFoundError):  # the latter: whoever was faster has begun, and tidied up
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def delete(self, key: str) -> None:
        (self.path / key).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                if not name.endswith(PARTIAL):
                    file = Path(folder, name)
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

    def some_keys(self) -> set[str]:
        if self.path.exists() and not self.path.is_dir():
            return {self.path.name}
        files = (path for path in self.path.rglob("*") if path.is_file() and path.suffix != PARTIAL)
        return {path.relative_to(self.path).as_posix() for path in islice(files, SOME)}

    def remove(self) -> None:
        if self.path.exists():
            gone = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}{PARTIAL}")
            self.path.rename(gone)  # at once, lest half a store stays if this is cut short
            shutil.rmtree(gone, ignore_errors=True)

    def begin(self) -> None:
        for partial in self.path.rglob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(
            next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        ).free


class Bucket(Place):
    """A prefix in an object store, by obstore; credentials come from the environment (`AWS_ACCESS_KEY_ID`, ...)."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip("/"))
        _ = self._bucket  # so that a wrong URL is refused here

    @cached_property
    def _bucket(self) -> Bucketlike:
        from obstore.store import MemoryStore, from_url

        if self.text.startswith("memory://"):
            return _memory.setdefault(self.text, MemoryStore())
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        try:
            return from_url(self.text, client_options={"allow_http": True} if plain else None)
        except Exception as problem:
            raise RepsimError(
                f"{self.text}: {one_line(problem)}; a store is a folder or an s3://, gs:// or az:// URL"
            ) from None

    @property
    def zarr(self) -> ObjectStore[Any]:
        return ObjectStore(self._bucket)

    def read(self, key: str) -> bytes | None:
        try:
            return bytes(self._bucket.get(key).bytes())
        except FileNotFoundError:
            return None

    def write(self, key: str, data: bytes) -> None:
        self._bucket.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        try:
            self._bucket.put(key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._bucket.delete(key)

    def sizes(self) -> dict[str, int]:
        return {entry["path"]: entry["size"] for page in self._bucket.list() for entry in page}

    def some_keys(self) -> set[str]:
        return {entry["path"] for entry in next(iter(self._bucket.list(chunk_size=SOME)), [])}

    def remove(self) -> None:
        if keys := list(self.sizes()):
            self._bucket.delete(keys)

    def begin(self) -> None:
        """Nothing to do: what was half sent is not there."""

    @property
    def free_bytes(self) -> None:
        return None


class _SyncingStore(LocalStore):
    """Zarr's folder store; all but the bulk of a capture is on the disk before it counts."""

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        if exclusive or (key.startswith(UNSYNCED) and not key.endswith("zarr.json")):
            await super()._set(key, value, exclusive)
            return
        self._check_writable()
        await to_thread(_put_synced, self.root / key, value.to_bytes())

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Without what a writer has under way, of which zarr would warn."""
        async for key in super().list_dir(prefix):
            if not key.endswith(PARTIAL):
                yield key


def _put_synced(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def one_line_errors(
    place: Place, doing: str = "cannot be written", advice: str = "choose another --out"
) -> Iterator[None]:
    """What the operating system or the network refuses, in one line."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (OSError, BaseError) as problem:
        raise RepsimError(f"{place}: {doing}: {one_line(problem)}; {advice}") from None


def one_line(problem: BaseException) -> str:
    """What went wrong, without the pages that some libraries add."""
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return " ".join(str(problem).partition("\n\n")[0].split())[:200]
