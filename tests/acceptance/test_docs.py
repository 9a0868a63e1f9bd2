"""The documents: every Python and shell snippet of README.md and docs/ runs as it stands, and settings are real.

Each runs in a process of its own, in an empty folder with a home of its own, within a time limit. Where a snippet
names a public host, a repository on this machine takes its place (`HOSTS`), and the scripted API answers for Claude.
Shell snippets of README.md run the installed `midwatch`; all else is forked from one process (`tests.scripts`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from midwatch import TicketDB
from midwatch.config import load
from midwatch.session.events import Notice
from midwatch.session.log import EventLog
from midwatch.subjects.base import build_subjects
from midwatch.testing.fakes import KEY, make_repository, run_git
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse

from ..scripts import Script, midwatch_in
from ..snippets import RUN, SHOWN, SNIPPETS, Snippet, blocks
from ..waiting import PATIENCE, wait_until

HOSTS = ("https://example.org/", "https://github.com/example/")
"""Addresses of repositories in snippets."""
NOT_RUN = {
    "README.md": 4,
    "docs/kubernetes.md": 8,
    "docs/mcp.md": 2,
}
"""How many snippets no test runs. A new one has to be counted here."""
SETTINGS = """\
database: sqlite:///midwatch.db
subjects:
  - name: orders-db
    kind: command
    command: ["true"]
    repositories: [{url: REPOSITORY, branch: main}]
