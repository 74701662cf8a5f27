"""The offline suite: every item is checked against its own text, not against the code."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask

from repsim.errors import RepsimError
from repsim.evaluation import offline_suite

SEEDS = (0, 1)
CHOICES = {"grammar": 2, "arithmetic": 4, "knowledge": 4}
DIGESTS = {
    "recall": "5d6e1e478c674c87",
    "grammar": "705125a3d563df65",
    "arithmetic": "1577423885e691a9",
    "knowledge": "6846a59f0ad056f5",
}  # of version 1


def documents(name: str) -> list[dict[str, Any]]:
    return [document for seed in SEEDS for document in offline_suite.make_documents(name, seed)]


def group(pattern: str, text: str) -> str:
    """What the pattern's group matches."""
    match = re.search(pattern, text)
    assert match is not None
    return match[1]


def right(document: dict[str, Any]) -> str:
    return document["choices"][document["gold"]]


def test_known_items() -> None:
    facts = {
        document["text"]: right(document)
        for document in offline_suite.make_documents("knowledge", items=290)
    }
    assert facts["The capital of France is"] == "Paris"
    assert facts["The opposite of hot is"] == "cold"
    assert facts["The month after December is"] == "January"
    assert facts["As we all know, an oak is a kind of"] == "tree"


@pytest.mark.parametrize("name", offline_suite.NAMES)
def test_items_change_only_with_the_version(name: str) -> None:
    """Scores of one version can be compared: whoever changes an item raises `VERSION`, then these
    digests.
    """
    text = json.dumps(offline_suite.make_documents(name), sort_keys=True)
    assert (offline_suite.VERSION, hashlib.sha256(text.encode()).hexdigest()[:16]) == (
        1.0,
        DIGESTS[name],
    )


@pytest.mark.parametrize("name", offline_suite.NAMES)
def test_items_are_distinct_and_follow_from_the_seed(name: str) -> None:
    first = offline_suite.make_documents(name)
    assert len(first) == offline_suite.ITEMS >= 200
    assert len({json.dumps(document, sort_keys=True) for document in first}) == offline_suite.ITEMS
    questions = Counter(
        (document["text"], document.get("target"), *sorted(document.get("choices", ())))
        for document in first
    )
    assert max(questions.values()) == 1
    assert offline_suite.make_documents(name) == first
    assert offline_suite.make_documents(name, seed=1) != first
    assert len(offline_suite.make_documents(name, items=7)) == 7


@pytest.mark.parametrize("name", offline_suite.NAMES)
def test_the_first_items_are_a_fair_sample(name: str) -> None:
    items = offline_suite.make_documents(name)
    whole, first = (Counter(item["kind"] for item in part) for part in (items, items[:50]))
    for kind, count in whole.items():
        assert abs(first[kind] - count * 50 / len(items)) <= 5, kind
        assert name == "knowledge" or first[kind] >= 3


@pytest.mark.parametrize("name", CHOICES)
def test_every_place_is_right_equally_often(name: str) -> None:
    for items in (offline_suite.ITEMS, 50):
        counts = Counter(
            document["gold"] for document in offline_suite.make_documents(name, items=items)
        )
        assert set(counts) == set(range(CHOICES[name]))
        assert max(counts.values()) - min(counts.values()) <= 1
    for document in documents(name):
        assert len(set(document["choices"])) == len(document["choices"]) == CHOICES[name]
        assert all(choice == choice.strip() != "" for choice in document["choices"])


def test_the_recalled_word_is_in_the_passage_and_often_not_the_last_of_its_sort() -> None:
    copied = 0
    passages = documents("recall")
    for document in passages:
        target, words = document["target"].strip(), re.findall(r"\w+", document["text"])
        assert document["target"] == f" {target}"
        assert document["text"] == document["text"].strip()
        assert 2 <= document["text"].count(". ") + 1 <= 4
        table = next(table for table in offline_suite.RECALL_WORDS.values() if target in table)
        mentioned = [word for word in words if word in table]
        assert target in mentioned
        assert len(set(mentioned)) > 1
        copied += mentioned[-1] == target
    assert copied / len(passages) < 0.5


