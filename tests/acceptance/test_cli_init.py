"""`midwatch init`, `midwatch subjects` and the completion of a shell, as a person uses them in a new folder."""

from __future__ import annotations

import getpass
import shutil
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import yaml

from midwatch.cli.found_systems import find_systems
from midwatch.errors import SettingsError
from midwatch.settings_edit import with_subject
from midwatch.testing.postgres import PrivatePostgres

from .. import processes
from ..mariadb_server import PrivateMariadb, needs_mariadb
from ..waiting import PATIENCE, wait_until
from .cli import MIDWATCH, environ, midwatch, refused, said_json

FILE = "midwatch.yaml"
REDIS = shutil.which("redis-server")


def answer(folder: Path, *lines: str, **env: str) -> subprocess.CompletedProcess[str]:
    return processes.run(
        ("init",),
        cwd=folder,
        env=environ(folder, **env),
        input="".join(f"{line}\n" for line in lines),
    )


def test_what_runs_here_is_found_and_the_file_passes_the_check(tmp_path: Path) -> None:
    with PrivatePostgres() as server:
        folder = str(server.socket_folder)
        done = answer(tmp_path, "1", "", "7.5", "none", PGHOST=folder)
        assert done.returncode == 0, done.stderr
        text = (tmp_path / FILE).read_text()
    # The server wants a password, which `init` does not have: it is named, with the reason, and not watched.
    (line,) = (one for one in text.splitlines() if f"host={folder}" in one)
    assert line.startswith("  # - {name: postgres, kind: postgres")
    assert f"{folder}/.s.PGSQL." in text and "cannot be observed: " in text
    settings = yaml.safe_load(text)
    assert settings["database"] == "sqlite:///midwatch.db"
    assert settings["agent"] == {"daily_budget_usd": 7.5}
    assert "server" not in settings
    assert {"name": "this-host", "kind": "host"} in settings["subjects"]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert midwatch(tmp_path, "check").returncode == 0


def test_a_server_is_found_by_its_process_and_its_address(tmp_path: Path) -> None:
    program = tmp_path / "prometheus"
    program.symlink_to(sys.executable)
    waiting = ["-S", "-c", "import sys; sys.stdin.read()"]
    address = "--web.listen-address=0.0.0.0:9"
    command = [str(program), *waiting, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE):
        found = find_systems({}, {"prometheus": None})
    url = "http://127.0.0.1:9"
    assert url in [one.entry["url"] for one in found]
    names = [one.entry["name"] for one in found]
    assert len(set(names)) == len(names)


def test_a_socket_is_found_whose_process_is_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "mysql.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        found = find_systems({"MYSQL_UNIX_PORT": str(path)}, {"mysql": None})
    (one,) = (one for one in found if one.entry.get("socket") == str(path))
    assert one.where == f"the socket {path}"
    assert one.entry["user"] == getpass.getuser()


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@needs_mariadb
@pytest.mark.skipif(
    REDIS is None, reason="the program `redis-server` is not on the PATH"
)
def test_mariadb_and_redis_are_found_as_they_run(tmp_path: Path) -> None:
    """The account of the system's user logs in by the socket; one server without a port, and one with a password."""
    locked, unlocked = tmp_path / "locked.sock", tmp_path / "open.sock"
    with PrivateMariadb() as server, ExitStack() as stack:
        user = getpass.getuser()
        server.run(
            f"CREATE USER IF NOT EXISTS '{user}'@localhost IDENTIFIED VIA unix_socket;"
            f"GRANT PROCESS, SLAVE MONITOR, SELECT ON *.* TO '{user}'@localhost;"
        )
        for path, *more in ((locked, "--requirepass", "x"), (unlocked,)):
            command = [str(REDIS), "--port", "0", "--save", "", "--unixsocket"]
            redis = subprocess.Popen(
                [*command, str(path), *more], cwd=tmp_path, stdout=subprocess.DEVNULL
            )
            stack.callback(redis.wait, PATIENCE)
            stack.callback(redis.kill)
            wait_until(partial(answers, path))
        done = processes.run(("init", "--yes"), cwd=tmp_path, env=environ(tmp_path))
        assert done.returncode == 0, done.stderr
        text = (tmp_path / FILE).read_text()
        written = yaml.safe_load(text)
        own = (str(server.socket), f"unix://{unlocked}")
        mine = [
            one
            for one in written["subjects"]
            if one.get("socket", one.get("url")) in own
        ]
        assert {one["kind"] for one in mine} == {"redis", "mysql"}, text
        # Of what else runs here, other tests may end what they started.
        (tmp_path / FILE).write_text(yaml.safe_dump({**written, "subjects": mine}))
        assert midwatch(tmp_path, "check").returncode == 0
    (line,) = (one for one in text.splitlines() if f"unix://{locked}" in one)
    assert line.startswith("  # - {name: redis")
    assert text.count(str(server.socket)) == text.count(str(unlocked)) == 1
    assert str(server.port) not in text


