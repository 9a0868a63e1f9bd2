"""An investigation: the tools that Claude may call for a batch, their answers as evidence, and the limits.

A call becomes one piece of evidence, whatever it returned: one that was refused, failed or came back empty is
unavailable, so that no quote of it verifies. What is spent is counted over all attempts at a batch: an attempt
goes on from the last evidence that an earlier one has stored (`begun`).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema

from midwatch.agent.diagnosis import Round, Step, ToolResult
from midwatch.agent.evidence import ContextGatherer, failure_of
from midwatch.config import explain
from midwatch.diagnosis_schema import Reply, ToolCall
from midwatch.lifecycle import cancel, off_loop
from midwatch.model import Context, Diagnosis, Evidence, Json, Ticket, Usage
from midwatch.pricing import cost_usd
from midwatch.settings import InvestigationSettings
from midwatch.subjects.base import Subject
from midwatch.subjects.tools import Answer, Tool, tools_of
from midwatch.telemetry import gen_ai
from midwatch.telemetry.spans import NoTelemetry, Telemetry
from midwatch.text import one_line

RESUME_WITHIN = timedelta(minutes=15)
"""Age of the evidence of an interrupted attempt from which on it is gathered again."""
_STOPPING = 1.0  # seconds that a call gets to end after its time is over
_AT_ONCE = 4  # calls of one message that run at the same time
_NOT_RUN = "Not run: this diagnosis has no calls left."
_SUBJECT = "subject"
_ITSELF = "Midwatch itself"  # no subject can have that name


@dataclass(frozen=True, slots=True)
class _Offer:
    """A tool as Claude sees it, and the subjects that have it, by name."""

    by_subject: Mapping[str, Tool]

    @property
    def tool(self) -> Tool:
        return next(iter(self.by_subject.values()))

    def definition(self, name: str) -> Json:
        """Return the tool as the API wants it; with several subjects it has one more argument."""
        schema = self.tool.arguments.model_json_schema(schema_generator=_Plain)
        for one in ("title", "description"):
            schema.pop(one, None)
        fields: dict[str, Json] = schema.setdefault("properties", {})
        schema["properties"] = {one: _short(field) for one, field in fields.items()}
        if len(self.by_subject) > 1:
            names: Json = {"type": "string", "enum": list(self.by_subject)}
            schema["properties"] = {_SUBJECT: names, **schema["properties"]}
            schema["required"] = [_SUBJECT, *schema.get("required", ())]
        return {
            "name": name,
            "description": self.tool.description,
            "input_schema": schema,
        }

    def chosen(self, arguments: Json) -> tuple[str, Tool | None, Json]:
        """Return the subject, its tool and the arguments for it; no tool for a subject that has none."""
        name = next(iter(self.by_subject))
        if len(self.by_subject) > 1:
            arguments = dict(arguments)
            name = str(arguments.pop(_SUBJECT, ""))
        return name, self.by_subject.get(name), arguments


def _short(field: Json) -> Json:
    """Return the schema of an argument without what only its validation needs, and without null: it is left out."""
    options = [one for one in field.get("anyOf", ()) if one != {"type": "null"}]
    if len(options) == 1:
        field = {**options[0], **field}
        del field["anyOf"]
    dropped = {"maxLength", "minLength", "maxItems", "minItems", "pattern"}
    if field.get("default", "") is None:
        dropped.add("default")
    return {name: value for name, value in field.items() if name not in dropped}


class _Plain(GenerateJsonSchema):
    """Leaves out the titles, which repeat the names: each token of a definition is paid."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Toolbox:
    """The tools for one batch.

    Args:
        gatherer: Turns answers into evidence.
        offered: The tools of each subject of the batch, by its name.
        call_tokens: Longest evidence of a call, in tokens.
        telemetry: Records each call as a span.
    """

    def __init__(
        self,
        gatherer: ContextGatherer,
        offered: Mapping[str, Sequence[Tool]],
        call_tokens: int,
        telemetry: Telemetry = NoTelemetry(),
    ) -> None:
        self._gatherer = gatherer
        self._call_tokens = call_tokens
        self._telemetry = telemetry
        self._offers = _offers(offered)
        self.definitions = tuple(
            offer.definition(name) for name, offer in sorted(self._offers.items())
        )

    async def answer(
        self, calls: Sequence[ToolCall], after: Context, most: int, seconds: float
    ) -> tuple[ToolResult, ...]:
        """Run the calls of one message at the same time, and return their results in order. Never raises.

        Args:
            calls: The calls.
            after: The context so far: the new evidence continues its numbers.
            most: Calls that may be run; the rest is not.
            seconds: Time that all of them may take.
        """
        turns = asyncio.Semaphore(_AT_ONCE)
        numbers = [int(one.id[1:]) for one in after.evidence if one.id[0] == "E"]
        first = 1 + max(numbers, default=0)
        running = [
            asyncio.create_task(
                self._traced(call, number, turns, seconds), name=f"tool {call.name}"
            )
            for number, call in enumerate(calls[:most], first)
        ]
        try:
            found = await asyncio.gather(*running)
        finally:
            await cancel(*running)
        results = [
            ToolResult(call.id, evidence)
            for call, evidence in zip(calls, found, strict=False)
        ]
        results += [ToolResult(call.id, None, _NOT_RUN) for call in calls[most:]]
        return tuple(results)

    async def _traced(
        self, call: ToolCall, number: int, turns: asyncio.Semaphore, seconds: float
    ) -> Evidence:
        known = call.name if call.name in self._offers else "unknown"
        attributes = gen_ai.tool(known, call.id)
        with self._telemetry.span(f"execute_tool {known}", attributes) as span:
            evidence = await self._answer(call, number, turns, seconds)
            if self._telemetry.content:
                span.set(gen_ai.tool_content(call.arguments, evidence.text))
            if not evidence.available:
                span.fail("unavailable")
            return evidence

    async def _answer(
        self, call: ToolCall, number: int, turns: asyncio.Semaphore, seconds: float
    ) -> Evidence:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        command = _written(call)
        async with turns:
            # What Claude wrote may repeat hostile text: it stays in the command and in the text.
            name, subject, problem = "unknown tool", "midwatch", "there is no such tool"
            answer, ok = Answer(command, ""), False
            if offer := self._offers.get(call.name):
                name, problem = call.name, "there is no such subject"
                chosen, tool, given = offer.chosen(call.arguments)
                if tool is not None:
                    subject = chosen
                    arguments, problem = _validated(tool, given)
                    if not problem:
                        left = min(tool.timeout, max(until - loop.time(), 0.1))
                        answer, ok = await _run(tool, arguments, command, left)
            if problem:
                answer = Answer(command, f"Refused: {one_line(problem, 300)}")
        piece = await self._gatherer.answered(name, subject, answer, ok=ok)
        size = len(piece.text)
        return await off_loop(size, piece.numbered, number, self._call_tokens)


