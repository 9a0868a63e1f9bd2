"""The subject kind `host`: space, memory, load and processes of the machine that Midwatch runs on."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.model import Invariant, Json, Observation, Severity, Signal, Ticket, Unit
from midwatch.settings import Group, SubjectSettings
from midwatch.subjects.base import Address, EvidenceSource, configure
from midwatch.subjects.host_mounts import (
    MEASURES,
    Measured,
    Mount,
    MountProbes,
    OffLoop,
    attributes,
    file_systems,
    mount_table,
    reasons,
)
from midwatch.subjects.http import Regex
from midwatch.subjects.tools import Tool
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
        description="Mount points to check; by default all file systems that can run full, also NFS, CIFS, FUSE, "
        "tmpfs and overlay. Read-only ones without a block device are left out.",
    )
    processes: list[ProcessSettings] = Field(default_factory=list)


INVARIANTS = (
    Invariant(
        "disk",
        "File systems have space left",
        "The used share of the space that an ordinary user may fill, by mount point. A mount that does not "
        "answer is unknown and hides no other; one that is gone keeps its ticket.",
        unit=Unit.RATIO,
        limit=0.9,
        about=("mount", "fstype"),
    ),
    Invariant(
        "inodes",
        "File systems have inodes left",
        "The used share of the inodes, by mount point. File systems without a fixed number "
        "of inodes are not checked.",
        unit=Unit.RATIO,
        limit=0.9,
        about=("mount", "fstype"),
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
        "At least `min` processes of each entry of `processes` run; zombies do not count. Too few are unknown "
        "where Midwatch may not see the processes of other users (`hidepid`).",
        severity=Severity.CRITICAL,
        about=("process",),
    ),
)


# ------------------------------------------------------------------ the subject

_SHARE_OF_TIMEOUT = 0.8  # the rest is for the report that it took too long


@dataclass(slots=True)
class Findings:
    """What a part of an observation found; see `Observation`."""

    signals: list[Signal] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, tuple[str, ...]] = field(default_factory=dict)
    state: Json = field(default_factory=dict)


class HostSubject:
    """This machine, observed through psutil.

    In a container: its own file systems and processes, but the memory and load of the whole machine.
    """

    kind: ClassVar[str] = "host"
    settings_model: ClassVar[type[HostSettings]] = HostSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS
    addresses: ClassVar[Sequence[Address]] = (Address("localhost", None),)

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.invariants = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        self.secrets: Sequence[str] = ()
        self._mounts = MountProbes(settings.mounts)
        self._checks = {name: OffLoop() for name in CHECKS}
        self._evidence = {name: OffLoop() for name in TABLES}

    async def observe(self, previous: Json) -> Observation:
        """Observe the machine. What hangs, as a dead mount does, is unavailable; the rest is observed."""
        wanted = {invariant.id: invariant for invariant in self.invariants}
        parts = await asyncio.gather(
            self._file_systems(wanted, previous),
            *(self._check(wanted[name]) for name in wanted if name in CHECKS),
        )
        whole = Findings()
        for part in parts:
            whole.signals += part.signals
            for name in ("unavailable", "unsupported", "ignored", "state"):
                getattr(whole, name).update(getattr(part, name))
        unseen = whole.unavailable.keys() | whole.unsupported.keys()
        return Observation(
            tuple(whole.signals),
            frozenset(wanted) - unseen,
            whole.unavailable,
            whole.state,
            unsupported=whole.unsupported,
            ignored=whole.ignored,
        )

    async def _check(self, invariant: Invariant) -> Findings:
        name, found = invariant.id, Findings()
        settings = self.settings
        if name == "process":
            labels = [one.label for one in settings.processes]
            left_out = [one for one in labels if invariant.ignores({name: one})]
            if left_out:
                found.ignored[name] = tuple(ticket_line(one, 100) for one in left_out)
                kept = [one for one in settings.processes if one.label not in left_out]
                settings = settings.model_copy(update={"processes": kept})
        try:
            await self._checks[name].run(
                partial(_collect, CHECKS[name](settings), found.signals),
                self._limit,
                name,
            )
        except Unsupported as error:
            found.unsupported[name] = error.one_line()
        except ObservationFailed as error:
            found.unavailable[name] = error.message
        except _unreadable() as error:
            found.unavailable[name] = ticket_line(f"{name} cannot be read: {error}")
        return found

    async def _file_systems(
        self, wanted: Mapping[str, Invariant], previous: Json
    ) -> Findings:
        """Observe the space and the inodes of all mounts."""
        chosen = [wanted[name] for name in MEASURES if name in wanted]
        known, full = previous.get("mounted", []), previous.get("full", {})
        found = Findings(state={"mounted": known, "full": full})
        if not chosen:
            return found
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limit
        try:
            mounted, mounts = await self._mounts.mounts(self._limit)
        except ObservationFailed as error:
            found.unavailable = {one.id: error.message for one in chosen}
            return found
        left = max(0.01, deadline - loop.time())
        asked = _of_interest(mounts, chosen)
        spaces = await self._mounts.ask(asked, mounted, left, known)
        found.state = {"mounted": sorted(spaces.mounted), "full": {}}
        for invariant in chosen:
            part = Measured(invariant, mounts, spaces, full.get(invariant.id, ()))
            found.signals += part.signals
            found.state["full"][invariant.id] = part.full
            if part.unavailable:
                found.unavailable[invariant.id] = reasons(part.unavailable)
            elif part.unsupported:
                found.unsupported[invariant.id] = reasons(part.unsupported)
            if part.ignored:
                found.ignored[invariant.id] = part.ignored
        return found

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        broken = {ticket.key.invariant for ticket in tickets}
        return [
            EvidenceSource(
                title,
                "psutil on this machine",
                (
                    self._fetch_file_systems
                    if describe is None
                    else self._fetch(name, title, partial(describe, self.settings))
                ),
                rank=10 if broken & matters_to else 40,
                timeout=self.settings.timeout,
            )
            for name, (title, describe, matters_to) in TABLES.items()
            if name != "processes" or self.settings.processes
        ]

    def tools(self) -> Sequence[Tool]:
        from midwatch.subjects.host_tools import HostTools

        return HostTools(self.settings.timeout).tools()

    async def close(self) -> None:
        """Do nothing: nothing is kept open."""

    @property
    def _limit(self) -> float:
        return self.settings.timeout * _SHARE_OF_TIMEOUT

    def _fetch(
        self, name: str, title: str, describe: Callable[[], str]
    ) -> Callable[[], Awaitable[str]]:
        async def fetch() -> str:
            try:
                return await self._evidence[name].run(describe, self._limit, title)
            except _unreadable() as error:
                raise ObservationFailed(
                    f"{title} cannot be read: {ticket_line(str(error))}"
                ) from None

        return fetch

    async def _fetch_file_systems(self) -> str:
        mounted, mounts = await self._mounts.mounts(self._limit / 4)
        chosen = [one for one in self.invariants if one.id in MEASURES]
        asked = _of_interest(mounts, chosen) if chosen else mounts
        return file_systems(await self._mounts.ask(asked, mounted, self._limit / 2))


def _of_interest(mounts: Sequence[Mount], chosen: Sequence[Invariant]) -> list[Mount]:
    """Return the mounts that not all of these invariants leave out."""
    return [
        one
        for one in mounts
        if not all(each.ignores(attributes(one.path, one.fstype)) for each in chosen)
    ]


def _unreadable() -> tuple[type[Exception], ...]:
    """Return what psutil raises where the system does not show what it should."""
    import psutil

    return (OSError, psutil.Error, ValueError, LookupError, ArithmeticError)


# ------------------------------------------------------------------ checks (blocking)

Check = Callable[[HostSettings], Iterator[Signal]]


def _collect(signals: Iterator[Signal], into: list[Signal]) -> None:
    """Append the signals one by one: those before an error are valid."""
    for signal in signals:
        into.append(signal)


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
    """Yield the state of each required process. Raises Unsupported at the end where that is unknown of one."""
    if not settings.processes:
        return
    running, hidden = _running(), _hidden_processes()
    unknown: list[str] = []
    for wanted in settings.processes:
        found = [matches(wanted, name, line) for name, line in running]
        count = found.count(True)
        if count < wanted.min and (hidden or count + found.count(None) >= wanted.min):
            unknown.append(ticket_line(wanted.label, 100))
            continue
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
    if unknown:
        raise Unsupported(
            f"{', '.join(unknown)}: {hidden or 'processes of other users cannot be read'}",
            hint="run Midwatch as root, or as a user in the group that /proc is mounted with (gid=)",
        )


CHECKS: dict[str, Check] = {
    "memory": memory,
    "swap": swap,
    "load": load,
    "process": process,
}


def matches(wanted: ProcessSettings, name: str | None, line: str | None) -> bool | None:
    """Return whether a process is wanted; None where what decides that cannot be read."""
    if wanted.pattern is not None:
        return None if line is None else re.search(wanted.pattern, line) is not None
    return None if name is None else name == wanted.name


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


def _running() -> list[tuple[str | None, str | None]]:
    """Return name and command line of each process but this one; None for what may not be read."""
    return [
        (info["name"], command_line(info))
        for process, info in processes("name", "cmdline", "status")
        if process.pid != os.getpid() and info["status"] != "zombie"
    ]


def command_line(info: dict[str, Any]) -> str | None:
    return None if info["cmdline"] is None else " ".join(info["cmdline"])[:8000]


_SEE_ALL = 1 << 19  # CAP_SYS_PTRACE, see capabilities(7)


def _hidden_processes() -> str:
    """Return why the processes of other users are hidden from this one, or "".

    The option `hidepid` of /proc hides them from users without CAP_SYS_PTRACE who are not in its group; other
    systems hide at least process 1.
    """
    proc = mount_table().get("/proc")
    value = (proc.option("hidepid") if proc else None) or "0"
    if proc is not None and value not in ("0", "off"):
        groups = {os.getegid(), *os.getgroups()}
        member = int(proc.option("gid") or 0) in groups
        if not _can_trace() and (value in ("4", "ptraceable") or not member):
            return f"/proc is mounted with hidepid={value}, which hides processes of other users"
    try:
        os.stat("/proc/1/stat" if proc else "/")
    except OSError:
        return "the processes of other users are hidden: /proc/1 cannot be seen"
    return ""


def _can_trace() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.M)
    return effective is not None and bool(int(effective[1], 16) & _SEE_ALL)


# ------------------------------------------------------------------ evidence (blocking)
#
# Processes are shown with pid, name and user, but without arguments: these may contain passwords.

_SAMPLE_SECONDS = 0.2
_TOP = 12


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
            if not mine and matches(wanted, info["name"], command_line(info)):
                age = format_duration(max(0.0, time.time() - info["create_time"]))
                lines.append(
                    f"  pid {process.pid} {ticket_line(info['name'] or '?', 40)} {info['status']}, "
                    f"user {info['username']}, up for {age}"
                )
        if lines[-1].endswith(f"at least {wanted.min}"):
            lines.append("  none runs")
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[HostSettings], str] | None, frozenset[str]]] = {
    "file systems": ("File systems", None, frozenset({"disk", "inodes"})),
    "memory": ("Memory", memory_evidence, frozenset({"memory", "swap"})),
    "load": ("Load and processors", load_evidence, frozenset({"load"})),
    "processes": ("Processes that must run", required, frozenset({"process"})),
    "top": ("Top processes", top, frozenset({"memory", "swap", "load"})),
}
"""Title, function (None: the mounts are asked) and the invariants that the evidence matters most to."""


def _cpu(process: psutil.Process) -> float:
    import psutil

    try:
        return process.cpu_percent(None)
    except psutil.Error:  # ended meanwhile
        return 0.0
