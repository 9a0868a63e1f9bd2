"""A workspace and its copy: the real client and the real proxy, with everything that goes wrong between them."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from midwatch.content.errors import (
    ContentDamaged,
    ContentRefused,
    ContentUnavailable,
    PathRefused,
    Superseded,
    TokenRefused,
)
from midwatch.content.server.http import STATUS
from midwatch.content.sync.client import ContentClient, TimeLimits, map_status_error
from midwatch.content.sync.merge import CONFLICTS
from midwatch.content.tree import EMPTY
from midwatch.errors import MidwatchError
from midwatch.lifecycle import StopEvent

from ..waiting import PATIENCE
from .cli import comes_true
from .content_proxy import FOLDER, OTHER, Proxy, proxy, token
from .content_sync import (
    INBOX,
    Dead,
    FastClock,
    Side,
    contents,
    name_of,
    side,
    snapshot,
)

_until = partial(comes_true, timeout=PATIENCE)

# One server for all, and a folder for each: a server takes its time to end.
pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = itertools.count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    async with proxy(tmp_path_factory.mktemp("proxy")) as opened:
        yield opened


@pytest.fixture
def running(server: Proxy) -> Proxy:
    return replace(server, folder=f"team/t{next(_numbers)}.0123abcd")


@pytest_asyncio.fixture(loop_scope="module")
async def pods(running: Proxy, tmp_path: Path) -> AsyncIterator[tuple[Side, Side]]:
    async with (
        side(running, tmp_path / "a") as one,
        side(running, tmp_path / "b") as two,
    ):
        yield one, two


async def test_everything_arrives_as_it_was(pods: tuple[Side, Side]) -> None:
    one, two = pods
    one.write("workspace/run.sh", "#!/bin/sh\r\n", 0o755)
    closed = 0o000 if os.geteuid() == 0 else 0o400  # what its owner may read, too
    one.write("workspace/secret", b"\0\xff" * 700_000, closed)
    one.write("workspace/empty file", b"")
    (one.work / "empty/below").mkdir(parents=True)
    (one.work / "link").symlink_to("../../outside")
    one.write("workspace/sealed/file", "inside", 0o444)
    (one.work / "sealed").chmod(0o555)
    Path(str(one.work).encode().decode() + "/" + "n" * 255).write_text("long")
    odd = one.work / b"caf\xe9\n".decode("utf-8", "surrogateescape")
    odd.write_text("not UTF-8")
    report = await one.sync.push()
    assert report.files == len(one.files()) + 2  # and the two roots
    await two.sync.pull()
    assert two.files() == one.files()
    again = await two.sync.push()
    assert (again.files, again.applied) == (0, 0)


async def test_a_change_is_sent_in_two_requests(pods: tuple[Side, Side]) -> None:
    one, two = pods
    for number in range(50):
        one.write(f"workspace/{number}", f"{number}\n" * 1000)
    await one.sync.push()
    await two.sync.pull()
    one.write("workspace/7", "new")
    (one.work / "8").rename(one.work / "moved")
    one.network.asked.clear()
    report = await one.sync.push()
    assert one.network.asked == ["PUT chunks", "POST commit"]
    assert report.bytes < 100
    received = two.client.received
    await two.sync.push()
    assert two.files() == one.files()
    assert two.client.received - received == len("new")  # what was moved is here
    one.network.asked.clear()
    await one.sync.push()
    assert one.network.asked == ["GET manifest"]


async def test_a_change_is_sent_without_the_rest_of_the_tree(
    running: Proxy, pods: tuple[Side, Side]
) -> None:
    one, two = pods
    for name in ("kept", "changed", "gone", "folder/gone"):
        one.write(f"workspace/{name}", name)
    await one.sync.push()
    await two.sync.pull()
    one.write("workspace/changed", "again")
    (one.work / "gone").unlink()
    await one.sync.push()
    shutil.rmtree(one.work / "folder")
    one.write("workspace/folder", "a file")
    await one.sync.push()
    await two.sync.pull()
    assert two.files() == one.files()
    whole, difference = {"version", "tree"}, {"version", "since", "put", "removed"}
    assert two.network.told == [whole, difference]
    # What the difference leads to is looked at, and it is asked again where that is not what was said.
    one.write("workspace/kept", "no more")
    await one.sync.push()
    two.network.faults.append("wrong difference")
    await two.sync.pull()
    assert two.files() == one.files()
    assert two.network.told[2:] == [difference, whole]


async def test_what_takes_a_place_is_on_the_disk_before(
    pods: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files before their folder, and both before the base has them."""
    one, two = pods
    one.write("workspace/a/one", "1")
    one.write("workspace/a/two", "2")
    await one.sync.push()
    synced: list[tuple[str, int]] = []
    really = os.fsync

    def fsync(file: int) -> None:
        synced.append((two.steps[-1], os.fstat(file).st_ino))
        really(file)

    monkeypatch.setattr(os, "fsync", fsync)
    await two.sync.pull()

    def when(path: str) -> list[str]:
        inode = (two.root / path).stat().st_ino
        return [step for step, number in synced if number == inode]

    assert when("workspace/a/one") == when("workspace/a/two") == ["sync files"]
    assert when("workspace/a") == when("workspace") == ["sync folders"]
    assert when("state/base.jsonl") == ["base"]
    order = ["sync files", "plan", "apply", "sync folders", "base"]
    assert [step for step in two.steps if step in order] == order


