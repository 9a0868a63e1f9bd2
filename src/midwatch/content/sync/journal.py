"""What is about to be done to the local folders, on disk before it is done.

A process that was killed in the middle is followed by one that does the rest. What a path was `before` is in it, so that
nothing is replaced that somebody wrote meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midwatch.content.durable import replace_file
from midwatch.content.sync.stats import Signature
from midwatch.content.tree import Delta, Entry, compact, entry_from_json
from midwatch.model import Json

Before = int | Signature | None
"""What was there: the mode of a folder, the signature of a file or symlink, or nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`delta` for the folders; `staged` the names of the files made ready for it; `modes` of folders that
    have to be opened for it; `base` what the base then becomes, at `version`."""

    delta: Delta
    before: Mapping[str, Before]
    staged: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    base: Delta = Delta({}, frozenset())
    version: str = ""


def write_plan(path: Path, plan: Plan) -> None:
    """The plan is made as soon as this returns. Raises OSError."""
    data = {
        "delta": delta_to_json(plan.delta),
        "before": dict(plan.before),
        "staged": dict(plan.staged),
        "modes": dict(plan.modes),
        "base": delta_to_json(plan.base),
        "version": plan.version,
    }
    replace_file(path, compact(data))


def read_plan(path: Path) -> Plan | None:
    """The plan that was not finished, if there is one. Raises OSError, and ValueError for what is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    try:
        return Plan(
            delta_from_json(data["delta"]),
            {name: _before(was) for name, was in data["before"].items()},
            data["staged"],
            data["modes"],
            delta_from_json(data["base"]),
            data["version"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no plan") from error


def _before(data: Any) -> Before:
    if data is None or isinstance(data, int):
        return data
    size, mtime, ctime, inode, mode = data
    return size, mtime, ctime, inode, mode


def delta_to_json(delta: Delta) -> Json:
    put = {path: entry.to_json() for path, entry in delta.put.items()}
    return {"put": put, "removed": sorted(delta.removed)}


def delta_from_json(data: Any) -> Delta:
    """Raises ValueError, KeyError or TypeError."""
    put: dict[str, Entry] = {p: entry_from_json(e) for p, e in data["put"].items()}
    return Delta(put, frozenset(data["removed"]))
