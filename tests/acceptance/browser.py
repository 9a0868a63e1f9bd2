"""Debian's Chromium, driven by Playwright. Its tests are skipped, and say so, where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from ..waiting import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium (Debian: chromium)"
)
_ARGUMENTS = ["--disable-gpu", "--disable-dev-shm-usage"]
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_RULES_OF_COLOURS = ["color-contrast", "link-in-text-block"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium while the block runs. As root it has no sandbox of its own."""
    arguments = [*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=arguments, timeout=PATIENCE * 1000
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open an address in a profile of its own. Fails where a script or the policy of content did."""
    with browser.new_context(base_url=url, **options) as context:
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "console",
            lambda message: (
                said.append(message.text)
                if "Content Security" in message.text
                else None
            ),
        )
        yield page
        assert said == []


def violations(page: Page, *, of_colours: bool = False) -> list[str]:
    """Return what axe-core finds wrong with a page, or with its colours alone: the rule and the elements."""
    tags, colours = ("tag", _RULES), ("rule", _RULES_OF_COLOURS)
    kind, values = colours if of_colours else tags
    found = Axe().run(page, options={"runOnly": {"type": kind, "values": values}})
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes']][:3]}"
        for one in found.response["violations"]
    ]


def is_live(page: Page) -> None:
    """Wait until the page follows changes."""
    page.wait_for_selector("#live[data-state=on]")
