"""Alerts that are pushed to a real server: tickets, answers, bad input, and a process that is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from midwatch.model import Ticket
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import open_store

from .alert_bodies import alertmanager_alert, alertmanager_body
from .server_process import server_process

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
