"""`midwatch silences …`: keep violations silent for a time, list what is silent, end a silence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge, use_store
from midwatch.cli.completion import subject_names
from midwatch.cli.output import BOLD, DIM, GREEN, SEVERITY_STYLES, Cell, Output
from midwatch.cli.tickets import AsJson, user_at_host
from midwatch.errors import Conflict, MidwatchError, NotFound, raise_together
from midwatch.json_shapes import silence_document
from midwatch.model import Json
from midwatch.recurrence import InvalidSilence, Recurrence, zone
from midwatch.silences import Silence, SilencedViolation, parse_matcher_groups
from midwatch.text import one_line
from midwatch.units import format_count, format_duration, parse_duration

if TYPE_CHECKING:
    from midwatch.store.protocol import Store

app = typer.Typer()

_STATE_STYLES = {"active": GREEN, "ended": DIM}


Matchers = Annotated[
    list[str],
    typer.Argument(
        metavar="MATCHER…",
        help="Conditions on labels as Alertmanager has them, such as 'subject=\"db\"' or 'component=~\"disk.*\"'. "
        "All must hold.",
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", "--comment", "-c", help="Why; it is shown.")
]
Duration = Annotated[
    str | None,
    typer.Option("--duration", "-d", help="How long from its start, such as 2h."),
]
End = Annotated[
    str | None,
    typer.Option(help="Its end, such as 2026-12-24T22:00 (in --timezone) or …Z."),
]
Start = Annotated[
    str | None, typer.Option(help="Its start, in the same form; by default now.")
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="Hold only in windows that begin by this rule of RFC 5545, such as "
        "FREQ=WEEKLY;BYDAY=SU;BYHOUR=2;BYMINUTE=0."
    ),
]
Window = Annotated[
    str | None, typer.Option(help="How long each window lasts, such as 90m.")
]
Zone = Annotated[
    str, typer.Option(help="IANA name of the time zone of the rule and of times.")
]
Author = Annotated[
    str | None, typer.Option(help="Who makes it; by default you, USER@HOST.")
]


@app.command()
def add(
    context: typer.Context,
    matchers: Matchers,
    reason: Reason,
    duration: Duration = None,
    end: End = None,
    start: Start = None,
    rrule: Rule = None,
    window: Window = None,
    timezone: Zone = "UTC",
    author: Author = None,
    as_json: AsJson = False,
) -> None:
    """Silence violations: until it ends they open no ticket, cost no diagnosis and send no message."""
    parsed = parse_matcher_groups(matchers)
    recurrence = _recurrence(rrule, window, timezone)
    seconds = None if duration is None else _seconds("--duration", duration)
    starts_at = None if start is None else _time("--start", start, timezone)
    ends_at = None if end is None else _time("--end", end, timezone)
    if (seconds is None) is (ends_at is None):
        raise InvalidSilence("use either --duration or --end")

    async def store_it(store: Store) -> tuple[Silence, int]:
        made = await store.add_silence(
            parsed,
            author=author or user_at_host(),
            reason=reason,
            starts_at=starts_at,
            ends_at=ends_at,
            seconds=seconds,
            recurrence=recurrence,
        )
        return made, _count(await store.silenced(), made)

    edge: Edge = context.obj
    made, count = use_store(edge, store_it)
    output = Output.standard(edge.environ)
    if as_json:
        output.json(silence_document(made, output.now, count))
        return
    output.line(f"silence {made.id}: {one_line(made.matchers_text, 500)}")
    tickets = f"; {format_count(count, 'open ticket')} silent now" if count else ""
    output.line(f"  {one_line(_when(output, made), 500)}{tickets}")


def _recurrence(
    rrule: str | None, window: str | None, timezone: str
) -> Recurrence | None:
    if (rrule is None) is not (window is None):
        raise InvalidSilence("--rrule and --window belong together")
    if rrule is None or window is None:
        zone(timezone)  # a wrong one is refused also where only times use it
        return None
    return Recurrence(rrule, _seconds("--window", window), timezone)


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidSilence(f"{option}: {error}") from None


def _time(option: str, text: str, timezone: str) -> datetime:
    """Return a time; one without an offset is of the time zone."""
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.replace(tzinfo=zone(timezone))
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidSilence(
            f"{option}: {text[:40]!r} is not a time",
            hint="write 2026-12-24T22:00, 2026-12-24T22:00Z or 2026-12-24T22:00+01:00",
        ) from None


@app.command("list")
def list_(
    context: typer.Context,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Include ended silences; the newest comes first."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List silences, the next to end first, with how many violations each keeps silent."""

    async def read(store: Store) -> tuple[list[Silence], list[SilencedViolation]]:
        return await store.silences(include_ended=all_), await store.silenced()

    edge: Edge = context.obj
    found, silent = use_store(edge, read)
    output = Output.standard(edge.environ)
    if as_json:
        output.json(
            [silence_document(one, output.now, _count(silent, one)) for one in found]
        )
    elif found:
        _table(output, found, silent)
    else:
        typer.echo("no silences", err=True)


