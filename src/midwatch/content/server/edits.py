"""Changes that the server makes itself: a file written whole, or a line appended. Pure but for `read`.

A commit of its own makes each; folders above a new file are made, symlinks are never followed.
"""

from __future__ import annotations

from collections.abc import Callable

from midwatch.content.errors import PathRefused
from midwatch.content.paths import check_path
from midwatch.content.server.manifest import Manifest
from midwatch.content.server.store import Edit
from midwatch.content.tree import CHUNK, Delta, Entry, chunk_hash

_FILE, _FOLDER, _PRIVATE = 0o644, 0o755, 0o600


def written(manifest: Manifest, path: str, data: bytes) -> Edit:
    """A file with this content; one that is there keeps its mode. Raises PathRefused."""
    old = _file_at(manifest, path)
    return _edit(manifest, path, old.mode if old else _FILE, (), data)


def appended(
    manifest: Manifest, path: str, line: bytes, read: Callable[[str], bytes]
) -> Edit:
    """A file with one more line. Only its last chunk is read and written anew. Raises PathRefused."""
    old = _file_at(manifest, path)
    if old is None:
        return _edit(manifest, path, _PRIVATE, (), line)
    whole, tail = old.chunks, b""
    if old.size:
        whole, tail = old.chunks[:-1], read(old.chunks[-1])
    if tail and not tail.endswith(b"\n"):
        tail += b"\n"
    return _edit(manifest, path, old.mode, whole, tail + line)


def _edit(
    manifest: Manifest, path: str, mode: int, whole: tuple[str, ...], rest: bytes
) -> Edit:
    pieces = [rest[at : at + CHUNK] for at in range(0, len(rest), CHUNK)]
    chunks = [(chunk_hash(piece), piece) for piece in pieces]
    size = len(whole) * CHUNK + len(rest)
    entry = Entry("file", mode, size, whole + tuple(name for name, _ in chunks))
    put = {above: Entry("folder", _FOLDER) for above in _missing(manifest, path)}
    return Edit(Delta(put | {path: entry}, frozenset()), chunks)


def _file_at(manifest: Manifest, path: str) -> Entry | None:
    check_path(path)
    old = manifest.get(path)
    if old is not None and old.kind != "file":
        raise PathRefused(path, f"is a {old.kind}")
    return old


def _missing(manifest: Manifest, path: str) -> list[str]:
    """The folders above `path` that have no entry. Raises PathRefused below what is no folder."""
    parts = path.split("/")[:-1]
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for folder in above:
        if manifest.kind(folder) not in ("folder", None):
            raise PathRefused(path, f"is below a {manifest.kind(folder)}")
    return [folder for folder in above if manifest.kind(folder) is None]
