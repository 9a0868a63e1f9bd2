"""`midwatch tickets …`, as real processes on a real file."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tools.prepared import prepared, tables

from midwatch.cli.ticket_list import plain_list
from midwatch.model import Key, Severity, Ticket, Violation
from midwatch.settings import Settings
from midwatch.settings_file import GROUPS
from midwatch.store.protocol import Budget, Changes, Finish, Opening
from midwatch.store.quick import PREPARED, read_list
from midwatch.store.sql import SqlStore
from midwatch.store.upgrade import TABLES
from midwatch.testing.fakes import answer, open_tickets

from ..waiting import PATIENCE
from .cli import (
    KEY,
    MIDWATCH,
    environ,
    in_store,
    midwatch,
    on_a_terminal,
    refused,
    said,
    said_json,
)

LONG = "the orders are not shipped any more because the queue has no consumer at all"
HOSTILE = (
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\ \x1b[2J\x1b[31m[bold red]red[/]"
    " ![x](http://evil.example/i.png) \u202etxt.exe\x9b1m\nsecond line"
)
JSON_MD = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a warning, a critical ticket and a hostile one. Tests only read it."""
    made = tmp_path_factory.mktemp("watch")

    async def seed(store: SqlStore) -> None:
        await open_tickets(store, "queue-1", subject="orders")
        await _open(store, "shop", LONG, Severity.CRITICAL)
        await _open(store, "evil", HOSTILE, Severity.INFO)

    in_store(made, seed)
    return made


