"""The offline suite: four small benchmarks made from tables and a seed, so that nothing has to be
fetched.

`recall` asks for the last word of a passage, `grammar` for the grammatical one of two sentences,
`arithmetic` and `knowledge` for one of four answers. Each comes as the configuration of an lm-eval
task, which scores it as it scores any other. Prompts are short: the suite is run for every plan.
This module knows no model and does not import lm-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

from repsim.errors import DataError

GROUP = "offline"
ITEMS = 240
VERSION = 1.0  # of the items: to be raised with any change of them
MOST_ITEMS = 10_000  # that all benchmarks can give without a repetition


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
"""A sentence with `{}` where one word goes, the grammatical word, the other."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`France=Paris, Italy=Rome` as pairs."""
    return tuple(
        (left, right) for left, right in (entry.strip().split("=") for entry in text.split(","))
    )


# ---- recall: passages whose last word is to be told; `asked` is the first or the second of what was drawn

FIRST_NAMES = _words(
    "Anna Peter Mary John Sarah Tom Emma Jack Lucy Paul Alice David Laura Mark Julia Adam Kate Henry Rachel Simon"
)
DRAWN = {
    "name": FIRST_NAMES,
    "thing": _words("book key ring letter map cup coat knife hat phone ball lamp"),
    "room": _words("kitchen garden bathroom bedroom garage office attic basement"),
    "trade": _words("teacher doctor farmer lawyer baker singer pilot nurse"),
    "box": _words("box bag basket drawer"),
}
RECALL = {
    "giver": "{name[0]} and {name[1]} were at home. {name[0]} was looking for the {thing[0]}. "
    "At last {name[1]} gave the {thing[0]} to {name[0]}",
    "owner": "The {thing[0]} belongs to {name[0]}. The {thing[1]} belongs to {name[1]}. "
    "Everybody in the house knows that the {asked[thing]} belongs to {asked[name]}",
    "trade": "The {trade[0]} is called {name[0]}. The {trade[1]} is called {name[1]}. They met on a Monday. "
    "I am sure that the {asked[trade]} is called {asked[name]}",
    "room": "{name[0]} left the {thing[0]} in the {room[0]} and the {thing[1]} in the {room[1]}. "
    "In the evening {name[0]} found the {asked[thing]} in the {asked[room]}",
    "contents": "There is a {thing[0]} in the {box[0]} and a {thing[1]} in the {box[1]}. It is late. "
    "{name[0]} opens the {asked[box]} and takes out the {asked[thing]}",
    "letter": "{name[0]} wrote a long letter to {name[1]}. {name[2]} read it first. "
    "A week later {name[0]} got an answer from {name[1]}",
}


def _recall(random: Random) -> Iterator[Item]:
    for kind, passage in _in_turn(random, tuple(RECALL.items())):
        drawn, place = (
            {slot: random.sample(words, 3) for slot, words in DRAWN.items()},
            random.randrange(2),
        )
        asked = {slot: words[place] for slot, words in drawn.items()}
        text, _, right = passage.format(asked=asked, **drawn).rpartition(" ")
        yield Item(kind, text, right)


# ---- grammar: singular first, plural second

PEOPLE = _pairs(
    "boy=boys, girl=girls, man=men, woman=women, teacher=teachers, doctor=doctors, farmer=farmers, student=students, "
    "child=children, friend=friends, king=kings, driver=drivers"
)
OBJECTS = _pairs(
    "book=books, car=cars, house=houses, picture=pictures, chair=chairs, table=tables, letter=letters, shoe=shoes, "
    "box=boxes, watch=watches, knife=knives, bottle=bottles"
)
FEELINGS = _words("tired happy hungry angry sad sick proud quiet")
QUALITIES = _words("old new big small red blue heavy cheap")
BE, WAS = ("is", "are"), ("was", "were")
LIKE = _pairs("likes=like, knows=know, wants=want, needs=need, sees=see, hates=hate")
DETERMINERS = _pairs("this=these, that=those")
SELVES = {
    "himself": _words("king boy father man brother"),
    "herself": _words("queen girl mother woman sister"),
}
AN = _pairs(
    "apple=pear, egg=cake, orange=lemon, onion=carrot, old book=new book, empty box=full box"
)
PARTICIPLES = _pairs(
    "eaten=ate, written=wrote, taken=took, broken=broke, driven=drove, given=gave, stolen=stole, "
    "chosen=chose, drawn=drew, seen=saw, done=did"
)
CASES = _pairs("him=he, her=she, them=they, us=we, me=I")
COMPARATIVES = _pairs(
    "older=old, bigger=big, cheaper=cheap, heavier=heavy, longer=long, smaller=small, darker=dark"
)


