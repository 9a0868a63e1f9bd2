"""Proxies that share a bucket: killed at random, with a store that fails, and without what they need."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import obstore
import obstore.exceptions
import pytest

from midwatch.content.server.bucket import map_store_error
from midwatch.content.server.manifest import Manifest, load
from midwatch.content.server.segments import MANY, head_length, parse_head
from midwatch.content.tree import EMPTY, chunk_hash, encode_frame
from midwatch.errors import MidwatchError

from ..waiting import PATIENCE
from .cli import comes_true, refused
from .content_proxy import FOLDER, KEY, Caller, Proxy, file, process, proxy
from .s3_server import KEY_ID, S3, SECRET, URL, refusing, s3


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3() as running:
        for name, value in running.environ.items():
            monkeypatch.setenv(name, value)
        yield running


@asynccontextmanager
async def replicas(
    folder: Path, count: int = 2, **settings: Any
) -> AsyncIterator[list[Proxy]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(proxy(folder, url=URL, **settings))
            for _ in range(count)
        ]


def stored(service: S3, folder: str = FOLDER) -> tuple[Manifest, dict[str, bytes]]:
    """Return a folder's manifest, and the chunks in all of its segments."""
    store = service.store()
    at = f"folders/{folder}/"
    data = bytes(obstore.get(store, f"{at}manifest.jsonl").bytes())
    chunks = {}
    for name in service.names():
        if name.startswith(f"{at}segments/"):
            inside = name.removeprefix(at)
            segment = bytes(obstore.get(store, name).bytes())
            for chunk, place in parse_head(
                inside, segment[: head_length(inside)]
            ).items():
                chunks[chunk.hex()] = segment[place.start :][: place.length]
    return load(io.BytesIO(data)), chunks


def check_whole(service: S3, folder: str = FOLDER) -> int:
    """Check that every chunk that the manifest names is in the bucket. Return the entries."""
    manifest, chunks = stored(service, folder)
    for name in manifest.chunks():
        assert chunk_hash(chunks[name.hex()]) == name.hex()
    return len(manifest)


# ------------------------------------------------------------------ together


async def test_what_one_replica_stores_another_serves(
    tmp_path: Path, service: S3
) -> None:
    data = os.urandom(3_000_000)
    async with replicas(tmp_path) as (one, two):
        here, there = one.caller(), two.caller()
        await here.put(data)
        assert await there.missing(*file(data).chunks) == []
        answer = await there.commit(EMPTY, {"workspace/large": file(data)})
        assert answer.status_code == 200
        assert await here.content(file(data)) == data
        version, tree = await here.manifest()
        assert tree == {"workspace/large": file(data)}
        # A lost response: the same commit again, at the other replica.
        again = await here.commit(EMPTY, {"workspace/large": file(data)})
        assert again.json()["version"] == version
        await there.write({"workspace/a": b"a"})
        assert (await here.since(version)).status_code == 200
        assert (
            await here.commit(version, removed=["workspace/large"])
        ).status_code == 412
        assert (await here.post("claim", {}, **{"midwatch-attempt": "2"})).is_success
        superseded = await there.post("claim", {}, **{"midwatch-attempt": "1"})
        assert superseded.json()["code"] == "superseded"
        assert check_whole(service) == 2


async def test_a_change_at_one_replica_ends_a_wait_at_the_other(
    tmp_path: Path, service: S3
) -> None:
    async with replicas(tmp_path, wait=600) as (one, two):
        version = await one.caller().write({"workspace/a": b"a"})
        waiting = asyncio.create_task(two.caller().known(version, wait=600))
        await two.until_waiting()
        await one.caller().write({"workspace/b": b"b"})
        assert (await waiting).status_code == 200


