"""The offline suite: four small tasks made from tables of words and a seed, without any download.

`recall` asks for the last word of a passage, `grammar` for the grammatical one of two sentences,
`arithmetic` and `knowledge` for one of four answers. Each comes as the configuration of an lm-eval
task, which scores it as it scores any other. Prompts are short, because the suite is run for every
plan. The tables stand in `offline_suite.toml`. This module knows no model and does not import
lm-eval.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any, TypeAlias, TypeVar

from repsim.errors import DataError

Entry = TypeVar("Entry")
Pair: TypeAlias = tuple[str, str]

GROUP = "offline"
ITEMS = 240
VERSION = 1.0  # of the items: to be raised with any change of them
MOST_ITEMS = 10_000  # that all four tasks can give without a repetition


def _to_pairs(table: Sequence[Sequence[str]]) -> tuple[Pair, ...]:
    return tuple((left, right) for left, right in table)


_TABLES = tomllib.loads(
    resources.files("repsim.evaluation").joinpath("offline_suite.toml").read_text("utf-8")
)
RECALL_WORDS = {slot: tuple(words) for slot, words in _TABLES["recall"]["words"].items()}
RECALL_PASSAGES: dict[str, str] = _TABLES["recall"]["passages"]
KNOWLEDGE = {prompt: _to_pairs(table) for prompt, table in _TABLES["knowledge"].items()}

FIRST_NAMES = RECALL_WORDS["name"]
FEELINGS, QUALITIES = (
    tuple(_TABLES["grammar"]["words"][name]) for name in ("feelings", "qualities")
)
REFLEXIVES = {word: tuple(nouns) for word, nouns in _TABLES["grammar"]["reflexives"].items()}

# Singular first, plural second.
_PAIRS = {name: _to_pairs(table) for name, table in _TABLES["grammar"]["pairs"].items()}
PEOPLE, OBJECTS = _PAIRS["people"], _PAIRS["objects"]
VERBS, DETERMINERS = _PAIRS["verbs"], _PAIRS["determiners"]
BE, WAS = ("is", "are"), ("was", "were")

# The word that one sentence takes, then the one that another takes.
AFTER_ARTICLES = _PAIRS["after_articles"]
PARTICIPLES = _PAIRS["participles"]
PRONOUNS = _PAIRS["pronouns"]
COMPARATIVES = _PAIRS["comparatives"]


@dataclass(frozen=True)
class Item:
    """One question.

    kind: phenomenon or table that it is from.
    text: the prompt, without a space at its end; empty where the answers are whole sentences.
    right: the right answer.
    wrong: the other ones to choose from; none where any word may be answered.
    """

    kind: str
    text: str
    right: str
    wrong: tuple[str, ...] = ()


Frame: TypeAlias = tuple[str, str, str]
"""A sentence with `{}` where one word goes, the grammatical word, and the other one."""

Problem: TypeAlias = tuple[str, int, tuple[int, ...]]
"""A question of arithmetic, the answer, and what typical slips would give."""


def make_documents(name: str, seed: int = 0, items: int = ITEMS) -> list[dict[str, Any]]:
    """The items of one task; the same for the same arguments on every machine.

    Args:
        name: one of `NAMES`.
        seed: of the choice and order of the items.
        items: how many, up to `MOST_ITEMS`.

    Returns:
        For recall `kind`, `text`, `target` (with the space before it); for the others `kind`,
        `text`, `choices` and `gold`, the place of the right one. All places are right equally
        often, give or take one.

    Raises:
        RepsimError: there is no such task, or no such number of items.

    Example:
        >>> (document,) = make_documents("arithmetic", items=1)
        >>> document["choices"][document["gold"]]
        '6'
    """
    if name not in MAKERS:
        raise DataError(f"task {name!r}: the offline suite has {', '.join(NAMES)}")
    if not 1 <= items <= MOST_ITEMS:
        raise DataError(f"items={items}: the offline suite has 1 to {MOST_ITEMS}")

    # Items come without end and some come twice; the first of each counts.
    random = Random(f"{name}-{seed}")
    distinct: dict[tuple[str, str, frozenset[str]], Item] = {}
    for item in MAKERS[name](random):
        distinct.setdefault((item.text, item.right, frozenset(item.wrong)), item)
        if len(distinct) == items:
            break

    # The right answer takes every place equally often.
    choices = 1 + len(next(iter(distinct.values())).wrong)
    places = _shuffle_endlessly(random, range(choices))
    return [_to_document(item, next(places)) for item in distinct.values()]


def make_config(name: str, seed: int = 0, items: int = ITEMS) -> dict[str, Any]:
    """The configuration of one task, as `lm_eval.api.task.ConfigurableTask` takes it.

    Args:
        name, seed, items: see `make_documents`.

    Raises:
        RepsimError: there is no such task, or no such number of items.
    """
    documents = make_documents(name, seed, items)

    def load_dataset(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"test": Dataset.from_list(documents)})

    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    has_choices = "choices" in documents[0]
    return {
        "task": name,
        "custom_dataset": load_dataset,
        "test_split": "test",
        "output_type": "multiple_choice" if has_choices else "loglikelihood",
        "doc_to_text": "" if name == "grammar" else "text",
        "doc_to_target": "gold" if has_choices else "target",
        "doc_to_choice": "choices" if has_choices else None,
        "target_delimiter": "" if name == "grammar" else " ",
        "metric_list": [accuracy] if has_choices else [perplexity, accuracy],
        "num_fewshot": 0,
        "metadata": {"version": VERSION},
    }


def _to_document(item: Item, place: int) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": item.kind, "text": item.text}
    if not item.wrong:
        return document | {"target": f" {item.right}"}
    choices = [*item.wrong[:place], item.right, *item.wrong[place:]]
    return document | {"choices": choices, "gold": place}


def _shuffle_endlessly(random: Random, entries: Sequence[Entry]) -> Iterator[Entry]:
    """All entries in random order, then again in another, without end."""
    while True:
        yield from random.sample(entries, len(entries))


# Recall


def _make_recall(random: Random) -> Iterator[Item]:
    """Passages whose last word is to be recalled from earlier in the passage."""
    for kind, passage in _shuffle_endlessly(random, tuple(RECALL_PASSAGES.items())):
        drawn = {slot: random.sample(words, 3) for slot, words in RECALL_WORDS.items()}
        # Where a passage tells something of two things, it ends with one of them.
        place = random.randrange(2)
        asked = {slot: words[place] for slot, words in drawn.items()}
        text, _, right = passage.format(asked=asked, **drawn).rpartition(" ")
        yield Item(kind, text, right)


# Grammar: in all of these, `number` is 0 for the singular and 1 for the plural


def _make_agreement(random: Random) -> Frame:
    number, verb = random.randrange(2), random.choice((BE, WAS))
    return (
        f"The {random.choice(PEOPLE)[number]} {{}} very {random.choice(FEELINGS)}.",
        *_right_then_wrong(verb, number),
    )


def _make_verb_agreement(random: Random) -> Frame:
    number = random.randrange(2)
    subject, quality = random.choice(PEOPLE)[number], random.choice(QUALITIES)
    frame = f"The {subject} {{}} the {quality} {random.choice(OBJECTS)[0]}."
    return frame, *_right_then_wrong(random.choice(VERBS), number)


def _make_attractor(random: Random) -> Frame:
    number, (head, other) = random.randrange(2), random.sample(PEOPLE, 2)
    place = random.choice(("next to", "behind", "in front of", "near"))
    frame = f"The {head[number]} {place} the {other[1 - number]} {{}} {random.choice(FEELINGS)}."
    return frame, *_right_then_wrong(random.choice((BE, WAS)), number)


def _make_relative_clause(random: Random) -> Frame:
    number, (head, other) = random.randrange(2), random.sample(PEOPLE, 2)
    frame = f"The {head[number]} who {random.choice(VERBS)[number]} the {other[1 - number]} {{}}"
    return f"{frame} {random.choice(FEELINGS)}.", *_right_then_wrong(
        random.choice((BE, WAS)), number
    )


def _make_determiner(random: Random) -> Frame:
    number, noun = random.randrange(2), random.choice(OBJECTS)
    name, determiner = random.choice(FIRST_NAMES), random.choice(DETERMINERS)[number]
    frame = f"{name} bought {determiner} {random.choice(QUALITIES)} {{}} yesterday."
    return frame, *_right_then_wrong(noun, number)


def _make_quantifier(random: Random) -> Frame:
    number, noun = random.randrange(2), random.choice(OBJECTS)
    quantifier = random.choice((("each", "every", "one"), ("many", "several", "both"))[number])
    frame = f"{random.choice(FIRST_NAMES)} has seen {quantifier} {{}} in the shop."
    return frame, *_right_then_wrong(noun, number)


def _make_anaphor(random: Random) -> Frame:
    right, wrong = random.sample(tuple(REFLEXIVES), 2)
    verb = random.choice(("hurt", "saw", "blamed", "washed"))
    where = random.choice(("in the morning", "last week", "again"))
    return f"The {random.choice(REFLEXIVES[right])} {verb} {{}} {where}.", right, wrong


def _make_anaphor_number(random: Random) -> Frame:
    right, wrong = random.sample(("himself", "themselves"), 2)
    noun = random.choice(
        (("king", "kings"), ("boy", "boys"), ("man", "men"), ("brother", "brothers"))
    )
    verb = random.choice(("hurt", "saw", "blamed", "washed"))
    return f"The {random.choice(FEELINGS)} {noun[right == 'themselves']} {verb} {{}}.", right, wrong


def _make_article(random: Random) -> Frame:
    number = random.randrange(2)
    name, thing = random.choice(FIRST_NAMES), random.choice(AFTER_ARTICLES)[number]
    return f"{name} bought {{}} {thing} in the shop.", *_right_then_wrong(("an", "a"), number)


def _make_participle(random: Random) -> Frame:
    number, name = random.randrange(2), random.choice(FIRST_NAMES)
    frame = (f"{name} has {{}} it already.", f"Yesterday {name} {{}} it.")[number]
    return frame, *_right_then_wrong(random.choice(PARTICIPLES), number)


def _make_case(random: Random) -> Frame:
    verb = random.choice(("helped", "saw", "met", "thanked"))
    return (
        f"The {random.choice(PEOPLE)[random.randrange(2)]} {verb} {{}} at the door.",
        *random.choice(PRONOUNS),
    )


def _make_comparative(random: Random) -> Frame:
    one, two = random.sample(OBJECTS, 2)
    return f"This {one[0]} is {{}} than that {two[0]}.", *random.choice(COMPARATIVES)


def _make_polarity(random: Random) -> Frame:
    verb = random.choice(("seen", "liked", "bought", "wanted"))
    right, wrong = random.choice(
        (("Nobody", "Everybody"), ("Nobody", "Somebody"), ("No", "Every"), ("No", "Some"))
    )
    subject = "{}" if right == "Nobody" else f"{{}} {random.choice(PEOPLE)[0]}"
    return f"{subject} has ever {verb} this {random.choice(OBJECTS)[0]}.", right, wrong


GRAMMAR: dict[str, Callable[[Random], Frame]] = {
    "agreement": _make_agreement,
    "verb_agreement": _make_verb_agreement,
    "attractor": _make_attractor,
    "relative_clause": _make_relative_clause,
    "determiner": _make_determiner,
    "quantifier": _make_quantifier,
    "anaphor": _make_anaphor,
    "anaphor_number": _make_anaphor_number,
    "article": _make_article,
    "participle": _make_participle,
    "case": _make_case,
    "comparative": _make_comparative,
    "polarity": _make_polarity,
}


def _right_then_wrong(words: Pair, number: int) -> Pair:
    """The word of that number, then the other."""
    return words[number], words[1 - number]


def _make_grammar(random: Random) -> Iterator[Item]:
    """Pairs of sentences that differ in one word, of which one is grammatical."""
    for kind, make_frame in _shuffle_endlessly(random, tuple(GRAMMAR.items())):
        frame, right, wrong = make_frame(random)
        yield Item(kind, "", frame.format(right), (frame.format(wrong),))


# Arithmetic: the order of the numbers matters in every problem

SOLVED_PROBLEMS = 2  # shown before the one that is asked
LEAST_ANSWER = 3  # so that three wrong ones that are not negative can lie below it
NEAR = (-10, -3, -2, -1, 1, 2, 3, 10)  # how far off a miscalculation is


def _list_subtractions() -> list[Problem]:
    """Slips: added, the other way round."""
    pairs = [(b, r) for b in range(2, 10) for r in range(LEAST_ANSWER, 20 - b)]
    return [(f"{b + r} - {b} =", r, (b + r + b, -r)) for b, r in pairs]


def _list_divisions() -> list[Problem]:
    """Slips: subtracted, multiplied, the divisor in place of the answer."""
    pairs = [(b, r) for b in range(2, 13) for r in range(LEAST_ANSWER, 12) if r != b]
    return [(f"{b * r} / {b} =", r, (b * r - b, b * r * b, b)) for b, r in pairs]


def _list_countdowns() -> list[Problem]:
    """Slips: up in place of down, the last number again, one left out."""
    ends = [(r, step) for step in (1, 2, 3) for r in range(LEAST_ANSWER, 31)]
    terms = [(*(r + step * left for left in (4, 3, 2, 1, 0)), r - step) for r, step in ends]
    return [(f"{a}, {b}, {c}, {d},", r, (c, d, beyond)) for a, b, c, d, r, beyond in terms]


ARITHMETIC = {
    "minus": _list_subtractions,
    "divided": _list_divisions,
    "countdown": _list_countdowns,
}


def _make_arithmetic(random: Random) -> Iterator[Item]:
    """Problems of which the answer is one of four numbers."""
    problems = {kind: list_problems() for kind, list_problems in ARITHMETIC.items()}
    problems_in_turn = {kind: _shuffle_endlessly(random, problems[kind]) for kind in problems}
    below_in_turn = _shuffle_endlessly(random, range(4))
    for kind in _shuffle_endlessly(random, tuple(ARITHMETIC)):
        question, right, slips = next(problems_in_turn[kind])
        # Solved problems have other answers, so that the answer cannot be copied.
        others = [problem for problem in problems[kind] if problem[1] != right]
        solved = random.sample(others, 0 if kind == "countdown" else SOLVED_PROBLEMS)
        text = "\n".join([*(f"{problem} {answer}" for problem, answer, _ in solved), question])
        wrong = _draw_wrong_numbers(random, right, slips, next(below_in_turn))
        yield Item(kind, text, str(right), tuple(map(str, wrong)))


def _draw_wrong_numbers(random: Random, right: int, slips: Sequence[int], below: int) -> list[int]:
    """Three wrong answers, slips first.

    Args:
        random: draws among the slips and near misses.
        right: the answer.
        slips: what typical slips would give.
        below: how many of the wrong answers are to lie below the right one, whose rank among the
            four must not give it away.
    """
    likely = sorted(set(slips) - {right})
    near = [right + off for off in NEAR if right + off >= 0 and right + off not in likely]
    ordered = random.sample(likely, len(likely)) + random.sample(near, len(near))
    smaller = [number for number in ordered if number < right]
    larger = [number for number in ordered if number > right]
    wrong = smaller[:below] + larger[: 3 - below]
    return random.sample(wrong, len(wrong))


# Knowledge


def _make_knowledge(random: Random) -> Iterator[Item]:
    """Facts, with three answers to other questions of the same table."""
    facts = [(prompt, *fact) for prompt, table in KNOWLEDGE.items() for fact in table]
    for prompt, subject, right in _shuffle_endlessly(random, facts):
        others = sorted({answer for _, answer in KNOWLEDGE[prompt]} - {right})
        yield Item(prompt, prompt.format(subject), right, tuple(random.sample(others, 3)))


MAKERS: dict[str, Callable[[Random], Iterator[Item]]] = {
    "recall": _make_recall,
    "grammar": _make_grammar,
    "arithmetic": _make_arithmetic,
    "knowledge": _make_knowledge,
}
NAMES = tuple(MAKERS)
