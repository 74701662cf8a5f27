"""A capture from end to end: joins trace to store, and gives a finished store names.

`capture` loads, tokenizes, traces and writes; `open` reads. A `Capture` speaks of plans, layers and samples where the
store speaks of nodes and tokens. Progress goes to a callable and remarks to the logger `repsim`, so that the command
line and a notebook show them in their own way.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim import store
from repsim.corpus import BUILTIN, Batch, Corpus, batches, corpus_digest, read_corpus, tokenize
from repsim.families import NamedPlan, resolve
from repsim.plans import Plan, PlanTrie, parse_plan
from repsim.schema import DEFAULT_MODEL, NODE, PLAN, SAMPLE, STATE, STORE_DTYPES, TOKEN, Identity, RepsimError

if TYPE_CHECKING:
    from torch import Tensor

    from repsim.models import Model
    from repsim.trace import NodeState

DEFAULT_BATCH_TOKENS = 2048
PER_TOKEN = ("token_id", "position", "sample")
VERSIONED = ("repsim-layers", "torch", "transformers", "tokenizers", "nnsight", "numpy", "zarr")

log = logging.getLogger("repsim")


@dataclass(frozen=True)
class Progress:
    """How far a capture is: `tokens` finished of `total`."""

    tokens: int
    total: int


class Capture:
    """Hidden states of one model over one corpus under some plans, read from disk as they are asked for."""

    def __init__(self, path: Path, dataset: xr.Dataset) -> None:
        self.path = path
        self.dataset = dataset

    @property
    def identity(self) -> dict[str, Any]:
        """Model, weights, tokenizer, corpus, dtypes and versions that the numbers depend on."""
        return dict(self.dataset.attrs["identity"])

    @property
    def layers(self) -> int:
        """The model's number of layers, T."""
        return int(self.dataset.attrs["layers"])

    @cached_property
    def plans(self) -> tuple[NamedPlan, ...]:
        """The plans in the store, with the names they were asked for by."""
        names, texts = self.dataset["plan_name"].values, self.dataset[PLAN].values
        return tuple(
            NamedPlan(str(name), parse_plan(str(text), self.layers)) for name, text in zip(names, texts, strict=True)
        )

    @property
    def tokens(self) -> xr.Dataset:
        """`token_id`, `position` and `sample` of every token in the store."""
        return self.dataset[list(PER_TOKEN)].reset_coords()

    @property
    def samples(self) -> xr.DataArray:
        """Keys of the samples, longest sample first."""
        return self.dataset["sample_key"]

    @property
    def complete(self) -> int:
        """Tokens finished at every node; fewer than there are where a capture was stopped."""
        return int(self.dataset["complete"].min())

    @property
    def chunk_tokens(self) -> int:
        """Length of the store's chunks along `token`: runs of whole chunks read fastest."""
        return int(self.dataset["hidden"].encoding["chunks"][1])

    def plan_name(self, plan: str | Plan) -> str:
        """The name a plan was captured by, e.g. `skip:start=3`."""
        return self.plans[self._row(plan)].name

    def hidden(self, plan: str | Plan = "baseline") -> xr.DataArray:
        """Hidden states of a plan, lazily.

        Args:
            plan: a plan, its text or its family; it must be in the store.
        Returns:
            Dims `state, token, unit`; the first state is the one that enters the stack, the last one comes before the
            final norm. Coordinates: `layer` (what each state is the output of), `token_id`, `position`, `sample`.
        Raises:
            RepsimError: the plan is not in the store.
        """
        nodes = self._nodes(plan)
        hidden = self.dataset["hidden"].isel({NODE: _as_slice(nodes), TOKEN: slice(self.complete)})
        layer = hidden["step_text"].values.astype(object)  # figures and NetCDF know these
        hidden = hidden.reset_coords(drop=True).rename({NODE: STATE})
        coords: dict[str, Any] = {name: (TOKEN, self.dataset[name].values[: self.complete]) for name in PER_TOKEN}
        coords |= {"layer": (STATE, layer), "plan": self.plans[self._row(plan)].plan.text}
        return hidden.assign_coords(coords)

    def logprob(self, plan: str | Plan = "baseline") -> xr.DataArray:
        """Log-probability in nats of each token's successor under a plan, `[token]`; NaN at a sample's last token.

        Raises:
            RepsimError: the plan is not in the store, or the capture was made without log-probabilities.
        """
        if "logprob" not in self.dataset:
            raise RepsimError(f"{self.path}: holds no log-probabilities; capture with --logprobs")
        logprob = self.dataset["logprob"].isel({NODE: int(self._nodes(plan)[-1]), TOKEN: slice(self.complete)})
        return logprob.drop_vars(["parent", "step_text", "complete"])

    def write_result(self, name: str, result: xr.Dataset) -> None:
        """Keeps an analysis's result with the store, under its name."""
        store.write_result(self.path, name, result)

    def _row(self, plan: str | Plan) -> int:
        found = resolve(plan, self.layers)
        if len(found) != 1:
            raise RepsimError(f"{plan}: stands for {len(found)} plans; name one")
        for row, named in enumerate(self.plans):
            if named.plan == found[0].plan:
                return row
        raise RepsimError(f"plan {str(plan)!r} is not in {self.path}; it holds: {_names(self.plans)}")

    def _nodes(self, plan: str | Plan) -> NDArray[np.int64]:
        path: NDArray[np.int64] = self.dataset["path"].values[self._row(plan)]
        return path[path >= 0]

    def _facts(self) -> dict[str, str]:
        sizes, identity = self.dataset.sizes, self.identity
        names = [named.name for named in self.plans]
        stored = self.dataset["hidden"]
        total = sizes[TOKEN]
        return {
            "model": f"{identity['model']} ({self.layers} layers, {sizes['unit']} units, {identity['compute_dtype']})",
            "corpus": f"{identity['corpus']} ({sizes[SAMPLE]:,} samples, {total:,} tokens)",
            "plans": ", ".join(names[:4]) + (f" ... {len(names)} in all" if len(names) > 4 else ""),
            "states": f"{sizes[NODE]:,} nodes in {stored.dtype}, {stored.nbytes / 1e9:.2f} GB",
            "complete": "yes" if self.complete == total else f"{self.complete:,} of {total:,} tokens",
        }

    def __repr__(self) -> str:
        rows = [f"  {name + ':':<10} {value}" for name, value in self._facts().items()]
        return "\n".join([f"<repsim.Capture {self.path}>", *rows])

    def _repr_html_(self) -> str:
        # pandas escapes the cells and draws the table as notebooks know it
        table = xr.Dataset(self._facts()).to_pandas().to_frame()
        return f"<b>repsim.Capture</b> {table.to_html(header=False)}{self.dataset._repr_html_()}"


