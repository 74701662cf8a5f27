"""Results: names, and files that hold all of what was computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

from repsim.analyses import blocks, clusters, cosine, drift, geometry, norms, similarity
from repsim.errors import RepsimError
from repsim.stats import results
from repsim.stats.bootstrap import Estimate
from support.captures import ArrayCapture, random_capture

LENGTHS = (9, 12, 11, 8)
COMPUTE = {
    "blocks": blocks.compute,
    "clusters": lambda capture: clusters.compute(capture, groups=3),
    "clusters-cka": lambda capture: clusters.compute(capture, of="cka"),
    "cosine": cosine.compute,
    "cosine-centred": lambda capture: cosine.compute(capture, average="centred"),
    "drift": lambda capture: drift.compute(capture, plan="other"),
    "geometry": geometry.compute,
    "norms": norms.compute,
    "similarity": lambda capture: similarity.compute(capture, permutations=9),
    "similarity-minibatch": lambda capture: similarity.compute(capture, measure="minibatch-cka"),
}


def computed(name: str) -> xr.Dataset:
    states, other = (
        random_capture(lengths=LENGTHS, states=states, seed=states).array for states in (6, 5)
    )
    capture = ArrayCapture(states, LENGTHS, other=(["embed", "0", "(1|2)", "3.mlp", "4"], other))
    capture.identity = {"model": "Größe/モデル", "corpus": "hf:a/b:c:d $1"}
    return COMPUTE[name](capture)


def test_an_estimate_becomes_four_variables() -> None:
    replicates = np.arange(101.0)[:, None] * [1, 2]
    named = results.variables(
        "norm", ("state",), Estimate(np.array([50.0, 100.0]), replicates), prefix="norm_"
    )
    assert list(named) == ["norm", "norm_standard_error", "norm_low", "norm_high"]
    assert all(dims == ("state",) for dims, _ in named.values())
    assert named["norm"][1].tolist() == [50, 100]
    assert_allclose(named["norm_low"][1], [2.5, 5], rtol=1e-12)
    assert_allclose(named["norm_high"][1], [97.5, 195], rtol=1e-12)
    assert_array_equal(named["norm_standard_error"][1], replicates.std(0, ddof=1))


def test_layers_along_either_dimension() -> None:
    assert list(results.layer_coordinate(["embed", "0"])) == ["layer"]
    assert list(results.layer_coordinate(["embed", "0"], "state_other")) == ["layer_other"]
    assert list(results.layer_coordinate(["embed", "0"], "state_baseline")) == ["layer_baseline"]


@pytest.mark.parametrize("name", COMPUTE)
def test_a_saved_result_holds_the_same(tmp_path: Path, name: str) -> None:
    result = computed(name)
    results.save(result, tmp_path / "made" / "on the way" / "result.nc")
    with xr.open_dataset(tmp_path / "made" / "on the way" / "result.nc", engine="scipy") as read:
        read = read.load()
    assert set(read.variables) == set(result.variables)
    for key, values in result.variables.items():
        assert read[key].dims == values.dims, key
        if values.dtype == object:
            assert read[key].values.tolist() == values.values.tolist(), key
        else:
            assert_array_equal(read[key], values, err_msg=key)
    assert read.attrs == result.attrs


@pytest.mark.parametrize("name", COMPUTE)
def test_a_result_saved_twice_has_the_same_bytes(tmp_path: Path, name: str) -> None:
    results.save(computed(name), tmp_path / "a.nc")
    results.save(computed(name), tmp_path / "b.nc")
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()
    results.save(computed(name), tmp_path / "a.nc")  # over what is there
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


@pytest.mark.parametrize("name", COMPUTE)
def test_what_a_result_is_of(name: str) -> None:
    attrs = computed(name).attrs
    assert attrs["analysis"] == name.partition("-")[0]
    assert attrs["model"] == "Größe/モデル"
    assert attrs["interval"] == "95% of a bootstrap over samples"
    assert {"plan", "plan_text", "corpus", "description", "tokens", "samples"} <= set(attrs)


@pytest.mark.parametrize(
    "place", ["/proc/nowhere/a.nc", "{here}/file/a.nc", "{here}/file/below/a.nc", "{here}/folder"]
)
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    place = place.format(here=tmp_path)
    with pytest.raises(
        RepsimError, match=r"cannot be written .*; choose another --figures"
    ) as caught:
        results.save(computed("norms"), Path(place))
    assert "\n" not in str(caught.value)
    assert "None" not in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(RepsimError, match="No space left on device"):
        results.save(computed("norms"), tmp_path / "a.nc")


def test_a_result_that_is_written_in_part_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.save(computed("norms"), tmp_path / "a.nc")
    before = (tmp_path / "a.nc").read_bytes()

    def half(self: xr.Dataset, path: Path, **_: Any) -> None:
        path.write_bytes(b"CDF\x02")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", half)
    with pytest.raises(KeyboardInterrupt):
        results.save(computed("norms"), tmp_path / "a.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]
    assert (tmp_path / "a.nc").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "count", "least"),
    [("resamples", 1, 2), ("items", 0, 1), ("permutations", -1, 0), ("seed", -1, 0)],
)
def test_too_small_a_number(name: str, count: int, least: int) -> None:
    with pytest.raises(RepsimError, match=f"^{name}={count}: at least {least}$"):
        results.check_counts(**{name: count})
    results.check_counts(**{name: least}, other=None)


def test_a_count_beyond_the_format_s_integers_is_kept(tmp_path: Path) -> None:
    result = xr.Dataset({"norm": ("state", [1.0])}, attrs={"tokens": 3 * 10**9, "samples": 7})
    results.save(result, tmp_path / "r.nc")
    with xr.open_dataset(tmp_path / "r.nc", engine="scipy") as read:
        assert read.attrs == {"tokens": 3e9, "samples": 7}
