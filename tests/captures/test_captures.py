"""Captures from end to end with tiny random models: from texts to states on disk and back."""

import copy
import errno
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

import repsim
from repsim import models
from repsim.analyses import cosine, norms
from repsim.captures import write_queue
from repsim.data.batching import batches, cut_blocks
from repsim.data.corpus import read_corpus
from repsim.data.samples import Sample, tokenize
from repsim.errors import Interrupted, RepsimError, StoreDamaged
from repsim.jobs.resumable import Progress
from repsim.models import tracing
from repsim.models.stack import find_stack
from repsim.models.tracing import NodeState
from repsim.plans import Plan, PlanTrie, resolve
from repsim.schema import Identity
from repsim.stats.per_sample import SampleStatistic
from repsim.storage import lock as locks
from repsim.storage import state_store, state_writer
from repsim.storage.lock import WriterLock
from repsim.storage.place_names import location_of
from support.models import VOCABULARY, T

TEXTS = (
    "the time of the day",
    "a word and the next and then a third one, all of them in one line of text",
    "of",
    "it is in the house that it was",
    "and to the sea",
)
PLANS = ("baseline", "skip:start=1", "looped_parallel:start=1,loops=2", "drop:layer=2,part=attn")
BATCH_TOKENS = 16  # three batches, and none as long as a chunk


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "lines.txt"
    path.write_text("\n".join(TEXTS))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made on the way" / "c.zarr"


@pytest.fixture(scope="module")
def mixed(
    model: models.Model, texts: str, tmp_path_factory: pytest.TempPathFactory
) -> repsim.Capture:
    """A finished capture, not to be changed."""
    out = tmp_path_factory.mktemp("captures") / "mixed.zarr"
    options: dict[str, Any] = {"dtype": "float32", "logprobs": True, "batch_tokens": BATCH_TOKENS}
    return repsim.capture(model, plan=PLANS, corpus=texts, out=out, **options)


def samples_of(model: models.Model, texts: str) -> tuple[Sample, ...]:
    return tokenize(read_corpus(texts), model.tokenizer, 100)[0]


def blocks_of(model: models.Model, texts: str) -> list[tuple[Sample, ...]]:
    samples = samples_of(model, texts)
    ends = np.cumsum((0, *cut_blocks(samples, BATCH_TOKENS)))
    return [samples[first:last] for first, last in pairwise(ends)]


def block_tokens(model: models.Model, texts: str) -> list[int]:
    return [sum(map(len, block)) for block in blocks_of(model, texts)]


def traced(model: models.Model, texts: str, plan: str) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """A plan's states `[token, unit]` and log-probabilities, straight from the tracer."""
    (named,) = resolve(plan, model.layers)
    trie = PlanTrie.build([named.plan])
    states: list[list[torch.Tensor]] = [[] for _ in range(len(trie))]
    logprobs: list[torch.Tensor] = []

    def consume(state: NodeState) -> None:
        states[state.node].append(state.hidden.clone())
        if state.logprob is not None:
            logprobs.append(state.logprob)

    for block in blocks_of(model, texts):
        tracing.Tracer(model).run(
            trie, batches(block, 0, overhead=16, waste=0.02), consume, logprobs=True
        )
    return [torch.cat(pieces).numpy() for pieces in states], torch.cat(logprobs).numpy()


def changed(model: models.Model, change: Callable[[Any], None], **names: Any) -> models.Model:
    """A copy of the model with other weights."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        change(module)
    return replace(model, module=module, stack=find_stack(module), **names)


def key_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def reopen(path: Path) -> repsim.Capture:
    """What `repsim.open` finds there, which is a capture."""
    capture = repsim.open(path)
    assert isinstance(capture, repsim.Capture)
    return capture


def note_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes whose states are written from here on, in a list that grows."""
    write = state_writer.Writer.write
    nodes: list[int] = []

    def write_and_note(self: state_writer.Writer, node: int, *rest: Any) -> None:
        nodes.append(node)
        write(self, node, *rest)

    monkeypatch.setattr(state_writer.Writer, "write", write_and_note)
    return nodes


# What a capture holds


@pytest.mark.parametrize("plan", PLANS)
def test_states_and_log_probabilities_are_the_tracer_s_own(
    mixed: repsim.Capture, model: models.Model, texts: str, plan: str
) -> None:
    states, logprob = traced(model, texts, plan)
    assert mixed.hidden(plan).dims == ("state", "token", "unit")
    assert mixed.hidden(plan).dtype == "float32"
    assert_array_equal(mixed.hidden(plan).values, np.stack(states))
    assert mixed.logprob(plan).dims == ("token",)
    assert_array_equal(mixed.logprob(plan).values, logprob)


def test_float16_states_are_rounded_once(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path
) -> None:
    half = repsim.capture(model, plan=PLANS, corpus=texts, out=path, batch_tokens=BATCH_TOKENS)
    for plan in PLANS:
        assert half.hidden(plan).dtype == "float16"
        assert_array_equal(half.hidden(plan).values, mixed.hidden(plan).values.astype("float16"))


def test_states_tokens_and_samples_have_names(
    mixed: repsim.Capture, model: models.Model, texts: str
) -> None:
    samples = samples_of(model, texts)
    lengths = [len(sample) for sample in samples]
    assert lengths == sorted(lengths, reverse=True)
    hidden = mixed.hidden("skip:start=1")
    assert hidden["layer"].values.tolist() == ["embed", "0", "1", "5"]
    assert (
        mixed.hidden("looped_parallel:start=1,loops=2")["layer"].values.tolist()[3:5]
        == ["(2|3|4)"] * 2
    )
    assert (hidden["plan"].item(), hidden["plan_text"].item()) == ("skip:start=1", "0, 1, 5")
    with_tokens: list[xr.Dataset | xr.DataArray] = [hidden, mixed.tokens, mixed.logprob()]
    for where in with_tokens:
        assert_array_equal(
            where["token_id"], np.concatenate([sample.token_ids for sample in samples])
        )
        assert_array_equal(
            where["position"], np.concatenate([np.arange(length) for length in lengths])
        )
        assert_array_equal(where["sample"], np.repeat(np.arange(len(samples)), lengths))
    assert set(mixed.tokens.data_vars) == {"token_id", "position", "sample"}
    assert set(hidden.coords) == {"layer", "plan", "plan_text", "token_id", "position", "sample"}
    assert mixed.samples.values.tolist() == [sample.key for sample in samples]
    assert sorted(mixed.samples.values.tolist()) == sorted(map(key_of, TEXTS))
    ends = np.cumsum(lengths) - 1
    assert np.flatnonzero(np.isnan(mixed.logprob("skip:start=1"))).tolist() == ends.tolist()
    assert (mixed.complete, mixed.layers, mixed.chunk_tokens) == (sum(lengths), T, sum(lengths))


