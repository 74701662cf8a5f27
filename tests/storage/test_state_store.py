"""What is on disk: layouts, writing in blocks, growing, reading without repsim, refusals."""

import errno
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.options import COMPRESSION
from repsim.schema import SCHEMA_VERSION, Identity
from repsim.storage import frame, state_store, state_writer
from repsim.storage import lock as locks
from repsim.storage.direct_io import ChunkFiles
from repsim.storage.finished_blocks import block_starts, plan_ends
from repsim.storage.group import StoreGroup
from repsim.storage.integrity import check, invalidate
from repsim.storage.local_folder import LocalFolder
from repsim.storage.lock import WriterLock
from repsim.storage.metadata import exists
from repsim.storage.place_names import location_of
from repsim.storage.prefetch import read_statistic
from repsim.storage.results import write_result
from support.stores import (
    IDENTITY,
    MORE_LENGTHS,
    MORE_PLANS,
    SUMS,
    begin,
    bytes_in,
    dataset_of,
    folder_of,
    layout_of,
    sums_of,
    write,
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "CHUNK_BYTES", 0)  # chunks of 64 tokens, the smallest


@pytest.fixture
def place(tmp_path: Path) -> LocalFolder:
    return folder_of(tmp_path / "made" / "on the way" / "s.zarr")


# Values worked out by hand


def test_sizes_of_a_layout() -> None:
    layout = layout_of()  # the root; 0, 1, 2; 2 after 0; (0|1) twice; 0.mlp
    assert (len(layout.trie), layout.tokens) == (8, 147)
    everything = np.ones((8, 3), bool)
    assert layout.bytes_of(everything) == 8 * 147 * 4 * 4  # one chunk a node
    assert replace(layout, dtype="float16").bytes_of(everything) == 8 * 147 * 4 * 2
    assert replace(layout, logprobs=True).bytes_of(everything) == 8 * 147 * 4 * 4 + 4 * 147 * 4
    streamed = replace(layout, keep=False, statistics=(SUMS,))
    # A number a state of each plan, of each sample.
    assert streamed.bytes_of(everything) == 8 * 3 * (4 + 3 + 3 + 2)
    assert streamed.wanted.tolist() == [False, False, False, True, True, False, True, True]
    assert layout.bytes_of(np.zeros((8, 3), bool)) == 0


def test_blocks_and_kept_tokens_of_a_layout() -> None:
    layout = layout_of((5, 4, 2), blocks=(2, 1), tokens="every:2")
    assert [at.tolist() for at in layout.positions] == [[0, 2, 4], [0, 2], [0]]
    assert (layout.token_starts.tolist(), layout.sample_starts.tolist()) == ([0, 5, 6], [0, 2, 3])
    assert layout.extent == {"node": 8, "plan": 4, "state": 4, "token": 6, "sample": 3, "block": 2}


@pytest.mark.parametrize(
    ("units", "tokens", "chunk"),
    [
        (576, 10_000, 1024),  # 1820 states of float16 in 2 MiB
        (2048, 10_000, 512),
        (64, 10_000, 4096),
        (8192, 10_000, 128),
        (16384, 10_000, 64),
        (576, 500, 500),
        (4, 1, 1),
    ],
)
def test_tokens_in_a_chunk(units: int, tokens: int, chunk: int) -> None:
    assert layout_of((tokens,), units=units).chunk_tokens == chunk


