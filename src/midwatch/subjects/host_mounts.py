"""The mounted file systems of this machine, each asked on its own: one that hangs hides no other."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Signal, keepable
from midwatch.text import component_name, table, ticket_line
from midwatch.units import format_size

T = TypeVar("T")

# ------------------------------------------------------------------ blocking calls


class OffLoop:
    """Runs one blocking call at a time, each in a daemon thread.

    A call to a dead network file system cannot be interrupted. A process waits for the event loop's
    own threads when it exits, but not for a daemon thread. While one hangs, no other is started: a call
    waits a quarter of its timeout for the one before it.
    """

    def __init__(self) -> None:
        self._running: Future[Any] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no call runs."""
        return self._running is None or self._running.done()

    async def run(self, call: Callable[[], T], timeout: float, what: str) -> T:
        """Return the result of `call`, or raise its error. Raises ObservationFailed after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline, patience = loop.time() + timeout, loop.time() + timeout / 4
        while not self.is_idle:
            if loop.time() > patience:
                raise ObservationFailed(f"{what}: an earlier observation still hangs")
            await asyncio.sleep(min(0.01, timeout / 8))
        future: Future[T] = Future()
        self._running = future
        threading.Thread(
            target=_fulfil, args=(future, call), name=what, daemon=True
        ).start()
        try:
            return await asyncio.wait_for(
                asyncio.wrap_future(future), deadline - loop.time()
            )
        except TimeoutError:
            raise ObservationFailed(
                f"{what}: no result within {timeout:.3g} s"
            ) from None


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # raised again where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)


# ------------------------------------------------------------------ which are checked

# Nothing can fill them: the kernel makes up what they show, or their size is that of the machine.
_PSEUDO = frozenset(
    "autofs binder binfmt_misc bpf cgroup cgroup2 configfs cpuset debugfs devfs devpts devtmpfs"
    " efivarfs fdescfs fuse.gvfsd-fuse fuse.lxcfs fuse.portal fusectl hugetlbfs linprocfs linsysfs"
    " mqueue nfsd none nsfs nullfs proc procfs pstore ramfs resctrl rootfs rpc_pipefs securityfs"
    " selinuxfs smackfs sysfs tracefs usbfs".split()
)
# Read-only images are always full.
_SKIPPED = _PSEUDO | {"squashfs", "iso9660", "erofs", "cramfs", "udf"}
_DENIED = (errno.EACCES, errno.EPERM)
_UNREACHABLE = (errno.ENOENT, errno.ENOTDIR)
_FUSE = "/dev/fuse"  # the device of any FUSE that does not name its source
_FSTAB = Path("/etc/fstab")
_MOST_FULL = 200  # mounts that were full and are gone


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount point. `listed` is true where the settings name it; then it may be any folder."""

    path: str
    fstype: str = ""
    device: str = ""
    options: tuple[str, ...] = ()
    listed: bool = False

    @property
    def shown(self) -> str:
        kind = "" if self.listed or not self.fstype else f" ({self.fstype})"
        return ticket_line(self.path, 100) + kind

    def option(self, name: str) -> str | None:
        """Return the value of an option of the mount, "" for one without a value."""
        for option in self.options:
            key, _, value = option.partition("=")
            if key == name:
                return value
        return None


def attributes(path: str, fstype: str) -> Mapping[str, str]:
    """Return the values that the patterns of `ignore` are compared with."""
    return {"mount": path, "fstype": fstype}


def mount_table() -> dict[str, Mount]:
    """Return what is mounted, by mount point; where several are, the last hides the others. Raises OSError."""
    import psutil

    return {
        part.mountpoint: Mount(
            part.mountpoint, part.fstype, part.device, tuple(part.opts.split(","))
        )
        for part in psutil.disk_partitions(all=os.path.exists("/proc/self/mounts"))
    }


def candidates(mounted: Mapping[str, Mount], listed: Sequence[Path]) -> list[Mount]:
    """Return the listed mounts, or by default those that can run full, the shortest name first."""
    if listed:
        return [_listed(str(path), mounted) for path in listed]
    found = [
        mount
        for mount in mounted.values()
        if mount.path == "/" or not (mount.fstype in _SKIPPED or _is_fixed(mount))
    ]
    if "/" not in mounted:
        found.append(Mount("/"))
    return sorted(found, key=lambda mount: (len(mount.path), mount.path))


def _listed(path: str, mounted: Mapping[str, Mount]) -> Mount:
    """Return a listed folder with the kind of the file system that it is on."""
    for folder in (path, *map(str, Path(path).parents)):
        if folder in mounted:
            return replace(mounted[folder], path=path, listed=True)
    return Mount(path, listed=True)


def _is_fixed(mount: Mount) -> bool:
    """Return whether a read-only mount without a block device cannot run full: images by FUSE, layers."""
    on_device = mount.device.startswith("/dev/") and mount.device != _FUSE
    return mount.option("ro") is not None and not on_device