def _agreement(random: Random) -> Frame:
    number, verb = random.randrange(2), random.choice((BE, WAS))
    return f"The {random.choice(PEOPLE)[number]} {{}} very {random.choice(FEELINGS)}.", *_turned(
        verb, number
    )


def _verb_agreement(random: Random) -> Frame:
    number = random.randrange(2)
    frame = f"The {random.choice(PEOPLE)[number]} {{}} the {random.choice(QUALITIES)} {random.choice(OBJECTS)[0]}."
    return frame, *_turned(random.choice(LIKE), number)


def _attractor(random: Random) -> Frame:
    number, (head, other) = random.randrange(2), random.sample(PEOPLE, 2)
    place = random.choice(("next to", "behind", "in front of", "near"))
    frame = f"The {head[number]} {place} the {other[1 - number]} {{}} {random.choice(FEELINGS)}."
    return frame, *_turned(random.choice((BE, WAS)), number)


def _relative_clause(random: Random) -> Frame:
    number, (head, other) = random.randrange(2), random.sample(PEOPLE, 2)
    frame = f"The {head[number]} who {random.choice(LIKE)[number]} the {other[1 - number]} {{}}"
    return f"{frame} {random.choice(FEELINGS)}.", *_turned(random.choice((BE, WAS)), number)


def _determiner(random: Random) -> Frame:
    number, noun = random.randrange(2), random.choice(OBJECTS)
    name, determiner = random.choice(FIRST_NAMES), random.choice(DETERMINERS)[number]
    return f"{name} bought {determiner} {random.choice(QUALITIES)} {{}} yesterday.", *_turned(
        noun, number
    )


def _quantifier(random: Random) -> Frame:
    number, noun = random.randrange(2), random.choice(OBJECTS)
    quantifier = random.choice((("each", "every", "one"), ("many", "several", "both"))[number])
    return f"{random.choice(FIRST_NAMES)} has seen {quantifier} {{}} in the shop.", *_turned(
        noun, number
    )


def _anaphor(random: Random) -> Frame:
    right, wrong = random.sample(tuple(SELVES), 2)
    verb = random.choice(("hurt", "saw", "blamed", "washed"))
    where = random.choice(("in the morning", "last week", "again"))
    return f"The {random.choice(SELVES[right])} {verb} {{}} {where}.", right, wrong


def _anaphor_number(random: Random) -> Frame:
    right, wrong = random.sample(("himself", "themselves"), 2)
    noun = random.choice(
        (("king", "kings"), ("boy", "boys"), ("man", "men"), ("brother", "brothers"))
    )
    verb = random.choice(("hurt", "saw", "blamed", "washed"))
    return f"The {random.choice(FEELINGS)} {noun[right == 'themselves']} {verb} {{}}.", right, wrong


def _article(random: Random) -> Frame:
    number = random.randrange(2)
    frame = f"{random.choice(FIRST_NAMES)} bought {{}} {random.choice(AN)[number]} in the shop."
    return frame, *_turned(("an", "a"), number)


def _participle(random: Random) -> Frame:
    number, name = random.randrange(2), random.choice(FIRST_NAMES)
    frame = (f"{name} has {{}} it already.", f"Yesterday {name} {{}} it.")[number]
    return frame, *_turned(random.choice(PARTICIPLES), number)


def _case(random: Random) -> Frame:
    verb = random.choice(("helped", "saw", "met", "thanked"))
    return (
        f"The {random.choice(PEOPLE)[random.randrange(2)]} {verb} {{}} at the door.",
        *random.choice(CASES),
    )


def _comparative(random: Random) -> Frame:
    one, two = random.sample(OBJECTS, 2)
    return f"This {one[0]} is {{}} than that {two[0]}.", *random.choice(COMPARATIVES)


def _polarity(random: Random) -> Frame:
    verb = random.choice(("seen", "liked", "bought", "wanted"))
    right, wrong = random.choice(
        (("Nobody", "Everybody"), ("Nobody", "Somebody"), ("No", "Every"), ("No", "Some"))
    )
    subject = "{}" if right == "Nobody" else f"{{}} {random.choice(PEOPLE)[0]}"
    return f"{subject} has ever {verb} this {random.choice(OBJECTS)[0]}.", right, wrong


