"""The log of real servers: what clients write into it, what really happens, and what cannot be read."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from midwatch.model import Observation, Signal
from midwatch.subjects.postgres import PostgresSettings, PostgresSubject
from midwatch.subjects.postgres.connection import Connection
from midwatch.subjects.postgres.log import tail
from midwatch.testing.postgres import PrivatePostgres

from ..waiting import wait_until

PREFIXES = (
    "%m [%p] ",  # PostgreSQL's own
    "%m [%p] %q%u@%d ",  # Debian's
    "%m [%p] app=%a ",
    "%t [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ",  # pgBadger's
)
FORMATS = ("stderr", "csvlog", "jsonlog")


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    settings = {
        "log_destination": ",".join(FORMATS),
        "logging_collector": True,
        "log_filename": "server.log",
        "max_connections": 5,
        "superuser_reserved_connections": 1,
        "io_method": "sync",  # the session itself reads, not a worker
        "min_wal_size": "2MB",
        "max_wal_size": "2MB",
        "wal_level": "replica",
    }
    with PrivatePostgres(settings=settings) as one:
        damage(one)
        yield one


READ_DAMAGE = "SELECT count(*) FROM damaged"


def damage(server: PrivatePostgres) -> None:
    """Make a table with three damaged pages side by side; reading it is an error."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE TABLE damaged AS SELECT generate_series(1, 5000) n")
        row = admin.execute("SELECT pg_relation_filepath('damaged')").fetchone()
    assert row
    server.shutdown()
    with (server.folder / "data" / row[0]).open("r+b") as table:
        for block in (3, 4, 5):
            table.seek(block * 8192 + 4000)
            table.write(b"damage")
    server.restart()


def log_of(server: PrivatePostgres, format_: str) -> Path:
    ending = {"stderr": "log", "csvlog": "csv", "jsonlog": "json"}[format_]
    return server.folder / "data" / "log" / f"server.{ending}"


def only(server: PrivatePostgres, *formats: str, **settings: str) -> None:
    """Let the server write these formats, and wait until its processes do."""
    wanted = {**settings}
    if formats:
        wanted["log_destination"] = ",".join(formats)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for name, value in wanted.items():
            admin.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        admin.execute("SELECT pg_reload_conf()")
        for name, value in wanted.items():

            def shown() -> bool:
                row = admin.execute("SELECT current_setting(%s)", [name]).fetchone()
                return row == (value,)

            wait_until(shown)
    if formats and set(formats) <= set(FORMATS):
        marker(server)


def watched(
    server: PrivatePostgres, log: Path | None = None, **settings: Any
) -> PostgresSubject:
    given = {"name": "db", "dsn": server.dsn(), "log_file": log, **settings}
    return PostgresSubject(PostgresSettings.model_validate(given))


def found(seen: Observation) -> dict[str, Signal]:
    return {one.component: one for one in seen.signals if one.invariant == "log_errors"}


async def until(
    subject: PostgresSubject, state: Mapping[str, Any], kind: str
) -> Observation:
    """Return the first observation in which the log reports this kind."""
    while True:
        seen = await subject.observe(state)
        if kind in found(seen):
            return seen
        state = seen.state


def marker(server: PrivatePostgres) -> str:
    """Write a line to the log until all formats have it: then they have all before it too. Return its text.

    More than once, because the log collector may learn of a new format after the sessions do,
    and writes what comes before that to another file.
    """
    text = f"marker {os.urandom(8).hex()}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        row = admin.execute("SHOW log_destination").fetchone()
        assert row
        wanted = [log_of(server, name) for name in row[0].split(",")]

        def written() -> bool:
            admin.execute(f"DO $$BEGIN RAISE LOG '{text}'; END$$".encode())
            return all(text in log.read_text(errors="replace") for log in wanted)

        wait_until(written)
    return text


def attack(server: PrivatePostgres, **login: str) -> None:
    with contextlib.suppress(psycopg.Error):
        with psycopg.connect(server.dsn(), autocommit=True, **login) as client:  # type: ignore[arg-type]
            client.execute("selec")


def statement(server: PrivatePostgres, *texts: str, **login: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True, **login) as client:  # type: ignore[arg-type]
        for one in texts:
            with contextlib.suppress(psycopg.Error):
                client.execute(one.encode())


FORGED = "2026-11-29 00:00:00.000 UTC [1] PANIC:  x"
CRASH = "server process (PID 7) was terminated by signal 9: Killed"


