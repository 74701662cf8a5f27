"""Where analyses of states do their arithmetic: by numpy, or on a graphics card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.stats.per_sample import SampleStatistic

CPU = "cpu"


@dataclass
class Arithmetic:
    """Where statistics of stored states are computed.

    device: as torch names it; None: by numpy, on the CPU.
    made_on: where they were computed until now, for results to say.
    """

    device: str | None = None
    made_on: str = CPU

    def apply(
        self, statistic: SampleStatistic, runs: Iterable[list[NDArray[Any]]]
    ) -> Iterator[NDArray[np.float64]]:
        """A statistic of each sample on the device, `[value]`; meanwhile the next run is read.

        Args:
            runs: samples' states, `[state, token, unit]`, valid until the next but one run.
        """
        import torch

        from repsim.captures.path_statistics import apply_by_length

        device = torch.device(str(self.device))
        self.made_on = device.type
        if device.type == "cuda":
            self.made_on += f" ({torch.cuda.get_device_name(device)})"
        for samples in runs:
            states = [torch.from_numpy(sample).to(device) for sample in samples]
            if states:
                yield from apply_by_length(statistic, states).cpu().numpy()


_in_force: ContextVar[Arithmetic | None] = ContextVar("arithmetic", default=None)


def arithmetic_in_force() -> Arithmetic:
    """What holds here; numpy, unless `arithmetic_on` says otherwise."""
    return _in_force.get() or Arithmetic()


@contextmanager
def arithmetic_on(device: str) -> Iterator[Arithmetic]:
    """Computes statistics of stored states on a device for the length of a `with` block.

    Args:
        device: cpu, cuda, cuda:1, ...; auto takes a graphics card where there is one.
    Raises:
        ModelError: there is no such device.
    """
    arithmetic = Arithmetic(_find_device(device))
    token = _in_force.set(arithmetic)
    try:
        yield arithmetic
    finally:
        _in_force.reset(token)


def _find_device(device: str) -> str | None:
    # torch takes seconds to import, which an analysis on a CPU has no use for.
    if device == CPU or (device == "auto" and not _has_driver()):
        return None
    from repsim.models.loading import find_device

    found = find_device(device)
    return None if found.type == CPU else str(found)


def _has_driver() -> bool:
    """Whether the system has a driver of a graphics card that torch calls cuda."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
