"""Find systems on this machine that Midwatch can watch, from sockets, processes, units and files: nothing is asked or changed."""

from __future__ import annotations

import json
import os
import pwd
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from midwatch.text import one_line

_SYSTEMCTL_SECONDS = 10.0
_MOST_UNITS = 20
_POSTGRES_FOLDERS = ("/var/run/postgresql", "/run/postgresql", "/tmp")
_POSTGRES_SOCKET = re.compile(r"\.s\.PGSQL\.(\d{1,5})")
_OF_THE_SYSTEM = re.compile(
    r"(systemd-|user@|getty@|serial-getty@|dbus|polkit|udisks|accounts-daemon|rsyslog|cron|midwatch)"
)
"""Units that no service of a team depends on by name."""


@dataclass(frozen=True, slots=True)
class FoundSystem:
    """A system that was found.

    Attributes:
        entry: Its entry of `subjects`.
        where: What it was found by.
        advice: Lines for the person, without `#`, that belong below the entry.
    """

    entry: Mapping[str, Any]
    where: str
    advice: Sequence[str] = field(default=())


def find_systems(
    environ: Mapping[str, str], kinds: Mapping[str, object]
) -> list[FoundSystem]:
    """Return what runs here, this machine first, each with a name of its own.

    Args:
        environ: The environment, for PGHOST, MYSQL_UNIX_PORT, KUBECONFIG and HOME.
        kinds: The kinds of subjects that are installed; others are not looked for.
    """
    found = [_this_host()]
    found += _postgres(environ)
    found += _servers(environ)
    found += _kubernetes(environ)
    return _with_own_names([one for one in found if one.entry["kind"] in kinds])


def _with_own_names(systems: Sequence[FoundSystem]) -> list[FoundSystem]:
    names: dict[str, int] = {}
    result = []
    for one in systems:
        name = str(one.entry["name"])
        names[name] = number = names.get(name, 0) + 1
        own = name if number == 1 else f"{name}-{number}"
        result.append(
            FoundSystem({**one.entry, "name": own}, one.where, one.advice),
        )
    return result


# ------------------------------------------------------------------ this machine


def _this_host() -> FoundSystem:
    entry = {"name": "this-host", "kind": "host"}
    units = _units()
    if not units:
        return FoundSystem(entry, "disks, memory, load")
    advice = [
        "Services that run now. Take the ones that must run out of the comment:",
        "processes:",
        *(
            f"  - {{name: {json.dumps(name)}, unit: {json.dumps(unit)}}}"
            for unit, name in units
        ),
    ]
    return FoundSystem(entry, "disks, memory, load", advice)


def _units() -> list[tuple[str, str]]:
    """Return the services of systemd that run, each with the name of its main process; none without systemd."""
    listed = _systemctl("list-units", "--type=service", "--state=running")
    units = [line.split()[0] for line in listed.splitlines() if line.strip()]
    units = [unit for unit in units if not _OF_THE_SYSTEM.match(unit)][:_MOST_UNITS]
    if not units:
        return []
    pairs = []
    for shown in _systemctl("show", "--property=Id,MainPID", *units).split("\n\n"):
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        try:
            name = Path(f"/proc/{int(values['MainPID'])}/comm").read_text().strip()
        except (OSError, KeyError, ValueError):
            continue
        pairs.append((values.get("Id", ""), name))
    return pairs


