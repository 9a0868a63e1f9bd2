"""The subject kind `host`: space, memory, load and processes of the machine that Midwatch runs on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ClassVar

from ..errors import ObservationFailed
from ..model import Invariant, Json, Observation, Ticket
from ._host_settings import INVARIANTS, HostSettings
from ._off_loop import OffLoop
from ._text import one_line
from .base import EvidenceSource
from .configure import configure

_SHARE_OF_TIMEOUT = 0.8  # the rest is for saying that it took too long


class HostSubject:
    """This machine, as psutil sees it. In a container that is the container's file systems and
    processes, and the whole machine's memory and load.
    """

    kind: ClassVar[str] = "host"
    settings_model: ClassVar[type[HostSettings]] = HostSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self._invariants = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        self._off_loop = OffLoop()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def timeout(self) -> float:
        return self.settings.timeout

    @property
    def invariants(self) -> Sequence[Invariant]:
        return self._invariants

    @property
    def secrets(self) -> Sequence[str]:
        return ()

    async def observe(self, previous: Json) -> Observation:
        """Raises ObservationFailed when the operating system does not answer, as with a dead mount."""
        from ._host_look import look

        wanted = [invariant.id for invariant in self._invariants]
        signals, unavailable = await self._off_loop.run(
            partial(look, self.settings, wanted),
            self.settings.timeout * _SHARE_OF_TIMEOUT,
            "host",
        )
        covered = frozenset(wanted) - unavailable.keys()
        return Observation(signals, covered, unavailable)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        from ._host_evidence import TABLES

        broken = {ticket.key.invariant for ticket in tickets}
        return [
            EvidenceSource(
                title,
                "psutil on this machine",
                self._fetch(title, partial(tell, self.settings)),
                rank=10 if broken & matters_to else 40,
                timeout=self.settings.timeout,
            )
            for title, tell, matters_to in TABLES.values()
            if title != "Processes that must run" or self.settings.processes
        ]

    async def close(self) -> None:
        """Nothing is held open."""

    def _fetch(
        self, title: str, tell: Callable[[], str]
    ) -> Callable[[], Awaitable[str]]:
        async def fetch() -> str:
            import psutil

            limit = self.settings.timeout * _SHARE_OF_TIMEOUT
            try:
                return await OffLoop().run(tell, limit, title)
            except (OSError, psutil.Error) as error:
                raise ObservationFailed(
                    f"{title} cannot be read: {one_line(str(error))}"
                ) from None

        return fetch
