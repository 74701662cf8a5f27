"""A store's scores as a table with what a paper's table has: errors, differences to the baseline,
and which of these stand after correction.

Values are lm-eval's (`repsim.evaluation.task_scores`); differences are those of the analysis
degradation, from the same draws of the bootstrap.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from repsim import stats
from repsim.evaluation.normalised_scores import estimate_mean, is_share
from repsim.evaluation.task_scores import (
    COLUMNS,
    MEAN,
    PERPLEXITY,
    iter_scores,
    perplexity_of,
    tabulate,
)
from repsim.plans import FAMILIES
from repsim.schema import PLAN
from repsim.stats import results
from repsim.stats.differences import subtract_row

DIFFERENCES = (
    *("difference", "difference_standard_error", "difference_low", "difference_high"),
    *("p_value", "p_holm"),
)
NO_BASELINE = "no differences: the baseline is not in the store; add --plan baseline --append"

Array = NDArray[np.float64]
log = logging.getLogger("repsim")


def compare_with_baseline(
    dataset: xr.Dataset, layers: int, *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Every score of a store with its difference to the baseline's; see `repsim.Scores.to_frame`.

    Args:
        dataset: a store of scores as xarray opens it.
        layers: the model's T.
        resamples: draws of the bootstrap.
        seed: of the draws.
    Raises:
        RepsimError: too few resamples.
        DataError: a task has no examples.
    """
    results.check_counts(resamples=resamples, seed=seed)
    table = tabulate(dataset)
    table = table.reindex(columns=[*COLUMNS[:-1], *DIFFERENCES, PLAN])
    texts, baseline = results.plan_texts(dataset), FAMILIES["baseline"].build(layers).text
    row = texts.index(baseline) if baseline in texts else None
    if row is None:
        log.warning("%s", NO_BASELINE)

    # Metric by metric, over all plans.
    for (task, metric, aggregation), scores in iter_scores(dataset):
        if aggregation not in (MEAN, PERPLEXITY):
            continue
        mean = estimate_mean(task, scores, texts, resamples=resamples, seed=seed)
        shown = mean if aggregation == MEAN else mean.map(perplexity_of)
        columns: dict[str, Any] = {}
        if aggregation == PERPLEXITY:  # lm-eval has an error of means alone
            with np.errstate(invalid="ignore"):  # of infinite perplexities
                columns["standard_error"] = shown.standard_error
        if row is not None:
            most = 1 if aggregation == MEAN and is_share(scores) else np.inf
            columns |= subtract_row(shown, row, tested=mean, most=most)
        is_here = ((table["task"] == task) & (table["metric"] == metric)).to_numpy()
        for name, values in columns.items():
            table.loc[is_here, name] = values
    table["p_holm"] = stats.holm(table["p_value"].to_numpy(np.float64))
    return table
