"""What files call a store: its content once, and whatever tells it from another of the same."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repsim.analysis.names import file_labels, option_words
from repsim.schema import Kind


def label_of(path: str, over: str, kind: Kind, model: str = "tiny") -> str:
    store: Any = SimpleNamespace(
        identity={"model": model},
        over=over,
        label=f"{model}-{over}",
        path=Path(path),
        kind=kind,
        parts={},
    )
    (label,) = file_labels([store], [["words"]], [])
    return label


@pytest.mark.parametrize(
    ("path", "over", "kind", "label"),
    [
        # At its default place, a capture's figures depend on no plan but those in the words.
        ("c/tiny-builtin-fig4.zarr", "builtin", Kind.CAPTURE, "tiny-builtin-words"),
        ("c/tiny-model.layers-own-fig4.zarr", "own", Kind.CAPTURE, "tiny-own-words"),
        ("c/tiny-0a1b2c-own-3d4e5f-x.zarr", "own", Kind.CAPTURE, "tiny-own-words-0a1b2c-3d4e5f"),
        # Those of scores depend on all plans.
        ("s/tiny-offline-fig2.zarr", "offline", Kind.SCORES, "tiny-offline-words-fig2"),
        ("s/tiny-offline-fig4.zarr", "offline", Kind.SCORES, "tiny-offline-words-fig4"),
        ("s/tiny-0a1b2c-a+b-x.zarr", "a+b", Kind.SCORES, "tiny-a+b-words-0a1b2c-x"),
        # Elsewhere, a store has a name of its own.
        ("s/painters.zarr", "offline", Kind.SCORES, "tiny-offline-words-painters"),
        ("c/mine.zarr", "builtin", Kind.CAPTURE, "tiny-builtin-words-mine"),
    ],
)
def test_a_file_says_what_it_is_of_once(path: str, over: str, kind: Kind, label: str) -> None:
    assert label_of(path, over, kind) == label


def test_an_option_that_is_a_path_is_its_name_and_a_digest() -> None:
    def compute(_: Any, *, other: Path | None = None, average: str = "token") -> None:
        pass

    words = [
        option_words(compute, {"other": Path(path), "average": "sample"})
        for path in ("/a/x.zarr", "/b/x.zarr")
    ]
    assert all(len(each) == 2 and each[0].startswith("x-") for each in words)
    assert words[0] != words[1]
    assert option_words(compute, {"other": None, "average": "token"}) == ["token"]
