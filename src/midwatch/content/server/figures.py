"""`/metrics`: what the proxy tells Prometheus, without a token, as to a probe."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from midwatch.content.server.desk import Desk
from midwatch.metrics.exposition import Exposition
from midwatch.metrics.families import Family, Sample, code_label

_REQUESTS = Family(
    "midwatch_content_requests_total",
    "counter",
    "Requests that were answered; `other` is no address of the proxy.",
    ("route", "code"),
)
_RECEIVED = Family(
    "midwatch_content_received_bytes_total", "counter", "Bytes of requests' bodies."
)
_SENT = Family(
    "midwatch_content_sent_bytes_total", "counter", "Bytes of answers' bodies."
)
_COMMITS = Family(
    "midwatch_content_commits_total",
    "counter",
    "Changes of folders that were accepted: commits, messages and plain writes.",
)
_CONFLICTS = Family(
    "midwatch_content_conflicts_total",
    "counter",
    "Commits that were computed from another version than the folder has (412).",
)
_WAITING = Family(
    "midwatch_content_waiting", "gauge", "Requests that wait for a change now."
)
_FOLDERS = Family(
    "midwatch_content_folders",
    "gauge",
    "Folders, as the last pass of the collector found them.",
)
_COLLECTED = Family(
    "midwatch_content_collected_chunks_total",
    "counter",
    "Chunks that nothing named and that were removed.",
)
_USED = Family(
    "midwatch_content_volume_used_bytes", "gauge", "What is used of the volume."
)
_FREE = Family(
    "midwatch_content_volume_free_bytes", "gauge", "What is left of the volume."
)
CONTENT = (
    _REQUESTS,
    _RECEIVED,
    _SENT,
    _COMMITS,
    _CONFLICTS,
    _WAITING,
    _FOLDERS,
    _COLLECTED,
    _USED,
    _FREE,
)
_COMMIT = "/v1/folders/{namespace}/{name}/commit"
_CHANGING = (_COMMIT, "/v1/folders/{namespace}/{name}/inbox", "/content/write")
_LONGEST_LOOK = 2.0
"""Seconds that a scrape waits for the volume; without an answer it tells the rest."""


class FiguresApi:
    """The handler for `/metrics`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._exposition = Exposition(CONTENT, self._samples)
        self._look: asyncio.Task[tuple[int, int] | None] | None = None

    def routes(self) -> list[Route]:
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        await self._look_at_volume()
        media_type = self._exposition.content_type
        return Response(self._exposition.text(), media_type=media_type)

    async def _look_at_volume(self) -> None:
        """One look at a time: on a disk that hangs, each would take a thread for ever."""
        if self._look is None or self._look.done():
            root = self._desk.settings.root.absolute()
            self._look = asyncio.create_task(
                self._desk.work(_used_and_free, root), name="volume"
            )
        await asyncio.wait({self._look}, timeout=_LONGEST_LOOK)

    def _samples(self) -> Iterator[Sample]:
        tally = self._desk.tally
        for (route, status), count in tally.requests.items():
            yield _REQUESTS(count, route, code_label(status))
        yield _RECEIVED(tally.received)
        yield _SENT(tally.sent)
        yield _COMMITS(sum(tally.requests[route, 200] for route in _CHANGING))
        yield _CONFLICTS(tally.requests[_COMMIT, 412])
        yield _WAITING(len(self._desk.changes))
        yield _COLLECTED(tally.collected)
        if tally.folders is not None:
            yield _FOLDERS(tally.folders)
        if self._look is not None and self._look.done():
            if (found := self._look.result()) is not None:
                yield _USED(found[0])
                yield _FREE(found[1])

    async def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)


def _used_and_free(root: Path) -> tuple[int, int] | None:
    """Bytes of the file system; None where it does not say."""
    try:
        found = shutil.disk_usage(root)
    except OSError:
        return None
    return found.used, found.free