async def test_both_changed_the_same_file(
    running: Proxy, pods: tuple[Side, Side]
) -> None:
    one, two = pods
    one.write("workspace/f", "old")
    await one.sync.push()
    await two.sync.pull()
    one.write("workspace/f", "one")
    two.write("workspace/f", "two")
    await one.sync.push()
    report = await two.sync.push()
    await one.sync.push()
    assert one.read("workspace/f") == two.read("workspace/f") == b"two"
    (place,) = report.conflicts
    assert place.startswith(CONFLICTS) and place.endswith("/workspace/f")
    assert (await contents(running))[name_of(b"one")] == {place}


async def test_a_local_folder_that_is_not_empty_is_merged_at_the_first_pull(
    pods: tuple[Side, Side],
) -> None:
    one, two = pods
    one.write("workspace/theirs", "1")
    one.write("workspace/both", "theirs")
    await one.sync.push()
    two.write("workspace/ours", "2")
    two.write("workspace/both", "ours")
    await two.sync.pull()
    assert two.read("workspace/both") == b"ours"
    await two.sync.push()
    await one.sync.push()
    assert one.files() == two.files()
    assert set(one.files()) == {f"workspace/{n}" for n in ("theirs", "ours", "both")}


async def test_a_failed_read_never_counts_as_empty(pods: tuple[Side, Side]) -> None:
    one, two = pods
    one.write("workspace/f", "kept")
    await one.sync.push()
    two.network.faults = ["500"] * 3
    with pytest.raises(ContentUnavailable):
        await two.sync.pull()
    assert two.sync.last_error is not None and two.sync.last_success is None
    two.network.faults = ["cut answer"] * 3
    with pytest.raises(ContentUnavailable):
        await two.sync.push()
    await two.sync.push()
    assert two.files() == one.files()
    assert two.sync.last_error is None and two.sync.last_success is not None


async def test_a_wiped_volume_does_not_wipe_the_pod(
    running: Proxy, pods: tuple[Side, Side]
) -> None:
    one, _ = pods
    one.write("workspace/f", "kept")
    await one.sync.push()
    shutil.rmtree(running.root / "folders" / running.folder)
    await one.sync.push()
    assert one.read("workspace/f") == b"kept"
    assert name_of(b"kept") in await contents(running)


async def test_an_answer_that_was_lost(pods: tuple[Side, Side]) -> None:
    one, two = pods
    await one.sync.push()
    one.write("workspace/f", "1")
    one.network.faults = ["", "lost answer"]  # of the chunks, of the commit
    report = await one.sync.push()
    assert report.version and report.files == 1
    one.write("workspace/f", "2")
    one.network.faults = ["", "lost answer", "refused", "refused"]
    with pytest.raises(ContentUnavailable):
        await one.sync.push()
    report = await one.sync.push()
    assert not report.conflicts
    await two.sync.pull()
    assert two.files() == one.files()


async def test_an_upload_that_breaks_goes_on_where_it_was(
    pods: tuple[Side, Side],
) -> None:
    one, two = pods
    await one.sync.push()
    size = 12 << 20
    one.write("workspace/large", random.Random(1).randbytes(size))
    one.network.faults = ["", "cut upload", "", "cut upload"]
    await one.sync.push()
    assert one.client.sent < 1.5 * size
    two.network.faults = ["", "cut answer", "cut answer"]
    await two.sync.pull()
    assert two.files() == one.files()