async def test_of_commits_to_one_version_one_wins(tmp_path: Path, service: S3) -> None:
    async with replicas(tmp_path, 3) as running:
        version, names = EMPTY, set[str]()
        for turn in range(8):
            answers = await asyncio.gather(
                *(
                    one.caller().commit(version, {f"{turn}-{number}": file(b"")})
                    for number, one in enumerate(running)
                )
            )
            won = [n for n, answer in enumerate(answers) if answer.status_code == 200]
            assert sorted(answer.status_code for answer in answers) == [200, 412, 412]
            version = answers[won[0]].json()["version"]
            names.add(f"{turn}-{won[0]}")
        assert set((await running[0].caller().manifest())[1]) == names


async def test_messages_through_all_replicas_arrive_once(
    tmp_path: Path, service: S3
) -> None:
    async with replicas(tmp_path, 3) as running:

        async def send(caller: Caller, number: int) -> None:
            for part in range(6):
                body = {
                    "id": f"{number}-{part}",
                    "type": "user_message",
                    "content": "x",
                }
                answer = await caller.post("inbox", body)
                assert answer.status_code == 200, answer.text

        await asyncio.gather(*(send(one.caller(), n) for n, one in enumerate(running)))
        caller = running[0].caller()
        _, tree = await caller.manifest()
        lines = (await caller.content(tree["session/inbox.jsonl"])).splitlines()
        assert sorted(json.loads(line)["id"] for line in lines) == sorted(
            f"{n}-{part}" for n in range(3) for part in range(6)
        )


@pytest.mark.timeout(1200)
def test_replicas_that_are_killed_lose_nothing(tmp_path: Path, service: S3) -> None:
    """Two clients commit through two replicas that are killed at random points; what was answered is there.

    Each dies within the commit, or the one after it, that follows two to six that were answered.
    """
    chance = random.Random(7)
    committed: dict[str, bytes] = {}
    for _ in range(3):
        with ExitStack() as stack:
            running = [
                stack.enter_context(process(tmp_path, **_bucket_of(service, **_HASTE)))
                for _ in range(2)
            ]
            kills = [
                _Kill(pid, chance.randint(2, 6), chance.uniform(0.0, 1.5))
                for _, pid in running
            ]
            workers = [
                threading.Thread(
                    target=_add_until_killed, args=(url, n, kills[n], committed)
                )
                for n, (url, _) in enumerate(running)
            ]
            for thread in workers:
                thread.start()
            for thread in workers:
                thread.join(2 * PATIENCE)
                assert not thread.is_alive()
    assert len(committed) > 10, "nothing much was committed"
    check_whole(service)
    manifest, chunks = stored(service)
    for path, data in committed.items():
        entry = manifest.get(path)
        assert entry is not None and chunks[entry.chunks[0]] == data


_HASTE = {"COLLECT_INTERVAL": "50ms", "COLLECT_GRACE": "0s"}
"""Everything that no manifest names is removed at once, also from under a push."""


def _bucket_of(service: S3, **more: str) -> dict[str, str]:
    return {"URL": URL, **service.environ, **more}


@dataclass
class _Kill:
    """When a replica is killed: after so many answered commits, and so many times as long as the last one took."""

    pid: int
    commits: int
    later: float

    def answered(self, count: int, seconds: float) -> None:
        if count == self.commits:
            threading.Timer(self.later * seconds, os.kill, [self.pid, 9]).start()


def _add_until_killed(
    url: str, number: int, kill: _Kill, committed: dict[str, bytes]
) -> None:
    with httpx2.Client(base_url=url, timeout=PATIENCE, verify=False) as http:
        caller = _Blocking(http)
        try:
            for count in range(1, 1000):
                path = f"workspace/{len(committed)}-{number}-{count}"
                data = os.urandom(2000)
                began = time.monotonic()
                caller.add(path, data)
                committed[path] = data
                kill.answered(count, time.monotonic() - began)
        except httpx2.TransportError:
            return


