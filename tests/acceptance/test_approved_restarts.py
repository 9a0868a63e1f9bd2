"""The approved restart of a unit: only one that the settings name, without a shell. systemd is played by a program."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from midwatch.errors import ObservationFailed
from midwatch.model import Facts, Key, Severity, Ticket, TicketStatus
from midwatch.subjects.actionable import Actionable, Findings, ProposedAction
from midwatch.subjects.host import HostSettings, HostSubject

UNIT = "orders-worker.service"
NAME = "no-such-process"


def fake(folder: Path, restart: str = "true", state: str = "loaded") -> Path:
    """Return a program that notes its arguments, one a line, and does what systemctl is to do."""
    program = folder / "systemctl"
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$@" >> "{folder}/asked"\n'
        f'if [ "$1" = show ]; then echo {state}; exit 0; fi\n'
        f"{restart}\n"
    )
    program.chmod(0o755)
    return program


def host(folder: Path, **more: Any) -> HostSubject:
    actions = {"allow": ["restart_unit"], "units": [UNIT], **more}
    actions.setdefault("systemctl", [str(folder / "systemctl")])
    return HostSubject(
        HostSettings.model_validate(
            {
                "name": "box",
                "kind": "host",
                "processes": [{"name": NAME}],
                "actions": actions,
            }
        )
    )


def proposed(
    subject: HostSubject, command: str, **facts: str
) -> tuple[ProposedAction, ...]:
    named: Facts = {"unit": UNIT, **facts}
    at = datetime.now(UTC)
    ticket = Ticket(
        id=1,
        key=Key("box", "process", NAME),
        severity=Severity.CRITICAL,
        status=TicketStatus.DIAGNOSED,
        held=False,
        message="it does not run",
        facts=named,
        first_seen_at=at,
        opened_at=at,
        last_seen_at=at,
        occurrence_count=1,
        batch=1,
    )
    findings = Findings(ticket, (), (), [command], at.timestamp())
    return tuple(subject.propose_actions(findings))


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return file.read_text().splitlines() if file.exists() else []


async def test_a_unit_whose_process_is_down_is_restarted(tmp_path: Path) -> None:
    fake(tmp_path)
    subject = host(tmp_path)
    assert isinstance(subject, Actionable)
    [action] = proposed(subject, f"sudo systemctl restart {UNIT}")
    check = await subject.check_action(action)
    assert check.ready and check.command.endswith(f"systemctl restart -- {UNIT}")
    assert UNIT in await subject.probe_actions()
    assert "restart" not in asked(tmp_path)
    assert (await subject.run_action(action)).outcome == "done"
    assert asked(tmp_path)[-3:] == ["restart", "--", UNIT]


@pytest.mark.parametrize(
    ("command", "facts"),
    [
        (f"systemctl restart {UNIT}", {"unit": "sshd.service"}),
        ("systemctl restart sshd.service", {}),
        (f"systemctl stop {UNIT}", {}),
        (f"systemctl restart {UNIT}", {"unit": f"{UNIT}; touch planted"}),
        (f"systemctl restart {UNIT}", {"unit": "--force"}),
        (f"systemctl restart x{UNIT}", {}),
        ("systemctl restart $(touch planted)", {"unit": "$(touch planted)"}),
    ],
)
def test_only_a_named_unit_that_is_recommended_is_proposed(
    tmp_path: Path, command: str, facts: dict[str, str]
) -> None:
    assert not proposed(host(tmp_path), command, **facts)


async def test_a_hostile_unit_reaches_no_shell(tmp_path: Path) -> None:
    """Even if a proposal had one: it is checked against the settings again."""
    fake(tmp_path)
    subject = host(tmp_path)
    for unit in (f"x; touch {tmp_path}/planted", f"$(touch {tmp_path}/planted)", "-H"):
        action = ProposedAction("restart_unit", {"unit": unit, "component": NAME}, "")
        assert (await subject.run_action(action)).outcome == "not_run"
    assert not asked(tmp_path) and not (tmp_path / "planted").exists()
    for unit in ("a b.service", "--force", "a;b", "a\n"):
        with pytest.raises(ValidationError):
            host(tmp_path, units=[unit])


@pytest.mark.parametrize(
    ("restart", "state", "outcome", "says"),
    [
        ("echo Access denied >&2; exit 4", "loaded", "failed", "Access denied"),
        ("true", "not-found", "not_run", "not-found"),
        ("exec sleep 600", "loaded", "unknown", "systemd may go on"),
    ],
)
async def test_how_a_restart_ended_is_told(
    tmp_path: Path, restart: str, state: str, outcome: str, says: str
) -> None:
    fake(tmp_path, restart, state)
    subject = host(tmp_path, timeout=3)
    [action] = proposed(subject, f"systemctl restart {UNIT}")
    began = time.monotonic()
    result = await subject.run_action(action)
    assert (result.outcome, says in result.text) == (outcome, True), result
    if state != "loaded":
        with pytest.raises(ObservationFailed, match="could not be restarted"):
            await subject.probe_actions()
    assert time.monotonic() - began < 60


async def test_a_process_that_runs_again_or_no_program_is_told(tmp_path: Path) -> None:
    fake(tmp_path)
    subject = host(tmp_path)
    [action] = proposed(subject, "systemctl restart orders-worker")
    process = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        running = HostSubject(
            subject.settings.model_copy(
                update={
                    "processes": [
                        subject.settings.processes[0].model_copy(
                            update={"name": None, "pattern": "sleep 600"}
                        )
                    ]
                }
            )
        )
        again = ProposedAction(
            action.kind, {"unit": UNIT, "component": "/sleep 600/"}, ""
        )
        result = await running.run_action(again)
        assert (result.outcome, "runs again" in result.text) == ("not_run", True)
    finally:
        process.kill()
        await process.wait()
    gone = host(tmp_path, systemctl=[str(tmp_path / "none")])
    result = await gone.run_action(action)
    assert result.outcome == "not_run" and "could not be started" in result.text
