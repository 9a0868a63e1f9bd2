"""A damaged value in the database: its ticket is shown with what is damaged, and the others as ever."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from midwatch.silences import in_force, parse_matchers, unusable
from midwatch.store.figures import TicketFilter
from midwatch.store.quick import read_list
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import open_tickets

from .cli import in_store, said, said_json
from .server_process import Running, server_process

TICKETS = {
    "severity = 9": "severity 9",
    "status = 'opened'": "status 'opened'",
    "facts = '{'": "facts",
    "facts = '[1]'": "facts",
    "first_aid = 'x'": "first_aid",
    "opened_at = 'soon'": "opened_at",
    "first_seen_at = 99999999999999999": "first_seen_at",
}
"""What is written into a row, and how it is named."""


def damage(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "midwatch.db")) as database, database:
        database.execute("PRAGMA ignore_check_constraints = on")
        for statement in statements:
            database.execute(statement)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose database has a ticket for each damage, and one that is well."""
    made = tmp_path_factory.mktemp("damaged")
    said(made, "db", "upgrade")

    async def seed(store: SqlStore) -> None:
        await open_tickets(store, *map(str, range(len(TICKETS) + 1)), subject="box")

    in_store(made, seed)
    damage(
        made,
        *(
            f"UPDATE tickets SET {change} WHERE id = {id_}"
            for id_, change in enumerate(TICKETS, 1)
        ),
    )
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with server_process(folder, {}) as running:
        yield running


@pytest.mark.parametrize("options", [("--all",), ("--all", "--severity", "critical")])
def test_a_list_has_a_line_for_each_damaged_ticket(
    folder: Path, options: tuple[str, ...]
) -> None:
    """Once from the file alone, once through the store."""
    listed = said_json(folder, "tickets", "list", *options)
    found = {one["id"]: one for one in listed}
    if len(options) == 1:
        assert sorted(found) == [*range(1, len(TICKETS) + 2)]
        for id_, name in enumerate(TICKETS.values(), 1):
            told = f"[damaged in the database: {name}] "
            assert found[id_]["message"].startswith(told)
            assert told in said(folder, "tickets", "show", str(id_))
        assert found[1]["severity"] == "critical"
        assert found[len(TICKETS) + 1]["message"] == f"{len(TICKETS)} is broken"
    said(folder, "tickets", "list", *options)
    said(folder, "stats")


def test_the_quick_list_and_the_store_tell_the_same(folder: Path) -> None:
    query = TicketFilter((), limit=50)
    quick = read_list(str(folder / "midwatch.db"), query)
    assert quick is not None
    assert quick[0] == in_store(folder, lambda store: store.tickets(query))


def test_pages_and_the_api_show_them(server: Running) -> None:
    for path in ("/tickets", "/subjects", "/charts", "/api/v1/tickets"):
        answer = server.http.get(path)
        assert answer.status_code == 200, path
    assert "damaged in the database: severity 9" in server.http.get("/tickets").text
    for id_ in range(1, len(TICKETS) + 1):
        for path in (f"/tickets/{id_}", f"/api/v1/tickets/{id_}"):
            answer = server.http.get(path)
            assert answer.status_code == 200, (path, answer.text)
            assert "damaged in the database" in answer.text


def test_a_silence_with_damaged_matchers_silences_nothing(tmp_path: Path) -> None:
    said(tmp_path, "db", "upgrade")

    async def add(store: SqlStore) -> None:
        matchers = parse_matchers('subject="box"')
        await store.add_silence(matchers, author="a", reason="r", seconds=3600)

    in_store(tmp_path, add)
    damage(tmp_path, "UPDATE silences SET matchers = '[['")
    silences = in_store(tmp_path, lambda store: store.silences())
    now = datetime.now(UTC)
    assert (
        len(silences) == 1 and not in_force(silences, now) and unusable(silences, now)
    )
    said(tmp_path, "silences", "list")
