"""An open store of scores: what it says of itself, and its table against lm-eval's own results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from numpy.testing import assert_allclose

import repsim
from repsim import models
from repsim.analyses import degradation
from repsim.analysis.tables import shown_scores
from repsim.errors import DataError, PlanError, RepsimError, StoreError
from repsim.evaluation import task_sources
from repsim.evaluation.reader import LABEL, Scores, open_scores
from repsim.plans import Plan
from repsim.storage.place_names import location_of
from support.stores import layout_of, write

PLANS = ("baseline", "skip:start=1", "drop:layer=2")
TASKS = ("recall", "grammar")
LIMIT = 12


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


@pytest.fixture(scope="module")
def scores(model: models.Model, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Not to be changed."""
    out = tmp_path_factory.mktemp("scores") / "tiny.zarr"
    repsim.evaluate(model, plan=PLANS, tasks=TASKS, limit=LIMIT, out=out)
    return open_scores(out)


def lm_eval_results(model: models.Model, plan: str) -> dict[str, dict[str, Any]]:
    """Task → lm-eval's own results of the model under a plan."""
    tasks = {
        name: task_sources.prepare(task, None)
        for name in TASKS
        for task in task_sources.find_tasks(name).tasks
    }
    with repsim.planned(model, plan) as module:
        lm = HFLM(pretrained=module, tokenizer=model.tokenizer, batch_size=4)
        results = evaluator.evaluate(lm, tasks, limit=LIMIT, bootstrap_iters=10)["results"]
    return dict(results)


@pytest.mark.parametrize("plan", PLANS)
def test_values_and_standard_errors_are_lm_eval_s(
    model: models.Model, scores: Scores, plan: str
) -> None:
    """For every metric of every task; the standard error where the metric is a mean."""
    table = scores.table()
    table = table[table["plan_name"] == plan]
    results = lm_eval_results(model, plan)
    assert set(table["task"]) == set(TASKS)
    for row in table.itertuples():
        said = results[row.task]
        assert_allclose(row.value, said[f"{row.metric},none"], rtol=1e-5)
        if row.aggregation == "mean":
            assert_allclose(row.standard_error, said[f"{row.metric}_stderr,none"], rtol=1e-9)
        else:
            assert np.isnan(row.standard_error)
        assert row.examples == said["sample_len"] == LIMIT
        assert row.higher_is_better == (row.metric != "perplexity")
    assert set(table["metric"]) == {"acc", "perplexity"}


def test_one_row_per_plan_and_task_for_one_metric(scores: Scores) -> None:
    table = scores.table("acc")
    assert table["plan_name"].tolist() == [plan for plan in PLANS for _ in TASKS]
    assert table["task"].tolist() == [*TASKS] * 3
    assert table["metric"].tolist() == ["acc"] * 6
    with pytest.raises(RepsimError, match=r"^metric='f1': no task here has it; choose perpl"):
        scores.table("f1")


def test_the_analysis_and_the_table_agree(scores: Scores) -> None:
    result = degradation.compute(scores, resamples=20)
    table = scores.table("acc").pivot(index="plan_name", columns="task", values="value")
    expected = table.loc[result["plan_name"].values, result["task"].values]
    assert_allclose(result["raw"], expected)


def test_what_a_store_says_of_itself(scores: Scores) -> None:
    assert scores.tasks == list(TASKS)
    assert scores.over == "recall+grammar"
    assert scores.remark == ""
    assert scores.nonfinite.values.tolist() == [0, 0, 0]
    assert scores.nonfinite["plan"].values.tolist() == list(PLANS)
    assert repr(scores).startswith("Scores of tiny-llama: 3 plans x 24 examples of recall, grammar")
    info = scores.info
    assert info["complete"] == "yes"
    assert info["not finite"] == "no plan"
    assert info["cache"] == "exact"
    assert info["plans"] == f"3: {', '.join(PLANS)}"
    assert "recall version" in info["tasks"]
    assert ", 0-shot, 12 examples" in info["tasks"]
    assert "<b>repsim.Scores</b>" in scores._repr_html_()