def _offers(offered: Mapping[str, Sequence[Tool]]) -> dict[str, _Offer]:
    """Return the tools by the name that Claude calls. Tools of one name with other arguments get the subject's."""
    found: dict[str, dict[str, Tool]] = {}
    for subject, tools in offered.items():
        for tool in tools:
            same = found.setdefault(tool.name, {})
            first = next(iter(same.values()), tool)
            if first.arguments is not tool.arguments:
                own = "".join(
                    c if c.isalnum() and c.isascii() else "_" for c in subject
                )
                name = f"{own}_{tool.name}"[:120]
                while name in found:  # of a subject with almost the same name
                    name += "_"
                same = found.setdefault(name, {})
            same[subject] = tool
    return {name: _Offer(tools) for name, tools in found.items()}


def _written(call: ToolCall) -> str:
    written = json.dumps(call.arguments, ensure_ascii=False)
    return one_line(f"{call.name} {written}", 2000)


def _validated(tool: Tool, given: Any) -> tuple[Any, str]:
    """Return the arguments, or what is wrong with them."""
    try:
        return tool.arguments.model_validate(given), ""
    except ValidationError as error:
        return None, explain(error, tool.arguments, what="argument").one_line()


async def _run(
    tool: Tool, arguments: Any, command: str, limit: float
) -> tuple[Answer, bool]:
    """Return what a tool answers, and whether that can be quoted. A tool may be a plug-in: any error of it is
    an answer that cannot."""
    task = asyncio.ensure_future(tool.run(arguments))
    try:
        await asyncio.wait({task}, timeout=limit)
        if failure := failure_of(task, limit):
            return Answer(command, f"Unavailable: {failure}"), False
    finally:
        if task.cancel():
            await asyncio.wait({task}, timeout=_STOPPING)
    answer = task.result()
    return answer, bool(answer.text.strip())


# ------------------------------------------------------------------ the limits


