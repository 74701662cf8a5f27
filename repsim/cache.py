"""Where repsim keeps what it can compute again, and one function that turns words into a file name.

A name that is made here depends on its words alone, so the same request finds the same file.
"""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path

REPLACED = re.compile(r"[^\w.=+]+")  # each run of these becomes one dash
REPLACED_IN_PLANS = re.compile(r"[^\w.=+:-]")  # a family's colon may go, its name stays unique
SUFFIX = re.compile(r"\.[A-Za-z]\w*$")  # of a file; the .5b of a model's name is none
DIGEST_DIGITS = 6


def cache_folder() -> Path:
    """`REPSIM_CACHE`, or `cache/` in the working directory."""
    return Path(os.environ.get("REPSIM_CACHE") or "cache")


def file_name(*words: object, longest: int | None = None, distinct: bool = False) -> str:
    """Words as one name of a file, joined by dashes, without anything a file system objects to.

    Args:
        words: what the file is of; empty ones are left out. A path is its last part without the
            suffix, and a digest of the whole, so that no folder is told and no two are alike.
        longest: bytes that the name may take, as file systems count them; a longer one ends in a
            digest of the whole.
        distinct: adds a digest to words that would look alike otherwise, such as the plans `0-5`
            and `0, 5`.

    Example:
        >>> file_name("norms", "skip:start=3", "")
        'norms-skip-start=3'
        >>> file_name("0, 5", distinct=True)
        '0-5-4faa8f'
        >>> len(file_name("long " * 100, longest=200))
        197
        >>> file_name("norms", Path("/home/me/own.txt"))
        'norms-own-49549e'
    """
    texts = [_path_word(word) if isinstance(word, Path) else str(word) for word in words]
    if distinct:
        texts = [
            f"{text}-{_digest(text)}" if REPLACED_IN_PLANS.search(text) else text for text in texts
        ]
    name = "-".join(filter(None, (REPLACED.sub("-", text).strip("-") for text in texts)))
    if longest is None or len(name.encode()) <= longest:
        return name
    # Bytes are cut, so half a character may be left over; it is dropped.
    beginning = name.encode()[: longest - DIGEST_DIGITS - 4].decode(errors="ignore")
    return f"{beginning}-{_digest(name)}"


def _path_word(path: Path) -> str:
    """The last part of a path, and a digest of where that lies."""
    absolute = os.path.abspath(path.expanduser())
    return f"{SUFFIX.sub('', os.path.basename(absolute))}-{_digest(absolute)}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]
