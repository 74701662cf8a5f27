"""Tasks against lm-eval's own evaluation of the same files and model, and by hand."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import gc
import json
import logging
import math
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from repsim import models
from repsim.data.corpus import read_corpus
from repsim.errors import RepsimError
from repsim.evaluation import offline_suite, task_index, tasks
from repsim.evaluation.lm_eval_model import LmEvalModel
from repsim.evaluation.questions import Request
from repsim.evaluation.tasks import Task
from repsim.models import Model

WORDS = " ".join(text.text for text in read_corpus().texts).split()
PAGE = " ".join((WORDS * 3)[:2600])  # in two windows of the tiny model's 2,048 tokens


def arc(
    number: int, question: str, answers: list[str], key: str, labels: str = "ABCD"
) -> dict[str, Any]:
    choices = {"text": answers, "label": list(labels[: len(answers)])}
    return {"id": f"Mercury_{number}", "question": question, "choices": choices, "answerKey": key}


def winogrande(sentence: str, option1: str, option2: str, answer: str) -> dict[str, Any]:
    return {"sentence": sentence, "option1": option1, "option2": option2, "answer": answer}


def hellaswag(
    number: int, activity: str, ctx_a: str, ctx_b: str, endings: list[str], label: str
) -> dict[str, Any]:
    ctx = {
        "ind": number,
        "activity_label": activity,
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "ctx": f"{ctx_a} {ctx_b}",
    }
    return ctx | {"endings": endings, "label": label}


def gsm8k(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer}


ARC_EASY = [
    arc(
        0,
        "Which of these gives the earth its light?",
        ["the sun", "the moon", "a lake", "sand"],
        "A",
    ),
    arc(1, "What do plants need to grow?", ["salt and oil", "iron", "water and light"], "C"),
    arc(
        2,
        "Which animal can fly?",
        ["a dog", "an eagle in the sky", "a fish", "a horse"],
        "2",
        "1234",
    ),
    arc(3, "Water that is very cold becomes", ["steam", "gas", "stone", "ice"], "D"),
    # Too long a prompt.
    arc(4, " ".join((WORDS * 3)[:2100]), ["the water", "one of them", "no", "a house"], "B"),
]
FILES: dict[str, list[dict[str, Any]]] = {
    "arc_easy.test": ARC_EASY,
    "arc_easy.train": [
        arc(10 + i, f"How many are {i} and {i}?", ["one", str(2 * i), "none"], "B")
        for i in range(1, 7)
    ],
    "arc_challenge.test": ARC_EASY[1:4],
    "hellaswag.validation": [
        hellaswag(
            4,
            "Washing dishes",
            "[header] How to wash [title] Fill the sink.",
            "the man",
            [
                "turns on the water.",
                "flies to the moon.",
                "[step] is a dog.",
                "reads a book  to the plate.",
            ],
            "0",
        ),
        hellaswag(
            9,
            "Running",
            "A woman is at the start.",
            "she",
            ["runs.", "sleeps.", "swims.", "eats a car."],
            "0",
        ),
        hellaswag(
            5,
            "Music",
            "A band is on the stage.",
            "",
            ["it rains.", "they play.", "no.", "the end is red."],
            "1",
        ),
        hellaswag(
            7,
            "Snow",
            "The boy has a shovel.",
            "he",
            ["sings it.", "is a tree.", "clears the way.", "eats."],
            "2",
        ),
    ],
    "winogrande.validation": [
        winogrande("The man saw the dog because _ was in the house.", "the man", "the dog", "1"),
        winogrande(
            "The cup did not fit in the box because _ was too small.", "the cup", "the box", "2"
        ),
        winogrande("Sarah gave the book to Mary and _ read it to the end.", "Sarah", "Mary", "2"),
        winogrande("The tree fell on the car, so the _ was new again.", "tree", "car", "2"),
    ],
    "lambada_openai.test": [
        {"text": " ".join(WORDS[start : start + length])}
        for start, length in ((0, 12), (40, 25), (90, 18), (130, 30), (200, 9))
    ],
    "gsm8k.train": [
        gsm8k(f"What is {i} and {i}?", f"It is {i}+{i}=<<{i}+{i}={2 * i}>>\n#### {2 * i}")
        for i in range(9)
    ],
    "gsm8k.test": [
        gsm8k("Anna has 3 books and buys 4. How many has she?", "3+4=<<3+4=7>>7\n#### 7"),
        gsm8k(
            "A house costs $1,000 and a car $200. What do both cost?",
            "The sum is 1,200.\n#### 1,200",
        ),
        gsm8k("Ten men leave and two stay. How many were there?", "10+2=12\n#### 12"),
        gsm8k("It was 3 degrees and fell by 5. How cold is it?", "3-5=-2\n#### -2"),
    ],
    "wikitext.test": [
        {"page": f" = One = \n {' '.join(WORDS[:90])} . \n"},
        {"page": PAGE},
        {"page": "It is so ."},
    ],
}
OWN = ("arc_easy", "hellaswag", "winogrande", "lambada_openai", "gsm8k", "wikitext")
LIMIT = 4  # of the offline suite
slow = pytest.mark.slow
Reference = Callable[[str], tuple[Any, Any, Any]]


def write(folder: Path, files: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield
    # Some hundred thousand objects, through which other tests would look for theirs.
    task_index.lm_eval_index.cache_clear()
    gc.collect()


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Model:
    return models.load(str(tiny_folder), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), FILES)


@pytest.fixture(scope="module")
def own(tiny: Model, folder: Path) -> dict[str, Task]:
    """Tasks from files, by name."""
    return {task.name: task for task in tasks.load(OWN, tiny, data_dir=folder)}


@pytest.fixture(scope="module")
def offline(tiny: Model) -> dict[str, Task]:
    return {task.name: task for task in tasks.load(["offline"], tiny, limit=LIMIT)}


class Watched(HFLM):  # type: ignore[misc]
    """lm-eval's own model, one request at a time; notes what it is called on and which tokens it
    scores.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(
            pretrained=model.module,
            tokenizer=model.tokenizer,
            backend="causal",
            batch_size=1,
            logits_cache=False,
        )
        self.inputs: list[list[int]] = []
        # What was asked -> for each time, what went in and what was scored.
        self.ran: dict[Any, list[tuple[list[int], list[int]]]] = {}

    def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
        self.inputs += inps.tolist()
        return super()._model_call(inps, *args, **kwargs)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[Any]:
        answers: list[Any] = []
        for request in requests:
            self.inputs = []
            answers += super()._loglikelihood_tokens([request], disable_tqdm=True)
            assert len(self.inputs) == 1
            self.ran.setdefault(request[0], []).append((self.inputs[0], list(request[2])))
        return answers


