"""The pass in the background that removes chunks nothing needs, folders nobody uses, and what dead processes left."""

from __future__ import annotations

from midwatch.content.server.desk import Desk
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Stop
from midwatch.logs import Log


async def collect_for_ever(desk: Desk, stop: Stop, log: Log) -> None:
    """Look at once, then every `collect_interval`; a folder that fails does not keep the others."""
    while not stop:
        try:
            await desk.work(desk.store.clean)
            folders = await desk.work(desk.store.folders)
            desk.tally.folders = len(folders)
            for folder in folders:
                await _collect(desk, folder, log)
                if stop:
                    return
        except MidwatchError as error:
            log.warning("cannot collect", error=error.line())
        await stop.pause(desk.settings.collect_interval)


async def _collect(desk: Desk, folder: str, log: Log) -> None:
    try:
        if await desk.work(desk.store.expire, folder):
            keep_for = desk.settings.keep_for
            log.info(
                "removed a folder that nobody used", folder=folder, unused_for=keep_for
            )
            return
        if count := await desk.work(desk.store.collect, folder):
            desk.tally.collected += count
            log.info("collected", folder=folder, chunks=count)
    except MidwatchError as error:
        log.warning("cannot collect", folder=folder, error=error.line())
