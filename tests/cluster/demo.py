"""The Kubernetes demo, `make demo-kubernetes`: the life of an AgenticSession whose pod is evicted in the middle of it.

Operator, content proxy and runner are real processes, the cluster is `LocalCluster`. Without `ANTHROPIC_API_KEY` the
answers are scripted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from midwatch.cli.session.demo import ANSWER, PRICES, PROMPT, SHOP, fix_bug, run_test
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.kube.status import phase_of
from midwatch.model import Json
from midwatch.testing.fakes import make_repository
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Reply,
    Rule,
    ScriptedMessagesAPI,
)

from .local import KEY, LocalCluster

_NAME = "mend-the-cart"
_PATIENCE = 120.0
_VARIABLES = {"MIDWATCH_SESSIONS__MAX_USD": "1"}
_LOOK = 0.05
_STYLES = {
    "Completed": "green",
    "Failed": "red",
    "Stopped": "yellow",
    "Running": "cyan",
}


class DemoBroke(MidwatchError):
    """The session did not go as it should."""

    hint = "see the lines above"


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
            self._print_status((body or {}).get("status") or {})
            if true(body):
                return body or {}
            if time.monotonic() > end:
                raise TooLong(f"nothing came of it in {timeout:.0f} s")
            time.sleep(_LOOK)

    def print_end(self, body: Json) -> None:
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

    def _print_status(self, status: Json) -> None:
        current = tuple(status.get(key) for key in ("phase", "reason", "attempt"))
        if not status or current == self._last:
            return
        self._last = current
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


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the demo and return its exit code. SIGTERM ends it as Ctrl-C does: cleaned up."""
    argparse.ArgumentParser(prog="demo-kubernetes", description=__doc__).parse_args(
        arguments
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="midwatch-kubernetes-") as folder:
            _play(environ, Path(folder))
    except MidwatchError as error:
        print(f"midwatch: {error.one_line()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _play(environ: Mapping[str, str], folder: Path) -> None:
    key = environ.get("ANTHROPIC_API_KEY")
    with contextlib.ExitStack() as stack:
        hold: Hold | None = None
        if key:
            url = environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
        else:
            print(
                "no ANTHROPIC_API_KEY: the answers are scripted, the nodes too; all else is real"
            )
            url, hold = stack.enter_context(_scripted())
        cluster = LocalCluster(
            folder / "cluster",
            url,
            api_key=key or KEY,
            variables=_VARIABLES,
            settings={"sync_interval": 1, "status_interval": 1},
        )
        stack.enter_context(cluster)
        cluster.wait_for_content()
        watch = Watch(cluster, _NAME)
        watch.say(
            "cluster", "API server, kubelet, operator and content proxy are up", "dim"
        )
        _live(cluster, watch, folder, hold)


@contextlib.contextmanager
def _scripted() -> Iterator[tuple[str, Hold]]:
    """A Messages API that does not answer the third call: meanwhile the pod is evicted."""
    hold = Hold()
    steps: list[Reply | str] = [run_test(), fix_bug(), hold, run_test(), Answer(ANSWER)]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        yield api.base_url, hold


def _live(cluster: LocalCluster, watch: Watch, folder: Path, hold: Hold | None) -> None:
    cluster.create(_NAME, _spec(folder))
    watch.begin()
    try:
        if hold is not None:
            _evict(cluster, watch, hold)
        body = watch.until(_finished, _PATIENCE)
        watch.print_end(body)
        status = body["status"]
        if status["phase"] != "Completed" or status["repos"][1]["state"] != "pushed":
            raise _broke(body)
    except MidwatchError:
        if error := last_error(cluster):
            watch.say("error", f"the session's last error: {error}", "red")
        raise
    _delete(cluster, watch)


def _broke(body: Json) -> DemoBroke:
    status = body["status"]
    return DemoBroke(f"the session is {status['phase']}: {status.get('message')}")


def last_error(cluster: LocalCluster) -> str:
    """The last error in the logs of the session's pods, the newest pod first; empty without any."""
    for pod in reversed(cluster.kubelet.pods("team", _NAME)):
        for line in reversed(cluster.kubelet.output(pod).splitlines()):
            _, _, text = line.partition(" error ")
            if text or line.startswith("midwatch: "):
                return (text or line).strip()
    return ""


def _spec(folder: Path) -> Json:
    shop = make_repository(folder / "remotes" / "shop", SHOP)
    prices = make_repository(folder / "remotes" / "prices", PRICES)
    return {
        "prompt": PROMPT,
        "repos": [{"input": {"url": f"file://{path}"}} for path in (shop, prices)],
        "llmSettings": {"maxTurns": 20, "maxBudgetUsd": 1},
        "timeout": 600,
        "autoPushOnComplete": True,
    }


def _evict(cluster: LocalCluster, watch: Watch, hold: Hold) -> None:
    """Take the node's memory away once the fixed file is with the content proxy."""
    watch.until(lambda body: _saved(cluster, body), _PATIENCE)
    watch.say(
        "saved", "prices.py is fixed in the pod, and the content proxy has it", "green"
    )
    cluster.kubelet.evict(cluster.kubelet.running("team", _NAME))
    watch.say(
        "evicted", "the node was low on memory: the pod is gone with its disk", "red"
    )
    watch.until(
        lambda body: bool((body or {}).get("status", {}).get("restarts")), _PATIENCE
    )
    hold.release()


def _saved(cluster: LocalCluster, body: Json | None) -> bool:
    text = cluster.saved_file(body, "workspace/prices/prices.py") if body else None
    if body is not None and phase_of(body).terminal:
        raise _broke(body)
    return text is not None and b"count // 3" in text


def _finished(body: Json | None) -> bool:
    return body is not None and phase_of(body).terminal


def _delete(cluster: LocalCluster, watch: Watch) -> None:
    cluster.delete(_NAME)
    started = time.monotonic()
    watch.until(lambda body: body is None, _PATIENCE)
    took = time.monotonic() - started
    watch.say(
        "deleted",
        f"Job, pods, account, role and secret went with it ({took:.1f} s)",
        "dim",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
