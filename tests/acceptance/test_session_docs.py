"""The examples of docs/sessions.md run as they are, against the scripted API."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from midwatch.session.log import EventLog
from midwatch.testing.fakes import KEY, make_repository
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse

from ..waiting import PATIENCE

PAGE = Path(__file__).parents[2] / "docs" / "sessions.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


# Mirrors and sessions go below the home folder of the user database: not that of who runs the tests.
HOME = """
import os, pwd, types
pwd.getpwuid = lambda uid: types.SimpleNamespace(pw_dir=os.getcwd())
"""


def run(tmp_path: Path, example: str, api: ScriptedMessagesAPI) -> str:
    env = {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": api.base_url,
        "HOME": str(tmp_path),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", HOME + example],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(tmp_path: Path, number: int) -> None:
    example = EXAMPLES[number]
    edit = Answer(tool_uses=[ToolUse("Write", {"file_path": "new", "content": "1\n"})])
    for name in ("app", "lib"):
        repository = make_repository(tmp_path / f"{name}.git", {"file": "1\n"})
        example = example.replace(f"https://example.org/{name}.git", str(repository))
    from midwatch.session.events import Notice

    (tmp_path / "session").mkdir()
    log = EventLog(tmp_path / "session" / "outbox.jsonl")
    for text in ("one", "two", "three"):
        log.append(Notice(text=text))
    log.close()
    with ScriptedMessagesAPI(Rule([edit, "Hello."], tools=True)) as api:
        said = run(tmp_path, example, api)
    wanted = (
        "Completed Hello.",
        "app changed 1 0",
        "3 notice",
        "two result",
        " Completed 2 ",
    )
    assert wanted[number] in said
    assert (tmp_path / ".local" / "state").exists() == (number in (0, 1, 4))
