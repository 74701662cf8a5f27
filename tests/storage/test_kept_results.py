"""Results of analyses in a store: whole or not there, and never at the cost of an older one."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repsim.errors import RepsimError
from repsim.storage.integrity import check
from repsim.storage.location import Location
from repsim.storage.place_names import location_of
from repsim.storage.results import write_result
from support.stores import bytes_in, folder_of, layout_of, write

OLD, NEW = (
    xr.Dataset({"value": ("x", np.arange(size))}, attrs={"analysis": "own"}) for size in (3.0, 5.0)
)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    location = location_of(
        tmp_path / "s.zarr" if request.param == "folder" else "memory://test-results"
    )
    write(location, layout_of())
    yield location
    location.remove()


def kept(place: Location) -> xr.Dataset:
    return xr.open_zarr(place.zarr, group="analyses/own", consolidated=False).load().drop_attrs()


def test_a_result_replaces_another(place: Location) -> None:
    for result in (OLD, NEW):
        write_result(place, "own", result)
        xr.testing.assert_identical(kept(place), result.drop_attrs())
        assert not check(place).damages


@pytest.mark.parametrize("way", ["in one step", "in two"])
def test_a_result_that_is_cut_short_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    place = folder_of(tmp_path / "s.zarr")
    write(place, layout_of())
    write_result(place, "own", OLD)
    before = bytes_in(place)
    if way == "in two":
        monkeypatch.delattr(ctypes, "CDLL")
        monkeypatch.setattr(ctypes, "CDLL", lambda _name: object(), raising=False)
    with monkeypatch.context() as patch:
        write_bytes, count = Path.write_bytes, iter(range(100))
        patch.setattr(
            Path,
            "write_bytes",
            lambda path, data: 1 / 0 if next(count) == 1 else write_bytes(path, data),
        )
        with pytest.raises(ZeroDivisionError):
            write_result(place, "own", NEW)
    assert bytes_in(place) == before
    assert [path.name for path in (place.path / "analyses").iterdir() if path.is_dir()] == ["own"]
    write_result(place, "own", NEW)
    xr.testing.assert_identical(kept(place), NEW.drop_attrs())


def test_half_a_result_in_a_bucket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    place = location_of("memory://half-results")
    write(place, layout_of())
    write_result(place, "own", OLD)
    put, count = place.write, iter(range(100))
    monkeypatch.setattr(
        place, "write", lambda key, data: 1 / 0 if next(count) == 1 else put(key, data)
    )
    with pytest.raises(ZeroDivisionError):
        write_result(place, "own", NEW)
    assert check(place).damages
    place.remove()


def test_a_link_in_the_place_of_results_is_not_followed(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "s.zarr")
    write(place, layout_of())
    elsewhere = tmp_path / "elsewhere"
    (place.path / "analyses").rename(elsewhere)
    (place.path / "analyses").symlink_to(elsewhere)
    with pytest.raises(RepsimError, match="analyses is a link to another folder"):
        write_result(place, "own", OLD)
    assert [path.name for path in elsewhere.iterdir()] == ["zarr.json"]
