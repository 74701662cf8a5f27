"""Scores on disk: what lies there, what is lost when the process dies or the disk errs, and who may
write.

The processes that die are forked from a nursery; see `support.faults`.
"""

import json
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from lm_eval.models.huggingface import HFLM

import repsim
from repsim import models
from repsim.captures.reader import open_capture
from repsim.errors import RepsimError
from repsim.evaluation import offline_suite
from repsim.evaluation.reader import Scores, open_scores
from repsim.schema import SCHEMA_VERSION
from repsim.storage import frame, integrity, score_store
from repsim.storage import lock as locks
from repsim.storage.lock import WriterLock
from repsim.storage.place_names import location_of
from support import faults
from support.cli import main
from support.evaluation import (
    LIMIT,
    OFFLINE,
    PLANS,
    SHOTS,
    TASKS,
    WRITTEN,
    asked_of,
    close,
    of_plan,
    write_data,
)
from support.faults import (
    FINISHED,
    REFUSED,
    Nursery,
    Whole,
    digests,
    end_command,
    kill_often,
    start_command,
)

KILLS, GROWN_KILLS = 4, 3
DTYPES = {
    "log_likelihood": (("plan", "request"), "float64"),
    "is_greedy": (("plan", "request"), "int8"),
    "response": (("plan", "request"), "T"),
    "score": (("plan", "example", "metric"), "float64"),
    "aggregate": (("plan", "task", "metric"), "float64"),
    "done": (("plan", "block"), "bool"),
    "plan": (("plan",), "T"),
    "plan_name": (("plan",), "T"),
    "plan_digest": (("plan",), "T"),
    "task": (("task",), "T"),
    "task_version": (("task",), "T"),
    "task_digest": (("task",), "T"),
    "num_fewshot": (("task",), "int64"),
    "gold_count": (("task", "choice"), "int64"),
    "metric": (("metric",), "T"),
    "aggregation": (("task", "metric"), "T"),
    "higher_is_better": (("task", "metric"), "int8"),
    "example_task": (("example",), "T"),
    "example_doc": (("example",), "int64"),
    "example_choices": (("example",), "int64"),
    "example_gold": (("example",), "int64"),
    "block": (("example",), "int64"),
    "request_task": (("request",), "T"),
    "request_doc": (("request",), "int64"),
    "request_choice": (("request",), "int64"),
    "request_digest": (("request",), "T"),
    "request_example": (("request",), "int64"),
}
VALUES = ("log_likelihood", "is_greedy", "response", "score", "aggregate")


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


@pytest.fixture(scope="module", autouse=True)
def short_texts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HFLM, "max_gen_toks", WRITTEN)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="module")
def keywords(data: Path) -> dict[str, Any]:
    """Answers of every kind."""
    return {
        "plan": PLANS[:2],
        "tasks": TASKS,
        "limit": LIMIT,
        "shots": SHOTS,
        "data_dir": data,
        "batch_tokens": 150,
    }