def test_the_recalled_word_is_what_the_passage_says() -> None:
    """What the passage states of two things is read off it again, and the one asked for is looked
    up.
    """
    patterns = {
        "owner": (r"The (\w+) belongs to (\w+)\.", r"that the (\w+) belongs"),
        "trade": (r"The (\w+) is called (\w+)\.", r"that the (\w+) is"),
        "room": (r"the (\w+) in the (\w+) ?", r"found the (\w+) in"),
        "contents": (r"a (?P<answer>\w+) in the (?P<asked>\w+)", r"opens the (\w+) and"),
    }
    for document in documents("recall"):
        text, target = document["text"], document["target"].strip()
        if document["kind"] in patterns:
            statement, question = patterns[document["kind"]]
            stated = [(match[1], match[2]) for match in re.finditer(statement, text)]
            if document["kind"] == "contents":
                stated = [(place, thing) for thing, place in stated]
            assert len(stated) == 2
            assert dict(stated)[group(question, text)] == target
        elif document["kind"] == "giver":
            assert target == group(r"(\w+) was looking", text) != group(r"(\w+) gave", text)
        else:
            assert document["kind"] == "letter"
            assert target == group(r"letter to (\w+)", text)


def test_minimal_pairs_differ_in_one_word() -> None:
    for document in documents("grammar"):
        one, two = (choice.split(" ") for choice in document["choices"])
        assert document["text"] == ""
        assert len(one) == len(two)
        assert sum(a != b for a, b in zip(one, two, strict=True)) == 1
        assert all(choice[0].isupper() and choice[-1] == "." for choice in document["choices"])


def test_the_grammatical_sentence_is_the_right_one() -> None:
    """By rules of the number of a noun, written again; the tables of the suite say only which word
    is which.
    """
    plurals = {plural for _, plural in (*offline_suite.PEOPLE, *offline_suite.OBJECTS)} | {
        "kings",
        "boys",
        "men",
        "brothers",
    }
    for document in documents("grammar"):
        words, kind = right(document).strip(".").split(" "), document["kind"]
        if kind in ("agreement", "attractor"):
            verb = next(word for word in words if word in ("is", "are", "was", "were"))
            assert (verb in ("are", "were")) == (words[1] in plurals)
        elif kind == "relative_clause":
            assert (
                (words[-2] in ("are", "were"))
                == (words[1] in plurals)
                == (not words[3].endswith("s"))
            )
        elif kind == "verb_agreement":
            assert words[2].endswith("s") == (words[1] not in plurals)
        elif kind == "determiner":
            assert (words[4] in plurals) == (words[2] in ("these", "those"))
        elif kind == "quantifier":
            assert (words[4] in plurals) == (words[3] in ("many", "several", "both"))
        elif kind == "anaphor":
            assert (words[3] == "herself") == (
                words[1] in ("queen", "girl", "mother", "woman", "sister")
            )
        elif kind == "anaphor_number":
            assert (words[4] == "themselves") == (words[2] in plurals)
        elif kind == "article":
            assert (words[2] == "an") == (words[3][0] in "aeiou")
        elif kind == "participle":
            assert (words[2] in dict(offline_suite.PARTICIPLES)) == (words[1] == "has")
        elif kind == "case":
            assert words[3] in ("him", "her", "them", "us", "me")
        elif kind == "comparative":
            assert words[3].endswith("er")
        else:
            assert kind == "polarity"
            assert words[0] in ("No", "Nobody")


