"""The content proxy's own endpoints, as a client meets them."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from midwatch.content.errors import StreamBroken
from midwatch.content.tree import (
    CHUNK,
    EMPTY,
    MAX_HASHES,
    MEDIA_TYPE,
    Entry,
    chunk_hash,
    encode_frame,
    version_of,
)
from midwatch.errors import MidwatchError

from ..waiting import PATIENCE
from .content_proxy import (
    OTHER,
    Caller,
    Proxy,
    bearer,
    check_whole,
    file,
    proxy,
    token,
)

BINARY = bytes(range(256)) * 5000  # more than a chunk


# One server for all, and a folder for each: a server takes its time to end.
pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = itertools.count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    async with proxy(tmp_path_factory.mktemp("proxy")) as opened:
        yield opened


@pytest.fixture
def caller(running: Proxy) -> Caller:
    return running.caller(f"team/t{next(_numbers)}.0123abcd")


# ------------------------------------------------------------------ a tree and back


async def test_a_tree_comes_back_exactly(caller: Caller) -> None:
    contents = {
        "workspace/run.sh": b"#!/bin/sh\n",
        "workspace/dos.txt": b"one\r\ntwo\r\n\x00\xff",
        "workspace/big.bin": BINARY,
        "workspace/empty": b"",
        "workspace/caf\N{LATIN SMALL LETTER E WITH ACUTE}": b"composed",
        "workspace/cafe\N{COMBINING ACUTE ACCENT}": b"decomposed",
        "workspace/latin-\udce9\udcff": b"not UTF-8",
        "workspace/Case": b"upper",
        "workspace/case": b"lower",
        "workspace/new\nline": b"\n",
    }
    tree = {path: file(data) for path, data in contents.items()}
    tree["workspace/run.sh"] = file(contents["workspace/run.sh"], 0o755)
    tree["workspace/private"] = Entry("folder", 0o700)
    tree["workspace/link"] = Entry("symlink", 0o777, target="/etc/passwd")
    tree["workspace/odd-link"] = Entry("symlink", 0o777, target="../caf\udce9")
    answer = await caller.put(*(data for data in contents.values() if data))
    assert answer.json() == {"stored": 10}
    answer = await caller.commit(EMPTY, tree)
    assert answer.json() == {"version": version_of(tree)}
    version, found = await caller.manifest()
    assert (version, found) == (version_of(tree), tree)
    for path, data in contents.items():
        assert await caller.content(found[path]) == data


async def test_a_folder_that_is_not_there_reads_as_the_empty_version(
    caller: Caller, running: Proxy
) -> None:
    assert await caller.manifest() == (EMPTY, {})
    answer = await caller.http.delete(caller.at, headers=caller.headers)
    assert answer.json() == {"deleted": False}
    assert (await caller.commit(EMPTY)).json() == {"version": EMPTY}
    assert not (running.root / "folders" / caller.folder / "manifest.jsonl").exists()


async def test_a_delta_changes_what_it_names_and_no_more(caller: Caller) -> None:
    await caller.write({"workspace/a": b"a", "workspace/b": b"b"})
    base, tree = await caller.manifest()
    await caller.put(b"new")
    answer = await caller.commit(base, {"workspace/c": file(b"new")}, ["workspace/a"])
    tree = {"workspace/b": tree["workspace/b"], "workspace/c": file(b"new")}
    assert await caller.manifest() == (answer.json()["version"], tree)


async def test_a_manifest_can_come_compressed(caller: Caller) -> None:
    await caller.write({f"workspace/{n}": b"x" for n in range(50)})
    async with caller.http.stream(
        "GET",
        f"{caller.at}/manifest",
        headers=caller.headers | {"accept-encoding": "gzip"},
    ) as answer:
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(raw))["tree"]) == 50


async def test_deleting_a_folder_leaves_nothing(caller: Caller, running: Proxy) -> None:
    await caller.write({"workspace/a": b"a"})
    answer = await caller.http.delete(caller.at, headers=caller.headers)
    assert answer.json() == {"deleted": True}
    assert await caller.manifest() == (EMPTY, {})
    assert await caller.missing(chunk_hash(b"a")) == [chunk_hash(b"a")]
    assert not (running.root / "folders" / caller.folder).exists()
    await caller.write({"workspace/b": b"b"})  # and it can begin anew


# ------------------------------------------------------------------ versions


async def test_a_commit_names_the_version_it_was_computed_from(caller: Caller) -> None:
    body = {"put": {"workspace": ["d", 493]}}
    assert (await caller.post("commit", body)).status_code == 428
    for wrong in ("*", '"*"', f'W/"{EMPTY}"', f'"{EMPTY}", "{EMPTY}"', EMPTY):
        answer = await caller.post("commit", body, **{"if-match": wrong})
        assert answer.status_code == 400, wrong
    assert await caller.manifest() == (EMPTY, {})


async def test_another_version_is_never_overwritten(caller: Caller) -> None:
    version = await caller.write({"workspace/a": b"a"})
    for base in (EMPTY, "0" * 64):
        answer = await caller.commit(base, {"workspace/b": Entry("folder")})
        assert answer.status_code == 412
        assert answer.json()["version"] == version
        assert answer.headers["etag"] == f'"{version}"'
    assert (await caller.manifest())[0] == version


async def test_a_commit_whose_answer_was_lost_can_be_repeated(caller: Caller) -> None:
    put = {"workspace/a": Entry("folder")}
    first = await caller.commit(EMPTY, put)
    again = await caller.commit(EMPTY, put)
    assert again.status_code == 200 and again.json() == first.json()
    # The same tree made from elsewhere is not the same commit.
    assert (await caller.commit("0" * 64, put)).status_code == 412
    await caller.write({"workspace/b": b"b"})
    assert (await caller.commit(EMPTY, put)).status_code == 412


async def test_what_is_known_is_not_sent_again(caller: Caller) -> None:
    version = await caller.write({"workspace/a": b"a"})
    answer = await caller.known(version)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{version}"'
    assert (await caller.known(EMPTY)).status_code == 200


async def test_the_difference_to_a_version(caller: Caller, running: Proxy) -> None:
    old = await caller.write({f"workspace/{n}": b"%d" % n for n in range(5)})
    await caller.write({"workspace/1": b"new", "workspace/more": b"m"})
    version, _ = await caller.manifest()
    answer = await caller.commit(version, removed=["workspace/2", "workspace/more"])
    version = answer.json()["version"]
    told = await caller.since(old)
    assert told.headers["etag"] == f'"{version}"'
    found = told.json()
    assert set(found.pop("removed")) == {"workspace/2", "workspace/more"}
    put = {"workspace/1": file(b"new").to_json()}
    assert found == {"version": version, "since": old, "put": put}
    assert "tree" in (await caller.since("0" * 64)).json()
    assert (await caller.since("no version")).status_code == 400


async def test_a_difference_is_sent_only_if_all_steps_are_known(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running, proxy(tmp_path) as another:
        one, two = Caller(running.http), Caller(another.http)
        first = await one.write({"a": b"one"})
        second = await two.write({"b": b"two"})
        third = await one.write({"c": b"three"})
        assert "tree" in (await one.since(first)).json()
        assert set((await one.since(second)).json()["put"]) == {"c"}
        assert "tree" in (await two.since(second)).json()
        await one.http.delete(one.at, headers=one.headers)
        assert "tree" in (await one.since(third)).json()


async def test_a_wait_ends_with_the_change(tmp_path: Path) -> None:
    async with proxy(tmp_path, wait=600) as running:
        caller = running.caller()
        version = await caller.write({"workspace/a": b"a"})
        waiting = asyncio.create_task(caller.known(version, wait=600))
        await running.until_waiting()
        assert not waiting.done()
        new = await caller.write({"workspace/b": b"b"})
        answer = await asyncio.wait_for(waiting, PATIENCE)
        assert (answer.status_code, answer.json()["version"]) == (200, new)
        assert (await caller.known(new, wait=0.05)).status_code == 304


async def test_a_wait_ends_with_the_server(tmp_path: Path) -> None:
    async with proxy(tmp_path, wait=600) as running:
        waiting = asyncio.create_task(running.caller().known(EMPTY, wait=600))
        await running.until_waiting()
        running.stop.set("the test")
        assert (await asyncio.wait_for(waiting, PATIENCE)).status_code == 304


# ------------------------------------------------------------------ who may


async def test_only_a_token_opens_a_folder(running: Proxy, caller: Caller) -> None:
    manifest = f"{caller.at}/manifest"
    stolen = token(key=b"x" * 32)
    for given_ in (None, "", "Bearer", "Basic abc", "Bearer x", f"Bearer {stolen}"):
        headers = {} if given_ is None else {"authorization": given_}
        answer = await caller.http.get(manifest, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]
    answer = await caller.http.get(manifest, headers=bearer(OTHER))
    assert answer.status_code == 403
    logged = running.log.getvalue()
    assert stolen not in logged and caller.headers["authorization"][7:] not in logged


async def test_a_token_may_read_another_folder_and_not_write_it(
    caller: Caller,
) -> None:
    version = await caller.write({"workspace/a": b"a"})
    caller.headers = bearer(OTHER, read=[caller.folder])
    found, tree = await caller.manifest()
    assert found == version and await caller.content(tree["workspace/a"]) == b"a"
    refused = [
        await caller.put(b"b"),
        await caller.commit(version, {"workspace": Entry("folder")}),
        await caller.post("missing", {"hashes": []}),
        await caller.post("inbox", {"type": "user_message", "content": "x"}),
        await caller.http.delete(caller.at, headers=caller.headers),
    ]
    assert {answer.status_code for answer in refused} == {403}


@pytest.mark.parametrize(
    "address",
    [
        "/v1/folders/../../etc/passwd/manifest",
        "/v1/folders/team/..%2f..%2fetc/manifest",
        "/v1/folders/%2e%2e/%2e%2e/manifest",
        "/v1/folders/team/fix.0123abcd%00/manifest",
        "/v1/folders/team/fix.0123abcd%2f../manifest",
        "/v1/folders/TEAM/fix.0123abcd/manifest",
        "/v1/folders/team/%ff/manifest",
    ],
)
async def test_no_address_leads_elsewhere(running: Proxy, address: str) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    writer.write(f"{head}Authorization: Bearer {token()}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    await writer.wait_closed()
    assert re.match(rb"HTTP/1.1 40[034]", answer), answer


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "put",
    [
        {"/etc/passwd": ["d", 493]},
        {"a/../b": ["d", 493]},
        {"\udcc3\udca9": ["d", 493]},
        {"a": ["l", "x"], "a/b": ["d", 493]},
        {"a": ["f", 420, 0, []], "a/b/c": ["d", 493]},
        {"a": ["l", "x\0"]},
        {"a": ["d", 0o4755]},
        {"a": ["d", True]},
        {"a": ["f", 420, True, ["0" * 64]]},
        {"a": ["f", 420, 5, []]},
        {"a": ["f", 420, -1, []]},
        {"a": ["x"]},
        {"a": {}},
    ],
)
async def test_entries_that_cannot_be(caller: Caller, put: object) -> None:
    answer = await caller.post("commit", {"put": put}, **{"if-match": f'"{EMPTY}"'})
    assert answer.status_code == 422 and answer.json()["hint"] is not None
    assert await caller.manifest() == (EMPTY, {})


async def test_a_commit_that_means_two_things(caller: Caller) -> None:
    at = {"if-match": f'"{EMPTY}"'}
    both = {"put": {"a": ["d", 493]}, "removed": ["a"]}
    answer = await caller.post("commit", both, **at)
    assert answer.status_code == 422 and "both put and removed" in answer.text
    twice = b'{"put": {"a": ["d", 493], "a": ["d", 448]}}'
    for body in (twice, b'{"put": {}, "put": {}}', b'{"put": {"a": ["d", NaN]}}'):
        answer = await caller.http.post(
            f"{caller.at}/commit",
            content=body,
            headers=caller.headers | {"content-type": "application/json"} | at,
        )
        assert answer.status_code == 400, body
        assert "twice" in answer.text or "NaN" in answer.text
    assert await caller.manifest() == (EMPTY, {})


async def test_a_file_cannot_take_a_folders_place(caller: Caller) -> None:
    base = await caller.write({"workspace/a/b": b"x"})
    for kind in (file(b"x"), Entry("symlink", 0o777, target="/tmp")):
        answer = await caller.commit(base, {"workspace/a": kind})
        assert answer.status_code == 422
    answer = await caller.commit(base, {"workspace/a": file(b"x")}, ["workspace/a/b"])
    assert answer.status_code == 200


async def test_chunks_that_are_not_there_are_named(caller: Caller) -> None:
    gone = chunk_hash(b"never sent")
    answer = await caller.commit(EMPTY, {"a": file(b"never sent")})
    assert answer.status_code == 409 and answer.json()["missing"] == [gone]
    answer = await caller.post("chunks/read", {"hashes": [gone]})
    assert answer.status_code == 409 and answer.json()["missing"] == [gone]


async def test_a_size_that_the_chunks_do_not_have(caller: Caller) -> None:
    await caller.put(b"four")
    wrong = Entry("file", 0o644, 5, (chunk_hash(b"four"),))
    assert (await caller.commit(EMPTY, {"a": wrong})).status_code == 422


async def test_a_broken_upload_keeps_what_came_whole(caller: Caller) -> None:
    frames = encode_frame(b"one") + encode_frame(b"two")[:-1]
    wrong = encode_frame(b"three")[:-1] + b"?"
    for body, kept in ((frames, b"one"), (wrong, b"")):
        answer = await caller.http.put(
            f"{caller.at}/chunks",
            content=body,
            headers=caller.headers | {"content-type": MEDIA_TYPE},
        )
        assert answer.status_code == 400, answer.text
        assert await caller.missing(chunk_hash(b"one")) == []
    assert len(await caller.missing(*map(chunk_hash, (b"two", b"three")))) == 2
    assert issubclass(StreamBroken, MidwatchError)


async def test_bodies_that_are_not_understood(caller: Caller) -> None:
    as_json = {"content-type": "application/json"}
    for body in (b"", b"{", b"[]", b"\xff", b'{"put": []}', b"[" * 100_000):
        answer = await caller.http.post(
            f"{caller.at}/commit",
            content=body,
            headers=caller.headers | as_json | {"if-match": f'"{EMPTY}"'},
        )
        assert answer.status_code == 400, body
    for hashes in (None, [1], ["x"], ["A" * 64]):
        answer = await caller.post("missing", {"hashes": hashes})
        assert answer.status_code == 400
    other: list[dict[str, str]] = [
        {"content-type": "text/plain"},
        as_json | {"content-encoding": "gzip"},
    ]
    for headers in other:
        answer = await caller.post("missing", {"hashes": []}, **headers)
        assert answer.status_code == 415


async def test_limits(tmp_path: Path) -> None:
    small = {"max_entries": 3, "max_size": 10, "max_body": 4096}
    async with proxy(tmp_path, **small) as running:
        caller = running.caller()
        many = {f"{n}": Entry("folder") for n in range(4)}
        await caller.put(b"eleven byte")
        refused = [
            await caller.commit(EMPTY, many),
            await caller.commit(EMPTY, {"a": file(b"eleven byte")}),
            await caller.post(
                "commit", {"put": "x" * 5000}, **{"if-match": f'"{EMPTY}"'}
            ),
            await caller.post("missing", {"hashes": ["0" * 64] * 20000}),
            await caller.post("inbox", {"type": "t", "content": "x" * 600_000}),
        ]
        assert {answer.status_code for answer in refused} == {413}, refused
        assert all(answer.json()["hint"] for answer in refused)
        assert "content.max_entries" in refused[0].text
        names = [chunk_hash(str(n).encode()) for n in range(MAX_HASHES + 1)]
        assert (await caller.post("missing", {"hashes": names})).status_code == 413
        assert await caller.manifest() == (EMPTY, {})


async def test_addresses_that_are_not_there(caller: Caller) -> None:
    for method, address, status in (
        ("GET", "/", 404),
        ("GET", f"{caller.at}/other", 404),
        ("DELETE", f"{caller.at}/manifest", 405),
    ):
        answer = await caller.http.request(method, address, headers=caller.headers)
        assert answer.status_code == status and set(answer.json()) == {"error", "hint"}


# ------------------------------------------------------------------ the inbox


async def test_the_inbox_loses_no_line(caller: Caller) -> None:
    """Many write at once, while the session commits; the file passes the end of a chunk."""
    text = "é" * 20_000
    sent = await asyncio.gather(
        *(
            caller.post(
                "inbox", {"id": f"m{n}", "type": "user_message", "content": text}
            )
            for n in range(40)
        ),
        commit_again_and_again(caller, 5),
    )
    assert {a.json()["id"] for a in sent if a} == {f"m{n}" for n in range(40)}
    version, tree = await caller.manifest()
    entry = tree["session/inbox.jsonl"]
    assert entry.size > CHUNK and tree["session"].kind == "folder"
    assert {f"workspace/{number}" for number in range(5)} < tree.keys()
    lines = (await caller.content(entry)).decode().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {f"m{n}" for n in range(40)}
    answer = await caller.post("inbox", {"type": "end_session"})
    assert answer.json()["id"] and answer.json()["version"] != version


async def commit_again_and_again(caller: Caller, times: int) -> None:
    for number in range(times):
        put = {f"workspace/{number}": Entry("folder")}
        while (
            await caller.commit((await caller.manifest())[0], put)
        ).status_code != 200:
            pass


async def test_a_line_is_never_joined_to_half_a_line(caller: Caller) -> None:
    await caller.write({"session/inbox.jsonl": b'{"half"'})
    await caller.post("inbox", {"type": "interrupt", "id": "i", "timestamp": "then"})
    _, tree = await caller.manifest()
    lines = (await caller.content(tree["session/inbox.jsonl"])).splitlines()
    said = {"id": "i", "type": "interrupt", "content": None, "timestamp": "then"}
    assert lines[0] == b'{"half"' and json.loads(lines[1]) == said


async def test_messages_that_are_none(caller: Caller) -> None:
    base = await caller.write({"workspace": b""})  # a file, for what follows
    for wrong in ({}, {"type": 1}, {"type": ""}, {"type": "t", "id": 7}):
        assert (await caller.post("inbox", wrong)).status_code == 422
    await caller.commit(base, {"session": Entry("symlink", 0o777, target="/tmp")})
    assert (await caller.post("inbox", {"type": "t"})).status_code == 422


async def test_the_volume_is_whole(running: Proxy, caller: Caller) -> None:
    await caller.write({f"workspace/{n}": os.urandom(20) for n in range(20)})
    assert check_whole(running.root) >= 20
