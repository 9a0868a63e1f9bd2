"""SQLite locked, full, removed or corrupted: a clear error, nothing lost, and recovery."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from midwatch.errors import (
    MidwatchError,
    StoreBusy,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)
from midwatch.store import sqlite
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.store_conformance import MovableClock, StoreFixture

from ..waiting import PATIENCE

LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def quick_busy(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(sqlite, "SQLITE_BUSY_SECONDS", 0.2)
    return 0.2


@pytest.fixture
async def store(quick_busy: float, sqlite_file: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{sqlite_file}")
    yield store
    await store.close()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let another process lock the file while the block runs."""
    command = [sys.executable, "-c", LOCK, str(file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "locked\n"
        yield
        process.stdin.close()
        process.wait(PATIENCE)


def _busy_timeout(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())


async def test_locked_by_another_process(
    store: SqlStore, sqlite_file: Path, quick_busy: float
) -> None:
    await store.watch("db")
    assert await store.transactions.run(_busy_timeout) == quick_busy * 1000
    with locked(sqlite_file):
        start = time.monotonic()
        with pytest.raises(StoreBusy) as caught:
            await store.watch("db")
        assert quick_busy / 2 < time.monotonic() - start < PATIENCE
        assert (
            "locked" in caught.value.one_line()
            and "try again" in caught.value.one_line()
        )
    assert (await store.watch("db")).tickets == ()


async def test_a_waiting_writer_tries_at_short_intervals(
    store: SqlStore, sqlite_file: Path
) -> None:
    """Otherwise processes that arrive later take the lock again and again, and the wait ends in an error."""
    assert isinstance(store.transactions, sqlite.SqliteTransactions)
    statements: list[str] = []

    @event.listens_for(store.transactions.engine, "before_cursor_execute")
    def record(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement)

    with locked(sqlite_file):
        with pytest.raises(StoreBusy):
            await store.pause("outage", 60, "a", "b")
    assert set(statements) == {"BEGIN IMMEDIATE"}
    assert len(statements) > 2
    assert await store.transactions.run(_busy_timeout) == 200


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 3 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "midwatch-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.needs_root
async def test_disk_full(tiny_disk: Path) -> None:
    """What succeeded is stored; what failed left nothing; afterwards writes work again."""
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    file = tiny_disk / "midwatch.db"
    store = await open_store(f"sqlite:///{file}")
    fixture = StoreFixture(store, MovableClock())
    opened: list[int] = []
    with pytest.raises(StoreFull) as caught:
        for number in range(500):
            tickets = await fixture.open(f"c{number}-{'x' * 150}")
            opened += [ticket.id for ticket in tickets]
            await store.save_first_aid([tickets[0].id], {"text": "y" * 4000})
    assert len(opened) > 10
    assert "free some disk" in caught.value.one_line()
    with pytest.raises(StoreFull):
        await store.save_first_aid(opened, {"text": "z" * 100_000})
    ballast.unlink()
    await fixture.open("again")
    found = [ticket.id for ticket in (await store.watch("db")).tickets]
    assert found[: len(opened)] == opened
    await store.close()
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def refused(file: Path) -> MidwatchError:
    with pytest.raises(MidwatchError) as caught:
        store = await open_store(f"sqlite:///{file}")
        await store.close()
    assert "\n" not in caught.value.one_line() and caught.value.hint
    return caught.value


async def test_the_folder_is_missing(tmp_path: Path) -> None:
    error = await refused(tmp_path / "no" / "midwatch.db")
    assert isinstance(error, StoreUnavailable)
    assert "its folder must exist" in error.one_line()
    assert isinstance(await refused(tmp_path), StoreUnavailable)


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_the_disk_may_not_be_written(sqlite_file: Path, what: str) -> None:
    if what == "file":
        await (await open_store(f"sqlite:///{sqlite_file}")).close()
        sqlite_file.chmod(0o444)
    else:
        sqlite_file.parent.chmod(0o555)
    for folder in list(sqlite_file.parents)[:3]:
        folder.chmod(folder.stat().st_mode | 0o055)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        error = await refused(sqlite_file)
    finally:
        os.seteuid(user)
        sqlite_file.parent.chmod(0o755)
    assert isinstance(error, StoreUnavailable) and "writable" in error.one_line()


async def test_no_database_file(sqlite_file: Path) -> None:
    sqlite_file.write_text("dear diary " * 1000)
    error = await refused(sqlite_file)
    assert isinstance(error, StoreRejected) and "not a database" in error.one_line()
    assert sqlite_file.read_text().startswith("dear diary")


async def test_a_spoilt_file(store: SqlStore, sqlite_file: Path) -> None:
    """A corrupted file is reported."""
    await StoreFixture(store, MovableClock()).open(*(f"c{n}" for n in range(50)))
    await store.close()
    with sqlite_file.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(sqlite_file.stat().st_size - 4096))
    error = await refused(sqlite_file)
    assert isinstance(error, StoreRejected)


async def test_the_file_is_gone_and_comes_back(
    store: SqlStore, sqlite_file: Path, tmp_path: Path
) -> None:
    """Writes do not go to a file that cannot be opened again."""
    fixture = StoreFixture(store, MovableClock())
    (before,) = await fixture.open("a")
    away = tmp_path / "away"
    away.mkdir()
    for part in tmp_path.glob("midwatch.db*"):
        shutil.move(part, away / part.name)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="is gone"):
            await fixture.open("b")
    for part in away.iterdir():
        shutil.copy(part, tmp_path / part.name)
    (after,) = await fixture.open("b")
    assert [ticket.id for ticket in (await store.watch("db")).tickets] == [
        before.id,
        after.id,
    ]


