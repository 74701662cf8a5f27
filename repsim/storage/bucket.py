"""A prefix in an object store that a store lives in, by obstore.

An object that a writer has read is replaced only if it is still the version that was read, so that
a writer that was taken for dead, and wakes, fails.
"""

from __future__ import annotations

import os
import time
from asyncio import to_thread
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import ObjectStore

from repsim.errors import StoreError
from repsim.storage.location import GONE, SOME, Location, TakenOver, one_line

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore as Bucketlike

# A request that is not answered in time is sent again for a minute; then the run ends, and can go
# on.
RETRY_SECONDS, REQUEST_SECONDS = 60, 30
_memory: dict[str, Any] = {}


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


def version_of(meta: Mapping[str, Any]) -> UpdateVersion:
    """What tells an object of a bucket from one put in its place."""
    found = {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
    return cast("UpdateVersion", found)


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
