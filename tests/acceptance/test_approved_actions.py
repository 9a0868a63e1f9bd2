"""Actions that a person approves, on a real PostgreSQL with a real blocking session: run once, and only on the culprit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from playwright.sync_api import expect

from midwatch.agent.approved_actions import ApprovedActions
from midwatch.errors import Conflict, NotFound
from midwatch.model import Evidence
from midwatch.redaction import Redactor
from midwatch.store.action_runs_protocol import ActionRun, RunState
from midwatch.store.sql import SqlStore
from midwatch.subjects.actionable import ProbesActions
from midwatch.subjects.base import build_subjects
from midwatch.testing.postgres import PrivatePostgres

from ..snippets import blocks
from ..waiting import PATIENCE, wait_until
from .approvals_support import recommending, store_diagnosis
from .browser import chromium, is_live, needs_chromium, opened
from .cli import environ, in_store, midwatch, refused, said, said_json
from .server_process import server_process

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
    waiter = case.waiter.info.backend_pid

    def found(evidence: Sequence[Evidence]) -> dict[str, Any]:
        [tree] = [one for one in evidence if one.title.startswith("Blocking tree")]
        [root] = [line for line in tree.text.splitlines() if line.startswith("root:")]
        pid = root.split("pid ")[1].split(":")[0]
        commands = [
            f"SELECT pg_terminate_backend({pid});",
            f"SELECT pg_terminate_backend({waiter});",
            "SELECT pg_reload_conf();",
            "rm -rf /",
        ]
        cause = {"root_cause": f"pid {pid} holds the lock", "evidence_id": tree.id}
        recommended = [recommending("End it", commands)]
        return {**cause, "quote": root, "recommended_actions": recommended, **changes}

    async def store_it(store: SqlStore) -> None:
        subjects = build_subjects(settings["subjects"])
        await store_diagnosis(store, subjects, found, change)

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


def test_another_session_with_the_same_pid_is_left_alone(blocked: Blocked) -> None:
    """The evidence is of a session whose pid another one has now: it blocks too, and began at another time."""

    def older(piece: Evidence) -> Evidence:
        text = re.sub(r"connected since \d{4}", "connected since 2020", piece.text)
        return replace(piece, text=text)

    diagnose(blocked, older)
    ended = blocked.approve(blocked.proposal())
    assert ended.state is RunState.NOT_RUN and "another session now" in str(
        ended.output
    )
    assert blocked.alive(blocked.pid)
    assert blocked.history()[-1][1] == "action_not_run"


def test_a_culprit_that_has_gone_on_or_ended_is_left_alone(blocked: Blocked) -> None:
    diagnose(blocked)
    first = blocked.proposal()
    blocked.culprit.rollback()
    blocked.culprit.execute("SELECT 1")  # another transaction of the same session
    ended = blocked.approve(first)
    assert ended.state is RunState.NOT_RUN, ended
    assert "not in that transaction any more" in str(ended.output)
    assert blocked.alive(blocked.pid)
    second = blocked.proposal()
    assert second != first
    pid = blocked.pid
    blocked.culprit.close()
    wait_until(lambda: not blocked.alive(pid))
    ended = blocked.approve(second)
    assert ended.state is RunState.NOT_RUN and str(ended.output).endswith("is gone")


def test_two_people_approve_at_once_and_one_run_is_made(blocked: Blocked) -> None:
    diagnose(blocked)
    id_ = blocked.proposal()

    def approve(number: int) -> tuple[int, str]:
        done = midwatch(blocked.folder, "actions", "approve", "1", id_)
        return done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as threads:
        ended = sorted(threads.map(approve, range(2)))
    assert [code for code, _ in ended] == [0, 1], ended
    names = [one[1] for one in blocked.history()]
    assert names.count("run_action") == names.count("action_done") == 1, names
    assert not blocked.alive(blocked.pid)


@pytest.mark.parametrize("moment", ["start_action", "finish_action"])
def test_a_kill_in_the_middle_never_makes_it_run_twice(
    blocked: Blocked, moment: str
) -> None:
    """The process ends right before it claims the run, or right after it acted and before it says so."""
    diagnose(blocked)
    id_ = blocked.proposal()
    code = (
        "import os, signal, sys\n"
        "from midwatch.store.sql import SqlStore\n"
        "async def die(*args): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"SqlStore.{moment} = die\n"
        "from midwatch.cli.main import main\n"
        f"sys.argv = ['midwatch', 'actions', 'approve', '1', '{id_}']\n"
        "main()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=blocked.folder,
        env=environ(blocked.folder),
        timeout=PATIENCE,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if moment == "start_action":
        assert blocked.alive(blocked.pid)
        assert blocked.approve(id_, "bob").state is RunState.DONE
    else:
        assert not blocked.alive(blocked.pid)
        settings = json.loads((blocked.folder / "midwatch.yaml").read_text())
        with server_process(blocked.folder, settings):  # nobody looks at the ticket
            wait_until(lambda: blocked.history()[-1][1] == "action_unknown")
        with pytest.raises(Conflict, match="already: unknown"):
            blocked.approve(id_, "bob")
    names = [one[1] for one in blocked.history()]
    assert names.count("run_action") == 1, names


def test_what_the_settings_do_not_allow_is_refused(blocked: Blocked) -> None:
    diagnose(blocked)
    id_ = blocked.proposal()
    write(blocked.folder, blocked.server, ["reload"])
    for verb in ("approve", "dry-run"):
        line = refused(blocked.folder, "actions", verb, "1", id_)
        assert "terminate_backend is not allowed on db" in line
    assert blocked.alive(blocked.pid)
    reload = blocked.proposal("reload")
    assert blocked.approve(reload).state is RunState.DONE
    again = blocked.approve(blocked.proposal("reload"))
    assert again.state is RunState.NOT_RUN and "after the evidence" in str(again.output)


def test_the_role_needs_its_rights(blocked: Blocked) -> None:
    """`midwatch check` says so before anyone approves."""
    diagnose(blocked)
    settings = json.loads((blocked.folder / "midwatch.yaml").read_text())
    [subject] = build_subjects(settings["subjects"])
    assert isinstance(subject, ProbesActions)
    assert "midwatch_actions may do it" in asyncio.run(subject.probe_actions())
    write(
        blocked.folder,
        blocked.server,
        ALL,
        dsn=blocked.server.dsn(user="watcher"),
    )
    checked = midwatch(blocked.folder, "check")
    [line] = [one for one in checked.stdout.splitlines() if "actions of db" in one]
    assert checked.returncode == 1 and line.startswith("✘"), checked
    for grant in ("pg_signal_backend", "EXECUTE ON FUNCTION pg_reload_conf()"):
        assert f'GRANT {grant} TO "watcher"' in line, line
    ended = blocked.approve(blocked.proposal())
    assert ended.state is RunState.FAILED and "the server refused it" in str(
        ended.output
    )
    assert blocked.alive(blocked.pid)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quote": "pid 1: idle in transaction"}, "could not be found"),
        ({"verdict": "insufficient_data", "root_cause": "", "quote": ""}, "could not"),
        ({"quote": "pid 4711 says the query"}, "could not be found"),
    ],
)
def test_without_a_proven_cause_there_is_nothing_to_approve(
    blocked: Blocked, changes: dict[str, Any], reason: str
) -> None:
    diagnose(blocked, **changes)

    async def find(actions: ApprovedActions, store: SqlStore) -> Any:
        return await actions.of_ticket(1)

    found = blocked.use(find)
    assert not found.proposals and reason in found.reason
    with pytest.raises(NotFound):
        blocked.approve("0123456789-1")


def test_the_api_and_mcp_need_role_and_scope(blocked: Blocked) -> None:
    diagnose(blocked)
    id_ = blocked.proposal()
    tokens = {
        name: said_json(blocked.folder, "tokens", "create", name, *more)["token"]
        for name, more in {
            "reader": ("--scope", "read"),
            "changer": ("--scope", "read", "--scope", "tickets:write"),
            "viewer": ("--scope", "read", "--scope", "actions", "--role", "viewer"),
            "operator": ("--scope", "read", "--scope", "actions"),
        }.items()
    }
    settings = json.loads((blocked.folder / "midwatch.yaml").read_text())
    path = "/api/v1/tickets/1/actions"
    with server_process(blocked.folder, settings) as running:

        def post(token: str, verb: str) -> httpx2.Response:
            head = {"authorization": f"Bearer {tokens[token]}"}
            return running.http.post(f"{path}/{id_}/{verb}", headers=head, json={})

        for name in ("reader", "changer", "viewer"):
            for verb in ("approve", "dry-run"):
                assert post(name, verb).status_code == 403, (name, verb)
        page = running.http.get("/tickets/1").text
        assert "Approve and run" in page  # loopback is an operator
        shown = running.http.get("/tickets/1", params={"tried": id_}).text
        assert "It would be run" in shown
        assert blocked.alive(blocked.pid)
        assert post("operator", "dry-run").json()["ready"] is True
        ended = post("operator", "approve")
        assert ended.status_code == 200 and ended.json()["state"] == "done", ended.text
        assert post("operator", "approve").status_code == 409
        listed = running.http.get(path).json()
        [run] = listed["runs"]
        assert (run["approved_by"], run["channel"]) == ("operator", "api")
    assert not blocked.alive(blocked.pid)


def test_the_page_has_a_button(blocked: Blocked) -> None:
    diagnose(blocked)
    id_ = blocked.proposal()
    settings = json.loads((blocked.folder / "midwatch.yaml").read_text())
    with server_process(blocked.folder, settings) as running:
        done = running.http.post(
            f"/tickets/1/actions/{id_}/approve", headers={"origin": running.url}
        )
        assert done.status_code == 303, done.text
        assert "the session has ended" in running.http.get("/tickets/1").text
    assert not blocked.alive(blocked.pid)


@needs_chromium
def test_a_person_tries_and_approves_it_in_a_browser(blocked: Blocked) -> None:
    diagnose(blocked)
    settings = json.loads((blocked.folder / "midwatch.yaml").read_text())
    with (
        server_process(blocked.folder, settings) as running,
        chromium() as browser,
        opened(browser, running.url) as page,
    ):
        page.goto("/tickets/1")
        is_live(page)
        action = page.locator("#approved li", has_text="end the session")
        action.get_by_role("button", name="Try it out").click()
        expect(action).to_contain_text("It would be run", timeout=PATIENCE * 1000)
        assert blocked.alive(blocked.pid)
        is_live(page)
        action.get_by_text("Approve…").click()
        action.get_by_role("button", name="Approve and run").click()
        ended = page.locator("#approved li", has_text="approved by")
        expect(ended).to_contain_text("done", timeout=PATIENCE * 1000)
        expect(ended).to_contain_text("the session has ended")
        expect(page.locator("#history")).to_contain_text("action done")
    assert not blocked.alive(blocked.pid)
