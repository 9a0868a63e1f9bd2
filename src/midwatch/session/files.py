"""The two ways a session writes: small records are replaced, growing ones are appended to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from midwatch.session.outbox import disk_error


def replace_json(path: Path, data: Any, *, durable: bool = False) -> None:
    """Replace a file by this JSON, whole or not at all. `durable` also survives a power cut."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, indent=1)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error


def read_json(path: Path) -> Any:
    """The JSON in a file; None where there is no file or no JSON in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def append_line(path: Path, line: bytes) -> None:
    """Append one line with one write."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        raise disk_error(error, path) from error
