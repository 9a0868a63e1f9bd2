"""Scenarios of the kind `host` in a mount namespace of their own; each asserts what it expects.

`unshare -m python -m tests.acceptance.host_namespace SCENARIO FOLDER`, as root.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midwatch.model import Observation, Ticket
from midwatch.monitor.loop import MonitorLoop
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.subjects.host import HostSubject
from midwatch.subjects.host_mounts import MEASURES
from midwatch.testing.fakes import ManualClock

NOBODY = 65534


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def tmpfs(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=2m", "data", str(path))
    return path


def fill(path: Path) -> None:
    (path / "f").write_bytes(bytes(2_000_000))


def umount(path: Path) -> None:
    run("umount", str(path))


@contextmanager
def hanging(path: Path, fsname: str = "server:/export") -> Iterator[Callable[[], None]]:
    """Mount a FUSE that never answers; yield what makes it a mount whose server is gone."""
    path.mkdir(exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    subprocess.run(
        ["mount", "-i", "-t", "fuse", "-o", options, fsname, str(path)],
        check=True,
        pass_fds=[device],
    )
    open_ = [device]

    def abandon() -> None:
        while open_:
            os.close(open_.pop())

    try:
        yield abandon
    finally:
        abandon()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody while the block runs; what is imported later could not be read then."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextmanager
def sleeping() -> Iterator[None]:
    """Run a process of nobody's."""
    with subprocess.Popen(["sleep", "600"], user=NOBODY, group=NOBODY) as process:
        try:
            yield
        finally:
            process.kill()


class Host:
    """A monitor of this machine, with its tickets."""

    def __init__(self, store: SqlStore, clock: ManualClock, **settings: Any) -> None:
        given = {"name": "box", "timeout": 60, **settings}
        given.setdefault("invariants", {})
        for other in ("load", "memory", "swap"):
            given["invariants"][other] = {"enabled": False}
        self.subject = HostSubject(HostSubject.settings_model.model_validate(given))
        self.store, self.clock = store, clock
        self.loop = MonitorLoop(store, [self.subject], clock=clock)

    async def cycles(self, count: int = 1) -> None:
        for _ in range(count):
            await self.loop.cycle()
            await self.clock.advance(30)

    async def observe(self) -> Observation:
        return await self.subject.observe({})

    async def tickets(self) -> dict[str, Ticket]:
        """Return the unresolved tickets as INVARIANT COMPONENT, without other mounts of the machine."""
        found = await self.store.tickets(TicketFilter(limit=1000))
        return {
            f"{one.key.invariant} {one.key.component}": one
            for one in found
            if not one.resolved
            and (one.key.invariant not in MEASURES or sys.argv[2] in one.key.component)
        }


def mounts_of(observation: Observation, invariant: str = "disk") -> list[str]:
    return [s.component for s in observation.signals if s.invariant == invariant]


UNSEEN = "subject_unobservable disk"


async def full_and_gone(store: SqlStore, clock: ManualClock, folder: Path) -> None:
    """A full tmpfs has a ticket, which stays while it is not mounted."""
    host, data = Host(store, clock), tmpfs(folder / os.fsdecode(b"a b\xff"))
    fill(data)
    await host.cycles()
    kept = [f"disk {folder}/a b\ufffd"]
    assert list(await host.tickets()) == kept
    umount(data)
    again = Host(store, clock)
    await again.cycles(10)
    assert list(await again.tickets()) == kept, "unknown, and no alarm"
    tmpfs(data)
    await again.cycles()
    assert not await again.tickets()


async def listed_and_gone(store: SqlStore, clock: ManualClock, folder: Path) -> None:
    """A listed mount that is not mounted any more is told, though its folder is there."""
    data = tmpfs(folder / "data")
    settings: dict[str, Any] = {"mounts": [data, "/"]}
    fill(data)
    await Host(store, clock, **settings).cycles()
    umount(data)
    host = Host(store, clock, **settings)
    await host.cycles(2)
    assert list(await host.tickets()) == [f"disk {data}"]
    await host.cycles(10)
    found = await host.tickets()
    assert set(found) >= {f"disk {data}", UNSEEN}
    assert f"{data} is not mounted" in found[UNSEEN].message
    assert found[UNSEEN].severity.label == "warning"
    tmpfs(data)
    await host.cycles()
    assert not await host.tickets()
    umount(data)
    await Host(store, clock, mounts=["/"]).cycles(5)
    assert not await host.tickets(), "it is not listed any more"


async def hangs(store: SqlStore, clock: ManualClock, folder: Path) -> None:
    """A mount that hangs, and then is gone, hides no other."""
    data = tmpfs(folder / "data")
    with hanging(folder / "nfs") as abandon:
        host = Host(store, clock, timeout=4)
        fill(data)
        await host.cycles()
        assert list(await host.tickets()) == [f"disk {data}"]
        (data / "f").unlink()
        await host.cycles()
        assert not await host.tickets(), "the others are known"
        await host.cycles(3)
        found = await host.tickets()
        assert f"{folder}/nfs (fuse): an earlier observation" in found[UNSEEN].message
        text = await host.subject.sources([])[0].fetch()
        assert str(data) in text and f"{folder}/nfs (fuse): " in text
        abandon()
        await host.cycles()
        await host.cycles()
        observation = await host.observe()
        assert "endpoint is not connected" in observation.unavailable["disk"]
        assert str(data) in mounts_of(observation)
        umount(folder / "nfs")
        await host.cycles()
        assert not await host.tickets()