GRAMMAR: tuple[Callable[[Random], Frame], ...] = (
    _agreement,
    _verb_agreement,
    _attractor,
    _relative_clause,
    _determiner,
    _quantifier,
    _anaphor,
    _anaphor_number,
    _article,
    _participle,
    _case,
    _comparative,
    _polarity,
)


def _turned(words: tuple[str, str], number: int) -> tuple[str, str]:
    """The word of that number, then the other."""
    return words[number], words[1 - number]


def _grammar(random: Random) -> Iterator[Item]:
    for make in _in_turn(random, GRAMMAR):
        frame, right, wrong = make(random)
        yield Item(make.__name__.strip("_"), "", frame.format(right), (frame.format(wrong),))


# ---- arithmetic: the order of the numbers matters in every problem

SOLVED = 2  # examples shown before a problem
LEAST = 3  # answer, so that three wrong ones that are not negative can lie below it
NEAR = (-10, -3, -2, -1, 1, 2, 3, 10)  # how far off a miscalculation is
Problem: TypeAlias = tuple[str, int, tuple[int, ...]]
"""What is asked, the answer, and what slips would give."""


def _minus() -> list[Problem]:
    """Slips: added, the other way round."""
    pairs = [(b, r) for b in range(2, 10) for r in range(LEAST, 20 - b)]
    return [(f"{b + r} - {b} =", r, (b + r + b, -r)) for b, r in pairs]


def _divided() -> list[Problem]:
    """Slips: subtracted, multiplied, the divisor in place of the answer."""
    pairs = [(b, r) for b in range(2, 13) for r in range(LEAST, 12) if r != b]
    return [(f"{b * r} / {b} =", r, (b * r - b, b * r * b, b)) for b, r in pairs]


def _countdown() -> list[Problem]:
    """Slips: up in place of down, the last number again, one left out."""
    ends = [(r, step) for step in (1, 2, 3) for r in range(LEAST, 31)]
    terms = [(*(r + step * left for left in (4, 3, 2, 1, 0)), r - step) for r, step in ends]
    return [(f"{a}, {b}, {c}, {d},", r, (c, d, beyond)) for a, b, c, d, r, beyond in terms]


ARITHMETIC = {"minus": _minus, "divided": _divided, "countdown": _countdown}


def _arithmetic(random: Random) -> Iterator[Item]:
    problems = {kind: make() for kind, make in ARITHMETIC.items()}
    streams = {kind: _in_turn(random, found) for kind, found in problems.items()}
    below = _in_turn(random, range(4))
    for kind in _in_turn(random, tuple(ARITHMETIC)):
        question, right, slips = next(streams[kind])
        # So that the answer cannot be copied.
        others = [one for one in problems[kind] if one[1] != right]
        shown = random.sample(others, 0 if kind == "countdown" else SOLVED)
        text = "\n".join([*(f"{problem} {answer}" for problem, answer, _ in shown), question])
        yield Item(
            kind, text, str(right), tuple(map(str, _wrong(random, right, slips, next(below))))
        )


def _wrong(random: Random, right: int, slips: Sequence[int], below: int) -> list[int]:
    """Three wrong answers, slips first, so many of them below the right one: its rank must not give
    it away.
    """
    likely = sorted(set(slips) - {right})
    near = [right + off for off in NEAR if right + off >= 0 and right + off not in likely]
    ordered = random.sample(likely, len(likely)) + random.sample(near, len(near))
    smaller, larger = [x for x in ordered if x < right], [x for x in ordered if x > right]
    return random.sample(found := smaller[:below] + larger[: 3 - below], len(found))


# ---- knowledge: prompt → question=answer; an answer of one table is never a second right one to another question of it

