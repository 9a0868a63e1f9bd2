"""Shapes of error lines: what many lines have in common, with names that stay the same across restarts.

What differs by its form (numbers, literals, names with a digit, values of keys) is left out of a line, so its shape is a
function of the line alone. Words that differ without such a form, such as user names, become one place of a shape
once several lines are equal but for them.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from midwatch.log_shapes import shape_of
from midwatch.model import Json
from midwatch.subjects.logs.levels import Level
from midwatch.subjects.series import Series, read_series
from midwatch.text import one_line

PLACE = "*"
"""What stands in a shape for words that differ."""
_VALUE = re.compile(
    r'"(?:[^"\\]|\\.)*"'
    r"|(?<=[\w\])]=)(?!#)(?:\[[^\]]*\]|[^\s,;&)}\]]+)"  # the value of a key
    r"|\b[0-9a-fA-F]{8,}\b"
)
_KEPT = re.compile(
    r"(?:err|error|reason|cause|type|exception|code|status|state|op|method)=$"
)
_WORDS = 40  # words of a message that determine its shape
_LONGEST_WORD = 60  # characters of a word with a digit
_LONGEST_NAME = 100  # characters of a component's name
_ALIKE = 3
"""How many shapes must be equal to a new one but for a few words, so that they become one."""
_LONGEST_EXAMPLE = 300
_MOST_FILES = 8  # of one shape
ANY = "*"
"""Stands for all files."""
_MEMORY = 2000
"""Shapes that are remembered as seen before."""


@dataclass(slots=True, eq=False)
class Shape:
    """Lines of one shape.

    Attributes:
        level: The level of its first line.
        words: Its words, with `#` for what differs by its form and `*` for words that differ.
        name: The name in tickets, once it has one; it stays when the shape becomes wider.
        first: When it was first seen, in epoch seconds.
        last: When it was last seen.
        series: The steps of its count; each stands in the middle of its moment.
        example: One of its lines, redacted.
        file: Where the example stands.
        found: How many lines the current observation has.
        counted: How many of them `Written` has.
        most: How many lines there are within the window, or were within one that is read only now.
        until: When that window ended, in epoch seconds.
        files: The digests of the files that had it within the window, and when; `ANY` once there are too many.
        wider: The shape that has taken its place.
    """

    level: Level
    words: tuple[str, ...]
    name: str = ""
    first: float = 0.0
    last: float = 0.0
    series: Series = field(default_factory=list)
    example: str = ""
    file: str = ""
    found: int = 0
    counted: int = 0
    most: float = 0.0
    until: float = 0.0
    files: dict[str, int] = field(default_factory=dict)
    wider: Shape | None = None

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def is_wide(self) -> bool:
        return PLACE in self.words

    @property
    def digest(self) -> str:
        return digest(self.text)

    def was_in(self, file: str) -> bool:
        """Return whether a file had lines of it within the window."""
        return ANY in self.files or digest(file) in self.files

    def add_file(self, file: str, now: float) -> None:
        """Record that a file has lines of it."""
        name = digest(file)
        if name not in self.files and len(self.files) >= _MOST_FILES:
            name = ANY
        self.files[name] = int(now)

    def fits(self, words: tuple[str, ...]) -> bool:
        """Return whether words of the same number are those of this shape."""
        return all(
            mine == PLACE or mine == other
            for mine, other in zip(self.words, words, strict=True)
        )

    def to_state(self) -> Json:
        found: Json = {
            "level": self.level.name,
            "text": self.text,
            "first": round(self.first),
            "last": round(self.last),
            "series": [[round(at, 1), count] for at, count in self.series],
            "example": self.example,
        }
        for name in ("name", "file", "files"):
            if value := getattr(self, name):
                found[name] = value
        return found

    @classmethod
    def of(cls, raw: Any) -> Shape | None:
        """Return the shape from stored state; None for anything else."""
        try:
            level = Level[str(raw["level"])]
            words = tuple(str(raw["text"]).split(" "))
            first, last = float(raw["first"]), float(raw["last"])
        except (KeyError, TypeError, ValueError):
            return None
        texts = (str(raw.get(name) or "") for name in ("example", "file"))
        example, file = texts
        name = str(raw.get("name") or "")
        series = read_series(raw.get("series"))
        found = cls(level, words, name, first, last, series, example, file)
        if isinstance(files := raw.get("files"), dict):
            found.files = {k: v for k, v in files.items() if isinstance(v, int)}
        return found


def digest(text: str) -> str:
    """Return 8 characters that tell the text of a shape from others."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]


