"""Schedules by real processes: the daemon and the claude program, `midwatch check`, and CronJobs against an API server."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from midwatch.kube.crd import crd
from midwatch.kube.rules import PLURAL
from midwatch.store.schedules import SqlSchedules
from midwatch.store.sql import open_store
from midwatch.testing.messages_api import Answer, ScriptedMessagesAPI
from tests.cluster import ApiServer

from ..processes import Midwatch
from ..waiting import PATIENCE
from .cli import environ, midwatch, said
from .session_cli import asking, make_desk, make_repositories, until

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


def listed(folder: Path) -> dict[str, Any]:
    (row,) = json.loads(said(folder, "schedules", "list", "--json"))
    return dict(row)


async def look_from(database: str, at: datetime) -> None:
    store = await open_store(database, create=True)
    await SqlSchedules(store.transactions).begin("tidy", "* * * * * Europe/Berlin", at)
    await store.close()


def test_a_daemon_starts_a_session_and_says_what_was_missed(tmp_path: Path) -> None:
    app, _ = make_repositories(tmp_path)
    desk = make_desk(tmp_path, extra=SCHEDULES.format(folder=tmp_path, url=app))
    # As if a daemon had run until then: three minutes have passed, so no test waits for the next one.
    before = datetime.now(UTC) - timedelta(minutes=3)
    asyncio.run(look_from(f"sqlite:///{tmp_path}/midwatch.db", before))
    log = tmp_path / "log"
    with ScriptedMessagesAPI([Answer("hello")] * 5) as api, log.open("wb") as file:
        daemon = Midwatch(
            ["schedules", "serve"],
            cwd=desk,
            env=environ(desk, **asking(api)),
            stdout=file,
            stderr=file,
        )
        try:
            until(
                lambda: any(
                    one["phase"] == "Completed"
                    for one in json.loads(said(desk, "session", "list", "--json"))
                ),
                log.read_text,
            )
        finally:
            daemon.terminate()
            assert daemon.wait(PATIENCE) == 0, log.read_text()
    row = listed(desk)
    assert row["missed"] >= 2
    assert "no daemon ran" in log.read_text()
    sessions = json.loads(said(desk, "session", "list", "--json"))
    assert row["last"]["session"] in {one["id"] for one in sessions}
    told = said(desk, "schedules", "list")
    assert "tidy: missed" in told and "* * * * * Europe/Berlin" in told
    assert (
        len(said(desk, "schedules", "next", "tidy", "--count", "3").splitlines()) == 3
    )


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
    (desk / "session.json").write_text(text)
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
            arguments[2] = str(desk / "session.json")
            variables = {"MIDWATCH_OPERATOR__KUBECONFIG": str(access)}
            return said(desk, *arguments, env=variables).strip()

        assert submit("tidy-29000000") == "session tidy-29000000 created"
        assert submit("tidy-29000000") == "session tidy-29000000 was there already"
        assert "tidy-29000000 still runs" in submit("tidy-29000001")
        body = server.objects.find(PLURAL, "team", "tidy-29000000")
        assert body is not None and body["spec"]["prompt"] == "Say hello."
        assert server.objects.find(PLURAL, "team", "tidy-29000001") is None
