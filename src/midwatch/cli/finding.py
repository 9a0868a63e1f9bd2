"""The result of one check of `midwatch check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from midwatch.cli.output import GREEN, RED, YELLOW
from midwatch.errors import MidwatchError, SettingsError
from midwatch.text import one_line

_MAX_TEXT = 1000  # characters of a line
SETTINGS, SUBJECTS = "settings", "subject settings"
_WRITTEN = (SETTINGS, SUBJECTS)
"""Results about what was written, not about what is there."""


class Grade(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


MARKS = {
    Grade.OK: ("✔", GREEN),
    Grade.WARNING: ("!", YELLOW),
    Grade.FAILED: ("✘", RED),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. The names of the fields are those of the JSON.

    `not_seen` has a line for each reason why an observation could not see invariants, with its remedy at the end.
    """

    what: str
    grade: Grade
    says: str
    not_seen: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return what it says for people, each line within the limit."""
        unseen = (f"  not seen: {one_line(one, _MAX_TEXT)}" for one in self.not_seen)
        return [one_line(self.says, _MAX_TEXT), *unseen]

    @property
    def text(self) -> str:
        """All that it says, as one text."""
        return "; ".join([self.says, *(f"not seen: {one}" for one in self.not_seen)])

    def exit_code(self) -> int:
        """Return the exit code of a check with this result alone: 2 if the settings are wrong."""
        if self.grade is not Grade.FAILED:
            return 0
        return SettingsError.command_exit_code if self.what in _WRITTEN else 1


def ok(what: str, says: str) -> Finding:
    return Finding(what, Grade.OK, says)


def warning(what: str, says: str) -> Finding:
    return Finding(what, Grade.WARNING, says)


def failed(what: str, error: MidwatchError) -> Finding:
    return Finding(what, Grade.FAILED, error.one_line())
