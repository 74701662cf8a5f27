"""A model, and how it runs a plan."""

from repsim.cache import cache_folder
from repsim.models.loading import load
from repsim.models.model import Model
from repsim.models.model_files import EMBEDDED

__all__ = ["EMBEDDED", "Model", "cache_folder", "load"]
