"""The writer of states: gathered over blocks, by several threads, and after errors; what is marked
is there.
"""

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from repsim.errors import StoreError
from repsim.storage import state_store, state_writer
from repsim.storage.direct_io import ChunkFiles
from repsim.storage.local_folder import LocalFolder
from repsim.storage.lock import WriterLock
from repsim.storage.state_store import Layout
from support.stores import bytes_in, dataset_of, folder_of, layout_of, states_of, write

THREADS = 3
LENGTHS = (40, 30, 70, 5, 20, 33, 64, 64, 1, 9)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "CHUNK_BYTES", 0)  # chunks of 64 tokens, the smallest
    monkeypatch.setattr(state_writer, "HELD_SECONDS", 600.0)  # nothing happens by the clock


@pytest.fixture
def place(tmp_path: Path) -> LocalFolder:
    return folder_of(tmp_path / "s.zarr")


def scores_of(layout: Layout, node: int, states: Any) -> Any:
    scored = layout.logprobs and node in layout.trie.ends
    return states[:, 0].astype("float32") if scored else None


def write_gathered(
    place: LocalFolder,
    layout: Layout,
    *,
    threads: bool = False,
    blocks: Sequence[int] | None = None,
    after: Callable[[state_writer.Writer], None] = state_writer.Writer.finish,
) -> None:
    """As a capture does: blocks one after the other, and `after` at the end only.

    threads: each node is written by one of several threads, whose memory is spoilt when `write`
        has returned.
    """
    states = states_of(layout)
    with WriterLock(place) as lock:
        writer = state_writer.prepare(place, layout, lock, threads=threads)

        def hand_over(node: int, block: int) -> None:
            first, last = layout.token_starts[block : block + 2]
            own = states[node, first:last].copy()
            scores = scores_of(layout, node, own)
            writer.write(node, own, scores, block)
            if threads:
                own[...] = np.nan
                if scores is not None:
                    scores[...] = np.nan

        pools = [ThreadPoolExecutor(1) for _ in range(THREADS)]
        put = []
        for block in range(len(layout.blocks)) if blocks is None else blocks:
            pending = writer.pending(block)
            writer.begin(block)
            for node in layout.trie.depth_first():
                if node not in pending:
                    continue
                if threads:
                    put.append(pools[node % THREADS].submit(hand_over, node, block))
                else:
                    hand_over(node, block)
            if not threads:
                writer.end_block()
        for pool in pools:
            pool.shutdown()
        for work in put:
            work.result()
        after(writer)


@contextmanager
def counted_writes() -> Iterator[Counter[str]]:
    """How often files of each array are written, by the array's name."""
    counts: Counter[str] = Counter()
    partial = LocalFolder.partial

    @contextmanager
    def count(self: LocalFolder, path: Path) -> Iterator[Path]:
        with partial(self, path) as file:
            yield file
        key = path.relative_to(self.path)
        if "c" in key.parts:
            counts[key.parts[0]] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFolder, "partial", count)
        yield counts


# Gathered equals written block by block


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("tokens", ["all", "last", "mean", "every:3"])
@pytest.mark.parametrize("compression", ["none", "fast"])
def test_gathered_is_byte_for_byte_what_blocks_leave(
    tmp_path: Path, place: LocalFolder, threads: bool, tokens: str, compression: str
) -> None:
    layout = layout_of(LENGTHS, tokens=tokens, logprobs=True, compression=compression)
    plain = folder_of(tmp_path / "plain.zarr")
    write(plain, layout)
    write_gathered(place, layout, threads=threads)
    assert bytes_in(place) == bytes_in(plain)


@pytest.mark.parametrize("limit", ["HELD_BYTES", "HELD_SECONDS"])
@pytest.mark.parametrize("threads", [False, True])
def test_nothing_is_held_beyond_the_limits(
    tmp_path: Path,
    place: LocalFolder,
    monkeypatch: pytest.MonkeyPatch,
    threads: bool,
    limit: str,
) -> None:
    layout = layout_of(LENGTHS, tokens="every:3", logprobs=True)
    plain = folder_of(tmp_path / "plain.zarr")
    write(plain, layout)
    monkeypatch.setattr(state_writer, limit, -1.0)
    held: list[int] = []

    def look(writer: state_writer.Writer) -> None:
        held.extend(writer.held_nodes)
        writer.end_block()  # marks, but writes nothing that is held

    write_gathered(place, layout, threads=threads, after=look)
    assert held == []
    assert bytes_in(place) == bytes_in(plain)


def test_few_tokens_of_many_blocks_take_few_writes(place: LocalFolder, tmp_path: Path) -> None:
    """100 blocks keep a token each: two chunks per node, where there were 100 rewrites."""
    layout = layout_of((3,) * 100, tokens="last")
    nodes = len(layout.trie)
    with counted_writes() as before:
        write(folder_of(tmp_path / "plain.zarr"), layout)
    with counted_writes() as now:
        write_gathered(place, layout)
    assert before["hidden"] == 100 * nodes
    assert now["hidden"] == 2 * nodes
    # The flags are all written when the store is made, and once for each full chunk.
    assert now["done"] < before["done"] / 10
    assert bytes_in(place) == bytes_in(folder_of(tmp_path / "plain.zarr"))


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("tokens", ["all", "last", "every:3"])
def test_what_is_marked_is_there(
    place: LocalFolder, monkeypatch: pytest.MonkeyPatch, threads: bool, tokens: str
) -> None:
    """Whenever flags reach the disk, the states they name are there."""
    layout = layout_of(LENGTHS, tokens=tokens)
    states, blocks = states_of(layout), np.diff(layout.token_starts)
    monkeypatch.setattr(state_writer, "MARK_SECONDS", -1.0)
    seen: list[int] = []
    mark = state_writer.Writer._mark

    def look(self: state_writer.Writer) -> None:
        mark(self)
        dataset = dataset_of(place)
        done = np.repeat(dataset["done"].values, blocks, axis=1)
        assert_array_equal(dataset["hidden"].values[done], states[done])
        seen.append(int(done.sum()))

    monkeypatch.setattr(state_writer.Writer, "_mark", look)
    write_gathered(place, layout, threads=threads)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) < (seen[-1], states.shape[0] * states.shape[1] + 1)
    assert len(set(seen)) > 2 or tokens == "last"


