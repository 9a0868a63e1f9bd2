"""What Alertmanager silences opens no ticket where its Prometheus is watched: with the real programs, and with odd ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midwatch.model import Observation, Severity
from midwatch.subjects.prometheus import PrometheusSubject
from midwatch.testing.subject_conformance import check_subject

from ..waiting import PATIENCE, wait_until
from .alerting import MISSING, Alerting, alerting, free_port
from .cli import in_store, midwatch
from .prometheus_server import Server, alert
from .prometheus_server import alerting as rule
from .prometheus_server import observe_once, serving, subject
from .test_alerts_in import tickets_in

needs_programs = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


class Manager(Server):
    """A little Alertmanager."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: list[dict[str, Any]] = []
        self.answer: tuple[int, str, bytes] | None = None  # instead of the alerts

    def reply(self, path: str, query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        assert path.startswith("/prefix/api/v2/")
        found: object = [{"id": "4f", "createdBy": "ada", "comment": "new disks"}]
        if path.endswith("/alerts"):
            if self.answer is not None:
                return self.answer
            found = self.alerts
        return 200, "application/json", json.dumps(found).encode()

    @property
    def sent_to(self) -> str:
        return f"{self.url}api/v2/alerts"


def managed(name: str, by: str = "4f", **labels: str) -> dict[str, Any]:
    """Return an alert of Alertmanager, with the silence `by`."""
    return {
        "labels": {"alertname": name, **labels},
        "annotations": {},
        "fingerprint": "f",
        "status": {
            "state": "suppressed" if by else "active",
            "silencedBy": [by] if by else [],
            "inhibitedBy": [],
        },
    }


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as state:
        yield state


@pytest.fixture
def manager(server: Server) -> Iterator[Manager]:
    """Serve an Alertmanager that the server of the test names."""
    with serving(Manager()) as state:
        assert isinstance(state, Manager)
        server.managers = [state.sent_to]
        yield state


def silent(observation: Observation) -> dict[str, str]:
    """Return what silences each broken component; empty for one that nothing silences."""
    return {
        one.component: one.silenced_by
        for one in observation.signals
        if one.holds is False
    }


async def once(prom: PrometheusSubject) -> Observation:
    observation = await observe_once(prom)
    await prom.close()
    return observation


SILENCE = "Alertmanager silence 4f (ada: new disks)"

# ------------------------------------------------------------------ the real programs


@needs_programs
def test_a_real_silence_holds_and_its_end_opens_the_ticket(tmp_path: Path) -> None:
    folder = tmp_path / "midwatch"
    folder.mkdir()
    with alerting(tmp_path / "alerting", "http://127.0.0.1:1/", free_port()) as stack:
        silence = _break_disks(stack)
        watched = {"name": "prom", "kind": "prometheus", "url": stack.prometheus_url}
        written = {"monitor": {"group_wait": "0s"}, "subjects": [watched]}
        (folder / "midwatch.yaml").write_text(json.dumps(written))
        look(folder)
        [ticket] = tickets_in(folder)
        assert "disk=sda" in ticket.key.component
        [held] = in_store(folder, lambda store: store.silenced())
        assert held.by == f"Alertmanager silence {silence} (ada: it is being replaced)"
        stack.unsilence(silence)
        wait_until(lambda: stack.state(disk="sdb") == "active")
        look(folder)
        assert len(tickets_in(folder)) == 2
        assert in_store(folder, lambda store: store.silenced()) == []
        # What is silenced now has a ticket, which stays, and is silent.
        stack.silence("sda")
        wait_until(lambda: stack.state(disk="sda") == "suppressed")
        look(folder)
        assert [bool(one.silenced_by) for one in tickets_in(folder)] == [True, False]
        stack.stop("manager")
        look(folder)
        assert [one.silenced_by for one in tickets_in(folder)] == [None, None]
        checked = midwatch(folder, "check")
        assert f"silences: http://127.0.0.1:{stack.manager}/" in checked.stdout


def _break_disks(stack: Alerting) -> str:
    """Break two disks, of which sdb is silenced; return the silence when Alertmanager has both alerts."""
    silence = stack.silence("sdb")
    stack.break_disk("sda", "sdb")
    # Prometheus adds `cluster`, and its rules for relabelling drop `replica` and add `site`.
    sent = {"alertname": "DiskFull", "cluster": "east", "site": "berlin"}
    wait_until(lambda: stack.state(**sent, disk="sdb") == "suppressed")
    wait_until(lambda: stack.state(**sent, disk="sda") == "active")
    return silence


def look(folder: Path) -> None:
    assert midwatch(folder, "monitor", "--once").returncode == 0


# ------------------------------------------------------------------ labels


async def test_an_alert_is_found_by_its_labels(
    server: Server, manager: Manager
) -> None:
    server.external = {"cluster": "east", "replica": "a"}
    server.rules = [
        rule("Down", *(alert(disk=disk, note="") for disk in "abcdef")),
        rule("Up", alert(disk="a")),
    ]
    manager.alerts = [
        managed("Down", disk="a", cluster="east", site="x"),
        managed("Down", disk="b", cluster="west"),  # of another Prometheus
        managed("Down", disk="c", cluster="west"),
        managed("Down", "", disk="c", cluster="east"),
        managed("Down", disk="d", cluster="east"),
        managed("Down", "", disk="d", cluster="west"),
        # Either of the two may be meant.
        managed("Down", disk="e", cluster="east", site="x"),
        managed("Down", "", disk="e", cluster="east", site="y"),
        managed("Down", disk="f"),
    ]
    found = silent(await once(subject(server.url)))
    assert found.pop("disk=a") == ""  # of Up, which has the same labels
    silenced = {name[5] for name, by in found.items() if by == SILENCE}
    assert silenced == {*"adf"} and {*found.values()} == {"", SILENCE}


@pytest.mark.parametrize(
    ("status", "by"),
    [
        ({"state": "suppressed", "inhibitedBy": ["9a"]}, "inhibited by the alert 9a"),
        ({"state": "suppressed", "mutedBy": ["night"]}, "by the time interval night"),
        ({"state": "unprocessed", "silencedBy": []}, ""),
    ],
)
async def test_inhibited_and_muted_alerts_are_silent_too(
    server: Server, manager: Manager, status: dict[str, Any], by: str
) -> None:
    server.rules = [rule("Down", alert(disk="a"))]
    manager.alerts = [{**managed("Down", disk="a"), "status": status}]
    found = silent(await once(subject(server.url)))["disk=a"]
    assert found.endswith(by) and bool(found) == bool(by)


# ------------------------------------------------------------------ what goes wrong

ODD: dict[str, tuple[int, str, bytes]] = {
    "has nothing": (200, "application/json", b"[]"),
    "is down": (503, "text/plain", b"Service Unavailable"),
    "wants a login": (401, "text/plain", b"no"),
    "redirects": (302, "text/plain\r\nLocation: http://127.0.0.1:1/login", b""),
    "another program": (200, "text/html", b"<html>"),
    "another form": (200, "application/json", b'[{"labels": [], "status": 3}]'),
    "an object": (200, "application/json", b'{"status": "success"}'),
    "breaks off": (
        200,
        "application/json",
        json.dumps([managed("Down", disk="a")]).encode()[:-1],
    ),
}


@pytest.mark.parametrize("case", ODD)
async def test_without_a_clear_word_an_alert_fires(
    server: Server, manager: Manager, case: str
) -> None:
    server.rules = [rule("Down", alert(disk="a"))]
    manager.answer = ODD[case]
    prom = subject(server.url)
    observation = await check_subject(prom)
    assert observation is not None and silent(observation) == {"disk=a": ""}
    assert not observation.unavailable and observation.covers("alert:Down")
    assert ("silences" in observation.unsupported) == (case != "has nothing")
    # A member of the cluster that has the silence suffices.
    with serving(Manager()) as other:
        assert isinstance(other, Manager)
        other.alerts = [managed("Down", disk="a")]
        assert server.managers is not None
        server.managers.append(other.sent_to)
        assert silent(await once(subject(server.url))) == {"disk=a": SILENCE}


async def test_a_slow_alertmanager_costs_a_share_of_the_time(
    server: Server, manager: Manager
) -> None:
    server.rules = [rule("Down", alert(disk="a"))]
    manager.hang.clear()
    observation = await once(subject(server.url, timeout=2))
    assert silent(observation) == {"disk=a": ""} and observation.covers("alert:Down")
    assert "no answer within" in observation.unsupported["silences"]


async def test_a_server_that_names_no_alertmanagers(server: Server) -> None:
    """Such as Mimir, Thanos or Grafana: then the settings name them."""
    server.managers = None
    server.rules = [rule("Down", alert(disk="a"))]
    observation = await once(subject(server.url))
    assert silent(observation) == {"disk=a": ""} and observation.covers("alert:Down")
    assert "alertmanagers: [URL]" in observation.unsupported["silences"]
    off = await once(subject(server.url, alertmanagers=[]))
    assert silent(off) == {"disk=a": ""} and not off.unsupported
    with serving(Manager()) as named:
        assert isinstance(named, Manager)
        named.alerts = [managed("Down", disk="a")]
        url = named.url.replace("://", "://me:pass-word@")
        prom = subject(server.url, alertmanagers=[url])
        observation = await once(prom)
    assert silent(observation) == {"disk=a": SILENCE} and not observation.unsupported
    assert named.requests[-1]["Authorization"] == "Basic bWU6cGFzcy13b3Jk"
    assert {"pass-word", "bWU6cGFzcy13b3Jk"} <= {*prom.secrets}


async def test_the_login_of_prometheus_is_for_its_own_origin(
    server: Server, manager: Manager, tmp_path: Path
) -> None:
    server.rules = [rule("Down", alert(disk="a"))]
    (tmp_path / "token").write_text("s3cret")
    secret = {
        "bearer_token_file": tmp_path / "token",
        "headers": {"X-Api-Key": "k3y", "X-Scope-OrgID": "team-a"},
    }
    of_server, of_manager = server.reply, Manager().reply
    server.reply = lambda path, query: (  # type: ignore[method-assign]
        of_manager if "/api/v2/" in path else of_server
    )(path, query)
    assert server.managers is not None
    server.managers += [
        f"{server.url}api/v2/alerts",
        "ftp://x/api/v2/alerts",
        "http://",
    ]
    await once(subject(server.url, **secret))
    assert manager.requests and not {"authorization", "x-api-key", "x-scope-orgid"} & {
        name.lower() for headers in manager.requests for name in headers
    }
    assert all(one["Authorization"] == "Bearer s3cret" for one in server.requests)


# ------------------------------------------------------------------ over time


async def test_only_what_fires_is_asked_for(server: Server, manager: Manager) -> None:
    prom = subject(server.url)
    server.rules = [rule("Down", alert("pending", disk="a")), rule("Watchdog", alert())]
    first = await observe_once(prom)
    asked = len(manager.requests)
    assert asked  # once, so that `midwatch check` tells what does not work
    second = await observe_once(prom, first)
    assert len(manager.requests) == asked and silent(second) == {}
    await prom.close()


async def test_an_alert_that_waits_again_stays_as_silent_as_it_was(
    server: Server, manager: Manager
) -> None:
    prom = subject(server.url)
    server.rules = [rule("Down", alert(disk="a"), alert(disk="b"))]
    manager.alerts = [managed("Down", disk="b")]
    first = await observe_once(prom)
    assert silent(first) == {"disk=a": "", "disk=b": SILENCE}
    manager.alerts += [managed("Down", disk="a")]
    second = await observe_once(prom, first)
    assert silent(second) == {"disk=a": SILENCE, "disk=b": SILENCE}
    # Prometheus was restarted: Alertmanager hears of neither, and disk b never had a ticket.
    server.rules = [rule("Down", *(alert("pending", disk=one) for one in "ab"))]
    manager.alerts = []
    third = await observe_once(prom, second)
    assert [(one.component, one.holds) for one in third.signals] == [("disk=a", None)]
    third = await observe_once(prom, third)
    assert [one.holds for one in third.signals] == [None]
    server.rules = [rule("Down", alert(disk="a"))]
    fourth = await observe_once(prom, third)
    assert silent(fourth) == {"disk=a": ""} and "silenced" not in fourth.state
    server.rules = [rule("Down", alert("pending", disk="a"))]
    assert silent(await observe_once(prom, fourth)) == {"disk=a": ""}
    await prom.close()


async def test_behind_a_silenced_storm_the_one_that_is_not_is_seen(
    server: Server, manager: Manager
) -> None:
    many = [alert(pod=f"{n}", severity="critical") for n in range(2500)]
    quiet = alert(pod="z", severity="info")
    server.rules = [rule("Crash", *many), rule("Quiet", quiet)]
    manager.alerts = [
        managed("Crash", pod=f"{n}", severity="critical") for n in range(2500)
    ]
    prom = subject(server.url, timeout=PATIENCE)
    observation = await observe_once(prom)
    found = silent(observation)
    assert [name for name, by in found.items() if not by] == ["pod=z"]
    assert 500 < len(found) <= 1001 and len(json.dumps(observation.state)) < 2000
    # Without the word of Alertmanager it is a storm as any other.
    manager.answer = ODD["is down"]
    found = silent(await observe_once(prom, observation))
    assert "more" in found and len(found) < 50 and "pod=z" in found
    await prom.close()


async def test_of_two_severities_the_one_that_is_not_silenced_counts(
    server: Server, manager: Manager
) -> None:
    both = [alert(disk="a", severity=one) for one in ("critical", "warning")]
    server.rules = [rule("Down", *both)]
    manager.alerts = [
        managed("Down", disk="a", severity="critical"),
        managed("Down", "", disk="a", severity="warning"),
    ]
    signals = (await once(subject(server.url))).signals
    assert [(one.severity, one.silenced_by) for one in signals] == [
        (Severity.WARNING, "")
    ]
