"""Grafana Loki as a source: its query_range, polled.

The formats are those of https://grafana.com/docs/loki/latest/reference/loki-http-api/: streams of pairs of nanoseconds
and line, errors as plain text. What the server answers only in part is unknown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import SystemClock
from midwatch.subjects.http import Target
from midwatch.subjects.http_client import Answer
from midwatch.subjects.logs.levels import LEVELS, Level
from midwatch.subjects.logs.scanner import Scanner
from midwatch.subjects.logs.settings import LokiSettings
from midwatch.subjects.logs.source_reading import Reading
from midwatch.subjects.web_login import WebLogin
from midwatch.text import ticket_line
from midwatch.units import format_size

ANSWER_LIMIT = 64_000_000  # bytes
_SPAN = 3600 * 10**9  # nanoseconds that one request asks for
_MOST_REQUESTS = 50  # of one reading
_LEVEL_LABELS = ("level", "severity", "detected_level", "lvl", "log_level")
_NAME_LABELS = (
    "pod",
    "container",
    "instance",
    "filename",
    "service_name",
    "app",
    "job",
)


@dataclass(frozen=True, slots=True)
class LokiLine:
    """One line with the labels of its stream. `at` is in nanoseconds since 1970."""

    at: int
    text: str
    labels: Mapping[str, str]

    @property
    def stream(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in sorted(self.labels.items()))

    @property
    def file(self) -> str:
        """What names the stream for people."""
        found = (self.labels[name] for name in _NAME_LABELS if name in self.labels)
        return next(found, self.stream)

    @property
    def level(self) -> Level | None:
        for name in _LEVEL_LABELS:
            if (level := LEVELS.get(self.labels.get(name, "").lower())) is not None:
                return level
        return None

    @property
    def digest(self) -> str:
        text = f"{self.stream}\0{self.text}".encode("utf-8", "replace")
        return hashlib.sha256(text).hexdigest()[:12]


class LokiReader:
    """Reads the lines of one query.

    Args:
        settings: The query and how to log in.
        name: The source.
        timeout: Seconds of an observation.
        path: The path of the source in the settings.

    Raises:
        SettingsError: A file of the settings cannot be read.
    """

    def __init__(
        self, settings: LokiSettings, name: str, timeout: float, path: str
    ) -> None:
        self._settings = settings
        login = settings.login_settings(name, timeout)
        self._clock = SystemClock()
        self._target = Target.of(login.url)
        self._login = WebLogin(login, self._target, path)
        self._web = login.web_client(path, self._clock, keep_alive=True)

    @property
    def secrets(self) -> Sequence[str]:
        return self._login.secrets

    @property
    def shown(self) -> str:
        return self._target.shown

    @property
    def limit(self) -> int:
        return self._settings.limit

    async def close(self) -> None:
        await self._web.close()

    async def read(
        self, state: Any, now: float, since: float, timeout: float, scanner: Scanner
    ) -> Reading:
        """Read what is new; see `read_journal` for the arguments. Raises ObservationFailed for an answer that is none."""
        self._login.refresh()
        reading = Reading(now)
        until = int((now - self._settings.delay) * 1e9)
        place = _Place.of(state)
        if place is None:
            place = _Place(until - int(since * 1e9), ())
        deadline = self._clock.monotonic() + timeout
        for number in range(_MOST_REQUESTS):
            left = deadline - self._clock.monotonic()
            if place.at >= until or left <= 0.05:
                break
            end = min(until, place.at + _SPAN)
            try:
                found = await self.lines(place.at, end, left)
            except ObservationFailed:
                if not number:
                    raise
                break  # what was read so far counts, and the rest follows
            place = self._take(found, place, end, scanner, reading)
        if place.at < until:
            reading.behind = 1
        reading.place = {"at": str(place.at), "seen": list(place.seen)}
        return reading

    def _take(
        self,
        found: Sequence[LokiLine],
        place: _Place,
        end: int,
        scanner: Scanner,
        reading: Reading,
    ) -> _Place:
        """Record the lines of an answer; return where the next request goes on."""
        full = len(found) >= self._settings.limit
        new = [
            one for one in found if one.at > place.at or one.digest not in place.seen
        ]
        for one in new:
            scanner.record(one.text, one.level, one.file, one.stream, one.at / 1e9)
        if not full:
            return _Place(end, ())  # the end itself is not part of what was asked for
        last = found[-1].at
        if not new:  # more lines of one moment than an answer may have
            reading.lose(
                f"Loki has more than {self._settings.limit:,} lines of one moment, of which no answer has all",
                0,
            )
            return _Place(last + 1, ())
        seen = tuple(one.digest for one in found if one.at == last)
        return _Place(last, seen)

    async def lines(
        self,
        start: int,
        end: int,
        timeout: float,
        *,
        query: str = "",
        limit: int = 0,
        backward: bool = False,
    ) -> list[LokiLine]:
        """Return the lines from `start` (with it) to `end` (without it), in nanoseconds, oldest first.

        Args:
            start: Nanoseconds since 1970.
            end: Nanoseconds since 1970.
            timeout: Seconds.
            query: In LogQL; by default that of the source.
            limit: The most lines; by default that of the source.
            backward: Whether of more lines the last ones are returned.

        Raises:
            ObservationFailed: There is no whole answer.
        """
        answer = await self._web.fetch(
            "GET",
            self._target.url.rstrip("/") + "/loki/api/v1/query_range",
            params={
                "query": query or self._settings.query,
                "start": str(start),
                "end": str(end),
                "limit": str(limit or self._settings.limit),
                "direction": "backward" if backward else "forward",
            },
            headers=self._login.headers(),
            timeout=timeout,
            limit=ANSWER_LIMIT,
        )
        found = list(_lines(_data(answer)))
        found.sort(key=lambda one: one.at)
        return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where reading goes on: nanoseconds, and the digests of the lines of that moment that were read."""

    at: int
    seen: tuple[str, ...]

    @classmethod
    def of(cls, raw: Any) -> _Place | None:
        try:
            return cls(int(raw["at"]), tuple(str(one) for one in raw["seen"]))
        except (KeyError, TypeError, ValueError):
            return None


