"""A model, and how it runs a plan."""

from repsim.models.loading import EMBEDDED, cache_folder, load
from repsim.models.model import Model

__all__ = ["EMBEDDED", "Model", "cache_folder", "load"]
