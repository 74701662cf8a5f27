"""Which layers run, in which order, on which input? No torch, no numpy: layers are known by number
only.
"""

from repsim.plans.families import FAMILIES, SETS, Family, NamedPlan, names_of, resolve
from repsim.plans.plan import Application, Plan, PlanTrie, Step, describe, draw, parse_plan

__all__ = [
    "FAMILIES",
    "SETS",
    "Application",
    "Family",
    "NamedPlan",
    "Plan",
    "PlanTrie",
    "Step",
    "describe",
    "draw",
    "names_of",
    "parse_plan",
    "resolve",
]
