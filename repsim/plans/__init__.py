"""Which layers run, in which order, on which input? No torch, no numpy: layers are known by number
only.
"""

from repsim.plans.drawing import describe, draw
from repsim.plans.families import FAMILIES, Family, Parameter, Value, register_family
from repsim.plans.files import PlanRequest, read_plans
from repsim.plans.joins import JOIN_KINDS, JoinKind
from repsim.plans.names import ALL
from repsim.plans.plan import (
    SUBLAYERS,
    Application,
    Piece,
    Plan,
    Step,
    check_layer,
    check_steps,
    parse_plan,
    parse_step,
)
from repsim.plans.sweeps import (
    SETS,
    NamedPlan,
    NamedSet,
    check_distinct,
    family_of,
    names_of,
    recognise,
    resolve,
)
from repsim.plans.trie import PlanTrie

__all__ = [
    "ALL",
    "FAMILIES",
    "JOIN_KINDS",
    "SETS",
    "SUBLAYERS",
    "Application",
    "Family",
    "JoinKind",
    "NamedPlan",
    "NamedSet",
    "Parameter",
    "Piece",
    "Plan",
    "PlanRequest",
    "PlanTrie",
    "Step",
    "Value",
    "check_distinct",
    "check_layer",
    "check_steps",
    "describe",
    "draw",
    "family_of",
    "names_of",
    "parse_plan",
    "parse_step",
    "read_plans",
    "recognise",
    "register_family",
    "resolve",
]
