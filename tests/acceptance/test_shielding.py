"""What Claude's Bash can find out of its runner, which runs as the same user. As root, without root's powers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from midwatch.session.events import ToolResult
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI

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