async def test_killed_at_any_step(pods: tuple[Side, Side]) -> None:
    """At any step: nothing is lost, and what was removed stays removed."""
    one, two = pods
    at = 1
    while True:
        one.write("workspace/changed", f"{at}")
        one.write("workspace/removed by two", f"{at}")
        one.write("workspace/removed by one", f"{at}")
        one.write("workspace/was/folder", f"{at}")
        await one.sync.push()
        await two.sync.push()
        (one.work / "removed by one").unlink()
        one.write(f"workspace/of one {at}", "1")
        (two.work / "removed by two").unlink()
        shutil.rmtree(two.work / "was")
        two.write("workspace/was", "a file")
        two.write(f"workspace/of two {at}", "2")
        (two.work / f"folder {at}").mkdir(mode=0o555)
        await two.sync.push()
        one.steps.clear()
        one.dies_at = at
        try:
            await one.sync.push()
            died = False
        except Dead:
            died = True
            one.start()
        one.dies_at = None
        assert not (await one.sync.push()).conflicts
        await two.sync.push()
        assert one.files() == two.files()
        names = {path.partition("/")[2] for path in one.files()}
        assert {f"of one {at}", f"of two {at}", f"folder {at}", "was"} <= names
        assert not {"removed by one", "removed by two", "was/folder"} & names
        (two.work / "was").unlink()
        await two.sync.push()
        await one.sync.push()
        if not died:
            break
        at += 1
    assert at > 10


async def test_changed_while_it_is_replaced(pods: tuple[Side, Side]) -> None:
    """A file is written between its scan and the rename over it: both contents are kept."""
    one, two = pods
    one.write("workspace/f", "old")
    one.write("workspace/g", "old")
    await one.sync.push()
    await two.sync.pull()
    two.write("workspace/f", "theirs")
    (two.work / "g").unlink()
    await two.sync.push()

    def write(step: str) -> None:
        if step == "remove":
            one.write("workspace/f", "ours, late")
            one.write("workspace/g", "ours, late")

    one.meanwhile = write
    await one.sync.push()
    one.meanwhile = None
    assert one.read("workspace/f") == one.read("workspace/g") == b"ours, late"
    assert (await one.sync.push()).conflicts
    await two.sync.push()
    assert two.files() == one.files()


async def test_a_folder_that_becomes_a_symlink_is_not_written_through(
    pods: tuple[Side, Side], tmp_path: Path
) -> None:
    one, two = pods
    one.write("workspace/d/f", "old")
    await one.sync.push()
    await two.sync.pull()
    two.write("workspace/d/f", "new")
    two.write("workspace/d/g", "new")
    await two.sync.push()
    outside = tmp_path / "outside"
    shutil.copytree(one.work / "d", outside)

    def swap(step: str) -> None:
        if step == "place" and not (one.work / "d").is_symlink():
            shutil.rmtree(one.work / "d")
            (one.work / "d").symlink_to(outside)

    before = snapshot(outside)
    one.meanwhile = swap
    await one.sync.push()
    one.meanwhile = None
    await one.sync.push()
    assert snapshot(outside) == before
    assert (one.work / "d").is_symlink()


async def test_the_inbox_is_only_appended_to(
    running: Proxy, pods: tuple[Side, Side]
) -> None:
    one, _ = pods
    await one.sync.push()

    async def post(text: str) -> None:
        message = {"type": "user_message", "content": text, "id": text}
        await one.client.append_inbox(message)

    await post("first")
    await one.sync.push()
    begun = one.read(INBOX)
    inode = (one.root / INBOX).stat().st_ino
    assert begun.count(b"\n") == 1
    await post("second")
    one.dies_at = "lines"
    with pytest.raises(Dead):
        await one.sync.push()
    one.start()
    await one.sync.push()
    await one.sync.push()
    assert one.read(INBOX).startswith(begun) and one.read(INBOX).count(b"\n") == 2
    # Half a line counts only when it is whole; what is written here is not sent.
    await running.caller().write({INBOX: one.read(INBOX) + b'{"half":'})
    await one.sync.push()
    assert one.read(INBOX).count(b"\n") == 2 and one.read(INBOX).endswith(b"\n")
    with (one.root / INBOX).open("ab") as file:
        file.write(b"ours\n")
    await one.sync.push()
    assert name_of(one.read(INBOX)) not in await contents(running)
    await one.client.delete()
    assert (one.root / INBOX).stat().st_ino == inode


