from . import (
    captures,
    data,
    errors,
    evaluation,
    files,
    jobs,
    measures,
    models,
    options,
    plans,
    plotting,
    schema,
    stats,
    storage,
    stores,
)
from .captures.reader import Capture
from .captures.run import capture
from .errors import (
    DataError,
    Interrupted,
    ModelError,
    PlanError,
    RepsimError,
    StoreDamaged,
    StoreError,
    StoreLocked,
)
from .evaluation.reader import Scores
from .evaluation.run import evaluate
from .models.planned import planned
from .plans import Plan
from .stores import open, verify

__version__: str

__all__ = [
    "Capture",
    "DataError",
    "Interrupted",
    "ModelError",
    "Plan",
    "PlanError",
    "RepsimError",
    "Scores",
    "StoreDamaged",
    "StoreError",
    "StoreLocked",
    "capture",
    "captures",
    "data",
    "errors",
    "evaluate",
    "evaluation",
    "files",
    "jobs",
    "measures",
    "models",
    "open",
    "options",
    "planned",
    "plans",
    "plotting",
    "schema",
    "stats",
    "storage",
    "stores",
    "verify",
]
