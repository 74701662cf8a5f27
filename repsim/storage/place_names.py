"""Which place a name means: a folder, or a URL (`s3://`, `gs://`, `az://`, `memory://`)."""

from __future__ import annotations

from pathlib import Path

from repsim.errors import StoreError
from repsim.storage.bucket import Bucket
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import Location


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
