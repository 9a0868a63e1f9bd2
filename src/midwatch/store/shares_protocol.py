"""The part of the store protocol by which monitors share the subjects and save many observations at once.

The rules of `midwatch.store.protocol` hold here too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from midwatch.fair_shares import Member, Share
from midwatch.model import Json


@dataclass(frozen=True, slots=True)
class Unchanged:
    """An observation that changes no ticket. The fields are the arguments of `Store.save_cycle`."""

    subject: str
    revision: int
    state: Json | None = None
    error: str | None = None
    silences: int | None = None
    watcher: str | None = None


@dataclass(frozen=True, slots=True)
class SavedTogether:
    """What became of observations that were saved at once: those that were not are named.

    Attributes:
        stale: Subjects whose revision, or the silences, had changed.
        taken: Subjects that another monitor watches.
        now: The time by the database's clock.
    """

    now: datetime
    stale: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()


class SharesStore(Protocol):
    """Who watches what, and observations without changes."""

    async def stay(
        self,
        member: Member,
        last: Share,
        info: Json,
        *,
        ended: Callable[[str], bool] = lambda process: False,
    ) -> Share | None:
        """Renew the lease of a monitor, save its heartbeat, and return what it watches.

        Its `version` is empty if there is something to share since `last`: then `share` is to be called.

        Args:
            member: The monitor.
            last: What the last call returned.
            info: What its heartbeat says.
            ended: Returns whether a process, as `Member.process` names it, is known to have ended.

        Returns:
            None if the lease was over, or ended by others: then `share` is to be called, before anything is observed.
        """
        ...

    async def share(
        self,
        member: Member,
        info: Json,
        *,
        busy: Collection[str] = (),
        ended: Callable[[str], bool] = lambda process: False,
    ) -> Share:
        """Do as `stay`, also for a monitor without a lease, and share the subjects among the members as they are now.

        What members watched whose lease is over goes to the others at once. What a member has too much is given away in
        its own call, as it alone knows that it is not observing it.

        Args:
            member: The monitor.
            info: What its heartbeat says.
            busy: Subjects that it is observing, which are not given away now.
            ended: As for `stay`.
        """
        ...

    async def leave(self, member_id: str) -> None:
        """End the lease of a monitor: others may take its subjects."""
        ...

    async def save_unchanged(self, observed: Sequence[Unchanged]) -> SavedTogether:
        """Save observations of different subjects that change no ticket, in one transaction."""
        ...
