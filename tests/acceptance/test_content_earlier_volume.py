"""A volume that version 0.1.0 has written, with a file a chunk: it is read, goes on, and becomes segments.

`volume-with-chunk-files.tar.gz` is what that version left behind after two sessions, one of which it did not end.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from midwatch.content.tree import EMPTY

from ..waiting import PATIENCE
from .cli import comes_true
from .content_proxy import FOLDER, OTHER, check_whole, file, proxy

LARGE = b"0123456789abcdef" * 160_000
VOLUME = Path(__file__).with_name("volume-with-chunk-files.tar.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(VOLUME) as packed:
        # Python 3.11.2 has no argument for it.
        if data_filter := getattr(tarfile, "data_filter", None):
            packed.extraction_filter = data_filter
        packed.extractall(tmp_path)
    return tmp_path


async def test_what_an_earlier_version_wrote_is_read_and_goes_on(folder: Path) -> None:
    # The collector has one pass at the start: it must find nothing to do.
    async with proxy(folder, collect_grace=1e9) as running:
        caller = running.caller()
        version, tree = await caller.manifest()
        assert len(tree) == 66 and tree["workspace/tool"].mode == 0o755
        assert await caller.content(tree["workspace/large"]) == LARGE
        assert await caller.content(tree["workspace/small/7"]) == b"small 7\n" * 20
        lines = await caller.content(tree["session/inbox.jsonl"])
        assert b'"hello"' in lines
        assert await caller.missing(*tree["workspace/large"].chunks) == []
        # Old chunks in a new commit, and a new one in the same.
        await caller.put(b"new")
        answer = await caller.commit(
            version,
            {"workspace/copy": file(LARGE), "workspace/new": file(b"new")},
            ["workspace/large"],
        )
        assert answer.status_code == 200
        answer = await caller.post("claim", {}, **{"midwatch-attempt": "2"})
        assert answer.json()["code"] == "superseded" and answer.json()["attempt"] == 3
        assert await caller.content(file(LARGE)) == LARGE
        other = running.caller(OTHER)
        assert await other.content(file(b"first")) == b"first"
        assert check_whole(running.root) == 67 + 1


async def test_chunk_files_become_segments(folder: Path) -> None:
    async with proxy(folder, collect_grace=0.0, collect_interval=0.02) as running:
        caller = running.caller()
        session = running.root / "folders" / FOLDER

        def moved() -> bool:
            return not (session / "chunks").exists()

        await comes_true(moved, timeout=PATIENCE)
        _, tree = await caller.manifest()
        assert len(os.listdir(session / "segments")) <= 2
        assert await caller.content(tree["workspace/large"]) == LARGE
        for number in range(1, 60):
            data = b"small %d\n" % number * 20
            assert await caller.content(tree[f"workspace/small/{number}"]) == data
        assert check_whole(running.root) == 66 + 1


async def test_a_folder_of_chunk_files_can_be_deleted(folder: Path) -> None:
    async with proxy(folder) as running:
        caller = running.caller()
        answer = await caller.http.delete(caller.at, headers=caller.headers)
        assert answer.json() == {"deleted": True}
        assert await caller.manifest() == (EMPTY, {})
        assert check_whole(running.root) == 1
        assert len(list(running.root.glob("folders/*/*/chunks/*/*"))) == 1
