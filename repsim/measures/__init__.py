"""Measures of representations: how alike are two states, and what shape does a state have?

Each function takes arrays, `[item, unit]` or `[state, token, unit]`, and returns numbers. An item
is one row of a view: a token whose states are compared. Nothing here knows of plans, stores,
samples or dimension names; whoever calls a kernel adds its results up and names them.
"""

from repsim.measures.cka import (
    debiased_linear_cka,
    hsic,
    linear_cka,
    minibatch_cka,
    minibatch_hsic,
    rbf_cka,
)
from repsim.measures.cosine import (
    angular_distances,
    cosine_from_gram,
    grams,
    half_turns,
    sink_tokens,
    token_cosine_sums,
    token_cosine_totals,
    token_cosines,
)
from repsim.measures.dissimilarity import rsa
from repsim.measures.geometry import anisotropy, effective_rank, norms, participation_ratio, two_nn
from repsim.measures.neighbours import cknna, mutual_knn
from repsim.measures.subspace import (
    mean_cca,
    procrustes_distance,
    procrustes_similarity,
    pwcca,
    svcca,
)

__all__ = [
    "angular_distances",
    "anisotropy",
    "cknna",
    "cosine_from_gram",
    "debiased_linear_cka",
    "effective_rank",
    "grams",
    "half_turns",
    "hsic",
    "linear_cka",
    "mean_cca",
    "minibatch_cka",
    "minibatch_hsic",
    "mutual_knn",
    "norms",
    "participation_ratio",
    "procrustes_distance",
    "procrustes_similarity",
    "pwcca",
    "rbf_cka",
    "rsa",
    "sink_tokens",
    "svcca",
    "token_cosine_sums",
    "token_cosine_totals",
    "token_cosines",
    "two_nn",
]
