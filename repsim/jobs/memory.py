"""What to say when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from repsim.errors import RepsimError

if TYPE_CHECKING:
    from repsim.models import Model


@contextmanager
def explain_out_of_memory(model: Model, doing: str, advice: str) -> Iterator[None]:
    """A full memory, in one line: what was being done, and what to do.

    Raises:
        RepsimError: memory ran out.
    """
    import torch

    try:
        yield
    except RuntimeError as problem:
        if not isinstance(problem, torch.OutOfMemoryError) and "allocate memory" not in str(
            problem
        ):
            raise
        raise RepsimError(
            f"{doing}: out of memory on {model.device}; what is finished is kept: go on with "
            f"{advice}"
        ) from problem