def _table(
    output: Output, found: Sequence[Silence], silent: Sequence[SilencedViolation]
) -> None:
    rows = []
    for one in found:
        state = _state(one, output.now)
        rows.append(
            [
                Cell(str(one.id), BOLD),
                Cell(state, _STATE_STYLES.get(state, "")),
                Cell(_when(output, one)),
                Cell(one.matchers_text),
                Cell(str(_count(silent, one) or "")),
                Cell(one.author),
                Cell(one.reason),
            ]
        )
    headings = ("id", "state", "when", "matchers", "silent", "author", "reason")
    output.table(headings, rows, ("reason", "matchers", "author"), drop=("author",))


def _state(silence: Silence, now: datetime) -> str:
    if silence.ended(now):
        return "ended"
    return "active" if silence.active(now) else "pending"


def _when(output: Output, silence: Silence) -> str:
    """Return when it holds in a few words."""
    now = output.now
    if silence.ended(now):
        by = f" by {silence.expired_by}" if silence.expired_by else ""
        return f"ended {output.when(silence.end)}{by}"
    until, start = silence.active_until(now), silence.next_start(now)
    words = "" if until is None else f"until {output.when(until)}"
    if until is None:
        words = "no window left" if start is None else f"from {output.when(start)}"
    if silence.recurrence is not None:
        every = f"{silence.rrule} in {silence.timezone}"
        length = format_duration(silence.recurrence.window_seconds)
        words += f"; {every} for {length}, until {output.when(silence.end)}"
    return words


def _count(silent: Sequence[SilencedViolation], silence: Silence) -> int:
    return sum(one.silence_id == silence.id for one in silent)


@app.command()
def expire(
    context: typer.Context,
    silence_ids: Annotated[
        list[int], typer.Argument(metavar="ID…", help="Numbers of the silences.")
    ],
    as_json: AsJson = False,
) -> None:
    """End silences now. What is still broken opens its ticket with the next check."""

    async def end(store: Store) -> tuple[list[Silence], list[MidwatchError]]:
        done: list[Silence] = []
        errors: list[MidwatchError] = []
        for silence_id in dict.fromkeys(silence_ids):
            try:
                done.append(await store.expire_silence(silence_id, user_at_host()))
            except (NotFound, Conflict) as error:
                errors.append(error)
        return done, errors

    edge: Edge = context.obj
    done, errors = use_store(edge, end)
    output = Output.standard(edge.environ)
    if as_json:
        documents = [silence_document(one, output.now, 0) for one in done]
        output.json_of(documents, len(silence_ids))
    else:
        for one in done:
            output.line(f"silence {one.id}: ended")
    raise_together(errors)


@app.command()
def violations(
    context: typer.Context,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Only violations of this subject.", autocompletion=subject_names
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the violations that are silent now, the critical ones first."""

    async def read(store: Store) -> list[SilencedViolation]:
        return await store.silenced(subject)

    edge: Edge = context.obj
    found = use_store(edge, read)
    output = Output.standard(edge.environ)
    if as_json:
        output.json([violation_document(one) for one in found])
        return
    if not found:
        typer.echo("nothing is silent", err=True)
        return
    headings = (
        "by",
        "severity",
        "subject",
        "invariant",
        "component",
        "message",
        "since",
        "until",
        "ticket",
    )
    rows = [
        [
            Cell(one.by),
            Cell(one.severity.label, SEVERITY_STYLES[one.severity.label]),
            Cell(one.key.subject),
            Cell(one.key.invariant),
            Cell(one.key.component),
            Cell(one.message),
            Cell(output.age(one.first_seen_at)),
            Cell(output.age(one.until)),
            Cell("" if one.ticket_id is None else str(one.ticket_id)),
        ]
        for one in found
    ]
    shrink = ("message", "component", "invariant", "subject")
    output.table(headings, rows, shrink, drop=("component",))


def violation_document(one: SilencedViolation) -> Json:
    """Return a silent violation for programs."""
    return {
        "subject": one.key.subject,
        "invariant": one.key.invariant,
        "component": one.key.component,
        "severity": one.severity.label,
        "message": one.message,
        "by": one.by,
        "silence": one.silence_id,
        "until": one.until,
        "first_seen_at": one.first_seen_at,
        "ticket": one.ticket_id,
    }
