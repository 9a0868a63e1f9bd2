"""What a person has to approve, Claude in a session cannot: on the command line, in a process that hides, and through the server."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from midwatch.agent.approved_actions import ApprovedActions
from midwatch.model import Evidence, Origin
from midwatch.redaction import Redactor
from midwatch.session.events import ToolResult
from midwatch.store.sql import SqlStore
from midwatch.subjects.base import build_subjects
from midwatch.testing.fakes import collect, only, options, session_in
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse

from .approvals_support import recommending, store_diagnosis
from .cli import MIDWATCH, in_store, said
from .server_process import server_process
from .test_approved_restarts import NAME, UNIT, asked, fake

_POST = """import sys, urllib.error, urllib.request
asked = urllib.request.Request(sys.argv[1], b"{}", {"content-type": "application/json"})
try:
    print("approved", urllib.request.urlopen(asked, timeout=30).status)
except (urllib.error.URLError, OSError) as error:
    print(error, error.read().decode() if hasattr(error, "read") else "")
"""

_HIDE = """# hide.sh FILE COMMAND…: run it without a parent and without any variable of the session, and show what it says.
said=$1; shift
(setsid env -i PATH=/usr/bin:/bin sh -c '"$@" >"$0" 2>&1; echo ended >>"$0"' "$said" "$@" &)
until grep -qs ended "$said"; do sleep 0.05; done
cat "$said"
"""


def settings(folder: Path) -> dict[str, Any]:
    """A machine whose process is down, and whose unit a person may restart."""
    program = fake(folder)
    actions = {
        "allow": ["restart_unit"],
        "units": [UNIT],
        "systemctl": [str(program)],
    }
    subject = {
        "name": "box",
        "kind": "host",
        "processes": [{"name": NAME, "unit": UNIT}],
        "actions": actions,
    }
    return {"monitor": {"group_wait": 0}, "subjects": [subject]}


async def diagnose(store: SqlStore, written: dict[str, Any]) -> str:
    """Store a diagnosis that recommends the restart, and return the id of the action."""

    def found(evidence: Sequence[Evidence]) -> dict[str, Any]:
        one = next(
            one
            for one in evidence
            if one.available and one.origin is Origin.SYSTEM and not one.reported
        )
        return {
            "evidence_id": one.id,
            "quote": max(one.text.splitlines(), key=len)[:200],
            "recommended_actions": [
                recommending("Restart it", [f"systemctl restart {UNIT}"])
            ],
        }

    subjects = build_subjects(written["subjects"])
    await store_diagnosis(store, subjects, found)
    proposed = await ApprovedActions(store, subjects, Redactor()).of_ticket(1)
    [one] = proposed.proposals
    return one.id


@pytest.mark.parametrize("sandbox", ["off", "on"])
def test_a_session_cannot_approve(tmp_path: Path, sandbox: str) -> None:
    if sandbox == "on" and not (shutil.which("bwrap") and shutil.which("socat")):
        pytest.skip("bubblewrap and socat are not installed")
    folder = tmp_path / "watch"
    folder.mkdir()
    written = settings(folder)
    (folder / "midwatch.yaml").write_text(json.dumps(written))
    said(folder, "monitor", "--once")
    id_ = in_store(folder, lambda store: diagnose(store, written))
    (folder / "hide.sh").write_text(_HIDE)
    approve = shlex.join([MIDWATCH, "actions", "approve", "1", id_])
    with server_process(folder, written) as server:
        url = f"{server.url}/api/v1/tickets/1/actions/{id_}/approve"
        commands = (
            f"cd {folder} && {approve}",
            f"work=$PWD; cd {folder} && sh hide.sh $work/said {approve}",
            shlex.join([sys.executable, "-c", _POST, url]),
        )
        steps = [
            Answer(tool_uses=[ToolUse("Bash", {"command": one})]) for one in commands
        ]
        with ScriptedMessagesAPI(Rule([*steps, Answer("Done.")], tools=True)) as api:
            results = ended(tmp_path, api, sandbox)
        refused = ["session may not" in one for one in results]
        # In the sandbox neither the database nor the server can be reached.
        assert refused == ([True] * 3 if sandbox == "off" else [True, False, False])
        assert "restart" not in asked(folder), results
        assert "approved" not in results[2], results
        # It was a person's to approve, and is.
        assert "done" in said(folder, "actions", "approve", "1", id_)
    assert asked(folder)[-3:] == ["restart", "--", UNIT]


def ended(folder: Path, api: ScriptedMessagesAPI, sandbox: Any) -> list[str]:
    async def run() -> list[str]:
        given = options(sandbox=sandbox)
        async with session_in(folder, api, options=given) as session:
            events = await collect(session, "Approve it.")
        return [one.text for one in only(events, ToolResult)]

    return asyncio.run(run())
