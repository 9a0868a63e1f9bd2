"""Actions that a person approves, on a real PostgreSQL with a real blocking session: run once, and only on the culprit."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from midwatch.agent.approved_actions import ApprovedActions
from midwatch.agent.evidence import ContextGatherer
from midwatch.errors import Conflict, NotFound
from midwatch.lifecycle import SystemClock
from midwatch.model import Evidence, Grounded
from midwatch.redaction import Redactor
from midwatch.store.action_runs_protocol import ActionRun, RunState
from midwatch.store.protocol import Budget, Finish
from midwatch.store.sql import SqlStore
from midwatch.subjects.base import build_subjects
from midwatch.testing.fakes import answer
from midwatch.testing.postgres import PrivatePostgres

from ..snippets import blocks
from ..waiting import wait_until
from .cli import in_store, midwatch, refused, said, said_json

ALL = ["cancel_backend", "terminate_backend", "reload"]


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    with PrivatePostgres(settings={"autovacuum": False}) as one:
        with psycopg.connect(one.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE watcher LOGIN")
            admin.execute("GRANT pg_monitor TO watcher")
            for statement in blocks("docs/actions.md", "sql")[0].split(";"):
                if statement.strip():
                    admin.execute(statement.encode())
            admin.execute("CREATE ROLE app LOGIN")
            admin.execute("CREATE TABLE stock AS SELECT 1 AS id, 0 AS n")
            admin.execute("ALTER TABLE stock OWNER TO app")
        yield one


@dataclass
class Blocked:
    """A session that holds a lock, and one that waits for it. `folder` has settings and database."""

    server: PrivatePostgres
    folder: Path
    culprit: psycopg.Connection[Any]
    waiter: psycopg.Connection[Any]

    @property
    def pid(self) -> int:
        return self.culprit.info.backend_pid

    def alive(self, pid: int) -> bool:
        with psycopg.connect(self.server.dsn()) as admin:
            found = admin.execute(
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)
            )
            return found.fetchone() is not None

    def use(self, do: Callable[[ApprovedActions, SqlStore], Any]) -> Any:
        settings = json.loads((self.folder / "midwatch.yaml").read_text())

        async def run(store: SqlStore) -> Any:
            subjects = build_subjects(settings["subjects"])
            return await do(ApprovedActions(store, subjects, Redactor()), store)

        return in_store(self.folder, run)

    def proposal(self, kind: str = "terminate_backend") -> str:
        async def find(actions: ApprovedActions, store: SqlStore) -> str:
            found = await actions.of_ticket(1)
            [one] = [one for one in found.proposals if one.action.kind == kind]
            return one.id

        return str(self.use(find))

    def approve(self, proposal: str, by: str = "ann") -> ActionRun:
        async def act(actions: ApprovedActions, store: SqlStore) -> ActionRun:
            return await actions.approve(1, proposal, by=by, channel="cli")

        run: ActionRun = self.use(act)
        return run

    def history(self) -> list[tuple[str, str, str]]:
        async def read(store: SqlStore) -> Any:
            return [(one.actor, one.action, one.why) for one in await store.history(1)]

        found: list[tuple[str, str, str]] = in_store(self.folder, read)
        return found


def write(folder: Path, server: PrivatePostgres, allow: list[str], **more: Any) -> None:
    subject = {
        "name": "db",
        "kind": "postgres",
        "dsn": server.dsn(user="watcher"),
        "invariants": {"blocked_sessions": {"limit": 0}},
        "actions": {
            "allow": allow,
            "dsn": server.dsn(user="midwatch_actions"),
            **more,
        },
    }
    settings = {"monitor": {"group_wait": 0}, "subjects": [subject]}
    (folder / "midwatch.yaml").write_text(json.dumps(settings))


@contextlib.contextmanager
def blocking(server: PrivatePostgres) -> Iterator[tuple[Any, Any]]:
    """Yield a session that holds a lock, and one that waits for it."""
    with (
        contextlib.closing(psycopg.connect(server.dsn(user="app"))) as culprit,
        contextlib.closing(psycopg.connect(server.dsn(user="app"))) as waiter,
        psycopg.connect(server.dsn(), autocommit=True) as sees,
        ThreadPoolExecutor(1) as threads,
    ):
        culprit.execute("UPDATE stock SET n = 1")
        waits = threads.submit(waiter.execute, "UPDATE stock SET n = 2")
        pid = waiter.info.backend_pid
        wait_until(
            lambda: sees.execute(
                "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", (pid,)
            ).fetchone()
            == ("Lock",)
        )
        try:
            yield culprit, waiter
        finally:
            sees.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
            with contextlib.suppress(psycopg.Error):
                waits.result()


@pytest.fixture
def blocked(server: PrivatePostgres, tmp_path: Path) -> Iterator[Blocked]:
    write(tmp_path, server, ALL)
    with blocking(server) as (culprit, waiter):
        said(tmp_path, "monitor", "--once")
        yield Blocked(server, tmp_path, culprit, waiter)


def diagnose(
    case: Blocked,
    change: Callable[[Evidence], Evidence] = lambda piece: piece,
    **changes: Any,
) -> None:
    """Store a diagnosis on evidence of this moment, that names the culprit and recommends to end it."""
    settings = json.loads((case.folder / "midwatch.yaml").read_text())

    async def store_it(store: SqlStore) -> None:
        subjects = build_subjects(settings["subjects"])
        gatherer = ContextGatherer(
            {one.name: one for one in subjects}, Redactor(), SystemClock()
        )
        [claim] = await store.claim("agent", lease=60)
        context = await gatherer.gather(claim.tickets, timeout=30, tokens=6000)
        evidence = tuple(map(change, context.evidence))
        [tree] = [one for one in evidence if one.title.startswith("Blocking tree")]
        [root] = [line for line in tree.text.splitlines() if line.startswith("root:")]
        pid = root.split("pid ")[1].split(":")[0]
        step = {
            "what": "End it",
            "commands": [
                f"SELECT pg_terminate_backend({pid});",
                f"SELECT pg_terminate_backend({case.waiter.info.backend_pid});",
                "SELECT pg_reload_conf();",
                "rm -rf /",
            ],
            "risk": "",
            "reversible": False,
        }
        made = await store.begin(
            claim,
            model="claude-test",
            prompt_version="7",
            reserve_usd=0.0,
            budget=Budget(None),
        )
        assert made is not None
        output = {
            "root_cause": f"pid {pid} holds the lock",
            "quote": root,
            "evidence_id": tree.id,
            "explains": (1,),
            "recommended_actions": [step],
            **changes,
        }
        finish = Finish(
            "answered",
            answer=answer(**output),
            markdown="It blocks.",
            confidence="high",
            grounded=Grounded(1, 1),
            evidence=evidence,
            explains=(1,),
        )
        assert await store.finish(claim, made, finish)

    in_store(case.folder, store_it)


def test_an_approved_end_of_the_culprit_resolves_the_ticket_by_observation(
    blocked: Blocked,
) -> None:
    diagnose(blocked)
    found = said_json(blocked.folder, "actions", "list", "1")
    assert {one["kind"] for one in found["proposals"]} == {
        "terminate_backend",
        "reload",
    }  # not the session that waits: no claim names it as the culprit
    [id_] = [
        one["id"] for one in found["proposals"] if one["kind"] == "terminate_backend"
    ]
    assert str(blocked.pid) in said(blocked.folder, "actions", "show", "1", id_)
    would = said(blocked.folder, "actions", "dry-run", "1", id_)
    assert "it would be run: it is still that session" in would, would
    assert blocked.alive(blocked.pid)
    assert "done: the session has ended" in said(
        blocked.folder, "actions", "approve", "1", id_
    )
    assert not blocked.alive(blocked.pid)
    again = refused(blocked.folder, "actions", "approve", "1", id_)
    assert "approved" in again and "already: done" in again
    assert [one[1] for one in blocked.history()][-3:] == [
        "approve_action",
        "run_action",
        "action_done",
    ]
    wait_until(lambda: not blocked.alive(blocked.pid))
    said(blocked.folder, "monitor", "--once")
    ticket = said_json(blocked.folder, "tickets", "show", "1")
    assert ticket["status"] == "resolved" and "observed" in ticket["resolution"]
