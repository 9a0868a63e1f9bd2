"""The tools of hosts, URLs, commands, Prometheus servers, repositories and Midwatch itself, on real parts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from midwatch.agent.incident_tools import search_tool, state_tool
from midwatch.agent.repository_tools import RepositoryTools, SourceRepository
from midwatch.errors import MidwatchError, SettingsError
from midwatch.model import Origin
from midwatch.store.sql import SqlStore
from midwatch.subjects.base import Subject, build_subjects
from midwatch.subjects.tools import Answer, Refused, Tool, tools_of
from midwatch.testing.fakes import FakeSubject, broken, open_tickets
from midwatch.testing.tool_conformance import check_tools
from midwatch.text import take_marks
from midwatch.workspace.git import Git
from midwatch.workspace.mirrors import Mirrors

from ..waiting import PATIENCE
from . import prometheus_server
from .web import Reply, serving

pytestmark = pytest.mark.integration


async def call(tools: Sequence[Tool], wanted: str, /, **arguments: Any) -> Answer:
    [tool] = (one for one in tools if one.name == wanted)
    answer: Answer = await tool.run(tool.arguments.model_validate(arguments))
    return answer


def subject(**written: Any) -> Subject:
    [built] = build_subjects([{"name": "one", **written}])
    return built


# ------------------------------------------------------------------ the host


async def test_what_fills_a_folder_is_found_also_where_it_was_deleted(
    tmp_path: Path,
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "app.log").write_bytes(b"x" * 5_000_000)
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/usr")
    gone = tmp_path / "gone.log"
    with gone.open("wb") as held:
        held.write(b"x" * 3_000_000)
        held.flush()
        gone.unlink()
        tools = tools_of(subject(kind="host"))
        found = await call(tools, "disk_usage", path=str(tmp_path))
    first, *rest = found.text.splitlines()
    assert first.endswith(" logs") and first.startswith("5")
    deleted = [line for line in rest if line.startswith("deleted but still open")]
    assert any("gone.log" in line for line in deleted)
    assert str(tmp_path) in found.command


async def test_processes_are_shown_without_their_arguments() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(99)", "--password=hunter2"]
    ) as child:
        tools = tools_of(subject(kind="host"))
        found = await call(tools, "processes", name="python", sort="memory")
        child.terminate()
    assert "resident" in found.text and "hunter2" not in found.text


@pytest.mark.parametrize("unit", ["-x", "--file=/etc/shadow", "a b", "../x", ""])
async def test_a_unit_is_never_an_option(unit: str) -> None:
    tools = tools_of(subject(kind="host"))
    with pytest.raises(ValidationError):
        await call(tools, "journal", unit=unit)


async def test_the_journal_is_read_or_says_why_not() -> None:
    tools = tools_of(subject(kind="host"))
    try:
        found = await call(tools, "journal", unit="no-such-unit.service")
    except MidwatchError:
        return  # there is no journal on this machine
    assert found.text == "" and "--unit=no-such-unit.service" in found.command


# ------------------------------------------------------------------ URLs


async def test_a_probe_stays_at_the_addresses_of_its_subject() -> None:
    seen: list[tuple[str, str | None]] = []

    def reply(request: BaseHTTPRequestHandler) -> Reply:
        seen.append((request.path, request.headers.get("x-key")))
        location = {"location": "http://192.0.2.1/elsewhere?token=abcdefgh"}
        return (302, location, b"moved") if request.path == "/" else (200, {}, b"fine")

    with serving(reply) as url:
        one = subject(
            kind="http",
            url=f"{url}/",
            headers={"X-Key": "swordfish-key"},
            probe_paths=["/healthz"],
        )
        tools = tools_of(one)
        found = await call(tools, "probe")
        assert "redirects to: http://192.0.2.1/elsewhere\n" in found.text
        assert "302" in found.text and "abcdefgh" not in found.text
        found = await call(tools, "probe", path="/healthz", login=False)
        assert found.text.endswith("| fine") and found.reported
        await call(tools, "probe", address="127.0.0.1")
        for bad in (
            {"path": "/admin/delete"},
            {"path": "//192.0.2.1/"},
            {"path": "http://192.0.2.1/"},
            {"address": "192.0.2.1"},
            {"address": "localhost"},
        ):
            with pytest.raises(Refused):
                await call(tools, "probe", **bad)
        with pytest.raises(ValidationError):
            await call(tools, "probe", method="DELETE")
        await one.close()
    assert seen == [
        ("/", "swordfish-key"),
        ("/healthz", None),
        ("/", "swordfish-key"),
    ]


async def test_a_failed_request_is_what_a_probe_returns() -> None:
    with serving(lambda request: None) as url:
        tools = tools_of(subject(kind="http", url=url))
        assert (await call(tools, "probe")).text.startswith("failed: ")


@pytest.mark.parametrize("path", ["//elsewhere", "healthz", "/a b", "http://x/"])
def test_a_path_of_the_settings_is_one_of_the_server(path: str) -> None:
    with pytest.raises(SettingsError):
        subject(kind="http", url="http://127.0.0.1/", probe_paths=[path])


# ------------------------------------------------------------------ Prometheus


async def test_series_over_time_and_now_and_alerts() -> None:
    state = prometheus_server.Server()
    labels = {"__name__": "up", "job": "db"}
    state.answers = {
        "up": [(labels, "1")],
        "many": [({"n": str(n)}, "0") for n in range(99)],
    }
    firing = prometheus_server.alert(job="db")
    state.rules = [prometheus_server.alerting("Down", firing)]
    with prometheus_server.serving(state):
        one = prometheus_server.subject(state.url)
        found = await check_tools(
            one, {"query_range": {"expr": "up"}, "series": {"expr": "up"}, "alerts": {}}
        )
        over_time = found["query_range"].text
        assert over_time.startswith("up{job=db}: ") and "max 1" in over_time
        assert found["query_range"].command.startswith("query_range up start=")
        assert found["series"].text == "up{job=db}: 1"
        assert "firing Down" in found["alerts"].text
        tools = tools_of(one)
        many = await call(tools, "series", expr="many")
        assert many.text.count("\n") == 30 and "and 69 more series" in many.text
        assert (await call(tools, "series", expr="none")).text == ""
        state.answers["bad"] = prometheus_server.BAD
        with pytest.raises(MidwatchError, match="parse error"):
            await call(tools, "query_range", expr="bad")
        await one.close()


# ------------------------------------------------------------------ commands

SHOW = "import sys; print('argument', *sys.argv[1:])"
DECLARED = {
    "name": "queue",
    "description": "The length of a queue.",
    "command": [sys.executable, "-c", SHOW, "--queue={queue}", "{lines}", "{state}"],
    "parameters": {
        "queue": {"description": "Its name."},
        "lines": {"type": "integer", "max": 50},
        "state": {"type": "choice", "choices": ["open", "closed"]},
    },
}
GOOD = {"queue": "mail; $(id) `id`", "lines": 5, "state": "open"}


def command(**changes: Any) -> Subject:
    tool = {**DECLARED, **changes}
    return subject(kind="command", command=["true"], tools=[tool])


async def test_a_command_declares_tools_with_fixed_arguments() -> None:
    looser = {**DECLARED["parameters"], "queue": {"pattern": ".*"}}  # type: ignore[dict-item]
    one = command(parameters=looser)
    found = (await check_tools(one, {"queue": GOOD}))["queue"]
    assert found.text == "argument --queue=mail; $(id) `id` 5 open\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"queue": "-rf"},
        {"queue": "--config=/tmp/x"},
        {"queue": "a\nb"},
        {"queue": "$(id)"},
        {"lines": -5},
        {"lines": "5"},
        {"lines": 51},
        {"state": "-x"},
        {"more": "1"},
    ],
    ids=str,
)
async def test_a_value_is_never_an_option(changes: dict[str, Any]) -> None:
    with pytest.raises((Refused, ValidationError)):
        await call(tools_of(command()), "queue", **{**GOOD, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["{queue}", "{lines}", "{state}"]},
        {"command": ["show", "{queue}", "{lines}", "{state}", "{other}"]},
        {"command": ["show", "{queue}"]},
        {"name": "Queue Length"},
        {"parameters": {"queue": {"type": "choice"}}},
        {"parameters": {"queue": {"pattern": "("}}},
    ],
    ids=str,
)
def test_a_tool_that_cannot_work_is_an_error_in_the_settings(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(SettingsError):
        command(**changes)


# ------------------------------------------------------------------ repositories


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path: Path) -> list[Tool]:
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    (work / "pool.ini").write_text("size = 50\ntimeout = 5\n")
    (work / ".gitattributes").write_text("* diff=evil filter=evil\n")
    git(work, "add", ".")
    git(work, "commit", "-q", "-m", "Begin")
    (work / "pool.ini").write_text("size = 5\ntimeout = 5\n")
    git(work, "commit", "-q", "-a", "-m", "Save connections")
    engine = Git()
    mirrors = Mirrors(tmp_path / "mirrors", engine)
    return list(RepositoryTools([SourceRepository(str(work))], mirrors, engine).tools())


async def test_a_change_is_found_in_the_mirror(repository: list[Tool]) -> None:
    log = await call(repository, "log", count=5, path="pool.ini")
    assert "Save connections" in log.text and log.origin is Origin.REPORTED
    commit = log.text.split()[0]
    diff = await call(repository, "diff", base=f"{commit}~1", head=commit)
    assert "-size = 50\n+size = 5\n" in diff.text and diff.origin is Origin.SYSTEM
    found = await call(repository, "grep", text="size =")
    assert "pool.ini:1:size = 5" in found.text
    assert (await call(repository, "grep", text="no such text")).text == ""
    read = await call(repository, "read", path="pool.ini", line=2)
    assert read.text == "2: timeout = 5"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("diff", {"base": "--output=/tmp/x", "head": "main"}),
        ("diff", {"base": "main..main", "head": "main"}),
        ("grep", {"text": "size", "revision": "--open-files-in-pager=id"}),
        ("read", {"path": "../../etc/passwd"}),
        ("read", {"path": "pool.ini", "revision": "-x"}),
        ("read", {"path": "pool.ini", "repository": "https://example.com/other"}),
        ("log", {"since": "--output=/tmp/x"}),
        ("log", {"path": ":(exclude)x", "repository": "ext::sh -c id"}),
    ],
    ids=str,
)
async def test_no_argument_is_an_option_or_leads_elsewhere(
    repository: list[Tool], name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises((MidwatchError, ValidationError)):
        await call(repository, name, **arguments)


async def test_text_that_looks_like_an_option_is_searched(
    repository: list[Tool],
) -> None:
    assert (await call(repository, "grep", text="--open-files-in-pager=id")).text == ""
    assert (await call(repository, "log", path=":(top)*")).text == ""


# ------------------------------------------------------------------ Midwatch itself


async def test_past_incidents_are_found_by_words(store: SqlStore) -> None:
    [ticket] = await open_tickets(store, "flux capacitor")
    await store.resolve(ticket.id, "ann", "the flux capacitor was replaced")
    tool = search_tool(store.search_past, lambda past: past.ticket.resolution or "")
    found = await call([tool], "search", words="capacitor")
    assert found.text == "the flux capacitor was replaced"
    assert found.origin is Origin.EARLIER
    assert (await call([tool], "search", words="nothing alike")).text == ""


async def test_a_linked_subject_is_observed() -> None:
    linked = FakeSubject("db", [broken("alive", "main", message="it is down")])
    tool = state_tool({"db": linked})
    assert tool is not None and state_tool({}) is None
    found = await call([tool], "state", subject="db")
    shown, clients = take_marks(found.text)
    assert "broken: alive on main: main: it is down" in shown
    assert "main" in {shown[start:end] for start, end in clients}
    with pytest.raises(ValidationError):
        await call([tool], "state", subject="other")
    async with asyncio.timeout(PATIENCE):
        await linked.close()
