"""Whether a text's states depend on other texts of its batch, or a token's on those that follow.

Tried once per run, by numbers and never by a model's name. Texts of the run are computed alone, and
padded together with the longest one. Models that do not mask padding give other states then, and so
do models whose rotary positions follow the longest text of a batch. Only the first layer of each
kind runs. What follows for batches is a `repsim.data.batching.BatchRule`.
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

from repsim.data.batching import BatchRule, batches
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
ONE_BATCH: dict[str, Any] = {"overhead": 1e9, "waste": 1.0}  # costs at which all texts share one
GENERATED = 256  # tokens that a task lets a model generate, unless it says otherwise
PLACE_NAMES = ("layer_idx", "layer_id")  # what a layer's modules call its place in the stack


@dataclass(frozen=True)
class BatchTrial:
    """What was found out about texts that run together.

    rule: which texts may share a batch.
    error: the largest distance of a token's state in a batch from its state alone, as a share of
        its length.
    """

    rule: BatchRule
    error: float

    def __str__(self) -> str:
        reason = {
            BatchRule.ANY: f"tried: the same states to {self.error:.0e}",
            BatchRule.EQUAL: "padding, or a longer text in its batch, changes a text's states, "
            f"by {self.error:.2g}",
            BatchRule.NONE: "any other text in its batch changes a text's states, "
            f"by {self.error:.2g}",
        }
        return f"{self.rule} ({reason[self.rule]})"


class BatchTrials:
    """Tries one model on texts of a run.

    Args:
        model: the model.
        tracer: its tracer.
        texts: token ids of all texts of the run, `[token]` each; which lengths there are counts.
    Raises:
        ModelError: by any of the trials: the model cannot be traced.
    """

    def __init__(self, model: Model, tracer: Tracer, texts: Sequence[NDArray[np.int32]]) -> None:
        self._model, self._tracer, self._pad_id = model, tracer, model.tokenizer.pad_token_id or 0
        self._trie = PlanTrie.build([Plan.from_steps(_first_layer_of_each_kind(model))])
        self._rounding = ROUNDING.get(model.module.dtype, 5e-2)
        # One text of each length, the shortest first.
        self._texts = sorted({len(text): text for text in texts}.values(), key=len)
        # A text that begins otherwise than the longest one, if there is one.
        begin = self._texts[-1][:SHORT]
        unlike = (text for text in texts if not np.array_equal(text[:SHORT], begin[: len(text)]))
        self._neighbour = next(unlike, begin)
        self._is_single = len(texts) == 1
        self._known_tokens = np.unique(np.concatenate(self._texts))

    @cached_property
    def result(self) -> BatchTrial:
        """Which texts may run together."""
        if self._is_single:
            return BatchTrial(BatchRule.ANY, 0.0)
        # Short texts in a batch with the longest one, padded.
        longest = self._texts[-1]
        padded = max((self._change(text, longest) for text in self._short_texts()), default=0.0)
        if len(self._texts) > 1 and padded <= self._rounding:
            return BatchTrial(BatchRule.ANY, padded)
        # Two texts of one length, without padding.
        length = min(SHORT, len(self._neighbour))
        unpadded = self._change(longest[:length], self._neighbour[:length])
        if unpadded > self._rounding:
            return BatchTrial(BatchRule.NONE, unpadded)
        if len(self._texts) > 1:
            return BatchTrial(BatchRule.EQUAL, padded)
        return BatchTrial(BatchRule.ANY, unpadded)

    def check_causality(self, purpose: str) -> None:
        """Refuses to score next tokens where a token has seen them.

        Args:
            purpose: what scores next tokens, e.g. `--logprobs`; the message begins with it.
        Raises:
            ModelError: a token's state changes with the tokens after it.
        """
        # One row for each token of a text: the text with this token exchanged.
        text = self._texts[-1][:SHORT]
        rows = [text.copy() for _ in text]
        for place, row in enumerate(rows):
            row[place] = self._other_token(row[place])
        # The tokens before the exchanged one must not notice.
        expected = self._states([text])
        states = torch.split(self._states(rows, self.result.rule), len(text))
        error = max(_distance(row[:place], expected[:place]) for place, row in enumerate(states))
        if error > self._rounding:
            raise ModelError(
                f"{purpose}: {self._model.name} lets a token see those after it (they change its "
                f"state by {error:.2g}), so next tokens would be scored by what has seen them; "
                "take a model with causal attention"
            )

    def _short_texts(self) -> list[NDArray[np.int32]]:
        """The shortest text of at least 2 tokens, of 16, and of 4 times as many each time.

        The longest of all is not among them. Positions that are rotated otherwise in a batch with a
        longer text show first in the second token and most in the last.
        """
        texts: list[NDArray[np.int32]] = []
        at_least = 2
        for text in self._texts[:-1]:
            if len(text) >= at_least:
                texts.append(text)
                at_least = max(SHORT, 4 * len(text))
        return texts or self._texts[:-1]

    def _change(self, text: NDArray[np.int32], neighbour: NDArray[np.int32]) -> float:
        """How far a text's states in a batch with another one are from its states alone."""
        alone, together = self._states([text]), self._states([text, neighbour])
        return _distance(together[: len(text)], alone)

    def _states(
        self, texts: Sequence[NDArray[np.int32]], batch_rule: BatchRule = BatchRule.ANY
    ) -> Tensor:
        """`[token, unit]`, behind the first layer of each kind."""
        samples = [Sample("", text) for text in texts]
        block = batches(samples, self._pad_id, **ONE_BATCH, batch_rule=batch_rule)
        states: list[Tensor] = []
        try:
            self._tracer.run(
                self._trie,
                block,
                lambda state: states.append(state.hidden.double()),
                nodes=self._trie.ends,
            )
        except (RepsimError, torch.OutOfMemoryError):
            raise
        except Exception as problem:  # models refuse what they cannot take in whatever way
            if "allocate memory" in str(problem):  # torch's words where a CPU has none left
                raise
            lengths = " and ".join(str(len(text)) for text in texts)
            reason = " ".join(str(problem).split())[:200]
            raise ModelError(
                f"{self._model.name}: its forward fails on texts of {lengths} tokens ({reason}); "
                "choose texts or --max-tokens that it takes"
            ) from problem
        return states[0]

    def _other_token(self, token: int) -> int:
        """Another token of the run's texts."""
        others = self._known_tokens[self._known_tokens != token]
        return int(others[len(others) // 2]) if len(others) else int(token == 0)


@torch.inference_mode()
def can_generate_together(model: Model, prompts: Sequence[str]) -> bool:
    """Whether a text goes on in a batch with a longer one, padded on the left, as it does alone.

    Tried on the shortest prompt and the longest one, which is as long as it gets while the model
    generates.

    Args:
        model: a model that generates text.
        prompts: of the run.
    """
    texts = sorted(
        (model.tokenizer(prompt)["input_ids"] for prompt in dict.fromkeys(prompts)), key=len
    )
    if len(texts) < 2:
        return True
    short, long = texts[0], texts[-1]
    # The longer prompt is repeated up to the length that generation may reach.
    width = min(len(long) + GENERATED, max(model.context_length - 1, len(long)))
    row = (long * (1 + width // max(1, len(long))))[:width]
    padding = [model.tokenizer.pad_token_id or 0] * (width - len(short))
    # The first generated token's logits, alone and together.
    alone = _next_logits(model, [short], [[1] * len(short)])
    together = _next_logits(
        model, [padding + short, row], [[0] * len(padding) + [1] * len(short), [1] * width]
    )
    return _distance(together[:1], alone) <= 3 * ROUNDING.get(model.module.dtype, 5e-2)


def _next_logits(model: Model, rows: list[list[int]], mask: list[list[int]]) -> Tensor:
    """Logits of what follows each row by the model's own generation, `[row, vocabulary]`."""
    state = ModuleState(model.module)
    output = model.module.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=1,
        pad_token_id=model.tokenizer.pad_token_id or 0,
        return_dict_in_generate=True,
        output_logits=True,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
    )
    state.restore()
    logits: Tensor = output.logits[0].double()
    return logits


def _distance(states: Tensor, expected: Tensor) -> float:
    """The largest distance of a token's states, as a share of the expected one's length.

    0 where the expected state is not finite.
    """
    if not len(expected):
        return 0.0
    smallest = torch.finfo(expected.dtype).tiny
    shares = (states - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(smallest)
    return float(torch.where(expected.isfinite().all(-1), shares, 0).nan_to_num(torch.inf).max())


def _first_layer_of_each_kind(model: Model) -> list[int]:
    """Layers differ in their modules, in these modules' settings or in the configuration's type."""
    types = getattr(model.module.config.get_text_config(), "layer_types", None) or ()
    first: dict[Any, int] = {}
    for number, layer in enumerate(model.stack.layers):
        kind = (tuple(types[number : number + 1]), *map(_settings, layer.modules()))
        first.setdefault(kind, number)
    return list(first.values())


def _settings(module: nn.Module) -> tuple[Any, ...]:
    plain = (
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and name not in PLACE_NAMES
    )
    return (type(module), *plain)
