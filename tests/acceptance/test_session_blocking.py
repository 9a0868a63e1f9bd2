"""A session in code without an event loop, where Ctrl-C comes at any time."""

from __future__ import annotations

import signal
from pathlib import Path

from midwatch.session.events import Phase, PhaseChanged, Started
from midwatch.session.log import read_events
from midwatch.testing.fakes import KEY
from midwatch.testing.messages_api import Hang, Rule, ScriptedMessagesAPI

from ..scripts import Script
from ..waiting import PATIENCE, alive, wait_until

SCRIPT = """
import sys
from midwatch import run_agentic_session

try:
    run_agentic_session(
        "Work.", sys.argv[1], sys.argv[3], folder=sys.argv[2], base_url=sys.argv[4],
        on_event=lambda event: print(event.type, flush=True),
    )
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_stops_the_session_and_is_what_the_caller_sees(tmp_path: Path) -> None:
    work, folder = tmp_path / "work", tmp_path / "session"
    work.mkdir()
    with ScriptedMessagesAPI(Rule(Hang(), tools=True)) as api:
        with (tmp_path / "said").open("w") as said:
            arguments = ["-c", str(work), str(folder), KEY, api.base_url]
            process = Script(SCRIPT, arguments, stdout=said)
        wait_until(lambda: "started" in (tmp_path / "said").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, (tmp_path / "said").read_text()
    assert (tmp_path / "said").read_text().endswith("\ninterrupted\n")
    events = list(read_events(folder / "outbox.jsonl"))
    assert any(isinstance(event, Started) for event in events)
    last = events[-1]
    assert isinstance(last, PhaseChanged) and last.phase is Phase.STOPPED
    pids = (folder / "run" / "processes").read_text().splitlines()
    assert not any(alive(int(line.split()[0])) for line in pids)