def test_names_and_coordinates(place: LocalFolder) -> None:
    layout = layout_of((3, 2), commands=({"model": "m", "plan": ["baseline"]},))
    begin(place, layout)
    dataset = dataset_of(place)
    assert dataset.sizes == {
        "node": 8,
        "token": 5,
        "unit": 4,
        "plan": 4,
        "state": 4,
        "sample": 2,
        "block": 2,
    }
    assert {name: array.dims for name, array in dataset.variables.items()} == {
        "hidden": ("node", "token", "unit"),
        "path": ("plan", "state"),
        "done": ("node", "block"),
        **dict.fromkeys(("plan", "plan_name", "plan_digest"), ("plan",)),
        **dict.fromkeys(("parent", "step_text"), ("node",)),
        **dict.fromkeys(("token_id", "position", "sample"), ("token",)),
        **dict.fromkeys(("sample_key", "length", "block"), ("sample",)),
    }
    assert set(dataset.data_vars) == {"hidden", "path"}
    assert dataset["plan"].values.tolist() == ["0-2", "0, 2", "(0|1)*2", "0.mlp"]
    assert dataset["plan_name"].values.tolist() == ["baseline", "drop:layer=1", "(0|1)*2", "0.mlp"]
    assert dataset["plan_digest"].values.tolist() == [named.plan.digest for named in layout.plans]
    assert dataset["path"].values.tolist() == [
        [0, 1, 2, 3],
        [0, 1, 4, -1],
        [0, 5, 6, -1],
        [0, 7, -1, -1],
    ]
    assert dataset["parent"].values.tolist() == [-1, 0, 1, 2, 1, 0, 5, 0]
    assert dataset["step_text"].values.tolist() == [
        "embed",
        "0",
        "1",
        "2",
        "2",
        "(0|1)",
        "(0|1)",
        "0.mlp",
    ]
    assert dataset["token_id"].values.tolist() == [0, 1, 2, 3, 4]
    assert dataset["position"].values.tolist() == [0, 1, 2, 0, 1]
    assert dataset["sample"].values.tolist() == [0, 0, 0, 1, 1]
    assert dataset["sample_key"].values.tolist() == ["key0", "key1"]
    assert dataset["length"].values.tolist() == [3, 2]
    assert dataset["block"].values.tolist() == [0, 1]
    assert not dataset["done"].values.any()
    assert dataset.attrs == {
        "repsim_schema": SCHEMA_VERSION,
        "kind": "a capture",
        "nonfinite": False,
        "batches": "texts of any length, padded",
        "layers": 3,
        "units": 4,
        "identity": IDENTITY.to_dict(),
        "dtype": "float32",
        "keep": "all",
        "statistics": [],
        "compression": "none",
        "requests": [{"model": "m", "plan": ["baseline"]}],
        "extent": layout.extent,
    }
    assert Identity(**dataset.attrs["identity"]) == IDENTITY


@pytest.mark.parametrize(
    ("tokens", "ids", "positions"),
    [("last", [2, 4], [2, 1]), ("every:2", [0, 2, 3], [0, 2, 0]), ("mean", [-1, -1], [-1, -1])],
)
def test_tokens_that_are_kept(
    place: LocalFolder, tokens: str, ids: list[int], positions: list[int]
) -> None:
    layout = layout_of((3, 2), tokens=tokens)
    states = write(place, layout)
    dataset = dataset_of(place)
    assert dataset["token_id"].values.tolist() == ids
    assert dataset["position"].values.tolist() == positions
    assert dataset["length"].values.tolist() == [3, 2]
    assert_array_equal(dataset["hidden"], states)


def test_where_plans_end_and_blocks_start(place: LocalFolder) -> None:
    begin(place, layout_of((5, 4, 2), blocks=(2, 1), tokens="every:2"))
    dataset = dataset_of(place)
    assert plan_ends(dataset).tolist() == [3, 4, 6, 7]
    tokens, samples = block_starts(dataset)
    assert (tokens.tolist(), samples.tolist()) == ([0, 5, 6], [0, 2, 3])


def test_the_trie_can_be_read_back(place: LocalFolder) -> None:
    layout = layout_of(plans=("painters", "dropouts"))
    begin(place, layout)
    dataset = dataset_of(place)
    assert tuple(dataset["parent"].values.tolist()) == layout.trie.parents
    for row, named in zip(dataset["path"].values, layout.plans, strict=True):
        nodes = row[row >= 0]
        assert (row[len(nodes) :] == -1).all()
        assert dataset["parent"].values[nodes].tolist() == [-1, *nodes[:-1]]
        assert dataset["step_text"].values[nodes[1:]].tolist() == [
            step.text for step in named.plan.steps
        ]


