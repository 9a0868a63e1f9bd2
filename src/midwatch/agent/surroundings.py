"""Evidence from around the tickets of an incident: other open tickets, linked subjects, past incidents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice

from midwatch.agent.links import Links
from midwatch.agent.quotes import UNVERIFIED
from midwatch.agent.recent_changes import RecentChanges
from midwatch.errors import MidwatchError
from midwatch.model import Origin, Ticket
from midwatch.redaction import Redactor
from midwatch.store.protocol import Past
from midwatch.subjects.base import EvidenceSource, Subject
from midwatch.text import clean, one_line, reported

PastTickets = Callable[[Sequence[Ticket]], Awaitable[Sequence[Past]]]
OpenTickets = Callable[[], Awaitable[Sequence[Ticket]]]

LINKS = "Links between the systems"
LINKS_RANK = 20
OPEN_RANK = 25
PAST_RANK = 70
"""The ranks of links, other open tickets and past incidents among those of a subject's sources."""
_LINKED_RANK = 30
"""What the sources of a linked subject without a ticket of the incident rank behind those of one that has one."""
_MOST_SUBJECTS = 4
_MOST_SOURCES, _MOST_OF_SILENT = 4, 3
"""Linked subjects that are asked for their state, and the sources of each, with a ticket of its own and without."""
_MOST_LINKS = 20
_MOST_TICKETS = 20


