"""Scanning: unchanged files are not read, an unreadable one is never a removal, a `.git` is whole."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from midwatch.content.sync.merge import FOLDER
from midwatch.content.sync.roots import Captured, Roots, is_racy, read_file
from midwatch.content.sync.scan import Scan, Scanner
from midwatch.content.sync.transfer import LocalChunks
from midwatch.content.tree import CHUNK, Entry, Tree, chunk_hash

from ..waiting import PATIENCE

GIT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
OLD = Entry("file", 0o644, 1, (chunk_hash(b"o"),))
LATER = 10**12
"""Nanoseconds: files that were just written count as quiet."""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def scanner(work: Path, **options: object) -> Scanner:
    return Scanner(Roots({"w": work}), now_ns=_later, **options)  # type: ignore[arg-type]


def _later() -> int:
    return time.time_ns() + LATER


def read_by(scanning: Scanner, base: Tree | None = None) -> tuple[Scan, int]:
    """Return a scan, and how many files it read."""
    before = scanning._unsaved
    found = scanning.scan(base)
    return found, scanning._unsaved - before


def test_a_tree_as_it_is(work: Path, tmp_path: Path) -> None:
    data = b"x" * (CHUNK + 1)
    (work / "large").write_bytes(data)
    (work / "large").chmod(0o640)
    (work / "empty").mkdir(mode=0o700)
    (work / "link").symlink_to(tmp_path)
    (work / "none").touch()
    tree = scanner(work).scan().tree
    assert tree["w/large"] == Entry(
        "file", 0o640, CHUNK + 1, (chunk_hash(data[:CHUNK]), chunk_hash(b"x"))
    )
    assert tree["w/empty"] == Entry("folder", 0o700)
    assert tree["w/link"] == Entry("symlink", 0o777, target=str(tmp_path))
    assert tree["w/none"].chunks == ()
    assert set(tree) == {"w", "w/large", "w/empty", "w/link", "w/none"}


def test_what_is_not_touched_is_not_read_again(work: Path, tmp_path: Path) -> None:
    for name in "abc":
        (work / name).write_text(name)
    cache = tmp_path / "cache.json"
    scanning = scanner(work, cache=cache)
    assert read_by(scanning)[1] == 3
    (work / "a").write_text("A")
    (work / "b").chmod(0o600)
    os.utime(work / "c", ns=(1, (work / "c").stat().st_mtime_ns))  # changes the ctime
    assert read_by(scanning)[1] == 3
    first, read = read_by(scanning)
    assert read == 0
    scanning.save()
    again, read = read_by(scanner(work, cache=cache))
    assert (again.tree, read) == (first.tree, 0)
    cache.write_text("[damaged")
    assert read_by(scanner(work, cache=cache))[1] == 3


def test_a_file_written_twice_within_a_tick(work: Path) -> None:
    """The size is the same and the clock is too coarse: a file written that recently is read again."""
    (work / "f").write_text("1")
    times = (work / "f").stat()
    scanning = Scanner(Roots({"w": work}), now_ns=lambda: times.st_ctime_ns)
    assert read_by(scanning)[1] == 1
    assert read_by(scanning)[1] == 1
    quiet = (1, 10**15 + 1, 10**15 + 1, 1, 1)
    assert is_racy(quiet, 10**15 + 2) and not is_racy(quiet, 10**15 + 10**9)
    in_seconds = (1, 10**15, 10**15, 1, 1)
    assert is_racy(in_seconds, 10**15 + 10**9)


@pytest.mark.integration  # as root: in a process of another user
def test_what_an_ordinary_user_may_not_read_is_left_as_it_was(work: Path) -> None:
    """A folder that may be listed and not entered, one that may not be opened, and a file."""
    for path in ("listed/f", "listed/new", "closed/f", "file", "other"):
        (work / path).parent.mkdir(exist_ok=True)
        (work / path).write_text("new")
    (work / "file").chmod(0o000)
    (work / "listed").chmod(0o444)
    (work / "closed").chmod(0o000)
    old = {"w": FOLDER, "w/listed": Entry("folder", 0o755), "w/listed/f": OLD}
    old |= {"w/closed": Entry("folder", 0o755), "w/closed/f": OLD, "w/file": OLD}

    def check() -> None:
        found = scanner(work).scan(old)
        assert {p: e for p, e in found.tree.items() if e == OLD} == {
            "w/listed/f": OLD,
            "w/closed/f": OLD,
            "w/file": OLD,
        }
        assert found.unsure == {"w/listed/f", "w/listed/new", "w/closed", "w/file"}
        assert len(found.unsent) == 4 and "Permission denied" in found.unsent[0]
        assert "w/listed/new" not in found.tree and found.is_sure("w/other")
        assert found.tree["w/other"].size == 3

    try:
        as_ordinary_user(work, check)
    finally:
        for name in ("listed", "closed"):
            (work / name).chmod(0o755)


def as_ordinary_user(folder: Path, check: Callable[[], None]) -> None:
    """Run `check` as a user who owns `folder` and is not root."""
    if os.geteuid() != 0:
        return check()
    for above in folder.parents:
        if above.stat().st_uid == os.getuid() and len(above.parts) > 2:
            above.chmod(0o755)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 10001, 10001)
    child = os.fork()
    if not child:
        os.setgid(10001)
        os.setuid(10001)
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_neither_sockets_nor_through_symlinks(work: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (work / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(work / "fifo")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(work / "socket"))
        found = scanner(work).scan()
    assert set(found.tree) == {"w", "w/link"}
    assert len(found.notes) == 2


def test_what_cannot_be_read_stays_as_it_was(work: Path) -> None:
    """A folder below the maximum depth stands for all that cannot be read, also as root."""
    deep = "/".join(["d"] * 300)
    (work / deep).mkdir(parents=True)
    (work / "f").write_text("read")
    base = {f"w/{deep}": FOLDER, f"w/{deep}/x": Entry("file", 0o644)}
    for path in list(base):
        while "/" in path:
            path = path.rpartition("/")[0]
            base[path] = FOLDER
    found = scanner(work).scan(base)
    assert set(base) <= set(found.tree)
    assert not found.is_sure(f"w/{deep}/x") and found.is_sure("w/f")


class Busy(Captured):
    """Writes to a file while it is read, once in each try."""

    file: Path
    times = 0

    def offer(self, name: str, data: bytes, *, wanted: bool) -> None:
        if self.times:
            self.times -= 1
            with self.file.open("ab") as opened:
                opened.write(b"more")


@pytest.mark.parametrize(("times", "read"), [(0, True), (2, True), (3, False)])
def test_a_file_that_changes_is_tried_again(work: Path, times: int, read: bool) -> None:
    busy = Busy()
    busy.file, busy.times = work / "f", times
    busy.file.write_text("begun")
    folder = os.open(work, os.O_RDONLY)
    try:
        found = read_file(folder, "f", busy)
    finally:
        os.close(folder)
    assert (found is not None) == read
    if found:
        assert found[1].chunks == (chunk_hash(busy.file.read_bytes()),)


def test_ignored(work: Path) -> None:
    (work / "run").mkdir()
    (work / "run/x").touch()
    (work / "f").touch()
    assert set(scanner(work, ignored=lambda p: p == "w/run").scan().tree) == {
        "w",
        "w/f",
    }


# ------------------------------------------------------------------ git


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=GIT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def repository(folder: Path, commits: int = 3) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--template=", "--initial-branch=main")
    for number in range(commits):
        (folder / f"f{number}").write_text(f"{number}")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", f"--message={number}")
    return folder


@pytest.mark.integration
def test_locks_and_what_is_not_finished_do_not_travel(work: Path) -> None:
    repo = repository(work / "r")
    (repo / ".git/index.lock").touch()
    (repo / ".git/gc.pid").touch()
    (repo / ".git/objects/pack/tmp_pack_x").touch()
    base = {"w/r/.git": FOLDER, "w/r/.git/HEAD": Entry("file", 0o600)}
    held = Scanner(Roots({"w": work})).scan(base)
    assert {p: e for p, e in held.tree.items() if "/.git" in p} == base
    assert not held.is_sure("w/r/.git/HEAD") and "w/r/f1" in held.tree
    last = Scanner(Roots({"w": work})).scan(base, last=True)
    assert last.tree["w/r/.git/HEAD"] != base["w/r/.git/HEAD"]
    assert not [p for p in last.tree if p.endswith((".lock", "gc.pid", "tmp_pack_x"))]


@pytest.mark.integration
def test_a_lock_that_was_left_behind_is_no_obstacle(work: Path) -> None:
    repo = repository(work / "r")
    (repo / ".git/HEAD.lock").touch()
    os.utime(repo / ".git/HEAD.lock", (1, 1))
    assert "w/r/.git/HEAD" in Scanner(Roots({"w": work})).scan().tree


def materialised(
    work: Path, tree: Tree, store: Mapping[str, bytes], to: Path, name: str
) -> None:
    for path in sorted(tree):
        if path.startswith(f"{name}/") or path == name:
            place = to / path
            entry = tree[path]
            if entry.kind == "folder":
                place.mkdir(parents=True, exist_ok=True)
            elif entry.kind == "file":
                place.write_bytes(b"".join(store[c] for c in entry.chunks))
                place.chmod(entry.mode | 0o200)


_WORK = """
import itertools, os, random, subprocess, sys
repo, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
def git(*arguments):
    subprocess.run(["git", *arguments], cwd=repo, check=False, capture_output=True)
