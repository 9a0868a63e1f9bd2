"""The kind `logs`: files that are rotated, truncated, unreadable or no logs, and what their lines say."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from midwatch.model import Json, Observation
from midwatch.subjects.logs import LogsSubject
from midwatch.testing.subject_conformance import check_kind, check_subject

from ..waiting import PATIENCE


def subject(*files: object, **settings: object) -> LogsSubject:
    """A subject with one source, `api`."""
    source = settings.pop("source", {})
    assert isinstance(source, dict)
    given: dict[str, Any] = {
        "name": "shop-logs",
        "timeout": PATIENCE,
        "sources": [{"name": "api", "files": [*map(str, files)], **source}],
        **settings,
    }
    return LogsSubject(LogsSubject.settings_model.model_validate(given))


class Watch:
    """Observes a subject again and again, and keeps its state as the monitor does."""

    def __init__(self, *files: object, **settings: object) -> None:
        self.subject = subject(*files, **settings)
        self.state: Json = {}

    async def __call__(self) -> Observation:
        found = await self.subject.observe(self.state)
        self.state = found.state
        return found

    async def errors(self) -> int:
        """Observe, and return how many errors were counted so far."""
        await self()
        shapes = self.state["sources"]["api"]["shapes"]
        return sum(int(one["series"][-1][1]) for one in shapes)


def line(number: int) -> str:
    return f"2026-05-03 12:00:01 ERROR order {number} cannot be stored\n"


def lines(count: int, start: int = 0) -> str:
    return "".join(map(line, range(start, start + count)))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


async def test_a_storm_of_one_shape_is_one_violation(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text(lines(500))
    check_kind(LogsSubject)
    watch = Watch(log)
    first = await watch()
    assert not first.signals and "error_storm" in first.covered
    append(log, "2026-05-03 12:00:01 INFO started\n" + lines(100))
    found = await watch()
    [storm] = [one for one in found.signals if one.invariant == "error_storm"]
    assert storm.component == "api: ERROR: order # cannot be stored"
    assert storm.holds is False and storm.facts["count"] == 100
    assert storm.facts["file"] == str(log)
    assert "100 errors of one shape within 5m" in storm.message
