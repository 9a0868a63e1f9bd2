"""The tools of the host: the journal, processes, and what fills a folder. All of them only read."""

from __future__ import annotations

import heapq
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from midwatch.errors import ObservationFailed
from midwatch.model import Origin
from midwatch.programs import run
from midwatch.subjects.host_mounts import OffLoop
from midwatch.subjects.tools import Answer, Arguments, Refused, Tool
from midwatch.text import table, ticket_line
from midwatch.units import format_duration, format_size

_LINES = 200
_MOST_ENTRIES = 300_000  # files and folders that are counted
_SHOWN = 25
_LEAST_DELETED = (
    1_000_000  # bytes of a file that is deleted, still open, and worth a line
)
_JOURNAL_BYTES = 1_000_000
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
Unit = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,200}$")]
Priority = Literal["emerg", "alert", "crit", "err", "warning", "notice", "info"]


class Journal(Arguments):
    unit: Unit | None = Field(None, description="Of systemd, such as nginx.service.")
    minutes: int = Field(60, ge=1, le=10_080, description="How far back.")
    priority: Priority | None = Field(None, description="This one and worse.")
    contains: str | None = Field(
        None, description="Only lines with this text.", max_length=200
    )


class Processes(Arguments):
    name: str | None = Field(None, description="A part of the name.", max_length=100)
    sort: Literal["cpu", "memory"] = Field("cpu", description="What most of.")


class DiskUsage(Arguments):
    path: str = Field(description="A folder; / with care.", max_length=4000)


