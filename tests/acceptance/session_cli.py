"""A folder for `midwatch session`: settings, two bare repositories, and the scripted API."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.testing.fakes import make_repository
from midwatch.testing.messages_api import Answer, ScriptedMessagesAPI, ToolUse

from ..processes import Midwatch
from ..waiting import PATIENCE
from .cli import KEY, environ, said

SETTINGS = """\
sessions:
  folder: {folder}/state
  cache_folder: {cache}
  allowed_tools: [Bash]
  sandbox: "off"
  retries: 1
"""


def make_desk(folder: Path, cache: Path | None = None, extra: str = "") -> Path:
    """A folder with settings whose sessions are in it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = SETTINGS.format(folder=folder, cache=cache or folder / "cache") + extra
    (folder / "midwatch.yaml").write_text(text)
    return folder


def make_repositories(folder: Path) -> tuple[str, str]:
    """Two bare repositories; each a remote that takes pushes."""
    app = make_repository(folder / "remotes" / "app", {"main.py": "print('hi')\n"})
    lib = make_repository(folder / "remotes" / "lib", {"lib.py": "A = 1\n"})
    return str(app), str(lib)


def asking(api: ScriptedMessagesAPI | str, key: str = KEY) -> dict[str, str]:
    url = api if isinstance(api, str) else api.base_url
    return {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": url}


def bash(command: str) -> Answer:
    return Answer(tool_uses=[ToolUse("Bash", {"command": command})])


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def started(folder: Path, api: ScriptedMessagesAPI, *arguments: str) -> dict[str, Any]:
    """Run a session with --json to its good end; its last line."""
    told = said(folder, "session", *arguments, "--json", env=asking(api))
    return next(one for one in events_of(told) if one["type"] == "session")


@dataclass(frozen=True)
class Running:
    """A runner in the background, and what it has said."""

    process: Midwatch
    output: Path

    def events(self) -> list[dict[str, Any]]:
        return events_of(self.output.read_text().rpartition("\n")[0])

    def until(self, type_: str, **fields: Any) -> dict[str, Any]:
        """The first event that has these fields, as soon as it is there."""

        def look() -> dict[str, Any] | None:
            for event in self.events():
                if event["type"] == type_ and fields.items() <= event.items():
                    return event
            return None

        return until(look, lambda: f"{type_} {fields}: {self.output.read_text()}")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def runner(
    folder: Path, api: ScriptedMessagesAPI, *arguments: str
) -> Iterator[Running]:
    with running(folder, api, "session", *arguments, "--json") as found:
        yield found


@contextmanager
def running(
    folder: Path, api: ScriptedMessagesAPI, *arguments: str
) -> Iterator[Running]:
    """Any command in the background."""
    output = folder / f"run-{time.monotonic_ns()}.jsonl"
    with output.open("wb") as file:
        process = Midwatch(
            arguments,
            cwd=folder,
            env=environ(folder, **asking(api)),
            stdout=file,
            stderr=file,
        )
    try:
        yield Running(process, output)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)


def until(
    look: Callable[[], Any], what: Callable[[], str], seconds: float = PATIENCE
) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what()}")


def only_session(folder: Path) -> str:
    """The name of the one session whose folder is there."""
    (name,) = os.listdir(folder / "state" / "sessions")
    return name
