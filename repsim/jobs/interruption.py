"""What every long run needs, whatever it computes: a model, a place to write to, signals that lose
nothing.

Captures (`repsim.captures.run`) and evaluations (`repsim.evaluation.run`) are built on it.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from repsim.errors import Interrupted, ModelError, RepsimError, StoreError
from repsim.schema import Identity
from repsim.storage import state_store
from repsim.storage.location import LocalFolder, Location
from repsim.storage.lock import WriterLock

if TYPE_CHECKING:
    from repsim.models import Model

DEFAULT_BATCH_TOKENS = 2048


class Costs(TypedDict):
    """What a forward and padding cost; see `repsim.data.batching.batches`."""

    overhead: float
    waste: float


# One more forward costs about 15 ms of Python and kernels: some 16 positions of a small
# model on a CPU; a GPU does hundreds meanwhile, and padding costs it little.
CPU_COSTS: Costs = {"overhead": 16.0, "waste": 0.02}
GPU_COSTS: Costs = {"overhead": 256.0, "waste": 0.25}
VERSIONED = ("repsim-layers", "torch", "transformers", "tokenizers", "nnsight", "numpy", "zarr")

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class Progress:
    """How far a run is: `tokens` of the `total` that it computes, those under way counted in part."""

    tokens: int
    total: int


def check_target(place: Location) -> None:
    """Refuses a place that cannot hold a store, before a model is loaded."""
    state_store.exists(place)
    if not isinstance(place, LocalFolder):
        return
    ancestor = next(
        path for path in (place.path.absolute(), *place.path.absolute().parents) if path.exists()
    )
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise StoreError(
            f"{place}: {ancestor} is no folder that can be written to; choose another --out"
        )


def name_or_model(model: Any) -> str | Model:
    """A model as a run takes it: a name, or what `repsim.models.load` gave.

    Raises:
        RepsimError: it is something else, such as a model of transformers.
    """
    if isinstance(model, str | Path):
        return str(model)
    from repsim.models import Model

    if isinstance(model, Model):
        return model
    raise ModelError(
        f"model: {type(model).__name__} is neither a name nor what repsim.models.load gives; a model in memory needs "
        "its tokenizer: save both to a folder (save_pretrained) and hand over the folder or repsim.models.load(folder)"
    )


def load_or_reuse(model: str | Model, options: dict[str, Any]) -> Model:
    """A model by its name and options for `repsim.models.load`; one that is loaded already as it
    is.

    Raises:
        RepsimError: it cannot be loaded, or is loaded and given options.
    """
    from repsim.models import load

    if not isinstance(model, str):
        if options:
            raise ModelError(
                f"{', '.join(options)}: {model.name} is loaded already; give them to repsim.models.load"
            )
        return model
    options = dict(options)
    if "model_dtype" in options:
        options["dtype"] = options.pop("model_dtype")
    return load(model, **options)


@contextmanager
def remove_unstarted_store(place: Location, lock: WriterLock) -> Iterator[None]:
    """Removes a store that was begun here and cannot be made at all."""
    new = not state_store.exists(place)
    try:
        yield
    except Interrupted:
        raise
    except RepsimError:
        # What went wrong first is what the user reads, also where the place is broken.
        with suppress(Exception):
            worthless = (
                not state_store.exists(place) or not state_store.open_dataset(place)["done"].any()
            )
            if new and lock.held and worthless:
                place.remove()
        raise


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
            f"{doing}: out of memory on {model.device}; what is finished is kept: go on with {advice}"
        ) from problem


def costs(model: Model) -> Costs:
    """What a forward and padding cost on the model's device; see `repsim.data.batching.batches`."""
    return CPU_COSTS if model.device.type == "cpu" else GPU_COSTS


def identity(model: Model, corpus: str, digest: str, tokens: str, *packages: str) -> Identity:
    """What numbers of this model over this corpus depend on; with the versions of further packages."""
    return Identity(
        model=model.name,
        revision=model.revision,
        weights=model.weights_digest,
        config=model.config_digest,
        tokenizer=model.tokenizer_digest,
        compute_dtype=model.dtype,
        corpus=corpus,
        corpus_digest=digest,
        tokens=tokens,
        device=model.device.type,
        versions={name: metadata.version(name) for name in (*VERSIONED, *packages)},
        stack=model.stack.path if model.stack.is_named else None,
    )


def default_path(
    folder: str, model: str | Model, stack: str | None, parts: Sequence[object]
) -> Path:
    """A store's place under the cache, named after the model, its stack if that was named, and what
    else it is of.
    """
    from repsim.models import cache_folder

    if not isinstance(model, str):
        name, stack = model.name, model.stack.path if model.stack.is_named else None
    else:
        name = model
    named = (
        Path(name).name if Path(name).exists() else name,
        *filter(None, [stack]),
        *map(str, parts),
    )
    slug = "-".join(re.sub(r"[^\w.=+]+", "-", part).strip("-") for part in named)
    return cache_folder() / folder / f"{slug[:120]}.zarr"


def same_request(one: Any, other: Any) -> bool:
    """Whether two requests ask for the same, however it is computed."""
    return {**one, "batch_tokens": None} == {**other, "batch_tokens": None}


@contextmanager
def defer_interrupts() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, noted in the list instead of cutting work short; a second one does cut it
    short.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in wanted}

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        log.warning(
            "%s: finishing the states under way; once more to stop at once",
            signal.Signals(number).name,
        )
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in wanted:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
