"""First aid of the general playbooks, on what real subjects tell, through the gatherer and the check."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.lifecycle import SystemClock
from midwatch.model import Context, Evidence, Key, Ticket
from midwatch.playbooks.general import PLAYBOOKS
from midwatch.redaction import Redactor
from midwatch.subjects.base import Subject
from midwatch.subjects.command import CommandSubject
from midwatch.subjects.host import HostSubject
from midwatch.subjects.http import HttpSubject
from midwatch.testing.fakes import FakeSubject
from midwatch.testing.subject_conformance import tickets_for


async def first_aid(subject: Subject, *invariants: str) -> DiagnosisOutput:
    """The first aid for the broken invariants, every claim of which is in its evidence."""
    observation = await subject.observe({})
    tickets = [
        ticket
        for ticket in tickets_for(subject, observation)
        if ticket.key.invariant in invariants
    ]
    gatherer = ContextGatherer({subject.name: subject}, Redactor(), SystemClock())
    context = await gatherer.gather(tickets, timeout=5, tokens=6000)
    await subject.close()
    return checked(subject.kind, tickets, context)


def checked(kind: str, tickets: Sequence[Ticket], context: Context) -> DiagnosisOutput:
    [(ids, output)] = preliminary(PLAYBOOKS, kind, tickets, context)
    assert ids == [ticket.id for ticket in tickets]
    grounding = ground(output, context.evidence)
    assert grounding.verified == grounding.total > 0, grounding
    assert output.root_cause_citations and output.recommended_actions
    return output


@pytest.mark.parametrize(
    ("invariant", "limit", "reported"),
    [
        ("disk", 0, "has hardly any space left"),
        ("inodes", 0, "has hardly any inodes left"),
        ("memory", 1, "uses more memory than any other process"),
        ("load", 0, "uses more processor time than any other process"),
    ],
)
async def test_host(invariant: str, limit: float, reported: str) -> None:
    settings = {"name": "box", "invariants": {invariant: {"limit": limit}}}
    subject = HostSubject(HostSubject.settings_model.model_validate(settings))
    assert reported in (await first_aid(subject, invariant)).root_cause


async def test_host_process() -> None:
    settings = {"name": "box", "processes": [{"name": "no-such; rm -rf /"}]}
    subject = HostSubject(HostSubject.settings_model.model_validate(settings))
    output = await first_aid(subject, "process")
    assert "no-such" in output.root_cause
    commands = [
        text for action in output.recommended_actions for text in action.commands
    ]
    assert "systemctl status -- 'no-such; rm -rf '" in commands


async def test_http_outage() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        settings = {"name": "shop", "url": url}
        subject = HttpSubject(HttpSubject.settings_model.model_validate(settings))
        output = await first_aid(subject, "reachable")
    assert output.root_cause == f"{url}: nothing listens on its port"


async def test_command(tmp_path: Path) -> None:
    item = {"invariant": "queue", "component": "mail", "message": "9 mails wait"}
    report = json.dumps({"violations": [item]})
    command = [sys.executable, "-S", "-c", f"print({report!r})"]
    settings = {"name": "q", "command": command}
    subject = CommandSubject(CommandSubject.settings_model.model_validate(settings))
    output = await first_aid(subject, "queue")
    assert output.summary == "9 mails wait."


AT = SystemClock().now()


def evidence(*pieces: tuple[str, str]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(f"E{number}", title, "test", AT, text)
        for number, (title, text) in enumerate(pieces, 1)
    )


def ticket(kind: str, invariant: str, component: str, **facts: str) -> Ticket:
    [made] = tickets_for(FakeSubject("s", kind=kind), None)[:1]
    return replace(made, key=Key("s", invariant, component), facts=facts)


def test_prometheus_names_the_target_that_is_down() -> None:
    mine = ticket(
        "prometheus",
        "alert:Down",
        "instance=db:1, job=db",
        alertname="Down",
        label_instance="db:1",
    )
    pieces = evidence(
        ("Definition of alert:Down", "alert: Down\nexpr: up == 0"),
        (
            "Firing and pending alerts",
            "firing Down since 2026: alertname=Down, instance=db:1, job=db",
        ),
        (
            "Scrape targets that are down",
            "down instance=db:11, job=x: no\ndown instance=db:1, job=db: connection refused",
        ),
    )
    output = checked("prometheus", [mine], Context((mine,), pieces, AT))
    assert "db:1, job=db: connection refused" in output.root_cause
    without = checked("prometheus", [mine], Context((mine,), pieces[:2], AT))
    assert without.confidence == "low" and len(without.root_cause_citations) == 2


def test_a_certificate_a_wrong_answer_and_a_slow_one() -> None:
    url = "https://shop/"
    seen = evidence(
        (
            "Certificates of shop:443",
            "verification: not accepted: certificate has expired\nissuer: CN=x\n"
            "names: shop\nnot after: 2027-01-01 00:00:00 UTC\n"
            "not after: 2026-01-01 00:00:00 UTC",
        ),
        (
            f"GET {url} now",
            "status: HTTP/1.1 503 Service Unavailable\ntotal: 4.2s\nconnect: 12ms\n"
            "first byte: 4.1s\nbody: 9 bytes\n| tls: 9h",
        ),
    )

    def note(invariant: str, **facts: str) -> DiagnosisOutput:
        mine = ticket("http", invariant, url, url=url, **facts)
        return checked("http", [mine], Context((mine,), seen, AT))

    refused = note("certificate_valid")
    assert "certificate has expired" in refused.root_cause
    assert "-connect shop:443" in refused.recommended_actions[0].commands[0]
    expired = note("certificate_expiry", not_after="2026-01-01T00:00:00+00:00")
    cited = [one.quote for one in expired.root_cause_citations]
    assert "not after: 2026-01-01 00:00:00 UTC" in cited
    assert "this name" in note("certificate_name").recommended_actions[1].what
    assert "something behind it fails" in note("status", status="503").root_cause
    slow = note("latency")
    assert "before the first byte" in slow.root_cause
    assert slow.metric_readings[0].value == "4.2s"
