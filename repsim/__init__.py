"""Representation analysis of transformers under layer plans: which layers run, in which order, on
which input.

The public names are in `__init__.pyi`; each is imported when it is first used.
"""

import importlib
import warnings
from typing import Any

import lazy_loader

__version__ = "0.2.0"

# Modules by the names they had directly under `repsim`, for code written before the rooms.
MOVED = {
    "corpus": "data.corpus",
    "families": "plans",
    "figures": "plotting",
    "harness": "evaluation.lm_eval_model",
    "inference": "stats",
    "items": "stats.subsample",
    "labels": "plotting.labels",
    "opening": "stores",
    "packing": "data.packing",
    "recording": "captures.run",
    "results": "stats.results",
    "scores": "evaluation.reader",
    "sinks": "captures.write_queue",
    "statistics": "stats.per_sample",
    "suite": "evaluation.offline_suite",
    "task_files": "evaluation.task_files",
    "tasks": "evaluation.tasks",
}

_lazy_getattr, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in MOVED:
        return _lazy_getattr(name)
    module = f"{__name__}.{MOVED[name]}"
    warnings.warn(f"repsim.{name} is now {module}", DeprecationWarning, stacklevel=2)
    return importlib.import_module(module)
