"""Group commit: requests that come while a transaction runs are saved together in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from midwatch.errors import MidwatchError, PermanentError, StoreBusy
from midwatch.lifecycle import Clock
from midwatch.logs import Log
from midwatch.received import Accepted, Push, PushRules
from midwatch.store.protocol import Store

MOST_WAITING = 20_000
"""Alerts that wait to be saved; more are refused for now."""
_MOST_AT_ONCE = 2000  # alerts in one transaction, unless one request has more
_QUIET_PASSES = 4
"""Passes of the event loop without a new request after which a group is complete: one has a few steps until it is here."""
_MOST_LOGGED = 20
_DEADLOCK_WITHIN = 2.0  # seconds; the wait for a lock that is held takes longer
_KEPT = 7 * 24 * 3600.0
"""Seconds for which resolved alerts are kept: they tell what comes late."""
_FORGET_EVERY = 3600.0


@dataclass(eq=False, slots=True)
class _Waiting:
    push: Push
    saved: asyncio.Future[None]

    @property
    def size(self) -> int:
        return 1 + len(self.push.alerts)


class AlertWriter:
    """Saves pushed alerts. All transactions are made by one task, which ends when nothing waits."""

    def __init__(self, store: Store, rules: PushRules, log: Log, clock: Clock) -> None:
        self._store = store
        self._rules = rules
        self._log = log
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._forgot_at = clock.monotonic()

    async def write(self, push: Push) -> None:
        """Save what was pushed; return once it is committed.

        Raises:
            StoreBusy: Too many alerts wait already, or the database is locked.
            MidwatchError: It cannot be saved; nothing of it was.
        """
        if self._waiting and self._size + len(push.alerts) > MOST_WAITING:
            raise StoreBusy(
                "too many alerts wait to be saved",
                hint="send them again in a moment",
                retry_after=2.0,
            )
        one = _Waiting(push, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._size += one.size
        if self._task is None:
            self._task = asyncio.create_task(self._drain(), name="save alerts")
        await one.saved

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                await self._save(self._next())
            await self._forget()
        finally:
            self._task = None
            if self._waiting:  # it came during the last steps
                self._task = asyncio.create_task(self._drain(), name="save alerts")

    async def _gather(self) -> None:
        """Let requests that have arrived join the group: the senders of the last one answer all at once."""
        size, quiet = self._size, 0
        while quiet < _QUIET_PASSES and self._size < _MOST_AT_ONCE:
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._size == size else 0
            size = self._size

    def _next(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._waiting:
            if group and size + self._waiting[0].size > _MOST_AT_ONCE:
                break
            one = self._waiting.popleft()
            self._size -= one.size
            size += one.size
            if not one.saved.done():  # else its request is gone
                group.append(one)
        return group

    async def _save(self, group: list[_Waiting]) -> None:
        """Save a group in one transaction. If the database refuses it, each request is saved by itself."""
        if not group:
            return
        try:
            accepted = await self._receive([one.push for one in group])
        except PermanentError as error:
            if len(group) == 1:
                _fail(group, error)
                return
            for one in group:
                await self._save([one])
        except MidwatchError as error:
            self._log.warning(
                "alerts not saved", requests=len(group), error=error.one_line()
            )
            _fail(group, error)
        except BaseException:
            _fail(group, StoreBusy("the server ends, or has a fault; see its log"))
            raise
        else:
            for one in group:
                if not one.saved.done():
                    one.saved.set_result(None)
            self._tell(group, accepted)

    async def _receive(self, pushes: Sequence[Push]) -> Accepted:
        """Save pushes, at once a second time after a deadlock with a change of a ticket: that one is done then."""
        began = self._clock.monotonic()
        try:
            return await self._store.receive(pushes, self._rules)
        except StoreBusy:
            if self._clock.monotonic() - began > _DEADLOCK_WITHIN:
                raise
        return await self._store.receive(pushes, self._rules)

    def _tell(self, group: list[_Waiting], accepted: Accepted) -> None:
        self._log.info(
            "alerts received",
            subjects=sorted({one.push.subject for one in group}),
            requests=len(group),
            alerts=sum(len(one.push.alerts) for one in group),
            opened=len(accepted.opened),
            resolved=len(accepted.resolved),
            tickets=[*accepted.opened, *accepted.resolved][:_MOST_LOGGED],
        )

    async def _forget(self) -> None:
        if self._clock.monotonic() - self._forgot_at < _FORGET_EVERY:
            return
        self._forgot_at = self._clock.monotonic()
        try:
            await self._store.forget_alerts(_KEPT)
        except MidwatchError as error:
            self._log.warning("old alerts not removed", error=error.one_line())


def _fail(group: list[_Waiting], error: MidwatchError) -> None:
    for one in group:
        if not one.saved.done():
            one.saved.set_exception(error)
