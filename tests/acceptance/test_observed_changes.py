"""What changes between two observations is stored: settings, versions, tables, certificates, and what subjects report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from midwatch.errors import ObservationFailed
from midwatch.model import ChangeKind, Fact, Json, Observation, ObservedChange
from midwatch.monitor import observed_changes
from midwatch.monitor.loop import MonitorLoop
from midwatch.monitor.observed_changes import ObservedChanges
from midwatch.redaction import Redactor, Sanitizer
from midwatch.store.sql import SqlStore
from midwatch.subjects.base import Subject
from midwatch.subjects.postgres import PostgresSubject
from midwatch.system_changes import ChangeFilter, SystemChange
from midwatch.testing.fakes import FakeSubject, ManualClock, healthy
from midwatch.testing.postgres import PrivatePostgres

from .web import Issued, ok, serving, subject


def seen(
    facts: Mapping[str, Fact] | None = None, *changes: ObservedChange
) -> Observation:
    return replace(healthy(), configuration=facts or {}, changes=changes)


class Watched:
    """A subject that a monitor observes, a minute between two cycles; `restart` is another process."""

    def __init__(self, store: SqlStore, clock: ManualClock, of: Subject) -> None:
        self.store, self.clock, self.subject = store, clock, of
        self.restart()

    def restart(self) -> None:
        redactor = Redactor(["hunter2-secret"])
        self.loop = MonitorLoop(
            self.store, [self.subject], clock=self.clock, redactor=redactor
        )

    async def cycle(self) -> list[SystemChange]:
        """Observe once; return what that added."""
        await self.clock.advance(60)
        before = {one.id for one in await self.listed()}
        cycle = await self.loop.cycle()
        assert not cycle.unsaved
        return [one for one in await self.listed() if one.id not in before]

    async def listed(self) -> list[SystemChange]:
        return await self.store.system_changes(ChangeFilter(limit=500))


async def test_a_changed_setting_happened_between_two_observations(
    store: SqlStore, clock: ManualClock
) -> None:
    script = [
        seen({"setting a": "1", "setting b": "x", "version": "18.0"}),
        seen({"setting a": "1", "setting b": "x", "version": "18.0"}),
        seen({"setting a": "2", "setting c": "hunter2-secret", "version": "18.1"}),
        seen({"setting a": "2", "setting c": "hunter2-secret", "version": "18.1"}),
    ]
    watched = Watched(store, clock, FakeSubject(script=script))
    assert await watched.cycle() == []
    assert await watched.cycle() == []
    found = {one.title: one for one in await watched.cycle()}
    assert {name: (c.version_from, c.version_to) for name, c in found.items()} == {
        "setting a": ("1", "2"),
        "setting b": ("x", "not shown"),
        "setting c": ("not shown", found["setting c"].version_to),
        "version": ("18.0", "18.1"),
    }
    assert "hunter2" not in found["setting c"].version_to
    assert found["version"].kind is ChangeKind.DEPLOY
    now = clock.now()
    for one in found.values():
        assert (one.since, one.at) == (now - timedelta(seconds=60), now)
        assert one.observed and one.subject == "fake"
    assert await watched.cycle() == []


async def test_what_could_not_be_seen_is_no_change_and_a_restart_forgets_nothing(
    store: SqlStore, clock: ManualClock
) -> None:
    before = {"setting a": "1", "certificate of x": "old"}
    script = [
        seen(before),
        ObservationFailed("no answer"),
        seen(),  # the query failed
        seen({"certificate of x": "old"}),  # the role sees no settings
        seen({**before, "certificate of x": None}),
    ]
    fake = FakeSubject(
        script=[*script, seen({"setting a": "3", "certificate of x": "new"})]
    )
    watched = Watched(store, clock, fake)
    for _ in script:
        assert await watched.cycle() == []
        watched.restart()
    found = await watched.cycle()
    assert {(c.title, c.version_from, c.version_to, c.kind) for c in found} == {
        ("setting a", "1", "3", ChangeKind.CONFIG),
        ("certificate of x", "old", "new", ChangeKind.CERTIFICATE),
    }
    for one in found:  # the last good observation was before the restart
        assert one.since is not None and (one.at - one.since).total_seconds() == 60


async def test_of_very_many_the_first_are_stored_and_the_rest_counted(
    store: SqlStore, clock: ManualClock
) -> None:
    some = [{f"setting {n:03}": str(value) for n in range(450)} for value in (1, 2)]
    watched = Watched(store, clock, FakeSubject(script=list(map(seen, some))))
    await watched.cycle()
    found = await watched.cycle()
    assert len(found) == 41
    assert "360 more settings" in {one.title for one in found}


def test_of_groups_that_come_and_go_the_facts_are_bounded(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is forgotten is not told as removed, nor as new when it is there again."""
    monkeypatch.setattr(observed_changes, "_MOST_UNSEEN", 10)
    observed = ObservedChanges("shop", Sanitizer(Redactor()))
    kept: Json = {}

    def changed(facts: Mapping[str, str]) -> list[tuple[str, str, str]]:
        nonlocal kept
        found, kept = observed.compare(seen(facts), kept, None, clock.now())
        assert len(kept["facts"]) <= 12
        return [(one.title, one.version_from, one.version_to) for one in found]

    assert changed({"setting a": "1", "pod-0 image": "x"}) == []
    for number in range(1, 12):
        new = f"pod-{number} image"
        assert changed({"setting a": "1", new: "x"}) == [(new, "not shown", "x")]
    for number in (*range(12, 40), *range(40)):
        assert changed({"setting a": "1", f"pod-{number} image": "x"}) == []
    assert changed({"setting a": "2", "setting b": "1", "pod-39 image": "y"}) == [
        ("pod-39 image", "x", "y"),
        ("setting a", "1", "2"),
        ("setting b", "not shown", "1"),
    ]