def test_a_chunk_is_one_node_by_a_run_of_tokens(place: LocalFolder, small_chunks: None) -> None:
    write(place, layout_of(logprobs=True))
    dataset = dataset_of(place)
    assert dataset["hidden"].encoding["chunks"] == (1, 64, 4)
    assert dataset["logprob"].encoding["chunks"] == (1, 64)
    chunks = {key for key in place.sizes() if key.startswith("hidden/c/")}
    assert chunks == {f"hidden/c/{node}/{run}/0" for node in range(8) for run in range(3)}


# Chunked equals whole


@pytest.mark.parametrize("compression", COMPRESSION)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "lengths", [(300,), (147,), (70, 7, 60, 10), (64, 64, 19), (1, 1, 61, 2, 82), (100, 200, 90)]
)
def test_what_is_written_in_blocks_is_read_whole(
    place: LocalFolder, small_chunks: None, compression: str, dtype: str, lengths: tuple[int, ...]
) -> None:
    layout = layout_of(lengths, units=16, dtype=dtype, logprobs=True, compression=compression)
    states = write(place, layout)
    dataset = dataset_of(place)
    assert dataset["hidden"].dtype == dtype
    assert_array_equal(dataset["hidden"], states)
    assert dataset["done"].values.all()
    ends = list(layout.trie.ends)
    logprob = dataset["logprob"].values
    assert logprob.dtype == "float32"
    assert_array_equal(logprob[ends], states[ends][..., 0].astype("float32"))
    assert np.isnan(np.delete(logprob, ends, 0)).all()


