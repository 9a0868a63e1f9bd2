"""The runbooks of the settings: read in the background, kept while a source is away, matched to tickets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, cancel
from midwatch.logs import Log
from midwatch.model import Ticket
from midwatch.runbook_settings import RunbookRepositorySettings, RunbookSettings
from midwatch.runbooks.folder import Listing, Problem, SourceUnavailable, read_folder
from midwatch.runbooks.matching import Hit, RunbookIndex
from midwatch.runbooks.pages import Pages
from midwatch.runbooks.repository import read_repository, source_name
from midwatch.runbooks.runbook import Redact, Runbook
from midwatch.units import format_duration
from midwatch.workspace.git import Git
from midwatch.workspace.mirrors import Mirrors

MOST_TICKETS = 20
"""Tickets of an incident whose runbooks are looked for."""
_FOLDER_SECONDS = 30.0
"""Seconds after which a folder, perhaps on a file server, counts as away."""
_LINKED = 100
"""Points of the page that an alert itself names: it comes before all others."""

GitAccess = Callable[[], tuple[Git, Mirrors]]


@dataclass(slots=True)
class Source:
    """A folder or a repository with runbooks, and what was last read of it.

    Attributes:
        name: The folder, or the URL with the folder in it.
        listing: Its files.
        read_at: When they were read; None for never.
        commit: The commit that they are from; empty for a folder.
        away: Why what is there is an earlier copy, or nothing; empty while all is well.
    """

    name: str
    folder: Path | None = None
    repository: RunbookRepositorySettings | None = None
    listing: Listing = field(default_factory=Listing)
    read_at: datetime | None = None
    commit: str = ""
    away: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A runbook for tickets of an incident.

    Attributes:
        runbook: The runbook.
        hits: Why it is for each ticket, by its id.
        failure: Why it cannot be read now, so that it has no text or is an earlier copy; empty while all is well.
    """

    runbook: Runbook
    hits: Mapping[int, Hit]
    failure: str = ""


