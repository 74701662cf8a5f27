"""Representation analysis of transformers under layer plans: which layers run, in which order, on
which input.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "captures",
        "corpus",
        "evaluation",
        "families",
        "files",
        "figures",
        "inference",
        "integrity",
        "items",
        "labels",
        "models",
        "locks",
        "measures",
        "models",
        "opened",
        "opening",
        "packing",
        "places",
        "plans",
        "recording",
        "results",
        "runs",
        "schema",
        "score_store",
        "scores",
        "statistics",
        "store",
        "suite",
        "task_files",
        "tasks",
    ],
    submod_attrs={
        "captures": ["Capture"],
        "evaluation": ["evaluate"],
        "opening": ["open", "verify"],
        "plans": ["Plan"],
        "recording": ["capture"],
        "schema": ["RepsimError"],
        "scores": ["Scores"],
        "models.planned": ["planned"],
    },
)
