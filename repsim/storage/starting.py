"""How a store begins and is given up: is one there, may one be made, was anything finished?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import zarr

from repsim.errors import Interrupted, RepsimError, StoreError
from repsim.schema import SCHEMA_VERSION
from repsim.storage.group import StoreGroup
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import Location
from repsim.storage.lock import KEY as LOCK_KEY
from repsim.storage.lock import WriterLock
from repsim.storage.metadata import ROOT, SCHEMA_ATTRIBUTE, check_current, exists, read_attributes


def open_or_create(place: Location) -> zarr.Group:
    """The store's group for writing; where there is none, a new one in place of a start that was
    cut short.

    Raises:
        RepsimError: it is of a schema that is only read.
    """
    if exists(place):
        check_current(place, read_attributes(place))
        return zarr.open_group(place.zarr, mode="r+", zarr_format=3)
    # The root comes last: without it, what is left would not be known as repsim's.
    for key in sorted(place.sizes(), key=ROOT.__eq__):
        if key != LOCK_KEY:
            place.delete(key)
    return zarr.create_group(
        place.zarr, attributes={SCHEMA_ATTRIBUTE: SCHEMA_VERSION}, zarr_format=3
    )


def check_target(place: Location) -> None:
    """Refuses a place that cannot hold a store, before a model is loaded.

    A store that is there may lie on a read-only disk: it may be complete already.

    Raises:
        StoreError: something else is there, or nothing can be written there.
    """
    if exists(place) or not isinstance(place, LocalFolder):
        return
    path = place.path.absolute()
    ancestor = next(parent for parent in (path, *path.parents) if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise StoreError(
            f"{place}: {ancestor} is no folder that can be written to; choose another --out"
        )


@contextmanager
def remove_unstarted_store(place: Location, lock: WriterLock) -> Iterator[None]:
    """Removes a store that was begun in this context and in which nothing could be finished."""
    is_new = not exists(place)
    try:
        yield
    except Interrupted:
        raise
    except RepsimError:
        # What went wrong first is what the user reads, also where the place is broken.
        with suppress(Exception):
            group = StoreGroup.find(place)
            is_empty = group is None or not group.dataset()["done"].any()
            if is_new and lock.held and is_empty:
                place.remove()
        raise