def words_of(message: str) -> tuple[str, ...]:
    """Return the words of a message, with `#` for what differs by its form."""
    line = message.partition("\n")[0][:1000]
    if "=" in line or '"' in line or "'" in line:
        line = shape_of(_VALUE.sub(_hidden, line))
    found = line.translate(_DIGITS).split(None, _WORDS)[:_WORDS]
    for place, word in enumerate(found):
        if "0" in word:
            found[place] = _word_shape(word)
    if "#," in found:
        found = _without_lists(found)
    return tuple(found) or ("(empty)",)


_DIGITS = str.maketrans("123456789", "000000000")
_HEX = re.compile(r"[0-9a-fA-F]{8,}")


def _without_lists(words: list[str]) -> list[str]:
    """Return words in which a list of values is one."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "#," and word in ("#", "#,"):
            found[-1] = word
        else:
            found.append(word)
    return found


@functools.lru_cache(20_000)
def _word_shape(word: str) -> str:
    return shape_of(_HEX.sub("#", word[:_LONGEST_WORD]))


def _hidden(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 12) : match.start()]
    return match[0] if before.endswith("=") and _KEPT.search(before) else "#"


class Shapes:
    """The shapes of one source, at most `most` of them.

    Args:
        raw: Their stored state.
        known: The digests of those that were ever seen, oldest first, each of 8 characters.
        most: How many are kept.
        redact: Removes secrets from a line.
        now: The time, in epoch seconds.
        memory: How many are remembered as seen.
    """

    def __init__(
        self,
        raw: Any,
        known: str,
        most: int,
        redact: Callable[[str], str],
        now: float,
        memory: int = _MEMORY,
    ) -> None:
        self._most, self._redact, self.now = most, redact, now
        self._memory = memory
        self._exact: dict[tuple[Level, tuple[str, ...]], Shape] = {}
        self._groups: dict[tuple[Level, int], list[Shape]] = {}
        self.known = dict.fromkeys(known[at : at + 8] for at in range(0, len(known), 8))
        self.forgot = len(self.known) >= memory
        self.widened = 0
        """How often shapes became a wider one."""
        self.others = Shape(Level.ERROR, ("(other", "shapes)"))
        """All shapes that are too many to be kept."""
        for one in raw if isinstance(raw, list) else ():
            if (shape := Shape.of(one)) is not None:
                self._add(shape)

    def __iter__(self) -> Iterator[Shape]:
        for group in self._groups.values():
            yield from group

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def find(self, level: Level, message: str) -> Shape:
        """Return the shape of a message, which may be new."""
        words = words_of(message)
        if (shape := self._look_up(level, words)) is not None:
            return shape
        group = self._groups.get((level, len(words)), ())
        safe = words_of(self._redact(message))
        if safe != words:
            words, group = safe, self._groups.get((level, len(safe)), ())
            if (shape := self._exact.get((level, words))) is not None:
                return shape
        if alike := _alike(group, words):
            return self._widened(level, alike, words)
        return self._new(level, words)

    def look_up(self, level: Level, message: str) -> Shape | None:
        """Return the shape of a message, if there is one without removing secrets."""
        return self._look_up(level, words_of(message))

    def _look_up(self, level: Level, words: tuple[str, ...]) -> Shape | None:
        if (shape := self._exact.get((level, words))) is not None:
            return shape
        group = self._groups.get((level, len(words)), ())
        return next((one for one in group if one.is_wide and one.fits(words)), None)

    def is_alone(self, shape: Shape) -> bool:
        """Return whether no other shape could be that of a line which fits this one."""
        group = self._groups.get((shape.level, len(shape.words)), ())
        return shape is not self.others and not any(
            all(a == b or PLACE in (a, b) for a, b in zip(shape.words, one.words))
            for one in group
            if one is not shape
        )

    def seen(self, shape: Shape, line: str, file: str) -> None:
        """Record where the first of an observation's lines of a shape stands."""
        safe = self._redact(line)
        shape.example = one_line(safe, _LONGEST_EXAMPLE)
        shape.file = file
        shape.last = self.now

    def name(self, shape: Shape, source: str) -> str:
        """Return the name of a shape in tickets: it is given once."""
        if not shape.name:
            text = one_line(f"{shape.level.name}: {shape.text}", 1000)
            if len(text) > _LONGEST_NAME:
                text = f"{text[: _LONGEST_NAME - 10].rstrip()}…~{shape.digest}"
            taken = {one.name for one in self}
            shape.name = text if text not in taken else f"{text} ~{shape.digest}"
        return f"{source}: {shape.name}"

    def state(self, keep: Callable[[Shape], bool]) -> tuple[list[Json], str]:
        """Return the state of the shapes and of those that were ever seen; `keep` tells which must stay."""
        ranked = sorted(
            self,
            key=lambda one: (keep(one), one.is_wide and bool(one.most), one.last),
            reverse=True,
        )
        kept = [one.to_state() for one in ranked[: self._most]]
        return kept, "".join([*self.known][-self._memory :])

    # ------------------------------------------------------------------ new and wider shapes

    def _new(self, level: Level, words: tuple[str, ...]) -> Shape:
        if len(self) >= 2 * self._most:  # within one observation; `state` keeps half
            return self.others
        shape = Shape(level, words, first=self.now, last=self.now)
        if (key := shape.digest) in self.known:
            shape.first = 0.0  # seen before, and forgotten since
        self.known[key] = None
        self._add(shape)
        return shape

    def _widened(
        self, level: Level, alike: list[Shape], words: tuple[str, ...]
    ) -> Shape:
        """Replace shapes by one, in which the words that differ have a place."""
        columns = zip(words, *(one.words for one in alike), strict=True)
        wide = tuple(column[0] if len({*column}) == 1 else PLACE for column in columns)
        self.widened += 1
        for one in alike:
            self._remove(one)
        named = next((one.name for one in alike if one.name), "")
        latest = max(alike, key=lambda one: one.last)
        shape = Shape(
            level,
            wide,
            named,
            min(one.first for one in alike),
            latest.last,
            _sum([one.series for one in alike]),
            latest.example,
            latest.file,
            sum(one.found for one in alike),
            sum(one.counted for one in alike),
        )
        for one in alike:
            one.wider = shape
            for name, at in one.files.items():
                full = name not in shape.files and len(shape.files) >= _MOST_FILES
                shape.files[ANY if full else name] = at
        self.known[shape.digest] = None
        self._add(shape)
        return shape

    def _add(self, shape: Shape) -> None:
        self._exact[shape.level, shape.words] = shape
        self._groups.setdefault((shape.level, len(shape.words)), []).append(shape)

    def _remove(self, shape: Shape) -> None:
        self._exact.pop((shape.level, shape.words), None)
        self._groups[shape.level, len(shape.words)].remove(shape)


