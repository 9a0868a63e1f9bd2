"""First aid of the general playbooks, on what real subjects tell, through the gatherer and the check."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.lifecycle import SystemClock
from midwatch.model import Observation, Ticket
from midwatch.playbooks.general import PLAYBOOKS
from midwatch.redaction import Redactor
from midwatch.subjects.base import Subject
from midwatch.subjects.command import CommandSubject
from midwatch.subjects.host import HostSubject
from midwatch.testing.subject_conformance import tickets_for

from ..waiting import PATIENCE
from .web import Issued, serving, subject

Notes = list[tuple[list[int], DiagnosisOutput]]
HARMFUL = ("kill", "terminate", "drop ", "rm ", "truncate", "vacuum-size", "delete")


async def notes_for(watched: Subject, tickets: Sequence[Ticket]) -> Notes:
    """First aid for these tickets: every claim is in its evidence, and no command ends or removes anything."""
    gatherer = ContextGatherer({watched.name: watched}, Redactor(), SystemClock())
    context = await gatherer.gather(tickets, timeout=PATIENCE, tokens=8000)
    found = preliminary(PLAYBOOKS, watched.kind, tickets, context)
    for _, output in found:
        grounding = ground(output, context.evidence)
        assert grounding.verified == grounding.total > 0, grounding
        assert output.recommended_actions
        commands = "\n".join(commands_of(output))
        assert not any(word in commands for word in HARMFUL), commands
        assert "{" not in commands.replace("%{", ""), "a placeholder"
    return found


def commands_of(output: DiagnosisOutput) -> list[str]:
    return [text for one in output.recommended_actions for text in one.commands]


def of(watched: Subject, observation: Observation, *invariants: str) -> list[Ticket]:
    tickets = tickets_for(watched, observation)
    broken = {s.invariant for s in observation.signals if s.holds is not True}
    return [one for one in tickets if one.key.invariant in broken & set(invariants)]


async def first_aid(watched: Subject, *invariants: str) -> DiagnosisOutput:
    """The one note for the broken invariants that this subject shows now."""
    tickets = of(watched, await watched.observe({}), *invariants)
    [(ids, output)] = await notes_for(watched, tickets)
    await watched.close()
    assert ids == [ticket.id for ticket in tickets]
    return output


def host(**settings: object) -> HostSubject:
    given = {"name": "box", "timeout": PATIENCE, **settings}
    return HostSubject(HostSubject.settings_model.model_validate(given))


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that has printed a line."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stdout.readline()
        yield process
        process.kill()


# ------------------------------------------------------------------ host

GROW = """
import sys, time
file = open(sys.argv[1], "wb")
file.write(bytes(5_000_000)); file.flush(); print("up", flush=True)
while True:
    file.write(bytes(200_000)); file.flush(); time.sleep(0.01)
