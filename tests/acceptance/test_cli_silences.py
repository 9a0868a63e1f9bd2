"""`midwatch silences …`, as real processes, with `monitor --once` and `agent --once` between them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from midwatch.testing.fakes import answer, open_tickets
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI

from .cli import KEY, in_store, midwatch, on_a_terminal, refused, said, said_json

BROKEN = {
    "violations": [
        {"invariant": "alive", "component": "queue", "message": "no consumer"}
    ]
}
JSON_MD = Path(__file__).parents[2] / "docs" / "json.md"
FOR_AN_HOUR = ("--duration", "1h", "--reason", "upgrade")


@pytest.fixture
def api() -> Iterator[ScriptedMessagesAPI]:
    good = Answer(structured=answer("", verdict="insufficient_data", confidence="low"))
    with ScriptedMessagesAPI(Rule(good, structured=True)) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose settings watch a queue without a consumer; its database is empty."""
    (tmp_path / "midwatch.yaml").write_text(
        "monitor: {group_wait: 0s}\nsubjects:\n"
        f"- {{name: orders, kind: command, command: [cat, {tmp_path}/report.json]}}\n"
    )
    (tmp_path / "report.json").write_text(json.dumps(BROKEN))
    said(tmp_path, "db", "upgrade")
    return tmp_path


def add(folder: Path, *arguments: str) -> str:
    return said(folder, "silences", "add", *arguments)


def test_nothing_is_paid_until_the_silence_ends(
    folder: Path, api: ScriptedMessagesAPI
) -> None:
    """Neither first aid nor a diagnosis, nor a ticket; each command is a process, as in a crontab."""
    env = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.base_url}
    add(folder, 'subject="orders"', "kind=command", *FOR_AN_HOUR)
    for _ in range(2):
        said(folder, "monitor", "--once")
        said(folder, "agent", "--once", env=env)
    assert said_json(folder, "tickets", "list", "--all") == []
    [silent] = said_json(folder, "silences", "violations")
    assert (silent["subject"], silent["message"], silent["silence"]) == (
        "orders",
        "no consumer",
        1,
    )
    assert said_json(folder, "silences", "list")[0]["silenced"] == 1
    assert "1 violation; 1 silent now" in said(folder, "stats")
    said(folder, "silences", "expire", "1")
    said(folder, "agent", "--once", env=env)
    assert not api.calls
    said(folder, "monitor", "--once")
    said(folder, "agent", "--once", env=env)
    [ticket] = said_json(folder, "tickets", "list")
    assert (ticket["status"], len(api.calls)) == ("diagnosed", 1)


def test_an_open_ticket_waits_for_its_silence(
    folder: Path, api: ScriptedMessagesAPI
) -> None:
    env = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.base_url}
    said(folder, "monitor", "--once")
    told = add(folder, "invariant=~al.*", *FOR_AN_HOUR)
    assert "1 open ticket silent now" in told and 'invariant=~"al.*"' in told
    done = midwatch(folder, "agent", "--once", env=env)
    assert done.returncode == 0 and not api.calls
    assert re.match(
        r"midwatch: 1 ticket waits (1h|59m \d+s) until a silence ends ", done.stderr
    )
    assert "open, silenced" in said(folder, "tickets", "list")
    assert "silence 1, until" in said(folder, "tickets", "show", "1")
    [ticket] = said_json(folder, "tickets", "list")
    assert ticket["silenced_by"] == "silence 1" and ticket["silenced_until"]
    history = said_json(folder, "tickets", "history", "1")
    assert [row["action"] for row in history][-1] == "silence"
    assert "silence 1 of" in history[-1]["why"] and "upgrade" in history[-1]["why"]
    # Who asks is answered.
    assert "diagnosed" in said(folder, "diagnose", "1", env=env)
    assert len(api.calls) == 1


def test_the_json_is_as_documented(folder: Path) -> None:
    add(folder, "subject=orders", *FOR_AN_HOUR)
    said(folder, "monitor", "--once")
    text = JSON_MD.read_text(encoding="utf-8")
    rows = {
        row.split("|")[1]: re.sub(r"\([^)]*\)", "", row.split("|")[2])
        for row in text.splitlines()
        if row.startswith("| `silences")
    }
    silences, violations = (
        set(re.findall(r"`(\w+)`", cells)) for cells in rows.values()
    )
    assert set(said_json(folder, "silences", "list")[0]) == silences
    assert set(said_json(folder, "silences", "violations")[0]) == violations
    assert set(said_json(folder, "silences", "expire", "1")) == silences


def test_windows_and_times_of_a_zone(folder: Path) -> None:
    add(
        folder,
        "subject=orders",
        "--reason=r",
        "--timezone=Europe/Berlin",
        "--start=2099-07-01T22:00",
        "--end=2099-07-31T22:00Z",
        "--rrule=FREQ=DAILY;BYHOUR=2",
        "--window=90m",
        "--author=Ann",
    )
    [one] = said_json(folder, "silences", "list")
    assert one["starts_at"] == "2099-07-01T20:00:00.000Z"
    assert one["next_start"] == "2099-07-02T00:00:00.000Z"
    assert (one["state"], one["author"], one["window_seconds"]) == (
        "pending",
        "Ann",
        5400,
    )
    assert "FREQ=DAILY" in on_a_terminal(folder, "silences", "list", columns=100)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("subject",), "at the end"),
        (("{subject=a",), "at the end"),
        (('subject=~"("',), "regular expression"),
        (("subject!=x",), "silence everything"),
        (("a=b", "--timezone=Mars/Base"), "time zone"),
        (("a=b", "--end=2099-01-01"), "either --duration or --end"),
        (("a=b", "--rrule=FREQ=DAILY"), "belong together"),
        (("a=b", "--rrule=FREQ=DAILY;UNTIL=1", "--window=1h"), "UNTIL"),
        (("a=b", "--start=tomorrow"), "not a time"),
        (("a=b", "--reason="), "a reason"),
        (("a=b", "--duration=-1h"), "--duration"),
        (("a=b", "--duration=0s"), "more than nothing"),
    ],
)
def test_what_is_wrong_is_one_line(
    folder: Path, arguments: tuple[str, ...], line: str
) -> None:
    # An option that is given twice has its last value.
    said_ = refused(folder, "silences", "add", *FOR_AN_HOUR, *arguments, code=2)
    assert line in said_
    assert said_json(folder, "silences", "list", "--all") == []


def test_silences_that_cannot_be_ended_are_told_apart(folder: Path) -> None:
    add(folder, "a=b", *FOR_AN_HOUR)
    done = midwatch(folder, "silences", "expire", "1", "1", "7")
    assert (done.returncode, done.stdout) == (1, "silence 1: ended\n")
    assert "there is no silence 7" in done.stderr
    assert "has ended already" in refused(folder, "silences", "expire", "1")
    assert said_json(folder, "silences", "list") == []
    [ended] = said_json(folder, "silences", "list", "--all")
    assert ended["state"] == "ended" and ended["expired_by"]


def test_hostile_text_does_nothing(folder: Path) -> None:
    in_store(folder, lambda store: open_tickets(store, "queue", subject="o"))
    hostile = "\x1b[2J\x1b]8;;http://evil.example\x1b\\click \u202etxt\nline"
    out = add(folder, 'subject="o"', f'x!="{hostile}"', "-d1h", f"-c{hostile}")
    out += on_a_terminal(folder, "silences", "list", columns=200)
    out += on_a_terminal(folder, "tickets", "history", "1", columns=200)
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert "\x1b" not in plain and "\u202e" not in plain
    assert "silence 1 of" in plain
