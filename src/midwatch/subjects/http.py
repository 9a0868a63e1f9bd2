"""The subject kind `http`: one URL must answer, quickly, rightly and with a good certificate.

A server that cannot be reached is what this subject looks for, so it is an observation. What
could not be seen behind it (status, latency, body, certificate) is unknown meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ..errors import ObservationFailed
from ..lifecycle import Clock, SystemClock
from ..model import Invariant, Json, Observation, Ticket
from . import _http_checks as checks
from . import _tls
from ._http_checks import Found
from ._http_settings import INVARIANTS, HttpSettings, applicable
from ._http_target import Target
from ._web import Answer, WebClient, WebFailure
from .base import EvidenceSource
from .configure import configure

# The rest is for saying what happened before the monitor cancels us.
_SHARE_OF_TIMEOUT = 0.8


class HttpSubject:
    """A URL, asked over a fresh connection each time."""

    kind: ClassVar[str] = "http"
    settings_model: ClassVar[type[HttpSettings]] = HttpSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: HttpSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.target = Target.of(settings.url)
        self.clock = clock or SystemClock()
        path = f"subjects.{settings.name}"
        wanted = applicable(settings)
        self._invariants = tuple(
            invariant
            for invariant in configure(INVARIANTS, settings.invariants, path)
            if invariant.id in wanted
        )
        self.web = WebClient(
            verify=settings.verify,
            ca_file=settings.ca_file,
            path=f"{path}.ca_file",
            clock=self.clock,
        )

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
        login = self.target.login[1] if self.target.login else ""
        values = [
            *(value.get_secret_value() for value in self.settings.headers.values()),
            *self.target.login_header().values(),
            login,
        ]
        # Short values in a query are switches, and too common to be taken out of every text.
        query = [text for text in self.target.query_values() if len(text) >= 8]
        return [value for value in values if value] + query

    @property
    def time_limit(self) -> float:
        """Seconds that one request gets."""
        return self.settings.timeout * _SHARE_OF_TIMEOUT

    async def observe(self, previous: Json) -> Observation:
        """Raises ObservationFailed only where this machine, not the server, is at fault."""
        try:
            answer = await self.ask()
        except WebFailure as failure:
            if failure.cause in ("local", "request"):
                raise
            found = checks.failed(failure, self.target)
            if failure.cause == "certificate":
                found = await self._with_expiry(found, None)
        else:
            found = checks.answered(answer, self.settings, self.target)
            if self.target.secure:
                accepted = checks.verdict("certificate_valid", True, self.target)
                found = replace(found, signals=(*found.signals, accepted))
                found = await self._with_expiry(found, answer)
        return self._observation(found)

    async def ask(self) -> Answer:
        """Ask the URL now. Raises WebFailure."""
        given = self.settings.headers.items()
        headers = {name.lower(): value.get_secret_value() for name, value in given}
        return await self.web.fetch(
            self.settings.method,
            self.target.url,
            timeout=self.time_limit,
            limit=int(self.settings.body_limit),
            headers={**self.target.login_header(), **headers},
            redirects=self.settings.redirects,
        )

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        from ._http_evidence import sources

        return sources(self)

    async def close(self) -> None:
        await self.web.close()

    async def _with_expiry(self, found: Found, answer: Answer | None) -> Found:
        """The certificate comes with the answer, unless that was refused or came from elsewhere."""
        try:
            if answer and answer.certificate and answer.origin == self.target.origin:
                end = answer.accepted_until or _tls.read(answer.certificate).not_after
            else:
                rest = self.settings.timeout - self.time_limit
                host, port = self.target.host, self.target.port
                end = (await _tls.certificate(host, port, rest)).not_after
        except ObservationFailed as error:
            unseen = {**found.unavailable, "certificate_expiry": error.message}
            return replace(found, unavailable=unseen)
        lasts = checks.expiry(end, self.clock.now(), self.target)
        return replace(found, signals=(*found.signals, lasts))

    def _observation(self, found: Found) -> Observation:
        enabled = {invariant.id for invariant in self._invariants}
        signals = tuple(
            signal for signal in found.signals if signal.invariant in enabled
        )
        # What is unseen because of a break that is reported needs no complaint of its own.
        unseen = {
            name: why for name, why in found.unavailable.items() if name in enabled
        }
        covered = frozenset(signal.invariant for signal in signals)
        return Observation(signals=signals, covered=covered, unavailable=unseen)
