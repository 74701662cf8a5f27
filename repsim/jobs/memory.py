"""What happens when memory runs out: smaller batches first, then one line that says what to do."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from repsim.data.batching import Batch, halved
from repsim.errors import RepsimError

if TYPE_CHECKING:
    from repsim.models import Model

Work = TypeVar("Work")

log = logging.getLogger("repsim")


class LimitKeeper(Protocol):
    """What keeps the limit of batches from run to run: a store's writer."""

    @property
    def batch_limit(self) -> int | None:
        """The limit that an earlier run has found."""

    def note_batch_limit(self, positions: int) -> None:
        """Keeps a new limit."""


@contextmanager
def explain_out_of_memory(model: Model, doing: str, advice: str) -> Iterator[None]:
    """A full memory, in one line: what was being done, and what to do.

    Raises:
        RepsimError: memory ran out.
    """
    try:
        yield
    except RuntimeError as problem:
        if not is_out_of_memory(problem):
            raise
        raise RepsimError(
            f"{doing}: out of memory on {model.device}; what is finished is kept: go on with "
            f"{advice}"
        ) from problem


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    import torch

    return isinstance(problem, torch.OutOfMemoryError) or (
        isinstance(problem, RuntimeError) and "allocate memory" in str(problem)
    )


class BatchLimit:
    """The most positions of a batch, halved within a block whenever memory runs out.

    Which samples make a block is fixed when a store is made; how they run in batches is not.

    positions: of a batch of several rows, padding included; None while no limit was found.

    Args:
        model: what runs.
        keeper: what knows the limit of earlier runs, and keeps a new one.
    """

    def __init__(self, model: Model, keeper: LimitKeeper) -> None:
        self._model, self._keeper = model, keeper
        self.positions = keeper.batch_limit

    def run(
        self,
        doing: str,
        advice: str,
        pack: Callable[[int | None], Work],
        batches_of: Callable[[Work], Sequence[Batch]],
        compute: Callable[[Work], None],
    ) -> None:
        """Computes a block, in ever smaller batches as long as memory runs out.

        Args:
            doing: what is computed, for messages.
            advice: what to do where not even batches of one row fit.
            pack: the block in batches of at most so many positions.
            batches_of: the batches of what `pack` gives.
            compute: computes them; called again after memory has run out, it goes on with what
                is left.
        Raises:
            RepsimError: memory ran out although every batch has one row.
        """
        before = self.positions
        with explain_out_of_memory(self._model, doing, advice):
            while (smaller := self._attempt(pack(self.positions), batches_of, compute)) is not None:
                self.positions = smaller
                self._free()
        if self.positions is not None and self.positions != before:
            log.warning(
                "%s: out of memory on %s; from here on batches have at most %s tokens, which the "
                "store keeps",
                doing,
                self._model.device,
                f"{self.positions:,}",
            )
            self._keeper.note_batch_limit(self.positions)

    def _attempt(
        self,
        work: Work,
        batches_of: Callable[[Work], Sequence[Batch]],
        compute: Callable[[Work], None],
    ) -> int | None:
        """Computes; the limit to try next where memory ran out, else None."""
        try:
            compute(work)
        except RuntimeError as problem:
            smaller = halved(batches_of(work)) if is_out_of_memory(problem) else None
            if smaller is None:
                raise
            return smaller
        return None

    def _free(self) -> None:
        """Gives back what the failed attempt held; its error, and so its frames, are gone."""
        gc.collect()
        if self._model.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