async def test_a_deleted_log_loses_nothing(store: SqlStore, sqlite_file: Path) -> None:
    """What is in a write-ahead log that was deleted is written into the file; others see it again."""
    fixture = StoreFixture(store, MovableClock())
    await fixture.open("a")
    for part in sqlite_file.parent.glob("midwatch.db-*"):
        part.unlink()
    await fixture.open("b")
    other = await open_store(f"sqlite:///{sqlite_file}", create=False)
    try:
        assert len((await other.watch("db")).tickets) == 2
    finally:
        await other.close()


@pytest.mark.parametrize("what", ["deleted", "replaced"])
async def test_a_daemon_makes_a_deleted_file_again(
    sqlite_file: Path, tmp_path: Path, what: str
) -> None:
    told: list[str] = []
    store = await open_store(f"sqlite:///{sqlite_file}", renewed=told.append)
    try:
        fixture = StoreFixture(store, MovableClock())
        await fixture.open("a")
        assert store.notice == ""
        for part in tmp_path.glob("midwatch.db*"):
            part.unlink()
        if what == "replaced":
            sqlite_file.touch()
        with pytest.raises(StoreUnavailable, match=f"was {what} while it was in use"):
            await fixture.open("b")
        (ticket,) = await fixture.open("a")
        assert ticket.id == 1 and len(told) == 1 and told[0] in store.notice
        assert sqlite_file.stat().st_mode & 0o077 == 0 or what == "replaced"
    finally:
        await store.close()


async def test_a_deleted_folder_is_told_until_it_is_back(
    tmp_path: Path, sqlite_file: Path
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    store = await open_store(f"sqlite:///{folder / 'midwatch.db'}", renewed=print)
    try:
        fixture = StoreFixture(store, MovableClock())
        await fixture.open("a")
        shutil.rmtree(folder)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="No such file"):
                await fixture.open("b")
        folder.mkdir()
        with pytest.raises(StoreUnavailable, match="was deleted while it was in use"):
            await fixture.open("b")
        await fixture.open("b")
    finally:
        await store.close()
