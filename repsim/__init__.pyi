from . import (
    analysis,
    cache,
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
    registry,
    schema,
    stats,
    storage,
    stores,
)
from .analysis.run import Analysis, analyze
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
from .stores import open, table, verify

__version__: str
MOVED: dict[str, str]

__all__ = [
    "Analysis",
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
    "analysis",
    "analyze",
    "cache",
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
    "registry",
    "schema",
    "stats",
    "storage",
    "stores",
    "table",
    "verify",
]
