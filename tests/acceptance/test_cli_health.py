"""`midwatch health`, against real daemons."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from midwatch.cli.daemons import config_in, daemon_in, of_midwatch
from midwatch.lifecycle import Liveness
from midwatch.logs import quiet_log
from midwatch.metrics import health, serving
from midwatch.testing.fakes import ManualClock

from .cli import refused, said
from .content_proxy import process


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def test_a_daemon_that_answers_hangs_and_is_gone(tmp_path: Path) -> None:
    with process(tmp_path) as (url, pid):
        env = {"MIDWATCH_CONTENT__PORT": port_of(url)}
        ask = ("health", "content", "serve")
        assert said(tmp_path, *ask, env=env) == "content serve is healthy\n"
        os.kill(pid, signal.SIGSTOP)
        try:
            assert "does not answer" in refused(tmp_path, *ask, env=env)
        finally:
            os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
    assert "connection refused" in refused(tmp_path, *ask, env=env)


async def test_a_loop_that_hangs_is_told_by_its_name(tmp_path: Path) -> None:
    clock = ManualClock()
    progress = Liveness(clock)
    progress.expect("cycle of orders", within=30)
    pages = {"/healthz": health(progress)}
    async with serving(
        "127.0.0.1", 0, pages, quiet_log(), setting="metrics.port"
    ) as url:
        env = {"MIDWATCH_METRICS__PORT": port_of(url)}
        env["MIDWATCH_METRICS__HOST"] = "0.0.0.0"  # where it listens; asked is loopback
        well = await asyncio.to_thread(said, tmp_path, "health", "monitor", env=env)
        assert well == "monitor is healthy\n"
        await clock.advance(31)
        told = await asyncio.to_thread(refused, tmp_path, "health", "agent", env=env)
    assert "agent is not healthy (503): cycle of orders: late by 1 s" in told


def test_what_nobody_can_answer(tmp_path: Path) -> None:
    assert "metrics.port is null" in said(tmp_path, "health", "monitor")
    assert "'montor' is not a daemon" in refused(tmp_path, "health", "montor")
    # Whatever runs the tests is none of ours.
    assert "process 1 is not a daemon" in said(tmp_path, "health")


@pytest.mark.parametrize(
    ("line", "daemon", "config"),
    [
        ("tini -- midwatch monitor", ("monitor",), None),
        (
            "tini -- midwatch -c /etc/m.yaml kube operator",
            ("kube", "operator"),
            "/etc/m.yaml",
        ),
        ("midwatch --config=a.yaml content serve", ("content", "serve"), "a.yaml"),
        ("sh -c exec midwatch agent", ("agent",), None),
        ("sh -c /opt/midwatch/bin/midwatch up", ("up",), None),
        ("agent monitor", None, None),
        ("tini -- midwatch -c a.yaml serve", ("serve",), "a.yaml"),
        ("tini -- midwatch session serve", None, None),
        ("tini -- midwatch db upgrade", None, None),
    ],
)
def test_the_daemon_of_a_command_line(
    line: str, daemon: tuple[str, ...] | None, config: str | None
) -> None:
    words = of_midwatch(line.split())
    assert daemon_in(words) == daemon
    assert config_in(words) == (config and Path(config))
