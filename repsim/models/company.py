"""Whether a text's states are its own: do they depend on the texts beside it, does a token see what
follows?

Tried once per run, by numbers and never by a model's name. Texts of the run are computed each by
itself, and beside the longest one, padded. Models that do not mask padding give other states then,
and so do models whose rotary positions follow the longest text of a batch. Only the first layer of
each kind runs. What follows for batches is `repsim.data.batching.Company`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim.data.batching import Company, batches
from repsim.data.samples import Sample
from repsim.errors import ModelError, RepsimError
from repsim.models.model import Model
from repsim.models.module_state import ModuleState
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie

# How far two layouts of the same text may lie apart, as a share of a state's length: what rounding
# does in few layers.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
SHORT = 16  # tokens of a text that is short and yet has some to see
ONE_BATCH: dict[str, Any] = {"overhead": 1e9, "waste": 1.0}  # of what may share one
WRITTEN = 256  # tokens that a task lets a model write, unless it says otherwise
NUMBERS = ("layer_idx", "layer_id")  # what a layer's modules call its place in the stack


@dataclass(frozen=True)
class Trial:
    """What was found out about texts that run together.

    company: which texts may share a batch.
    error: the largest distance of a token's state in company from its state alone, as a share of
    its length.
    """

    company: Company
    error: float

    def __str__(self) -> str:
        because = {
            Company.ANY: f"tried: the same states to {self.error:.0e}",
            Company.EQUAL: f"padding or a longer text beside it changes a text's states, by {self.error:.2g}",
            Company.NONE: f"any other text beside it changes a text's states, by {self.error:.2g}",
        }
        return f"{self.company} ({because[self.company]})"


class Trials:
    """Tries one model on texts of a run.

    Args:
        model: the model.
        tracer: its tracer.
        texts: token ids of all texts of the run, `[token]` each; which lengths there are counts.
    Raises:
        RepsimError: by any of the trials: the model cannot be traced.
    """

    def __init__(self, model: Model, tracer: Tracer, texts: Sequence[NDArray[np.int32]]) -> None:
        self._model, self._tracer, self._pad_id = model, tracer, model.tokenizer.pad_token_id or 0
        self._trie = PlanTrie.build([Plan.from_steps(_kinds(model))])
        self._rounding = ROUNDING.get(model.module.dtype, 5e-2)
        # One of each length.
        self._texts = sorted({len(text): text for text in texts}.values(), key=len)
        begin = self._texts[-1][:SHORT]
        unlike = (text for text in texts if not np.array_equal(text[:SHORT], begin[: len(text)]))
        self._neighbour = next(unlike, begin)
        self._is_single = len(texts) == 1
        self._known = np.unique(np.concatenate(self._texts))

    @cached_property
    def company(self) -> Trial:
        """Which texts may run together."""
        if self._is_single:
            return Trial(Company.ANY, 0.0)
        padded = max((self._change(text, self._texts[-1]) for text in self._short()), default=0.0)
        if len(self._texts) > 1 and padded <= self._rounding:
            return Trial(Company.ANY, padded)
        length = min(SHORT, len(self._neighbour))
        beside = self._change(self._texts[-1][:length], self._neighbour[:length])
        if beside > self._rounding:
            return Trial(Company.NONE, beside)
        return Trial(Company.EQUAL, padded) if len(self._texts) > 1 else Trial(Company.ANY, beside)

    def check_foresight(self, asked: str) -> None:
        """Refuses to score next tokens where a token has seen them.

        Args:
            asked: what asks for next tokens.
        Raises:
            RepsimError: a token's state changes with the tokens after it.
        """
        text = self._texts[-1][:SHORT]
        changed = [text.copy() for _ in text]
        for place, row in enumerate(changed):
            row[place] = self._another(row[place])
        wanted = self._states([text])
        found = torch.split(self._states(changed, self.company.company), len(text))
        error = max(_distance(row[:place], wanted[:place]) for place, row in enumerate(found))
        if error > self._rounding:
            raise ModelError(
                f"{asked}: {self._model.name} lets a token see those after it (they change its state by {error:.2g}), "
                "so next tokens would be scored by what has seen them; take a model with causal attention"
            )

    def _short(self) -> list[NDArray[np.int32]]:
        """The shortest text of at least 2 tokens, of 16, and of 4 times as many each time; not the
        longest of all.

        Positions that are rotated otherwise beside a longer text show first in the second token and
        most in the last.
        """
        found: list[NDArray[np.int32]] = []
        floor = 2
        for text in self._texts[:-1]:
            if len(text) >= floor:
                found.append(text)
                floor = max(SHORT, 4 * len(text))
        return found or self._texts[:-1]

    def _change(self, text: NDArray[np.int32], neighbour: NDArray[np.int32]) -> float:
        """How far a text's states beside another one are from its states alone."""
        alone, together = self._states([text]), self._states([text, neighbour])
        return _distance(together[: len(text)], alone)

    def _states(self, texts: Sequence[NDArray[np.int32]], company: Company = Company.ANY) -> Tensor:
        """`[token, unit]`, behind the first layer of each kind."""
        made = batches(
            [Sample("", text) for text in texts], self._pad_id, **ONE_BATCH, company=company
        )
        found: list[Tensor] = []
        try:
            self._tracer.run(
                self._trie,
                made,
                lambda state: found.append(state.hidden.double()),
                nodes=self._trie.ends,
            )
        except (RepsimError, torch.OutOfMemoryError):
            raise
        except Exception as problem:  # models refuse what they cannot take in whatever way
            if "allocate memory" in str(problem):
                raise
            tokens, reason = (
                " and ".join(str(len(text)) for text in texts),
                " ".join(str(problem).split())[:200],
            )
            raise ModelError(
                f"{self._model.name}: its forward fails on texts of {tokens} tokens ({reason}); "
                "choose texts or --max-tokens that it takes"
            ) from problem
        return found[0]

    def _another(self, token: int) -> int:
        """Another token of the run's texts."""
        others = self._known[self._known != token]
        return int(others[len(others) // 2]) if len(others) else int(token == 0)


@torch.inference_mode()
def can_write_together(model: Model, prompts: Sequence[str]) -> bool:
    """Whether a text goes on beside a longer one, padded on the left, as it does alone.

    Tried on the shortest prompt and the longest one, which is as long as it gets while the model
    writes.
    """
    texts = sorted(
        (model.tokenizer(prompt)["input_ids"] for prompt in dict.fromkeys(prompts)), key=len
    )
    if len(texts) < 2:
        return True
    short, long = texts[0], texts[-1]
    width = min(len(long) + WRITTEN, max(model.context_length - 1, len(long)))
    row = (long * (1 + width // max(1, len(long))))[:width]
    padding = [model.tokenizer.pad_token_id or 0] * (width - len(short))
    alone = _next_logits(model, [short], [[1] * len(short)])
    together = _next_logits(
        model, [padding + short, row], [[0] * len(padding) + [1] * len(short), [1] * width]
    )
    return _distance(together[:1], alone) <= 3 * ROUNDING.get(model.module.dtype, 5e-2)


def _next_logits(model: Model, rows: list[list[int]], mask: list[list[int]]) -> Tensor:
    """Logits of what follows each row, as the model's own generation gives them, `[row,
    vocabulary]`.
    """
    state = ModuleState(model.module)
    inputs = {"input_ids": rows, "attention_mask": mask}
    greedy = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    output = model.module.generate(
        **{name: torch.tensor(value, device=model.device) for name, value in inputs.items()},
        max_new_tokens=1,
        pad_token_id=model.tokenizer.pad_token_id or 0,
        return_dict_in_generate=True,
        output_logits=True,
        **greedy,
    )
    state.restore()
    return output.logits[0].double()


def _distance(found: Tensor, wanted: Tensor) -> float:
    """The largest distance of a token's states, as a share of the wanted one's length; 0 for what
    is not finite.
    """
    if not len(wanted):
        return 0.0
    shares = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(
        torch.finfo(wanted.dtype).tiny
    )
    return float(torch.where(wanted.isfinite().all(-1), shares, 0).nan_to_num(torch.inf).max())


def _kinds(model: Model) -> list[int]:
    """The first layer of each kind: of other modules, other settings or another type by the
    configuration.
    """
    types = getattr(model.module.config.get_text_config(), "layer_types", None) or ()
    first: dict[Any, int] = {}
    for number, layer in enumerate(model.stack.layers):
        first.setdefault(
            (tuple(types[number : number + 1]), *map(_settings, layer.modules())), number
        )
    return list(first.values())


def _settings(module: nn.Module) -> tuple[Any, ...]:
    plain = (
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and name not in NUMBERS
    )
    return (type(module), *plain)
