"""The commands of docs/api.md, as a shell runs them against a server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ..snippets import SNIPPETS
from ..waiting import PATIENCE
from .api_seed import SETTINGS, seed
from .cli import environ, said
from .server_process import server_process

COMMANDS = [
    line.removeprefix("$ ")
    for one in SNIPPETS
    if one.page == "docs/api.md" and one.language == "console"
    for line in one.text.splitlines()
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_succeeds(tmp_path: Path) -> None:
    seed(tmp_path)
    token = said(tmp_path, *_making(COMMANDS[0])).strip()
    with server_process(tmp_path, SETTINGS) as server:
        for command in COMMANDS[1:]:
            here = command.replace("http://127.0.0.1:8470", server.url)
            done = subprocess.run(
                ["sh", "-c", here],
                cwd=tmp_path,
                env=environ(tmp_path, TOKEN=token),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert isinstance(json.loads(done.stdout), dict), command


def _making(command: str) -> list[str]:
    """The arguments of the command that makes the token."""
    found = re.fullmatch(r"TOKEN=\$\(midwatch (.*)\)", command)
    assert found is not None
    return found[1].split()
