"""Small series of a value over time, kept in an observation's state. Pure."""

from __future__ import annotations

from typing import Any

Series = list[list[float]]
"""A small series of [epoch seconds, value], kept in an observation's state."""
POINTS = 8


def read_series(raw: Any) -> Series:
    """Return a series from stored state; empty for anything else."""
    if not isinstance(raw, list):
        return []
    return [
        [float(point[0]), float(point[1])]
        for point in raw
        if isinstance(point, list)
        and len(point) == 2
        and all(isinstance(part, (int, float)) for part in point)
    ]


def series_until(series: Series, at: float) -> Series:
    """Return the series up to `at`. If all of it is later (the clock was set back), it restarts there."""
    points = [point for point in series if point[0] <= at]
    return points or [[at, point[1]] for point in series[-1:]]


def add_step(series: Series, at: float, value: float, window: float) -> Series:
    """Return a counter's steps within the window (seconds), after its last value before the window.

    Steps closer than a sixtieth of the window are one. The count within the window is the
    last value less the first.
    """
    points = series_until(series, at)
    if not points or points[-1][1] != value:
        if len(points) > 1 and at - points[-1][0] < window / 60:
            points[-1] = [points[-1][0], value]
        else:
            points.append([at, value])
    while len(points) > 1 and points[1][0] < at - window:
        points.pop(0)
    return points


def point_spacing(window: float) -> float:
    """Return the seconds between two points, so that `POINTS` of them reach beyond the window."""
    return window / (POINTS - 3)


def add_point(series: Series, at: float, value: float, window: float) -> Series:
    """Return the series with one point more, thinned so that `POINTS` of them span the window.

    The point before the window stays: the value at the window's start is known by it.
    """
    points = series_until(series, at)
    if len(points) >= 2 and points[-1][0] - points[-2][0] < point_spacing(window):
        points.pop()
    points.append([at, value])
    while len(points) > 2 and points[1][0] <= at - window:
        points.pop(0)
    return points[-POINTS:]


def series_growth(series: Series, window: float) -> float | None:
    """Return what the value grew by within the window; None with fewer than two points.

    Over a longer time than the window (after a pause of the monitor), it is the window's share.
    """
    if len(series) < 2:
        return None
    (start, before), (end, now) = series[0], series[-1]
    elapsed = end - start
    if elapsed <= 0:
        return None
    return (now - before) * min(1.0, window / elapsed)
