"""The manifest of a folder: what is in it, by content hash. Pure.

A file is a list of chunks of `CHUNK` bytes (the last is shorter), each known by its SHA-256. So memory is
bounded by a chunk, an upload resumes after the last whole chunk, and a file that grew sends only its end.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from midwatch.content.errors import PathRefused, StreamBroken
from midwatch.model import Json

CHUNK = 1 << 20
"""Bytes of a chunk."""
_HASH = re.compile("[0-9a-f]{64}")
_text = json.JSONEncoder().encode
Kind = Literal["file", "folder", "symlink"]
Tree = Mapping[str, "Entry"]
"""Entries by path: relative, with `/`, in Unicode as the file system has it; `surrogateescape` for other bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or symlink. `mode` is its permission bits; of a symlink always 0o777."""

    kind: Kind
    mode: int = 0o644
    size: int = 0
    chunks: tuple[str, ...] = ()
    target: str = ""

    def to_json(self) -> list[Any]:
        """`["f", mode, size, [chunk, …]]`, `["d", mode]` or `["l", target]`."""
        if self.kind == "file":
            return ["f", self.mode, self.size, list(self.chunks)]
        return ["d", self.mode] if self.kind == "folder" else ["l", self.target]


def entry_from_json(data: Any) -> Entry:
    """Raises ValueError for what is no entry. Paths and targets are checked in `paths`."""
    match data:
        case ["f", int(mode), int(size), [*chunks]] if (
            _is_mode(mode) and _is_size(size) and all(map(is_hash, chunks))
        ):
            if len(chunks) != -(-size // CHUNK):
                raise ValueError(f"{size} bytes are not {len(chunks)} chunks")
            return Entry("file", mode, size, tuple(chunks))
        case ["d", int(mode)] if _is_mode(mode):
            return Entry("folder", mode)
        case ["l", str(target)] if target:
            return Entry("symlink", 0o777, target=target)
    raise ValueError("not an entry of a manifest")


def _is_mode(number: int) -> bool:
    return type(number) is int and 0 <= number <= 0o777  # a bool is an int as well


def _is_size(number: int) -> bool:
    return type(number) is int and number >= 0


def is_hash(text: object) -> bool:
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


def compact(data: Any) -> bytes:
    """JSON in ASCII: names that are not Unicode travel as escapes."""
    return json.dumps(data, separators=(",", ":")).encode("ascii")


def tree_to_json(tree: Tree) -> Json:
    return {path: tree[path].to_json() for path in sorted(tree)}


def tree_from_json(data: Any) -> dict[str, Entry]:
    """Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("not a manifest")
    return {path: entry_from_json(entry) for path, entry in data.items()}


def version_of(tree: Tree) -> str:
    """The version of a tree: a hash of all of it. Equal trees have equal versions."""
    digest = hashlib.sha256()
    for path in sorted(tree):
        line = f"[{_text(path)},{_written(tree[path])}]\n"
        digest.update(line.encode("ascii"))
    return digest.hexdigest()


def _written(entry: Entry) -> str:
    """`to_json` as compact JSON, five times as fast as the encoder: each sync does it for all entries."""
    if entry.kind == "file":
        chunks = ",".join([f'"{chunk}"' for chunk in entry.chunks])
        return f'["f",{entry.mode},{entry.size},[{chunks}]]'
    if entry.kind == "folder":
        return f'["d",{entry.mode}]'
    return f'["l",{_text(entry.target)}]'


def chunk_hash(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


EMPTY = version_of({})
"""The version of a folder that has nothing."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What makes one tree of another: `put` replaces or adds whole entries, `removed` takes away."""

    put: Mapping[str, Entry]
    removed: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.put or self.removed)

    @property
    def chunks(self) -> set[str]:
        return {chunk for entry in self.put.values() for chunk in entry.chunks}

    def apply(self, tree: Tree) -> dict[str, Entry]:
        kept = {path: e for path, e in tree.items() if path not in self.removed}
        return kept | dict(self.put)