class Surroundings:
    """What stands around the tickets of an incident.

    Args:
        subjects: The watched systems by name.
        redactor: Removes secrets.
        message: Returns the message of a ticket on one line, with marks on what is not Midwatch's own.
        links: The links between subjects; None for none.
        unresolved: Returns all unresolved tickets; None skips them.
        past: Finds past incidents; None skips them.
        changes: Finds what was changed before; None skips that.
    """

    def __init__(
        self,
        subjects: Mapping[str, Subject],
        redactor: Redactor,
        message: Callable[[Ticket], str],
        links: Links | None = None,
        unresolved: OpenTickets | None = None,
        past: PastTickets | None = None,
        changes: RecentChanges | None = None,
    ) -> None:
        self._changes = changes
        self._subjects = subjects
        self._redactor = redactor
        self._message = message
        self._links = links or Links(())
        self._unresolved = unresolved
        self._past = past
        self.linkable = links is not None and len(subjects) > 1

    def deepest_first(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Return tickets, those of the subject that others depend on first, else in their order.

        Links that the tickets name count: the process that opened them may have been another one.
        """
        self._links.refresh()
        for ticket in tickets[:_MOST_TICKETS]:
            text = f"{ticket.message}\n{ticket.key.component}"
            self._links.learn_opening(ticket.key.subject, text, ticket.facts)
        names = self._links.deepest_first(ticket.key.subject for ticket in tickets)
        place = {name: at for at, name in enumerate(names)}
        return sorted(tickets, key=lambda ticket: place[ticket.key.subject])

    def learn(self, name: str, text: str, title: str) -> None:
        """Remember the links that a piece of evidence from subject `name` shows."""
        self._links.learn(name, text, f"its evidence ({title})")

    def links(self, tickets: Sequence[Ticket]) -> str:
        """Return the links of the subjects of the tickets as text, "" without any."""
        own = dict.fromkeys(ticket.key.subject for ticket in tickets)
        found = self._links.among([*own, *sorted(self._near(tickets))])
        return "\n".join(
            f"{link.subject} depends on {link.on}: {self.line(link.why)}"
            for link in islice(found, _MOST_LINKS)
        )

    def _near(self, tickets: Sequence[Ticket]) -> set[str]:
        own = {ticket.key.subject for ticket in tickets}
        return own.union(*map(self._links.related, own))

    def line(self, text: object) -> str:
        """Return foreign text as one line, so that it cannot imitate a line written here."""
        return one_line(self._redactor.text(clean(str(text), longest=None)), 1000)

    # ------------------------------------------------------------------ tickets

    def sources(self, tickets: Sequence[Ticket]) -> list[EvidenceSource]:
        """Return the sources of changes before the onset, of other open tickets and of past incidents."""
        found = []
        if tickets and self._changes is not None:
            found.append(self._changes.source(tickets))
        if tickets and self._unresolved is not None:
            found.append(
                EvidenceSource(
                    "Other open tickets",
                    "midwatch",
                    lambda: self._open_tickets(tickets),
                    rank=OPEN_RANK,
                )
            )
        if tickets and self._past is not None:
            found.append(
                EvidenceSource(
                    "Past incidents",
                    "midwatch",
                    lambda: self._past_incidents(tickets),
                    rank=PAST_RANK,
                    origin=Origin.EARLIER,
                )
            )
        return found

    async def _others(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Return the unresolved tickets that are not of the incident."""
        own = {ticket.id for ticket in tickets}
        found = await self._unresolved() if self._unresolved is not None else ()
        return [ticket for ticket in found if ticket.id not in own]

    async def _open_tickets(self, tickets: Sequence[Ticket]) -> str:
        others, near = await self._others(tickets), self._near(tickets)
        linked = [one for one in others if one.key.subject in near]
        rest = [one for one in others if one.key.subject not in near]
        lines = []
        for heading, some in (
            ("of these systems and linked ones:", linked),
            ("of systems without a known link:", rest),
        ):
            if some:
                lines += [heading, *map(self._open_ticket, some[:_MOST_TICKETS])]
            if (more := len(some) - _MOST_TICKETS) > 0:
                lines.append(f"… and {more} more")
        broken = {one.key.subject for one in (*tickets, *linked)}
        if silent := sorted(near - broken):
            names = ", ".join(silent[:_MOST_LINKS])
            more = len(silent) - _MOST_LINKS
            end = f" and {more} more" if more > 0 else ""
            lines.append(f"no ticket is open on the linked {names}{end}")
        return "\n".join(lines) or "There is none."

    def _open_ticket(self, ticket: Ticket) -> str:
        key, seen = ticket.key, "" if ticket.seen else ", not seen just now"
        return (
            f"ticket {ticket.id}: {ticket.severity.label}, {self.line(key.invariant)} on "
            f"{reported(self.line(key.component))} of {key.subject}, first seen "
            f"{_time(ticket.first_seen_at)}{seen}: {self._message(ticket)}"
        )

    # ------------------------------------------------------------------ linked subjects

    async def linked(self, tickets: Sequence[Ticket]) -> list[EvidenceSource]:
        """Return sources of the subjects that those of the tickets depend on, the deepest subject first.

        Which they are depends on the tickets that are open on them; without the database they are asked in general.
        """
        own = {ticket.key.subject for ticket in tickets}
        needed = {one for name in own for one in self._links.reach(name)} - own
        if not needed:
            return []
        try:
            async with asyncio.timeout(1.0):
                others = await self._others(tickets)
        except (MidwatchError, TimeoutError):
            others = []
        found: list[EvidenceSource] = []
        for name in self._links.deepest_first(sorted(needed))[:_MOST_SUBJECTS]:
            broken = [ticket for ticket in others if ticket.key.subject == name]
            try:
                given = self._subjects[name].sources(broken)
            except Exception:  # a plug-in may need a ticket
                continue
            sources = sorted(given, key=lambda one: one.rank)
            found += [
                replace(one, title=f"{name}: {one.title}", rank=one.rank + _LINKED_RANK)
                for one in sources[: _MOST_SOURCES if broken else _MOST_OF_SILENT]
            ]
        return found

    # ------------------------------------------------------------------ past incidents

    async def _past_incidents(self, tickets: Sequence[Ticket]) -> str:
        assert self._past is not None
        found = await self._past(tickets)
        return "\n\n".join(map(self.past_incident, found)) or "There is none."

    def past_incident(self, past: Past) -> str:
        """Return a past incident as text: what was found, how much of it was verified, and what resolved it."""
        ticket = past.ticket
        same = "same component" if past.same_key else "another component"
        lines = [
            f"Past ticket {ticket.id}: {self.line(ticket.key.invariant)}"
            f" on {self.line(ticket.key.component)} of {ticket.key.subject} ({same})",
            f"opened {_time(ticket.opened_at)}, resolved {_time(ticket.resolved_at)}",
            f"message: {self.line(ticket.message)}",
        ]
        known = bool(past.summary or past.root_cause)
        mark = UNVERIFIED if known and not past.verified else ""
        found = f"what was found ({past.mark})" if known else "what was found"
        lines.append(f"{mark}{found}: {self.line(past.summary or 'nothing was noted')}")
        if past.root_cause:
            lines.append(f"{mark}root cause: {self.line(past.root_cause)}")
        lines.append(f"what resolved it: {self.line(ticket.resolution or 'not noted')}")
        return "\n".join(lines)


def _time(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC") if at else "unknown"
