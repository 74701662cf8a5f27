"""What vouches for a store: digests of its metadata, and how arrays grow without ever disagreeing.

The metadata of the arrays is vouched for by digests in the root's attributes, and these by a digest
of their own. While a store grows, its arrays change one after the other; the root lists the digests
of all their stages first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import zarr

from repsim.errors import StoreDamaged, StoreError
from repsim.schema import SCHEMA_VERSION, UNCHECKED_SCHEMAS, Kind, ReplayVerdict
from repsim.storage.location import Location, one_line, one_line_errors
from repsim.storage.lock import KEY as LOCK_KEY

SCHEMA_ATTRIBUTE = "repsim_schema"
RESULTS = "analyses"
REPLAY = "replay"  # attribute: how far the replay was proven to be the model
BATCH_LIMIT = "batch_limit"  # attribute: positions of a batch, once memory has run out
ROOT = "zarr.json"
CHECK_ADDRESS = "check the address and the rights"
OWN_ATTRIBUTES = {  # of the root; what others add is theirs
    *(
        SCHEMA_ATTRIBUTE,
        "kind",
        "layers",
        "units",
        "identity",
        "dtype",
        "keep",
        "statistics",
        "compression",
    ),
    *(
        "requests",
        "batches",
        "extent",
        "paper_cache",
        "replay",
        "batch_limit",
        "coordinates",
        "arrays",
        "nonfinite",
        "digest",
    ),
}
OWN_ARRAY_ATTRIBUTES = {"units", "long_name"}
VERIFY = "repsim verify names it, and the command that computes it again"
GROWING = "_growing"  # ends the names of dimensions that are changing their size
Document = dict[str, Any]


def damage(place: Location, what: str) -> StoreDamaged:
    """The error that says which part of a store is damaged, and what to do."""
    return StoreDamaged(f"{place}: damaged ({what}); {VERIFY}")


def digest_of_array(document: Mapping[str, Any]) -> str:
    """What vouches for an array's metadata: 16 hexadecimal digits; attributes that others have
    added do not count.
    """
    own = {
        name: value
        for name, value in document.get("attributes", {}).items()
        if name in OWN_ARRAY_ATTRIBUTES
    }
    return _digest({**document, "attributes": own})


def digest_of_root(attributes: Mapping[str, Any]) -> str:
    """What vouches for the root's own attributes: 16 hexadecimal digits."""
    return _digest(
        {name: attributes[name] for name in OWN_ATTRIBUTES - {"digest"} if name in attributes}
    )


