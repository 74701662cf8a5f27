"""Damage to a store: found wherever it is, named, and mended by writing what it touched."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import repsim
from repsim.errors import RepsimError, StoreDamaged
from repsim.storage import frame, state_store
from repsim.storage.frame import write_frame
from repsim.storage.group import StoreGroup
from repsim.storage.integrity import (
    Damage,
    VerificationReport,
    check,
    invalidate,
    is_metadata,
    restore,
)
from repsim.storage.local_folder import LocalFolder
from repsim.storage.metadata import digest_of_array, digest_of_root
from repsim.storage.place_names import location_of
from repsim.storage.results import write_result
from support.stores import (
    LENGTHS,
    MORE_LENGTHS,
    MORE_PLANS,
    PLANS,
    SUMS,
    begin,
    bytes_in,
    dataset_of,
    folder_of,
    layout_of,
    read_bytes,
    write,
)

KINDS: dict[str, dict[str, Any]] = {
    "states": {"logprobs": True},
    "compressed": {"logprobs": True, "compression": "small"},
    "statistics": {"logprobs": True, "keep": False, "statistics": (SUMS,)},
}
RESULT = xr.Dataset(
    {"value": ("state", np.arange(3.0))},
    {"layer": ("state", np.array(["embed", "0", "1"], object))},
    {"analysis": "own"},
)
FRAME = {
    "path",
    "plan",
    "plan_name",
    "plan_digest",
    "parent",
    "step_text",
    "token_id",
    "position",
} | {*("sample", "sample_key", "length", "block")}
FLAGS = {"done", "predicted"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "CHUNK_BYTES", 0)
    monkeypatch.setattr(state_store, "STATISTIC_BYTES", 0)
    monkeypatch.setattr(frame, "CHUNKS", dict.fromkeys(frame.CHUNKS, 3))
    monkeypatch.setattr(state_store, "DONE_CHUNKS", (2, 2))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture
def place(tmp_path: Path) -> LocalFolder:
    return folder_of(tmp_path / "s.zarr")


@pytest.fixture
def full(place: LocalFolder, kind: dict[str, Any]) -> LocalFolder:
    """A finished store that holds every kind of array."""
    write(place, layout_of(units=16, **kind))
    write_result(place, "own", RESULT)
    return place


def chunk_files(place: LocalFolder) -> dict[str, list[str]]:
    """Array → keys of its chunks."""
    keys: dict[str, list[str]] = defaultdict(list)
    for key in sorted(place.sizes()):
        if not key.endswith("zarr.json"):
            keys[key.partition("/c/")[0]].append(key)
    return keys


def named(report: VerificationReport) -> list[str]:
    """The keys that the damages name, as their text says them."""
    return sorted(str(damage).rpartition("(")[2].removesuffix(")") for damage in report.damages)


# Values worked out by hand


def test_damage_is_named_for_the_eye(place: LocalFolder) -> None:
    write(place, layout_of(logprobs=True))
    place.write("hidden/c/3/1/0", b"")
    place.delete("logprob/c/4/2")
    damages = check(place).damages
    assert damages == (
        Damage("hidden", (3, 1, 0), "node 3, token 64 to 127", False),
        Damage("logprob", (4, 2), "node 4, token 128 to 146", True),
    )
    assert str(damages[0]) == "damaged: hidden node 3, token 64 to 127 (hidden/c/3/1/0)"
    assert str(damages[1]) == "missing: logprob node 4, token 128 to 146 (logprob/c/4/2)"


# What is there


def test_a_whole_store_is_whole(full: LocalFolder) -> None:
    files = [key for keys in chunk_files(full).values() for key in keys]
    sizes = full.sizes()
    # Results have digests of their own.
    files = [key for key in files if not key.startswith("analyses/")]
    assert check(full) == VerificationReport(len(files), sum(sizes[key] for key in files), ())


def test_every_flipped_byte_is_found(full: LocalFolder) -> None:
    """50 flips, at least one in every array; ten at once, so that a wrong accusation shows as
    well.
    """
    chance, arrays, kept = random.Random(0), chunk_files(full), bytes_in(full)
    assert arrays.keys() >= FRAME | {"done", "logprob", "analyses/own/value", "analyses/own/layer"}
    assert ("hidden" in arrays) != ("statistics/own.sum" in arrays)
    everything = [key for keys in arrays.values() for key in keys]
    chosen = [chance.choice(keys) for keys in arrays.values()]
    chosen += chance.choices(everything, k=50 - len(chosen))
    for first in range(0, 50, 10):
        flipped = sorted(set(chosen[first : first + 10]))
        for key in flipped:
            data = bytearray(kept[key])
            data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
            full.write(key, bytes(data))
        assert named(check(full)) == flipped
        for key in flipped:
            full.write(key, kept[key])
    assert not check(full).damages


def test_every_missing_chunk_is_found(full: LocalFolder) -> None:
    for keys in chunk_files(full).values():
        key = keys[-1]
        data = read_bytes(full, key)
        full.delete(key)
        report = check(full)
        assert named(report) == [key]
        assert report.damages[0].missing
        full.write(key, data)


@pytest.mark.parametrize("left", [0, 1, 3, 4, -1])
def test_a_file_cut_short_is_found(full: LocalFolder, left: int) -> None:
    # What says which of the others have to be there.
    flags = ("path/c/0/0", "done/c/0/0", "predicted/c/0/0")
    cut = sorted(keys[0] for keys in chunk_files(full).values() if keys[0] not in flags)
    for key in cut:
        full.write(key, read_bytes(full, key)[:left])
    assert named(check(full)) == cut


def test_what_is_not_finished_is_not_missing(place: LocalFolder, kind: dict[str, Any]) -> None:
    layout = layout_of(units=16, **kind)
    begin(place, layout)
    assert not check(place).damages
    write(place, layout, blocks=[1])
    assert not check(place).damages
    larger = layout_of(MORE_LENGTHS, PLANS, units=16, **kind)
    begin(place, larger)
    assert not check(place).damages


def test_what_an_extension_cut_short_has_added_is_not_missing(
    place: LocalFolder, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, larger = (
        layout_of(units=16, **kind),
        layout_of(MORE_LENGTHS, MORE_PLANS, units=16, **kind),
    )
    write(place, layout)
    with monkeypatch.context() as patch:
        patch.setattr(state_store.Layout, "attributes", lambda _layout: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_frame(place, zarr.open_group(place.zarr, mode="r+"), larger)
        place.delete("done/c/4/1")  # and it had not come this far
    assert dataset_of(place).sizes["sample"] == len(LENGTHS)
    assert not check(place).damages
    victim = next(
        key for key in place.sizes() if key.startswith(("hidden/c", "statistics/own.sum/c"))
    )
    place.write(victim, b"")
    invalidate(place, check(place).damages)
    begin(place, layout)
    assert dataset_of(place)["done"].values.sum() < layout.wanted.sum() * 3


# Round trip


@pytest.mark.parametrize("array", ["hidden", "logprob", "statistics/own.sum", "done"])
def test_what_is_written_again_is_the_same_to_the_byte(
    full: LocalFolder, kind: dict[str, Any], array: str
) -> None:
    arrays, kept = chunk_files(full), bytes_in(full)
    if array not in arrays:
        pytest.skip("not in this kind of store")
    chance = random.Random(1)
    for number, key in enumerate(sorted(chance.sample(arrays[array], 3))):
        if number:
            full.write(key, kept[key][:-1] + bytes([kept[key][-1] ^ 1]))
        else:
            full.delete(key)
    invalidate(full, check(full).damages)
    assert not check(full).damages
    layout = layout_of(units=16, **kind)
    flags = "predicted" if array == "logprob" and layout.keep else "done"
    done = dataset_of(full)[flags].values[list(layout.trie.ends)]
    assert done.any()  # no more than need be
    assert not done.all()
    write(full, layout)
    assert bytes_in(full) == kept


def test_only_the_blocks_that_a_damaged_chunk_holds_are_forgotten(place: LocalFolder) -> None:
    write(place, layout_of())  # tokens 0 to 89, 90 to 139, 140 to 146
    place.write("hidden/c/3/1/0", b"")  # tokens 64 to 127
    invalidate(place, check(place).damages)
    done = dataset_of(place)["done"].values
    assert done[3].tolist() == [False, False, True]
    assert np.delete(done, 3, 0).all()
    assert place.read("hidden/c/3/1/0") is None


@pytest.mark.parametrize("beside", [set(), {"done", "logprob"}])
def test_what_describes_the_store_is_restored_to_the_byte(
    full: LocalFolder, kind: dict[str, Any], beside: set[str]
) -> None:
    layout, kept = layout_of(units=16, **kind), bytes_in(full)
    for array in FRAME | beside:
        full.delete(chunk_files(full)[array][0])
    full.write("path/c/0/0", b"")
    damages = check(full).damages
    assert {damage.array for damage in damages if is_metadata(damage)} == FRAME
    restore(full, layout, damages)
    invalidate(full, check(full).damages)
    assert not check(full).damages
    write(full, layout)
    assert bytes_in(full) == kept


@pytest.mark.parametrize(
    "other",
    [
        layout_of(MORE_LENGTHS, units=16),
        layout_of(plans=MORE_PLANS[1:], units=16),
        layout_of((90, 49, 8), units=16),
    ],
)
def test_what_describes_another_store_does_not_restore(
    place: LocalFolder, other: state_store.Layout
) -> None:
    write(place, layout_of(units=16))
    place.write("position/c/1", b"")
    before = bytes_in(place)
    with pytest.raises(
        RepsimError, match="position damaged, and this is not the command that made the store"
    ):
        restore(place, other, check(place).damages)
    assert bytes_in(place) == before


def test_a_damaged_result_is_removed_whole_and_no_other(place: LocalFolder) -> None:
    write(place, layout_of())
    before = bytes_in(place)
    write_result(place, "own", RESULT)
    beside = bytes_in(place)
    write_result(place, "own-too", RESULT)
    place.delete("analyses/own-too/value/c/0")
    invalidate(place, check(place).damages)
    assert bytes_in(place) == beside
    assert before.items() <= beside.items()


# Bad input


def test_damage_to_what_describes_the_store_is_not_forgotten(full: LocalFolder) -> None:
    for array in FRAME:
        key = chunk_files(full)[array][0]
        data = read_bytes(full, key)
        full.write(key, b"")
        damages = check(full).damages
        before = bytes_in(full)
        with pytest.raises(
            RepsimError, match=rf"s\.zarr: damaged: {array} .*; capture again, to another --out$"
        ):
            invalidate(full, damages)
        assert bytes_in(full) == before
        full.write(key, data)


def test_what_is_no_store_is_not_checked(place: LocalFolder) -> None:
    with pytest.raises(RepsimError, match="no such store; make one with"):
        check(place)
    assert not place.path.exists()


@pytest.mark.parametrize("name", ["hidden", "parent"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_lost_metadata_is_named_and_mended(
    tiny_folder: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    keywords: dict[str, Any] = {
        "model": str(tiny_folder),
        "limit": 2,
        "max_tokens": 5,
        "out": tmp_path / "c.zarr",
    }
    repsim.capture(**keywords)
    file = tmp_path / "c.zarr" / name / "zarr.json"
    file.unlink() if content is None else file.write_text(content)
    damages = [str(damage) for damage in repsim.verify(tmp_path / "c.zarr").damages]
    assert (
        f"{'missing' if content is None else 'damaged'}: {name} metadata ({name}/zarr.json)"
        in damages
    )
    kept = bytes_in(location_of(tmp_path / "c.zarr"))
    with pytest.raises(
        RepsimError, match=rf"damaged \({name}/zarr.json\); repsim verify names it, and the command"
    ):
        repsim.capture(**keywords)
    assert bytes_in(location_of(tmp_path / "c.zarr")) == kept
    repsim.capture(**keywords, repair=True)
    assert not repsim.verify(tmp_path / "c.zarr").damages
    mended = repsim.open(tmp_path / "c.zarr")
    assert isinstance(mended, repsim.Capture)
    assert np.isfinite(mended.hidden().values).all()


# Metadata


def test_every_flipped_bit_of_metadata_is_noticed(full: LocalFolder) -> None:
    """By whoever opens the store, or by name; but for attributes of others, which count for
    nothing.
    """
    chance = random.Random(2)
    for key in chance.choices(
        sorted(key for key in full.sizes() if key.endswith("zarr.json")), k=15
    ):
        kept = read_bytes(full, key)
        data = bytearray(kept)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        full.write(key, bytes(data))
        try:
            assert named(check(full)) == [key], (key, bytes(data))
        except RepsimError:
            assert key == "zarr.json"
        full.write(key, kept)
    assert not check(full).damages


@pytest.mark.parametrize("sizes", [[4_000_000_000_000], [0], [-1], ["8"], None])
def test_absurd_sizes_are_refused_before_anything_is_allocated(
    place: LocalFolder, sizes: list[Any] | None
) -> None:
    write(place, layout_of())
    key = "block/zarr.json"
    described = json.loads(read_bytes(place, key))
    described["chunk_grid"]["configuration"]["chunk_shape"] = sizes
    place.write(key, json.dumps(described).encode())
    attributes = json.loads(read_bytes(place, "zarr.json"))
    # By somebody who knows how.
    attributes["attributes"]["arrays"]["block"] = [digest_of_array(described)]
    attributes["attributes"]["digest"] = digest_of_root(attributes["attributes"])
    place.write("zarr.json", json.dumps(attributes).encode())
    with pytest.raises(StoreDamaged, match=r"block/zarr\.json declares what repsim does not write"):
        StoreGroup.open(place)
    assert named(check(place)) == [key]


def test_what_others_have_added_is_named_and_left_alone(place: LocalFolder) -> None:
    write(place, layout_of())
    group = zarr.open_group(place.path, mode="r+")
    group.attrs["mine"] = 1
    group.create_array("own", shape=(3,), dtype="float32")[:] = 1
    zarr.open_array(place.path / "hidden", mode="r+").attrs["note"] = "looked at"
    report = check(place)
    assert not report.damages
    assert report.foreign == ("own", "attribute mine")
    begin(place, layout_of(MORE_LENGTHS, MORE_PLANS))
    assert zarr.open_group(place.path, mode="r").attrs["mine"] == 1
    added = zarr.open_array(place.path / "own", mode="r")
    assert np.asarray(added[:]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", sorted(FRAME | FLAGS))
def test_a_lost_chunk_is_an_error_and_no_fill_value(place: LocalFolder, name: str) -> None:
    write(place, layout_of(logprobs=True))
    place.delete(next(key for key in place.sizes() if key.startswith(f"{name}/c/")))
    with pytest.raises(
        StoreDamaged, match=rf"{name}/c/[\d/]+ is missing\); repsim verify names it"
    ):
        dataset_of(place).load()


@pytest.mark.parametrize("name", ["hidden", "logprob"])
def test_what_is_not_finite_in_what_is_finished_is_damage(place: LocalFolder, name: str) -> None:
    layout = layout_of(logprobs=True)
    write(place, layout)
    array = zarr.open_array(place.path / name, mode="r+")
    node = layout.trie.ends[0]
    array[node, 70] = np.nan
    assert named(check(place)) == [f"{name}/c/{node}/1" + "/0" * (name == "hidden")]
    array[node, 70] = 0.5
    array[node, LENGTHS[0] - 1] = np.nan  # a sample's last token
    assert [damage.array for damage in check(place).damages] == ["hidden"] * (name == "hidden")


def test_what_is_not_finite_may_have_been_allowed(place: LocalFolder) -> None:
    write(place, layout_of(nonfinite=True))
    zarr.open_array(place.path / "hidden", mode="r+")[3, 70] = np.inf
    assert not check(place).damages
