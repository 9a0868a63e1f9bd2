"""The trace of a session, from its events: the run, its turns, and the calls of tools."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime

from midwatch.model import Usage
from midwatch.redaction import Redactor
from midwatch.session.events import (
    Event,
    Failure,
    Phase,
    PhaseChanged,
    Prompt,
    Retry,
    Started,
    ToolResult,
    ToolUse,
    TurnResult,
    TurnStarted,
)
from midwatch.session.runner import EventSink
from midwatch.telemetry import gen_ai
from midwatch.telemetry.opening import open_telemetry
from midwatch.telemetry.spans import Attributes, Span, Telemetry
from midwatch.telemetry_settings import TelemetrySettings
from midwatch.text import one_line

_MOST_OPEN = 1000
"""Calls of tools at once; further ones are not recorded."""


class TracedEvents:
    """Records the events of a run as spans, and passes each on. Satisfies `EventSink`.

    Args:
        inner: Gets every event.
        telemetry: Records the spans.
        provider: Whose API the session uses, as in the settings.
        about: Attributes of the session, such as its id and its ticket.
    """

    def __init__(
        self,
        inner: EventSink,
        telemetry: Telemetry,
        provider: str = "anthropic",
        about: Attributes = {},
    ) -> None:
        self._inner = inner
        self._telemetry = telemetry
        self._about: Attributes = {**gen_ai.agent("claude-code", provider), **about}
        self._run: Span | None = None
        self._turn: Span | None = None
        self._tools: dict[str, Span] = {}
        self._prompts: dict[str, str] = {}
        self._retries = 0

    def note(self, text: str) -> None:
        self._inner.note(text)

    def event(self, event: Event) -> None:
        """Record an event, and pass it on."""
        self._record(event)
        self._inner.event(event)

    def close(self) -> None:
        """End what is still open: the runner ended first."""
        self._end_all(None)

    def _record(self, event: Event) -> None:
        run = self._run or self._begin(event.at)
        if isinstance(event, Started):
            run.set(
                {
                    "gen_ai.conversation.id": event.conversation,
                    "gen_ai.request.model": event.model or None,
                    "gen_ai.agent.version": event.program_version or None,
                }
            )
        elif isinstance(event, Prompt):
            if self._telemetry.content:
                self._prompts[event.id] = event.text
        elif isinstance(event, TurnStarted):
            self._begin_turn(run, event)
        elif isinstance(event, TurnResult):
            self._end_turn(event)
        elif isinstance(event, ToolUse):
            self._begin_tool(run, event)
        elif isinstance(event, ToolResult):
            self._end_tool(event)
        elif isinstance(event, Retry):
            self._retries += 1
        elif isinstance(event, Failure):
            run.fail(event.kind, event.message)
        elif isinstance(event, PhaseChanged):
            self._enter(run, event)

    def _begin(self, at: datetime) -> Span:
        began = self._telemetry.begin("invoke_agent claude-code", self._about, at=at)
        self._run = began
        return began

    def _enter(self, run: Span, event: PhaseChanged) -> None:
        run.set({"midwatch.phase": event.phase.value, "midwatch.run": event.run})
        if event.phase is Phase.FAILED:
            run.fail(one_line(event.reason, 80) or "failed")
        if event.phase.terminal:
            self._end_all(event.at)

    def _begin_turn(self, run: Span, event: TurnStarted) -> None:
        self._retries = 0
        self._turn = self._telemetry.begin("turn", parent=run, at=event.at)
        if text := self._prompts.pop(event.prompt_id, ""):
            said = [{"role": "user", "content": text}]
            self._turn.set(gen_ai.prompt_content("", said))

    def _end_turn(self, event: TurnResult) -> None:
        if (turn := self._turn) is None:
            return
        total = sum((one.usage for one in event.models.values()), Usage())
        turn.set(
            {
                **gen_ai.usage(total),
                "gen_ai.response.model": ", ".join(event.models) or None,
                "midwatch.outcome": event.outcome,
                "midwatch.cost_usd": event.cost_usd,
                "midwatch.calls": event.turns,
                "midwatch.retries": self._retries,
            }
        )
        if self._telemetry.content and event.text:
            turn.set(gen_ai.answer_content(event.text, event.outcome))
        if event.outcome == "failed":
            turn.fail("turn_failed", event.reason)
        turn.end(event.at)
        self._turn = None

    def _begin_tool(self, run: Span, event: ToolUse) -> None:
        if len(self._tools) >= _MOST_OPEN:
            return
        name = one_line(event.name, 80)
        above = self._tools.get(event.parent_id or "", self._turn or run)
        span = self._telemetry.begin(
            f"execute_tool {name}",
            gen_ai.tool(name, event.id),
            parent=above,
            at=event.at,
        )
        if self._telemetry.content:
            span.set(gen_ai.tool_content(event.input, None))
        self._tools[event.id] = span

    def _end_tool(self, event: ToolResult) -> None:
        span = self._tools.pop(event.tool_use_id, None)
        if span is None:
            return
        if self._telemetry.content:
            span.set({"gen_ai.tool.call.result": event.text})
        if event.is_error:
            span.fail("tool_error")
        span.end(event.at)

    def _end_all(self, at: datetime | None) -> None:
        for span in (*self._tools.values(), self._turn, self._run):
            if span is not None:
                span.end(at)
        self._tools, self._turn, self._run = {}, None, None


@contextlib.asynccontextmanager
async def traced_events(
    inner: EventSink,
    settings: TelemetrySettings,
    redactor: Redactor,
    *,
    provider: str,
    session_id: str,
    ticket: int | None = None,
) -> AsyncIterator[EventSink]:
    """Yield where the events of one run go; its trace is sent at the end of the block.

    Raises:
        SettingsError: As `open_telemetry`.
    """
    telemetry = open_telemetry(settings, redactor)
    about: Attributes = {"midwatch.session": session_id, "midwatch.ticket": ticket}
    events = TracedEvents(inner, telemetry, provider, about)
    try:
        yield events
    finally:
        events.close()
        await telemetry.close()