def in_fstab() -> frozenset[str]:
    """Return the mount points that are mounted at the start of the machine."""
    try:
        lines = _FSTAB.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return frozenset()
    found = (line.split() for line in lines if not line.lstrip().startswith("#"))
    return frozenset(
        parts[1].rstrip("/").replace("\\040", " ") or "/"
        for parts in found
        if len(parts) >= 4 and "noauto" not in parts[3].split(",")
    )


# ------------------------------------------------------------------ the probes


@dataclass(frozen=True, slots=True)
class Space:
    """The size of one file system, as `df` counts: blocks kept for root are neither used nor free."""

    mount: Mount
    number: int  # the device's, see stat(2)
    size: os.statvfs_result

    @property
    def used(self) -> int:
        """Bytes."""
        return (self.size.f_blocks - self.size.f_bfree) * self.size.f_frsize

    @property
    def free(self) -> int:
        """Bytes that an ordinary user may fill."""
        return self.size.f_bavail * self.size.f_frsize

    @property
    def used_inodes(self) -> int:
        return self.size.f_files - self.size.f_ffree


@dataclass(slots=True)
class Spaces:
    """What was found out of all mounts.

    `unavailable` and `unsupported` have the reason by path, `private` what belongs to another user, and
    `duplicates` the paths of file systems that are found under another name.
    """

    found: list[Space] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    private: list[str] = field(default_factory=list)
    duplicates: set[str] = field(default_factory=set)
    mounted: set[str] = field(default_factory=set)


class MountProbes:
    """Asks every mount in a thread of its own, and remembers those that hang."""

    def __init__(self, listed: Sequence[Path]) -> None:
        self._listed = listed
        self._table = OffLoop()
        self._probes: dict[str, OffLoop] = {}

    async def mounts(self, timeout: float) -> tuple[dict[str, Mount], list[Mount]]:
        """Return what is mounted and what is to be checked. Raises ObservationFailed."""
        try:
            mounted = await self._table.run(mount_table, timeout, "mounts")
        except (OSError, ValueError) as error:
            raise ObservationFailed(
                f"the mounts cannot be read: {ticket_line(str(error))}"
            ) from None
        return mounted, candidates(mounted, self._listed)

    async def ask(
        self,
        mounts: Iterable[Mount],
        mounted: Mapping[str, Mount],
        timeout: float,
        once_mounted: Iterable[str] = (),
    ) -> Spaces:
        """Return the space of each file system, once.

        Args:
            mounts: Which to ask.
            mounted: What is mounted.
            timeout: Seconds for all of them together.
            once_mounted: Listed paths that were mount points before.
        """
        mounts = list(mounts)
        paths = {mount.path for mount in mounts}
        for path in self._probes.keys() - paths:
            del self._probes[path]
        results = await asyncio.gather(
            *(self._ask(mount, timeout) for mount in mounts), return_exceptions=True
        )
        spaces, expected = Spaces(), in_fstab() | set(once_mounted)
        spaces.mounted = {
            one.path
            for one in mounts
            if one.listed and (one.path in mounted or one.path in expected)
        }
        seen: set[object] = set()
        for mount, result in zip(mounts, results, strict=True):
            if mount.path in spaces.mounted and mount.path not in mounted:
                spaces.unavailable[mount.path] = f"{mount.shown} is not mounted"
            elif isinstance(result, BaseException):
                _failed(spaces, mount, result)
            elif result is not None:
                _add(spaces, result, seen)
        return spaces

    async def _ask(self, mount: Mount, timeout: float) -> Space | None:
        probe = self._probes.setdefault(mount.path, OffLoop())
        return await probe.run(partial(_probe, mount), timeout, mount.shown)


def _probe(mount: Mount) -> Space | None:
    """Return the space of a mount; None for one that is not a file system of its own. May hang."""
    if not mount.listed and mount.path != "/":
        if mount.fstype == "overlay" and _is_here(mount.option("upperdir")):
            return None  # its space is that of the file system below, which is checked itself
    status = os.stat(mount.path)
    size = os.statvfs(mount.path)
    if not mount.listed and mount.path != "/":
        # Containers bind-mount single files: those are not file systems of their own.
        if not stat.S_ISDIR(status.st_mode) or not size.f_blocks:
            return None
    return Space(mount, status.st_dev, size)


def _is_here(path: str | None) -> bool:
    if not path:
        return False
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in _UNREACHABLE
    return True


def _failed(spaces: Spaces, mount: Mount, error: BaseException) -> None:
    if isinstance(error, ObservationFailed):
        spaces.unavailable[mount.path] = error.message
        return
    if not isinstance(error, OSError | ValueError):
        raise error
    why = f"{mount.shown}: {getattr(error, 'strerror', None) or error}"
    if isinstance(error, ValueError):
        spaces.unavailable[mount.path] = why
        return
    if error.errno in _UNREACHABLE and not mount.listed:
        return  # unmounted meanwhile
    if error.errno not in _DENIED:
        spaces.unavailable[mount.path] = why
    elif mount.fstype.startswith("fuse") and not mount.listed:
        spaces.private.append(f"{mount.shown} is private to a user")
    else:
        spaces.unsupported[mount.path] = (
            f"{why}; give Midwatch's user permission, or leave it out with "
            f"ignore: [{{mount: {ticket_line(mount.path, 100)}}}]"
        )