def _digest(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def put_attributes(group: zarr.Group, changes: Mapping[str, Any]) -> None:
    """Changes the root's attributes in one write, and vouches for them."""
    attributes = {**group.attrs.asdict(), **changes}
    group.attrs.put({**attributes, "digest": digest_of_root(attributes)})


def is_growing(attributes: Mapping[str, Any]) -> bool:
    """Whether arrays may be of another size than the extent, as a growth that was cut short leaves
    them.
    """
    return any(len(digests) > 1 for digests in attributes.get("arrays", {}).values())


def array_digests(place: Location, names: Iterable[str]) -> dict[str, list[str]]:
    """Name → digests of an array's metadata as it is, one each."""
    return {
        name: [digest_of_array(read_document(place, f"{name}/{ROOT}"))] for name in sorted(names)
    }


def grow(place: Location, group: zarr.Group, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Makes arrays larger, or smaller, so that at no moment two of them disagree on the size of a
    dimension.

    Each array gets its new size along dimensions of another name first, and then the names back:
    whoever opens the group in between, with whatever tool, finds dimensions that agree.

    Args:
        place: the store's.
        group: its root, for writing.
        sizes: array's name → dimension → size.
    """
    stages: dict[str, list[Document]] = {}
    for name, wanted in sizes.items():
        document = read_document(place, f"{name}/{ROOT}")
        dims = [dim.removesuffix(GROWING) for dim in document["dimension_names"]]
        shape = [wanted.get(dim, size) for dim, size in zip(dims, document["shape"], strict=True)]
        grown = {**document, "shape": shape, "dimension_names": dims}
        if grown != document:
            renamed = [dim + GROWING if dim in wanted else dim for dim in dims]
            stages[name] = [document, {**grown, "dimension_names": renamed}, grown]
    if not stages:
        return
    attributes: Document = group.attrs.asdict()
    vouched = attributes.get("arrays", {})
    stated = {
        name: sorted({*vouched.get(name, ()), *map(digest_of_array, row)})
        for name, row in stages.items()
    }
    put_attributes(group, {"arrays": {**vouched, **stated}})
    for stage in (1, 2):
        for name, row in stages.items():
            place.write(f"{name}/{ROOT}", json.dumps(row[stage], indent=2).encode())


def read_attributes(place: Location) -> Document:
    """The attributes of a store's root, unchecked.

    Raises:
        RepsimError: nothing is there, or it is no store of repsim's, not begun, or of a schema it
            does not read.
    """
    data = place.read(ROOT)
    if data is None:
        if place.sample_keys() - {LOCK_KEY}:
            raise StoreError(
                f"{place}: not a repsim capture (no zarr.json in it); choose another place"
            )
        raise StoreError(f"{place}: no such store; make one with repsim capture --out {place}")
    try:
        document = json.loads(data)
        if document["node_type"] == "array":
            raise ValueError("an array")
        attributes = document["attributes"] if document["zarr_format"] == 3 else None
    except (ValueError, KeyError, TypeError) as problem:
        raise StoreError(f"{place}: not a repsim capture: {one_line(problem)}") from None
    if not isinstance(attributes, dict) or SCHEMA_ATTRIBUTE not in attributes:
        raise StoreError(
            f"{place}: a zarr group, but not a repsim capture (no attribute {SCHEMA_ATTRIBUTE!r})"
        )
    schema = attributes[SCHEMA_ATTRIBUTE]
    if schema not in (SCHEMA_VERSION, *UNCHECKED_SCHEMAS):
        raise StoreError(
            f"{place}: schema {schema}, this repsim reads {SCHEMA_VERSION}; "
            "capture again, or read it with the repsim that wrote it"
        )
    if "extent" not in attributes:
        raise StoreError(f"{place}: not begun, or being made this moment; run its capture (again)")
    return attributes


def read_document(place: Location, key: str) -> Document:
    try:
        document = json.loads(place.read(key) or b"")
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise damage(place, key)
    return document


def kind_in(attributes: Mapping[str, Any]) -> Kind:
    """What a store holds, by its root's attributes; a capture where they do not say (old ones)."""
    return Kind.SCORES if attributes.get("kind") == Kind.SCORES else Kind.CAPTURE


def verdict_in(attributes: Mapping[str, Any]) -> ReplayVerdict:
    """What a store's attributes say of the replay; nothing was proven where they do not say."""
    kept = attributes.get(REPLAY, {"error": 0.0, "kinds": ()})
    return ReplayVerdict(kept["error"], tuple(kept["kinds"]))


def exists(place: Location) -> bool:
    """Whether a store is there; one that was stopped while it was made is not.

    Raises:
        RepsimError: something else is there.
    """
    with one_line_errors(place, "cannot be read", CHECK_ADDRESS):
        data = place.read(ROOT)
        if data is None and not place.sample_keys() - {LOCK_KEY}:
            return False
        try:
            is_started = json.loads(data or b"")["attributes"] == {SCHEMA_ATTRIBUTE: SCHEMA_VERSION}
        except (ValueError, KeyError, TypeError):
            is_started = False
        if is_started:
            return False
        read_attributes(place)
    return True


def check_current(place: Location, attributes: Mapping[str, Any]) -> None:
    """Refuses to change a store of an older schema.

    Raises:
        StoreError: it is of a schema that is only read.
    """
    schema = attributes[SCHEMA_ATTRIBUTE]
    if schema != SCHEMA_VERSION:
        raise StoreError(
            f"{place}: made with schema {schema}, which this repsim reads and does not change; "
            "choose another --out, or go on with the repsim that made it"
        )