KNOWLEDGE = {
    "The capital of {} is": _pairs(
        "France=Paris, Italy=Rome, Spain=Madrid, Germany=Berlin, Japan=Tokyo, China=Beijing, Russia=Moscow, "
        "Egypt=Cairo, Greece=Athens, Portugal=Lisbon, Austria=Vienna, Poland=Warsaw, Hungary=Budapest, Norway=Oslo, "
        "Sweden=Stockholm, Finland=Helsinki, Denmark=Copenhagen, Ireland=Dublin, Canada=Ottawa, Cuba=Havana, "
        "Peru=Lima, Argentina=Buenos Aires, Kenya=Nairobi, Iraq=Baghdad, Iran=Tehran, Turkey=Ankara, "
        "Thailand=Bangkok, Vietnam=Hanoi, Belgium=Brussels, Romania=Bucharest, Bulgaria=Sofia, Chile=Santiago, "
        "Venezuela=Caracas, Syria=Damascus, Lebanon=Beirut, Nepal=Kathmandu, Croatia=Zagreb, Serbia=Belgrade, "
        "England=London, Scotland=Edinburgh, South Korea=Seoul, Australia=Canberra"
    ),
    "{} is a country in": _pairs(
        "Kenya=Africa, Nigeria=Africa, Ghana=Africa, Ethiopia=Africa, Morocco=Africa, Zambia=Africa, Uganda=Africa, "
        "Senegal=Africa, France=Europe, Spain=Europe, Sweden=Europe, Poland=Europe, Austria=Europe, Ireland=Europe, "
        "Belgium=Europe, Norway=Europe, Japan=Asia, China=Asia, India=Asia, Thailand=Asia, Vietnam=Asia, Nepal=Asia, "
        "Pakistan=Asia, Mongolia=Asia, Peru=South America, Brazil=South America, Argentina=South America, "
        "Chile=South America, Bolivia=South America, Ecuador=South America, Paraguay=South America, "
        "Uruguay=South America"
    ),
    "The language of most people in {} is": _pairs(
        "France=French, Spain=Spanish, Mexico=Spanish, Argentina=Spanish, Cuba=Spanish, Chile=Spanish, "
        "Brazil=Portuguese, Portugal=Portuguese, Germany=German, Austria=German, Italy=Italian, Japan=Japanese, "
        "China=Chinese, Russia=Russian, Egypt=Arabic, Iraq=Arabic, Saudi Arabia=Arabic, Greece=Greek, "
        "Turkey=Turkish, Poland=Polish, Sweden=Swedish, the Netherlands=Dutch, Australia=English, England=English, "
        "New Zealand=English, Thailand=Thai"
    ),
    "The opposite of {} is": _pairs(
        "hot=cold, big=small, up=down, left=right, good=bad, fast=slow, young=old, day=night, black=white, "
        "open=closed, rich=poor, happy=sad, heavy=light, full=empty, wet=dry, high=low, early=late, strong=weak, "
        "clean=dirty, alive=dead, loud=quiet, near=far, inside=outside, war=peace, love=hate, win=lose, buy=sell, "
        "push=pull, first=last, true=false, wide=narrow, rough=smooth, always=never, everything=nothing, "
        "front=back, friend=enemy, north=south, east=west, before=after, deep=shallow"
    ),
    "A baby {} is called a": _pairs(
        "dog=puppy, cat=kitten, cow=calf, elephant=calf, whale=calf, horse=foal, sheep=lamb, goat=kid, bear=cub, "
        "lion=cub, pig=piglet, duck=duckling, frog=tadpole, kangaroo=joey, goose=gosling"
    ),
    "The color of {} is": _pairs(
        "grass=green, spinach=green, an emerald=green, broccoli=green, blood=red, a ripe tomato=red, a ruby=red, "
        "a stop sign=red, a fire truck=red, snow=white, milk=white, a polar bear=white, salt=white, coal=black, "
        "a crow=black, a raven=black, tar=black, a ripe banana=yellow, a lemon=yellow, a sunflower=yellow, "
        "a carrot=orange, a pumpkin=orange, milk chocolate=brown, mud=brown, a sapphire=blue, a flamingo=pink"
    ),
    "To {} you need a": _pairs(
        "sweep the floor=broom, write a letter=pen, dig a hole=shovel, sew on a button=needle, cut a plank in two=saw, "
        "drive in a nail=hammer, measure the temperature=thermometer, look at the stars=telescope, open a lock=key, "
        "take a picture=camera, eat soup=spoon, cut bread=knife, climb onto a roof=ladder, weigh flour=scale, "
        "light a fire=match, tighten a screw=screwdriver, boil water for tea=kettle, "
        "dry your hands=towel, find the north=compass"
    ),
    "Someone who {} is a": _pairs(
        "bakes bread=baker, flies planes=pilot, gives lessons at school=teacher, grows crops=farmer, cuts hair=barber, "
        "looks after teeth=dentist, repairs pipes=plumber, puts out fires=firefighter, sells meat=butcher, "
        "sews suits=tailor, speaks for you in court=lawyer, cooks in a restaurant=chef, serves at table=waiter, "
        "makes things of wood=carpenter, fights in an army=soldier, repairs cars=mechanic, writes poems=poet, "
        "rules a kingdom=king, works in a library=librarian, reports the news=journalist"
    ),
    "As we all know, {} is a kind of": _pairs(
        "a rose=flower, a tulip=flower, a daisy=flower, a daffodil=flower, an oak=tree, a pine=tree, a birch=tree, "
        "a willow=tree, a salmon=fish, a trout=fish, a tuna=fish, a shark=fish, an eagle=bird, a sparrow=bird, "
        "a parrot=bird, an owl=bird, an ant=insect, a beetle=insect, a mosquito=insect, a butterfly=insect, "
        "a strawberry=fruit, a banana=fruit, a grape=fruit, a melon=fruit, a carrot=vegetable, a cabbage=vegetable, "
        "spinach=vegetable, an onion=vegetable, copper=metal, iron=metal, silver=metal, tin=metal, tennis=sport, "
        "football=sport, hockey=sport, golf=sport, a cobra=snake, a python=snake, a viper=snake"
    ),
    "The month after {} is": _pairs(
        "January=February, February=March, March=April, April=May, May=June, June=July, July=August, "
        "August=September, September=October, October=November, November=December, December=January"
    ),
    "The day after {} is": _pairs(
        "Monday=Tuesday, Tuesday=Wednesday, Wednesday=Thursday, Thursday=Friday, Friday=Saturday, Saturday=Sunday, "
        "Sunday=Monday"
    ),
    "The female form of {} is": _pairs(
        "king=queen, father=mother, brother=sister, son=daughter, nephew=niece, boy=girl, husband=wife, "
        "prince=princess, waiter=waitress, grandfather=grandmother, duke=duchess, wizard=witch"
    ),
}