# Runs that stop


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("stops", [(4,), (1, 2, 7), tuple(range(1, 10))])
def test_a_run_that_stops_anywhere_goes_on_byte_for_byte(
    tmp_path: Path, place: LocalFolder, threads: bool, stops: tuple[int, ...]
) -> None:
    layout = layout_of(LENGTHS, tokens="every:3", logprobs=True)
    plain = folder_of(tmp_path / "plain.zarr")
    write(plain, layout)
    for first, last in zip((0, *stops), (*stops, len(LENGTHS)), strict=True):
        write_gathered(place, layout, threads=threads, blocks=range(first, last))
        assert dataset_of(place)["done"].values.sum() == last * len(layout.trie)
    assert bytes_in(place) == bytes_in(plain)


def test_what_is_lost_with_a_process_is_what_was_not_marked(
    tmp_path: Path, place: LocalFolder
) -> None:
    layout = layout_of((3,) * 100, tokens="last")
    plain = folder_of(tmp_path / "plain.zarr")
    write(plain, layout)
    write_gathered(place, layout, blocks=range(90), after=lambda _: None)
    assert dataset_of(place)["done"].values.any(0).tolist() == [True] * 64 + [False] * 36
    write_gathered(place, layout)
    assert bytes_in(place) == bytes_in(plain)


@pytest.mark.parametrize("tokens", ["all", "every:3"])
@pytest.mark.parametrize("threads", [False, True])
def test_after_an_error_earlier_blocks_are_finished_and_no_others_begun(
    tmp_path: Path, place: LocalFolder, threads: bool, tokens: str
) -> None:
    layout = layout_of(LENGTHS, tokens=tokens, logprobs=True)
    plain = folder_of(tmp_path / "plain.zarr")
    write(plain, layout)
    write_gathered(
        place,
        layout,
        threads=threads,
        blocks=range(6),
        after=state_writer.Writer.finish_earlier_blocks,
    )
    # Block 5 is under way; where nothing is gathered, it was finished as soon as it ended.
    finished = 5 if threads or tokens != "all" else 6
    expected = [True] * finished + [False] * (len(LENGTHS) - finished)
    assert dataset_of(place)["done"].values.tolist() == [expected] * len(layout.trie)
    write_gathered(place, layout, threads=threads)
    assert bytes_in(place) == bytes_in(plain)


def test_a_block_that_is_given_up_is_not_declared_finished(place: LocalFolder) -> None:
    layout = layout_of(LENGTHS)
    states = states_of(layout)
    with WriterLock(place) as lock:
        writer = state_writer.prepare(place, layout, lock, threads=True)
        for block in range(3):
            writer.begin(block)
            if block == 1:
                writer.give_up(1)
            first, last = layout.token_starts[block : block + 2]
            for node in range(len(layout.trie)):
                writer.write(node, states[node, first:last], None, block)
        assert writer.is_begun_before(1)
        assert not state_writer.prepare(place, layout, lock).is_begun_before(0)
        writer.finish_earlier_blocks()
    assert dataset_of(place)["done"].values.any(0).tolist() == [True] + [False] * 9


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("fails", range(1, 12, 2))
def test_after_a_failed_write_nothing_more_is_declared_finished(
    tmp_path: Path,
    place: LocalFolder,
    monkeypatch: pytest.MonkeyPatch,
    threads: bool,
    fails: int,
) -> None:
    """What follows a failed write of a node is given nevertheless, as threads that have work in
    their queues do.
    """
    layout = layout_of(LENGTHS, logprobs=True)
    states, blocks = states_of(layout), np.diff(layout.token_starts)
    plain = folder_of(tmp_path / "plain.zarr")
    write(plain, layout)
    put, puts = ChunkFiles.put, []

    def fail(self: ChunkFiles, chunks: Any) -> None:
        puts.append(chunks)
        if len(puts) == fails:
            raise OSError(errno.EIO, "Input/output error")
        put(self, chunks)

    with WriterLock(place) as lock, monkeypatch.context() as patch:
        writer = state_writer.prepare(place, layout, lock, threads=threads)
        patch.setattr(ChunkFiles, "put", fail)
        for block in range(len(layout.blocks)):
            writer.begin(block)
            first, last = layout.token_starts[block : block + 2]
            for node in range(len(layout.trie)):
                piece = states[node, first:last]
                with suppress(StoreError):
                    writer.write(node, piece, scores_of(layout, node, piece), block)
        with suppress(StoreError):
            writer.finish()
    done = np.repeat(dataset_of(place)["done"].values, blocks, axis=1)
    assert_array_equal(dataset_of(place)["hidden"].values[done], states[done])
    write_gathered(place, layout, threads=threads)
    assert bytes_in(place) == bytes_in(plain)
