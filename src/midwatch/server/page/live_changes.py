"""Server-sent events: the changes of tickets, and any other stream that a browser goes on with after a break."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.responses import StreamingResponse

from midwatch.errors import MidwatchError, NotFound
from midwatch.lifecycle import StopEvent
from midwatch.model import Ticket
from midwatch.server.context import ServerContext
from midwatch.server.page.rendering import Pages
from midwatch.store.on_call import Change, Cursor
from midwatch.store.protocol import Brief

T = TypeVar("T")

_KEEP_ALIVE = 15.0
"""Seconds without an event after which a comment is sent, so that proxies keep the connection."""
_MOST_AT_ONCE = 20
"""Tickets of one event; when more change at once the browser reads the list again."""
_GATHERED = 500
_REMEMBERED = 500
_RETRY_MILLIS = 1000


def event_text(name: str, data: str, id_: str = "") -> str:
    """Return one event in the form of a stream."""
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    return f"event: {name}\n{f'id: {id_}' + chr(10) if id_ else ''}{lines}\n"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    """Return a response that sends these events as they come."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def batches(
    items: AsyncIterator[T], stop: StopEvent, most: int = _GATHERED
) -> AsyncIterator[list[T]]:
    """Yield what has come, all that is there at once; an empty list after `_KEEP_ALIVE` seconds without any.

    Args:
        items: What comes.
        stop: Ends it.
        most: The largest number of items at once.
    """
    stopped = asyncio.ensure_future(stop.wait())
    following = asyncio.ensure_future(_following(items))
    try:
        while not stop:
            await asyncio.wait(
                {following, stopped},
                timeout=_KEEP_ALIVE,
                return_when=asyncio.FIRST_COMPLETED,
            )
            found: list[T] = []
            while following.done() and len(found) < most:
                try:
                    found.append(following.result())
                except StopAsyncIteration:
                    if found:
                        yield found
                    return
                following = asyncio.ensure_future(_following(items))
                # What is there already is returned in one step of the loop.
                await asyncio.sleep(0)
            if not stop:
                yield found
    finally:
        stopped.cancel()
        following.cancel()
        await asyncio.gather(stopped, following, return_exceptions=True)


async def _following(items: AsyncIterator[T]) -> T:
    return await anext(items)


class LiveChanges:
    """Turns changes into events. What a change looks like is made once for all browsers."""

    def __init__(
        self,
        context: ServerContext,
        pages: Pages,
        read: Callable[[int], Awaitable[tuple[Ticket, Brief | None]]],
    ) -> None:
        self._context = context
        self._pages = pages
        self._read = read
        self._made: OrderedDict[Cursor, asyncio.Task[str]] = OrderedDict()

    async def events(
        self, after: Cursor | None, ticket: int | None, base: str
    ) -> AsyncIterator[str]:
        """Yield events from the first change after a place on.

        Args:
            after: The last change that the browser knows; None for what comes from now on.
            ticket: Only changes of this ticket.
            base: The path that the server is mounted at.
        """
        yield f"retry: {_RETRY_MILLIS}\n\n"
        subscription = self._context.feed.subscribe(after)
        async for found in batches(subscription, self._context.stop):
            if not found:
                yield ": alive\n\n"
                continue
            last = str(found[-1].cursor)
            newest = {
                one.ticket_id: one
                for one in found
                if ticket is None or one.ticket_id == ticket
            }
            if ticket is not None:
                if newest:
                    yield event_text("reload", str(ticket), last)
            elif len(newest) > _MOST_AT_ONCE:
                yield event_text("reload", str(len(newest)), last)
            else:
                for text in await self._texts(list(newest.values()), base):
                    yield text

    async def _texts(self, changes: Sequence[Change], base: str) -> list[str]:
        in_order = sorted(changes, key=lambda one: one.cursor)
        return [await asyncio.shield(self._text(one, base)) for one in in_order]

    def _text(self, change: Change, base: str) -> asyncio.Task[str]:
        made = self._made.get(change.cursor)
        if made is None:
            made = asyncio.create_task(self._make(change, base))
            self._made[change.cursor] = made
            if len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        return made

    async def _make(self, change: Change, base: str) -> str:
        try:
            ticket, brief = await self._read(change.ticket_id)
            counts = await self._context.store.unresolved_counts()
        except NotFound:
            return event_text("reload", "1", str(change.cursor))
        except MidwatchError as error:
            self._context.log.warning("change not shown", error=error.one_line())
            return event_text("reload", "1", str(change.cursor))
        data = {
            "id": ticket.id,
            "action": change.action,
            "actor": change.actor,
            "status": ticket.status.value,
            "row": self._pages.part(
                "macros.html", "ticket_row", ticket, brief, base=base
            ),
            "counts": self._pages.part("macros.html", "counts_of", counts, base=base),
        }
        return event_text("change", json.dumps(data), str(change.cursor))
