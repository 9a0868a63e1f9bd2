"""`midwatch stats`: how quick the watch is, what it found, what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge, open_database
from midwatch.cli.output import BOLD, Cell, Output, iso
from midwatch.cli.tickets import AsJson
from midwatch.errors import NotFound, SettingsError
from midwatch.model import Invariant, Json, Unit

if TYPE_CHECKING:
    from midwatch.settings import Settings
    from midwatch.store.protocol import Daemon, Pause, Stats
    from midwatch.subjects.base import SubjectKind

app = typer.Typer()

_ALIVE_PERIODS = 3
_LEAST_PERIOD = 10.0  # seconds; an agent gives a sign of life this often


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything the page tells, read in one opening of the store."""

    stats: Stats
    spent_today: float
    budget: float | None
    pauses: list[Pause]
    daemons: list[Daemon]


@app.command()
def stats(
    context: typer.Context,
    within: Annotated[
        str, typer.Option(help="The period, counted back from now.")
    ] = "7d",
    as_json: AsJson = False,
) -> None:
    """Times to detect, diagnose and resolve; outcomes, tokens, cost; who is running."""
    import asyncio

    from midwatch.units import parse_duration

    try:
        period = parse_duration(within)
    except ValueError as error:
        raise SettingsError(str(error), path="--within") from None
    seen = asyncio.run(_read(context.obj, min(period, 100 * 365 * 86400.0)))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json(stats_document(seen))
    else:
        _show(output, seen)


async def _read(edge: Edge, period: float) -> Seen:
    settings = edge.settings()
    async with open_database(edge) as store:
        return Seen(
            await store.stats(period),
            await store.spent_today(),
            settings.agent.daily_budget_usd,
            await store.pauses(),
            await store.daemons(alive_within(settings)),
        )


def alive_within(settings: Settings) -> float:
    """Seconds without a sign of life after which a daemon is taken to be gone."""
    periods = (settings.monitor.interval, settings.agent.poll_interval, _LEAST_PERIOD)
    return _ALIVE_PERIODS * max(periods)


def stats_document(seen: Seen) -> Json:
    told = seen.stats
    return {
        "since": iso(told.since),
        "opened": told.opened,
        "resolved": told.resolved,
        "unresolved": told.unresolved,
        "seconds_to_detect": told.to_detect,
        "seconds_to_diagnose": told.to_diagnose,
        "seconds_to_resolve": told.to_resolve,
        "outcomes": dict(told.outcomes),
        "usage": asdict(told.usage),
        "cost_usd": told.cost_usd,
        "today": {"spent_usd": seen.spent_today, "budget_usd": seen.budget},
        "pauses": [
            {
                "kind": pause.kind,
                "until": iso(pause.until),
                "reason": pause.reason,
                "actor": pause.actor,
            }
            for pause in seen.pauses
        ],
        "daemons": [
            {
                "name": daemon.name,
                "kind": daemon.kind,
                "beat_at": iso(daemon.beat_at),
                "info": daemon.info,
            }
            for daemon in seen.daemons
        ],
    }


