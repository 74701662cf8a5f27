"""lm-eval's own handling of models: how it cuts prompts into tokens, and how it lets a model write.

A model is answered for elsewhere (`repsim.evaluation.run`), so log-likelihoods are not computed
here: only what would go in and what would be scored is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from repsim.data.packing import Window
from repsim.errors import DataError, ModelError, brief
from repsim.models import Model
from repsim.models.module_state import ModuleState

# Said at each call, as a model's own settings for generation may say otherwise.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
}


class Unfit(ModelError):
    """A task asks for more than the model can read; other tasks may not."""


class UnfitData(DataError):
    """An example cannot be asked; the others may."""


class LmEvalModel(HFLM):  # type: ignore[misc]
    """lm-eval's view of a loaded model.

    Args:
        model: a decoder.
    """

    def __init__(self, model: Model) -> None:
        self._name = model.name
        try:
            super().__init__(pretrained=model.module, tokenizer=model.tokenizer, backend="causal")
        except Exception as problem:  # lm-eval looks at a model's settings in its own way
            raise ModelError(
                f"{model.name}: lm-eval does not take it ({brief(problem)})"
            ) from problem
        self._seen: list[Window] = []
        self._cache: Callable[[], Any] | None = None
        self._finite: list[bool] = []

    def windows(self, instance: Any) -> tuple[Window, ...]:
        """What lm-eval would run the model on for a request that asks for a log-likelihood."""
        self._seen = []
        getattr(self, instance.request_type)([instance], disable_tqdm=True)
        return tuple(self._seen)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        for _text, context, continuation in requests:
            if not context or not continuation:
                raise UnfitData(
                    "a request without a token before or in what is to be scored; mend the data"
                )
            if len(continuation) > self.max_length:
                raise Unfit(
                    f"{len(continuation):,} tokens are to be scored together, and {self._name} reads "
                    f"{self.max_length:,}; leave the task out, or take a model with a longer context"
                )
            # Too long a text keeps its end; the last token is only predicted, never read.
            inputs = (context + continuation)[-(self.max_length + 1) :][:-1]
            self._seen.append(Window(np.array(inputs, np.int32), np.array(continuation, np.int32)))
        return [(0.0, False)] * len(requests)

    def check_writing(self, settings: dict[str, Any]) -> None:
        """Refuses to let a text be written that nothing would end, or that leaves no room for what
        it goes on from.

        Raises:
            RepsimError: the tokenizer has no token that ends a text.
            Unfit: as many tokens are to be written as the model reads, or more.
        """
        self._required(self.eot_token_id)
        written = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
        if written >= self.max_length:
            raise Unfit(
                f"up to {written:,} tokens are to be written, and {self._name} reads {self.max_length:,}, prompt "
                "included; leave the task out, or take a model with a longer context"
            )

    @property
    def max_length(self) -> int:
        """lm-eval's own, and the model's where lm-eval takes a configuration's "no limit" (XLNet's
        -1) for one.
        """
        found = int(super().max_length)
        return found if found > 0 else self._DEFAULT_MAX_LENGTH

    @property
    def prefix_token_id(self) -> int:
        return self._required(super().prefix_token_id)

    @property
    def eot_token_id(self) -> int:
        return self._required(super().eot_token_id)

    def _required(self, token_id: int | None) -> int:
        if token_id is None:
            raise ModelError(
                f"{self._name}'s tokenizer names no token that begins or ends a text, and the task needs one; "
                "give it one (eos_token in tokenizer_config.json)"
            )
        return token_id

    def generate(
        self, instances: Sequence[Any], module: Any, cache: Callable[[], Any] | None, at_once: int
    ) -> list[str | None]:
        """What a model writes, in the requests' order; None where its logits became infinite or not
        a number.

        Args:
            instances: of one task.
            module: the model, of the same tokenizer and context length.
            cache: makes the cache of keys and values of a batch; the model's own by default.
            at_once: so many texts are written together.
        """
        self.batch_size_per_gpu = at_once
        # lm-eval's own order, in which it fills its batches
        order = sorted(
            range(len(instances)), key=lambda i: self._length_and_text(instances[i].args[0])
        )
        self._cache, self._finite, self._model = cache, [], module
        texts = self.generate_until([instances[i] for i in order], disable_tqdm=True)
        found: list[str | None] = [None] * len(instances)
        for i, text, finite in zip(order, texts, self._finite, strict=True):
            found[i] = text if finite else None
        return found

    def _length_and_text(self, prompt: str) -> tuple[int, str]:
        return -len(self.tok_encode(prompt)), prompt

    def _model_generate(
        self, context: Any, max_length: int, stop: list[str], **settings: Any
    ) -> Any:
        if self._cache is not None:
            settings["past_key_values"] = self._cache()
        finite = torch.ones(len(context), dtype=torch.bool, device=context.device)

        def look(_module: Any, _args: Any, output: Any) -> None:
            finite.logical_and_(output.logits[:, -1].isfinite().all(-1).to(finite.device))

        # A longer prompt must not change what is written after the next one.
        before = ModuleState(self.model)
        handle = self.model.register_forward_hook(look)
        try:
            return super()._model_generate(context, max_length, stop, **{**settings, **GREEDY})
        finally:
            handle.remove()
            before.restore()
            self._finite += finite.tolist()