def attacks(server: PrivatePostgres) -> None:
    """Do all that clients can do to forge a line, without a login and with one."""
    for name in (
        "PANIC:  x",
        " PANIC:  x",
        "x PANIC:  y",
        "x PANIC:  y LOG:  z",
        "x\nPANIC:  y",
        f"x\n{FORGED}",
        f"x@d LOG:  a\n{FORGED}",
        f"LOG:  {CRASH}",
    ):
        attack(server, application_name=name)
        attack(server, application_name=name, dbname="nowhere")
        attack(server, dbname=name)
        attack(server, user=name)
        attack(server, user=name, dbname=f"\n{FORGED[:32]}y@z")
    statement(
        server,
        f"DO $$BEGIN RAISE LOG '{CRASH}'; END$$",
        "DO $$BEGIN RAISE LOG 'x PANIC:  y'; END$$",
        "DO $$BEGIN RAISE WARNING 'page verification failed'; END$$",
        "DO $$BEGIN RAISE EXCEPTION 'out of memory'; END$$",
        "DO $$BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END$$",
        "DO $$BEGIN ASSERT false, 'out of memory'; END$$",
        *(
            f"CREATE FUNCTION {name} RETURNS int LANGUAGE plpgsql AS $$BEGIN "
            f"RAISE LOG 'out of memory'; END$$; SELECT {call}"
            for name, call in (
                (f"pg_temp.f({', '.join(['integer'] * 60)})", f"pg_temp.f({', '.join('0' * 60)})"),  # fmt: skip
                ('pg_temp."a\nb"()', 'pg_temp."a\nb"()'),
            )
        ),
        'SELECT * FROM "a PANIC:  b"',
        "SELEC -- PANIC:  x",
        "SELEC\nPANIC:  x",
        f"SELEC\n{FORGED}",
        f"SELEC '\n{FORGED}\n",
        'SELEC "\n2026-11-29 00:00:00.000 UTC,,,1,,a.b,1,,2026-11-29 00:00:00 UTC,,0,PANIC,XX000,"x",,,,,,,,,"","",,0\n',
        'SELEC \n{"timestamp":"x","pid":1,"error_severity":"PANIC","message":"x"}\n',
        "SELEC \u2028PANIC:  x",
    )


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_no_client_can_forge_a_line(server: PrivatePostgres, prefix: str) -> None:
    only(server, *FORMATS, log_line_prefix=prefix, log_statement="all")
    # A neighbour in JSON is preferred to a text log, so the text is read under another name.
    text = server.folder / f"text-{PREFIXES.index(prefix)}"
    text.symlink_to(log_of(server, "stderr"))
    subjects = [watched(server, text)]
    subjects += [watched(server, log_of(server, name)) for name in FORMATS[1:]]
    subjects.append(watched(server))
    before = [await one.observe({}) for one in subjects]
    attacks(server)
    marker(server)
    for subject, first in zip(subjects, before, strict=True):
        seen = await subject.observe(first.state)
        assert found(seen) == {}
        assert seen.covers("log_errors"), seen.unavailable | seen.unsupported


@pytest.mark.parametrize(
    "name", ["orders", "x LOG:  y", "STATEMENT:  x", "x ERROR:  z"]
)
@pytest.mark.parametrize("prefix", PREFIXES)
async def test_no_client_can_hide_a_real_line(
    server: PrivatePostgres, prefix: str, name: str
) -> None:
    only(server, *FORMATS, log_line_prefix=prefix, log_statement="none")
    text = server.folder / f"text-{PREFIXES.index(prefix)}-{len(name)}"
    text.symlink_to(log_of(server, "stderr"))
    subjects = [watched(server, text), watched(server)]
    before = [await one.observe({}) for one in subjects]
    statement(server, READ_DAMAGE, application_name=name)
    marker(server)
    plain, structured = [
        found(await subject.observe(first.state))["damaged data"].facts
        for subject, first in zip(subjects, before, strict=True)
    ]
    assert plain["count"] == structured["count"]
    assert structured["application"] == " ".join(name.split())


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("prefix", PREFIXES[:2])
async def test_a_real_crash_is_reported_in_each_format(
    server: PrivatePostgres, prefix: str, format_: str
) -> None:
    only(server, format_, log_line_prefix=prefix)
    subjects = [watched(server, log_of(server, format_)), watched(server)]
    before = [await one.observe({}) for one in subjects]
    with psycopg.connect(server.dsn(), application_name="victim") as client:
        os.kill(client.info.backend_pid, signal.SIGKILL)
    for subject, first in zip(subjects, before, strict=True):
        crash = found(await until(subject, first.state, "crash"))["crash"]
        assert "was terminated by signal 9" in str(crash.facts["line"])


# ------------------------------------------------------------------ rotation


def crash_line(log: Path, pid: int) -> None:
    with log.open("a") as end:
        end.write(
            f"2026-01-01 00:00:00.000 UTC [1] LOG:  server process (PID {pid}) "
            "was terminated by signal 9: Killed\n"
        )


