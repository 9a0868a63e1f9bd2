"""Follow the changes of tickets: a line each on a terminal, a JSON object each for a program."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from midwatch.cli.app import Edge, open_database, secrets_of
from midwatch.cli.output import DIM, SEVERITY_STYLES, Output, cut
from midwatch.cli.ticket_view import ticket_table
from midwatch.json_shapes import change_document, iso
from midwatch.lifecycle import StopEvent, background, stop_on_signals
from midwatch.logs import open_log
from midwatch.model import UNRESOLVED, Severity
from midwatch.redaction import Redactor
from midwatch.server.feed import ChangeFeed
from midwatch.store.on_call import Change, Cursor
from midwatch.store.protocol import Store, TicketFilter
from midwatch.text import one_line

_MOST_SHOWN = 50
"""Tickets that are listed before the first change."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Which changes are shown; all by default. `after` is where the feed is resumed."""

    subject: str | None = None
    severity: Severity | None = None
    ticket: int | None = None
    after: Cursor | None = None

    def shows(self, change: Change) -> bool:
        """Return whether this change is shown."""
        return (
            self.subject in (None, change.subject)
            and self.severity in (None, change.severity)
            and self.ticket in (None, change.ticket_id)
        )


async def watch(edge: Edge, watched: Watched, as_json: bool) -> None:
    """Print changes as they happen, until a signal or the end of the reader.

    Without `watched.after` the text begins with the unresolved tickets. An outage of the database is a line on standard
    error, and no change is lost by it.

    Raises:
        MidwatchError: The database cannot be opened.
    """
    settings = edge.settings()
    log = open_log(
        settings.log, sys.stderr, Redactor(secrets_of(settings, edge.environ))
    )
    output, stop = Output.standard(edge.environ), StopEvent()
    async with open_database(edge) as store:
        after = watched.after or await store.last_cursor()
        if watched.after is None and not as_json:
            await _list_unresolved(output, store, watched)
        feed = ChangeFeed(store, log)
        with stop_on_signals(stop):
            async with background(feed.run(stop)):
                async for change in feed.subscribe(after):
                    if watched.shows(change):
                        _print(output, change, as_json)


async def _list_unresolved(output: Output, store: Store, watched: Watched) -> None:
    query = TicketFilter(
        UNRESOLVED, watched.subject, watched.severity, limit=_MOST_SHOWN
    )
    found = await store.tickets(query)
    shown = [one for one in found if watched.ticket in (None, one.id)]
    ticket_table(output, shown, {})
    if output.terminal:
        output.line("changes follow; Ctrl-C ends", DIM)
    output.stream.flush()


def _print(output: Output, change: Change, as_json: bool) -> None:
    if as_json:
        output.json_line(change_document(change))
    else:
        line = change_line(change, output.terminal)
        style = SEVERITY_STYLES[change.severity.label]
        output.line(cut(line, output.width) if output.terminal else line, style)
    output.stream.flush()


def change_line(change: Change, terminal: bool) -> str:
    """Return a change in one line; on a terminal its time is the local one, without the date."""
    at = f"{change.at.astimezone():%H:%M:%S}" if terminal else iso(change.at)
    moved = change.after or ""
    if change.before not in (None, change.after):
        moved = f"{change.before} > {change.after}"
    what = "opened" if change.action == "open" else change.action.replace("_", " ")
    where = "/".join(
        one_line(part, 80)
        for part in (change.subject, change.invariant, change.component)
    )
    why = f": {one_line(change.why)}" if change.why else ""
    return f"{at}  {change.ticket_id:>5}  {change.severity.label:<8}  {what:<11}  {moved:<24}  {where}{why} ({one_line(change.actor, 80)})"
