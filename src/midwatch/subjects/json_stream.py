"""Read a JSON document piece by piece, so that its longest lists are never in memory as a whole.

A reader is a generator that is sent the text as it arrives. Only the structure around the long lists is
walked here; every other value is decoded by the standard library.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

LONGEST_VALUE = 1_000_000  # characters of one value that is decoded as a whole
T = TypeVar("T")
Reading = Generator[None, str, T]
Member = Callable[[dict[str, Any]], Reading[Any]]
_SPACE = re.compile(r"[ \t\n\r]*")
_REST_OF_NUMBER = re.compile(r"[-+.0-9eE]*\Z")
_decode = json.JSONDecoder().raw_decode


class JsonText:
    """The text that has arrived and is not read yet. Its readers raise ValueError for text that is not JSON."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0

    def value(self) -> Reading[Any]:
        """Read a value as a whole. One of more than `LONGEST_VALUE` characters is an error."""
        yield from self._next()
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > LONGEST_VALUE:
                    raise
            else:
                number = type(value) in (int, float)
                # A number at the end of the text may go on, also behind a point or an exponent that was cut.
                if not (number and _REST_OF_NUMBER.match(self._text, end)):
                    self._at = end
                    return value
            yield from self._more()

    def object(self, members: Mapping[str, Member]) -> Reading[dict[str, Any]]:
        """Read an object, or null as an empty one. The readers of its `members` get what came before them."""
        found: dict[str, Any] = {}
        if (yield from self._next()) == "n" and (yield from self.value()) is None:
            return found
        yield from self._expect("{")
        if (yield from self._next()) == "}":
            self._at += 1
            return found
        while True:
            name = yield from self.value()
            if not isinstance(name, str):
                raise ValueError("the name of a member is not a string")
            yield from self._expect(":")
            reader = members.get(name)
            found[name] = yield from reader(found) if reader else self.value()
            if (yield from self._expect(",}")) == "}":
                return found

    def array(self, item: Callable[[], Reading[Any]]) -> Reading[None]:
        """Read each item of an array, or null, with `item`, which keeps what it needs."""
        if (yield from self._next()) != "[":
            if (yield from self.value()) is not None:
                raise ValueError("not an array")
            return
        self._at += 1
        if (yield from self._next()) == "]":
            self._at += 1
            return
        while True:
            yield from item()
            if (yield from self._expect(",]")) == "]":
                return

    def _expect(self, characters: str) -> Reading[str]:
        found = yield from self._next()
        if found not in characters:
            raise ValueError(f"expected one of {characters}")
        self._at += 1
        return found

    def _next(self) -> Reading[str]:
        """Return the next character that is not a space, without reading it."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            yield from self._more()

    def _more(self) -> Reading[None]:
        rest = self._text[self._at :]
        self._at = 0
        self._text = rest + (yield)


class JsonFeed:
    """Sends the bytes of a document to a reader. A byte order mark is skipped; invalid UTF-8 becomes U+FFFD."""

    def __init__(self, reader: Reading[T]) -> None:
        self._reader = reader
        self._text = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self.result: Any = None
        self.error: Exception | None = None
        self.ended = False
        next(reader)

    def feed(self, data: bytes, final: bool = False) -> None:
        """Read on; with `final` set nothing follows. What comes after the document or an error is ignored."""
        if self.ended or self.error:
            return
        text = self._text.decode(data, final)
        try:
            if text:
                self._reader.send(text)
        except StopIteration as end:
            self.result, self.ended = end.value, True
        except (ValueError, RecursionError) as error:
            self.error = error
        else:
            if final:
                self.error = ValueError("the document ends early")