def _names(plans: Sequence[NamedPlan]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(plans) - 8} more" if len(plans) > 8 else ""
    return ", ".join(named.name for named in plans[:8]) + more


def _as_slice(nodes: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Neighbouring nodes as a slice, which reads faster."""
    first, last = int(nodes[0]), int(nodes[-1])
    return slice(first, last + 1) if (np.diff(nodes) == 1).all() else nodes


def open(path: str | Path) -> Capture:
    """Opens a store; reads nothing but its coordinates until states are asked for.

    Raises:
        RepsimError: nothing is there, or it is not a capture of this schema.
    """
    path = Path(path)
    return Capture(path, store.open_dataset(path))


def capture(
    model: str | Path | Model = DEFAULT_MODEL,
    *,
    plan: str | Plan | Sequence[str | Plan] = "baseline",
    corpus: str | Path = BUILTIN,
    field: str = "text",
    limit: int | None = None,
    max_tokens: int | None = None,
    out: str | Path | None = None,
    dtype: str = "float16",
    logprobs: bool = False,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Callable[[Progress], None] | None = None,
    **load_options: Any,
) -> Capture:
    """Captures the hidden states of a model over a corpus under layer plans.

    Every prefix that plans share is computed and stored once. Where `out` is a finished store of the same capture that
    has the plans asked for, it is opened as it is.

    Args:
        model: a name for `repsim.models.load`, or what that gave.
        plan: plans, families, sweeps or named sets.
        corpus: `builtin`, a .txt or .jsonl file, or `hf:name/config:split:field`.
        field: the text's field in a .jsonl file.
        limit: use the first so many texts.
        max_tokens: keep the first so many tokens of each sample; the model's context length by default.
        out: the store's path; by default under the cache, named after model, corpus and plan.
        dtype: dtype of the stored states, `float16` or `float32`.
        logprobs: also store the log-probability of each next token where a plan ends.
        batch_tokens: the most positions in one forward.
        progress: called after each batch.
        **load_options: for `repsim.models.load`: revision, dtype as `model_dtype`, device, device_map, ...
    Raises:
        RepsimError: something asked for cannot be had; nothing is left on disk.
    """
    if dtype not in STORE_DTYPES:
        raise RepsimError(f"dtype {dtype!r}: a store holds {' or '.join(STORE_DTYPES)}")
    if batch_tokens < 1:
        raise RepsimError(f"batch_tokens={batch_tokens}: at least 1")
    model = str(model) if isinstance(model, Path) else model
    texts = read_corpus(str(corpus), field=field, limit=limit)
    path = Path(out) if out is not None else _default_path(model, texts, plan)
    _check_target(path)
    loaded = _loaded(model, load_options)
    layout = _layout(loaded, texts, plan, max_tokens, dtype, logprobs)
    if path.exists():
        return _finished(path, layout)
    _write(path, loaded, layout, batch_tokens, progress)
    return open(path)


def _default_path(model: str | Model, corpus: Corpus, plan: Any) -> Path:
    from repsim.models import cache_folder

    name = model if isinstance(model, str) else model.name
    plans = [plan] if isinstance(plan, str | Plan) else plan
    parts = (Path(name).name if Path(name).exists() else name, corpus.name, "+".join(map(str, plans)))
    slug = "-".join(re.sub(r"[^\w.=+]+", "-", part).strip("-") for part in parts)
    return cache_folder() / "captures" / f"{slug[:120]}.zarr"


def _check_target(path: Path) -> None:
    """Refuses a place that cannot hold a store, before a model is loaded."""
    if path.exists():
        store.open_dataset(path)
        return
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise RepsimError(f"{path}: {ancestor} is no folder that can be written to; choose another --out")


def _loaded(model: str | Model, options: dict[str, Any]) -> Model:
    from repsim.models import load

    if not isinstance(model, str):
        if options:
            raise RepsimError(f"{', '.join(options)}: {model.name} is loaded already; give them to repsim.models.load")
        return model
    options = dict(options)
    if "model_dtype" in options:
        options["dtype"] = options.pop("model_dtype")
    return load(model, **options)


def _layout(model: Model, texts: Corpus, plan: Any, max_tokens: int | None, dtype: str, logprobs: bool) -> store.Layout:
    if logprobs and not model.predicts_next_token:
        raise RepsimError(f"--logprobs: {model.name} does not predict a next token")
    plans = resolve(plan, model.layers)
    if not plans:
        raise RepsimError("no plan: name at least one, e.g. baseline")
    longest = model.context_length if max_tokens is None else min(max_tokens, model.context_length)
    samples, cut = tokenize(texts, model.tokenizer, longest)
    for note in (*texts.notes, *cut):
        log.warning("corpus %s: %s", texts.name, note)
    identity = Identity(
        model=model.name,
        revision=model.revision,
        weights=model.weights_digest,
        tokenizer=model.tokenizer_digest,
        compute_dtype=model.dtype,
        corpus=texts.name,
        corpus_digest=corpus_digest(samples),
        device=model.device.type,
        versions={name: metadata.version(name) for name in VERSIONED},
    )
    trie = PlanTrie.build(named.plan for named in plans)
    return store.Layout(identity, model.layers, plans, trie, samples, model.units, dtype, logprobs)


def _finished(path: Path, layout: store.Layout) -> Capture:
    """The store at `path`, if it is what was asked for; otherwise what is different."""
    found = open(path)
    if difference := _difference(found, layout):
        raise RepsimError(f"{path}: holds another capture: {difference}; choose another --out or remove it")
    if found.complete < layout.tokens:
        progress = f"{found.complete:,} of {layout.tokens:,} tokens"
        raise RepsimError(f"{path}: a capture that stopped at {progress}; remove it and capture again")
    log.info("%s: complete already", path)
    return found


def _difference(found: Capture, layout: store.Layout) -> str | None:
    """In what a store is not what was asked for."""
    stored = found.dataset["hidden"].dtype
    if difference := layout.identity.difference(Identity(**found.identity)):
        return difference
    if stored != layout.dtype:
        return f"its states are {stored}"
    held = {named.plan for named in found.plans}
    if missing := [named for named in layout.plans if named.plan not in held]:
        return f"it has {_names(found.plans)}, not {_names(missing)}"
    if ("logprob" in found.dataset) != layout.logprobs:
        return f"it has {'no ' if layout.logprobs else ''}log-probabilities"
    return None


def _write(
    path: Path,
    model: Model,
    layout: store.Layout,
    batch_tokens: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    from repsim.trace import Tracer

    tracer = Tracer(model)
    writer = store.create(path, layout)
    log.info(
        "plans %s, nodes %s, samples %s, tokens %s: %.2f GB of states to %s",
        *(f"{n:,}" for n in (len(layout.plans), len(layout.trie), len(layout.samples), layout.tokens)),
        layout.bytes / 1e9,
        path,
    )
    done = 0
    try:
        for batch in batches(layout.samples, batch_tokens, model.tokenizer.pad_token_id or 0):
            tracer.run(layout.trie, batch, _into(writer, layout, batch), logprobs=layout.logprobs)
            writer.finish(batch.tokens)
            done += batch.tokens
            if progress is not None:
                progress(Progress(done, layout.tokens))
    except RepsimError:
        if not done:  # what is finished is worth keeping: readers see it
            writer.remove()
        raise


def _into(writer: store.Writer, layout: store.Layout, batch: Batch) -> Callable[[NodeState], None]:
    """Takes node states of one batch to the store, in its dtype."""
    import torch

    dtype = getattr(torch, layout.dtype)

    def consume(state: NodeState) -> None:
        stored = state.hidden.to(dtype)
        # Least and greatest value only: ten times faster than asking every one, and a NaN is both.
        if not torch.stack(torch.aminmax(state.hidden)).to(dtype).isfinite().all():
            raise RepsimError(_misfit(state, stored, layout, batch))
        logprob = None if state.logprob is None else state.logprob.cpu().numpy()
        writer.write(state.node, stored.cpu().numpy(), logprob)

    return consume


def _misfit(state: NodeState, stored: Tensor, layout: store.Layout, batch: Batch) -> str:
    """Where a value does not fit the store, and what to do."""
    token = int((~stored.isfinite()).any(-1).nonzero()[0, 0])
    row = int(np.flatnonzero(batch.mask.sum(1).cumsum() > token)[0])
    plan = next(i for i, nodes in enumerate(layout.trie.paths) if state.node in nodes)
    place = (
        f"plan {layout.plans[plan].name}, state {layout.trie.paths[plan].index(state.node)}, "
        f"sample {layout.samples[batch.first_sample + row].key}"
    )
    largest = state.hidden[token].abs().max().item()
    if np.isfinite(largest):
        return f"{place}: {largest:.0f} does not fit {layout.dtype}; use --dtype float32"
    computed = str(state.hidden.dtype).removeprefix("torch.")
    return f"{place}: not finite in {computed}; use another --model-dtype or another plan"
