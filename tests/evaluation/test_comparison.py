"""A store's scores against the baseline's: the numbers of the analysis degradation, corrected."""

import logging

import numpy as np
import pytest
from numpy.testing import assert_allclose
from statsmodels.stats.multitest import multipletests

from repsim.analyses import degradation
from repsim.errors import RepsimError
from repsim.evaluation.comparison import DIFFERENCES, compare_with_baseline
from repsim.evaluation.task_scores import tabulate
from support.scores import LAYERS, MadeUpScores, answers, make_scores, task, task_of

PLANS = ("skip:start=1", "baseline", "drop:layer=2", "0, 5")


@pytest.fixture(scope="module")
def scores() -> MadeUpScores:
    """Shares, means of other numbers, a perplexity and a metric that is no mean."""
    generator = np.random.default_rng(3)
    log_likelihood = -np.abs(generator.normal(2, 1, size=(4, 60)))
    tasks = {
        "piqa": task(answers(4, worst=0.2), f1=("f1", 1, answers(4))),
        "rouge": task(generator.uniform(size=(4, 30)), metric="rouge", choices=0),
        "recall": task_of({"perplexity": ("perplexity", 0, log_likelihood)}, choices=0, gold=-1),
    }
    return make_scores(PLANS, tasks)


def test_differences_and_errors_are_those_of_degradation(scores: MadeUpScores) -> None:
    table = compare_with_baseline(scores.dataset, LAYERS)
    result = degradation.compute(scores)
    for name in ("difference", "difference_standard_error", "difference_low", "difference_high"):
        for task_name, metric in (("piqa", "acc"), ("rouge", "rouge")):
            rows = table[(table["task"] == task_name) & (table["metric"] == metric)]
            for row in rows[rows["plan_name"] != "baseline"].to_dict("records"):
                said = result[name].sel(task=task_name, variant=row["plan_name"]).item()
                assert_allclose(row[name], said, rtol=1e-12, err_msg=name)
    for row in table[table["metric"] == "perplexity"].to_dict("records"):
        where = {"task": "recall", "variant": row["plan_name"]}
        of_baseline = result["perplexity"].sel({**where, "variant": "baseline"}).item()
        error = result["perplexity_standard_error"].sel(where).item()
        assert_allclose(row["standard_error"], error, rtol=1e-12)
        if row["plan_name"] != "baseline":
            difference = result["perplexity"].sel(where).item() - of_baseline
            assert_allclose(row["difference"], difference, rtol=1e-12)


def test_what_the_table_has_stays_as_it_is(scores: MadeUpScores) -> None:
    table, plain = compare_with_baseline(scores.dataset, LAYERS), tabulate(scores.dataset)
    is_perplexity = plain["metric"] == "perplexity"
    for name in plain.columns:
        others = ~is_perplexity if name == "standard_error" else slice(None)
        assert table[name][others].equals(plain[name][others]), name
    assert list(table.columns) == [*plain.columns[:-1], *DIFFERENCES, "plan"]


def test_p_values_are_corrected_for_all_comparisons(scores: MadeUpScores) -> None:
    table = compare_with_baseline(scores.dataset, LAYERS)
    compared = table["p_value"].notna()
    assert compared.sum() == 3 * 3  # plans other than the baseline, of three metrics
    _, holm, _, _ = multipletests(table["p_value"][compared], method="holm")
    assert_allclose(table["p_holm"][compared], holm)
    is_worst = (table["plan_name"] == "0, 5") & (table["metric"] == "acc")
    assert table["p_holm"][is_worst].item() < 0.01
    assert (table[["difference", "p_value"]].isna().all(axis=1) == ~compared).all()
    assert table["value"].notna().all()
    assert set(table["metric"][~compared & (table["plan_name"] != "baseline")]) == {"f1"}


def test_without_the_baseline_there_are_no_differences(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone = make_scores(["skip:start=1"], {"piqa": task(answers(1))})
    with caplog.at_level(logging.WARNING, "repsim"):
        table = compare_with_baseline(alone.dataset, LAYERS)
    assert "no differences: the baseline is not in the store" in caplog.text
    assert table[list(DIFFERENCES)].isna().all(axis=None)
    assert table["value"].notna().all()


def test_what_is_not_finished_has_no_difference() -> None:
    tasks = {"piqa": task(answers(3), block=np.arange(60) // 30)}
    stopped = make_scores(PLANS[:3], tasks, done=[[1, 1], [1, 1], [1, 0]])
    table = compare_with_baseline(stopped.dataset, LAYERS).set_index("plan_name")
    assert table.loc["drop:layer=2", ["value", *DIFFERENCES]].isna().all()
    assert table.loc["skip:start=1", ["value", *DIFFERENCES]].notna().all()


def test_too_few_resamples_are_refused(scores: MadeUpScores) -> None:
    with pytest.raises(RepsimError, match="resamples=1: at least 2"):
        compare_with_baseline(scores.dataset, LAYERS, resamples=1)
