"""The endpoints of the earlier content service (`/content/…`), on the same folders."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from midwatch.content.tree import CHUNK, EMPTY, Entry

from .content_proxy import Caller, Proxy, file, proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = itertools.count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    async with proxy(tmp_path_factory.mktemp("proxy")) as opened:
        yield opened


@pytest.fixture
def caller(running: Proxy) -> Caller:
    return running.caller(f"team/fix{next(_numbers)}.0123abcd")


def session(caller: Caller) -> str:
    return caller.folder.partition("/")[2].partition(".")[0]


async def write(caller: Caller, **body: Any) -> httpx2.Response:
    return await caller.http.post(
        "/content/write",
        content=json.dumps(body).encode(),
        headers=caller.headers | {"content-type": "application/json"},
    )


async def read(caller: Caller, what: str, path: str) -> httpx2.Response:
    return await caller.http.get(f"/content/{what}?path={path}", headers=caller.headers)


async def test_what_is_written_is_read_and_listed(caller: Caller) -> None:
    at = f"/sessions/{session(caller)}/workspace"
    answer = await write(caller, path=f"{at}/notes/a.md", content="é\r\n")
    assert (answer.status_code, answer.json()) == (200, {"message": "ok"})
    raw = base64.b64encode(bytes(range(256))).decode()
    await write(caller, path="workspace/bin", content=raw, encoding="BASE64")
    answer = await read(caller, "file", f"{at}/notes/a.md")
    assert answer.content == "é\r\n".encode()
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (await read(caller, "file", "workspace/bin")).content == bytes(range(256))
    for path in (at, f"{at}/"):
        items = (await read(caller, "list", path)).json()["items"]
        assert [
            {key: item[key] for key in ("name", "path", "isDir", "size")}
            for item in items
        ] == [
            {"name": "bin", "path": f"{at}/bin", "isDir": False, "size": 256},
            {"name": "notes", "path": f"{at}/notes", "isDir": True, "size": 0},
        ]
        assert all(
            re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", item["modifiedAt"])
            for item in items
        )
    [item] = (await read(caller, "list", f"{at}/bin")).json()["items"]
    assert (item["name"], item["isDir"], item["size"]) == ("bin", False, 256)
    [top] = (await read(caller, "list", "")).json()["items"]
    assert (top["name"], top["path"], top["isDir"]) == ("workspace", "/workspace", True)


async def test_a_write_is_a_commit_of_one_file(caller: Caller) -> None:
    await caller.put(b"#!")
    await caller.commit(EMPTY, {"workspace/run": file(b"#!", 0o755)})
    await write(caller, path="workspace/run", content="#!/bin/sh")
    await write(caller, path="workspace/a/b/c", content="")
    _, tree = await caller.manifest()
    assert tree == {
        "workspace": Entry("folder", 0o755),
        "workspace/run": file(b"#!/bin/sh", 0o755),
        "workspace/a": Entry("folder", 0o755),
        "workspace/a/b": Entry("folder", 0o755),
        "workspace/a/b/c": file(b""),
    }


async def test_a_large_file(caller: Caller) -> None:
    data = bytes(range(256)) * 4096 * 3 + b"the end"  # three chunks and a bit
    await caller.write({"workspace/large": data})
    answer = await read(caller, "file", "workspace/large")
    assert answer.content == data and len(data) > 3 * CHUNK
    assert answer.headers["content-length"] == str(len(data))
    body = base64.b64encode(data).decode()
    await write(caller, path="workspace/copy", content=body, encoding="base64")
    _, tree = await caller.manifest()
    assert tree["workspace/copy"] == tree["workspace/large"] == file(data)


async def test_names_that_are_not_unicode(caller: Caller) -> None:
    await caller.write({"workspace/caf\udce9": b"x"})
    assert (await read(caller, "file", "workspace/caf%e9")).content == b"x"
    [item] = (await read(caller, "list", "workspace")).json()["items"]
    assert item["name"] == "caf\udce9"


async def test_what_is_not_there(caller: Caller) -> None:
    for what in ("file", "list"):
        answer = await read(caller, what, "workspace/none")
        assert answer.status_code == 404 and answer.json()["error"] == "not found"
    assert (await read(caller, "list", "")).json() == {"items": []}


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "workspace/../../x",
        "workspace//x",
        "workspace/./x",
        "workspace/",
        "/sessions/SESSION/../x",
        "/sessions/SESSION",
        "/sessions/SESSION//etc/passwd",
        "workspace/x\0y",
        "workspace/link",
        "workspace/link/x",
        "workspace/file/x",
        "workspace/folder",
    ],
)
async def test_writes_that_are_refused(caller: Caller, path: str) -> None:
    await caller.put(b"x")
    answer = await caller.commit(
        EMPTY,
        {
            "workspace/link": Entry("symlink", 0o777, target="/tmp"),
            "workspace/file": file(b"x"),
            "workspace/folder": Entry("folder"),
        },
    )
    before = answer.json()["version"]
    path = path.replace("SESSION", session(caller))
    answer = await write(caller, path=path, content="y")
    assert answer.status_code == 400 and answer.json()["error"]
    assert (await caller.manifest())[0] == before


async def test_bodies_and_reads_that_are_refused(caller: Caller) -> None:
    for body in (
        {},
        {"path": 1},
        {"path": "a", "content": 1},
        {"path": "a", "content": "?", "encoding": "base64"},
        {"path": "a", "content": "\ud800"},
    ):
        assert (await write(caller, **body)).status_code == 400
    await caller.write({"workspace/a/b": b"x"})
    assert (await read(caller, "file", "workspace/../x")).status_code == 400
    answer = await read(caller, "file", "/sessions/another/workspace/a/b")
    assert answer.status_code == 403
    answer = await caller.http.get("/content/list?path=")
    assert answer.status_code == 401
