"""`python -m tools.words`: find words that Midwatch does not use, one line a hit.

Docstrings, comments and other string literals of the sources are searched, and the pages of the
documentation. `python -m tools.words --count` prints the hits by package.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tools", "deploy", "docs")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")

WORDS = {
    r"\btold\b": "printed, recorded, reported",
    r"(?<!has )(?<!had )(?<!have )\bsaid\b": "printed, reported",
    r"\bwhoever\b": "the one that",
    r"\bnobody\b": "no one; name who",
    r"\banew\b": "again",
    r"\bof ours\b": "of Midwatch",
    r"\bwhat is no\b": "anything that is not a …",
    r"(?<!there )\bis no (?:duration|size|share|number|name|kind|phase|folder|plan)\b": "is not a …",
    r"\bsay which\b": "show the …",
    r"\bmend(?:s|ed|ing)?\b(?!-)": "fix",
    r"\brights\b": "permissions",
    r"\btime-out\b": "timeout",
    r"\blog-in\b": "login",
    r"\bso many seconds\b": "name the number",
}
"""Each pattern, and what to write instead."""
_RULES = [(re.compile(word, re.IGNORECASE), better) for word, better in WORDS.items()]
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Hit:
    """A word at a place, and what to write instead."""

    file: str
    line: int
    word: str
    better: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.word} → {self.better}"


def main(arguments: Sequence[str]) -> int:
    """Print every hit, or the count of hits by package; return 1 if there is one."""
    hits = list(hits_in(ROOT))
    if "--count" in arguments:
        packages = Counter("/".join(Path(hit.file).parts[:3]) for hit in hits)
        for package, count in sorted(packages.items()):
            print(f"{count:5} {package}")
    else:
        print(*hits, sep="\n", end="\n" if hits else "")
    return 1 if hits else 0


def hits_in(root: Path) -> Iterator[Hit]:
    """Yield the hits in the sources and pages below `root`, by file."""
    files = [file for folder in FOLDERS for file in (root / folder).rglob("*")]
    for file in sorted([*files, *(root / page for page in PAGES)]):
        name = str(file.relative_to(root))
        if file.suffix not in (".py", ".md") or name == "tools/words.py":
            continue
        text = file.read_text(encoding="utf-8")
        found = python_texts(text) if file.suffix == ".py" else [(1, text)]
        for start, part in found:
            yield from _hits(name, start, part)


def _hits(name: str, start: int, text: str) -> Iterator[Hit]:
    """Yield the hits in a text whose first line is `start`; code in backquotes is left out."""
    prose = _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    for rule, better in _RULES:
        for match in rule.finditer(prose):
            line = start + prose.count("\n", 0, match.start())
            yield Hit(name, line, match[0], better)


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and string literals of a module, each with its first line.

    A literal without a space, such as a key or a name, is not prose and is left out.
    """
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if " " in node.value:
                yield node.lineno, node.value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
