"""The commands that README.md and docs/ ask a reader to type do run, in their order.

Tiny models of the same depth stand for the two embedded ones. A line that ends
with a mark of `NOT_RUN` is parsed (`test_docs`) and not run.
"""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from repsim.cli.main import main
from repsim.models import model_files
from support.models import ARCHITECTURES, save_folder
from support.pages import PAGES, page_id, typed_lines

LAYERS = {"smollm2-135m": ("llama", 30), "minilm-l6": ("bert", 6)}
NOT_RUN = ("# from the Hub", "# needs a GPU", "# with files of your own")
# Words that stand for a user's own.
STANDS_FOR = {
    "MODEL": "smollm2-135m",
    "PLAN": "baseline",
    "CORPUS": "builtin",
    "ANALYSIS": "cosine",
    "STORE...": "STORE",
    "painters": "fig4",  # hundreds of plans
}
SMALL = ("--dpi", "40", "--format", "png", "--resamples", "20")  # of analyses
READS_SCORES = ("degradation", "latency", "compare")
MAKES = ("capture", "evaluate")
RUN: set[tuple[str, ...]] = set()  # commands that read
TEXTS = ["The sea is calm tonight.", "The tide is full, the moon lies fair.", "Come to the window."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, and a store of each kind."""
    folder = tmp_path_factory.mktemp("docs")
    for name, (architecture, layers) in LAYERS.items():
        save_folder(folder / name, architecture, "[CLS] $A [SEP]" if layers == 6 else None)
        class_name, settings, _ = ARCHITECTURES[architecture]
        cls = getattr(transformers, class_name)
        torch.manual_seed(7)
        config = cls.config_class(**{**settings, "num_hidden_layers": layers})
        cls(config).save_pretrained(folder / name)
    return folder


@pytest.fixture
def embedded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny models under the names of the embedded ones."""
    monkeypatch.setattr(model_files, "_embedded_file", folder.joinpath)
    return folder


@pytest.fixture
def stores(embedded: Path) -> dict[str, Path]:
    """A capture and scores, made once."""
    made = {kind: embedded / f"{kind}.zarr" for kind in MAKES}
    wanted = ("baseline", "drop:layer=0..2", "skip:start=9..10")
    plans = [word for plan in wanted for word in ("--plan", plan)]
    for kind, path in made.items():
        if not path.exists():
            tasks = ["--tasks", "grammar,knowledge"] * (kind == "evaluate")
            assert main([kind, *plans, *tasks, "--limit", "4", "--out", str(path), "--quiet"]) == 0
    return made


def in_small(words: list[str]) -> list[str]:
    """A command with a few texts, examples or resamples in place of many, and with small figures,
    unless it says how large.
    """
    if words[0] == "analyze":
        permutations = ["--permutations", "3"] * (words[1] == "similarity")
        return [*words[:2], *SMALL, *permutations, *words[2:]]
    return [*words, "--limit", "2"] if words[0] in MAKES else words


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_run(
    page: Path,
    stores: dict[str, Path],
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPSIM_CACHE", raising=False)
    (tmp_path / "DIR").mkdir()
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "plans.txt").write_text("late = 0-3, 8-29\nno10 = drop:layer=10\n")
    (tmp_path / "tuned-model").symlink_to(embedded / "smollm2-135m")
    for line in runnable_lines(page):
        words = [STANDS_FOR.get(word, word) for word in shlex.split(line, comments=True)]
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
            continue
        # What a pipe would do to the output is not of interest here.
        command = in_small(words[1 : words.index("|") if "|" in words else None])
        bring_stores(command, stores)
        # What other pages ask for as well is run once; no later line reads it.
        if command[0] not in MAKES and tuple(command) in RUN:
            continue
        RUN.add(tuple(command))
        status = main(command)
        assert status == 0, f"{page_id(page)}: {line}: {capfd.readouterr().err}"


def runnable_lines(page: Path) -> Iterator[str]:
    for line in typed_lines(page):
        if line.startswith(("repsim ", "cd ")) and not line.endswith(NOT_RUN):
            yield line


def bring_stores(command: list[str], stores: dict[str, Path]) -> None:
    """Stores that a page reads without having made them."""
    if command[0] in MAKES:
        return
    is_of_scores = any(word in READS_SCORES or "scores" in word for word in command)
    for word in command[1:]:
        is_store = word.endswith(".zarr") or word in ("STORE", "OTHER")
        if is_store and not Path(word).exists():
            shutil.copytree(stores["evaluate" if is_of_scores else "capture"], word)