_HINT = "check that `url` is that of Loki, and the tenant and the login"


def _data(answer: Answer) -> Mapping[str, Any]:
    """Return the `data` of an answer. Raises ObservationFailed."""
    if answer.cut:
        raise ObservationFailed(
            f"the answer of Loki has more than {format_size(ANSWER_LIMIT)}",
            hint="let the query select less, or set a smaller limit",
        )
    body = answer.text()
    if answer.status != 200:
        raise ObservationFailed(
            f"Loki refused with status {answer.status}: {ticket_line(body, 200)}",
            hint=_hint(answer.status, body),
        )
    try:
        read = json.loads(body)
        data = read["data"]
        kind = data["resultType"]
    except (ValueError, KeyError, TypeError):
        raise ObservationFailed(
            "the answer does not have the form of Loki", hint=_HINT
        ) from None
    if read.get("status") != "success":
        raise ObservationFailed(f"Loki: status {ticket_line(str(read.get('status')))}")
    if kind != "streams":
        raise ObservationFailed(
            f"the query returns a {ticket_line(str(kind), 20)}, not lines",
            hint="use a log query, without rate() or count_over_time()",
        )
    warnings = read.get("warnings") or data.get("warnings")
    if warnings:
        raise ObservationFailed(
            f"the answer is incomplete: {ticket_line(str(warnings), 200)}"
        )
    found: Mapping[str, Any] = data
    return found


def _hint(status: int, body: str) -> str | None:
    if "max_entries_limit" in body or "max entries limit" in body:
        return "set a smaller `limit`"
    if status in (401, 403, 404) or "no org id" in body:
        return _HINT
    if "parse error" in body:
        return "correct the query"
    return None


def _lines(data: Mapping[str, Any]) -> Iterator[LokiLine]:
    try:
        for stream in data["result"]:
            labels = {str(k): str(v) for k, v in stream["stream"].items()}
            for value in stream["values"]:
                more = value[2] if len(value) > 2 else {}
                own = more.get("structuredMetadata", more)
                level = {k: str(v) for k, v in own.items() if k in _LEVEL_LABELS}
                yield LokiLine(int(value[0]), str(value[1]), {**labels, **level})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise ObservationFailed(
            "the answer does not have the form of Loki", hint=_HINT
        ) from None