def test_files_past_zarr_are_those_of_zarr(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of((100, 200, 90), units=16)
    direct, through = (location_of(tmp_path / name) for name in ("direct", "through"))
    write(direct, layout)
    monkeypatch.setattr(state_writer, "LocalFolder", type(None))
    write(through, layout)
    assert bytes_in(direct) == bytes_in(through)


def test_memory_holds_the_same_store(place: LocalFolder, small_chunks: None) -> None:
    layout, elsewhere = layout_of(logprobs=True), location_of("memory://test-store")
    write(place, layout)
    write(elsewhere, layout)
    xr.testing.assert_identical(dataset_of(place).load(), dataset_of(elsewhere).load())


def test_done_names_finished_blocks_and_the_rest_is_nan(
    place: LocalFolder, small_chunks: None
) -> None:
    layout = layout_of(logprobs=True)
    begin(place, layout)
    assert np.isnan(dataset_of(place)["hidden"].values).all()
    states = write(place, layout, blocks=[0])
    with WriterLock(place) as lock:
        writer = state_writer.prepare(place, layout, lock)
        assert [len(writer.pending(block)) for block in range(3)] == [0, 8, 8]
        writer.begin(1)
        writer.write(0, states[0, 90:140])
        # No neighbour, so node 0 goes to the disk; then the process dies.
        writer.write(2, states[2, 90:140])
    dataset = dataset_of(place)
    assert dataset["done"].values.tolist() == [[True, False, False]] * 8
    assert_array_equal(dataset["hidden"][:, :90], states[:, :90])
    assert_array_equal(dataset["hidden"][0, 90:140], states[0, 90:140])
    assert np.isnan(dataset["hidden"].values[1:, 90:]).all()
    assert np.isnan(dataset["logprob"].values[:, 90:]).all()
    write(place, layout)
    assert_array_equal(dataset_of(place)["hidden"], states)


def test_blocks_are_written_in_any_order(place: LocalFolder, small_chunks: None) -> None:
    layout = layout_of()
    states = write(place, layout, blocks=[2, 0, 1])
    assert_array_equal(dataset_of(place)["hidden"], states)


def test_opening_reads_no_states(place: LocalFolder) -> None:
    begin(place, layout_of())
    hidden = dataset_of(place)["hidden"]
    piece = hidden.isel(node=slice(1, 3), token=slice(5))
    assert not hidden.variable._in_memory
    assert not piece.variable._in_memory
    assert piece.values.shape == (2, 5, 4)
    assert not hidden.variable._in_memory


def test_statistics_without_states(place: LocalFolder) -> None:
    layout = layout_of((5, 4, 2), blocks=(2, 1), keep=False, statistics=(SUMS,), logprobs=True)
    states = write(place, layout)
    dataset = dataset_of(place)
    assert "hidden" not in dataset
    assert dataset["done"].values.tolist() == [[bool(wanted)] * 2 for wanted in layout.wanted]
    assert_array_equal(dataset["logprob"][7], states[7, :, 0])
    whole = np.concatenate([sums_of(layout, 2, block) for block in range(2)])
    sums = read_statistic(StoreGroup.open(place), "own.sum", 2, slice(3))
    assert_array_equal(sums[:, :3], whole)
    assert np.isnan(sums[:, 3]).all()  # the plan has three states, the deepest four
    assert_array_equal(read_statistic(StoreGroup.open(place), "own.sum", 2, slice(1, 2)), sums[1:2])


# Growth


@pytest.mark.parametrize("keep", [True, False])
def test_a_finished_store_grows_and_keeps_what_it_had(
    place: LocalFolder, small_chunks: None, keep: bool
) -> None:
    options: dict[str, Any] = {
        "keep": keep,
        "logprobs": True,
        "statistics": () if keep else (SUMS,),
    }
    layout = layout_of(**options)
    write(place, layout)
    before, reader = dataset_of(place).load(), dataset_of(place)
    larger = layout_of(MORE_LENGTHS, MORE_PLANS, **options)
    begin(place, larger)
    grown = dataset_of(place)
    assert grown.sizes["node"] == 9
    assert grown.sizes["state"] == 5
    within = grown.load().isel(
        {dim: slice(size) for dim, size in layout.extent.items() if dim in grown.dims}
    )
    xr.testing.assert_identical(within.drop_attrs(), before.drop_attrs())
    assert grown["done"].values.sum() == layout.wanted.sum() * 3
    states = write(place, larger)
    xr.testing.assert_identical(reader.load(), before)
    grown = dataset_of(place)
    assert grown["done"].values[larger.wanted].all()
    if keep:
        assert_array_equal(grown["hidden"], states)
    else:
        for plan, samples in ((1, 5), (4, 5)):
            sums = read_statistic(StoreGroup.open(place), "own.sum", plan, slice(samples))
            expected = np.concatenate([sums_of(larger, plan, block) for block in range(5)])
            assert_array_equal(sums[:, : expected.shape[1]], expected)


def test_a_store_grows_beyond_a_chunk_of_what_describes_it(
    place: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame, "CHUNKS", dict.fromkeys(frame.CHUNKS, 2))
    monkeypatch.setattr(state_store, "DONE_CHUNKS", (2, 2))
    write(place, layout_of())
    before, reader = dataset_of(place).load(), dataset_of(place)
    larger = layout_of(MORE_LENGTHS, MORE_PLANS)
    states = write(place, larger)
    xr.testing.assert_identical(reader.load(), before)
    grown = dataset_of(place)
    assert grown["done"].values.all()
    assert_array_equal(grown["hidden"], states)


def _stop(*_args: Any, **_options: Any) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop_after", [0, 1, 4, 15, 16, 22, 99])
@pytest.mark.parametrize("then", ["the same", "more"])
def test_a_store_whose_growth_was_cut_short_is_as_it_was(
    place: LocalFolder,
    monkeypatch: pytest.MonkeyPatch,
    small_chunks: None,
    stop_after: int,
    then: str,
) -> None:
    layout, larger = layout_of(logprobs=True), layout_of(MORE_LENGTHS, MORE_PLANS, logprobs=True)
    write(place, layout, blocks=[0, 1])
    before = dataset_of(place).load()
    with monkeypatch.context() as patch:
        written: list[str] = []
        write_whole = LocalFolder.write

        def write_some(place: LocalFolder, key: str, data: bytes) -> None:
            if len(written) == stop_after and key.endswith("zarr.json"):
                _stop()
            written.append(key)
            write_whole(place, key, data)

        patch.setattr(LocalFolder, "write", write_some)
        patch.setattr(frame, "array_digests", _stop)  # the last step but one
        with pytest.raises(KeyboardInterrupt):
            begin(place, larger)
    plain = xr.open_zarr(place.path, consolidated=False)  # sizes agree at any moment
    assert {size for dim, size in plain.sizes.items() if dim.startswith("sample")} <= {3, 5}
    xr.testing.assert_identical(dataset_of(place).load(), before)
    wanted = layout if then == "the same" else larger
    states = write(place, wanted)
    dataset = dataset_of(place)
    assert dataset["done"].values.all()
    assert_array_equal(dataset["hidden"], states)


@pytest.mark.parametrize("stop_before", [0, 3, 99])
def test_a_half_made_store_is_begun_anew(
    place: LocalFolder, monkeypatch: pytest.MonkeyPatch, stop_before: int
) -> None:
    layout = layout_of()
    with monkeypatch.context() as patch:
        create, count = zarr.Group.create_array, iter(range(100))
        patch.setattr(
            zarr.Group,
            "create_array",
            lambda *args, **options: (
                _stop() if next(count) == stop_before else create(*args, **options)
            ),
        )
        patch.setattr(zarr.core.attributes.Attributes, "put", _stop)
        with pytest.raises(KeyboardInterrupt):
            begin(place, layout_of((400,), plans="painters"))
    assert not exists(place)
    with pytest.raises(
        RepsimError, match=r"not begun, or being made this moment; run its capture \(again\)$"
    ):
        dataset_of(place)
    states = write(place, layout)
    assert_array_equal(dataset_of(place)["hidden"], states)
    assert exists(place)


def test_a_writer_that_lost_its_lock_finishes_nothing_more(place: LocalFolder) -> None:
    layout = layout_of()
    with WriterLock(place) as lock:
        writer = state_writer.prepare(place, layout, lock)
        writer.begin(0)
        place.delete(locks.KEY)
        with pytest.raises(RepsimError, match=r"taken over by another writer; this one stops$"):
            writer.begin(1)


# Round trips

WITHOUT_REPSIM = """
import sys, warnings
sys.modules["repsim"] = None
import numpy as np, xarray as xr
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated", RuntimeWarning)
path, expected = sys.argv[1], np.load(sys.argv[2])
for options in ({"consolidated": False}, {}):
    dataset = xr.open_zarr(path, **options)
    nodes = dataset["path"].sel(plan="0, 2")
    states = dataset["hidden"].isel(node=nodes.where(nodes >= 0, drop=True).astype(int))
    np.testing.assert_array_equal(states, expected)
    assert dataset["done"].all()
    assert dataset["sample_key"].isel(sample=dataset["sample"])[-1] == "key2"
"""


@pytest.mark.parametrize("compression", COMPRESSION)
def test_xarray_alone_reads_a_store(
    place: LocalFolder, tmp_path: Path, small_chunks: None, compression: str
) -> None:
    states = write(place, layout_of(compression=compression))
    np.save(tmp_path / "expected.npy", states[[0, 1, 4]])
    command = [sys.executable, "-c", WITHOUT_REPSIM, str(place), str(tmp_path / "expected.npy")]
    reading = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (reading.returncode, reading.stderr) == (0, "")


def test_opening_without_options_warns_of_consolidated_metadata_only(place: LocalFolder) -> None:
    begin(place, layout_of(logprobs=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = xr.open_zarr(place.path)
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert str(caught[0].message).startswith("Failed to open Zarr store with consolidated metadata")
    dataset.attrs = {
        name: value for name, value in dataset.attrs.items() if name not in ("arrays", "digest")
    }
    xr.testing.assert_identical(dataset, dataset_of(place))


def test_results_are_replaced_and_do_not_disturb_the_store(place: LocalFolder) -> None:
    write(place, layout_of())
    before = dataset_of(place).load()
    first = xr.Dataset(
        {"old": ("state", np.arange(3.0))},
        {"layer": ("state", np.array(["embed", "0", "1"], object))},
    )
    second = xr.Dataset({"new": ("plan", np.arange(5))}, attrs={"of": "own"})
    for result in (first, second):
        write_result(place, "cosine-baseline", result)
        kept = xr.open_zarr(place.path, group="analyses/cosine-baseline", consolidated=False)
        assert set(kept.attrs.pop("repsim_digests")) > {"zarr.json"}
        xr.testing.assert_identical(kept.load().astype(result.dtypes), result)
    write_result(place, "other", first)
    xr.testing.assert_identical(dataset_of(place).load(), before)
    assert sorted(zarr.open_group(place.path / "analyses", mode="r").group_keys()) == [
        "cosine-baseline",
        "other",
    ]


def test_a_finished_store_is_not_written_again(place: LocalFolder) -> None:
    layout = layout_of(logprobs=True)
    write(place, layout)
    before = {key: (place.path / key).stat().st_mtime_ns for key in place.sizes()}
    write(place, layout)
    assert {key: (place.path / key).stat().st_mtime_ns for key in place.sizes()} == before


# Bad input


@pytest.mark.parametrize(
    ("states", "logprob", "message"),
    [
        (
            np.zeros((7, 3), "float32"),
            None,
            r"states float32\[7, 3\] do not fit block 2 of .*: float32\[7, 4\]$",
        ),
        (np.zeros((7,), "float32"), None, r"states float32\[7\] do not"),
        (np.zeros((1, 7, 4), "float32"), None, r"states float32\[1, 7, 4\] do not"),
        (np.zeros((8, 4), "float32"), None, r"states float32\[8, 4\] do not"),
        (np.zeros((7, 4), "float64"), None, r"states float64\[7, 4\] do not"),
        (np.zeros((7, 4), "float16"), None, r"states float16\[7, 4\] do not"),
        (
            np.zeros((7, 4), "float32"),
            np.zeros(1, "float32"),
            r"log-probabilities float32\[1\] do not fit float32\[7\]",
        ),
        (
            np.zeros((7, 4), "float32"),
            np.zeros(7),
            r"log-probabilities float64\[7\] do not fit float32\[7\]",
        ),
    ],
)
def test_states_that_do_not_fit_are_refused_and_not_written(
    place: LocalFolder, states: NDArray[Any], logprob: NDArray[Any] | None, message: str
) -> None:
    layout = layout_of(logprobs=True)
    write(place, layout, blocks=[0, 1])
    before = bytes_in(place)
    with WriterLock(place) as lock:
        writer = state_writer.prepare(place, layout, lock)
        writer.begin(2)
        with pytest.raises(RepsimError, match=message):
            writer.write(1, states, logprob)
        writer.finish()
    assert bytes_in(place) == before


def test_what_is_no_store_is_not_replaced(place: LocalFolder) -> None:
    place.path.mkdir(parents=True)
    (place.path / "letter.txt").write_text("kept")
    with pytest.raises(
        RepsimError, match=r"not a repsim capture \(no zarr\.json in it\); choose another place$"
    ):
        begin(place, layout_of())
    assert [file.name for file in place.path.rglob("*") if file.is_file()] == ["letter.txt"]


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(
        RepsimError, match=r"s\.zarr: cannot be written: Not a directory; choose another --out$"
    ):
        begin(location_of(tmp_path / "file" / "s.zarr"), layout_of())
    with pytest.raises(
        RepsimError, match=r"s\.zarr: cannot be written: File name too long; choose another --out$"
    ):
        begin(location_of(tmp_path / ("x" * 300 + "s.zarr")), layout_of())
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_ends_in_one_line_and_the_rest_is_written_later(
    place: LocalFolder, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    layout = layout_of((64, 64), units=16)
    write(place, layout, blocks=[0])

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ChunkFiles, "put", full)
        with pytest.raises(
            RepsimError, match="cannot be written: No space left on device; make that good, and"
        ) as caught:
            write(place, layout)
    assert "\n" not in str(caught.value)
    assert dataset_of(place)["done"].values.tolist() == [[True, False]] * 8
    assert_array_equal(write(place, layout), dataset_of(place)["hidden"])


def _file(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("text")


def _another_group(path: Path) -> None:
    xr.Dataset({"x": ("y", [1.0])}).to_zarr(path, zarr_format=3, consolidated=False)


def _changed(**attributes: Any) -> Callable[[Path], None]:
    """With other attributes, for which nothing vouches."""

    def change(path: Path) -> None:
        begin(location_of(path), layout_of())
        metadata = json.loads((path / "zarr.json").read_text())
        metadata["attributes"] |= attributes
        (path / "zarr.json").write_text(json.dumps(metadata))

    return change


def _broken(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "zarr.json").write_text("{")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such store; make one with repsim capture --out "),
        (
            lambda path: path.mkdir(parents=True),
            "no such store; make one with repsim capture --out ",
        ),
        (_file, "not a repsim capture (no zarr.json in it); choose another place"),
        (
            lambda path: zarr.create_array(path, shape=(3,), dtype="float32"),
            "not a repsim capture: an array",
        ),
        (_broken, "not a repsim capture: Expecting property name"),
        (_another_group, "a zarr group, but not a repsim capture (no attribute 'repsim_schema')"),
        (
            _changed(repsim_schema=99),
            f"schema 99, this repsim reads {SCHEMA_VERSION}; capture again, or read it with",
        ),
        (
            _changed(repsim_schema=1),
            "schema 1, this repsim reads 3; capture again, or read it with the repsim that",
        ),
    ],
)
def test_what_is_no_store_is_refused(
    place: LocalFolder, make: Callable[[Path], Any], message: str
) -> None:
    make(place.path)
    with pytest.raises(RepsimError) as caught:
        dataset_of(place)
    assert str(caught.value).startswith(f"{place}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [_broken, _another_group, _changed(repsim_schema=1)])
def test_what_is_no_store_of_this_schema_is_not_written_to(
    place: LocalFolder, make: Callable[[Path], Any]
) -> None:
    make(place.path)
    before = bytes_in(place)
    with pytest.raises(RepsimError, match=r"schema 1, this|not a repsim capture"):
        begin(place, layout_of())
    assert bytes_in(place) == before


# Buckets


def test_a_store_in_a_bucket_grows_and_is_repaired() -> None:
    """Metadata and chunks that a writer has read, it replaces and deletes itself, and is not taken
    for another.
    """
    place = location_of("memory://grows")
    write(place, layout_of(logprobs=True), blocks=[0, 1])
    larger = layout_of(MORE_LENGTHS, MORE_PLANS, logprobs=True)
    states = write(place, larger)
    assert_array_equal(dataset_of(place)["hidden"], states)
    place.write("hidden/c/3/0/0", b"")
    with WriterLock(place):
        invalidate(place, check(place).damages)
        writer = state_writer.prepare(place, larger, WriterLock(place))
        first, last = larger.token_starts[:2]
        writer.write(3, states[3, first:last], states[3, first:last, 0].astype("float32"))
        writer.finish()
    place.remove()