class _Blocking:
    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._from = Caller(None)  # type: ignore[arg-type]

    def add(self, path: str, data: bytes) -> None:
        at, headers = self._from.at, self._from.headers
        entry = {path: file(data).to_json()}
        while True:
            found = self._http.get(f"{at}/manifest", headers=headers)
            if found.status_code != 200:
                continue
            base = found.json()["version"]
            self._http.put(
                f"{at}/chunks",
                content=encode_frame(data),
                headers=headers | {"content-type": "application/octet-stream"},
            )
            answer = self._http.post(
                f"{at}/commit",
                content=json.dumps({"put": entry}).encode(),
                headers=headers
                | {"if-match": f'"{base}"', "content-type": "application/json"},
            )
            if answer.status_code == 200:
                return
            # Another was quicker, what was sent is collected already, or too many at once.
            assert answer.status_code in (409, 412, 429, 503), answer.text


# ------------------------------------------------------------------ what nobody needs


async def test_what_no_manifest_needs_is_collected(tmp_path: Path, service: S3) -> None:
    async with replicas(tmp_path, collect_grace=0.0, collect_interval=0.05) as running:
        one, two = (proxy.caller() for proxy in running)
        await one.write({"workspace/large": os.urandom(2 << 20), "workspace/a": b"a"})
        for number in range(MANY + 4):
            await (one, two)[number % 2].write({f"workspace/{number}": b"%d" % number})
        await two.write({"workspace/large": b"small"})

        def few() -> bool:
            return sum("/segments/" in name for name in service.names()) < MANY

        await comes_true(few, timeout=PATIENCE)
        assert check_whole(service) == MANY + 6
        assert await one.content(file(b"small")) == b"small"
        other = running[0].caller("team/other.99999999")
        await other.put(b"never committed")
        left = "folders/team/other.99999999/"
        await comes_true(
            lambda: not any(name.startswith(left) for name in service.names()),
            timeout=PATIENCE,
        )
        answer = await one.http.delete(one.at, headers=one.headers)
        assert answer.json() == {"deleted": True}
        assert await two.manifest() == (EMPTY, {})
        await comes_true(
            lambda: not any("folders/" in name for name in service.names()),
            timeout=PATIENCE,
        )
        await two.write({"workspace/again": b"a"})
        assert check_whole(service) == 1


async def test_folders_that_another_replica_deletes_are_forgotten(
    tmp_path: Path, service: S3
) -> None:
    folders = {f"team/gone-{number}.0123abcd" for number in range(8)}

    def remembered() -> set[tuple[str, str]]:
        return {
            (f"{type(one).__name__}.{name}", folder)
            for one in gc.get_objects()
            if type(one).__module__.startswith("midwatch.content.server")
            for name, value in getattr(one, "__dict__", {}).items()
            if type(value) is dict
            for folder in value.keys() & folders
        }

    settings = {"collect_interval": 0.1, "collect_grace": 0, "keep_for": 86400}
    async with replicas(tmp_path, **settings) as (one, two):
        for folder in folders:
            await two.caller(folder).write({"workspace/a": b"a"})
        names = {"Bucket._uses", "ContentStore._settled", "Quota._folders"}
        await comes_true(
            lambda: {name for name, _ in remembered()} == names, timeout=PATIENCE
        )
        for caller in map(one.caller, folders):
            answer = await caller.http.delete(caller.at, headers=caller.headers)
            assert answer.json() == {"deleted": True}
        await comes_true(lambda: not remembered(), timeout=PATIENCE)


