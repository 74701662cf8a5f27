"""Scores as lm-eval's own results, for programs that read its files.

The dictionary is put together by lm-eval's code, so it has lm-eval's keys in lm-eval's order. Every
plan is to lm-eval a model of its own. What a store does not keep (the settings of tasks, groups,
questions) is there only while the evaluation is at hand, which also takes no computing where the
store is complete already.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.metrics import mean, sample_stddev, stderr_for_metric
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.evaluator_utils import EvalAcc, aggregate_groups
from lm_eval.utils import (
    handle_non_serializable,
    hash_string,
    sanitize_list,
    sanitize_model_name,
)

from repsim.cache import file_name
from repsim.errors import PlanError, StoreError
from repsim.evaluation.prompting import parse_gen_kwargs
from repsim.evaluation.scoring import iter_metrics, restore_answers
from repsim.files import replacing
from repsim.plans import names_of, resolve
from repsim.schema import METRIC, TASK

if TYPE_CHECKING:
    from repsim.evaluation.questions import Example
    from repsim.evaluation.reader import Scores
    from repsim.evaluation.request import EvaluationRequest
    from repsim.evaluation.tasks import Task
    from repsim.plans import Plan

RESAMPLES = 1000  # of lm-eval's bootstrap, whose default of 100,000 takes minutes per plan
FEW_RESAMPLES = {"bleu", "chrf", "chrf++", "ter"}  # of which lm-eval draws 100
# Aggregations of numbers; others are of tuples, of which a store keeps none.
OF_NUMBERS = ("mean", "nanmean", "median", "perplexity")
NOT_KNOWN = "N/A"  # lm-eval's word for a standard error that it does not give
LONGEST_PLAN = 100  # bytes of a folder's name

log = logging.getLogger("repsim")


def to_lm_eval(
    scores: Scores, plan: str | Plan = "baseline", request: EvaluationRequest | None = None
) -> dict[str, Any]:
    """The dictionary that lm-eval's `simple_evaluate` would give for one plan.

    Args:
        scores: the store.
        plan: one that the store holds.
        request: the evaluation, where it is at hand: its tasks alone are given, with their settings
            and groups.

    Returns:
        `results`, `configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`, `config` and
        more, see `lm_eval.result_schema.EvalResults`. Tasks that the plan has not finished are left
        out. Without `request`, `configs` hold little more than names, and there are no groups.

    Raises:
        PlanError: the store does not hold the plan.
        StoreError: the plan has finished no task.
    """
    row = _row_of(scores, plan)
    collected = _collect_tasks(scores, row, request)
    if not collected.metrics:
        raise StoreError(
            f"{scores.place}: plan {scores.plans[row].name} has finished no task; evaluate it first"
        )
    results: dict[str, Any] = dict(aggregate_groups(collected)._to_eval_results())
    return results | _describe_run(scores, row, request)


def write_results(
    scores: Scores, request: EvaluationRequest, folder: Path, *, samples: bool = False
) -> list[Path]:
    """Writes `results_DATE.json` for each plan asked for, in a folder of its own, as lm-eval does
    for each model.

    Args:
        scores: the store.
        request: the evaluation that has just been made, or found complete.
        folder: where the plans' folders go.
        samples: also write `samples_TASK_DATE.jsonl`: each question with its answers.

    Returns:
        The files written.

    Raises:
        RepsimError: they cannot be written.
    """
    date = datetime.now().isoformat().replace(":", "-")
    model = sanitize_model_name(scores.identity["model"])
    scores.dataset.load()  # once, for all plans
    written: list[Path] = []
    for named in request.plans:
        name = file_name(named.name, longest=LONGEST_PLAN, distinct=True)
        place = folder / f"{model}__{name}"
        results = to_lm_eval(scores, named.plan, request)
        logged = _collect_samples(scores, _row_of(scores, named.plan), request) if samples else {}
        results["task_hashes"] = {task: _hash_samples(each) for task, each in logged.items()}
        texts = {f"results_{date}.json": _to_json(results, indent=2)}
        for task, each in logged.items():
            lines = [_to_json(_as_written(sample)) for sample in each]
            texts[f"samples_{sanitize_model_name(task)}_{date}.jsonl"] = "\n".join([*lines, ""])

        # All files of a plan, or none.
        paths = [place / file for file in texts]
        with replacing(paths, "choose another --output-path") as beside:
            for path, text in zip(beside, texts.values(), strict=True):
                path.write_text(text, "utf-8")
        written += paths
    log.info("lm-eval's results: %d files in %s", len(written), folder)
    return written


# Results


def _collect_tasks(scores: Scores, row: int, request: EvaluationRequest | None) -> EvalAcc:
    """Every finished task's metrics and settings, as lm-eval gathers them."""
    data = scores.dataset
    collected = EvalAcc()
    for position, name in enumerate(scores.tasks):
        examples = np.flatnonzero(data["example_task"].values.astype(object) == name)
        is_done = data["done"].values[row, data["block"].values[examples]].all()
        if not is_done or (request is not None and name not in request.tasks):
            continue
        task = None if request is None else request.tasks[name]
        shots = int(data["num_fewshot"].values[position])
        version = _to_number(str(data["task_version"].values[position]))
        config = {"task": name, "num_fewshot": shots, "metadata": {"version": version}}
        if task is not None:
            config = task.config
            collected.groups |= task.groups
        metrics, better = _collect_metrics(scores, row, position, examples, request)
        collected.metrics[name] = {
            "name": name,
            "alias": config.get("task_alias", name),
            "sample_len": len(examples),
            **metrics,
        }
        collected.configs[name], collected.versions[name] = config, version
        collected.num_fewshot[name] = shots
        collected.higher_is_better[name] = better
        size = task.size if task is not None else _size_of(scores, position, len(examples))
        collected.n_samples[name] = {"original": size, "effective": len(examples)}
    return collected


