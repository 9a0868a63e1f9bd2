"""Complete ticket numbers and names of subjects in a shell. What cannot be read completes to nothing, without a word."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.cli.app import Edge
    from midwatch.store.protocol import Store

T = TypeVar("T")

_MOST = 50  # candidates; a shell shows them all
_MOST_TEXT = 60  # characters that describe one
_SECONDS = 2.0
"""A person waits for the answer with the cursor in the line."""


def ticket_numbers(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the unresolved tickets whose number begins like this, the critical ones first, each with what is broken."""
    from midwatch.model import UNRESOLVED
    from midwatch.store.figures import TicketFilter

    query = TicketFilter(UNRESOLVED, limit=1000)
    found = _read(context, lambda store: store.tickets(query)) or ()
    return [
        (
            str(one.id),
            one_line(
                f"{one.key.subject} {one.key.invariant} {one.key.component}", _MOST_TEXT
            ),
        )
        for one in found
        if str(one.id).startswith(incomplete)
    ][:_MOST]


def subject_names(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of the settings' subjects that begin like this, each with its kind."""
    from midwatch.errors import MidwatchError

    try:
        written = _edge(context).settings().subjects
    except MidwatchError:
        return []
    named = [(str(one.get("name")), str(one.get("kind"))) for one in written]
    return [pair for pair in named if pair[0].startswith(incomplete)][:_MOST]


def kind_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the kinds of subjects that begin like this."""
    from midwatch.subjects.base import kinds

    return [name for name in sorted(kinds()) if name.startswith(incomplete)]


def _edge(context: typer.Context) -> Edge:
    """Return what the process was started with: the callback that makes it does not run for a completion."""
    from midwatch.cli.app import Edge

    root: Any = context.find_root()
    environ: Mapping[str, str] = root.obj if isinstance(root.obj, Mapping) else {}
    config = root.params.get("config")
    return Edge(environ, Path(config) if config else None)


def _read(context: typer.Context, read: Callable[[Store], Awaitable[T]]) -> T | None:
    from midwatch.cli.app import open_database
    from midwatch.errors import MidwatchError

    async def within() -> T:
        async with asyncio.timeout(_SECONDS), open_database(_edge(context)) as store:
            return await read(store)

    try:
        return asyncio.run(within())
    except (MidwatchError, TimeoutError):
        return None
