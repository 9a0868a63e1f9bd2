"""A daemon opens the pull requests of a session whose process was killed before the push: one, and only where it may."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import update

from midwatch.session.options import PullRequestsAsked
from midwatch.session.records import SessionRequest
from midwatch.store.schema import sessions
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore

from ..forge_server import Fault, GitHubServer, HeldRequest
from .cli import in_store, said_json
from .pull_request_desk import PullRequestDesk, pull_request_desk

FILES = {"main.py": "print('bye')\n"}
ASKED = PullRequestsAsked("ada@laptop")


def refs(desk: PullRequestDesk) -> list[str]:
    return list(desk.forge.refs("team/shop"))


def history(desk: PullRequestDesk) -> list[str]:
    """What the ticket's history says of sessions and pull requests."""
    rows = said_json(desk.folder, "tickets", "history", "1")
    return [row["why"] for row in rows if row["action"] in ("session", "pull_request")]


def test_it_is_continued_once_its_process_is_gone(tmp_path: Path) -> None:
    """And not before: the process may be about to push. What another daemon or the person does afterwards opens no second one."""
    with pull_request_desk(tmp_path) as desk:
        session = desk.session(asked=ASKED, **FILES)
        tried: list[int] = []

        async def resumed(store: SqlStore) -> SessionRequest:
            return await desk.manager(store).resume(session, "More.")

        held = HeldRequest("GET", "/shop")
        desk.killed(
            session, held, before=lambda: tried.extend(desk.continue_sessions(0))
        )
        assert in_store(tmp_path, resumed).pull_requests == ASKED
        assert tried == [0] and refs(desk) == ["main"] and not desk.forge.pulls
        assert desk.continue_sessions(0, 10**5) == [1, 0]
        [pull] = desk.forge.pulls
        assert history(desk) == [
            f"session {session}: its process ended before its pull requests; a daemon goes on",
            f"opened {pull['html_url']}",
        ]
        assert pull["html_url"] in str(desk.logged)
        assert "no change" in desk.publish(session)
        assert desk.continue_sessions(10**5) == [0]
        assert desk.forge.made("POST", "/pulls") == 1


def test_an_outage_is_waited_for_and_a_refusal_is_final(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        session = desk.session(asked=ASKED, **FILES)
        desk.forge.faults = [Fault("GET", "/repos", 500, None)]
        assert desk.continue_sessions(0, 50) == [1, 0]
        assert "opened later" in str(desk.logged) and refs(desk) == ["main"]
        assert desk.continue_sessions(70) == [1] and desk.pull()["state"] == "open"
        assert sum("a daemon goes on" in why for why in history(desk)) == 1
        # A person closed it, and one that was asked for in its place: neither comes again.
        desk.forge.pulls[0].update(state="closed")
        again = PullRequestsAsked("ada@laptop", new=True)
        session = desk.session(asked=again, **FILES)
        desk.killed(session, HeldRequest("POST", "/pulls", after=True), "--new-pr")
        assert len(desk.forge.pulls) == 2
        desk.forge.pulls[1].update(state="closed")
        assert desk.continue_sessions(0, 10**5) == [1, 0]
        assert len(desk.forge.pulls) == 2
        assert (
            f"session {session}: no pull request: shop: the branch" in history(desk)[-1]
        )


def test_nothing_leaves_the_machine_unapproved(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path, GitHubServer, approval=True) as desk:
        session = desk.session(asked=ASKED, **FILES)
        assert desk.continue_sessions(0, 10**5) == [1, 0]
        assert refs(desk) == ["main"] and not desk.forge.pulls
        assert history(desk)[-1] == f"waits for approval: session {session}"
        assert desk.pull()["waiting"] == session
        assert "opened" in desk.publish(session, "--approve")


def test_a_session_of_another_machine_is_left_there(tmp_path: Path) -> None:
    """It is said once, and not while the process there may still be at work. One that is too old is given up."""
    with pull_request_desk(tmp_path) as desk:
        session = desk.session(asked=ASKED, **FILES)

        async def move(store: SqlStore) -> None:
            records = SqlSessions(store.transactions)
            options = (await records.get(session)).options
            await records.save_options(session, {**options, "host": "elsewhere"})

        async def age(store: SqlStore) -> None:
            then = datetime.now(UTC) - timedelta(hours=1)
            old = update(sessions).values(heartbeat_at=then)
            await store.transactions.run(lambda one: one.execute(old).rowcount)

        in_store(tmp_path, move)
        assert desk.continue_sessions(0) == [0] and not desk.logged
        in_store(tmp_path, age)
        assert desk.continue_sessions(0, 60, 120) == [0, 0, 0]
        [line] = desk.logged
        assert "elsewhere" in str(line) and f"session pr {session}" in str(line)
        late = desk.session(asked=ASKED, **FILES)
        week = 7 * 24 * 3600 + 60
        assert desk.continue_sessions(week, week + 10**5) == [0, 0]
        assert history(desk) == [
            f"session {late}: no pull request: none could be opened within 7 days"
        ]
        assert refs(desk) == ["main"]
