"""What the sync's reports add up to, for a person who looks at the resource or at the log."""

from __future__ import annotations

from dataclasses import replace

from midwatch.content.sync.session import SyncReport
from midwatch.kube.runner_workspace import SyncCondition

BUSY, DEEP = "'a' is left as it was: it keeps changing", "'b' is left as it was: deep"
SOCKET = "'s' is no file: left out"


def report(*unsent: str, notes: tuple[str, ...] = (), aside: str = "") -> SyncReport:
    conflicts = (aside,) if aside else ()
    return SyncReport("v", 0, 0, 0, 0, conflicts, (*unsent, *notes), unsent)


def told(saved: SyncCondition) -> tuple[str, str]:
    found = saved.condition()
    return found.status, found.reason


def test_what_stays_unsaved_is_told_once() -> None:
    saved = SyncCondition()
    assert saved.add(report(BUSY, DEEP)) == []
    assert told(saved) == ("True", "Saved")
    assert saved.add(report(DEEP)) == [f"not saved: {DEEP}"]
    assert told(saved) == ("False", "SavedPartly")
    assert saved.condition().message == f"1 path is not saved: {DEEP}"
    assert saved.add(report(DEEP)) == []
    saved.add(report())
    assert told(saved) == ("True", "Saved")


def test_the_last_push_has_no_next_one() -> None:
    saved = SyncCondition()
    many = tuple(f"'{number}' is left as it was" for number in range(5))
    assert len(saved.add(report(*many), last=True)) == 5
    message = saved.condition().message
    assert message.startswith("5 paths are not saved: '0'")
    assert message.endswith("'2' is left as it was; and 2 more")


def test_a_socket_is_worth_a_line_only() -> None:
    saved = SyncCondition()
    for last in (False, True):
        lines = saved.add(report(notes=(SOCKET,)), last=last)
        assert lines == ([] if last else [f"not saved: {SOCKET}"])
        assert told(saved) == ("True", "Saved")


def test_a_conflict_says_where_the_other_version_is() -> None:
    saved = SyncCondition()
    place = ".midwatch-conflicts/0123abcd/workspace/a b\n\udcff"
    [line] = saved.add(report(aside=place))
    asked = "path=.midwatch-conflicts/0123abcd/workspace/a%20b%0A%FF"
    assert line.endswith(asked)
    assert saved.add(report()) == []  # and it stays told
    assert told(saved) == ("True", "SavedWithConflicts")
    assert asked in saved.condition().message
    saved.add(report(DEEP), last=True)
    assert told(saved) == ("False", "SavedPartly")
    assert asked in saved.condition().message


def test_what_could_not_be_changed_here_is_a_warning_for_as_long_as_it_lasts() -> None:
    saved = SyncCondition()
    denied = "'a' cannot be changed here: Permission denied"
    warned = replace(report(), unapplied=(denied,))
    assert saved.add(warned) == [denied] and saved.add(warned) == []
    assert told(saved) == ("True", "SavedWithWarnings")
    assert denied in saved.condition().message
    saved.add(report())
    assert told(saved) == ("True", "Saved")


def test_the_log_is_bounded() -> None:
    saved = SyncCondition()
    lines = saved.add(report(*map(str, range(1000))), last=True)
    assert len(lines) == 200
    assert saved.add(report(*map(str, range(1000, 2000))), last=True) == []
