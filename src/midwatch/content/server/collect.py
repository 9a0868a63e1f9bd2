"""The pass in the background that removes chunks nothing needs, and what dead processes left."""

from __future__ import annotations

from ...errors import MidwatchError
from ...lifecycle import Stop
from ...logs import Log
from .desk import Desk


async def collect_for_ever(desk: Desk, stop: Stop, log: Log) -> None:
    """Look at once, then every `collect_interval`; a folder that fails does not keep the others."""
    while not stop:
        try:
            await desk.work(desk.store.clean)
            for folder in await desk.work(desk.store.folders):
                await _collect(desk, folder, log)
                if stop:
                    return
        except MidwatchError as error:
            log.warning("cannot collect", error=error.line())
        await stop.pause(desk.settings.collect_interval)


async def _collect(desk: Desk, folder: str, log: Log) -> None:
    try:
        if count := await desk.work(desk.store.collect, folder):
            log.info("collected", folder=folder, chunks=count)
    except MidwatchError as error:
        log.warning("cannot collect", folder=folder, error=error.line())
