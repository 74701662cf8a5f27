"""What a place is that stores live in: keys and bytes, not their meaning.

There are folders (`repsim.storage.local_folder`) and URLs (`repsim.storage.bucket`); which one a
name means says `repsim.storage.place_names`.

Every write is whole or absent: a folder's by renaming a finished file, a bucket's by its own
promise. A writer that was taken for dead, and wakes, can change nothing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import zarr.abc.store

from repsim.errors import StoreError, StoreLocked

PARTIAL = ".partial"  # what zarr calls a file that it has not finished
# An unfinished file or a desk, and no file of a user's.
OURS = re.compile(r"(^|\.)[0-9a-f]{32}\.partial$")
SOME = 20  # keys that `Location.sample_keys` gives at most
GONE = "moved or removed while it was written"


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


class TakenOver(StoreLocked):
    """Another writer has the store, or it is not where it was; nothing more is written."""

    def __init__(self, place: Location, found: object | None = None) -> None:
        super().__init__(f"{place}: {found or 'taken over by another writer'}; this one stops")


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
