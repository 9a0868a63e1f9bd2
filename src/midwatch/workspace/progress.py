"""Git's progress lines, as values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["asking", "counting", "receiving", "resolving", "checkout", "done"]

_LINE = re.compile(
    r"^(?:remote: )?(?P<what>[A-Z][a-z]+ [a-z]+):\s+(?P<percent>\d{1,3})% "
    r"\((?P<done>\d+)/(?P<total>\d+)\)(?:, (?P<rest>[^\r\n]{0,60}))?"
)
_PHASES: dict[str, Phase] = {
    "Counting objects": "counting",
    "Compressing objects": "counting",
    "Receiving objects": "receiving",
    "Resolving deltas": "resolving",
    "Updating files": "checkout",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one repository is. `percent` is of this phase; `detail` is git's (size, speed)."""

    repository: str
    phase: Phase
    percent: int = 0
    detail: str = ""


OnProgress = Callable[[Progress], None]


def parse_progress(repository: str, line: str) -> Progress | None:
    """The progress that a line of git's stderr tells, if it is such a line."""
    match = _LINE.match(line)
    phase = _PHASES.get(match["what"]) if match else None
    if match is None or phase is None:
        return None
    detail = (match["rest"] or "").removesuffix("done.").strip(" ,")
    return Progress(repository, phase, min(100, int(match["percent"])), detail)
