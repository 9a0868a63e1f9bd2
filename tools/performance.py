"""Write docs/performance.md, and the arithmetic of docs/scaling.md, from what `python -m bench --json` printed.

`python -m tools.performance [RESULTS …]` puts new results in place of those of the same benchmarks in docs/performance.json; without
any it only writes the pages again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import COLUMNS, cells

from .tables import DOCS, replaced

RESULTS = DOCS / "performance.json"
PERFORMANCE_PAGE, SCALING_PAGE = DOCS / "performance.md", DOCS / "scaling.md"
Results = Mapping[str, Any]

HEAD = """# Performance

Written by `make performance`; figures are medians, with the minimum and the maximum of the turns where there were several.
`bench/` has what each line does, and [scaling](scaling.md) what follows from it.

- **The floor** is the least durable work that gives the same: the bare driver with one commit, or plain code without a database. **Peers** are
  other programs that do the same work; they run beside Midwatch in the same run, on the same server, with the same concurrency, and wait for the disk
  as it does.
- **Processor** time is that of all processes that take part: also of servers, with every backend of PostgreSQL, of child processes and of
  scripted APIs. It hardly depends on what else the machine does; wall time does.
- Sides take turns after a first turn that does not count. The ratio is taken turn by turn.
- A line without a target only informs.
"""


def main() -> int:
    """Return 1 if there is nothing to write the pages from."""
    try:
        results = merged(_known(), [json.loads(_text(Path(n))) for n in sys.argv[1:]])
        pages = {
            PERFORMANCE_PAGE: performance(results),
            SCALING_PAGE: scaling(results, _text(SCALING_PAGE)),
        }
    except (OSError, ValueError, KeyError) as error:
        print(f"no pages were written: {error}", file=sys.stderr)
        return 1
    RESULTS.write_text(_row_by_row(results), encoding="utf-8")
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    return 0


def _row_by_row(results: Results) -> str:
    """Return results as JSON with a line for each row."""
    every = [row for one in results["benchmarks"] for row in one["rows"]]
    places = iter(range(len(every)))
    benchmarks = [
        {**one, "rows": [f"row {next(places)}" for _ in one["rows"]]}
        for one in results["benchmarks"]
    ]
    named = {**results, "benchmarks": benchmarks}
    text = json.dumps(named, indent=1, ensure_ascii=False) + "\n"

    def row(found: re.Match[str]) -> str:
        return json.dumps(every[int(found[1])], ensure_ascii=False)

    return re.sub(r'"row (\d+)"', row, text)


def _known() -> Results:
    if not RESULTS.exists():
        return {"machine": {}, "benchmarks": []}
    found: Results = json.loads(_text(RESULTS))
    return found


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def merged(known: Results, more: Sequence[Results]) -> Results:
    """Return the results with newer ones of the same benchmarks in their place. A benchmark that crashed replaces none."""
    benchmarks = {one["name"]: one for one in known["benchmarks"]}
    for results in more:
        benchmarks |= {
            one["name"]: one for one in results["benchmarks"] if "error" not in one
        }
    machine = more[-1]["machine"] if more else known["machine"]
    return {
        "machine": machine,
        "benchmarks": [benchmarks[n] for n in sorted(benchmarks)],
    }


# ------------------------------------------------------------------ the page of figures


def performance(results: Results) -> str:
    """Return docs/performance.md."""
    return "\n".join(_performance(results)) + "\n"


def _performance(results: Results) -> Iterator[str]:
    rows = _rows(results)
    judged = [row for row in rows if row["aim"]]
    met = sum(bool(row["met"]) for row in judged)
    yield HEAD
    yield f"{met} of {len(judged)} targets are met.\n"
    yield "## The machine\n"
    yield "| | |\n|---|---|"
    for name, fact in results["machine"].items():
        yield f"| {name} | {fact} |"
    for benchmark in results["benchmarks"]:
        title = benchmark["name"].replace("_", " ").capitalize()
        yield f"\n## {title}\n"
        yield f"Measured on {benchmark['date']}, in {benchmark['seconds']:.0f} s.\n"
        yield f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
        for row in benchmark["rows"]:
            line = [cell.replace("|", "\\|") for cell in cells(row)]
            line[-1] = line[-1].replace("missed", "**missed**")
            yield f"| {' | '.join(line)} |"


def _rows(results: Results) -> list[Results]:
    return [row for one in results["benchmarks"] for row in one["rows"]]


# ------------------------------------------------------------------ the arithmetic

INTERVAL, CALL, USABLE = 30.0, 30.0, 0.5
"""Seconds between two polls of a subject (the default); seconds of a diagnosis at the API (an assumption); the share of a core to plan with."""
SUBJECTS, TICKETS, CORES = 10_000, 1_000, 16


@dataclass(frozen=True, slots=True)
class Costs:
    """What a poll and a ticket cost: milliseconds of processor time of Midwatch and of the database, and stored kilobytes."""

    poll: float
    poll_database: float
    ticket: float
    ticket_database: float
    kilobytes: float


def scaling(results: Results, page: str) -> str:
    """Return docs/scaling.md with the current arithmetic. Raises KeyError if a figure was not measured."""
    # Capacity is planned by the dearest of the turns.
    figures = {row["name"]: row["value"]["maximum"] for row in _rows(results)}
    parts = {
        "a poll": ("monitor", "database"),
        "a ticket": ("agent", "database", "size in the database"),
    }
    names = [f"{what}, {part}" for what, those in parts.items() for part in those]
    costs = Costs(*(_of(figures, name) for name in names))
    for name, table in (
        ("measured", _measured(costs)),
        ("one machine", _one_machine(costs)),
        ("large", _large(costs)),
        ("end", _end(costs)),
    ):
        page = replaced(page, name, table)
    return page


def _measured(costs: Costs) -> str:
    return _table(
        ("", "Midwatch", "PostgreSQL"),
        ("a poll of a website", _ms(costs.poll), _ms(costs.poll_database)),
        ("a ticket, diagnosed", _ms(costs.ticket), _ms(costs.ticket_database)),
        ("a ticket, stored", "", f"{costs.kilobytes:.0f} kB"),
    )


def _one_machine(costs: Costs) -> str:
    poll = costs.poll + costs.poll_database
    ticket = costs.ticket + costs.ticket_database
    return _table(
        ("of one core, half used", "how many", "from"),
        _most("subjects", USABLE, INTERVAL, poll),
        _most("or tickets an hour", USABLE, 3600, ticket),
    )


def _large(costs: Costs) -> str:
    polls, tickets = SUBJECTS / INTERVAL, TICKETS / 3600
    database = polls * costs.poll_database + tickets * costs.ticket_database
    every, hourly = f"{SUBJECTS:,} ÷ {INTERVAL:.0f} s", f"{TICKETS:,} ÷ 3,600 s"
    monitors = polls * costs.poll / 1000
    agents = tickets * costs.ticket / 1000
    gigabytes = costs.kilobytes * TICKETS * 24 * 365 / 1e6
    assumed = f"{CALL:.0f} s a diagnosis (an assumption; `midwatch stats` has yours)"
    both = (
        f"{polls:.0f} polls a second × {_ms(costs.poll_database)} + "
        f"{tickets:.2f} tickets a second × {_ms(costs.ticket_database)}"
    )
    yearly = f"{TICKETS:,} × 24 × 365 × {costs.kilobytes:.0f} kB"
    return _table(
        ("what", "need", "from"),
        ("cores of monitors", f"{monitors:.1f}", f"{every} × {_ms(costs.poll)}"),
        ("cores of agents", f"{agents:.2f}", f"{hourly} × {_ms(costs.ticket)}"),
        ("calls in flight", f"{tickets * CALL:.0f}", f"{hourly} × {assumed}"),
        ("cores of PostgreSQL", f"{database / 1000:.1f}", both),
        ("disk for a year of tickets", f"{gigabytes:,.0f} GB", yearly),
    )


def _end(costs: Costs) -> str:
    cores = CORES * USABLE
    return _table(
        (f"if PostgreSQL has {CORES} cores, half used", "how many", "from"),
        _most("subjects", cores, INTERVAL, costs.poll_database),
        _most("or tickets an hour", cores, 3600, costs.ticket_database),
    )


def _most(what: str, cores: float, seconds: float, cost: float) -> tuple[str, ...]:
    """Return a row: how many of `cost` milliseconds fit into `seconds` of `cores`."""
    if not cost:
        return what, "more than can be measured", ""
    many = f"{float(f'{cores * seconds * 1000 / cost:.2g}'):,.0f}"
    return what, many, f"{cores:g} × {seconds:,.0f} s ÷ {_ms(cost)}"


def _of(figures: Mapping[str, float], name: str) -> float:
    try:
        return figures[f"scaling: {name}"]
    except KeyError:
        raise KeyError(f"run `make performance ARGS=scaling`: no {name!r}") from None


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms"


def _table(*rows: Sequence[str]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


if __name__ == "__main__":
    sys.exit(main())
