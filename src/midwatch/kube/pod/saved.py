"""What the sync's reports say about the workspace, for the resource and for the pod's log.

Both are for people, and both tell what a successful push does not: files that could not be read and so were not
saved, and files that were changed on both sides, of which the other version was put aside.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import quote

from midwatch.kube.statuses import Condition

CONDITION = "WorkspaceSaved"
_NAMED = 3
"""Files that a message names; the log has all, up to `_LOGGED`."""
_LOGGED = 200
_LONGEST = 400
"""Characters of a path in a message."""


class Report(Protocol):
    """What is needed of `content.sync.SyncReport`."""

    @property
    def conflicts(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def unsent(self) -> tuple[str, ...]: ...


class Saved:
    """`hear` every report; then `condition` is what there is to tell.

    A file that is being written, or a `.git` in the middle of a change, is left out of one push and comes with
    the next. So what was not saved counts once it was not saved twice, or in the last push of all.
    """

    def __init__(self) -> None:
        self._unsaved: tuple[str, ...] = ()
        self._before: frozenset[str] = frozenset()
        self._conflicts: dict[str, None] = {}
        self._said: set[str] = set()

    def hear(self, report: Report, *, last: bool = False) -> list[str]:
        """The lines for the log that are new."""
        self._unsaved = tuple(
            one for one in report.unsent if last or one in self._before
        )
        self._before = frozenset(report.unsent)
        # A socket or a pipe is nothing that could be saved: worth a line, no more.
        special = [one for one in report.notes if one not in self._before]
        fresh = [one for one in report.conflicts if one not in self._conflicts]
        self._conflicts |= dict.fromkeys(fresh)
        return self._new(
            [
                *(f"not saved: {one}" for one in (*self._unsaved, *special)),
                *(f"changed on both sides: {_how_to_get(one)}" for one in fresh),
            ]
        )

    def condition(self) -> Condition:
        parts = []
        if self._unsaved:
            parts.append(
                f"{_count(self._unsaved, 'path is', 'paths are')} not saved: {_first(self._unsaved)}"
            )
        if conflicts := [_how_to_get(one) for one in self._conflicts]:
            parts.append(
                f"{_count(conflicts, 'file was', 'files were')} changed on both sides; the session's version stays, "
                f"the other: {_first(conflicts)}"
            )
        message = ". ".join(parts)
        if self._unsaved:
            return Condition(CONDITION, "False", "SavedPartly", message)
        reason = "SavedWithConflicts" if parts else "Saved"
        return Condition(CONDITION, "True", reason, message)

    def _new(self, lines: Iterable[str]) -> list[str]:
        new = [one for one in dict.fromkeys(lines) if one not in self._said]
        new = new[: max(_LOGGED - len(self._said), 0)]
        self._said.update(new)
        return new


def _how_to_get(place: str) -> str:
    """Where the other version is: a path that nobody has to trust, in the words of the content proxy."""
    path = quote(os.fsencode(place))
    shown = path if len(path) <= _LONGEST else f"{path[:_LONGEST]}…"
    return f"GET /content/file?path={shown}"


def _count(items: Sequence[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _first(items: Sequence[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
