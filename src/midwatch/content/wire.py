"""What the client and the content proxy say to each other, below `/v1/folders/NAMESPACE/NAME`.

==================  ==========================================  =====================================
request             body                                        answer
==================  ==========================================  =====================================
GET /manifest                                                   {"version", "tree": {path: entry}}
GET ?since=VERSION                                              the same, or a difference (see below)
POST /missing       {"hashes": [hash]}                          {"missing": [hash]}
PUT /chunks         frames                                      {"stored": how many were new}
POST /chunks/read   {"hashes": [hash]}                          frames, in that order
POST /commit        {"put": {path: entry}, "removed": [path]}   {"version"}
POST /claim                                                     {"attempt"}
POST /inbox         {"id"?, "type", "content", "timestamp"?}    {"id", "version"}
DELETE                                                          {"deleted": whether it was there}
==================  ==========================================  =====================================

An entry is as `tree.Entry.to_json` writes it; JSON is ASCII, other characters and bytes are escaped.
A version travels as an ETag: `"VERSION"` in `ETag`, `If-None-Match` and `If-Match`. `GET /manifest?wait=SECONDS`
with `If-None-Match` answers when the version is another, or 304 after so long. `GET /manifest?since=VERSION`
answers {"version", "since", "put": {path: entry}, "removed": [path]} where the server remembers how the folder
came from there, and the whole tree where it does not. An error is
{"error", "hint"}, at 412 with the present "version" (and as ETag), at 409 with the "missing" hashes.

Attempts: a runner sends `Midwatch-Attempt: N` with every request about its own folder, and claims it before it reads
it. The folder keeps the highest attempt that has claimed or changed it; a lower one is answered 409 with
"code": "superseded" and that "attempt". A request without the header is of no attempt: a person's, or a tool's.

A frame is a chunk: 32 bytes of its SHA-256, 4 bytes of its length (big-endian, 1 to `CHUNK`), its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterable, AsyncIterator

from midwatch.content.errors import StreamBroken
from midwatch.content.tree import CHUNK, chunk_hash

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
