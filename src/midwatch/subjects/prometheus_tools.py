"""The tools of a Prometheus server. PromQL only reads; the server bounds what a query may cost."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from pydantic import Field

from midwatch.lifecycle import Clock
from midwatch.subjects.prometheus_api import Line, PrometheusApi, Sample
from midwatch.subjects.prometheus_series import series_text
from midwatch.subjects.tools import Answer, Arguments, Tool
from midwatch.text import ticket_line

_MOST_SERIES = 30
_MOST_POINTS = 240  # of a series; the server refuses more than 11,000
_LEAST_STEP = 15.0  # seconds
_LONGEST_EXPRESSION = 2000
_WEEK = 7 * 24 * 60


class QueryRange(Arguments):
    expr: str = Field(description="PromQL.", max_length=_LONGEST_EXPRESSION)
    minutes: int = Field(60, ge=1, le=_WEEK, description="Length of the range.")
    ago: int = Field(0, ge=0, le=4 * _WEEK, description="Its end, minutes ago.")


class Series(Arguments):
    expr: str = Field(
        description='A selector such as {instance="a:9100"}, or any PromQL.',
        max_length=_LONGEST_EXPRESSION,
    )


class Alerts(Arguments):
    pass


class PrometheusTools:
    """The tools of one server.

    Args:
        api: The server.
        clock: The source of time.
        limit: Seconds that a request may take.
        alerts: Returns the alerts that fire or are pending.
        describe: Returns a series as one line.
        labels: What in such lines comes from what is watched.
    """

    def __init__(
        self,
        api: PrometheusApi,
        clock: Clock,
        limit: float,
        alerts: Callable[[], Awaitable[str]],
        describe: Callable[[Line], str],
        labels: tuple[re.Pattern[str], ...],
    ) -> None:
        self._api, self._clock, self._limit = api, clock, limit
        self._alerts, self._describe, self._labels = alerts, describe, labels

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        limit = self._limit + 1
        return (
            Tool(
                "query_range",
                "Series of a PromQL expression over time.",
                QueryRange,
                self._query_range,
                limit,
            ),
            Tool("series", "Series and their values now.", Series, self._series, limit),
            Tool(
                "alerts",
                "Alerts that fire or are pending.",
                Alerts,
                self._firing,
                limit,
            ),
        )

    async def _query_range(self, asked: QueryRange) -> Answer:
        end = self._clock.now().timestamp() - asked.ago * 60
        start = end - asked.minutes * 60
        step = max((end - start) / _MOST_POINTS, _LEAST_STEP)
        found = await self._api.query_range(asked.expr, start, end, step, self._limit)
        lines = [self._describe(line) for line in found[:_MOST_SERIES] if line.points]
        if len(found) > _MOST_SERIES:
            lines.append(f"… and {len(found) - _MOST_SERIES} more series")
        command = (
            f"query_range {asked.expr} start={start:.0f} end={end:.0f} step={step:.0f}"
        )
        return Answer(command, "\n".join(lines), reported=self._labels)

    async def _series(self, asked: Series) -> Answer:
        lines: list[str] = []
        count = 0

        def take(sample: Sample) -> None:
            nonlocal count
            count += 1
            if count <= _MOST_SERIES:
                name = ticket_line(series_text(sample.labels)) or "(no labels)"
                lines.append(f"{name}: {sample.value:g}")

        remarks = await self._api.query(asked.expr, self._limit, take)
        lines += [f"incomplete: {text}" for text in remarks.incomplete]
        if count > _MOST_SERIES:
            lines.append(f"… and {count - _MOST_SERIES} more series")
        text = "\n".join(lines)
        return Answer(f"query {asked.expr}", text, reported=self._labels)

    async def _firing(self, asked: Alerts) -> Answer:
        text = await self._alerts()
        return Answer("rules type=alert", text, reported=self._labels)
