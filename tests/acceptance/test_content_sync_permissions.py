"""The sync as the user of a pod, who is not root and whose programs close files and folders to themselves."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from midwatch.content.sync.roots import TICK
from midwatch.content.sync.session import SyncReport
from midwatch.files import remove_tree
from midwatch.kube.runner_workspace import SyncCondition

from .content_proxy import Proxy, proxy
from .content_sync import INBOX, Side, side

USER = 10001


async def _whole_round(root: Path) -> None:
    """Import all that is imported late: another user may not read the interpreter's folder."""
    async with proxy(root / "server") as server, side(server, root / "pod") as pod:
        pod.write("workspace/file", "x")
        await pod.sync.push()
        await pod.sync.pull()


@pytest_asyncio.fixture
async def home() -> AsyncIterator[Path]:
    """A folder of this user, who is not root while the test runs."""
    # Not pytest's: each start of pytest closes the folder above those to other users.
    place = Path(tempfile.mkdtemp(prefix="mw-"))
    home = place / "home"
    home.mkdir()
    try:
        if os.geteuid() != 0:
            yield home
            return
        (place / "first").mkdir()
        await _whole_round(place / "first")
        place.chmod(0o755)
        os.chown(home, USER, USER)
        os.setegid(USER)
        os.seteuid(USER)
        try:
            yield home
        finally:
            os.seteuid(0)
            os.setegid(0)
    finally:
        for folder, folders, _ in os.walk(place):
            for name in folders:
                if not os.path.islink(path := os.path.join(folder, name)):
                    os.chmod(path, 0o700)
        shutil.rmtree(place)


@pytest_asyncio.fixture
async def pods(home: Path) -> AsyncIterator[tuple[Side, Side]]:
    async with AsyncExitStack() as stack:
        (home / "server").mkdir()
        server: Proxy = await stack.enter_async_context(proxy(home / "server"))
        one = await stack.enter_async_context(side(server, home / "a"))
        two = await stack.enter_async_context(side(server, home / "b"))
        yield one, two


def modes(root: Path, *paths: str) -> list[int]:
    return [(root / path).lstat().st_mode & 0o777 for path in paths]


def condition(*reports: SyncReport, last: bool = False) -> tuple[str, str]:
    found = SyncCondition()
    for report in reports:
        found.add(report, last=last)
    made = found.condition()
    return made.reason, made.message


CLOSED = ("secret", "vault", "vault/deep/gold", "listed/name", "listed")


def close_some(one: Side) -> None:
    one.write("workspace/open", "seen")
    one.write("workspace/secret", b"hidden" * 200_000, 0o000)
    one.write("workspace/vault/deep/gold", "gold", 0o000)
    one.write("workspace/listed/name", "in")
    (one.work / "vault").chmod(0o000)
    (one.work / "listed").chmod(0o444)


async def test_what_is_closed_is_left_out_with_a_word_and_saved_at_the_end(
    pods: tuple[Side, Side],
) -> None:
    one, two = pods
    close_some(one)
    reports = [await one.sync.push(), await one.sync.push()]
    assert modes(one.work, "secret", "vault", "listed") == [0, 0, 0o444]
    reason, message = condition(*reports)
    assert reason == "SavedPartly" and "3 paths are not saved" in message
    for name in ("secret", "vault", "listed/name"):
        assert f"workspace/{name}' is not synchronised: Permission denied" in message
    await two.sync.pull()
    assert two.read("workspace/open") == b"seen"

    # No program runs any more that could see it open.
    last = await one.sync.push(last=True)
    assert condition(*reports, last, last=True) == ("Saved", "")
    assert modes(one.work, "secret", "vault", "listed") == [0, 0, 0o444]
    # The folders came closed with the first pull, so only the last scan can look into them.
    await two.sync.push(last=True)
    assert modes(two.work, "secret", "vault", "listed") == [0, 0, 0o444]
    again = await two.sync.push(last=True)
    assert (again.files, again.applied, again.unsent) == (0, 0, ())
    for work in (one.work, two.work):
        for name in ("vault", "listed"):
            (work / name).chmod(0o755)
        assert modes(work, "vault/deep/gold", "vault/deep") == [0, 0o755]
        for name in ("secret", "vault/deep/gold"):
            (work / name).chmod(0o600)
        assert (work / "secret").read_bytes() == b"hidden" * 200_000
        assert (work / "vault/deep/gold").read_bytes() == b"gold"
        assert (work / "listed/name").read_bytes() == b"in"


