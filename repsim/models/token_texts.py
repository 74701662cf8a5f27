"""Token ids as texts, by the tokenizer that they are from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.errors import ModelError
from repsim.models.model_files import EMBEDDED


def find_tokenizer(tokenizer: Any, identity: Mapping[str, Any]) -> Any:
    """The tokenizer that a store's token ids are from.

    Args:
        tokenizer: of transformers, or the name or folder of a model to load it with; None for the
            embedded model that the store is of.
        identity: the store's, with `model` and the digest `tokenizer`.
    Raises:
        ModelError: the store's model is not embedded, the named one cannot be loaded, or its
            tokenizer is another one.
    """
    name = identity["model"]
    if tokenizer is None and name not in EMBEDDED:
        raise ModelError(
            f"token texts: a store keeps no tokenizer, and {name} is not embedded; give its "
            "tokenizer, or the model's name or folder"
        )
    if tokenizer is None or isinstance(tokenizer, str | Path):
        from repsim.models.loading import load

        tokenizer = load(name if tokenizer is None else tokenizer).tokenizer

    from repsim.models.model import digest_tokenizer

    digest = digest_tokenizer(tokenizer)
    if digest != identity["tokenizer"]:
        raise ModelError(
            f"token texts: another tokenizer than the tokens of {name} are from "
            f"({digest[:8]}, not {identity['tokenizer'][:8]}); give that of the model"
        )
    return tokenizer


def decode_tokens(tokenizer: Any, ids: NDArray[Any]) -> NDArray[Any]:
    """The text of each token by itself, `[token]`, object; empty where the id is below 0.

    A token that is a part of a character's bytes is a replacement character.
    """
    distinct, places = np.unique(ids, return_inverse=True)
    texts = [
        "" if each < 0 else tokenizer.decode([each], clean_up_tokenization_spaces=False)
        for each in distinct.tolist()
    ]
    return np.array(texts, object)[places]