def _add(spaces: Spaces, space: Space, seen: set[object]) -> None:
    mount = space.mount
    if not mount.listed:
        # Subvolumes of one device have numbers of their own.
        names: set[object] = {space.number}
        if mount.device.startswith("/") and mount.device != _FUSE:
            names.add(mount.device)
        if seen & names:
            spaces.duplicates.add(mount.path)
            return
        seen |= names
    elif not space.size.f_blocks:
        spaces.unsupported[mount.path] = (
            f"{mount.shown} reports no size; remove it from `mounts`"
        )
        return
    spaces.found.append(space)


# ------------------------------------------------------------------ what is measured


def disk(space: Space) -> Signal | None:
    path, used, free = space.mount.path, space.used, space.free
    if used < 0 or used + free <= 0:
        return None
    share = used / (used + free)
    return Signal(
        "disk",
        component_name(path),
        f"{ticket_line(path, 100)} is {share:.0%} full, {format_size(free)} left",
        value=share,
        facts={
            "mount": ticket_line(path),
            "fstype": ticket_line(space.mount.fstype),
            "free_bytes": free,
            "used_bytes": used,
        },
    )


def inodes(space: Space) -> Signal | None:
    path, used, free = space.mount.path, space.used_inodes, space.size.f_favail
    if used < 0 or used + free <= 0:
        return None
    share = used / (used + free)
    return Signal(
        "inodes",
        component_name(path),
        f"{ticket_line(path, 100)} has used {share:.0%} of its inodes, {free:,} left",
        value=share,
        facts={
            "mount": ticket_line(path),
            "fstype": ticket_line(space.mount.fstype),
            "free_inodes": free,
        },
    )


MEASURES: dict[str, Callable[[Space], Signal | None]] = {"disk": disk, "inodes": inodes}


class Measured:
    """What one of `MEASURES` finds on the mounts.

    Args:
        invariant: With its limit and what it leaves out.
        mounts: All that could be checked.
        spaces: What was found out of those that are not left out.
        was_full: Path and kind of those that were full when they were last seen.
    """

    def __init__(
        self,
        invariant: Invariant,
        mounts: Sequence[Mount],
        spaces: Spaces,
        was_full: Sequence[Sequence[str]],
    ) -> None:
        left_out = [
            one for one in mounts if invariant.ignores(attributes(one.path, one.fstype))
        ]
        known = {one.path for one in left_out} | spaces.duplicates
        self.ignored = (*(one.shown for one in left_out), *spaces.private)
        self.unavailable = _without(spaces.unavailable, known)
        self.unsupported = _without(spaces.unsupported, known)
        self.signals: list[Signal] = []
        self.full: list[list[str]] = []
        for space in spaces.found:
            signal = MEASURES[invariant.id](space)
            if signal is None or space.mount.path in known:
                continue
            known.add(space.mount.path)
            self.signals.append(signal)
            if (signal.value or 0.0) > (invariant.limit or 0.0):
                self.full.append([keepable(space.mount.path), space.mount.fstype])
        found, hidden = _storable(known), _storable(self.unavailable)
        listed = _storable(one.path for one in mounts if one.listed)
        for path, fstype in was_full:
            removed = listed and path not in listed
            if path in found or removed or invariant.ignores(attributes(path, fstype)):
                continue
            self.full.append([path, fstype])
            if path not in hidden:
                self.signals.append(_gone(invariant.id, path))
        self.full = self.full[:_MOST_FULL]


def _storable(paths: Iterable[str]) -> set[str]:
    """Return paths as a state has them: their bytes may be no text."""
    return set(map(keepable, paths))


def _without(by_path: Mapping[str, str], skipped: set[str]) -> dict[str, str]:
    return {path: why for path, why in by_path.items() if path not in skipped}


def _gone(invariant: str, path: str) -> Signal:
    """Return the state of a mount that was full and cannot be seen: unknown, which keeps its ticket."""
    message = f"{ticket_line(path, 100)} was full when it was last seen"
    return Signal(invariant, component_name(path), message)


def reasons(by_path: Mapping[str, str], most: int = 5) -> str:
    """Return the reasons on one line."""
    left_out = len(by_path) - most
    more = [f"and {left_out} more"] if left_out > 0 else []
    return "; ".join([*list(by_path.values())[:most], *more])


def file_systems(spaces: Spaces) -> str:
    rows = []
    for space in spaces.found:
        size, inodes = space.size, space.used_inodes
        rows.append(
            [
                ticket_line(space.mount.path, 80),
                ticket_line(space.mount.fstype, 20),
                format_size(size.f_blocks * size.f_frsize),
                format_size(space.used),
                format_size(space.free),
                _share(space.used, space.used + space.free),
                f"{size.f_favail}",
                _share(inodes, inodes + size.f_favail),
            ]
        )
    header = ("mount", "kind", "size", "used", "available", "use")
    unseen = {**spaces.unavailable, **spaces.unsupported}
    text = table((*header, "free inodes", "inode use"), rows)
    return "\n".join([text, *unseen.values()])


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