async def ignored(store: SqlStore, clock: ManualClock, folder: Path) -> None:
    """What is left out is not asked, opens nothing, and is reported."""
    data = tmpfs(folder / "data")
    fill(data)
    entries = [{"mount": f"{folder}/nf*", "fstype": "fuse*"}, {"mount": str(data)}]
    invariants = {"disk": {"ignore": entries}, "inodes": {"ignore": entries}}
    with hanging(folder / "nfs"):
        host = Host(store, clock, invariants=invariants, timeout=600)
        await host.cycles()  # would take minutes
        assert not await host.tickets()
        found = await host.observe()
        assert set(found.ignored["disk"]) >= {
            f"{data} (tmpfs)",
            f"{folder}/nfs (fuse)",
        }
        assert found.covers("disk") and found.covers("inodes")
        host = Host(store, clock, mounts=[data, "/"], invariants=invariants)
        assert mounts_of(await host.observe()) == ["/"]
    run("umount", "-l", str(folder / "nfs"))


async def once_each(store: SqlStore, clock: ManualClock, folder: Path) -> None:
    """Bind mounts and layers count once, pseudo file systems and single files do not."""
    data = tmpfs(folder / "data")
    for name in ("lower", "upper", "work", "merged"):
        (data / name).mkdir()
    for name in ("bound", "image"):
        (folder / name).mkdir()
    (folder / "hosts").touch()
    (data / "hosts").touch()
    run("mount", "--bind", str(data), str(folder / "bound"))
    run("mount", "--bind", str(data / "hosts"), str(folder / "hosts"))
    layers = f"lowerdir={data}/lower,upperdir={data}/upper,workdir={data}/work"
    run("mount", "-t", "overlay", "-o", layers, "layers", str(data / "merged"))
    run("mount", "-t", "tmpfs", "-o", "ro,size=4k", "image", str(folder / "image"))
    (folder / "gone").mkdir()
    run("mount", "-t", "tmpfs", "top", str(folder / "gone"))
    found = mounts_of(await Host(store, clock).observe())
    own = [path for path in found if path.startswith(str(folder))]
    assert own == [str(data), str(folder / "gone")], found
    pseudo = {"/proc", "/sys", "/dev", "/dev/pts", "/sys/fs/cgroup/unified"}
    assert "/" in found and not pseudo & set(found)
    # As a container sees it: the upper layer is not in its own file system.
    hidden = "lowerdir=/etc,upperdir=upper,workdir=work"
    os.chdir(data)
    (folder / "root").mkdir()
    run("mount", "-t", "overlay", "-o", hidden, "root", str(folder / "root"))
    os.chdir("/")
    assert str(folder / "root") in mounts_of(await Host(store, clock).observe())


async def denied(store: SqlStore, clock: ManualClock, folder: Path) -> None:
    """A mount that the user may not see is said, with what to do."""
    (folder / "closed").mkdir(mode=0o700)
    data = tmpfs(folder / "closed/data")
    with unprivileged():
        host = Host(store, clock)
        found = await host.observe()
        assert str(data) not in mounts_of(found) and "/" in mounts_of(found)
        assert "Permission denied; give Midwatch's user" in found.unsupported["disk"]
        await host.cycles(10)
        assert not await host.tickets(), "it was never seen"
    await host.cycles()
    with unprivileged():
        await host.cycles(10)
        assert UNSEEN in await host.tickets()
    await host.cycles()
    assert not await host.tickets()


async def hidden_processes(store: SqlStore, clock: ManualClock, folder: Path) -> None:
    """Too few processes are unknown where others are hidden; enough are enough."""
    wanted = [{"name": "no-such-process"}]
    with sleeping():
        for option in ("1", "2", "4"):
            run("mount", "-t", "proc", "-o", f"hidepid={option}", "proc", "/proc")
            host = Host(store, clock, name=option, processes=wanted, mounts=["/"])
            enough = Host(store, clock, processes=[{"name": "sleep"}], mounts=["/"])
            with unprivileged():
                found = await host.observe()
                assert "hidepid=" in found.unsupported["process"], option
                assert "run Midwatch as root" in found.unsupported["process"]
                assert not [s for s in found.signals if s.invariant == "process"]
                await host.cycles(5)
                assert not await host.tickets(), "neither critical nor clear"
                assert (await enough.observe()).covers("process"), "enough are seen"
            if option != "4":  # that may hide some from root as well
                await seen_again(host, store, clock, option)
            umount(Path("/proc"))


async def seen_again(
    host: Host, store: SqlStore, clock: ManualClock, name: str
) -> None:
    """What root sees is told; nobody, who sees it no more, keeps the ticket."""
    lost = {"process no-such-process", "subject_unobservable process"}
    await host.cycles()
    assert list(await host.tickets()) == ["process no-such-process"]
    with unprivileged():
        await host.cycles(5)
        found = await host.tickets()
        assert set(found) == lost, found
    running = Host(store, clock, name=name, processes=[{"name": "sleep"}], mounts=["/"])
    await running.cycles()
    assert not await host.tickets()


SCENARIOS: dict[
    str, Callable[[SqlStore, ManualClock, Path], Coroutine[Any, Any, None]]
] = {
    one.__name__: one
    for one in (
        full_and_gone,
        listed_and_gone,
        hangs,
        ignored,
        once_each,
        denied,
        hidden_processes,
    )
}


async def main(scenario: str, folder: str) -> None:
    import midwatch.agent.first_aid  # noqa: F401  (nobody could not read it later)

    clock = ManualClock()
    store = await open_store("sqlite://", clock=clock.database)
    await Host(store, clock).observe()
    try:
        await SCENARIOS[scenario](store, clock, Path(folder))
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