@pytest.fixture(scope="module")
def whole(
    model: models.Model, keywords: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Scores:
    """Finished, not to be changed."""
    return repsim.evaluate(model, out=tmp_path_factory.mktemp("scores") / "whole.zarr", **keywords)


@pytest.fixture
def copied(whole: Scores, tmp_path: Path) -> Path:
    shutil.copytree(whole.path, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


# What lies there


def test_xarray_opens_it_as_it_is(whole: Scores) -> None:
    dataset = xr.open_zarr(whole.path, consolidated=False)
    assert {
        str(name): (dataset[name].dims, dataset[name].dtype.kind) for name in dataset.variables
    } == {
        name: (dims, np.dtype(kind).kind if kind != "T" else "T")
        for name, (dims, kind) in DTYPES.items()
    }
    assert {
        name: str(dataset[name].dtype) for name, (_, kind) in DTYPES.items() if kind != "T"
    } == {name: kind for name, (_, kind) in DTYPES.items() if kind != "T"}
    assert set(dataset.data_vars) == set(VALUES)
    assert not list((Path(whole.path) / "analyses").glob("*/zarr.json"))
    dataset.attrs = {
        name: value for name, value in dataset.attrs.items() if name not in ("arrays", "digest")
    }
    xr.testing.assert_identical(dataset.load(), whole.group.dataset().load())
    assert set(dataset.attrs) >= {"identity", "layers", "requests", "extent", "kind"}
    assert dataset.attrs["repsim_schema"] == SCHEMA_VERSION
    assert dataset.attrs["extent"] == {name: dataset.sizes[name] for name in dataset.sizes}
    assert dataset["log_likelihood"].attrs["units"] == "nat"


def test_names_and_what_does_not_apply(whole: Scores) -> None:
    dataset = whole.dataset.load()
    assert dataset["plan_text"].values.tolist() == ["0-5", "0, 1, 5"]
    assert dataset["plan_name"].values.tolist() == list(PLANS[:2])
    assert dataset["task"].values.tolist() == list(TASKS)
    assert dataset["num_fewshot"].values.tolist() == [0] * 4 + [SHOTS] * 3
    exact = ["exact_match,strict-match", "exact_match,flexible-extract"]
    words = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert dataset["metric"].values.tolist() == ["perplexity", "acc", "acc_norm", *exact, *words]
    recall = dataset.sel(task="recall")
    assert recall["aggregation"].values.tolist() == ["perplexity", "mean", *[""] * 6]
    assert recall["higher_is_better"].values.tolist() == [0, 1, *[-1] * 6]
    for task, choices in {
        "recall": 0,
        "grammar": 2,
        "arithmetic": 4,
        "arc_easy": 4,
        "gsm8k": 0,
        "wikitext": 0,
    }.items():
        of_task = dataset.isel(
            example=dataset["example_task"] == task, request=dataset["request_task"] == task
        )
        assert of_task["example_doc"].values.tolist() == list(range(LIMIT))
        assert set(of_task["example_choices"].values.tolist()) == {choices}
        assert of_task.sizes["request"] == LIMIT * max(1, choices)
        gold = of_task["example_gold"].values
        assert ((gold >= 0) & (gold < choices)).all() if choices else (gold == -1).all()
        assert of_task["request_choice"].values.tolist() == list(range(max(1, choices))) * LIMIT
        numbers, texts = (
            np.isfinite(of_task["log_likelihood"].values),
            of_task["response"].values != "",
        )
        assert (numbers == (task != "gsm8k")).all()
        assert texts.all() if task == "gsm8k" else not texts.any()
        assert ((of_task["is_greedy"].values >= 0) == (task != "gsm8k")).all()
        applies = of_task.sel(task=task)["higher_is_better"].values >= 0
        assert (np.isfinite(of_task["score"].values) == applies).all()
        assert (np.isfinite(of_task["aggregate"].sel(task=task).values) == applies).all()
    block, example_of_request = dataset["block"].values, dataset["request_example"].values
    assert (np.diff(block) >= 0).all()
    assert dataset.sizes["block"] == len(set(block.tolist())) > 5
    assert (np.diff(example_of_request) >= 0).all()
    assert (
        dataset["example_task"].values[example_of_request] == dataset["request_task"].values
    ).all()
    assert (
        dataset["example_doc"].values[example_of_request] == dataset["request_doc"].values
    ).all()
    assert len(set(dataset["request_digest"].values.tolist())) > LIMIT * len(TASKS)


def test_right_choices_of_the_whole_data_set_are_kept(whole: Scores) -> None:
    """Whatever part of it was evaluated; a store from before has none."""
    kept = dict(zip(whole.tasks, whole.dataset["gold_count"].values.tolist(), strict=True))
    for name in ("grammar", "arithmetic", "knowledge"):
        golds = Counter(document["gold"] for document in offline_suite.make_documents(name))
        assert {choice: count for choice, count in enumerate(kept[name]) if count >= 0} == golds
    assert set(kept["recall"]) == set(kept["gsm8k"]) == {-1}
    (table, *_), (before, *_) = (
        score_store.tables(dataset)
        for dataset in (whole.dataset, whole.dataset.drop_vars("gold_count"))
    )
    assert [list(counts) for counts in table["gold_count"]] == [
        [n for n in kept[name] if n >= 0] for name in whole.tasks
    ]
    assert before["gold_count"].tolist() == [()] * len(TASKS)


def test_without_texts_there_is_no_response(model: models.Model, tmp_path: Path) -> None:
    scores = repsim.evaluate(model, **asked_of(tmp_path / "s.zarr"))
    assert "response" not in scores.dataset
    assert repsim.verify(tmp_path / "s.zarr").damages == ()


def test_it_is_opened_as_what_it_is(whole: Scores, model: models.Model, tmp_path: Path) -> None:
    capture = repsim.capture(model, limit=1, max_tokens=4, out=tmp_path / "c.zarr")
    assert isinstance(repsim.open(whole.path), Scores)
    assert isinstance(repsim.open(capture.path), repsim.Capture)
    with pytest.raises(
        RepsimError, match=r"c.zarr: a capture, not scores; make scores with repsim evaluate$"
    ):
        open_scores(capture.path)
    with pytest.raises(RepsimError, match=r"^[^\n]*whole.zarr: [^\n]*scores[^\n]*$"):
        open_capture(whole.path)
    with pytest.raises(RepsimError, match=r"^[^\n]*whole.zarr: [^\n]*scores[^\n]*$"):
        repsim.capture(model, limit=1, max_tokens=4, out=whole.path)
    for path in (whole.path, capture.path):
        assert repsim.verify(path).damages == ()


def test_what_scores_say_of_themselves(whole: Scores) -> None:
    shown = f"{whole!r} {whole.info}"
    for fact in (
        "tiny-llama",
        "2 plans",
        f"{LIMIT * len(TASKS)} examples",
        *PLANS[:2],
        *TASKS,
        "float32",
        "6 layers",
    ):
        assert fact in shown
    assert whole.info["complete"] == "yes"
    assert (whole.info["cache"], whole.info["not finite"]) == ("exact", "no plan")
    (command,) = whole.commands
    assert command.startswith(
        "repsim evaluate tiny-llama --plan baseline --plan skip:start=1 --tasks recall,grammar,"
    )
    assert whole.layers == 6
    assert {"lm-eval", "datasets", "torch"} <= set(whole.identity["versions"])


def test_results_are_kept_with_the_scores(copied: Path) -> None:
    result = xr.Dataset({"x": ("plan", np.arange(2.0))})
    repsim.open(copied).write_result("first", result)
    kept = xr.open_zarr(copied, group="analyses/first", consolidated=False).load()
    xr.testing.assert_identical(kept.drop_attrs(), result)
    assert repsim.verify(copied).damages == ()


# Damage


@pytest.fixture(scope="module")
def few(data: Path) -> dict[str, Any]:
    return {
        "plan": PLANS[:2],
        "tasks": ("recall", "gsm8k"),
        "limit": 2,
        "shots": 1,
        "data_dir": data,
    }


@pytest.fixture(scope="module")
def small(
    model: models.Model, few: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Scores:
    """Finished, not to be changed."""
    return repsim.evaluate(model, out=tmp_path_factory.mktemp("scores") / "small.zarr", **few)


@pytest.fixture
def broken(small: Scores, tmp_path: Path) -> Path:
    shutil.copytree(small.path, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def chunks_of(path: Path) -> dict[str, Path]:
    """One chunk of each array."""
    files = {file.parent.name: next(file.rglob("[0-9]*")) for file in sorted(path.glob("*/c"))}
    return {
        name: next(chunk for chunk in (file, *file.rglob("*")) if chunk.is_file())
        for name, file in files.items()
    }


def times_of(folder: Path) -> dict[Path, int]:
    """File -> when it was changed last."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
@pytest.mark.parametrize("name", sorted(DTYPES))
def test_damage_is_named_and_what_was_filled_is_made_good(
    small: Scores, model: models.Model, few: dict[str, Any], broken: Path, name: str, damage: str
) -> None:
    """A damaged answer never passes for a sound one, nor does growing make it one; a damaged
    description is refused.
    """
    file = chunks_of(broken)[name]
    flip(file) if damage == "flipped" else file.unlink()
    key = file.relative_to(broken)
    (damaged,) = repsim.verify(broken).damages
    assert str(damaged) == f"{damage.replace('flipped', 'damaged')}: {name} whole ({key})"
    before = times_of(broken)
    again_and_more: list[dict[str, Any]] = [{}, {"plan": PLANS[:3], "limit": 3, "append": True}]
    for options in again_and_more:
        with pytest.raises(RepsimError) as caught:
            repsim.evaluate(model, out=broken, **{**few, **options})
        assert str(caught.value).startswith(f"{broken}: {damaged}")
        assert "\n" not in str(caught.value)
    assert times_of(broken) == before
    if name in score_store.FILLED:
        assert str(caught.value).endswith("; add --repair")
        assert repsim.stores.repair_advice(broken, repsim.verify(broken))[0].endswith(
            f"--out {broken} --repair"
        )
        mended = repsim.evaluate(model, out=broken, repair=True, **few)
        assert repsim.verify(broken).damages == ()
        xr.testing.assert_equal(mended.dataset.load(), small.dataset.load())
    else:
        with pytest.raises(
            RepsimError, match=r": it describes the store; evaluate again, to another --out$"
        ):
            repsim.evaluate(model, out=broken, repair=True, **few)
        assert times_of(broken) == before


def test_only_what_was_lost_is_computed_again(
    whole: Scores,
    model: models.Model,
    keywords: dict[str, Any],
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specs_of = score_store.array_specs

    def specs_in_small_chunks(extent: Mapping[str, int]) -> dict[str, frame.ArraySpec]:
        specs = specs_of(extent)
        return {**specs, "response": replace(specs["response"], chunks=(64, 20))}

    monkeypatch.setattr(score_store, "array_specs", specs_in_small_chunks)
    monkeypatch.setitem(
        score_store.FILLED, "response", replace(score_store.FILLED["response"], chunks=(64, 20))
    )
    lost = repsim.evaluate(model, out=copied.with_name("t.zarr"), **keywords)
    flip(
        copied.with_name("t.zarr")
        / "response"
        / "c"
        / "0"
        / str(whole.dataset.sizes["request"] // 20)
    )
    put: list[int] = []
    real = score_store.Writer.put

    def watched(self: Any, plan: int, block: int, **answers: Any) -> None:
        put.append(block)
        real(self, plan, block, **answers)

    monkeypatch.setattr(score_store.Writer, "put", watched)
    mended = repsim.evaluate(model, out=lost.path, repair=True, **keywords)
    assert 0 < len(put) < mended.dataset["done"].size
    xr.testing.assert_equal(mended.dataset.load(), whole.dataset.load())


@pytest.mark.parametrize("name", [*score_store.FILLED, "task"])
def test_a_repair_that_is_cut_short_forgets_no_damage(
    small: Scores,
    model: models.Model,
    few: dict[str, Any],
    broken: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """While the store is written anew; the lost answers must not pass for finished ones."""
    flip(broken / "log_likelihood" / "c" / "0" / "0")
    real = frame.create_or_resize

    def die(group: Any, array: str, *rest: Any, **options: Any) -> Any:
        if array == name:
            raise KeyboardInterrupt
        return real(group, array, *rest, **options)

    monkeypatch.setattr(frame, "create_or_resize", die)
    with pytest.raises(KeyboardInterrupt):
        repsim.evaluate(model, out=broken, repair=True, **few)
    monkeypatch.undo()
    monkeypatch.setattr(HFLM, "max_gen_toks", WRITTEN)
    mended = repsim.evaluate(model, out=broken, repair=True, **few)
    xr.testing.assert_equal(mended.dataset.load(), small.dataset.load())


@pytest.mark.parametrize("part", ["score", "log_likelihood", "example_gold"])
def test_lost_metadata_is_refused(
    model: models.Model, few: dict[str, Any], broken: Path, part: str
) -> None:
    (broken / part / "zarr.json").unlink()
    (damaged,) = repsim.verify(broken).damages
    assert damaged == integrity.Damage(part, (), "metadata", True)
    for repair in (False, True):
        with pytest.raises(RepsimError, match=rf"^[^\n]*s.zarr: [^\n]*{part}[^\n]*$"):
            repsim.evaluate(model, out=broken, repair=repair, **few)


# Other writers, other schemas


def test_another_schema_is_refused(copied: Path) -> None:
    root = json.loads((copied / "zarr.json").read_text())
    root["attributes"]["repsim_schema"] = SCHEMA_VERSION + 1
    (copied / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(
        RepsimError,
        match=rf"s.zarr: schema {SCHEMA_VERSION + 1}, this repsim reads {SCHEMA_VERSION};",
    ):
        repsim.open(copied)


def test_a_store_that_is_being_written_is_refused(
    model: models.Model, keywords: dict[str, Any], copied: Path
) -> None:
    with WriterLock(location_of(copied)):
        assert not repsim.open(copied).remark
        assert repsim.evaluate(model, out=copied, **keywords)  # nothing to write
        with pytest.raises(RepsimError, match=r"being written by process \d+ on "):
            repsim.evaluate(model, out=copied, **{**keywords, "plan": PLANS[:3], "append": True})
    assert len(repsim.open(copied).plans) == 2


# Kills


def nurse() -> None:
    """A nursery of evaluations."""
    from repsim.evaluation import task_index

    task_index.lm_eval_index()
    HFLM.max_gen_toks = WRITTEN
    score_store.WRITE_SECONDS = -1.0
    faults.nurse(repsim.evaluate)


class Evaluations(Nursery):
    """A nursery whose attempts evaluate."""

    entry = "from storage.test_score_store import nurse; nurse()"


@pytest.fixture(scope="module")
def nursery(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Evaluations(str(tiny_folder), tmp_path_factory.mktemp("told")) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def call(data: Path) -> dict[str, Any]:
    keywords = {
        "plan": list(PLANS[:4]),
        "tasks": [*OFFLINE[:2], "gsm8k"],
        "limit": LIMIT,
        "shots": 1,
    }
    return {**keywords, "data_dir": str(data), "batch_tokens": 30}


@pytest.fixture(scope="module")
def uninterrupted(
    nursery: Nursery, call: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Whole]:
    out = tmp_path_factory.mktemp("uninterrupted") / "s.zarr"
    return out, Whole.of(nursery, {**call, "out": str(out)})


def test_an_evaluation_that_is_killed_often(
    nursery: Nursery, call: dict[str, Any], uninterrupted: tuple[Path, Whole], tmp_path: Path
) -> None:
    call = {**call, "out": str(tmp_path / "made on the way" / "s.zarr")}
    kill_often(nursery, call, KILLS, uninterrupted[1], lambda: shutil.rmtree(call["out"]))


def test_an_extension_that_is_killed_often(
    nursery: Nursery, call: dict[str, Any], uninterrupted: tuple[Path, Whole], tmp_path: Path
) -> None:
    """By plans, tasks and examples at once."""
    more = {
        **call,
        "plan": list(PLANS[:6]),
        "tasks": [*call["tasks"], "arc_easy"],
        "limit": 8,
        "append": True,
    }
    reference = tmp_path / "grown.zarr"
    shutil.copytree(uninterrupted[0], reference)
    whole = Whole.of(nursery, {**more, "out": str(reference)})
    more["out"] = str(tmp_path / "s.zarr")

    def reset() -> None:
        shutil.rmtree(more["out"], ignore_errors=True)
        shutil.copytree(uninterrupted[0], more["out"])

    reset()
    kill_often(nursery, more, GROWN_KILLS, whole, reset)
    fresh = Whole.of(nursery, {**more, "append": False, "out": str(tmp_path / "fresh.zarr")})
    assert fresh.extent["example"] == whole.extent["example"]
    close(repsim.open(reference).dataset, repsim.open(tmp_path / "fresh.zarr").dataset)


def test_of_two_writers_one_is_refused(
    nursery: Nursery, call: dict[str, Any], uninterrupted: tuple[Path, Whole], tmp_path: Path
) -> None:
    call = {**call, "out": str(tmp_path / "s.zarr")}
    writer = nursery.start(call, [10])
    assert writer.stops()
    refused = nursery.run(call)
    assert refused.status == REFUSED
    assert re.search(rf"being written by process {writer.process} on ", refused.message)
    writer.go_on()
    assert writer.wait().status == FINISHED
    assert digests(call["out"]) == uninterrupted[1].digests


def test_a_reader_sees_what_is_finished_and_nothing_else(
    nursery: Nursery, call: dict[str, Any], uninterrupted: tuple[Path, Whole], tmp_path: Path
) -> None:
    expected = repsim.open(uninterrupted[0]).dataset.load()
    seen: list[int] = []

    def look() -> None:
        try:
            dataset = repsim.open(tmp_path / "s.zarr").dataset
        except RepsimError:
            assert not seen
            return
        # In this order: finished when read is on disk.
        done, values = dataset["done"].values, dataset["score"].values
        finished = done[:, expected["block"].values]
        np.testing.assert_array_equal(values[finished], expected["score"].values[finished])
        seen.append(int(done.sum()))

    writes = uninterrupted[1].outcome.writes
    attempt = nursery.start(
        {**call, "out": str(tmp_path / "s.zarr")}, range(1, writes, writes // 30)
    )
    while attempt.stops():
        look()
        attempt.go_on()
        look()  # beside the writer
    assert attempt.wait().status == FINISHED
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


def test_a_signal_to_the_command(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit status says so, the message how to go on, and the same command goes on."""
    out = tmp_path / "s.zarr"
    words = [
        "evaluate",
        tiny_folder,
        "--tasks",
        "recall,knowledge",
        "--plan",
        "fig2",
        "--limit",
        "20",
    ]
    words += ["--batch-tokens", "64"]
    setting = "from repsim.storage import score_store; score_store.WRITE_SECONDS = -1.0"
    process = start_command(words, out, ("done/c", 3), setting)
    lines = end_command(process, signal.SIGINT)[1]
    assert process.returncode == 128 + signal.SIGINT, lines
    assert "Traceback" not in lines
    counts = rf"[\d,]+ of [\d,]+ blocks of examples by plan are finished in {out}"
    stopped = rf"repsim: stopped by SIGINT; {counts}; the same command goes on from there"
    assert re.fullmatch(stopped, lines.splitlines()[-1]), lines
    assert not (out / locks.KEY).exists()
    assert main(*words, "--out", out) == 0
    assert "40 examples of recall, knowledge" in capfd.readouterr().out
    assert not repsim.open(out).remark
    scores = open_scores(out)
    assert np.isfinite(of_plan(scores, "baseline")["score"].values).any(-1).all()