class HostTools:
    """The tools of this machine. `limit` is in seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._threads = {name: OffLoop() for name in ("processes", "disk_usage")}

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        limit = self._limit + 1
        return (
            Tool(
                "journal", "Last lines of the journal.", Journal, self._journal, limit
            ),
            Tool(
                "processes",
                "Processes without their arguments.",
                Processes,
                self._processes,
                limit,
            ),
            Tool(
                "disk_usage",
                "What takes space in a folder, and deleted files that are still open.",
                DiskUsage,
                self._disk_usage,
                limit,
            ),
        )

    async def _journal(self, asked: Journal) -> Answer:
        command = ["journalctl", "--no-pager", "--quiet", "--output=short-iso"]
        command += ["--all", f"--lines={_LINES * 10 if asked.contains else _LINES}"]
        command += [f"--since=-{asked.minutes}min"]
        command += [f"--unit={asked.unit}"] if asked.unit else []
        command += [f"--priority={asked.priority}"] if asked.priority else []
        result = await run(
            command,
            env=_ENVIRONMENT,
            cwd=Path("/"),
            timeout=self._limit,
            max_output=_JOURNAL_BYTES,
        )
        if result.failure and not result.too_large:
            why = ticket_line(result.stderr.decode("utf-8", "replace"), 200)
            raise ObservationFailed(f"journalctl {result.failure}: {why}")
        lines = result.stdout.decode("utf-8", "replace").splitlines()
        wanted = [one for one in lines if (asked.contains or "") in one][-_LINES:]
        shown = " ".join(command)
        if asked.contains:
            shown += f", lines with {asked.contains!r}"
        return Answer(shown, "\n".join(wanted), Origin.REPORTED)

    async def _processes(self, asked: Processes) -> Answer:
        text = await self._blocking("processes", lambda: processes(asked))
        return Answer(f"processes of /proc by {asked.sort}, name {asked.name!r}", text)

    async def _disk_usage(self, asked: DiskUsage) -> Answer:
        path = Path(asked.path)
        if not path.is_absolute() or ".." in path.parts or "\0" in asked.path:
            raise Refused("give an absolute path")
        until = time.monotonic() + self._limit * 0.8
        text = await self._blocking("disk_usage", lambda: disk_usage(path, until))
        return Answer(f"du --one-file-system --max-depth=1 {path}", text)

    async def _blocking(self, name: str, call: Callable[[], str]) -> str:
        try:
            return await self._threads[name].run(call, self._limit, name)
        except OSError as error:
            raise ObservationFailed(f"{name}: {error.strerror or error}") from None


# ------------------------------------------------------------------ blocking


def processes(asked: Processes) -> str:
    """Return a table of processes, without arguments: these may contain passwords."""
    import psutil

    wanted = ("pid", "ppid", "name", "username", "status", "create_time", "memory_info")
    found: list[psutil.Process] = []
    for process in psutil.process_iter([*wanted, "num_threads"]):
        if asked.name is None or asked.name in (process.info["name"] or ""):
            found.append(process)
            _cpu(process)  # the first call only begins the measurement
    time.sleep(0.2)
    rows = [_row(process) for process in found]
    rows.sort(key=lambda row: row[0 if asked.sort == "cpu" else 1], reverse=True)
    head = (
        "pid",
        "parent",
        "name",
        "user",
        "state",
        "cpu",
        "resident",
        "threads",
        "up",
    )
    shown = [row[2] for row in rows[:_SHOWN]]
    return f"{table(head, shown)}\n{len(rows)} processes" if rows else ""


def _row(process: object) -> tuple[float, int, tuple[str, ...]]:
    info: Mapping[str, object] = getattr(process, "info")
    resident = int(getattr(info["memory_info"], "rss", 0))
    cpu = _cpu(process)
    began = info["create_time"]
    age = max(0.0, time.time() - began) if isinstance(began, float) else 0.0
    cells = (
        str(info["pid"]),
        str(info["ppid"]),
        ticket_line(str(info["name"] or "?"), 40),
        ticket_line(str(info["username"] or "?"), 30),
        str(info["status"]),
        f"{cpu:.0f}%",
        format_size(resident),
        str(info["num_threads"]),
        format_duration(age),
    )
    return cpu, resident, cells


def _cpu(process: object) -> float:
    import psutil

    assert isinstance(process, psutil.Process)
    try:
        return float(process.cpu_percent(None))
    except psutil.Error:  # ended meanwhile
        return 0.0


def disk_usage(folder: Path, until: float) -> str:
    """Return what the entries of a folder take, the largest first, without crossing into other file systems.

    Links are not followed. It stops at `until` of time.monotonic(), and says so.
    """
    device = os.lstat(folder).st_dev
    counter = _Counter(device, until)
    sizes = []
    with os.scandir(folder) as entries:
        for entry in entries:
            sizes.append((counter.size(entry), entry.name))
    largest = heapq.nlargest(_SHOWN, sizes)
    lines = [f"{format_size(size)} {ticket_line(name, 200)}" for size, name in largest]
    lines.append(f"{format_size(sum(size for size, _ in sizes))} in all")
    if counter.stopped:
        lines.append("incomplete: there are more files than could be counted in time")
    return "\n".join([*lines, *_deleted(device)])


class _Counter:
    """Adds up the space of folders of one file system."""

    def __init__(self, device: int, until: float) -> None:
        self._device, self._until = device, until
        self._seen = 0
        self._links: set[int] = set()
        self.stopped = False

    def size(self, entry: os.DirEntry[str]) -> int:
        """Return the bytes that an entry takes, with all that is in it."""
        total, waiting = 0, [entry]
        while waiting:
            one = waiting.pop()
            self._seen += 1
            if self._seen > _MOST_ENTRIES or time.monotonic() > self._until:
                self.stopped = True
                break
            try:
                found = one.stat(follow_symlinks=False)
                total += self._own(found)
                if stat.S_ISDIR(found.st_mode) and found.st_dev == self._device:
                    with os.scandir(one.path) as entries:
                        waiting.extend(entries)
            except OSError:
                continue  # gone, or not ours to read
        return total

    def _own(self, found: os.stat_result) -> int:
        if found.st_dev != self._device:
            return 0
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if found.st_ino in self._links:
                return 0
            self._links.add(found.st_ino)
        return found.st_blocks * 512


def _deleted(device: int) -> Iterator[str]:
    """Yield files of the file system that are deleted and still open: no folder shows their space."""
    found: dict[int, tuple[int, str]] = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            name = os.readlink(link)
            if not name.endswith(" (deleted)"):
                continue
            status = os.stat(link)
        except OSError:
            continue
        size = status.st_blocks * 512
        if status.st_dev == device and size >= _LEAST_DELETED:
            found[status.st_ino] = (size, f"pid {link.parts[2]} {name}")
    for size, text in heapq.nlargest(_SHOWN, found.values()):
        yield f"deleted but still open: {format_size(size)} {ticket_line(text, 300)}"