async def test_a_rollout_that_a_subject_reports_is_stored_once(
    store: SqlStore, clock: ManualClock
) -> None:
    at = clock.now() - timedelta(minutes=7)
    old = ObservedChange("web 1", "rollout of web")
    dated = ObservedChange(
        "web 2", "rollout of web", at, version_from="a:1", version_to="a:2"
    )
    later = ObservedChange("config 3", "config map", kind=ChangeKind.CONFIG)
    script = [seen({}, old, dated), seen({}, old, dated), seen({}, old, dated, later)]
    watched = Watched(store, clock, FakeSubject(script=[*script, seen({}, old, later)]))
    [first] = await watched.cycle()  # of the other nobody knows when it was
    assert (first.at, first.since, first.version_to) == (at, None, "a:2")
    watched.restart()
    assert await watched.cycle() == []
    [second] = await watched.cycle()
    assert (second.title, second.kind) == ("config map", ChangeKind.CONFIG)
    assert second.since == clock.now() - timedelta(seconds=60)
    assert await watched.cycle() == []


async def test_postgres_shows_changed_settings_and_tables(
    store: SqlStore, clock: ManualClock
) -> None:
    with PrivatePostgres() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE orders (id int)")
            settings = PostgresSubject.settings_model(
                name="db", kind="postgres", dsn=server.dsn()
            )
            watched = Watched(store, clock, PostgresSubject(settings))
            assert await watched.cycle() == []
            assert await watched.cycle() == []
            connection.execute("ALTER TABLE orders ADD COLUMN note text")
            connection.execute("CREATE INDEX ON orders (note)")
            connection.execute("ALTER SYSTEM SET work_mem = '9MB'")
            connection.execute("SELECT pg_reload_conf()")
            found = {}
            while len(found) < 2:  # the server takes the settings up in its own time
                found |= {one.title: one for one in await watched.cycle()}
            await watched.subject.close()
    assert found["setting work_mem"].version_to == "9216 kB"
    table = found["schema postgres, table public.orders"]
    assert table.kind is ChangeKind.SCHEMA
    assert table.version_from.startswith("1 columns (")
    assert (
        table.version_to.startswith("2 columns (") and "1 indexes" in table.version_to
    )


async def test_a_replaced_certificate_is_a_change(
    store: SqlStore, clock: ManualClock, tmp_path: Path
) -> None:
    root = Issued.root()
    authority, _ = root.write(tmp_path, "root")
    tls = root.issue("shop.example").context(tmp_path)
    with serving(ok, tls) as url:
        shop = subject(url, ca_file=authority, server_name="shop.example")
        watched = Watched(store, clock, shop)
        assert await watched.cycle() == []
        tls.load_cert_chain(*root.issue("shop.example").write(tmp_path, "renewed"))
        [found] = await watched.cycle()
        await shop.close()
    assert found.kind is ChangeKind.CERTIFICATE
    assert found.title.startswith("certificate of ")
    assert found.version_from != found.version_to
