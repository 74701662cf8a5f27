"""What evaluations of a tiny model are asked for, and how two are compared."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repsim.evaluation.reader import Scores

PLANS = (
    "baseline",
    "skip:start=1",
    "reverse:start=0",
    "middle_repeat:start=1",
    "parallel:start=1",
    "looped_parallel:start=1,loops=2",
    "random:start=0,seed=3",
    "drop:layer=2",
    "drop:layer=3,part=attn",
    "drop:layer=1,part=mlp",
    "drop_block:first=1,last=2",
    "switch:layer=2",
    "repeat:layer=4,times=3",
    "0, (1|2)*2, 4.mlp, 3, 5",
)
OFFLINE = ("recall", "grammar", "arithmetic", "knowledge")
TASKS = (*OFFLINE, "arc_easy", "gsm8k", "wikitext")  # the last three read files


LIMIT, SHOTS = 6, 2
WORDS = (
    "the time of day is in a house and it was one that people see now who with when over about your"
)
WRITTEN = 8  # tokens that a generated text has


def write_data(folder: Path) -> Path:
    """Rows of three of lm-eval's tasks, of words that the tokenizer knows."""
    dice = random.Random(0)

    def words(count: int) -> str:
        return " ".join(dice.choices(WORDS.split(), k=count))

    def arc(row: int) -> dict[str, Any]:
        choices = {"text": [words(2) for _ in "ABCD"], "label": list("ABCD")}
        return {
            "id": str(row),
            "question": words(8),
            "choices": choices,
            "answerKey": "ABCD"[row % 4],
        }

    rows = {
        "arc_easy": [arc(row) for row in range(12)],
        "gsm8k": [{"question": words(9), "answer": f"{words(5)} #### {row}"} for row in range(12)],
        "wikitext": [{"page": words(20 + 10 * row)} for row in range(12)],
    }
    folder.mkdir(exist_ok=True)
    for name, each in rows.items():
        for split in ("train", "test"):
            (folder / f"{name}.{split}.jsonl").write_text("\n".join(map(json.dumps, each)))
    return folder


def asked_of(path: Path | str, **others: Any) -> dict[str, Any]:
    """A small evaluation in several blocks."""
    asked = {
        "plan": PLANS[:3],
        "tasks": OFFLINE[:2],
        "limit": LIMIT,
        "batch_tokens": 60,
        "out": path,
    }
    return {**asked, **others}


def of_plan(scores: Scores, plan: str) -> xr.Dataset:
    row = [named.name for named in scores.plans].index(plan)
    return scores.dataset.isel(plan=row).load()


def close(one: xr.Dataset, other: xr.Dataset, tolerance: float = 1e-5) -> None:
    """The same answers and scores to the same examples, whatever their order."""

    def ordered(dataset: xr.Dataset) -> xr.Dataset:
        dataset = dataset.load()
        columns = ("example_task", "example_doc"), ("request_task", "request_doc", "request_choice")
        keys = [
            list(zip(*(dataset[name].values.tolist() for name in names), strict=True))
            for names in columns
        ]
        orders = [sorted(range(len(each)), key=each.__getitem__) for each in keys]
        dataset = dataset.isel(example=orders[0], request=orders[1])
        plans, names = (np.argsort(dataset[name].values) for name in ("plan", "task"))
        return dataset.isel(plan=plans, task=names, metric=np.argsort(dataset["metric"].values))

    one, other = ordered(one), ordered(other)
    for name in (
        "example_gold",
        "example_choices",
        "request_digest",
        "is_greedy",
        "metric",
        "plan",
        "task",
    ):
        assert one[name].values.tolist() == other[name].values.tolist(), name
    for name in ("log_likelihood", "score", "aggregate"):
        np.testing.assert_allclose(
            one[name].values, other[name].values, rtol=tolerance, atol=tolerance, err_msg=name
        )
    if "response" in one or "response" in other:
        assert one["response"].values.tolist() == other["response"].values.tolist()