def test_a_plan_goes_by_any_of_its_forms(mixed: repsim.Capture) -> None:
    assert [named.name for named in mixed.plans] == list(PLANS)
    assert mixed.plans == resolve(PLANS, T)
    forms: tuple[str | Plan, ...] = ("0-5", " 0 - 5 ", Plan.from_steps(range(T)), "fig3")
    for form in forms:
        assert mixed.plan_name(form) == "baseline"
        xr.testing.assert_identical(mixed.hidden(form), mixed.hidden())
    assert mixed.plan_name("0, 1, 5") == "skip:start=1"


def test_the_identity_of_a_capture(mixed: repsim.Capture, model: models.Model, texts: str) -> None:
    identity = Identity(**mixed.identity)
    assert (identity.model, identity.corpus, identity.compute_dtype) == (
        "tiny-llama",
        "lines",
        "float32",
    )
    assert (identity.weights, identity.tokenizer) == (model.weights_digest, model.tokenizer_digest)
    assert set(identity.versions) >= {"repsim-layers", "torch", "transformers", "nnsight"}
    assert str(Path(texts).parent) not in json.dumps(mixed.dataset.attrs)


def test_the_identity_does_not_depend_on_what_is_cut(
    tiny_folder: Path, texts: str, path: Path
) -> None:
    cut = repsim.capture(str(tiny_folder), corpus=texts, out=path, max_tokens=2).identity
    whole = repsim.capture(str(tiny_folder), corpus=texts, out=path.with_name("d.zarr")).identity
    assert cut.pop("corpus_digest") != whole.pop("corpus_digest")
    assert cut == whole


def test_what_a_capture_says_of_itself(mixed: repsim.Capture) -> None:
    for shown in (repr(mixed), mixed._repr_html_()):
        for fact in ("tiny-llama", "lines", "5 samples", *PLANS, "float32"):
            assert fact in shown
    assert str(mixed.path) in repr(mixed)
    assert len(repr(mixed).splitlines()) < 9


def test_states_are_read_when_asked_for(mixed: repsim.Capture) -> None:
    hidden = mixed.hidden()
    piece = hidden.isel(state=[0, 2], token=slice(3, 5))
    assert not hidden.variable._in_memory
    assert not piece.variable._in_memory
    assert piece.values.shape == (2, 2, 32)
    assert not hidden.variable._in_memory


def test_a_store_far_larger_than_memory_opens_at_once(path: Path) -> None:
    plans = resolve(PLANS, T)
    trie = PlanTrie.build(named.plan for named in plans)
    samples = tuple(Sample(f"key{row}", np.zeros(2**15, np.int32)) for row in range(2**5))
    identity = Identity("m", None, "77", "66", "88", "float32", "own", "99", "all", "cpu")
    layout = state_store.Layout(identity, T, plans, trie, samples, (1,) * 2**5, 2**14, "float32")
    assert layout.bytes_of(np.ones((len(trie), 2**5), bool)) > 10**12
    with WriterLock(location_of(path)) as lock:
        writer = state_writer.prepare(location_of(path), layout, lock)
        writer.done[:] = True
        for block in range(2**5):
            writer.begin(block)
            writer._finish(range(len(trie)), [block])
        writer.finish()
    hidden = reopen(path).hidden("skip:start=1")
    assert hidden.sizes == {"state": 4, "token": 2**20, "unit": 2**14}
    # Declared finished, and not there.
    with pytest.raises(StoreDamaged, match=r"hidden/c/\d+/\d+/0 is missing"):
        _ = hidden.isel(token=slice(777_777, 777_779), unit=slice(3)).values


# Ways to capture


def test_batches_make_no_difference(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path
) -> None:
    whole = repsim.capture(
        model, plan=PLANS, corpus=texts, out=path, dtype="float32", batch_tokens=1000
    )
    for plan in PLANS:
        states, others = mixed.hidden(plan).values, whole.hidden(plan).values
        distance = np.linalg.norm(states - others, axis=-1)
        assert (distance <= 1e-5 * np.linalg.norm(others, axis=-1)).all()


def test_progress_counts_tokens(model: models.Model, texts: str, path: Path) -> None:
    seen: list[Progress] = []
    done = repsim.capture(
        model, corpus=texts, out=path, batch_tokens=BATCH_TOKENS, progress=seen.append
    )
    expected = [0, *np.cumsum(block_tokens(model, texts)).tolist()]
    assert len(expected) > 3
    assert [state.tokens for state in seen] == sorted(state.tokens for state in seen)
    assert {Progress(tokens, done.complete) for tokens in expected} <= set(seen)
    assert len(seen) == 1 + (T + 1) * len(block_tokens(model, texts))


def test_an_encoder(tiny_encoder_folder: Path, texts: str, path: Path) -> None:
    capture = repsim.capture(
        str(tiny_encoder_folder), plan=["baseline", "drop:layer=1"], corpus=texts, out=path
    )
    ids, position = capture.tokens["token_id"], capture.tokens["position"]
    assert (ids[position == 0] == 1).all()  # [CLS]
    assert int((ids == 2).sum()) == len(TEXTS)  # [SEP]
    assert capture.hidden("drop:layer=1").sizes["state"] == T
    assert np.isfinite(capture.hidden().values).all()
    with pytest.raises(RepsimError, match=r"^--logprobs: tiny-bert does not predict a next token$"):
        repsim.capture(
            str(tiny_encoder_folder), corpus=texts, logprobs=True, out=path.with_name("d.zarr")
        )
    assert not path.with_name("d.zarr").exists()