def renamed(log: Path) -> None:
    log.rename(log.with_name("server.log.1"))
    log.touch()


def copied_and_truncated(log: Path) -> None:
    shutil.copy(log, log.with_name("server.log-20260101"))
    log.write_bytes(b"")


def copied_and_grown_again(log: Path) -> None:
    copied_and_truncated(log)
    log.write_text("x" * 5000 + "\n")


def rotated_twice(log: Path) -> None:
    renamed(log)
    log.write_text("a file that no poll has seen\n")
    log.with_name("server.log.1").rename(log.with_name("server.log.2"))
    os.utime(log.with_name("server.log.2"), (1, 1))
    renamed(log)


@pytest.mark.parametrize(
    "rotate", [renamed, copied_and_truncated, copied_and_grown_again, rotated_twice]
)
async def test_lines_before_a_rotation_are_read(
    server: PrivatePostgres, tmp_path: Path, rotate: Callable[[Path], None]
) -> None:
    only(server, "stderr", log_line_prefix="%m [%p] ")
    log = tmp_path / "server.log"
    log.write_text("2026-01-01 00:00:00.000 UTC [1] LOG:  started\n")
    subject = watched(server, log)
    first = await subject.observe({})
    crash_line(log, 7)
    rotate(log)
    crash_line(log, 8)
    seen = await subject.observe(first.state)
    assert found(seen)["crash"].facts["count"] == 2
    assert seen.covers("log_errors")
    assert found(await subject.observe(seen.state))["crash"].facts["count"] == 2


@pytest.mark.parametrize("compressed", [False, True])
async def test_lines_that_a_rotation_took_away_are_unknown_not_clear(
    server: PrivatePostgres, tmp_path: Path, compressed: bool
) -> None:
    only(server, "stderr", log_line_prefix="%m [%p] ")
    log = tmp_path / "server.log"
    log.write_text("2026-01-01 00:00:00.000 UTC [1] LOG:  started\n")
    subject = watched(server, log)
    first = await subject.observe({})
    crash_line(log, 7)
    renamed(log)
    old = log.with_name("server.log.1")
    if compressed:
        old.rename(log.with_name("server.log.1.gz")).write_bytes(b"\x1f\x8b")
    else:
        old.unlink()
    crash_line(log, 8)
    seen = await subject.observe(first.state)
    assert "rotated" in seen.unavailable["log_errors"]
    assert found(seen)["crash"].facts["count"] == 1  # what is seen counts nevertheless
    after = await subject.observe(seen.state)
    assert after.covers("log_errors") and "crash" in found(after)


@pytest.mark.parametrize("format_", FORMATS)
async def test_lines_before_a_rotation_are_read_through_the_server(
    format_: str,
) -> None:
    settings = {
        "logging_collector": True,
        "log_destination": format_,
        "log_filename": "server-%H%M%S.log",
    }
    with PrivatePostgres(settings=settings) as rotating:
        damage(rotating)
        subject = watched(rotating)
        with psycopg.connect(rotating.dsn(), autocommit=True) as admin:
            place = f"SELECT pg_current_logfile('{format_}')".encode()
            old = admin.execute(place).fetchone()
            first = await subject.observe({})
            statement(rotating, READ_DAMAGE)

            def rotated() -> bool:
                admin.execute("SELECT pg_rotate_logfile()")
                return admin.execute(place).fetchone() not in (old, None)

            wait_until(rotated)
        seen = await until(subject, first.state, "damaged data")
    assert seen.covers("log_errors")


# ------------------------------------------------------------------ what cannot be read


async def test_a_role_is_told_what_it_lacks_and_that_is_enough(
    server: PrivatePostgres,
) -> None:
    only(server, "jsonlog")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")
    subject = watched(server, dsn=server.dsn(user="watcher"))
    seen = await subject.observe((await subject.observe({})).state)
    reason = seen.unsupported["log_errors"]
    assert "log_errors" not in seen.unavailable and not seen.covers("log_errors")
    grant = reason[reason.index("GRANT") :].rstrip(")").replace("the role", "watcher")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(grant.encode())
    seen = await subject.observe((await subject.observe(seen.state)).state)
    assert seen.covers("log_errors")


