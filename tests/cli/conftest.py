"""Fixtures of the tests in this folder."""

from support.analyses import made_stores, store_of
from support.cli import call, deeper, scores, store, stranger

__all__ = ["call", "deeper", "made_stores", "scores", "store", "store_of", "stranger"]
