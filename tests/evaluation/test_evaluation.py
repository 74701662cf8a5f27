"""Evaluations with a tiny random model: the same numbers as lm-eval's own, however they were put
together.
"""

import copy
import json
import math
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from torch import nn

import repsim
from repsim import models
from repsim.errors import Interrupted, RepsimError
from repsim.evaluation import prefix_sharing, task_sources, tasks
from repsim.evaluation.lm_eval_model import LmEvalModel
from repsim.evaluation.reader import Scores
from repsim.jobs.resumable import Progress
from repsim.models import tracing
from repsim.models.stack import find_stack
from repsim.schema import NOT_FINITE
from support.evaluation import (
    LIMIT,
    PLANS,
    SHOTS,
    TASKS,
    WRITTEN,
    asked_of,
    close,
    of_plan,
    write_data,
)
from support.models import VOCABULARY, T, cached_model, make


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
def whole(model: models.Model, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """All plans on all tasks, not to be changed."""
    out = tmp_path_factory.mktemp("scores") / "whole.zarr"
    return repsim.evaluate(
        model, plan=PLANS, tasks=TASKS, limit=LIMIT, shots=SHOTS, data_dir=data, out=out
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made on the way" / "s.zarr"


def written_of(path: Path, data: Path, **others: Any) -> dict[str, Any]:
    """The same with texts to be written."""
    asked = asked_of(path, tasks=("gsm8k", "arc_easy"), plan=PLANS[:2], data_dir=data, shots=SHOTS)
    return {**asked, **others}


def changed(model: models.Model, change: Any, **names: Any) -> models.Model:
    """A copy of the model, changed."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        change(module)
    return replace(model, module=module, stack=find_stack(module), **names)


def bend(module: Any) -> None:
    module.model.layers[3].mlp.down_proj.weight[0, 0] += 1


def nothing_runs(patch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> None:
        raise AssertionError("computed again")

    patch.setattr(tracing, "Tracer", fail)
    patch.setattr(HFLM, "_model_generate", fail)


# Values worked out by hand


def test_a_model_that_finds_every_word_equally_likely(
    model: models.Model, data: Path, path: Path
) -> None:
    even = changed(model, lambda module: module.lm_head.weight.zero_())
    scores = repsim.evaluate(
        even, tasks=("recall", "wikitext"), limit=LIMIT, shots=1, data_dir=data, out=path
    )
    benchmarks = tasks.load(["recall", "wikitext"], even, data_dir=data, limit=LIMIT, shots=1)
    targets = [
        sum(len(window.targets) for window in request.windows)
        for one in benchmarks
        for example in one.examples
        for request in example.requests
    ]
    expected = -np.array(targets) * math.log(VOCABULARY)
    np.testing.assert_allclose(scores.dataset["log_likelihood"].values[0], expected, rtol=1e-6)
    about = {(task, metric): value for task, metric, value in aggregates(scores, "baseline")}
    assert about["recall", "perplexity"] == pytest.approx(
        VOCABULARY ** np.mean(targets[:LIMIT]), rel=1e-4
    )
    assert about["recall", "acc"] == 0


def aggregates(scores: Scores, plan: str) -> list[tuple[str, str, float]]:
    found = of_plan(scores, plan)["aggregate"]
    return [
        (task, metric, found.sel(task=task, metric=metric).item())
        for task in found["task"].values.tolist()
        for metric in found["metric"].values.tolist()
    ]


# As lm-eval


def harness_says(model: models.Model, plan: str, data: Path, names: Any = TASKS) -> dict[str, Any]:
    """lm-eval's own evaluation, in plain batches, of the model as it is inside `planned`."""
    prepared = [
        task_sources.prepare(one, SHOTS)
        for name in names
        for one in task_sources.find_tasks(name, data).tasks
    ]
    with repsim.planned(model, plan) as module:
        lm = HFLM(pretrained=module, tokenizer=model.tokenizer, batch_size=4)
        by_name = {one.config.task: one for one in prepared}
        return evaluator.evaluate(lm, by_name, limit=LIMIT, bootstrap_iters=0, log_samples=True)


def check_as_harness(scores: Scores, plan: str, said: dict[str, Any]) -> None:
    data = of_plan(scores, plan)
    requests = list(
        zip(data["request_task"].values.tolist(), data["request_doc"].values.tolist(), strict=True)
    )
    examples = list(
        zip(data["example_task"].values.tolist(), data["example_doc"].values.tolist(), strict=True)
    )
    seen = 0
    for task, samples in said["samples"].items():
        for sample in samples:
            rows = [row for row, key in enumerate(requests) if key == (task, sample["doc_id"])]
            answers = [answer for (answer,) in sample["resps"]]
            if isinstance(answers[0], str):
                assert data["response"].values[rows].tolist() == answers
                assert np.isnan(data["log_likelihood"].values[rows]).all()
                assert (data["is_greedy"].values[rows] == -1).all()
            else:
                sums = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
                np.testing.assert_allclose(
                    data["log_likelihood"].values[rows], sums, rtol=1e-6, atol=1e-4
                )
            if isinstance(answers[0], tuple):
                assert data["is_greedy"].values[rows].tolist() == [
                    int(greedy) for _, greedy in answers
                ]
            score = data["score"].values[examples.index((task, sample["doc_id"]))]
            suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
            for metric in sample["metrics"]:
                found = score[data["metric"].values.tolist().index(f"{metric}{suffix}")]
                value = sample[metric]
                # Of wikitext: log-likelihood, and of how many words or bytes.
                if isinstance(value, tuple):
                    each = -value[0] / value[1]
                    value = each / math.log(2) if metric == "bits_per_byte" else math.exp(each)
                assert found == pytest.approx(value, rel=1e-4), (task, metric)
                seen += 1
        results = {
            key: value
            for key, value in said["results"][task].items()
            if "," in key and "_stderr" not in key
        }
        aggregated = {
            metric: value for name, metric, value in aggregates(scores, plan) if name == task
        }
        assert {key.removesuffix(",none") for key in results} == {
            key for key, value in aggregated.items() if value == value
        }
        for key, value in results.items():
            assert aggregated[key.removesuffix(",none")] == pytest.approx(value, rel=1e-4), (
                task,
                key,
            )
    assert seen == int(np.isfinite(data["score"].values).sum()) > LIMIT * len(TASKS)


@pytest.mark.parametrize("plan", PLANS)
def test_answers_scores_and_aggregates_are_lm_eval_s(
    whole: Scores, model: models.Model, data: Path, plan: str
) -> None:
    check_as_harness(whole, plan, harness_says(model, plan, data))


def test_plans_differ(whole: Scores) -> None:
    numbers = whole.dataset["log_likelihood"].values
    texts = {tuple(row) for row in whole.dataset["response"].values.tolist()}
    assert len({tuple(row) for row in np.nan_to_num(numbers).tolist()}) == len(PLANS)
    assert len(texts) > 3


def test_a_model_without_trees_of_texts_is_evaluated_text_by_text(
    model: models.Model, data: Path, path: Path
) -> None:
    """Mistral's attention sees four tokens here, of which a tree cannot tell it."""
    other = make("mistral")
    other = replace(model, module=other.module, stack=other.stack, name="mistral")
    names = ("recall", "arc_easy")
    asked: dict[str, Any] = {
        "tasks": names,
        "limit": LIMIT,
        "shots": SHOTS,
        "data_dir": data,
        "out": path,
    }
    with pytest.raises(
        RepsimError,
        match=r"^prefix_sharing 'on': mistral does not take trees of texts; leave it to auto",
    ):
        repsim.evaluate(other, **{**asked, "contexts": "trees"})
    assert not path.exists()
    scores = repsim.evaluate(other, plan=("baseline", "reverse:start=1"), **asked)
    said = harness_says(other, "reverse:start=1", data, names)
    np.testing.assert_allclose(
        [value for task, metric, value in aggregates(scores, "reverse:start=1") if metric == "acc"],
        [said["results"][name]["acc,none"] for name in names],
    )
    sums = [
        answer[0]
        for name in names
        for sample in said["samples"][name]
        for (answer,) in sample["resps"]
    ]
    np.testing.assert_allclose(
        of_plan(scores, "reverse:start=1")["log_likelihood"], sums, atol=1e-4
    )


def test_layers_taken_out_of_the_model_are_a_skip(
    whole: Scores, model: models.Model, data: Path, path: Path
) -> None:
    def cut(module: Any) -> None:
        module.model.layers = nn.ModuleList(module.model.layers[row] for row in (0, 1, T - 1))
        module.config.num_hidden_layers = 3
        for slot, layer in enumerate(module.model.layers):
            layer.self_attn.layer_idx = slot

    asked: dict[str, Any] = {
        "tasks": TASKS,
        "limit": LIMIT,
        "shots": SHOTS,
        "data_dir": data,
        "out": path,
    }
    alone = of_plan(repsim.evaluate(changed(model, cut), **asked), "baseline")
    skipped = of_plan(whole, "skip:start=1")
    for name in ("log_likelihood", "is_greedy", "score", "aggregate"):
        np.testing.assert_allclose(alone[name].values, skipped[name].values, rtol=1e-5, atol=1e-5)
    assert alone["response"].values.tolist() == skipped["response"].values.tolist()


# However it is put together


@pytest.mark.parametrize(
    "options", [{"contexts": "rows"}, {"contexts": "trees"}, {"batch_tokens": 40}]
)
def test_how_texts_are_packed_makes_no_difference(
    whole: Scores, model: models.Model, data: Path, path: Path, options: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {
        "plan": PLANS,
        "tasks": TASKS,
        "limit": LIMIT,
        "shots": SHOTS,
        "data_dir": data,
        "out": path,
    }
    close(repsim.evaluate(model, **asked, **options).dataset, whole.dataset)


def test_answers_that_wait_for_the_next_plan_are_the_same(
    model: models.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a graphics card, which works on the next plan while the last one is scored."""
    kept = {}
    for ahead in (0, 1, 3):
        monkeypatch.setattr(prefix_sharing, "plans_ahead", lambda _device, ahead=ahead: ahead)
        out = path.with_name(f"{ahead}.zarr")
        scores = repsim.evaluate(model, plan=PLANS, tasks="grammar", limit=6, out=out)
        assert not scores.remark
        kept[ahead] = scores.dataset.load()
    names = ["log_likelihood", "is_greedy", "score", "aggregate"]
    for ahead in (1, 3):
        xr.testing.assert_equal(kept[0][names], kept[ahead][names])


def test_progress_counts_what_is_finished(model: models.Model, path: Path) -> None:
    seen: list[Progress] = []
    scores = repsim.evaluate(model, progress=seen.append, **asked_of(path))
    assert len(seen) == 1 + scores.dataset["done"].size
    assert [one.tokens for one in seen] == sorted({one.tokens for one in seen})
    assert (seen[0].tokens, seen[-1].tokens) == (0, seen[-1].total)


def test_a_model_by_name_and_the_default_path(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path))
    scores = repsim.evaluate(tiny_folder, tasks="recall,grammar", limit=2, model_dtype="bfloat16")
    assert Path(scores.path).parent == tmp_path / "scores"
    name = r"tiny-llama-[0-9a-f]{6}-recall\+grammar-baseline\.zarr"
    assert re.fullmatch(name, Path(scores.path).name)
    assert (scores.tasks, scores.identity["compute_dtype"]) == (["recall", "grammar"], "bfloat16")
    assert f"--model-dtype bfloat16 --out {scores.path}" in scores.commands[0]


def test_no_solved_examples_is_a_request_as_well(model: models.Model, path: Path) -> None:
    """Zero is not the task's own number, so the command that a store keeps has to name it."""
    scores = repsim.evaluate(model, tasks="grammar", limit=1, shots=0, out=path)
    assert "--shots 0 " in scores.commands[0]
    by_default = repsim.evaluate(
        model, tasks="grammar", limit=1, out=path.with_name("by default.zarr")
    )
    assert "--shots" not in by_default.commands[0]


# Interrupted, and gone on with


def test_a_finished_evaluation_is_opened_and_not_computed_again(
    model: models.Model, data: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is any part of it."""
    asked = written_of(path, data, plan=PLANS[:3])
    scores = repsim.evaluate(model, **asked).dataset.load()
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    nothing_runs(monkeypatch)
    parts: tuple[dict[str, Any], ...] = (
        {},
        {"limit": 2},
        {"plan": PLANS[2]},
        {"tasks": "arc_easy"},
        {"plan": PLANS[1], "tasks": "gsm8k"},
    )
    for part in (*parts, {"append": True}, {"batch_tokens": 1000}):
        xr.testing.assert_identical(
            repsim.evaluate(model, **{**asked, **part}).dataset.load(), scores
        )
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


@pytest.mark.parametrize("texts", [False, True])
def test_a_stopped_evaluation_goes_on_where_it_was(
    model: models.Model, data: Path, path: Path, texts: bool
) -> None:
    """SIGTERM in its midst, and once more when all but the aggregates is there."""
    asked = written_of(path, data) if texts else asked_of(path)
    whole = repsim.evaluate(model, **{**asked, "out": path.with_name("whole.zarr")})
    left: list[Progress] = []

    def stop(progress: Progress) -> None:
        left.append(progress)
        if len(left) == (3 if len(left) < 4 else -1):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        Interrupted,
        match=r"^stopped by SIGTERM; 3 of \d+ blocks of examples by plan .*; the same command",
    ):
        repsim.evaluate(model, progress=stop, **asked)
    stopped = repsim.open(path)
    done = stopped.dataset["done"].values
    assert done.sum() == 3
    assert stopped.remark == f"3 of {done.size} blocks of examples by plan are finished"
    for name, along in (("log_likelihood", "request"), ("score", "example")):
        values, expected = (one.dataset[name].values for one in (stopped, whole))
        block = stopped.dataset["block"].values
        block = block if along == "example" else block[stopped.dataset["request_example"].values]
        np.testing.assert_array_equal(values[done[:, block]], expected[done[:, block]])
        assert np.isnan(values[~done[:, block]]).all()
    assert np.isnan(stopped.dataset["aggregate"].values).all()
    seen: list[Progress] = []

    def stop_at_the_end(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == done.size - 3:  # one is left
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"everything finished in .*; the same command goes on"):
        repsim.evaluate(model, progress=stop_at_the_end, **asked)
    assert len(seen) == done.size - 3
    again = repsim.evaluate(model, **asked)
    xr.testing.assert_equal(again.dataset.load(), whole.dataset.load())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# Growing


def test_appended_plans_equal_those_computed_at_once(
    model: models.Model, data: Path, path: Path
) -> None:
    asked = written_of(path, data, tasks=("recall", "gsm8k"))
    repsim.evaluate(model, **asked)
    more = {**asked, "plan": PLANS[:5]}
    with pytest.raises(RepsimError) as caught:
        repsim.evaluate(model, **more)
    held, lacks = (
        f"baseline, skip:start=1 on {2 * LIMIT} examples",
        "plans reverse:start=0, middle_repeat:start=1",
    )
    assert str(caught.value).startswith(f"{path}: holds {held}, not {lacks}")
    assert str(caught.value).endswith("add --append, or choose another --out")
    grown = repsim.evaluate(model, append=True, **more).dataset.load()
    whole = repsim.evaluate(model, **{**more, "out": path.with_name("whole.zarr")}).dataset.load()
    xr.testing.assert_equal(grown, whole)
    assert len(repsim.open(path).commands) == 2


def test_appended_tasks_and_examples_equal_those_computed_at_once(
    model: models.Model, data: Path, path: Path
) -> None:
    """In three steps, the last of them with everything at once."""
    first = written_of(path, data, tasks=("gsm8k", "recall"), limit=3)
    steps: list[dict[str, Any]] = [
        {"tasks": ("recall", "arc_easy")},
        {"tasks": TASKS, "limit": 9, "plan": PLANS[:6]},
    ]
    repsim.evaluate(model, **first)
    for step in steps:
        with pytest.raises(
            RepsimError, match=r"s.zarr: holds baseline.* examples, not .*; add --append, or choose"
        ):
            repsim.evaluate(model, **{**first, **step})
        grown = repsim.evaluate(model, append=True, **{**first, **step})
        assert not grown.remark
        assert repsim.verify(path).damages == ()
    whole = repsim.evaluate(model, **{**first, **steps[-1], "out": path.with_name("whole.zarr")})
    close(grown.dataset, whole.dataset)
    nodes = [command.count("--append") for command in grown.commands]
    assert nodes == [0, 1, 1]


def test_no_aggregate_is_of_a_part_of_the_examples(model: models.Model, path: Path) -> None:
    """Neither for a plan that more examples were not asked of, nor where their computing was cut
    short.
    """
    asked = asked_of(path, tasks="recall", plan=PLANS[:2], batch_tokens=20, limit=3)
    few = repsim.evaluate(model, **asked).dataset["aggregate"].values
    assert np.isfinite(few).all()
    more = {**asked, "limit": 9, "append": True}
    grown = repsim.evaluate(model, **{**more, "plan": PLANS[0]})
    assert np.isnan(grown.dataset["aggregate"].values[1]).all()
    assert np.isfinite(grown.dataset["aggregate"].values[0]).all()
    left = int((~grown.dataset["done"].values).sum())
    seen: list[Progress] = []

    def stop_at_the_end(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == left:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="everything finished"):
        repsim.evaluate(model, progress=stop_at_the_end, **more)
    whole = repsim.evaluate(model, **{**more, "out": path.with_name("whole.zarr")})
    close(repsim.evaluate(model, **more).dataset, whole.dataset)


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("name", r"model \(tiny-llama there, other here\)"),
        ("weights", r"other weights \([0-9a-f]{8} there, [0-9a-f]{8} here\)"),
        ("config", r"another configuration of the model \([0-9a-f]{8} there, [0-9a-f]{8} here\)"),
        ("dtype", r"compute_dtype \(float32 there, float16 here\)"),
        ("paper_cache", r"--paper-cache"),
        ("shots", r"version [\d.]+, 2-shot there, version [\d.]+, 1-shot here"),
        (
            "question",
            r"example 4 of arc_easy asks something else there; other data or another lm-eval\?",
        ),
        (
            "answer",
            r"example 4 of arc_easy asks something else there; other data or another lm-eval\?",
        ),
    ],
)
def test_another_evaluation_at_the_same_path_is_refused(
    model: models.Model, data: Path, tmp_path: Path, option: str, difference: str
) -> None:
    rows = write_data(tmp_path / "rows")
    asked = written_of(tmp_path / "s.zarr", rows, tasks=("recall", "arc_easy"), append=True)
    repsim.evaluate(model, **asked)
    before = {file: file.stat().st_mtime_ns for file in asked["out"].rglob("*")}

    def turn(module: Any) -> None:
        module.config.rms_norm_eps = 1e-3

    others = {
        "name": lambda: replace(model, name="other"),
        "weights": lambda: changed(model, bend),
        "config": lambda: changed(model, turn),
        "dtype": lambda: changed(model, lambda module: module.half()),
    }
    if option in ("paper_cache", "shots"):
        asked[option] = 1 if option == "shots" else True
    if option in ("question", "answer"):
        file = rows / "arc_easy.test.jsonl"
        lines = file.read_text().splitlines()
        row = json.loads(lines[4])
        row |= (
            {"question": f"{row['question']} the"} if option == "question" else {"answerKey": "C"}
        )
        lines[4] = json.dumps(row)
        file.write_text("\n".join(lines))
    with pytest.raises(RepsimError, match=difference) as caught:
        repsim.evaluate(others.get(option, lambda: model)(), **{**asked, "plan": PLANS[:4]})
    assert "choose another --out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file: file.stat().st_mtime_ns for file in asked["out"].rglob("*")} == before


def test_new_plans_need_the_examples_that_the_store_holds(model: models.Model, path: Path) -> None:
    asked = asked_of(path, batch_tokens=2048)
    repsim.evaluate(model, **asked)
    with pytest.raises(
        RepsimError, match=r"^the store holds more examples .*ask for at least as many \(--limit\)$"
    ):
        repsim.evaluate(model, append=True, **{**asked, "plan": PLANS[:4], "limit": 2})
    assert repsim.verify(path).damages == ()
    assert len(repsim.open(path).plans) == 3


# States that are not finite


class Added(nn.Module):
    """An MLP that adds the same to every unit; a few times over is too much for float16."""

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return torch.full_like(state, 20_000)


def test_a_plan_whose_states_are_not_finite_has_no_score(
    model: models.Model, data: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def overflow(module: Any) -> None:
        module.half()
        module.model.layers[3].mlp = Added()

    large = changed(model, overflow)
    plans = ("baseline", "repeat:layer=3,times=40", "skip:start=1")
    asked = written_of(path, data, tasks=("recall", "gsm8k", "arc_easy"), plan=plans)
    scores = repsim.evaluate(large, **asked)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    remark = f"plan {plans[1]}: states not finite on {3 * LIMIT} examples, which have no score"
    assert [text for text in warned if text.startswith("plan")] == [remark]
    assert scores.nonfinite.values.tolist() == [0, 3 * LIMIT, 0]
    assert scores.info["not finite"] == f"{plans[1]} ({3 * LIMIT} examples)"
    assert not scores.remark
    lost = of_plan(scores, plans[1])
    for name in ("log_likelihood", "score", "aggregate"):
        assert np.isnan(lost[name].values).all(), name
    assert (lost["is_greedy"].values == NOT_FINITE).all()
    assert set(lost["response"].values.tolist()) == {""}
    sound = scores.dataset.isel(plan=[0, 2]).load()
    alone = repsim.evaluate(
        large, **{**asked, "plan": plans[::2], "out": path.with_name("alone.zarr")}
    )
    close(sound, alone.dataset, 0)
    assert np.isfinite(sound["score"].values).any(-1).all()


@pytest.mark.parametrize(
    ("task", "advice"),
    [("arc_easy", "fewer --batch-tokens"), ("gsm8k", "more memory: texts are written 8 at a time")],
)
def test_a_full_memory_is_told_with_what_helps(
    model: models.Model,
    data: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    advice: str,
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(tracing.Tracer, "score", full)
    monkeypatch.setattr(HFLM, "_model_generate", full)
    with pytest.raises(
        RepsimError, match=rf"^block 0 of 1 \({task} 0, ...\): out of memory on cpu; .* {advice}$"
    ):
        repsim.evaluate(model, tasks=task, limit=2, data_dir=data, out=path)


# The paper's cache


def test_the_paper_s_cache_changes_only_what_runs_in_parallel(
    model: models.Model, data: Path, path: Path
) -> None:
    plans = ("baseline", "repeat:layer=3,times=2", "parallel:start=0", "0, (1|2|3|4)*4, 5")
    asked = written_of(path, data, plan=plans, limit=8)
    exact = repsim.evaluate(model, **asked)
    other = repsim.evaluate(
        model, paper_cache=True, **{**asked, "out": path.with_name("paper.zarr")}
    )
    texts = [one.dataset["response"].values for one in (exact, other)]
    assert [(one == two).all() for one, two in zip(*texts, strict=True)] == [
        True,
        True,
        False,
        False,
    ]
    assert exact.dataset.attrs["paper_cache"] is False
    assert other.dataset.attrs["paper_cache"] == "one past per parallel step"
    averaged = "keys and values averaged over the layers of each parallel step, as in the paper"
    assert (exact.info["cache"], other.info["cache"]) == ("exact", averaged)
    assert "--paper-cache" in other.commands[0]
    np.testing.assert_array_equal(
        exact.dataset["log_likelihood"].values, other.dataset["log_likelihood"].values
    )


@pytest.mark.parametrize("paper_cache", [False, True])
def test_a_store_of_the_earlier_averaging_is_not_gone_on_with(
    model: models.Model, data: Path, path: Path, paper_cache: bool
) -> None:
    """Such a store says `paper_cache: true`; neither exact texts nor the paper's may join it."""
    asked = written_of(path, data, tasks="gsm8k", plan="baseline", limit=2)
    repsim.evaluate(model, **asked)
    # For whose attributes nothing vouches.
    zarr.open_group(path).attrs.update(paper_cache=True, repsim_schema=2)
    assert (
        repsim.open(path)
        .info["cache"]
        .startswith("keys and values averaged over the rounds of loops")
    )
    asked |= {"plan": ("baseline", "parallel:start=1"), "append": True, "paper_cache": paper_cache}
    with pytest.raises(
        RepsimError,
        match=r"\(--paper-cache: .* rounds of loops, .* there, .* here\); choose another",
    ):
        repsim.evaluate(model, **asked)


def test_what_the_paper_s_cache_cannot_average_is_refused_at_once(
    model: models.Model, data: Path, path: Path
) -> None:
    recurrent = replace(cached_model("granitemoehybrid"), tokenizer=model.tokenizer)
    asked = written_of(
        path,
        data,
        tasks=("recall", "gsm8k"),
        plan=("baseline", "parallel:start=1"),
        paper_cache=True,
    )
    with pytest.raises(RepsimError, match=r"\(LinearAttentionLayer\) .*; leave out --paper-cache$"):
        repsim.evaluate(recurrent, **asked)
    assert not path.exists()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_tokens": 0}, "batch_tokens=0: at least 1"),
        ({"contexts": "leaves"}, "prefix_sharing 'leaves': choose auto, on or off"),
        ({"limit": 0}, "limit=0: at least 1"),
        ({"plan": []}, "no plan: name at least one, e.g. baseline"),
        ({"plan": ["baseline", "skip:start=3"]}, "start=3: a 6-layer model allows 0 to 2"),
        ({"tasks": ""}, "no task: name at least one, e.g. offline or arc_easy"),
        (
            {"model_dtype": "float16"},
            "model_dtype: tiny-llama is loaded already; give them to repsim.models.load",
        ),
    ],
)
def test_requests_that_are_refused(
    model: models.Model, path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RepsimError) as caught:
        repsim.evaluate(model, **asked_of(path, **options))
    assert str(caught.value) == message
    assert not path.parent.exists()


def test_plans_tasks_and_models_that_are_not_there(
    model: models.Model, tiny_encoder_folder: Path, data: Path, path: Path
) -> None:
    with pytest.raises(RepsimError, match=r"^[^\n]*skipp[^\n]*$"):
        repsim.evaluate(model, **asked_of(path, plan="skipp:start=1"))
    with pytest.raises(
        RepsimError, match=r"^task 'recal': neither lm-eval's nor repsim's; did you mean recall"
    ):
        repsim.evaluate(model, **asked_of(path, tasks="recal"))
    with pytest.raises(
        RepsimError, match=r"^task piqa: none of its files is there: .*piqa\.\w+\.jsonl$"
    ):
        repsim.evaluate(model, **asked_of(path, tasks="piqa", data_dir=data))
    needs = r"^tiny-bert: does not predict a next token; benchmarks need a decoder$"
    with pytest.raises(RepsimError, match=needs):
        repsim.evaluate(tiny_encoder_folder, **asked_of(path))
    assert not path.parent.exists()


def short(model: models.Model, positions: int) -> models.Model:
    """The model, reading fewer tokens."""

    def shorten(module: Any) -> None:
        module.config.max_position_embeddings = positions

    return changed(model, shorten, name="short")


def test_a_task_that_the_context_is_too_short_for_is_refused_by_name(
    model: models.Model, data: Path, path: Path
) -> None:
    """lm-eval stops at an assertion where a text is to be written, and so where much is to be
    scored together.
    """
    asked: dict[str, Any] = {"data_dir": data, "out": path, "limit": 2, "shots": 0}
    wants = (
        "up to 8 tokens are to be written, and short reads 8, prompt included; leave the "
        "task out, or take a model "
    )
    with pytest.raises(RepsimError, match=f"^task gsm8k: {wants}with a longer context$"):
        repsim.evaluate(short(model, WRITTEN), tasks="gsm8k", **asked)
    with pytest.raises(
        RepsimError,
        match=r"^task arc_easy: 2 tokens are to be scored together, and short reads 1; ",
    ):
        repsim.evaluate(short(model, 1), tasks="arc_easy", **asked)
    assert not path.parent.exists()
    # As lm-eval: one token of the prompt.
    written = repsim.evaluate(short(model, WRITTEN + 1), tasks="gsm8k", **asked)
    assert written.dataset["response"].shape == (1, 2)


def test_the_tasks_that_fit_are_scored_where_another_does_not(
    model: models.Model,
    data: Path,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HFLM, "max_gen_toks", 64)
    asked: dict[str, Any] = {"data_dir": data, "limit": 2, "shots": 0}
    both = repsim.evaluate(short(model, 64), tasks="gsm8k,grammar", out=path, **asked)
    assert both.tasks == ["grammar"]
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.partition(" tokens")[0] for line in said] == ["left out: task gsm8k: up to 64"]
    alone = repsim.evaluate(
        short(model, 64), tasks="grammar", out=path.with_name("b.zarr"), **asked
    )
    close(both.dataset, alone.dataset)


@pytest.mark.parametrize("task", ["gsm8k", "wikitext"])
def test_a_tokenizer_without_a_token_that_begins_or_ends_a_text(
    model: models.Model, data: Path, path: Path, task: str
) -> None:
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(
        RepsimError,
        match=f"^task {task}: tiny-llama's tokenizer names no token that begins or ends",
    ):
        repsim.evaluate(
            replace(model, tokenizer=tokenizer), tasks=task, data_dir=data, limit=2, out=path
        )
    assert not path.exists()


def test_a_length_below_one_is_no_limit_to_lm_eval_either(model: models.Model) -> None:
    assert LmEvalModel(short(model, -1)).max_length == 2048
    assert LmEvalModel(short(model, 30)).max_length == 30


def test_scores_of_a_stack_that_was_named_are_other_scores(model: models.Model, path: Path) -> None:
    named = replace(model, stack=replace(model.stack, is_named=True))
    options: dict[str, Any] = {"tasks": "grammar", "limit": 2, "out": path}
    assert repsim.evaluate(named, **options).info["stack"] == "model.layers"
    with pytest.raises(RepsimError, match=r"another stack \(model.layers there, None here\)"):
        repsim.evaluate(model, **options)


def test_a_target_is_refused_before_a_model_is_loaded(
    mixed_capture: repsim.Capture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(
        RepsimError,
        match=r"file: not a repsim capture \(no zarr.json in it\); choose another place$",
    ):
        repsim.evaluate("no such model", out=tmp_path / "file")
    with pytest.raises(
        RepsimError, match=r"file is no folder that can be written to; choose another --out$"
    ):
        repsim.evaluate("no such model", out=tmp_path / "file" / "s.zarr")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def mixed_capture(model: models.Model, tmp_path: Path) -> repsim.Capture:
    return repsim.capture(model, limit=1, max_tokens=4, out=tmp_path / "c.zarr")


def test_a_capture_is_no_place_for_scores(
    mixed_capture: repsim.Capture, model: models.Model
) -> None:
    with pytest.raises(
        RepsimError, match=r"c.zarr: a capture, not scores; make scores with repsim evaluate$"
    ):
        repsim.evaluate(model, **asked_of(mixed_capture.path))
    assert repsim.verify(mixed_capture.path).damages == ()


def test_new_plans_may_be_of_some_of_the_tasks(model: models.Model, path: Path) -> None:
    """No block holds examples of two tasks."""
    asked = asked_of(path, batch_tokens=2048)
    repsim.evaluate(model, **asked)
    found = repsim.evaluate(model, append=True, **{**asked, "plan": PLANS[3], "tasks": "grammar"})
    finished = dict(
        zip(
            found.dataset["task"].values,
            np.isfinite(found.dataset["aggregate"].values[3]),
            strict=True,
        )
    )
    assert finished["grammar"].any()
    assert not finished["recall"].any()


def test_a_model_that_is_all_wrong_has_infinite_perplexity(model: models.Model, path: Path) -> None:
    worse = changed(model, lambda module: module.lm_head.weight.mul_(1e4))
    found = repsim.evaluate(worse, tasks="recall", limit=LIMIT, out=path)
    assert found.dataset["aggregate"].sel(metric="perplexity").item() == math.inf


def test_a_text_that_makes_states_infinite_spoils_no_other(
    model: models.Model, data: Path, path: Path
) -> None:
    """In a row of trees it would: what attention leaves out counts as 0, and 0 x NaN is NaN."""
    rows = [
        json.loads(line) for line in (data / "arc_easy.test.jsonl").read_text().splitlines()[:3]
    ]
    rows[1]["question"] += " on"
    (unlucky,) = model.tokenizer("on", add_special_tokens=False)["input_ids"]
    own = path.parent / "rows"
    own.mkdir(parents=True)
    (own / "arc_easy.test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    broken = changed(
        model, lambda module: module.get_input_embeddings().weight[unlucky].fill_(torch.nan)
    )
    found = repsim.evaluate(broken, tasks="arc_easy", data_dir=own, out=path, shots=0)
    assert np.isnan(found.dataset["score"].sel(metric="acc").values[0]).tolist() == [
        False,
        True,
        False,
    ]
    sound = repsim.evaluate(
        model, tasks="arc_easy", data_dir=own, out=path.with_name("sound.zarr"), shots=0
    )
    rest = found.dataset["request_doc"].values != 1
    apart = (
        found.dataset["log_likelihood"].values[0, rest]
        - sound.dataset["log_likelihood"].values[0, rest]
    )
    assert np.abs(apart).max() < 1e-4


def test_another_answer_to_be_written_is_another_question(
    model: models.Model, tmp_path: Path
) -> None:
    rows = write_data(tmp_path / "rows")
    asked = written_of(tmp_path / "s.zarr", rows, tasks="gsm8k", plan="baseline")
    repsim.evaluate(model, **asked)
    file = rows / "gsm8k.test.jsonl"
    file.write_text(file.read_text().replace("#### 4", "#### 44"))
    with pytest.raises(RepsimError, match="example 4 of gsm8k asks something else there"):
        repsim.evaluate(model, **asked)