def _alike(group: Sequence[Shape], words: tuple[str, ...]) -> list[Shape]:
    """Return shapes that are equal to these words but for a few places, each of which has other words every time.

    A place with two or three words, such as "password" and "account", is a difference that counts.
    """
    by_place: dict[tuple[int, ...], list[Shape]] = {}
    most = max(1, len(words) // 4)
    for shape in group:
        differ = [n for n, (a, b) in enumerate(zip(shape.words, words)) if a != b]
        same = sum(a == b and a != "#" for a, b in zip(shape.words, words))
        if len(differ) <= most and same >= max(2, 2 * len(differ)):
            by_place.setdefault(tuple(differ), []).append(shape)
    for places, found in by_place.items():
        if len(found) >= _ALIKE and all(
            len({words[place], *(one.words[place] for one in found)}) > _ALIKE
            for place in places
        ):
            return found
    return []


def _sum(all_series: list[Series]) -> Series:
    """Return one series for the counts of several."""
    steps: dict[float, float] = {}
    start = [series[0] for series in all_series if series]
    for series in all_series:
        for (_, before), (at, value) in zip(series, series[1:]):
            steps[at] = steps.get(at, 0.0) + value - before
    if not start:
        return []
    total = sum(value for _, value in start)
    found: Series = [[min(at for at, _ in start), total]]
    for at in sorted(steps):
        total += steps[at]
        found.append([at, total])
    return found