async def test_a_file_that_is_closed_later_is_still_the_same(
    pods: tuple[Side, Side],
) -> None:
    one, two = pods
    one.write("workspace/file", "content")
    await one.sync.push()
    changed = (one.work / "file").stat().st_ctime_ns
    while time.time_ns() < changed + 2 * TICK:  # until its signature tells of a change
        await asyncio.sleep(0.01)
    await one.sync.push()
    (one.work / "file").chmod(0o000)
    report = await one.sync.push()
    assert (report.files, report.unsent) == (1, ())
    await two.sync.pull()
    assert modes(two.work, "file") == [0]
    for pod in (two, one):
        quiet = await pod.sync.push()
        assert (quiet.files, quiet.applied, quiet.unsent) == (0, 0, ())
    # And what is written to it meanwhile is not taken for what was there.
    (one.work / "file").chmod(0o600)
    one.write("workspace/file", "longer content", 0o000)
    assert len((await one.sync.push()).unsent) == 1


async def test_read_only_folders_as_package_caches_make_them(
    pods: tuple[Side, Side],
) -> None:
    one, two = pods
    files = ("mod/a@v1/x.go", "mod/a@v1/sub/y.go", "mod/b@v1/z.go")
    for name in files:
        one.write(f"workspace/{name}", name, 0o444)
    folders = ("mod/a@v1/sub", "mod/a@v1", "mod/b@v1", "mod")
    for name in folders:
        (one.work / name).chmod(0o555)
    await one.sync.push()
    await two.sync.pull()
    assert two.files() == one.files()
    for name in reversed(folders):
        (one.work / name).chmod(0o755)
    (one.work / files[2]).unlink()
    (one.work / "mod/b@v1").rmdir()
    (one.work / files[0]).unlink()
    one.write("workspace/mod/a@v1/sub/new.go", "new", 0o444)
    for name in (*folders[:2], "mod"):
        (one.work / name).chmod(0o555)
    report = await one.sync.push()
    assert report.unsent == ()
    report = await two.sync.pull()
    assert two.files() == one.files() and report.unapplied == ()


async def test_a_repository_that_is_closed_in_part_is_saved_as_a_whole_or_not(
    pods: tuple[Side, Side],
) -> None:
    one, two = pods
    for name in ("HEAD", "refs/heads/main", "objects/ab/cd", "objects/pack/p.pack"):
        one.write(f"workspace/app/.git/{name}", name)
    one.write("workspace/app/code", "code")
    for closed in ("objects", "objects/pack", "objects/ab/cd", "refs"):
        path = one.work / "app/.git" / closed
        before = path.stat().st_mode & 0o777
        for mode in (0o000, 0o444 if path.is_dir() else 0o200):
            path.chmod(mode)
            report = await one.sync.push()
            assert any("'workspace/app/.git'" in said for said in report.unsent)
            assert any("Permission denied" in said for said in report.unsent)
        path.chmod(before)
    one.write("workspace/app/.git/info/x.lock", "a lock nobody may look at")
    (one.work / "app/.git/info").chmod(0o444)
    await one.sync.push()
    (one.work / "app/.git/info").chmod(0o755)
    await two.sync.pull()
    assert two.read("workspace/app/code") == b"code"
    assert not (two.work / "app/.git").exists()
    for closed in ("objects/ab/cd", "objects/ab", "objects/pack", "objects"):
        (one.work / "app/.git" / closed).chmod(0o000)
    (one.work / "app/.git/info/x.lock").unlink()
    assert (await one.sync.push(last=True)).unsent == ()
    assert modes(one.work, "app/.git/objects") == [0]
    report = await two.sync.pull()
    assert report.unapplied == ()
    for pod in (one, two):
        for closed in ("objects", "objects/ab", "objects/pack", "objects/ab/cd"):
            path = pod.work / "app/.git" / closed
            assert path.stat().st_mode & 0o777 == 0
            path.chmod(0o700)
    assert two.files() == one.files()


