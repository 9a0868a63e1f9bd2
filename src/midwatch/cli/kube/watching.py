"""What a person sees of a resource while it lives: changes, events, and at the end what `kubectl get` shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...errors import TemporaryError
from ...model import Json

if TYPE_CHECKING:
    from ...testing.kubernetes.local import LocalCluster

_LOOK = 0.05
_STYLES = {
    "Completed": "green",
    "Failed": "red",
    "Stopped": "yellow",
    "Running": "cyan",
}


class TooLong(TemporaryError):
    """What was waited for did not come."""


class Watch:
    """One line for each change of the resource and each event, with the seconds since its creation."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._console = Console(highlight=False)
        self._began: float | None = None
        self._last: tuple[object, ...] = ()
        self._events: set[str] = set()

    def begin(self) -> None:
        self._began = time.monotonic()
        self.say("created", f"agenticsession/{self._name} in namespace team", "bold")

    def say(self, word: str, text: str, style: str) -> None:
        line = Table.grid(padding=(0, 1))
        for width in (7, 9, None):
            line.add_column(width=width)
        since = "" if self._began is None else f"{time.monotonic() - self._began:6.1f}s"
        line.add_row(Text(since, "dim"), Text(word, style), Text(text))
        self._console.print(line)

    def until(self, true: Callable[[Json | None], bool], timeout: float) -> Json:
        """Tell what changes until it is so, and return the resource (empty if it is gone). Raises TooLong."""
        end = time.monotonic() + timeout
        while True:
            body = self._cluster.get(self._name)
            self._tell_events()
            self._tell_status((body or {}).get("status") or {})
            if true(body):
                return body or {}
            if time.monotonic() > end:
                raise TooLong(f"nothing came of it in {timeout:.0f} s")
            time.sleep(_LOOK)

    def tell_end(self, body: Json) -> None:
        status = body["status"]
        self._console.print()
        table = Table("NAME", "PHASE", "MODEL", "TURNS", "COST", "RESTARTS", box=None)
        table.add_row(
            self._name,
            status["phase"],
            status.get("model", ""),
            str(status.get("numTurns", 0)),
            f"${status.get('totalCostUsd', 0):.4f}",
            str(status.get("restarts", 0)),
        )
        self._console.print(table)
        for one in status.get("conditions", ()):
            self._console.print(f"  {one['type']}={one['status']} {one['reason']}")
        for repo in status.get("repos", ()):
            where = f", pushed to {repo['branch']}" if repo.get("pushedTo") else ""
            change = f"+{repo.get('added', 0)} -{repo.get('removed', 0)}"
            self._console.print(f"  {repo['name']}: {repo['state']} {change}{where}")
        self._console.print(Text(status.get("result", ""), "italic"))
        self._console.print()

    def _tell_status(self, status: Json) -> None:
        told = tuple(status.get(key) for key in ("phase", "reason", "attempt"))
        if not status or told == self._last:
            return
        self._last = told
        phase = str(status.get("phase", ""))
        message = status.get("message") or ""
        pod = status.get("podName") or status.get("jobName") or ""
        text = f"{status.get('reason')}: {message or pod}"
        self.say(phase, text, _STYLES.get(phase, "yellow"))

    def _tell_events(self) -> None:
        for event in self._cluster.server.objects.list("events", "team"):
            name = event["metadata"]["name"]
            if name not in self._events:
                self._events.add(name)
                what = f"{event['type']} {event['reason']}: {event.get('message', '')}"
                self.say("event", what, "dim")
