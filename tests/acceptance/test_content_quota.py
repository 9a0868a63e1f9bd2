"""The quota of a folder on the volume that all sessions share."""

from __future__ import annotations

import os
from pathlib import Path

import httpx2

from midwatch.content.tree import EMPTY

from .content_proxy import FOLDER, OTHER, Caller, file, proxy

LIMIT = 1 << 20


def bytes_used(root: Path, folder: str = FOLDER) -> int:
    segments = (root / "folders" / folder / "segments").iterdir()
    return sum(path.stat().st_size for path in segments)


def age(root: Path, seconds: float) -> None:
    for path in (root / "folders" / FOLDER / "segments").iterdir():
        before = path.stat().st_mtime - seconds
        os.utime(path, (before, before))


async def write(caller: Caller, path: str, data: bytes) -> httpx2.Response:
    return await caller.http.post(
        "/content/write",
        json={"path": path, "content": data.hex()},
        headers=caller.headers,
    )


async def test_a_folder_is_limited_to_twice_its_maximum_size(tmp_path: Path) -> None:
    async with proxy(tmp_path, max_size=LIMIT) as running:
        caller = running.caller()
        codes = []
        for _ in range(8):
            codes.append((await caller.put(os.urandom(900_000))).status_code)
            version, _ = await caller.manifest()
            # A commit that changes nothing frees no space.
            assert (await caller.commit(version)).status_code == 200
        assert codes == [200, 200] + 6 * [507]
        assert bytes_used(running.root) <= 2 * LIMIT
        answer = await caller.put(os.urandom(900_000))
        assert "content.max_size" in answer.json()["hint"]
        # Other folders are not affected.
        other = running.caller(OTHER)
        assert (await other.put(os.urandom(900_000))).status_code == 200
        # Unreferenced chunks are removed when space is needed, before the collector's grace period ends.
        age(running.root, 120)
        data = os.urandom(900_000)
        assert (await caller.put(data)).status_code == 200
        assert (await caller.commit(EMPTY, {"a": file(data)})).status_code == 200
        age(running.root, 120)
        for _ in range(3):
            await caller.put(os.urandom(900_000))
            age(running.root, 120)
        answer = await caller.http.get(
            "/content/file", params={"path": "a"}, headers=caller.headers
        )
        assert answer.content == data  # referenced chunks stay


async def test_legacy_writes_and_messages_count_as_well(tmp_path: Path) -> None:
    async with proxy(tmp_path, max_size=LIMIT) as running:
        caller = running.caller()
        codes = {
            (await write(caller, "big", os.urandom(450_000))).status_code
            for _ in range(6)
        }
        assert codes == {200, 507}
        message = {"type": "user_message", "content": "x" * 400_000}
        answers = [await caller.post("inbox", message) for _ in range(2)]
        assert answers[-1].status_code == 507
        assert bytes_used(running.root) <= 2 * LIMIT


async def test_another_process_on_the_volume_counts_as_well(tmp_path: Path) -> None:
    options = {"max_size": LIMIT}
    async with proxy(tmp_path, **options) as one, proxy(tmp_path, **options) as two:
        for _ in range(6):
            for running in (one, two):
                await running.caller().put(os.urandom(400_000))
        assert bytes_used(one.root) <= 2 * LIMIT
