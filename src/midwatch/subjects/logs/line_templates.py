"""Expressions for lines of a shape, which count many of them in one step.

In a storm in which every line has another identifier or word, no line is equal to one that was read. So once a shape has
enough of them, an expression is made of one. It matches only lines of which every step of the usual way is known to
be the same: the head and each word are equal, but for digits, hexadecimal numbers, and the places of the shape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from midwatch.subjects.logs.error_shapes import PLACE, Shape, Shapes, words_of

_ENOUGH = 30  # lines of a shape in one observation from which on it has expressions
_MOST, _MOST_BODIES, _MOST_HEADS = 40, 4, 12  # in all, of a shape, and of an expression
_LONGEST = 400  # bytes of a line
_LONGEST_WORD = 60  # characters of a word that has digits, as `error_shapes` has it
_ANY = rb"[!#-&(-+\--<>-~]{1,100}+"  # a word without = , or a quote
_HEX = re.compile(rb"[0a-fA-F]{8,}")
_RUN = re.compile(rb"([A-Za-z0_.:/@+%-]+)")
_SEGMENT = re.compile(rb"([A-Za-z0]+)")
_HEX_SEGMENT = re.compile(rb"[0a-fA-F]{1,7}")
_PLAIN = re.compile(rb"[!#-&(-<>-~]+(?: [!#-&(-<>-~]+)*")


@dataclass(slots=True)
class Template:
    """The expression for lines of one shape: a known head, and a body. Digits are zeros in it, and in what it is matched with."""

    shape: Shape
    body: bytes
    heads: list[bytes] = field(default_factory=list)
    pattern: re.Pattern[bytes] | None = None

    def add(self, head: bytes) -> None:
        """Let lines with another beginning match, too."""
        self.heads.append(head)
        heads = b"|".join(map(re.escape, self.heads))
        # Possessive groups match too little before Python 3.11.5; nothing follows, so it is the same.
        self.pattern = re.compile(rb"(?:(?:%b)%b\n)+" % (heads, self.body))


@dataclass(slots=True)
class Templates:
    """The expressions of one observation, those that matched last first."""

    shapes: Shapes
    _all: list[Template] = field(default_factory=list)
    _tried: dict[Shape, int] = field(default_factory=dict)
    _widened: int = 0

    def match(self, keys: bytes, start: int, end: int) -> tuple[Shape, int] | None:
        """Return the shape of the lines that begin at a place, and where they end; None if no expression matches."""
        if (
            self._widened != self.shapes.widened
        ):  # other lines may have other shapes now
            self._all.clear()
            self._tried.clear()
            self._widened = self.shapes.widened
        for number, one in enumerate(self._all):
            assert one.pattern is not None
            if (found := one.pattern.match(keys, start, end)) is not None:
                if number:
                    self._all.insert(0, self._all.pop(number))
                return one.shape, found.end()
        return None

    def wants(self, shape: Shape) -> bool:
        """Return whether an expression may be made of another line of a shape."""
        return (
            shape.found > _ENOUGH
            and self._tried.get(shape, 0) <= _MOST_BODIES + _MOST_HEADS
            and len(self._all) < _MOST
        )

    def learn(self, head: bytes, message: bytes, shape: Shape) -> None:
        """Make an expression of a line.

        Args:
            head: What stands before its message; with zeros for all digits.
            message: Its message; likewise.
            shape: The shape that was found for it.
        """
        self._tried[shape] = self._tried.get(shape, 0) + 1
        if len(head) + len(message) > _LONGEST - 150:
            return
        body = _body(message, shape) if self.shapes.is_alone(shape) else None
        if body is None:
            return
        known = next(
            (o for o in self._all if o.body == body and o.shape is shape), None
        )
        if known is None:
            if sum(one.shape is shape for one in self._all) >= _MOST_BODIES:
                return
            known = Template(shape, body)
            self._all.append(known)
        if len(known.heads) < _MOST_HEADS and head not in known.heads:
            known.add(head)


def _body(message: bytes, shape: Shape) -> bytes | None:
    """Return an expression for messages with the words of a shape; None where it is not sure that these would have it."""
    if _PLAIN.fullmatch(message) is None:
        return None
    words, found = message.split(b" "), words_of(message.decode())
    if len(words) != len(shape.words) or len(found) != len(words) or len(words) > 39:
        return None
    parts: list[bytes] = []
    for word, plain, mine in zip(words, found, shape.words, strict=True):
        if mine == PLACE:
            parts.append(_ANY)
        elif mine != plain or plain == "#,":
            return None
        elif b"0" not in word:
            parts.append(re.escape(word))
        else:
            part, most = _number(word)
            if most > _LONGEST_WORD:
                return None
            parts.append(part)
    return b" ".join(parts)


def _number(word: bytes) -> tuple[bytes, int]:
    """Return an expression for words with the same shape as one with digits, and how long these may be.

    A hexadecimal number of 8 digits and more is one `#`, and so is all that is between characters such as brackets and has a
    digit. So numbers may differ, as long as none of less than 8 digits could become one of more.
    """
    parts: list[bytes] = []
    most = at = 0
    if word.strip(b"0") == b"":
        return b"0{1,20}+", 20
    for found in (*_HEX.finditer(word), None):
        end = found.start() if found is not None else len(word)
        for number, run in enumerate(_RUN.split(word[at:end])):
            if number % 2 and b"0" in run:
                part, longest = _run(run)
                parts.append(part)
                most += longest
            else:
                parts.append(re.escape(run))
                most += len(run)
        if found is not None:
            longest = max(16, len(found[0]))
            parts.append(b"[0a-fA-F]{8,%d}+" % longest)
            most += longest
            at = found.end()
    return b"".join(parts), most


def _run(run: bytes) -> tuple[bytes, int]:
    """Return an expression for what has a digit and no long hexadecimal number, and how long that may be."""
    parts, most = [], 0
    segments = _SEGMENT.split(run)
    mixed = any(
        b"0" in one and one.strip(b"0") and _HEX_SEGMENT.fullmatch(one)
        for one in segments
    )
    for one in segments:
        if one and not one.strip(b"0"):
            parts.append(b"0{1,7}+")
            most += 7
        elif mixed and _HEX_SEGMENT.fullmatch(one):
            parts.append(b"[0a-fA-F]{1,7}+")
            most += 7
        else:
            parts.append(re.escape(one))
            most += len(one)
    return b"(?=[A-Za-z_.:/@+%%-]*0)%b" % b"".join(parts), most