@pytest.mark.parametrize(
    "lines, says",
    [
        (("0",), "'0' is not a choice"),
        (("1,99999",), "'1,99999' is not a choice"),
        (("all", "mysql://x"), "mysql"),
        (("all", "", "-1"), "agent.daily_budget_usd: "),
        (("all", "", "", "8470"), "server.listen: "),
        (("all", ""), "the input ended before the last question"),
    ],
)
def test_a_wrong_answer_writes_nothing(
    lines: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    done = answer(tmp_path, *lines)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("database: sqlite:///mine.db\n")
    assert "exists already" in refused(tmp_path, "init", "--yes")
    assert (tmp_path / FILE).read_text() == "database: sqlite:///mine.db\n"


ENTRY = {"name": "shop", "kind": "http", "url": "http://127.0.0.1:1/"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing yet\n",
        "database: sqlite:///m.db",
        "subjects:\n",
        "subjects: []\nlog: {level: info}\n",
        "subjects:  # what is watched\n- {name: box, kind: host}  # ours\n\n# the end\nlog: {level: info}\n",
        "subjects:\n  - name: box\n    kind: host\n    # its mounts\n    mounts:\n      - /srv\n",
        "subjects: [{name: box, kind: host}]\n",
        "subjects:\n  - name: box\n    kind: host\n    mounts: [/,\n      /srv]\nlog: {level: info}\n",
    ],
)
def test_an_entry_is_added_and_nothing_else_changes(text: str) -> None:
    before, after = yaml.safe_load(text) or {}, with_subject(text, ENTRY)
    expected = [*(before.get("subjects") or []), ENTRY]
    assert yaml.safe_load(after) == {**before, "subjects": expected}
    for line in text.splitlines():
        if "[" not in line:  # a list in one line becomes longer
            assert line in after.splitlines()


def test_a_layout_without_a_place_for_an_entry_is_refused() -> None:
    text = "a: &all\n- {name: box, kind: host}\nsubjects: *all\n"
    with pytest.raises(SettingsError) as raised:
        with_subject(text, ENTRY)
    assert raised.value.path == "subjects"
    assert "add it yourself: - {name: shop" in raised.value.one_line()


def test_a_subject_is_added_listed_and_completed(tmp_path: Path) -> None:
    file = tmp_path / FILE
    written = "# ours\nsubjects:\n  - {name: box, kind: host}\n"
    file.write_text(written)
    file.chmod(0o640)
    wrong = refused(
        tmp_path, "subjects", "add", "shop", "http", "uri=http://x/", code=2
    )
    assert "did you mean url?" in wrong
    again = refused(tmp_path, "subjects", "add", "box", "host", code=2)
    assert "box is also the name of subjects[0]" in again
    assert file.read_text() == written

    url = "url=http://127.0.0.1:1/"
    done = midwatch(tmp_path, "subjects", "add", "shop", "http", url)
    assert done.returncode == 1, "nothing answers there"
    assert "connection refused" in done.stdout
    assert (
        file.read_text()
        == f"{written}  - {{name: shop, kind: http, url: 'http://127.0.0.1:1/'}}\n"
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o640

    midwatch(tmp_path, "monitor", "--once")
    found = {one["name"]: one for one in said_json(tmp_path, "subjects", "list")}
    assert (found["shop"]["kind"], found["shop"]["unresolved"]) == ("http", 1)
    (ticket,) = said_json(tmp_path, "tickets", "list", "--subject", "shop")

    assert completed(tmp_path, "tickets", "list", "--subject", "s") == ["shop"]
    assert completed(tmp_path, "subjects", "add", "x", "ho") == ["host"]
    assert str(ticket["id"]) in completed(tmp_path, "tickets", "show", "")
    (tmp_path / "midwatch.db").write_bytes(b"no database")
    assert completed(tmp_path, "tickets", "show", "") == []


def completed(folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last word of a command line; nothing but candidates is printed."""
    env = environ(
        folder,
        _MIDWATCH_COMPLETE="complete_bash",
        COMP_WORDS=" ".join(("midwatch", *words)),
        COMP_CWORD=str(len(words)),
    )
    done = subprocess.run(
        [MIDWATCH],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()