"""
HOLD = """
import os, sys
file = open(sys.argv[1], "wb"); file.write(bytes(9_000_000)); file.flush()
os.unlink(sys.argv[1]); print("up", flush=True); sys.stdin.read()
"""


async def full(folder: Path, **facts: object) -> DiagnosisOutput:
    """First aid for a folder as if it were a full file system of 20 MB."""
    box = host(mounts=[folder], invariants={"disk": {"limit": 0}})
    [ticket] = of(box, await box.observe({}), "disk")
    small = {"used_bytes": 20_000_000, "free_bytes": 1_000_000, **facts}
    ticket = replace(ticket, facts={**ticket.facts, **small})
    [(_, output)] = await notes_for(box, [ticket])
    return output


async def test_a_full_disk_names_who_fills_it(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "dump").write_bytes(bytes(7_000_000))
    assert f"the file {tmp_path}/old/dump of 7" in (await full(tmp_path)).root_cause
    with running(HOLD, tmp_path / "gone.log") as holder:
        output = await full(tmp_path)
        assert f"(pid {holder.pid}) holds a deleted file open" in output.root_cause
        assert output.verdict == "identified"
    with running(GROW, tmp_path / "app.log") as writer:
        output = await full(tmp_path)
        assert f"(pid {writer.pid}) writes " in output.root_cause
        assert f"{tmp_path}/app.log" in output.root_cause
        assert f"tail -c 2000 {tmp_path}/app.log" in commands_of(output)


async def test_files_that_are_alike_are_told_as_a_tie(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(6_000_000))
    output = await full(tmp_path)
    assert "nothing tells which is the first" in output.root_cause
    assert f"{tmp_path}/a" in output.root_cause and f"{tmp_path}/b" in output.root_cause


async def test_inodes_name_the_folder(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    for number in range(300):
        (tmp_path / "spool" / str(number)).touch()
    box = host(mounts=[tmp_path], invariants={"inodes": {"limit": 0}})
    output = await first_aid(box, "inodes")
    assert f"the folder {tmp_path}/spool with 300 files" in output.root_cause


@pytest.mark.parametrize(
    ("invariant", "limit", "reported"),
    [("memory", 1, "of the memory"), ("load", 0, "")],
)
async def test_pressure(invariant: str, limit: float, reported: str) -> None:
    output = await first_aid(host(invariants={invariant: {"limit": limit}}), invariant)
    assert reported in output.root_cause and output.root_cause


LOGGING = """
import sys
log = open(sys.argv[1], "a")
print("up", flush=True); sys.stdin.read()
log.write(f"info: starting\\nbind() to 127.0.0.1:{sys.argv[2]} failed (98: Address already in use)\\n")
"""


async def test_a_process_that_ended_is_explained_by_its_log(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        box = host(processes=[{"pattern": f"{log} {port}"}])
        with running(LOGGING, log, port) as process:
            seen = await box.observe({})
            assert seen.covers("process") and not of(box, seen, "process")
            process.communicate()
        # As after a restart of Midwatch: only the state is left.
        again = host(processes=[{"pattern": f"{log} {port}"}])
        state = json.loads(json.dumps(seen.state))
        observation = await again.observe(state)
        tickets = of(again, observation, "process")
        [(_, output)] = await notes_for(again, tickets)
    assert tickets[0].facts["log_files"] == str(log)
    assert tickets[0].facts["last_pid"] == process.pid
    assert "port is taken by another process" in output.root_cause
    assert f"port {port} on 127.0.0.1: " in output.root_cause
    assert f"tail -n 100 {log}" in commands_of(output)
    assert observation.state["processes"] == seen.state["processes"]


async def test_a_process_that_ended_for_a_full_disk_is_explained_by_that_disk(
    tmp_path: Path,
) -> None:
    log = tmp_path / "db.log"
    log.write_text("PANIC: could not write to file: No space left on device\n")
    (tmp_path / "dump").write_bytes(bytes(9_000_000))
    box = host(
        mounts=[tmp_path],
        processes=[{"name": "no-such; rm -rf /", "log_files": [str(log)]}],
        invariants={"disk": {"limit": 0}},
    )
    tickets = [
        replace(one, facts={**one.facts, "used_bytes": 20_000_000})
        for one in of(box, await box.observe({}), "disk", "process")
    ]
    [(ids, output)] = await notes_for(box, tickets)
    assert len(ids) == 2 and f"{tmp_path}/dump" in output.root_cause


async def test_a_process_of_which_nothing_is_known() -> None:
    output = await first_aid(host(processes=[{"name": "no-such; rm -rf /"}]), "process")
    assert "why it ended is not known" in output.root_cause
    assert not commands_of(output), "no unit or log is known, so none is guessed"


# ------------------------------------------------------------------ http


async def test_http_outage() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        output = await first_aid(subject(f"http://127.0.0.1:{port}"), "reachable")
    assert "nothing listens on its port" in output.root_cause
    assert f"ss -ltnp 'sport = :{port}'" in commands_of(output)


async def test_a_server_that_accepts_and_is_silent_is_told_from_one_that_is_away() -> (
    None
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        output = await first_aid(subject(url, timeout=1), "reachable")
    assert "takes the request, but sends no answer" in output.root_cause


async def test_latency_names_the_phase_of_the_slow_request_itself() -> None:
    waits = iter([0.4])  # the second request, of the evidence, is fast

    async def wait() -> None:
        await asyncio.sleep(next(waits, 0))

    def reply(_: object) -> tuple[int, dict[str, str], bytes]:
        asyncio.run(wait())
        return 200, {}, b"well"

    with serving(reply) as url:
        slow = subject(url, invariants={"latency": {"limit": "300ms", "for": 0}})
        output = await first_aid(slow, "latency")
    assert "the server, before the first byte" in output.root_cause
    assert output.root_cause_citations[0].quote.startswith("first_byte_seconds: 0.")


ENVOY = b"upstream connect error or disconnect/reset before headers. reset reason: connection failure"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, ENVOY, "Envoy itself answers, not the application behind it"),
        (503, b'{"db": "connection refused by 10.0.0.7"}', "a peer refuses the conn"),
        (500, b"ERROR: no space left on device", "no space is left on a file system"),
        (404, b"not here", "a route, a file or a deployment is missing"),
    ],
)
async def test_a_wrong_status_tells_who_answers(
    status: int, body: bytes, expected: str
) -> None:
    with serving(lambda _: (status, {}, body)) as url:
        output = await first_aid(subject(url), "status")
    assert expected in output.root_cause


async def test_a_certificate_for_another_name_is_no_missed_renewal(
    tmp_path: Path,
) -> None:
    root = Issued.root()
    authority, _ = root.write(tmp_path, "root")
    wrong = root.issue("other.example").context(tmp_path)
    right = root.issue("localhost").context(tmp_path)
    with serving(lambda _: (200, {}, b""), right) as url:
        port = url.rpartition(":")[2]
        site = f"https://localhost:{port}/"
        seen = await subject(site, ca_file=str(authority)).observe({})
    with serving(lambda _: (200, {}, b""), wrong) as url:
        site = f"https://localhost:{url.rpartition(':')[2]}/"
        shop = subject(site, ca_file=str(authority))
        known = {
            "certificates": {site: next(iter(seen.state["certificates"].values()))}
        }
        tickets = of(shop, await shop.observe(known), "certificate_name")
        [(_, output)] = await notes_for(shop, tickets)
        await shop.close()
    assert "shows a certificate for other.example" in output.root_cause
    assert "it took the place of the right one" in output.root_cause
    assert "Another certificate was accepted before" in output.summary
    advice = " ".join(one.what for one in output.recommended_actions)
    assert "renew" not in advice.lower() and output.confidence == "high"


async def test_each_fault_of_a_chain_has_its_own_advice(tmp_path: Path) -> None:
    root = Issued.root()
    authority, _ = root.write(tmp_path, "root")
    alone = replace(root.authority("middle").issue("localhost"), above=())
    found = {}
    for name, issued in {
        "alone": alone,
        "self-signed": Issued.root("localhost"),
        "early": root.issue("localhost", days=9, begun=-3),
        "ended": root.issue("localhost", days=-5, begun=30),
    }.items():
        with serving(lambda _: (200, {}, b""), issued.context(tmp_path)) as url:
            site = f"https://localhost:{url.rpartition(':')[2]}/"
            shop = subject(site, ca_file=str(authority))
            expected = "certificate_expiry" if name == "ended" else "certificate_valid"
            tickets = of(shop, await shop.observe({}), expected)
            notes = await notes_for(shop, tickets)
            found[name] = " ".join(
                f"{note.root_cause} {[one.what for one in note.recommended_actions]}"
                for _, note in notes
            )
            await shop.close()
    assert "sends it alone" in found["alone"] and "fullchain.pem" in found["alone"]
    assert "signed by itself" in found["self-signed"]
    assert "clock" in found["early"] and "Renew" not in found["early"]
    assert "has expired" in found["ended"] and "Renew" in found["ended"]


# ------------------------------------------------------------------ command


async def reported(document: object, *invariants: str) -> Notes:
    command = [sys.executable, "-S", "-c", f"print({json.dumps(document)!r})"]
    settings = {"name": "q", "command": command, "timeout": PATIENCE}
    watched = CommandSubject(CommandSubject.settings_model.model_validate(settings))
    tickets = tickets_for(watched, await watched.observe({}))
    return await notes_for(watched, tickets)


def violation(invariant: str, component: str, message: str) -> dict[str, str]:
    return {"invariant": invariant, "component": component, "message": message}


async def test_a_command_is_explained_by_its_evidence_not_by_its_message() -> None:
    backup = violation("backup_age", "orders-db", "the last backup is 31 hours old")
    text = "2026-11-20 02:00 ok, 0 errors\n2026-11-21 02:00 no space left on /backup"
    evidence = [{"title": "Last runs", "text": text}]
    [(_, output)] = await reported({"violations": [backup], "evidence": evidence})
    assert "no space left on /backup" in output.root_cause
    assert "df -h" in commands_of(output)

    [(_, silent)] = await reported({"violations": [backup]})
    assert silent.verdict == "insufficient_data" and not silent.root_cause

    both = text + "\n2026-11-21 02:01 permission denied: /backup/tmp"
    evidence = [{"title": "Last runs", "text": both}]
    [(_, tie)] = await reported({"violations": [backup], "evidence": evidence})
    assert " or " in tie.root_cause and "nothing tells which" in tie.root_cause


async def test_of_several_reports_the_one_with_the_cause_comes_first() -> None:
    [(first, output), (second, other)] = await reported(
        {
            "violations": [
                violation("queue", "mail", "12,000 mails wait: disk full on /srv"),
                violation("disk", "/srv", "no space left on /srv"),
                violation("backup_age", "hr-db", "the last backup is 31 hours old"),
            ]
        }
    )
    assert len(first) == 2 and "no space is left" in output.root_cause
    assert len(second) == 1 and other.verdict == "insufficient_data"
