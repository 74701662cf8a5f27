"""A loaded model as lm-eval's `HFLM`, for what lm-eval does with one: it cuts prompts into tokens,
and it lets the model write.

Log-likelihoods are not computed here (`repsim.evaluation.prefix_sharing` does that, for all plans
together): what lm-eval would run the model on is only recorded.
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
from repsim.evaluation.prompting import Prompting
from repsim.models import Model
from repsim.models.module_state import ModuleState

# Said at each call, as a model's own settings for generation may say otherwise.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
}


class TaskTooLong(ModelError):
    """A task asks for more tokens than the model can read; other tasks may not."""


class ExampleError(DataError):
    """An example cannot be asked; others of its task may."""


class LmEvalModel(HFLM):  # type: ignore[misc]
    """lm-eval's view of a loaded model.

    Args:
        model: a decoder.

    Raises:
        RepsimError: lm-eval does not take the model.
    """

    def __init__(self, model: Model) -> None:
        self._name = model.name
        try:
            super().__init__(pretrained=model.module, tokenizer=model.tokenizer, backend="causal")
        except Exception as problem:  # lm-eval looks at a model's settings in its own way
            raise ModelError(
                f"{model.name}: lm-eval does not take it ({brief(problem)})"
            ) from problem
        self._recorded: list[Window] = []
        self._make_cache: Callable[[], Any] | None = None
        self._is_finite: list[bool] = []

    def chat_template_of(self, prompting: Prompting) -> Callable[..., str] | None:
        """What puts the turns of a chat into one text; None where questions are no chats.

        Raises:
            ModelError: the tokenizer has no chat template.
        """
        if not prompting.apply_chat_template:
            return None
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                f"{self._name}: its tokenizer has no chat template; leave out "
                "--apply-chat-template, or take a model made for chats"
            )
        template: Callable[..., str] = self.apply_chat_template
        return template

    def windows(self, instance: Any) -> tuple[Window, ...]:
        """What lm-eval would run the model on for one request.

        Args:
            instance: lm-eval's request for the log-likelihood of a continuation or a whole text.

        Returns:
            One window; several for a whole text that is longer than the model reads, none for an
            empty one.

        Raises:
            TaskTooLong: more tokens are to be scored together than the model reads.
            ExampleError: nothing is to be scored, or there is no token before it.
        """
        self._recorded = []
        getattr(self, instance.request_type)([instance], disable_tqdm=True)
        return tuple(self._recorded)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Where lm-eval would run the model: records the tokens and returns a placeholder."""
        for _text, context, continuation in requests:
            if not context or not continuation:
                raise ExampleError(
                    "a request without a token before or in what is to be scored; mend the data"
                )
            if len(continuation) > self.max_length:
                raise TaskTooLong(
                    f"{len(continuation):,} tokens are to be scored together, and {self._name} "
                    f"reads {self.max_length:,}; leave the task out, or take a model with a longer "
                    "context"
                )
            # Too long a text keeps its end; the last token is only predicted, never read.
            inputs = (context + continuation)[-(self.max_length + 1) :][:-1]
            self._recorded.append(
                Window(np.array(inputs, np.int32), np.array(continuation, np.int32))
            )
        return [(0.0, False)] * len(requests)

    def check_generation(self, settings: dict[str, Any]) -> None:
        """Refuses to generate a text that nothing would end, or that leaves no room for its prompt.

        Args:
            settings: lm-eval's settings of the request, such as `max_gen_toks` and `until`.

        Raises:
            TaskTooLong: as many tokens are to be written as the model reads, or more.
            RepsimError: the tokenizer has no token that ends a text.
        """
        self._required(self.eot_token_id)
        new_tokens = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
        if new_tokens >= self.max_length:
            raise TaskTooLong(
                f"up to {new_tokens:,} tokens are to be written, and {self._name} reads "
                f"{self.max_length:,}, prompt included; leave the task out, or take a model with a "
                "longer context"
            )

    @property
    def max_length(self) -> int:
        """lm-eval's own; its default where lm-eval takes a configuration's "no limit" (XLNet's -1)
        for a length.
        """
        length = int(super().max_length)
        return length if length > 0 else self._DEFAULT_MAX_LENGTH

    @property
    def prefix_token_id(self) -> int:
        return self._required(super().prefix_token_id)

    @property
    def eot_token_id(self) -> int:
        return self._required(super().eot_token_id)

    def _required(self, token_id: int | None) -> int:
        if token_id is None:
            raise ModelError(
                f"{self._name}'s tokenizer names no token that begins or ends a text, and the task "
                "needs one; give it one (eos_token in tokenizer_config.json)"
            )
        return token_id

    def generate(
        self, instances: Sequence[Any], module: Any, cache: Callable[[], Any] | None, at_once: int
    ) -> list[str | None]:
        """Lets a model write.

        Args:
            instances: lm-eval's requests, of one task.
            module: the model, of the same tokenizer and context length.
            cache: makes the cache of keys and values of a batch; the model's own by default.
            at_once: how many texts are written together.

        Returns:
            The texts, in the requests' order; None where the logits became infinite or NaN.
        """
        # lm-eval fills its batches from the longest prompt on and returns texts in the order given.
        # Given in that order already, `_is_finite` and the texts stand in the same order.
        order = sorted(
            range(len(instances)), key=lambda i: self._length_and_text(instances[i].args[0])
        )
        self.batch_size_per_gpu = at_once
        self._make_cache, self._is_finite, self._model = cache, [], module
        texts = self.generate_until([instances[i] for i in order], disable_tqdm=True)

        in_order_of_requests: list[str | None] = [None] * len(instances)
        for i, text, is_finite in zip(order, texts, self._is_finite, strict=True):
            in_order_of_requests[i] = text if is_finite else None
        return in_order_of_requests

    def _length_and_text(self, prompt: str) -> tuple[int, str]:
        """lm-eval's own key by which it sorts prompts."""
        return -len(self.tok_encode(prompt)), prompt

    def _model_generate(
        self, context: Any, max_length: int, stop: list[str], **settings: Any
    ) -> Any:
        """lm-eval's call of the model for one batch, with our cache, and watched for its logits."""
        if self._make_cache is not None:
            settings["past_key_values"] = self._make_cache()
        is_finite = torch.ones(len(context), dtype=torch.bool, device=context.device)

        def watch_logits(_module: Any, _args: Any, output: Any) -> None:
            finite_now = output.logits[:, -1].isfinite().all(-1)
            is_finite.logical_and_(finite_now.to(is_finite.device))

        # A longer prompt must not change what is written after the next one.
        before = ModuleState(self.model)
        handle = self.model.register_forward_hook(watch_logits)
        try:
            return super()._model_generate(context, max_length, stop, **{**settings, **GREEDY})
        finally:
            handle.remove()
            before.restore()
            self._is_finite += is_finite.tolist()