"""

# Mirrors and sessions go below the home folder of the user database: not that of who runs the tests.
HOME = """
import os, pwd
of = pwd.getpwuid
pwd.getpwuid = lambda uid: pwd.struct_passwd((*of(uid)[:5], os.environ["HOME"], of(uid)[6]))
"""


@dataclass(frozen=True)
class Place:
    """Where a snippet runs: its own folder, beside it the folder `lib`, and `remotes` for the hosts of `HOSTS`."""

    root: Path
    output: str = ""

    @property
    def folder(self) -> Path:
        return self.root / "here"

    def has_ticket(self) -> bool:
        database = self.folder / "midwatch.db"
        if not database.exists():
            return False
        try:
            with contextlib.closing(sqlite3.connect(database)) as connection:
                return bool(connection.execute("SELECT 1 FROM tickets").fetchone())
        except sqlite3.OperationalError:  # the tables are being made
            return False


@dataclass(frozen=True)
class Expected:
    """What is expected of a snippet, beyond that it ends with exit code 0.

    Attributes:
        said: Texts in its output.
        settings: Whether settings and a ticket, number 1, are there before it.
        session: Whether a session is there before it, whose id replaces `ID`.
        typed: What a person types on the terminal that is its standard input; without it there is none.
        stop_when: When to stop, by SIGTERM, a snippet whose last command runs until then.
        variables: More environment variables.
        check: Further assertions.
    """

    said: tuple[str, ...] = ()
    settings: bool = False
    session: bool = False
    typed: str = ""
    stop_when: Callable[[Place], bool] | None = None
    variables: tuple[tuple[str, str], ...] = ()
    check: Callable[[Place], None] = lambda place: None


def pushed_by_workspaces(place: Place) -> None:
    assert "+What an agent would do." in place.output
    app = place.root / "remotes" / "app.git"
    pushed = run_git(app, "show", "midwatch/lock-hunt:notes.txt")
    assert pushed == "What an agent would do."


def no_state(place: Place) -> None:
    assert not (place.root / "home" / ".local" / "state").exists()


def some_state(place: Place) -> None:
    assert (place.root / "home" / ".local" / "state").exists()


def one_line_was_sent(place: Place) -> None:
    assert (place.folder / "inbox.jsonl").read_bytes().count(b"\n") == 1


QUICK = (("MIDWATCH_MONITOR__INTERVAL", "200ms"),)

# The key is a part of the snippet that no other one has.
EXPECTED = {
    "midwatch check    ": Expected(
        ("orders-db", "shop", "this-host"),
        stop_when=Place.has_ticket,
        variables=QUICK,
    ),
    "midwatch tickets show 1": Expected(("3 sessions wait",), settings=True),
    "midwatch session fix 1": Expected(
        ("app: pushed", "lib: clean", "app: clean", "Hello."),
        settings=True,
        typed="y\n",
    ),
    '--repo ../lib --prompt "Make': Expected(("app: changed", "Completed")),
    "midwatch session diff ID": Expected(("+++ b/new", "fix/tests"), session=True),
    "Say hello.": Expected(("Completed Hello.",), check=some_state),
    "def work(prompt": Expected(
        ("Message: Hello.", "Tool: Write", "app changed 1 0"), check=some_state
    ),
    "case Message():": Expected(
        ("uses Write", "Hello.", "app changed 1 0"), check=some_state
    ),
    'read_events(Path("session/outbox.jsonl"), after=2)': Expected(
        ("3 notice",), check=no_state
    ),
    "FileTranscripts(Path": Expected(("two result",), check=no_state),
    "manager.prune(": Expected((" Completed 2 ",), check=some_state),
    "inbox.jsonl": Expected(check=one_line_was_sent),
    "push_workspace(workspace, git)": Expected(
        (
            "app changed +1 -0 1 0",
            "lib clean",
            "app pushed midwatch/lock-hunt",
            "lib nothing fix/lock",
        ),
        check=pushed_by_workspaces,
    ),
    "-m midwatch.testing.messages_api": Expected(settings=True),
    "rate_limited(retry_after=1)": Expected(("It is the lock. 2",)),
    "midwatch eval list": Expected(("lock-queue", "scenarios scored")),
    "midwatch eval add": Expected(("lost-import", "scenarios scored"), settings=True),
    "midwatch silences list": Expected(
        ("1 open ticket silent now", "tables are rebuilt", "3 sessions wait", "ended"),
        settings=True,
    ),
    "midwatch silences add 'kind": Expected(
        ("FREQ=WEEKLY", "Europe/Berlin"), settings=True
    ),
    "midwatch tokens create grafana": Expected(
        ("mwt_", "ann  ", "token 1: revoked"), settings=True
    ),
    "store.add_silence(": Expected(("1 silence 1 ['upgrade']",), settings=True),
    "TicketDB.open(": Expected(
        ("1 diagnosed orders-db the last", "resolved the disk was replaced")
    ),
}


def expected_of(snippet: Snippet) -> Expected:
    found = [key for key in EXPECTED if key in snippet.text]
    longest = max(found, key=len, default="")
    return EXPECTED.get(longest, Expected())


# ------------------------------------------------------------------ the blocks


def test_every_block_names_its_language() -> None:
    """And a program is one that runs here: another name for it would hide it."""
    unknown = [str(s) for s in SNIPPETS if s.language not in (*RUN, *SHOWN)]
    assert not unknown, f"use one of {RUN}, or of {SHOWN} for what is no program"


def test_no_program_hides_in_an_indented_block() -> None:
    for page in {snippet.page for snippet in SNIPPETS}:
        text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
        outside = re.sub(r"^(```+).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
        hidden = re.findall(
            r"^(?: {4}|\t)(?:\$ |midwatch |pip |make |import |from \w+ import ).*",
            outside,
            re.MULTILINE,
        )
        assert not hidden, page


def test_what_is_not_run_is_counted_and_has_a_reason() -> None:
    marked = [snippet for snippet in SNIPPETS if snippet.not_run is not None]
    assert all(s.not_run and s.language in RUN for s in marked)
    count = {page: [s.page for s in marked].count(page) for page in NOT_RUN}
    assert count == NOT_RUN and len(marked) == sum(NOT_RUN.values())


def test_every_expectation_is_that_of_one_snippet() -> None:
    for key in EXPECTED:
        [_] = [s for s in SNIPPETS if s.runs and expected_of(s) is EXPECTED[key]]


# ------------------------------------------------------------------ running them


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with what the snippets refer to: repositories, and the files of a session."""
    place = Place(tmp_path)
    for name in ("app", "app.git", "lib", "lib.git"):
        make_repository(tmp_path / "remotes" / name, {"file": "1\n"})
    make_repository(tmp_path / "lib", {"file": "1\n"})
    for folder in ("bin", "here/session", "home", "site"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(HOME)
    log = EventLog(place.folder / "session" / "outbox.jsonl")
    for text in ("one", "two", "three"):
        log.append(Notice(text=text))
    log.close()
    return place


@pytest.fixture
def api() -> Iterator[ScriptedMessagesAPI]:
    edit = Answer(tool_uses=[ToolUse("Write", {"file_path": "new", "content": "1\n"})])
    session = Rule([edit, "Hello."], tools=True, structured=False)
    with ScriptedMessagesAPI(session) as running:
        yield running


def environment(
    place: Place, api: ScriptedMessagesAPI, *, installed: bool
) -> dict[str, str]:
    """Return the variables of a snippet, with the installed `midwatch` in its PATH or a forked one."""
    own = Path(sys.executable).parent
    if not installed:
        own = place.root / "bin"
        midwatch_in(own)
    return {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": api.base_url,
        "HOME": str(place.root / "home"),
        "LANG": "C.UTF-8",
        "PATH": f"{own}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(place.root / "site"),
    }


def run(
    place: Place, arguments: list[str], env: dict[str, str], expected: Expected
) -> Place:
    """Run a program to its end, `python -c` or another one. Nothing that it started runs afterwards."""
    output, folder = place.root / "output", place.folder
    env = {**env, **dict(expected.variables)}
    with output.open("w") as file, _terminal(expected.typed) as terminal:
        process: Script | subprocess.Popen[bytes]
        if arguments[:2] == ["python", "-c"]:
            process = Script(arguments[2], cwd=folder, env=env, stdout=file)
        else:
            process = subprocess.Popen(
                arguments,
                cwd=folder,
                env=env,
                stdin=terminal,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if expected.stop_when is not None:
                when = expected.stop_when
                wait_until(lambda: when(place) or process.poll() is not None)
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = output.read_text(encoding="utf-8", errors="replace")
    assert process.returncode == 0, said
    return Place(place.root, said)


@contextlib.contextmanager
def _terminal(typed: str) -> Iterator[int]:
    """Yield a standard input: a terminal on which something was typed, or none."""
    if not typed:
        yield subprocess.DEVNULL
        return
    screen, terminal = pty.openpty()
    try:
        os.write(screen, typed.encode())
        yield terminal
    finally:
        os.close(terminal)
        os.close(screen)


def add_ticket(place: Place) -> None:
    async def add() -> None:
        database = f"sqlite:///{place.folder}/midwatch.db"
        async with TicketDB(database) as tickets:
            await tickets.open_ticket("orders-db", "locks", "shop", "3 sessions wait")

    remote = f"file://{place.root}/remotes/app"
    settings = SETTINGS.replace("REPOSITORY", remote)
    (place.folder / "midwatch.yaml").write_text(settings)
    asyncio.run(add())


def add_session(place: Place, env: dict[str, str]) -> str:
    """Run a session and return its id."""
    repo = f"file://{place.root}/remotes/app"
    call = ["midwatch", "session", "run", "--repo", repo, "--prompt", "Work."]
    run(place, call, env, Expected())
    listed = run(place, ["midwatch", "session", "list", "--json"], env, Expected())
    return str(yaml.safe_load(listed.output)[0]["id"])


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.runs], ids=str)
def test_a_snippet_runs(
    place: Place, api: ScriptedMessagesAPI, snippet: Snippet
) -> None:
    expected = expected_of(snippet)
    env = environment(place, api, installed=snippet.page == "README.md")
    text = snippet.text
    for host in HOSTS:
        text = text.replace(host, f"file://{place.root}/remotes/")
    if expected.settings:
        add_ticket(place)
    if expected.session:
        text = re.sub(r"\bID\b", add_session(place, env), text)
    program = ["python"] if snippet.language == "python" else ["bash", "-u"]
    done = run(place, [*program, "-c", text], env, expected)
    for said in expected.said:
        assert said in done.output, done.output
    expected.check(done)


