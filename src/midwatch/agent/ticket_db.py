"""`TicketDB`: the tickets of a database for programs that integrate with Midwatch."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from midwatch.agent.diagnosis import Step, conclude
from midwatch.config import explain
from midwatch.diagnosis_schema import DiagnosisOutput, Kind, Reply
from midwatch.errors import NotFound, PermanentError, SettingsError
from midwatch.lifecycle import off_loop
from midwatch.model import (
    UNRESOLVED,
    AuditRow,
    Context,
    Diagnosis,
    Evidence,
    Facts,
    Json,
    Key,
    Severity,
    Ticket,
    TicketStatus,
    Violation,
)
from midwatch.redaction import Redactor, Sanitizer
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import Finish, Opening, Store, TicketFilter
from midwatch.store.sql import open_store
from midwatch.text import clean

_PROMPT_VERSION = "none"
_SEVERITIES = ", ".join(severity.label for severity in Severity)


class TicketDB:
    """The tickets of a database: list and read them, and act on them as a person does.

    ::

        async with TicketDB("sqlite:///midwatch.db", actor="pager") as tickets:
            for ticket in await tickets.list(subject="orders-db"):
                await tickets.hold(ticket.id, why="the migration runs")

    `TicketDB.open` is the same without a `with` block: `tickets = await TicketDB.open(…)`, and `close` at the end.
    Daemons, commands and this class may use one database at the same time.

    Every method may raise the errors of the store: StoreUnavailable, StoreBusy and StoreFull are temporary,
    StoreRejected and SchemaMismatch permanent. A method for one ticket raises NotFound for an unknown one.

    Args:
        database: `sqlite:///FILE`, `postgresql://USER@HOST/DATABASE`, or the path of a SQLite file.
        actor: The name in the audit rows of changes.
        redactor: Removes secrets from what is written.
    """

    def __init__(
        self,
        database: str | Path,
        *,
        actor: str = "integration",
        redactor: Redactor | None = None,
    ) -> None:
        path = isinstance(database, Path)
        self._database = f"sqlite:///{database}" if path else str(database)
        self._actor = actor
        self._redactor = redactor or Redactor()
        self._sanitizer = Sanitizer(self._redactor)
        self._opened: Store | None = None

    @classmethod
    def open(
        cls,
        database: str | Path,
        *,
        actor: str = "integration",
        redactor: Redactor | None = None,
    ) -> Self:
        """Return the tickets of a database, to be awaited or used in `async with`. Arguments as of the class."""
        return cls(database, actor=actor, redactor=redactor)

    async def _open(self) -> Self:
        if self._opened is None:
            self._opened = await open_store(self._database)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A second call does nothing."""
        store, self._opened = self._opened, None
        if store is not None:
            await store.close()

    # ------------------------------------------------------------ read

    async def list(
        self,
        *,
        status: TicketStatus | str | None = None,
        subject: str | None = None,
        severity: Severity | str | None = None,
        limit: int = 50,
    ) -> Sequence[Ticket]:
        """Return tickets, the most severe and then the oldest first.

        Args:
            status: Only tickets of this status; by default all that are not resolved.
            subject: Only tickets of this subject.
            severity: Only tickets of this severity.
            limit: The most tickets.
        """
        statuses = UNRESOLVED if status is None else (_status(status),)
        least = None if severity is None else _severity(severity)
        return await self._store.tickets(
            TicketFilter(statuses, subject, least, None, limit)
        )

    async def get(self, ticket_id: int) -> Ticket:
        """Return a ticket."""
        return await self._store.ticket(_number(ticket_id))

    async def diagnoses(self, ticket_id: int) -> Sequence[Diagnosis]:
        """Return every diagnosis of a ticket, oldest first; `Ticket.diagnosis_id` names the current one."""
        await self.get(ticket_id)
        return await self._store.diagnoses(ticket_id)

    async def history(self, ticket_id: int) -> Sequence[AuditRow]:
        """Return the changes of a ticket, oldest first."""
        return await self._store.history(_number(ticket_id))

    # ------------------------------------------------------------ change

    async def open_ticket(
        self,
        subject: str,
        invariant: str,
        component: str,
        message: str,
        *,
        severity: Severity | str = Severity.WARNING,
        facts: Facts | None = None,
    ) -> Ticket:
        """Open a ticket, or return the unresolved one of the same subject, invariant and component.

        A monitor resolves the ticket once it observes that the invariant holds; for a subject that no
        monitor watches, `resolve` does.
        """
        _check_text(component=component, message=message)
        _check_text(required=True, subject=subject, invariant=invariant)
        key = Key(
            *(self._sanitizer.sanitize(one) for one in (subject, invariant, component))
        )
        violation = self._sanitizer.violation(
            Violation(key, _severity(severity), message, facts=facts or {})
        )
        settings = MonitorSettings()
        known = await self._store.earlier(key.subject, [key], settings.flapping_window)
        most = settings.flapping_openings
        opening = Opening(violation).after(known.get(key), most)
        return await self._store.open_ticket(opening, self._actor)

    async def hold(self, ticket_id: int, why: str = "") -> Ticket:
        """Keep a ticket from resolving by itself. Raises Conflict if it is resolved."""
        return await self._hold(ticket_id, True, why)

    async def unhold(self, ticket_id: int, why: str = "") -> Ticket:
        """Let a ticket resolve by itself again. Raises Conflict if it is resolved."""
        return await self._hold(ticket_id, False, why)

    async def _hold(self, ticket_id: int, held: bool, why: str) -> Ticket:
        _check_text(why=why)
        why = self._sanitizer.sanitize(why)
        return await self._store.hold(_number(ticket_id), held, self._actor, why)

    async def resolve(self, ticket_id: int, why: str) -> Ticket:
        """Resolve a ticket. Raises Conflict if it is resolved already."""
        _check_text(why=why)
        why = self._sanitizer.sanitize(why)
        return await self._store.resolve(_number(ticket_id), self._actor, why)

    async def update_diagnosis(
        self,
        ticket_id: int,
        diagnosis: DiagnosisOutput | Mapping[str, Any],
        *,
        evidence: Sequence[Evidence] = (),
        model: str = "",
    ) -> Ticket:
        """Store a diagnosis of yours as that of a ticket; earlier diagnoses are kept.

        A ticket that waits for a diagnosis becomes diagnosed, and no agent diagnoses it any more. Any other ticket
        keeps its status: a resolved one stays resolved. As with Claude's, every claim is checked
        against the evidence that it cites: what is not found there is shown as unverified and lowers
        the confidence.

        Args:
            ticket_id: The ticket.
            diagnosis: The diagnosis. In a mapping only `summary` is required; what is missing is empty.
            evidence: The evidence that the diagnosis cites.
            model: What made the diagnosis; by default the actor.

        Raises:
            SettingsError: The diagnosis has an unknown field, or a value that does not fit; the error names it.
            Conflict: An agent is diagnosing the ticket.
        """
        ticket = await self.get(ticket_id)
        output = _output(diagnosis, ticket)
        if not all(isinstance(one, Evidence) for one in evidence):
            raise SettingsError(
                "the evidence is not a list of Evidence",
                path="evidence",
                hint="use midwatch.model.Evidence(id, title, source, at, text)",
            )
        size = sum(len(one.text) for one in evidence)
        return await self._store.update_diagnosis(
            ticket_id,
            await off_loop(size, self._concluded, ticket, output, evidence),
            actor=self._actor,
            model=model or self._actor,
            prompt_version=_PROMPT_VERSION,
        )

    def _concluded(
        self, ticket: Ticket, output: DiagnosisOutput, evidence: Sequence[Evidence]
    ) -> Finish:
        sanitized = tuple(map(self._sanitized, evidence))
        context = Context((ticket,), sanitized, datetime.now(UTC))
        reply = Reply(Kind.ANSWERED, output)
        return conclude(reply, Step(context, 0), self._redactor)

    def _sanitized(self, evidence: Evidence) -> Evidence:
        text = self._redactor.text(clean(evidence.text, longest=None))
        title, source = map(self._sanitizer.sanitize, (evidence.title, evidence.source))
        return replace(evidence, title=title, source=source, text=text)

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise PermanentError(
                "the database of tickets is not open",
                hint="use `async with TicketDB(…) as tickets`, or `await TicketDB.open(…)`",
            )
        return self._opened


