"""Traces of a monitor cycle, a diagnosis and a session, as a collector gets them by OTLP over HTTP."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from midwatch.agent.claude import Claude
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.investigation import Investigator
from midwatch.agent.runner import AgentRunner
from midwatch.errors import ObservationFailed, SettingsError
from midwatch.lifecycle import StopEvent
from midwatch.logs import open_log
from midwatch.model import Severity
from midwatch.monitor.loop import MonitorLoop
from midwatch.redaction import Redactor
from midwatch.settings import LogSettings
from midwatch.store.sql import SqlStore
from midwatch.subjects.tools import Answer as Found
from midwatch.subjects.tools import Arguments, Tool
from midwatch.telemetry.opening import open_telemetry
from midwatch.telemetry.spans import NoTelemetry, Telemetry
from midwatch.telemetry_settings import TelemetrySettings
from midwatch.testing.fakes import (
    FakeSubject,
    ManualClock,
    answer,
    broken,
    open_tickets,
)
from midwatch.testing.messages_api import (
    Answer,
    Reply,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
    Usage,
    overloaded,
)

from ..waiting import wait_until
from .cli import KEY, midwatch, said
from .session_cli import asking, bash, make_desk, make_repositories, started
from .trace_collector import Collector, Seen

SECRET = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"
LOG = "\n".join(f"11:59:{n:02} worker {n} of the marker-evidence" for n in range(60))
PAID = Usage(input_tokens=1000, output_tokens=100, cache_read_input_tokens=50)
ASK = Answer(tool_uses=[ToolUse("queue", {"name": "marker-argument"})], usage=PAID)
GOOD = Answer(structured=answer(quote="worker 7 of", evidence_id="E2"), usage=PAID)


@pytest.fixture
def collector() -> Any:
    with Collector() as opened:
        yield opened


def telemetry_to(collector: Collector, **settings: Any) -> Telemetry:
    return open_telemetry(
        TelemetrySettings(endpoint=collector.url, **settings), Redactor([SECRET])
    )


class Queue(Arguments):
    name: str


async def length(asked: Queue) -> Found:
    return Found(f"length {asked.name}", "queue has 4711 entries, marker-result")


async def diagnose(
    store: SqlStore, clock: ManualClock, telemetry: Telemetry, *replies: Reply
) -> None:
    """Let an agent with a tool work on one ticket."""
    tool = Tool("queue", "The length of a queue.", Queue, length, 5)
    subject = FakeSubject("fake", evidence={"Log": f"{LOG} {SECRET}"}, tools=[tool])
    subjects = {"fake": subject}
    gatherer = ContextGatherer(subjects, Redactor(), clock, store.past)
    await open_tickets(store, "db", severity=Severity.CRITICAL)
    with ScriptedMessagesAPI(Rule(list(replies))) as api:
        model = Claude("claude-sonnet-5-5", 20, KEY, api.base_url)
        runner = AgentRunner(
            store,
            gatherer,
            lambda: model,
            clock=clock,
            investigator=Investigator(gatherer, subjects, telemetry=telemetry),
            telemetry=telemetry,
        )
        await runner.drain(StopEvent(clock))
        await model.close()
    await telemetry.close()


def attributes(span: Seen) -> dict[str, Any]:
    return {name: value for name, value in span.attributes.items() if name != "start"}


async def test_a_monitor_cycle_is_one_trace(
    store: SqlStore, collector: Collector
) -> None:
    """With a span for each subject; what failed is marked, without a secret of its message."""
    bad = FakeSubject("bad", [ObservationFailed(f"no route, key {SECRET}")])
    telemetry = telemetry_to(collector, service="midwatch-test")
    subjects = [FakeSubject("good", [broken("alive", "db")]), bad]
    loop = MonitorLoop(store, subjects, telemetry=telemetry)
    await loop.once()
    await loop.close()
    await telemetry.close()
    [cycle] = collector.until("monitor cycle")
    assert collector.below(cycle) == ["check subject", "check subject"]
    assert attributes(cycle)["midwatch.subjects"] == 2
    assert {span.service for span in collector.spans()} == {"midwatch-test"}
    assert {span.trace for span in collector.spans()} == {cycle.trace}
    checks = {s.attributes["midwatch.subject"]: s for s in collector.spans()[1:]}
    assert (checks["good"].error, checks["bad"].error) == (None, "unobservable")
    assert attributes(checks["good"])["midwatch.tickets.opened"] == 1
    assert SECRET.encode() not in b"".join(collector.bodies)


async def test_a_diagnosis_is_one_trace_by_the_conventions_for_generative_ai(
    store: SqlStore, clock: ManualClock, collector: Collector
) -> None:
    """With its calls and tools, and without a word of what was asked and answered."""
    await diagnose(store, clock, telemetry_to(collector), ASK, GOOD)
    [whole] = collector.until("invoke_agent diagnosis")
    assert collector.below(whole) == [
        "gather evidence",
        "chat claude-sonnet-5-5",
        "execute_tool queue",
        "chat claude-sonnet-5-5",
    ]
    assert attributes(whole) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.agent.name": "diagnosis",
        "gen_ai.request.model": "claude-sonnet-5-5",
        "midwatch.batch": 1,
        "midwatch.tickets": [1],
        "midwatch.subject": "fake",
        "midwatch.severity": "critical",
        "midwatch.attempt": 1,
        "midwatch.outcome": "answered",
        "midwatch.cost_usd": pytest.approx(whole.attributes["midwatch.cost_usd"]),
    }
    asked, answered = collector.until("chat claude-sonnet-5-5", 2)
    assert asked.kind == "client" and asked.error is None
    assert attributes(asked)["gen_ai.response.finish_reasons"] == ["tool_use"]
    found = attributes(answered)
    assert found["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert found["gen_ai.usage.input_tokens"] == 1050, "with those of the cache"
    assert found["gen_ai.usage.cache_read.input_tokens"] == 50
    assert found["gen_ai.response.id"].startswith("msg_")
    [tool] = collector.until("execute_tool queue")
    assert attributes(tool)["gen_ai.tool.name"] == "queue"
    for word in (b"marker", b"worker 7", b"Summary", SECRET.encode()):
        assert word not in b"".join(collector.bodies)


async def test_names_are_those_of_the_installed_conventions(
    store: SqlStore, clock: ManualClock, collector: Collector
) -> None:
    known = {v for name, v in vars(gen_ai_attributes).items() if name.isupper()}
    await diagnose(store, clock, telemetry_to(collector, content=True), ASK, GOOD)
    collector.until("invoke_agent diagnosis")
    used = {name for span in collector.spans() for name in span.attributes}
    ours = {name for name in used if name.startswith("gen_ai.")}
    assert len(ours) >= 15 and ours <= known
    operations = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}
    named = {span.attributes.get("gen_ai.operation.name") for span in collector.spans()}
    assert named - {None} == {"invoke_agent", "chat", "execute_tool"} <= operations


async def test_the_text_is_there_if_it_was_asked_for(
    store: SqlStore, clock: ManualClock, collector: Collector
) -> None:
    """Without secrets, which were removed before."""
    await diagnose(store, clock, telemetry_to(collector, content=True), ASK, GOOD)
    chats = collector.until("chat claude-sonnet-5-5", 2)
    asked = json.loads(chats[1].attributes["gen_ai.input.messages"])
    assert [one["role"] for one in asked] == ["user", "assistant", "user"]
    assert "marker-evidence" in asked[0]["parts"][0]["content"]
    assert "Summary" in chats[1].attributes["gen_ai.output.messages"]
    [tool] = collector.until("execute_tool queue")
    assert "marker-argument" in tool.attributes["gen_ai.tool.call.arguments"]
    assert "marker-result" in tool.attributes["gen_ai.tool.call.result"]
    assert SECRET.encode() not in b"".join(collector.bodies)


async def test_a_call_that_fails_says_how(
    store: SqlStore, clock: ManualClock, collector: Collector
) -> None:
    await diagnose(store, clock, telemetry_to(collector), overloaded())
    [chat] = collector.until("chat claude-sonnet-5-5")
    assert chat.attributes["error.type"] == "unreachable"
    assert chat.error is not None and "529" in chat.error
    [whole] = collector.until("invoke_agent diagnosis")
    assert (whole.error, whole.attributes["midwatch.outcome"]) == ("retry", "retry")


def test_commands_send_traces_and_their_logs_have_the_ids(
    tmp_path: Path, collector: Collector
) -> None:
    (tmp_path / "headers").write_text("Authorization: Bearer of-the-collector\n")
    (tmp_path / "midwatch.yaml").write_text(
        f"telemetry: {{endpoint: '{collector.url}', headers_file: {tmp_path}/headers}}\n"
        "log: {format: json}\n"
        f"subjects:\n- {{name: orders, kind: command, command: [cat, {tmp_path}/report.json]}}\n"
    )
    violation = {"invariant": "alive", "component": "q", "message": "no consumer"}
    (tmp_path / "report.json").write_text(json.dumps({"violations": [violation]}))
    lines = list(map(json.loads, said(tmp_path, "monitor", "--once").splitlines()))
    [cycle] = collector.until("monitor cycle")
    [opened] = [line for line in lines if line["event"] == "ticket opened"]
    assert opened["trace_id"] == cycle.trace
    assert opened["span_id"] in {s.id for s in collector.until("check subject")}
    assert collector.until("give first aid")[0].trace == cycle.trace
    assert collector.headers[0]["authorization"] == "Bearer of-the-collector"


def test_a_session_is_one_trace(tmp_path: Path, collector: Collector) -> None:
    """With a turn for each prompt, and the calls of tools below it."""
    desk = make_desk(
        tmp_path / "desk", extra=f"telemetry: {{endpoint: '{collector.url}'}}\n"
    )
    app, _ = make_repositories(tmp_path)
    answers = [bash("echo marker-output"), bash("exit 3"), "Done."]
    with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        ended = started(desk, api, "run", "--repo", app, "--prompt", "marker-prompt")
    [run] = collector.until("invoke_agent claude-code")
    assert collector.below(run) == ["turn"]
    found = attributes(run)
    assert found["gen_ai.conversation.id"] == ended["conversation"]
    assert (found["midwatch.session"], found["midwatch.phase"]) == (
        ended["id"],
        "Completed",
    )
    [turn] = collector.until("turn")
    assert collector.below(turn) == ["execute_tool Bash"] * 2
    assert turn.attributes["midwatch.outcome"] == "completed"
    assert turn.attributes["gen_ai.usage.output_tokens"] > 0
    assert [s.error for s in collector.until("execute_tool Bash", 2)] == [
        None,
        "tool_error",
    ]
    assert b"marker" not in b"".join(collector.bodies)


async def test_a_collector_that_is_down_is_logged_once_and_costs_only_spans(
    collector: Collector,
) -> None:
    lines = io.StringIO()
    telemetry = telemetry_to(collector)
    telemetry.report_to(open_log(LogSettings(format="json"), lines, Redactor()))
    collector.status = 400
    for number in range(2):
        with telemetry.span(f"lost {number}"):
            pass
        wait_until(lambda: collector.asked > number)
    wait_until(lambda: "traces not sent" in lines.getvalue())
    collector.status = 200
    with telemetry.span("sent"):
        pass
    collector.until("sent")
    wait_until(lambda: "traces are sent again" in lines.getvalue())
    await telemetry.close()
    assert lines.getvalue().count("\n") == 2
    assert [span.name for span in collector.spans()] == ["sent"]


async def test_the_end_does_not_wait_for_a_collector(collector: Collector) -> None:
    """It answers only after the process has gone on, and the request may take ten minutes."""
    settings = TelemetrySettings(endpoint=collector.url)
    patient = settings.model_copy(update={"timeout": 600.0})
    telemetry = open_telemetry(patient, Redactor())
    collector.hold.clear()
    with telemetry.span("late"):
        pass
    wait_until(lambda: collector.asked == 1)
    await telemetry.close()
    assert collector.spans() == []


def test_without_a_collector_nothing_is_recorded(tmp_path: Path) -> None:
    telemetry = open_telemetry(TelemetrySettings(), Redactor())
    assert isinstance(telemetry, NoTelemetry)
    with telemetry.span("a") as span:
        span.set({"b": 1})
    assert telemetry.trace_ids() == {}
    said(tmp_path, "db", "upgrade")


def test_a_package_or_a_file_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "headers").write_text(f"Bearer {SECRET}\n")
    settings = f"telemetry: {{endpoint: 'http://127.0.0.1:1', headers_file: {tmp_path}/headers}}"
    (tmp_path / "midwatch.yaml").write_text(
        f"{settings}\nsubjects: [{{name: a, kind: host}}]\n"
    )
    done = midwatch(tmp_path, "monitor", "--once", env=asking("http://127.0.0.1:1"))
    assert done.returncode == 2 and "line 1 of" in done.stderr
    assert SECRET not in done.stderr and done.stderr.count("\n") == 1
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "midwatch.telemetry.otlp", raising=False)
    with pytest.raises(SettingsError, match="OpenTelemetry") as caught:
        open_telemetry(TelemetrySettings(endpoint="http://127.0.0.1:1"), Redactor())
    assert "midwatch[otel]" in caught.value.one_line()
