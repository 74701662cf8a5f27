"""A capture that is on disk: gives its states names.

A `Capture` speaks of plans, layers and samples where the store speaks of nodes, tokens and blocks,
and shows what is finished and nothing else. How one is made is `repsim.captures.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from joblib import cpu_count
from numpy.typing import NDArray
from rich import filesize
from threadpoolctl import threadpool_limits

from repsim.captures.arithmetic import arithmetic_in_force
from repsim.captures.lazy import as_dtype
from repsim.captures.tables import tabulate_plans, tabulate_tokens
from repsim.errors import PlanError, StoreError, printable
from repsim.plans import Plan, names_of
from repsim.schema import NODE, PLAN, SAMPLE, STATE, TOKEN, Kind
from repsim.stats import results
from repsim.stats.per_sample import SampleStatistic
from repsim.storage.finished_blocks import block_starts, plan_ends
from repsim.storage.group import StoreGroup
from repsim.storage.metadata import SCHEMA_ATTRIBUTE
from repsim.storage.place_names import location_of
from repsim.storage.prefetch import SamplePrefetcher, read_statistic
from repsim.storage.reader import StoreReader

PER_TOKEN = ("token_id", "position", "sample")


class Capture(StoreReader):
    """Hidden states of one model over one corpus under some plans, read from disk as they are asked
    for.
    """

    kind = Kind.CAPTURE
    maker = "repsim capture"

    @property
    def over(self) -> str:
        """The corpus."""
        return str(self.identity["corpus"])

    @property
    def remark(self) -> str:
        """What a reader of the numbers has to know: what is not finished; empty where all is."""
        if not self.missing:
            return ""
        total = self.dataset.sizes[TOKEN]
        return f"{self.complete:,} of {total:,} tokens are finished under every plan"

    @property
    def tokens(self) -> xr.Dataset:
        """`token_id`, `position` and `sample` of every token in the store; see `token_texts` for
        their texts.
        """
        return self.dataset[list(PER_TOKEN)].reset_coords()

    def token_texts(self, tokenizer: Any = None) -> xr.DataArray:
        """The text of every token in the store, `[token]`; empty for a sample's mean, which is no
        token's.

        A store keeps no tokenizer, and loading one takes seconds, so this is a method.

        Args:
            tokenizer: the model's, or the name or folder of the model to load it with; by default
                the embedded model that the capture is of.
        Raises:
            ModelError: the capture is of a model that is not embedded, or this is another
                tokenizer than its tokens are from.
        Example::

            capture.tokens.assign(token_text=capture.token_texts())
        """
        from repsim.models.token_texts import decode_tokens, find_tokenizer

        of_model = find_tokenizer(tokenizer, self.identity)
        texts = decode_tokens(of_model, self.dataset["token_id"].values)
        return xr.DataArray(texts, dims=TOKEN, name="token_text")

    @property
    def samples(self) -> xr.DataArray:
        """Keys of the samples, longest sample first."""
        return self.dataset["sample_key"]

    @property
    def complete(self) -> int:
        """Kept tokens finished under every plan; all of them unless a capture was stopped."""
        return int(self._token_starts[self._finished_blocks(self._wanted)])

    @property
    def keeps_states(self) -> bool:
        """Whether the states are stored, or only statistics of them."""
        return bool(self.dataset.attrs["keep"] == "all")

    @property
    def keeps_logprobs(self) -> bool:
        """Whether log-probabilities are stored."""
        return "logprob" in self.dataset

    @property
    def missing(self) -> int:
        """How many blocks of how many nodes are not finished, counted one by one."""
        return int((~self.dataset["done"].values[self._wanted]).sum())

    @property
    def chunk_tokens(self) -> int:
        """Length of the store's chunks along `token`: runs of whole chunks read fastest."""
        return int(self.dataset["hidden"].encoding["chunks"][1])

    def plan_name(self, plan: str | Plan) -> str:
        """The name a plan was captured by, e.g. `skip:start=3`."""
        return self.plans[self._row(plan)].name

    def plan_text(self, plan: str | Plan) -> str:
        """A plan's canonical text, e.g. `0-3, 26-29`."""
        return self.plans[self._row(plan)].plan.text

    def steps(self, plan: str | Plan) -> list[str]:
        """What each of a plan's states is the output of, the root (`embed`) first."""
        return [str(text) for text in self.dataset["step_text"].values[self._nodes(plan)]]

    def hidden(
        self, plan: str | Plan = "baseline", dtype: str | np.dtype[Any] | type | None = None
    ) -> xr.DataArray:
        """Hidden states of a plan, lazily.

        `isel(state=...)` counts states, of which the first is the one that enters the stack;
        `sel(layer="10")` takes the state after layer 10, and `sel(layer="embed")` the first. Two
        plans' states are subtracted layer by layer, those that both have.

        Args:
            plan: a plan, its text, its family or the name that it was given; it must be in the
                store.
            dtype: what values are given as, e.g. `float32`, cast as they are read; by default the
                store's.
        Returns:
            Dims `state, token, unit`; the last state comes before the final norm. Coordinates:
            `layer` (what each state is the output of, indexed), `token_id`, `position`, `sample`,
            and the `plan` with its `plan_text`.
        Raises:
            RepsimError: the plan is not in the store, or the states were not kept.
        """
        self._require_states()
        nodes = self._nodes(plan)
        tokens = int(self._token_starts[self._finished_blocks(nodes)])
        hidden = self.dataset["hidden"].isel({NODE: _as_slice(nodes), TOKEN: slice(tokens)})
        hidden = hidden.reset_coords(drop=True).rename({NODE: STATE})
        if dtype is not None:
            hidden = hidden.copy(data=as_dtype(hidden.variable, np.dtype(dtype)))
        coords: dict[str, Any] = {
            name: (TOKEN, self.dataset[name].values[:tokens]) for name in PER_TOKEN
        }
        coords |= results.layer_coordinate(self.steps(plan))
        coords |= {PLAN: self.plan_name(plan), results.PLAN_TEXT: self.plan_text(plan)}
        return results.index_layers(hidden.assign_coords(coords))

    def logprob(self, plan: str | Plan = "baseline") -> xr.DataArray:
        """Log-probability in nats of each token's successor under a plan, `[token]`; NaN at a
        sample's last token.

        Raises:
            RepsimError: the plan is not in the store, or the capture was made without
                log-probabilities.
        """
        if not self.keeps_logprobs:
            raise StoreError(f"{self.path}: holds no log-probabilities; capture with --logprobs")
        end = self._nodes(plan)[-1:]
        tokens = int(self._token_starts[self._finished_blocks(end)])
        return (
            self.dataset["logprob"]
            .isel({NODE: int(end[0]), TOKEN: slice(tokens)})
            .drop_vars(["parent", "step_text"])
        )

    def to_frame(
        self, *, plan: str | Plan | Sequence[str | Plan] = (), tokenizer: Any = None
    ) -> pd.DataFrame:
        """One row per token, without the states; see `hidden` for these and `table` for plans.

        Columns: `sample` (its number, the longest first), `sample_key`, `position` (in the sample;
        -1 for a sample's mean), `token_id`, with a tokenizer `token_text`, and where
        log-probabilities were kept `logprob NAME` for each plan: of the token's successor, in nats;
        NaN where there is none or it is not finished.

        Args:
            plan: whose log-probabilities; by default those of every plan.
            tokenizer: for `token_text`; see `token_texts`.
        Raises:
            PlanError: the store holds no such plan.
            ModelError: it is another tokenizer than the tokens are from.
        Example::

            frame = repsim.open("capture.zarr").to_frame(plan="baseline")
            frame.groupby("sample_key")["logprob baseline"].mean()
        """
        plans = [self.plans[row] for row in self.find_rows(plan)]
        return tabulate_tokens(self, plans, tokenizer)

    def table(
        self,
        *,
        plan: str | Plan | Sequence[str | Plan] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """One row per plan, over the samples that are finished under every plan of the store.

        Columns: `plan_name`, `states`, `samples`, `tokens`; where log-probabilities were kept
        `logprob` (mean over tokens that have a successor, in nats) and `logprob_standard_error`,
        `perplexity` (e to minus that mean), and `difference` (of `logprob`, from the baseline's)
        with `difference_standard_error`, `difference_low` and `difference_high` (95 % interval),
        `p_value` (two-sided) and `p_holm` (adjusted for all plans of the store); then `plan`, the
        canonical text. Errors and intervals come from a bootstrap over samples, the same draws for
        all plans.

        Args:
            plan: of these plans alone; by default of all.
            resamples: draws of the bootstrap.
            seed: of the draws.
        Raises:
            PlanError: the store holds no such plan.
        """
        return tabulate_plans(self, self.find_rows(plan), resamples=resamples, seed=seed)

    def lengths(self, *plans: str | Plan) -> NDArray[np.int64]:
        """Kept tokens of each sample that is finished under all these plans, `[sample]`."""
        paths = [self._nodes(plan) for plan in plans]
        nodes = np.concatenate(paths if self.keeps_states else [path[-1:] for path in paths])
        return self._kept_tokens[: int(self._sample_starts[self._finished_blocks(nodes)])]

    def each_sample(self, *plans: str | Plan) -> Iterator[NDArray[Any]]:
        """States of each finished sample, `[state, token, unit]`: those of the first plan, of the
        second, and so on.

        An array is valid until the next but one is asked for.

        Raises:
            RepsimError: a plan is not in the store, or the states were not kept.
        """
        for samples in self._runs_of_samples(plans):
            yield from samples

    def per_sample(
        self, plan: str | Plan | Sequence[str | Plan], statistic: SampleStatistic
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """A statistic of each finished sample under a plan: how many kept tokens it has, and its
        values.

        From the states if they were kept, several samples at a time while the next are read;
        otherwise as they were taken while capturing. The values are the same. With several plans, a
        sample's states are those of the first, then those of the second, and so on; that takes
        stored states.

        Raises:
            RepsimError: the plan is not in the store, or neither states nor this statistic are.
        """
        plans = [plan] if isinstance(plan, str | Plan) else list(plan)
        lengths = self.lengths(*plans)
        if self.keeps_states:
            runs = self._runs_of_samples(plans)
            arithmetic = arithmetic_in_force()
            if arithmetic.device is not None and statistic.runs_anywhere:
                yield from zip(lengths.tolist(), arithmetic.apply(statistic, runs), strict=True)
                return
            at_hand = 2 * self.chunk_tokens * len(lengths) // max(1, int(lengths.sum()))
            taken = _in_threads(statistic.kernel, runs, max(1, at_hand))
            yield from zip(lengths.tolist(), taken, strict=True)
            return
        if statistic.name not in self.dataset.attrs["statistics"] or len(plans) > 1:
            kept = ", ".join(self.dataset.attrs["statistics"])
            raise StoreError(
                f"{self.path}: holds {kept}, not {statistic.name}; capture with --keep all"
            )
        width = statistic.width(len(self._nodes(plans[0])), self.dataset.attrs["units"])
        for first in range(0, len(lengths), 256):
            run = slice(first, min(first + 256, len(lengths)))
            values = read_statistic(self.group, statistic.name, self._row(plans[0]), run)
            yield from zip(lengths[run].tolist(), values[:, :width], strict=True)

    def _runs_of_samples(self, plans: Sequence[str | Plan]) -> Iterator[list[NDArray[Any]]]:
        """States of the samples that end in each run of tokens; valid until the next but one is
        asked for.
        """
        self._require_states()
        nodes, order = np.unique(
            np.concatenate([self._nodes(plan) for plan in plans]), return_inverse=True
        )
        lengths = self.lengths(*plans)
        if not len(lengths):
            return
        for samples in SamplePrefetcher(self.group, nodes, np.cumsum(lengths)):
            yield samples if len(plans) == 1 else [states[order] for states in samples]

    @property
    def info(self) -> dict[str, str]:
        """Everything that identifies the capture and says how far it is, for the eye."""
        identity, sizes = self.identity, self.dataset.sizes
        versions = identity.pop("versions")
        kept = (
            "states"
            if self.keeps_states
            else f"statistics ({', '.join(self.dataset.attrs['statistics'])})"
        )
        wanted = len(self._wanted) * sizes["block"]
        compression = self.dataset.attrs["compression"]
        return {
            **self._facts(),
            "kept": f"{kept} of {identity['tokens']} tokens, compression {compression}",
            "batches": str(self.dataset.attrs.get("batches", "not tried")),
            "blocks": f"{wanted - self.missing:,} of {wanted:,} finished (node by run of samples)",
            "on disk": filesize.decimal(sum(self.place.sizes().values())),
            "revision": str(identity["revision"]),
            "stack": self.stack,
            **self.loading,
            **{
                name.replace("_", " "): identity[name]
                for name in ("weights", "config", "tokenizer", "corpus_digest")
            },
            "plan digests": " ".join(
                str(digest)[:8] for digest in self.dataset["plan_digest"].values[:8]
            )
            + (" ..." if sizes[PLAN] > 8 else ""),
            "device": identity["device"],
            "replay": self.replay,
            **({"caution": "; ".join(self.cautions)} if self.cautions else {}),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "schema": str(self.dataset.attrs[SCHEMA_ATTRIBUTE]),
            "made by": "; then ".join(self.commands),
        }

    def _require_states(self) -> None:
        if not self.keeps_states:
            kept = ", ".join(self.dataset.attrs["statistics"])
            raise StoreError(
                f"{self.path}: holds no states, only statistics ({kept}); capture with --keep all"
            )

    @cached_property
    def _token_starts(self) -> NDArray[np.int64]:
        return block_starts(self.dataset)[0]

    @cached_property
    def _sample_starts(self) -> NDArray[np.int64]:
        return block_starts(self.dataset)[1]

    @property
    def _kept_tokens(self) -> NDArray[np.int64]:
        return np.bincount(self.dataset["sample"].values, minlength=self.dataset.sizes[SAMPLE])

    @property
    def _wanted(self) -> NDArray[np.int64]:
        ends = plan_ends(self.dataset)
        return np.arange(self.dataset.sizes[NODE]) if self.keeps_states else ends

    def _finished_blocks(self, nodes: NDArray[np.int64]) -> int:
        """How many blocks from the first on are finished at all of these nodes."""
        done = self.dataset["done"].values[nodes].all(0)
        return int(np.logical_and.accumulate(done).sum())

    def _row(self, plan: str | Plan) -> int:
        plans = self.find_plans(plan)
        if len(plans) != 1:
            raise PlanError(f"{plan}: stands for {len(plans)} plans; name one")
        for row, named in enumerate(self.plans):
            if named.plan == plans[0].plan:
                return row
        raise PlanError(
            f"plan {str(plan)!r} is not in {self.path}; it holds: {names_of(self.plans)}"
        )

    def _nodes(self, plan: str | Plan) -> NDArray[np.int64]:
        path: NDArray[np.int64] = self.dataset["path"].values[self._row(plan)]
        return path[path >= 0]

    def _facts(self) -> dict[str, str]:
        sizes, identity = self.dataset.sizes, self.identity
        names = [named.name for named in self.plans]
        computed, total = int(self.dataset["length"].sum()), sizes[TOKEN]
        kept = "" if total == computed else f", {total:,} kept"
        if self.keeps_states:
            stored = self.dataset["hidden"]
            states = f"{sizes[NODE]:,} nodes in {stored.dtype}, {filesize.decimal(stored.nbytes)}"
        else:
            names_kept = ", ".join(self.dataset.attrs["statistics"])
            states = f"{sizes[NODE]:,} nodes, not kept; statistics: {names_kept}"
        units = self.dataset.attrs["units"]
        return {
            "model": f"{identity['model']} ({self.layers} layers, {units} units, "
            f"{identity['compute_dtype']})",
            "corpus": f"{identity['corpus']} ({sizes[SAMPLE]:,} samples, "
            f"{computed:,} tokens{kept})",
            "plans": ", ".join(names[:4]) + (f" ... {len(names)} in all" if len(names) > 4 else ""),
            "states": states,
            "complete": "yes"
            if not self.missing
            else f"{self.complete:,} of {total:,} tokens under every plan",
        }

    def __repr__(self) -> str:
        rows = [f"  {name + ':':<10} {printable(value)}" for name, value in self._facts().items()]
        return "\n".join([f"<repsim.Capture {printable(self.path)}>", *rows])


def _in_threads(
    kernel: Callable[[NDArray[Any]], NDArray[np.float64]],
    runs: Iterator[list[NDArray[Any]]],
    at_hand: int,
) -> Iterator[NDArray[np.float64]]:
    """A kernel of every array, in order; while the values of one run are handed out, those of the
    next are computed.

    As many threads as there are arrays at hand, each with its share of the cores for its products:
    products alone would leave cores idle in between.
    """
    workers = min(cpu_count(), at_hand)
    with (
        _blas_threads(cpu_count() // workers),
        ThreadPoolExecutor(workers, "repsim-kernel") as threads,
    ):
        before: list[Future[NDArray[np.float64]]] = []
        for arrays in runs:
            under_way = [threads.submit(kernel, array) for array in arrays]
            for future in before:
                yield future.result()
            before = under_way
        for future in before:
            yield future.result()


_limits: list[threadpool_limits] = []
_users = 0
_counting = Lock()


@contextmanager
def _blas_threads(number: int) -> Iterator[None]:
    """Products on so many threads; the limit is the process', so the first to come sets it and the
    last lifts it.
    """
    global _users
    with _counting:
        _users += 1
        if _users == 1:
            _limits.append(threadpool_limits(number, "blas"))
    try:
        yield
    finally:
        with _counting:
            _users -= 1
            if not _users:
                _limits.pop().restore_original_limits()


def _as_slice(nodes: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Neighbouring nodes as a slice, which reads faster."""
    first, last = int(nodes[0]), int(nodes[-1])
    return slice(first, last + 1) if (np.diff(nodes) == 1).all() else nodes


def open_capture(path: str | Path) -> Capture:
    """Opens a capture; see `repsim.open`.

    Raises:
        RepsimError: nothing is there, or it is not a capture of this schema.
    """
    place = location_of(path)
    group = StoreGroup.open(place)
    if group.holds_scores:
        raise StoreError(
            f"{place}: holds scores, not a capture; make a capture with repsim capture"
        )
    return Capture(group, group.dataset())
