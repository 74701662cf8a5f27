"""Counts of what a piece of code asks of torch and of Python, which do not vary as times do.

`CountingMode` sees every operation of torch inside a block, in the calling thread, on any device.
Which of them start a kernel, and which make the host wait for a device, is told from what they are,
so a CPU gives the same counts as a card would but for copies between host and device, which a CPU
has none of.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that only reserve memory, or see it in another shape without being marked as views.
WITHOUT_KERNEL = {
    "aten._unsafe_view",
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty",
}
# Operations whose result the host has to see before it can go on: a number, or how many there are.
AWAITED = {
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique_consecutive",
    "aten.unique_dim",
    "aten._unique",
    "aten._unique2",
}
COPIES = {"aten._to_copy", "aten.copy_"}
INDEXING = {"aten.index", "aten.index_put", "aten.index_put_"}


class CountingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations inside its block.

    launches: by operation, e.g. `aten.mm`: those that compute or move something.
    synchronisations: by operation, those among them that make the host wait for a device.

    Example:
        >>> import torch
        >>> with CountingMode() as counts:
        ...     size = torch.ones(2, 2).t().mm(torch.ones(2, 2)).sum().item()
        >>> dict(counts.launches), dict(counts.synchronisations)  # doctest: +NORMALIZE_WHITESPACE
        ({'aten.ones': 2, 'aten.mm': 1, 'aten.sum': 1, 'aten._local_scalar_dense': 1},
         {'aten._local_scalar_dense': 1})
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[str] = Counter()
        self.synchronisations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Inference mode hands on operations that are made of others (`aten.linear`); what they are
        # made of comes here by itself.
        if func is not torch.ops.prim.device.default:
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = func(*args, **kwargs)
        name = str(func.overloadpacket)
        if not func.is_view and name not in WITHOUT_KERNEL and name.startswith("aten."):
            self.launches[name] += 1
            if name in AWAITED or _waits(name, args, kwargs, output):
                self.synchronisations[name] += 1
        return output


def _waits(name: str, args: Any, kwargs: Any, output: Any) -> bool:
    """Whether an operation waits because of what it is given: copies, and indices by a mask."""
    if name in COPIES:
        other = args[1] if name == "aten.copy_" else output
        if kwargs.get("non_blocking") or (name == "aten.copy_" and len(args) > 2 and args[2]):
            return False
        return (args[0].device.type == "cpu") != (other.device.type == "cpu")
    if name in INDEXING:
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
    return False


def count_python_calls(run: Callable[[], object]) -> Counter[str]:
    """How often each function of Python's is called while something runs: its name -> calls.

    Functions that are not written in Python are left out, and so are other threads.
    """
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            calls[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return calls
