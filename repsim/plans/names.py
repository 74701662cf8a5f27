"""Names that users give to plans of their own: `late=0-3, 8-29`."""

from __future__ import annotations

import re

from repsim.errors import PlanError

ALL = "all"  # every plan of a store
NAME = re.compile(r"[^\W\d][\w.-]*")


def split_name(text: str) -> tuple[str, str]:
    """A plan's text as its name and what it runs; the name is empty where there is none.

    A name comes before the first `=`, with no `:` before that, so a family's parameters are never
    taken for one. It begins with a letter, so it is never taken for a plan.

    Raises:
        PlanError: what stands there is no name.
    Example:
        >>> split_name("late = 0-3, 8-29"), split_name("skip:start=3")
        (('late', '0-3, 8-29'), ('', 'skip:start=3'))
    """
    name, equals, plan = text.partition("=")
    if not equals or ":" in name:
        return "", text
    check_name(name.strip())
    return name.strip(), plan.strip()


def check_name(name: str) -> None:
    """Refuses what could not be written before `=`, or would be taken for something else.

    Raises:
        PlanError: it is no name.
    """
    if not NAME.fullmatch(name):
        raise PlanError(
            f"{name!r} is no name for a plan; begin with a letter, then letters, digits, _ . and -"
        )
