"""Small series of [time, value] kept in an observation's state (pure). Times are epoch seconds."""

from __future__ import annotations

from typing import Any

Series = list[list[float]]
POINTS = 8


def read(raw: Any) -> Series:
    """A series out of stored state; whatever is not one is an empty series."""
    if not isinstance(raw, list):
        return []
    return [
        [float(point[0]), float(point[1])]
        for point in raw
        if isinstance(point, list)
        and len(point) == 2
        and all(isinstance(part, (int, float)) for part in point)
    ]


def since(series: Series, at: float) -> Series:
    """The series up to `at`. If all of it is later (the clock was set back), it starts anew there."""
    points = [point for point in series if point[0] <= at]
    return points or [[at, point[1]] for point in series[-1:]]


def stepped(series: Series, at: float, value: float, window: float) -> Series:
    """A counter's steps within the window, after its last value before it.

    Steps closer than a sixtieth of the window are one. The count within the window is the
    last value less the first.
    """
    points = since(series, at)
    if not points or points[-1][1] != value:
        if len(points) > 1 and at - points[-1][0] < window / 60:
            points[-1] = [points[-1][0], value]
        else:
            points.append([at, value])
    while len(points) > 1 and points[1][0] < at - window:
        points.pop(0)
    return points


def spacing(window: float) -> float:
    """Seconds between two points, so that `POINTS` of them reach beyond the window."""
    return window / (POINTS - 3)


def extended(series: Series, at: float, value: float, window: float) -> Series:
    """With one point more, thinned so that `POINTS` of them span the window.

    The point before the window stays: the value at the window's start is known by it.
    """
    points = since(series, at)
    if len(points) >= 2 and points[-1][0] - points[-2][0] < spacing(window):
        points.pop()
    points.append([at, value])
    while len(points) > 2 and points[1][0] <= at - window:
        points.pop(0)
    return points[-POINTS:]


def growth(series: Series, window: float) -> float | None:
    """What the value grew by within the window; None with fewer than two points.

    Over a longer time than the window (nobody looked meanwhile), it is the window's share.
    """
    if len(series) < 2:
        return None
    (start, before), (end, now) = series[0], series[-1]
    elapsed = end - start
    if elapsed <= 0:
        return None
    return (now - before) * min(1.0, window / elapsed)
