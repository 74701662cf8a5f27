"""A model, and how it runs a plan."""

from repsim.cache import cache_folder
from repsim.models.loading import EMBEDDED, load
from repsim.models.model import Model

__all__ = ["EMBEDDED", "Model", "cache_folder", "load"]
