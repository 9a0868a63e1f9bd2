"""What commands print fits a terminal of 80 columns, and a reader that goes away is no error."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from pathlib import Path

import pytest

from midwatch.cli.output import Cell, Output, folded, width
from midwatch.model import Key, Severity, Violation
from midwatch.store.protocol import Budget, Changes, Finish, Opening
from midwatch.store.sql import SqlStore

from ..waiting import PATIENCE
from .cli import MIDWATCH, environ, in_store, on_a_terminal, said

WIDE = "注文データベースの接続が多すぎます" * 4
FLAG = "👩‍🚒❤️é" * 30


def cells(line: str) -> int:
    """The columns of a line, counted apart from the product: at least as many as a terminal takes."""
    kinds = [
        2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in line
        if unicodedata.category(character) not in ("Mn", "Me", "Cf")
    ]
    return sum(kinds)


def plain(shown: str) -> list[str]:
    return re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tickets with long and wide texts; one is acknowledged and diagnosed, and one was given up."""
    made = tmp_path_factory.mktemp("wide")

    async def seed(store: SqlStore) -> None:
        for number, message in enumerate(("short", "x" * 400, WIDE, FLAG, "a b " * 99)):
            subject = "orders-db-primary-in-frankfurt" if number % 2 else "shop"
            watch = await store.watch(subject)
            key = Key(subject, "transaction_id_age", f"component {number} {message}")
            opening = Opening(Violation(key, Severity.CRITICAL, message), seen_for=7500)
            await store.save_cycle(subject, watch.revision, Changes((opening,)))
        for ticket, given_up in ((1, False), (2, True)):
            [claim] = await store.claim("agent", lease=60, batch=ticket)
            call = await store.begin(
                claim,
                model="m",
                prompt_version="1",
                reserve_usd=0,
                budget=Budget(None),
            )
            assert call is not None
            finish = Finish("error", error="it died", given_up=given_up)
            assert await store.finish(claim, call, finish)
            await store.acknowledge(ticket, "ann@desk")
        await store.beat(f"agent {'host' * 40}:1", "agent", {"state": WIDE * 3})
        await store.pause("auth", 600, f"401 invalid x-api-key {WIDE}", "agent")

    in_store(made, seed)
    return made


@pytest.mark.parametrize("columns", [80, 60, 100, 132])
@pytest.mark.parametrize(
    "command",
    [
        ("tickets", "list"),
        ("tickets", "list", "--all"),
        ("tickets", "history", "1"),
        ("stats",),
        ("invariants",),
        ("session", "list"),
    ],
    ids=" ".join,
)
def test_no_line_is_wrapped(
    folder: Path, command: tuple[str, ...], columns: int
) -> None:
    lines = plain(on_a_terminal(folder, *command, columns=columns))
    assert lines and max(map(cells, lines)) <= columns


def test_eighty_columns_have_what_matters(folder: Path) -> None:
    heading, *rows = plain(on_a_terminal(folder, "tickets", "list"))
    for name in ("ID", "SEVERITY", "STATUS", "SUBJECT", "INVARIANT", "MESSAGE"):
        assert name in heading.split()
    assert all("transaction" in row for row in rows)
    assert any("given_up" in row for row in rows)


def test_an_acknowledged_ticket_says_so_in_the_list(folder: Path) -> None:
    rows = said(folder, "tickets", "list").splitlines()
    assert "diagnosed, acked" in next(r for r in rows if r.startswith("1 "))
    assert "given_up, acked" in next(r for r in rows if r.startswith("2 "))
    assert said(folder, "tickets", "list", "--status", "given_up").count("\n") == 2
    diagnosed = said(folder, "tickets", "list", "--status", "diagnosed").splitlines()
    assert [row.split()[0] for row in diagnosed] == ["ID", "1"]
    assert "1 given up" in said(folder, "stats")


@pytest.mark.parametrize(
    "command",
    [
        ("tickets", "list"),
        ("tickets", "list", "--json"),
        ("tickets", "show", "3"),
        ("tickets", "history", "1"),
        ("stats",),
        ("stats", "--json"),
        ("invariants",),
        ("invariants", "--json"),
        ("check",),
        ("session", "list", "--json"),
        ("cache", "list"),
        ("db", "status"),
        ("kube", "crd"),
        ("kube", "crd", "-o", "json"),
        ("demo", "--list"),
        ("--version",),
        ("--help",),
        ("tickets", "--help"),
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_is_no_error(
    folder: Path, command: tuple[str, ...]
) -> None:
    """The reader is gone before the first byte, which is the worst case of `| head -1`."""
    piped = subprocess.run(
        [
            "bash",
            "-c",
            '(sleep 0.4; exec "$@"; ) | true; exit ${PIPESTATUS[0]}',
            "-",
            MIDWATCH,
            *command,
        ],
        cwd=folder,
        env=environ(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert piped.stderr == ""
    assert piped.returncode in (0, 141)  # 0 without output; never as after an error


# ------------------------------------------------------------------ the pure parts


@pytest.mark.parametrize("text", ["a b c", WIDE, FLAG, "x" * 300, "", "a " * 90])
@pytest.mark.parametrize("room", [20, 37, 80])
def test_a_folded_text_is_whole_and_fits(text: str, room: int) -> None:
    lines = folded(text, room)
    assert max(map(width, lines)) <= room
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_the_first_column_is_never_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import dataclasses

    output = dataclasses.replace(Output.standard({}), terminal=True, width=30)
    name = "s-20261129-0123456789abcdef"
    rows = [[Cell(name), Cell("y" * 50), Cell("z" * 50)]]
    output.table(("id", "one", "two"), rows, shrink=("one",), drop=("two",))
    assert name in capsys.readouterr().out
