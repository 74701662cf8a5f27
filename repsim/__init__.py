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
        "layers",
        "measures",
        "models",
        "plans",
        "schema",
        "store",
        "trace",
    ],
    submod_attrs={
        "captures": ["Capture", "capture", "open"],
        "plans": ["Plan"],
        "schema": ["RepsimError"],
        "stack": ["planned"],
    },
)
