"""Datasets of results as figures fit for a paper; nothing is computed or read here.

`page` holds what all figures share, `colours` and `layer_labels` what those of states do, `words`
and the modules of captions what figures say. `states` and `structure` are the figures of hidden
states, `scores` and `forest` those of benchmark scores, `costs` the one of scores against time.
"""

from repsim.plotting.comparison import compare
from repsim.plotting.costs import latency
from repsim.plotting.curves import find_own_plans
from repsim.plotting.forest import plan_scores
from repsim.plotting.page import (
    PALETTE,
    WIDTHS,
    Figure,
    Width,
    drawn_with,
    options_in_force,
    remark,
    save,
    styled,
)
from repsim.plotting.scores import MISSING_PLANS, NotDrawn, degradation
from repsim.plotting.states import profiles, similarity_matrices
from repsim.plotting.structure import blocks, clusters, drift
from repsim.plotting.words import describe, letter_panels

__all__ = [
    "MISSING_PLANS",
    "PALETTE",
    "WIDTHS",
    "Figure",
    "NotDrawn",
    "Width",
    "blocks",
    "clusters",
    "compare",
    "degradation",
    "describe",
    "drawn_with",
    "drift",
    "find_own_plans",
    "latency",
    "letter_panels",
    "options_in_force",
    "plan_scores",
    "profiles",
    "remark",
    "save",
    "similarity_matrices",
    "styled",
]
