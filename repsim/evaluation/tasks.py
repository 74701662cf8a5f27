"""Tasks: what a benchmark asks of a model, and the metrics of what the model answers.

Prompts, their cutting into context and continuation, filters, metrics of examples and aggregates
are lm-eval's own code, of which nothing is written again here. A `Task` of this module is not one
of lm-eval's `Task` classes: it wraps one (`ConfigurableTask`), together with the examples asked for
and their requests as token windows, so that a plan's model can answer them. Where lm-eval's tasks
come from is `repsim.evaluation.task_sources`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.utils import handle_non_serializable, hash_string

from repsim.data.packing import Window
from repsim.errors import DataError, ModelError, RepsimError, brief
from repsim.evaluation import offline_suite, task_files
from repsim.evaluation.lm_eval_model import ExampleError, LmEvalModel, TaskTooLong
from repsim.evaluation.prompting import PLAIN, Prompting, is_random
from repsim.evaluation.questions import Answer, Example, Request, digest
from repsim.evaluation.task_index import expand_patterns
from repsim.evaluation.task_sources import (
    SPLITS,
    explain_data_error,
    find_tasks,
    prepare,
    quiet_libraries,
)
from repsim.models import Model

# Of a task's settings, those that say where its data come from. They are left out of its digest:
# the same questions may be read from the Hub or from files. What is asked is in the digests of the
# requests.
DATA_SETTINGS = (
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "custom_dataset",
    "metadata",
    *SPLITS,
)

log = logging.getLogger("repsim")


class Task:
    """One of lm-eval's tasks with the examples asked for; not lm-eval's own `Task`.

    name, version: as lm-eval has them.
    digest: sha256 of the task's configuration, 16 hex digits.
    shots: solved examples before each.
    generates: whether the model is to write text.
    examples: those asked for, in the task's order.
    gold_count: how often each choice is right in the whole data set, whatever part of it is asked
    for; empty where that is not known: examples with different numbers of choices, or without one
    right choice.

    Args:
        lm_eval_task: as `repsim.evaluation.task_sources.prepare` gives it.
        lm_eval_model: cuts the requests into tokens.
        limit: the first `limit` examples; all by default.

    Raises:
        TaskTooLong: the task asks for more tokens than the model reads.
        RepsimError: the task cannot be asked, or an example cannot.
    """

    def __init__(
        self,
        lm_eval_task: Any,
        lm_eval_model: LmEvalModel,
        limit: int | None,
        prompting: Prompting = PLAIN,
        groups: Mapping[str, Any] | None = None,
    ) -> None:
        self._task, self._model = lm_eval_task, lm_eval_model
        self.groups = dict(groups or {})
        self.name: str = lm_eval_task.config.task
        self.version = str(lm_eval_task.VERSION)
        self.shots = int(lm_eval_task.config.num_fewshot or 0)
        self.generates: bool = lm_eval_task.OUTPUT_TYPE == "generate_until"
        if self.shots and _shows_its_own_split(lm_eval_task.config):
            log.warning(
                "task %s: it has no other split, so solved examples come from the one asked about",
                self.name,
            )
        settings = self.config
        self.digest = digest(
            {name: settings[name] for name in sorted(settings) if name not in DATA_SETTINGS}
            | prompting.settings()
        )

        # lm-eval lists instances one after another; here they are grouped by example.
        lm_eval_task.build_all_requests(
            limit=limit,
            system_instruction=prompting.system_instruction,
            apply_chat_template=prompting.apply_chat_template,
            fewshot_as_multiturn=prompting.fewshot_as_multiturn,
            chat_template=lm_eval_model.chat_template_of(prompting),
        )
        instances_of: dict[int, list[Any]] = {}
        for instance in lm_eval_task.instances:
            instances_of.setdefault(instance.doc_id, []).append(instance)
        self._instances = {
            doc: sorted(instances, key=lambda instance: instance.idx)
            for doc, instances in instances_of.items()
        }
        self.examples = tuple(
            self._build_example(doc, instances) for doc, instances in self._instances.items()
        )
        self.gold_count = self._count_gold()

    def _build_example(self, doc: int, instances: Sequence[Any]) -> Example:
        requests = tuple(self._build_request(doc, instance) for instance in instances)
        choices, gold = 0, -1
        if self._task.OUTPUT_TYPE == "multiple_choice":
            choices, gold = self._choices_and_gold(instances[0].doc)
        return Example(self.name, doc, choices, gold, requests)

    def _count_gold(self) -> tuple[int, ...]:
        if self._task.OUTPUT_TYPE != "multiple_choice":
            return ()
        try:
            choices_and_gold = [self._choices_and_gold(doc) for doc in self._task.eval_docs]
        except Exception:  # an example that is not asked for may be damaged in any way
            return ()
        numbers_of_choices = {choices for choices, _ in choices_and_gold}
        golds = [gold for _, gold in choices_and_gold]
        if len(numbers_of_choices) != 1 or min(golds) < 0:
            return ()
        return tuple(np.bincount(golds, minlength=numbers_of_choices.pop()).tolist())

    def _choices_and_gold(self, doc: Any) -> tuple[int, int]:
        """How many choices a document has, and which is right; -1 if there is not exactly one."""
        options = self._task.doc_to_choice(doc)
        # Of tasks with several inputs and one continuation (WinoGrande), lm-eval keeps the right
        # choice where other tasks have the text.
        has_several_inputs = self._task.multiple_input
        gold = self._task.doc_to_text(doc) if has_several_inputs else self._task.doc_to_target(doc)
        if isinstance(gold, str):
            gold = options.index(gold) if gold in options else -1
        is_choice = isinstance(gold, int) and 0 <= gold < len(options)
        return len(options), gold if is_choice else -1

    def _build_request(self, doc: int, instance: Any) -> Request:
        try:
            if self.generates:
                prompt, settings = instance.args
                self._check_generation(settings)
                windows: tuple[Window, ...] = ()
                content: Any = [prompt, settings]
            else:
                prompt, windows = None, self._model.windows(instance)
                if not windows:
                    raise ExampleError("an empty text; leave it out of the data")
                content = [[window.inputs.tolist(), window.targets.tolist()] for window in windows]
        except TaskTooLong as problem:
            raise TaskTooLong(f"task {self.name}: {problem}") from None
        except ExampleError as problem:
            raise DataError(f"task {self.name}: {self._locate(doc)}: {problem}") from None
        target = str(self._task.doc_to_target(instance.doc))
        asked = digest([self.name, self.version, instance.request_type, content, target])
        is_whole_text = instance.request_type == "loglikelihood_rolling"
        return Request(self.name, doc, instance.idx, asked, windows, prompt, is_whole_text)

    def _check_generation(self, settings: dict[str, Any]) -> None:
        if is_random(settings):
            raise DataError(
                f"task {self.name}: it samples or searches ({settings}); only greedy generation "
                "can be compared"
            )
        self._model.check_generation(settings)

    def _locate(self, doc: int) -> str:
        """An example's line in its file, where each line is an example; else its number."""
        config = self._task.config
        split = config.test_split if self._task.has_test_docs() else config.validation_split
        files = task_files.line_files(config)
        if split not in files or config.process_docs is not None:
            return f"example {doc}"
        return f"{files[split]} line {task_files.find_line(Path(files[split]), doc)}"

    def generate(
        self,
        docs: Sequence[int],
        module: Any,
        cache: Callable[[], Any] | None = None,
        at_once: int = 8,
    ) -> list[list[str | None]]:
        """Lets a model write.

        Args:
            docs: numbers of the examples to answer.
            module: the Hugging Face model that writes.
            cache: makes the cache of keys and values of a batch; the model's own by default.
            at_once: how many texts are written together, padded on the left.

        Returns:
            For each example, for each of its requests, the text; None where the model's logits were
            not finite. See `LmEvalModel.generate`.
        """
        instances = [instance for doc in docs for instance in self._instances[doc]]
        with quiet_libraries():
            texts = iter(self._model.generate(instances, module, cache, at_once))
        return [[next(texts) for _ in self._instances[doc]] for doc in docs]

    def score(self, doc: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Metrics of one example.

        Args:
            doc: its number.
            answers: to its requests, in order.

        Returns:
            What the task's `process_results` gives, by metric; with several filters by
            `metric,filter`. A value need not be a number: see `to_number`.
        """
        metrics: dict[str, Any] = {}
        for ensemble, _, results in self._process(doc, answers):
            metrics |= {_with_filter(name, ensemble): value for name, value in results.items()}
        return metrics

    def samples(self, doc: int, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """One example with its answers, as lm-eval logs it: one record per filter.

        Args:
            doc: its number.
            answers: to its requests, in order.

        Source: lm-eval, `lm_eval.evaluator.evaluate`.
        """
        instances = self._instances[doc]
        asked, target = instances[0].doc, self._task.doc_to_target(instances[0].doc)
        text = json.dumps(asked, indent=2, default=handle_non_serializable, ensure_ascii=False)
        return [
            {
                "doc_id": doc,
                "doc": asked,
                "target": target,
                "arguments": [instance.args for instance in instances],
                "resps": [list(instance.resps) for instance in instances],
                "filtered_resps": filtered,
                "filter": ensemble.name,
                "metrics": list(results),
                "doc_hash": hash_string(text),
                "prompt_hash": hash_string(instances[0].arguments[0]),
                "target_hash": hash_string(str(target)),
                **results,
            }
            for ensemble, filtered, results in self._process(doc, answers)
        ]

    def _process(
        self, doc: int, answers: Sequence[Answer]
    ) -> Iterator[tuple[Any, list[Any], dict[str, Any]]]:
        """Each of lm-eval's filters, with the answers and the metrics that it gives."""
        instances = self._instances[doc]
        for instance, answer in zip(instances, answers, strict=True):
            instance.resps = [answer] * (instance.repeats or 1)
            instance.filtered_resps = {}
        for ensemble in self._task._filters:
            ensemble.apply(instances)
            filtered = [instance.filtered_resps[ensemble.name] for instance in instances]
            yield ensemble, filtered, self._task.process_results(instances[0].doc, filtered)

    def to_number(self, metric: str, value: Any) -> float:
        """A metric of one example as a number.

        Args:
            metric: its name, as `score` gives it.
            value: its value. A tuple, such as (log-likelihood, words), only gets a meaning by its
                aggregation and is aggregated by itself.

        Returns:
            The number; NaN for what is none.
        """
        if isinstance(value, tuple | list):
            return self.aggregate(metric, [value])
        is_number = isinstance(value, int | float | np.number | np.bool_)
        return float(value) if is_number else float("nan")

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """A metric of the whole task, by the task's own aggregation.

        Args:
            metric: its name, as `score` gives it.
            values: of each example, as `score` gives them.

        Returns:
            The aggregate; infinity where it overflows, NaN where it divides by zero.
        """
        try:
            return float(self._task.aggregation()[metric.partition(",")[0]](values))
        except OverflowError:  # the perplexity of a model that is all wrong
            return float("inf")
        except ZeroDivisionError:  # of nothing
            return float("nan")

    @property
    def config(self) -> dict[str, Any]:
        """lm-eval's settings of the task, as it prints them."""
        settings: dict[str, Any] = self._task.dump_config()
        return settings

    @property
    def size(self) -> int:
        """How many examples the data have, whatever part of them is asked for."""
        return len(self._task.eval_docs)

    @property
    def metrics(self) -> dict[str, tuple[str, bool]]:
        """Metric → name of its aggregation, and whether higher is better."""
        names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
        is_higher_better = self._task.higher_is_better()
        return {
            _with_filter(metric, ensemble): (
                names.get(function, getattr(function, "__name__", "own")),
                bool(is_higher_better.get(metric, True)),
            )
            for ensemble in self._task._filters
            for metric, function in self._task.aggregation().items()
        }


def load(
    names: Sequence[str],
    model: Model,
    *,
    data_dir: Path | None = None,
    include_path: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    prompting: Prompting = PLAIN,
) -> tuple[Task, ...]:
    """Tasks with their requests, in the order of the names, each once.

    A task that asks for more tokens than the model reads is left out and logged, unless it is the
    only one.

    Args:
        names: lm-eval's tasks, groups and tags, the project's own
            (`repsim.evaluation.offline_suite`), or `offline` for all of the latter; patterns of
            such names; YAML files with the settings of tasks.
        model: a decoder, for whose tokenizer and context length the requests are made.
        data_dir: folder of `<task>.<split>.jsonl` files, read in place of the Hub.
        include_path: folder with the settings of further tasks.
        limit: the first `limit` examples of each.
        shots: solved examples before each; the task's own number by default.
        prompting: how the questions are put.

    Raises:
        RepsimError: there is no such task, its data cannot be read, or it asks for what repsim
            cannot give.
    """
    if not model.predicts_next_token:
        raise ModelError(f"{model.name}: does not predict a next token; benchmarks need a decoder")
    if limit is not None and limit < 1:
        raise RepsimError(f"limit={limit}: at least 1")
    if shots is not None and shots < 0:
        raise RepsimError(f"shots={shots}: at least 0")
    unique_names = list(dict.fromkeys(name for name in names if name))
    if not unique_names:
        raise DataError(f"no task: name at least one, e.g. {offline_suite.GROUP} or arc_easy")

    with quiet_libraries():
        # A group and a member of it give the same task, which counts once.
        lm_eval_model = LmEvalModel(model)
        lm_eval_model.chat_template_of(prompting)  # refused before any data are read
        found = [
            find_tasks(name, data_dir, include_path)
            for name in expand_patterns(unique_names, include_path)
        ]
        prepared = {
            task.config.task: (prepare(task, shots, prompting), each.groups)
            for each in found
            for task in each.tasks
        }
        tasks: list[Task] = []
        too_long: list[TaskTooLong] = []
        for lm_eval_task, groups in prepared.values():
            try:
                tasks.append(_build_task(lm_eval_task, lm_eval_model, limit, prompting, groups))
            except TaskTooLong as problem:
                too_long.append(problem)
    if not tasks:
        raise too_long[0]

    # Some tokenizers give ids that their model has no embedding for.
    model.check_ids(
        window.inputs
        for task in tasks
        for example in task.examples
        for request in example.requests
        for window in request.windows
    )
    for too_long_task in too_long:
        log.error("left out: %s", too_long_task)
    return tuple(tasks)


def _build_task(
    lm_eval_task: Any,
    lm_eval_model: LmEvalModel,
    limit: int | None,
    prompting: Prompting,
    groups: Mapping[str, Any],
) -> Task:
    name = lm_eval_task.config.task
    try:
        return Task(lm_eval_task, lm_eval_model, limit, prompting, groups)
    except TaskTooLong:
        raise
    except RepsimError as problem:
        if str(problem).startswith("task "):
            raise
        raise DataError(f"task {name}: {problem}") from None
    except Exception as problem:  # a task's own code meets its data
        config = lm_eval_task.config.to_dict(keep_callable=True)
        if task_files.line_files(config):
            raise explain_data_error(config, problem) from problem
        raise DataError(
            f"task {name}: {brief(problem)}; does the data have the task's fields?"
        ) from problem


def _shows_its_own_split(config: Any) -> bool:
    """Whether solved examples come from the split that is asked about; the example itself is left
    out.
    """
    if getattr(config.fewshot_config, "samples", None):
        return False
    asked_split = config.test_split or config.validation_split
    shown_split = config.fewshot_split or config.training_split or config.validation_split
    return (shown_split or config.test_split) == asked_split


def _with_filter(metric: str, ensemble: Any) -> str:
    """A metric's name, with that of lm-eval's filters if the task names them."""
    return metric if ensemble.name == "none" else f"{metric},{ensemble.name}"
