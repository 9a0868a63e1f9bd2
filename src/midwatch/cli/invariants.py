"""`midwatch invariants`: every condition that can be watched, with unit and default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.output import BOLD, Cell, Output
from midwatch.cli.tickets import AsJson
from midwatch.errors import NotFound
from midwatch.model import Invariant, Json, Unit

if TYPE_CHECKING:
    from midwatch.subjects.base import SubjectKind

app = typer.Typer()

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
