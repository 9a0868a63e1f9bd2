"""What Claude's Bash can find out of its runner, which runs as the same user. As root, without root's powers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from midwatch.session.claude_code import Launcher
from midwatch.session.events import ToolResult
from midwatch.testing.messages_api import Answer, Hold, Rule, ScriptedMessagesAPI

from ..waiting import PATIENCE
from .cli import MIDWATCH
from .serve_pod import Pod
from .session_cli import asking, bash, make_desk, make_repositories

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or (os.getuid() == 0 and not shutil.which("setpriv")),
    reason="processes are shielded on Linux",
)
POWERLESS = (
    ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
)
MARK = uuid4().hex
KEY, TOKEN = f"sk-ant-api03-{MARK}", f"ghp_{MARK}"
SEARCH = (
    # Every process that this user may look into, and what of it are this test's secrets.
    "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
    f" | grep -a '=.*{MARK}' | cut -d= -f1 | sort -u | sed 's/^/found /'; echo looked"
)


def found_by_bash(output: str) -> set[str]:
    assert "looked" in output, output
    return set(re.findall(r"found (\w+)", output))


@pytest.fixture
def probe() -> Iterator[None]:
    """Another process of this user, which may be looked into: the search can find something."""
    environ = {"PATH": os.defpath, "PROBE": MARK}
    child = subprocess.Popen([*POWERLESS, "sleep", "60"], env=environ)
    yield
    child.kill()
    child.wait()


@pytest.mark.usefixtures("probe")
def test_bash_in_a_pod_finds_no_secret_of_its_runner(tmp_path: Path) -> None:
    repos = make_repositories(tmp_path)
    with ScriptedMessagesAPI(Rule([bash(SEARCH), Answer("Done.")], tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        environ = pod.environ(ANTHROPIC_API_KEY=KEY, GIT_TOKEN=TOKEN)
        subprocess.run(
            [*POWERLESS, MIDWATCH, "session", "serve"],
            cwd=pod.cwd,
            env=environ,
            check=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    [result] = [one for one in pod.events() if isinstance(one, ToolResult)]
    assert found_by_bash(result.text) == {"PROBE"}


@pytest.mark.usefixtures("probe")
def test_bash_of_a_session_on_a_laptop_finds_no_key(tmp_path: Path) -> None:
    app, _ = make_repositories(tmp_path)
    desk = make_desk(tmp_path / "desk")
    with ScriptedMessagesAPI(Rule([bash(SEARCH), Answer("Done.")], tools=True)) as api:
        ran = subprocess.run(
            [
                *POWERLESS,
                MIDWATCH,
                "session",
                "run",
                "-r",
                app,
                "--prompt",
                "Do it.",
                "--json",
            ],
            cwd=desk,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **asking(api, KEY)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    assert ran.returncode == 0, ran.stderr
    assert KEY not in ran.stdout
    assert found_by_bash(ran.stdout) == {"PROBE"}


def test_nobody_looks_into_the_runner_and_the_supervisor(tmp_path: Path) -> None:
    """Another process of the same user reads neither; root finds no key in the supervisor's memory."""
    repos = make_repositories(tmp_path)
    hold = Hold(Answer("Done."))
    with ScriptedMessagesAPI(Rule([hold], tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        environ = pod.environ(ANTHROPIC_API_KEY=KEY)
        with background(["session", "serve"], pod.cwd, environ) as runner:
            hold.arrived_sync()
            supervisor = shielded(runner, pod.state)
            if os.getuid() == 0:
                assert memory_has(runner.pid, KEY)
                assert not memory_has(supervisor, KEY)
            hold.release()
            assert runner.wait(PATIENCE) == 0


def test_a_program_that_uses_the_library_is_shielded_from_its_session(
    tmp_path: Path,
) -> None:
    hold = Hold(Answer("Done."))
    with ScriptedMessagesAPI(Rule([hold], tools=True)) as api:
        (tmp_path / "work").mkdir()
        environ = {"PATH": os.defpath, "HOME": str(tmp_path), **asking(api, KEY)}
        command = [sys.executable, "-c", LIBRARY_PROGRAM]
        with background(command, tmp_path, environ) as program:
            hold.arrived_sync()
            shielded(program, tmp_path / "session")
            hold.release()
            assert program.wait(PATIENCE) == 0


@contextmanager
def background(
    command: list[str], folder: Path, environ: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    program = [] if command[0] == sys.executable else [MIDWATCH]
    process = subprocess.Popen(
        [*POWERLESS, *program, *command],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def shielded(runner: subprocess.Popen[bytes], folder: Path) -> int:
    """Check that the runner of a session is closed to its user, and the supervisor. Return the supervisor's pid."""
    program, supervisor = Launcher.in_folder(folder / "run").processes()
    assert not readable(runner.pid) and not readable(supervisor)
    assert readable(program)  # the check sees what is open
    return supervisor


LIBRARY_PROGRAM = """
import os
from midwatch.session.agentic_session import AgenticSession
from midwatch.session.options import ApiAccess, SessionOptions

access = ApiAccess(os.environ["ANTHROPIC_API_KEY"], os.environ["ANTHROPIC_BASE_URL"])
options = SessionOptions(sandbox="off")
with AgenticSession(client=access, workspace="work", folder="session", options=options) as session:
    assert [event for event in session.execute("Do it.")]
"""


def readable(pid: int) -> bool:
    """Return whether a process of the same user, without root's powers, can read the environment of another."""
    asked = [*POWERLESS, "cat", f"/proc/{pid}/environ"]
    return subprocess.run(asked, capture_output=True).returncode == 0


def memory_has(pid: int, text: str) -> bool:
    """Return whether a text is in the writable memory of a process. Only root may look."""
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            if mode.startswith("rw"):
                begin, end = (int(bound, 16) for bound in span.split("-"))
                memory.seek(begin)
                if text.encode() in (memory.read(end - begin) or b""):
                    return True
    return False


def test_what_may_not_be_read_is_closed_when_it_runs() -> None:
    """As `tini` in the image: the first process of a pod has all of its variables, and is no program of ours."""
    user = 10001 if os.getuid() == 0 else os.getuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for mode, closed in ((0o555, False), (0o111, True)):
            program = Path(folder, f"{mode:o}")
            shutil.copy("/bin/sleep", program)
            program.chmod(mode)
            child = subprocess.Popen([program, "60"], user=user, env={"PROBE": MARK})
            try:
                asked = ["cat", f"/proc/{child.pid}/environ"]
                read = subprocess.run(asked, user=user, capture_output=True)
                assert (MARK.encode() not in read.stdout) is closed
            finally:
                child.kill()
                child.wait()
    dockerfile = Path(__file__).parents[2] / "Dockerfile"
    assert "chmod 0711 /usr/bin/tini" in dockerfile.read_text()
