"""Schedules by real processes: the daemon and the claude program, `midwatch check`, and CronJobs against an API server."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from midwatch.config import load
from midwatch.kube.crd import crd
from midwatch.kube.rules import PLURAL
from midwatch.scheduler import key_of
from midwatch.store.schedules import History, SqlSchedules
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import open_store
from midwatch.store.upgrade import upgrade_database
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Request,
    Rule,
    ScriptedMessagesAPI,
)
from midwatch.testing.postgres import PrivatePostgres
from tests.cluster import ApiServer

from ..waiting import PATIENCE
from .cli import midwatch, said
from .session_cli import Running, make_desk, make_repositories, running, until

SCHEDULES = """\
database: sqlite:///{folder}/midwatch.db
log: {{format: json}}
schedules:
  - name: tidy
    cron: "* * * * *"
    timezone: Europe/Berlin
    repositories: [{{url: "{url}"}}]
    prompt: Say hello.
"""


FORBIDDEN = """\
  - name: forbidden
    cron: "* * * * *"
    repositories: [{{url: "{url}"}}]
    prompt: Say hello, but wait.
subjects:
  - {{name: board, kind: command, command: [echo, "{{}}"]}}
"""


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads(said(folder, "schedules", "list", "--json"))
    return {row["name"]: row for row in rows}


def sessions(database: str) -> dict[str, str]:
    """The phases of all sessions by id."""

    async def read() -> dict[str, str]:
        store = await open_store(database)
        try:
            found = await SqlSessions(store.transactions).listed()
            return {one.id: one.status.phase.value for one in found}
        finally:
            await store.close()

    return asyncio.run(read())


async def look_from(folder: Path, database: str, at: datetime) -> None:
    """As if a daemon with the settings of the folder had looked at all times up to `at`."""
    store = await open_store(database, create=True)
    for one in load({}, folder / "midwatch.yaml").schedules:
        await SqlSchedules(store.transactions).begin(key_of(one), at)
    await store.close()


def history(folder: Path, database: str) -> History:
    """What became of the one schedule of a folder's settings."""

    async def read() -> History:
        (schedule,) = load({}, folder / "midwatch.yaml").schedules
        store = await open_store(database)
        try:
            found = SqlSchedules(store.transactions)
            return await found.history(key_of(schedule))
        finally:
            await store.close()

    return asyncio.run(read())


