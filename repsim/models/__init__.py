"""A model, and how it runs a plan."""

from repsim.models.loading import load
from repsim.models.model import Model
from repsim.models.model_files import EMBEDDED, cache_folder

__all__ = ["EMBEDDED", "Model", "cache_folder", "load"]