def test_a_model_by_name_and_the_default_path(
    tiny_folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path))
    capture = repsim.capture(
        str(tiny_folder),
        plan=("baseline", "skip:start=0..1"),
        corpus=texts,
        model_dtype="bfloat16",
        max_tokens=3,
    )
    assert undigested(capture) == "tiny-llama-lines-baseline+skip-start=0..1.zarr"
    assert Path(capture.path).parent == tmp_path / "captures"
    assert capture.identity["compute_dtype"] == "bfloat16"
    assert capture.tokens["position"].max() == 2
    other = repsim.capture(str(tiny_folder), corpus=texts)
    assert undigested(other) == "tiny-llama-lines-baseline.zarr"


def undigested(capture: repsim.Capture) -> str:
    """The name of a store at its default place without the digests of the model's and texts' paths,
    which it has to have.
    """
    name, count = re.subn(r"-[0-9a-f]{6}(?=-)", "", Path(capture.path).name)
    assert count == 2
    return name


@pytest.fixture(scope="module")
def two_stacks(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder-decoder, three layers each."""
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    config: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 3,
        "num_heads": 4,
        "vocab_size": VOCABULARY,
        "decoder_start_token_id": 0,
    }
    transformers.T5Model(transformers.T5Config(**config)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, folder)
    return folder


def test_a_stack_that_was_named_is_a_part_of_the_identity(
    two_stacks: Path, texts: str, path: Path
) -> None:
    encoder = repsim.capture(two_stacks, corpus=texts, stack="encoder.block", out=path)
    assert (encoder.identity["stack"], encoder.stack) == ("encoder.block", "encoder.block")
    resumptions: list[dict[str, Any]] = [{}, {"append": True}, {"repair": True}]
    for options in resumptions:
        with pytest.raises(RepsimError) as caught:
            repsim.capture(two_stacks, corpus=texts, stack="decoder.block", out=path, **options)
        assert (
            f"{path}: holds another capture: another stack (encoder.block there, decoder.block "
            "here); " in str(caught.value)
        )
    decoder = repsim.capture(
        two_stacks, corpus=texts, stack="decoder.block", out=path.with_name("d.zarr")
    )
    assert not np.array_equal(encoder.hidden().values[1], decoder.hidden().values[1])


def test_the_default_path_names_the_stack_where_it_was_named(
    two_stacks: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path))
    captures = [
        repsim.capture(two_stacks, corpus=texts, stack=f"{half}.block")
        for half in ("encoder", "decoder")
    ]
    assert [undigested(capture) for capture in captures] == [
        f"tiny-t5-{half}.block-lines-baseline.zarr" for half in ("encoder", "decoder")
    ]
    loaded = models.load(two_stacks, stack="decoder.block")
    assert repsim.capture(loaded, corpus=texts).path == captures[1].path


def test_a_stack_that_would_be_found_is_none_that_was_named(
    tiny_folder: Path, texts: str, path: Path
) -> None:
    """So a store from before stacks were a part of it is gone on with, whether its command named
    the stack or not.
    """
    named = repsim.capture(tiny_folder, corpus=texts, stack="model.layers", out=path)
    assert "stack" not in named.identity
    for stack in (None, "model.layers"):
        grown = repsim.capture(
            tiny_folder, plan="drop:layer=1", corpus=texts, stack=stack, out=path, append=True
        )
        assert [plan.name for plan in grown.plans] == ["baseline", "drop:layer=1"]


def test_an_older_store_of_a_named_stack_is_read_and_not_gone_on_with(
    two_stacks: Path, texts: str, path: Path
) -> None:
    """Before, a store did not say whose states it holds, and a decoder's stood under their
    neighbours' tokens.
    """
    repsim.capture(two_stacks, corpus=texts, stack="decoder.block", out=path)
    described = json.loads((path / "zarr.json").read_text())
    del described["attributes"]["identity"]["stack"]
    described["attributes"]["repsim_schema"] = 2  # whose attributes nothing vouches for
    (path / "zarr.json").write_text(json.dumps(described))
    older = reopen(path)
    assert older.hidden().sizes["state"] == 4
    assert (
        older.info["stack"] == "decoder.block by its command; tokens not checked, capture it again"
    )
    with pytest.raises(RepsimError, match=r"another stack \(None there, decoder.block here\)"):
        repsim.capture(two_stacks, corpus=texts, stack="decoder.block", out=path)


def test_remarks_on_the_corpus_go_to_the_log(
    model: models.Model, tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c.txt").write_text("\nthe\nthe of the\nthe\n")
    repsim.capture(model, corpus=str(tmp_path / "c.txt"), out=path, max_tokens=2)
    remarks = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert remarks == [
        "corpus c: 1 empty texts left out",
        "corpus c: 1 repeated texts left out",
        "corpus c: 1 samples cut to 2 tokens",
    ]


def test_results_are_kept_with_the_capture(model: models.Model, texts: str, path: Path) -> None:
    capture = repsim.capture(model, corpus=texts, out=path)
    result = xr.Dataset({"x": ("state", np.arange(3.0))})
    capture.write_result("first", result)
    kept = xr.open_zarr(path, group="analyses/first", consolidated=False).load()
    xr.testing.assert_identical(kept.drop_attrs(), result)
    xr.testing.assert_identical(repsim.open(path).dataset.load(), capture.dataset.load())


# Complete means what was asked for


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_plan_that_ends_inside_another_is_added(
    model: models.Model, texts: str, path: Path, logprobs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    keywords: dict[str, Any] = {
        "corpus": texts,
        "dtype": "float32",
        "logprobs": logprobs,
        "batch_tokens": BATCH_TOKENS,
    }
    repsim.capture(model, plan="baseline", out=path, **keywords)
    with pytest.raises(RepsimError, match=r"not plans 0-2; add --append"):
        repsim.capture(model, plan=["baseline", "0-2"], out=path, **keywords)
    both = repsim.capture(model, plan="0-2", append=True, out=path, **keywords)
    assert [named.plan.text for named in both.plans] == ["0-5", "0-2"]
    assert not both.missing
    assert not repsim.verify(path).damages
    alone = repsim.capture(model, plan="0-2", out=path.with_name("alone.zarr"), **keywords)
    np.testing.assert_array_equal(both.hidden("0-2"), alone.hidden("0-2"))
    if logprobs:
        np.testing.assert_allclose(both.logprob("0-2"), alone.logprob("0-2"), rtol=1e-6)
    caplog.set_level("INFO", "repsim")
    repsim.capture(model, plan="0-2", append=True, out=path, **keywords)
    assert "complete already" in caplog.text


@pytest.mark.parametrize("flags", [b"", b"\0" * 20, None])
def test_after_a_power_cut_the_same_command_goes_on(
    model: models.Model,
    texts: str,
    path: Path,
    flags: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flags that are torn or lost, and the lock of a machine that has been started anew since."""
    keywords: dict[str, Any] = {"corpus": texts, "out": path, "logprobs": True}
    whole = bytes_of(Path(repsim.capture(model, **keywords).path))
    for name in ("done", "predicted"):
        chunk = path / name / "c" / "0" / "0"
        chunk.unlink() if flags is None else chunk.write_bytes(flags)
    (path / locks.KEY).write_bytes(locks.Owner(1, "here", 0.0, "before", "ff").bytes)
    monkeypatch.setattr(locks, "MISSED_BEATS", 0)
    assert not repsim.capture(model, **keywords).missing
    assert bytes_of(path) == whole


def bytes_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


# Finished, stopped and other stores


def test_a_finished_capture_is_opened_and_not_computed_again(
    mixed: repsim.Capture, model: models.Model, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(tracing, "Tracer", fail)
    again = repsim.capture(
        model, plan=PLANS, corpus=texts, out=mixed.path, dtype="float32", logprobs=True
    )
    xr.testing.assert_identical(again.dataset.load(), mixed.dataset.load())


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"dtype": "float16"}, r"dtype \(float32 there, float16 here\)"),
        ({"logprobs": False}, r"--logprobs \(True there, False here\)"),
        ({"tokens": "every:2"}, r"other tokens kept \(all there, every:2 here\)"),
        ({"compression": "fast"}, r"--compression \(none there, fast here\)"),
        ({"keep": "none", "statistics": "norms"}, r"--keep \(all there, none here\)"),
        ({"limit": 2}, "3 of its 5 samples are not in the corpus asked for"),
        (
            {"max_tokens": 2},
            r"other texts, --max-tokens or chat template \([0-9a-f]{8} there, [0-9a-f]{8} here\)",
        ),
        ({"corpus": "builtin", "limit": 2}, r"corpus \(lines there, builtin here\)"),
    ],
)
def test_another_capture_at_the_same_path_is_refused(
    mixed: repsim.Capture, model: models.Model, texts: str, options: dict[str, Any], difference: str
) -> None:
    before = {file: file.stat().st_mtime_ns for file in Path(mixed.path).rglob("*")}
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "dtype": "float32",
        "logprobs": True,
        **options,
    }
    with pytest.raises(
        RepsimError, match=f"mixed.zarr: holds another capture: {difference}"
    ) as caught:
        repsim.capture(model, out=mixed.path, **keywords)
    assert str(caught.value).endswith("; choose another --out or remove it")
    assert {file: file.stat().st_mtime_ns for file in Path(mixed.path).rglob("*")} == before


