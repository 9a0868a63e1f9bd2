"""Bodies of HTTP: decompressed within a bound, and read as text in the encoding that they have.

A few bytes can decompress to gigabytes, so that a body is decompressed in small pieces, and only as far as
the caller reads.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterator
from typing import Any

_PIECE = 65_536  # bytes
_MOST_CODINGS = 5
_MOST_MEMBERS = 1000  # of one gzip file; each costs time, and may be empty
_GZIP = 16 + zlib.MAX_WBITS
_READABLE = {"gzip", "x-gzip", "deflate"}
_UNREADABLE = {
    *("br", "zstd", "dcb", "dcz", "compress", "x-compress"),
    *("exi", "pack200-gzip", "aes128gcm"),
}
"""The other codings in the registry of IANA."""


class Decompressor:
    """Undoes the codings of a body, the last one first.

    A name that is not registered changes nothing, as in browsers. What is cut off decompresses as far as it goes.

    Attributes:
        undecoded: Why the body is passed on as it came, or "".
        malformed: Why it ends here, since no one can decompress it, or "".
        cut: Whether it ends here, since it is larger than the limit.
    """

    def __init__(self, codings: str, limit: int) -> None:
        """Take the value of `Content-Encoding`, and the bytes that a step may produce."""
        names = [name.strip().lower() for name in codings.split(",")]
        names = [name for name in names if name in _READABLE | _UNREADABLE]
        self.undecoded = self.malformed = ""
        self.cut = False
        if len(names) > _MOST_CODINGS:
            self.undecoded = f"the body is compressed {len(names)} times"
        if unreadable := [name for name in names if name in _UNREADABLE]:
            self.undecoded = f"the body is compressed with {unreadable[-1]}, which cannot be read here"
        if self.undecoded:
            names = []
        self._limit = limit
        self._steps = [_Step(name) for name in reversed(names)]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the body stand for, in pieces of at most 64 kB if it is compressed."""
        yield from self._through(0, data)

    def _through(self, number: int, data: bytes) -> Iterator[bytes]:
        if number == len(self._steps):
            yield data
            return
        step = self._steps[number]
        pieces = step.feed(data)
        while not (self.malformed or self.cut):
            try:
                piece = next(pieces, None)
            except zlib.error as error:
                self.malformed = f"the body is not {step.name}: {error}"
                return
            if piece is None:
                return
            self.cut = step.produced > self._limit or step.members > _MOST_MEMBERS
            yield from self._through(number + 1, piece)


class _Step:
    """One coding: gzip with all its members, or deflate, which is zlib's format or, misunderstood, what is in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.produced = self.members = 0
        self._member: Any = None
        self._held = b""  # too little to know what it is
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        data = self._held + data
        self._held = b""
        while data and not self._ended:
            if self._member is None:
                if len(data) < 2:
                    self._held = data
                    return
                self._begin(data)
                continue
            piece = self._member.decompress(data, _PIECE)
            data = self._member.unconsumed_tail
            while piece:
                self.produced += len(piece)
                yield piece
                piece = self._member.decompress(data, _PIECE)
                data = self._member.unconsumed_tail
            if self._member.eof:
                data, self._member = self._member.unused_data, None
                yield b""  # a member may be empty: the caller counts them
                self._ended = self.name == "deflate"

    def _begin(self, data: bytes) -> None:
        """Begin a member, unless what follows the last one is no part of the body."""
        is_gzip = data.startswith(b"\x1f\x8b")
        if self.members and not is_gzip:
            self._ended = True
            return
        self.members += 1
        if self.name != "deflate":
            self._member = zlib.decompressobj(_GZIP)
        else:  # RFC 1950, section 2.2
            is_zlib = data[0] & 15 == 8 and (data[0] * 256 + data[1]) % 31 == 0
            bits = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
            self._member = zlib.decompressobj(bits)


# ------------------------------------------------------------------ text

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_CHARSETS = re.compile(
    r"utf-?(8|16|32)|(us-?)?ascii|iso[-_]?8859|iso-2022|latin|windows|cp\d|koi8|gb|big5|euc|shift|tis|mac",
    re.IGNORECASE,
)
"""The beginnings of the names of encodings of text; Python has other codecs, and some of them are slow."""


def decode(data: bytes, content_type: str = "") -> str:
    """Return `data` as text: as its byte order mark says, else its content type, else as UTF-8.

    What does not decode becomes U+FFFD.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    named = _CHARSET.search(content_type)
    if named and _CHARSETS.match(named[1]):
        try:
            return data.decode(named[1], "replace")
        except LookupError:
            pass
    return data.decode("utf-8", "replace")
