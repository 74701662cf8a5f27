"""Texts that are safe to show, and errors that are one line."""

import pickle

import pytest

from repsim.errors import Interrupted, RepsimError, printable
from repsim.storage.place_names import location_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("skip:start=3, Größe/モデル [red] é", "skip:start=3, Größe/モデル [red] é"),
        ("a\x1b[31mb\x07\x9bm", "a\\x1b[31mb\\x07\\x9bm"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\u202egpj.exe\u2066\u200b\ufeff", "\\u202egpj.exe\\u2066\\u200b\\ufeff"),
        ("one\u2028two\u2029", "one\\u2028two\\u2029"),
        ("\udc80", "\\udc80"),  # half of a character, as in a file name that is not UTF-8
        ("no-break\xa0space", "no-break\xa0space"),
        (3, "3"),
    ],
)
def test_what_a_terminal_would_obey_is_an_escape(text: object, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_an_error_is_one_line_that_is_safe_to_show() -> None:
    assert str(RepsimError("a\x1b[2J\nb: no such store")) == "a\\x1b[2J\\nb: no such store"
    assert str(pickle.loads(pickle.dumps(RepsimError("a\x1bb")))) == "a\\x1bb"
    assert str(Interrupted("stopped\x07", 2)) == "stopped\\x07"
    assert str(RepsimError()) == ""


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_path_is_none(text: str) -> None:
    with pytest.raises(RepsimError, match=r"^an empty path: name a folder or a URL$"):
        location_of(text)
