"""Alerts that are pushed to a real server: tickets, answers, bad input, and a process that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from midwatch.model import Ticket
from midwatch.server.signatures import sign
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import open_store

from ..processes import start
from ..snippets import blocks
from ..waiting import PATIENCE, wait_until
from .alert_bodies import alertmanager_alert, alertmanager_body, incident
from .alerting import free_port
from .cli import MIDWATCH, environ, midwatch, said
from .server_process import Running, server_process

TEAM = {"name": "team", "kind": "alerts", "sender": "alertmanager"}


def tickets_in(folder: Path) -> list[Ticket]:
    """Return the tickets of the database in a folder, oldest first."""

    async def read() -> list[Ticket]:
        store = await open_store(f"sqlite:///{folder / 'midwatch.db'}", create=False)
        try:
            return await store.tickets(TicketFilter(limit=20_000))
        finally:
            await store.close()

    return sorted(asyncio.run(read()), key=lambda ticket: ticket.id)


def settings(*subjects: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"subjects": list(subjects or (TEAM,)), **more}


def test_an_alert_that_is_pushed_opens_a_ticket_and_its_end_resolves_it(
    tmp_path: Path,
) -> None:
    with server_process(tmp_path, settings()) as server:
        firing = alertmanager_body(alertmanager_alert())
        assert server.http.post("/hooks/alertmanager", json=firing).status_code == 200
        [ticket] = tickets_in(tmp_path)
        assert ticket.key.invariant == "alert:HostDown"
        assert ticket.key.component == "instance=db-1:9100"
        assert ticket.severity.label == "critical"
        assert ticket.message == "HostDown: db-1:9100 does not answer"
        assert (
            ticket.facts.items()
            >= {
                "runbook_url": "https://runbooks.example/host-down",
                "generatorURL": "http://prometheus.example/graph?g0.expr=up",
                "label_instance": "db-1:9100",
            }.items()
        )
        assert "alertmanager.example/#/silences/new" in str(ticket.facts["silenceURL"])
        resolved = alertmanager_body(alertmanager_alert(status="resolved"))
        answer = server.http.post("/hooks/alertmanager/team", json=resolved)
        assert answer.json() == {"received": 1}
        assert [one.resolved for one in tickets_in(tmp_path)] == [True]


def test_one_request_of_many_alerts_opens_the_most_urgent_and_counts_the_rest(
    tmp_path: Path,
) -> None:
    alerts = [
        alertmanager_alert(f"h-{number}", severity="info") for number in range(9_999)
    ]
    body = alertmanager_body(*alerts, alertmanager_alert("worst"))
    with server_process(tmp_path, settings({**TEAM, "most_tickets": 50})) as server:
        answer = server.http.post("/hooks/alertmanager", json=body)
        assert answer.json() == {"received": 10_000}
        components = {one.key.component for one in tickets_in(tmp_path)}
        assert len(components) == 50
        assert "instance=worst" in components
        cycle(tmp_path)
        [more] = [one for one in tickets_in(tmp_path) if one.key.component == "more"]
        assert more.message == "and 9,950 more alerts fire: HostDown ×9,950"
        assert len(tickets_in(tmp_path)) == 51


def test_the_monitor_gives_first_aid_and_opens_what_had_to_last(tmp_path: Path) -> None:
    waits = {**TEAM, "invariants": {"alert": {"for": "1ms"}}}
    with server_process(tmp_path, settings(waits)) as server:
        body = alertmanager_body(alertmanager_alert(name="DiskFull"))
        assert server.http.post("/hooks/alertmanager", json=body).status_code == 200
        assert tickets_in(tmp_path) == []
    [ticket] = monitored(tmp_path, settings(waits))
    assert ticket.key.invariant == "alert:DiskFull"
    with server_process(tmp_path, settings()) as server:
        body = alertmanager_body(alertmanager_alert("db-2", name="DiskFull"))
        assert server.http.post("/hooks/alertmanager", json=body).status_code == 200
    [_, pushed] = monitored(tmp_path, settings())
    assert pushed.seen
    assert "DiskFull" in str(pushed.first_aid)


def monitored(folder: Path, written: dict[str, Any]) -> list[Ticket]:
    """Return the tickets after some cycles of a monitor with these settings."""
    (folder / "midwatch.yaml").write_text(
        json.dumps({"monitor": {"interval": "50ms"}, **written})
    )
    with (folder / "monitor.log").open("wb") as log:
        process = start(
            [MIDWATCH, "monitor"],
            cwd=folder,
            env=environ(folder),
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(
            lambda: bool(found := tickets_in(folder))
            and all(one.seen and one.first_aid for one in found)
        )
    finally:
        process.kill()
        process.wait(PATIENCE)
    return tickets_in(folder)


def cycle(folder: Path) -> None:
    midwatch(folder, "monitor", "--once")


def test_the_generic_sender_of_the_documents_opens_its_ticket(tmp_path: Path) -> None:
    [written] = [
        text for text in blocks("docs/alerts.md", "yaml") if "sender: generic" in text
    ]
    [body] = blocks("docs/alerts.md", "json")
    with server_process(tmp_path, yaml.safe_load(written)) as server:
        assert server.http.post("/hooks/generic", content=body).is_success
    [ticket] = tickets_in(tmp_path)
    assert (ticket.key.invariant, ticket.key.component) == ("alert:disk", "host=db-1")


# ------------------------------------------------------------------ killed


def test_killed_between_receipt_and_commit_it_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    body = alertmanager_body(alertmanager_alert())
    with server_process(tmp_path, settings()) as server:
        with sqlite3.connect(tmp_path / "midwatch.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            # The answer waits for the commit, and that for the lock.
            with socket.create_connection(address_of(server.url)) as sender:
                sender.sendall(request(body))
                wait_until(lambda: not unread(server.pid))
                os.kill(server.pid, signal.SIGKILL)
                # On a machine so busy that the wait for the lock is over first, it is a refusal.
                assert not received(sender).startswith(b"HTTP/1.1 200")
            other.execute("ROLLBACK")
        other.close()
    assert tickets_in(tmp_path) == []
    with server_process(tmp_path, settings()) as server:
        for _ in range(2):  # the sender tries again, and once more
            answer = server.http.post("/hooks/alertmanager", json=body)
            assert answer.status_code == 200
    assert len(tickets_in(tmp_path)) == 1


def test_killed_again_and_again_each_alert_is_one_ticket(tmp_path: Path) -> None:
    """Whatever was answered is stored, and what was not is sent again."""
    port = free_port()
    written = settings(
        {**TEAM, "most_tickets": 1000}, server={"listen": f"127.0.0.1:{port}"}
    )
    answered: list[str] = []
    done = threading.Event()

    def send() -> None:
        for number in itertools.count():
            if done.is_set():
                return
            name = f"h-{number}"
            body = alertmanager_body(alertmanager_alert(name))
            for _ in range(2):
                while not posted(port, body):
                    time.sleep(0.01)  # as a sender waits before it tries again
            answered.append(name)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(4):
            with server_process(tmp_path, written) as server:
                enough = len(answered) + 10
                wait_until(lambda: len(answered) > enough)
                os.kill(server.pid, signal.SIGKILL)
                stored = set(answered)
            found = [one.key.component for one in tickets_in(tmp_path)]
            assert {f"instance={name}" for name in stored} <= set(found)
        with server_process(tmp_path, written):
            done.set()
            sender.join()
    finally:
        done.set()
    found = [one.key.component for one in tickets_in(tmp_path)]
    assert len(found) == len(set(found))
    assert {f"instance={name}" for name in answered} == set(found)


def posted(port: int, body: dict[str, Any]) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as sender:
            sender.settimeout(PATIENCE)
            sender.sendall(request(body))
            return received(sender).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        "POST /hooks/alertmanager HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def received(opened: socket.socket) -> bytes:
    """Return what comes until the connection ends."""
    found = b""
    with contextlib.suppress(OSError):
        while piece := opened.recv(65536):
            found += piece
    return found


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def unread(pid: int) -> int:
    """Return the bytes that wait in the sockets of a process."""
    found = 0
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01":  # established
            found += int(fields[4].partition(":")[2], 16)
    return found


# ------------------------------------------------------------------ bad input


def test_a_locked_database_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    body = alertmanager_body(alertmanager_alert())
    with server_process(tmp_path, settings()) as server:
        with sqlite3.connect(tmp_path / "midwatch.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = server.http.post("/hooks/alertmanager", json=body)
            other.execute("ROLLBACK")
        other.close()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert tickets_in(tmp_path) == []
        assert server.http.post("/hooks/alertmanager", json=body).status_code == 200
    assert len(tickets_in(tmp_path)) == 1


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 422, "expected an object"),
        (
            json.dumps(alertmanager_body({**alertmanager_alert(), "status": "?"})),
            422,
            "alerts[0].status",
        ),
        (
            json.dumps(
                alertmanager_body(
                    alertmanager_alert(),
                    alertmanager_alert(**{f"l{number}": "" for number in range(10**5)}),
                )
            ),
            422,
            "too many",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_as_a_whole(
    served: Running, tmp_path: Path, content: bytes | str, status: int, says: str
) -> None:
    answer = served.http.post("/hooks/alertmanager", content=content)
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert says in answer.json()["detail"]
    assert tickets_in(served.log_file.parent) == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server_process(tmp_path_factory.mktemp("served"), settings()) as server:
        yield server


def test_a_wrong_signature_is_refused_and_shows_no_secret(tmp_path: Path) -> None:
    secrets = {"signing_secrets": ["an-old-secret-1", "a-new-secret-2"]}
    paged = {"name": "pages", "kind": "alerts", "sender": "pagerduty", **secrets}
    body = json.dumps(incident("incident.triggered", "2026-03-01T10:00:01Z")).encode()
    with server_process(tmp_path, settings(paged)) as server:

        def post(signature: str | None) -> int:
            headers = {} if signature is None else {"x-pagerduty-signature": signature}
            answer = server.http.post("/hooks/pagerduty", content=body, headers=headers)
            return answer.status_code

        assert post(None) == post("v1=00") == 401
        assert post(f"v1={sign('another', body)}") == 401
        assert tickets_in(tmp_path) == []
        signed = sign("a-new-secret-2", body)
        assert post(f"v1={'0' * 64},v1={signed}") == 200
        [ticket] = tickets_in(tmp_path)
        assert ticket.key.invariant == "alert:Shop"
        text = server.log_file.read_text()
        assert "secret-" not in text and signed not in text


def test_a_token_needs_the_scope_of_alerts(tmp_path: Path) -> None:
    body = alertmanager_body(alertmanager_alert())
    with server_process(tmp_path, settings()) as server:

        def post(secret: str) -> int:
            headers = {"authorization": f"Bearer {secret}"}
            answer = server.http.post("/hooks/alertmanager", json=body, headers=headers)
            assert secret not in answer.text
            return answer.status_code

        reads = said(tmp_path, "tokens", "create", "ci", "--scope", "read").split()[-1]
        writes = said(
            tmp_path, "tokens", "create", "am", "--scope", "alerts:write"
        ).split()[-1]
        assert post(reads) == 403
        assert post(f"{writes}x") == 401
        assert tickets_in(tmp_path) == []
        assert post(writes) == 200
        said(tmp_path, "tokens", "revoke", "2")
        wait_until(lambda: post(writes) == 401)
        text = server.log_file.read_text()
        assert reads not in text and writes not in text


def test_two_subjects_of_one_sender_are_named(tmp_path: Path) -> None:
    other = {**TEAM, "name": "other"}
    body = alertmanager_body(alertmanager_alert())
    with server_process(tmp_path, settings(TEAM, other)) as server:
        unnamed = server.http.post("/hooks/alertmanager", json=body)
        assert unnamed.status_code == 404
        assert "/hooks/alertmanager/NAME, of other, team" in unnamed.json()["hint"]
        assert server.http.post("/hooks/alertmanager/none", json=body).is_client_error
        assert server.http.post("/hooks/none", json=body).is_client_error
        assert server.http.post("/hooks/alertmanager/other", json=body).is_success
    assert [one.key.subject for one in tickets_in(tmp_path)] == ["other"]


def test_hostile_text_stays_text_and_secrets_are_hidden(tmp_path: Path) -> None:
    token = "ghp_" + "a1B2" * 9
    hostile = alertmanager_alert(
        "\x1b[31mred\x00\ud800<script>", name="Bad\nName", note=f"token={token}"
    )
    hostile["annotations"]["summary"] = f"password: {token}\n# heading"
    with server_process(tmp_path, settings()) as server:
        content = json.dumps(alertmanager_body(hostile))
        assert server.http.post("/hooks/alertmanager", content=content).is_success
    [ticket] = tickets_in(tmp_path)
    whole = repr(ticket)
    assert token not in whole and "\x1b" not in whole and "\\x1b" not in whole
    assert "\n" not in ticket.message + ticket.key.component + ticket.key.invariant


def test_who_is_not_known_does_not_learn_the_names_of_subjects(tmp_path: Path) -> None:
    """Not even where all of them check a signature, so that their senders need no token."""
    pages = {"kind": "alerts", "sender": "pagerduty", "signing_secrets": ["secret"]}
    both = settings({**pages, "name": "shop"}, {**pages, "name": "store"})
    both["server"] = {"url": "https://midwatch.example.org"}
    with server_process(tmp_path, both) as server:
        for path in ("/hooks/pagerduty", "/hooks/pagerduty/other"):
            answer = server.http.post(path, json={})
            assert answer.status_code == 401
            assert "shop" not in answer.text
