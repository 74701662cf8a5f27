"""Texts in data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from repsim.data.records import Content, Source
from repsim.hub import cache_if_unreachable

HUB = "hf:"


def read_hub(name: str, source: Source) -> tuple[str, Iterator[Content]]:
    """The texts of a data set's field.

    Args:
        name: `hf:name/config:split:field`.
        source: what is looked for; the field is the name's.

    Returns:
        A name without slashes, and the texts.

    Raises:
        DataError: there is no such data set, split or field; the iterator raises it where a value
            is not text.
    """
    parts = name.removeprefix(HUB).split(":")
    if len(parts) != 3 or not all(parts):
        raise source.error(
            "write hf:name/config:split:field, e.g. hf:glue/sst2:validation:sentence"
        )
    path, split, field = parts
    rows = _load_rows(path, split, source)
    if field not in rows.column_names:
        raise source.error(f"no field {field!r}; found: {', '.join(rows.column_names)}")
    texts = (
        source.in_row(value, f"row {number}: field {field!r}")
        for number, value in enumerate(rows[field], 1)
    )
    return f"{path.replace('/', '-')}-{split}", texts


def _load_rows(path: str, split: str, source: Source) -> Any:
    """The rows of a data set's split.

    `a/b` may be a repository `a/b` or a configuration b of a data set a; the first that exists is
    taken.
    """
    import datasets  # takes a second to import and only a Hub corpus needs it

    name, _, config = path.rpartition("/")
    candidates: list[tuple[str, str | None]] = [(path, None)] if path.count("/") < 2 else []
    candidates += [(name, config)] if name else []
    problems: list[Exception] = []
    for repository, configuration in candidates:
        try:
            with cache_if_unreachable():
                return datasets.load_dataset(repository, configuration, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            problems.append(error)
    # If one reading of the name exists, what is wrong with it is worth more than the remark that
    # the other does not exist.
    problem = min(problems, key=lambda error: isinstance(error, OSError))
    reason = " ".join(str(problem).split())[:200]
    raise source.error(f"cannot be read from the Hub or its cache: {reason}")