@dataclass(slots=True)
class Investigation:
    """The investigation of one batch: its tools, its limits, and what was spent of them.

    `before` are the seconds that calls of the API took in earlier attempts.
    """

    toolbox: Toolbox
    limits: InvestigationSettings
    rounds: int = 0
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    before: float = 0.0
    earlier: Context | None = field(default=None)

    def step(self, step: Step, model: str) -> Step:
        """Return a step with the tools, if the limits allow to ask once more, else as one that must answer."""
        step = replace(step, tools=self.toolbox.definitions, may_ask=True)
        worst = step.worst_case_usd(model)
        limits = self.limits
        may_ask = (
            bool(step.tools)
            and not step.no_tools
            and self.rounds < limits.rounds
            and self.calls < limits.calls
            and self.seconds < limits.time
            and self.tokens + 2 * step.worst_case_tokens <= limits.tokens
            and self.usd + 2 * worst <= limits.usd
        )
        return replace(step, may_ask=may_ask)

    def spend(self, usage: Usage, usd: float) -> None:
        """Count a call of the API."""
        self.tokens += usage.input_tokens + usage.output_tokens
        self.tokens += usage.cache_read_tokens + usage.cache_write_tokens
        self.usd += usd

    async def ask(self, step: Step, reply: Reply) -> Step:
        """Run the calls of a reply, and return the step that hands their answers over."""
        left = min(self.limits.calls - self.calls, self._affordable(step, reply))
        results = await self.toolbox.answer(
            reply.calls, step.known, left, max(self.limits.time - self.seconds, 1.0)
        )
        self.rounds += 1
        self.calls += min(len(reply.calls), left)
        if len(reply.calls) > left:
            self.calls = (
                self.limits.calls
            )  # what could not be afforded now cannot be later
        rounds = (*step.rounds, Round(reply.content, results))
        return replace(step, rounds=rounds, correction=None)

    def _affordable(self, step: Step, reply: Reply) -> int:
        """Return how many calls can have their longest evidence in a last request, with the longest answer to it."""
        each, written = self.limits.call_tokens, reply.usage.output_tokens
        tokens = step.worst_case_tokens + written + step.max_tokens
        by_tokens = (self.limits.tokens - self.tokens - tokens) // each
        model = reply.asked_model
        usd = step.worst_case_usd(model)
        usd += cost_usd(model, Usage(cache_write_tokens=written))
        price = cost_usd(model, Usage(cache_write_tokens=each))
        by_usd = math.floor((self.limits.usd - self.usd - usd) / price)
        return max(min(by_tokens, by_usd), 0)


class Investigator:
    """Begins investigations.

    Args:
        gatherer: Turns answers into evidence.
        subjects: The subjects by name.
        settings: The limits of one diagnosis.
        around: Returns the tools that belong to no subject, for a batch of these subjects.
        telemetry: Records each call of a tool as a span.

    Raises:
        SettingsError: A package of tools cannot be used.
    """

    def __init__(
        self,
        gatherer: ContextGatherer,
        subjects: Mapping[str, Subject],
        settings: InvestigationSettings = InvestigationSettings(),
        around: Callable[[Sequence[str]], Sequence[Tool]] = lambda names: (),
        telemetry: Telemetry = NoTelemetry(),
    ) -> None:
        self._around = around
        self._telemetry = telemetry
        self._gatherer = gatherer
        self._settings = settings
        self._tools = {name: tools_of(one) for name, one in subjects.items()}

    def begin(self, tickets: Sequence[Ticket]) -> Investigation:
        """Return the investigation of a batch."""
        names = list(dict.fromkeys(ticket.key.subject for ticket in tickets))
        offered: dict[str, Sequence[Tool]] = {}
        if self._settings.rounds and self._settings.calls:
            offered = {one: self._tools[one] for one in names if one in self._tools}
            offered[_ITSELF] = self._around(names)
        toolbox = Toolbox(
            self._gatherer, offered, self._settings.call_tokens, self._telemetry
        )
        return Investigation(toolbox, self._settings)

    def resume(
        self,
        tickets: Sequence[Ticket],
        past: Sequence[Diagnosis],
        now: datetime,
    ) -> Investigation:
        """Return the investigation as earlier attempts at the batch left it.

        `earlier` is the context of the last of them that had asked, if its evidence is fresh enough.
        """
        begun = self.begin(tickets)
        recent = [one for one in past if now - one.started_at < RESUME_WITHIN]
        asked = [one for one in recent if any(e.command for e in one.evidence)]
        if not asked:
            return begun
        last = asked[-1]
        begun.rounds = sum(one.outcome == "asked" for one in recent)
        begun.calls = sum(bool(one.command) for one in last.evidence)
        begun.earlier = Context(tuple(tickets), last.evidence, last.started_at)
        for one in recent:
            begun.spend(one.usage, one.cost_usd)
            ended = one.finished_at or one.started_at
            begun.before += (ended - one.started_at).total_seconds()
        return begun
