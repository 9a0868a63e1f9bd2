"""The pages of sessions in a real browser: a session of Claude Code, and a log that grows by thousands of events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from midwatch.cli.tickets import user_at_host
from midwatch.session.events import Message, Phase, PhaseChanged
from midwatch.session.log import EventLog
from midwatch.session.records import SessionFolders, SessionSpec, this_host
from midwatch.settings import SessionSettings
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI

from ..waiting import PATIENCE
from .browser import chromium, is_live, needs_chromium, opened, violations
from .page_data import in_database, opening
from .server_process import server_process
from .session_cli import bash, make_repositories, only_session, runner

pytestmark = needs_chromium
expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


SECOND = "python3 -c 'print(3)'"


def settings(folder: Path) -> dict[str, Any]:
    sessions = {
        "folder": f"{folder}/state",
        "cache_folder": f"{folder}/cache",
        "sandbox": "off",
    }
    return {"sessions": sessions}


def test_a_session_is_followed_answered_and_stopped(
    tmp_path: Path, browser: Browser
) -> None:
    app, _ = make_repositories(tmp_path)
    command = "echo 'print(2)' > main.py  # " + "whole " * 400 + "end"
    script = Rule([bash(command), bash(SECOND), Answer("It is done.")], tools=True)
    with (
        ScriptedMessagesAPI(script) as api,
        server_process(tmp_path, settings(tmp_path)) as server,
        opened(browser, server.url) as page,
        runner(tmp_path, api, "run", "-r", app, "-i", "-p", "Go.") as running,
    ):
        running.until("permission_request")
        page.goto("/sessions")
        page.get_by_role("link", name="Go.").click()
        is_live(page)
        asks = page.locator(".permission")
        # The whole command, not its beginning.
        expect(asks.locator("pre").first).to_have_text(command)
        assert violations(page) == []
        page.get_by_role("button", name="Approve").click()
        events = page.locator("#events")
        expect(events).to_contain_text(SECOND)
        expect(asks.locator("pre").first).to_have_text(SECOND)
        page.get_by_label("Reason, which Claude reads").fill("that is not needed")
        page.get_by_role("button", name="Deny").click()
        expect(events).to_contain_text("It is done.")
        expect(events).to_contain_text("that is not needed")
        page.get_by_role("link", name="What it changed").click()
        expect(page.locator(".diff .added", has_text="+print(2)")).to_have_count(1)
        assert violations(page) == []
        page.goto(f"/sessions/{only_session(tmp_path)}")
        page.get_by_role("button", name="Stop the session").click()
        running.until("phase", phase="Completed")
        expect(page.locator("#state")).to_contain_text("Completed")
        expect(page.get_by_role("button", name="Stop the session")).to_have_count(0)


EVENTS = 5000
COLLECT = """
window.seen = [...document.querySelectorAll('#events li')].map((one) => Number(one.dataset.seq));
new MutationObserver((found) => {
  for (const one of found.flatMap((record) => [...record.addedNodes])) {
    if (one.dataset) { window.seen.push(Number(one.dataset.seq)); }
  }
}).observe(document.getElementById('events'), { childList: true });
"""


def test_a_thousand_events_a_second_are_shown_each_once(
    tmp_path: Path, browser: Browser
) -> None:
    paths = SessionFolders.from_settings(
        SessionSettings.model_validate(settings(tmp_path)["sessions"])
    ).of("s-burst")
    paths.folder.make()

    async def record(store: SqlStore) -> None:
        options = {"host": this_host(), "folder": str(paths.folder.path)}
        ticket = await store.open_ticket(opening(), "monitor")
        spec = SessionSpec(
            "s-burst",
            datetime.now(UTC),
            "/",
            prompt="Go.",
            options=options,
            ticket=ticket.id,
        )
        await SqlSessions(store.transactions).save_spec(spec)

    in_database(tmp_path, record)
    with (
        paths.folder.locked(),
        server_process(tmp_path, settings(tmp_path)) as server,
        opened(browser, server.url) as page,
    ):
        log = EventLog(paths.folder.outbox)
        log.append(PhaseChanged(phase=Phase.RUNNING, run=1))
        page.goto("/sessions/s-burst")
        is_live(page)
        page.evaluate(COLLECT)
        for number in range(2, EVENTS + 1):
            log.append(Message(text=f"<b>{number}</b> \u202e" + "x" * 200))
        page.wait_for_selector(f"#events[data-after='{EVENTS}']")
        seen = page.evaluate("window.seen")
        assert seen == list(range(1, EVENTS + 1))
        # The browser keeps the last ones, and the markup in them is text.
        assert page.locator("#events li").count() == 2000
        last = page.locator("#events li .body").last
        expect(last).to_contain_text(f"<b>{EVENTS}</b> <U+202E>")
        assert page.locator("#events b").count() == 0
        page.get_by_role("button", name="End this turn").click()
        expect(page.locator("main")).to_contain_text(f"<b>{EVENTS}</b>")
        page.goto("/tickets/1")
        expect(page.locator("#history")).to_contain_text(
            f"session by {user_at_host()}: session s-burst: ended the turn"
        )
        log.close()
