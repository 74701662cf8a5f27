"""Datasets of results as figures fit for a paper; nothing is computed or read here.

`page` holds what all figures share, `states` the figures of hidden states, `scores` those of
benchmark scores, `costs` the one of scores against time, `comparison` that of several stores'
scores.
"""

from repsim.plotting.comparison import compare
from repsim.plotting.costs import latency
from repsim.plotting.page import PALETTE, WIDTHS, Figure, Width, save, styled
from repsim.plotting.scores import degradation
from repsim.plotting.states import blocks, clusters, drift, profiles, similarity_matrices

__all__ = [
    "PALETTE",
    "WIDTHS",
    "Figure",
    "Width",
    "blocks",
    "clusters",
    "compare",
    "degradation",
    "drift",
    "latency",
    "profiles",
    "save",
    "similarity_matrices",
    "styled",
]
