"""The pages of the documentation, and what they ask a reader to type."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "tables.py"))
PAGES: list[Path] = TABLES["pages"]()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def typed_lines(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks, continued lines joined."""
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language in ("console", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield line.removeprefix("$ ")