class RunbookLibrary:
    """The runbooks of all sources.

    Args:
        settings: The group `runbooks`.
        redact: Removes secrets from a whole text.
        clock: The source of time.
        log: Gets one line for each file that cannot be used, and when a source goes away or comes back.
        git: Returns what runs git and where mirrors are; called for the first repository. May raise SettingsError.

    `matched` counts the runbooks that were found for tickets, by their source; "alert" for pages that alerts name.
    """

    def __init__(
        self,
        settings: RunbookSettings,
        redact: Redact,
        clock: Clock,
        log: Log,
        git: GitAccess,
    ) -> None:
        self.settings = settings
        self.matched: Counter[str] = Counter()
        self.sources = [Source(str(one), folder=one) for one in settings.folders]
        self.sources += [
            Source(source_name(one), repository=one) for one in settings.repositories
        ]
        self._redact = redact
        self._clock = clock
        self._log = log
        self._git_access = git
        self._git: tuple[Git, Mirrors] | None = None
        self._index = RunbookIndex(())
        self._away: dict[str, str] = {}
        self._pages = Pages(settings, redact, clock)
        self._reading: asyncio.Task[None] | None = None
        self._read: float | None = None
        self._logged: set[tuple[str, Problem]] = set()

    # ------------------------------------------------------------------ for tickets

    async def for_tickets(
        self, tickets: Sequence[Ticket], kinds: Mapping[str, str], timeout: float
    ) -> list[Found]:
        """Return the runbooks of an incident, the most specific first; those of its first ticket before others.

        What was read before is used at once; what is older than `refresh` is read again in the background.

        Args:
            tickets: The tickets, the most important first.
            kinds: The kinds of their subjects, by name.
            timeout: Seconds to wait for what was never read, and for pages of alerts.
        """
        tickets = list(tickets)[:MOST_TICKETS]
        reading = self.begin_reading()
        pages = asyncio.create_task(self._of_alerts(tickets, timeout))
        try:
            if reading is not None and self._read is None:
                await asyncio.wait({reading}, timeout=timeout)
            linked = await pages
        finally:
            await cancel(pages)
        ranked: list[tuple[int, int, Runbook, int, Hit, str]] = []
        for place, ticket in enumerate(tickets):
            named = linked.get(ticket.id)
            if named is not None:
                hit = Hit(named[0], _LINKED, ("the alert names it",))
                ranked.append((0, place, named[0], ticket.id, hit, named[1]))
            kind = kinds.get(ticket.key.subject, "")
            room = self.settings.most - (named is not None)
            hits = self._index.best(ticket, kind, max(room, 0))
            for rank, hit in enumerate(hits, 1):
                away = self._away.get(hit.runbook.source, "")
                ranked.append((rank, place, hit.runbook, ticket.id, hit, away))
        found = _merged(ranked)
        self.matched.update(
            one.runbook.source if one.runbook.match is not None else "alert"
            for one in found
        )
        return found

    async def _of_alerts(
        self, tickets: Sequence[Ticket], timeout: float
    ) -> dict[int, tuple[Runbook, str]]:
        """Return the pages that the alerts of tickets name, with why one cannot be read, by the ticket's id."""
        if not self.settings.most:
            return {}
        urls = {one.id: self._pages.url_of(one) for one in tickets}
        wanted = list(dict.fromkeys(filter(None, urls.values())))
        pages = await asyncio.gather(
            *(self._pages.page(url, timeout) for url in wanted)
        )
        found = dict(zip(wanted, pages, strict=True))
        return {id_: found[url] for id_, url in urls.items() if url}

    # ------------------------------------------------------------------ reading

    def begin_reading(self) -> asyncio.Task[None] | None:
        """Begin to read the sources if that is due. Return the task that reads them, if one does."""
        if self._reading is not None and not self._reading.done():
            return self._reading
        now = self._clock.monotonic()
        if self._read is not None and now - self._read < self.settings.refresh:
            return None
        if not self.sources:
            self._read = now
            return None
        self._reading = asyncio.create_task(self.load(), name="read runbooks")
        return self._reading

    async def load(self) -> None:
        """Read all sources now. What is wrong with one of them is in its `away` and `listing.problems`."""
        await asyncio.gather(*map(self._load, self.sources))
        runbooks = [one for source in self.sources for one in source.listing.runbooks]
        self._index = await asyncio.to_thread(RunbookIndex, runbooks)
        self._away = {one.name: one.away for one in self.sources if one.away}
        self._read = self._clock.monotonic()
        self._report()

    async def _load(self, source: Source) -> None:
        before = source.away
        try:
            if source.folder is not None:
                source.listing = await self._read_folder(source, source.folder)
                source.away = ""
            else:
                await self._read_repository(source)
            if not source.away:
                source.read_at = self._clock.now()
        except MidwatchError as error:
            source.away = self._redact(error.one_line())
        except OSError as error:  # of the folder of mirrors
            source.away = f"cannot keep the mirror: {error.strerror}: {error.filename}"
        if source.away and source.away != before:
            kept = len(source.listing.runbooks)
            self._log.warning(
                "runbooks not read", source=source.name, error=source.away, kept=kept
            )
        elif before and not source.away:
            self._log.info("runbooks read again", source=source.name)

    async def _read_folder(self, source: Source, folder: Path) -> Listing:
        known = source.listing.known
        reading = asyncio.create_task(
            asyncio.to_thread(read_folder, folder, self._redact, known)
        )
        await asyncio.wait({reading}, timeout=_FOLDER_SECONDS)
        if not reading.done():  # the thread cannot be stopped; its result is not used
            reading.add_done_callback(lambda one: one.cancelled() or one.exception())
            limit = format_duration(_FOLDER_SECONDS)
            raise SourceUnavailable(f"{folder} was not read within {limit}")
        return reading.result()

    async def _read_repository(self, source: Source) -> None:
        assert source.repository is not None
        if self._git is None:
            self._git = self._git_access()
        git, mirrors = self._git
        known = source.listing.known
        fetched = await read_repository(
            source.repository, git, mirrors, self._redact, known
        )
        source.listing, source.commit = fetched.listing, fetched.commit
        source.away = self._redact(fetched.away)

    def _report(self) -> None:
        """Log each problem once, for as long as it lasts."""
        now = {
            (source.name, one)
            for source in self.sources
            for one in source.listing.problems
        }
        for name, one in sorted(
            now - self._logged, key=lambda pair: (pair[0], pair[1].path)
        ):
            self._log.warning(
                "runbook not used", source=name, path=one.path, reason=one.text
            )
        self._logged = now

    async def close(self) -> None:
        """End what is being read."""
        if self._reading is not None:
            await cancel(self._reading)
        await self._pages.close()


def _merged(
    ranked: Sequence[tuple[int, int, Runbook, int, Hit, str]],
) -> list[Found]:
    """Return each runbook once, the best of every ticket before the second best of one."""
    found: dict[tuple[str, str], Found] = {}
    for _, _, runbook, ticket, hit, failure in sorted(ranked, key=lambda one: one[:2]):
        key = (runbook.source, runbook.path)
        known = found.setdefault(key, Found(runbook, {}, failure))
        found[key] = replace(known, hits={**known.hits, ticket: hit})
    return list(found.values())


def problem_lines(source: Source) -> Iterator[str]:
    """Yield one line for each file of a source that cannot be used."""
    for one in source.listing.problems:
        yield f"{one.path}: {one.text}" if one.path else one.text
