"""`midwatch` as a user runs it: real processes, a settings file, a clean environment."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from midwatch.errors import TemporaryError
from midwatch.model import Ticket
from midwatch.store.protocol import Store, TicketFilter
from midwatch.testing.fakes import answer
from midwatch.testing.messages_api import Answer, Request, Usage

from .. import processes
from ..processes import Midwatch
from ..waiting import PATIENCE

KEY = "sk-ant-test-0123456789"


# ------------------------------------------------------------------ settings


def write_settings(
    folder: Path,
    *subjects: Mapping[str, Any],
    database: str | None = None,
    **groups: Mapping[str, Any],
) -> Path:
    """Write a midwatch.yaml with intervals of some tenths of a second; return its path."""
    agent = {"poll_interval": "200ms", "auth_probe_interval": "500ms"}
    settings = {
        "database": database or f"sqlite:///{folder / 'midwatch.db'}",
        "monitor": {"interval": "300ms", "group_wait": 0, **groups.pop("monitor", {})},
        "agent": {**agent, **groups.pop("agent", {})},
        **groups,
        "subjects": [dict(subject) for subject in subjects],
    }
    file = folder / "midwatch.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return an environment without the keys and settings of the caller."""
    return {"PATH": os.defpath, "HOME": str(folder), **variables}


@dataclass(frozen=True)
class Board:
    """A system whose faults a test sets: a file that a subject of kind `command` prints."""

    file: Path

    def subject(self, **settings: Any) -> dict[str, Any]:
        shown = {"kind": "command", "command": ["cat", str(self.file)]}
        return {"name": "board", **shown, **settings}

    def show(self, *components: str, message: str = "it is broken") -> None:
        """Report exactly these components as broken."""
        self.report(
            violations=[
                {
                    "invariant": "alive",
                    "component": name,
                    "message": f"{name}: {message}",
                }
                for name in components
            ]
        )

    def report(self, **report: Any) -> None:
        """Replace what the command prints, atomically."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(report), encoding="utf-8")
        fresh.replace(self.file)


def healthy_board(folder: Path) -> Board:
    board = Board(folder / "board.json")
    board.show()
    return board


# ------------------------------------------------------------------ processes


@dataclass(frozen=True)
class Running:
    """A daemon and its output."""

    process: Midwatch
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Its log lines, or those of one event. Every line must be JSON."""
        whole = self.text.rpartition("\n")[0]
        records = [json.loads(line) for line in whole.splitlines()]
        return [line for line in records if not event or line["event"] == event]

    async def said(self, event: str, **fields: Any) -> dict[str, Any]:
        """Wait for the first log line of this event with these fields, and return it."""

        def look() -> dict[str, Any] | None:
            assert self.process.poll() is None, f"it ended: {self.text}"
            for line in self.lines(event):
                if fields.items() <= line.items():
                    return line
            return None

        return await until(f"{event} {fields or ''}", look)

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Send a signal. Return the exit code and the seconds until the process ended."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE), time.monotonic() - began


@contextlib.contextmanager
def daemon(config: Path, *command: str, **variables: str) -> Iterator[Running]:
    """`midwatch --config CONFIG COMMAND…` with these variables and no others."""
    folder = config.parent
    output = folder / f"{'-'.join(command)}.log"
    with output.open("ab") as log:
        process = Midwatch(
            ["--config", str(config), *command],
            env=environment(folder, **variables),
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        yield Running(process, output)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()


def asking(base_url: str, key: str = KEY) -> dict[str, str]:
    """The variables that make a daemon ask the scripted API."""
    return {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": base_url}


def run(config: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return processes.run(
        ["--config", str(config), *command],
        env=environment(config.parent),
        cwd=config.parent,
    )


# ------------------------------------------------------------------ waiting


async def until(what: str, look: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return the result of `look` once it is true; a temporary error is retried."""
    import asyncio

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(TemporaryError):
            found = look()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


async def tickets(store: Store) -> list[Ticket]:
    """Return all tickets, oldest first."""
    found = await store.tickets(TicketFilter(limit=1000))
    return sorted(found, key=lambda ticket: ticket.id)


async def ticket_that(
    store: Store, what: str, fits: Callable[[Ticket], object]
) -> Ticket:
    """Wait for the first ticket that `fits`, and return it."""

    async def look() -> Ticket | None:
        return next((one for one in await tickets(store) if fits(one)), None)

    found: Ticket = await until(f"a ticket that {what}", look)
    return found


# ------------------------------------------------------------------ answers made of the prompt


def evidence_in(prompt: str) -> dict[str, list[str]]:
    """Return the lines of each piece of evidence in a prompt, by its number."""
    pieces = re.finditer(
        r"^(E\d+)\. [^\n]*\n<evidence>\n(.*?)\n</evidence>",
        prompt,
        re.MULTILINE | re.DOTALL,
    )
    return {
        piece[1]: piece[2].splitlines()[1:] for piece in pieces
    }  # without the title


def ticket_ids(prompt: str) -> list[int]:
    return [int(id_) for id_ in re.findall(r"^Ticket (\d+) \(", prompt, re.MULTILINE)]


def blaming(
    *words: str, cause: str = "{line}", usage: Usage = Usage(2000, 300)
) -> Callable[[Request], Answer]:
    """Return an answer of a model that quotes the first line of evidence with all of `words` and names
    it as the root cause. Without such a line the verdict is insufficient_data."""

    def reply(request: Request) -> Answer:
        for number, line in _lines(request.prompt):
            if all(re.search(word, line) for word in words):
                root_cause = cause.format(line=line.strip())
                explains = ticket_ids(request.prompt)
                made = answer(
                    root_cause,
                    quote=line.strip(),
                    evidence_id=number,
                    explains=explains,
                )
                return Answer(structured=made, usage=usage)
        made = answer("", verdict="insufficient_data", confidence="low")
        return Answer(structured=made, usage=usage)

    return reply


def _lines(prompt: str) -> Sequence[tuple[str, str]]:
    pieces = evidence_in(prompt).items()
    return [(number, line) for number, lines in pieces for line in lines]
