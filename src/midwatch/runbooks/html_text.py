"""Turn a page of HTML into Markdown: headings, lists, code and text, without scripts, forms and navigation (pure)."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_SKIPPED = frozenset(
    "script style template noscript svg title nav footer aside form button select iframe object dialog".split()
)
_BLOCKS = frozenset(
    "p div section article main header table ul ol dl dt dd blockquote figure details summary hr".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_MOST_DEEP = 40  # lists within lists
_SPACE = re.compile(r"[ \t\r\n\f]+")


def html_to_markdown(page: str) -> str:
    """Return the text of a page as Markdown. A page that has a `main` or an `article` element is that alone."""
    import re2  # linear on any text, which the comments of Python's parser are not

    page = re2.sub(r"(?s)<!--.*?-->|<[!?][^>]*>", " ", page)
    page = page.replace("<!", "< ").replace("<?", "< ")
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: dict[str, list[str]] = {"": [], "main": [], "article": []}
        self._within: list[str] = []
        self._skipping: list[str] = []
        self._lists: list[int] = []  # the next number; 0 for bullets
        self._pre = 0

    def text(self) -> str:
        for name in ("main", "article", ""):
            text = "".join(self._parts[name])
            lines = (line.rstrip() for line in text.split("\n"))
            tidy = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
            if tidy:
                return tidy
        return ""

    def _write(self, text: str) -> None:
        self._parts[""].append(text)
        for name in set(self._within):
            self._parts[name].append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipping:
            if tag == self._skipping[-1]:
                self._skipping.append(tag)
            return
        if tag in _SKIPPED:
            self._skipping.append(tag)
            return
        if tag in ("main", "article"):
            self._within.append(tag)
        if tag in _HEADINGS:
            self._write(f"\n\n{'#' * _HEADINGS[tag]} ")
        elif tag in ("ul", "ol"):
            if len(self._lists) < _MOST_DEEP:
                self._lists.append(1 if tag == "ol" else 0)
            self._write("\n" if len(self._lists) > 1 else "\n\n")
        elif tag == "li":
            self._item()
        elif tag == "pre":
            self._pre += 1
            self._write("\n\n```\n")
        elif tag in ("br", "tr"):
            self._write("\n")
        elif tag in ("td", "th"):
            self._write(" | ")
        elif tag == "code" and not self._pre:
            self._write("`")
        elif tag == "p" and self._lists:
            pass
        elif tag in _BLOCKS:
            self._write("\n\n")

    def _item(self) -> None:
        indent = "   " * max(len(self._lists) - 1, 0)
        number = self._lists[-1] if self._lists else 0
        if number:
            self._lists[-1] += 1
        self._write(f"\n{indent}{f'{number}.' if number else '-'} ")

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            if tag == self._skipping[-1]:
                self._skipping.pop()
            return
        if tag in _HEADINGS:
            self._write("\n\n")
        elif tag in ("ul", "ol"):
            if self._lists:
                self._lists.pop()
            self._write("\n" if self._lists else "\n\n")
        elif tag == "pre" and self._pre:
            self._pre -= 1
            self._write("\n```\n\n")
        elif tag == "code" and not self._pre:
            self._write("`")
        elif tag in ("main", "article") and tag in self._within:
            self._write("\n\n")
            self._within.remove(tag)
        elif tag in _BLOCKS and tag != "p":
            self._write("\n\n")

    def handle_data(self, data: str) -> None:
        if self._skipping:
            return
        if self._pre:
            self._write(data.replace("```", "ʼʼʼ"))
            return
        self._write(_SPACE.sub(" ", data))
