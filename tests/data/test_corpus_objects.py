"""Texts in memory: lists, columns and tables of the libraries that people keep texts in."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from repsim.data.corpus import read_corpus
from repsim.errors import RepsimError
from repsim.options import IN_MEMORY

TEXTS = ["one", "two", "three"]
TABLE: dict[str, Any] = {"id": [1, 2, 3], "text": TEXTS}


def rows() -> Iterator[dict[str, Any]]:
    for text in TEXTS:
        yield {"text": text, "id": 0}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (TEXTS, "memory"),
        (tuple(TEXTS), "memory"),
        (np.array(TEXTS), "memory"),
        ([{"text": text} for text in TEXTS], "memory"),
        (rows(), "memory"),
        (pd.Series(TEXTS), "memory"),
        (pd.Series(TEXTS, name="reviews"), "reviews"),
        (pd.Series(TEXTS, dtype="category", index=["columns", "column_names", "name"]), "memory"),
        (pd.DataFrame(TABLE), "memory"),
        (pa.array(TEXTS), "memory"),
        (pa.chunked_array([TEXTS[:1], TEXTS[1:]]), "memory"),
        (pa.table(TABLE), "memory"),
        (datasets.Dataset.from_dict(TABLE), "memory"),
        (datasets.Dataset.from_dict(TABLE)["text"], "memory"),
        (datasets.Dataset.from_dict(TABLE).to_iterable_dataset(), "memory"),
        (
            datasets.Dataset.from_dict(
                TABLE, info=datasets.DatasetInfo(dataset_name="poems"), split="train"
            ),
            "poems-train",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_same_texts_have_the_same_keys_whatever_holds_them(values: Any, name: str) -> None:
    corpus = read_corpus(values)
    assert corpus.name == name
    assert [text.text for text in corpus.texts] == TEXTS
    assert corpus.texts[0].key == "7692c3ad3540bb80"  # sha256 of `one`
    # The name alone would not tell it from other texts in memory.
    assert corpus.distinct_name == f"{name}-{read_corpus(TEXTS).distinct_name[-6:]}"
    assert corpus.distinct_name != f"{name}-{read_corpus(TEXTS[:2]).distinct_name[-6:]}"


@pytest.mark.parametrize(
    "values",
    [["one", None, "one"], pd.Series(["one", None, "one"]), pa.array(["one", None, "one"])],
)
def test_what_is_missing_or_repeated_is_left_out(values: Any) -> None:
    corpus = read_corpus(values)
    assert [text.text for text in corpus.texts] == ["one"]
    assert corpus.notes == ("1 empty texts left out", "1 repeated texts left out")


SPLITS = datasets.DatasetDict({"train": datasets.Dataset.from_dict(TABLE)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no text in it (0 empty ones)"),
        (["", "  "], "no text in it (2 empty ones)"),
        (["one", 2], "text 2: holds a number, not text"),
        (["one", b"two"], "text 2: holds bytes, not text"),
        ([["one"]], "text 1: holds a list, not text"),
        (["one", "\ud800"], "text 2 is not valid Unicode; mend or remove it"),
        (pd.Series([1, 2]), "text 1: holds a number, not text"),
        (pd.DataFrame({"body": ["one"]}), "no column 'text'; name a text column with --field "
         "(found: body)"),
        (pa.table({"text": [1]}), "row 1: column 'text' holds a number, not text"),
        ([{"body": "one"}], "text 1: no field 'text'; name a text field with --field "),
        (SPLITS, "DatasetDict of train: hand over one of them, e.g. corpus['train']"),
        ({}, "dict of none: hand over one of them, e.g. corpus['train']"),
        ({"one", "two"}, "set is no list or column of texts; hand over a list of str"),
        (b"one", "bytes is no list or column of texts; hand over a list of str"),
        (3, "int is no list or column of texts; hand over a list of str"),
        (None, "NoneType is no list or column of texts; hand over a list of str"),
    ],
)  # fmt: skip
def test_objects_that_are_refused(values: Any, message: str) -> None:
    with pytest.raises(RepsimError) as caught:
        read_corpus(values)
    assert str(caught.value).startswith(f"corpus in memory: {message}")
    assert "\n" not in str(caught.value)


def test_what_a_store_says_of_texts_in_memory_is_no_file() -> None:
    with pytest.raises(RepsimError, match="stands for texts that were in memory; hand them over"):
        read_corpus(IN_MEMORY)
