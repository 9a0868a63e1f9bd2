"""A reported change from the request to the durable row, against a bare Starlette handler that inserts one row.

Both are processes of their own on a SQLite file that is synchronized at each commit, and get requests of the same size over
connections that stay open. Every change is a new one. The webhook's signature is checked; who calls the API is on the same machine, and its key makes three transactions of a request.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from midwatch.server.signatures import sign

from ._posts import Load, bare, load, p99, post
from ._server import serving
from .report import Row, against_bound, against_floor, sized, turns

REQUESTS, ROUNDS = sized(300, 60), 5
SECRET = "0123456789abcdef0123456789abcdef"
HOOK = {"name": "ci", "sender": "github", "signing_secrets": [SECRET]}
_numbers = itertools.count()


async def run() -> Sequence[Row]:
    """Return the rows. Takes about half a minute."""
    taken: dict[str, list[Load]] = {"webhook": [], "API": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"changes": {"hooks": [{**HOOK, "subjects": ["team"]}]}}
        async with serving(folder, settings) as (ours, _), bare(folder) as floor:

            async def by(what: str, request: Callable[[], bytes]) -> float:
                requests = [request() for _ in range(REQUESTS)]
                taken[what].append(await load(ours, requests))
                return taken[what][-1].seconds

            async def least() -> float:
                return (
                    await load(floor, [_webhook() for _ in range(REQUESTS)])
                ).seconds

            sides = {
                "webhook": lambda: by("webhook", _webhook),
                "API": lambda: by("API", _api),
                "floor": least,
            }
            samples = await turns(sides, ROUNDS)
        sent = sum(len(one.each) for runs in taken.values() for one in runs)
        assert _stored(folder) == sent, "each is answered once it is stored"
    rows = []
    for what, at_most in (("webhook", 3.0), ("API", 5.0)):
        one, beside = samples[what].wall, samples["floor"].wall
        each = [seconds for run in taken[what][1:] for seconds in run.each]
        rows += [
            against_floor(
                f"change by {what}",
                1000 / REQUESTS * one,
                1000 / REQUESTS * beside,
                at_most,
                measure="wall",
            ),
            against_bound(f"change by {what}, p99", 1000 * p99(each), 100, "ms"),
        ]
    return rows


def _stored(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "midwatch.db")) as database:
        [count] = database.execute("SELECT count(*) FROM changes").fetchone()
    return int(count)


def _webhook() -> bytes:
    number = next(_numbers)
    status = {
        "id": number,
        "state": "success",
        "environment": "production",
        "description": "Rolled out",
        "log_url": f"https://ci.example/runs/{number}",
        "created_at": datetime.now(UTC).isoformat(),
        "creator": {"login": "ann"},
    }
    deployment = {
        "id": number,
        "sha": f"{number:040x}",
        "ref": "main",
        "task": "deploy",
    }
    repository = {
        "full_name": "shop/web",
        "html_url": "https://github.com/shop/web",
        "clone_url": "https://github.com/shop/web.git",
        "default_branch": "main",
    }
    body = json.dumps(
        {
            "action": "created",
            "deployment_status": status,
            "deployment": deployment,
            "repository": repository,
        }
    ).encode()
    headers = {
        "x-github-event": "deployment_status",
        "x-github-delivery": f"d-{number}",
        "x-hub-signature-256": f"sha256={sign(SECRET, body)}",
    }
    return post("/hooks/github", body, headers)


def _api() -> bytes:
    number = next(_numbers)
    change = {
        "title": f"deploy shop {number}",
        "subject": "team",
        "version_to": str(number),
        "link": f"https://ci.example/runs/{number}",
    }
    key = {"idempotency-key": f"run-{number}"}
    return post("/api/v1/changes", json.dumps(change).encode(), key)
