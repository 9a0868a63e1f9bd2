"""`midwatch kube demo`: the life of an AgenticSession, with a pod that is evicted in the middle of it."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...errors import MidwatchError, SettingsError
from ...model import Json
from ..session.bug import PRICES, PROMPT, SAID, SHOP, looked, mended
from ..wiring import Edge

if TYPE_CHECKING:
    from ...testing.kubernetes.local import LocalCluster
    from ...testing.messages_api import Hold
    from .watching import Watch

app = typer.Typer()

_NAME = "mend-the-cart"
_PATIENCE = 120.0
_VARIABLES = {
    "MIDWATCH_SESSIONS__MAX_USD": "1",
}


class DemoBroke(MidwatchError):
    """The session did not go as it should."""

    hint = "what is told above says where"


@app.command()
def demo(context: typer.Context) -> None:
    """See a resource's life on a cluster that is this machine: real operator, proxy and runner."""
    if find_spec("kubernetes_validate") is None or find_spec("kopf") is None:
        raise SettingsError(
            "the demo needs what the tests need", hint="run `make demo-kubernetes`"
        )
    edge: Edge = context.obj
    # SIGTERM ends the demo as Ctrl-C does: cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="midwatch-kubernetes-") as folder:
        _play(edge, Path(folder))


def _play(edge: Edge, folder: Path) -> None:
    from ...testing.kubernetes.local import KEY, LocalCluster
    from .watching import Watch

    key = edge.environ.get("ANTHROPIC_API_KEY")
    with contextlib.ExitStack() as stack:
        hold: Hold | None = None
        if key:
            url = edge.environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
        else:
            typer.echo(
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
    from ...testing.messages_api import Answer, Hold, Reply, Rule, ScriptedMessagesAPI

    hold = Hold()
    steps: list[Reply | str] = [looked(), mended(), hold, looked(), Answer(SAID)]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        yield api.base_url, hold


def _live(cluster: LocalCluster, watch: Watch, folder: Path, hold: Hold | None) -> None:
    cluster.create(_NAME, _spec(folder))
    watch.begin()
    if hold is not None:
        _evict(cluster, watch, hold)
    body = watch.until(_finished, _PATIENCE)
    watch.tell_end(body)
    status = body["status"]
    if status["phase"] != "Completed" or status["repos"][1]["state"] != "pushed":
        raise DemoBroke(f"the session is {status['phase']}: {status.get('message')}")
    _delete(cluster, watch)


def _spec(folder: Path) -> Json:
    from ...workspace.testing import make_repository

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
    """Take the node's memory away once the mended file is with the content proxy."""
    watch.until(lambda body: _saved(cluster, body), _PATIENCE)
    watch.say(
        "saved", "prices.py is mended in the pod, and the content proxy has it", "green"
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
    return text is not None and b"count // 3" in text


def _finished(body: Json | None) -> bool:
    from ...kube.statuses import phase_of

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