def lm_eval_on(
    model: Model, config: Any, limit: int | None = None, shots: int | None = None
) -> tuple[Any, Any, Any]:
    """lm-eval's own evaluation of one task: its samples, aggregates, and what it ran for each
    request.
    """
    lm = Watched(model)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lm-eval about itself
        results = simple_evaluate(
            lm,
            tasks=[config],
            task_manager=task_index.task_manager(),
            limit=limit,
            num_fewshot=shots,
            bootstrap_iters=0,
        )
    (name,) = results["samples"]
    return results["samples"][name], results["results"][name], lm.ran


def files_of(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """lm-eval's own way of saying that a task's data lie in files."""
    files = {file.name.split(".")[1]: str(file) for file in sorted(folder.glob(f"{name}.*.jsonl"))}
    data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    missing: dict[str, None] = {} if "train" in files else {"training_split": None}
    missing |= {} if "validation" in files else {"validation_split": None}
    return {"group": "files", "task": [{"task": name} | data | missing | more]}


@pytest.fixture(scope="module")
def references(tiny: Model, folder: Path) -> Reference:
    """What lm-eval makes of each task; computed once each."""
    known: dict[str, tuple[Any, Any, Any]] = {}

    def of(name: str) -> tuple[Any, Any, Any]:
        if name not in known:
            config = files_of(folder, name) if name in OWN else offline_suite.make_config(name)
            known[name] = lm_eval_on(tiny, config, limit=None if name in OWN else LIMIT)
        return known[name]

    return of


def task_of(name: str, own: dict[str, Task], offline: dict[str, Task]) -> Task:
    return own[name] if name in OWN else offline[name]


def pairs(request: Request) -> list[tuple[list[int], list[int]]]:
    return [(window.inputs.tolist(), window.targets.tolist()) for window in request.windows]


def expected(samples: Any) -> tuple[dict[int, dict[str, Any]], dict[int, list[Any]]]:
    """Metrics of each example as `Task.score` names them, and the model's answers."""
    metrics: dict[int, dict[str, Any]] = {}
    answers: dict[int, list[Any]] = {}
    for sample in samples:
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        of_filter = {f"{name}{suffix}": sample[name] for name in sample["metrics"]}
        metrics[sample["doc_id"]] = metrics.get(sample["doc_id"], {}) | of_filter
        answers[sample["doc_id"]] = [responses[0] for responses in sample["resps"]]
    return metrics, answers


def check_against(task: Task, reference: tuple[Any, Any, Any]) -> None:
    """Windows, metrics of examples and aggregates are those of lm-eval."""
    samples, results, ran = reference
    metrics, answers = expected(samples)
    assert [example.doc for example in task.examples] == list(metrics)
    arguments_of = {sample["doc_id"]: sample["arguments"] for sample in samples}
    # lm-eval runs whole texts one after another, without saying of which example they are.
    whole_texts = list(ran.get(None, []))
    scored = {}
    for example in task.examples:
        arguments = arguments_of[example.doc]
        for request, argument in zip(example.requests, arguments, strict=True):
            if task.generates:
                assert (request.prompt, request.windows) == (argument[0], ())
            elif request.is_whole_text:
                count = len(request.windows)
                windows, whole_texts = whole_texts[:count], whole_texts[count:]
                assert pairs(request) == windows
            else:
                assert pairs(request) == ran[tuple(argument)][:1]
                assert request.prompt is None
        scored[example.doc] = task.score(example.doc, answers[example.doc])
        assert scored[example.doc] == metrics[example.doc]
    assert whole_texts == []
    for metric in task.metrics:
        name = metric if "," in metric else f"{metric},none"
        values = [of_example[metric] for of_example in scored.values()]
        assert task.aggregate(metric, values) == pytest.approx(results[name], rel=1e-12)


# By hand


def test_a_choice_by_hand(tiny: Model, offline: dict[str, Task]) -> None:
    """`text + " " + choice`, one token each in a word-level vocabulary; the last is predicted, not
    read.
    """
    (document, *_) = offline_suite.make_documents("arithmetic")
    example = offline["arithmetic"].examples[0]
    assert (example.task, example.doc, example.choices, example.gold) == (
        "arithmetic",
        0,
        4,
        document["gold"],
    )
    for request, choice in zip(example.requests, document["choices"], strict=True):
        ids = tiny.tokenizer(f"{document['text']} {choice}")["input_ids"]
        ((inputs, targets),) = pairs(request)
        assert inputs == ids[:-1]
        assert targets == ids[-len(targets) :] == tiny.tokenizer(choice)["input_ids"]
        assert (request.task, request.doc) == ("arithmetic", 0)
    assert [request.choice for request in example.requests] == [0, 1, 2, 3]


def test_a_whole_sentence_is_predicted_after_the_first_special_token(
    tiny: Model, offline: dict[str, Task]
) -> None:
    document = offline_suite.make_documents("grammar")[0]
    requests = offline["grammar"].examples[0].requests
    for request, sentence in zip(requests, document["choices"], strict=True):
        ids = tiny.tokenizer(sentence)["input_ids"]
        assert pairs(request) == [([tiny.tokenizer.bos_token_id, *ids[:-1]], ids)]


def test_scores_by_hand(offline: dict[str, Task]) -> None:
    recall, knowledge = offline["recall"], offline["knowledge"]
    assert recall.score(0, [(-2.5, True)]) == {"perplexity": -2.5, "acc": 1}
    assert recall.score(0, [(-2.5, False)])["acc"] == 0
    assert recall.aggregate("perplexity", [-1.0, -3.0]) == pytest.approx(math.exp(2))
    assert recall.metrics == {"perplexity": ("perplexity", False), "acc": ("mean", True)}
    for example in knowledge.examples:
        for best in range(4):
            answers = [(-1.0 if choice == best else -2.0, False) for choice in range(4)]
            assert knowledge.score(example.doc, answers) == {"acc": float(best == example.gold)}
    assert knowledge.aggregate("acc", [1.0, 0.0, 0.0, 1.0]) == 0.5
    assert knowledge.to_number("acc", 1) == 1.0


def test_the_offline_suite_is_all_of_its_tasks_in_order(
    tiny: Model, offline: dict[str, Task]
) -> None:
    assert tuple(offline) == offline_suite.NAMES
    (task,) = tasks.load(["grammar", "grammar", ""], tiny, limit=2)
    assert (task.name, task.version, task.shots, task.generates) == (
        "grammar",
        str(offline_suite.VERSION),
        0,
        False,
    )
    assert [example.doc for example in task.examples] == [0, 1]
    assert [task.name for task in tasks.load(["recall", "offline"], tiny, limit=1)] == [
        "recall",
        *(name for name in offline_suite.NAMES if name != "recall"),
    ]


@slow
def test_choices_and_right_ones(own: dict[str, Task]) -> None:
    answers = {
        name: [(example.choices, example.gold) for example in task.examples]
        for name, task in own.items()
    }
    assert answers["arc_easy"] == [(4, 0), (3, 2), (4, 1), (4, 3), (4, 1)]
    assert answers["hellaswag"] == [(4, 0), (4, 0), (4, 1), (4, 2)]
    # Lm-eval keeps them where prompts are.
    assert answers["winogrande"] == [(2, 0), (2, 1), (2, 1), (2, 1)]
    assert answers["lambada_openai"] == [(0, -1)] * 5
    assert answers["gsm8k"] == [(0, -1)] * 4
    assert answers["wikitext"] == [(0, -1)] * 3


@slow
def test_right_choices_are_counted_in_the_whole_data_set(
    own: dict[str, Task], offline: dict[str, Task], tiny: Model, tmp_path: Path
) -> None:
    for name in ("grammar", "arithmetic", "knowledge"):
        golds = Counter(document["gold"] for document in offline_suite.make_documents(name))
        assert offline[name].gold_count == tuple(golds[choice] for choice in range(len(golds)))
        assert len(offline[name].examples) == LIMIT
    assert own["hellaswag"].gold_count == (2, 1, 1, 0)
    assert own["winogrande"].gold_count == (1, 3)
    assert own["arc_easy"].gold_count == ()  # of three and of four choices
    assert (
        own["lambada_openai"].gold_count
        == offline["recall"].gold_count
        == own["gsm8k"].gold_count
        == ()
    )
    rows = [
        ARC_EASY[0],
        ARC_EASY[2],
        {"id": "Mercury_9", "question": None, "choices": None, "answerKey": None},
    ]
    write(tmp_path, {"arc_easy.test": rows, "arc_easy.train": FILES["arc_easy.train"]})
    (task,) = tasks.load(["arc_easy"], tiny, data_dir=tmp_path, limit=2)
    assert len(task.examples) == 2
    assert task.gold_count == ()  # what is not asked for may be damaged


@slow
def test_a_sentence_with_either_word_before_the_same_end(tiny: Model, own: dict[str, Task]) -> None:
    """WinoGrande: contexts differ, the continuation is the same."""
    row = FILES["winogrande.validation"][1]
    one, two = own["winogrande"].examples[1].requests
    ((_, targets),), ((_, others),) = pairs(one), pairs(two)
    assert targets == others == tiny.tokenizer(" was too small.")["input_ids"]
    ids = tiny.tokenizer(row["sentence"].replace("_", "the cup"))["input_ids"]
    assert pairs(one) == [(ids[:-1], ids[-len(targets) :])]


@slow
def test_filters_name_the_metrics(own: dict[str, Task]) -> None:
    gsm = own["gsm8k"]
    assert gsm.generates
    assert gsm.shots == 5
    names = ("exact_match,strict-match", "exact_match,flexible-extract")
    assert gsm.metrics == dict.fromkeys(names, ("mean", True))
    answers = {
        "It is 7.\n#### 7": (1, 1),
        "Is it 8? No, 7": (0, 1),
        "#### 8, not 7": (0, 1),
        "I do not know.": (0, 0),
    }
    for text, scores in answers.items():
        assert gsm.score(0, [text]) == dict(zip(names, scores, strict=True))
    assert gsm.score(1, ["#### 1200"]) == dict.fromkeys(names, 1.0)  # commas do not count
    assert gsm.aggregate(names[0], [1.0, 0.0]) == 0.5


@slow
def test_a_metric_that_needs_many_is_aggregated_over_one(own: dict[str, Task]) -> None:
    wiki = own["wikitext"]
    assert wiki.examples[1].requests[0].is_whole_text
    assert len(wiki.examples[1].requests[0].windows) == 2
    words = len(FILES["wikitext.test"][2]["page"].split())
    scores = wiki.score(2, [-10.0])
    assert scores["word_perplexity"] == (-10.0, words)
    assert wiki.to_number("word_perplexity", scores["word_perplexity"]) == pytest.approx(
        math.exp(10 / words)
    )
    both = wiki.aggregate("word_perplexity", [(-10.0, 4), (-2.0, 2)])
    assert both == pytest.approx(math.exp(12 / 6))


# lm-eval's own


@slow
@pytest.mark.parametrize("name", [*OWN, *offline_suite.NAMES])
def test_everything_equals_lm_evals_own_evaluation(
    name: str, own: dict[str, Task], offline: dict[str, Task], references: Reference
) -> None:
    """What the model is run on, which tokens are scored, metrics of every example and aggregates of
    all.
    """
    check_against(task_of(name, own, offline), references(name))


@slow
@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "lambada_openai"])
def test_solved_examples_are_lm_evals_own(name: str, tiny: Model, folder: Path) -> None:
    """From another split, from the split that is asked, and where the task names only one."""
    (task,) = tasks.load([name], tiny, data_dir=folder, shots=2, limit=4)
    assert task.shots == 2
    config = files_of(folder, name, **{"fewshot_split": "test"} if name == "lambada_openai" else {})
    check_against(task, lm_eval_on(tiny, config, limit=4, shots=2))


