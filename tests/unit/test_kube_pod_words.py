"""What a pod says at its end, and what it lets Claude do without asking."""

from __future__ import annotations

import pytest

from midwatch.kube.status_writer import End, in_another_pod
from midwatch.session.events import Phase
from midwatch.session.options import OptionOverrides, session_options
from midwatch.session.runner import permitted
from midwatch.settings import SessionSettings


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (
            End(Phase.COMPLETED, "Completed", "done after 2 turns"),
            "Completed: done after 2 turns",
        ),
        (
            End(Phase.FAILED, "PushFailed", "the session completed, but"),
            "Failed: PushFailed: the session completed, but",
        ),
        (End(Phase.STOPPED, "Stopped"), "Stopped"),
        (
            in_another_pod(End(Phase.STOPPED, "Stopped")),
            "not finished: PodEnding: its pod was terminated; another attempt may continue it",
        ),
    ],
)
def test_the_last_line_says_everything_once(end: End, line: str) -> None:
    assert str(end) == line


@pytest.mark.parametrize(
    ("settings", "tools"),
    [
        (SessionSettings(), ("Bash",)),
        (SessionSettings(model="claude-sonnet-5-5"), ("Bash",)),
        (SessionSettings(allowed_tools=["Read"]), ("Read",)),
        (SessionSettings(allowed_tools=[]), ()),
        (SessionSettings(permission_mode="plan"), ()),
    ],
)
def test_bash_is_allowed_in_a_pod_unless_somebody_said_what_is(
    settings: SessionSettings, tools: tuple[str, ...]
) -> None:
    options = session_options(settings, OptionOverrides())
    assert permitted(options, settings, contained=True).allowed_tools == tools
    # Outside of a container the program's sandbox allows Bash, or each command asks.
    assert permitted(options, settings, contained=False) == options
