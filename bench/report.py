"""What a benchmark reports: a value, the floor under it, their ratio and the aim."""

from __future__ import annotations

import json
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """`value` and `floor` are in `unit`; lower is better. Where there is no floor, the aim
    is a bound on the value, else on the ratio."""

    name: str
    value: float
    floor: float | None
    ratio: float | None
    aim: str
    met: bool
    unit: str = "ms"


def against_floor(
    name: str, value: float, floor: float, at_most: float, unit: str = "ms"
) -> Row:
    """Return a row whose aim is a ratio to the floor."""
    ratio = value / floor
    return Row(name, value, floor, ratio, f"≤ {at_most:g}×", ratio <= at_most, unit)


def against_bound(name: str, value: float, at_most: float, unit: str) -> Row:
    """Return a row whose aim is an absolute bound."""
    aim = f"≤ {at_most:g} {unit}"
    return Row(name, value, None, None, aim, value <= at_most, unit)


Round = Callable[[], Awaitable[float]]
"""Does the work once and returns the seconds it took, without the preparation."""


async def paired(ours: Round, floor: Round, rounds: int) -> tuple[float, float]:
    """The median seconds of each, in turns A B A B after a first turn that does not count, so
    that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for taken, step in zip(times, (ours, floor), strict=True):
            seconds = await step()
            if number:
                taken.append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])


def show(rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("what", "value", "floor", "ratio", "aim", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        floor = "" if row.floor is None else f"{row.floor:.3g} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
        style = "" if row.met else "bold red"
        value = f"{row.value:.3g} {row.unit}"
        table.add_row(row.name, value, floor, ratio, row.aim, style=style)
    Console().print(table)
