"""A session that goes on with another one: its folder becomes ours, at the very first and once.

What was said and cloned stays; what was told of the other session (its outbox, mailbox, status) goes, or it
would be taken for ours. A note of what was there before makes that safe to be killed anywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable

from midwatch.errors import NotFound
from midwatch.kube.pod.places import ADOPTING, PodPlaces
from midwatch.session.log import disk_error, read_json, replace_json

_KEPT = frozenset({"claude", "repositories", "home", ".sync", "run", "lock"})


async def adopt(
    places: PodPlaces, origin: str, fetch: Callable[[], Awaitable[None]]
) -> None:
    """Fetch the folder of the session `origin` and make it ours, unless ours has its own story already.

    Raises what `fetch` raises, and NotFound where that session left no conversation.
    """
    note = places.state / ADOPTING
    own = read_json(note)
    if own is None and places.folder.outbox.exists():
        return
    if own is None:
        own = [path.name for path in places.state.iterdir()]
        replace_json(note, own)
    await fetch()
    _leave_out(places, {*own, *_KEPT, ADOPTING})
    if not any(places.transcripts.glob("*/*.jsonl")):
        raise NotFound(
            f"session {origin} has kept no conversation to go on with",
            hint="check spec.resumeFrom; that session must have run with the content proxy",
        )
    note.unlink()


def _leave_out(places: PodPlaces, kept: set[str]) -> None:
    try:
        for path in places.state.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise disk_error(error, places.state) from error