def _show(output: Output, seen: Seen) -> None:
    from midwatch.text import one_line
    from midwatch.units import format_duration

    told, usage = seen.stats, seen.stats.usage

    def seconds(value: float | None) -> str:
        return "–" if value is None else format_duration(value)

    output.line(f"Since {output.when(told.since)}", BOLD)
    outcomes = ", ".join(f"{count} {name}" for name, count in told.outcomes.items())
    budget = "no limit" if seen.budget is None else f"of ${seen.budget:.2f}"
    rows = [
        ("tickets opened", f"{told.opened}; {told.resolved} of them are resolved"),
        ("to detect", f"{seconds(told.to_detect)} (median)"),
        ("to diagnose", f"{seconds(told.to_diagnose)} (median)"),
        ("to resolve", f"{seconds(told.to_resolve)} (median)"),
        ("calls", outcomes or "none"),
        (
            "tokens",
            f"{usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens:,} in"
            f" ({usage.cache_read_tokens:,} from the cache), {usage.output_tokens:,} out",
        ),
        ("cost", f"${told.cost_usd:.2f}"),
        ("today", f"${seen.spent_today:.2f} {budget}"),
    ]
    for pause in seen.pauses:
        reason = one_line(pause.reason, 300)
        rows.append(
            ("paused", f"{pause.kind}, until {output.when(pause.until)}: {reason}")
        )
    for daemon in seen.daemons:
        info = one_line(", ".join(f"{k} {v}" for k, v in daemon.info.items()), 300)
        beat = output.when(daemon.beat_at)
        rows.append(("running", f"{one_line(daemon.name)}, {beat}: {info}"))
    if not seen.daemons:
        rows.append(("running", "no daemon"))
    for name, value in rows:
        output.line(f"  {name + ':':<16}{value}")


# ------------------------------------------------------------ invariants
# `midwatch invariants`: every condition that can be watched, with unit and default.

EVERY_KIND = "every kind"


@app.command()
def invariants(
    context: typer.Context,
    kind: Annotated[str | None, typer.Argument(help="Only this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """What each kind of subject watches, with units and defaults."""
    output = Output.standard(context.obj.environ)
    by_kind = dict(known_invariants(kind))
    if as_json:
        output.json(
            [_document(name, one) for name, them in by_kind.items() for one in them]
        )
        return
    for number, (name, them) in enumerate(by_kind.items()):
        if number:
            output.line()
        output.line(name, BOLD)
        rows = [[Cell(text) for text in row(one)] for one in them]
        headings = ("id", "default", "for", "severity", "what holds")
        output.table(headings, rows or [], shrink=len(headings) - 1)


def load_kinds(only: str | None = None) -> Iterator[SubjectKind]:
    """The kinds of the entry points, by name. Raises NotFound for one there is not."""
    from midwatch.subjects.base import kinds, load_kind

    points = kinds()
    if only is not None and only not in points:
        raise NotFound(
            f"there is no kind {only!r}", hint=f"known: {', '.join(sorted(points))}"
        )
    for name in sorted(points) if only is None else [only]:
        yield load_kind(points[name])


def known_invariants(
    only: str | None = None,
) -> Iterator[tuple[str, list[Invariant]]]:
    """Invariants by kind, then the one that every kind has."""
    from midwatch.monitor.rules import UNOBSERVABLE

    for kind in load_kinds(only):
        yield kind.kind, list(kind.default_invariants)
    if only is None:
        yield EVERY_KIND, [UNOBSERVABLE]


def row(invariant: Invariant) -> tuple[str, str, str, str, str]:
    from midwatch.units import format_duration

    held = format_duration(invariant.hold_for) if invariant.hold_for else "at once"
    return (
        invariant.id,
        limit(invariant),
        held,
        invariant.severity.label,
        f"{invariant.title}. {invariant.description}",
    )


def limit(invariant: Invariant) -> str:
    """The default limit as a person writes it: `over 90%`, `under 5%`; a dash without one."""
    from midwatch.units import format_value

    if invariant.limit is None:
        return "–"
    side = "over" if invariant.above else "under"
    return f"{side} {format_value(invariant.limit, invariant.unit)}"


def unit(invariant: Invariant) -> str:
    return "holds or not" if invariant.unit is Unit.NONE else invariant.unit.value


def _document(kind: str, invariant: Invariant) -> Json:
    return {
        "kind": None if kind == EVERY_KIND else kind,
        "id": invariant.id,
        "title": invariant.title,
        "description": invariant.description,
        "unit": invariant.unit.value or None,
        "limit": invariant.limit,
        "broken_when": (
            None
            if invariant.limit is None
            else ("above" if invariant.above else "below")
        ),
        "for_seconds": invariant.hold_for,
        "severity": invariant.severity.label,
    }
