"""Schedules by real processes: a daemon starts a session of the real claude program, and a killed one runs no time twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from midwatch.testing.messages_api import Answer, ScriptedMessagesAPI

from ..processes import Midwatch
from ..waiting import PATIENCE
from .cli import environ, said
from .session_cli import asking, make_desk, make_repositories, until

SCHEDULES = """\
database: sqlite:///{folder}/midwatch.db
log: {{format: json}}
schedules:
  - name: tidy
    cron: "* * * * *"
    timezone: Europe/Berlin
    repositories: [{{url: {app}}}]
    prompt: Say hello.
"""


def listed(folder: Path) -> dict[str, Any]:
    (row,) = json.loads(said(folder, "schedules", "list", "--json"))
    return dict(row)


def test_a_daemon_starts_a_session_at_its_time(tmp_path: Path) -> None:
    app, _ = make_repositories(tmp_path)
    desk = make_desk(tmp_path, extra=SCHEDULES.format(folder=tmp_path, app=app))
    log = tmp_path / "log"
    with ScriptedMessagesAPI([Answer("hello")]) as api, log.open("wb") as file:
        daemon = Midwatch(
            ["schedules", "serve"],
            cwd=desk,
            env=environ(desk, **asking(api)),
            stdout=file,
            stderr=file,
        )
        try:
            until(
                lambda: (last := listed(desk)["last"]) and last["phase"] == "Completed",
                lambda: log.read_text(),
                max(PATIENCE, 120),
            )
        finally:
            daemon.terminate()
            assert daemon.wait(PATIENCE) == 0, log.read_text()
    row = listed(desk)
    assert row["missed"] == 0
    session, *_ = json.loads(said(desk, "session", "list", "--json"))
    assert session["id"] == row["last"]["session"]