def delta_between(old: Tree, new: Tree) -> Delta:
    # Most entries are the very same; comparing those by value would take most of the time.
    return Delta(
        {
            path: entry
            for path, entry in new.items()
            if (was := old.get(path)) is not entry and was != entry
        },
        frozenset(_missing(old, new)),
    )


def _missing(old: Iterable[str], new: Tree) -> Iterable[str]:
    return (path for path in old if path not in new)


# ------------------------------------------------------------ paths
# What is never stored nor written: paths that leave their folder, or mean two things. Pure.
#
# A path is relative and has `/` between its parts. Bytes that are not UTF-8 are in it as Python's
# `surrogateescape` has them, and travel in JSON as the escapes `\udc80` to `\udcff`. Case and Unicode
# normal form stay as they are: two names that look alike are two entries.

MAX_PATH = 4095
"""Bytes of a path and of a symlink's target: Linux' PATH_MAX without the NUL."""
MAX_PART = 255
"""Bytes between two slashes: NAME_MAX of the usual file systems."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,98}[a-z0-9])?"
_FOLDER = re.compile(f"{_LABEL}/{_NAME}", re.ASCII)


def check_folder(folder: str) -> str:
    """The folder's id, `NAMESPACE/NAME.UID`, if it is one. Raises PathRefused."""
    if not _FOLDER.fullmatch(folder) or ".." in folder:
        raise PathRefused(
            folder,
            "is no folder's id",
            hint="it is NAMESPACE/NAME.UID, such as team-a/fix-checkout.0123abcd",
        )
    return folder


def check_path(path: str) -> None:
    """Raises PathRefused for what is absolute, too long, or has a part that is empty, `.` or `..`."""
    if not path or path.startswith("/"):
        raise PathRefused(path, "is not a relative path")
    _check_text(path, path)
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise PathRefused(path, f"has the part {part!r}")
        # The length in characters is a lower bound; most names need no encoding to pass.
        if len(part) * 4 > MAX_PART and len(_encoded(part)) > MAX_PART:
            raise PathRefused(path, f"has a part of more than {MAX_PART} bytes")


def check_target(path: str, target: str) -> None:
    """Where a symlink may point is not restricted, since nobody follows it here; its form is."""
    if not target:
        raise PathRefused(path, "is a symlink to nothing")
    _check_text(path, target)


def check_entries(entries: Tree) -> None:
    """Each path, and where each symlink points to. Raises PathRefused."""
    for path, entry in entries.items():
        check_path(path)
        if entry.kind == "symlink":
            check_target(path, entry.target)


def check_shape(paths: Iterable[str], kind: Callable[[str], Kind | None]) -> None:
    """Nothing is below what is no folder. `kind` of a path that is not there is None."""
    fine = {""}
    for path in paths:
        above = path.rpartition("/")[0]
        while above not in fine:
            if kind(above) not in ("folder", None):
                raise PathRefused(path, f"is below a {kind(above)}")
            fine.add(above)
            above = above.rpartition("/")[0]


def check_tree(tree: Tree) -> None:
    """All of it, for a tree that comes from outside. Raises PathRefused."""
    check_entries(tree)
    check_shape(tree, lambda path: tree[path].kind if path in tree else None)


def _check_text(path: str, text: str) -> None:
    if "\0" in text:
        raise PathRefused(path, "has a NUL in it")
    if text.isascii():
        size = len(text)
    else:
        raw = _encoded(text)
        size = len(raw)
        # Escaped bytes that together are a character would be a second name of one file.
        if raw.decode("utf-8", "surrogateescape") != text:
            raise PathRefused(path, "is not written as a file system would name it")
    if size > MAX_PATH:
        raise PathRefused(path, f"has more than {MAX_PATH} bytes")


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PathRefused(text, "has half a surrogate pair in it") from None


