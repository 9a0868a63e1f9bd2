"""`midwatch tickets watch`, as a real process that follows what others do."""

from __future__ import annotations

import json
import os
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import open_tickets

from .. import processes
from ..waiting import PATIENCE
from .cli import environ, in_store, midwatch, refused, said
from .test_cli_tickets import HOSTILE


@contextmanager
def watching(
    folder: Path, *arguments: str, terminal: bool = False
) -> Iterator[tuple[processes.Midwatch, int]]:
    """A running watch, and the descriptor that has what it prints."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    with open(folder / "stderr", "ab") as stderr:
        process = processes.Midwatch(
            ["tickets", "watch", *arguments],
            cwd=folder,
            env=environ(folder, TERM="xterm", TZ="UTC"),
            stdout=theirs,
            stderr=stderr,
        )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(descriptor: int, last: str) -> str:
    """What is printed until `last` is in it."""
    shown = b""
    while last.encode() not in shown:
        chunk = os.read(descriptor, 65536)
        assert chunk, shown
        shown += chunk
    return shown.decode()


def changes(descriptor: int, number: int) -> list[Any]:
    """The next changes that are printed as JSON."""
    with open(os.dup(descriptor), encoding="utf-8") as lines:
        return [json.loads(lines.readline()) for _ in range(number)]


def opened(folder: Path, *components: str) -> None:
    async def seed(store: SqlStore) -> None:
        await open_tickets(store, *components, subject="orders")

    in_store(folder, seed)


def test_a_watch_that_is_killed_goes_on_without_a_gap(tmp_path: Path) -> None:
    """A program has the cursor of the last line that it read."""
    opened(tmp_path, "queue-1")
    with watching(tmp_path, "--json", "--after", "0") as (process, shown):
        [first] = changes(shown, 1)
        said(tmp_path, "tickets", "ack", "1", "--why", "on it")
        [second] = changes(shown, 1)
        process.kill()
        process.wait(PATIENCE)
    assert (first["action"], first["to"], first["subject"]) == (
        "open",
        "open",
        "orders",
    )
    assert (second["why"], second["from"], second["to"]) == (
        "on it",
        "open",
        "acknowledged",
    )
    said(tmp_path, "tickets", "hold", "1", "--why", "while nobody watches")
    with watching(tmp_path, "--json", "--after", second["cursor"]) as (_, shown):
        said(tmp_path, "tickets", "resolve", "1", "--why", "restarted")
        found = changes(shown, 2)
    assert [one["why"] for one in found] == ["while nobody watches", "restarted"]


def test_a_terminal_shows_what_is_open_and_then_each_change(tmp_path: Path) -> None:
    """In lines that fit, in which hostile text stays text; Ctrl-C ends it."""
    opened(tmp_path, "queue-1", HOSTILE)
    with watching(tmp_path, terminal=True) as (process, shown):
        before = read_until(shown, "Ctrl-C ends")
        assert "queue-1" in before
        said(tmp_path, "tickets", "ack", "2", "--why", f"{HOSTILE} on it")
        after = read_until(shown, "\n")
        assert "open > acknowledged" in after and "orders/" in after
        for text in (before, after):
            assert "\x1b]8" not in text and "\x9b" not in text and "\x1b[2J" not in text
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert (tmp_path / "stderr").read_text() == ""


def test_what_is_not_asked_for_is_not_shown(tmp_path: Path) -> None:
    opened(tmp_path, "queue-1", "queue-2")
    asked = ("--json", "--after", "0", "--ticket", "2", "--severity", "warning")
    with watching(tmp_path, *asked, "--subject", "orders") as (_, shown):
        said(tmp_path, "tickets", "ack", "1", "2")
        found = changes(shown, 2)
    assert [(one["ticket"], one["action"]) for one in found] == [
        (2, "open"),
        (2, "acknowledge"),
    ]


def test_a_cursor_that_is_none_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, "queue-1")
    done = midwatch(tmp_path, "tickets", "watch", "--after", "1e9")
    assert done.returncode == 2 and "not a cursor: '1e9'" in done.stderr
    nowhere = tmp_path / "empty"
    nowhere.mkdir()
    assert "there is no database" in refused(nowhere, "tickets", "watch")