async def test_begin_with_what_another_session_left(
    running: Proxy, pods: tuple[Side, Side], tmp_path: Path
) -> None:
    one, _ = pods
    one.write("workspace/f", "work")
    one.write(INBOX, "old\n")
    await one.sync.push()
    before = await contents(running)
    async with side(
        running, tmp_path / "c", folder=OTHER, read=[running.folder]
    ) as resumed:
        await resumed.sync.pull_from(running.folder)
        assert resumed.files() == one.files()
        resumed.write("workspace/f", "more work")
        await resumed.sync.push()
        assert name_of(b"more work") in await contents(running, OTHER)
        assert await contents(running) == before


async def test_ignored_paths_and_what_lies_beside_the_roots_stay(
    running: Proxy, tmp_path: Path
) -> None:
    def ignored(path: str) -> bool:
        return path in ("workspace/run", "session/lock")

    caller = running.caller()
    given = {"workspace/run/x": b"1", "beside/y": b"2", "session/lock": b"3"}
    await caller.write(given)
    async with side(running, tmp_path / "a", ignored=ignored) as one:
        one.write("workspace/run/socket", "here")
        await one.sync.pull()
        await one.sync.push()
        assert set(snapshot(one.work)) == {"workspace/run", "workspace/run/socket"}
        _, tree = await caller.manifest()
        assert set(given) <= set(tree)


async def test_it_runs_until_the_stop(pods: tuple[Side, Side]) -> None:
    one, two = pods
    stop = StopEvent()
    await two.sync.push()
    keeping = asyncio.create_task(one.sync.run(stop))
    await _until(lambda: one.sync.last_success is not None)
    two.write("workspace/f", "from two")
    await two.sync.push()
    await _until(lambda: (one.work / "f").exists())
    one.network.faults = ["500"] * 10_000
    one.write("workspace/g", "from one")
    await _until(lambda: one.sync.last_error is not None)
    one.network.faults.clear()
    await _until(lambda: one.sync.last_error is None)
    stop.set()
    await asyncio.wait_for(keeping, PATIENCE)
    await one.sync.push()
    await two.sync.push()
    assert one.files() == two.files()


async def test_a_commit_whose_answer_is_lost_is_no_conflict(
    pods: tuple[Side, Side],
) -> None:
    """The proxy has this side's commit, and the files changed since: there is no conflict."""
    one, two = pods
    for path in ("workspace/a", "workspace/gone", "workspace/kept"):
        one.write(path, "before")
    await one.sync.push()
    await two.sync.pull()
    one.write("workspace/a", "sent")
    (one.work / "gone").unlink()
    one.network.faults = ["", "lost answer", "refused", "refused"]
    with pytest.raises(ContentUnavailable):
        await one.sync.push()
    await two.sync.push()
    assert two.read("workspace/a") == b"sent"
    one.write("workspace/a", "sent, and more")
    one.write("workspace/gone", "here again")
    two.write("workspace/kept", "theirs")
    await two.sync.push()
    report = await one.sync.push()
    assert report.conflicts == ()
    await two.sync.push()
    assert one.files() == two.files()
    assert one.read("workspace/kept") == b"theirs"
    assert one.read("workspace/gone") == b"here again"
    assert two.read("workspace/a") == b"sent, and more"


async def test_a_push_that_is_given_up_after_its_commit_is_no_conflict(
    pods: tuple[Side, Side],
) -> None:
    """As at the end of a pod: the proxy has this side's commit, though the base does not have it yet."""
    one, two = pods
    one.write("workspace/a", "before")
    await one.sync.push()
    one.write("workspace/a", "sent")
    round_ = one.sync._rounds
    apply_remote = round_._apply_remote

    async def given_up(*_: object) -> int:
        raise asyncio.CancelledError

    round_._apply_remote = given_up  # type: ignore[method-assign,assignment]
    with pytest.raises(asyncio.CancelledError):
        await one.sync.push()
    round_._apply_remote = apply_remote  # type: ignore[method-assign]
    one.write("workspace/a", "sent, and more")
    report = await one.sync.push(last=True)
    assert report.conflicts == ()
    await two.sync.pull()
    assert two.read("workspace/a") == b"sent, and more"


