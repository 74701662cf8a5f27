"""The model of a run: loaded by name or used as it is, and what its numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repsim.cache import cache_folder, file_name
from repsim.errors import ModelError, RepsimError
from repsim.options import ModelOptions, options_of
from repsim.plans import Plan
from repsim.schema import Identity
from repsim.storage.location import location_of
from repsim.storage.metadata import read_attributes
from repsim.storage.requests import storable

if TYPE_CHECKING:
    from repsim.models import Model

LONGEST_NAME = 120  # of a store at its default place
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


def default_store(
    folder: str,
    model: str | Model,
    stack: str | None,
    over: Sequence[str | Path],
    plans: Sequence[str | Plan],
    **request: Any,
) -> Path:
    """A store's path under the cache, named after the model, its stack if that was named, what the
    numbers are over, and the plans.

    What stands for a path, or had to be cut, is told apart by a digest. Earlier releases did
    without one: their store is taken where it was made for the same request.

    Args:
        folder: of all stores of this kind.
        model: by name, or loaded.
        stack: path of its module list, if that was named.
        over: names, or paths of files.
        plans: as they were asked for.
        **request: options that `over` comes from, as a request has them.
    """
    source: str | Path
    if isinstance(model, str):
        source = Path(model) if Path(model).exists() else model
    else:
        stack = model.stack.path if model.stack.is_named else None
        source = _source_of(model)
    texts = list(map(str, plans))
    home, joined = cache_folder() / folder, "+".join(texts)
    words = [source, stack or "", "+".join(map(file_name, over))]
    name = file_name(*words, file_name(joined, distinct=True), longest=LONGEST_NAME)

    # Where earlier releases have put it.
    called = source.name if isinstance(source, Path) else source
    words = [called, stack or "", "+".join(map(_last_part, over))]
    earlier = home / f"{file_name(*words, joined)[:LONGEST_NAME]}.zarr"
    if earlier.name != f"{name}.zarr" and _is_made_for(earlier, {"plan": texts, **request}):
        return earlier
    return home / f"{name}.zarr"


def _source_of(model: Model) -> str | Path:
    """The folder that a loaded model comes from; its name where that is not a folder's."""
    folder = Path(getattr(model.module.config, "_name_or_path", None) or "")
    is_local = model.revision is None and folder.is_dir() and folder.resolve().name == model.name
    return folder.resolve() if is_local else model.name


def _last_part(part: str | Path) -> str:
    return part.stem if isinstance(part, Path) else part


def _is_made_for(path: Path, request: Mapping[str, Any]) -> bool:
    """Whether there is a store at a path, and one of its requests has these options."""
    try:
        requests = read_attributes(location_of(path))["requests"]
    except (RepsimError, KeyError):
        return False
    wanted = storable(request)
    return any(
        all(made_by.get(name) == wanted.get(name) for name in request) for made_by in requests
    )
