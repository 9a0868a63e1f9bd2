"""What the demo shows on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from midwatch.model import Diagnosis, Json, Ticket
from midwatch.units import format_duration


class Teller:
    """One line for each turn of the story, with the seconds since the fault."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def server(self, seconds: float) -> None:
        self._line(
            "start",
            f"a private PostgreSQL with a small shop on it ({format_duration(seconds)})",
            "dim",
        )

    def healthy(self) -> None:
        self._line("healthy", "orders-db is watched, every invariant holds", "green")

    def broken(self, title: str) -> None:
        self._line("broken", title, "red", 0.0)

    def ticket(self, ticket: Ticket, seconds: float) -> None:
        key = ticket.key
        what = f"{ticket.id} opened, {ticket.severity.label}: {key.subject} {key.invariant} ({key.component})"
        self._line("ticket", what, "red", seconds)
        self._console.print(Padding(Text(ticket.message), (0, 0, 0, 18)))

    def first_aid(self, aid: Json, seconds: float) -> None:
        self._line("first aid", _checked(aid["grounded"]), "yellow", seconds)
        self._markdown(aid["markdown"])

    def no_key(self) -> None:
        what = "not asked: there is no API key (set ANTHROPIC_API_KEY for a full diagnosis)"
        self._line("Claude", what, "dim")

    def diagnosis(self, diagnosis: Diagnosis, seconds: float) -> None:
        grounded = diagnosis.grounded
        counts = {
            "verified": grounded.verified if grounded else 0,
            "total": grounded.total if grounded else 0,
        }
        what = f"{diagnosis.model}, ${diagnosis.cost_usd:.3f}; {_checked(counts)}"
        self._line("Claude", what, "cyan", seconds)
        self._markdown(diagnosis.markdown or "")

    def repaired(self, seconds: float) -> None:
        self._line("repaired", "the fault was removed", "green", seconds)

    def resolved(self, ticket: Ticket, seconds: float) -> None:
        what = f"ticket {ticket.id}: the monitor saw the invariant hold again"
        self._line("resolved", what, "green", seconds)

    def summary(self, times: Mapping[str, float]) -> None:
        parts = [
            f"{what} {format_duration(seconds)}" for what, seconds in times.items()
        ]
        self._line("times", " · ".join(parts), "bold")

    def _line(
        self, word: str, text: str, style: str, seconds: float | None = None
    ) -> None:
        line = Table.grid(padding=(0, 1))
        for width in (7, 9, None):
            line.add_column(width=width)
        since = "" if seconds is None else f"{seconds:6.1f}s"
        line.add_row(Text(since, "dim"), Text(word, style), Text(text))
        self._console.print(line)

    def _markdown(self, text: str) -> None:
        self._console.print(Padding(Markdown(text, hyperlinks=False), (1, 0, 1, 8)))


def _checked(grounded: Json) -> str:
    return f"{grounded['verified']} of {grounded['total']} claims found in the evidence"