async def test_an_invalid_token_is_reported(running: Proxy, tmp_path: Path) -> None:
    async with side(running, tmp_path / "a", interval=60.0) as one:
        one.client._http.headers["authorization"] = "Bearer nothing"
        stop = StopEvent()
        keeping = asyncio.create_task(one.sync.run(stop))
        await _until(lambda: isinstance(one.sync.last_error, TokenRefused))
        stop.set()
        await asyncio.wait_for(keeping, PATIENCE)


# ------------------------------------------------------------------ the boundary


HTTP_ERRORS = [
    kind
    for kind in vars(httpx2).values()
    if isinstance(kind, type)
    and issubclass(kind, httpx2.HTTPError | httpx2.StreamError)
]


@pytest.mark.parametrize("kind", HTTP_ERRORS)
async def test_every_error_of_the_http_client_is_translated(
    kind: type[Exception],
) -> None:
    def fail(request: httpx2.Request) -> httpx2.Response:
        error = kind.__new__(kind)
        error.args = ("a fault",)
        raise error

    async with _client("http://proxy", transport=httpx2.MockTransport(fail)) as client:
        with pytest.raises(ContentUnavailable):
            await client.manifest()
        assert client.requests == 3
        with pytest.raises(ContentUnavailable):
            await client.append_inbox({"type": "user_message"})
        assert client.requests == 4  # it might have arrived


@pytest.mark.parametrize(("kind", "status"), STATUS)
async def test_every_error_of_the_proxy_comes_back(
    kind: type[MidwatchError], status: int
) -> None:
    body = b'{"code":"superseded"}' if kind is Superseded else b"<html>"
    error = map_status_error(httpx2.Response(status), body, "/chunks")
    wanted = {PathRefused: ContentRefused, ContentDamaged: ContentUnavailable}
    assert type(error) is wanted.get(kind, kind)


class _Drip(httpx2.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)


async def test_a_proxy_that_drips_or_says_nothing() -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            await asyncio.Event().wait()
        return httpx2.Response(200, stream=_Drip())

    async with _client(
        "http://proxy",
        transport=httpx2.MockTransport(answer),
        limits=TimeLimits(request=0.1),
    ) as client:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ContentUnavailable, match="too long"):
                await client.manifest()
            with pytest.raises(ContentUnavailable, match="too long"):
                await client.append_inbox({"type": "user_message"})


def _client(url: str, **options: Any) -> ContentClient:
    return ContentClient(url, token(), FOLDER, clock=FastClock(), **options)


# ------------------------------------------------------------------ processes that die


_POD = """
import asyncio, sys
from pathlib import Path
from midwatch.content.sync.client import ContentClient
from midwatch.content.sync.session import WorkspaceSync
from midwatch.lifecycle import StopEvent
url, token, folder, root = sys.argv[1:3] + [sys.argv[3], Path(sys.argv[4])]
async def main():
    async with ContentClient(url, token, folder) as client:
        roots = {"workspace": root / "workspace", "session": root / "session"}
        await WorkspaceSync(client, roots, root / "state", interval=0.01).run(StopEvent())
asyncio.run(main())
"""


async def test_kill_9_at_random_moments(
    running: Proxy, pods: tuple[Side, Side]
) -> None:
    one, two = pods
    story = Story(9)
    folder = running.folder
    arguments = [running.url, token(folder), folder, str(one.root)]
    for _ in range(3):
        pod = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _POD, *arguments
        )
        before = await running.caller().manifest()
        story.edit(one)
        async with asyncio.timeout(PATIENCE):
            while (await running.caller().manifest())[0] == before[0]:
                one.write("workspace/beat", story.content())
                story.overwritten.add(one.read("workspace/beat"))
                await asyncio.sleep(0.01)
        for _ in range(story.chance.randint(1, 12)):
            story.edit(story.chance.choice(pods))
            await two.sync.push()
        await asyncio.sleep(story.chance.random() * 0.05)
        pod.kill()
        await pod.wait()
    for who in pods * 2:
        await who.sync.push()
    assert one.files() == two.files()
    kept = await contents(running)
    assert {name_of(d) for d in story.written - story.unwanted()} <= kept.keys()


# ------------------------------------------------------------------ anything at all


