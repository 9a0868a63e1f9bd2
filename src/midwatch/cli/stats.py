"""`midwatch stats` and `midwatch invariants`: figures about tickets and daemons, and what is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge, open_database
from midwatch.cli.output import BOLD, Cell, Output
from midwatch.cli.tickets import AsJson
from midwatch.errors import NotFound, SettingsError
from midwatch.json_shapes import stats_document
from midwatch.model import Invariant, Json, Unit
from midwatch.text import one_line
from midwatch.units import format_count, format_duration, format_value, parse_duration

if TYPE_CHECKING:
    from midwatch.settings import Settings
    from midwatch.store.protocol import Daemon, Pause, Stats
    from midwatch.subjects.base import SubjectKind

app = typer.Typer()

_ALIVE_PERIODS = 3
_MIN_PERIOD = 10.0  # seconds; the longest time between two heartbeats of an agent


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that `midwatch stats` prints, read while the store is open once."""

    stats: Stats
    spent_today: float
    budget: float | None
    pauses: list[Pause]
    daemons: list[Daemon]
    deliveries: dict[str, int]


@app.command()
def stats(
    context: typer.Context,
    within: Annotated[
        str, typer.Option(help="The period back from now, such as 24h or 7d.")
    ] = "7d",
    as_json: AsJson = False,
) -> None:
    """Show times to detect, diagnose and resolve; outcomes, tokens, cost; running daemons."""
    try:
        period = parse_duration(within)
    except ValueError as error:
        raise SettingsError(str(error), path="--within") from None
    figures = asyncio.run(_read(context.obj, min(period, 100 * 365 * 86400.0)))
    output = Output.standard(context.obj.environ)
    if as_json:
        document = stats_document(
            figures.stats,
            figures.spent_today,
            figures.budget,
            figures.pauses,
            figures.daemons,
            figures.deliveries,
        )
        output.json(document)
    else:
        _show(output, figures)


async def _read(edge: Edge, period: float) -> Figures:
    settings = edge.settings()
    async with open_database(edge) as store:
        return Figures(
            await store.stats(period),
            await store.spent_today(),
            settings.agent.daily_budget_usd,
            await store.pauses(),
            await store.daemons(alive_within(settings)),
            await store.delivery_counts(period),
        )


def alive_within(settings: Settings) -> float:
    """Return the seconds without a heartbeat after which a daemon counts as gone."""
    periods = (settings.monitor.interval, settings.agent.poll_interval, _MIN_PERIOD)
    return _ALIVE_PERIODS * max(periods)


def _show(output: Output, figures: Figures) -> None:
    stats, usage = figures.stats, figures.stats.usage

    def seconds(value: float | None) -> str:
        return "–" if value is None else format_duration(value)

    output.line(f"Since {output.when(stats.since)}", BOLD)
    outcomes = ", ".join(f"{count} {name}" for name, count in stats.outcomes.items())
    budget = "no limit" if figures.budget is None else f"of ${figures.budget:.2f}"
    rows = [
        ("tickets opened", f"{stats.opened}; {_ended(stats)}"),
        (
            "to detect",
            f"at most {seconds(stats.to_detect)} (median): {seconds(stats.to_see)} until a poll saw it, "
            f"{seconds(stats.to_confirm)} until it had lasted (`for`)",
        ),
        ("to diagnose", f"{seconds(stats.to_diagnose)} (median)"),
        ("to resolve", f"{seconds(stats.to_resolve)} (median)"),
        ("calls", outcomes or "none"),
        (
            "tokens",
            f"{usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens:,} in"
            f" ({usage.cache_read_tokens:,} from the cache), {usage.output_tokens:,} out",
        ),
        ("cost", f"${stats.cost_usd:.2f}"),
        *_silenced(stats),
        ("today", f"${figures.spent_today:.2f} {budget}"),
    ]
    if figures.deliveries:
        rows.append(("notifications", _deliveries(figures.deliveries)))
    for pause in figures.pauses:
        reason = one_line(pause.reason, 300)
        rows.append(
            ("paused", f"{pause.kind}, until {output.when(pause.until)}: {reason}")
        )
    for daemon in figures.daemons:
        info = one_line(", ".join(f"{k} {v}" for k, v in daemon.info.items()), 300)
        beat = output.when(daemon.beat_at)
        rows.append(("running", f"{one_line(daemon.name)}, {beat}: {info}"))
    if not figures.daemons:
        rows.append(("running", "no daemon"))
    output.pairs(rows, indent=18)


def _silenced(stats: Stats) -> Iterator[tuple[str, str]]:
    if stats.silenced or stats.silent_now:
        what = format_count(stats.silenced, "violation")
        yield "silenced", f"{what}; {stats.silent_now} silent now"


_STATES = {
    "sent": "sent",
    "due": "waiting",
    "planned": "planned for later",
    "dropped": "not needed any more",
    "given_up": "given up",
}


def _deliveries(counts: dict[str, int]) -> str:
    named = (
        f"{counts[state]} {text}"
        for state, text in _STATES.items()
        if counts.get(state)
    )
    return ", ".join(named)


def _ended(stats: Stats) -> str:
    text = f"{stats.resolved} of them are resolved"
    return f"{text}, {stats.given_up} given up" if stats.given_up else text


# ------------------------------------------------------------------ invariants

EVERY_KIND = "every kind"


@app.command()
def invariants(
    context: typer.Context,
    kind: Annotated[
        str | None, typer.Argument(help="Only this kind of subject.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the invariants of each kind of subject, with limits and defaults."""
    output = Output.standard(context.obj.environ)
    by_kind = dict(known_invariants(kind))
    if as_json:
        output.json(
            [_document(name, one) for name, all_ in by_kind.items() for one in all_]
        )
        return
    for number, (name, all_) in enumerate(by_kind.items()):
        if number:
            output.line()
        output.line(name, BOLD)
        rows = [[Cell(text) for text in row(one)] for one in all_]
        headings = ("id", "default", "for", "severity", "what holds")
        output.table(headings, rows, ("what holds", "id"))


def load_kinds(only: str | None = None) -> Iterator[SubjectKind]:
    """Load the kinds of the entry points, by name. Raises NotFound for an unknown one."""
    from midwatch.subjects.base import kinds, load_kind

    points = kinds()
    if only is not None and only not in points:
        raise NotFound(
            f"there is no kind of subject {only!r}",
            hint=f"known: {', '.join(sorted(points))}",
        )
    for name in sorted(points) if only is None else [only]:
        yield load_kind(points[name])


def known_invariants(
    only: str | None = None,
) -> Iterator[tuple[str, list[Invariant]]]:
    """Return the invariants by kind, then the one that every kind has."""
    from midwatch.monitor.rules import UNOBSERVABLE

    for kind in load_kinds(only):
        yield kind.kind, list(kind.default_invariants)
    if only is None:
        yield EVERY_KIND, [UNOBSERVABLE]


def row(invariant: Invariant) -> tuple[str, str, str, str, str]:
    """Return id, default limit, duration, severity and text of an invariant."""
    held = format_duration(invariant.hold_for) if invariant.hold_for else "at once"
    return (
        invariant.id,
        limit(invariant),
        held,
        invariant.severity.label,
        f"{invariant.title}. {invariant.description}",
    )


def limit(invariant: Invariant) -> str:
    """Return the default limit as people write it: `over 90%`, `under 5%`; a dash without one."""
    if invariant.limit is None:
        return "–"
    side = "over" if invariant.above else "under"
    return f"{side} {format_value(invariant.limit, invariant.unit)}"


def unit(invariant: Invariant) -> str:
    """Return the unit of the limit."""
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
