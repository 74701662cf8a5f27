"""What to add to names that are alike, so that figures and files can be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def tell_apart(names: Sequence[str], parts: Sequence[Mapping[str, str]]) -> list[str]:
    """What to add to each name: nothing where it is the only one, else the first part in which
    those alike differ.

    As an example, two captures of `checkpoint-500` in the folders `run1` and `run2` get `run1` and
    `run2`.

    Args:
        names: what each would be called by itself.
        parts: what each could be told apart by, what says most first; all have the same keys.
    """
    added = [""] * len(names)
    for name in dict.fromkeys(names):
        alike = [row for row, other in enumerate(names) if other == name]
        if len(alike) > 1:
            for row, text in zip(alike, _additions([parts[row] for row in alike]), strict=True):
                added[row] = text
    return added


def _additions(parts: Sequence[Mapping[str, str]]) -> list[str]:
    """One part where one tells all apart, several where it takes several, and a number where none
    does.
    """
    keys = list(parts[0])
    for key in keys:
        if len({part[key] for part in parts}) == len(parts):
            return [part[key] for part in parts]
    chosen: list[str] = []
    for key in keys:
        if _kinds(parts, [*chosen, key]) > _kinds(parts, chosen):
            chosen.append(key)
    texts = [", ".join(part[key] for key in chosen if part[key]) for part in parts]
    total, seen = Counter(texts), Counter[str]()
    for row, text in enumerate(texts):
        seen[text] += 1
        if total[text] > 1:
            texts[row] = f"{text}, {seen[text]}" if text else str(seen[text])
    return texts


def _kinds(parts: Sequence[Mapping[str, str]], keys: Sequence[str]) -> int:
    """How many of the parts differ in these keys."""
    return len({tuple(part[key] for key in keys) for part in parts})