def _collect_metrics(
    scores: Scores,
    row: int,
    position: int,
    examples: np.ndarray[Any, Any],
    request: EvaluationRequest | None,
) -> tuple[dict[str, Any], dict[str, bool]]:
    """One task's metrics with their standard errors, and for which of them higher is better."""
    data = scores.dataset
    aggregate = data["aggregate"].transpose(TASK, METRIC, ...).values[position, :, row]
    aggregation = data["aggregation"].transpose(TASK, METRIC).values[position]
    higher = data["higher_is_better"].transpose(TASK, METRIC).values[position]
    values = data["score"].values[row][examples]
    metrics: dict[str, Any] = {}
    better: dict[str, bool] = {}
    for column in np.flatnonzero(higher >= 0).tolist():
        metric, _, filter_name = str(data[METRIC].values[column]).partition(",")
        better[metric] = bool(higher[column])
        key = filter_name or "none"
        value, kind = float(aggregate[column]), str(aggregation[column])
        metrics[f"{metric},{key}"] = value
        error: float | str = NOT_KNOWN
        if kind in OF_NUMBERS:
            error = _standard_error(AGGREGATION_REGISTRY[kind], values[:, column].tolist(), value)
        elif request is not None and kind in AGGREGATION_REGISTRY:
            raw = _raw_values(scores, row, request, scores.tasks[position], metric, filter_name)
            error = _standard_error(AGGREGATION_REGISTRY[kind], raw, value, metric)
        metrics[f"{metric}_stderr,{key}"] = error
    return metrics, better


def _standard_error(
    function: Callable[..., float], values: Sequence[Any], aggregate: float, metric: str = ""
) -> float | str:
    """lm-eval's standard error of an aggregate: of a mean in closed form, of others by bootstrap.

    Args:
        function: the aggregation.
        values: what it is of, one per example.
        aggregate: what it gave; where it gives something else now, the values are not all there.
        metric: its name.

    Source: lm-eval, `lm_eval.api.metrics.bootstrap_stderr` with `bootstrap_iters` = 1000.
    """
    estimate = stderr_for_metric(function, RESAMPLES)
    if estimate is None or len(values) < 2 or not math.isfinite(aggregate):
        return NOT_KNOWN
    if not math.isclose(function(values), aggregate, rel_tol=1e-6, abs_tol=1e-9):
        return NOT_KNOWN
    if function is mean:
        return float(estimate(values))
    # Its own function starts a process per core for the same numbers.
    draw = random.Random(0).choices
    count = 100 if metric in FEW_RESAMPLES else RESAMPLES
    replicates = [function(draw(values, k=len(values))) for _ in range(count)]
    return float(sample_stddev(replicates))


def _raw_values(
    scores: Scores, row: int, request: EvaluationRequest, name: str, metric: str, filter_name: str
) -> list[Any]:
    """A metric of each example in the form in which lm-eval aggregates it."""
    key = f"{metric},{filter_name}" if filter_name else metric
    raw: list[Any] = []
    for example, answers in _iter_answers(scores, row, request, name):
        for _, metrics in iter_metrics(request, [example], answers):
            raw += [metrics[key]] if key in metrics else []
    return raw


def _size_of(scores: Scores, position: int, examples: int) -> int | None:
    """How many examples a task has in all, as far as a store tells; None where it does not."""
    data = scores.dataset
    if "gold_count" in data:
        counts = data["gold_count"].values[position]
        if total := int(counts[counts >= 0].sum()):
            return total
    is_limited = any("limit" in request for request in data.attrs["requests"])
    return None if is_limited else examples


# Samples


def _collect_samples(
    scores: Scores, row: int, request: EvaluationRequest
) -> dict[str, list[dict[str, Any]]]:
    """Each task's examples as lm-eval logs them; filter by filter, as there."""
    logged: dict[str, list[dict[str, Any]]] = {}
    for name, task in request.tasks.items():
        if task.examples:
            rows = [
                task.samples(example.doc, _as_task_takes(example, answers))
                for example, answers in _iter_answers(scores, row, request, name)
            ]
            logged[name] = [sample for each in zip(*rows, strict=True) for sample in each]
    return logged