def computed(problem: str) -> int:
    """The answer, from the text alone."""
    if problem.endswith(","):
        terms = [int(term) for term in problem.strip(",").split(", ")]
        assert len({a - b for a, b in pairwise(terms)}) == 1
        return 2 * terms[-1] - terms[-2]
    first, *rest = problem.removesuffix(" =").split(" ")
    value = int(first)
    for sign, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
        assert sign == "-" or value % number == 0
        value = {"-": value - number, "/": value // number}[sign]
    return value


def test_arithmetic_is_right_and_cannot_be_copied() -> None:
    for document in documents("arithmetic"):
        *solved, problem = document["text"].split("\n")
        assert right(document) == str(computed(problem))
        assert [int(choice) for choice in document["choices"]].count(computed(problem)) == 1
        assert len(solved) == (0 if problem.endswith(",") else 2)
        for example in solved:
            question, answer = example.rsplit(" ", 1)
            assert int(answer) == computed(question) != computed(problem)
            assert question != problem
    default = [
        document["text"].split("\n")[-1] for document in offline_suite.make_documents("arithmetic")
    ]
    assert len(set(default)) == offline_suite.ITEMS


def test_the_rank_of_an_answer_does_not_give_it_away() -> None:
    """Off-by-one answers alone would leave the right one in the middle most of the time."""
    ranks = Counter(
        sorted(document["choices"], key=int).index(right(document))
        for document in offline_suite.make_documents("arithmetic")
    )
    assert ranks == dict.fromkeys(range(4), offline_suite.ITEMS // 4)


def test_knowledge_has_one_answer() -> None:
    """No question is in two tables or answered twice, and every answer is of the question's own
    table.
    """
    known: dict[str, str] = {}
    for prompt, table in offline_suite.KNOWLEDGE.items():
        assert len({answer for _, answer in table}) >= 4
        for question, answer in table:
            assert known.setdefault(prompt.format(question), answer) == answer
            assert question.lower() != answer.lower()
    assert len(known) == sum(map(len, offline_suite.KNOWLEDGE.values())) >= offline_suite.ITEMS
    for document in documents("knowledge"):
        answers = {answer for _, answer in offline_suite.KNOWLEDGE[document["kind"]]}
        assert right(document) == known[document["text"]]
        assert set(document["choices"]) <= answers
    assert (
        len({document["text"] for document in offline_suite.make_documents("knowledge")})
        == offline_suite.ITEMS
    )


@pytest.mark.parametrize("name", offline_suite.NAMES)
def test_lm_eval_takes_it(name: str) -> None:
    task = ConfigurableTask(config=offline_suite.make_config(name, items=20))
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=5)
    first, number = offline_suite.make_documents(name, items=20)[0], CHOICES.get(name, 1)
    assert (task.config.task, task.VERSION, len(task.eval_docs)) == (name, 1.0, 20)
    assert len(task.instances) == 5 * number
    assert sorted({instance.doc_id for instance in task.instances}) == list(range(5))
    arguments = [instance.args for instance in task.instances if instance.doc_id == 0]
    space = "" if name == "grammar" else " "
    expected = (
        [f"{space}{choice}" for choice in first["choices"]]
        if "choices" in first
        else [first["target"]]
    )
    assert arguments == [(first["text"], answer) for answer in expected]


def test_lm_eval_scores_it() -> None:
    tasks = {
        name: ConfigurableTask(config=offline_suite.make_config(name, items=4))
        for name in offline_suite.NAMES
    }
    for name, number in CHOICES.items():
        document = tasks[name].eval_docs[0]
        for place in range(number):
            answers = [(-1.0 if place == choice else -2.0, False) for choice in range(number)]
            assert tasks[name].process_results(document, answers) == {
                "acc": float(place == document["gold"])
            }
    recall = tasks["recall"]
    assert recall.process_results(recall.eval_docs[0], [(-0.5, True)]) == {
        "perplexity": -0.5,
        "acc": 1,
    }
    assert recall.higher_is_better() == {"perplexity": False, "acc": True}
    assert recall.aggregation()["perplexity"]([-1.0, -3.0]) == pytest.approx(7.389056)


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'lm_eval', 'datasets', 'numpy'}"
    code = "import sys; from repsim.evaluation import offline_suite; "
    code += "offline_suite.make_documents('recall'); "
    code += f"assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("call", [offline_suite.make_documents, offline_suite.make_config])
def test_bad_requests_are_told_in_one_line(call: Callable[..., Any]) -> None:
    with pytest.raises(
        RepsimError, match=r"^task 'recal': the offline suite has recall, grammar, .*knowledge$"
    ):
        call("recal")
    for items in (0, -1, offline_suite.MOST_ITEMS + 1):
        with pytest.raises(
            RepsimError, match=rf"^items={items}: the offline suite has 1 to 10000$"
        ):
            call("recall", items=items)


@pytest.mark.parametrize("name", offline_suite.NAMES)
def test_the_largest_suite_is_there(name: str) -> None:
    assert (
        len(offline_suite.make_documents(name, items=offline_suite.MOST_ITEMS))
        == offline_suite.MOST_ITEMS
    )
