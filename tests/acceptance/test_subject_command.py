"""The kind `command` with real child processes, well-behaved and not."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.model import UNRESOLVED, Severity
from midwatch.monitor.loop import MonitorLoop
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore
from midwatch.subjects.command import CommandSubject
from midwatch.testing.fakes import ManualClock
from midwatch.testing.subject_conformance import check_kind, check_subject

from ..waiting import PATIENCE
from .cli import comes_true

SECRET = "hunter2-hunter2"
DEEP = {
    "invariant": "queue_depth",
    "component": "mail",
    "message": "12,000 mails\nwait",
    "severity": "critical",
    "value": 12000,
    "facts": {"oldest": "3h"},
}


def command(script: str, **settings: object) -> CommandSubject:
    given = {
        "name": "queues",
        "command": [sys.executable, "-S", "-c", script],
        "timeout": 10,
        **settings,
    }
    return CommandSubject(CommandSubject.settings_model.model_validate(given))


def printing(text: str) -> CommandSubject:
    return command(f"print({text!r}, end='')")


async def failure(subject: CommandSubject) -> str:
    with pytest.raises(ObservationFailed) as caught:
        await subject.observe({})
    return caught.value.one_line()


async def test_one_object_conforms_and_all_else_is_well() -> None:
    check_kind(CommandSubject)
    report = {
        "violations": [DEEP],
        "evidence": [{"title": "Queues", "text": "mail 12000\nnews 3"}],
    }
    script = f"import sys; print({json.dumps(report)!r}); print('slow disk', file=sys.stderr)"
    subject = command(script)
    observation = await check_subject(subject)
    assert observation is not None
    [signal] = observation.signals
    assert (signal.invariant, signal.component) == ("queue_depth", "mail")
    assert signal.message == "12,000 mails wait"
    assert (signal.severity, signal.holds) == (Severity.CRITICAL, False)
    assert observation.covers("anything")
    [source] = subject.sources(())
    text = await source.fetch()
    assert "== Queues\nmail 12000" in text and "slow disk" in text


async def test_a_violation_a_line_and_partial_coverage() -> None:
    two = "\n".join(json.dumps({**DEEP, "component": name}) for name in ("a", "b"))
    lines = await printing(two).observe({})
    assert [signal.component for signal in lines.signals] == ["a", "b"]
    one = await printing(json.dumps(DEEP)).observe({})
    assert len(one.signals) == 1

    part = await printing('{"violations": [], "covered": ["queue_depth"]}').observe({})
    assert part.covers("queue_depth") and not part.covers("other")


@pytest.mark.parametrize(
    ("output", "reported"),
    [
        ("", "is empty"),
        ("all good\n", "is not valid JSON (line 1: all good)"),
        ("{}", "violations: is missing; this field is required"),
        ("[" * 100_000, "(line 1: [[[["),
        (
            json.dumps({"violations": [{**DEEP, "serverity": "info"}]}),
            "violations[0].serverity: unknown field",
        ),
        (
            json.dumps({"violations": [{**DEEP, "severity": "bad"}]}),
            "violations[0].severity: 'bad' is not a choice; use 'critical', 'warning'",
        ),
        (
            json.dumps({"violations": [{**DEEP, "value": float("nan")}]}),
            "[0].value: nan is not",
        ),
        (
            json.dumps({"violations": [{**DEEP, "invariant": "a b\x1b"}]}),
            "[0].invariant: ",
        ),
        ('{"violations": [', "is not valid JSON"),
    ],
)
async def test_output_of_another_form_is_unknown(output: str, reported: str) -> None:
    assert reported in await failure(printing(output))


async def test_a_name_in_another_encoding_does_not_hide_the_report() -> None:
    output = json.dumps({"violations": [{**DEEP, "component": "b?r"}]})
    script = f"import sys; sys.stdout.buffer.write({output.encode()!r}.replace(b'?', b'\\xe4'))"
    [signal] = (await command(script).observe({})).signals
    assert signal.component == "bär"


WELL = "print('{\"violations\": []}')"


@pytest.mark.parametrize(
    ("script", "settings", "reason"),
    [
        (WELL, {"command": ["/no/such/program"]}, "No such file"),
        (WELL, {"command": ["/etc/passwd"]}, "Permission denied"),
        (WELL, {"cwd": "/no/such/folder"}, "could not be started"),
        (f"{WELL}; import time; time.sleep(600)", {"timeout": 1.5}, "did not end"),
        (f"{WELL}; raise SystemExit(2)", {}, "exited with status 2"),
        (f"{WELL}; import os; os.kill(os.getpid(), 15)", {}, "by signal 15"),
        (f"{WELL}; print('x' * 9999)", {"max_output": "1kB"}, "more than 1000 bytes"),
        ("", {}, "is empty"),
        ("print('null')", {}, "null is not"),
    ],
)
async def test_each_way_of_not_knowing_keeps_the_tickets(
    script: str,
    settings: dict[str, object],
    reason: str,
    store: SqlStore,
    clock: ManualClock,
) -> None:
    """Of all of them nothing resolves; the subject itself becomes a ticket, which resolves afterwards."""
    first = command(f"print({json.dumps(DEEP)!r})")
    failing, well = command(script, **settings), command(WELL)
    limits = MonitorSettings(group_wait=0, unobservable_after=2)

    async def cycle(subject: CommandSubject) -> dict[str, str]:
        await MonitorLoop(store, [subject], limits, clock=clock).cycle()
        found = await store.tickets(TicketFilter(statuses=UNRESOLVED))
        return {ticket.key.invariant: ticket.message for ticket in found}

    assert (await cycle(first)).keys() == {"queue_depth"}
    assert (await cycle(failing)).keys() == {"queue_depth"}
    blind = await cycle(failing)
    assert blind.keys() == {"queue_depth", "subject_unobservable"}
    assert reason in blind["subject_unobservable"]
    assert await cycle(well) == {}


async def test_a_failing_command_says_why_and_its_evidence_too() -> None:
    script = "import sys; print('{\"violations\": []}'); sys.exit('no route to mail')"
    assert "exited with status 1: no route to mail" in await failure(command(script))
    text = await command(script).sources(())[0].fetch()
    assert "exited with status 1" in text and "no route to mail" in text
    await check_subject(command(script), observable=False)
    missing = command("", command=["/no/such/program"])
    assert "could not be started: No such file" in await failure(missing)


async def test_a_flood_is_stopped() -> None:
    flood = command("while True: print('x' * 65536)", max_output="200kB")
    began = time.monotonic()
    assert "wrote more than 200000 bytes" in await failure(flood)
    assert time.monotonic() - began < PATIENCE


async def test_a_hang_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = (
        "import os, time\n"
        "for _ in range(2): os.fork()\n"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(600)\n"
    )
    assert "did not end within 4" in await failure(command(script, timeout=5))
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 4
    assert await gone(started)


async def test_a_child_that_left_the_group_cannot_hold_us(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "else:\n"
        "    print('{\"violations\": []}')\n"
    )
    began = time.monotonic()
    assert "did not end within" in await failure(command(script, timeout=5))
    assert time.monotonic() - began < PATIENCE
    escaped = int(pid.read_text())
    os.kill(escaped, 9)
    assert await gone([escaped])


async def test_cancelling_a_look_leaves_nothing_running(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    subject = command(
        f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    observe_once = asyncio.ensure_future(subject.observe({}))
    while not (pid.exists() and pid.read_text()):
        await asyncio.sleep(0.01)
    observe_once.cancel()
    with pytest.raises(asyncio.CancelledError):
        await observe_once
    assert await gone([int(pid.read_text())])


async def test_the_environment_is_built_not_inherited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "inherited")
    script = (
        "import json, os\n"
        "item = {'invariant': 'env', 'component': 'c', 'message': ' '.join(sorted(os.environ))}\n"
        "print(json.dumps({'violations': [item]}))\n"
    )
    subject = command(script, env={"REGION": "north"}, secret_env={"API_TOKEN": SECRET})
    [signal] = (await subject.observe({})).signals
    given = set(signal.message.split()) - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    assert given == {"API_TOKEN", "HOME", "LANG", "PATH", "REGION"}
    assert subject.secrets == [SECRET]
    assert SECRET not in repr(subject.settings)


async def test_nothing_is_a_shell(tmp_path: Path) -> None:
    subject = command("", command=["/bin/echo", f"; touch {tmp_path}/made"])
    assert "is not valid JSON" in await failure(subject)
    assert not list(tmp_path.iterdir())


def test_settings_apply_to_all_violations() -> None:
    with pytest.raises(ValidationError):
        command("", command=[])
    with pytest.raises(SettingsError, match="subjects.queues.invariants.depth"):
        command("", invariants={"depth": {}})


async def test_severity_and_duration_of_the_settings_win() -> None:
    script = f"print({json.dumps(DEEP)!r})"
    rule = {"violation": {"severity": "info", "for": "5m"}}
    [signal] = (await command(script, invariants=rule).observe({})).signals
    assert (signal.severity, signal.hold_for) == (Severity.INFO, 300)


async def gone(pids: list[int]) -> bool:
    """Whether these processes end (a zombie has ended)."""
    try:
        await comes_true(lambda: not any(map(running, pids)), PATIENCE)
    except TimeoutError:
        return False
    return True


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
