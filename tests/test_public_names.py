"""What stands directly under `repsim`: the names of today, and those from before the rooms."""

from __future__ import annotations

import pytest

import repsim


@pytest.mark.parametrize("name", repsim.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(repsim, name) is not None


@pytest.mark.parametrize("name", repsim.MOVED)
def test_a_module_that_moved_is_found_by_its_old_name_and_says_its_new_one(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"^repsim\.{name} is now repsim\.\w+"):
        module = getattr(repsim, name)
    assert module.__name__ == f"repsim.{repsim.MOVED[name]}"


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="corpora"):
        _ = repsim.corpora  # type: ignore[attr-defined]