def test_a_broken_snippet_is_found(place: Place, api: ScriptedMessagesAPI) -> None:
    env = environment(place, api, installed=False)
    for program in (
        ["bash", "-c", "exit 3"],
        ["bash", "-c", "midwatch nonsense"],
        ["python", "-c", "import nonsense"],
    ):
        with pytest.raises(AssertionError):
            run(place, program, env, Expected())


# ------------------------------------------------------------------ settings

ENVIRON = {
    "ORDERS_DSN": "postgresql://midwatch@db.example/orders",
    "HEALTH_TOKEN": "a-token-for-a-health-check",
    "GRAFANA_TOKEN": "a-token-of-a-service-account",
    "PAGERDUTY_SECRET": "a-secret-of-a-webhook",
    "GITHUB_WEBHOOK_SECRET": "another-secret-of-a-webhook",
    "GITLAB_WEBHOOK_TOKEN": "a-token-of-a-webhook",
}


def shown() -> list[tuple[str, str]]:
    """Every settings file in the documents: fenced YAML, and the README's here-document."""
    found = [
        (f"{page} {number}", text)
        for page in (
            "subjects.md",
            "alerts.md",
            "changes.md",
            "kubernetes-workloads.md",
        )
        for number, text in enumerate(blocks(f"docs/{page}", "yaml"))
        if "subjects:" in text
    ]
    [readme] = [
        document
        for text in blocks("README.md", "sh")
        for document in re.findall(r"<<'EOF'\n(.*?)\nEOF", text, re.DOTALL)
    ]
    return [*found, ("README", readme)]


@pytest.mark.parametrize(("name", "text"), shown(), ids=lambda part: part[:20])
async def test_settings_in_the_documents_can_be_used(
    name: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "midwatch.yaml"
    file.write_text(text)
    settings = load(ENVIRON, file)
    subjects = build_subjects(settings.subjects)
    assert len(subjects) == len(yaml.safe_load(text)["subjects"]) > 0, name
    for subject in subjects:
        await subject.close()
