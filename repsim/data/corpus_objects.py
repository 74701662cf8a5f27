"""Texts that are in memory: a list, a column, or a table with a column of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from repsim.data.corpus_files import read_table, values_of
from repsim.data.records import Content, Source, listed

MEMORY = "memory"  # the corpus of objects that have no name


def read_object(values: Any, source: Source) -> tuple[str, Iterator[Content]]:
    """The texts of a Python object.

    Args:
        values: a list or another sequence of texts, or of objects with the field; a column of
            pandas, pyarrow or datasets; a table of theirs with the field as a column.
        source: what is looked for.

    Returns:
        A name, `memory` unless the object has one, and the texts.

    Raises:
        DataError: it is none of these, or has no such column; the iterator raises it where a value
            is not text.

    Example:
        >>> name, texts = read_object(["one", "two"], Source("corpus in memory", "text"))
        >>> name, list(texts)
        ('memory', ['one', 'two'])
    """
    name, kind = _name_of(values), type(values)
    if isinstance(values, Mapping):
        raise source.error(
            f"{kind.__name__} of {listed(values)}: hand over one of them, e.g. "
            f"corpus[{next(iter(values), 'train')!r}]"
        )
    # Asked of the type: a Series answers for the labels of its values as well.
    for attribute in ("column_names", "columns"):
        if hasattr(kind, attribute) and (names := getattr(values, attribute)) is not None:
            return name, read_table(values, names, source)
    if isinstance(values, Set | bytes | bytearray) or not isinstance(values, Iterable):
        raise source.error(
            f"{kind.__name__} is no list or column of texts; hand over a list of str, a column, or "
            "a table and its field"
        )
    return name, _contents(values_of(values), source)


def _contents(values: Iterable[Any], source: Source) -> Iterator[Content]:
    """Texts, or fields of records, which is what a streamed data set gives."""
    for number, value in enumerate(values, 1):
        place = f"text {number}"
        if isinstance(value, Mapping):
            yield source.in_record(value, place)
        else:
            yield source.in_row(value, f"{place}:")


def _name_of(values: Any) -> str:
    """A Series' name, or the name and split of a data set or of the one that a column is of."""
    if hasattr(type(values), "to_frame"):
        return values.name if isinstance(values.name, str) and values.name else MEMORY
    dataset = getattr(values, "source", values)
    name = getattr(getattr(dataset, "info", None), "dataset_name", None)
    split = getattr(dataset, "split", None)
    return "-".join(str(part) for part in (name, split) if part) if name else MEMORY
