"""Results of analyses, kept with the store they are of: a group each, whole or not there.

A result is made beside the place where it belongs, and then takes it in one step. Its group's
attributes hold digests of all its objects, so that a result that was damaged, or half copied, is
told from a whole one.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import xarray as xr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import OURS, PARTIAL, Location, one_line_errors
from repsim.storage.metadata import RESULTS, ROOT

DIGESTS = "repsim_digests"  # attribute of a result's group
ADVICE = "copy the store to where you may write"
STALE_SECONDS = 3600  # after which what an analysis left half made is removed
EXCHANGE = 2  # of renameat2: the two paths change places
AT_WORKING_FOLDER = -100


def write_result(place: Location, name: str, result: xr.Dataset) -> None:
    """Keeps an analysis's result with the store; a result of the same name is replaced once the new
    one is whole.

    Raises:
        RepsimError: the store cannot be written to.
    """
    objects = _objects_of(result)
    root = json.loads(objects[ROOT])
    del objects[ROOT]
    root["attributes"][DIGESTS] = {
        key: object_digest(key, value) for key, value in sorted(objects.items())
    }
    root["attributes"][DIGESTS][ROOT] = object_digest(ROOT, json.dumps(root).encode())
    data = json.dumps(root, indent=2).encode()
    with one_line_errors(place, advice=ADVICE):
        if isinstance(place, LocalFolder):
            _swap_in(place, name, {**objects, ROOT: data})
            return
        # In a bucket nothing can be swapped: a result that is cut short here does not have the
        # digests of its objects.
        prefix = f"{RESULTS}/{name}/"
        for key, value in objects.items():
            place.write(prefix + key, value)
        place.write(prefix + ROOT, data)
        for key in place.sizes():
            if key.startswith(prefix) and key.removeprefix(prefix) not in (*objects, ROOT):
                place.delete(key)


def _objects_of(result: xr.Dataset) -> dict[str, bytes]:
    """The objects that zarr makes of a dataset, by their keys."""
    made: dict[str, Buffer] = {}
    codecs = {"compressors": (ZstdCodec(level=1), Crc32cCodec())}
    result.to_zarr(
        MemoryStore(made),
        mode="w",
        zarr_format=3,
        consolidated=False,
        write_empty_chunks=True,
        encoding={name: codecs for name in result.variables},
    )
    return {key: value.to_bytes() for key, value in made.items()}


def _swap_in(place: LocalFolder, name: str, objects: Mapping[str, bytes]) -> None:
    target = place.path / RESULTS / name
    place.check_links(target / ROOT)
    made = target.with_name(f"{uuid.uuid4().hex}{PARTIAL}")
    try:
        for key, data in objects.items():
            path = made / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if target.exists():
            _exchange(made, target)
        else:
            made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)  # by now the one that was replaced, if any
    for other in target.parent.iterdir():
        if OURS.search(other.name) and time.time() - other.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def _exchange(made: Path, target: Path) -> None:
    """Two folders change places: in one step where the system offers that, else in two."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "renameat2"):
        paths = (AT_WORKING_FOLDER, os.fsencode(made), AT_WORKING_FOLDER, os.fsencode(target))
        if not libc.renameat2(*paths, EXCHANGE):
            return
    old = target.with_name(f"{uuid.uuid4().hex}{PARTIAL}")
    target.rename(old)
    made.rename(target)
    old.rename(made)


def result_digests(place: Location, name: str) -> dict[str, str] | None:
    """Key → digest of a result's objects, as its group has them; None where it is no result of
    repsim's.

    Of a group that was cut short, or damaged where its digests stood, there are none.
    """
    try:
        attributes = json.loads(place.read(f"{RESULTS}/{name}/{ROOT}") or b"")["attributes"]
        digests = attributes.get(DIGESTS)
        if digests is None:
            return {} if "analysis" in attributes else None
        return dict(digests)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def object_digest(key: str, data: bytes) -> str:
    """16 hexadecimal digits of one of a result's objects; of its group's metadata without this very
    digest.
    """
    if key == ROOT:
        root = json.loads(data)
        root["attributes"][DIGESTS].pop(ROOT, None)
        data = json.dumps(root, sort_keys=True).encode()
    return sha256(data).hexdigest()[:16]
