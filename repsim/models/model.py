"""What a run needs to know of a loaded model: its layers, their width, its limits, its digests.

Where a model comes from is `repsim.models.loading`; what its layers do is
`repsim.models.layer_call`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repsim.errors import ModelError, brief
from repsim.models.digests import digest_of, digest_weights
from repsim.models.module_state import prepare_for_run
from repsim.models.sharing import SharedCopies
from repsim.models.stack import Stack

NO_LIMIT = 1 << 31


@dataclass(frozen=True)
class Model:
    """A loaded model: everything that a run needs to know of it.

    module: the Hugging Face model, in evaluation mode.
    tokenizer: its tokenizer.
    name: hub id, embedded name or last part of a local path; what stores and figures call it.
    revision: the hub commit that was loaded, None for local and embedded models.
    stack: where its layers are.
    in_memory: which of `model` and `tokenizer` were handed over as objects, so that no command can
        name them.
    adapter: the adapter that was merged into the weights, or that its layers apply.
    attention: how attention is computed, where that is not transformers' own choice.
    """

    module: Any
    tokenizer: Any
    name: str
    revision: str | None
    stack: Stack
    in_memory: tuple[str, ...] = ()
    adapter: str | None = None
    attention: str | None = None

    def private_copy(self) -> Model:
        """A copy for a run, which shares parameters with this model and is in evaluation mode.

        Whatever a run does to the copy (hooks, nnsight's controllers, rotary tables that grow)
        never reaches this model.
        """
        copies, stack = SharedCopies(), self.stack
        module = copies.copy(self.module)
        prepare_for_run(module)
        copied = replace(
            self,
            module=module,
            stack=replace(
                stack,
                owner=copies.copy(stack.owner),
                layers=copies.copy(stack.layers),
                norm=stack.norm and copies.copy(stack.norm),
                head=stack.head and copies.copy(stack.head),
                sublayers={},
            ),
        )
        # What `prepare_for_run` sets is not another configuration, and weights are read once.
        vars(copied)["config_digest"] = self.config_digest
        if "weights_digest" in vars(self):
            vars(copied)["weights_digest"] = self.weights_digest
        return copied

    @property
    def layers(self) -> int:
        """How many layers the stack has."""
        return len(self.stack)

    @property
    def units(self) -> int:
        """Width of the residual stream."""
        return int(self.module.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embeddings."""
        embeddings = self.module.get_input_embeddings()
        device: torch.device = embeddings.weight.device
        if device.type == "meta":  # accelerate brings them to a device for each call
            device = torch.device(embeddings._hf_hook.execution_device)
        return device

    @property
    def dtype(self) -> str:
        """Dtype of the weights, e.g. `float32`."""
        return str(self.module.dtype).removeprefix("torch.")

    @property
    def predicts_next_token(self) -> bool:
        """Whether the model can generate and has a head that gives logits."""
        return bool(self.module.can_generate()) and self.stack.head is not None

    @property
    def positions(self) -> int | None:
        """The most tokens that a sample may have by the model's positions; None without a limit.

        A number below 1 is how configurations say that there is no limit (XLNet's -1).
        """
        config = self.module.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or 0
        if positions < 1:
            return None
        for name, child in self.module.named_modules():
            padding = getattr(child, "padding_idx", None)
            if positions > 0 and padding is not None and name.endswith("position_embeddings"):
                # RoBERTa's and MPNet's positions begin after the padding index.
                positions -= padding + 1
        return int(positions)

    @property
    def context_length(self) -> int:
        """The most tokens of a sample by default: the smaller of model's and tokenizer's limit."""
        limits = (self.positions, self.tokenizer.model_max_length)
        return int(min((limit for limit in limits if limit and limit > 0), default=NO_LIMIT))

    def check_ids(self, token_ids: Iterable[NDArray[np.int32]]) -> None:
        """Refuses tokens that the model has no embedding for.

        Args:
            token_ids: of each text, `[token]`.
        Raises:
            ModelError: a token's id is as large as the model's vocabulary, or larger.
        """
        known = self.module.get_input_embeddings().weight.shape[0]
        largest = max((int(ids.max()) for ids in token_ids if len(ids)), default=0)
        if largest >= known:
            raise ModelError(
                f"{self.name}: its tokenizer gives the token {largest}, and the model knows "
                f"{known:,}; is the tokenizer another model's?"
            )

    @cached_property
    def weights_digest(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of all that is saved with the model."""
        try:
            return digest_weights(self.module)
        except (NotImplementedError, RuntimeError, TypeError) as problem:
            raise ModelError(
                f"{self.name}: its weights cannot be read ({brief(problem)}); take them out of "
                "what packs or shards them"
            ) from problem

    @cached_property
    def config_digest(self) -> str:
        """sha256 over the configuration, without what says where, by what and how it was loaded."""
        config = self.module.config.to_dict()
        changing = {"transformers_version", "dtype", "torch_dtype", "architectures"}
        return digest_of({n: v for n, v in config.items() if n not in changing and n[0] != "_"})

    @cached_property
    def tokenizer_digest(self) -> str:
        """See `digest_tokenizer`."""
        return digest_tokenizer(self.tokenizer)


def digest_tokenizer(tokenizer: Any) -> str:
    """sha256 over all that decides how a text becomes token ids, except how long it may be."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest_of(sorted(tokenizer.get_vocab().items()))
    # Truncation and padding are those of the last call.
    return digest_of(json.loads(backend.to_str()) | {"truncation": None, "padding": None})
