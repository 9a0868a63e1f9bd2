"""Chunks on their way, in bounded memory; a transfer that breaks goes on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import ParamSpec, TypeVar

from midwatch.content.errors import ContentDamaged, ContentUnavailable, StreamBroken
from midwatch.content.sync.client import ContentClient
from midwatch.content.sync.local import BATCH, LocalChunks
from midwatch.content.sync.roots import Roots
from midwatch.content.sync.staging import Staging
from midwatch.content.tree import CHUNK, Entry
from midwatch.content.wire import MAX_HASHES
from midwatch.errors import TemporaryError

P = ParamSpec("P")
R = TypeVar("R")
_TRIES = 4
"""Without any progress between them."""
_FEW = 64
_SMALL = 4 << 20
"""Chunks and bytes that are sent without asking which of them are there."""


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Work that blocks. A cancellation waits for it: nothing goes on in the folders behind our back."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


async def upload(
    client: ContentClient,
    roots: Roots,
    entries: Mapping[str, Entry],
    wanted: Collection[str],
    captured: Mapping[str, bytes],
) -> set[str]:
    """Send the wanted chunks of these files; the paths whose files are others by now."""
    with roots.walker() as walker:
        local = LocalChunks(walker, entries, captured)
        left, size = [c for c in wanted if c in local], len(wanted) * CHUNK
        if len(left) > _FEW or sum(e.size for e in entries.values()) > _SMALL:
            left = await client.missing(left)
        tries = 0
        while left:
            try:
                await client.put_chunks(_stream(local.frames(left)), size)
                break
            except (ContentUnavailable, StreamBroken):
                before, left = len(left), await client.missing(left)
                tries = 0 if len(left) < before else tries + 1
                if tries >= _TRIES:
                    raise
        return local.changed


async def _stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    source = iter(pieces)
    while piece := await in_thread(next, source, b""):
        yield piece


async def download(
    client: ContentClient,
    roots: Roots,
    staging: Staging,
    present: Mapping[str, Entry],
    *,
    folder: str | None = None,
) -> None:
    """Make the staged files whole: from `present` local files that have a chunk, otherwise from the proxy."""
    if not staging.wanted:
        return
    await in_thread(_copy, roots, staging, present)
    tries = 0
    while wanted := staging.wanted[:MAX_HASHES]:
        before = len(staging.wanted)
        problem: TemporaryError = ContentUnavailable("chunks did not come")
        try:
            await _fetch(client, staging, wanted, folder)
        except (ContentUnavailable, StreamBroken) as error:
            problem = error
        tries = 0 if len(staging.wanted) < before else tries + 1
        if tries >= _TRIES:
            raise problem


def _copy(roots: Roots, staging: Staging, present: Mapping[str, Entry]) -> None:
    with roots.walker() as walker:
        local = LocalChunks(walker, present)
        for batch in local.batches([c for c in staging.wanted if c in local]):
            staging.write(batch)


def finish(staging: Staging) -> None:
    """What was downloaded is ready and on the disk. Raises ContentDamaged."""
    try:
        staging.finish()
    except ValueError as error:
        raise ContentDamaged(
            f"the content proxy's manifest is wrong: {error}"
        ) from None


async def _fetch(
    client: ContentClient, staging: Staging, wanted: list[str], folder: str | None
) -> None:
    batch: list[tuple[str, bytes]] = []
    size = 0
    try:
        async for name, data in client.read_chunks(wanted, folder=folder):
            batch.append((name, data))
            size += len(data)
            if size >= BATCH:
                full, batch, size = batch, [], 0
                await in_thread(staging.write, full)
    finally:
        # Also of a stream that broke: what came whole need not come again.
        if batch:
            await in_thread(staging.write, batch)