async def test_a_root_a_mailbox_and_a_staging_folder_that_are_closed_are_opened(
    pods: tuple[Side, Side],
) -> None:
    one, two = pods
    one.write("workspace/file", "one")
    one.write(INBOX, '{"id": 1}\n')
    await one.sync.push()
    await two.sync.pull()
    assert two.read(INBOX) == b'{"id": 1}\n'
    # Somebody else appends to the mailbox on the proxy, as its server does.
    staging = two.work / ".midwatch-sync/left/deep"
    staging.mkdir(parents=True)
    (staging / "x").touch()
    for path in (staging, staging.parent, staging.parent.parent, two.work):
        path.chmod(0o000)
    two.session.chmod(0o500)
    (two.session / "inbox.jsonl").chmod(0o000)
    one.write("workspace/file", "two")
    await one.sync.push()
    await two.sync.push()
    assert two.read("workspace/file") == b"two"
    two.write("workspace/other", "from two")
    await two.sync.push()
    await one.sync.pull()
    assert one.read("workspace/other") == b"from two"


@pytest.mark.needs_root  # only root can give a folder away
async def test_what_may_not_be_changed_here_is_told_and_stops_nothing(
    pods: tuple[Side, Side],
) -> None:
    """A folder of another user, into which the other side has put a file."""
    one, two = pods
    for pod in pods:
        pod.write("workspace/theirs/old", "old")
    one.write("workspace/file", "one")
    await one.sync.push()
    await two.sync.pull()
    os.seteuid(0)
    os.chown(two.work / "theirs", 0, 0)
    (two.work / "theirs").chmod(0o755)
    (two.work / "root-only").write_text("of root")
    (two.work / "root-only").chmod(0o600)
    os.seteuid(USER)
    one.write("workspace/theirs/new", "new")
    (one.work / "theirs/old").unlink()
    one.write("workspace/file", "two")
    await one.sync.push()
    report = await two.sync.push()
    assert two.read("workspace/file") == b"two"
    assert [said.partition(" ")[0] for said in report.unapplied] == [
        "'workspace/theirs/new'",
        "'workspace/theirs/old'",
    ]
    reason, message = condition(report, report, last=True)
    assert "'workspace/root-only' is not synchronised: Permission denied" in message
    assert "2 changes of the other side not made: 'workspace/theirs/new'" in message
    assert reason == "SavedPartly"
    # It is not downloaded again with every push, and nothing of the other side is undone.
    received = two.client.received
    for _ in range(3):
        report = await two.sync.push()
        assert (report.files, len(report.unapplied)) == (0, 2)
    assert two.client.received - received < 3000
    await one.sync.pull()
    assert one.read("workspace/theirs/new") == b"new"
    # Once it may be changed, it is.
    os.seteuid(0)
    os.chown(two.work / "theirs", USER, USER)
    os.seteuid(USER)
    for _ in range(20):
        report = await two.sync.push()
    assert report.unapplied == () and two.read("workspace/theirs/new") == b"new"
    assert not (two.work / "theirs/old").exists()


async def test_a_folder_is_removed_however_closed_it_is(home: Path) -> None:
    """As the runner does with what another session left."""
    for name in ("cache/mod/sub/x.go", "vault/deep/gold"):
        (home / "left" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "left" / name).touch(0o000)
    for name, mode in (("cache/mod/sub", 0o555), ("cache/mod", 0o555)):
        (home / "left" / name).chmod(mode)
    for name in ("vault/deep", "vault"):
        (home / "left" / name).chmod(0o000)
    remove_tree(home / "left")
    assert list(home.iterdir()) == []
