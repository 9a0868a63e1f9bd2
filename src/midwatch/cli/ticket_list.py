"""`midwatch tickets list`, without Typer and SQLAlchemy where it can: their imports take ten times as long as a list."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from midwatch.cli.output import Output
from midwatch.cli.ticket_view import ticket_table
from midwatch.json_shapes import ticket_summary
from midwatch.model import UNRESOLVED, TicketStatus
from midwatch.store.figures import TicketFilter

if TYPE_CHECKING:
    from midwatch.cli.app import Edge
    from midwatch.store.figures import Listed
    from midwatch.store.protocol import Store

_LIMIT = 50


class Shown(NamedTuple):
    """What a list shows: `limit` tickets at most, as JSON or as a table. `named` is true if statuses were given.

    The query has a limit of one more, so that the list can say that there are more.
    """

    query: TicketFilter
    limit: int
    as_json: bool
    named: bool = False


_MOST_DIGITS = 18
"""Of a number that SQLite takes; the whole parser refuses a longer one."""


def plain_list(arguments: Sequence[str]) -> Shown | None:
    """Return what the arguments of `midwatch tickets list` mean; None where that takes the whole parser."""
    flags = {"--all": False, "--json": False}
    values = {"--subject": "", "--batch": "", "--limit": str(_LIMIT), "--status": ""}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if name in flags:
            flags[name] = True
        elif name == "--status" and values[name]:
            return None  # several of them
        elif name in values and rest and rest[0] and not rest[0].startswith("-"):
            values[name] = rest.pop(0)
        else:
            return None
    for number in (values["--batch"] or "1", values["--limit"]):
        if not number.isdecimal() or len(number) > _MOST_DIGITS:
            return None
    limit, batch, status = int(values["--limit"]), values["--batch"], values["--status"]
    if status and status not in [one.value for one in TicketStatus]:
        return None
    statuses = (TicketStatus(status),) if status else UNRESOLVED
    query = TicketFilter(
        () if flags["--all"] and not status else statuses,
        values["--subject"] or None,
        batch=int(batch) if batch else None,
        limit=limit + 1,
    )
    return Shown(query, limit, flags["--json"], bool(status)) if limit else None


def list_tickets(edge: Edge, shown: Shown) -> None:
    """Print a list of tickets. Raises MidwatchError."""
    found, briefs = _quickly(edge, shown.query) or _from_store(edge, shown.query)
    output = Output.standard(edge.environ)
    tickets, limit = found[: shown.limit], shown.limit
    if shown.as_json:
        output.json([ticket_summary(one, briefs.get(one.id)) for one in tickets])
    elif tickets:
        ticket_table(output, tickets, briefs)
    else:
        print("no such tickets" if shown.named else "no tickets", file=sys.stderr)
    if len(found) > limit:
        more = f"the first {limit} are shown; use --limit to see more"
        print(more, file=sys.stderr)


def _quickly(edge: Edge, query: TicketFilter) -> Listed | None:
    """Read the tickets from the SQLite file alone; None where that takes the store, or does not work."""
    file = edge.quick_database()
    if file is None:
        return None
    from midwatch.store.quick import read_list

    return read_list(file, query)


def _from_store(edge: Edge, query: TicketFilter) -> Listed:
    from midwatch.cli.app import use_store

    return use_store(edge, lambda store: _with_briefs(store, query))


async def _with_briefs(store: Store, query: TicketFilter) -> Listed:
    """Return the tickets, and the outcome of each diagnosis by the ticket's id."""
    found = await store.tickets(query)
    wanted = {one.diagnosis_id for one in found if one.diagnosis_id is not None}
    briefs = await store.briefs(sorted(wanted)) if wanted else {}
    return found, {
        one.id: briefs[one.diagnosis_id]
        for one in found
        if one.diagnosis_id is not None and one.diagnosis_id in briefs
    }
