"""Which rules of redaction can find anything in a text: one scan, which proves of most texts that none can.

Every rule has a hint beside it: a pattern that is in each text in which the rule hides something. A hint may be
where its rule then finds nothing. All hints are one automaton of RE2 (google-re2): it reads each byte of UTF-8 once,
however many hints there are, and other threads run meanwhile. It is built once it pays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from midwatch.redaction.markers import MARKER

# The automaton reads UTF-8 as Latin-1: of a character beyond ASCII it sees some of HIGH. For a marker it sees a
# byte that no UTF-8 has, so that what is hidden already is no hint.
HIGH = r"\x80-\xf4"
AUTHORIZATION_MARKER, MARKERS = r"\xff", r"\xfe\xff"
SPACE = rf"[\s\x0b\x1c-\x1f{HIGH}]"
"""The beginning of what `\\s` of Python matches, and more."""
LETTER = rf"[\w{HIGH}]"
"""The beginning of what `\\w` of Python matches, and more."""

# Python takes these for letters of ASCII where case does not count: İ, ı, ſ, and the sign for kelvin.
_LIKE_ASCII = r"\xc4[\xb0\xb1]|\xc5\xbf|\xe2\x84\xaa"


_IS_MARKER = re.compile(MARKER.encode())
_NONE: frozenset[str] = frozenset()


UNSCANNED = 20_000
"""Characters that all rules read before the automaton is built.

It takes 20 ms and 4 MB, as much time as the rules take for some two hundred lines: an idle daemon logs fewer.
"""
_START = 100  # characters that a rule reads in the time in which it starts


class Hints:
    """Finds the rules that can hide something in a text.

    Args:
        patterns: The hint of each rule, in the syntax of RE2, by the rule's name.
        unscanned: Characters for which every rule is named, before there is an automaton.
    """

    def __init__(self, patterns: Mapping[str, str], unscanned: int = UNSCANNED) -> None:
        self._patterns = dict(patterns)
        self._names = tuple(patterns)
        self._last = len(patterns) + 1
        self._unscanned = unscanned
        self._match: Callable[[bytes], list[int] | None] | None = None
        self.all = frozenset(patterns)

    def build(self) -> Callable[[bytes], list[int] | None]:
        """Build the automaton now, and return what searches with it."""
        import re2

        automaton = re2.Set.SearchSet(_options())
        for pattern in (*self._patterns.values(), _LIKE_ASCII, ""):
            automaton.Add(pattern.encode())
        automaton.Compile()
        self._match = automaton.Match
        return self._match

    def of(self, text: str) -> frozenset[str]:
        """Return the names of the rules that can hide something in `text`: no other one can."""
        if self._match is None:
            self._unscanned -= _START + len(text)
            if self._unscanned >= 0:
                return self.all
        match = self._match or self.build()
        data = text.encode("utf-8", "surrogatepass")
        if b"[redacted:" in data:
            data = data.replace(b"[redacted:authorization]", b"\xff")
            data = _IS_MARKER.sub(b"\xfe", data)
        found = match(data)
        if found == [self._last]:
            return _NONE
        # The last pattern is in every text: without it the automaton gave up, as its memory is bounded.
        if not found or self._last - 1 in found:
            return self.all
        return frozenset(self._names[one] for one in found if one < self._last)


def find_any(texts: Iterable[str]) -> Callable[[bytes], object]:
    """Return a search for any of some texts, in UTF-8. It returns None if there is none."""
    import re2

    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    pattern = b"|".join(map(re2.escape, encoded))
    search: Callable[[bytes], object] = re2.compile(pattern, _options()).search
    return search


def _options() -> Any:
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return options


def unless_hidden(ends: str, but: str = "", markers: str = MARKERS) -> str:
    """Return a pattern for the beginning of a value, unless that is a marker, and then the text's end or one of `ends`.

    Args:
        ends: Characters as in a class, without its brackets.
        but: Characters that the value does not begin with, in the same way.
        markers: The bytes of the markers, in the same way.
    """
    return f"(?:[^{markers}{but}]|[{markers}][^{ends}])"


_WINDOW = 100_000  # characters that Python's engine searches at a time: other threads run in between


def windows(text: str) -> Iterator[tuple[int, int]]:
    """Yield the parts of a text, each up to a comma or the end of a line: no word or token goes on there."""
    at = 0
    while len(text) - at > _WINDOW:
        end = at + _WINDOW
        end = max(text.rfind("\n", at, end), text.rfind(",", at, end))
        if end <= at:
            break
        yield at, end
        at = end
    yield at, len(text)
