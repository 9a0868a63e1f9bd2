"""Attempts of one session: a runner whose attempt is over changes nothing, even if it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from midwatch.content.errors import Superseded
from midwatch.content.sync.merge import CONFLICTS
from midwatch.content.tree import ATTEMPT, EMPTY, Entry
from midwatch.lifecycle import StopEvent

from ..waiting import PATIENCE
from .content_proxy import Caller, Proxy, file, proxy
from .content_sync import INBOX, Side, side

GIT = "workspace/shop/.git"
OUTBOX = "session/outbox.jsonl"
OWN = frozenset({"session"})


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with proxy(tmp_path) as opened:
        yield opened


def attempt(caller: Caller, number: int | str) -> Caller:
    caller.headers = caller.headers | {ATTEMPT: str(number)}
    return caller


async def refused(answer: httpx2.Response, by: int = 2) -> None:
    assert answer.status_code == 409, answer.text
    assert (answer.json()["code"], answer.json()["attempt"]) == ("superseded", by)


def work(pod: Side, who: str) -> None:
    pod.write("workspace/shop/main.py", f"print({who!r})\n")
    pod.write(f"{GIT}/HEAD", "ref: refs/heads/midwatch/fix\n")
    pod.write(f"{GIT}/refs/heads/midwatch/fix", f"{who}\n")
    with (pod.root / OUTBOX).open("a") as outbox:
        outbox.write(f'{{"who":"{who}"}}\n')


async def test_an_attempt_that_is_over_changes_nothing(
    running: Proxy, tmp_path: Path
) -> None:
    """Its node was cut off from the network while it went on working, and reconnects."""
    pods = (
        side(running, tmp_path / "a1", attempt=1, local_owned=OWN),
        side(running, tmp_path / "a2", attempt=2, local_owned=OWN),
    )
    async with pods[0] as one, pods[1] as two:
        one.session.mkdir(parents=True)
        await one.sync.pull()
        work(one, "first")
        await one.sync.push()
        work(one, "zombie")
        await two.sync.pull()
        work(two, "second")
        await two.sync.push()
        with (two.root / OUTBOX).open("a") as held:
            for last in (False, True):
                with pytest.raises(Superseded):
                    await one.sync.push(last=last)
            report = await two.sync.push()
            assert (report.applied, report.conflicts) == (0, ())
            held.write('{"who":"second, later"}\n')
        await two.sync.push(last=True)
        left = two.files()
        two.forget()
        await two.sync.pull()
        assert two.files() == left
        assert b"zombie" not in two.read(OUTBOX) + two.read(
            f"{GIT}/refs/heads/midwatch/fix"
        )
        assert two.read(OUTBOX).endswith(b'"second, later"}\n')
        _, tree = await running.caller().manifest()
        assert not [path for path in tree if path.startswith(CONFLICTS)]


async def test_a_sync_whose_attempt_is_over_ends(
    running: Proxy, tmp_path: Path
) -> None:
    async with side(running, tmp_path / "a", attempt=1) as one:
        await one.sync.pull()
        keeping = asyncio.create_task(one.sync.run(StopEvent()))
        claim = attempt(running.caller(), 2)
        assert (await claim.post("claim", {})).json() == {"attempt": 2}
        one.write("workspace/late", "x")
        one.sync.nudge()
        await asyncio.wait_for(keeping, PATIENCE)
        assert isinstance(one.sync.last_error, Superseded)
        # It asks no more: what is final needs no second answer.
        asked = len(one.network.asked)
        with pytest.raises(Superseded):
            await one.sync.push(last=True)
        assert len(one.network.asked) == asked


async def test_every_way_to_change_a_folder_is_fenced(tmp_path: Path) -> None:
    """Also by another process on the volume, which has to read it there."""
    async with proxy(tmp_path) as running, proxy(tmp_path) as other:
        first = attempt(running.caller(), 1)
        assert (await first.post("claim", {})).status_code == 200
        await first.put(b"one")
        version = (await first.commit(EMPTY, {"a": file(b"one")})).json()["version"]
        assert (await attempt(other.caller(), 2).post("claim", {})).status_code == 200
        change = {"b": Entry("folder")}
        for answer in (
            await first.post("claim", {}),
            await first.commit(version, change),
            await first.commit(EMPTY, {"a": file(b"one")}),  # its own, repeated
            await first.put(b"two"),
            await first.post("missing", {"hashes": []}),
            await first.http.get(f"{first.at}/manifest", headers=first.headers),
            await first.http.delete(first.at, headers=first.headers),
        ):
            await refused(answer)
        # The claim is no change: who waits for one is not woken, and a person goes on.
        person = running.caller()
        assert (await person.manifest())[0] == version
        version = (await person.commit(version, change)).json()["version"]
        # A change keeps the claim, and raises it as well.
        third = attempt(running.caller(), 3)
        answer = await third.commit(version, {"c": Entry("folder")})
        assert answer.status_code == 200
        await refused(await attempt(other.caller(), 2).put(b"two"), by=3)
        for wrong in ("0", "-1", "1.5", "x", "9" * 10):
            answer = await attempt(running.caller(), wrong).post("claim", {})
            assert answer.status_code == 400
        assert (await person.post("claim", {})).status_code == 428


async def test_what_the_runner_owns_is_never_taken_from_the_proxy(
    running: Proxy, tmp_path: Path
) -> None:
    async with side(running, tmp_path / "a", attempt=1, local_owned=OWN) as one:
        caller = running.caller()
        await caller.write({"session/status.json": b"as it was left"})
        await one.sync.pull()
        assert one.read("session/status.json") == b"as it was left"
        one.write(OUTBOX, "{}\n")
        await one.sync.push()
        for path in (OUTBOX, "session/status.json", "session/new", "workspace/new"):
            await caller.http.post(
                "/content/write",
                json={"path": path, "content": "theirs"},
                headers=caller.headers,
            )
        await caller.post("inbox", {"type": "user_message", "content": "Hello"})
        held = (one.root / OUTBOX).stat().st_ino
        report = await one.sync.push()
        assert (one.root / OUTBOX).stat().st_ino == held
        assert one.read(OUTBOX) == b"{}\n"
        assert one.read("session/status.json") == b"as it was left"
        assert not (one.session / "new").exists()
        assert one.read("workspace/new") == b"theirs"
        assert b"Hello" in one.read(INBOX)
        # Nothing is lost: their versions are kept.
        assert len(report.conflicts) == 3
        for place in report.conflicts:
            answer = await caller.http.get(
                "/content/file", params={"path": place}, headers=caller.headers
            )
            assert answer.text == "theirs"
        # What they removed comes back.
        version, tree = await caller.manifest()
        await caller.commit(version, removed=[OUTBOX])
        await one.sync.push()
        assert one.read(OUTBOX) == b"{}\n"
        assert OUTBOX in (await caller.manifest())[1]
