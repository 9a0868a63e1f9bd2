"""Slow clients, damaged or missing disks, and chunks that are not needed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from midwatch.content.errors import ContentFull
from midwatch.content.server.manifest import Manifest, load
from midwatch.content.server.objects import map_disk_error
from midwatch.content.server.segments import MANY
from midwatch.content.tree import EMPTY, MEDIA_TYPE, chunk_hash, encode_frame

from ..waiting import PATIENCE
from .cli import comes_true
from .content_proxy import (
    FOLDER,
    Caller,
    Proxy,
    bearer,
    check_whole,
    file,
    proxy,
    segment_of,
)

_until = partial(comes_true, timeout=PATIENCE)


async def raw(running: Proxy, data: bytes) -> bytes:
    """Send these bytes, then nothing. Return the response until the server closes."""
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()
        await writer.wait_closed()


def head(method: str, address: str, **headers: str) -> bytes:
    given = {"Host": "x", "Authorization": bearer()["authorization"]} | headers
    lines = [f"{method} /v1/folders/{FOLDER}/{address} HTTP/1.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def test_slow_clients_are_not_waited_for(tmp_path: Path) -> None:
    frames = encode_frame(b"whole") + encode_frame(b"half")[:-1]
    async with proxy(tmp_path, request_time=1.0) as running:
        nothing, half_a_head, body, upload = await asyncio.gather(
            raw(running, b""),
            raw(running, b"GET / HTTP/1.1\r\nHost"),
            raw(running, head("POST", "missing", Content_Length="100") + b'{"has'),
            raw(
                running,
                head("PUT", "chunks", Content_Length="200", Content_Type=MEDIA_TYPE)
                + frames,
            ),
        )
        assert (nothing, half_a_head) == (b"", b"")
        assert b" 408 " in body and b" 408 " in upload
        caller = running.caller()
        assert await caller.missing(chunk_hash(b"whole")) == []


async def test_a_connection_is_used_again_while_it_is_used(tmp_path: Path) -> None:
    """The timeout is for a request that does not arrive, not for a pause between two."""
    async with proxy(tmp_path, request_time=0.5) as running:
        caller = running.caller()
        await caller.manifest()
        await asyncio.sleep(0.6)
        host, port = running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(2):
            writer.write(head("GET", "manifest", If_None_Match=f'"{EMPTY}"'))
            assert b" 304 " in await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.6)
        writer.close()
        await writer.wait_closed()


async def test_an_answer_that_is_not_read_ends(tmp_path: Path) -> None:
    async with proxy(tmp_path, request_time=1.0) as running:
        data = os.urandom(16 << 20)
        await running.caller().write({"workspace/large": data})
        host, port = running.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        address = "GET /content/file?path=workspace/large HTTP/1.1\r\nHost: x\r\n"
        given = f"Authorization: {bearer()['authorization']}\r\n\r\n"
        writer.write((address + given).encode())
        await _until(lambda: any(line.get("status") == 499 for line in running.lines()))
        writer.transport.abort()


async def test_too_many_requests_are_answered_429(tmp_path: Path) -> None:
    async with proxy(tmp_path, max_waiting=1, wait=600) as running:
        caller = running.caller()
        first = asyncio.create_task(caller.known(EMPTY, wait=600))
        await running.until_waiting()
        answer = await caller.known(EMPTY, wait=600)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "5"
        await caller.write({"workspace/a": b"a"})
        assert (await first).status_code == 200


# ------------------------------------------------------------------ the disk


def place(running: Proxy, *parts: str) -> Path:
    return running.root.joinpath("folders", FOLDER, *parts)


async def test_a_manifest_that_cannot_be_read_is_never_an_empty_one(
    tmp_path: Path,
) -> None:
    async with proxy(tmp_path) as running:
        caller = running.caller()
        version = await caller.write({"workspace/a": b"a"})
        manifest = place(running, "manifest.jsonl")
        good = manifest.read_bytes()
        for wrong in (b"", good[:-5], good.replace(b'"f"', b'"d"'), b"\xff" * 100):
            manifest.write_bytes(wrong)
            answers = [
                await caller.known("0" * 64),
                await caller.commit(EMPTY, {"workspace/b": file(b"")}),
                await caller.commit(version, {"workspace/b": file(b"")}),
                await caller.post("inbox", {"type": "t"}),
            ]
            assert {answer.status_code for answer in answers} == {500}
            assert all(answer.json()["hint"] for answer in answers)
        manifest.unlink()
        manifest.mkdir()
        assert (await caller.known("0" * 64)).status_code == 503
        manifest.rmdir()
        manifest.write_bytes(good)
        assert (await caller.manifest())[0] == version


async def test_a_volume_that_is_gone_is_not_an_empty_one(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running:
        caller = running.caller()
        await caller.write({"workspace/a": b"a"})
        running.root.rename(tmp_path / "elsewhere")
        running.root.mkdir()
        assert (await caller.known("0" * 64)).status_code == 503
        assert (await caller.commit(EMPTY, {"x": file(b"")})).status_code == 503
        assert (await running.http.get("/readyz")).status_code == 503
        assert (await running.http.get("/healthz")).status_code == 200
        assert list(running.root.iterdir()) == []
        running.root.rmdir()
        (tmp_path / "elsewhere").rename(running.root)
        assert (await running.http.get("/readyz")).status_code == 200
        assert len((await caller.manifest())[1]) == 1


async def test_a_damaged_chunk_can_be_sent_again(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running:
        caller = running.caller()
        await caller.write({"workspace/a": b"content"})
        name = chunk_hash(b"content")
        segment = segment_of(place(running), b"content")
        segment.write_bytes(segment.read_bytes().replace(b"content", b"another"))
        plain = "/content/file?path=workspace/a"
        answer = await running.http.get(plain, headers=caller.headers)
        assert answer.status_code == 409
        assert await caller.missing(name) == [name]
        await caller.put(b"content")
        answer = await running.http.get(plain, headers=caller.headers)
        assert answer.content == b"content"
    # It is in a segment of its own now, and stays when the damaged one is collected.
    async with proxy(tmp_path, collect_grace=0.0, collect_interval=0.01) as running:
        await _until(lambda: not segment.exists())
        caller = running.caller()
        assert await caller.content(file(b"content")) == b"content"
        assert check_whole(running.root) == 1


def test_a_full_disk_is_mapped_to_content_full() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(map_disk_error(OSError(code, "full")), ContentFull)
    assert not isinstance(map_disk_error(OSError(errno.EIO, "io")), ContentFull)


# ------------------------------------------------------------------ what nobody needs


def _aged(running: Proxy, data: bytes, seconds: float) -> Path:
    path = segment_of(place(running), data)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


async def test_only_content_that_nothing_needs_is_removed(tmp_path: Path) -> None:
    async with proxy(tmp_path, collect_grace=1000.0) as running:
        await running.until_collected()  # nothing yet: the next pass is that of another process
        caller = running.caller()
        await caller.write({"workspace/a": b"kept"})
        await caller.write({"workspace/b": b"replaced"})
        for data in (b"idle", b"young", b"asked for"):
            await caller.put(data)
        kept = _aged(running, b"kept", 5000)
        asked = _aged(running, b"asked for", 5000)
        assert await caller.missing(chunk_hash(b"asked for")) == []
        replaced = _aged(running, b"replaced", 5000)
        await caller.write({"workspace/b": b"another"})
        idle = _aged(running, b"idle", 5000)
        young = _aged(running, b"young", 0)
        async with proxy(tmp_path, collect_grace=1000.0) as other:
            await _until(
                lambda: any(line["event"] == "collected" for line in other.lines())
            )
            [collected] = [x for x in other.lines() if x["event"] == "collected"]
        assert collected["segments"] == 1 and not idle.exists()
        assert all(path.exists() for path in (kept, asked, young))
        assert replaced.exists(), "a reader of the version before may still come for it"
        assert check_whole(running.root) == 2
        manifest = await _manifest_until(running, lambda now: bool(now.retired))
        assert list(manifest.retired) == [f"segments/{replaced.name}"]
        # Once another commit needs it again, it is not on its way out any more.
        version, _ = await caller.manifest()
        assert (await caller.commit(version, {"c": file(b"replaced")})).is_success
        manifest = await _manifest_until(running, lambda now: not now.retired)
        assert f"segments/{replaced.name}" in manifest.segments


async def _manifest_until(
    running: Proxy, wanted: Callable[[Manifest], bool]
) -> Manifest:
    async with asyncio.timeout(PATIENCE):
        while True:
            with place(running, "manifest.jsonl").open("rb") as opened:
                if wanted(found := load(opened)):
                    return found
            await asyncio.sleep(0.01)


async def test_small_segments_are_merged_and_replaced_content_goes(
    tmp_path: Path,
) -> None:
    async with proxy(tmp_path, collect_grace=0.0, collect_interval=0.01) as running:
        caller = running.caller()
        large = os.urandom(2 << 20)
        await caller.write({"workspace/large": large, "workspace/first": b"first"})
        for number in range(MANY + 8):
            await caller.write(
                {
                    f"workspace/{number}": os.urandom(500),
                    "workspace/head": b"%d" % number,
                }
            )
        await caller.write({"workspace/large": b"now small"})
        await _until(lambda: len(os.listdir(place(running, "segments"))) < MANY)
        await _until(lambda: bytes_of(place(running, "segments")) < 100_000)
        _, tree = await caller.manifest()
        assert await caller.content(tree["workspace/first"]) == b"first"
        assert await caller.content(tree["workspace/large"]) == b"now small"
        assert check_whole(running.root) == MANY + 8 + 3


def bytes_of(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # it was removed just now
        return sum(path.stat().st_size for path in folder.iterdir())
    return 1 << 62


async def test_a_folder_that_nobody_uses_is_removed(tmp_path: Path) -> None:
    """Reading keeps it, and so does writing chunks; the collector's own check does not."""
    names = ("idle", "read", "sent", "changed", "fresh")
    async with proxy(tmp_path, collect_interval=0.01, keep_for=7200) as running:
        callers = {name: running.caller(f"team/{name}.01234567") for name in names}
        places = {
            name: running.root / "folders" / callers[name].folder for name in names
        }
        for caller in callers.values():
            version = await caller.write({"workspace/a": b"a"})

        def age(name: str, seconds: float) -> None:
            os.utime(places[name], (time.time() - seconds,) * 2)

        for name in names:
            age(name, 5000)  # not for so long
        await callers["read"].manifest()
        await callers["sent"].put(b"b")
        await callers["changed"].commit(version, {"b": file(b"")})
        used = {name: place.stat().st_mtime for name, place in places.items()}
        recent = time.time() - 2500
        assert {name for name, at in used.items() if at > recent} == {
            "read",
            "sent",
            "changed",
        }
        age("idle", 7300)
        await _until(lambda: not places["idle"].exists())
        assert await callers["idle"].manifest() == (EMPTY, {})
        await _until(
            lambda: any("unused folder" in line["event"] for line in running.lines())
        )
        assert all(places[name].exists() for name in names if name != "idle")
        assert check_whole(running.root) == 5
        await callers["idle"].write({"workspace/again": b"a"})


