"""The manifest of a folder, the paths that are refused, and the protocol of the content proxy. Pure.

A file is a list of chunks of `CHUNK` bytes (the last is shorter), each named by its SHA-256. So memory is
bounded by a chunk, an upload resumes after the last whole chunk, and a file that grew sends only its end.

A path is relative and has `/` between its parts. Bytes that are not UTF-8 appear as Python's `surrogateescape` has
them, and travel in JSON as the escapes `\\udc80` to `\\udcff`. Case and Unicode normal form are kept: two names that
look alike are two entries.

The protocol, below `/v1/folders/NAMESPACE/NAME`:

==================  ==========================================  =====================================
request             body                                        response
==================  ==========================================  =====================================
GET /manifest                                                   {"version", "tree": {path: entry}}
GET ?since=VERSION                                              the same, or a difference (see below)
POST /missing       {"hashes": [hash]}                          {"missing": [hash]}
PUT /chunks         frames                                      {"stored": number of new chunks}
POST /chunks/read   {"hashes": [hash]}                          frames, in that order
POST /commit        {"put": {path: entry}, "removed": [path]}   {"version"}
POST /claim                                                     {"attempt"}
POST /inbox         {"id"?, "type", "content", "timestamp"?}    {"id", "version"}
DELETE                                                          {"deleted": whether it existed}
==================  ==========================================  =====================================

Entries have the form of `Entry.to_json`; JSON is ASCII, other characters and bytes are escaped. A version travels as
an ETag: `"VERSION"` in `ETag`, `If-None-Match` and `If-Match`. `GET /manifest?wait=SECONDS` with `If-None-Match`
answers as soon as the version differs, or 304 after that time. `GET /manifest?since=VERSION` answers {"version",
"since", "put": {path: entry}, "removed": [path]} if the server remembers the steps since that version, else the whole
tree. An error is {"error", "hint"}, at 412 with the current "version" (and as ETag), at 409 with the "missing" hashes.

Attempts: a runner sends `Midwatch-Attempt: N` with every request about its own folder, and claims the folder before
it reads it. The folder keeps the highest attempt that has claimed or changed it; a lower one gets 409 with "code":
"superseded" and that "attempt". A request without the header belongs to no attempt: a person or a tool sent it.

A frame is a chunk: 32 bytes of its SHA-256, 4 bytes of its length (big-endian, 1 to `CHUNK`), its bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from midwatch.content.errors import PathRefused, StreamBroken
from midwatch.model import Json

CHUNK = 1 << 20
"""Bytes of a chunk."""
MAX_PATH = 4095
"""Bytes of a path and of a symlink's target: Linux' PATH_MAX without the NUL."""
MAX_PART = 255
"""Bytes between two slashes: NAME_MAX of the usual file systems."""
MAX_HASHES = 16384
"""Hashes in one request."""
ATTEMPT = "midwatch-attempt"
"""The header with the number of a runner's attempt."""
SUPERSEDED = "superseded"
"""The `code` of the response to an attempt that is over."""
MEDIA_TYPE = "application/octet-stream"
"""The media type of a stream of frames."""
INBOX = "session/inbox.jsonl"
"""The file of messages for a session: written by the proxy, never by a runner."""
_HASH = re.compile("[0-9a-f]{64}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,98}[a-z0-9])?"
_FOLDER = re.compile(f"{_LABEL}/{_NAME}", re.ASCII)
_HEAD = struct.Struct(">32sI")
json_text: Callable[[str], str] = json.encoder.encode_basestring_ascii
"""Returns a text as JSON in ASCII."""
Kind = Literal["file", "folder", "symlink"]
Tree = Mapping[str, "Entry"]
"""Entries by path."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or symlink.

    Attributes:
        kind: What it is.
        mode: Permission bits; of a symlink always 0o777.
        size: Bytes of a file.
        chunks: Hashes of a file's chunks, in order.
        target: Where a symlink points to.
    """

    kind: Kind
    mode: int = 0o644
    size: int = 0
    chunks: tuple[str, ...] = ()
    target: str = ""

    def to_json(self) -> list[Any]:
        """Return `["f", mode, size, [chunk, …]]`, `["d", mode]` or `["l", target]`."""
        if self.kind == "file":
            return ["f", self.mode, self.size, list(self.chunks)]
        return ["d", self.mode] if self.kind == "folder" else ["l", self.target]


def entry_from_json(data: Any) -> Entry:
    """Parse the form of `Entry.to_json`. Paths and targets are not checked. Raises ValueError."""
    match data:
        case ["f", mode, size, list(chunks)] if (
            _is_mode(mode)
            and type(size) is int
            and size >= 0
            and all(map(is_hash, chunks))
        ):
            if len(chunks) != -(-size // CHUNK):
                raise ValueError(f"{size} bytes are not {len(chunks)} chunks")
            return Entry("file", mode, size, tuple(chunks))
        case ["d", mode] if _is_mode(mode):
            return Entry("folder", mode)
        case ["l", str(target)] if target:
            return Entry("symlink", 0o777, target=target)
    raise ValueError("not an entry of a manifest")


def _is_mode(number: object) -> TypeGuard[int]:
    return type(number) is int and 0 <= number <= 0o777  # a bool is an int as well


def is_hash(text: object) -> bool:
    """Return whether this is a SHA-256 in lower-case hexadecimal."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


def compact(data: Any) -> bytes:
    """Return JSON in ASCII: names that are not Unicode travel as escapes."""
    return json.dumps(data, separators=(",", ":")).encode("ascii")


def tree_text(tree: Tree) -> str:
    """Return the entries as compact JSON in ASCII: what `compact` makes of `to_json`, five times as fast."""
    return "{%s}" % ",".join(
        [f"{json_text(path)}:{entry_text(entry)}" for path, entry in tree.items()]
    )


def tree_from_json(data: Any) -> dict[str, Entry]:
    """Parse the form of `tree_text`. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("not a manifest")
    return {path: entry_from_json(entry) for path, entry in data.items()}


def version_of(tree: Tree) -> str:
    """Return the version of a tree: a hash of all of it. Equal trees have equal versions."""
    digest = hashlib.sha256()
    for path in sorted(tree):
        line = f"[{json_text(path)},{entry_text(tree[path])}]\n"
        digest.update(line.encode("ascii"))
    return digest.hexdigest()


def entry_text(entry: Entry) -> str:
    """Return `to_json` as compact JSON, five times as fast as the encoder: each sync does it for all entries."""
    if entry.kind == "file":
        chunks = ",".join([f'"{chunk}"' for chunk in entry.chunks])
        return f'["f",{entry.mode},{entry.size},[{chunks}]]'
    if entry.kind == "folder":
        return f'["d",{entry.mode}]'
    return f'["l",{json_text(entry.target)}]'


EMPTY = version_of({})
"""The version of an empty folder."""


def chunk_hash(data: bytes | memoryview) -> str:
    """Return the name of a chunk with these bytes."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Delta:
    """The change from one tree to another: `put` adds or replaces whole entries, `removed` are deleted paths."""

    put: Mapping[str, Entry]
    removed: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.put or self.removed)

    def __len__(self) -> int:
        return len(self.put) + len(self.removed)

    @property
    def chunks(self) -> set[str]:
        """The chunks of all files that are put."""
        return {chunk for entry in self.put.values() for chunk in entry.chunks}

    def apply(self, tree: Tree) -> dict[str, Entry]:
        """Return the tree after this change."""
        kept = {path: e for path, e in tree.items() if path not in self.removed}
        return kept | dict(self.put)

    def to_json(self) -> Json:
        """Return `{"put": {path: entry}, "removed": [path]}`."""
        put = {path: entry.to_json() for path, entry in self.put.items()}
        return {"put": put, "removed": sorted(self.removed)}

    def to_bytes(self, **more: str) -> bytes:
        """Return `to_json` and `more` members as compact JSON."""
        rest = {**more, "removed": sorted(self.removed)}
        return b'{"put":%b,%b' % (
            tree_text(self.put).encode("ascii"),
            compact(rest)[1:],
        )


NO_CHANGE = Delta({}, frozenset())


def delta_between(old: Tree, new: Tree) -> Delta:
    """Return the change from `old` to `new`."""
    # Most entries are the same object; comparing those by value would take most of the time.
    return Delta(
        {
            path: entry
            for path, entry in new.items()
            if (was := old.get(path)) is not entry and was != entry
        },
        frozenset(path for path in old if path not in new),
    )


def delta_from_json(data: Any) -> Delta:
    """Parse the form of `Delta.to_bytes`. Raises ValueError, KeyError, TypeError or AttributeError."""
    put = {path: entry_from_json(entry) for path, entry in data["put"].items()}
    return Delta(put, frozenset(data["removed"]))


# ------------------------------------------------------------------ paths


def check_folder(folder: str) -> str:
    """Return the id of a folder, `NAMESPACE/NAME.UID`, if it is valid. Raises PathRefused."""
    if not _FOLDER.fullmatch(folder) or ".." in folder:
        raise PathRefused(
            folder,
            "is not the id of a folder",
            hint="use NAMESPACE/NAME.UID, such as team-a/fix-checkout.0123abcd",
        )
    return folder


def check_path(path: str) -> None:
    """Raise PathRefused if the path is absolute, too long, or has a part that is empty, `.` or `..`."""
    if not path or path.startswith("/"):
        raise PathRefused(path, "is not a relative path")
    _check_text(path, path)
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise PathRefused(path, f"has the part {part!r}")
        # The length in characters is a lower bound; most names need no encoding to pass.
        if len(part) * 4 > MAX_PART and len(_encoded(part)) > MAX_PART:
            raise PathRefused(path, f"has a part of more than {MAX_PART} bytes")


def check_entries(entries: Tree) -> None:
    """Check each path and the target of each symlink. Raises PathRefused.

    A symlink may point anywhere, since it is never followed; only the form of its target is checked.
    """
    for path, entry in entries.items():
        check_path(path)
        if entry.kind == "symlink":
            if not entry.target:
                raise PathRefused(path, "is a symlink without a target")
            _check_text(path, entry.target)


def check_shape(paths: Iterable[str], kind: Callable[[str], Kind | None]) -> None:
    """Raise PathRefused if one of the paths is below a file or a symlink.

    Args:
        paths: The paths to check.
        kind: Returns the kind of a path, None if there is no entry.
    """
    valid = {""}
    for path in paths:
        above = path.rpartition("/")[0]
        while above not in valid:
            if kind(above) not in ("folder", None):
                raise PathRefused(path, f"is below a {kind(above)}")
            valid.add(above)
            above = above.rpartition("/")[0]


def check_tree(tree: Tree) -> None:
    """Check the entries and the shape of a tree that comes from outside. Raises PathRefused."""
    check_entries(tree)
    check_shape(tree, lambda path: tree[path].kind if path in tree else None)


def _check_text(path: str, text: str) -> None:
    if "\0" in text:
        raise PathRefused(path, "contains a NUL")
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
        raise PathRefused(text, "contains half a surrogate pair") from None


# ------------------------------------------------------------------ frames


def encode_frame(data: bytes) -> bytes:
    """Return a chunk as a frame. Raises ValueError if it is empty or larger than `CHUNK`."""
    return frame_of(chunk_hash(data), data)


def frame_of(name: str, data: bytes) -> bytes:
    """Return a chunk whose hash is known as a frame. Raises ValueError as `encode_frame`."""
    if not 0 < len(data) <= CHUNK:
        raise ValueError(f"a chunk has 1 to {CHUNK} bytes, not {len(data)}")
    return _HEAD.pack(bytes.fromhex(name), len(data)) + data


async def decode_frames(
    stream: AsyncIterable[bytes],
) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the chunks of a stream with their hashes, which are verified. Raises StreamBroken."""
    async for name, data in split_frames(stream):
        yield name, verify_chunk(name, data)


def verify_chunk(name: str, data: bytes) -> bytes:
    """Return the bytes if they have this hash. Raises StreamBroken."""
    if chunk_hash(data) != name:
        raise StreamBroken("a chunk does not match its hash")
    return data


async def split_frames(
    stream: AsyncIterable[bytes],
) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the chunks of a stream, without verifying the hashes. Buffers one frame and one piece of the stream at most. Raises StreamBroken."""
    buffer = bytearray()
    async for piece in stream:
        buffer += piece
        offset = 0
        while frame := _frame_at(buffer, offset):
            yield frame
            offset += _HEAD.size + len(frame[1])
        if offset:
            del buffer[:offset]
    if buffer:
        raise StreamBroken("the stream of chunks was cut")


def _frame_at(buffer: bytearray, start: int) -> tuple[str, bytes] | None:
    """Return the frame that begins at `start`, or None if it is not complete."""
    if len(buffer) - start < _HEAD.size:
        return None
    digest, length = _HEAD.unpack_from(buffer, start)
    if not 0 < length <= CHUNK:
        raise StreamBroken(f"a chunk cannot have {length} bytes")
    begin = start + _HEAD.size
    if len(buffer) < begin + length:
        return None
    return digest.hex(), bytes(memoryview(buffer)[begin : begin + length])