# ------------------------------------------------------------ wire
# What the client and the content proxy say to each other, below `/v1/folders/NAMESPACE/NAME`.
#
# ==================  ==========================================  =====================================
# request             body                                        answer
# ==================  ==========================================  =====================================
# GET /manifest                                                   {"version", "tree": {path: entry}}
# GET ?since=VERSION                                              the same, or a difference (see below)
# POST /missing       {"hashes": [hash]}                          {"missing": [hash]}
# PUT /chunks         frames                                      {"stored": how many were new}
# POST /chunks/read   {"hashes": [hash]}                          frames, in that order
# POST /commit        {"put": {path: entry}, "removed": [path]}   {"version"}
# POST /claim                                                     {"attempt"}
# POST /inbox         {"id"?, "type", "content", "timestamp"?}    {"id", "version"}
# DELETE                                                          {"deleted": whether it was there}
# ==================  ==========================================  =====================================
#
# An entry is as `tree.Entry.to_json` writes it; JSON is ASCII, other characters and bytes are escaped.
# A version travels as an ETag: `"VERSION"` in `ETag`, `If-None-Match` and `If-Match`. `GET /manifest?wait=SECONDS`
# with `If-None-Match` answers when the version is another, or 304 after so long. `GET /manifest?since=VERSION`
# answers {"version", "since", "put": {path: entry}, "removed": [path]} where the server remembers how the folder
# came from there, and the whole tree where it does not. An error is
# {"error", "hint"}, at 412 with the present "version" (and as ETag), at 409 with the "missing" hashes.
#
# Attempts: a runner sends `Midwatch-Attempt: N` with every request about its own folder, and claims it before it reads
# it. The folder keeps the highest attempt that has claimed or changed it; a lower one is answered 409 with
# "code": "superseded" and that "attempt". A request without the header is of no attempt: a person's, or a tool's.
#
# A frame is a chunk: 32 bytes of its SHA-256, 4 bytes of its length (big-endian, 1 to `CHUNK`), its bytes.

MAX_HASHES = 16384
"""Hashes in one request."""
ATTEMPT = "midwatch-attempt"
"""The header with the number of a runner's attempt."""
SUPERSEDED = "superseded"
"""The `code` of an answer to an attempt that is over."""
MEDIA_TYPE = "application/octet-stream"
"""Of a stream of frames."""
INBOX = "session/inbox.jsonl"
"""Where messages for a session are: the proxy writes there, and a runner never does."""
_HEAD = struct.Struct(">32sI")


def encode_frame(data: bytes) -> bytes:
    """One chunk as a frame. Raises ValueError for an empty one or one above `CHUNK`."""
    return frame_of(chunk_hash(data), data)


def frame_of(name: str, data: bytes) -> bytes:
    """A chunk whose hash is known, as a frame. Raises ValueError as `encode_frame`."""
    if not 0 < len(data) <= CHUNK:
        raise ValueError(f"a chunk has 1 to {CHUNK} bytes, not {len(data)}")
    return _HEAD.pack(bytes.fromhex(name), len(data)) + data


async def decode_frames(
    stream: AsyncIterable[bytes],
) -> AsyncIterator[tuple[str, bytes]]:
    """Chunks with their hashes, each checked. Raises StreamBroken for what is no frame or is cut."""
    async for name, data in split_frames(stream):
        yield name, checked(name, data)


def checked(name: str, data: bytes) -> bytes:
    """The bytes, if they have this hash. Raises StreamBroken."""
    if chunk_hash(data) != name:
        raise StreamBroken("a chunk is not what its hash says")
    return data


async def split_frames(
    stream: AsyncIterable[bytes],
) -> AsyncIterator[tuple[str, bytes]]:
    """As `decode_frames`, for one who checks the hashes elsewhere. Holds one frame and one piece."""
    held = bytearray()
    async for piece in stream:
        held += piece
        taken = 0
        while frame := _frame_at(held, taken):
            yield frame
            taken += _HEAD.size + len(frame[1])
        if taken:
            del held[:taken]
    if held:
        raise StreamBroken("the stream of chunks was cut")


def _frame_at(held: bytearray, start: int) -> tuple[str, bytes] | None:
    """The frame that begins at `start`, if all of it is there."""
    if len(held) - start < _HEAD.size:
        return None
    digest, length = _HEAD.unpack_from(held, start)
    if not 0 < length <= CHUNK:
        raise StreamBroken(f"a chunk cannot have {length} bytes")
    begin = start + _HEAD.size
    if len(held) < begin + length:
        return None
    return digest.hex(), bytes(memoryview(held)[begin : begin + length])
