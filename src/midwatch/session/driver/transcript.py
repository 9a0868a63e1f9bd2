"""Where the program keeps the transcript of a conversation."""

from __future__ import annotations

from pathlib import Path

from claude_agent_sdk import project_key_for_directory


def transcript_file(config: Path, cwd: Path, conversation: str) -> Path:
    return (
        config / "projects" / project_key_for_directory(cwd) / f"{conversation}.jsonl"
    )
