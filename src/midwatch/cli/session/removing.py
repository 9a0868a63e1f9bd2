"""Removing sessions, one by one or by age and size."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from midwatch.cli.session.desk import Desk, is_here
from midwatch.cli.session.places import Place
from midwatch.errors import Conflict, NotFound
from midwatch.lifecycle import SystemClock
from midwatch.session.log import conversation_id, disk_error
from midwatch.session.records import TranscriptKey
from midwatch.session.transcripts import PROJECT
from midwatch.store.sessions import StoredSession


async def remove(desk: Desk, session_id: str) -> None:
    """Remove all of a session. Raises NotFound, and Conflict while it runs.

    The record goes last: what is interrupted half way is still listed, and can be removed again.
    """
    place = desk.places.place(session_id)
    session = await _recorded(desk, session_id)
    if session is None and not place.exists:
        raise NotFound(
            f"there is no session {session_id}", hint="see `midwatch session list`"
        )
    if place.running or (session is not None and desk.alive(session)):
        raise Conflict(
            f"session {session_id} is running",
            hint=f"`midwatch session end {session_id}`, or stop its runner",
        )
    with place.owned() if place.exists else contextlib.nullcontext():
        await asyncio.to_thread(_remove_files, place)
    key = TranscriptKey(project_key=PROJECT, session_id=conversation_id(session_id))
    await desk.transcripts.delete(key)
    if session is not None:
        await desk.sessions.remove(session_id)


async def prune_sessions(
    desk: Desk, keep_for: float | None, keep_bytes: float | None, dry_run: bool
) -> list[tuple[str, int]]:
    """Remove ended sessions of this machine: those that ended longer than `keep_for` seconds ago,
    then the oldest until `keep_bytes` are left. Returns their ids and sizes, the oldest first.
    """
    await desk.close_crashed()
    ended = [
        session
        for session in reversed(await desk.sessions.listed())
        if session.status.phase.terminal and not desk.alive(session)
        if is_here(session, desk.places.place(session.id))
    ]
    sizes = {one.id: await asyncio.to_thread(_size, desk, one.id) for one in ended}
    total, removed = sum(sizes.values()), []
    for session in ended:
        too_old = keep_for is not None and _age(session) > keep_for
        if too_old or (keep_bytes is not None and total > keep_bytes):
            total -= sizes[session.id]
            removed.append((session.id, sizes[session.id]))
            if not dry_run:
                await remove(desk, session.id)
    return removed


async def _recorded(desk: Desk, session_id: str) -> StoredSession | None:
    try:
        return await desk.sessions.get(session_id)
    except NotFound:
        return None


def _age(session: StoredSession) -> float:
    status = session.status
    since = status.ended_at or status.last_activity_at or session.created_at
    return max(SystemClock().now() - since, timedelta()).total_seconds()


def _size(desk: Desk, session_id: str) -> int:
    """Bytes of a session's folders on the disk; what vanishes meanwhile is not counted."""
    place, total = desk.places.place(session_id), 0
    for root in (place.folder.path, place.workspace):
        for folder, _, files in os.walk(root):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _remove_files(place: Place) -> None:
    """The workspace first: an agent may have made it hard to remove."""
    for path in (place.workspace, place.folder.path):
        try:
            if path.exists():
                shutil.rmtree(path, onerror=_once_more)
        except OSError as error:
            raise disk_error(error, path) from error
    lock = place.state.with_name(f"{place.state.name}.lock")
    lock.unlink(missing_ok=True)


def _once_more(function: Callable[..., Any], path: str, _: Any) -> None:
    """Folders without permissions are opened, then it is tried again."""
    parent = Path(path).parent
    for folder in (parent, Path(path)):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(stat.S_IRWXU)
    if function in (os.open, os.scandir, os.lstat, os.listdir):
        shutil.rmtree(path)
    else:
        function(path)