async def test_a_segment_that_is_being_deleted_is_not_committed(
    tmp_path: Path, service: S3
) -> None:
    """The commit has read the manifest when the other replica decides that its segment is not needed."""
    async with replicas(tmp_path, 1, collect_grace=3600.0) as (one,):
        caller = one.caller()
        await caller.put(b"uploaded long ago")
        [segment] = [name for name in service.names() if "/segments/" in name]
        inside = segment.removeprefix(f"folders/{FOLDER}/")

        def collected(environ: dict[str, Any]) -> None:
            """Do what a collector does, right after the commit has listed the segments."""
            if "list-type" in environ["QUERY_STRING"]:
                service.after = lambda environ: None
                mark = Manifest(serial=1, dropped=frozenset([inside]))
                data, store = b"".join(mark.save()), service.store()
                at = f"folders/{FOLDER}/manifest.jsonl"
                obstore.put(store, at, data, mode="create", use_multipart=False)
                obstore.delete(store, segment)

        service.after = collected
        entry = file(b"uploaded long ago")
        answer = await caller.commit(EMPTY, {"workspace/a": entry})
        assert answer.status_code == 409
        assert answer.json()["missing"] == list(entry.chunks)
        await caller.put(b"uploaded long ago")
        answer = await caller.commit(EMPTY, {"workspace/a": entry})
        assert answer.status_code == 200 and check_whole(service) == 1


async def test_an_upload_that_is_asked_for_again_is_kept(
    tmp_path: Path, service: S3
) -> None:
    async with replicas(tmp_path, 1, collect_grace=0.5) as (one,):
        caller = one.caller()
        await caller.put(b"resumed")
        before = service.names()
        await asyncio.sleep(1.2)  # the store's times are whole seconds
        assert await caller.missing(chunk_hash(b"resumed")) == []
        assert len(service.names() - before) == 1, "a copy whose age begins now"
        answer = await caller.commit(EMPTY, {"a": file(b"resumed")})
        assert answer.status_code == 200


# ------------------------------------------------------------------ a store that fails


async def test_a_put_whose_answer_is_lost_is_one_commit(
    tmp_path: Path, service: S3
) -> None:
    """The store carries the conditional put out and then fails: when it is repeated, it is refused."""
    async with replicas(tmp_path, 1) as (one,):
        caller = one.caller()
        await caller.put(b"a")
        lost: list[str] = []

        def lose(environ: dict[str, Any]) -> tuple[str, bytes] | None:
            if environ["REQUEST_METHOD"] != "PUT" or lost:
                return None
            if "manifest" in environ["PATH_INFO"]:
                lost.append("500")
                return "500 Internal Error", b""
            return None

        def cut(environ: dict[str, Any]) -> None:
            if environ["REQUEST_METHOD"] == "PUT" and not lost:
                lost.append("cut")
                raise ConnectionError

        service.after = lose
        answer = await caller.commit(EMPTY, {"workspace/a": file(b"a")})
        assert lost.pop() == "500" and answer.status_code == 200, answer.text
        body = {"id": "1", "type": "user_message", "content": "once"}
        assert (await caller.post("inbox", body)).status_code == 200
        _, tree = await caller.manifest()
        lines = await caller.content(tree["session/inbox.jsonl"])
        assert lost.pop() == "500" and lines.count(b"\n") == 1
        # Without any answer nobody repeats it but the client, whose commit is known again.
        version, _ = await caller.manifest()
        service.after = cut
        assert (await caller.commit(version, {"b": file(b"")})).status_code == 503
        answer = await caller.commit(version, {"b": file(b"")})
        assert lost == ["cut"] and answer.status_code == 200


async def test_a_store_that_is_away_in_the_middle(tmp_path: Path, service: S3) -> None:
    async with replicas(tmp_path, 1) as (one,):
        caller = one.caller()
        version = await caller.write({"workspace/a": b"a"})
        for fault in (
            refusing("403 Forbidden", "AccessDenied"),
            refusing("403 Forbidden", "SignatureDoesNotMatch", "PUT"),
            refusing("404 Not Found", "NoSuchBucket"),
            refusing("400 Bad Request", "InvalidRequest", "PUT"),
        ):
            service.fault = fault
            put = await caller.put(b"b")
            commit = await caller.commit(version, {"workspace/b": file(b"")})
            assert {put.status_code, commit.status_code} == {503}
            assert (await one.http.get("/readyz")).status_code == 503
            for answer in (put, commit):
                assert answer.json()["hint"] and KEY_ID not in answer.text
            service.fault = lambda environ: None
        assert (await one.http.get("/readyz")).status_code == 200
        assert await caller.manifest() == (version, {"workspace/a": file(b"a")})
        # 500 and 503 pass: they are asked again.
        failures = iter([refusing("500 Internal", "InternalError")] * 2)
        service.fault = lambda environ: next(failures, lambda e: None)(environ)
        assert (await caller.put(b"c")).status_code == 200
        log = one.log.getvalue()
        assert "AccessDenied" in log and KEY_ID not in log and SECRET not in log


