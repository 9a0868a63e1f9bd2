"""How messages are worded: escaped for each service, cut at its limit, by templates that can only show values."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from midwatch.errors import SettingsError
from midwatch.model import Diagnosis, Key, Severity, Ticket, TicketStatus
from midwatch.notification_settings import TemplateSettings
from midwatch.notify.formats import HTML, MARKDOWN, SLACK, TEXT, Format, cut
from midwatch.notify.incident import IncidentView, IncidentViews
from midwatch.notify.message import Limits, Writer
from midwatch.notify.templates import TemplateFailed, Templates
from midwatch.redaction import Redactor
from midwatch.store.on_call import Delivery

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOSTILE = (
    "<b>*x*</b> & @everyone <!here> [a](http://evil.example) `c` hunter2hunter2 \x1b[2J"
)


def incident(
    message: str = HOSTILE, tickets: int = 1, event: str = "opened"
) -> IncidentView:
    answer = {
        "summary": "short",
        "root_cause": f"the cause: {message}",
        "verdict": "identified",
        "confidence": "high",
        "recommended_actions": [{"what": "end it", "commands": ["SELECT `1`"]}],
    }
    some = [
        Ticket(
            id=number,
            key=Key("db", "connections", f"c{number}"),
            severity=Severity.CRITICAL,
            status=TicketStatus.OPEN,
            held=False,
            message=message,
            facts={},
            first_seen_at=NOW,
            opened_at=NOW,
            last_seen_at=NOW,
            occurrence_count=1,
            batch=1,
            diagnosis_id=1,
        )
        for number in range(1, tickets + 1)
    ]
    known = Diagnosis(1, 1, "answered", "m", "1", NOW, answer=answer)
    told = Delivery(
        *(1, "k", "r", "t", event, "incident-1", 1, {"by": message}, "due", NOW, NOW, 1)
    )
    views = IncidentViews(Redactor(["hunter2hunter2"]), "https://midwatch.example/")
    return views.view("incident-1", some, [told], {1: known}, NOW)


def test_the_thread_of_what_joined_another_incident_ends() -> None:
    """Its alert is resolved at services that have one; the message says where it goes on."""
    joined = incident("it is broken", event="joined")
    assert (joined.status, joined.tickets[0].status) == ("resolved", "open")
    message = Writer(TemplateSettings()).write("k", joined, Limits("text", 0))
    assert message.title.startswith("JOINED db")
    assert "#1 goes on in the incident that it belongs to" in message.body
    assert incident("it is broken", tickets=2, event="joined").status == "open"


@pytest.mark.parametrize("name", ["text", "html", "markdown", "slack"])
def test_text_from_outside_stays_text_and_keeps_no_secret(name: Any) -> None:
    message = Writer(TemplateSettings()).write(
        "k", incident(event="resolved"), Limits(name, 0)
    )
    everything = (
        f"{message.title}{message.body}{message.news}{json.dumps(message.document())}"
    )
    assert "hunter2" not in everything and "\x1b" not in everything
    assert name == "html" or "@everyone" not in message.body
    shown = message.body + message.news
    if name in ("html", "slack"):
        assert "<b>*x" not in shown and "<!here>" not in shown
        assert "&lt;b&gt;" in shown
    if name == "markdown":
        assert "\\<b>" in shown and "`[a](http://evil.example)`" in shown
    if name == "slack":
        assert "`[a](http://evil.example)`" in shown and "SELECT ˋ1ˋ" in shown


@pytest.mark.parametrize("format", [TEXT, HTML, MARKDOWN, SLACK], ids=lambda f: f.name)
@pytest.mark.parametrize("limit", [40, 160, 1000])
def test_what_is_too_long_ends_with_a_link(format: Format, limit: int) -> None:
    line = format.escape("<a> & b " * 10)
    text = format.line_end.join([line] * 50)
    shown = cut(text, limit, "https://m.example/tickets/1", format)
    assert len(shown) <= limit
    if limit > 100:
        assert "https://m.example/tickets/1" in shown
    assert cut(line, len(line), "", format) == line


def test_the_title_says_how_many_more() -> None:
    message = Writer(TemplateSettings()).write("k", incident("slow", 3), Limits())
    assert message.title == "CRITICAL db: slow (and 2 other tickets)"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ link.__globals__ }}",
        "{{ tickets }}",
        "{% set a = [status, status] %}{{ a }}",
        "{{ 'a' * 99999 }}",
        "{{ status ~ status }}",
        "{{ status.upper() }}",
        "{{ status|attr('x') }}",
        "{{ range(9) }}",
        "{{ nothing }}",
        "{{ tickets[99].id }}",
        "{% macro f() %}{% endmacro %}",
        "{% include 'x' %}",
        "{% set a %}x{% endset %}",
        "{% for a in tickets %}{% for b in tickets %}{% for c in tickets %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in tickets recursive %}{{ loop(tickets) }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{",
    ],
)
def test_a_template_can_show_values_and_nothing_else(source: str) -> None:
    with pytest.raises(TemplateFailed):
        Templates().show(source, incident(), TEXT, 1000)


def test_a_template_ends_at_its_limit() -> None:
    source = (
        "{% for a in tickets %}{% for b in tickets %}"
        + "x" * 100
        + "{% endfor %}{% endfor %}"
    )
    assert len(Templates().show(source, incident(tickets=50), TEXT, 1000)) == 1000


def test_a_template_of_the_settings_words_the_message() -> None:
    own = TemplateSettings(
        title="{{ severity }} on {{ tickets[0].subject|upper }}",
        body="{% for t in tickets %}{{ bold(t.message) }} {{ code(t.component) }}{% endfor %}",
    )
    message = Writer(own).write("k", incident("<slow>"), Limits("html"))
    assert message.title == "critical on DB"
    assert message.body == "<b>&lt;slow&gt;</b> <code>c1</code>"


def test_a_template_that_fails_is_not_the_end_of_a_message() -> None:
    writer = Writer(TemplateSettings(body="{{ nothing }}"))
    assert "slow" in writer.write("k", incident("slow"), Limits()).body
    with pytest.raises(TemplateFailed, match="'nothing' is undefined"):
        writer.write("k", incident("slow"), Limits(), strict=True)


def test_a_wrong_template_is_a_wrong_setting() -> None:
    writer = Writer(TemplateSettings(body="{% for a in tickets %}"))
    with pytest.raises(SettingsError, match="notifications.templates.body"):
        writer.check()
