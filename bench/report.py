"""What a benchmark reports: rows with a value, what it is compared with, their ratio, the target and the verdict."""

from __future__ import annotations

import operator
import os
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from ._meter import Cost

QUICK = "BENCH_QUICK" in os.environ
"""Whether this run is `make bench-quick`: small sizes, few rounds, no verdict."""
T = TypeVar("T")


def sized(full: T, quick: T) -> T:
    """Return the size for this run."""
    return quick if QUICK else full


SIZES = sized((1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000))
"""Where cost may grow with what is stored."""


class Spread(float):
    """The median of some measurements as a number, which remembers them: scaling it scales them all."""

    values: tuple[float, ...]

    def __new__(cls, values: Iterable[float]) -> Spread:
        kept = tuple(values)
        made = super().__new__(cls, statistics.median(kept))
        made.values = kept
        return made

    @property
    def minimum(self) -> float:
        return min(self.values)

    @property
    def maximum(self) -> float:
        return max(self.values)

    def __mul__(self, factor: float) -> Spread:
        return Spread(value * factor for value in self.values)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Spread:
        """Divide by a number, or turn by turn by what was measured in the same turns."""
        if isinstance(divisor, Spread) and len(divisor.values) == len(self.values):
            return Spread(map(operator.truediv, self.values, divisor.values))
        return Spread(value / float(divisor) for value in self.values)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Lower values are better.

    Attributes:
        value: Ours, in `unit`; a `Spread` if it was measured several times.
        floor: What it is compared with, in the same unit: the least work that gives the same, or a peer's.
        ratio: Of both, turn by turn where they took turns.
        aim: The target in words; empty without one.
        met: Whether the target was met; None without one.
        measure: "processor" or "wall" if it is time, "memory", or empty.
        size: How much there was, where the cost may grow with it.
        against: Who or what the floor is.
    """

    name: str
    value: float
    floor: float | None
    ratio: float | None
    aim: str
    met: bool | None
    unit: str = "ms"
    measure: str = ""
    size: int | None = None
    against: str = ""


def against_floor(
    name: str,
    value: float,
    floor: float,
    at_most: float | None,
    unit: str = "ms",
    *,
    measure: str = "",
    size: int | None = None,
    against: str = "floor",
) -> Row:
    """Return a row whose target is a ratio to the floor; without a target if `at_most` is None."""
    ratio = value / floor
    aim = "" if at_most is None else f"≤ {at_most:.3g}×"
    met = None if at_most is None else ratio <= at_most
    return Row(name, value, floor, ratio, aim, met, unit, measure, size, against)


def against_bound(
    name: str,
    value: float,
    at_most: float | None,
    unit: str,
    *,
    measure: str = "",
    size: int | None = None,
) -> Row:
    """Return a row whose target is an absolute bound; without a target if `at_most` is None."""
    aim = "" if at_most is None else f"≤ {at_most:g} {unit}"
    met = None if at_most is None else value <= at_most
    return Row(name, value, None, None, aim, met, unit, measure, size)


# ------------------------------------------------------------------ turns

Round = Callable[[], Awaitable["float | Cost"]]
"""Does the work once; returns what it cost, or the seconds it took, without the preparation."""


class Sample(NamedTuple):
    """What the rounds of one side cost: seconds, and megabytes."""

    wall: Spread
    processor: Spread
    memory: Spread


async def turns(sides: Mapping[str, Round], rounds: int) -> dict[str, Sample]:
    """Return what each side cost, in turns A B C A B C after a first turn that does not count.

    So all see the same machine. In a quick run there are two turns at most.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(sized(rounds, min(rounds, 2)) + 1):
        for name, step in sides.items():
            cost = await step()
            if number:
                made = cost if isinstance(cost, Cost) else Cost(cost)
                costs[name].append(made)
    return {
        name: Sample(
            Spread(one.wall for one in taken),
            Spread(one.processor for one in taken),
            Spread(one.memory for one in taken),
        )
        for name, taken in costs.items()
    }


async def paired(ours: Round, floor: Round, rounds: int) -> tuple[Spread, Spread]:
    """Return the wall seconds of each, in turns."""
    samples = await turns({"ours": ours, "floor": floor}, rounds)
    return samples["ours"].wall, samples["floor"].wall


def compared(
    name: str,
    samples: Mapping[str, Sample],
    at_most: Mapping[str, float | None],
    *,
    each: float = 1,
    size: int | None = None,
    judged: Sequence[str] = ("processor",),
) -> list[Row]:
    """Return a row of processor time and one of wall time against each other side, in milliseconds.

    Args:
        name: What was done.
        samples: Of `turns`; the first side is ours.
        at_most: The target by side, as a ratio. A side without one here is shown all the same.
        each: How many of what is reported a round did.
        size: How much there was.
        judged: The measures to which the target applies.
    """
    (_, ours), *others = samples.items()
    return [
        against_floor(
            name,
            1000 / each * getattr(ours, measure),
            1000 / each * getattr(sample, measure),
            at_most.get(side) if measure in judged else None,
            measure=measure,
            size=size,
            against=side,
        )
        for side, sample in others
        for measure in ("processor", "wall")
    ]


# ------------------------------------------------------------------ the table


def as_json(row: Row) -> dict[str, object]:
    """Return a row as JSON: each measured number as its minimum, median and maximum."""
    found = {field.name: getattr(row, field.name) for field in fields(row)}
    return found | {
        name: _json_number(found[name]) for name in ("value", "floor", "ratio")
    }


def _json_number(number: float | None) -> dict[str, float] | None:
    if number is None:
        return None
    values = number.values if isinstance(number, Spread) else (number,)
    least, greatest = min(values), max(values)
    return {"minimum": least, "median": float(number), "maximum": greatest}


COLUMNS = ("what", "size", "of", "value", "against", "ratio", "target", "verdict")


def cells(row: Mapping[str, object]) -> tuple[str, ...]:
    """Return the cells of a row (of `as_json`) for a table with `COLUMNS`: "median (minimum to maximum)"."""
    unit = str(row["unit"])
    against = str(row["against"])
    if row["floor"] is not None:
        against = f"{against} {_number(row['floor'])} {unit}"
    return (
        str(row["name"]),
        f"{row['size']:,}" if row["size"] is not None else "",
        str(row["measure"]),
        f"{_number(row['value'])} {unit}",
        against,
        "" if row["ratio"] is None else f"{_number(row['ratio'])}×",
        str(row["aim"]),
        ("met" if row["met"] else "missed") if row["aim"] else "",
    )


def _number(number: object) -> str:
    assert isinstance(number, dict)
    least, median, greatest = (
        _digits(number[name]) for name in ("minimum", "median", "maximum")
    )
    return median if least == greatest else f"{median} ({least} to {greatest})"


def _digits(number: float) -> str:
    """Return three significant digits, without an exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def table(rows: Iterable[Mapping[str, object]], *, judge: bool = True) -> None:
    """Print the rows; without targets and verdicts unless `judge`."""
    shown = Table(*COLUMNS[: None if judge else -2], box=None)
    for row in rows:
        line = cells(row)[: len(shown.columns)]
        missed = judge and row["met"] is False
        shown.add_row(*line, style="bold red" if missed else "")
    Console(width=max(Console().width, 200)).print(shown)
