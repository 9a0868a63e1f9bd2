"""The place of this monitor among those that share the subjects: its lease, and what it watches."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from uuid import uuid4

from midwatch.fair_shares import Member, Share
from midwatch.lifecycle import Clock
from midwatch.model import Json
from midwatch.monitor.standstill import Standstill
from midwatch.process_identity import has_ended, process_name
from midwatch.store.protocol import Store

_RETRY = 5.0
"""Seconds until a lease is renewed again when that failed, or the subjects could not be shared yet."""
_RENEWALS = 2
"""How often a lease is renewed while it lasts, when nothing else writes the heartbeat."""


class Membership:
    """Renews the lease of this process, and knows what it may observe.

    A lease counts from before its renewal was sent, with the seconds in which the machine was suspended. So a process
    that stood still stops observing no later than others take over.

    Args:
        store: Where monitors meet.
        name: The name of this monitor, which is shown.
        subjects: The names of all subjects of its settings.
        lease: Seconds.
        clock: The source of time.
        standstill: Knows for how long the machine was suspended.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        subjects: Sequence[str],
        lease: float,
        clock: Clock,
        standstill: Standstill | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._standstill = standstill
        self.member = Member(
            uuid4().hex,
            name,
            (process_name(os.getpid()) or ""),
            frozenset(subjects),
            lease,
        )
        self.share: Share | None = None
        self._until = self._next = self._time()

    @property
    def subjects(self) -> frozenset[str]:
        """What this monitor watches, whether its lease holds or not; all that it knows before it had one."""
        return self.member.knows if self.share is None else self.share.subjects

    @property
    def holds(self) -> bool:
        """Whether its lease is not over: else it must not observe."""
        return self._time() < self._until

    @property
    def renewal_in(self) -> float:
        """Seconds until the lease is due to be renewed, or that of another one ends."""
        return max(0.0, self._next - self._time())

    async def renew(self, info: Json, busy: Collection[str]) -> None:
        """Renew the lease, and learn what this monitor watches now.

        `info` is what its heartbeat says; subjects in `busy` are being observed. Raises the errors of the store.
        """
        began = self._time()
        self._next = began + self._soon
        if self.share is not None:
            stayed = await self._store.stay(
                self.member, self.share, info, ended=has_ended
            )
            if stayed is None:
                self._until = began
            else:
                self._take(stayed, began)
                if stayed.version:
                    return
            began = self._time()
        shared = await self._store.share(self.member, info, busy=busy, ended=has_ended)
        self._take(shared, began)

    def _take(self, share: Share, began: float) -> None:
        """Take the share of a renewal that was sent at `began`."""
        self.share = share
        self._until = began + self.member.lease
        wait = self.member.lease / _RENEWALS if share.version else self._soon
        self._next = began + wait
        if share.next_end is not None:
            self._next = min(self._next, self._time() + share.next_end)

    @property
    def _soon(self) -> float:
        return min(_RETRY, self.member.lease / _RENEWALS)

    async def leave(self) -> None:
        """Let others take over at once. Raises the errors of the store."""
        if self.share is not None:
            await self._store.leave(self.member.id)

    def _time(self) -> float:
        """Return monotonic seconds with those in which the machine was suspended."""
        suspended = self._standstill.suspended() if self._standstill else 0.0
        return self._clock.monotonic() + suspended
