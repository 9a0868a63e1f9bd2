"""`midwatch stats`: how quick the watch is, what it found, what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.output import BOLD, Output, iso
from midwatch.cli.tickets import AsJson
from midwatch.cli.wiring import Edge, open_database
from midwatch.errors import SettingsError
from midwatch.model import Json

if TYPE_CHECKING:
    from midwatch.settings import Settings
    from midwatch.store.protocol import Daemon, Pause, Stats

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
