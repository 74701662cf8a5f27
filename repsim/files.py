"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from repsim.errors import RepsimError


@contextmanager
def replacing(paths: Sequence[Path], advice: str) -> Iterator[list[Path]]:
    """Names beside these paths to write to; the files take their places when all of them are
    written.

    Whoever is killed or fails on the way leaves what was there before. Missing folders are made.

    Args:
        paths: files of one folder.
        advice: what to do where they cannot be written.
    Raises:
        RepsimError: the folder cannot be made, or a file in it cannot be written.
    """
    beside = [path.with_name(f".{uuid.uuid4().hex}.partial") for path in paths]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        for written, path in zip(beside, paths, strict=True):
            os.replace(written, path)
    except OSError as problem:
        raise RepsimError(
            f"{paths[0]}: cannot be written ({problem.strerror or problem}); {advice}"
        ) from None
    finally:
        for written in beside:
            _remove(written)


def _remove(path: Path) -> None:
    """Removes what was left; where even that fails, the first error is what the user reads."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
