"""Watch pull requests until they end: state, checks and review, and the word that their ticket is resolved.

Many daemons may watch one database: each look is claimed. A look asks only for what changed, keeps to the forge's limits, and
resolves no ticket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

from midwatch.errors import MidwatchError, TemporaryError
from midwatch.lifecycle import Clock, StopEvent, SystemClock
from midwatch.logs import Log
from midwatch.model import Ticket
from midwatch.pull_requests.forge import Look, NothingToMerge
from midwatch.pull_requests.publisher import Publisher, state_line
from midwatch.store.on_call import PullRequest
from midwatch.text import one_line

_CLAIM = 300.0
"""Seconds for which a daemon has what it looks at: a look is a few requests, each with a time limit."""
_POLL = 15.0
_HOUR = 3600.0
_PUSHED_WITHIN = timedelta(days=7)
"""How long a session in a cluster may take to push; its own limits are far shorter."""
_REOPENED_WITHIN = timedelta(days=30)
"""How long it is looked at whether a person reopens what was closed."""


class PullRequestWatcher:
    """Looks at pull requests that are not merged.

    Args:
        publisher: Opens what a killed process left unopened.
        interval: Seconds between two looks at one.
        log: Gets one line for each new failure.
        redact: Removes secrets from what a forge says.
        clock: The source of time.

    `results` counts what it saw happen: opened, updated (new commits), merged, closed, and failed for each try that failed.
    """

    def __init__(
        self,
        publisher: Publisher,
        interval: float,
        log: Log,
        redact: Callable[[str], str],
        clock: Clock | None = None,
    ) -> None:
        self._publisher = publisher
        self._records = publisher.records
        self._store = publisher.store
        self._interval = interval
        self._log = log
        self._redact = redact
        self._clock = clock or SystemClock()
        self.results: Counter[str] = Counter()

    async def run(self, stop: StopEvent) -> None:
        """Look at all that is due, until the stop. Errors are logged, and it goes on later each time."""
        failures = 0
        while not stop:
            try:
                await self.once()
                failures = 0
            except MidwatchError as error:  # the database is away
                self._log.warning(
                    "pull requests are not watched", reason=error.one_line()
                )
            except Exception:  # a bug here must not end the watch
                failures += 1
                self._log.exception("pull requests are not watched")
            wait = min(_POLL, self._interval) * 2 ** min(failures, 10)
            if await stop.pause(min(wait, _HOUR)):
                break
        await self._publisher.forges.close()

    async def once(self) -> int:
        """Look at what is due now, and return how many that were. Raises the errors of the store."""
        rows = await self._records.due(_CLAIM)
        for row in rows:
            try:
                await self._look(row)
            except NothingToMerge:
                await self._records.remove(row)
            except MidwatchError as error:
                await self._failed(row, error)
            except Exception as error:  # a bug must not keep the others waiting
                self._log.exception("a pull request cannot be looked at")
                await self._failed(row, MidwatchError(type(error).__name__))
        return len(rows)

    async def _look(self, row: PullRequest) -> None:
        place = self._publisher.forges.of(row.repository)
        if rest := place.forge.client.resting():
            await self._records.change(row, {}, seconds=rest)
            return
        ticket = await self._store.ticket(row.ticket)
        if row.awaits_branch:
            found_row = await self._publisher.pushed(row)
            if found_row is None:
                await self._await_branch(row)
                return
            row = found_row
        if row.number is None:
            row, _ = await self._publisher.open(row, ticket)
        assert row.number is not None
        look = await place.forge.look(place.project, row.number, row.seen)
        found = look.found
        values = {
            "state": found.state,
            "url": found.url,
            "checks": row.checks if found.ended else look.checks,
            "review": row.review if found.ended else look.review,
            "seen": look.seen,
            "checked_at": self._clock.now(),
            "failures": 0,
            "last_error": None,
        }
        before, row = row, await self._records.change(
            row,
            values,
            actor="midwatch",
            why=state_line(found),
            seconds=self._next(row, found.state),
        )
        self._count(before, look)
        if ticket.resolved and not row.ended and row.told_resolved_at is None:
            await self._tell(row, ticket)

    async def _await_branch(self, row: PullRequest) -> None:
        """Look for the branch of a session elsewhere again: rarer as time goes by, and not for ever."""
        age = self._clock.now() - row.created_at
        if age < _PUSHED_WITHIN:
            seconds = min(max(self._interval, age.total_seconds() / 10), _HOUR)
            await self._records.change(row, {}, seconds=seconds)
            return
        others = await self._store.pull_requests_of(row.ticket)
        if any(one.session == row.session and one.number for one in others):
            await self._records.remove(row)  # it changed the other repositories alone
            return
        why = f"session {row.session} pushed nothing within {_PUSHED_WITHIN.days} days"
        await self._records.change(row, {"last_error": why})

    def _count(self, before: PullRequest, look: Look) -> None:
        """Count what has happened since the last look, which is stored: so each thing counts once, whichever daemon looks."""
        found = look.found
        if before.checked_at is None:
            self.results["opened"] += 1
        elif found.head not in str(before.seen):
            self.results["updated"] += 1
        if found.ended and not before.ended:
            self.results[found.state] += 1

    def _next(self, row: PullRequest, state: str) -> float | None:
        if state == "merged":
            return None
        if state != "closed":
            return self._interval
        young = self._clock.now() - row.created_at < _REOPENED_WITHIN
        return _HOUR if young else None

    async def _tell(self, row: PullRequest, ticket: Ticket) -> None:
        """Comment that the ticket is resolved: once, and rather not than twice."""
        if not await self._records.tell_resolved(row):
            return
        assert row.number is not None and ticket.resolved_at is not None
        place = self._publisher.forges.of(row.repository)
        text = (
            f"Ticket {ticket.id} was resolved at {ticket.resolved_at:%Y-%m-%d %H:%M:%S} UTC."
            f" This {place.forge.noun} stays open: whether its change is still wanted is for you to decide."
        )
        await place.forge.comment(place.project, row.number, text)

    async def _failed(self, row: PullRequest, error: MidwatchError) -> None:
        self.results["failed"] += 1
        why = one_line(self._redact(error.one_line()), 500)
        if why != row.last_error:
            self._log.warning(
                "a pull request cannot be looked at", ticket=row.ticket, reason=why
            )
        failures = row.failures + 1
        wait = min(self._interval * 2 ** min(failures, 10), _HOUR)
        if isinstance(error, TemporaryError):
            wait = max(error.retry_after or 0.0, wait)
        elif row.number is None:
            wait = _HOUR
        values = {"failures": failures, "last_error": why}
        await self._records.change(row, values, seconds=wait)
