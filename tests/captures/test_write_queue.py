"""States on their way to the disk: threads and buffers give what the calling thread gives, hold no
more than they may, and end as it does.

The threads run on a CPU here, with unpinned buffers; on a GPU the same code takes pinned ones.
"""

import errno
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_array_equal

import repsim
from repsim import models
from repsim.captures import write_queue
from repsim.captures.host_buffers import HostBuffers, HostCopies, bytes_together, views_in
from repsim.data.corpus import read_corpus
from repsim.errors import Interrupted, RepsimError
from repsim.jobs.resumable import Progress
from repsim.models import tracing
from repsim.models.tracing import NodeState
from repsim.plans import PlanTrie
from repsim.storage import state_writer
from repsim.storage.local_folder import LocalFolder
from support.faults import digests

PLANS = ("baseline", "looped_parallel:start=1,loops=2")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
WHOLE: dict[str, dict[str, str]] = {}  # digests of captures by their options
PATIENCE = 60.0  # seconds that no test comes near unless something waits for ever


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "lines.txt"
    words = read_corpus().texts[0].text.split()
    path.write_text("\n".join(" ".join(words[row : 2 * row + 2]) for row in range(10)))
    return str(path)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing goes on beside the computation, on a CPU and to a folder as well."""
    monkeypatch.setattr(write_queue, "ALWAYS_BESIDE", True)
    monkeypatch.setattr(write_queue, "WRITERS", 3)


def keywords_of(texts: str, **others: Any) -> dict[str, Any]:
    keywords = {"plan": PLANS, "corpus": texts, "dtype": "float32", "batch_tokens": 16}
    return {**keywords, "logprobs": True, **others}


# Buffers


@pytest.mark.parametrize("device", DEVICES)
def test_values_arrive_in_a_buffer_as_they_were(device: str) -> None:
    values = [
        torch.arange(6, dtype=torch.float16, device=device).view(2, 3),
        torch.tensor([1.5, -2.0], device=device),
        torch.arange(5, dtype=torch.float32, device=device),
    ]
    nbytes = bytes_together([value.numel() * value.element_size() for value in values])
    buffers = HostBuffers(1, nbytes, pinned=device == "cuda")
    for _ in range(2):  # a buffer that was used before is as good
        buffer = buffers.take()
        host = views_in(buffer, values)
        HostCopies().copy(values, host).wait()
        for value, there in zip(values, host, strict=True):
            assert_array_equal(there.numpy(), value.cpu().numpy())
        buffers.give_back(buffer)
    assert buffers.made == 1


def test_a_buffer_is_waited_for_where_all_are_in_use() -> None:
    buffers = HostBuffers(2, 8, pinned=False)
    first, second = buffers.take(), buffers.take()
    assert first.data_ptr() != second.data_ptr()
    taken: list[torch.Tensor] = []
    waiting = threading.Thread(target=lambda: taken.append(buffers.take()))
    waiting.start()
    assert not taken
    buffers.give_back(second)
    waiting.join(PATIENCE)
    assert [buffer.data_ptr() for buffer in taken] == [second.data_ptr()]
    assert buffers.made == 2


def test_no_buffer_is_used_again_before_its_write_has_ended(
    model: models.Model,
    texts: str,
    tmp_path: Path,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Writers dawdle, so that the computation is as far ahead as the buffers let it."""
    monkeypatch.setattr(write_queue, "WAITING_STATES", 4)
    write = state_writer.Writer.write
    lock, under_way, most = threading.Lock(), set[int](), [0]
    rings: list[HostBuffers] = []
    make = HostBuffers.__init__

    def note(self: HostBuffers, *rest: Any, **options: Any) -> None:
        make(self, *rest, **options)
        rings.append(self)

    def dawdle(self: state_writer.Writer, node: int, hidden: Any, *rest: Any) -> None:
        before, where = hidden.copy(), hidden.ctypes.data
        with lock:
            assert where not in under_way
            under_way.add(where)
            most[0] = max(most[0], len(under_way))
        time.sleep(0.002)
        write(self, node, hidden, *rest)
        assert_array_equal(hidden, before)
        with lock:
            under_way.remove(where)

    monkeypatch.setattr(HostBuffers, "__init__", note)
    monkeypatch.setattr(state_writer.Writer, "write", dawdle)
    capture = repsim.capture(model, out=tmp_path / "c.zarr", **keywords_of(texts))
    assert capture.missing == 0
    (ring,) = rings
    assert 2 <= ring.made <= ring.most == 4
    assert 2 <= most[0] <= 3  # several writers at work
    assert len(ring._free) == ring.made


