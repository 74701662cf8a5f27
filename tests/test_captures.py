"""Captures from end to end with tiny random models: from texts to states on disk and back."""

import copy
import errno
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_array_equal

import repsim
from conftest import T
from repsim import models, store, trace
from repsim.captures import Progress
from repsim.corpus import Sample, batches, read_corpus, tokenize
from repsim.families import resolve
from repsim.layers import find_stack
from repsim.plans import Plan, PlanTrie
from repsim.schema import Identity, RepsimError

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
def model(tiny_folder) -> models.Model:
    return models.load(str(tiny_folder))


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "lines.txt"
    path.write_text("\n".join(TEXTS))
    return str(path)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "made on the way" / "c.zarr"


@pytest.fixture(scope="module")
def mixed(model, texts, tmp_path_factory) -> repsim.Capture:
    """A finished capture, not to be changed."""
    out = tmp_path_factory.mktemp("captures") / "mixed.zarr"
    options = {"dtype": "float32", "logprobs": True, "batch_tokens": BATCH_TOKENS}
    return repsim.capture(model, plan=PLANS, corpus=texts, out=out, **options)


def samples_of(model, texts) -> tuple[Sample, ...]:
    return tokenize(read_corpus(texts), model.tokenizer, 100)[0]


def traced(model, texts, plan) -> tuple[list[np.ndarray], np.ndarray]:
    """A plan's states `[token, unit]` and log-probabilities, straight from the tracer."""
    (named,) = resolve(plan, model.layers)
    trie = PlanTrie.build([named.plan])
    states, logprobs = [[] for _ in range(len(trie))], []

    def consume(state):
        states[state.node].append(state.hidden.clone())
        if state.logprob is not None:
            logprobs.append(state.logprob)

    for batch in batches(samples_of(model, texts), BATCH_TOKENS, 0):
        trace.Tracer(model).run(trie, batch, consume, logprobs=True)
    return [torch.cat(these).numpy() for these in states], torch.cat(logprobs).numpy()


