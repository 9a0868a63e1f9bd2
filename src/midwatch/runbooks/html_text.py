"""Turn a page of HTML into Markdown: headings, lists, code and text, without scripts, forms and navigation (pure).

Python's own parser takes quadratic time on unclosed tags and comments before 3.13.6; a page may be hostile.
"""

from __future__ import annotations

import re
from html import unescape

_SKIPPED = frozenset(
    "script style template noscript svg title nav footer aside form button select iframe object dialog".split()
)
_BLOCKS = frozenset(
    "p div section article main header table dl dt dd blockquote figure details summary hr".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_MOST_DEEP = 10  # lists within lists
_TOKEN = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^<>]*>|[^<]+|<")
_SPACE = re.compile(r"[ \t\r\n\f]+")


def html_to_markdown(page: str) -> str:
    """Return the text of a page as Markdown. A page that has a `main` or an `article` element is that alone."""
    import re2  # in linear time also where a comment does not end

    reader = _Reader()
    page = re2.sub(r"(?s)<!--.*?-->|<[!?][^<>]*>", " ", page)
    for token in _TOKEN.finditer(page):
        end, tag = token[1], (token[2] or "").lower()
        if not tag:
            reader.text(unescape(token[0]))
        elif end:
            reader.end(tag)
        else:
            reader.start(tag)
    return reader.markdown()


class _Reader:
    """Writes Markdown for the elements of a page, in their order."""

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {"": [], "main": [], "article": []}
        self._within: list[str] = []
        self._skipping, self._depth = "", 0
        self._lists: list[int] = []  # the next number; 0 for bullets
        self._pre = 0

    def markdown(self) -> str:
        for name in ("main", "article", ""):
            lines = "".join(self._parts[name]).split("\n")
            text = "\n".join(map(str.rstrip, lines)).strip()
            if text:
                return re.sub(r"\n{3,}", "\n\n", text)
        return ""

    def text(self, text: str) -> None:
        if self._skipping:
            return
        if self._pre:
            self._write(text.replace("```", "'''"))
        else:
            self._write(_SPACE.sub(" ", text))

    def start(self, tag: str) -> None:
        if self._skipping:
            self._depth += tag == self._skipping
        elif tag in _SKIPPED:
            self._skipping, self._depth = tag, 1
        elif tag in _HEADINGS:
            self._write(f"\n\n{'#' * _HEADINGS[tag]} ")
        elif tag in ("ul", "ol"):
            self._write("" if self._lists else "\n\n")
            if len(self._lists) < _MOST_DEEP:
                self._lists.append(int(tag == "ol"))
        elif tag == "li":
            self._item()
        elif tag == "pre":
            self._pre += 1
            self._write("\n\n```\n")
        elif tag in ("td", "th"):
            self._write(" | ")
        elif tag == "code" and not self._pre:
            self._write("`")
        elif tag in ("br", "tr"):
            self._write("\n")
        elif tag in _BLOCKS and not (tag == "p" and self._lists):
            self._within += [tag] if tag in self._parts else []
            self._write("\n\n")

    def end(self, tag: str) -> None:
        if self._skipping:
            self._depth -= tag == self._skipping
            self._skipping = self._skipping if self._depth else ""
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
            self._write("" if self._lists else "\n\n")
        elif tag == "pre" and self._pre:
            self._pre -= 1
            self._write("\n```\n\n")
        elif tag == "code" and not self._pre:
            self._write("`")
        elif tag in _HEADINGS or (tag in _BLOCKS and tag != "p"):
            self._write("\n\n")
            if tag in self._within:
                self._within.remove(tag)

    def _item(self) -> None:
        indent = "   " * max(len(self._lists) - 1, 0)
        number = self._lists[-1] if self._lists else 0
        if number:
            self._lists[-1] += 1
        self._write(f"\n{indent}{f'{number}.' if number else '-'} ")

    def _write(self, text: str) -> None:
        for name in {"", *self._within[:2]}:
            self._parts[name].append(text)
