"""The page in a real browser: live, with the keyboard, at any width, and without JavaScript."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from midwatch.cli.tickets import user_at_host
from midwatch.model import Severity
from midwatch.store.sql import SqlStore

from ..waiting import PATIENCE
from .browser import chromium, is_live, needs_chromium, opened, violations
from .cli import said
from .page_data import diagnose, give_first_aid, in_database, opening
from .server_process import server_process

pytestmark = needs_chromium
expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


async def some_tickets(store: SqlStore) -> None:
    """One diagnosed, one with first aid, one held, and one that was resolved by hand."""
    locked = await store.open_ticket(
        opening(waiting=31, runbook_url="https://runbooks.example.org/locks"), "monitor"
    )
    await give_first_aid(store, locked)
    await diagnose(store, locked)
    full = opening("/data", Severity.WARNING, "/data is 93% full", "web", "disk_full")
    await give_first_aid(store, await store.open_ticket(full, "monitor"))
    failing = opening(
        "GET /cart", Severity.INFO, "2% of the answers are 5xx", "shop", "errors"
    )
    held = await store.open_ticket(failing, "monitor")
    await store.hold(held.id, True, "mara@ops", "deploy in progress")
    past = await store.open_ticket(opening("customers"), "monitor")
    await store.resolve(past.id, "mara@ops", "ended the nightly export")


def sign_in(page: Page, token: str) -> None:
    page.goto("/sign-in")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in with a token").click()
    is_live(page)


def test_two_people_work_on_one_ticket(tmp_path: Path, browser: Browser) -> None:
    in_database(tmp_path, some_tickets)
    settings = {"server": {"url": "https://midwatch.example.org"}}
    with server_process(tmp_path, settings) as server:
        tokens = [
            said(
                tmp_path,
                *("tokens", "create", name, "--role", "operator"),
                *("--scope", "read", "--scope", "tickets:write"),
            ).strip()
            for name in ("ann", "ben")
        ]
        with opened(browser, server.url) as ann, opened(browser, server.url) as ben:
            sign_in(ann, tokens[0])
            sign_in(ben, tokens[1])
            row = ann.locator("#ticket-1")
            expect(row).to_contain_text("diagnosed")
            ben.goto("/tickets/1")
            is_live(ben)
            ben.get_by_role("button", name="Acknowledge").click()
            expect(ben.locator("#state")).to_contain_text("acknowledged by ben")
            expect(row).to_contain_text("acknowledged")
            ann.goto("/tickets/1")
            is_live(ann)
            # A part that changes under the focus leaves it where it was.
            ann.locator("#resolving summary").focus()
            ben.get_by_role("button", name="Hold").click()
            expect(ann.locator("#actions")).to_contain_text("Release the hold")
            expect(ann.locator("#resolving summary")).to_be_focused()
            ann.keyboard.press("Enter")
            ann.get_by_label("What resolved it").fill("ended session 4711")
            ben.get_by_text("Resolve…").click()
            ben.get_by_label("What resolved it").fill("I am still typ")
            ann.get_by_role("button", name="Resolve", exact=True).click()
            expect(ann.locator("#history")).to_contain_text("resolve by ann")
            # Ben sees it at once, and what he types is left to him.
            expect(ben.locator("#state")).to_contain_text("ended session 4711")
            expect(ben.get_by_label("What resolved it")).to_have_value("I am still typ")
            ben.get_by_role("button", name="Resolve", exact=True).click()
            expect(ben.get_by_role("alert")).to_contain_text("resolved already")
            expect(ben.locator("#history")).not_to_contain_text("resolve by ben")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_a_connection_that_is_lost_goes_on_without_a_gap(
    tmp_path: Path, browser: Browser
) -> None:
    in_database(tmp_path, some_tickets)
    settings = {"server": {"listen": f"127.0.0.1:{free_port()}"}}
    with opened(browser, "http://127.0.0.1") as page:
        with server_process(tmp_path, settings) as server:
            page.goto(f"{server.url}/tickets")
            is_live(page)
            page.evaluate("window.sameDocument = true")
        page.wait_for_selector("#live[data-state=away]")

        async def meanwhile(store: SqlStore) -> None:
            for number in range(5):
                new = opening(
                    f"part-{number}", Severity.WARNING, f"new {number}", "web"
                )
                await store.open_ticket(new, "monitor")
            await store.acknowledge(3, "mara@ops")
            await store.resolve(2, "mara@ops", "made room")

        in_database(tmp_path, meanwhile)
        with server_process(tmp_path, settings) as server:
            is_live(page)
            expect(page.locator("#ticket-3")).to_contain_text("acknowledged")
            expect(page.locator("#ticket-2")).to_contain_text("resolved")
            # Each once, in the order of the list: by severity, then by age.
            expect(page.locator("#rows > li .number")).to_have_text(
                ["#1", "#2", "#5", "#6", "#7", "#8", "#9", "#3"]
            )
            expect(page.locator("#counts")).to_contain_text("5 warning")
            assert page.evaluate("window.sameDocument") is True


def test_a_quote_lights_up_its_place(tmp_path: Path, browser: Browser) -> None:
    in_database(tmp_path, some_tickets)
    with server_process(tmp_path) as server, opened(browser, server.url) as page:
        page.goto("/tickets/1")
        page.locator("#diagnosis").get_by_role(
            "link", name="process 4807 still waiting"
        ).click()
        lit = page.locator("mark:target")
        expect(lit).to_have_text("process 4807 still waiting for ShareLock")
        expect(lit).to_be_in_viewport()
        assert lit.get_attribute("id") == "E2-1"
        order = page.locator("#diagnosis h3").all_inner_texts()
        assert order[:3] == ["Root cause", "What to do now", "Doubts"]
        assert (
            page.locator("#diagnosis .failed").first.inner_text() == "cannot be undone"
        )
        expect(page.get_by_role("link", name="runbooks.example.org")).to_have_count(2)
        expect(page.locator("#past")).to_contain_text("ended the nightly export")


def test_everything_works_without_javascript(tmp_path: Path, browser: Browser) -> None:
    in_database(tmp_path, some_tickets)
    with (
        server_process(tmp_path) as server,
        opened(browser, server.url, java_script_enabled=False) as page,
    ):
        page.goto("/")
        page.get_by_label("Search").fill("full")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#rows > li")).to_have_count(1)
        page.get_by_role("link", name="/data is 93% full").click()
        expect(page.get_by_role("heading", name="First aid")).to_be_visible()
        page.get_by_role("button", name="Acknowledge").click()
        expect(page.locator("#state")).to_contain_text(
            f"acknowledged by {user_at_host()}"
        )
        page.get_by_text("Resolve…").click()
        page.get_by_label("What resolved it").fill("made room")
        page.get_by_role("button", name="Resolve", exact=True).click()
        expect(page.locator("#state")).to_contain_text("made room")
        page.get_by_role("link", name="Charts").click()
        expect(page.locator("main")).to_contain_text("disk_full")


def test_the_keyboard_is_enough(tmp_path: Path, browser: Browser) -> None:
    in_database(tmp_path, some_tickets)
    with server_process(tmp_path) as server, opened(browser, server.url) as page:
        page.goto("/tickets")
        is_live(page)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        tab_to(page, "#q")
        page.keyboard.type("93%")
        expect(page.locator("#rows > li")).to_have_count(1)
        tab_to(page, "#ticket-2 a")
        page.keyboard.press("Enter")
        page.wait_for_url("**/tickets/2")
        tab_to(page, "#actions button")
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_contain_text(
            f"acknowledged by {user_at_host()}"
        )
        tab_to(page, "#resolving summary")
        page.keyboard.press("Enter")
        tab_to(page, "#resolve-why")
        page.keyboard.type("made room")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_contain_text("made room")


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus, which must then be visible."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("one => document.activeElement.matches(one)", selector):
            style = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(style) == "solid"
            return
    raise AssertionError(f"{selector} is not reached")


PAGES = (
    "/tickets",
    "/tickets/1",
    "/tickets/2",
    "/subjects",
    "/sessions",
    "/silences",
    "/deliveries",
    "/charts",
)


def test_axe_finds_nothing(tmp_path: Path, browser: Browser) -> None:
    """In the dark a page differs by its colours alone."""
    in_database(tmp_path, some_tickets)
    with server_process(tmp_path) as server, opened(browser, server.url) as page:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for path in (*PAGES, "/sign-in", "/tickets/99"):
                page.goto(path)
                page.wait_for_selector("h1")
                found = violations(page, of_colours=scheme == "dark")
                assert (scheme, path, found) == (scheme, path, [])


WIDTHS = (320, 480, 768, 1120, 2000)


def test_no_page_scrolls_sideways(tmp_path: Path, browser: Browser) -> None:
    async def wide(store: SqlStore) -> None:
        await some_tickets(store)
        long = opening("c" * 190, Severity.CRITICAL, "x" * 300, "subject-" + "y" * 150)
        await diagnose(store, await store.open_ticket(long, "monitor"))

    in_database(tmp_path, wide)
    wide_by = "document.documentElement.scrollWidth - innerWidth"
    with server_process(tmp_path) as server, opened(browser, server.url) as page:
        for path in (*PAGES, "/tickets/5"):
            page.goto(path)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                if path == "/charts":  # a script draws them for the width
                    page.goto(path, wait_until="networkidle")
                assert (path, width, page.evaluate(wide_by)) == (path, width, 0)