def test_plans_are_indexed_by_their_names(scores: Scores) -> None:
    dataset = scores.dataset
    texts = [named.plan.text for named in scores.plans]
    assert dataset["plan"].values.tolist() == dataset["plan_name"].values.tolist() == list(PLANS)
    assert dataset["plan_text"].values.tolist() == texts
    assert_allclose(dataset.score.sel(plan="drop:layer=2"), dataset["score"][2])


def test_plans_of_one_name_are_told_apart(scores: Scores) -> None:
    stored = scores.group.dataset()
    stored["plan_name"] = ("plan", np.array(["baseline", "mine", "mine"], object))
    named = Scores(scores.group, stored)
    texts = [each.plan.text for each in scores.plans]
    labels = ["baseline", f"mine ({texts[1]})", f"mine ({texts[2]})"]
    assert named.dataset["plan"].values.tolist() == labels
    assert named.find_rows("mine") == [1, 2]
    assert named.find_rows(texts[2]) == [2]
    frame = named.to_frame(plan="mine", task="grammar", resamples=20)
    assert set(shown_scores(frame)["plan"]) == set(labels[1:])


@pytest.mark.parametrize(
    ("plan", "rows"),
    [
        ((), [0, 1, 2]),
        ("drop:layer=0..5", [2]),
        (["drop:layer=2", "baseline"], [0, 2]),
        (Plan.from_steps(range(6)), [0]),
        ("fig2", [0, 2]),
    ],
)
def test_plans_are_found_by_any_of_their_forms(scores: Scores, plan: Any, rows: list[int]) -> None:
    assert scores.find_rows(plan) == rows
    names = [PLANS[row] for row in rows]
    frame = scores.to_frame(plan=plan, task=["grammar"], resamples=20)
    assert frame["plan_name"].drop_duplicates().tolist() == names
    assert set(frame["task"]) == {"grammar"}


@pytest.mark.parametrize("plan", ["nonesuch", "repeat:layer=1,times=3", "drop:layer=99"])
def test_a_plan_that_is_not_there_is_refused(scores: Scores, plan: str) -> None:
    with pytest.raises(PlanError, match=r"^plan '.*' is not in .*; it holds: baseline, skip:star"):
        scores.to_frame(plan=plan)
    with pytest.raises(DataError, match=r"^task 'piqa' is not in .*; it holds: recall, grammar$"):
        scores.to_frame(task="piqa")


def test_many_tasks_are_a_number_in_names_of_files(scores: Scores) -> None:
    renamed = scores.dataset.assign_attrs(requests=[{"tasks": "t" * (LABEL + 1)}])
    assert Scores(scores.group, renamed).over == "2 tasks"


def test_what_is_not_finished_is_said_and_has_no_value(scores: Scores) -> None:
    dataset = scores.dataset.load().copy(deep=True)
    dataset["done"].values[1, -1] = False
    dataset["aggregate"].values[1, 1] = np.nan  # as a store has it
    stopped = Scores(scores.group, dataset)
    blocks = dataset["done"].size
    assert stopped.remark == f"{blocks - 1} of {blocks} blocks of examples by plan are finished"
    assert stopped.remark in repr(stopped)
    table = stopped.table("acc").set_index(["plan_name", "task"])
    for column in ("value", "standard_error"):
        assert np.isnan(table.loc[(PLANS[1], "grammar"), column])
        assert np.isfinite(table[column]).sum() == 5


def test_a_capture_is_not_opened_as_scores(tmp_path: Path) -> None:
    write(location_of(tmp_path / "capture.zarr"), layout_of())
    with pytest.raises(StoreError, match="a capture, not scores; make scores with repsim evaluate"):
        open_scores(tmp_path / "capture.zarr")
    with pytest.raises(StoreError):
        open_scores(tmp_path / "nothing.zarr")
