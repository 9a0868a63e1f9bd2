"""Debian's real Prometheus and Alertmanager: real rules fire and resolve, are silenced, and stop being sent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midwatch.model import Ticket

from ..processes import start
from ..waiting import PATIENCE, wait_until
from .alerting import MISSING, Alerting, alerting, free_port
from .cli import MIDWATCH, environ, in_store
from .server_process import Running, server_process
from .test_alerts_in import tickets_in

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

FAST = {"monitor": {"interval": "200ms", "group_wait": "0s"}}
PUSHED = {"name": "team", "kind": "alerts", "sender": "alertmanager"}


class Scene:
    """A server in a folder, the two programs beside it, and the tickets."""

    def __init__(self, folder: Path, server: Running, stack: Alerting) -> None:
        self.folder, self.server, self.stack = folder, server, stack

    def tickets(self, disk: str = "") -> list[Ticket]:
        return [one for one in tickets_in(self.folder) if disk in one.key.component]

    def opened(self, disk: str) -> Ticket:
        wait_until(lambda: bool(self.tickets(disk)))
        return self.tickets(disk)[-1]

    def silenced(self, disk: str) -> set[str]:
        """Return what keeps a disk silent."""
        found = in_store(self.folder, lambda store: store.silenced())
        return {one.by for one in found if disk in one.key.component}

    def resolved(self, disk: str) -> bool:
        return all(one.resolved for one in self.tickets(disk))


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Run server and monitor with the subject of the test's parameter."""
    folder = tmp_path / "midwatch"
    folder.mkdir()
    subject: dict[str, Any] = dict(request.param)
    manager = free_port()
    if subject["kind"] == "alertmanager":
        subject["url"] = f"http://127.0.0.1:{manager}"
    written = {**FAST, "subjects": [subject]}
    with server_process(folder, written) as server, monitoring(folder):
        webhook = f"{server.url}/hooks/alertmanager"
        with alerting(tmp_path / "alerting", webhook, manager) as stack:
            yield Scene(folder, server, stack)


@contextlib.contextmanager
def monitoring(folder: Path) -> Iterator[None]:
    """Run `midwatch monitor` in a folder, as a process of its own beside the server."""
    with (folder / "monitor.log").open("wb") as log:
        process = start(
            [MIDWATCH, "monitor"],
            cwd=folder,
            env=environ(folder),
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("scene", [PUSHED], indirect=True)
def test_a_real_rule_that_fires_opens_a_ticket_and_resolves_it(scene: Scene) -> None:
    scene.stack.break_disk("sda", "sdb")
    ticket = scene.opened("sda")
    assert (ticket.key.invariant, ticket.message) == (
        "alert:DiskFull",
        "DiskFull: sda is full",
    )
    assert ticket.facts["runbook_url"] == "https://runbooks.example/disk"
    assert "/graph?" in str(ticket.facts["generatorURL"])
    scene.opened("sdb")
    scene.stack.full.remove("sda")
    wait_until(lambda: scene.resolved("sda"))
    assert not scene.resolved("sdb")
    scene.stack.full.add("sda")
    wait_until(lambda: len(scene.tickets("sda")) == 2)
    assert scene.tickets("sda")[1].previous_id == ticket.id
    assert len(scene.tickets()) == 3  # many repeats, one ticket each


HEARD = {**PUSHED, "heartbeat": {"alert": "Watchdog", "within": "4s"}}
POLLED = {
    "name": "am",
    "kind": "alertmanager",
    "settle": "0s",
    "heartbeat": {"alert": "Watchdog", "within": "3s"},
}


@pytest.mark.parametrize("scene", [HEARD, POLLED], indirect=True, ids=["push", "poll"])
def test_a_prometheus_that_falls_silent_resolves_nothing(scene: Scene) -> None:
    scene.stack.break_disk("sda")
    first = scene.opened("sda")
    scene.stack.stop("prometheus")
    wait_until(lambda: bool(scene.tickets("observation")))
    [silent] = scene.tickets("observation")
    assert silent.key.invariant == "subject_unobservable"
    assert "Watchdog" in silent.message
    assert [one.id for one in scene.tickets("sda")] == [first.id]
    assert not scene.resolved("sda")
    scene.stack.full.remove("sda")
    scene.stack.start_prometheus()
    wait_until(lambda: scene.resolved("observation") and scene.resolved("sda"))


@pytest.mark.parametrize("scene", [POLLED], indirect=True)
def test_polled_and_pushed_an_alert_is_one_ticket_and_a_real_silence_holds(
    scene: Scene,
) -> None:
    silence = scene.stack.silence("sdb")
    scene.stack.break_disk("sda", "sdb")
    scene.opened("sda")
    wait_until(lambda: bool(scene.silenced("sdb")))
    assert f"Alertmanager silence {silence} (ada: it is being replaced)" in (
        scene.silenced("sdb")
    )
    assert scene.tickets("sdb") == []
    scene.stack.unsilence(silence)
    scene.opened("sdb")
    wait_until(lambda: not scene.silenced("sdb"))
    scene.stack.full.clear()
    wait_until(lambda: scene.resolved("sd"))
    assert len(scene.tickets("sd")) == 2
