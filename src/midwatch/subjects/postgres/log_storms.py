"""Storms of errors in the log: many of a shape that is new, or that is suddenly far more frequent than usual. Pure.

How frequent a shape usually is, is learned from the log before the first observation and from then on; what is
far more than that does not count for it, so that no storm becomes usual while it lasts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from midwatch.log_shapes import shape_of
from midwatch.model import Fact, Json, Signal
from midwatch.subjects.postgres.log_lines import Record
from midwatch.subjects.rows import text
from midwatch.subjects.series import Series, add_step, read_series
from midwatch.text import component_name
from midwatch.units import format_count, format_duration

INVARIANT = "log_error_storm"
SEVERITIES = ("ERROR", "FATAL", "PANIC")
SUDDEN = 10.0
"""How many times more frequent than usual a shape is in a storm."""
RISING = 3.0
"""From how many times on it does not count for what is usual: it may be the beginning of a storm."""
_MEMORY = 3600.0  # seconds over which the usual rate is learned
_SHAPES = 40  # shapes that are remembered
_OTHERS = "errors of many other shapes"


@dataclass(slots=True)
class Shape:
    """What is known of the errors of one shape.

    `usual` is how many there are in a second, as a rule; `series` are the steps of their count, with its
    last value before the window first. `example` is a line and what it is about.
    """

    usual: float = 0.0
    series: Series = field(default_factory=list)
    example: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: Any) -> Shape:
        known = raw if isinstance(raw, dict) else {}
        usual, example = known.get("usual"), known.get("example")
        return cls(
            float(usual) if isinstance(usual, (int, float)) else 0.0,
            read_series(known.get("series")),
            (
                {str(k): text(v, 300) for k, v in example.items()}
                if isinstance(example, dict)
                else {}
            ),
        )

    @property
    def count(self) -> float:
        return self.series[-1][1] - self.series[0][1] if self.series else 0.0

    @property
    def latest(self) -> float:
        return self.series[-1][0] if self.series else 0.0


def learned(records: Sequence[Record], seconds: float) -> Json:
    """Return the state to begin with: how frequent each shape was in a log of `seconds`."""
    counts = Counter(_shape(one) for one in records)
    return {
        shape: asdict(Shape(count / max(seconds, 1.0)))
        for shape, count in counts.most_common(_SHAPES)
    }


def storms(
    known: Json,
    records: Sequence[Record],
    at: float,
    elapsed: float,
    window: float,
    limit: float,
) -> tuple[Json, tuple[Signal, ...]]:
    """Return the state for the next observation, and a signal for each shape that is not as frequent as usual.

    Args:
        known: The state of the last observation.
        records: The new errors, oldest first.
        at: The time, in epoch seconds.
        elapsed: Seconds since the last observation.
        window: How long an error counts, in seconds; 0 counts those since the last observation.
        limit: Above so many within the window a shape that is not usual is a storm.
    """
    shapes = {str(shape): Shape.of(raw) for shape, raw in known.items()}
    new = _counted(shapes, records)
    elapsed = max(elapsed, 1.0)
    signals = []
    for name, shape in shapes.items():
        before = shape.series or [[at, 0.0]]
        found = new[name]
        shape.series = add_step(before, at, before[-1][1] + found, window)
        count = shape.count
        unusual = count > SUDDEN * shape.usual * max(window, elapsed)
        if unusual and count:
            signals.append(_signal(name, shape, window))
        rising = count > RISING * shape.usual * max(window, elapsed)
        if not (rising and count > limit):
            share = 1 - math.exp(-elapsed / _MEMORY)
            shape.usual += share * (found / elapsed - shape.usual)
    kept = sorted(shapes, key=lambda one: (-shapes[one].latest, -shapes[one].usual))
    kept = [one for one in kept if shapes[one].usual > 1e-7 or shapes[one].count]
    return {name: asdict(shapes[name]) for name in kept[:_SHAPES]}, tuple(signals)


def _counted(shapes: dict[str, Shape], records: Sequence[Record]) -> Counter[str]:
    """Return how many records each shape has; new shapes get an entry, and one for all that are too many."""
    found: Counter[str] = Counter()
    for record in records:
        name = _shape(record)
        if name not in shapes and len(shapes) >= 2 * _SHAPES:
            name = _OTHERS
        shape = shapes.setdefault(name, Shape())
        if not found[name]:  # the first is nearest to the cause
            about = {k: text(v, 64) for k, v in record.about.items() if v}
            shape.example = {"line": text(record.line, 300), **about}
        found[name] += 1
    return found


def _shape(record: Record) -> str:
    return component_name(f"{record.severity}: {text(shape_of(record.message), 150)}")


def _signal(name: str, shape: Shape, window: float) -> Signal:
    count = shape.count
    within = (
        f"within {format_duration(window)}" if window else "since the last observation"
    )
    usual = shape.usual * max(window, 1.0)
    expected = f"usually about {usual:.0f}" if usual >= 2 else "usually hardly any"
    facts: dict[str, Fact] = {
        "count": int(count),
        "usual": round(usual, 3),
        **shape.example,
    }
    return Signal(
        INVARIANT,
        name,
        f"{format_count(int(count), 'error')} of one shape {within} ({expected}), "
        f"such as: {text(shape.example.get('line'), 200)}",
        count,
        facts=facts,
    )