def _iter_answers(
    scores: Scores, row: int, request: EvaluationRequest, name: str
) -> Iterator[tuple[Example, list[Any]]]:
    """The asked examples of a task that are scored under a plan, each with its stored answers."""
    data = scores.dataset
    arrays = ("response", "log_likelihood", "is_greedy")
    values = {array: data[array].values for array in arrays if array in data}
    starts = np.searchsorted(
        data["request_example"].values, np.arange(len(data["example_doc"].values) + 1)
    )
    has_score = ~np.isnan(data["score"].values[row]).all(-1)
    task: Task = request.tasks[name]
    names, docs = data["example_task"].values.astype(object), data["example_doc"].values
    for number in np.flatnonzero((names == name) & has_score).tolist():
        example = request.examples.get((name, int(docs[number])))
        if example is not None:
            places = list(range(starts[number], starts[number + 1]))
            yield example, restore_answers(values, row, places, task.generates)


def _as_task_takes(example: Example, answers: Sequence[Any]) -> list[Any]:
    """Answers as lm-eval's models give them: of a whole text, the number alone."""
    return [
        answer[0] if question.is_whole_text else answer
        for question, answer in zip(example.requests, answers, strict=True)
    ]


def _as_written(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample in the form of lm-eval's files.

    Source: lm-eval, `lm_eval.loggers.EvaluationTracker.save_results_samples`.
    """
    arguments = {
        f"gen_args_{row}": {f"arg_{column}": value for column, value in enumerate(each)}
        for row, each in enumerate(sample["arguments"])
    }
    return sample | {
        "arguments": arguments,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "target": str(sample["target"]),
    }


def _hash_samples(samples: Sequence[dict[str, Any]]) -> str:
    """What lm-eval keeps to tell whether two runs asked the same."""
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    return str(hash_string("".join(sample[name] for sample in samples for name in hashes)))


# What else lm-eval says


def _describe_run(scores: Scores, row: int, request: EvaluationRequest | None) -> dict[str, Any]:
    """Model, options and versions, by lm-eval's names for them."""
    identity, named = scores.identity, scores.plans[row]
    command = scores.dataset.attrs["requests"][-1]
    model, versions = str(identity["model"]), identity["versions"]
    chats = bool(command.get("apply_chat_template", False))
    instruction = command.get("system_instruction")
    described: dict[str, Any] = {
        "config": {
            "model": "repsim",
            "model_args": {"pretrained": model, "plan": named.plan.text},
            "model_num_parameters": -1,
            "model_dtype": f"torch.{identity['compute_dtype']}",
            "model_revision": identity["revision"] or "main",
            "model_sha": "",
            "batch_size": None,
            "batch_sizes": [],
            "device": identity["device"],
            "use_cache": None,
            "limit": command.get("limit"),
            "bootstrap_iters": RESAMPLES,
            "gen_kwargs": parse_gen_kwargs(command.get("gen_kwargs")) or None,
            "random_seed": 0,
            "numpy_seed": 1234,
            "torch_seed": 1234,
            "fewshot_seed": 1234,
        },
        "date": time.time(),
        "transformers_version": versions["transformers"],
        "lm_eval_version": versions["lm-eval"],
        "model_source": "repsim",
        "model_name": model,
        "model_name_sanitized": sanitize_model_name(model),
        "system_instruction": instruction,
        "system_instruction_sha": None if instruction is None else hash_string(instruction),
        "fewshot_as_multiturn": bool(command.get("fewshot_as_multiturn", chats)),
        "chat_template": None,
        "chat_template_sha": None,
        "repsim": {"plan": named.plan.text, "plan_name": named.name},
    }
    if request is not None:
        described["config"]["model_num_parameters"] = request.model.module.num_parameters()
        described |= _describe_tokenizer(request.model.tokenizer, chats)
    return described


def _describe_tokenizer(tokenizer: Any, chats: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        f"tokenizer_{kind}_token": [
            getattr(tokenizer, f"{kind}_token"),
            str(getattr(tokenizer, f"{kind}_token_id")),
        ]
        for kind in ("pad", "eos", "bos")
    }
    if chats:
        template = str(tokenizer.chat_template)
        described |= {"chat_template": template, "chat_template_sha": hash_string(template)}
    return described


def _row_of(scores: Scores, plan: str | Plan) -> int:
    wanted = resolve(plan, scores.layers)
    if len(wanted) > 1:
        raise PlanError(f"{plan}: stands for {len(wanted)} plans; name one")
    for row, named in enumerate(scores.plans):
        if named.plan == wanted[0].plan:
            return row
    raise PlanError(
        f"plan {str(plan)!r} is not in {scores.path}; it holds: {names_of(scores.plans)}"
    )


def _to_number(version: str) -> int | float | str:
    """A task's version as lm-eval has it.

    Example:
        >>> _to_number("1"), _to_number("1.0"), _to_number("Yaml")
        (1, 1.0, 'Yaml')
    """
    for kind in (int, float):
        try:
            return kind(version)
        except ValueError:
            continue
    return version


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)
