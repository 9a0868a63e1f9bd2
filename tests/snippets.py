"""The code of README.md and docs/: every fenced block, and how its author marked one that no test can run.

A comment of the form `<!-- not run: REASON -->` stands on the line before the block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN = ("python", "sh")
SHOWN = ("yaml", "json", "sql", "text", "console", "dockerfile", "promql", "toml")
"""Languages of blocks that are no program; `test_docs` and others check their contents."""

_BLOCK = re.compile(
    r"^(?:<!-- not run: *(?P<why>.*?) *-->\n)?(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Snippet:
    """One block. `not_run` is the reason why no test runs it, or None."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def runs(self) -> bool:
        return self.language in RUN and self.not_run is None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets_of(page: Path) -> Iterator[Snippet]:
    """Yield the blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(content):
        line = content.count("\n", 0, found.start("fence")) + 1
        name = str(page.relative_to(ROOT))
        yield Snippet(name, line, found["language"], found["text"], found["why"])


SNIPPETS = tuple(snippet for page in PAGES for snippet in snippets_of(page))


def blocks(page: str, language: str) -> list[str]:
    """Return the texts of the blocks of a page that are in a language."""
    return [s.text for s in SNIPPETS if (s.page, s.language) == (page, language)]