@slow
def test_solved_examples_that_a_task_brings_are_shown(tiny: Model, tmp_path: Path) -> None:
    """gsm8k_cot has eight of its own and no split for them."""
    folder = write(tmp_path, {"gsm8k_cot.test": FILES["gsm8k.train"]})
    (task,) = tasks.load(["gsm8k_cot"], tiny, data_dir=folder, limit=2)
    check_against(task, lm_eval_on(tiny, files_of(folder, "gsm8k_cot"), limit=2))


@slow
def test_texts_are_those_that_lm_eval_lets_the_model_write(
    own: dict[str, Task], references: Reference, tiny: Model
) -> None:
    """All together, so shorter prompts are padded, or one by one."""
    samples, _, _ = references("gsm8k")
    _, texts = expected(samples)
    docs = [example.doc for example in own["gsm8k"].examples]
    assert own["gsm8k"].generate(docs, tiny.module) == [texts[doc] for doc in docs]
    assert [own["gsm8k"].generate([doc], tiny.module)[0] for doc in docs[::-1]] == [
        texts[doc] for doc in docs[::-1]
    ]


@slow
def test_an_example_is_not_among_its_own_solved_ones(tiny: Model, tmp_path: Path) -> None:
    """Where the only split is the one that is asked; all others are shown."""
    rows = FILES["arc_easy.test"][:4]
    for name, split in (("arc_easy", "test"), ("arc_challenge", "validation")):
        (task,) = tasks.load(
            [name], tiny, data_dir=write(tmp_path, {f"{name}.{split}": rows}), shots=3
        )
        for example, row in zip(task.examples, rows, strict=True):
            context = example.requests[0].windows[0]
            counts = Counter(
                {
                    other["id"]: _times(
                        context.inputs.tolist(), tiny.tokenizer(other["question"])["input_ids"]
                    )
                    for other in rows
                }
            )
            assert counts == dict.fromkeys((other["id"] for other in rows), 1), row["id"]


