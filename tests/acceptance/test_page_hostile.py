"""What others wrote stays text on every page: markup, scripts, templates, addresses, and what cannot be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from midwatch.model import Origin, Severity
from midwatch.session.events import (
    Failure,
    Message,
    Notice,
    PermissionRequest,
    Phase,
    PhaseChanged,
    Prompt,
    ToolResult,
    ToolUse,
)
from midwatch.session.log import EventLog
from midwatch.session.records import SessionFolders, SessionSpec, this_host
from midwatch.session.status import SessionStatus, fold
from midwatch.settings import SessionSettings
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore

from .browser import chromium, is_live, needs_chromium, opened, violations
from .page_data import EVIDENCE, diagnose, give_first_aid, in_database, opening
from .server_process import server_process

pytestmark = needs_chromium

HOSTILE = (
    "\u202eevil\u2066<script>window.hit=1</script><img src=x onerror=window.hit=1>\"'><svg onload=window.hit=1>"
    "</textarea></title></pre>{{ 7 * 7 }}{% raw %}&lt;b&gt; javascript:window.hit=1 \u200b\x1b[31m"
)
SEEN = '<script>window.hit=1</script><img src=x onerror=window.hit=1>"'
UNSEEN = "<U+202E>evil<U+2066>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


async def hostile_tickets(store: SqlStore) -> None:
    for status in ("diagnosed", "first aid", "resolved", "plain"):
        new = opening(
            f"{status} {HOSTILE}"[:200],
            Severity.WARNING,
            f"{status} {HOSTILE}",
            f"web {HOSTILE}"[:150],
            f"errors {HOSTILE}"[:150],
            **{HOSTILE: HOSTILE, "runbook_url": "javascript:window.hit=1"},
            list=[HOSTILE],
        )
        ticket = await store.open_ticket(new, f"monitor {HOSTILE}")
        if status in ("diagnosed", "first aid"):
            await give_first_aid(store, ticket, HOSTILE)
        if status == "diagnosed":
            evidence = tuple(
                replace(
                    one,
                    title=HOSTILE,
                    source=HOSTILE,
                    text=f"{HOSTILE}\n{one.text}\nretry payment {HOSTILE}",
                    command=HOSTILE,
                )
                for one in EVIDENCE
            )
            # A runbook that a wiki gave.
            page = replace(evidence[0], id="R1", origin=Origin.NOTE, command="")
            steps = f"## Steps {HOSTILE}\n\n1. {HOSTILE}\n"
            evidence += (replace(page, text=steps, reported=()),)
            await diagnose(store, ticket, HOSTILE, evidence)
            await store.acknowledge(ticket.id, HOSTILE, HOSTILE)
        if status == "resolved":
            await store.resolve(ticket.id, HOSTILE, HOSTILE)


def is_text(page: Page, path: str) -> str:
    """Return the text of a page on which nothing of what others wrote became markup, an address or a script."""
    page.goto(path)
    page.wait_for_load_state("load")
    assert page.evaluate("window.hit") is None, path
    assert page.locator("main script, main svg, main img, main b").count() == 0, path
    odd = "[...document.querySelectorAll('[href], [action]')].map((one) => one.href || one.action)"
    assert all(one.startswith("http://127.0.0.1") for one in page.evaluate(odd)), path
    text = str(page.evaluate("document.body.textContent"))
    assert "\u202e" not in text and "\x1b" not in text, path
    assert f"{UNSEEN}{SEEN}" in text, path
    return text


def test_what_others_wrote_stays_text(tmp_path: Path, browser: Browser) -> None:
    in_database(tmp_path, hostile_tickets)
    with server_process(tmp_path) as server, opened(browser, server.url) as page:
        for path in ("/tickets", "/tickets?status=all", "/subjects", "/charts"):
            is_text(page, path)
        shown = is_text(page, "/tickets/1")
        # In message, subject, invariant, component, facts, each part of answer and first aid, evidence, and history.
        steps = page.locator("#runbooks ol.steps li")
        assert steps.all_text_contents()[0].startswith(UNSEEN)
        assert shown.count(SEEN) > 40 and "{{ 7 * 7 }}{% raw %}&lt;b&gt;" in shown
        # A quote that holds such a text is found and links to its place.
        quote = page.locator("#diagnosis .quotes a", has_text="retry payment").first
        target = str(quote.get_attribute("href"))
        assert page.locator(target).text_content().startswith(f"retry payment {UNSEEN}")  # type: ignore[union-attr]
        assert violations(page) == []
        for number in (2, 3, 4):
            is_text(page, f"/tickets/{number}")
        page.goto("/tickets?" + "q=%22%3E%3Cscript%3Ewindow.hit%3D1%3C/script%3E")
        assert page.evaluate("window.hit") is None
        assert page.get_by_label("Search").input_value().startswith('"><script>')


def test_a_hostile_change_that_arrives_stays_text(
    tmp_path: Path, browser: Browser
) -> None:
    with server_process(tmp_path) as server, opened(browser, server.url) as page:
        page.goto("/tickets")
        is_live(page)
        in_database(tmp_path, hostile_tickets)
        page.wait_for_selector("#ticket-4")
        assert page.evaluate("window.hit") is None
        assert page.locator("#rows script, #rows img, #rows svg").count() == 0
        assert SEEN in str(page.locator("#ticket-4").text_content())


def test_what_a_session_says_stays_text(tmp_path: Path, browser: Browser) -> None:
    sessions = {"folder": f"{tmp_path}/state"}
    paths = SessionFolders.from_settings(SessionSettings.model_validate(sessions)).of(
        "s-hostile"
    )
    paths.folder.make()
    log = EventLog(paths.folder.outbox)
    given = {"command": HOSTILE, HOSTILE: HOSTILE}
    events = [
        PhaseChanged(phase=Phase.RUNNING, run=1, reason=HOSTILE),
        Prompt(id="1", uuid="1", text=HOSTILE),
        Message(text=HOSTILE),
        ToolUse(id="1", name=HOSTILE, input=given),
        ToolResult(tool_use_id="1", text=HOSTILE, is_error=True),
        Notice(text=HOSTILE),
        Failure(kind="X", message=HOSTILE, hint=HOSTILE),
        PermissionRequest(request_id=f"r {HOSTILE}", tool=HOSTILE, input=given),
    ]
    status = fold(SessionStatus(), [log.append(one) for one in events])
    log.close()

    async def record(store: SqlStore) -> None:
        options = {"host": this_host(), "folder": str(paths.folder.path)}
        spec = SessionSpec(
            "s-hostile", datetime.now(UTC), "/", prompt=HOSTILE, options=options
        )
        records = SqlSessions(store.transactions)
        await records.save_spec(spec)
        await records.save_status("s-hostile", status)

    in_database(tmp_path, record)
    with (
        paths.folder.locked(),
        server_process(tmp_path, {"sessions": sessions}) as server,
        opened(browser, server.url) as page,
    ):
        is_text(page, "/sessions")
        assert is_text(page, "/sessions/s-hostile").count(SEEN) > 10