def _check_text(*, required: bool = False, **texts: object) -> None:
    """Raise SettingsError for a value that is not text, or is empty although it is required."""
    for name, text in texts.items():
        if not isinstance(text, str) or (required and not text.strip()):
            problem = "is empty" if text == "" else f"{text!r:.80} is not a text"
            raise SettingsError(problem, path=name, hint=f"give the {name} as text")


def _number(ticket_id: int) -> int:
    if isinstance(ticket_id, bool) or not isinstance(ticket_id, int):
        raise NotFound(
            f"{ticket_id!r} is not the number of a ticket",
            hint="use the `id` of a ticket, such as 12",
        )
    return ticket_id


def _status(status: TicketStatus | str) -> TicketStatus:
    try:
        return TicketStatus(status)
    except ValueError:
        raise SettingsError(
            f"{status!r} is not a status; use {', '.join(TicketStatus)}", path="status"
        ) from None


def _severity(severity: Severity | str) -> Severity:
    try:
        return severity if isinstance(severity, Severity) else Severity.parse(severity)
    except (KeyError, AttributeError):
        raise SettingsError(
            f"{severity!r} is not a severity; use {_SEVERITIES}", path="severity"
        ) from None


def _output(
    diagnosis: DiagnosisOutput | Mapping[str, Any], ticket: Ticket
) -> DiagnosisOutput:
    """Return the diagnosis with what is missing. Raises SettingsError."""
    if isinstance(diagnosis, DiagnosisOutput):
        return diagnosis
    if not isinstance(diagnosis, Mapping):
        raise SettingsError(
            f"a {type(diagnosis).__name__} is not a diagnosis",
            path="diagnosis",
            hint='use a DiagnosisOutput, or a mapping such as {"summary": …, "root_cause": …}',
        )
    for name in diagnosis:
        if name not in DiagnosisOutput.model_fields:
            close = difflib.get_close_matches(
                str(name), DiagnosisOutput.model_fields, n=1
            )
            known = f"use {', '.join(DiagnosisOutput.model_fields)}"
            raise SettingsError(
                "unknown field",
                path=f"diagnosis.{name}",
                hint=f"did you mean {close[0]}?" if close else known,
            )
    values: Json = {**_empty(ticket), **diagnosis}
    if not diagnosis.get("verdict"):
        values["verdict"] = "suspected" if values["root_cause"] else "insufficient_data"
    try:
        return DiagnosisOutput.model_validate(values)
    except ValidationError as error:
        raise explain(error, DiagnosisOutput, "diagnosis", "field") from None


def _empty(ticket: Ticket) -> Json:
    """Return the fields that a mapping may leave out."""
    lists: Json = {
        name: []
        for name, field in DiagnosisOutput.model_fields.items()
        if str(field.annotation).startswith("list")
    }
    return {
        **lists,
        "root_cause": "",
        "confidence": "low",
        "confidence_reason": "no reason was given",
        "explained_tickets": [ticket.id],
        "severity": ticket.severity.label,
    }
