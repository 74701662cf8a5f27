"""What an open store is, whatever it holds: where it lies, what it is of, which plans it has, what
made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import xarray as xr

from repsim.errors import PlanError, printable
from repsim.plans import NamedPlan, Plan, names_of, parse_plan, read_plans, recognise, resolve
from repsim.schema import Kind
from repsim.stats import results
from repsim.storage.group import StoreGroup
from repsim.storage.local_folder import LocalFolder
from repsim.storage.requests import commands
from repsim.storage.results import write_result

# What releases changed of numbers that stores hold: the CHANGELOG has each at length.
CHANGED = {
    "0.2": (
        "half layers (attn, mlp) of MPNet and MobileBERT wrong",
        "ZAYA, GLM-MoE-DSA, Mistral Large 4, LiLT, Pegasus-X, BigBird, Inkling 2 and FSMT wrong",
        "states of FNet, YOSO, PaliGemma, MobileBERT, Nystromformer, ConvBERT and LongRoPE depend "
        "on batches",
        "--stack of an encoder-decoder's decoder one token off; --paper-cache another procedure "
        "than the paper's",
        "log-probabilities under --tokens mean pass over values that are no numbers",
    )
}
FOLDERS = 8  # above a store that its label may name


class StoreReader:
    """A store that is open for reading.

    kind: what it holds.
    group: the store, opened once.
    maker: the command that makes one.
    dataset: as xarray opens it, lazily; what counted of it when it was opened. Plans are indexed by
        their names, `sel(plan="baseline")`, and `plan_text` has their canonical texts.
    """

    kind: ClassVar[Kind]
    maker: ClassVar[str]

    def __init__(self, group: StoreGroup, dataset: xr.Dataset) -> None:
        self.group, self.place = group, group.place
        self.dataset = results.name_plans(dataset)

    @property
    def path(self) -> Path | str:
        """Where the store is: a folder's path, or a URL."""
        return self.place.path if isinstance(self.place, LocalFolder) else self.place.text

    @property
    def identity(self) -> dict[str, Any]:
        """Model, weights, tokenizer, texts, dtypes and versions that the numbers depend on."""
        return dict(self.dataset.attrs["identity"])

    @property
    def cautions(self) -> list[str]:
        """Which entries of the CHANGELOG touch numbers of a store of this age."""
        version = self.identity["versions"].get("repsim-layers", "0")
        made = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        return [
            f"made before {release}: {'; '.join(texts)}"
            for release, texts in CHANGED.items()
            if made < tuple(map(int, release.split(".")))
        ]

    @property
    def over(self) -> str:
        """What the numbers are over: a corpus, or tasks."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What files call it: the model, and what the numbers are over."""
        return f"{self.identity['model']}-{self.over}"

    @property
    def parts(self) -> dict[str, str]:
        """What it could be told from another store of the same model by, what says most first.

        Among these are its file name and the folders above it, the nearest first.
        """
        identity = self.identity
        of = {
            name: str(identity.get(name) or "")
            for name in ("stack", "compute_dtype", "revision", "tokens")
        }
        path = str(self.path.absolute() if isinstance(self.path, Path) else self.path).removesuffix(
            ".zarr"
        )
        folders = [*reversed(path.strip("/").split("/")), *[""] * FOLDERS][:FOLDERS]
        return {
            "over": self.over,
            **of,
            **{f"folder {row}": name for row, name in enumerate(folders)},
        }

    @property
    def stack(self) -> str:
        """Whose states these are, where the stack had to be named; of an older store as far as its
        command says.
        """
        if (path := self.identity.get("stack")) is not None:
            return str(path)
        path = self.dataset.attrs["requests"][0].get("stack")
        return (
            "found by itself"
            if path is None
            else f"{path} by its command; tokens not checked, capture it again"
        )

    @property
    def loading(self) -> dict[str, str]:
        """What is out of the ordinary in how the model was loaded: adapters, its attention."""
        return {
            name: str(self.identity[name])
            for name in ("adapter", "attention")
            if name in self.identity
        }

    @property
    def layers(self) -> int:
        """The model's number of layers, T."""
        return int(self.dataset.attrs["layers"])

    @property
    def replay(self) -> str:
        """How far replayed layers were proven to be the model itself, e.g. `proven to 3e-07 (plain,
        padded)`.
        """
        return self.group.replay.text

    @cached_property
    def plans(self) -> tuple[NamedPlan, ...]:
        """The plans in the store, with the names they were asked for by."""
        names, texts = self.dataset[results.PLAN_NAME].values, results.plan_texts(self.dataset)
        return tuple(
            recognise(str(name), parse_plan(text, self.layers), self.layers)
            for name, text in zip(names, texts, strict=True)
        )

    def find_rows(self, plan: str | Plan | Sequence[str | Plan]) -> list[int]:
        """Which of the store's plans are meant, in the store's order.

        Args:
            plan: names as the store has them, plans, families, sweeps or named sets; one or
                several. None of them stand for every plan. Of a sweep or a set, those in the store.
        Raises:
            PlanError: no plan in the store is meant by one of them.
        """
        wanted = read_plans(plan)
        if not wanted:
            return list(range(len(self.plans)))
        rows: set[int] = set()
        for each in wanted:
            of_name = {row for row, named in enumerate(self.plans) if named.name == str(each)}
            of_plan = of_name or self._rows_of_plan(each)
            if not of_plan:
                raise PlanError(
                    f"plan {str(each)!r} is not in {self.path}; it holds: {names_of(self.plans)}"
                )
            rows |= of_plan
        return sorted(rows)

    def _rows_of_plan(self, plan: str | Plan) -> set[int]:
        """Rows of the plans that a text stands for; none where it cannot be understood."""
        try:
            meant = {named.plan for named in resolve(plan, self.layers, self.plans)}
        except PlanError:
            return set()
        return {row for row, named in enumerate(self.plans) if named.plan in meant}

    def find_plans(self, *plans: str | Plan) -> tuple[NamedPlan, ...]:
        """The plans that texts stand for, also by the names that they were given here; `all` stands
        for every plan of the store.

        Raises:
            PlanError: a text cannot be understood.
        """
        by_plan = {named.plan: named for named in self.plans}
        # A name that only the text gives is not what the store calls the plan.
        return tuple(
            by_plan.get(named.plan, replace(named, name=named.plan.text))
            if named.has_given_name
            else named
            for named in resolve(plans, self.layers, self.plans)
        )

    @property
    def commands(self) -> list[str]:
        """What made it, for the shell, or for Python where that handed over objects in memory; the
        first command made it, each further one added to it.
        """
        return commands(self.maker, self.dataset.attrs["requests"], self.path)

    def write_result(self, name: str, result: xr.Dataset) -> None:
        """Keeps an analysis's result with the store, under its name."""
        write_result(self.place, name, result)

    def _facts(self) -> dict[str, str]:
        """The few lines that say most of it."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        # pandas escapes the cells and draws the table as notebooks know it; xarray escapes what it
        # shows.
        facts = pd.Series({name: printable(value) for name, value in self._facts().items()})
        table = facts.to_frame().to_html(header=False)
        return f"<b>repsim.{type(self).__name__}</b> {table}{self.dataset._repr_html_()}"