def _systemctl(*arguments: str) -> str:
    """Return what systemctl prints; "" where there is none, or no systemd behind it."""
    try:
        done = subprocess.run(
            ["systemctl", "--no-pager", "--plain", "--no-legend", *arguments],
            capture_output=True,
            timeout=_SYSTEMCTL_SECONDS,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


# ------------------------------------------------------------------ PostgreSQL


def _postgres(environ: Mapping[str, str]) -> Iterator[FoundSystem]:
    folders = [environ.get("PGHOST", ""), *_POSTGRES_FOLDERS]
    seen: set[Path] = set()
    for folder in folders:
        if not folder.startswith("/"):
            continue
        for path in sorted(Path(folder).glob(".s.PGSQL.*")):
            match = _POSTGRES_SOCKET.fullmatch(path.name)
            real = Path(folder).resolve() / path.name
            if match is None or real in seen or not _is_socket(path):
                continue
            seen.add(real)
            place = f"host={quote(folder, safe='/')}&port={match[1]}"
            entry = {
                "name": "postgres",
                "kind": "postgres",
                "dsn": f"postgresql:///postgres?{place}",
            }
            advice = [
                "It connects as the user who runs Midwatch. A role of its own with pg_monitor is enough: docs/subjects.md."
            ]
            yield FoundSystem(entry, f"the socket {path}", advice)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


# ------------------------------------------------------------------ servers, by processes and sockets


@dataclass(frozen=True, slots=True)
class _Program:
    """A server that is known by the name of its process.

    `listens` finds host and port in its command line, and `entry` has {host} and {port}. `socket_entry` has {path} and {user}, the
    user of this process; `sockets` are where a package puts the socket, and `prefers_socket` is whether it is taken before a port.
    """

    kind: str
    names: Sequence[str]
    listens: re.Pattern[str]
    port: int
    entry: Mapping[str, Any]
    sockets: Sequence[str] = ()
    socket_entry: Mapping[str, Any] = field(default_factory=dict)
    prefers_socket: bool = False
    advice: Sequence[str] = ()


_WEB_ADDRESS = re.compile(r"--web\.listen-address[= ]([^ ]*):(\d+)")
_PROGRAMS = (
    _Program(
        "prometheus",
        ("prometheus",),
        _WEB_ADDRESS,
        9090,
        {"url": "http://{host}:{port}"},
    ),
    _Program(
        "alertmanager",
        ("alertmanager", "prometheus-alertmanager", "prometheus-alert"),
        _WEB_ADDRESS,
        9093,
        {"url": "http://{host}:{port}"},
    ),
    _Program(
        "redis",
        ("redis-server", "valkey-server"),
        re.compile(r"-server ([^ ]*):(\d+)"),  # the title that it gives itself
        6379,
        {"url": "redis://{host}:{port}"},
        ("/run/redis/redis-server.sock", "/run/redis/redis.sock", "/tmp/redis.sock"),
        {"url": "unix://{path}"},
        advice=[
            "A user of its own, with what docs/redis.md lists, is enough; its password belongs into a variable."
        ],
    ),
    _Program(
        "mysql",
        ("mariadbd", "mysqld"),
        re.compile(r"--bind-address=([^ ]*).*--port=(\d+)"),
        3306,
        {"dsn": "mysql://midwatch@{host}:{port}"},
        ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"),
        {"socket": "{path}", "user": "{user}"},
        prefers_socket=True,  # which lets the user of the system log in by its name
        advice=[
            "An account of its own, with the grants of docs/mysql.md, is enough; its password belongs into a variable."
        ],
    ),
)


def _servers(environ: Mapping[str, str]) -> Iterator[FoundSystem]:
    """Yield each server once: by the process that runs it, or by a socket whose process this user does not see."""
    from midwatch.subjects.host_processes import running

    known = {one.kind: [*one.sockets] for one in _PROGRAMS}
    if named := environ.get("MYSQL_UNIX_PORT"):
        known["mysql"].insert(0, named)
    sockets = {
        kind: list(dict.fromkeys(str(Path(one).resolve()) for one in paths))
        for kind, paths in known.items()
    }
    sockets = {
        kind: [one for one in paths if _is_socket(Path(one))]
        for kind, paths in sockets.items()
    }
    seen = set()
    for pid, name, line in running():
        for program in _PROGRAMS:
            if name not in program.names:
                continue
            place = _place(program, pid, line or "", sockets[program.kind])
            if (program.kind, place) not in seen:
                seen.add((program.kind, place))
                yield _server(program, place, f"the process {one_line(str(name), 50)}")
    for program in _PROGRAMS:
        for path in sockets[program.kind]:
            yield _server(program, path, f"the socket {path}")


def _place(
    program: _Program, pid: int, line: str, sockets: list[str]
) -> str | tuple[str, int]:
    """Return the socket, or host and port, at which a process is reached. What it has of `sockets` is taken out."""
    from midwatch.subjects.host_processes import listening

    # One of another user is reached at the first socket of its package, if that is there.
    paths, ports = listening(pid) or (sockets[:1], list[int]())
    # MySQL has one for its other protocol, too.
    paths = [one for one in paths if "mysqlx" not in one and _is_socket(Path(one))]
    for one in {str(Path(one).resolve()) for one in paths} & set(sockets):
        sockets.remove(one)
    match = program.listens.search(line)
    wanted = program.prefers_socket or not (ports or match)
    if paths and program.socket_entry and wanted:
        return paths[0]
    if match is not None:
        return _reached_at(match[1]), int(match[2])
    default = program.port in ports or not ports
    return "127.0.0.1", program.port if default else ports[0]


def _server(program: _Program, place: str | tuple[str, int], where: str) -> FoundSystem:
    if isinstance(place, str):
        entry, values = program.socket_entry, {"path": place, "user": _user()}
    else:
        entry, values = program.entry, {"host": place[0], "port": str(place[1])}
    filled = {key: text.format(**values) for key, text in entry.items()}
    named = {"name": program.kind, "kind": program.kind, **filled}
    return FoundSystem(named, where, program.advice)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without a name
        return str(os.geteuid())


def _reached_at(host: str) -> str:
    """Return the host at which a server is reached that listens on `host`, which may stand for all addresses."""
    return "127.0.0.1" if host in ("", "*", "0.0.0.0", "[::]", "::") else host


# ------------------------------------------------------------------ Kubernetes


def _kubernetes(environ: Mapping[str, str]) -> Iterator[FoundSystem]:
    home = environ.get("HOME", "")
    names = environ.get("KUBECONFIG") or (f"{home}/.kube/config" if home else "")
    file = Path(names.split(":")[0]) if names else None
    if file is not None and file.is_file():
        entry = {"name": "cluster", "kind": "kubernetes", "kubeconfig": str(file)}
        yield FoundSystem(entry, f"the file {file}")
