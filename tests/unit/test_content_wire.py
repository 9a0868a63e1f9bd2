"""Frames under any cut of their stream, and manifests that come back as they were or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.content.errors import ContentDamaged, StreamBroken
from midwatch.content.server.manifest import Manifest, cause_of, load
from midwatch.content.tree import (
    CHUNK,
    EMPTY,
    Delta,
    Entry,
    chunk_hash,
    decode_frames,
    delta_between,
    encode_frame,
    tree_from_json,
    tree_text,
    version_of,
)

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
HASH = chunk_hash(b"x")

chunks = st.lists(st.binary(min_size=1, max_size=200), max_size=6)
names = st.text(
    st.sampled_from(list('ab/é"\\\n\u2028\udcff😀')), min_size=1, max_size=6
)
entries = st.one_of(
    st.builds(lambda mode: Entry("folder", mode), st.integers(0, 0o777)),
    st.builds(lambda text: Entry("symlink", 0o777, target=text), names),
    st.builds(
        lambda mode, size: Entry("file", mode, size, (HASH,) * -(-size // CHUNK)),
        st.integers(0, 0o777),
        st.sampled_from([0, 1, CHUNK, CHUNK + 1]),
    ),
)
trees = st.dictionaries(names, entries, max_size=8)


async def in_pieces(data: bytes, cuts: Iterable[int]) -> AsyncIterator[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in zip(places, places[1:], strict=False):
        yield data[start:end]


async def decoded(data: bytes, cuts: Iterable[int] = ()) -> list[tuple[str, bytes]]:
    return [frame async for frame in decode_frames(in_pieces(data, cuts))]


@given(chunks, st.lists(st.integers(0, 2000), max_size=30))
async def test_frames_come_back_however_they_are_cut(
    data: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(map(encode_frame, data))
    assert await decoded(stream, cuts) == [(chunk_hash(one), one) for one in data]


async def test_the_largest_chunk() -> None:
    [(name, data)] = await decoded(encode_frame(b"z" * CHUNK), [1, 40, CHUNK])
    assert (name, len(data)) == (chunk_hash(b"z" * CHUNK), CHUNK)
    for wrong in (b"", b"z" * (CHUNK + 1)):
        with pytest.raises(ValueError):
            encode_frame(wrong)


@given(chunks.filter(bool), st.data())
async def test_a_stream_that_is_cut_or_changed_is_noticed(
    data: list[bytes], draw: st.DataObject
) -> None:
    stream = bytearray(b"".join(map(encode_frame, data)))
    ends = {sum(len(d) + 36 for d in data[:count]) for count in range(len(data) + 1)}
    at = draw.draw(st.integers(0, len(stream) - 1))
    if at not in ends:
        with pytest.raises(StreamBroken):
            await decoded(bytes(stream[:at]))
    stream[at] ^= 1 << draw.draw(st.integers(0, 7))
    with pytest.raises(StreamBroken):
        await decoded(bytes(stream))


# ------------------------------------------------------------------ manifests


def made(tree: dict[str, Entry]) -> Manifest:
    return Manifest().changed(Delta(tree, frozenset()), "why", NOW)


def saved(manifest: Manifest) -> bytes:
    return b"".join(manifest.save())


@given(trees, trees)
def test_the_servers_manifest_is_the_tree(
    old: dict[str, Entry], new: dict[str, Entry]
) -> None:
    delta = delta_between(old, new)
    manifest = made(old).changed(delta, "then", NOW)
    assert manifest.version == version_of(new)
    assert manifest.size == sum(entry.size for entry in new.values())
    document = json.loads(b"".join(manifest.document()))
    assert document == {"version": version_of(new), "tree": json.loads(tree_text(new))}
    assert tree_from_json(document["tree"]) == new
    assert json.loads(delta.to_bytes(version="v")) == {
        **delta.to_json(),
        "version": "v",
    }
    back = load(io.BytesIO(saved(manifest)))
    assert (back.version, back.cause, back.slots) == (
        manifest.version,
        "then",
        manifest.slots,
    )
    assert {path: back.get(path) for path in back.slots} == new
    assert {HASH} >= {name.hex() for name in back.chunks()}


@given(trees, st.data())
def test_a_damaged_manifest_is_never_another_tree(
    tree: dict[str, Entry], draw: st.DataObject
) -> None:
    data = bytearray(saved(made(tree)))
    at = draw.draw(st.integers(0, len(data) - 1))
    cut = bytes(data[:at])
    data[at] = draw.draw(st.integers(0, 255))
    for wrong in (bytes(data), cut):
        try:
            found = load(io.BytesIO(wrong))
        except ContentDamaged:
            continue
        assert found.version == version_of(tree)


def test_an_empty_manifest_has_the_empty_version() -> None:
    assert Manifest().version == EMPTY == load(io.BytesIO(saved(made({})))).version


@given(trees, trees)
def test_a_commit_is_known_by_what_it_does(
    one: dict[str, Entry], other: dict[str, Entry]
) -> None:
    first, second = delta_between({}, one), delta_between(other, one)
    same = (first.put, first.removed) == (second.put, second.removed)
    assert (cause_of("a", first) == cause_of("a", second)) == same
    assert cause_of("a", first) != cause_of("b", first)
