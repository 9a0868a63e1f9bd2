"""`midwatch runbooks …`: what was read of the runbooks, and which of them would be evidence for a ticket."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from midwatch.cli.app import App, Edge, open_app, open_runbooks, secrets_of
from midwatch.cli.output import BOLD, DIM, RED, YELLOW, Cell, Output
from midwatch.cli.tickets import AsJson, Id
from midwatch.errors import NotFound
from midwatch.model import Json, Ticket
from midwatch.text import one_line
from midwatch.units import format_count

if TYPE_CHECKING:
    from midwatch.agent.runbook_evidence import Noted
    from midwatch.runbooks.library import RunbookLibrary, Source
    from midwatch.runbooks.runbook import Runbook

app = typer.Typer()

_SECONDS = 60.0
"""Seconds to wait for repositories and pages."""


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """Read the runbooks now, and list them with what cannot be used."""
    edge: Edge = context.obj
    output = Output.standard(edge.environ)
    library = asyncio.run(_read(edge))
    if as_json:
        output.json({"sources": [_source_document(one) for one in library.sources]})
        return
    for source in library.sources:
        _show_source(output, source)
    if hosts := library.settings.fetch_from:
        output.line(f"pages of alerts are fetched from {one_line(', '.join(hosts))}")


async def _read(edge: Edge) -> RunbookLibrary:
    from midwatch.logs import quiet_log
    from midwatch.redaction import Redactor

    settings = edge.settings()
    redactor = Redactor(secrets_of(settings, edge.environ))
    library = open_runbooks(settings, edge.environ, redactor, quiet_log())
    if library is None:
        raise _none()
    try:
        await library.load()
    finally:
        await library.close()
    return library


def _none() -> NotFound:
    return NotFound(
        "no runbooks are configured",
        hint="name a folder or a repository under `runbooks`, such as {folders: [/etc/midwatch/runbooks]}",
    )


def _show_source(output: Output, source: Source) -> None:
    listing = source.listing
    at = f" at {source.commit[:10]}" if source.commit else ""
    count = format_count(len(listing.runbooks), "runbook")
    output.line(f"{one_line(source.name)}{at}: {count}", BOLD)
    if source.away:
        output.line(f"! {one_line(source.away, 400)}", RED)
    rows = [
        [Cell(one.path), Cell(one.title), Cell(one_line(_conditions(one), 200))]
        for one in listing.runbooks
    ]
    if rows:
        output.table(("file", "title", "for"), rows, shrink=("for", "title", "file"))
    for problem in listing.problems:
        where = f"{one_line(problem.path)}: " if problem.path else ""
        output.line(f"! {where}{one_line(problem.text, 400)}", YELLOW)
    if listing.unmarked:
        names = one_line(", ".join(listing.unmarked), 200)
        output.line(f"without front matter, not used: {names}", DIM)
    output.line()


def _conditions(runbook: Runbook) -> str:
    """Return for which tickets a runbook is."""
    if runbook.match is None:
        return ""
    named = {
        name: ", ".join(value) for name, value in runbook.match.model_dump().items()
    }
    return "; ".join(f"{name} {value}" for name, value in named.items() if value)


def _source_document(source: Source) -> Json:
    listing = source.listing
    return {
        "name": source.name,
        "commit": source.commit or None,
        "read_at": source.read_at,
        "away": source.away or None,
        "runbooks": [
            {
                "path": one.path,
                "title": one.title,
                "match": {} if one.match is None else one.match.model_dump(),
            }
            for one in listing.runbooks
        ],
        "problems": [{"path": one.path, "text": one.text} for one in listing.problems],
        "without_front_matter": list(listing.unmarked),
    }


# ------------------------------------------------------------------ for one ticket


@app.command()
def test(context: typer.Context, ticket_id: Id, as_json: AsJson = False) -> None:
    """Show which runbooks match a ticket, the most specific first, why, and how they would be shortened."""
    edge: Edge = context.obj
    output = Output.standard(edge.environ)
    ticket, noted = asyncio.run(_noted(edge, ticket_id))
    if as_json:
        output.json(_noted_document(ticket, noted))
    else:
        _show_noted(output, ticket, noted)


async def _noted(edge: Edge, ticket_id: int) -> tuple[Ticket, Noted]:
    async with open_app(edge, sys.stderr) as opened:
        if opened.runbooks is None:
            raise _none()
        ticket = await opened.store.ticket(ticket_id)
        await opened.runbooks.load()
        return ticket, await _of(opened, ticket)


async def _of(opened: App, ticket: Ticket) -> Noted:
    tokens = opened.settings.agent.context_tokens
    return await opened.gatherer.noted([ticket], _SECONDS, tokens)


def _rows(ticket: Ticket, noted: Noted) -> list[Mapping[str, object]]:
    from midwatch.text import estimate_tokens

    return [
        {
            "id": piece.id,
            "title": piece.title,
            "source": piece.source,
            "points": found.hits[ticket.id].points,
            "why": list(found.hits[ticket.id].why),
            "available": piece.available,
            "tokens": estimate_tokens(found.runbook.text),
            "shortened_tokens": estimate_tokens(piece.text),
            "shortened": found.runbook.text not in piece.text,
            "text": piece.text,
        }
        for piece, found in zip(noted.evidence, noted.found, strict=True)
    ]


def _noted_document(ticket: Ticket, noted: Noted) -> Json:
    return {
        "ticket": ticket.id,
        "runbooks": _rows(ticket, noted),
        "left_out": list(noted.left_out),
    }


def _show_noted(output: Output, ticket: Ticket, noted: Noted) -> None:
    if not noted.evidence:
        output.line(f"no runbook matches ticket {ticket.id}")
    for row in _rows(ticket, noted):
        output.line(f"{row['id']}. {row['title']} ({row['points']} points)", BOLD)
        output.line(f"{row['source']}", DIM)
        shown = f"{row['tokens']} tokens"
        if row["shortened"]:
            shown += f", shortened to {row['shortened_tokens']}"
        output.line(shown, DIM)
        for line in str(row["text"]).split("\n"):
            output.line(f"  {line}")
        output.line()
    if noted.left_out:
        names = one_line("; ".join(noted.left_out), 400)
        output.line(f"left out, as no tokens are left (runbooks.tokens): {names}")
