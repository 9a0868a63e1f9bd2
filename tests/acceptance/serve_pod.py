"""A pod for `midwatch session serve`: its folders, its environment, and the process itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midwatch.session.claude_code import Launcher
from midwatch.session.events import Event
from midwatch.session.log import read_events
from midwatch.session.records import FolderRecords
from midwatch.session.status import SessionStatus
from midwatch.testing.messages_api import ScriptedMessagesAPI

from ..processes import Midwatch, run
from ..waiting import PATIENCE
from .cli import KEY
from .session_cli import until


@dataclass
class Pod:
    """The folders of a pod below `root`. Another pod of the same session has the same `root`."""

    root: Path
    api: ScriptedMessagesAPI | str
    repos: Sequence[Any]
    more: dict[str, str] = field(default_factory=dict)

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def state(self) -> Path:
        return self.root / "session"

    @property
    def cwd(self) -> Path:
        folder = self.root / "image"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def environ(self, **more: str) -> dict[str, str]:
        """What the operator writes into the Job, and the image's own."""
        url = self.api if isinstance(self.api, str) else self.api.base_url
        repos = [
            one if isinstance(one, dict) else {"input": {"url": str(one)}}
            for one in self.repos
        ]
        return {
            "PATH": os.defpath,
            "ANTHROPIC_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": url,
            "WORKSPACE_PATH": str(self.workspace),
            "STATE_PATH": str(self.state),
            "CACHE_PATH": str(self.root / "cache"),
            "SESSION_NAME": "fix",
            "STATUS": "none",
            "PROMPT": "Do it.",
            "REPOS_JSON": json.dumps(repos),
            "TIMEOUT": "60",
            "IDLE_TIMEOUT": "30",
            "STATUS_INTERVAL": "1",
            "MIDWATCH_SESSIONS__ALLOWED_TOOLS": '["Bash"]',
            "MIDWATCH_SESSIONS__SANDBOX": "off",
            "MIDWATCH_SESSIONS__RETRIES": "1",
            **self.more,
            **more,
        }

    def serve(self, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the runner to its end."""
        return run(["session", "serve"], cwd=self.cwd, env=self.environ(**more))

    @contextmanager
    def serving(self, **more: str) -> Iterator[Serving]:
        log = self.root / "pod.log"
        self.root.mkdir(exist_ok=True)
        with log.open("wb") as file:
            process = Midwatch(
                ["session", "serve"],
                cwd=self.cwd,
                env=self.environ(**more),
                stdout=file,
                stderr=file,
            )
        try:
            yield Serving(self, process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)

    def status(self) -> SessionStatus:
        found = FolderRecords(self.state).load_status()
        assert found is not None
        return found

    def events(self) -> list[Event]:
        return list(read_events(self.state / "outbox.jsonl"))


@dataclass
class Serving:
    pod: Pod
    process: Midwatch
    log: Path

    def until(self, kind: type[Event], **fields: Any) -> Event:
        def look() -> Event | None:
            for event in self.pod.events():
                values = {name: getattr(event, name, None) for name in fields}
                if isinstance(event, kind) and values == fields:
                    return event
            return None

        found: Event = until(look, lambda: f"{kind} {fields}: {self.log.read_text()}")
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code. What SIGKILL leaves running goes with it, as it does in a container."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        if number is signal.SIGKILL:
            Launcher.in_folder(self.pod.state / "run").reap()
        return code
