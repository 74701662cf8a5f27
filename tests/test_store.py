"""What is on disk: layouts, writing in batches, reading with and without repsim, refusals."""

import errno
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.testing import assert_array_equal

from repsim import store
from repsim.corpus import Sample
from repsim.families import resolve
from repsim.plans import PlanTrie, step_text
from repsim.schema import SCHEMA_VERSION, Identity, RepsimError

IDENTITY = Identity("m", None, "77", "88", "float32", "own", "99", "cpu", {"torch": "2.13.0"})
PLANS = ("baseline", "drop:layer=1", "(0|1)*2", "0.mlp")
LENGTHS = (90, 50, 7)
TOKENS = sum(LENGTHS)


def layout_of(lengths=LENGTHS, units=4, dtype="float32", logprobs=False, plans=PLANS) -> store.Layout:
    named = resolve(plans, 3)
    ids = np.split(np.arange(sum(lengths), dtype=np.int32), np.cumsum(lengths)[:-1])
    samples = tuple(Sample(f"key{row}", these) for row, these in enumerate(ids))
    return store.Layout(
        IDENTITY, 3, named, PlanTrie.build(item.plan for item in named), samples, units, dtype, logprobs
    )


def states_of(layout: store.Layout) -> np.ndarray:
    shape = (len(layout.trie), layout.tokens, layout.units)
    return np.random.default_rng(0).normal(size=shape).astype(layout.dtype)


def write(writer: store.Writer, layout: store.Layout, ends, states, logprob=None) -> None:
    """Batches that end at these tokens, each of them depth first."""
    for first, end in pairwise((0, *ends)):
        for node in layout.trie.depth_first():
            scored = logprob is not None and node in layout.trie.ends
            writer.write(node, states[node, first:end], logprob[node, first:end] if scored else None)
        writer.finish(end - first)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(store, "CHUNK_BYTES", 0)  # chunks of 64 tokens, the smallest


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "made" / "on the way" / "s.zarr"


