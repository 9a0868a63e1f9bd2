"""What a person asks the list of tickets for: read from the address, and written into links (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from midwatch.model import UNRESOLVED, Severity, Ticket, TicketStatus
from midwatch.store.figures import Place
from midwatch.store.protocol import TicketFilter

PAGE = 50
"""Tickets of one page."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STATUSES: Mapping[str, tuple[TicketStatus, ...]] = {
    "unresolved": UNRESOLVED,
    "all": (),
    **{one.value: (one,) for one in TicketStatus},
}


@dataclass(frozen=True, slots=True)
class TicketQuery:
    """A request for a part of the list. `status` is a key of `STATUSES`; empty texts match any."""

    status: str = "unresolved"
    severity: Severity | None = None
    subject: str = ""
    invariant: str = ""
    text: str = ""
    after: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> TicketQuery:
        """Return the request in the parameters of an address. What cannot be meant is left out."""
        severity = given.get("severity", "").upper()
        return cls(
            given["status"] if given.get("status") in STATUSES else "unresolved",
            Severity[severity] if severity in Severity.__members__ else None,
            given.get("subject", "").strip()[:200],
            given.get("invariant", "").strip()[:200],
            given.get("q", "").strip()[:200],
            given.get("after", "") if _place(given.get("after", "")) else "",
        )

    @property
    def narrow(self) -> bool:
        """Whether it leaves out unresolved tickets."""
        return self != TicketQuery()

    @property
    def view(self) -> str:
        """What a browser may do with a changed ticket by itself: only in "open" it adds one."""
        return "narrow" if self.narrow else "open"

    def filter(self) -> TicketFilter:
        """Return the filter of the store, for one ticket more than a page has."""
        return TicketFilter(
            statuses=STATUSES[self.status],
            severity=self.severity,
            subject=self.subject or None,
            invariant=self.invariant or None,
            text=self.text,
            newest_first=self.status in ("all", TicketStatus.RESOLVED),
            after=_place(self.after),
            limit=PAGE + 1,
        )

    def link(self, last: Ticket | None = None) -> str:
        """Return the parameters of the address of this list, from behind a ticket on."""
        severity = "" if self.severity is None else self.severity.label
        given = {
            "q": self.text,
            "status": "" if self.status == "unresolved" else self.status,
            "severity": severity,
            "subject": self.subject,
            "invariant": self.invariant,
            "after": "" if last is None else _written(last),
        }
        return urlencode({name: value for name, value in given.items() if value})


def _written(ticket: Ticket) -> str:
    millis = (ticket.opened_at - _EPOCH) // timedelta(microseconds=1)
    return f"{ticket.severity.value}.{millis}.{ticket.id}"


def _place(text: str) -> Place | None:
    parts = text.split(".")
    if len(parts) != 3 or not all(one.isascii() and one.isdecimal() for one in parts):
        return None
    severity, micros, id_ = (int(one[:18]) for one in parts)
    try:
        opened_at = _EPOCH + timedelta(microseconds=micros)
        return Place(Severity(severity), opened_at, id_)
    except (ValueError, OverflowError):
        return None