print("on", flush=True)
for number in itertools.count():
    with open(f"{repo}/w{number % 7}", "a") as file: file.write(f"{number}\\n" * 20)
    git("add", ".")
    git("commit", "-qm", f"{number}")
    if number % 5 == 2: git("branch", "-f", f"b{number % 3}", "HEAD~1")
    if number % 7 == 3: git("rebase", "-q", "--force-rebase", "HEAD~2")
    if number % 9 == 4: git("gc", "-q", "--prune=now")
    if number % 11 == 5: git("repack", "-adq")
    if number % 13 == 6: git("commit", "-q", "--amend", "-m", "amended")
"""


@contextmanager
def git_at_work(repo: Path, seed: int) -> Iterator[None]:
    """Run the work until it is killed at a random moment, with the commands that it runs."""
    command = [sys.executable, "-c", _WORK, str(repo), str(seed)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=GIT, start_new_session=True
    ) as writer:
        try:
            assert writer.stdout and writer.stdout.readline()
            yield
        finally:
            os.killpg(writer.pid, signal.SIGKILL)


@pytest.mark.integration
def test_every_scan_of_a_repository_at_work_is_a_whole_one(
    work: Path, tmp_path: Path
) -> None:
    """Git commits, rebases and collects garbage; each scanned `.git` can be checked out elsewhere."""
    repo = repository(work / "r")
    store: dict[str, bytes] = {}
    scanning = Scanner(Roots({"w": work}))
    # From here on a scan that git never leaves alone has the `.git` of the one before.
    base = dict(_sent(scanning, {}, store).tree)
    seen: set[str] = set()
    with git_at_work(repo, seed=1):
        deadline = time.monotonic() + PATIENCE
        while len(seen) < 8 and time.monotonic() < deadline:
            base = dict(_sent(scanning, base, store).tree)
            head = "".join(
                ",".join(e.chunks) for p, e in base.items() if "/.git/refs/" in p
            )
            if head not in seen:
                seen.add(head)
                _check(work, base, store, tmp_path / "copy")
                shutil.rmtree(tmp_path / "copy")
    assert len(seen) >= 3
    last = _sent(scanning, base, store, last=True)
    _check(work, last.tree, store, tmp_path / "copy")


AMEND = ["commit", "--quiet", "--allow-empty", "--amend", "--message=x"]
EXPIRE = ["reflog", "expire", "--all", "--expire=now"]
COLLECT = ["gc", "--quiet", "--prune=now"]
REPACK = ["repack", "-a", "-d", "-q"]


@pytest.mark.integration
@pytest.mark.parametrize("at", range(4, 28, 3))
@pytest.mark.parametrize("commands", [[AMEND, EXPIRE, COLLECT], [REPACK]])
def test_git_throws_objects_away_in_the_middle_of_a_scan(
    work: Path, tmp_path: Path, at: int, commands: list[list[str]]
) -> None:
    """At each moment in turn: between refs and objects, and between two objects."""
    repo, store = repository(work / "r"), dict[str, bytes]()
    times = itertools.count(1)

    def now_ns() -> int:
        if next(times) == at:
            for command in commands:
                git(repo, *command)
        return time.time_ns()

    scanning = Scanner(Roots({"w": work}), now_ns=now_ns)
    _check(work, _sent(scanning, {}, store).tree, store, tmp_path / "copy")


@pytest.mark.integration
def test_packs_that_become_one_while_they_are_read(work: Path, tmp_path: Path) -> None:
    """No ref changes, and the listed packs are gone: only another listing shows that."""
    repo, store = repository(work / "r", commits=1), dict[str, bytes]()
    git(repo, "repack", "-d", "-q")
    (repo / "more").write_text("more")
    git(repo, "add", ".")
    git(repo, "commit", "--quiet", "--message=more")
    git(repo, "repack", "-d", "-q")
    packs = repo / ".git/objects/pack"
    assert len(list(packs.glob("*.pack"))) == 2

    def is_pack(path: str) -> bool:
        # Asked for each name that was listed, before it is read.
        if path.endswith((".pack", ".idx")) and len(list(packs.glob("*.pack"))) == 2:
            git(repo, *REPACK)
        return False

    scanning = Scanner(Roots({"w": work}), ignored=is_pack)
    _check(work, _sent(scanning, {}, store).tree, store, tmp_path / "copy")
    assert len(list(packs.glob("*.pack"))) == 1


def _sent(
    scanning: Scanner, base: Tree, store: dict[str, bytes], *, last: bool = False
) -> Scan:
    """Do as a push does: scan, read what is new, leave out files that have changed since."""
    found = scanning.scan(base, last=last)
    wanted = [c for e in found.tree.values() for c in e.chunks if c not in store]
    with scanning.roots.walker() as walker:
        local = LocalChunks(walker, found.tree, found.captured)
        for batch in local.batches(dict.fromkeys(wanted)):
            store.update(batch)
    return found.without(local.changed, base) if local.changed else found


def _check(work: Path, tree: Tree, store: dict[str, bytes], copy: Path) -> None:
    copy.mkdir()
    materialised(work, tree, store, copy, "w/r")
    git(copy / "w/r", "fsck", "--strict", "--full")
    git(copy / "w/r", "status")
    git(copy / "w/r", "log", "--all", "--oneline")


@pytest.mark.integration
def test_submodules_and_worktrees(work: Path, tmp_path: Path) -> None:
    inner = repository(tmp_path / "inner")
    repo = repository(work / "r")
    git(repo, "submodule", "--quiet", "add", str(inner), "sub")
    git(repo, "commit", "--quiet", "--message=sub")
    git(repo, "worktree", "add", "--quiet", "../tree", "HEAD~1")
    git(repo, "branch", "objects/HEAD")
    store: dict[str, bytes] = {}
    found = _sent(scanner(work), {}, store)
    paths = set(found.tree)
    assert {"w/tree/.git", "w/r/sub/.git", "w/r/.git/modules/sub/HEAD"} <= paths
    assert any(p.startswith("w/r/.git/modules/sub/objects/") for p in paths)
    assert "w/r/.git/refs/heads/objects/HEAD" in paths
    _check(work, found.tree, store, tmp_path / "copy")
    git(tmp_path / "copy/w/r/sub", "fsck", "--strict")
