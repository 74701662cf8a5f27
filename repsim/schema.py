"""The words every other module shares: dimension names, the store's schema and the identity of a
capture.

A reader of a store, a writer of one and an analysis agree on these names and on nothing else. This
module imports neither torch nor zarr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 3
# Older ones that are read; their metadata have no digests, and they do not grow.
UNCHECKED_SCHEMAS = (2,)
DEFAULT_MODEL = "smollm2-135m"
ANALYSES = "repsim.analyses"  # entry-point group: any package may add an analysis

NODE = "node"
TOKEN = "token"
UNIT = "unit"
PLAN = "plan"
STATE = "state"
SAMPLE = "sample"
BLOCK = "block"
TASK = "task"
METRIC = "metric"
EXAMPLE = "example"
REQUEST = "request"
CHOICE = "choice"
STORE = "store"

NOT_FINITE = -2  # what `is_greedy` says of an answer that is no number; -1 is no answer yet
PROVEN_KINDS = ("plain", "padded", "trees", "logits")


class Kind(StrEnum):
    """What a store holds: the attribute `kind` of its root."""

    CAPTURE = "a capture"
    SCORES = "scores"


CAPTURE, SCORES = Kind.CAPTURE, Kind.SCORES

# What to call a field in which two captures differ, where its own name does not say it.
DIFFERS = {
    "weights": "other weights",
    "tokenizer": "another tokenizer",
    "config": "another configuration of the model",
    "tokens": "other tokens kept",
    "stack": "another stack",
    "attention": "another implementation of attention",
    "corpus_digest": "other texts, --limit or --max-tokens",
}
UNSAID = {"attention": "transformers' own choice"}  # what None stands for
# Fields that a store has only where they say something.
OPTIONAL = {"stack", "adapter", "attention"}
UNCOUNTED = {"versions", "device", "adapter"}


@dataclass(frozen=True)
class Identity:
    """What the numbers of a capture depend on. No paths, no user names, no secrets.

    model: hub id, embedded name, or the last part of a local path.
    revision: hub commit or branch, None for local weights.
    weights: sha256 of the loaded weights, as hexadecimal digits.
    config: sha256 of the model's configuration, likewise: attention scaling, positions and more
    that no weight shows.
    tokenizer: sha256 of the tokenizer's serialised form, likewise.
    compute_dtype: dtype the layers ran in, e.g. `float32`.
    corpus: short name of the corpus.
    corpus_digest: sha256 over sample keys and token ids, in the store's order.
    tokens: which of a sample's tokens are kept: `all`, `last`, `mean` or `every:N`.
    device: `cpu`, `cuda`, `mps`: the kind, not the machine.
    versions: package name to version.
    stack: path of the module list whose states these are, where it had to be named; None where it
        is found by itself, which is also how stores from before this entry are taken. Then a store
        has no such entry, as with the two that follow.
    adapter: the adapter that was merged into the weights or that the layers apply; the digest of
        the weights covers what it does.
    attention: how attention is computed, e.g. `eager`, where that is not transformers' own choice.
    """

    model: str
    revision: str | None
    weights: str
    config: str
    tokenizer: str
    compute_dtype: str
    corpus: str
    corpus_digest: str
    tokens: str
    device: str
    versions: Mapping[str, str] = field(default_factory=dict)
    stack: str | None = None
    adapter: str | None = None
    attention: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in OPTIONAL or value is not None
        }

    def difference(self, other: Identity) -> str | None:
        """The first field that lets the numbers of two captures differ, with both values, digests
        cut short; or None.

        Versions and the kind of device move numbers by floating-point noise only and do not count,
        nor does what an adapter is called.
        """
        ours, theirs = asdict(self), asdict(other)
        for name in ("model", "compute_dtype", *ours):  # a dtype changes the digest of the weights
            if name not in UNCOUNTED and ours[name] != theirs[name]:
                there, here = (
                    UNSAID.get(name, "None") if values[name] is None else _short(values[name])
                    for values in (theirs, ours)
                )
                return f"{DIFFERS.get(name, name)} ({there} there, {here} here)"
        return None


@dataclass(frozen=True)
class ReplayVerdict:
    """How far replayed layers were from the model's own forward, for all that was compared.

    error: largest distance of a layer's states, or of logits, from the model's own, as a share of
    their norm.
    kinds: what was compared, in this order: `plain`, `padded`, `trees` batches, `logits`.
    """

    error: float = 0.0
    kinds: tuple[str, ...] = ()

    def merged(self, other: ReplayVerdict) -> ReplayVerdict:
        """The verdict on what either was about."""
        kinds = tuple(kind for kind in PROVEN_KINDS if kind in (*self.kinds, *other.kinds))
        return ReplayVerdict(max(self.error, other.error), kinds)

    @property
    def text(self) -> str:
        """For `repsim info`: `proven to 3e-07 (plain, padded)`."""
        if not self.kinds:
            return "not proven"
        how_far = f"to {self.error:.0e}" if self.error else "bit for bit"
        return f"proven {how_far} ({', '.join(self.kinds)})"


def _short(value: object) -> str:
    """A digest by its first digits, anything else whole."""
    text = str(value)
    return text[:8] if len(text) == 64 else text
