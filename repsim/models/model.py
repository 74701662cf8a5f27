"""What a run needs to know of a loaded model: where its layers are, how wide they are, by which
digests it is known.

Where a model comes from is `repsim.models.loading`; what its layers do is
`repsim.models.layer_call`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from numpy.typing import NDArray

from repsim.errors import ModelError
from repsim.models.module_state import settle
from repsim.models.sharing import SharedCopies
from repsim.models.stack import Stack

NO_LIMIT = 1 << 31


@dataclass(frozen=True)
class Model:
    """A loaded model: everything that a capture needs to know of it.

    module: the Hugging Face model, in evaluation mode.
    tokenizer: its tokenizer.
    name: hub id, embedded name or last part of a local path; what stores and figures call it.
    revision: the hub commit that was loaded, None for local and embedded models.
    stack: where its layers are.
    """

    module: Any
    tokenizer: Any
    name: str
    revision: str | None
    stack: Stack

    def at_rest(self) -> Model:
        """The same model as repsim runs it, as module trees of its own that share parameters with
        the loaded one.

        Whatever runs do to the copy (hooks, nnsight's controllers, rotary tables that grow) never
        reaches the model that was lent.
        """
        copies = SharedCopies()
        module, own = copies.of(self.module), self.stack
        settle(module)
        norm, head = (part and copies.of(part) for part in (own.norm, own.head))
        owner, layers = copies.of(own.owner), copies.of(own.layers)
        copied = replace(
            self,
            module=module,
            stack=replace(own, owner=owner, layers=layers, norm=norm, head=head, halves={}),
        )
        vars(copied)["config_digest"] = self.config_digest  # settling is no other configuration
        return copied

    @property
    def layers(self) -> int:
        return len(self.stack)

    @property
    def units(self) -> int:
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
        return bool(self.module.can_generate()) and self.stack.head is not None

    @property
    def positions(self) -> int | None:
        """The most tokens that a sample may have: those the model has positions for; None where it
        names no limit.

        A number below 1 is how configurations say that there is no limit (XLNet's -1).
        """
        positions = (
            getattr(self.module.config.get_text_config(), "max_position_embeddings", None) or 0
        )
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
        """The most tokens of a sample by default: the model's positions or the tokenizer's limit,
        if smaller.
        """
        limits = [
            limit
            for limit in (self.positions, self.tokenizer.model_max_length)
            if limit and limit > 0
        ]
        return int(min(limits, default=NO_LIMIT))

    def check_ids(self, token_ids: Iterable[NDArray[np.int32]]) -> None:
        """Refuses tokens that the model has no embedding for.

        Raises:
            RepsimError: a token's id is as large as the model's vocabulary, or larger.
        """
        known = self.module.get_input_embeddings().weight.shape[0]
        largest = max((int(ids.max()) for ids in token_ids if len(ids)), default=0)
        if largest >= known:
            raise ModelError(
                f"{self.name}: its tokenizer gives the token {largest}, and the model knows {known:,}; "
                "is the tokenizer another model's?"
            )

    @cached_property
    def weights_digest(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of all weights and buffers that are saved
        with the model.
        """
        digests = {}
        for path, module in self.module.named_modules():
            with align_module_device(module):  # brings what accelerate has moved to memory or disk
                passing = module._non_persistent_buffers_set
                named = chain(module._parameters.items(), module._buffers.items())
                for name, tensor in named:
                    if tensor is not None and name not in passing:
                        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
                        of = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                        of.update(memoryview(raw.numpy()))
                        digests[f"{path}.{name}"] = of.hexdigest()
        return _digest(digests)

    @cached_property
    def config_digest(self) -> str:
        """sha256 over the configuration; where it was loaded from, by what and in which dtype is
        left out.
        """
        config = self.module.config.to_dict()
        changing = {"transformers_version", "dtype", "torch_dtype", "architectures"}
        return _digest(
            {
                name: value
                for name, value in config.items()
                if name not in changing and name[0] != "_"
            }
        )

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 over all that decides how a text becomes token ids; how long it may be is left
        out.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        form = (
            json.loads(backend.to_str())
            if backend is not None
            else sorted(self.tokenizer.get_vocab().items())
        )
        if isinstance(form, dict):  # these two are what the last call asked for
            form |= {"truncation": None, "padding": None}
        return _digest(form)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
