"""The model of a run: loaded by name or taken as it is, and what its numbers depend on."""

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
from repsim.storage.metadata import read_attributes
from repsim.storage.place_names import location_of
from repsim.storage.requests import OBJECTS, storable

if TYPE_CHECKING:
    from torch import nn

    from repsim.models import Model

LONGEST_NAME = 120  # of a store at its default place
VERSIONED = ("repsim-layers", "torch", "transformers", "tokenizers", "nnsight", "numpy", "zarr")


# Options that a model in memory takes as well.
IN_MEMORY_TOO = ("tokenizer", "stack")


def name_or_model(model: Any) -> str | Model | nn.Module:
    """A model as a run takes it: a name, what `repsim.models.load` gave, or a module in memory.

    Raises:
        ModelError: it is something else.
    """
    if isinstance(model, str | Path):
        return str(model)
    from torch import nn

    from repsim.models import Model

    if isinstance(model, Model | nn.Module):
        return model
    raise ModelError(
        f"model: {type(model).__name__} is neither a name nor a model; give an embedded name, a "
        "hub id or a folder, what repsim.models.load gives, or a model of transformers in memory "
        "with tokenizer="
    )


def load_or_reuse(model: str | Model | nn.Module, options: ModelOptions) -> Model:
    """The model of that name, or the one that is in memory already.

    Raises:
        ModelError: it cannot be loaded, or is in memory already and options for loading are given.
    """
    from repsim.models import Model, load

    if isinstance(model, str):
        return load(
            model,
            revision=options.revision,
            dtype=options.model_dtype,
            device=options.device,
            device_map=options.device_map,
            trust_remote_code=options.trust_remote_code,
            stack=options.stack,
            tokenizer=options.tokenizer,
            attn_implementation=options.attn_implementation,
        )
    given = [
        name
        for name, (item, _) in options_of(ModelOptions).items()
        if getattr(options, name) != item.default
    ]
    if not isinstance(model, Model):
        from repsim.models.in_memory import check_options

        check_options(model, [name for name in given if name not in IN_MEMORY_TOO])
        return load(model, stack=options.stack, tokenizer=options.tokenizer)
    if given:
        raise ModelError(
            f"{', '.join(given)}: {model.name} is loaded already; give them to repsim.models.load"
        )
    # A module in memory may have been trained since it was taken: digests are made again.
    return model.private_copy() if "model" in model.in_memory else model


def request_of_subject(model: Model) -> dict[str, Any]:
    """What a request says of a model that no command can name; nothing of any other.

    Returns:
        `in_memory`, what was handed over as an object; and `stack`, where that was named.
    """
    if not model.in_memory:
        return {}
    stack = model.stack.path if model.stack.is_named else None
    return {OBJECTS: ",".join(model.in_memory), **({"stack": stack} if stack else {})}


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
        adapter=model.adapter,
        attention=model.attention,
    )


def default_store(
    folder: str,
    model: str | Model | nn.Module,
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
        model: by name, loaded, or a module in memory.
        stack: path of its module list, if that was named.
        over: names, or paths of files.
        plans: as they were asked for.
        **request: options that `over` comes from, as a request has them.
    """
    source: str | Path
    if isinstance(model, str):
        source = Path(model) if Path(model).exists() else model
    else:
        from repsim.models import Model
        from repsim.models.in_memory import default_name

        if isinstance(model, Model):
            stack = model.stack.path if model.stack.is_named else None
            source = _source_of(model)
        else:
            source = default_name(model)
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
