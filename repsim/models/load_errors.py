"""Failures of transformers and the hub at loading, as one line that says what to do."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from repsim.errors import ModelError
from repsim.hub import cache_if_unreachable
from repsim.models.model_files import EMBEDDED

# Words by which failures of other libraries are told apart, as transformers 5.23 and
# huggingface_hub 2.4 put them. Where another version puts them otherwise, its own first sentences
# are shown instead.
SAYS_OWN_CODE = "trust_remote_code"
SAYS_NO_SAFETENSORS = "file named model.safetensors"
SAYS_NO_CONFIGURATION = "file named config.json"
SAYS_NO_TOKENIZER = "instantiate the backend tokenizer"
# What is read of a name before anything else is, so that its failure may be the name's.
FIRST_READ = ("configuration", "named tokenizer")


@contextlib.contextmanager
def one_line_errors(name: str, failure: str, kind: str = "model") -> Iterator[None]:
    """Loads quietly, and turns any failure into one line that says what to do.

    Damaged files and odd configurations fail in whatever way the code that meets them does, so
    every exception is caught.

    Args:
        name: what is loaded, as the user gave it.
        failure: what has failed where nothing else is known of it.
        kind: `model` or `tokenizer`.
    """
    loggers = [logging.getLogger(library) for library in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    is_local = name in EMBEDDED or Path(name).exists()
    hub = contextlib.nullcontext() if is_local else cache_if_unreachable()
    try:
        with contextlib.redirect_stderr(io.StringIO()), hub:  # progress bars of several libraries
            yield
    except Exception as problem:
        raise ModelError(f"{kind} {name!r}: {_advice(name, failure, problem)}") from problem
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _advice(name: str, failure: str, problem: Exception) -> str:
    """What to do about a failure of transformers or the hub, as far as their words tell it."""
    text = str(problem)
    is_local = Path(name).exists()
    if SAYS_OWN_CODE in text:
        return (
            "it brings its own code; read that, then allow it with trust_remote_code=True "
            "(--trust-remote-code)"
        )
    if SAYS_NO_SAFETENSORS in text and not is_local:
        return (
            "its weights are not in safetensors; download it and name the pickled file "
            "(FOLDER/pytorch_model.bin)"
        )
    if SAYS_NO_TOKENIZER in text:
        return (
            "there is no tokenizer among its files; put one beside its weights (tokenizer.json), "
            "or name one (--tokenizer NAME, tokenizer=)"
        )
    if SAYS_NO_CONFIGURATION in text and not is_local:
        return (
            "it has no config.json on the hub; if it holds an adapter, download it (hf download "
            f"{name} --local-dir FOLDER) and name that folder"
        )
    is_first = failure.startswith(FIRST_READ)
    if is_first and isinstance(problem, OSError) and not is_local:
        return (
            f"not embedded ({', '.join(EMBEDDED)}), no local folder, and not to be had from the "
            f"hub ({first_sentences(problem)}); check the name and the connection, and "
            "`hf auth login` for a gated model"
        )
    return f"{failure}: {first_sentences(problem)}"


def first_sentences(problem: Exception) -> str:
    """The first sentences of a message, 200 characters or the first one."""
    text = " ".join(str(problem).split())
    if " " not in text:
        return repr(problem)
    kept, *more = re.split(r"(?<=[.!?]) ", text)
    for sentence in more:
        if len(kept) + len(sentence) > 200:
            break
        kept = f"{kept} {sentence}"
    return textwrap.shorten(kept, 300, placeholder=" ...").removesuffix(".")
