"""A run that goes on where an earlier one stopped: what captures and evaluations share.

What is there is read, what remains is planned, and only then something is repaired or computed.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from repsim.errors import StoreDamaged, StoreError
from repsim.plans import NamedPlan
from repsim.storage.frame import StoreLayout
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import Location
from repsim.storage.lock import WriterLock, is_locked
from repsim.storage.metadata import exists
from repsim.storage.reader import StoreReader
from repsim.storage.starting import remove_unstarted_store

AnyLayout = TypeVar("AnyLayout", bound=StoreLayout)
AnyStore = TypeVar("AnyStore", bound=StoreReader)

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class Progress:
    """How far a run is: `tokens` of its `total`, those under way counted in part."""

    tokens: int
    total: int


@dataclass(frozen=True)
class RemainingWork(Generic[AnyLayout]):
    """What a store lacks of what is asked for.

    layout: the store's, once it has what is asked for.
    missing: what is yet to be computed, `[row, block]`; rows are trie nodes, or plans.
    grows: whether the store has to grow, which it also has where nothing is to be computed: a plan
        may end inside another.
    """

    layout: AnyLayout
    missing: NDArray[np.bool_]
    grows: bool

    @property
    def is_none(self) -> bool:
        return not (self.missing.any() or self.grows)


@dataclass(frozen=True)
class WorkUnit:
    """A run of neighbouring blocks, and the rows wanted of each: small, and made to travel.

    blocks: first to last.
    rows: trie nodes, or plans.
    """

    blocks: tuple[int, ...]
    rows: tuple[int, ...]


def work_units(missing: NDArray[np.bool_], most_blocks: int = 1) -> Iterator[WorkUnit]:
    """What is missing, `[row, block]`, in the order of the blocks.

    Args:
        missing: what is to be computed.
        most_blocks: neighbouring blocks that lack the same rows go together, at most so many.
    Example:
        >>> missing = np.array([[True, True, False], [False, False, True]])
        >>> [(unit.blocks, unit.rows) for unit in work_units(missing, most_blocks=2)]
        [((0, 1), (0,)), ((2,), (1,))]
    """
    blocks: list[int] = []
    rows: tuple[int, ...] = ()
    for block in np.flatnonzero(missing.any(0)).tolist():
        wanted = tuple(np.flatnonzero(missing[:, block]).tolist())
        is_next = blocks and block == blocks[-1] + 1 and wanted == rows
        if not is_next or len(blocks) == most_blocks:
            if blocks:
                yield WorkUnit(tuple(blocks), rows)
            blocks, rows = [], wanted
        blocks.append(block)
    if blocks:
        yield WorkUnit(tuple(blocks), rows)


def check_plan_names(
    location: Location, stored: Sequence[NamedPlan], requested: Sequence[NamedPlan]
) -> None:
    """Refuses names that a store has for other plans, or other names than it has for its plans.

    Raises:
        StoreError: a plan could not be found again by the name that it was given.
    """
    by_plan = {named.plan: named.name for named in stored}
    by_name = {named.name: named.plan for named in stored}
    for named in requested:
        if not named.has_given_name:
            continue
        if (name := by_plan.get(named.plan, named.name)) != named.name:
            raise StoreError(
                f"{location}: holds {named.name} as {name!r}; ask for it by that, or choose "
                "another --out"
            )
        if (plan := by_name.get(named.name, named.plan)) != named.plan:
            raise StoreError(
                f"{location}: its {named.name} is {plan}, not {named.plan}; give the plan another "
                "name"
            )


class ResumableRun(ABC, Generic[AnyLayout, AnyStore]):
    """A capture or an evaluation.

    location: of its store.
    repair: whether to read the store first and compute again what is damaged or missing.
    """

    location: Location
    repair: bool

    def run(self) -> AnyStore:
        """Computes what the store lacks, and opens it.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the same call goes on.
            RepsimError: what is asked for cannot be had; what is finished stays.
        """
        if not self.repair and (complete := self._open_if_complete()) is not None:
            return complete
        with WriterLock(self.location) as lock:
            self._mend_if_needed(lock)
            # Planned again: the store may have grown before the lock was had.
            existing = self.read_existing()
            work = self.plan(existing)
            if existing is not None and self.is_complete(existing, work):
                return self._report_complete(existing)
            if size := self.check_room(work):
                log.info("%s", size)
            with remove_unstarted_store(self.location, lock):
                self.compute(existing, work, lock)
        store = self.read_existing()
        assert store is not None
        return store

    def _open_if_complete(self) -> AnyStore | None:
        """The store, if nothing remains to be done; no lock is taken for that."""
        try:
            self.check_sound()
            existing = self.read_existing()
            work = self.plan(existing)
        except StoreDamaged:
            # Its writer's machine may have stopped, which the lock will tell.
            if not is_locked(self.location):
                raise
            return None
        if existing is not None and self.is_complete(existing, work):
            return self._report_complete(existing)
        self.check_room(work)  # refused before anyone waits for a lock
        return None

    def _mend_if_needed(self, lock: WriterLock) -> None:
        # A folder whose writer's machine stopped may hold half of what was being written.
        after_crash = lock.after_crash and isinstance(self.location, LocalFolder)
        if not (self.repair or after_crash) or not exists(self.location):
            return
        if after_crash:
            log.info(
                "%s: its writer's machine stopped; reading what it had finished", self.location
            )
        self.mend()

    def _report_complete(self, store: AnyStore) -> AnyStore:
        log.info("%s: complete already", self.location)
        return store

    @abstractmethod
    def read_existing(self) -> AnyStore | None:
        """The store as it is; None where there is none.

        Raises:
            StoreError: something else is there.
        """

    @abstractmethod
    def plan(self, existing: AnyStore | None) -> RemainingWork[AnyLayout]:
        """What remains to be done; nothing is read but `existing`, and nothing changed.

        Raises:
            StoreError: the store is of something else, or would have to be extended unasked.
        """

    @abstractmethod
    def mend(self) -> None:
        """Reads the whole store; what is damaged or missing counts as not computed."""

    @abstractmethod
    def compute(
        self, existing: AnyStore | None, work: RemainingWork[AnyLayout], lock: WriterLock
    ) -> None:
        """Computes and writes what remains."""

    def check_sound(self) -> None:
        """Refuses a damaged store before a lock is taken, where reading all of it is cheap."""

    def is_complete(self, existing: AnyStore, work: RemainingWork[AnyLayout]) -> bool:
        """Whether nothing is left to do."""
        return work.is_none

    def check_room(self, work: RemainingWork[AnyLayout]) -> str:
        """How large the store will be, for the log; refuses one that does not fit."""
        return ""
