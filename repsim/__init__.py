"""Representation analysis of transformers under layer plans: which layers run, in which order, on which input."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "captures",
        "corpus",
        "families",
        "figures",
        "inference",
        "integrity",
        "items",
        "layers",
        "locks",
        "measures",
        "models",
        "places",
        "plans",
        "recording",
        "results",
        "schema",
        "statistics",
        "store",
        "trace",
    ],
    submod_attrs={
        "captures": ["Capture", "open", "verify"],
        "plans": ["Plan"],
        "recording": ["capture"],
        "schema": ["RepsimError"],
        "stack": ["planned"],
    },
)