async def test_without_a_limit_every_folder_is_kept(tmp_path: Path) -> None:
    async with proxy(tmp_path, collect_interval=0.01, collect_grace=0.0) as running:
        caller = running.caller()
        await caller.write({"workspace/a": b"a"})
        await caller.put(b"idle")
        os.utime(place(running), (0, 0))
        await _until(lambda: len(os.listdir(place(running, "segments"))) == 1)
        assert check_whole(running.root) == 1


async def test_nothing_is_collected_from_under_a_commit(tmp_path: Path) -> None:
    """Without a grace period, chunks vanish between upload and commit: the response names them, and a retry works."""
    async with proxy(tmp_path, collect_interval=0.001, collect_grace=0.0) as running:
        caller = running.caller()
        lost = 0
        for number in range(40):
            base, _ = await caller.manifest()
            data = f"content {number}".encode()
            await caller.put(data)
            if not number:  # once for certain
                await _until(lambda: not list(place(running).glob("segments/*")))
            while (
                answer := await caller.commit(base, {f"f{number}": file(data)})
            ).status_code == 409:
                lost += 1
                await caller.put(data)
            assert answer.status_code == 200
        assert check_whole(running.root) == 40
        assert lost > 0


async def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    beside = tmp_path / "volume" / "beside" / "0123"
    beside.mkdir(parents=True)
    (beside / "lock").touch()
    (beside / "7").write_bytes(b"half a chunk")
    async with proxy(tmp_path) as running, proxy(tmp_path) as another:
        assert not beside.exists()
        assert len(list((tmp_path / "volume" / "beside").iterdir())) == 2
        one, two = Caller(running.http), Caller(another.http)
        await one.write({"a": b"one"})
        await two.write({"b": b"two"})
        assert set((await one.manifest())[1]) == {"a", "b"}
    assert list((tmp_path / "volume" / "beside").iterdir()) == []


async def test_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with proxy(tmp_path, host="::1") as running:
        assert running.url.startswith("http://[::1]:")
        assert (await running.http.get("/healthz")).status_code == 200