@pytest.mark.parametrize(
    ("setting", "value", "log", "reason"),
    [
        ("log_min_messages", "fatal", "server.log", "log_min_messages = fatal"),
        ("log_destination", "csvlog", "text", "writes its log to csvlog"),
        ("log_destination", "stderr", "none", "No such file"),
        ("log_destination", "stderr", ".", "not a regular file"),
        ("log_destination", "syslog", None, "writes its log to syslog"),
    ],
)
async def test_a_setting_that_hides_the_log_is_named(
    server: PrivatePostgres, setting: str, value: str, log: str | None, reason: str
) -> None:
    only(server, *FORMATS, log_min_messages="warning")
    if setting == "log_destination":
        only(server, value)
    else:
        only(server, **{setting: value})
    (server.folder / "data" / "log" / "text").touch()
    place = server.folder / "data" / "log" / log if log else None
    subject = watched(server, place)
    seen = await subject.observe((await subject.observe({})).state)
    assert reason in seen.unsupported["log_errors"]
    assert not seen.covers("log_errors") and "log_errors" not in seen.unavailable
    only(server, *FORMATS, log_min_messages="warning")


async def test_the_log_of_another_server_is_not_taken_for_health(
    server: PrivatePostgres, tmp_path: Path
) -> None:
    only(server, "stderr", log_line_prefix="%m [%p] %q%u@%d ")
    log = tmp_path / "server.log"
    log.touch()
    subject = watched(server, log)
    first = await subject.observe({})
    log.write_text("db-1 | 2026-01-01 00:00:00.000 UTC [1] LOG:  checkpoint starting\n")
    seen = await subject.observe(first.state)
    assert "log_line_prefix" in seen.unavailable["log_errors"]


# ------------------------------------------------------------------ what really happens


async def test_damaged_pages_are_seen_in_the_log_and_by_the_counter(
    server: PrivatePostgres,
) -> None:
    only(server, *FORMATS)
    subject = watched(server, log_of(server, "stderr"))
    first = await subject.observe({})
    assert first.covers("checksum_failures")
    statement(server, READ_DAMAGE)
    seen = await until(subject, first.state, "damaged data")
    assert "3 invalid pages among blocks" in log_of(server, "stderr").read_text()

    async def counted() -> list[Signal]:
        seen = await subject.observe(first.state)
        return [one for one in seen.signals if one.invariant == "checksum_failures"]

    while not (counters := await counted()):
        pass
    assert counters[0].component == "postgres"
    assert counters[0].value and counters[0].value >= 3
    assert seen.covers("log_errors")


async def test_a_removed_wal_segment_is_a_kind_of_its_own(
    server: PrivatePostgres,
) -> None:
    only(server, *FORMATS)
    subject = watched(server, log_of(server, "stderr"))
    first = await subject.observe({})
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for _ in range(12):
            admin.execute("SELECT pg_logical_emit_message(false, 'x', 'y')")
            admin.execute("SELECT pg_switch_wal()")
        admin.execute("CHECKPOINT")
    first_segment = server.folder / "data/pg_wal/000000010000000000000010"
    wait_until(lambda: not first_segment.exists())
    standby = psycopg.connect(server.dsn(), autocommit=True, replication="true")  # type: ignore[arg-type]
    with contextlib.closing(standby):
        standby.pgconn.exec_(b"START_REPLICATION PHYSICAL 0/1000000")
        seen = await until(subject, first.state, "removed WAL")
    assert "has already been removed" in str(found(seen)["removed WAL"].facts["line"])


async def test_what_is_left_out_is_named(server: PrivatePostgres) -> None:
    only(server, "jsonlog")
    leave_out = {"ignore": [{"kind": "damaged data", "application": "batch*"}]}
    subject = watched(server, invariants={"log_errors": leave_out})
    first = await subject.observe({})
    statement(server, READ_DAMAGE, application_name="batch 7")
    marker(server)
    seen = await subject.observe(first.state)
    assert found(seen) == {} and seen.covers("log_errors")
    [left_out] = seen.ignored["log_errors"]
    assert left_out.startswith("kind damaged data, application batch 7 (")


@pytest.mark.parametrize("format_", FORMATS)
async def test_evidence_has_the_severity_before_what_clients_chose(
    server: PrivatePostgres, format_: str
) -> None:
    only(server, format_, log_line_prefix="%m [%p] %q%u@%d %a ")
    begin = marker(server)  # what is before it may have another prefix
    attack(server, application_name="PANIC:  forged")
    attack(server, dbname=f"x\n{FORGED}")
    marker(server)
    subject = watched(server, log_of(server, format_))
    text = await tail(subject._settings, None)
    async with Connection(subject._settings) as connection:
        text = await tail(subject._settings, connection)
    text = text.partition(begin)[2]
    severity = re.compile(r"\b(LOG|ERROR|FATAL|PANIC|STATEMENT): +")
    firsts = [severity.search(line) for line in text.split("\n") if line[:1].strip()]
    assert "PANIC" not in {one[1] for one in firsts if one}
    assert "forged" in text and "syntax error" in text