def _times(text: list[int], part: list[int]) -> int:
    return sum(text[at : at + len(part)] == part for at in range(len(text)))


@slow
def test_a_tag_stands_for_its_tasks_and_limit_and_shots_for_all(
    tiny: Model, folder: Path, tmp_path: Path
) -> None:
    of_tag = tasks.load(["ai2_arc"], tiny, data_dir=folder, limit=2)
    assert [task.name for task in of_tag] == ["arc_challenge", "arc_easy"]
    assert [len(task.examples) for task in of_tag] == [2, 2]
    twice = tasks.load(["arc_easy", "ai2_arc"], tiny, data_dir=folder, limit=2)
    assert [task.name for task in twice] == ["arc_easy", "arc_challenge"]
    mixed = tasks.load(["winogrande", "recall"], tiny, data_dir=folder, limit=3, shots=1)
    assert [(task.name, task.shots, len(task.examples)) for task in mixed] == [
        ("winogrande", 1, 3),
        ("recall", 0, 3),
    ]
    whole = tasks.load(["winogrande"], tiny, data_dir=folder, limit=100)
    assert len(whole[0].examples) == 4


# Digests


def digests(task: Task) -> list[str]:
    return [request.digest for example in task.examples for request in example.requests]


def test_digests_of_the_suite_follow_its_version(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = tasks.load(["grammar"], tiny, limit=3)
    (longer,) = tasks.load(["grammar"], tiny, limit=5)
    assert digests(longer)[:6] == digests(before)
    assert longer.digest == before.digest
    asked = [
        json.dumps(pairs(request)) for example in longer.examples for request in example.requests
    ]
    # Words that the tiny tokenizer does not know are one.
    assert len(set(digests(longer))) == len(set(asked)) > 6
    assert all(len(digest) == 16 for digest in [*digests(before), before.digest])
    monkeypatch.setattr(offline_suite, "VERSION", 1.5)
    (after,) = tasks.load(["grammar"], tiny, limit=3)
    assert after.version == "1.5"
    assert not set(digests(after)) & set(digests(before))


@slow
@pytest.mark.parametrize("name", OWN)
def test_digests_do_not_depend_on_where_data_lie(
    name: str, tiny: Model, own: dict[str, Task], tmp_path: Path
) -> None:
    again = write(
        tmp_path / "elsewhere",
        {file: rows for file, rows in FILES.items() if file.startswith(f"{name}.")},
    )
    (moved,) = tasks.load([name], tiny, data_dir=again)
    assert digests(moved) == digests(own[name])
    assert moved.digest == own[name].digest


@slow
def test_digests_are_the_same_in_another_process(
    tiny_folder: Path, own: dict[str, Task], folder: Path
) -> None:
    """Else an evaluation could not be gone on with: HellaSwag, WinoGrande and WikiText bring
    functions of their own.
    """
    program = (
        "import json, sys; from pathlib import Path; "
        "from repsim import models; from repsim.evaluation import tasks; "
        "folder, model, names = sys.argv[1:]; tiny = models.load(model, device='cpu'); "
        "found = tasks.load(names.split(','), tiny, data_dir=Path(folder), limit=1); "
        "digests = {t.name: [t.digest, t.examples[0].requests[0].digest] for t in found}; "
        "print(json.dumps(digests))"
    )
    command = [sys.executable, "-c", program, str(folder), str(tiny_folder), ",".join(OWN)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    elsewhere = json.loads(done.stdout.splitlines()[-1])
    assert elsewhere == {name: [task.digest, digests(task)[0]] for name, task in own.items()}


@slow
def test_digests_follow_the_tokens_and_nothing_else(
    tiny: Model, own: dict[str, Task], tmp_path: Path
) -> None:
    """A question of other tokens, or with another right answer, has other digests; a remark asks
    nothing else.
    """
    rows = json.loads(json.dumps(ARC_EASY))
    rows[0]["answerKey"], rows[3]["id"] = "B", "other"
    rows[1]["choices"]["text"][2] = "water and the"
    rows[2]["question"] = "Which of them can the?"
    files = {"arc_easy.test": rows, "arc_easy.train": FILES["arc_easy.train"]}
    (task,) = tasks.load(["arc_easy"], tiny, data_dir=write(tmp_path, files))
    assert task.digest == own["arc_easy"].digest
    changed = {
        (example.doc, choice)
        for example, before in zip(task.examples, own["arc_easy"].examples, strict=True)
        for choice, (one, two) in enumerate(zip(example.requests, before.requests, strict=True))
        if one.digest != two.digest
    }
    assert changed == {
        *((0, choice) for choice in range(4)),
        (1, 2),
        *((2, choice) for choice in range(4)),
    }
    assert task.examples[0].gold == 1


@slow
def test_digests_follow_the_solved_examples(
    tiny: Model, own: dict[str, Task], folder: Path
) -> None:
    (shown,) = tasks.load(["arc_easy"], tiny, data_dir=folder, shots=1, limit=1)
    assert not set(digests(shown)) & set(digests(own["arc_easy"]))
    assert shown.digest != own["arc_easy"].digest


# Bad input


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(RepsimError) as caught:
        tasks.load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_nothing_asked_for(tiny: Model) -> None:
    for names in ([], [""]):
        assert refused(names, tiny) == "no task: name at least one, e.g. offline or arc_easy"
    for limit in (0, -3):
        assert refused(["recall"], tiny, limit=limit) == f"limit={limit}: at least 1"


def test_an_encoder_predicts_nothing(tiny_encoder_folder: Path) -> None:
    encoder = models.load(str(tiny_encoder_folder), device="cpu")
    assert "does not predict a next token; benchmarks need a decoder" in refused(
        ["recall"], encoder
    )


@slow
def test_unknown_tasks(tiny: Model, folder: Path) -> None:
    message = refused(["arc_esy"], tiny)
    assert message.startswith(
        "task 'arc_esy': neither lm-eval's nor repsim's; did you mean arc_easy"
    )
    assert "did you mean grammar" in refused(["gramar"], tiny)
    assert refused(["zzzzzz"], tiny, data_dir=folder).endswith("the offline suite is offline")


@slow
def test_data_that_are_not_there(tiny: Model, tmp_path: Path) -> None:
    message = refused(["arc_easy"], tiny, data_dir=tmp_path)
    assert message.startswith("task arc_easy: none of its files is there: ")
    for split in ("train", "validation", "test"):
        assert str(tmp_path / f"arc_easy.{split}.jsonl") in message
    write(tmp_path, {"arc_easy.train": FILES["arc_easy.train"]})
    # Nothing to ask.
    assert "none of its files is there" in refused(["arc_easy"], tiny, data_dir=tmp_path)
    write(tmp_path, {"arc_easy.test": ARC_EASY})
    assert "task arc_challenge: none" in refused(["ai2_arc"], tiny, data_dir=tmp_path)
    # Without a network.
    assert "--data-dir DIR reads DIR/TASK.SPLIT.jsonl instead" in refused(["arc_easy"], tiny)


@slow
@pytest.mark.parametrize(
    "text",
    ['{"id": "a", "question": "What', "", "[1, 2]\n", "not JSON at all\n", '{"question": 1}\n[]\n'],
    ids=["cut off", "empty", "lists", "text", "mixed"],
)
def test_damaged_files(text: str, tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "arc_easy.test.jsonl").write_text(text)
    assert refused(["arc_easy"], tiny, data_dir=tmp_path).startswith("task arc_easy: ")


@slow
@pytest.mark.parametrize("name", OWN)
def test_missing_fields(name: str, tiny: Model, tmp_path: Path) -> None:
    split = "validation" if name in ("hellaswag", "winogrande") else "test"
    write(tmp_path, {f"{name}.{split}": [{"foo": "one"}, {"foo": "two"}]})
    message = refused([name], tiny, data_dir=tmp_path, shots=0)
    assert message.startswith(f"task {name}: ")


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != field}


LINES = [json.dumps(row) for row in ARC_EASY[:4]]


@slow
@pytest.mark.parametrize(
    ("lines", "number", "says"),
    [
        (
            [*LINES[:2], "", '{"id": "a", "question": "What'],
            4,
            "not JSON; write one object per line",
        ),
        (
            [LINES[0], " " * (1 << 24) + LINES[1]],
            2,
            "characters, at most 16,777,216 are read; shorten it",
        ),
        ([LINES[0], "[1, 2]"], 2, "holds a list, not an object with the task's fields"),
        (["3"], 1, "holds a number, not an object"),
        (
            [LINES[0], json.dumps(without(ARC_EASY[1], "question"))],
            2,
            "no field 'question', which line 1 has",
        ),
        (
            [json.dumps(without(ARC_EASY[0], "id")), *LINES[1:]],
            1,
            "no field 'id', which line 2 has",
        ),
        (
            [*LINES[:3], "", json.dumps(ARC_EASY[3] | {"answerKey": "E"})],
            5,
            "does the line have the task's fields?",
        ),
        (
            [LINES[0], json.dumps(ARC_EASY[1] | {"choices": "salt"})],
            2,
            "field 'choices' holds text, and an object in line 1",
        ),
        (
            [LINES[0], json.dumps(ARC_EASY[1] | {"question": ["What?"]})],
            2,
            "field 'question' holds a list, and text in line 1",
        ),
        (
            [json.dumps({"q": value}) for value in (None, 1, None, "one")],
            4,
            "field 'q' holds text, and a number in line 2",
        ),
        ([json.dumps({"foo": "one"})] * 2, 1, "does the line have the task's fields?"),
    ],
    ids=[
        "cut off",
        "long",
        "list",
        "number",
        "no question",
        "no id",
        "no such answer",
        "choices",
        "question",
        "nulls",
        "all",
    ],
)
def test_an_error_in_a_task_s_data_names_file_and_line(
    lines: list[str], number: int, says: str, tiny: Model, tmp_path: Path
) -> None:
    path = tmp_path / "arc_easy.test.jsonl"
    path.write_text("\n".join(lines) + "\n")
    message = refused(["arc_easy"], tiny, data_dir=tmp_path)
    assert message.startswith(f"task arc_easy: {path} line {number}: ")
    assert says in message


@slow
def test_an_error_in_solved_examples_names_their_file(tiny: Model, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "arc_easy.test": ARC_EASY[:2],
            "arc_easy.train": [ARC_EASY[2], ARC_EASY[3] | {"answerKey": "E"}],
        },
    )
    message = refused(["arc_easy"], tiny, data_dir=tmp_path, shots=2)
    assert message.startswith(f"task arc_easy: {tmp_path / 'arc_easy.train.jsonl'} line 2: ")


