"""README.md, CONTRIBUTING.md and docs/ say what is so: their Python runs, their commands parse,
their links lead somewhere, and their tables are those of the program.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
import transformers
import typer

import repsim
from repsim.cli.app import app
from repsim.plans import resolve
from support.models import ARCHITECTURES, make, save_folder
from support.pages import FENCE, PAGES, ROOT, TABLES, page_id, typed_lines

CHANGED = [ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md"]
REPSIM = typer.main.get_command(app)
MODEL, LAYERS = "smollm2-135m", 30
CODE_SPAN = re.compile(r"`(repsim [^`\n]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"\b(?:tests|benchmarks|repsim|analyses|docs)/[\w/]+\.(?:py|md|ipynb)\b")
# Words in capitals that stand for a user's own.
STANDS_FOR = {"ANALYSIS": "cosine", "COMMAND": "capture", "PLAN": "baseline", "SIZE": "2TB"}
# What is answered, or done, while the line is parsed.
ANSWERED_AT_ONCE = (" --help", " -h", " --version", "-completion", " ANALYSIS")
# What the parser says to a command that a sentence names without its arguments.
INCOMPLETE = ("MissingParameter", "NoArgsIsHelpError")


STORED = resolve("late=0-3, 8-29", LAYERS)  # what pages call a plan of a store


def plans_in(parameters: dict[str, Any]) -> list[str]:
    """The plans that a command names, without files of them."""
    plan = parameters.get("plan") or "baseline"
    return [text for text in ([plan] if isinstance(plan, str) else plan) if "@" not in text]


def shell_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Every `repsim ...` line of a page, continued lines joined; and whether it is one to type,
    rather than a command named in a sentence.
    """
    for line in typed_lines(page):
        if line.startswith("repsim "):
            yield line, True
    for span in CODE_SPAN.findall(FENCE.sub("", page.read_text("utf-8"))):
        yield span.replace("\\|", "|"), False


def parse(line: str) -> dict[str, Any]:
    """The parameters of a command line as the command's own parser reads them; nothing is run."""
    arguments = [STANDS_FOR.get(word, word) for word in shlex.split(line, comments=True)[1:]]
    arguments = arguments[: arguments.index("|")] if "|" in arguments else arguments
    command: Any = REPSIM
    context = command.make_context("repsim", arguments)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        if not rest:  # `repsim plans` alone, or a group named in a sentence
            break
        name, command, arguments = command.resolve_command(context, rest)
        assert command is not None, f"{line}: no command {name}"
        context = command.make_context(name, arguments, parent=context)
    return dict(context.params)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as deep as the one that the pages name, and tiny."""
    folder = save_folder(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", None)
    class_name, settings, _ = ARCHITECTURES["llama"]
    cls = getattr(transformers, class_name)
    torch.manual_seed(7)
    cls(cls.config_class(**{**settings, "num_hidden_layers": LAYERS})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_blocks_run(
    page: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, in one namespace, in an empty folder, with a tiny model of the same depth."""
    text = page.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path / "cache"))
    matplotlib.use("Agg")
    namespace: dict[str, Any] = {"__name__": "page"}
    for language, block in FENCE.findall(text):
        if language == "python":
            source = block.replace(f'"{MODEL}"', repr(str(model_folder)))
            exec(compile(source, page_id(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    for line, typed in shell_lines(page):
        if line.endswith(ANSWERED_AT_ONCE):
            continue
        try:
            parameters = parse(line)
        except Exception as problem:
            if typed or type(problem).__name__ not in INCOMPLETE:
                pytest.fail(f"{page_id(page)}: {line}: {problem}")
        else:
            resolve(plans_in(parameters), parameters.get("layers", LAYERS), STORED)


@pytest.mark.parametrize("page", [*PAGES, *CHANGED], ids=page_id)
def test_links_and_files_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in LINK.findall(text):
        file, _, heading = link.partition("#")
        if file.startswith("http"):
            continue
        target = page.parent / file if file else page
        assert target.exists(), f"{page_id(page)}: {link}"
        if heading:
            assert heading in anchors(target), f"{page_id(page)}: {link}"
    if page.name != "CHANGELOG.md":  # which names files that have gone
        for file in FILE.findall(text):
            assert (ROOT / file).exists(), f"{page_id(page)}: {file}"


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tables_are_those_of_the_program() -> None:
    """`make docs` writes them."""
    tables = TABLES["tables"]()
    for page in PAGES:
        text = page.read_text("utf-8")
        assert TABLES["filled"](text, tables) == text, f"{page_id(page)}: run make docs"


def test_a_table_is_made_from_the_program() -> None:
    page = "before\n<!-- table: sets -->\nold\n<!-- end of table -->\nafter\n"
    filled = TABLES["filled"](page, TABLES["tables"]())
    assert "old" not in filled
    assert "| `painters` | figures 2 to 11 together |" in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")


def test_a_wrong_line_is_refused() -> None:
    """The check above can fail: an unknown option, command or analysis."""
    for line in ("repsim capture --no-such", "repsim no-such", "repsim analyze no-such STORE"):
        with pytest.raises(Exception, match="no-such"):
            parse(line)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_the_tiny_model_is_as_deep_as_the_one_it_stands_for(model_folder: Path) -> None:
    assert repsim.models.load(str(model_folder)).layers == LAYERS
    assert make("llama").layers < LAYERS