def test_another_model_at_the_same_path_is_refused(
    mixed: repsim.Capture, model: models.Model, texts: str
) -> None:
    def bend(module: Any) -> None:
        module.model.layers[3].mlp.down_proj.weight[0, 0] += 1

    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "dtype": "float32",
        "logprobs": True,
        "out": mixed.path,
    }
    with pytest.raises(
        RepsimError, match=r"model \(tiny-llama there, other here\); choose another --out"
    ):
        repsim.capture(replace(model, name="other"), **keywords)
    with pytest.raises(RepsimError, match=r"other weights \([0-9a-f]{8} there, [0-9a-f]{8} here\)"):
        repsim.capture(changed(model, bend), **keywords)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError])
def test_a_stopped_capture_shows_its_finished_tokens_and_goes_on(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path, problem: Any
) -> None:
    first = block_tokens(model, texts)[0]
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "out": path,
        "dtype": "float32",
        "batch_tokens": BATCH_TOKENS,
    }

    def stop(progress: Progress) -> None:
        if progress.tokens > first + 2:
            raise problem

    with pytest.raises(problem):
        repsim.capture(model, progress=stop, logprobs=True, **keywords)
    stopped = reopen(path)
    assert stopped.complete == first < mixed.complete
    assert f"complete:  {first} of {mixed.complete} tokens under every plan" in repr(stopped)
    for plan in PLANS:
        part = {"token": slice(first)}
        xr.testing.assert_identical(
            stopped.hidden(plan).load(), mixed.hidden(plan).isel(part).load()
        )
        xr.testing.assert_identical(
            stopped.logprob(plan).load(), mixed.logprob(plan).isel(part).load()
        )
    seen: list[Progress] = []
    again = repsim.capture(model, progress=seen.append, logprobs=True, **keywords)
    # What was finished is not computed.
    assert seen[-1] == Progress(mixed.complete - first, mixed.complete - first)
    xr.testing.assert_equal(again.dataset.load(), mixed.dataset.load())


