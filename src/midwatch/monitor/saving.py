"""Save the observations that change no ticket in groups: one transaction, and one wait for the disk, for many subjects."""

from __future__ import annotations

import asyncio

from midwatch.errors import PermanentError, StaleWatch, SubjectTaken
from midwatch.lifecycle import Clock, first
from midwatch.store.protocol import SavedCycle, Store
from midwatch.store.shares_protocol import SavedTogether, Unchanged


class GroupSaver:
    """Saves together what comes while the last transaction runs, or within `linger` seconds before.

    What opens or resolves a ticket does not come here: it is saved at once.

    Attributes:
        linger: Seconds that an observation may wait for others. A process that is killed meanwhile loses one
            count of observations, and no change of a ticket.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._group: list[Unchanged] = []
        self._task: asyncio.Task[SavedTogether] | None = None
        self._transaction = asyncio.Lock()
        self._hurry = asyncio.Event()
        self.linger = 0.0

    async def save(self, observed: Unchanged) -> SavedCycle:
        """Save an observation, and return as `Store.save_cycle` does. Raises what that raises."""
        if not self._group:
            self._task = asyncio.create_task(self._save_group(), name="save group")
        group, task = self._group, self._task
        assert task is not None
        group.append(observed)
        try:
            together = await asyncio.shield(task)
        except PermanentError:
            if len(group) == 1:
                raise
            # One of them is what the database refuses.
            together = await self._store.save_unchanged([observed])
        if observed.subject in together.taken:
            raise SubjectTaken()
        if observed.subject in together.stale:
            raise StaleWatch()
        return SavedCycle(observed.revision, now=together.now)

    def hurry(self) -> None:
        """Save what waits at once, from now on."""
        self._hurry.set()

    async def close(self) -> None:
        """Wait until what waits is saved."""
        self.hurry()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _save_group(self) -> SavedTogether:
        if self.linger and not self._hurry.is_set():
            await first(self._clock.sleep(self.linger), self._hurry.wait())
        async with self._transaction:
            group, self._group = self._group, []
            return await self._store.save_unchanged(group)
