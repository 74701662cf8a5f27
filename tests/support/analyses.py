"""A store for each kind of analysis, so that every installed analysis is put through its own.

A new kind gets an entry in `STORES`; a new analysis of a kind that is there gets nothing here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from repsim.registry import AnalysisKind, installed, kind_of, load_analysis
from support.cli import SHORT, main

PLANS = ("--plan", "fig2", "--plan", "fig4")
KINDS = {name: kind_of(load_analysis(entry)) for name, entry in installed().items()}
OF_STATES = [name for name, kind in KINDS.items() if kind is AnalysisKind.STATES]

StoreOf = Callable[[AnalysisKind], Path]


def capture_states(model: Path, path: Path) -> None:
    """Hidden states under several plans, with log-probabilities."""
    options = ("--plan", "fig4", "--logprobs", *SHORT, "--out", path, "--quiet")
    assert main("capture", model, *options) == 0


def score_above_chance(model: Path, path: Path) -> None:
    """Scores in which the baseline, the first plan of `fig2`, is right about everything and other
    plans about two thirds, as a tiny random model is not above chance on anything.
    """
    options = ("--tasks", "grammar,knowledge", "--limit", 12, "--out", path, "--quiet")
    assert main("evaluate", model, *PLANS, *options) == 0
    group = zarr.open_group(path, mode="r+")
    stored = group["score"]
    assert isinstance(stored, zarr.Array)
    plans, examples, metrics = stored.shape
    right = np.arange(examples)[:, None] % 3 > 0
    values = np.broadcast_to(right, (plans, examples, metrics)).astype(stored.dtype)
    values[0] = 1
    stored[:] = np.where(np.isnan(np.asarray(stored[:])), np.nan, values)


STORES: dict[AnalysisKind, Callable[[Path, Path], None]] = {
    AnalysisKind.STATES: capture_states,
    AnalysisKind.PLANS: capture_states,
    AnalysisKind.LOGPROBS: capture_states,
    AnalysisKind.SCORES: score_above_chance,
    AnalysisKind.SCORES_TOGETHER: score_above_chance,
}


@pytest.fixture(scope="session")
def made_stores(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StoreOf:
    """Makes the store of each maker once."""
    made: dict[Callable[[Path, Path], None], Path] = {}

    def made_store(kind: AnalysisKind) -> Path:
        maker = STORES[kind]
        if maker not in made:
            made[maker] = tmp_path_factory.mktemp(kind) / "tiny.zarr"
            maker(tiny_folder, made[maker])
        return made[maker]

    return made_store


@pytest.fixture
def store_of(
    made_stores: StoreOf, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StoreOf:
    """A store for analyses of a kind, a copy of the test's own; in a folder where the name of its
    model is the model's folder, as an analysis may load it.
    """
    monkeypatch.chdir(tiny_folder.parent)

    def copy(kind: AnalysisKind) -> Path:
        path = tmp_path / f"{kind}.zarr"
        if not path.exists():
            shutil.copytree(made_stores(kind), path)
        return path

    return copy


def stores_for(analysis: str, store_of: StoreOf) -> list[Path]:
    """As many stores as an analysis takes at least: one, or a store and its copy."""
    path = store_of(KINDS[analysis])
    if not KINDS[analysis].takes_stores_together:
        return [path]
    copy = path.with_name("copy.zarr")
    shutil.copytree(path, copy)
    return [path, copy]