def changed(model, change, **names) -> models.Model:
    """A copy of the model with other weights."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        change(module)
    return replace(model, module=module, stack=find_stack(module), **names)


def key_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


# What a capture holds


@pytest.mark.parametrize("plan", PLANS)
def test_states_and_log_probabilities_are_the_tracer_s_own(mixed, model, texts, plan):
    states, logprob = traced(model, texts, plan)
    assert mixed.hidden(plan).dims == ("state", "token", "unit")
    assert mixed.hidden(plan).dtype == "float32"
    assert_array_equal(mixed.hidden(plan).values, np.stack(states))
    assert mixed.logprob(plan).dims == ("token",)
    assert_array_equal(mixed.logprob(plan).values, logprob)


def test_float16_states_are_rounded_once(mixed, model, texts, path):
    half = repsim.capture(model, plan=PLANS, corpus=texts, out=path, batch_tokens=BATCH_TOKENS)
    for plan in PLANS:
        assert half.hidden(plan).dtype == "float16"
        assert_array_equal(half.hidden(plan).values, mixed.hidden(plan).values.astype("float16"))


def test_states_tokens_and_samples_have_names(mixed, model, texts):
    samples = samples_of(model, texts)
    lengths = [len(sample) for sample in samples]
    assert lengths == sorted(lengths, reverse=True)
    hidden = mixed.hidden("skip:start=1")
    assert hidden["layer"].values.tolist() == ["embed", "0", "1", "5"]
    assert mixed.hidden("looped_parallel:start=1,loops=2")["layer"].values.tolist()[3:5] == ["(2|3|4)"] * 2
    assert hidden["plan"].item() == "0, 1, 5"
    for where in (hidden, mixed.tokens, mixed.logprob()):
        assert_array_equal(where["token_id"], np.concatenate([sample.token_ids for sample in samples]))
        assert_array_equal(where["position"], np.concatenate([np.arange(length) for length in lengths]))
        assert_array_equal(where["sample"], np.repeat(np.arange(len(samples)), lengths))
    assert set(mixed.tokens.data_vars) == {"token_id", "position", "sample"}
    assert set(hidden.coords) == {"layer", "plan", "token_id", "position", "sample"}
    assert mixed.samples.values.tolist() == [sample.key for sample in samples]
    assert sorted(mixed.samples.values.tolist()) == sorted(map(key_of, TEXTS))
    ends = np.cumsum(lengths) - 1
    assert np.flatnonzero(np.isnan(mixed.logprob("skip:start=1"))).tolist() == ends.tolist()
    assert (mixed.complete, mixed.layers, mixed.chunk_tokens) == (sum(lengths), T, sum(lengths))


def test_a_plan_goes_by_any_of_its_forms(mixed):
    assert [named.name for named in mixed.plans] == list(PLANS)
    assert mixed.plans == resolve(PLANS, T)
    for form in ("0-5", " 0 - 5 ", Plan.from_steps(range(T)), "fig3"):
        assert mixed.plan_name(form) == "baseline"
        xr.testing.assert_identical(mixed.hidden(form), mixed.hidden())
    assert mixed.plan_name("0, 1, 5") == "skip:start=1"


def test_the_identity_of_a_capture(mixed, model, texts):
    identity = Identity(**mixed.identity)
    assert (identity.model, identity.corpus, identity.compute_dtype) == ("tiny-llama", "lines", "float32")
    assert (identity.weights, identity.tokenizer) == (model.weights_digest, model.tokenizer_digest)
    assert set(identity.versions) >= {"repsim-layers", "torch", "transformers", "nnsight"}
    assert str(Path(texts).parent) not in json.dumps(mixed.dataset.attrs)


def test_the_identity_does_not_depend_on_what_is_cut(tiny_folder, texts, path):
    cut = repsim.capture(str(tiny_folder), corpus=texts, out=path, max_tokens=2).identity
    whole = repsim.capture(str(tiny_folder), corpus=texts, out=path.with_name("d.zarr")).identity
    assert cut.pop("corpus_digest") != whole.pop("corpus_digest")
    assert cut == whole


def test_what_a_capture_says_of_itself(mixed):
    for shown in (repr(mixed), mixed._repr_html_()):
        for fact in ("tiny-llama", "lines", "5 samples", *PLANS, "float32"):
            assert fact in shown
    assert str(mixed.path) in repr(mixed)
    assert len(repr(mixed).splitlines()) < 9


def test_states_are_read_when_asked_for(mixed):
    hidden = mixed.hidden()
    piece = hidden.isel(state=[0, 2], token=slice(3, 5))
    assert not hidden.variable._in_memory
    assert not piece.variable._in_memory
    assert piece.values.shape == (2, 2, 32)
    assert not hidden.variable._in_memory


def test_a_store_far_larger_than_memory_opens_at_once(path):
    plans = resolve(PLANS, T)
    trie = PlanTrie.build(named.plan for named in plans)
    samples = tuple(Sample(f"key{row}", np.zeros(2**15, np.int32)) for row in range(2**5))
    identity = Identity("m", None, "77", "88", "float32", "own", "99", "cpu")
    layout = store.Layout(identity, T, plans, trie, samples, 2**14, "float32", False)
    assert layout.bytes > 10**12
    store.create(path, layout).finish(layout.tokens)
    hidden = repsim.open(path).hidden("skip:start=1")
    assert hidden.sizes == {"state": 4, "token": 2**20, "unit": 2**14}
    assert np.isnan(hidden.isel(token=slice(777_777, 777_779), unit=slice(3)).values).all()


# Ways to capture


def test_batches_make_no_difference(mixed, model, texts, path):
    whole = repsim.capture(model, plan=PLANS, corpus=texts, out=path, dtype="float32", batch_tokens=1000)
    for plan in PLANS:
        states, others = mixed.hidden(plan).values, whole.hidden(plan).values
        distance = np.linalg.norm(states - others, axis=-1)
        assert (distance <= 1e-5 * np.linalg.norm(others, axis=-1)).all()


def test_progress_counts_tokens(model, texts, path):
    seen: list[Progress] = []
    done = repsim.capture(model, corpus=texts, out=path, batch_tokens=BATCH_TOKENS, progress=seen.append)
    expected = np.cumsum([batch.tokens for batch in batches(samples_of(model, texts), BATCH_TOKENS, 0)])
    assert len(expected) > 2
    assert seen == [Progress(tokens, done.complete) for tokens in expected.tolist()]


def test_an_encoder(tiny_encoder_folder, texts, path):
    capture = repsim.capture(str(tiny_encoder_folder), plan=["baseline", "drop:layer=1"], corpus=texts, out=path)
    ids, position = capture.tokens["token_id"], capture.tokens["position"]
    assert (ids[position == 0] == 1).all()  # [CLS]
    assert int((ids == 2).sum()) == len(TEXTS)  # [SEP]
    assert capture.hidden("drop:layer=1").sizes["state"] == T
    assert np.isfinite(capture.hidden().values).all()
    with pytest.raises(RepsimError, match=r"^--logprobs: tiny-bert does not predict a next token$"):
        repsim.capture(str(tiny_encoder_folder), corpus=texts, logprobs=True, out=path.with_name("d.zarr"))
    assert not path.with_name("d.zarr").exists()


def test_a_model_by_name_and_the_default_path(tiny_folder, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path))
    capture = repsim.capture(
        str(tiny_folder), plan=("baseline", "skip:start=0..1"), corpus=texts, model_dtype="bfloat16", max_tokens=3
    )
    assert capture.path == tmp_path / "captures" / "tiny-llama-lines-baseline+skip-start=0..1.zarr"
    assert capture.identity["compute_dtype"] == "bfloat16"
    assert capture.tokens["position"].max() == 2
    assert repsim.capture(str(tiny_folder), corpus=texts).path.name == "tiny-llama-lines-baseline.zarr"


def test_remarks_on_the_corpus_go_to_the_log(model, tmp_path, path, caplog):
    (tmp_path / "c.txt").write_text("\nthe\nthe of the\nthe\n")
    repsim.capture(model, corpus=str(tmp_path / "c.txt"), out=path, max_tokens=2)
    remarks = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert remarks == [
        "corpus c: 1 empty texts left out",
        "corpus c: 1 repeated texts left out",
        "corpus c: 1 samples cut to 2 tokens",
    ]


def test_results_are_kept_with_the_capture(model, texts, path):
    capture = repsim.capture(model, corpus=texts, out=path)
    result = xr.Dataset({"x": ("state", np.arange(3.0))})
    capture.write_result("first", result)
    xr.testing.assert_identical(xr.open_zarr(path, group="analyses/first", consolidated=False).load(), result)
    xr.testing.assert_identical(repsim.open(path).dataset.load(), capture.dataset.load())


# Finished, stopped and other stores


def test_a_finished_capture_is_opened_and_not_computed_again(mixed, model, texts, monkeypatch):
    def fail(*_args):
        raise AssertionError("computed again")

    monkeypatch.setattr(trace, "Tracer", fail)
    again = repsim.capture(model, plan=PLANS, corpus=texts, out=mixed.path, dtype="float32", logprobs=True)
    xr.testing.assert_identical(again.dataset.load(), mixed.dataset.load())


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"dtype": "float16"}, "its states are float32"),
        ({"logprobs": False}, "it has log-probabilities"),
        ({"plan": [*PLANS, "reverse:start=0"]}, f"it has {', '.join(PLANS)}, not reverse:start=0"),
        ({"limit": 2}, r"other texts, --limit or --max-tokens \([0-9a-f]{8} there, [0-9a-f]{8} here\)"),
        ({"max_tokens": 2}, "other texts, --limit or --max-tokens"),
        ({"corpus": "builtin", "limit": 2}, r"corpus \(lines there, builtin here\)"),
    ],
)
def test_another_capture_at_the_same_path_is_refused(mixed, model, texts, options, difference):
    before = {file: file.stat().st_mtime_ns for file in mixed.path.rglob("*")}
    asked = {"plan": PLANS, "corpus": texts, "dtype": "float32", "logprobs": True, **options}
    with pytest.raises(RepsimError, match=f"mixed.zarr: holds another capture: {difference}") as caught:
        repsim.capture(model, out=mixed.path, **asked)
    assert str(caught.value).endswith("; choose another --out or remove it")
    assert {file: file.stat().st_mtime_ns for file in mixed.path.rglob("*")} == before


def test_another_model_at_the_same_path_is_refused(mixed, model, texts):
    def bend(module):
        module.model.layers[3].mlp.down_proj.weight[0, 0] += 1

    asked = {"plan": PLANS, "corpus": texts, "dtype": "float32", "logprobs": True, "out": mixed.path}
    with pytest.raises(RepsimError, match=r"model \(tiny-llama there, other here\); choose another --out"):
        repsim.capture(replace(model, name="other"), **asked)
    with pytest.raises(RepsimError, match=r"other weights \([0-9a-f]{8} there, [0-9a-f]{8} here\)"):
        repsim.capture(changed(model, bend), **asked)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError])
def test_a_stopped_capture_shows_its_finished_tokens(mixed, model, texts, path, problem):
    def stop(progress):
        seen.append(progress.tokens)
        if len(seen) == 2:
            raise problem

    seen: list[int] = []
    asked = {"plan": PLANS, "corpus": texts, "out": path, "dtype": "float32", "batch_tokens": BATCH_TOKENS}
    with pytest.raises(problem):
        repsim.capture(model, progress=stop, logprobs=True, **asked)
    stopped = repsim.open(path)
    assert stopped.complete == seen[-1] < mixed.complete
    assert f"complete:  {seen[-1]} of {mixed.complete} tokens" in repr(stopped)
    for plan in PLANS:
        part = {"token": slice(seen[-1])}
        xr.testing.assert_identical(stopped.hidden(plan).load(), mixed.hidden(plan).isel(part).load())
        xr.testing.assert_identical(stopped.logprob(plan).load(), mixed.logprob(plan).isel(part).load())
    message = f"c.zarr: a capture that stopped at {seen[-1]} of {mixed.complete} tokens; remove it and capture again$"
    with pytest.raises(RepsimError, match=message):
        repsim.capture(model, logprobs=True, **asked)
    assert repsim.open(path).complete == seen[-1]


def test_a_capture_stopped_within_a_batch(model, texts, path, monkeypatch):
    write = store.Writer.write

    def stop(self, node, hidden, logprob):
        if node == 3 and self._tokens:
            raise KeyboardInterrupt
        write(self, node, hidden, logprob)

    monkeypatch.setattr(store.Writer, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        repsim.capture(model, corpus=texts, out=path, batch_tokens=BATCH_TOKENS)
    first = next(batches(samples_of(model, texts), BATCH_TOKENS, 0))
    assert repsim.open(path).complete == first.tokens
    assert np.isfinite(repsim.open(path).hidden().values).all()


# Bad input


def large_layer(module):
    module.model.layers[2].mlp.down_proj.weight *= 1e7


def large_word(module):
    module.model.embed_tokens.weight[4] = 1e6  # `the`, the most frequent word


def undefined_layer(module):
    module.model.layers[3].mlp.down_proj.weight[0, 0] = torch.nan


def test_a_state_that_does_not_fit_float16(model, texts, path):
    large, plans = changed(model, large_layer), ["drop:layer=0", "baseline"]
    with pytest.raises(RepsimError) as caught:
        repsim.capture(large, plan=plans, corpus=texts, out=path)
    message = str(caught.value)
    place = f"plan drop:layer=0, state 2, sample {key_of(TEXTS[1])}: "
    assert message.startswith(place)
    assert message.endswith(" does not fit float16; use --dtype float32")
    assert not path.exists()
    wide = repsim.capture(large, plan=plans, corpus=texts, out=path, dtype="float32")
    largest = np.abs(wide.hidden("drop:layer=0").isel(state=2)).max("unit").values
    assert float(message.removeprefix(place).split()[0]) in np.round(largest)


def test_the_sample_whose_state_does_not_fit_is_named(model, tmp_path, path):
    lines = ["of and to", "is that the", "in the"]  # in one batch with padding
    (tmp_path / "c.txt").write_text("\n".join(["of and to in it", *lines]))
    with pytest.raises(RepsimError) as caught:
        repsim.capture(changed(model, large_word), plan="skip:start=2", corpus=str(tmp_path / "c.txt"), out=path)
    place = f"plan skip:start=2, state 0, sample {key_of(lines[1])}"
    assert str(caught.value) == f"{place}: 1000000 does not fit float16; use --dtype float32"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_states_that_are_not_finite_are_refused(model, texts, path, dtype):
    with pytest.raises(RepsimError) as caught:
        repsim.capture(changed(model, undefined_layer), corpus=texts, out=path, dtype=dtype)
    place = f"plan baseline, state 4, sample {key_of(TEXTS[1])}"
    assert str(caught.value) == f"{place}: not finite in float32; use another --model-dtype or another plan"
    assert not path.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(model, texts, path, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zarr.Array.__setitem__", fail)
    with pytest.raises(RepsimError) as caught:
        repsim.capture(model, corpus=texts, out=path)
    assert str(caught.value) == f"{path}: cannot be written: No space left on device; choose another --out"
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype 'bfloat16': a store holds float16 or float32"),
        ({"batch_tokens": 0}, "batch_tokens=0: at least 1"),
        ({"max_tokens": 0}, "max_tokens=0: at least 1"),
        ({"limit": 0}, "limit=0: at least 1"),
        ({"plan": []}, "no plan: name at least one, e.g. baseline"),
        ({"plan": ["baseline", "skip:start=3"]}, "start=3: a 6-layer model allows 0 to 2"),
        ({"corpus": "absent.txt"}, "corpus 'absent.txt': no such file"),
    ],
)
def test_requests_that_are_refused(model, texts, path, options, message):
    with pytest.raises(RepsimError) as caught:
        repsim.capture(model, **{"corpus": texts, "out": path, **options})
    assert str(caught.value) == message
    assert not path.parent.exists()


def test_a_target_is_refused_before_a_model_is_loaded(texts, tmp_path):
    (tmp_path / "file").write_text("kept")
    asked = {"model": "no such model", "corpus": texts}
    with pytest.raises(RepsimError, match=r"file: not a repsim capture \(no zarr.json in it\)$"):
        repsim.capture(**asked, out=tmp_path / "file")
    with pytest.raises(RepsimError, match=r"file is no folder that can be written to; choose another --out$"):
        repsim.capture(**asked, out=tmp_path / "file" / "c.zarr")
    assert (tmp_path / "file").read_text() == "kept"


def test_plans_that_a_capture_does_not_hold(mixed, model, texts, path):
    with pytest.raises(RepsimError) as caught:
        mixed.hidden("drop:layer=5")
    assert str(caught.value) == f"plan 'drop:layer=5' is not in {mixed.path}; it holds: {', '.join(PLANS)}"
    with pytest.raises(RepsimError, match=r"^drop:layer=1..3: stands for 3 plans; name one$"):
        mixed.hidden("drop:layer=1..3")
    with pytest.raises(RepsimError, match=r"^start=3: a 6-layer model allows 0 to 2$"):
        mixed.plan_name("skip:start=3")
    many = repsim.capture(model, plan="fig2", corpus=texts, out=path, max_tokens=1)
    with pytest.raises(RepsimError, match=r"it holds: baseline, drop:layer=0, .*, switch:layer=0 and 4 more$"):
        many.hidden("drop:layer=1,part=mlp")


def test_log_probabilities_that_a_capture_does_not_hold(model, texts, path):
    capture = repsim.capture(model, corpus=texts, out=path)
    with pytest.raises(RepsimError, match=r"c.zarr: holds no log-probabilities; capture with --logprobs$"):
        capture.logprob()