def _knowledge(random: Random) -> Iterator[Item]:
    facts = [(prompt, *fact) for prompt, table in KNOWLEDGE.items() for fact in table]
    for prompt, question, right in _in_turn(random, facts):
        others = sorted({answer for _, answer in KNOWLEDGE[prompt]} - {right})
        yield Item(prompt, prompt.format(question), right, tuple(random.sample(others, 3)))


# ---- all of them

MAKERS: dict[str, Callable[[Random], Iterator[Item]]] = {
    "recall": _recall,
    "grammar": _grammar,
    "arithmetic": _arithmetic,
    "knowledge": _knowledge,
}
NAMES = tuple(MAKERS)


def _in_turn(random: Random, entries: Sequence[Any]) -> Iterator[Any]:
    """All entries in random order, then again in another, without end."""
    while True:
        yield from random.sample(entries, len(entries))


def documents(name: str, seed: int = 0, items: int = ITEMS) -> list[dict[str, Any]]:
    """The items of one benchmark; the same for the same arguments on every machine.

    Returns:
        For recall `kind`, `text`, `target` (with the space before it); for the others `kind`,
        `text`, `choices` and `gold`, the place of the right one; all places are right equally
        often, give or take one.
    Raises:
        RepsimError: no such benchmark, or no such number of items.
    """
    if name not in MAKERS:
        raise DataError(f"task {name!r}: the offline suite has {', '.join(NAMES)}")
    if not 1 <= items <= MOST_ITEMS:
        raise DataError(f"items={items}: the offline suite has 1 to {MOST_ITEMS}")
    random = Random(f"{name}-{seed}")
    found: dict[tuple[Any, ...], Item] = {}
    for item in MAKERS[name](random):
        found.setdefault((item.text, item.right, frozenset(item.wrong)), item)
        if len(found) == items:
            break
    places = _in_turn(random, range(1 + len(next(iter(found.values())).wrong)))
    return [_document(item, next(places)) for item in found.values()]


def _document(item: Item, place: int) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": item.kind, "text": item.text}
    if not item.wrong:
        return document | {"target": f" {item.right}"}
    return document | {
        "choices": [*item.wrong[:place], item.right, *item.wrong[place:]],
        "gold": place,
    }


def config(name: str, seed: int = 0, items: int = ITEMS) -> dict[str, Any]:
    """The configuration of one benchmark, as `lm_eval.api.task.ConfigurableTask` takes it.

    Raises:
        RepsimError: no such benchmark, or no such number of items.
    """
    found = documents(name, seed, items)

    def dataset(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"test": Dataset.from_list(found)})

    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    chosen = "choices" in found[0]
    return {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "multiple_choice" if chosen else "loglikelihood",
        "doc_to_text": "" if name == "grammar" else "text",
        "doc_to_target": "gold" if chosen else "target",
        "doc_to_choice": "choices" if chosen else None,
        "target_delimiter": "" if name == "grammar" else " ",
        "metric_list": [accuracy] if chosen else [perplexity, accuracy],
        "num_fewshot": 0,
        "metadata": {"version": VERSION},
    }