async def test_a_bucket_that_was_emptied_is_no_empty_folder(
    tmp_path: Path, service: S3
) -> None:
    async with replicas(tmp_path, 1) as (one,):
        caller = one.caller()
        await caller.write({"workspace/a": b"a"})
        obstore.delete(service.store(), sorted(service.names()))
        assert (await caller.known("0" * 64)).status_code == 503
        assert (await caller.commit(EMPTY, {"a": file(b"")})).status_code == 503
        assert (await one.http.get("/readyz")).status_code == 503


async def test_a_damaged_chunk_can_be_sent_again(tmp_path: Path, service: S3) -> None:
    # No commit names what is sent here, so it has to be within the grace of the collection.
    async with replicas(tmp_path, collect_interval=0.05) as running:
        one, two = (proxy.caller() for proxy in running)
        await one.write({"workspace/a": b"content", "workspace/b": b"other"})
        store = service.store()
        for name in service.names():
            if "/segments/" in name:
                data = bytes(obstore.get(store, name).bytes())
                obstore.put(store, name, data.replace(b"content", b"CONTENT"))
        plain = "/content/file?path=workspace/a"
        assert (await two.http.get(plain, headers=two.headers)).status_code == 409
        assert await one.missing(chunk_hash(b"content")) == [chunk_hash(b"content")]
        assert await one.content(file(b"other")) == b"other"
        await one.put(b"content")
        assert (await two.http.get(plain, headers=two.headers)).content == b"content"


# ------------------------------------------------------------------ at the start


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://missing/team", "NoSuchBucket"),
        ("s3://key:secret@content/team", "has credentials in it"),
        ("s3:/content", "not the URL of an object store"),
        ("file:///tmp/x", "begins with one of"),
        ("https://example.com/x", "begins with one of"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line(
    tmp_path: Path, service: S3, url: str, why: str
) -> None:
    (tmp_path / "key").write_bytes(KEY)
    given = {"MIDWATCH_CONTENT__KEY_FILE": "key", "MIDWATCH_CONTENT__URL": url}
    line = refused(
        tmp_path, "content", "serve", env={**service.environ, **given}, code=2
    )
    assert why in line and "content.url" in line
    assert SECRET not in line and "secret@" not in line


def test_a_refused_bucket_is_one_line(tmp_path: Path, service: S3) -> None:
    service.fault = refusing("403 Forbidden", "AccessDenied")
    (tmp_path / "key").write_bytes(KEY)
    given = {"MIDWATCH_CONTENT__KEY_FILE": "key", "MIDWATCH_CONTENT__URL": URL}
    line = refused(
        tmp_path, "content", "serve", env={**service.environ, **given}, code=2
    )
    assert "AccessDenied" in line and KEY_ID not in line


def test_every_error_of_the_store_has_a_line() -> None:
    kinds = [
        kind
        for name in dir(obstore.exceptions)
        if isinstance(kind := getattr(obstore.exceptions, name), type)
        and issubclass(kind, Exception)
    ]
    assert len(kinds) > 8
    for kind in (*kinds, FileNotFoundError, NotImplementedError):
        error = map_store_error(kind(f"raw text with {KEY_ID}"))
        assert isinstance(error, MidwatchError) and error.hint
        assert KEY_ID not in error.one_line()
