"""`midwatch demo` as a stranger runs it: it tells the whole story, and leaves nothing behind.

The demos mostly wait, so they run side by side; each has a temporary folder of its own, which
every process and every file of it has in its name.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from midwatch.testing.fakes import answer
from midwatch.testing.messages_api import Answer, Request, ScriptedMessagesAPI

from ..processes import PROGRAM
from ..waiting import PATIENCE
from .support import (
    asking,
    blaming,
    environment,
    evidence_in,
    run,
    ticket_ids,
    until,
)

LIMIT = 4 * PATIENCE


@dataclass(frozen=True)
class Demo:
    """One run; `place` is its temporary folder."""

    process: subprocess.Popen[str]
    place: Path

    def ended(self) -> tuple[int, str]:
        """The exit code, and all that it said."""
        said, _ = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, said

    def left_behind(self) -> list[str]:
        """Files, and processes that have the folder in their command line."""
        left = [str(file) for file in self.place.iterdir()]
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = command.read_bytes()
                if str(self.place).encode() in words:
                    left.append(words.replace(b"\0", b" ").decode())
        return left


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder with a short path that the server's user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="mw-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def demo(*options: str, **variables: str) -> Iterator[Demo]:
    with place() as folder:
        process = subprocess.Popen(
            [PROGRAM, "demo", *options],
            env=environment(folder, TMPDIR=str(folder), COLUMNS="140", **variables),
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield Demo(process, folder)
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=LIMIT)


def wrong(request: Request) -> Answer:
    """It quotes what is there, and blames somebody else all the same."""
    number, line = next(
        (number, line)
        for number, lines in evidence_in(request.prompt).items()
        for line in lines
        if "orders-api" in line
    )
    told = answer(
        "orders-api is to blame",
        quote=line.strip(),
        evidence_id=number,
        explains=ticket_ids(request.prompt),
    )
    return Answer(structured=told)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def demos(kept: Path) -> Iterator[Mapping[str, Demo]]:
    """All runs at once, by name."""
    right = blaming(r"pid \d+", "checkout", cause="It began with {line}")
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        api, liar = (start(ScriptedMessagesAPI(one)) for one in (right, wrong))
        yield {
            "default": start(demo("--keep", str(kept))),
            "runaway-query": start(demo("--fault", "runaway-query")),
            "asking": start(demo(**asking(api.base_url))),
            "lied to": start(demo(**asking(liar.base_url))),
        }


@pytest.mark.parametrize("name", ["default", "runaway-query"])
def test_without_a_key_it_tells_the_story_with_first_aid(
    demos: Mapping[str, Demo], name: str
) -> None:
    code, said = demos[name].ended()
    assert code == 0, said
    _tells(said, "healthy", "broken", "ticket", "first aid", "repaired", "resolved")
    assert "no API key" in said
    assert demos[name].left_behind() == []


def _tells(said: str, *turns: str) -> None:
    """The story's turns, in their order, and the times at its end."""
    told = [line.split() for line in said.splitlines()]
    firsts = [" ".join(words[:3]) for words in told]
    places = [
        next(place for place, line in enumerate(firsts) if f"{turn} " in f"{line} ")
        for turn in turns
    ]
    assert places == sorted(places), said
    *_, times = (line for line in said.splitlines() if line.strip().startswith("times"))
    assert all(what in times for what in ("ticket", "first aid", "resolved"))


def test_with_a_key_it_shows_the_checked_diagnosis(demos: Mapping[str, Demo]) -> None:
    code, said = demos["asking"].ended()
    assert code == 0, said
    _tells(said, "healthy", "broken", "first aid", "Claude", "repaired", "resolved")
    assert "1 of 1 claims found in the evidence" in said
    assert "It began with" in said and "checkout" in said
    assert demos["asking"].left_behind() == []


def test_an_answer_that_blames_somebody_else_is_a_failure(
    demos: Mapping[str, Demo],
) -> None:
    code, said = demos["lied to"].ended()
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("midwatch: the diagnosis does not name ")
    assert "checkout" in last and "Traceback" not in said
    assert demos["lied to"].left_behind() == []


def test_what_is_kept_can_be_used(demos: Mapping[str, Demo], kept: Path) -> None:
    demos["default"].process.wait(LIMIT)
    config = kept / "midwatch.yaml"
    listed = run(config, "tickets", "list", "--all", "--json")
    assert listed.returncode == 0
    told = json.loads(listed.stdout)
    assert {one["invariant"] for one in told} >= {"blocked_sessions"}
    assert {one["status"] for one in told} == {"resolved"}
    shown = run(config, "tickets", "show", str(told[0]["id"]))
    assert shown.returncode == 0 and "First aid" in shown.stdout


def test_an_unknown_fault_is_one_line(tmp_path: Path) -> None:
    ended = run(tmp_path / "none.yaml", "demo", "--fault", "gremlins")
    [line] = ended.stderr.splitlines()
    assert ended.returncode == 2 and ended.stdout == ""
    assert "gremlins" in line and "lock-queue" in line


@pytest.mark.parametrize("moment", ["start", "broken"])
async def test_interrupted_it_leaves_nothing(tmp_path: Path, moment: str) -> None:
    """At once, while the server is being made, or in the middle of the story."""
    with demo("--keep", str(tmp_path)) as running:
        assert running.process.stdout
        if moment == "broken":
            while "broken" not in running.process.stdout.readline():
                assert running.process.poll() is None
        else:
            await until("a server", lambda: list(running.place.iterdir()))
        running.process.send_signal(signal.SIGINT)
        code, said = running.ended()
        assert code not in (0, -signal.SIGINT) and "Traceback" not in said, said
        # The keeper of a server that was still being made looks after it a moment longer.
        await until("the end of all", lambda: running.left_behind() == [], PATIENCE)
