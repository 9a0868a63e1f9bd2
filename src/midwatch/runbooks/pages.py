"""Fetch the page that an alert names as its runbook, from the hosts that the settings allow alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from midwatch.errors import MidwatchError, ObservationFailed
from midwatch.json_shapes import runbook_url
from midwatch.lifecycle import Clock, cancel, off_loop
from midwatch.model import Ticket
from midwatch.runbook_settings import RunbookSettings
from midwatch.runbooks.html_text import html_to_markdown
from midwatch.runbooks.runbook import MAX_BYTES, Redact, Runbook, parse_page
from midwatch.subjects.http_client import Answer, WebClient
from midwatch.text import one_line
from midwatch.units import format_duration, url_is_at

_REDIRECTS = 3
_MOST_KEPT = 200
"""Pages that are kept."""
_AGAIN = 60.0
"""Seconds after which a page that could not be fetched is fetched again."""
_TEXT = ("text/markdown", "text/x-markdown", "text/plain", "")
_HTML = ("text/html", "application/xhtml+xml")


class PageUnavailable(ObservationFailed):
    """A page cannot be fetched, or is not text."""


@dataclass(slots=True)
class _Page:
    """A page: what was last read of it, when that was tried, and why the last try failed, or ""."""

    runbook: Runbook | None = None
    tried: float = 0.0
    failure: str = ""
    task: asyncio.Task[None] | None = None


class Pages:
    """The pages of alerts. A page is fetched without credentials, cookies or a proxy.

    Args:
        settings: The group `runbooks`.
        redact: Removes secrets from a whole text.
        clock: The source of time.
    """

    def __init__(self, settings: RunbookSettings, redact: Redact, clock: Clock) -> None:
        self._settings = settings
        self._redact = redact
        self._clock = clock
        self._pages: dict[str, _Page] = {}
        self._client: WebClient | None = None

    def url_of(self, ticket: Ticket) -> str:
        """Return the address of a ticket's page if it may be fetched, else ""."""
        url = runbook_url(ticket) or ""
        allowed = url and url_is_at(url, self._settings.fetch_from)
        return url.partition("#")[0] if allowed else ""

    async def page(self, url: str, timeout: float) -> tuple[Runbook, str]:
        """Return a page, and why it cannot be read now, or "". An earlier copy is used while its host is away.

        Args:
            url: An address that `url_of` returned.
            timeout: Seconds to wait for it; it is fetched on in the background for the next time.
        """
        page = self._pages.pop(url, None) or _Page(tried=float("-inf"))
        self._pages[url] = page  # the most recently used is the last one
        while len(self._pages) > _MOST_KEPT:
            self._pages.pop(next(iter(self._pages)))
        age = self._clock.monotonic() - page.tried
        due = min(_AGAIN, self._settings.refresh) if page.failure else None
        if age >= (due or self._settings.refresh) and page.task is None:
            page.task = asyncio.create_task(self._read(url, page), name="fetch runbook")
        if page.task is not None and page.runbook is None:
            await asyncio.wait({page.task}, timeout=timeout)
        if page.runbook is not None:
            return page.runbook, page.failure
        limit = format_duration(timeout)
        host = urlsplit(url).netloc
        missing = Runbook(host, url, one_line(url, 120), "")
        return missing, page.failure or f"no answer within {limit}"

    async def _read(self, url: str, page: _Page) -> None:
        try:
            page.runbook = await self._fetch(url)
            page.failure = ""
        except MidwatchError as error:
            page.failure = self._redact(error.one_line())
        finally:
            page.tried, page.task = self._clock.monotonic(), None

    async def _fetch(self, url: str) -> Runbook:
        if self._client is None:
            self._client = WebClient(public_only=not self._settings.fetch_private)
        address, left = url, self._settings.fetch_timeout
        for _ in range(_REDIRECTS + 1):
            began = self._clock.monotonic()
            answer = await self._client.fetch(
                "GET", address, timeout=max(left, 0.01), limit=MAX_BYTES
            )
            left -= self._clock.monotonic() - began
            following = answer.header("location")
            if answer.status not in (301, 302, 303, 307, 308) or not following:
                return await self._runbook(url, address, answer)
            address = urljoin(address, following)
            if not url_is_at(address, self._settings.fetch_from):
                host = one_line(urlsplit(address).netloc.rpartition("@")[2], 100)
                raise PageUnavailable(
                    f"it redirects to {host or 'another place'}, which runbooks.fetch_from does not name"
                )
        raise PageUnavailable(f"more than {_REDIRECTS} redirects")

    async def _runbook(self, url: str, address: str, answer: Answer) -> Runbook:
        if answer.status != 200:
            raise PageUnavailable(f"its server answers {answer.status}")
        if answer.cut:
            raise PageUnavailable(f"it is larger than {MAX_BYTES:,} bytes")
        if problem := answer.undecoded or answer.malformed:
            raise PageUnavailable(problem)
        kind = answer.header("content-type").partition(";")[0].strip().lower()
        if kind not in _TEXT + _HTML or b"\0" in answer.body:
            raise PageUnavailable(f"it is not text but {one_line(kind, 60) or 'data'}")
        host = urlsplit(url).netloc

        def parse() -> Runbook:
            text = answer.text()
            if kind in _HTML:
                text = html_to_markdown(text)
            return parse_page(text, host, url, self._redact)

        return await off_loop(len(answer.body), parse)

    async def close(self) -> None:
        """End what is being fetched."""
        tasks = [one.task for one in self._pages.values() if one.task is not None]
        await cancel(*tasks)
        if self._client is not None:
            await self._client.close()