@slow
def test_an_empty_example_names_file_and_line(tiny: Model, tmp_path: Path) -> None:
    write(tmp_path, {"wikitext.test": [FILES["wikitext.test"][0], {"page": ""}]})
    message = refused(["wikitext"], tiny, data_dir=tmp_path)
    assert "an empty text; leave it out of the data" in message
    assert message.startswith("task wikitext: ")


@slow
def test_an_answer_that_is_none_of_the_choices(tiny: Model, tmp_path: Path) -> None:
    rows = [arc(0, "Which?", ["one", "two"], "E")]
    message = refused(["arc_easy"], tiny, data_dir=write(tmp_path, {"arc_easy.test": rows}))
    assert message.startswith("task arc_easy: ")


@slow
def test_more_solved_examples_than_there_are(tiny: Model, tmp_path: Path) -> None:
    message = refused(
        ["arc_easy"], tiny, data_dir=write(tmp_path, {"arc_easy.test": ARC_EASY[:3]}), shots=3
    )
    assert message.startswith("task arc_easy: ")


@slow
def test_tasks_that_cannot_be_given(tiny: Model, tmp_path: Path) -> None:
    rows = {"gsm8k_cot_self_consistency.test": FILES["gsm8k.train"]}
    message = refused(["gsm8k_cot_self_consistency"], tiny, data_dir=write(tmp_path, rows))
    assert "it samples" in message
    assert "only greedy generation can be compared" in message
    assert "a group, or data made by code of its own" in refused(["mmlu"], tiny, data_dir=tmp_path)


def test_a_text_without_tokens_is_refused(tiny: Model) -> None:
    class Instance:
        request_type = "loglikelihood"
        args = ("The sun is", "")

    with pytest.raises(
        RepsimError,
        match="a request without a token before or in what is to be scored; mend the data",
    ):
        LmEvalModel(tiny).windows(Instance())


def test_too_long_a_text_keeps_its_end(tiny: Model) -> None:
    class Instance:
        request_type = "loglikelihood"
        args = (PAGE, " the water")

    (window,) = LmEvalModel(tiny).windows(Instance())
    ids = tiny.tokenizer(f"{PAGE} the water")["input_ids"]
    assert window.inputs.tolist() == ids[-2049:-1]
    assert window.inputs.dtype == window.targets.dtype == np.int32
    assert window.targets.tolist() == ids[-2:]
