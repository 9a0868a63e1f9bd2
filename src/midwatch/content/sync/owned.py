"""Files that the proxy's side alone writes, line by line: here only its new lines are appended.

The session's mailbox is one. Its reader knows it by byte offset, so that it is never replaced; and what the session has
read already is never read again, whatever became of the connection.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from midwatch.content.sync.client import ContentClient
from midwatch.content.sync.roots import Roots
from midwatch.content.sync.transfer import in_thread
from midwatch.content.tree import CHUNK, Entry

_CHUNKS = 16
"""Taken at a time; the rest in the next round."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


async def take_lines(
    client: ContentClient, roots: Roots, path: str, theirs: Entry, ours: Entry | None
) -> None:
    """Append the whole lines that are new. Raises OSError for a local file that cannot be appended to."""
    same = _shared(ours.chunks if ours else (), theirs.chunks)
    wanted = theirs.chunks[same : same + _CHUNKS]
    pieces = {name: data async for name, data in client.read_chunks(wanted)}
    data = b"".join(pieces.get(name, b"") for name in wanted)
    await in_thread(_append, roots, path, same * CHUNK, data[: data.rfind(b"\n") + 1])


def _shared(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many chunks they begin with alike."""
    same = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        same += 1
    return same


def _append(roots: Roots, path: str, start: int, theirs: bytes) -> None:
    """`theirs` are the lines that they have from `start` on."""
    with roots.walker() as walker:
        folder, name = walker.parent(path)
        file = os.open(name, _FLAGS, 0o600, dir_fd=folder)
    try:
        ours = os.pread(file, len(theirs) + CHUNK, start)
        new = _new_lines(ours, theirs)
        while new:
            new = new[os.write(file, new) :]
        os.fsync(file)
    finally:
        os.close(file)


def _new_lines(ours: bytes, theirs: bytes) -> bytes:
    """The rest of a file that was left behind; of one that took another way, the lines that it does not have."""
    if theirs.startswith(ours):
        return theirs[len(ours) :]
    if ours.startswith(theirs):
        return b""
    known = set(ours.splitlines())
    lines = [line for line in theirs.splitlines() if line not in known]
    begun = b"" if ours.endswith(b"\n") or not lines else b"\n"
    return begun + b"".join(line + b"\n" for line in lines)
