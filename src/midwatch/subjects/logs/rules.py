"""What the counts of a source say: storms, new errors, rates and heartbeats. Pure.

Lines count for when they were written, and those without a time evenly for the time since everything was last read. A storm
in a backlog is one, also if it is over; all else is unknown until everything is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from midwatch.log_shapes import time_of
from midwatch.model import Fact, Invariant, Json, Signal
from midwatch.subjects.logs.counts import (
    Compared,
    Rate,
    fullest,
    merged,
    series_of,
)
from midwatch.subjects.logs.error_shapes import Shape, Shapes
from midwatch.subjects.logs.line_times import Moment, shares
from midwatch.subjects.logs.scanner import Scanner
from midwatch.subjects.logs.settings import (
    BEAT,
    NEW,
    RATE,
    STORM,
    HeartbeatLine,
    LogsSettings,
    SourceSettings,
)
from midwatch.subjects.logs.source_reading import Reading
from midwatch.text import ticket_line
from midwatch.units import format_count, format_duration

MOST = 20
"""Shapes of a source that have a ticket of one invariant; one more counts the rest."""
OTHERS = "(other shapes)"


@dataclass(slots=True)
class Past:
    """What the earlier observations know of one source, in the state of the subject.

    Attributes:
        began: When it was first observed, in epoch seconds.
        at: When it was last read; 0 before the first reading.
        caught: When all of it was last read.
        lost: When lines were last lost, and why.
        place: Where its reading goes on.
        shapes: The state of its shapes.
        known: The digests of all shapes that were seen.
        rates: For lines and for errors: the windows so far, and the one that is being counted.
        beats: For each heartbeat between when and when it was last seen.
        open: The components that were broken, by invariant.
    """

    began: float
    at: float = 0.0
    caught: float = 0.0
    lost: tuple[float, str] = (0.0, "")
    place: Any = None
    shapes: Any = None
    known: str = ""
    rates: Json = field(default_factory=dict)
    beats: Json = field(default_factory=dict)
    open: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: Any, now: float) -> Past:
        """Return it from stored state; a new one for anything else."""
        try:
            found = cls(
                float(raw["began"]),
                float(raw["at"]),
                float(raw["caught"]),
                (float(raw["lost"][0]), str(raw["lost"][1])),
                raw["place"],
                raw["shapes"],
                str(raw["known"]),
                dict(raw["rates"]),
                dict(raw["beats"]),
                {str(k): [str(one) for one in v] for k, v in raw["open"].items()},
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            return cls(began=now)
        if found.at > now + 60:  # the clock was set back
            found.at = found.caught = now
            found.lost = (0.0, "")
        return found

    @property
    def is_first(self) -> bool:
        return self.at == 0.0

    def to_state(self) -> Json:
        return {
            "began": self.began,
            "at": self.at,
            "caught": self.caught,
            "lost": list(self.lost),
            "place": self.place,
            "shapes": self.shapes,
            "known": self.known,
            "rates": self.rates,
            "beats": self.beats,
            "open": self.open,
        }


@dataclass(slots=True)
class Verdict:
    """What is known of one source.

    Attributes:
        signals: Those of its components.
        unknown: Why nothing of it resolves, by invariant; empty where all was read.
        unsupported: What cannot be seen, with the remedy, by invariant.
        ignored: What the settings leave out, by invariant.
        learning: Until when, in epoch seconds, its shapes are learned; 0 once they are.
    """

    signals: list[Signal] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    learning: float = 0.0


class Judge:
    """Judges one reading of a source, and updates what is known of it.

    Args:
        settings: Those of the subject.
        source: Those of the source.
        invariants: The enabled ones by id.
        past: What is known of the source; it is changed to what is known then.
        shapes: Its shapes, with what the reading found.
    """

    def __init__(
        self,
        settings: LogsSettings,
        source: SourceSettings,
        invariants: Mapping[str, Invariant],
        past: Past,
        shapes: Shapes,
    ) -> None:
        self._settings, self._source = settings, source
        self._invariants, self._past, self._shapes = invariants, past, shapes
        self._verdict = Verdict()

    def verdict(self, reading: Reading, scanner: Scanner) -> Verdict:
        """Judge a reading that was made."""
        past, now = self._past, reading.began
        whole = not reading.behind
        before = past.caught or now - self._settings.since
        if reading.lost:
            past.lost = (now, reading.lost_text)
        moments = scanner.written.moments(before, now)
        self._count(now, before, moments, scanner)
        unknown = self._unknown(reading, now)
        sure = not unknown and not reading.denied
        self._verdict.unknown = {name: unknown for name in self._invariants if unknown}
        if reading.denied:
            why = f"{self._source.name}: {reading.denied}"
            self._verdict.unsupported = {name: why for name in self._invariants}
        if reading.left_out:
            told = self._verdict.ignored.setdefault(next(iter(self._invariants)), [])
            told += reading.left_out[:MOST]
        if STORM.id in self._invariants:
            self._storms(now, sure, reading.vanished)
        if NEW.id in self._invariants:
            self._new(now, before, sure)
        if RATE.id in self._invariants:
            untimed = scanner.written.untimed
            self._rates(now, past.caught or now, moments, untimed, whole, sure)
        if BEAT.id in self._invariants:
            self._beats(now, before, scanner, sure, reading.vanished)
        past.at, past.place = now, reading.place
        past.caught = now if whole else before
        keep = {*past.open.get(STORM.id, ()), *past.open.get(NEW.id, ())}
        past.shapes, past.known = self._shapes.state(
            lambda one: self._name(one) in keep
        )
        return self._verdict

    def failed(self, why: str, unsupported: bool = False) -> Verdict:
        """Judge a source that could not be read at all: what is known of it stays.

        With `unsupported` a setting or a permission is the reason.
        """
        told = {name: why for name in self._invariants}
        if unsupported:
            self._verdict.unsupported = told
        else:
            self._verdict.unknown = told
        return self._verdict

    # ------------------------------------------------------------------ what was read

    def _unknown(self, reading: Reading, now: float) -> str:
        """Return why not all of the source is known; empty if it is."""
        name, past = self._source.name, self._past
        why = list(reading.problems[:3])
        if len(reading.problems) > 3:
            why.append(f"and {len(reading.problems) - 3} more")
        if reading.behind:
            why.append(self._backlog(reading.behind))
        when, lost = past.lost
        if lost and now - when <= self._settings.window:
            why.append(lost)
        return f"{name}: {'; '.join(why)}" if why else ""

    def _backlog(self, behind: int) -> str:
        if self._source.files and behind > 1:
            from midwatch.units import format_size

            return f"{format_size(behind)} are not read yet, and follow"
        return "newer lines are not read yet, and follow"

    def _count(
        self, now: float, before: float, moments: dict[int, Moment], scanner: Scanner
    ) -> None:
        """Add what was read to the counts of the shapes."""
        window, width = self._settings.window, scanner.width
        found: dict[Shape, dict[int, float]] = {}
        for number, moment in moments.items():
            for shape, count in moment.shapes.items():
                found.setdefault(shape, {})[number] = count
        untimed = scanner.written.untimed.shapes
        spread = shares(before, now, width) if untimed else {}
        for shape, count in untimed.items():
            steps = found.setdefault(shape, {})
            for number, share in spread.items():
                steps[number] = steps.get(number, 0.0) + count * share
        for shape in (*self._shapes, self._shapes.others):
            new = {} if self._past.is_first else found.get(shape, {})
            steps = merged(shape.series, found.get(shape, {}), now, width)
            shape.most, shape.until = fullest(steps, new, now, window, width)
            shape.series = series_of(shape.series, steps, now - window, width)
            since = now - window
            shape.files = {k: at for k, at in shape.files.items() if at >= since}

    def _name(self, shape: Shape) -> str:
        return f"{self._source.name}: {shape.name}" if shape.name else ""

    # ------------------------------------------------------------------ errors

    def _storms(self, now: float, whole: bool, vanished: Collection[str]) -> None:
        window = self._settings.window
        minutes = window / 60
        invariant = self._invariants[STORM.id]
        limit = math.inf if invariant.limit is None else invariant.limit
        above = []
        for shape in (*self._shapes, self._shapes.others):
            if shape.most / minutes > limit and not self._ignored(invariant, shape):
                above.append(shape)

        def signal(shape: Shape) -> Signal:
            rate, count = shape.most / minutes, int(shape.most)
            over = f" until {utc_text(shape.until)}" if shape.until < now else ""
            return self._signal(
                STORM,
                shape,
                f"{format_count(count, 'error')} of one shape within {format_duration(window)}{over} ({rate:.3g} a minute)",
                rate,
                {"per_minute": round(rate, 2), "count": count}
                | ({"until": utc_text(shape.until)} if over else {}),
            )

        self._report(STORM, above, signal, whole, self._cut_off(vanished))

    def _cut_off(self, vanished: Collection[str]) -> dict[str, str]:
        """Return why it is unknown whether a storm is over, by component: the end of a file that had its lines was not read."""
        return {
            self._name(
                shape
            ): f"{self._source.name}: {ticket_line(path, 100)} is gone, and what was written to it since it was last"
            " read is unknown"
            for path in vanished
            for shape in self._shapes
            if shape.name and shape.was_in(path)
        }

    def _new(self, now: float, before: float, whole: bool) -> None:
        settings, past = self._settings, self._past
        learned = past.began + settings.learn
        if past.is_first or before < learned:  # its lines may be as old as that
            self._verdict.learning = max(learned, now)
            for one in self._shapes:
                one.first = min(one.first, learned - 1)
            return
        invariant = self._invariants[NEW.id]
        if self._shapes.forgot:
            self._verdict.unsupported[NEW.id] = (
                f"{self._source.name}: it has more shapes of errors than are remembered, so that none is known to be new"
                " (hint: leave them out by `ignore` or give the services a source each)"
            )
            return
        new = [
            one
            for one in self._shapes
            if one.first >= learned
            and now - one.first <= settings.new_for
            and not self._ignored(invariant, one)
        ]

        def signal(shape: Shape) -> Signal:
            seen = format_count(int(shape.most or shape.found or 1), "line")
            return self._signal(
                NEW,
                shape,
                f"an error of a shape that was never seen before ({seen})",
                None,
                {"count": int(shape.most), "first_seen": utc_text(shape.first)},
            )

        self._report(NEW, new, signal, whole)

    def _report(
        self,
        invariant: Invariant,
        broken: Sequence[Shape],
        signal: Callable[[Shape], Signal],
        whole: bool,
        unsure: Mapping[str, str] | None = None,
    ) -> None:
        """Report shapes as broken, at most `MOST`, and those that were as holding if all was read.

        `unsure` are components of which it is unknown, and why.
        """
        unsure = unsure or {}
        open_ = set(self._past.open.get(invariant.id, ()))
        ranked = sorted(
            broken, key=lambda one: (self._name(one) not in open_, -one.most)
        )
        kept, rest = ranked[:MOST], ranked[MOST:]
        signals = [signal(one) for one in kept]
        if rest:
            signals.append(self._others(invariant, rest))
            self._verdict.unknown.setdefault(
                invariant.id, f"{self._source.name}: too many shapes have errors"
            )
        names = [one.component for one in signals]
        if whole and not rest:
            for name in sorted(open_.difference(names)):
                if name in unsure:
                    signals.append(Signal(invariant.id, name, unsure[name]))
                    names.append(name)
                else:
                    again = Signal(invariant.id, name, "it holds again", holds=True)
                    signals.append(again)
        elif not whole:
            names += [name for name in open_.difference(names)][: 2 * MOST]
        self._past.open[invariant.id] = names
        self._verdict.signals += signals

    def _others(self, invariant: Invariant, rest: Sequence[Shape]) -> Signal:
        source = self._source.name
        count = int(sum(one.most for one in rest))
        return Signal(
            invariant.id,
            f"{source}: {OTHERS}",
            f"{source}: {len(rest):,} more shapes, with {format_count(count, 'line')}, than the {MOST} that have a ticket",
            holds=False,
            facts={"source": source, "shapes": len(rest), "count": count},
        )

    def _signal(
        self,
        invariant: Invariant,
        shape: Shape,
        what: str,
        value: float | None,
        more: Mapping[str, Fact],
    ) -> Signal:
        source = self._source.name
        facts: dict[str, Fact] = {
            "source": source,
            "level": shape.level.name,
            **more,
            "shape": ticket_line(shape.text),
            "example": ticket_line(shape.example),
        }
        if shape.file:
            facts["file"] = ticket_line(shape.file)
        component = self._shapes.name(shape, source)
        if shape is self._shapes.others:
            component = f"{source}: {OTHERS}"
        return Signal(
            invariant.id,
            component,
            f"{source}: {what}, such as: {ticket_line(shape.example, 200)}",
            value,
            holds=False,
            facts=facts,
        )

    def _ignored(self, invariant: Invariant, shape: Shape) -> bool:
        about = {
            "source": self._source.name,
            "shape": shape.text,
            "example": shape.example,
        }
        if not invariant.ignores(about):
            return False
        told = self._verdict.ignored.setdefault(invariant.id, [])
        if len(told) < MOST:
            told.append(f"{self._source.name}: {ticket_line(shape.text, 80)}")
        return True

    # ------------------------------------------------------------------ rates

    def _rates(
        self,
        now: float,
        before: float,
        moments: dict[int, Moment],
        untimed: Moment,
        whole: bool,
        sure: bool,
    ) -> None:
        window, width = self._settings.rate_window, self._settings.moment
        for what in ("lines", "errors"):
            rate = Rate.of(self._past.rates.get(what), before, window)
            for number, moment in moments.items():
                rate.add((number + 0.5) * width, getattr(moment, what))
            rate.spread(before, now, getattr(untimed, what))
            closed = rate.close(now) if whole else []
            self._past.rates[what] = rate.to_state()
            if self._invariants[RATE.id].ignores(
                {"source": self._source.name, "what": what}
            ):
                self._verdict.ignored.setdefault(RATE.id, []).append(
                    f"{self._source.name}: {what}"
                )
            elif rate.latest is not None:
                high = [one for one in closed if self._is_high(one)]
                one = max(high, key=lambda one: one.lines, default=rate.latest)
                self._verdict.signals.append(self._rate_signal(what, one, now, sure))

    def _is_high(self, one: Compared) -> bool:
        limit = self._invariants[RATE.id].limit
        return (
            limit is not None
            and one.times > limit
            and one.lines >= self._settings.rate_minimum
            and one.stands_out
        )

    def _rate_signal(self, what: str, one: Compared, now: float, sure: bool) -> Signal:
        source, window = self._source.name, self._settings.rate_window
        broken = self._is_high(one)
        until = "" if now - one.end < 2 * window else f" until {utc_text(one.end)}"
        return Signal(
            RATE.id,
            f"{source}: {what}",
            f"{source}: {int(one.lines):,} {what} within {format_duration(window)}{until}, {one.times:.3g} times as many as usual"
            f" ({int(one.usual):,})",
            one.times if broken or sure else None,
            holds=False if broken else (True if sure else None),
            facts={
                "source": source,
                "count": int(one.lines),
                "usual": round(one.usual, 1),
                "deviation": round(one.deviation, 1),
            },
        )

    # ------------------------------------------------------------------ heartbeats

    def _beats(
        self,
        now: float,
        before: float,
        scanner: Scanner,
        sure: bool,
        vanished: Collection[str],
    ) -> None:
        known = self._past.beats
        kept: Json = {}
        for beat in self._source.heartbeats:
            low, high, file = _span(known.get(beat.name), self._past.began)
            if (found := scanner.beaten.get(beat.name)) is not None:
                line, file = found
                low, high = _when(line, min(before, now), now)
            elif file in vanished:  # its last lines may have been such ones
                high, file = now, ""
            kept[beat.name] = [low, high, file]
            self._beat(beat, low, high, now, sure)
        self._past.beats = kept

    def _beat(
        self, beat: HeartbeatLine, low: float, high: float, now: float, sure: bool
    ) -> None:
        """Report a heartbeat that was last seen between two times."""
        source = self._source.name
        if self._invariants[BEAT.id].ignores(
            {"source": source, "heartbeat": beat.name}
        ):
            self._verdict.ignored.setdefault(BEAT.id, []).append(
                f"{source}: {beat.name}"
            )
            return
        latest = max(high, self._past.lost[0])  # it may have been among what is lost
        holds: bool | None = None
        if now - low <= beat.within:
            holds = True
        elif now - latest > beat.within and sure:
            holds = False
        ever = high > self._past.began
        since = f"for {format_duration(now - high)}" + ("" if ever else " or longer")
        self._verdict.signals.append(
            Signal(
                BEAT.id,
                f"{source}: {beat.name}",
                f"{source}: no line {ticket_line(beat.pattern, 100)!r} {since}; it is due every {format_duration(beat.within)}",
                now - high,
                holds=holds,
                facts={
                    "source": source,
                    "heartbeat": beat.name,
                    "last_seen": utc_text(high) if ever else "never",
                    "within_seconds": beat.within,
                },
            )
        )


def _span(raw: Any, otherwise: float) -> tuple[float, float, str]:
    """Return between when and when a heartbeat was last seen, and in which file."""
    try:
        low, high, *file = raw
        return float(low), float(high), str(file[0]) if file else ""
    except (TypeError, ValueError):
        return otherwise, otherwise, ""


def _when(line: str, low: float, high: float) -> tuple[float, float]:
    """Return between when and when a line was written that was read between two times."""
    at, _ = time_of(line, None)
    if at is not None and low - 1 <= at.timestamp() <= high + 1:
        return at.timestamp(), at.timestamp()
    return low, high


def utc_text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
