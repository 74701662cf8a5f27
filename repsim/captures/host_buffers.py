"""Memory of the host that states pass through on their way to the disk: made once, used in turn.

Pinning memory takes a driver longer than copying a state into it, so no state gets memory of its
own. Knows devices and tensors; no store.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 64  # of each tensor in a buffer, in bytes


class HostBuffers:
    """A ring of buffers of one size.

    Invariant: a buffer is with one state at most, from `take` to `give_back`; there are never more
    than `most`.
    """

    def __init__(self, most: int, nbytes: int, *, pinned: bool) -> None:
        """Nothing is allocated before it is needed.

        Args:
            most: how many buffers there may be, at least one.
            nbytes: of each buffer.
            pinned: whether a GPU copies to them beside its computation.
        """
        self.most, self.nbytes, self._pinned = most, nbytes, pinned
        self._free: list[Tensor] = []
        self._made = 0
        self._changed = threading.Condition()

    @property
    def made(self) -> int:
        """How many buffers there are."""
        return self._made

    def take(self) -> Tensor:
        """A buffer, `[byte]`, uint8; waits until one is given back where all are in use."""
        with self._changed:
            while not self._free:
                if self._made < self.most:
                    # Made while a model runs, and used at any time.
                    with torch.inference_mode(False):
                        memory = torch.empty(
                            self.nbytes, dtype=torch.uint8, pin_memory=self._pinned
                        )
                    self._made += 1
                    return memory
                self._changed.wait()
            return self._free.pop()

    def give_back(self, buffer: Tensor) -> None:
        """Makes a buffer free for the next state."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()


def bytes_together(sizes: Sequence[int]) -> int:
    """Bytes of a buffer that holds tensors of these sizes in bytes.

    Example:
        >>> bytes_together([100, 8])
        136
    """
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes[:-1]) + sizes[-1]


def views_in(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Room for each tensor in a buffer, in its shape and dtype; nothing is copied."""
    views, start = [], 0
    for tensor in tensors:
        end = start + tensor.numel() * tensor.element_size()
        assert end <= len(buffer)
        views.append(buffer[start:end].view(tensor.dtype).view(tensor.shape))
        start = -(-end // ALIGNMENT) * ALIGNMENT
    return views


@dataclass(frozen=True)
class Arrival:
    """What tells when copies have arrived on the host.

    events: one per device they came from; none where they have arrived already.
    """

    events: tuple[torch.cuda.Event, ...]

    def wait(self) -> None:
        """Returns when everything has arrived."""
        for event in self.events:
            event.synchronize()


class HostCopies:
    """Copies tensors to the host; those of GPUs on streams of their own, beside the
    computation.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copy(self, values: Sequence[Tensor], to: Sequence[Tensor]) -> Arrival:
        """Starts copying each value to its place on the host.

        Args:
            values: wherever they are; they may be let go of at once.
            to: likewise shaped, of the same dtypes; pinned where copies are to go on beside.
        """
        used: dict[torch.device, torch.cuda.Stream] = {}
        for value, place in zip(values, to, strict=True):
            if value.device.type != "cuda":
                place.copy_(value)
                continue
            stream = used[value.device] = self._stream(value.device)
            # What computes the value comes first, and its memory is not used again before it is
            # copied.
            stream.wait_stream(torch.cuda.current_stream(value.device))
            with torch.cuda.stream(stream):
                place.copy_(value, non_blocking=True)
            value.record_stream(stream)
        events = []
        for stream in used.values():
            # A thread that waits for it sleeps, so that waiting takes no core away.
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(stream)
            events.append(event)
        return Arrival(tuple(events))

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]
