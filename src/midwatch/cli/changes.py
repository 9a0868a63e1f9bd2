"""`midwatch changes …`: list what was changed in the watched systems, and report a change."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge, recent_changes, secrets_of, use_store
from midwatch.cli.output import BOLD, DIM, Cell, Output
from midwatch.cli.tickets import AsJson, user_at_host
from midwatch.errors import SettingsError
from midwatch.json_shapes import change_record_document
from midwatch.model import ChangeKind
from midwatch.system_changes import REPORTED_KINDS, ChangeFilter, SystemChange
from midwatch.units import format_duration, parse_duration

if TYPE_CHECKING:
    from midwatch.store.protocol import Store

app = typer.Typer()


class KindName(StrEnum):
    DEPLOY = "deploy"
    CONFIG = "config"
    FLAG = "flag"
    MIGRATION = "migration"
    OTHER = "other"


assert {one.value for one in KindName} == {one.value for one in REPORTED_KINDS}


@app.command("list")
def list_(
    context: typer.Context,
    around: Annotated[
        int | None,
        typer.Option(
            metavar="TICKET",
            help="Only those that count for this ticket, the nearest and weightiest first.",
        ),
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Only changes of this subject.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only those since then: 2h, 3d, or 2026-12-24T22:00Z."),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="The most changes.", min=1, max=10_000)
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List changes of the watched systems, the newest first."""
    edge: Edge = context.obj
    settings = edge.settings()
    output = Output.standard(edge.environ)
    start = None if since is None else _instant("--since", since, output.now)

    async def read(store: Store) -> tuple[list[SystemChange], datetime | None]:
        if around is None:
            query = ChangeFilter(subject, since=start, limit=limit)
            return await store.system_changes(query), None
        ticket = await store.ticket(around)
        near = await recent_changes(settings, store).before([ticket])
        found = [
            one.change
            for one in near
            if subject in (None, one.change.subject)
            and (start is None or one.change.at >= start)
        ]
        return found[:limit], ticket.first_seen_at

    found, onset = use_store(edge, read)
    if as_json:
        output.json([change_record_document(one, onset) for one in found])
    elif found:
        _table(output, found, onset)
    else:
        typer.echo("no changes", err=True)


def _table(
    output: Output, found: Sequence[SystemChange], onset: datetime | None
) -> None:
    from midwatch.agent.recent_changes import distance

    rows = [
        [
            Cell(str(one.id), BOLD),
            Cell(output.when(one.at) if onset is None else distance(one, onset)),
            Cell(one.kind.value),
            Cell(one.subject or ", ".join(f"{k}={v}" for k, v in one.labels.items())),
            Cell(_title(one)),
            Cell(one.author),
            Cell(one.source, DIM),
        ]
        for one in found
    ]
    headings = ("id", "when", "kind", "subject", "title", "author", "source")
    output.table(headings, rows, ("title", "subject", "author"), drop=("source",))


def _title(change: SystemChange) -> str:
    name = f"{change.commit[:12]} " if change.commit else ""
    if change.version_from or change.version_to:
        before, after = change.version_from or "none", change.version_to or "none"
        return f"{name}{change.title} ({before} → {after})"
    return f"{name}{change.title}"


Subject = Annotated[str | None, typer.Option(help="The subject that was changed.")]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Instead of a subject: tickets that have all these labels are concerned; repeatable.",
    ),
]
When = Annotated[
    str | None,
    typer.Option(help="When: 10m (ago) or 2026-12-24T22:00Z; by default now."),
]
Key = Annotated[
    str | None,
    typer.Option(help="What makes it one: with the same key it is stored once."),
]
Author = Annotated[
    str | None, typer.Option(help="Who made it; by default you, USER@HOST.")
]
Before = Annotated[str, typer.Option("--from", help="The version before.")]
After = Annotated[str, typer.Option("--to", help="The version after.")]


@app.command()
def add(
    context: typer.Context,
    title: Annotated[str, typer.Argument(help="One line about it.")],
    subject: Subject = None,
    label: Labels = None,
    kind: Annotated[KindName, typer.Option(help="What was changed.")] = KindName.DEPLOY,
    time: When = None,
    version_from: Before = "",
    version_to: After = "",
    link: Annotated[str, typer.Option(help="A URL for people.")] = "",
    author: Author = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Report a change, such as a deployment, so that it is evidence for what breaks after it."""
    from midwatch.agent.reported_changes import (
        ReportedChange,
        check_report,
        new_change,
    )
    from midwatch.redaction import Redactor, Sanitizer

    edge: Edge = context.obj
    settings = edge.settings()
    output = Output.standard(edge.environ)
    at = None if time is None else _instant("--time", time, output.now)
    labels = dict(map(_label, label or ()))
    known = {one["name"] for one in settings.subjects}
    keep_for = settings.changes.keep_for
    check_report(title, at, subject, labels, known, output.now, keep_for)
    by = user_at_host()
    reported = ReportedChange(
        key=f"cli {key or secrets.token_hex()}",
        title=title,
        source=f"cli {by}",
        kind=ChangeKind(kind.value),
        at=at,
        subject=subject or "",
        labels=labels,
        version_from=version_from,
        version_to=version_to,
        link=link,
        author=author or by,
    )
    sanitizer = Sanitizer(Redactor(secrets_of(settings, edge.environ)))
    new = new_change(reported, sanitizer, output.now)
    [made] = use_store(edge, lambda store: store.record_changes([new]))
    if as_json:
        output.json(change_record_document(made))
    else:
        ago = format_duration(max((output.now - made.at).total_seconds(), 0))
        output.line(f"change {made.id}: {made.title}, {ago} ago")


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise SettingsError(
            f"{text[:60]!r} is no label", path="--label", hint="write NAME=VALUE"
        )
    return name, value


def _instant(option: str, text: str, now: datetime) -> datetime:
    """Return a time, which may be written as how long ago it was. Raises SettingsError."""
    try:
        return now - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"{text[:40]!r} is not a time",
            path=option,
            hint="write 2h, 3d or 2026-12-24T22:00Z",
        ) from None