SEEDS = range(10)


class Story:
    """Random edits on a side, which a pod may edit too, and what was deleted on purpose."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.written: set[bytes] = set()
        self.overwritten: set[bytes] = set()
        self._removed: list[Path] = []
        self._number = 0

    def unwanted(self) -> set[bytes]:
        """Return the contents that need not be kept, once no pod writes any more."""
        return self.overwritten.union(*map(contents_of, self._removed))

    def content(self) -> bytes:
        self._number += 1
        data = b"%d " % self._number * self.chance.choice([1, 40, 5000])
        self.written.add(data)
        return data

    def path(self, where: Side) -> Path:
        parts = self.chance.choices(["a", "b", "c"], k=self.chance.randint(1, 3))
        return where.work.joinpath(*parts)

    def edit(self, where: Side) -> None:
        path = self.path(where)
        if any(above.is_symlink() or above.is_file() for above in path.parents):
            return
        action = self.chance.choice(
            ["write", "write", "write", "remove", "chmod", "link", "folder", "move"]
        )
        # The pod may be quicker, with something else at this path or above it.
        with suppress(FileExistsError, FileNotFoundError, NotADirectoryError):
            getattr(self, f"_{action}")(where, path)

    def _write(self, where: Side, path: Path) -> None:
        self._remove(where, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(self.content())

    def _remove(self, where: Side, path: Path) -> None:
        # In one step, with what the pod puts there until then.
        removed = where.root / "removed" / f"{len(self._removed)}"
        removed.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            path.rename(removed)
            self._removed.append(removed)

    def _chmod(self, where: Side, path: Path) -> None:
        if path.exists() and not path.is_symlink():
            mode = self.chance.choice([0o600, 0o755, 0o500])
            # Who is not root keeps out of a folder for good by closing it.
            needed = 0o700 if path.is_dir() and os.geteuid() != 0 else 0
            path.chmod(mode | needed)

    def _link(self, where: Side, path: Path) -> None:
        self._remove(where, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(self.chance.choice(["a", "/etc/passwd", "../.."]))

    def _folder(self, where: Side, path: Path) -> None:
        if not path.is_symlink() and not path.is_file():
            path.mkdir(parents=True, exist_ok=True)

    def _move(self, where: Side, path: Path) -> None:
        to = self.path(where)
        if path.is_file() and not path.is_symlink() and to.parent.is_dir():
            if not to.is_dir() and to.parent.resolve() == to.parent and to != path:
                self._remove(where, to)
                path.rename(to)


def contents_of(path: Path) -> set[bytes]:
    """Return the contents of a file, or of all files in a folder."""
    if path.is_symlink():
        return set()
    return {
        p.read_bytes()
        for p in (path, *path.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens_both_sides_are_equal_in_the_end(
    running: Proxy, pods: tuple[Side, Side], seed: int
) -> None:
    story = Story(seed)
    chance, sent = story.chance, 0
    for _ in range(14):
        for _ in range(chance.randint(1, 6)):
            story.edit(chance.choice(pods))
        who = chance.choice(pods)
        who.network.chance, who.network.trouble = chance, chance.choice([0, 0.3])
        who.steps.clear()
        who.dies_at = chance.choice([None, None, chance.randint(1, 12)])
        late = chance.choice([None, None, "apply", "commit", "upload", "place"])
        who.meanwhile = lambda step: story.edit(who) if step == late else None
        if chance.random() < 0.2:
            sent += 1
            message = {"type": "user_message", "content": f"{sent}", "id": f"{sent}"}
            await running.caller().post("inbox", message)
            await running.caller().write({f"workspace/plain{sent}": story.content()})
        try:
            await who.sync.push()
        except Dead:
            who.start()
        except MidwatchError as error:
            assert who.network.trouble, error
    for who in pods:
        who.network.trouble, who.dies_at, who.meanwhile = 0, None, None
    for who in pods * 2:
        await who.sync.push()
    one, two = pods
    assert one.files() == two.files()
    report = await two.sync.push()
    assert (report.files, report.applied) == (0, 0) and report.version != EMPTY
    kept = await contents(running)
    for data in story.written - story.unwanted():
        assert name_of(data) in kept, data[:20]
    assert not sent or one.read(INBOX).count(b"\n") == sent
    held = contents_of(one.work)
    assert {name_of(data) for data in held} <= kept.keys()
