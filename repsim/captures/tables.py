"""A capture as tables: one row per token, and one row per plan.

They hold what fits a table: tokens, and log-probabilities where these were kept. States are left
where they are (`Capture.hidden`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from repsim import stats
from repsim.plans import FAMILIES, NamedPlan
from repsim.schema import PLAN
from repsim.stats import results
from repsim.stats.differences import subtract_row

if TYPE_CHECKING:
    from repsim.captures.reader import Capture

NO_BASELINE = "no differences: the baseline is not in the capture; add --plan baseline --append"

Array = NDArray[np.float64]
log = logging.getLogger("repsim")


def tabulate_tokens(capture: Capture, plans: Sequence[NamedPlan], tokenizer: Any) -> pd.DataFrame:
    """One row per token; see `repsim.Capture.to_frame`."""
    tokens = capture.tokens
    table = tokens[["sample", "position", "token_id"]].to_dataframe()
    keys = capture.samples.values.astype(object)[tokens["sample"].values]
    table.insert(1, "sample_key", pd.Categorical(keys))
    if tokenizer is not None:
        table["token_text"] = capture.token_texts(tokenizer).values
    if capture.keeps_logprobs:
        texts = [named.plan.text for named in plans]
        labels = results.tell_apart([named.name for named in plans], texts)
        for label, named in zip(labels, plans, strict=True):
            column = np.full(len(table), np.nan, np.float32)
            finished = capture.logprob(named.plan).values
            column[: len(finished)] = finished
            table[f"logprob {label}"] = column
    return table.reset_index(drop=True)


def tabulate_plans(
    capture: Capture, wanted: Sequence[int], *, resamples: int, seed: int
) -> pd.DataFrame:
    """One row per plan; see `repsim.Capture.table`.

    Raises:
        RepsimError: too few resamples.
    """
    results.check_counts(resamples=resamples, seed=seed)
    plans = capture.plans
    lengths = capture.lengths(*(named.plan for named in plans))
    table = pd.DataFrame(
        {
            "plan_name": [named.name for named in plans],
            "states": [len(capture.steps(named.plan)) for named in plans],
            "samples": len(lengths),
            "tokens": int(lengths.sum()),
            PLAN: [named.plan.text for named in plans],
        }
    )
    if capture.keeps_logprobs and len(lengths):
        columns = _compare_log_probabilities(capture, lengths, resamples, seed)
        for place, (name, values) in enumerate(columns.items(), start=4):
            table.insert(place, name, values)
    return table.iloc[list(wanted)].reset_index(drop=True)


def _compare_log_probabilities(
    capture: Capture, lengths: NDArray[np.int64], resamples: int, seed: int
) -> dict[str, Array]:
    """Mean log-probability and perplexity of every plan, `[plan]`, and differences from the
    baseline's.
    """
    # Sums over each sample's tokens, and how many of these have a successor; plan by plan, so that
    # few tokens are held at once.
    tokens = int(lengths.sum())
    starts = np.cumsum([0, *lengths[:-1]])
    totals, counts = np.empty((2, len(lengths), len(capture.plans)))
    for column, named in enumerate(capture.plans):
        logprob = capture.logprob(named.plan).values[:tokens].astype(np.float64)
        has_successor = ~np.isnan(logprob)
        totals[:, column] = np.add.reduceat(np.where(has_successor, logprob, 0), starts)
        counts[:, column] = np.add.reduceat(has_successor.astype(np.float64), starts)
    mean = stats.bootstrap(
        stats.ratio_of_sums(totals, counts), len(lengths), resamples=resamples, seed=seed
    )
    with np.errstate(over="ignore"):  # a perplexity may be beyond all numbers
        perplexity = np.exp(-mean.value)
    columns = {
        "logprob": mean.value,
        "logprob_standard_error": mean.standard_error,
        "perplexity": perplexity,
    }

    # Differences, which are paired: all plans have the same draws of samples.
    texts = [named.plan.text for named in capture.plans]
    baseline = FAMILIES["baseline"].build(capture.layers).text
    if baseline not in texts:
        log.warning("%s", NO_BASELINE)
        return columns
    columns |= subtract_row(mean, texts.index(baseline))
    return columns | {"p_holm": stats.holm(columns["p_value"])}
