"""SessionManager with real parts: a database, folders, locks, git, the claude program."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from midwatch import SessionManager
from midwatch.errors import Conflict, NotFound
from midwatch.redaction import Redactor
from midwatch.session.errors import SessionBusy
from midwatch.session.events import PermissionRequest, Phase, ToolResult, TurnResult
from midwatch.session.manager import KeptSession, new_session_id
from midwatch.session.options import ApiAccess, OptionOverrides
from midwatch.session.records import FolderRecords, SessionRequest, SessionSpec
from midwatch.session.status import SessionStatus
from midwatch.settings import SessionSettings
from midwatch.store.sessions import SqlSessions, SqlTranscripts
from midwatch.store.sql import open_store
from midwatch.testing.fakes import KEY, ManualClock, make_repository, run_git
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.push import push_workspace

AT = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
WRITE = ToolUse("Write", {"file_path": "new.txt", "content": "1\n"})


@asynccontextmanager
async def managed(
    folder: Path, clock: ManualClock | None = None, **settings: object
) -> AsyncIterator[SessionManager]:
    """A manager of one machine: its folders are in `folder`, its database is beside that."""
    own = SessionSettings.model_validate(
        {
            "folder": folder / "state",
            "cache_folder": folder / "cache",
            "sandbox": "off",
            "retries": 1,
            **settings,
        }
    )
    store = await open_store(f"sqlite:///{folder.parent}/midwatch.db")
    yield SessionManager(
        SqlSessions(store.transactions),
        SqlTranscripts(store.transactions),
        own,
        redactor=Redactor(["hunter2"]),
        clock=clock,
    )
    await store.close()


def request_for(repository: Path, prompt: str | None, **more: object) -> SessionRequest:
    request = SessionRequest(new_session_id(), prompt, (RepoSpec(str(repository)),))
    return replace(request, **more)  # type: ignore[arg-type]


async def run(
    manager: SessionManager, request: SessionRequest, api: ScriptedMessagesAPI
) -> str:
    """Run a request to its end; what Claude answered."""
    async with manager.open(request, ApiAccess(KEY, api.base_url)) as session:
        async for _ in session.execute(request.prompt):
            pass
        result = await session.get_results()
    assert result.ok
    return result.text


async def test_a_session_is_resumed_forked_and_removed(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "app", {"main.py": "1\n"})
    answers = [Answer(tool_uses=[WRITE]), "Written.", "Twice.", "Forked."]
    async with managed(tmp_path / "here") as manager:
        async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
            first = request_for(
                repository,
                "Write it, hunter2.",
                overrides=OptionOverrides(model="claude-x", max_usd=5.0),
            )
            assert await run(manager, first, api) == "Written."
            found = await manager.get(first.id)
            assert (found.status.phase, found.status.run) == (Phase.COMPLETED, 1)
            assert "hunter2" not in found.prompt and found.prompt.startswith("Write")
            assert [r["status"] for r in found.repositories] == ["changed"]

            with pytest.raises(Conflict, match="answered everything"):
                await manager.resume(first.id)
            again = await manager.resume(
                first.id, "Again.", overrides=OptionOverrides(max_usd=9.0)
            )
            assert again.overrides == OptionOverrides(model="claude-x", max_usd=9.0)
            assert await run(manager, again, api) == "Twice."
            assert "Write it" in api.calls[-1].prompt
            assert api.calls[-1].model == "claude-x"

            fork = await manager.fork(first.id, "And now?", push_branch="out")
            assert await run(manager, fork, api) == "Forked."
            assert "Again." in api.calls[-1].prompt
            assert not (manager.paths(fork.id).workspace / "app" / "new.txt").exists()
        listed = await manager.list(phases=[Phase.COMPLETED])
        assert [one.id for one in listed] == [fork.id, first.id]
        assert listed[0].forked_from == first.id and listed[1].status.run == 2
        with pytest.raises(Conflict, match="app: 1 file"):
            await manager.remove(first.id)
        assert (manager.paths(first.id).workspace / "app/new.txt").exists()
        await manager.remove(first.id, force=True)
        assert [one.id for one in await manager.list()] == [fork.id]
        assert not manager.paths(first.id).workspace.exists()
        for attempt in (manager.get, manager.remove, manager.resume):
            with pytest.raises(NotFound):
                await attempt(first.id)
        with pytest.raises(NotFound):
            await manager.get("../../etc")


async def test_a_running_session_is_steered_and_cannot_be_removed(
    tmp_path: Path,
) -> None:
    repository = make_repository(tmp_path / "app", {"main.py": "1\n"})
    answers = [Answer(tool_uses=[WRITE]), "Denied.", Answer(tool_uses=[WRITE]), "Done."]
    async with managed(tmp_path / "here", permission_mode="default") as manager:
        request = request_for(repository, "Write.", interactive=True)
        answered, results, ended = [], [], []
        async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
            client = ApiAccess(KEY, api.base_url)
            async with manager.open(request, client) as session:
                async for event in session.execute(request.prompt):
                    if isinstance(event, PermissionRequest) and not answered:
                        answered.append(manager.deny(request.id, why="not yet"))
                        for refused in (manager.remove, manager.resume):
                            with pytest.raises(Conflict, match="is running"):
                                await refused(request.id)
                        with pytest.raises(SessionBusy):
                            async with manager.open(request, client):
                                pass
                    elif isinstance(event, PermissionRequest):
                        answered.append(manager.approve(request.id, event.request_id))
                    elif isinstance(event, ToolResult):
                        results.append(event)
                    elif isinstance(event, TurnResult) and not ended:
                        manager.send(request.id, "Write it after all.")
                        ended.append(manager.end(request.id))
        assert [one.is_error for one in results] == [True, False]
        assert "not yet" in results[0].text
        with pytest.raises(Conflict, match="no pending permission request"):
            manager.approve(request.id)
        found = await manager.get(request.id)
        assert (found.status.phase, found.status.result) == (Phase.COMPLETED, "Done.")
        assert len(set(answered + ended)) == 3


async def record(
    manager: SessionManager, request: SessionRequest, status: SessionStatus
) -> None:
    """Write the records of a run that is on this machine, and has no runner."""
    records = manager.records(request)
    manager.paths(request.id).folder.make()
    await records.save_spec(SessionSpec(request.id, AT, "/srv/app"))
    await records.save_status(request.id, status)


async def test_what_crashed_is_closed_by_any_machine_and_resumed(
    tmp_path: Path,
) -> None:
    running = SessionStatus(Phase.RUNNING, run=1, last_seq=3, unfinished=("p",))
    asked = RepoSpec("/srv/app.git", tag="v1", depth=1, push_branch="fix")
    async with managed(tmp_path / "here") as here:
        crashed, held, ended = (
            SessionRequest(f"s-{name}", "Do it.", (asked,), main=0, push=True)
            for name in ("crashed", "held", "ended")
        )
        for request in (crashed, held, ended):
            await record(here, request, running)
        completed = replace(running, phase=Phase.COMPLETED, last_seq=9, unfinished=())
        files = FolderRecords(here.paths("s-ended").folder.path)
        await files.save_status("s-ended", completed)

        async with managed(tmp_path / "there") as there:
            assert await there.close_crashed() == [], "their heartbeats are young"
        with here.paths("s-held").owned():
            assert sorted(await here.close_crashed()) == ["s-crashed", "s-ended"]
            assert (await here.get("s-held")).status == running
        found = await here.get("s-crashed")
        assert (found.status.phase, found.status.reason) == (
            Phase.FAILED,
            "RunnerCrashed",
        )
        assert found.status.error is not None and found.status.error.temporary
        assert (await here.get("s-ended")).status == completed
        assert (await here.get("s-held")).status.reason == "RunnerCrashed"

        again = await here.resume("s-crashed")
        assert again.repositories == (asked,) and again.push and not again.moved
        async with managed(tmp_path / "there") as there:
            moved = await there.resume("s-crashed")
        assert moved.moved and "did not push" in moved.notice
        assert moved.elsewhere is not None and moved.elsewhere.run == 1


async def test_work_that_is_not_pushed_is_kept(
    tmp_path: Path, clock: ManualClock
) -> None:
    """A clean session goes, one with a commit on another branch stays until it is pushed, or by force."""
    repository = make_repository(tmp_path / "app", {"main.py": "1\n"})
    async with managed(tmp_path / "here", clock) as manager:
        made = {}
        for name in ("clean", "branch", "beside", "lost"):
            request = request_for(repository, "x", id=f"s-{name}")
            manager.paths(request.id).folder.make()
            options = manager.workspace_options(request.id)
            made[name] = await manager.prepare_workspace(request, options)
            ended = SessionStatus(Phase.COMPLETED, run=1, ended_at=clock.now())
            records = manager.records(request)
            await records.save_spec(SessionSpec(request.id, clock.now(), "/srv"))
            await records.save_status(request.id, ended)
        app = made["branch"].paths[0]
        run_git(app, "checkout", "-qb", "fix")
        (app / "main.py").write_text("2\n")
        run_git(app, "commit", "-qam", "fix")
        run_git(app, "checkout", "-q", "-")
        (made["beside"].path / "notes.txt").write_text("notes\n")
        shutil.rmtree(made["lost"].state)

        kept: list[KeptSession] = []
        await clock.advance(1)
        for dry_run in (True, False):
            kept.clear()
            removed = await manager.prune(0, None, dry_run=dry_run, on_kept=kept.append)
            assert [one.id for one in removed] == ["s-clean"]
            work = {one.id: one.work for one in kept}
            assert work["s-branch"] == "app: branch fix (1 commit)"
            assert "notes.txt" in work["s-beside"] and "app" in work["s-lost"]
            assert all(one.size > 0 for one in kept)
        assert not manager.paths("s-clean").exists and app.exists()
        with pytest.raises(Conflict, match="branch fix"):
            await manager.remove("s-branch")

        git = manager.workspace_options("s-branch").git()
        await push_workspace(made["branch"], git)
        removed = await manager.prune(0, None)
        assert [one.id for one in removed] == ["s-branch"]
        assert len(await manager.prune(0, None, force=True)) == 2
        assert await manager.list() == []


async def test_the_oldest_are_pruned_first(tmp_path: Path, clock: ManualClock) -> None:
    async with managed(tmp_path / "here", clock) as manager:
        for number in range(4):
            ended_at = clock.now() - timedelta(days=number)
            request = SessionRequest(f"s-{number}", "x", (RepoSpec("/srv/a"),))
            status = SessionStatus(Phase.COMPLETED, run=1, ended_at=ended_at)
            records = manager.records(request)
            manager.paths(request.id).folder.make()
            await records.save_spec(SessionSpec(request.id, ended_at, "/srv/a"))
            await records.save_status(request.id, status)
            manager.paths(request.id).folder.inbox.write_bytes(b"x" * 100_000)
        planned = await manager.prune(2.5 * 86400, 250_000, dry_run=True)
        assert [one.id for one in planned] == ["s-3", "s-2"]
        assert all(100_000 < one.size < 125_000 for one in planned)
        assert len(await manager.list()) == 4
        assert await manager.prune(2.5 * 86400, 250_000) == planned
        assert [one.id for one in await manager.list()] == ["s-0", "s-1"]
        assert not manager.paths("s-3").exists
        await asyncio.gather(manager.remove("s-0"), manager.remove("s-1"))
        assert await manager.prune(0, 0) == []


async def test_a_session_that_is_resumed_while_others_are_pruned_is_left_alone(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with managed(tmp_path / "here", clock) as manager:
        for number, name in enumerate(("free", "busy", "kept")):
            ended_at = clock.now() - timedelta(days=number)
            request = SessionRequest(f"s-{name}", "x", (RepoSpec("/srv/a"),))
            records = manager.records(request)
            manager.paths(request.id).folder.make()
            await records.save_spec(SessionSpec(request.id, ended_at, "/srv/a"))
            await records.save_status(
                request.id, SessionStatus(Phase.COMPLETED, run=1, ended_at=ended_at)
            )
        workspace = manager.paths("s-kept").workspace
        workspace.mkdir(parents=True)
        (workspace / "notes.txt").write_text("notes\n")
        await clock.advance(1)
        with contextlib.ExitStack() as runner:

            def resume(kept: KeptSession) -> None:
                runner.enter_context(manager.paths("s-busy").owned())

            removed = await manager.prune(0, None, on_kept=resume)
            assert [one.id for one in removed] == ["s-free"]
            assert manager.paths("s-busy").exists
        removed = await manager.prune(0, None)
        assert [one.id for one in removed] == ["s-busy"]