def bytes_under(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# Values worked out by hand


def test_sizes_of_a_layout():
    layout = layout_of()  # the root; 0, 1, 2; 2 after 0; (0|1) twice; 0.mlp
    assert (len(layout.trie), layout.tokens) == (8, 147)
    assert layout.bytes == 8 * 147 * 4 * 4
    assert replace(layout, dtype="float16").bytes == 8 * 147 * 4 * 2


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
def test_tokens_in_a_chunk(units, tokens, chunk):
    assert layout_of((tokens,), units).chunk_tokens == chunk


def test_names_and_coordinates(path):
    layout = layout_of((3, 2))
    store.create(path, layout)
    dataset = store.open_dataset(path)
    assert dataset.sizes == {"node": 8, "token": 5, "unit": 4, "plan": 4, "state": 4, "sample": 2}
    assert {name: array.dims for name, array in dataset.variables.items()} == {
        "hidden": ("node", "token", "unit"),
        "path": ("plan", "state"),
        **dict.fromkeys(("plan", "plan_name"), ("plan",)),
        **dict.fromkeys(("parent", "step_text", "complete"), ("node",)),
        **dict.fromkeys(("token_id", "position", "sample"), ("token",)),
        "sample_key": ("sample",),
    }
    assert set(dataset.data_vars) == {"hidden", "path"}
    assert dataset["plan"].values.tolist() == ["0-2", "0, 2", "(0|1)*2", "0.mlp"]
    assert dataset["plan_name"].values.tolist() == ["baseline", "drop:layer=1", "(0|1)*2", "0.mlp"]
    assert dataset["path"].values.tolist() == [[0, 1, 2, 3], [0, 1, 4, -1], [0, 5, 6, -1], [0, 7, -1, -1]]
    assert dataset["parent"].values.tolist() == [-1, 0, 1, 2, 1, 0, 5, 0]
    assert dataset["step_text"].values.tolist() == ["embed", "0", "1", "2", "2", "(0|1)", "(0|1)", "0.mlp"]
    assert dataset["token_id"].values.tolist() == [0, 1, 2, 3, 4]
    assert dataset["position"].values.tolist() == [0, 1, 2, 0, 1]
    assert dataset["sample"].values.tolist() == [0, 0, 0, 1, 1]
    assert dataset["sample_key"].values.tolist() == ["key0", "key1"]
    assert dataset["complete"].values.tolist() == [0] * 8
    assert dataset.attrs == {"repsim_schema": SCHEMA_VERSION, "layers": 3, "identity": IDENTITY.to_dict()}
    assert Identity(**dataset.attrs["identity"]) == IDENTITY


def test_the_trie_can_be_read_back(path):
    layout = layout_of(plans=("painters", "dropouts"))
    store.create(path, layout)
    dataset = store.open_dataset(path)
    assert tuple(dataset["parent"].values.tolist()) == layout.trie.parents
    for row, named in zip(dataset["path"].values, layout.plans, strict=True):
        nodes = row[row >= 0]
        assert (row[len(nodes) :] == -1).all()
        assert dataset["parent"].values[nodes].tolist() == [-1, *nodes[:-1]]
        assert dataset["step_text"].values[nodes[1:]].tolist() == list(map(step_text, named.plan.steps))


def test_a_chunk_is_one_node_by_a_run_of_tokens(path, small_chunks):
    layout = layout_of(logprobs=True)
    write(store.create(path, layout), layout, [TOKENS], states_of(layout))
    dataset = store.open_dataset(path)
    assert dataset["hidden"].encoding["chunks"] == (1, 64, 4)
    assert dataset["logprob"].encoding["chunks"] == (1, 64)
    chunks = {file.relative_to(path / "hidden" / "c") for file in (path / "hidden" / "c").rglob("*") if file.is_file()}
    assert chunks == {Path(f"{node}/{run}/0") for node in range(8) for run in range(3)}


# Chunked equals whole


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("ends", [(147,), (70, 77, 137, 147), (64, 128, 147), (1, 2, 63, 65, 147)])
def test_what_is_written_in_batches_is_read_whole(path, small_chunks, dtype, ends):
    layout = layout_of(dtype=dtype, logprobs=True)
    states = states_of(layout)
    logprob = states[..., 0].astype("float32")
    write(store.create(path, layout), layout, ends, states, logprob)
    dataset = store.open_dataset(path)
    assert dataset["hidden"].dtype == dtype
    assert_array_equal(dataset["hidden"].values, states)
    assert dataset["complete"].values.tolist() == [TOKENS] * 8
    inner = [node for node in range(8) if node not in layout.trie.ends]
    assert_array_equal(dataset["logprob"].values[list(layout.trie.ends)], logprob[list(layout.trie.ends)])
    assert np.isnan(dataset["logprob"].values[inner]).all()
    assert dataset["logprob"].dtype == "float32"


def test_complete_counts_finished_batches_and_the_rest_is_nan(path, small_chunks):
    layout = layout_of(logprobs=True)
    states, ends = states_of(layout), (70, 77)
    writer = store.create(path, layout)
    assert np.isnan(store.open_dataset(path)["hidden"].values).all()
    write(writer, layout, ends, states)
    writer.write(0, states[0, 77:100], None)
    writer.write(2, states[2, 77:100], None)  # no neighbour, so node 0 goes to the disk; then the batch is cut short
    dataset = store.open_dataset(path)
    assert dataset["complete"].values.tolist() == [77] * 8
    assert_array_equal(dataset["hidden"].values[:, :77], states[:, :77])
    assert_array_equal(dataset["hidden"].values[0, 77:100], states[0, 77:100])
    assert np.isnan(dataset["hidden"].values[1:, 77:]).all()
    assert np.isnan(dataset["logprob"].values).all()


def test_opening_reads_no_states(path):
    store.create(path, layout_of())
    hidden = store.open_dataset(path)["hidden"]
    piece = hidden.isel(node=slice(1, 3), token=slice(5))
    assert not hidden.variable._in_memory
    assert not piece.variable._in_memory
    assert piece.values.shape == (2, 5, 4)
    assert not hidden.variable._in_memory


# Round trips

WITHOUT_REPSIM = """
import sys, warnings
sys.modules["repsim"] = None
import numpy as np, xarray as xr
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated", category=RuntimeWarning)
path, expected = sys.argv[1], np.load(sys.argv[2])
for options in ({"consolidated": False}, {}):
    dataset = xr.open_zarr(path, **options)
    nodes = dataset["path"].sel(plan="0, 2")
    states = dataset["hidden"].isel(node=nodes.where(nodes >= 0, drop=True).astype(int))
    np.testing.assert_array_equal(states, expected)
    assert dataset["complete"].min() == dataset.sizes["token"]
    assert dataset["sample_key"].isel(sample=dataset["sample"])[-1] == "key2"
"""


def test_xarray_alone_reads_a_store(path, tmp_path, small_chunks):
    layout = layout_of()
    states = states_of(layout)
    write(store.create(path, layout), layout, [70, TOKENS], states)
    np.save(tmp_path / "expected.npy", states[[0, 1, 4]])
    command = [sys.executable, "-c", WITHOUT_REPSIM, str(path), str(tmp_path / "expected.npy")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")


def test_opening_without_options_warns_of_consolidated_metadata_only(path):
    store.create(path, layout_of(logprobs=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = xr.open_zarr(path)
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert str(caught[0].message).startswith("Failed to open Zarr store with consolidated metadata")
    xr.testing.assert_identical(dataset, store.open_dataset(path))


def test_results_are_replaced_and_do_not_disturb_the_store(path):
    layout = layout_of()
    write(store.create(path, layout), layout, [TOKENS], states_of(layout))
    before = store.open_dataset(path).load()
    first = xr.Dataset({"old": ("state", np.arange(3.0))}, {"layer": ("state", np.array(["embed", "0", "1"], object))})
    second = xr.Dataset({"new": ("plan", np.arange(5))}, attrs={"of": "own"})
    for result in (first, second):
        store.write_result(path, "cosine-baseline", result)
        kept = xr.open_zarr(path, group="analyses/cosine-baseline", consolidated=False)
        xr.testing.assert_identical(kept.load().astype(result.dtypes), result)
    store.write_result(path, "other", first)
    xr.testing.assert_identical(store.open_dataset(path).load(), before)
    assert sorted(zarr.open_group(path / "analyses", mode="r").group_keys()) == ["cosine-baseline", "other"]


def test_a_store_is_removed(path):
    store.create(path, layout_of()).remove()
    assert not path.exists()
    store.create(path, layout_of())


# Bad input


@pytest.mark.parametrize(
    ("states", "logprob", "message"),
    [
        (np.zeros((5, 3), "float32"), None, r"block float32\[5, 3\] at token 140 does not fit float32\[8, 147, 4\] in"),
        (np.zeros((5,), "float32"), None, r"block float32\[5\] at token 140"),
        (np.zeros((1, 5, 4), "float32"), None, r"block float32\[1, 5, 4\] at token 140"),
        (np.zeros((8, 4), "float32"), None, r"block float32\[8, 4\] at token 140"),
        (np.zeros((5, 4), "float64"), None, r"block float64\[5, 4\] at token 140"),
        (np.zeros((5, 4), "float16"), None, r"block float16\[5, 4\] at token 140"),
        (
            np.zeros((5, 4), "float32"),
            np.zeros(1, "float32"),
            r"log-probabilities float32\[1\] do not fit float32\[5\]",
        ),
        (np.zeros((5, 4), "float32"), np.zeros(5), r"log-probabilities float64\[5\] do not fit float32\[5\]"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_and_not_written(path, states, logprob, message):
    layout = layout_of(logprobs=True)
    writer = store.create(path, layout)
    write(writer, layout, [140], states_of(layout))
    before = bytes_under(path)
    with pytest.raises(RepsimError, match=message):
        writer.write(1, states, logprob)
    assert bytes_under(path) == before


def test_a_store_never_replaces_anything(path):
    store.create(path, layout_of())
    before = bytes_under(path)
    file = path.parent / "file"
    file.write_text("kept")
    for taken in (path, path.parent, file):
        with pytest.raises(RepsimError, match=r"exists already; choose another --out or remove it$"):
            store.create(taken, layout_of((3,)))
    assert bytes_under(path) == before
    assert file.read_text() == "kept"


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RepsimError, match=r"s\.zarr: cannot be written: Not a directory; choose another --out$"):
        store.create(tmp_path / "file" / "s.zarr", layout_of())
    with pytest.raises(RepsimError, match=r"s\.zarr: cannot be written: File name too long; choose another --out$"):
        store.create(tmp_path / ("x" * 300 + "s.zarr"), layout_of())
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("problem", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), RepsimError, "cannot be written: No space left; choose another --out"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_store_that_could_not_be_begun_leaves_nothing(path, monkeypatch, problem, raised, message):
    def fail(*_args, **_options):
        raise problem

    monkeypatch.setattr(zarr.Group, "create_array", fail)
    with pytest.raises(raised, match=message):
        store.create(path, layout_of())
    assert not path.exists()


def test_other_dtypes_are_refused(path):
    with pytest.raises(RepsimError, match=r"^dtype 'bfloat16': a store holds float16 or float32$"):
        store.create(path, layout_of(dtype="bfloat16"))
    assert not path.exists()


def _file(path):
    path.parent.mkdir(parents=True)
    path.write_text("text")


def _another_group(path):
    xr.Dataset({"x": ("y", [1.0])}).to_zarr(path, zarr_format=3, consolidated=False)


def _changed(**attributes):
    def change(path):
        store.create(path, layout_of())
        metadata = json.loads((path / "zarr.json").read_text())
        metadata["attributes"] |= attributes
        (path / "zarr.json").write_text(json.dumps(metadata))

    return change


def _broken(path):
    path.mkdir(parents=True)
    (path / "zarr.json").write_text("{")


def _half_begun(path):
    store.create(path, layout_of())
    shutil.rmtree(path / "hidden")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such store; make one with repsim capture --out "),
        (_file, "not a repsim capture (no zarr.json in it)"),
        (lambda path: path.mkdir(parents=True), "not a repsim capture (no zarr.json in it)"),
        (lambda path: zarr.create_array(path, shape=(3,), dtype="float32"), "not a repsim capture: An array already"),
        (_broken, "not a repsim capture: Expecting property name"),
        (_another_group, "a zarr group, but not a repsim capture (no attribute 'repsim_schema')"),
        (_changed(repsim_schema=99), f"schema 99, this repsim reads {SCHEMA_VERSION}; capture again, or read it with"),
        (_half_begun, "stopped before its arrays were made; remove it and capture again"),
    ],
)
def test_what_is_no_store_is_refused(path, make, message):
    make(path)
    with pytest.raises(RepsimError) as caught:
        store.open_dataset(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
