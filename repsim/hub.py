"""Is the Hugging Face Hub there? Where it is not, its libraries read their caches and nothing else.

By themselves they would ask a hub that does not answer again and again, for a minute and more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER_SECONDS = 5.0


@contextmanager
def cache_if_unreachable() -> Iterator[None]:
    """Where the hub does not answer, what its libraries do not find in their caches fails at once,
    as with HF_HUB_OFFLINE=1.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers():
        yield
        return
    # `datasets` has a setting of its own, taken from the other one when it was imported.
    settings = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    for module in settings:
        vars(module)["HF_HUB_OFFLINE"] = True
    try:
        yield
    finally:
        for module in settings:
            vars(module)["HF_HUB_OFFLINE"] = False


def _answers() -> bool:
    """Whether the hub says anything at all."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception:  # of a resolver, a proxy, a firewall, and of whatever library asks them
        return False
    return True
