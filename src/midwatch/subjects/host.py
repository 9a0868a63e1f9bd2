"""The subject kind `host`: space, memory, load and processes of the machine that Midwatch runs on."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import Field, model_validator

from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Json, Observation, Severity, Signal, Ticket, Unit
from midwatch.settings import Group, SubjectSettings
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.http import Regex
from midwatch.text import component_name, table, ticket_line
from midwatch.units import format_duration, format_size

if TYPE_CHECKING:
    import psutil


# ------------------------------------------------------------------ settings and invariants


class ProcessSettings(Group):
    """A process that must run."""

    name: str | None = Field(None, min_length=1, description="Its name, exactly.")
    pattern: Regex | None = Field(
        None,
        min_length=1,
        description="A regular expression found in its command line.",
    )
    min: int = Field(1, ge=1, description="How many must run at least.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.name is None) == (self.pattern is None):
            raise ValueError("give either name or pattern")
        return self

    @property
    def label(self) -> str:
        return self.name if self.name is not None else f"/{self.pattern}/"


class HostSettings(SubjectSettings):
    """The machine that Midwatch runs on."""

    kind: str = "host"
    mounts: list[Path] = Field(
        default_factory=list,
        description="Mount points to check; by default all real file systems.",
    )
    processes: list[ProcessSettings] = Field(default_factory=list)


INVARIANTS = (
    Invariant(
        "disk",
        "File systems have space left",
        "The used share of the space that an ordinary user may fill, by mount point.",
        unit=Unit.RATIO,
        limit=0.9,
    ),
    Invariant(
        "inodes",
        "File systems have inodes left",
        "The used share of the inodes, by mount point. File systems without a fixed number "
        "of inodes are not checked.",
        unit=Unit.RATIO,
        limit=0.9,
    ),
    Invariant(
        "memory",
        "Memory is available",
        "The share of memory that is available to programs without swapping.",
        unit=Unit.RATIO,
        limit=0.05,
        above=False,
        hold_for=60.0,
    ),
    Invariant(
        "swap",
        "Swap is not full",
        "The used share of the swap space; it holds on a machine without swap.",
        unit=Unit.RATIO,
        limit=0.9,
        hold_for=60.0,
    ),
    Invariant(
        "load",
        "The load fits the processors",
        "Processes that run or wait for a disk, averaged over five minutes, per processor.",
        unit=Unit.COUNT,
        limit=4.0,
    ),
    Invariant(
        "process",
        "Required processes run",
        "At least `min` processes of each entry of `processes` run; zombies do not count.",
        severity=Severity.CRITICAL,
    ),
)


# ------------------------------------------------------------------ blocking calls

T = TypeVar("T")


class OffLoop:
    """Runs one blocking call at a time, each in a daemon thread.

    A call to a dead network file system cannot be interrupted. A process waits for the event loop's
    own threads when it exits, but not for a daemon thread. While one hangs, no other is started.
    """

    def __init__(self) -> None:
        self._running: Future[Any] | None = None

    async def run(self, call: Callable[[], T], timeout: float, what: str) -> T:
        """Return the result of `call`, or raise its error. Raises ObservationFailed after `timeout` seconds."""
        if self._running is not None and not self._running.done():
            raise ObservationFailed(f"{what}: an earlier observation still hangs")
        future: Future[T] = Future()
        self._running = future
        threading.Thread(
            target=_fulfil, args=(future, call), name=what, daemon=True
        ).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
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


# ------------------------------------------------------------------ the subject

_SHARE_OF_TIMEOUT = 0.8  # the rest is for the report that it took too long


class HostSubject:
    """This machine, observed through psutil.

    In a container: its own file systems and processes, but the memory and load of the whole machine.
    """

    kind: ClassVar[str] = "host"
    settings_model: ClassVar[type[HostSettings]] = HostSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.invariants = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        self.secrets: Sequence[str] = ()
        self._off_loop = OffLoop()

    async def observe(self, previous: Json) -> Observation:
        """Observe the machine. Raises ObservationFailed when the operating system hangs, as on a dead mount."""
        wanted = [invariant.id for invariant in self.invariants]
        signals, unavailable = await self._off_loop.run(
            partial(check, self.settings, wanted),
            self.settings.timeout * _SHARE_OF_TIMEOUT,
            "host",
        )
        covered = frozenset(wanted) - unavailable.keys()
        return Observation(signals, covered, unavailable)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        broken = {ticket.key.invariant for ticket in tickets}
        return [
            EvidenceSource(
                title,
                "psutil on this machine",
                self._fetch(title, partial(describe, self.settings)),
                rank=10 if broken & matters_to else 40,
                timeout=self.settings.timeout,
            )
            for title, describe, matters_to in TABLES.values()
            if title != "Processes that must run" or self.settings.processes
        ]

    async def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def _fetch(
        self, title: str, describe: Callable[[], str]
    ) -> Callable[[], Awaitable[str]]:
        async def fetch() -> str:
            import psutil

            limit = self.settings.timeout * _SHARE_OF_TIMEOUT
            try:
                return await OffLoop().run(describe, limit, title)
            except (OSError, psutil.Error) as error:
                raise ObservationFailed(
                    f"{title} cannot be read: {ticket_line(str(error))}"
                ) from None

        return fetch


# ------------------------------------------------------------------ checks (blocking)

# Read-only images are always full.
_READ_ONLY_KINDS = {"squashfs", "iso9660", "erofs", "cramfs", "udf"}

Check = Callable[[HostSettings], Iterator[Signal]]


def mount_points(settings: HostSettings) -> list[str]:
    """Return the mount points to check, each file system once, under its shortest name."""
    import psutil

    if settings.mounts:
        return [str(path) for path in settings.mounts]
    found: dict[int, str] = {}
    mounted = [
        part.mountpoint
        for part in psutil.disk_partitions(all=False)
        if part.fstype not in _READ_ONLY_KINDS
    ]
    for path in sorted({"/", *mounted}, key=lambda path: (len(path), path)):
        try:
            status = os.stat(path)
        except OSError:  # unmounted meanwhile, or no permission
            continue
        # Containers bind-mount single files: those are not file systems of their own.
        if path == "/" or os.path.isdir(path):
            found.setdefault(status.st_dev, path)
    return list(found.values())


def disk(settings: HostSettings) -> Iterator[Signal]:
    for path in mount_points(settings):
        space = _statvfs(path)
        # As df counts: blocks kept for root are neither used nor free.
        used = (space.f_blocks - space.f_bfree) * space.f_frsize
        free = space.f_bavail * space.f_frsize
        if used + free:
            share = used / (used + free)
            yield Signal(
                "disk",
                component_name(path),
                f"{ticket_line(path, 100)} is {share:.0%} full, {format_size(free)} left",
                value=share,
                facts={
                    "mount": ticket_line(path),
                    "free_bytes": free,
                    "used_bytes": used,
                },
            )


def inodes(settings: HostSettings) -> Iterator[Signal]:
    for path in mount_points(settings):
        space = _statvfs(path)
        used = space.f_files - space.f_ffree
        if used + space.f_favail:
            share = used / (used + space.f_favail)
            yield Signal(
                "inodes",
                component_name(path),
                f"{ticket_line(path, 100)} has used {share:.0%} of its inodes, {space.f_favail:,} left",
                value=share,
                facts={"mount": ticket_line(path), "free_inodes": space.f_favail},
            )


def memory(settings: HostSettings) -> Iterator[Signal]:
    import psutil

    found = psutil.virtual_memory()
    share = found.available / found.total
    yield Signal(
        "memory",
        "memory",
        f"{share:.0%} of memory is available: {format_size(found.available)} of {format_size(found.total)}",
        value=share,
        facts={"available_bytes": found.available, "total_bytes": found.total},
    )


def swap(settings: HostSettings) -> Iterator[Signal]:
    import psutil

    found = psutil.swap_memory()
    if found.total:
        share = found.used / found.total
        yield Signal(
            "swap",
            "swap",
            f"swap is {share:.0%} full: {format_size(found.used)} of {format_size(found.total)}",
            value=share,
            facts={"used_bytes": found.used, "total_bytes": found.total},
        )


def load(settings: HostSettings) -> Iterator[Signal]:
    average, cores = os.getloadavg()[1], os.cpu_count() or 1
    yield Signal(
        "load",
        "cpu",
        f"the load of five minutes is {average:.1f} on {cores} processors",
        value=average / cores,
        facts={"load5": round(average, 2), "processors": cores},
    )


def process(settings: HostSettings) -> Iterator[Signal]:
    running = _command_lines() if settings.processes else []
    for wanted in settings.processes:
        count = sum(matches(wanted, name, line) for name, line in running)
        yield Signal(
            "process",
            component_name(wanted.label),
            f"{count} of at least {wanted.min} processes {ticket_line(wanted.label, 100)} run",
            value=float(count),
            holds=count >= wanted.min,
            facts={
                "process": ticket_line(wanted.label),
                "count": count,
                "min": wanted.min,
            },
        )


CHECKS: dict[str, Check] = {
    "disk": disk,
    "inodes": inodes,
    "memory": memory,
    "swap": swap,
    "load": load,
    "process": process,
}


def check(
    settings: HostSettings, wanted: Sequence[str]
) -> tuple[tuple[Signal, ...], dict[str, str]]:
    """Return the signals of the wanted invariants, and why some could not be observed."""
    import psutil

    signals: list[Signal] = []
    unavailable: dict[str, str] = {}
    for name in wanted:
        try:
            signals += CHECKS[name](settings)
        except ObservationFailed as error:
            unavailable[name] = error.message
        except (OSError, psutil.Error) as error:
            unavailable[name] = ticket_line(f"{name} cannot be read: {error}")
    return tuple(signals), unavailable


def matches(wanted: ProcessSettings, name: str, line: str) -> bool:
    if wanted.pattern is not None:
        return re.search(wanted.pattern, line) is not None
    return name == wanted.name


def _statvfs(path: str | Path) -> os.statvfs_result:
    try:
        return os.statvfs(path)
    except OSError as error:
        raise ObservationFailed(
            f"{ticket_line(str(path), 100)}: {error.strerror}"
        ) from None


def processes(*attributes: str) -> Iterator[tuple[psutil.Process, dict[str, Any]]]:
    """Yield each process with these attributes; None for those without permission to read.

    `psutil.process_iter` returns objects that all threads share, and which overwrite each other's
    attributes; these are new ones.
    """
    import psutil

    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            yield process, process.as_dict(list(attributes))
        except psutil.NoSuchProcess:  # ended meanwhile
            continue


def _command_lines() -> list[tuple[str, str]]:
    """Return name and command line of each process but this one."""
    return [
        (info["name"] or "", command_line(info))
        for process, info in processes("name", "cmdline", "status")
        if process.pid != os.getpid() and info["status"] != "zombie"
    ]


def command_line(info: dict[str, Any]) -> str:
    return " ".join(info["cmdline"] or ())[:8000]


# ------------------------------------------------------------------ evidence (blocking)
#
# Processes are shown with pid, name and user, but without arguments: these may contain passwords.

_SAMPLE_SECONDS = 0.2
_TOP = 12


def file_systems(settings: HostSettings) -> str:
    rows = []
    for path in mount_points(settings):
        try:
            space = os.statvfs(path)
        except OSError as error:
            rows.append([ticket_line(path, 80), error.strerror or "error", *"-----"])
            continue
        size = space.f_frsize
        used, free = space.f_blocks - space.f_bfree, space.f_bavail
        inodes = space.f_files - space.f_ffree
        rows.append(
            [
                ticket_line(path, 80),
                format_size(space.f_blocks * size),
                format_size(used * size),
                format_size(free * size),
                _share(used, used + free),
                f"{space.f_favail}",
                _share(inodes, inodes + space.f_favail),
            ]
        )
    header = ("mount", "size", "used", "available", "use", "free inodes", "inode use")
    return table(header, rows)


def memory_evidence(settings: HostSettings) -> str:
    import psutil

    main, swap = psutil.virtual_memory(), psutil.swap_memory()
    pairs = [
        ("memory total", main.total),
        ("memory available", main.available),
        ("memory used", main.used),
        ("memory free", main.free),
        ("swap total", swap.total),
        ("swap used", swap.used),
    ]
    lines = [f"{name}: {format_size(value)}" for name, value in pairs]
    return "\n".join([*lines, f"available share: {main.available / main.total:.1%}"])


def load_evidence(settings: HostSettings) -> str:
    import psutil

    one, five, fifteen = os.getloadavg()
    spent = psutil.cpu_times_percent(interval=_SAMPLE_SECONDS)
    lines = [
        f"load: {one:.2f} (1 min) {five:.2f} (5 min) {fifteen:.2f} (15 min)",
        f"processors: {os.cpu_count() or 1}",
        f"up for: {format_duration(max(0.0, time.time() - psutil.boot_time()))}",
        f"cpu user {spent.user:.0f}% system {spent.system:.0f}% idle {spent.idle:.0f}%",
    ]
    if hasattr(spent, "iowait"):
        lines.append(f"cpu waiting for disks {spent.iowait:.0f}%")
    return "\n".join(lines)


def top(settings: HostSettings) -> str:
    """Return the processes that use the most processor time, and the most memory."""
    found = list(processes("name", "username", "memory_info"))
    for process, _ in found:
        _cpu(process)  # the first call only begins the measurement
    time.sleep(_SAMPLE_SECONDS)
    rows = []
    for process, info in found:
        resident = info["memory_info"].rss if info["memory_info"] else 0
        rows.append(
            (_cpu(process), resident, process.pid, info["name"], info["username"])
        )
    by_cpu = sorted(rows, key=lambda row: row[0], reverse=True)[:_TOP]
    by_memory = sorted(rows, key=lambda row: row[1], reverse=True)[:_TOP]
    parts = []
    for title, chosen in (("by processor", by_cpu), ("by memory", by_memory)):
        cells = [
            (
                pid,
                ticket_line(name or "?", 40),
                ticket_line(user or "?", 30),
                f"{cpu:.0f}%",
            )
            + (format_size(resident),)
            for cpu, resident, pid, name, user in chosen
        ]
        parts.append(f"{title}:")
        parts.append(table(("pid", "name", "user", "cpu", "resident"), cells))
    return "\n".join(parts)


def required(settings: HostSettings) -> str:
    """Return the required processes, and those of them that run."""
    found = list(processes("name", "cmdline", "status", "create_time", "username"))
    lines = []
    for wanted in settings.processes:
        lines.append(f"{ticket_line(wanted.label, 100)}: at least {wanted.min}")
        for process, info in found:
            mine = process.pid == os.getpid()
            if not mine and matches(wanted, info["name"] or "", command_line(info)):
                age = format_duration(max(0.0, time.time() - info["create_time"]))
                lines.append(
                    f"  pid {process.pid} {ticket_line(info['name'] or '?', 40)} {info['status']}, "
                    f"user {info['username']}, up for {age}"
                )
        if lines[-1].endswith(f"at least {wanted.min}"):
            lines.append("  none runs")
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[HostSettings], str], frozenset[str]]] = {
    "file systems": ("File systems", file_systems, frozenset({"disk", "inodes"})),
    "memory": ("Memory", memory_evidence, frozenset({"memory", "swap"})),
    "load": ("Load and processors", load_evidence, frozenset({"load"})),
    "processes": ("Processes that must run", required, frozenset({"process"})),
    "top": ("Top processes", top, frozenset({"memory", "swap", "load"})),
}
"""Title, function and the invariants that the evidence matters most to."""


def _cpu(process: psutil.Process) -> float:
    import psutil

    try:
        return process.cpu_percent(None)
    except psutil.Error:  # ended meanwhile
        return 0.0


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
