"""A primary and its standby, cut in every way: neither side takes silence for health."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from midwatch.model import Json
from midwatch.subjects.postgres import PostgresSubject, sql
from midwatch.testing.fakes import ManualClock
from midwatch.testing.postgres import PrivatePostgres, Standby

from ..waiting import wait_until
from .test_postgres_subject import evidence, first_aid, text_of, ticket
from .test_postgres_unknown import (
    ROLE,
    UNSEEN,
    VERSIONS,
    admin,
    broken,
    fate,
    signal_of,
    subject,
)

LAG = "replication_lag"


@pytest.fixture(params=VERSIONS)
def primary(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    settings: dict[str, Any] = {"wal_level": "logical", "autovacuum": False}
    settings |= {"max_wal_size": "4MB", "min_wal_size": "2MB"}
    # Nothing but the tests writes: a standby that has replayed all stays so.
    settings |= {"bgwriter_delay": "10s", "checkpoint_timeout": "1h"}
    with PrivatePostgres(settings=settings, programs=request.param) as one:
        with admin(one) as connection:
            for statement in (
                ROLE,
                "CREATE DATABASE orders",
                "CREATE TABLE t (g int)",
            ):
                connection.execute(statement)
        yield one


def watch(
    server: PrivatePostgres, clock: ManualClock, **settings: Any
) -> PostgresSubject:
    only = {LAG: {"limit": "60s", "for": "0s"}, **settings.pop("invariants", {})}
    dsn = server.dsn("postgres", "midwatch")
    return subject(server, clock=clock, dsn=dsn, invariants=only, **settings)


def write(primary: PrivatePostgres, rows: int = 1_000) -> None:
    with admin(primary) as connection:
        connection.execute(f"INSERT INTO t SELECT generate_series(1, {rows})")


def replayed(primary: PrivatePostgres, standby: PrivatePostgres) -> None:
    """Wait until the standby has replayed all and has told so."""
    caught_up = (
        "SELECT count(*) FROM pg_stat_replication "
        "WHERE state = 'streaming' AND replay_lsn = pg_current_wal_lsn()"
    )
    with admin(primary) as connection:
        wait_until(lambda: connection.execute(caught_up).fetchone() == (1,))
    with admin(standby) as connection:
        wait_until(
            lambda: connection.execute(
                "SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()"
            ).fetchone()
            == (True,)
        )


def senders(primary: PrivatePostgres) -> int:
    with admin(primary) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_replication"
        ).fetchone()
        return int(found[0]) if found else 0


async def test_a_cut_standby_is_unknown_then_late_on_both_sides(
    primary: PrivatePostgres,
) -> None:
    clock = ManualClock()
    one = watch(primary, clock)
    with Standby(primary) as standby:
        other = watch(standby, clock)
        replayed(primary, standby)
        states: list[Json] = [
            (await one.observe({})).state,
            (await other.observe({})).state,
        ]
        seen = await one.observe(states[0])
        assert seen.covers(LAG) and not broken(one, seen)
        assert not broken(other, await other.observe(states[1]))
        (name,) = (s.component for s in seen.signals if s.invariant == LAG)

        with admin(standby) as connection:  # as a broken network does
            (told,) = connection.execute("SHOW primary_conninfo").fetchone() or ("",)
            connection.execute("ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: senders(primary) == 0)
        write(primary)
        await clock.advance(10)
        first = await one.observe(seen.state), await other.observe(states[1])
        assert fate(one, first[0], LAG, name) == "unknown"
        assert fate(other, first[1], LAG, "this server") == "unknown"
        await clock.advance(30)
        later = await one.observe(first[0].state), await other.observe(first[1].state)
        assert fate(one, later[0], LAG, name) == "unknown"
        assert fate(other, later[1], LAG, "this server") == "unknown"
        await clock.advance(40)
        last = await one.observe(later[0].state), await other.observe(later[1].state)
        assert broken(one, last[0]) == {(LAG, name)}
        assert broken(other, last[1]) == {(LAG, "this server")}
        found = signal_of(last[0], LAG, name)
        assert "has no connection for 1m 10s" in found.message
        assert found.facts["lag_bytes"] and not found.facts["wal_gone"]
        assert not last[0].unsupported.keys() - UNSEEN
        for watched, seen, component in (
            (one, last[0], name),
            (other, last[1], "this server"),
        ):
            broken_one = ticket(signal_of(seen, LAG, component))
            note = first_aid([broken_one], await evidence(watched, [broken_one]))
            assert "has no connection to its primary" in note.summary

        with admin(standby) as connection:
            connection.execute(f"ALTER SYSTEM SET primary_conninfo = $_${told}$_$")
            connection.execute("SELECT pg_reload_conf()")
        replayed(primary, standby)
        assert fate(one, await one.observe(last[0].state), LAG, name) == "resolved"
        back = await other.observe(last[1].state)  # a connection that may fail again
        back = await other.observe(back.state)
        assert fate(other, back, LAG, "this server") == "resolved"


async def test_log_that_a_standby_needs_and_that_is_gone_breaks_at_once(
    primary: PrivatePostgres,
) -> None:
    clock = ManualClock()
    one = watch(primary, clock)
    with Standby(primary) as standby:
        replayed(primary, standby)
        seen = await one.observe({})
        (name,) = (s.component for s in seen.signals if s.invariant == LAG)
        standby.shutdown()
        wait_until(lambda: senders(primary) == 0)
        with admin(primary) as connection:
            for _ in range(6):
                write(primary, 20_000)
                connection.execute("SELECT pg_switch_wal()")
                connection.execute("CHECKPOINT")
        seen = await one.observe(seen.state)
        assert fate(one, seen, LAG, name) == "broken"
        assert "is gone: rebuild it" in signal_of(seen, LAG, name).message

        # It comes back and asks in vain: its receiver never streams.
        standby.restart()
        other = watch(standby, clock)
        wait_until(lambda: "has already been removed" in standby.log_file.read_text())
        first = await other.observe({})
        assert fate(other, first, LAG, "this server") == "unknown"
        await clock.advance(70)
        last = await other.observe(first.state)
        assert fate(other, last, LAG, "this server") == "broken"
        assert fate(one, await one.observe(seen.state), LAG, name) == "broken"


async def test_log_that_a_standby_has_itself_is_not_missed(
    primary: PrivatePostgres,
) -> None:
    clock = ManualClock()
    one = watch(primary, clock)
    with Standby(primary) as standby:
        replayed(primary, standby)
        with admin(primary) as connection, admin(standby) as there:
            seen = await one.observe({})
            (name,) = (s.component for s in seen.signals if s.invariant == LAG)
            # It has received far more than it has replayed.
            there.execute("SELECT pg_wal_replay_pause()")
            connection.execute("ALTER SYSTEM SET wal_keep_size = '90MB'")
            connection.execute("SELECT pg_reload_conf()")
            write(primary, 300_000)
            flushed = (
                "SELECT flush_lsn >= pg_current_wal_lsn() FROM pg_stat_replication"
            )
            wait_until(lambda: connection.execute(flushed).fetchone() == (True,))
            later = await one.observe(seen.state)
            connection.execute("ALTER SYSTEM RESET wal_keep_size")
            connection.execute("SELECT pg_reload_conf()")
            wait_until(
                lambda: connection.execute("SHOW wal_keep_size").fetchone() == ("0",)
            )
            connection.execute("CHECKPOINT")
        standby.shutdown()
        wait_until(lambda: senders(primary) == 0)
        gone = await one.observe(later.state)
        assert fate(one, gone, LAG, name) == "unknown"


def test_the_segment_before_a_position_at_its_end_is_not_needed(
    primary: PrivatePostgres,
) -> None:
    with admin(primary) as connection:
        write(primary)
        connection.execute("SELECT pg_switch_wal()")
        start = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        connection.execute("CHECKPOINT")
        assert start is not None
        kept = connection.execute(sql.WAL_KEPT, {"lsn": start[0]}).fetchone()
        assert kept == (True,)


async def test_a_standby_that_is_removed_is_forgotten_with_its_slot_or_ignored(
    primary: PrivatePostgres,
) -> None:
    clock = ManualClock()
    one = watch(primary, clock)
    with Standby(primary, slot="b") as standby:
        replayed(primary, standby)
        seen = await one.observe({})
        (name,) = (s.component for s in seen.signals if s.invariant == LAG)
    wait_until(lambda: senders(primary) == 0)
    gone = await one.observe(seen.state)
    await clock.advance(70)
    gone = await one.observe(gone.state)
    assert fate(one, gone, LAG, name) == "broken"
    assert "drop its slot" in signal_of(gone, LAG, name).message

    calm = watch(primary, clock, invariants={LAG: {"ignore": [{"standby": "walrec*"}]}})
    left_out = await calm.observe(gone.state)
    assert fate(calm, left_out, LAG, name) == "resolved"
    assert left_out.ignored[LAG] == ("standby walreceiver",)
    with admin(primary) as connection:
        connection.execute("SELECT pg_drop_replication_slot('b')")
    assert fate(one, await one.observe(gone.state), LAG, name) == "resolved"


async def test_a_paused_replay_is_late_by_what_it_has_not_replayed(
    primary: PrivatePostgres,
) -> None:
    clock = ManualClock()
    with Standby(primary) as standby:
        replayed(primary, standby)
        other = watch(standby, clock)
        seen = await other.observe({})
        with admin(standby) as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
            write(primary)
            behind = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"
            wait_until(lambda: connection.execute(behind).fetchone() == (True,))
            seen = await other.observe(seen.state)
            assert fate(other, seen, LAG, "this server") != "broken"
            await clock.advance(70)
            seen = await other.observe(seen.state)
            assert fate(other, seen, LAG, "this server") == "broken"
            late = signal_of(seen, LAG, "this server")
            assert "its replay is paused" in late.message
            shown = text_of(await evidence(other, [ticket(late)]), "Delays")
            assert "replay=paused last_transaction_replayed=none since" in shown


async def test_a_standby_says_nothing_about_dead_rows(primary: PrivatePostgres) -> None:
    clock = ManualClock()
    with Standby(primary) as standby:
        other = watch(standby, clock)
        seen = await other.observe((await other.observe({})).state)
        assert fate(other, seen, "dead_tuples", "postgres.public.t") == "unknown"
        assert "dead_tuples" not in {**seen.unavailable, **seen.unsupported}


async def test_a_standby_of_an_archive_alone_is_unsupported(
    primary: PrivatePostgres,
) -> None:
    clock = ManualClock()
    with Standby(primary) as standby:
        standby.shutdown()
        with (standby.folder / "data" / "postgresql.auto.conf").open("a") as conf:
            conf.write("primary_conninfo = ''\nrestore_command = 'false'\n")
        standby.restart()
        other = watch(standby, clock)
        seen = await other.observe({})
        await clock.advance(100)
        seen = await other.observe(seen.state)
        assert fate(other, seen, LAG, "this server") == "unknown"
        assert "replays from an archive" in seen.unsupported[LAG]


async def test_slots_that_a_standby_synchronises_have_no_reader_on_purpose(
    primary: PrivatePostgres,
) -> None:
    with admin(primary) as connection:
        if connection.info.server_version < 170000:
            pytest.skip("slots are synchronised from PostgreSQL 17 on")
        connection.execute("ALTER SYSTEM SET hot_standby_feedback = on")
        connection.execute(
            "SELECT pg_create_logical_replication_slot('feed', 'pgoutput', false, false, true)"
        )
    clock = ManualClock()
    limit = {"inactive_slots": {"limit": 0, "for": "0s"}}
    one = watch(primary, clock, invariants=limit)
    settings = {"hot_standby_feedback": True, "sync_replication_slots": True}
    with Standby(primary, slot="b", **settings) as standby:
        with (standby.folder / "data" / "postgresql.auto.conf").open("a") as conf:
            conf.write(
                f"primary_conninfo = 'host={primary.socket_folder} port={primary.port} "
                "user=postgres dbname=postgres'\n"
            )
        standby.restart()
        with admin(standby) as connection:
            synced = "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary"

            def is_synced() -> bool:
                with admin(primary) as writer:
                    writer.execute("SELECT pg_log_standby_snapshot()")
                    writer.execute(
                        "SELECT pg_replication_slot_advance('feed', pg_current_wal_lsn())"
                    )
                return connection.execute(synced).fetchone() == (1,)

            wait_until(is_synced)
        seen = await watch(standby, clock, invariants=limit).observe({})
        assert not [s for s in seen.signals if s.invariant == "inactive_slots"]
        assert seen.covers("inactive_slots")
        seen = await one.observe({})
        assert fate(one, seen, "inactive_slots", "feed") == "broken"
