"""`midwatch db`, `invariants` and `stats`, as real processes."""

from __future__ import annotations

from pathlib import Path

from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import open_tickets
from midwatch.testing.postgres import PrivatePostgres

from .cli import in_store, refused, said, said_json


def test_a_new_file_is_migrated_by_hand_too(tmp_path: Path) -> None:
    assert "not current" in refused(tmp_path, "db", "status")
    assert not (tmp_path / "midwatch.db").exists(), "looking must not make it"
    assert said_json(tmp_path, "db", "upgrade")["before"] is None
    status = said_json(tmp_path, "db", "status")
    assert status["current"] and status["present"] == status["needed"]


def test_postgres_without_a_schema_is_upgraded(tmp_path: Path) -> None:
    with PrivatePostgres() as server:
        env = {"MIDWATCH_DATABASE": server.dsn()}
        line = refused(tmp_path, "tickets", "list", env=env)
        assert "has no Midwatch tables" in line and "midwatch db upgrade" in line
        assert "now, before at none" in said(tmp_path, "db", "upgrade", env=env)
        assert "already" in said(tmp_path, "db", "upgrade", env=env)
        assert said_json(tmp_path, "tickets", "list", env=env) == []


def test_every_invariant_documents_itself(tmp_path: Path) -> None:
    every = said_json(tmp_path, "invariants")
    kinds = {one["kind"] for one in every}
    names = "alertmanager alerts command host http kubernetes logs mysql postgres prometheus redis"
    assert kinds == {*names.split(), None}
    assert all(one["title"] and one["description"] for one in every)
    disk = next(one for one in every if one["id"] == "disk")
    assert (disk["limit"], disk["unit"], disk["broken_when"]) == (0.9, "ratio", "above")
    text = said(tmp_path, "invariants", "host")
    assert "over 90%" in text and "under 5%" in text and "postgres" not in text
    assert "alertmanager, alerts, command, host" in refused(
        tmp_path, "invariants", "hots"
    )


def test_stats_count_what_happened(tmp_path: Path) -> None:
    async def seed(store: SqlStore) -> None:
        await open_tickets(store, "a", "b")
        await store.resolve(1, "ann@desk", "done")
        await store.beat("agent here:1", "agent", {"state": "diagnosing"})

    in_store(tmp_path, seed)
    told = said_json(tmp_path, "stats")
    assert (told["opened"], told["resolved"], told["unresolved"]) == (2, 1, 1)
    assert told["seconds_to_resolve"] >= 0 and told["seconds_to_diagnose"] is None
    assert told["daemons"][0]["info"] == {"state": "diagnosing"}
    assert told["pauses"] == [] and told["today"]["budget_usd"] == 20
    assert "agent here:1" in said(tmp_path, "stats")
    assert "--within: 'soon' is not a duration" in refused(
        tmp_path, "stats", "--within", "soon", code=2
    )