async def _open(
    store: SqlStore, subject: str, message: str, severity: Severity
) -> Ticket:
    watch = await store.watch(subject)
    violation = Violation(Key(subject, "alive", f"{subject}-1"), severity, message)
    changes = Changes(openings=(Opening(violation, seen_for=3.0),))
    saved = await store.save_cycle(subject, watch.revision, changes)
    return await store.ticket(saved.opened[0])


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A folder whose database has ticket 1."""
    in_store(tmp_path, lambda store: open_tickets(store, "queue-1", subject="orders"))
    return tmp_path


def test_a_list_for_a_pipe_is_whole_and_has_instants(folder: Path) -> None:
    lines = said(folder, "tickets", "list").splitlines()
    assert [line.split()[0] for line in lines] == ["ID", "2", "1", "3"]
    assert LONG in lines[1]
    assert re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", lines[1])
    assert all("\x1b" not in line for line in lines)


def test_a_list_for_a_terminal_fits_it_and_has_ages(folder: Path) -> None:
    shown = on_a_terminal(folder, "tickets", "list", columns=90)
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert max(map(len, plain.splitlines())) <= 90
    assert "…" in plain and LONG not in plain
    assert re.search(r"\d+m?s? .*ago|\d+s ago|now", plain)
    assert "\x1b[31mcritical" in shown


def test_hostile_text_does_nothing(folder: Path) -> None:
    shown = on_a_terminal(folder, "tickets", "list", columns=200)
    shown += on_a_terminal(folder, "tickets", "show", "3")
    without_ours = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x1b" not in without_ours and "\x9b" not in shown and "\u202e" not in shown
    assert "[bold red]red[/]" in without_ours
    assert "\x1b" not in said(folder, "tickets", "show", "3", "--json")


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--severity", "critical"], [2]),
        (["--subject", "orders"], [1]),
        (["--batch", "3"], [3]),
        (["--status", "resolved"], []),
        (["--all"], [3, 2, 1]),
    ],
)
def test_a_list_can_be_narrowed(
    folder: Path, options: list[str], ids: list[int]
) -> None:
    assert [row["id"] for row in said_json(folder, "tickets", "list", *options)] == ids


def test_the_json_is_as_documented(folder: Path) -> None:
    ticket = said_json(folder, "tickets", "show", "1")
    rows = said_json(folder, "tickets", "list")
    assert set(ticket) == _documented("## A ticket", "## Its diagnosis")
    whole = "facts first_aid sessions runbook_url runbooks pull_requests".split()
    assert set(rows[0]) == set(ticket) - {*whole}
    assert ticket["severity"] == "warning" and ticket["diagnosis"] is None
    assert ticket["first_seen_at"].endswith("Z") and ticket["occurrence_count"] == 1


def _documented(start: str, end: str) -> set[str]:
    """The fields in the first column of the table between two headings of docs/json.md."""
    text = JSON_MD.read_text(encoding="utf-8")
    section = text[text.index(start) : text.index(end)]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_a_limit_says_that_there_is_more(folder: Path) -> None:
    done = midwatch(folder, "tickets", "list", "--limit", "2", "--json")
    assert "the first 2 are shown" in done.stderr and done.stdout.count('"id"') == 2


def test_what_a_person_does_is_in_the_history(one: Path) -> None:
    posing = {"USER": "root-of-all", "LOGNAME": "root-of-all"}
    said(one, "tickets", "ack", "1", "--why", "on it", env=posing)
    assert "acknowledged, held" in said(one, "tickets", "hold", "1")
    said(one, "tickets", "unhold", "1")
    said(one, "tickets", "retry", "1")
    said(one, "tickets", "resolve", "1", "--why", "restarted the consumer")
    rows = said_json(one, "tickets", "history", "1")
    me = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
    mine = [row for row in rows if row["actor"] == me]
    assert [row["action"] for row in mine] == [
        "acknowledge",
        "hold",
        "unhold",
        "retry",
        "resolve",
    ]
    assert mine[0]["why"] == "on it" and mine[-1]["why"] == "restarted the consumer"
    assert "resolved already" in refused(one, "tickets", "resolve", "1", "--why", "x")
    assert "restarted the consumer" in said(one, "tickets", "show", "1")


def test_an_unknown_ticket_is_one_line(folder: Path) -> None:
    line = refused(folder, "tickets", "show", "99999999999999999999")
    assert line.startswith("midwatch: there is no ticket 99999999999999999999 (see ")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    components = [f"component-{number}" for number in range(2000)]
    in_store(tmp_path, lambda store: open_tickets(store, *components))
    piped = subprocess.run(
        ["sh", "-c", f"'{MIDWATCH}' tickets list --limit 2000 | head -1"],
        cwd=tmp_path,
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert piped.stdout.startswith("ID") and piped.stderr == ""


PRINT_MODULES = (
    "import sys; from midwatch.cli.main import main\n"
    "sys.argv = ['midwatch', *{arguments!r}]\n"
    "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
    "print(*sys.modules, file=sys.stderr)"
)


def imported(
    folder: Path, *arguments: str, until: str | None = None
) -> tuple[str, set[str]]:
    """Return what a command prints, and the modules that it has imported at its end.

    A daemon ends once it has printed `until`.
    """
    with subprocess.Popen(
        [sys.executable, "-c", PRINT_MODULES.format(arguments=arguments)],
        cwd=folder,
        env=environ(folder, ANTHROPIC_API_KEY=KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        if until is not None:
            assert any(until in line for line in process.stdout)
            process.terminate()
        printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    modules = set(errors.splitlines()[-1].split())
    return printed, modules | {name.partition(".")[0] for name in modules}


SLOW = {"anthropic", "pydantic", "sqlalchemy", "typer", "asyncio", "rich", "mcp_types"}


def test_a_list_imports_no_more_than_it_needs(one: Path) -> None:
    (one / "midwatch.yaml").write_text("database: sqlite:///midwatch.db\n")
    printed, modules = imported(one, "tickets", "list", "--limit", "7")
    assert "queue-1" in printed
    assert not modules & {*SLOW, "hashlib", "typing_extensions"}
    printed, modules = imported(one, "--help")
    assert "silences" in printed
    assert not modules & (SLOW - {"typer"} | {"midwatch.cli.tickets"})


def test_an_idle_daemon_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    subjects = '[{name: job, kind: command, command: ["true"]}]'
    (tmp_path / "midwatch.yaml").write_text(f"subjects: {subjects}\n")
    imported(tmp_path, "db", "upgrade")
    used = {"pydantic", "sqlalchemy", "asyncio"}
    of_daemons = (("agent", "agent started"), ("monitor", "cycle"))
    found = [
        imported(tmp_path, "--config", "midwatch.yaml", daemon, until=printed)[1]
        for daemon, printed in of_daemons
    ]
    found.append(imported(tmp_path, "agent", "--once")[1] - {"typer"})
    for modules in found:
        assert not modules & (SLOW - used | {"genai_prices", "httpx2", "cryptography"})
        assert not modules & {"alembic", "psycopg", "sqlalchemy.ext.asyncio", "html"}
        assert not modules & {"re2"}
        assert not modules & {"midwatch.workspace.git", "midwatch.cli.metrics"}


def test_a_quick_list_is_as_the_store_gives_it(one: Path) -> None:
    """With each option, and whether the statement was prepared or not."""

    async def change(store: SqlStore) -> None:
        await open_tickets(store, "disk", "cpu", subject="box")
        [claim] = await store.claim("agent", lease=60)
        call = await store.begin(
            claim,
            model="m",
            prompt_version="1",
            reserve_usd=0.01,
            budget=Budget(None),
        )
        assert call is not None
        finish = Finish("answered", answer=answer(), confidence="high")
        assert await store.finish(claim, call, finish)
        await store.acknowledge(1, "ann")
        await store.hold(2, True, "ann")
        await store.resolve(3, "ann", "done")

    in_store(one, change)
    plain = (), ("--all",), ("--subject", "box"), ("--batch", "1"), ("--limit", "2")
    of_status = ("--status", "resolved"), ("--all", "--status", "acknowledged")
    for options in (*plain, *of_status, ("--all", "--subject", "box", "--batch", "2")):
        quick, modules = imported(one, "tickets", "list", "--json", *options)
        assert not modules & SLOW
        (one / "midwatch.yaml").write_text(
            "database: sqlite:///midwatch.db?timeout=5\n"
        )
        slow, modules = imported(one, "tickets", "list", "--json", *options)
        assert "sqlalchemy" in modules and json.loads(quick) == json.loads(slow)
        (one / "midwatch.yaml").unlink()
    assert len(json.loads(slow)) == 2
    assert json.loads(said(one, "tickets", "list", "--json"))[0]["diagnosis"]


@pytest.mark.parametrize(
    ("damage", "arguments"),
    [
        ("UPDATE tickets SET message = CAST(x'ff41' AS TEXT)", ()),
        ("DELETE FROM alembic_version", ()),
    ],
)
def test_a_quick_list_leaves_what_it_cannot_read_to_the_store(
    one: Path, damage: str, arguments: tuple[str, ...]
) -> None:
    file = str(one / "midwatch.db")
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA ignore_check_constraints = 1")
        database.execute(damage)
        database.commit()
    shown = plain_list(arguments)
    assert shown is not None and read_list(file, shown.query) is None


@pytest.mark.parametrize("option", ["--batch", "--limit"])
def test_a_number_that_no_database_takes_is_one_line(one: Path, option: str) -> None:
    for digits in (19, 25, 5000):
        assert plain_list([option, "9" * digits]) is None
    assert "too large" in refused(one, "tickets", "list", option, "9" * 25)


@pytest.mark.parametrize(
    ("settings", "variables"),
    [("databse: sqlite:///midwatch.db\n", {}), ("", {"MIDWATCH_DATABSE": "x"})],
)
def test_a_quick_list_overlooks_no_misspelt_setting(
    one: Path, settings: str, variables: dict[str, str]
) -> None:
    (one / "midwatch.yaml").write_text(settings)
    line = refused(one, "tickets", "list", env=variables, code=2)
    assert "databse" in line.lower() and "database" in line


def test_the_prepared_statements_are_current() -> None:
    assert PREPARED.read_text() == prepared(), "run `python -m tools.prepared`"
    assert TABLES.read_text() == tables(), "run `python -m tools.prepared`"
    assert GROUPS == Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        (("ack",), "status", "acknowledged"),
        (("hold",), "held", True),
        (("unhold",), "held", False),
        (("retry",), "status", "open"),
        (("resolve", "--why", "done"), "status", "resolved"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_several_ids_are_one_document(
    tmp_path: Path, command: tuple[str, ...], field: str, value: object
) -> None:
    in_store(tmp_path, lambda store: open_tickets(store, "a", "b", "c"))
    name, *options = command
    found = said_json(tmp_path, "tickets", name, "1", "2", "1", *options)
    assert [(row["id"], row[field]) for row in found] == [(1, value), (2, value)]
    assert said_json(tmp_path, "tickets", name, "3", *options)[field] == value


def test_an_unknown_id_keeps_no_other_from_being_changed(tmp_path: Path) -> None:
    in_store(tmp_path, lambda store: open_tickets(store, "a", "b"))
    done = midwatch(tmp_path, "tickets", "ack", "1", "98", "2", "99", "--json")
    assert [row["id"] for row in json.loads(done.stdout)] == [1, 2]
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no ticket 98" in done.stderr and "no ticket 99" in done.stderr
    done = midwatch(tmp_path, "tickets", "ack", "98", "99", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, [])
    assert refused(tmp_path, "tickets", "ack", "98", "--json")
