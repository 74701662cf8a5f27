"""The paper "Transformer Layers as Painters": its variants of the middle of a stack, what its
figures show, and its kinds of tasks.

Names and numbers only: no arrays, no files, no figures. The analyses `degradation` and `latency`
and the figures of scores take from here what is the paper's; the sets of plans that its figures
need (`fig2` to `fig11`) are in `repsim.plans`. Source: Sun et al. 2024, arXiv 2407.09298.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from repsim.errors import PlanError
from repsim.plans import FAMILIES

Values: TypeAlias = Mapping[str, int | str]

# Families of plans

MIDDLE_FAMILIES = ("skip", "middle_repeat", "reverse", "random", "parallel", "looped_parallel")
CURVE_FAMILIES = (*MIDDLE_FAMILIES, "drop", "switch")  # over all starts, or over all layers
ORDER_FAMILIES = ("reverse", "random")  # change nothing but the order of layers
LOOPS = 3  # of `looped_parallel` where it is compared with the other families

# Kinds of tasks, by how their names begin

TASK_KINDS = {
    "mathematics": ("gsm8k", "arithmetic", "asdiv", "mathqa"),
    "reasoning": ("arc_easy", "arc_challenge", "winogrande", "piqa", "logiqa"),
    "semantics": ("hellaswag", "lambada", "recall", "grammar", "blimp"),
    "knowledge": ("knowledge", "mmlu", "openbookqa", "sciq", "triviaqa"),
}
OTHER_KIND = "other"


def guess_kind(task: str) -> str:
    """What a task asks for, guessed from its name: a key of `TASK_KINDS`, or `other`.

    Example:
        >>> guess_kind("arc_easy"), guess_kind("boolq")
        ('reasoning', 'other')
    """
    return next((kind for kind, names in TASK_KINDS.items() if task.startswith(names)), OTHER_KIND)


# Figures of scores; figure 3 is of states


@dataclass(frozen=True)
class Curve:
    """The variants of a family that make one line of a figure.

    label: what the legend calls it.
    along: `start` or `layer`, the parameter that the x axis shows.
    part, loops: what the variants have in common; empty and -1 where the family has none.
    """

    label: str
    family: str
    along: str = "start"
    part: str = ""
    loops: int = -1

    @property
    def name(self) -> str:
        """For messages: `skip`, or `looped_parallel with loops=3`."""
        return self.family + f" with loops={self.loops}" * (self.loops > 0)


FIGURE_NUMBERS = (2, 4, 5, 6, 7, 8, 9, 10, 11)
SINGLE_LAYER_CURVES = (  # figure 2
    Curve("skip layer N", "drop", "layer"),
    Curve("switch layers N and N+1", "switch", "layer"),
    Curve("skip attention of N", "drop", "layer", "attn"),
    Curve("skip MLP of N", "drop", "layer", "mlp"),
)
MIDDLE_CURVES = {  # figures 4 to 9, one each; figure 11 has all of them
    4: Curve("skip", "skip"),
    5: Curve("middle repeat", "middle_repeat"),
    6: Curve("reverse", "reverse"),
    7: Curve("random order", "random"),
    8: Curve("parallel", "parallel"),
    9: Curve(f"looped parallel, {LOOPS} loops", "looped_parallel", loops=LOOPS),
}
TREATMENTS = {  # what figures 4 to 11 do to the middle
    4: "skipped",
    5: "each replaced by layer {centre}",
    6: "run backwards",
    7: "run in random order",
    8: "run in parallel, their outputs averaged",
    9: f"run in parallel {LOOPS} times, the average of their outputs fed back",
    10: "run in parallel, the average of their outputs fed back",
    11: "under each variant",
}


def describe_middle(figure: int, layers: int) -> str:
    """What figures 4 to 11 do to the middle of a stack of that many layers.

    Example:
        >>> describe_middle(5, layers=30)
        'layers N+1 to 29-N each replaced by layer 15'
    """
    return f"layers N+1 to {layers - 1}-N {TREATMENTS[figure].format(centre=layers // 2)}"


def count_places(family: str, layers: int) -> int:
    """How many starts, or layers, a family allows in a model of that many layers.

    Example:
        >>> count_places("skip", layers=30), count_places("switch", layers=30)
        (15, 29)
    """
    return len(FAMILIES[family].parameters[0].allowed(layers))


# Variants: the plans of a store, as members of families


@dataclass(frozen=True)
class Variant:
    """A plan as a member of a family, or the `random` plans of one start together.

    name: family text, without a seed, or what the plan was called.
    family: empty where the plan is of none.
    values: the family's parameters, without a seed.
    plans: indices of its plans; one for each seed, so an order that two seeds draw counts twice.
    """

    name: str
    family: str
    values: Values
    plans: tuple[int, ...]


def parse_family_text(text: str) -> tuple[str, Values]:
    """The family and the parameters that a family text names; an empty family for other texts.

    Example:
        >>> parse_family_text("drop:layer=2,part=mlp")
        ('drop', {'layer': 2, 'part': 'mlp'})
        >>> parse_family_text("0-3, 5")
        ('', {})
    """
    family, _, rest = text.partition(":")
    if family not in FAMILIES:
        return "", {}
    pairs = (pair.split("=") for pair in rest.split(",") if pair)
    return family, {key: int(value) if value.isdigit() else value for key, value in pairs}


def count_affected(family: str, values: Values, layers: int) -> int:
    """How many layers are not run as in the baseline; -1 for plans of no family.

    Example:
        >>> count_affected("skip", {"start": 1}, layers=30), count_affected("", {}, layers=30)
        (27, -1)
    """
    return FAMILIES[family].affected(layers, **values) if family in FAMILIES else -1


def find_variants(names: Sequence[str], texts: Sequence[str], layers: int) -> list[Variant]:
    """What a store's plans are: the baseline first, then family by family, then all other plans.

    A plan that several families share is a member of each, so that no curve has a hole: of a middle
    of one layer, backwards and in parallel are the baseline. A family has variants here where its
    name is that of any plan.

    Args:
        names: what the plans are called, `[plan]`.
        texts: their canonical texts, `[plan]`.
        layers: the model's T.
    Raises:
        PlanError: the baseline is not among them.
    Example:
        >>> for variant in find_variants(["baseline", "skip:start=1"], ["0-5", "0, 1, 5"], 6):
        ...     print(variant.name, variant.plans)
        baseline (0,)
        skip:start=1 (1,)
    """
    index_of = {text: index for index, text in enumerate(texts)}
    baseline = FAMILIES["baseline"].build(layers).text
    if baseline not in index_of:
        raise PlanError(
            f"the baseline is not among the {len(texts)} plans evaluated; "
            "add --plan baseline --append"
        )
    parsed = [parse_family_text(name) for name in names]

    # A variant is looked up by what it runs, so that it is found under whatever name it has.
    variants = [Variant("baseline", "baseline", {}, (index_of[baseline],))]
    for family in CURVE_FAMILIES:
        named = [values for of, values in parsed if of == family]
        variants += _variants_of(family, named, index_of, layers)

    # Plans of no curve stand for themselves.
    return variants + [
        Variant(name, family, values, (index,))
        for index, (name, (family, values)) in enumerate(zip(names, parsed, strict=True))
        if family not in (*CURVE_FAMILIES, "baseline")
    ]


def _variants_of(
    name: str, named: Sequence[Values], index_of: Mapping[str, int], layers: int
) -> Iterator[Variant]:
    """A family's variants over all starts or layers, for each part or number of loops that a plan's
    name has.

    named: the parameters of all plans that have a name of this family.
    index_of: canonical text → which plan of the store.
    """
    family = FAMILIES[name]
    along = family.parameters[0]
    others = {
        tuple((key, value) for key, value in values.items() if key != along.name)
        for values in named
    }
    # In a grid of loops by width, one loop is there under the name `parallel`.
    if name == "looped_parallel" and others - {(("loops", LOOPS),)}:
        others.add((("loops", 1),))

    # All seeds of a start are one variant; parts and numbers of loops are one each.
    for pool in [sorted(others)] if name == "random" else [[other] for other in sorted(others)]:
        for value in along.allowed(layers):
            texts = [
                family.build(layers, **{along.name: value}, **dict(other)).text for other in pool
            ]
            plans = tuple(index_of[text] for text in texts if text in index_of)
            is_named = any(values.get(along.name) == value for values in named)
            # Of a start that no name has, one order that happens to be in the store (backwards,
            # say) does not stand for random orders.
            if plans and (is_named or len(plans) == len(texts)):
                values = {along.name: value, **({} if name == "random" else dict(pool[0]))}
                yield Variant(family.text(**values), name, values, plans)
