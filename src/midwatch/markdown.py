"""Fold parts of a Markdown page, and take a page apart for a terminal (pure).

A fold is a `<details>` element, which GitHub, GitLab and most renderers show closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from midwatch.text import clean, longest_run

_FENCE = re.compile(r"(`{3,}|~{3,})[^`]*")
_OPENING = re.compile(r"<details><summary>(.*)</summary>")
_CLOSING = "</details>"
_HEADING = re.compile(r"#{1,6} .*")
_INLINE = re.compile(
    r"(?P<ticks>`+) ?(?P<code>.+?) ?(?P=ticks)(?!`)|\\(?P<escaped>[!-/:-@\[-`{-~])"
)

QUOTES = "Quotes"
"""Title of a fold with quotes, a list. A terminal shows it, a line a quote."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a page: a heading or other Markdown, the content of a code fence, or what a fold with a title hides."""

    kind: Literal["heading", "text", "code", "fold"]
    text: str
    title: str = ""


def fold(title: str, page: str) -> str:
    """Return Markdown that shows only the title until it is opened; "" for an empty page.

    The page must be escaped; the title is escaped here.
    """
    if not page.strip():
        return ""
    from html import escape

    shown = escape(" ".join(title.split()))
    return f"<details><summary>{shown}</summary>\n\n{page.strip()}\n\n{_CLOSING}"


def fenced(text: str) -> str:
    """Return text from outside whole, in a code fence that it cannot end."""
    shown = clean(text, longest=None).strip("\n")
    ticks = "`" * max(longest_run(shown, "`") + 1, 3)
    return f"{ticks}text\n{shown}\n{ticks}"


def blocks(page: str) -> Iterator[Block]:
    """Yield the parts of a page in order. A tag within a code fence is text."""
    text: list[str] = []
    lines = page.split("\n")
    at = 0
    while at < len(lines):
        opening = _OPENING.fullmatch(lines[at])
        if _HEADING.fullmatch(lines[at]):
            yield from _texts(text)
            text = []
            yield Block("heading", lines[at])
        elif opening or _FENCE.fullmatch(lines[at]):
            yield from _texts(text)
            text = []
            end = _fold_end(lines, at) if opening else _fence_end(lines, at)
            inner = "\n".join(lines[at + 1 : end])
            if opening:
                from html import unescape  # has a table of two thousand names

                yield Block("fold", inner.strip("\n"), unescape(opening[1]))
            else:
                yield Block("code", inner)
            at = end
        else:
            text.append(lines[at])
        at += 1
    yield from _texts(text)


def list_items(page: str) -> Iterator[str]:
    """Yield the entries of a list as text: without marks of code and escapes."""
    for line in page.split("\n"):
        yield _INLINE.sub(
            lambda found: found["code"] or found["escaped"], line.removeprefix("- ")
        )


def _texts(lines: Sequence[str]) -> Iterator[Block]:
    text = "\n".join(lines).strip("\n")
    if text:
        yield Block("text", text)


def _fence_end(lines: Sequence[str], at: int) -> int:
    """Return the line that ends the fence; the end of the page where none does."""
    opened = _FENCE.fullmatch(lines[at])
    ticks = opened[1] if opened else ""
    for end in range(at + 1, len(lines)):
        line = lines[end].strip()
        if line.startswith(ticks) and not line.strip(ticks[0]):
            return end
    return len(lines)


def _fold_end(lines: Sequence[str], at: int) -> int:
    depth = 0
    while at < len(lines):
        if _FENCE.fullmatch(lines[at]):
            at = _fence_end(lines, at)
        elif _OPENING.fullmatch(lines[at]):
            depth += 1
        elif lines[at] == _CLOSING:
            depth -= 1
            if not depth:
                return at
        at += 1
    return len(lines)
