"""The model of a run: loaded by name or used as it is, and what its numbers depend on."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repsim.cache import cache_folder, file_name
from repsim.errors import ModelError
from repsim.options import ModelOptions, options_of
from repsim.schema import Identity

if TYPE_CHECKING:
    from repsim.models import Model

VERSIONED = ("repsim-layers", "torch", "transformers", "tokenizers", "nnsight", "numpy", "zarr")


def name_or_model(model: Any) -> str | Model:
    """A model as a run takes it: a name, or what `repsim.models.load` gave.

    Raises:
        ModelError: it is something else, such as a model of transformers.
    """
    if isinstance(model, str | Path):
        return str(model)
    from repsim.models import Model

    if isinstance(model, Model):
        return model
    raise ModelError(
        f"model: {type(model).__name__} is neither a name nor what repsim.models.load gives; a "
        "model in memory needs its tokenizer: save both to a folder (save_pretrained) and hand "
        "over the folder or repsim.models.load(folder)"
    )


def load_or_reuse(model: str | Model, options: ModelOptions) -> Model:
    """The model of that name, or the one that is loaded already.

    Raises:
        ModelError: it cannot be loaded, or is loaded already and options for loading are given.
    """
    from repsim.models import load

    if isinstance(model, str):
        return load(
            model,
            revision=options.revision,
            dtype=options.model_dtype,
            device=options.device,
            device_map=options.device_map,
            trust_remote_code=options.trust_remote_code,
            stack=options.stack,
        )
    given = [
        name
        for name, (item, _) in options_of(ModelOptions).items()
        if getattr(options, name) != item.default
    ]
    if given:
        raise ModelError(
            f"{', '.join(given)}: {model.name} is loaded already; give them to repsim.models.load"
        )
    return model


def identity_of(model: Model, corpus: str, digest: str, tokens: str, *packages: str) -> Identity:
    """What numbers of this model over this corpus depend on.

    Args:
        model: the loaded model.
        corpus: short name of the texts.
        digest: sha256 of the texts, as hexadecimal digits.
        tokens: which of them are kept.
        *packages: further packages whose versions count.
    """
    return Identity(
        model=model.name,
        revision=model.revision,
        weights=model.weights_digest,
        config=model.config_digest,
        tokenizer=model.tokenizer_digest,
        compute_dtype=model.dtype,
        corpus=corpus,
        corpus_digest=digest,
        tokens=tokens,
        device=model.device.type,
        versions={name: metadata.version(name) for name in (*VERSIONED, *packages)},
        stack=model.stack.path if model.stack.is_named else None,
    )


def default_store(folder: str, model: str | Model, stack: str | None, *parts: object) -> Path:
    """A store's path under the cache, named after the model, its stack if that was named, and what
    else the numbers are of.
    """
    if not isinstance(model, str):
        name, stack = model.name, model.stack.path if model.stack.is_named else None
    else:
        name = Path(model).name if Path(model).exists() else model
    return cache_folder() / folder / f"{file_name(name, stack or '', *parts)[:120]}.zarr"