# Equal to the calling thread


@pytest.mark.parametrize("tokens", ["all", "last", "mean", "every:2"])
def test_threads_leave_the_same_store(
    model: models.Model,
    texts: str,
    tmp_path: Path,
    threads: None,
    tokens: str,
) -> None:
    keywords = keywords_of(texts, tokens=tokens, logprobs=tokens != "last")
    repsim.capture(model, out=tmp_path / "c.zarr", **keywords)
    assert digests(tmp_path / "c.zarr") == digests_of_whole(model, tmp_path, keywords)


def test_statistics_of_threads_are_the_same(
    model: models.Model, texts: str, tmp_path: Path, threads: None
) -> None:
    keywords = keywords_of(texts, keep="none", statistics=["cosine", "norms"])
    repsim.capture(model, out=tmp_path / "c.zarr", **keywords)
    assert digests(tmp_path / "c.zarr") == digests_of_whole(model, tmp_path, keywords)


# Blocks go on while the last one is written


def test_the_next_block_begins_before_the_last_one_is_written(
    model: models.Model,
    texts: str,
    tmp_path: Path,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last state of block 0 is not written before block 1 begins; a run that waited for it
    would not go on.
    """
    begin, write = state_writer.Writer.begin, state_writer.Writer.write
    has_begun, marked = threading.Event(), []

    def note(self: state_writer.Writer, block: int) -> None:
        if block == 1:
            marked.append(bool(self.done[:, 0].all()))
            has_begun.set()
        begin(self, block)

    def late(self: state_writer.Writer, node: int, hidden: Any, scores: Any, block: int) -> None:
        if (block, node) == (0, len(self.done) - 1):
            assert has_begun.wait(PATIENCE)
        write(self, node, hidden, scores, block)

    monkeypatch.setattr(state_writer.Writer, "begin", note)
    monkeypatch.setattr(state_writer.Writer, "write", late)
    capture = repsim.capture(model, out=tmp_path / "c.zarr", **keywords_of(texts))
    assert marked == [False]
    assert capture.missing == 0
    assert repsim.verify(tmp_path / "c.zarr").damages == ()


# Ends


def finished_tokens(path: Path) -> int:
    """How many tokens are finished under every plan, in a store without damage."""
    capture = repsim.open(path)
    assert isinstance(capture, repsim.Capture)
    assert repsim.verify(path).damages == ()
    return capture.complete


def tokens_before(path: Path, block: int) -> int:
    """How many kept tokens the blocks before this one have."""
    dataset = repsim.open(path).dataset
    return int((dataset["block"].values[dataset["sample"].values] < block).sum())


def assert_goes_on(model: models.Model, path: Path, keywords: dict[str, Any]) -> None:
    """The same call finishes the store, which is then what a run in one piece leaves."""
    repsim.capture(model, out=path, **keywords)
    assert digests(path) == digests_of_whole(model, path.parent, keywords)


def digests_of_whole(model: models.Model, folder: Path, keywords: dict[str, Any]) -> dict[str, str]:
    """What the calling thread leaves in one piece."""
    if str(keywords) not in WHOLE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(write_queue, "ALWAYS_BESIDE", False)
            repsim.capture(model, out=folder / "whole.zarr", **keywords)
        WHOLE[str(keywords)] = digests(folder / "whole.zarr")
    return WHOLE[str(keywords)]


@pytest.fixture(params=[False, True], ids=["calling thread", "threads"])
def beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(write_queue, "ALWAYS_BESIDE", request.param)
    return bool(request.param)


def change_blocks(
    monkeypatch: pytest.MonkeyPatch, at: int, change: Callable[[NodeState], NodeState]
) -> None:
    """From block `at` on, states are changed before they are taken."""
    run, blocks = tracing.Tracer.run, []

    def run_changed(
        self: tracing.Tracer, trie: PlanTrie, batches: Any, consume: Any, **options: Any
    ) -> None:
        if len(trie) > self.model.layers + 1:  # a capture's; those of trials are smaller
            blocks.append(batches)
            if len(blocks) > at:
                run(self, trie, batches, lambda state: consume(change(state)), **options)
                return
        run(self, trie, batches, consume, **options)

    monkeypatch.setattr(tracing.Tracer, "run", run_changed)


def run_out_of_memory(state: NodeState) -> NodeState:
    if state.node > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return state


def enlarge(state: NodeState) -> NodeState:
    return replace(state, hidden=state.hidden * (1e30 if state.node > 2 else 1))


@pytest.mark.parametrize("tokens", ["all", "every:2"])
def test_out_of_memory_leaves_earlier_blocks_and_begins_no_other(
    model: models.Model,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beside: bool,
    tokens: str,
) -> None:
    keywords, out = keywords_of(texts, tokens=tokens), tmp_path / "c.zarr"
    with monkeypatch.context() as patch:
        change_blocks(patch, 3, run_out_of_memory)
        with pytest.raises(RepsimError, match=r"^block 3 of .*out of memory.*finished is kept"):
            repsim.capture(model, out=out, **keywords)
    assert finished_tokens(out) == tokens_before(out, 3)
    assert not repsim.open(out).dataset["done"].values[:, 3].any()
    assert_goes_on(model, out, keywords)


@pytest.mark.parametrize("tokens", ["all", "every:2"])
def test_states_that_do_not_fit_leave_earlier_blocks(
    model: models.Model,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beside: bool,
    tokens: str,
) -> None:
    keywords = keywords_of(texts, tokens=tokens, dtype="float16", logprobs=False)
    out = tmp_path / "c.zarr"
    for at, elsewhere in ((0, ""), (2, " and another --out,")):
        with monkeypatch.context() as patch:
            change_blocks(patch, at, enlarge)
            with pytest.raises(RepsimError, match=f"float16; use --dtype float32{elsewhere} or"):
                repsim.capture(model, out=out, **keywords)
        assert out.exists() == (at > 0)  # nothing is left of a store that holds nothing
    assert finished_tokens(out) == tokens_before(out, 2)
    assert not repsim.open(out).dataset["done"].values[:, 2].any()
    assert_goes_on(model, out, keywords)


@pytest.mark.parametrize("tokens", ["all", "every:2"])
def test_an_interrupt_leaves_all_that_was_taken(
    model: models.Model, texts: str, tmp_path: Path, beside: bool, tokens: str
) -> None:
    keywords, out = keywords_of(texts, tokens=tokens), tmp_path / "c.zarr"
    calls: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        calls.append(progress)
        if len(calls) == 20:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"^stopped by SIGINT with [1-9]\d* of ") as caught:
        repsim.capture(model, out=out, progress=interrupt, **keywords)
    # The first call tells that nothing is done, and the last state's is not made.
    assert int(repsim.open(out).dataset["done"].values.sum()) == len(calls)
    assert f" with {finished_tokens(out)} of " in str(caught.value)
    assert_goes_on(model, out, keywords)


@pytest.mark.parametrize("writes", [1, 20])
def test_a_full_disk_ends_a_run_with_threads_in_one_line(
    model: models.Model,
    texts: str,
    tmp_path: Path,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    keywords, out = keywords_of(texts), tmp_path / "c.zarr"
    put, counts = LocalFolder.put, list[str]()

    def fill(self: LocalFolder, key: str, data: bytes, sync: bool) -> None:
        if key.startswith("hidden/c/"):
            counts.append(key)
            if len(counts) > writes:
                raise OSError(errno.ENOSPC, "No space left on device")
        put(self, key, data, sync)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "put", fill)
        patch.setattr(state_writer, "HELD_BYTES", 0)  # every state is written at once
        patch.setattr(state_writer, "MARK_SECONDS", -1.0)
        with pytest.raises(RepsimError, match=f"^{out}: cannot be written: No space left on") as no:
            repsim.capture(model, out=out, **keywords)
    assert "\n" not in str(no.value)
    # Those under way in other threads may have failed as well; nothing is written after that.
    assert len(counts) <= writes + write_queue.WRITERS + write_queue.WAITING_STATES
    if out.exists():
        assert finished_tokens(out) >= 0
    assert_goes_on(model, out, keywords)


def test_a_second_interrupt_stops_at_once(
    model: models.Model, texts: str, tmp_path: Path, threads: None
) -> None:
    keywords, out = keywords_of(texts), tmp_path / "c.zarr"

    def stop(progress: Progress) -> None:
        if progress.tokens > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repsim.capture(model, out=out, progress=stop, **keywords)
    assert not [thread for thread in threading.enumerate() if "repsim-writer" in thread.name]
    assert finished_tokens(out) >= 0
    assert_goes_on(model, out, keywords)