def test_up_starts_a_session_at_its_time_and_says_what_was_missed(
    tmp_path: Path,
) -> None:
    """The times of one schedule come while a session of it runs that was started by hand."""
    app, _ = make_repositories(tmp_path)
    # As if a daemon had run until four minutes ago: three times have come since, and the next one is in an hour.
    now = datetime.now(UTC)
    before = now - timedelta(minutes=4)
    minutes = ",".join(str((now.minute - ago) % 60) for ago in (1, 2, 3))
    text = (SCHEDULES + FORBIDDEN).replace("* * * * *", f"{minutes} * * * *")
    desk = make_desk(tmp_path, extra=text.format(folder=tmp_path, url=app))
    database = f"sqlite:///{tmp_path}/midwatch.db"
    asyncio.run(look_from(desk, database, before))
    hold = Hold(Answer("hello"))

    def reply(request: Request) -> Hold | Answer:
        return hold if "but wait" in request.prompt else Answer("hello")

    with ScriptedMessagesAPI(Rule(reply)) as api, ExitStack() as stack:
        stack.callback(hold.release)
        by_hand = stack.enter_context(
            running(desk, api, "schedules", "run", "forbidden")
        )
        hold.arrived_sync(timeout=PATIENCE)
        daemon = stack.enter_context(running(desk, api, "up"))
        until(
            lambda: "Completed" in sessions(database).values(),
            daemon.output.read_text,
        )
        assert daemon.end(signal.SIGTERM) == 0, daemon.output.read_text()
        row, forbidden = listed(desk)["tidy"], listed(desk)["forbidden"]
        hold.release()
        assert by_hand.process.wait(PATIENCE) == 0, by_hand.output.read_text()
    assert (row["missed"], forbidden["missed"]) == (2, 3)
    assert "no daemon ran" in daemon.output.read_text()
    assert row["last"]["session"] in sessions(database)
    last, missed = forbidden["last"], forbidden["last_missed"]
    assert last["phase"] == "Running" and f"{last['session']} of" in missed["reason"]
    assert "still runs (concurrency: Forbid)" in missed["reason"]
    assert listed(desk)["forbidden"]["last"]["phase"] == "Completed"
    told = said(desk, "schedules", "list")
    assert "tidy: missed" in told and f"{minutes} * * * * Europe/Berlin" in told
    assert (
        len(said(desk, "schedules", "next", "tidy", "--count", "3").splitlines()) == 3
    )


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as started:
        yield started


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_daemons_with_different_settings_start_each_time_once(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Two have the same schedule and are killed while its session starts, a third one has another of the same name."""
    database = f"sqlite:///{tmp_path}/shared.db"
    if kind == "postgres":
        database = request.getfixturevalue("server").dsn()
    asyncio.run(upgrade_database(database))
    due = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=2)
    text = SCHEDULES.replace("* * * * *", f"{due.minute} {due.hour} * * *")
    text = text.replace("sqlite:///{folder}/midwatch.db", database)
    text = text.replace("Europe/Berlin", "UTC")
    first, replica, other = (
        make_desk(tmp_path / name, extra=text.format(folder="", url=tmp_path / gone))
        for name, gone in (("a", "gone"), ("b", "gone"), ("c", "gone-too"))
    )
    for desk in (first, other):
        asyncio.run(look_from(desk, database, due - timedelta(minutes=1)))
    with ScriptedMessagesAPI() as api, ExitStack() as stack:

        def serve(desk: Path) -> Running:
            return stack.enter_context(running(desk, api, "schedules", "serve"))

        daemons = [serve(first), serve(replica)]
        until(lambda: sessions(database), daemons[0].output.read_text)
        for one in daemons:
            assert one.end(signal.SIGKILL) == -signal.SIGKILL
        assert history(other, database).ran is None, "its time is not theirs to judge"
        again = [serve(one) for one in (replica, other)]
        until(
            lambda: [*sessions(database).values()] == ["Failed"] * 2,
            lambda: "".join(one.output.read_text() for one in again),
        )
        for one in again:
            assert one.end(signal.SIGTERM) == 0, one.output.read_text()
    found = [history(desk, database) for desk in (first, replica, other)]
    assert [one.missed_count for one in found] == [0, 0, 0]
    ran = [one.ran for one in found if one.ran is not None]
    assert [one.at for one in ran] == [due] * 3
    assert ran[0].session == ran[1].session
    assert {one.session for one in ran} == set(sessions(database))


@pytest.mark.parametrize(
    "old, new, place",
    [
        ('"* * * * *"', '"61 * * * *"', "schedules[0].cron"),
        ("Europe/Berlin", "Europe/Berlim", "schedules[0].timezone"),
        ("tidy", "Tidy Up", "schedules[0].name"),
    ],
)
def test_a_wrong_schedule_is_one_line_of_the_check(
    tmp_path: Path, old: str, new: str, place: str
) -> None:
    text = SCHEDULES.format(folder=tmp_path, url="https://git.example.com/app")
    desk = make_desk(tmp_path, extra=text.replace(old, new))
    done = midwatch(desk, "check")
    (line,) = done.stdout.splitlines()
    assert done.returncode == 2 and place in line, done


def test_a_cron_job_creates_a_session_once_for_a_time(tmp_path: Path) -> None:
    text = SCHEDULES.format(folder=tmp_path, url="https://git.example.com/app")
    desk = make_desk(tmp_path, extra=f"operator: {{image: midwatch:1}}\n{text}")
    documents = list(yaml.safe_load_all(said(desk, "kube", "schedules", "-n", "team")))
    for one in documents:
        kubernetes_validate.validate(one, "1.37", strict=True)
    (job,) = (one for one in documents if one["kind"] == "CronJob")
    (text,) = next(o["data"] for o in documents if o["kind"] == "ConfigMap").values()
    (desk / "midwatch.yaml").write_text(text)
    with ApiServer(rbac=True) as server:
        server.objects.create(crd())
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
        server.objects.create(space)
        for one in documents:
            if one["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
                server.objects.create(one)
        token = server.token_for("team", "schedule-tidy")
        access = server.kubeconfig(desk / "kubeconfig", token)

        def submit(name: str) -> str:
            container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            (wanted,) = (one["args"] for one in container["containers"])
            arguments = [one.replace("$(JOB_NAME)", name) for one in wanted]
            variables = {"MIDWATCH_OPERATOR__KUBECONFIG": str(access)}
            return said(desk, *arguments, env=variables).strip()

        assert submit("tidy-29000000") == "session tidy-29000000 created"
        assert submit("tidy-29000000") == "session tidy-29000000 was there already"
        assert "tidy-29000000 still runs" in submit("tidy-29000001")
        body = server.objects.find(PLURAL, "team", "tidy-29000000")
        assert body is not None and body["spec"]["prompt"] == "Say hello."
        assert server.objects.find(PLURAL, "team", "tidy-29000001") is None
