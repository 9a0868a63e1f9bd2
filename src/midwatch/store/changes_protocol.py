"""The part of the store protocol for the changes of watched systems.

What `midwatch.store.protocol` says of errors, times and durations holds here too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from midwatch.system_changes import ChangeFilter, NewChange, Reading, SystemChange


class ChangesStore(Protocol):
    """Changes of watched systems, and how far repositories have been read for them."""

    async def record_changes(
        self, new: Sequence[NewChange], reading: Reading | None = None
    ) -> list[SystemChange]:
        """Store changes in one transaction; one whose `dedup_key` is there stays as it is.

        Args:
            new: The changes. A time of the future becomes that of now, by the database's clock.
            reading: How far the repository that they come from has been read; its times are set by the store.

        Returns:
            All of them as they are stored, each key once.
        """
        ...

    async def system_change(self, change_id: int) -> SystemChange:
        """Return a change. Raises NotFound."""
        ...

    async def system_changes(self, query: ChangeFilter) -> list[SystemChange]:
        """Return changes, the newest first."""
        ...

    async def changes_before(
        self,
        subjects: Collection[str],
        since: datetime,
        until: datetime,
        limit: int,
    ) -> list[SystemChange]:
        """Return the changes of subjects that can have happened in a period, the latest first.

        One of which only a period is known counts if the two periods overlap, and if it was seen at most a day later.

        Args:
            subjects: The subjects; "" stands for what is known by labels alone.
            since: The start of the period.
            until: Its end.
            limit: The most changes of each subject.
        """
        ...

    async def forget_changes(self, older_than: float) -> int:
        """Remove changes that happened more than `older_than` seconds ago, some at a time. Return how many: 0 at the end."""
        ...

    async def change_reading(self, name: str) -> Reading:
        """Return how far a repository has been read; an empty reading for a new one."""
        ...

    async def fail_reading(self, name: str, error: str) -> None:
        """Record that a repository could not be read. What was read of it before stays."""
        ...
