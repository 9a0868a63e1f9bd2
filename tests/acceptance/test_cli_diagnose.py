"""`midwatch diagnose` against the scripted Messages API, as real processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from midwatch.model import Severity
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import answer, open_tickets
from midwatch.testing.messages_api import (
    Answer,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
    Usage,
    bad_request,
    rate_limited,
    server_error,
)

from .cli import KEY, in_store, midwatch, on_a_terminal, refused, said, said_json

QUOTE = "pump-1 is broken"
ESCAPES = "kill \x1b[2J it ![x](http://evil.example/i.png) [a](http://evil.example)"
GOOD = Answer(
    structured=answer(
        ESCAPES, quote=QUOTE, evidence_id="E1", explains=[1], severity="warning"
    ),
    usage=Usage(input_tokens=1000, output_tokens=500),
)


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedMessagesAPI]:
    with ScriptedMessagesAPI() as started:
        yield started


@pytest.fixture
def env(api: ScriptedMessagesAPI) -> dict[str, str]:
    api.script(GOOD)
    return {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.base_url}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ticket 1 is a warning; a critical one that came before it waits as well."""

    async def seed(store: SqlStore) -> None:
        await open_tickets(store, "pump-1", subject="plant")
        await open_tickets(store, "sun", subject="sky", severity=Severity.CRITICAL)

    in_store(tmp_path, seed)
    return tmp_path


def test_the_prompt_that_is_shown_is_the_one_that_is_sent(
    api: ScriptedMessagesAPI, env: dict[str, str], folder: Path
) -> None:
    before = len(api.calls)
    shown = said(folder, "diagnose", "1", "--show-prompt", env=env)
    assert len(api.calls) == before
    assert said_json(folder, "tickets", "show", "1")["attempts"] == 0
    document = said_json(folder, "diagnose", "1", env=env)
    assert [call.delivered for call in api.calls[before:]] == [True]
    sent = api.calls[-1]
    user = sent.prompt.removeprefix(sent.system).strip()
    assert "tools" not in sent.body, "this subject has none"
    assert _timeless(shown) == _timeless(
        f"--- system ---\n{sent.system}\n\n--- user ---\n{user}\n"
    )
    diagnosis = document["diagnosis"]
    assert (document["status"], document["attempts"]) == ("diagnosed", 1)
    assert diagnosis["outcome"] == "answered" and diagnosis["grounded"]["total"] == 1
    assert diagnosis["usage"]["input_tokens"] == 1000 and diagnosis["cost_usd"] > 0
    assert diagnosis["verdict"] == "identified" and diagnosis["confidence"] == "high"
    assert "Cause identified" in diagnosis["markdown"]
    # What came first in the queue still waits: only what was asked for is diagnosed.
    assert said_json(folder, "tickets", "show", "2")["status"] == "open"


TOOLS = """\
subjects:
  - name: plant
    kind: command
    command: ["true"]
    tools:
      - name: pressure
        description: The pressure of a pump.
        command: [echo, pressure of, "{pump}", is 7 bar]
        parameters: {pump: {}}
"""


def test_tools_are_shown_and_so_is_the_exchange(
    api: ScriptedMessagesAPI, env: dict[str, str], folder: Path
) -> None:
    (folder / "midwatch.yaml").write_text(TOOLS)
    shown = said(folder, "diagnose", "1", "--show-prompt", env=env)
    assert '"name": "pressure"' in shown and "You can ask the affected" in shown
    [changes, pressure, search] = said_json(
        folder, "diagnose", "1", "--show-prompt", env=env
    )["tools"]
    names = (changes["name"], pressure["name"], search["name"])
    assert names == ("changes", "pressure", "search")
    asks = Answer(tool_uses=[ToolUse("pressure", {"pump": "pump-1"})])
    api.script(Rule([asks, GOOD]))
    done = midwatch(folder, "diagnose", "1", "--trace", env=env)
    assert done.returncode == 0, done.stderr
    for part in ("pressure of pump-1 is 7 bar", "--- asked ---", "--- answered ---"):
        assert part in done.stderr
    [*_, found] = said_json(folder, "tickets", "show", "1")["diagnosis"]["evidence"]
    assert found["command"] == "echo pressure of pump-1 is 7 bar"
    assert found["text"] == "pressure of pump-1 is 7 bar"


def _timeless(prompt: str) -> str:
    return re.sub(r"\d+(\.\d+)?(ms|s|m)( \d+s)?|\d\d:\d\d:\d\d", "#", prompt)


def test_a_diagnosis_is_shown_and_not_paid_for_again(
    api: ScriptedMessagesAPI, env: dict[str, str], folder: Path
) -> None:
    said(folder, "diagnose", "1", env=env)
    line = refused(folder, "diagnose", "1", env=env)
    assert "diagnosed already" in line and "midwatch tickets retry 1" in line
    shown = on_a_terminal(folder, "tickets", "show", "1", columns=100)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "Cause identified" in plain and "1 of 1" in plain and "1/1" in plain
    assert "\x1b" not in plain and "🌆" not in plain
    assert "identified/high" in said(folder, "tickets", "list")


def test_without_a_key_it_says_so(folder: Path) -> None:
    assert "no API key" in refused(folder, "diagnose", "1")


def test_an_error_is_the_exit_code_and_kept(
    api: ScriptedMessagesAPI, env: dict[str, str], folder: Path
) -> None:
    api.script(bad_request("no such field"))
    done = midwatch(folder, "diagnose", "1", "--json", env=env)
    assert done.returncode == 1 and '"outcome": "error"' in done.stdout
    line = done.stderr.splitlines()[-1]
    assert line.startswith("midwatch: no diagnosis: ") and "no such field" in line
    assert KEY not in done.stdout + done.stderr


def test_asking_does_not_wait_for_a_back_off_but_for_a_pause(
    api: ScriptedMessagesAPI, env: dict[str, str], folder: Path
) -> None:
    api.script(server_error())
    midwatch(folder, "diagnose", "1", env=env)
    assert said_json(folder, "tickets", "show", "1")["next_attempt_at"]
    api.script(rate_limited(retry_after=600))
    midwatch(folder, "diagnose", "1", env=env)
    before = len(api.calls)
    assert "rate_limit" in refused(folder, "diagnose", "1", env=env)
    assert len(api.calls) == before
    assert [p["kind"] for p in said_json(folder, "stats")["pauses"]] == ["rate_limit"]
