"""The processes of this machine: which run, which are hidden, and where a process came from."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midwatch.model import Fact
from midwatch.subjects.host_mounts import mount_table
from midwatch.subjects.host_settings import ProcessSettings
from midwatch.text import ticket_line

if TYPE_CHECKING:
    import psutil


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


def running() -> list[tuple[int, str | None, str | None]]:
    """Return pid, name and command line of each process but this one; None for what may not be read."""
    return [
        (process.pid, info["name"], command_line(info))
        for process, info in processes("name", "cmdline", "status")
        if process.pid != os.getpid() and info["status"] != "zombie"
    ]


def listening(pid: int) -> tuple[list[str], list[int]] | None:
    """Return the unix sockets of a process and the TCP ports that it listens on; None without permission to read them."""
    import psutil

    try:
        found = psutil.Process(pid).net_connections("all")
    except psutil.Error:
        return None
    paths = {one.laddr for one in found if one.family == socket.AF_UNIX and one.laddr}
    ports = {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
    return sorted(map(str, paths)), sorted(ports)


def command_line(info: dict[str, Any]) -> str | None:
    return None if info["cmdline"] is None else " ".join(info["cmdline"])[:8000]


_SEE_ALL = 1 << 19  # CAP_SYS_PTRACE, see capabilities(7)


def hidden_processes() -> str:
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


# ------------------------------------------------------------------ what is remembered of one that runs

_SERVICE = re.compile(r"/([^/\n]+\.service)(?=/|$)", re.M)
ORIGIN_FACTS = ("last_pid", "unit", "log_files")
_MOST_LOGS = 3
_MOST_DESCRIPTORS = 500


def origin_facts(pid: int) -> dict[str, Fact]:
    """Return what will be asked for when this process has ended: its unit, and the log files that it has open."""
    found: dict[str, Fact] = {"last_pid": pid}
    if unit := unit_of(pid):
        found["unit"] = unit
    if logs := open_logs(pid):
        found["log_files"] = ", ".join(logs)
    return found


def unit_of(pid: int) -> str:
    """Return the unit of systemd that a process runs in, or "". Units of users have no name for the system."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
    found = _SERVICE.findall(groups)
    return "" if not found or "/user@" in groups else ticket_line(found[-1], 200)


def open_logs(pid: int) -> list[str]:
    """Return the regular files that a process writes its output or logs to; none where they may not be read."""
    found: dict[str, None] = {}
    for descriptor, path in descriptors(pid):
        output = descriptor in (1, 2)
        if not (output or path.endswith(".log") or path.startswith("/var/log/")):
            continue
        if path.endswith(" (deleted)") or not path.isprintable():
            continue
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                found[path] = None
        except OSError:
            continue
    return list(found)[:_MOST_LOGS]


def descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """Yield number and target of the open files of a process, as far as they may be read."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)[:_MOST_DESCRIPTORS]
    except OSError:
        return
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:
            continue
        if target.startswith("/"):
            yield int(name), target


_MOST_LISTENERS = 200


def listeners() -> str:
    """Return which process listens on which port, as far as it may be seen (blocking)."""
    import psutil

    names: dict[int, str] = {}
    lines: dict[str, None] = {}
    for one in psutil.net_connections("inet"):
        if one.status != psutil.CONN_LISTEN or not one.laddr:
            continue
        if one.pid and one.pid not in names:
            try:
                names[one.pid] = ticket_line(psutil.Process(one.pid).name(), 40)
            except psutil.Error:
                names[one.pid] = "?"
        holder = (
            f"pid {one.pid} ({names[one.pid]})"
            if one.pid
            else "a process of another user"
        )
        lines[f"port {one.laddr.port} on {one.laddr.ip}: {holder}"] = None
    return "\n".join(sorted(lines)[:_MOST_LISTENERS]) or "nothing listens"
