"""A cluster for a test: LocalCluster with the rights that the chart gives, and scripted answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy import render

from midwatch.kube.status import phase_of
from midwatch.model import Json
from midwatch.testing.fakes import make_repository
from tests.cluster.local import TEAM, LocalCluster

VARIABLES = {
    "MIDWATCH_SESSIONS__SANDBOX": "off",
    "MIDWATCH_SESSIONS__RETRIES": "1",
}
QUICK = {
    "sync_interval": 0.3,
    "status_interval": 0.5,
    "termination_grace": 15,
    "backoff": 0.1,
    "backoff_max": 1,
    "unschedulable_grace": 30,
    "image_pull_grace": 1,
}


@contextmanager
def cluster(
    folder: Path, api_url: str, *, forked: bool = True, **settings: Any
) -> Iterator[LocalCluster]:
    """With the operator's rights as the chart has them; fails if the kubelet did."""
    rules = render.rules_for()[""]
    with LocalCluster(
        folder / "cluster",
        api_url,
        settings={**QUICK, **settings},
        variables=VARIABLES,
        rules=rules,
        forked=forked,
    ) as running:
        running.wait_for_content()
        yield running
        assert not running.kubelet.failures
        refused = running.server.requests.where(lambda one: one.status == 403)
        assert not refused, refused


def repositories(folder: Path) -> tuple[Path, Path]:
    shop = make_repository(folder / "remotes" / "shop", {"main.py": "print(1)\n"})
    lib = make_repository(folder / "remotes" / "lib", {"lib.py": "x = 1\n"})
    return shop, lib


def spec(*repos: Path, **more: Any) -> Json:
    return {
        "prompt": "Do it.",
        "repos": [{"input": {"url": f"file://{path}"}} for path in repos],
        "timeout": 120,
        **more,
    }


def over(body: Json | None) -> bool:
    return body is not None and phase_of(body).terminal


def told(
    *, phase: str | None = None, attempt: int | None = None
) -> Callable[..., bool]:
    def look(body: Json | None) -> bool:
        status = (body or {}).get("status", {})
        return (phase is None or status.get("phase") == phase) and (
            attempt is None or status.get("attempt") == attempt
        )

    return look


def conditions(status: Json) -> dict[str, str]:
    return {one["type"]: one["status"] for one in status["conditions"]}


def events(running: LocalCluster) -> list[str]:
    return [one["reason"] for one in running.server.objects.list("events", TEAM)]


def log_lines(text: str) -> list[Json]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