def test_what_is_finished_of_a_block_is_not_computed_again(
    mixed: repsim.Capture,
    model: models.Model,
    texts: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block's nodes are finished one by one; the rest of them and what leads to it is all that
    runs.
    """
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "out": path,
        "dtype": "float32",
        "logprobs": True,
    }

    def stop(self: state_writer.Writer, node: int, *others: Any) -> None:
        if node == 6:
            self.finish()
            raise KeyboardInterrupt
        write(self, node, *others)

    write = state_writer.Writer.write
    monkeypatch.setattr(state_writer.Writer, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        repsim.capture(model, **keywords)
    monkeypatch.undo()
    left = set(np.flatnonzero(~repsim.open(path).dataset["done"].values[:, 0]).tolist())
    assert 6 in left
    assert not {0, 1, 2, 3, 4, 5} & left
    written = note_writes(monkeypatch)
    again = repsim.capture(model, **keywords)
    assert set(written) == left
    whole = repsim.capture(model, **{**keywords, "out": path.with_name("whole.zarr")})
    xr.testing.assert_equal(again.dataset.load(), whole.dataset.load())


def test_a_stop_between_two_states(model: models.Model, texts: str, path: Path) -> None:
    """SIGTERM while a block is under way: what is computed is finished and kept, and the message
    says how to go on.
    """

    def stop(progress: Progress) -> None:
        if progress.tokens and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    sent: list[bool] = []
    with pytest.raises(
        Interrupted, match=r"stopped by SIGTERM with 0 of .* the same command goes on from there"
    ) as caught:
        repsim.capture(model, corpus=texts, out=path, batch_tokens=BATCH_TOKENS, progress=stop)
    assert caught.value.signal == signal.SIGTERM
    assert repsim.open(path).dataset["done"].values[:, 0].tolist() == [True, True] + [False] * (
        T - 1
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert repsim.capture(model, corpus=texts, out=path, batch_tokens=BATCH_TOKENS).missing == 0


# Growing and mending


def test_appended_plans_and_samples_equal_those_captured_at_once(
    model: models.Model, texts: str, tmp_path: Path, path: Path
) -> None:
    (tmp_path / "c").mkdir()
    corpus = tmp_path / "c" / "lines.txt"
    corpus.write_text("\n".join(TEXTS[1:4]))
    keywords: dict[str, Any] = {
        "corpus": str(corpus),
        "out": path,
        "dtype": "float32",
        "batch_tokens": BATCH_TOKENS,
        "logprobs": True,
    }
    small = repsim.capture(model, plan=PLANS[:2], **keywords)
    before = small.hidden("skip:start=1").load()
    corpus.write_text("\n".join(TEXTS))
    with pytest.raises(
        RepsimError,
        match=r"c.zarr: holds baseline, skip:start=1 over 3 samples, not plans .* add --append",
    ):
        repsim.capture(model, plan=PLANS, **keywords)
    seen: list[Progress] = []
    grown = repsim.capture(model, plan=PLANS, append=True, progress=seen.append, **keywords)
    assert [named.name for named in grown.plans] == list(PLANS)
    assert grown.missing == 0
    xr.testing.assert_equal(
        grown.hidden("skip:start=1").isel(token=slice(before.sizes["token"])).load(), before
    )
    whole = repsim.capture(
        model, plan=PLANS, **{**keywords, "corpus": texts, "out": path.with_name("w.zarr")}
    )
    keys = grown.samples.values.tolist()
    assert keys[:3] == small.samples.values.tolist()
    for plan in PLANS:
        for key in keys:
            ours, theirs = (
                capture.hidden(plan).isel(
                    token=capture.tokens["sample"].values
                    == capture.samples.values.tolist().index(key)
                )
                for capture in (grown, whole)
            )
            np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-4, atol=1e-5)
    assert len(grown.commands) == 2
    assert grown.commands[1].endswith("--append")
    assert repsim.capture(model, plan=PLANS, append=True, **keywords).missing == 0
    assert repsim.capture(model, plan=PLANS, **keywords).missing == 0  # nothing to append any more


def test_only_the_new_nodes_and_tokens_are_computed(
    model: models.Model, texts: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords: dict[str, Any] = {"corpus": texts, "out": path, "batch_tokens": BATCH_TOKENS}
    first = repsim.capture(model, plan="baseline", **keywords)
    written = note_writes(monkeypatch)
    grown = repsim.capture(model, plan=["baseline", "drop:layer=4"], append=True, **keywords)
    new = set(range(first.dataset.sizes["node"], grown.dataset.sizes["node"]))
    assert set(written) == new
    assert len(written) == len(new) * len(block_tokens(model, texts))


def test_repair_computes_what_is_damaged_and_nothing_else(
    mixed: repsim.Capture,
    model: models.Model,
    texts: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "out": path,
        "dtype": "float32",
        "logprobs": True,
        "batch_tokens": BATCH_TOKENS,
    }
    capture = repsim.capture(model, **keywords)
    assert repsim.verify(path).damages == ()
    chunk = path / "hidden" / "c" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"x" * 9)
    (path / "logprob" / "c" / "6" / "0").unlink()
    assert [str(damage) for damage in repsim.verify(path).damages] == [
        "damaged: hidden node 3 (hidden/c/3/0/0)",
        "missing: logprob node 6 (logprob/c/6/0)",
    ]
    written = note_writes(monkeypatch)
    again = repsim.capture(model, repair=True, **keywords)
    assert set(written) == {3, 6}
    assert repsim.verify(path).damages == ()
    xr.testing.assert_equal(again.dataset.load(), mixed.dataset.load())
    assert shlex.split(capture.commands[0])[-2:] == ["--out", str(path)]


def test_repair_restores_what_describes_a_store(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path
) -> None:
    keywords: dict[str, Any] = {
        "corpus": texts,
        "out": path,
        "dtype": "float32",
        "logprobs": True,
        "batch_tokens": BATCH_TOKENS,
    }
    repsim.capture(model, plan=PLANS, **keywords)
    for name in ("plan/c/0", "token_id/c/0"):
        chunk = path / name
        chunk.write_bytes(b"?" + chunk.read_bytes()[1:])
    with pytest.raises(RepsimError, match=r"c.zarr: damaged \(.*\); repsim verify names it"):
        repsim.open(path)
    assert [damage.array for damage in repsim.verify(path).damages] == ["plan", "token_id"]
    (advice,) = repsim.stores.repair_advice(path, repsim.verify(path))[:1]
    assert "--plan baseline" in advice
    with pytest.raises(
        RepsimError, match="plan, token_id damaged, and this is not the command that made the store"
    ):
        repsim.capture(model, plan=PLANS[::-1], repair=True, **keywords)
    again = repsim.capture(model, plan=PLANS, repair=True, **keywords)
    xr.testing.assert_equal(again.dataset.load(), mixed.dataset.load())
    assert repsim.verify(path).damages == ()


def test_other_batches_for_what_is_left(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path
) -> None:
    """A capture that ran out of memory goes on in smaller blocks; begun ones stay as they are."""

    def stop(progress: Progress) -> None:
        if progress.tokens > block_tokens(model, texts)[0]:
            raise KeyboardInterrupt

    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "out": path,
        "dtype": "float32",
        "logprobs": True,
    }
    with pytest.raises(KeyboardInterrupt):
        repsim.capture(model, progress=stop, batch_tokens=BATCH_TOKENS, **keywords)
    again = repsim.capture(model, batch_tokens=1, **keywords)
    assert np.bincount(again.dataset["block"].values).tolist()[-2:] == [1, 1]
    for plan in PLANS:
        np.testing.assert_allclose(
            again.hidden(plan).values, mixed.hidden(plan).values, rtol=1e-4, atol=1e-5
        )


# What is kept


@pytest.mark.parametrize("rule", ["last", "mean", "every:3"])
def test_tokens_that_are_kept(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path, rule: str
) -> None:
    scored = rule != "last"  # nothing follows a sample's last token
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "dtype": "float32",
        "logprobs": scored,
        "batch_tokens": BATCH_TOKENS,
    }
    if not scored:
        with pytest.raises(RepsimError, match="--logprobs: nothing follows a sample's last token"):
            repsim.capture(model, out=path, tokens=rule, **{**keywords, "logprobs": True})
    kept = repsim.capture(model, out=path, tokens=rule, **keywords)
    sample, position = (mixed.tokens[name].values for name in ("sample", "position"))
    for plan in PLANS:
        states, logprob = mixed.hidden(plan).values, mixed.logprob(plan).values
        rows = [np.flatnonzero(sample == index) for index in range(len(TEXTS))]
        expected: NDArray[Any]
        scores: list[Any] | NDArray[Any]
        if rule == "mean":
            expected = np.stack([states[:, row].mean(1) for row in rows], 1)
            scores = [np.nanmean(logprob[row]) if len(row) > 1 else np.nan for row in rows]
        else:
            chosen = [row[-1:] if rule == "last" else row[::3] for row in rows]
            expected, scores = states[:, np.concatenate(chosen)], logprob[np.concatenate(chosen)]
            assert (
                kept.tokens["position"].values.tolist() == position[np.concatenate(chosen)].tolist()
            )
        np.testing.assert_allclose(kept.hidden(plan).values, expected, rtol=1e-6, atol=1e-6)
        if scored:
            np.testing.assert_allclose(kept.logprob(plan).values, scores, rtol=1e-5)
    assert kept.identity["tokens"] == rule
    assert kept.dataset.sizes["token"] == kept.complete


@pytest.mark.parametrize("rule", ["all", "every:2", "mean"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_statistics_equal_those_of_stored_states(
    model: models.Model, texts: str, path: Path, dtype: str, rule: str
) -> None:
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "dtype": dtype,
        "tokens": rule,
        "batch_tokens": BATCH_TOKENS,
    }
    stored = repsim.capture(model, out=path, **keywords)
    streamed = repsim.capture(
        model, out=path.with_name("s.zarr"), keep="none", statistics="cosine,norms", **keywords
    )
    assert streamed.complete == stored.complete
    for plan in PLANS:
        for average in ("token", "sequence"):
            results = [
                cosine.compute(capture, plan=plan, average=average)
                for capture in (stored, streamed)
            ]
            xr.testing.assert_identical(*results)
        xr.testing.assert_identical(
            *(norms.compute(capture, plan=plan) for capture in (stored, streamed))
        )
    assert repsim.verify(streamed.path).damages == ()
    with pytest.raises(
        RepsimError,
        match=r"holds no states, only statistics \(cosine.token, .* capture with --keep all$",
    ):
        streamed.hidden()


@pytest.mark.parametrize("compression", ["none", "fast"])
@pytest.mark.parametrize("plans", [("baseline",), ("skip:start=1", "baseline")])
def test_samples_are_whole_wherever_chunks_end(
    model: models.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    plans: tuple[str, ...],
) -> None:
    """Chunks of 64 tokens; samples shorter and longer than that, read past zarr and through it."""
    monkeypatch.setattr("repsim.storage.state_store.CHUNK_BYTES", 1)
    corpus = tmp_path / "texts.txt"
    corpus.write_text(
        "\n".join(" ".join(["the river"] * words) for words in (90, 31, 30, 17, 3, 2, 1))
    )
    capture = repsim.capture(
        model,
        plan=["baseline", "skip:start=1"],
        corpus=corpus,
        compression=compression,
        out=tmp_path / "s",
    )
    assert capture.chunk_tokens == 64 < capture.complete
    whole = np.concatenate([capture.hidden(plan).values for plan in plans])
    sample = capture.tokens["sample"].values
    pieces = [states.copy() for states in capture.each_sample(*plans)]
    assert len(pieces) == 7
    for row, piece in enumerate(pieces):
        assert_array_equal(piece, whole[:, sample == row])
    assert capture.lengths(*plans).tolist() == [piece.shape[1] for piece in pieces]
    statistic = SampleStatistic("own", lambda states: states.sum((1, 2), dtype=float))
    for (tokens, values), piece in zip(capture.per_sample(plans, statistic), pieces, strict=True):
        assert tokens == piece.shape[1]
        assert_array_equal(values, piece.sum((1, 2), dtype=float))


@pytest.mark.parametrize("harm", ["flip", "cut", "lose"])
def test_a_damaged_chunk_is_refused_when_it_is_read(
    mixed: repsim.Capture, tmp_path: Path, harm: str
) -> None:
    shutil.copytree(mixed.path, tmp_path / "copy")
    chunk = tmp_path / "copy" / "hidden" / "c" / "3" / "0" / "0"
    data = chunk.read_bytes()
    if harm == "lose":
        chunk.unlink()
    else:
        chunk.write_bytes(data[:-9] if harm == "cut" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(
        RepsimError, match=r"^[^\n]*copy: [^\n]*; repsim verify names it, and the command [^\n]*$"
    ):
        cosine.compute(repsim.open(tmp_path / "copy"))


def test_a_stopped_capture_of_statistics_goes_on(
    model: models.Model, texts: str, path: Path
) -> None:
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "keep": "none",
        "statistics": ["norms"],
        "batch_tokens": BATCH_TOKENS,
    }

    def stop(progress: Progress) -> None:
        if progress.tokens > block_tokens(model, texts)[0] + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repsim.capture(model, out=path, progress=stop, **keywords)
    assert 0 < reopen(path).complete < sum(block_tokens(model, texts))
    again = repsim.capture(model, out=path, **keywords)
    whole = repsim.capture(model, out=path.with_name("w.zarr"), **keywords)
    xr.testing.assert_identical(norms.compute(again), norms.compute(whole))


@pytest.mark.parametrize("compression", ["fast", "small"])
def test_compression_loses_nothing(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path, compression: str
) -> None:
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "dtype": "float32",
        "logprobs": True,
        "batch_tokens": BATCH_TOKENS,
    }
    packed = repsim.capture(model, out=path, compression=compression, **keywords)
    assert_array_equal(packed.dataset["hidden"].values, mixed.dataset["hidden"].values)
    assert repsim.verify(path).damages == ()


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_half_precision_computes(tiny_folder: Path, texts: str, path: Path, compute: str) -> None:
    half = repsim.capture(
        str(tiny_folder), corpus=texts, out=path, model_dtype=compute, dtype="float32"
    )
    loaded = models.load(str(tiny_folder), dtype=compute)
    ids = torch.from_numpy(half.tokens["token_id"].values[half.tokens["sample"].values == 0]).long()
    with torch.inference_mode():
        states = loaded.module(input_ids=ids[None], output_hidden_states=True).hidden_states
    assert half.identity["compute_dtype"] == compute
    captured = half.hidden().isel(token=slice(len(ids))).values
    for ours, theirs in zip(captured[:-1], states[:T], strict=True):
        np.testing.assert_allclose(ours, theirs[0].float().numpy(), rtol=2e-2, atol=2e-2)


def test_states_that_are_not_finite_are_stored_if_one_insists(
    model: models.Model, texts: str, path: Path
) -> None:
    large = changed(model, large_layer)
    kept = repsim.capture(large, corpus=texts, out=path, dtype="float16", allow_nonfinite=True)
    assert np.isinf(kept.hidden().values).any()
    assert kept.missing == 0


def test_side_by_side_equals_one_after_the_other(
    mixed: repsim.Capture, model: models.Model, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a URL, writing goes on beside the computation; an error there stops the capture."""
    keywords: dict[str, Any] = {
        "plan": PLANS,
        "corpus": texts,
        "dtype": "float32",
        "logprobs": True,
        "batch_tokens": BATCH_TOKENS,
    }
    beside = repsim.capture(model, out="memory://beside/c.zarr", **keywords)
    xr.testing.assert_equal(beside.dataset.load(), mixed.dataset.load())
    assert repsim.verify("memory://beside/c.zarr").damages == ()
    repsim.open("memory://beside/c.zarr").write_result("x", xr.Dataset({"y": ("z", [1.0])}))

    def refuse(*_: Any) -> None:
        raise RepsimError("refused")

    monkeypatch.setattr(state_writer.Writer, "write", refuse)
    monkeypatch.setattr(write_queue, "WAITING_STATES", 1)
    with pytest.raises(RepsimError, match=r"^refused$"):
        repsim.capture(model, out="memory://refused/c.zarr", **keywords)


def test_a_capture_that_does_not_fit_writes_nothing(
    model: models.Model, texts: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        RepsimError,
        match=r"[kM]B are needed, --max-bytes allows 100 bytes; take fewer plans",
    ):
        repsim.capture(model, corpus=texts, out=path, max_bytes=100)
    monkeypatch.setattr("repsim.storage.local_folder.LocalFolder.free_bytes", 100)
    with pytest.raises(
        RepsimError, match=r"[kM]B are needed, 100 bytes are free; make room, choose another --out"
    ):
        repsim.capture(model, corpus=texts, out=path)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_large_a_block_is_one_line_and_what_is_finished_stays(
    model: models.Model, texts: str, path: Path, monkeypatch: pytest.MonkeyPatch, problem: Any
) -> None:
    def run(
        self: tracing.Tracer, trie: PlanTrie, token_batches: Any, consume: Any, **options: Any
    ) -> None:
        if len(trie) > model.layers:  # the trial of texts in one batch runs fewer layers
            if blocks:
                raise problem
            blocks.append(token_batches)
        whole(self, trie, token_batches, consume, **options)

    blocks: list[Any] = []
    whole = tracing.Tracer.run
    monkeypatch.setattr(tracing.Tracer, "run", run)
    with pytest.raises(
        RepsimError,
        match=r"^block 1 of 3 \(.*\): out of memory on cpu; what is finished is kept: go on",
    ):
        repsim.capture(model, corpus=texts, out=path, batch_tokens=BATCH_TOKENS, dtype="float16")
    monkeypatch.undo()
    assert reopen(path).complete == block_tokens(model, texts)[0]
    assert repsim.capture(model, corpus=texts, out=path, batch_tokens=4).missing == 0


def test_what_info_says(mixed: repsim.Capture) -> None:
    info = mixed.info
    assert info["weights"] == mixed.identity["weights"]
    assert info["blocks"].startswith(f"{info['blocks'].split()[2]} of ")
    assert info["made by"].startswith(
        "repsim capture tiny-llama --plan baseline --plan skip:start=1 "
    )
    assert "--corpus lines.txt" in info["made by"]


# Bad input


def large_layer(module: Any) -> None:
    module.model.layers[2].mlp.down_proj.weight *= 1e7


def large_word(module: Any) -> None:
    module.model.embed_tokens.weight[4] = 1e6  # `the`, the most frequent word


def undefined_layer(module: Any) -> None:
    module.model.layers[3].mlp.down_proj.weight[0, 0] = torch.nan


def test_a_state_that_does_not_fit_float16(model: models.Model, texts: str, path: Path) -> None:
    large, plans = changed(model, large_layer), ["drop:layer=0", "baseline"]
    with pytest.raises(RepsimError) as caught:
        repsim.capture(large, plan=plans, corpus=texts, out=path, dtype="float16")
    message = str(caught.value)
    place = f"plan drop:layer=0, state 2, sample {key_of(TEXTS[1])}: "
    assert message.startswith(place)
    assert message.endswith(" does not fit float16; use --dtype float32 or --allow-nonfinite")
    assert not path.exists()
    wide = repsim.capture(large, plan=plans, corpus=texts, out=path, dtype="float32")
    largest = abs(wide.hidden("drop:layer=0").isel(state=2)).max("unit").values
    assert float(message.removeprefix(place).split()[0]) in np.round(largest)


def test_the_sample_whose_state_does_not_fit_is_named(
    model: models.Model, tmp_path: Path, path: Path
) -> None:
    lines = ["of and to", "is that the", "in the"]  # in one batch with padding
    (tmp_path / "c.txt").write_text("\n".join(["of and to in it", *lines]))
    with pytest.raises(RepsimError) as caught:
        repsim.capture(
            changed(model, large_word),
            plan="skip:start=2",
            corpus=str(tmp_path / "c.txt"),
            out=path,
            dtype="float16",
        )
    place = f"plan skip:start=2, state 0, sample {key_of(lines[1])}"
    assert (
        str(caught.value)
        == f"{place}: 1000000 does not fit float16; use --dtype float32 or --allow-nonfinite"
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_states_that_are_not_finite_are_refused(
    model: models.Model, texts: str, path: Path, dtype: str
) -> None:
    with pytest.raises(RepsimError) as caught:
        repsim.capture(changed(model, undefined_layer), corpus=texts, out=path, dtype=dtype)
    place = f"plan baseline, state 4, sample {key_of(TEXTS[1])}"
    assert (
        str(caught.value)
        == f"{place}: not finite in float32; use another --model-dtype or plan, or "
        "--allow-nonfinite"
    )
    assert not path.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(
    model: models.Model, texts: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zarr.Array.__setitem__", fail)
    with pytest.raises(RepsimError) as caught:
        repsim.capture(model, corpus=texts, out=path)
    assert (
        str(caught.value)
        == f"{path}: cannot be written: No space left on device; choose another --out"
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype 'bfloat16': choose auto, float16 or float32"),
        ({"batch_tokens": 0}, "batch_tokens=0: at least 1"),
        ({"max_tokens": 0}, "max_tokens=0: at least 1"),
        ({"limit": 0}, "limit=0: at least 1"),
        ({"plan": []}, "no plan: name at least one, e.g. baseline"),
        ({"plan": ["baseline", "skip:start=3"]}, "start=3: a 6-layer model allows 0 to 2"),
        ({"corpus": "absent.txt"}, "corpus 'absent.txt': no such file"),
    ],
)
def test_requests_that_are_refused(
    model: models.Model, texts: str, path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RepsimError) as caught:
        repsim.capture(model, **{"corpus": texts, "out": path, **options})
    assert str(caught.value) == message
    assert not path.parent.exists()


def test_a_target_is_refused_before_a_model_is_loaded(texts: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    keywords: dict[str, Any] = {"model": "no such model", "corpus": texts}
    with pytest.raises(
        RepsimError,
        match=r"file: not a repsim capture \(no zarr.json in it\); choose another place$",
    ):
        repsim.capture(**keywords, out=tmp_path / "file")
    with pytest.raises(
        RepsimError, match=r"file is no folder that can be written to; choose another --out$"
    ):
        repsim.capture(**keywords, out=tmp_path / "file" / "c.zarr")
    assert (tmp_path / "file").read_text() == "kept"


def test_plans_that_a_capture_does_not_hold(
    mixed: repsim.Capture, model: models.Model, texts: str, path: Path
) -> None:
    with pytest.raises(RepsimError) as caught:
        mixed.hidden("drop:layer=5")
    assert (
        str(caught.value)
        == f"plan 'drop:layer=5' is not in {mixed.path}; it holds: {', '.join(PLANS)}"
    )
    with pytest.raises(RepsimError, match=r"^drop:layer=1..3: stands for 3 plans; name one$"):
        mixed.hidden("drop:layer=1..3")
    with pytest.raises(RepsimError, match=r"^start=3: a 6-layer model allows 0 to 2$"):
        mixed.plan_name("skip:start=3")
    many = repsim.capture(model, plan="fig2", corpus=texts, out=path, max_tokens=1)
    with pytest.raises(
        RepsimError, match=r"it holds: baseline, drop:layer=0, .*, switch:layer=0 and 4 more$"
    ):
        many.hidden("drop:layer=1,part=mlp")


def test_log_probabilities_that_a_capture_does_not_hold(
    model: models.Model, texts: str, path: Path
) -> None:
    capture = repsim.capture(model, corpus=texts, out=path)
    with pytest.raises(
        RepsimError, match=r"c.zarr: holds no log-probabilities; capture with --logprobs$"
    ):
        capture.logprob()
