"""`python -m bench._first_event {session|query} FOLDER BASE_URL`: print the seconds until the program's first output.

`session` is `execute`, `query` is the function of the Agent SDK with options that match those of Midwatch
where they cost time. Each runs in a process that the benchmark starts in a process session of its own. In
both the program gets another one: Midwatch's supervisor does that, and `setsid` for the SDK.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from midwatch.session.claude_code import find_program
from midwatch.session.events import Started
from midwatch.session.options import SessionOptions
from midwatch.testing.fakes import KEY, session_in


async def session(folder: Path, base_url: str) -> float:
    """Events of Midwatch itself do not count."""
    ours = session_in(folder, base_url)
    began, seconds = time.perf_counter(), 0.0
    async for event in ours.execute("Hello."):
        if isinstance(event, Started):
            seconds = time.perf_counter() - began
    return seconds


async def query(folder: Path, base_url: str) -> float:
    import claude_agent_sdk

    script = folder / "claude"
    script.write_text(
        f'#!/bin/sh\nexec setsid -w "{find_program(SessionOptions())}" "$@"\n'
    )
    script.chmod(0o700)
    config = folder / "config"
    config.mkdir()
    env = {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": base_url,
        "CLAUDE_CONFIG_DIR": str(config),
        "HOME": str(folder),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    options = claude_agent_sdk.ClaudeAgentOptions(
        cli_path=script,
        cwd=folder,
        env=env,
        system_prompt={"type": "preset", "preset": "claude_code"},
        permission_mode="acceptEdits",
        setting_sources=[],
        strict_mcp_config=True,
        model="claude-sonnet-5-5",
    )
    began, seconds = time.perf_counter(), 0.0
    async for _ in claude_agent_sdk.query(prompt="Hello.", options=options):
        seconds = seconds or time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    measured = {"session": session, "query": query}[sys.argv[1]]
    print(asyncio.run(measured(Path(sys.argv[2]), sys.argv[3])))
